//! The harness: the built worker as a child process, clients for its interfaces, and SQLite as the oracle of its
//! results. The harness uses none of the worker's code, only interfaces for users. Each failure panics with the failed
//! action; a worker that a panic drops prints its log.

pub mod argocd;
pub mod certificates;
pub mod child;
pub mod client;
pub mod consumers;
pub mod earlier;
pub mod fields;
pub mod fuzz;
pub mod golden;
pub mod ingest;
pub mod kafka;
pub mod kubernetes;
pub mod oracle;
pub mod ports;
pub mod programs;
pub mod repetition;
pub mod results;
pub mod server;
pub mod sse;
pub mod stores;
pub mod wait;
pub mod windows;
pub mod worker;
