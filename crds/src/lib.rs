//! The API.
pub mod plan;
