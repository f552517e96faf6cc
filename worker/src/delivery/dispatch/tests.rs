//! A simulated sink over real files: what it gets, in what order, when it fails in every way it can.

mod dead_letters;
mod outage;

use std::sync::Mutex;

use litejoin_crds::plan::{Dlq, Synchronous};
use tempfile::TempDir;

use super::*;
use crate::results::event::Op;
use crate::results::event::ResultChange;
use crate::results::outbox::Keep;
use crate::sink::Outcomes;

/// The outcome that the sink has for a result, by its key.
type Behaviour = Box<dyn Fn(&str) -> Outcome + Send + Sync>;

#[derive(Default)]
struct Log {
    /// `key=value` of what was delivered.
    taken: Vec<String>,
    behaviour: Option<Behaviour>,
    /// Whether calls never come back.
    hangs: bool,
    /// The most results that one call has had, and the most bytes.
    largest: (usize, usize),
}

struct SimulatedSink(Arc<Mutex<Log>>);

impl Sink for SimulatedSink {
    fn deliver<'a>(&'a mut self, results: &'a [Delivery]) -> Outcomes<'a> {
        let mut log = self.0.lock().unwrap();
        let bytes = results.iter().map(|result| result.json.len()).sum();
        log.largest = (log.largest.0.max(results.len()), log.largest.1.max(bytes));
        if log.hangs {
            return Box::pin(std::future::pending());
        }
        let outcomes = results
            .iter()
            .map(|result| {
                let outcome =
                    log.behaviour.as_ref().map_or(Outcome::Delivered, |behaviour| behaviour(&result.key));
                if outcome == Outcome::Delivered {
                    let json: serde_json::Value = serde_json::from_str(&result.json).unwrap();
                    log.taken.push(format!("{}={}", json["key"].as_str().unwrap(), json["rows"][0]));
                }
                outcome
            })
            .collect();
        Box::pin(async move { outcomes })
    }

    /// Short, so that an hour in which it hangs is soon over.
    fn call_timeout(&self) -> Duration {
        Duration::from_millis(if self.0.lock().unwrap().hangs { 5 } else { 60_000 })
    }
}

struct Simulation {
    _folder: TempDir,
    dispatcher: Dispatcher,
    log: Arc<Mutex<Log>>,
    circuit: Circuit,
    cursor: Position,
    now: Moment,
    epoch: u64,
    join: JoinId,
}

impl Simulation {
    async fn new(guarantee: Guarantee) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.db");
        let (results, _) = Results::open(&path, Synchronous::Normal, "lin").unwrap();
        let join = results.register(&[("j", "definition".to_owned())], 1).unwrap()[0].id;
        let envelope = Envelope {
            lineage: "lin".to_owned(),
            join_name: "j".to_owned(),
            result_key: None,
            shape: Arc::default(),
        };
        let log = Arc::new(Mutex::new(Log::default()));
        let delivery = plan::Delivery {
            guarantee,
            replay_window: Duration::from_secs(600),
            outbox_bytes_max: 1 << 30,
            circuit_failures: 3,
            dlq: Dlq {
                path: None,
                retry_interval: Duration::from_secs(30),
                retries_max: Some(2),
                backoff_multiplier: 2.0,
                backoff_max: Duration::from_secs(300),
                ttl: Duration::from_secs(3_600),
                bytes_max: 1 << 30,
                cleanup_interval: Duration::from_secs(60),
                retry_nonce: None,
            },
        };
        let letters = DeadLetters::open(&folder.path().join("dlq.db"), Synchronous::Normal, 1 << 30).unwrap();
        let mut dispatcher = Dispatcher {
            name: "s".to_owned(),
            sink: Box::new(SimulatedSink(Arc::clone(&log))),
            in_force: watch::channel(Arc::new(Routes::from_iter([(join, envelope)]))).1,
            routes: Arc::default(),
            joins: Vec::new(),
            delivery,
            reader: Arc::new(Reader::open(&path, 2).unwrap()),
            results: Arc::new(results),
            letters: Arc::new(letters),
            status: Arc::default(),
            applied: watch::channel(Applied::default()).1,
            release: Release::default(),
            stopping: watch::channel(false).1,
            has_letters: true,
            letters_circuit: Circuit::new(3),
            counted: None,
            is_count_old: false,
            letters_changed: watch::channel(0).1,
        };
        let mut circuit = Circuit::new(3);
        let cursor = dispatcher.begin(&mut circuit).await.unwrap();
        Self { _folder: folder, dispatcher, log, circuit, cursor, now: Moment::now(), epoch: 0, join }
    }

    /// Commits an epoch of results, each a key and a value.
    fn commit(&mut self, results: &[(&str, u32)]) {
        self.epoch += 1;
        let join = self.join;
        self.dispatcher
            .results
            .with_epoch::<_, SqliteError>(self.epoch, self.now.seconds, |writer| {
                for (key, value) in results {
                    let (key, rows) = (format!("\"{key}\""), format!("[{value}]"));
                    writer.store(join, [&ResultChange::event(Op::Updated, &key, &rows)])?;
                }
                Ok(())
            })
            .unwrap();
    }

    /// Commits an epoch in which a result goes.
    fn delete(&mut self, key: &str) {
        self.epoch += 1;
        let (join, key) = (self.join, format!("\"{key}\""));
        let deletion = ResultChange::event(Op::Deleted, &key, "[]");
        self.dispatcher
            .results
            .with_epoch::<_, SqliteError>(self.epoch, self.now.seconds, |writer| {
                writer.store(join, [&deletion])
            })
            .unwrap();
    }

    fn behave(&self, behaviour: impl Fn(&str) -> Outcome + Send + Sync + 'static) {
        self.log.lock().unwrap().behaviour = Some(Box::new(behaviour));
    }

    /// Runs rounds until there is nothing to do at this moment.
    async fn settle(&mut self) {
        for _ in 0..1_000 {
            match self.dispatcher.round(&mut self.cursor, &mut self.circuit, self.now).await.unwrap() {
                Round::Again => {}
                Round::Idle | Round::Wait(_) => return,
            }
        }
        panic!("the dispatcher never comes to rest");
    }

    async fn after(&mut self, seconds: u64) {
        self.now = self.now.after(Duration::from_secs(seconds));
        self.settle().await;
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap().taken)
    }

    fn letters(&self) -> u64 {
        self.dispatcher.letters.count("s").unwrap()
    }
}

