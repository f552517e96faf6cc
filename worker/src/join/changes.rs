//! Changes of topics between two cuts, one entry a row: the first old image and the last new one.
//!
//! All texts of a shard lie one behind the other in one buffer: they are most of the memory that an epoch takes.

use std::collections::BTreeSet;
use std::hash::BuildHasher as _;

use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

use super::TopicImage;
use crate::storage::hash::shard_index;
use crate::storage::log::{LoggedChange, ShardReader};
use crate::storage::sqlite::SqliteError;
use crate::storage::topics::{TopicId, Topics};

/// The changes of all shards.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    parts: Vec<ShardChanges>,
}

/// The changes of one shard.
#[derive(Debug, Default)]
pub(crate) struct ShardChanges {
    text: String,
    topics: HashMap<TopicId, TopicRows>,
}

/// The changed rows of a topic, and where to find each by key.
#[derive(Debug, Default)]
struct TopicRows {
    rows: Vec<RowSpans>,
    by_key: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

#[derive(Debug)]
struct RowSpans {
    key: Span,
    old: Option<ImageSpans>,
    new: Option<ImageSpans>,
    expired: bool,
}

#[derive(Debug)]
struct ImageSpans {
    payload: Span,
    change: Option<Span>,
    timestamp: i64,
}

/// A piece of the buffer, in bytes.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u32,
    length: u32,
}

/// Bytes of texts that are held at most, over all shards.
pub(crate) const BYTES_MAX: usize = 256 << 20;

/// Why a log of changes could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The log holds more than [`BYTES_MAX`]; full evaluation needs no log.
    #[error("the changes are too large to hold them in memory")]
    TooMuch,
    #[error(transparent)]
    File(#[from] SqliteError),
}

/// A row of a topic before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChangedRow<'a> {
    pub(crate) key: &'a str,
    /// The row before, without a known `_change`; `None` also if old images of the topic were not asked for.
    pub(crate) old: Option<TopicImage<'a>>,
    pub(crate) new: Option<TopicImage<'a>>,
    /// Whether retention made the last change, so that the results that follow from it emit no event.
    pub(crate) expired: bool,
}

impl Changes {
    /// Joins the changes of all shards.
    pub(crate) fn new(parts: Vec<ShardChanges>) -> Self {
        Self { parts }
    }

    pub(crate) fn parts(&self) -> &[ShardChanges] {
        &self.parts
    }

    /// Returns the number of changed rows.
    pub(crate) fn len(&self) -> usize {
        self.parts.iter().map(ShardChanges::len).sum()
    }

    /// Returns the topics with changed rows.
    pub(crate) fn topics(&self) -> BTreeSet<TopicId> {
        self.parts.iter().flat_map(|part| part.topics.keys().copied()).collect()
    }

    /// Returns the changed rows of a topic.
    pub(crate) fn rows(&self, topic: TopicId) -> impl Iterator<Item = ChangedRow<'_>> {
        self.parts.iter().flat_map(move |part| part.rows(topic))
    }

    /// Returns the change of a row, or `None` if the row has not changed.
    pub(crate) fn row(&self, topic: TopicId, key: &str) -> Option<ChangedRow<'_>> {
        if self.parts.is_empty() {
            return None;
        }
        self.parts[shard_index(key, self.parts.len())].row(topic, key)
    }
}

impl ShardChanges {
    /// Reads the entries with `after < seq <= to` from the log of one shard, old images of some topics only.
    pub(crate) fn read(
        reader: &mut ShardReader,
        after: i64,
        to: i64,
        topics: &Topics,
        bytes_max: usize,
        wants_old: impl Fn(TopicId) -> bool,
    ) -> Result<Self, ReadError> {
        let mut part = Self::default();
        reader.changes::<ReadError>(after, to, topics, |mut change| {
            change.old = change.old.filter(|_| wants_old(change.topic));
            part.add(&change);
            if part.text.len() > bytes_max { Err(ReadError::TooMuch) } else { Ok(()) }
        })?;
        // The buffers are complete now, and doubling has left a third of them empty.
        part.text.shrink_to_fit();
        part.topics.values_mut().for_each(|rows| rows.rows.shrink_to_fit());
        Ok(part)
    }

