//! The operator and its definitions against a real API server: accepted and refused documents, built objects, and the
//! handling of failed calls. The API server has no nodes. Build first: `cargo build --workspace`.

mod admin;
mod api_calls;
mod argocd;
mod degraded;
mod documents;
mod faults;
mod fields;
mod flaps;
mod flux;
mod leader;
mod left_out;
mod lost_claim;
mod manifest;
mod monitors;
mod node_loss;
mod others;
mod refused;
mod reshard;
mod rest;
mod rights;
mod round_trip;
mod secrets;
mod settled;
mod site;
mod upgrade;
mod windows;
