//! What a shard holds under keys, as it goes into files of another layout, and how two sides of it are compared.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hash};
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use hashbrown::DefaultHashBuilder;

/// One for all tallies of the process, so that they can be compared.
static HASHER: LazyLock<DefaultHashBuilder> = LazyLock::new(DefaultHashBuilder::default);

/// A row of a topic, an entry of the change log or a tombstone. Its texts are its own, or lie in what it is read from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Record<T = String> {
    Row {
        key: T,
        payload: Option<T>,
        timestamp: Option<i64>,
        change: Option<T>,
    },
    Tombstone {
        key: T,
        timestamp: i64,
    },
    Logged {
        key: T,
        old: Option<T>,
        new: Option<T>,
        old_timestamp: Option<i64>,
        timestamp: i64,
        change: Option<T>,
        kind: i64,
    },
}

impl<T: AsRef<str>> Record<T> {
    pub(crate) fn key(&self) -> &str {
        match self {
            Self::Row { key, .. } | Self::Tombstone { key, .. } | Self::Logged { key, .. } => key.as_ref(),
        }
    }

    /// The memory that it takes, about, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let text = |text: &Option<T>| text.as_ref().map_or(0, |text| text.as_ref().len());
        size_of::<Record>()
            + self.key().len()
            + match self {
                Self::Row { payload, change, .. } => text(payload) + text(change),
                Self::Tombstone { .. } => 0,
                Self::Logged { old, new, change, .. } => text(old) + text(new) + text(change),
            }
    }

    /// Where it belongs in a [`RecordTally`].
    fn kind(&self) -> RecordKind {
        match self {
            Self::Row { .. } => RecordKind::Row,
            Self::Tombstone { .. } => RecordKind::Tombstone,
            Self::Logged { .. } => RecordKind::Logged,
        }
    }
}

impl<T> Record<T> {
    /// The same with other texts.
    fn map<'r, U>(&'r self, mut text: impl FnMut(&'r T) -> U) -> Record<U> {
        match self {
            Self::Row { key, payload, timestamp, change } => Record::Row {
                key: text(key),
                payload: payload.as_ref().map(&mut text),
                timestamp: *timestamp,
                change: change.as_ref().map(&mut text),
            },
            Self::Tombstone { key, timestamp } => Record::Tombstone { key: text(key), timestamp: *timestamp },
            Self::Logged { key, old, new, old_timestamp, timestamp, change, kind } => Record::Logged {
                key: text(key),
                old: old.as_ref().map(&mut text),
                new: new.as_ref().map(&mut text),
                old_timestamp: *old_timestamp,
                timestamp: *timestamp,
                change: change.as_ref().map(&mut text),
                kind: *kind,
            },
        }
    }
}

impl Record<&str> {
    /// The same with texts of its own.
    pub(crate) fn to_owned(&self) -> Record {
        self.map(|text| (*text).to_owned())
    }
}

/// Records on their way, each with the index of its topic. Their texts lie in one.
#[derive(Debug, Default)]
pub(crate) struct RecordBatch {
    texts: String,
    records: Vec<(usize, Record<Range<usize>>)>,
}

impl RecordBatch {
    pub(crate) fn push(&mut self, topic: usize, record: &Record<&str>) {
        let texts = &mut self.texts;
        let record = record.map(|text| {
            let start = texts.len();
            texts.push_str(text);
            start..texts.len()
        });
        self.records.push((topic, record));
    }

    /// The memory that it takes, about, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.texts.len() + self.records.len() * size_of::<(usize, Record<Range<usize>>)>()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, Record<&str>)> {
        self.records.iter().map(|(topic, record)| (*topic, record.map(|text| &self.texts[text.clone()])))
    }
}

/// What a change leaves of its row.
pub(crate) struct FollowedChange {
    pub(super) topic: Arc<str>,
    pub(super) key: String,
    /// `None` where the row is gone.
    pub(crate) row: Option<Record>,
}

impl FollowedChange {
    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// The memory that it takes, about, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        size_of::<Self>() + self.key.len() + self.row.as_ref().map_or(0, Record::bytes)
    }
}

/// The kind of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RecordKind {
    Row,
    Tombstone,
    Logged,
}

/// The number of some records, and a checksum that does not depend on their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RecordSum {
    pub(crate) count: u64,
    pub(crate) sum: u64,
}

/// How many records there are of each kind and topic, with their checksums.
#[derive(Debug, Clone, Default)]
pub(crate) struct RecordTally {
    sums: Vec<RecordSum>,
    /// Indexes into `sums` by kind and topic, the name in lower case.
    index: BTreeMap<(RecordKind, String), usize>,
    /// The one that was counted last, by its name as it was given: many of one kind come in a row.
    last: Option<(RecordKind, String, usize)>,
}

impl RecordTally {
    pub(crate) fn count<T: AsRef<str> + Hash>(&mut self, topic: &str, record: &Record<T>) {
        let hash = HASHER.hash_one(record);
        let sum = self.sum_of(record.kind(), topic);
        sum.count += 1;
        sum.sum = sum.sum.wrapping_add(hash);
    }

    fn sum_of(&mut self, kind: RecordKind, topic: &str) -> &mut RecordSum {
        let index = match &self.last {
            Some((last_kind, last_topic, index)) if *last_kind == kind && last_topic == topic => *index,
            _ => {
                let next = self.sums.len();
                let index = *self.index.entry((kind, topic.to_ascii_lowercase())).or_insert(next);
                if index == next {
                    self.sums.push(RecordSum::default());
                }
                self.last = Some((kind, topic.to_owned(), index));
                index
            }
        };
        &mut self.sums[index]
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for ((kind, topic), added) in other.iter() {
            let sum = self.sum_of(*kind, topic);
            sum.count += added.count;
            sum.sum = sum.sum.wrapping_add(added.sum);
        }
    }

    /// The sums by kind and topic.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&(RecordKind, String), RecordSum)> {
        self.index.iter().map(|(name, index)| (name, self.sums[*index]))
    }

    /// The sum of a kind and topic.
    pub(crate) fn get(&self, name: &(RecordKind, String)) -> RecordSum {
        self.index.get(name).map(|index| self.sums[*index]).unwrap_or_default()
    }

    /// The number of records of a kind.
    pub(crate) fn count_of(&self, kind: RecordKind) -> u64 {
        self.iter().filter(|((of, _), _)| *of == kind).map(|(_, sum)| sum.count).sum()
    }
}