    /// Returns the number of changed rows.
    pub(crate) fn len(&self) -> usize {
        self.topics.values().map(|rows| rows.rows.len()).sum()
    }

    /// Adds an entry of the log. Entries of one row must come in their order.
    pub(crate) fn add(&mut self, change: &LoggedChange<'_>) {
        let Self { text, topics } = self;
        let new = change.new.map(|payload| ImageSpans {
            payload: append(text, payload),
            timestamp: change.timestamp,
            change: change.change.map(|change| append(text, change)),
        });
        let rows = topics.entry(change.topic).or_default();
        if let Some(index) = rows.find(text, change.key) {
            let row = &mut rows.rows[index];
            row.new = new;
            row.expired = change.expired;
            return;
        }
        let old = change.old.map(|payload| ImageSpans {
            payload: append(text, payload),
            timestamp: change.old_timestamp,
            change: None,
        });
        let key = append(text, change.key);
        let index = u32::try_from(rows.rows.len()).expect("the log is read in slices of fewer entries");
        rows.rows.push(RowSpans { key, old, new, expired: change.expired });
        let TopicRows { rows, by_key, hasher } = rows;
        let rehash = |index: &u32| hasher.hash_one(rows[*index as usize].key.of(text));
        by_key.insert_unique(hasher.hash_one(change.key), index, rehash);
    }

    /// Returns the changed rows of a topic, in the order in which they first changed.
    pub(crate) fn rows(&self, topic: TopicId) -> impl Iterator<Item = ChangedRow<'_>> {
        self.topics.get(&topic).into_iter().flat_map(|rows| &rows.rows).map(|row| self.view(row))
    }

    fn row(&self, topic: TopicId, key: &str) -> Option<ChangedRow<'_>> {
        let rows = self.topics.get(&topic)?;
        rows.find(&self.text, key).map(|index| self.view(&rows.rows[index]))
    }

    fn view(&self, row: &RowSpans) -> ChangedRow<'_> {
        let image = |image: &ImageSpans| TopicImage {
            payload: image.payload.of(&self.text),
            timestamp: image.timestamp,
            change: image.change.map(|change| change.of(&self.text)),
        };
        ChangedRow {
            key: row.key.of(&self.text),
            old: row.old.as_ref().map(image),
            new: row.new.as_ref().map(image),
            expired: row.expired,
        }
    }
}

impl TopicRows {
    fn find(&self, text: &str, key: &str) -> Option<usize> {
        let is_it = |index: &u32| self.rows[*index as usize].key.of(text) == key;
        self.by_key.find(self.hasher.hash_one(key), is_it).map(|index| *index as usize)
    }
}

/// Appends `piece` to `text` and returns its span.
fn append(text: &mut String, piece: &str) -> Span {
    let place = |length: usize| u32::try_from(length).expect("both are far below 4 GiB");
    let span = Span { start: place(text.len()), length: place(piece.len()) };
    text.push_str(piece);
    span
}

impl Span {
    fn of(self, text: &str) -> &str {
        &text[self.start as usize..][..self.length as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOPIC: TopicId = TopicId(0);

    fn entry<'a>(key: &'a str, old: Option<&'a str>, new: Option<&'a str>) -> LoggedChange<'a> {
        let expired = false;
        LoggedChange { topic: TOPIC, key, old, old_timestamp: 1, new, timestamp: 2, change: None, expired }
    }

    #[test]
    fn a_row_has_its_first_old_image_and_its_last_new_one() {
        let mut part = ShardChanges::default();
        for n in 0..100 {
            part.add(&entry(&format!("k{n}"), None, Some("other")));
        }
        part.add(&entry("k", Some("first"), Some("second")));
        part.add(&entry("k", Some("second"), None));
        part.add(&entry("k", None, Some("third")));
        let changes = Changes::new(vec![part]);
        let row = changes.row(TOPIC, "k").expect("it has changed");
        assert_eq!(row.old.map(|old| old.payload), Some("first"));
        assert_eq!(row.new.map(|new| new.payload), Some("third"));
        assert_eq!(changes.row(TOPIC, "k99").map(|row| row.key), Some("k99"));
        assert_eq!(changes.row(TOPIC, "k100"), None);
        assert_eq!(changes.rows(TOPIC).count(), 101);
    }
}
