//! The effect of a batch on a shard, on a real file.

use tempfile::TempDir;

use super::*;

use litejoin_crds::plan::Synchronous;

use crate::storage::hash::shard_index;

struct ShardFixture {
    _folder: TempDir,
    path: PathBuf,
    topics: Topics,
    shard: Shard,
}

const T: TopicId = TopicId(0);

impl ShardFixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("shard_0.db");
        let topics = Topics::new(["t"], []);
        let shard = Shard::open(&path, Synchronous::Normal, &topics).unwrap();
        Self { _folder: folder, path, topics, shard }
    }

    fn write(&mut self, now: i64, messages: Vec<Message>) -> Counts {
        self.write_from(now, messages, None)
    }

    fn write_from(&mut self, now: i64, messages: Vec<Message>, stream: Option<Stream>) -> Counts {
        let batch =
            ShardBatch { messages: Arc::new(messages), partition: "s".into(), arrivals: Vec::new(), stream };
        let pending = self.shard.write(&[batch], &self.topics, now, 0).unwrap();
        let counts = self.shard.commit(pending).unwrap().counts;
        counts.first().map_or_else(Counts::default, |(_, counts)| *counts)
    }

    fn reopen(&mut self) {
        self.shard = Shard::open(&self.path, Synchronous::Normal, &self.topics).unwrap();
    }

    /// `key payload timestamp _change` of every row.
    fn rows(&self) -> Vec<String> {
        self.list("SELECT key || ' ' || payload || ' ' || timestamp || ' ' || _change FROM t ORDER BY key")
    }

    /// `seq key old>new` of the change log.
    fn log(&self) -> Vec<String> {
        self.list("SELECT seq || ' ' || key || ' ' || ifnull(old, '') || '>' || ifnull(new, '') FROM _chg ORDER BY seq")
    }

    fn list(&self, sql: &str) -> Vec<String> {
        let mut statement = self.shard.connection.prepare(sql).unwrap();
        statement.query_map([], |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }
}

fn upsert(key: &str, payload: &str) -> Message {
    let (key, payload) = (key.into(), Some(payload.into()));
    Message { topic: T, key, payload, timestamp: None, headers: None, source_offset: 0 }
}

fn delete(key: &str) -> Message {
    Message { payload: None, ..upsert(key, "") }
}

fn at(timestamp: i64, message: Message) -> Message {
    Message { timestamp: Some(timestamp), ..message }
}

fn from(source_offset: u64, message: Message) -> Message {
    Message { source_offset, ..message }
}

