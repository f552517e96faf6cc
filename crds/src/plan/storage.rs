//! `spec.storage` in a plan.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use crate::reshard::ReshardStrategy;

/// `spec.storage`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Storage {
    /// 1–64.
    pub shard_count: usize,
    /// The path, relative to the working directory.
    pub data_dir: PathBuf,
    /// Connections that read at once.
    pub reader_pool_size: usize,
    /// Messages that one shard commits together at most.
    pub batch_messages_max: usize,
    /// How long a message waits for others before its batch is committed.
    pub flush_interval: Duration,
    /// The crash that an acknowledged message survives.
    pub synchronous: Synchronous,
    /// Bytes that shards and results may take in their files; `None`: any number.
    pub bytes_max: Option<u64>,
    /// The data without which a start may begin.
    pub accept_loss: Option<String>,
    /// Consent to move the data to another number of shards.
    pub reshard: Option<Reshard>,
}

impl Storage {
    /// The number of shards to run with where the data has so many: a move beside the pipeline begins with what the data
    /// has, and data that has been moved stays so while the consent is there.
    pub fn shard_count_for(&self, has: Option<usize>) -> usize {
        match (self.consent(ReshardStrategy::Online), has) {
            (Some(consent), Some(has)) if [consent.from, consent.to].contains(&has) => has,
            _ => self.shard_count,
        }
    }

    /// Whether the data may have another number of shards than the one that is written, by a move beside the pipeline.
    pub fn may_move_online(&self) -> bool {
        self.consent(ReshardStrategy::Online).is_some()
    }

    /// The move that is to be made beside the pipeline, which runs with [`Self::shard_count_for`].
    pub fn online(&self) -> Option<&Reshard> {
        self.consent(ReshardStrategy::Online).filter(|consent| consent.from == self.shard_count)
    }

    fn consent(&self, strategy: ReshardStrategy) -> Option<&Reshard> {
        self.reshard.as_ref().filter(|consent| consent.strategy == strategy)
    }

    /// Whether data with so many shards can be run: it has what is wanted, or may be moved there.
    pub fn may_have(&self, shard_count: usize) -> bool {
        shard_count == self.shard_count || self.reshard_from() == Some(shard_count)
    }

    /// Shards that data may have which is to be moved, before it runs, to those that are wanted.
    pub fn reshard_from(&self) -> Option<usize> {
        let consent = self.consent(ReshardStrategy::Job).filter(|consent| consent.to == self.shard_count);
        consent.map(|consent| consent.from)
    }
}

/// `spec.storage.reshard`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reshard {
    /// Shards that the data has.
    pub from: usize,
    /// Shards that it is to have.
    pub to: usize,
    /// How the data is moved.
    pub strategy: ReshardStrategy,
    /// How long the layout of before is kept.
    pub keep_old_layout: Duration,
}

/// `spec.storage.synchronous`, SQLite's setting of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Synchronous {
    /// Survives a crash of the process.
    Normal,
    /// Survives a crash of the machine too.
    Full,
}
