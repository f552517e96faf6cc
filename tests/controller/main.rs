//! The operator and its definitions against a real API server: what is accepted and refused, what is built, and
//! what happens when calls go wrong. No node runs here. Build first: `cargo build --workspace`.

mod admin;
mod documents;
mod faults;
mod fields;
mod leader;
mod left_out;
mod manifest;
mod monitors;
mod node_loss;
mod others;
mod refused;
mod rights;
mod secrets;
mod settled;
mod site;
