//! A sink that is away for an hour, in each of its ways, while another one takes everything and results keep coming.

use std::collections::BTreeMap;

use super::*;

/// Seconds of the outage, and those in which all must be well again: the longest wait, and one more.
const OUTAGE: u64 = 3_600;
const RECOVERY: u64 = 700;

/// Seconds from one look at the outbox to the next, and what it may hold.
const TIDY_INTERVAL: u64 = 10;
const OUTBOX_BYTES_MAX: u64 = 64 << 10;

/// Results of a second, over keys that come again and again.
const RESULTS_PER_SECOND: u64 = 8;
const KEYS: u64 = 100;

/// Another sink of the same results.
struct Neighbour {
    dispatcher: Dispatcher,
    log: Arc<Mutex<Log>>,
    circuit: Circuit,
    cursor: Position,
}

impl Neighbour {
    async fn of(simulation: &Simulation) -> Self {
        let (present, log) = (&simulation.dispatcher, Arc::new(Mutex::new(Log::default())));
        let mut dispatcher = Dispatcher {
            name: "neighbour".to_owned(),
            sink: Box::new(SimulatedSink(Arc::clone(&log))),
            in_force: present.in_force.clone(),
            routes: Arc::default(),
            joins: Vec::new(),
            delivery: present.delivery.clone(),
            results: Arc::clone(&present.results),
            reader: Arc::clone(&present.reader),
            letters: Arc::clone(&present.letters),
            status: Arc::default(),
            release: Release::default(),
            applied: present.applied.clone(),
            stopping: present.stopping.clone(),
            has_letters: true,
            letters_circuit: Circuit::new(3),
            letters_changed: watch::channel(0).1,
            counted: None,
            is_count_old: false,
        };
        let mut circuit = Circuit::new(3);
        let cursor = dispatcher.begin(&mut circuit).await.unwrap();
        Self { dispatcher, log, circuit, cursor }
    }

    async fn settle(&mut self, now: Moment) {
        while self.dispatcher.round(&mut self.cursor, &mut self.circuit, now).await.unwrap() == Round::Again {
        }
    }
}

/// The results that a sink holds after it took `key=value` in this order; values of a key must come in their order.
fn folded(taken: &[String], into: &mut BTreeMap<String, u64>) {
    for line in taken {
        let (key, value) = line.split_once('=').unwrap();
        let value: u64 = value.parse().unwrap();
        let before = into.insert(key.to_owned(), value);
        assert!(before.is_none_or(|before| before <= value), "{key}: {value} came after {before:?}");
    }
}

/// Lets the sink be away as `fall_ill` says for an hour, then well again.
async fn outage(fall_ill: impl Fn(&mut Log)) {
    let mut simulation = Simulation::new(Guarantee::AtLeastOnce).await;
    simulation.dispatcher.delivery.dlq.retries_max = None;
    let mut neighbour = Neighbour::of(&simulation).await;
    let (mut held, mut held_by_neighbour) = (BTreeMap::new(), BTreeMap::new());
    let (mut committed, mut number, mut compacted) = (BTreeMap::new(), 0, 0);
    for second in 0..OUTAGE + RECOVERY {
        if second == 60 {
            fall_ill(&mut simulation.log.lock().unwrap());
        }
        if second == OUTAGE {
            let mut log = simulation.log.lock().unwrap();
            (log.behaviour, log.hangs) = (None, false);
        }
        let fresh: Vec<(String, u32)> = (0..RESULTS_PER_SECOND)
            .map(|_| {
                number += 1;
                (format!("k{:02}", number * 7 % KEYS), u32::try_from(number).unwrap())
            })
            .collect();
        let results: Vec<(&str, u32)> = fresh.iter().map(|(key, value)| (key.as_str(), *value)).collect();
        simulation.commit(&results);
        committed.extend(fresh.iter().map(|(key, value)| (key.clone(), u64::from(*value))));
        simulation.after(1).await;
        neighbour.settle(simulation.now).await;
        folded(&simulation.taken(), &mut held);
        folded(&std::mem::take(&mut neighbour.log.lock().unwrap().taken), &mut held_by_neighbour);
        assert_eq!(held_by_neighbour, committed, "the other sink has everything at once, always");
        assert!(simulation.letters() <= KEYS, "at most one letter a key");
        if second % TIDY_INTERVAL == 0 {
            let results = &simulation.dispatcher.results;
            let slowest = Some(results.slowest_cursor().unwrap());
            let keep = Keep { since: simulation.now.seconds, slowest, bytes_max: OUTBOX_BYTES_MAX };
            let tidied = results.tidy_outbox(keep).unwrap();
            assert!(tidied.bytes <= OUTBOX_BYTES_MAX, "{} bytes in the outbox", tidied.bytes);
            compacted += tidied.compacted;
        }
        if second == OUTAGE - 1 {
            assert!(simulation.circuit.is_open() && held != committed, "the sink is away");
            assert!(compacted > RESULTS_PER_SECOND * OUTAGE / 2, "{compacted} results were superseded");
        }
    }
    assert_eq!(held, committed, "nothing is lost, and no older result came last");
    assert_eq!((simulation.letters(), simulation.circuit.is_open()), (0, false));
    let largest = simulation.log.lock().unwrap().largest;
    assert!(largest.0 <= 500 && largest.1 <= PAGE_BYTES, "a page in memory, whatever waits: {largest:?}");
}

#[tokio::test]
async fn a_sink_that_fails_for_an_hour_holds_up_nobody_and_loses_nothing() {
    outage(|log| log.behaviour = Some(Box::new(|_| Outcome::Failed("answered 500".to_owned())))).await;
}

#[tokio::test]
async fn a_sink_that_hangs_for_an_hour_holds_up_nobody_and_loses_nothing() {
    outage(|log| log.hangs = true).await;
}
