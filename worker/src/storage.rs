//! Topics on disk: sharded SQLite files, the layout manifest beside them, one writer thread a shard,
//! and the gate at which epochs are cut. Every SQLite file of the worker is opened in [`sqlite`], one way.
//!
//! ```text
//! Ingest::submit ──by key──► writer thread 0 ─► shard_0.db   one transaction a batch:
//!                       └──► writer thread 1 ─► shard_1.db   rows, _chg, _offsets, _tombstones
//!                                   └─ COMMIT through the EpochGate ─► evaluator
//! ```

pub(crate) mod arrivals;
pub(crate) mod change;
pub(crate) mod checkpoint;
pub(crate) mod data_size;
pub(crate) mod expiry;
pub(crate) mod gate;
pub(crate) mod hash;
pub(crate) mod ingest;
pub(crate) mod layout;
pub(crate) mod log;
pub(crate) mod message;
pub(crate) mod offsets;
pub(crate) mod rate_limit;
mod regexp;
pub(crate) mod replication_barrier;
pub(crate) mod retention;
pub(crate) mod shard;
pub(crate) mod sqlite;
pub(crate) mod topics;
pub(crate) mod writer;
