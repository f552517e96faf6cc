//! Starting the threads that write the shards, and the way in to them.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::thread::JoinHandle;

use litejoin_crds::plan::Plan;

use super::thread;
use crate::status::Status;
use crate::storage::arrivals::Arrivals;
use crate::storage::gate::EpochGate;
use crate::storage::ingest::Ingest;
use crate::storage::shard::Shard;
use crate::storage::topics::Topics;
use crate::storage::writer::{Writer, WriterCommand};

/// Starts a thread for each shard, all with the way in to them; they end when it is closed.
pub(super) fn start(
    plan: &Plan,
    shards: Vec<Shard>,
    topics: &Arc<Topics>,
    gate: &Arc<EpochGate>,
    status: &Arc<Status>,
    trim_to: &[Arc<AtomicI64>],
) -> (Ingest, Vec<JoinHandle<()>>) {
    let mut senders = Vec::with_capacity(shards.len());
    let mut threads = Vec::with_capacity(shards.len());
    let alive = Arc::new(());
    for (shard_index, (shard, trim_to)) in shards.into_iter().zip(trim_to).enumerate() {
        let (sender, commands) = std::sync::mpsc::channel::<WriterCommand>();
        let writer = Writer {
            shard_index,
            shard,
            topics: Arc::clone(topics),
            gate: Arc::clone(gate),
            status: Arc::clone(status),
            batch_messages_max: plan.storage.batch_messages_max,
            flush_interval: plan.storage.flush_interval,
            trim_to: Arc::clone(trim_to),
            was_full: false,
        };
        senders.push(sender);
        let alive = Arc::clone(&alive);
        threads.push(thread(&format!("shard-{shard_index}"), move || {
            writer.run(&commands);
            drop(alive);
        }));
    }
    let arrivals = Arrivals::new(Arc::clone(gate));
    (Ingest::new(Arc::clone(topics), senders, arrivals, &alive), threads)
}
