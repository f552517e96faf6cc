//! `results.db`: the results of every join, the outbox that sinks read, and how far each join and sink is.
//! One transaction an epoch writes results, outbox and applied sequence numbers, so a crash leaves either all
//! of an epoch or nothing of it.
//!
//! ```text
//! meta(name, value)                                lineage, epoch_applied, epoch_reserved, outbox horizon
//! joins(id, name, definition, epoch, stale, applied)   how far each has come in each shard's change log
//! results(join_id, key, rows, op, epoch, n, …)     outbox(epoch, n, join_id, key, op, rows, timestamp)
//! failing(join_id, key, error)                     results that stay as they were: their query fails, see failing
//! accumulators(join_id, grp, state)                what is kept of groups, see join::accumulate
//! watermarks, frames, panes                        the time of windows, see frames
//! cursors(sink, epoch, n)                          how far each sink is
//! subscriptions(sink, join_id)                     hand_overs(sink, join_id), those that have not come to their end
//! withheld(sink, join_id, key)                     results that a sink does not write for those of others, see withheld
//! ```

pub(crate) mod event;
pub(crate) mod failing;
pub(crate) mod frames;
pub(crate) mod outbox;
pub(crate) mod reader;
pub(crate) mod recovery_barrier;
pub(crate) mod release;
pub(crate) mod store;
pub(crate) mod tables;
pub(crate) mod withheld;

pub(crate) use event::{Applied, Position};
pub(crate) use reader::Reader;
pub(crate) use store::Results;
