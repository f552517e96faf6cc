//! The messages of a transaction that are written, and their order.

use hashbrown::HashMap;

use super::floors::Floor;
use super::{Pending, Shard, ShardBatch};
use crate::storage::message::Message;
use crate::storage::topics::TopicId;

impl Shard {
    /// Drops what the shard has seen already, and keeps only the last of several messages with one key: between
    /// two commits no reader can see the others. Messages that carry their own time all stay, in their order, since
    /// the last one to arrive need not win. Orders the rest by topic and key: neighbours in the index are found
    /// for less.
    pub(super) fn coalesce<'a>(&self, batches: &'a [ShardBatch], pending: &mut Pending) -> Vec<&'a Message> {
        let total = batches.iter().map(|batch| batch.messages.len()).sum();
        let mut kept: Vec<Option<&Message>> = Vec::with_capacity(total);
        let mut last: HashMap<(TopicId, &str), usize> = HashMap::with_capacity(total);
        // How far each stream is with the batches so far: two that overlap may meet in one transaction, when a source
        // was started anew before the last of its predecessor was stored.
        let mut seen: HashMap<&str, u64> = HashMap::new();
        for batch in batches {
            let stream = batch.stream.as_ref();
            let before = stream.map_or(0, |stream| {
                let stored = self.offsets.get(&stream.name).copied().unwrap_or(0);
                let seen = seen.entry(&stream.name).or_insert(stored);
                std::mem::replace(seen, stream.next.max(*seen))
            });
            let floors: Vec<&Floor> = stream.map_or_else(Vec::new, |stream| {
                self.floors.iter().filter(|floor| floor.stream == *stream.name).collect()
            });
            for message in batch.messages.iter() {
                let place = message.source_offset;
                let is_stored = place < before || floors.iter().any(|floor| floor.has(&message.key, place));
                if stream.is_some() && is_stored {
                    pending.count(message.topic).replayed += 1;
                    continue;
                }
                if message.timestamp.is_none()
                    && let Some(earlier) = last.insert((message.topic, &message.key), kept.len())
                    && kept[earlier].is_some_and(|message| message.timestamp.is_none())
                {
                    kept[earlier] = None;
                    pending.count(message.topic).superseded += 1;
                }
                kept.push(Some(message));
            }
        }
        let mut messages: Vec<&Message> = kept.into_iter().flatten().collect();
        messages.sort_by(|a, b| (a.topic, &a.key).cmp(&(b.topic, &b.key)));
        messages
    }
}
