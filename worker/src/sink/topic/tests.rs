//! What a feed holds after results came, shrank and went, over real shards.

use std::sync::atomic::AtomicI64;
use std::sync::mpsc::channel;
use std::time::Duration;

use litejoin_crds::plan::Synchronous;
use litejoin_crds::{Document, validate};
use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::results::Results;
use crate::results::event::{Envelope, Op, ResultChange};
use crate::status::Status;
use crate::storage::arrivals::Arrivals;
use crate::storage::gate::EpochGate;
use crate::storage::shard::{Needs, Shard};
use crate::storage::topics::{Topics, feed_of};
use crate::storage::writer::{Writer, WriterCommand};

const SHARDS: usize = 3;

struct FeedSite {
    _folder: TempDir,
    sink: TopicSink,
    results: Results,
    join: JoinId,
    paths: Vec<PathBuf>,
}

impl FeedSite {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let value = json!({
            "apiVersion": "litejoin.io/v1alpha1",
            "kind": "Pipeline",
            "metadata": {"name": "feeds"},
            "spec": {"storage": {"shardCount": SHARDS}},
        });
        let (plan, _) = validate(&[Document { value }]).unwrap();
        let topics = Arc::new(Topics::new([], ["j"]));
        let needs = Needs { topics: vec![feed_of("j")], ..Needs::default() };
        let paths: Vec<PathBuf> =
            (0..SHARDS).map(|index| folder.path().join(format!("shard_{index}.db"))).collect();
        let shards = paths.iter().map(|path| {
            let mut shard = Shard::open(path, Synchronous::Normal, &topics).unwrap();
            shard.prepare(&needs, &topics, 0).unwrap();
            shard
        });
        let status = Arc::new(Status::new(&plan, [], 0));
        let gate = Arc::new(EpochGate::new(1, vec![0; SHARDS]));
        let senders = shards
            .enumerate()
            .map(|(shard_index, shard)| {
                let (sender, commands) = channel::<WriterCommand>();
                let writer = Writer {
                    shard_index,
                    shard,
                    topics: Arc::clone(&topics),
                    gate: Arc::clone(&gate),
                    status: Arc::clone(&status),
                    batch_messages_max: 100,
                    flush_interval: Duration::ZERO,
                    trim_to: Arc::new(AtomicI64::new(0)),
                    was_full: false,
                };
                std::thread::spawn(move || writer.run(&commands));
                sender
            })
            .collect();
        let ingest = Ingest::new(Arc::clone(&topics), senders, Arrivals::new(gate), &Arc::new(()));
        let path = folder.path().join("results.db");
        let (results, _) = Results::open(&path, Synchronous::Normal, "lin").unwrap();
        let join = results.register(&[("j", "definition".to_owned())], SHARDS).unwrap()[0].id;
        let reader = Arc::new(Reader::open(&path, 1).unwrap());
        let sink = TopicSink::open(&feed_of("j"), ingest, reader, &paths).unwrap();
        Self { _folder: folder, sink, results, join, paths }
    }

    async fn deliver(&mut self, results: &[(&str, &str)]) -> Vec<Outcome> {
        let deliveries: Vec<Delivery> = results
            .iter()
            .map(|(key, rows)| Delivery {
                id: "lin.1.1".to_owned(),
                key: (*key).to_owned(),
                join_name: "j".to_owned(),
                epoch: 1,
                op: Op::Updated,
                json: format!(r#"{{"query":"j","key":{key},"rows":{rows},"op":"updated"}}"#),
            })
            .collect();
        self.sink.deliver(&deliveries).await
    }

    async fn prepare(&mut self) {
        let envelope = Envelope {
            lineage: "lin".to_owned(),
            join_name: "j".to_owned(),
            result_key: None,
            shape: Arc::default(),
        };
        self.sink.prepare(&Routes::from_iter([(self.join, envelope)])).await.unwrap();
    }

    /// Key and payload of each row, in the order of keys.
    fn rows(&self) -> Vec<String> {
        let mut found = Vec::new();
        for path in &self.paths {
            let shard = ShardReader::open(path).unwrap();
            shard
                .rows::<SqliteError>("_of_j", |row| {
                    found.push(format!("{} {}", row.key, row.payload));
                    Ok(())
                })
                .unwrap();
        }
        found.sort_unstable();
        found
    }
}

