//! Tells the broker how far we are, in a thread of its own: a commit waits for the group's coordinator, and reading must
//! not.

use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};

use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::KafkaResult;

use crate::kafka::Events;

/// The thread's end. It ends when this is dropped.
pub(super) struct Committer {
    offsets: SyncSender<TopicPartitionList>,
    outcome: Arc<Mutex<Option<KafkaResult<()>>>>,
}

impl Committer {
    pub(super) fn start(source: &str, consumer: &Arc<BaseConsumer<Events>>) -> Self {
        let (offsets, wanted) = mpsc::sync_channel::<TopicPartitionList>(0);
        let outcome = Arc::<Mutex<Option<KafkaResult<()>>>>::default();
        let (told, consumer) = (Arc::clone(&outcome), Arc::clone(consumer));
        std::thread::Builder::new()
            .name(format!("commit-{source}"))
            .spawn(move || {
                for offsets in wanted {
                    let outcome = consumer.commit(&offsets, CommitMode::Sync);
                    *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(outcome);
                }
            })
            .expect("a thread can be started");
        Self { offsets, outcome }
    }

    /// Has offsets committed; `false` if a commit is still under way.
    pub(super) fn commit(&self, offsets: TopicPartitionList) -> bool {
        self.offsets.try_send(offsets).is_ok()
    }

    /// What became of the last commit, once.
    pub(super) fn outcome(&self) -> Option<KafkaResult<()>> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}