fn failing(key: &'static str) -> impl Fn(&str) -> Outcome {
    move |got| if got == key { Outcome::Failed("no".to_owned()) } else { Outcome::Delivered }
}

#[tokio::test]
async fn results_arrive_in_order_and_once() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.commit(&[("a", 1), ("b", 1)]);
    simulation.commit(&[("a", 2)]);
    simulation.settle().await;
    simulation.settle().await;
    assert_eq!(simulation.taken(), ["a=1", "b=1", "a=2"]);
}

#[tokio::test]
async fn a_failing_key_holds_back_itself_alone_and_keeps_only_its_newest() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.behave(failing("\"a\""));
    simulation.commit(&[("a", 1), ("b", 1)]);
    simulation.commit(&[("b", 2), ("a", 2)]);
    simulation.settle().await;
    assert_eq!(simulation.taken(), ["b=1", "b=2"]);
    assert_eq!(simulation.letters(), 1);
    simulation.behave(|_| Outcome::Delivered);
    simulation.commit(&[("a", 3)]);
    simulation.settle().await;
    simulation.after(33).await;
    assert_eq!(simulation.taken(), ["a=2", "a=3"], "a=1 was replaced while it waited");
    assert_eq!(simulation.letters(), 0);
    simulation.commit(&[("a", 4)]);
    simulation.settle().await;
    assert_eq!(simulation.taken(), ["a=4"]);
}

#[tokio::test]
async fn a_dead_sink_opens_its_circuit_and_waits_at_its_cursor() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.behave(|_| Outcome::Failed("down".to_owned()));
    let keys: Vec<String> = (0..50).map(|key| format!("k{key:02}")).collect();
    let results: Vec<(&str, u32)> = keys.iter().map(|key| (key.as_str(), 1)).collect();
    simulation.commit(&results);
    simulation.settle().await;
    assert_eq!(simulation.letters(), 3, "as many as it takes to open the circuit");
    assert!(simulation.circuit.is_open());
    for _ in 0..20 {
        simulation.after(331).await;
    }
    assert_eq!(simulation.letters(), 3, "an hour and a half later nothing more has gone there");
    simulation.behave(|_| Outcome::Delivered);
    for _ in 0..4 {
        simulation.after(331).await;
    }
    let mut taken = simulation.taken();
    assert_eq!(taken[..47], keys[3..].iter().map(|key| format!("{key}=1")).collect::<Vec<_>>());
    // Their retries are used up; a newer result takes their place and is tried at once.
    assert_eq!((taken.len(), simulation.letters()), (47, 3));
    simulation.commit(&[("k00", 2), ("k01", 2), ("k02", 2)]);
    simulation.settle().await;
    simulation.settle().await;
    taken = simulation.taken();
    taken.sort();
    assert_eq!(taken, ["k00=2", "k01=2", "k02=2"]);
    assert_eq!(simulation.letters(), 0);
}

#[tokio::test]
async fn a_sink_that_asks_for_time_gets_it_and_nothing_becomes_a_dead_letter() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.behave(|_| Outcome::Later("busy".to_owned(), Duration::from_secs(100)));
    simulation.commit(&[("a", 1), ("b", 1), ("a", 2)]);
    simulation.settle().await;
    assert!(simulation.circuit.is_open(), "the first such answer opens it");
    let failed = simulation.dispatcher.status.failed.value();
    simulation.behave(|_| Outcome::Delivered);
    simulation.after(99).await;
    assert_eq!(simulation.dispatcher.status.failed.value(), failed, "nothing is sent before that time");
    assert_eq!((simulation.taken(), simulation.letters()), (vec![], 0));
    simulation.after(2).await;
    assert_eq!(simulation.taken(), ["a=1", "b=1", "a=2"]);
}