#[tokio::test]
async fn rows_of_results_come_shrink_and_go() {
    let mut feed = FeedSite::new();
    let delivered = |count| vec![Outcome::Delivered; count];
    let both = [("1", r#"[{"v":1.0},{"v":"}"},{"v":null}]"#), (r#""a#1""#, r#"[{"v":9e999}]"#)];
    assert_eq!(feed.deliver(&both).await, delivered(2));
    let a = r#""a#1" {"v":9e999,"_rows":1}"#;
    assert_eq!(
        feed.rows(),
        [a, r#"1 {"v":1.0,"_rows":3}"#, r#"1#1 {"v":"}","_rows":3}"#, r#"1#2 {"v":null,"_rows":3}"#]
    );
    assert_eq!(feed.deliver(&[("1", r#"[{"v":2}]"#)]).await, delivered(1));
    assert_eq!(feed.rows(), [a, r#"1 {"v":2,"_rows":1}"#]);
    assert_eq!(feed.deliver(&[("1", r#"[{"v":2},{"v":3}]"#)]).await, delivered(1));
    assert_eq!(feed.deliver(&[("1", "[]"), ("2", "[]")]).await, delivered(2));
    assert_eq!(feed.rows(), [a]);
}

#[tokio::test]
async fn what_can_be_no_row_of_a_topic_is_refused_alone() {
    let mut feed = FeedSite::new();
    let long = format!("{:?}", "k".repeat(4_095));
    let outcomes = feed.deliver(&[(&long, r#"[{"v":1}]"#), ("1", r#"[{"v":1}]"#)]).await;
    let problem = "its rows can't be read by others: key has 4097 bytes; at most 4096 are allowed";
    assert_eq!(outcomes, [Outcome::Refused(problem.to_owned()), Outcome::Delivered]);
    assert_eq!(feed.rows(), [r#"1 {"v":1,"_rows":1}"#]);
}

#[tokio::test]
async fn a_batch_that_fails_is_held_and_its_rows_are_not_forgotten() {
    let mut feed = FeedSite::new();
    feed.deliver(&[("1", r#"[{"v":1},{"v":2},{"v":3}]"#)]).await;
    feed.sink.ingest.close();
    let outcomes = feed.deliver(&[("1", r#"[{"v":1}]"#)]).await;
    assert_eq!(
        outcomes,
        [Outcome::Later(
            "could not write into _of_j: the worker is stopping; send it again".to_owned(),
            RETRY
        )]
    );
    assert_eq!(feed.sink.doubtful, HashMap::from([("1".to_owned(), 3)]));
}

#[tokio::test]
async fn a_start_removes_rows_that_the_results_do_not_have() {
    let mut feed = FeedSite::new();
    let rows = r#"[{"v":1},{"v":2}]"#;
    feed.deliver(&[("1", rows), ("2", rows), (r#"["x",1]"#, r#"[{"v":5}]"#)]).await;
    let join = feed.join;
    feed.results
        .with_epoch::<_, SqliteError>(1, 0, |writer| {
            let present = [
                ResultChange::event(Op::Created, "1", r#"[{"v":1}]"#),
                ResultChange::event(Op::Created, r#"["x",1]"#, r#"[{"v":5}]"#),
            ];
            writer.store(join, &present)
        })
        .unwrap();
    feed.prepare().await;
    assert_eq!(feed.rows(), [r#"1 {"v":1,"_rows":2}"#, r#"["x",1] {"v":5,"_rows":1}"#]);
}

#[test]
fn keys_of_rows_say_their_result() {
    let cases = [
        ("1", ("1", 0)),
        ("1#2", ("1", 2)),
        (r#""a#1""#, (r#""a#1""#, 0)),
        (r##"["#",1]#10"##, (r##"["#",1]"##, 10)),
    ];
    for (key, place) in cases {
        assert_eq!(place_of(key), place);
        assert_eq!(key_of(place.0, place.1), key);
    }
}

#[test]
fn a_column_like_the_count_is_no_count() {
    let rows = rows_of(r#"{"rows":[{"_rows":7},{"v":",\"_rows\":9}"}]}"#).unwrap();
    assert_eq!(rows, [r#"{"_rows":7,"_rows":2}"#, r#"{"v":",\"_rows\":9}","_rows":2}"#]);
    assert_eq!(rows.iter().filter_map(|row| count_of(row)).collect::<Vec<_>>(), [2, 2]);
}