#[test]
fn the_last_value_of_a_key_wins_and_the_log_has_both_images() {
    let mut bench = ShardFixture::new();
    let counts = bench.write(10, vec![upsert("a", r#"{"x":1}"#), upsert("b", "2")]);
    assert_eq!(counts, Counts { created: 2, ..Counts::default() });
    let counts = bench.write(11, vec![upsert("a", r#"{"x":2}"#), upsert("b", "2"), delete("c")]);
    assert_eq!(counts, Counts { updated: 1, unchanged: 2, ..Counts::default() });
    assert_eq!(
        bench.rows(),
        [r#"a {"x":2} 11 {"op":"updated","fields":["x"]}"#, r#"b 2 10 {"op":"created"}"#]
    );
    let counts = bench.write(12, vec![delete("b")]);
    assert_eq!(counts, Counts { deleted: 1, ..Counts::default() });
    assert_eq!(bench.log(), [r#"1 a >{"x":1}"#, "2 b >2", r#"3 a {"x":1}>{"x":2}"#, "4 b 2>"]);
    assert_eq!(bench.shard.last_seq(), 4);
}

#[test]
fn of_several_messages_with_one_key_a_batch_writes_the_last() {
    let mut bench = ShardFixture::new();
    let counts = bench.write(10, vec![upsert("a", "1"), upsert("a", "2"), upsert("b", "1"), delete("b")]);
    assert_eq!(counts, Counts { created: 1, superseded: 2, unchanged: 1, ..Counts::default() });
    assert_eq!(bench.log(), ["1 a >2"]);
}

#[test]
fn a_message_with_an_older_time_of_its_own_changes_nothing() {
    let mut bench = ShardFixture::new();
    bench.write(100, vec![upsert("a", "1"), upsert("b", "1")]);
    bench.write(101, vec![delete("b")]);
    let stale = vec![at(99, upsert("a", "0")), at(100, upsert("b", "0"))];
    assert_eq!(bench.write(102, stale), Counts { stale: 2, ..Counts::default() });
    bench.reopen();
    let counts = bench.write(102, vec![at(101, upsert("b", "2")), at(500, upsert("a", "3"))]);
    assert_eq!(counts, Counts { created: 1, updated: 1, ..Counts::default() });
    assert_eq!(bench.list("SELECT count(*) || '' FROM _tombstones"), ["0"], "the key lives again");
    // Within one batch too, whatever the order of arrival.
    bench.write(103, vec![at(700, upsert("c", "new")), at(600, upsert("c", "old"))]);
    assert_eq!(bench.list("SELECT payload FROM t WHERE key = 'c'"), ["new"]);
}

#[test]
fn what_a_stream_has_sent_before_is_dropped() {
    let mut bench = ShardFixture::new();
    let stream = |next| Some(Stream { name: "f".into(), next });
    bench.write_from(10, vec![from(0, upsert("a", "1")), from(5, upsert("b", "1"))], stream(9));
    bench.write(11, vec![upsert("a", "newer")]);
    bench.reopen();
    assert_eq!(bench.shard.offsets().get("f"), Some(&9));
    let again = vec![from(0, upsert("a", "1")), from(5, upsert("b", "1")), from(9, upsert("c", "1"))];
    let counts = bench.write_from(12, again, stream(12));
    assert_eq!(counts, Counts { replayed: 2, created: 1, ..Counts::default() });
    assert_eq!(bench.list("SELECT payload FROM t WHERE key = 'a'"), ["newer"]);
}

#[test]
fn what_a_stream_has_sent_before_is_dropped_within_a_transaction_too() {
    let mut bench = ShardFixture::new();
    let batch = |next, messages| {
        let stream = Some(Stream { name: "f".into(), next });
        ShardBatch { messages: Arc::new(messages), partition: "s".into(), arrivals: Vec::new(), stream }
    };
    let newer = batch(9, vec![from(8, upsert("a", "new"))]);
    let older = batch(4, vec![from(3, upsert("a", "old"))]);
    let pending = bench.shard.write(&[newer, older], &bench.topics, 10, 0).unwrap();
    let counts = bench.shard.commit(pending).unwrap();
    assert_eq!(counts.counts, [(T, Counts { created: 1, replayed: 1, ..Counts::default() })]);
    assert_eq!(bench.list("SELECT payload FROM t"), ["new"]);
    assert_eq!(bench.shard.offsets().get("f"), Some(&9));
    bench.reopen();
    assert_eq!(bench.shard.offsets().get("f"), Some(&9));
}

#[test]
fn a_failed_transaction_leaves_nothing_behind() {
    let mut bench = ShardFixture::new();
    bench.write(10, vec![upsert("a", "1")]);
    let other = bench.topics.declare("other");
    let messages = vec![upsert("a", "2"), Message { topic: other, ..upsert("x", "1") }];
    let batch = ShardBatch {
        messages: Arc::new(messages),
        partition: "s".into(),
        arrivals: Vec::new(),
        stream: None,
    };
    bench.shard.connection.execute_batch("CREATE TABLE other (wrong)").unwrap();
    bench.shard.write(&[batch], &bench.topics, 11, 0).expect_err("the table has no such columns");
    assert_eq!((bench.rows().len(), bench.log().len(), bench.shard.last_seq()), (1, 1, 1));
    bench.shard.connection.execute_batch("DROP TABLE other").unwrap();
    assert_eq!(bench.write(12, vec![upsert("a", "3")]).updated, 1);
    assert_eq!(bench.log(), ["1 a >1", "2 a 1>3"], "no number is used twice");
}

#[test]
fn the_log_is_trimmed_below_what_was_applied_and_its_numbers_go_on() {
    let mut bench = ShardFixture::new();
    bench.write(10, vec![upsert("a", "1"), upsert("b", "1"), upsert("c", "1")]);
    let empty =
        ShardBatch { messages: Arc::default(), partition: "s".into(), arrivals: Vec::new(), stream: None };
    let pending = bench.shard.write(&[empty], &bench.topics, 11, 2).unwrap();
    bench.shard.commit(pending).unwrap();
    assert_eq!(bench.log(), ["3 c >1"]);
    let empty =
        ShardBatch { messages: Arc::default(), partition: "s".into(), arrivals: Vec::new(), stream: None };
    let pending = bench.shard.write(&[empty], &bench.topics, 11, 3).unwrap();
    bench.shard.commit(pending).unwrap();
    bench.reopen();
    assert_eq!(bench.shard.last_seq(), 3);
    bench.write(12, vec![upsert("d", "1")]);
    assert_eq!(bench.log(), ["3 c >1", "4 d >1"], "the newest entry stays until there is a newer one");
}

#[test]
fn only_rows_that_are_still_old_expire() {
    let mut bench = ShardFixture::new();
    bench.write(10, vec![upsert("old", "1"), upsert("renewed", "1")]);
    bench.write(50, vec![upsert("renewed", "2")]);
    let keys = vec!["old".to_owned(), "renewed".to_owned(), "gone".to_owned()];
    let candidates = vec![Expired { topic: T, before: 40, keys }];
    let (done, _) = std::sync::mpsc::channel();
    let expiry = Expiry { candidates, tombstones_before: 0, quiet: true, done };
    let pending = bench.shard.expire(&expiry, 60).unwrap();
    let counts = bench.shard.commit(pending).unwrap();
    assert_eq!(counts.counts, [(T, Counts { expired: 1, ..Counts::default() })]);
    assert_eq!(bench.list("SELECT key FROM t"), ["renewed"]);
    assert_eq!(bench.log().last().unwrap(), "4 old 1>");
    assert_eq!(bench.shard.last_seq(), 4);
}

#[test]
fn a_shard_of_another_layout_drops_what_the_old_shard_of_a_key_has() {
    let mut bench = ShardFixture::new();
    // Of two shards before, one had the stream up to 9, and the other up to 4.
    let ahead = "a";
    let is_elsewhere = |key: &String| shard_index(key, 2) != shard_index(ahead, 2);
    let behind = (0..).map(|n| format!("b{n}")).find(is_elsewhere).unwrap();
    let mut next = vec![4, 4];
    next[shard_index(ahead, 2)] = 9;
    let facts = ShardFacts {
        topics: vec!["t".to_owned()],
        offsets: [("f".to_owned(), 4)].into(),
        floors: vec![Floor { stream: "f".to_owned(), next }],
        ..ShardFacts::default()
    };
    let import = ShardImport::create(&bench.path.with_file_name("new.db"), &facts.topics, 1_024).unwrap();
    let mut batch = RecordBatch::default();
    batch.push(0, &Record::Row { key: ahead, payload: Some("8"), timestamp: Some(1), change: Some("{}") });
    import.write(&facts.topics, &batch).unwrap();
    import.finish(&facts).unwrap();
    bench.path.set_file_name("new.db");
    bench.reopen();

    let stream = |next| Some(Stream { name: "f".into(), next });
    let again = vec![from(6, upsert(ahead, "6")), from(6, upsert(&behind, "6"))];
    let counts = bench.write_from(10, again, stream(7));
    assert_eq!(counts, Counts { replayed: 1, created: 1, ..Counts::default() });
    assert_eq!(
        bench.list("SELECT key || payload FROM t ORDER BY key"),
        ["a8".to_owned(), format!("{behind}6")]
    );
    bench.reopen();
    let later = vec![from(8, upsert(ahead, "8")), from(9, upsert(ahead, "9"))];
    assert_eq!(bench.write_from(11, later, stream(10)).replayed, 1);
    assert_eq!(bench.list("SELECT payload FROM t WHERE key = 'a'"), ["9"]);
    bench.reopen();
    assert_eq!(bench.shard.floors, [], "a stream that is beyond its floor needs it no more");
}