#[tokio::test]
async fn what_is_refused_is_not_tried_again() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation
        .behave(|key| if key == "\"a\"" { Outcome::Refused("bad".to_owned()) } else { Outcome::Delivered });
    simulation.commit(&[("a", 1), ("b", 1)]);
    simulation.settle().await;
    let failed = simulation.dispatcher.status.failed.value();
    simulation.after(3_000).await;
    assert_eq!(simulation.dispatcher.status.failed.value(), failed);
    assert_eq!((simulation.taken(), simulation.letters()), (vec!["b=1".to_owned()], 1));
    assert!(!simulation.circuit.is_open(), "a refusal says nothing about the sink as a whole");
}

#[tokio::test]
async fn best_effort_drops_what_fails() {
    let mut simulation = Simulation::new(Guarantee::BestEffort).await;
    simulation.behave(failing("\"a\""));
    simulation.commit(&[("a", 1), ("b", 1)]);
    simulation.settle().await;
    assert_eq!((simulation.taken(), simulation.letters()), (vec!["b=1".to_owned()], 0));
    assert_eq!(simulation.dispatcher.status.dropped.value(), 1);
}

#[tokio::test]
async fn a_restart_between_dead_letter_and_cursor_loses_nothing() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.behave(failing("\"a\""));
    simulation.commit(&[("a", 1), ("b", 1)]);
    let before = simulation.cursor;
    simulation.settle().await;
    // The crash: the letter is there, the cursor is where it was.
    simulation.cursor = before;
    simulation.settle().await;
    assert_eq!(simulation.letters(), 1);
    assert_eq!(simulation.taken(), ["b=1", "b=1"], "twice, and in order");
}

#[tokio::test]
async fn a_new_sink_is_handed_what_is_there() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.commit(&[("a", 1), ("b", 1)]);
    simulation.dispatcher.name = "late".to_owned();
    simulation.cursor = simulation.dispatcher.begin(&mut simulation.circuit).await.unwrap();
    simulation.commit(&[("a", 2)]);
    simulation.settle().await;
    assert_eq!(simulation.taken(), ["a=1", "b=1", "a=2"]);
    simulation.cursor = simulation.dispatcher.begin(&mut simulation.circuit).await.unwrap();
    simulation.settle().await;
    assert_eq!(simulation.taken(), Vec::<String>::new(), "once is enough");
}

#[tokio::test]
async fn what_goes_after_a_hand_over_was_interrupted_is_told() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.commit(&[("a", 1), ("b", 1)]);
    simulation.dispatcher.name = "late".to_owned();
    let (stop, stopping) = watch::channel(false);
    simulation.dispatcher.stopping = stopping;
    let stop_sent = stop.clone();
    simulation.behave(move |_| {
        stop_sent.send_replace(true);
        Outcome::Delivered
    });
    simulation.cursor = simulation.dispatcher.begin(&mut simulation.circuit).await.unwrap();
    assert_eq!(simulation.taken(), ["a=1", "b=1"], "and nobody noted that this was all");

    simulation.delete("a");
    stop.send_replace(false);
    simulation.behave(|_| Outcome::Delivered);
    simulation.cursor = simulation.dispatcher.begin(&mut simulation.circuit).await.unwrap();
    simulation.settle().await;
    assert_eq!(simulation.taken(), ["a=null", "b=1"]);
    simulation.cursor = simulation.dispatcher.begin(&mut simulation.circuit).await.unwrap();
    simulation.settle().await;
    assert_eq!(simulation.taken(), Vec::<String>::new(), "it is whole now");
}

#[tokio::test]
async fn a_lagging_sink_gets_the_newest_of_each_key_from_a_compacted_outbox() {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    for value in 1..=100 {
        simulation.commit(&[("a", value), ("b", value)]);
    }
    let results = &simulation.dispatcher.results;
    let slowest = Some(results.slowest_cursor().unwrap());
    let tidied = results.tidy_outbox(Keep { since: 0, slowest, bytes_max: 1_000 }).unwrap();
    assert_eq!((tidied.trimmed, tidied.compacted), (0, 198));
    assert_eq!(tidied.bytes, results.outbox_bytes().unwrap());
    simulation.settle().await;
    assert_eq!(simulation.taken(), ["a=100", "b=100"]);
    let results = &simulation.dispatcher.results;
    let slowest = Some(results.slowest_cursor().unwrap());
    let tidied =
        results.tidy_outbox(Keep { since: simulation.now.seconds + 1, slowest, bytes_max: 1_000 }).unwrap();
    assert_eq!((tidied.trimmed, tidied.bytes), (2, 0), "what every sink has had goes with the replay window");
    assert_eq!(simulation.dispatcher.reader.horizon().unwrap(), Position { epoch: 100, n: 2 });
}
