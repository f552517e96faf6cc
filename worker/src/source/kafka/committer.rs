//! Tells the broker how far we are, in a thread of its own: a commit waits for the group's coordinator, and reading must
//! not.

use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;

use crate::kafka::Events;
use crate::storage::replication_barrier::ReplicationBarrier;

/// How long the replica is waited for before the broker is told something newer.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(10);

/// The outcome of a commit.
pub(super) enum CommitOutcome {
    Done(KafkaResult<()>),
    /// The data below the offsets is not in the replica yet.
    Behind,
}

/// The thread's end. It ends when this is dropped.
pub(super) struct OffsetCommitter {
    offsets: SyncSender<TopicPartitionList>,
    outcome: Arc<Mutex<Option<CommitOutcome>>>,
}

impl OffsetCommitter {
    /// Starts the thread within a runtime; with a `replication_barrier`, the broker is told only what is in the replica.
    pub(super) fn start(
        source: &str,
        consumer: &Arc<BaseConsumer<Events>>,
        replication_barrier: Option<ReplicationBarrier>,
    ) -> Self {
        let (offsets, wanted) = mpsc::sync_channel::<TopicPartitionList>(0);
        let outcome = Arc::<Mutex<Option<CommitOutcome>>>::default();
        let runtime = tokio::runtime::Handle::current();
        let (shared, consumer) = (Arc::clone(&outcome), Arc::clone(consumer));
        std::thread::Builder::new()
            .name(format!("commit-{source}"))
            .spawn(move || {
                for offsets in wanted {
                    let outcome = match is_replicated(&runtime, replication_barrier.as_ref(), REPLICA_TIMEOUT)
                    {
                        true => CommitOutcome::Done(consumer.commit(&offsets, CommitMode::Sync)),
                        false => CommitOutcome::Behind,
                    };
                    *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
                }
            })
            .expect("a thread can be started");
        Self { offsets, outcome }
    }

    /// Has offsets committed; `false` if a commit is still under way.
    pub(super) fn commit(&self, offsets: TopicPartitionList) -> bool {
        self.offsets.try_send(offsets).is_ok()
    }

    /// The outcome of the last commit, once.
    pub(super) fn outcome(&self) -> Option<CommitOutcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Returns when all that is stored now is in the replica, where that is asked for; `false` if it takes too long.
pub(super) fn is_replicated(
    runtime: &tokio::runtime::Handle,
    replication_barrier: Option<&ReplicationBarrier>,
    timeout: Duration,
) -> bool {
    replication_barrier.is_none_or(|replication_barrier| runtime.block_on(replication_barrier.wait(timeout)))
}
