//! The harness: the built worker as a child process, clients for what it serves, and SQLite as the oracle of
//! its results. The harness knows nothing of the worker's code, only the parts that a user sees. Each failure
//! panics with the action that failed; a worker that is dropped by a panic prints its log.

pub mod certificates;
pub mod child;
pub mod client;
pub mod consumers;
pub mod fields;
pub mod fuzz;
pub mod golden;
pub mod ingest;
pub mod kafka;
pub mod kubernetes;
pub mod oracle;
pub mod ports;
pub mod repetition;
pub mod results;
pub mod server;
pub mod sse;
pub mod stores;
pub mod wait;
pub mod worker;
