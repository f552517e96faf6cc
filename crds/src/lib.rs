//! The API of LiteJoin: what a user may write, what it means, and what is wrong with it.
//!
//! Data and pure functions only. The way of a document: `structure` holds it against the schema of its kind,
//! the types read it, `validate` turns all documents of a pipeline into a `plan`, and says every complaint at
//! once. The schemas that the cluster enforces (`crd`) come from the same types, so a laptop refuses what an
//! API server refuses.
#![deny(missing_docs)]
#![allow(clippy::duplicated_attributes, reason = "each printer column of a kind has a name and a type")]

pub mod address;
pub mod complaint;
pub mod crd;
pub mod credentials;
pub mod defaults;
pub mod document;
pub mod durability;
pub mod duration;
pub mod error;
pub mod hash;
pub mod join;
pub mod kind;
pub mod names;
pub mod network_policy;
pub mod part;
pub mod path;
pub mod pipeline;
pub mod plan;
pub mod pod;
pub mod pod_monitor;
pub mod quantity;
pub mod reference;
pub mod replication;
pub mod reshard;
mod rules;
pub mod schedule;
pub mod serving;
pub mod settle;
pub mod sink;
pub mod source;
pub mod status;
pub mod structure;
pub mod topic;
pub mod validate;
pub mod window;
pub mod worker_status;

pub use complaint::{Complaint, Reason, Severity};
pub use document::Document;
pub use join::{Join, JoinSpec};
pub use kind::{API_VERSION, GROUP, VERSION};
pub use part::Part;
pub use pipeline::{Pipeline, PipelineSpec};
pub use plan::{Place, Plan};
pub use settle::{Candidate, HeldBack};
pub use sink::{Sink, SinkSpec};
pub use source::{Source, SourceSpec};
pub use validate::{validate, validate_without};
pub use window::{Window, WindowSpec};
