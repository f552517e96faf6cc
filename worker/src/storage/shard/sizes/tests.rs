//! The sizes of topics, held to SQL over the rows.

use std::path::PathBuf;
use std::sync::Arc;

use litejoin_crds::plan::Synchronous;
use rusqlite::Connection;
use tempfile::TempDir;

use super::*;
use crate::storage::expiry::{Expired, Expiry};
use crate::storage::message::Message;
use crate::storage::shard::{Record, RecordBatch, ShardBatch, ShardFacts, ShardImport};
use crate::storage::topics::Topics;

struct SizedShard {
    _folder: TempDir,
    path: PathBuf,
    topics: Topics,
    shard: Shard,
    /// What a status adds up.
    told: TopicSize,
}

const T: TopicId = TopicId(0);

impl SizedShard {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard_0.db");
        let topics = Topics::new(["t"], []);
        let shard = Shard::open(&path, Synchronous::Normal, &topics).unwrap();
        Self { _folder: folder, path, topics, shard, told: TopicSize::default() }
    }

    fn write(&mut self, messages: &[(&str, Option<&str>)]) {
        let message = |(key, payload): &(&str, Option<&str>)| Message {
            topic: T,
            key: (*key).into(),
            payload: payload.map(Into::into),
            timestamp: None,
            headers: None,
            source_offset: 0,
        };
        let messages = Arc::new(messages.iter().map(message).collect());
        let batch = ShardBatch { messages, partition: "s".into(), arrivals: Vec::new(), stream: None };
        let pending = self.shard.write(&[batch], &self.topics, 10, 0).unwrap();
        self.commit(pending);
    }

    fn commit(&mut self, pending: Pending) {
        for (topic, growth) in self.shard.commit(pending).unwrap().sizes {
            assert_eq!(topic, T);
            self.told += growth;
        }
    }

    fn reopen(&mut self) {
        self.shard = Shard::open(&self.path, Synchronous::Normal, &self.topics).unwrap();
    }

    fn size(&self) -> TopicSize {
        let sizes = self.shard.sizes().unwrap();
        assert_eq!(sizes.len(), 1);
        sizes[0].1
    }

    fn counted(&self) -> TopicSize {
        let sql = "SELECT count(*), ifnull(sum(octet_length(key) + octet_length(payload)), 0) FROM t";
        let read = |row: &rusqlite::Row<'_>| Ok(TopicSize { rows: row.get(0)?, bytes: row.get(1)? });
        self.shard.connection.query_row(sql, [], read).unwrap()
    }

    fn assert_counted(&self, rows: i64) {
        assert_eq!(self.size(), self.counted());
        assert_eq!(self.told, self.counted());
        assert_eq!(self.told.rows, rows);
    }

    /// Numbers that no count would yield, by which a test sees whether one was made.
    fn falsify(connection: &Connection) {
        connection.execute("UPDATE _sizes SET rows = 1000", []).unwrap();
    }
}

#[test]
fn they_follow_every_change_in_its_transaction() {
    let mut sized = SizedShard::new();
    sized.write(&[("a", Some("1")), ("ü", Some("\"äöü\"")), ("b", Some("22")), ("none", None)]);
    sized.assert_counted(3);
    sized.write(&[("a", Some("12345")), ("b", None), ("ü", Some("\"äöü\""))]);
    sized.assert_counted(2);
    let expired = Expired { topic: T, before: 100, keys: vec!["a".to_owned(), "gone".to_owned()] };
    let (done, _finished) = std::sync::mpsc::channel();
    let expiry = Expiry { candidates: vec![expired], tombstones_before: 0, quiet: true, done };
    let pending = sized.shard.expire(&expiry, 20).unwrap();
    sized.commit(pending);
    sized.assert_counted(1);
    sized.reopen();
    sized.assert_counted(1);
}

#[test]
fn a_transaction_that_is_not_committed_leaves_them() {
    let mut sized = SizedShard::new();
    sized.write(&[("a", Some("1"))]);
    let message = Message {
        topic: T,
        key: "b".into(),
        payload: Some("2".into()),
        timestamp: None,
        headers: None,
        source_offset: 0,
    };
    let batch = ShardBatch {
        messages: Arc::new(vec![message]),
        partition: "s".into(),
        arrivals: Vec::new(),
        stream: None,
    };
    drop(sized.shard.write(&[batch], &sized.topics, 10, 0).unwrap());
    sized.reopen();
    sized.assert_counted(1);
}

#[test]
fn an_ordinary_open_counts_nothing() {
    let mut sized = SizedShard::new();
    sized.write(&[("a", Some("1")), ("b", Some("2"))]);
    // The log is trimmed down to its newest entry.
    let pending = sized.shard.write(&[], &sized.topics, 10, 1).unwrap();
    sized.commit(pending);
    SizedShard::falsify(&sized.shard.connection);
    sized.reopen();
    assert_eq!(sized.size().rows, 1000);
}

#[test]
fn a_file_of_an_earlier_version_is_counted_once() {
    let mut sized = SizedShard::new();
    sized.write(&[("a", Some("1")), ("b", Some("2"))]);
    sized.shard.connection.execute("DROP TABLE _sizes", []).unwrap();
    sized.reopen();
    sized.assert_counted(2);
    SizedShard::falsify(&sized.shard.connection);
    sized.reopen();
    assert_eq!(sized.size().rows, 1000, "it is not counted again");
}

#[test]
fn a_file_that_an_earlier_version_has_written_to_is_counted() {
    let mut sized = SizedShard::new();
    sized.write(&[("a", Some("1")), ("b", Some("2"))]);
    let by_earlier = "INSERT INTO t (key, payload, timestamp) VALUES ('c', '333', 1);
        INSERT INTO _chg (topic, key, new, timestamp, kind) VALUES (1, 'c', '333', 1, 0);";
    sized.shard.connection.execute_batch(by_earlier).unwrap();
    sized.reopen();
    assert_eq!(sized.size(), TopicSize { rows: 3, bytes: 8 });
}

#[test]
fn a_copy_that_a_reshard_has_made_is_counted() {
    let mut sized = SizedShard::new();
    let path = sized.path.with_file_name("shard_1.db");
    let topics = ["t".to_owned()];
    let import = ShardImport::create(&path, &topics, 256).unwrap();
    let mut records = RecordBatch::default();
    let row = Record::Row { key: "a", payload: Some("12"), timestamp: Some(1), change: None };
    records.push(0, &row);
    import.write(&topics, &records).unwrap();
    import.finish(&ShardFacts::default()).unwrap();
    sized.path = path;
    sized.reopen();
    assert_eq!(sized.size(), TopicSize { rows: 1, bytes: 3 });
}
