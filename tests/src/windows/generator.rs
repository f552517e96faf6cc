//! Random windows, and random rounds for them: late rows, rows out of order, rows that move or go, sources that fall
//! silent, a clock that jumps or is set back a little, and a worker that ends or is reconfigured in between.

use std::collections::BTreeMap;
use std::{fmt, iter};

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use serde_json::{Value, json};

use super::definition::{Definition, EventClock, FrameKind, TimeUnit};
use super::frames::{FrameLog, WindowMessage};
use super::model::utc;
use super::zone::{CHANGES, Zone};
use crate::repetition::chance;

/// Rounds of a script, each a batch of messages.
pub const ROUNDS_A_SCRIPT: u64 = 50;

/// Scripts of a run in CI, by the seeds from 1 on: 2,000 batches.
pub const SCRIPTS: u64 = 2_000 / ROUNDS_A_SCRIPT;

/// Scripts of a long run: 100,000 batches.
pub const SCRIPTS_LONG: u64 = 100_000 / ROUNDS_A_SCRIPT;

/// Sources that fill the topic.
pub const SOURCES: [&str; 2] = ["ingest", "second"];

/// Keys that a message may change, those that were new last.
const RECENT_KEYS: usize = 12;

/// Random orders in which the messages of a round are tried.
const ORDERS: u64 = 24;

const HOUR: i64 = 3_600;

const DAY: i64 = 24 * HOUR;

/// The first of January 2026.
const YEAR_START: i64 = 1_767_225_600;

/// Queries with the key column `c`.
const KEYED: [&str; 8] = [
    "SELECT payload->>'c' AS c, count(*) AS n, sum(payload->>'n') AS s, min(payload->>'n') AS low, \
     max(payload->>'n') AS high, avg(payload->>'n') AS mean FROM orders GROUP BY 1",
    "SELECT payload->>'c' AS c, count(DISTINCT payload->>'n') AS n FROM orders GROUP BY 1",
    "SELECT payload->>'c' AS c, group_concat(key, ' ' ORDER BY key DESC) AS k FROM orders GROUP BY 1",
    "SELECT c, k, n FROM (SELECT payload->>'c' AS c, key AS k, payload->>'n' AS n, row_number() OVER (PARTITION BY \
     payload->>'c' ORDER BY payload->>'n' DESC, key) AS place FROM orders) WHERE place <= 2",
    "SELECT payload->>'c' AS c, count(*) AS n FROM orders WHERE payload->>'n' > 4 GROUP BY 1 HAVING count(*) < 4",
    "SELECT payload->>'c' AS c, count(*) AS n FROM orders WHERE payload->>'n' > 1000 GROUP BY 1",
    "SELECT payload->>'c' AS c, window_start AS s, 60.0 * count(*) / (window_end - window_start) AS rate FROM orders \
     GROUP BY 1, 2",
    "SELECT payload->>'c' AS c, payload->>'n' AS n, window_end AS e FROM orders",
];

/// Queries without a key column.
const WHOLE: [&str; 6] = [
    "SELECT count(*) AS n, sum(payload->>'n') AS s, avg(payload->>'n') AS mean FROM orders",
    "SELECT count(*) AS n, max(payload->>'n') AS high FROM orders WHERE payload->>'n' > 1000",
    "SELECT count(DISTINCT payload->>'c') AS n, group_concat(key ORDER BY key) AS k FROM orders",
    "SELECT key AS k, payload->>'n' AS n FROM orders ORDER BY payload->>'n' DESC, key LIMIT 2",
    "SELECT payload->>'c' AS c, count(*) AS n, window_end - window_start AS length FROM orders GROUP BY 1, 3",
    "SELECT key AS k, payload->>'n' AS n FROM orders WHERE payload->>'n' % 2 = 0",
];

/// All that happens in one run.
#[derive(Debug, Clone)]
pub struct WindowScript {
    pub shard_count: usize,
    /// What the clock shows at the start, in seconds since the Unix epoch.
    pub start: i64,
    pub windows: Vec<Definition>,
    pub rounds: Vec<WindowRound>,
}

/// A moment of the clock, and messages that come then.
#[derive(Debug, Clone)]
pub struct WindowRound {
    pub hazard: Hazard,
    pub clock: i64,
    /// In the order of their sources.
    pub messages: Vec<WindowMessage>,
}

/// What happens to the worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hazard {
    Nothing,
    /// SIGTERM before the clock moves, and a start after it.
    Stop,
    /// SIGKILL before the clock moves, and a start after it.
    Kill,
    /// The worker is killed while the messages are on their way, some moments after they were sent. They are sent again
    /// to the next one.
    KilledMidway {
        moment: u32,
    },
    /// A window is another one, but for its clock and partitions, by a reload before the clock moves.
    Reload {
        window: usize,
        definition: Box<Definition>,
    },
}

/// Which messages bring a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stamps {
    All,
    Some,
    None,
}

/// What was sent of a key, deleted ones too.
struct KnownKey {
    /// The source that brought it last.
    source: &'static str,
    /// The newest one.
    timestamp: i64,
}

/// A script in the making.
struct Generator {
    chance: StdRng,
    /// A usual length of a frame, in seconds.
    span: i64,
    /// Whether frames are of a place.
    is_local: bool,
    stamps: Stamps,
    /// What clocks show: the one on the system, and the one that stands still while that is behind.
    clock: i64,
    now: i64,
    logs: Vec<FrameLog>,
    keys: BTreeMap<String, KnownKey>,
    /// Keys in the order in which they came.
    recent: Vec<String>,
    version: u64,
}

impl fmt::Display for WindowRound {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "at {}: {:?}", self.clock, self.hazard)?;
        for WindowMessage { source, key, payload, timestamp, at, .. } in &self.messages {
            write!(out, "\n  {source} {key} at {at:?}, timestamp {timestamp:?}: {}", json!(payload))?;
        }
        Ok(())
    }
}

impl WindowScript {
    /// The script of a seed.
    pub fn random(seed: u64) -> Self {
        let mut chance = chance(seed);
        let is_local = chance.random_ratio(1, 4);
        let span = if is_local { DAY } else { chance.random_range(10..=60) };
        let start = if is_local {
            CHANGES.choose(&mut chance).expect("not empty") - chance.random_range(DAY..4 * DAY)
        } else {
            YEAR_START + chance.random_range(0..100 * DAY)
        };
        let stamps = *[Stamps::All, Stamps::Some, Stamps::None].choose(&mut chance).expect("not empty");
        let shard_count = if chance.random() { 8 } else { 1 };
        let mut generator = Generator {
            chance,
            span,
            is_local,
            stamps,
            clock: start,
            now: start,
            logs: Vec::new(),
            keys: BTreeMap::new(),
            recent: Vec::new(),
            version: 0,
        };
        for number in 1..=3 {
            let window = generator.window(format!("window_{number}"), is_local);
            generator.logs.push(FrameLog::new(window, start));
        }
        let windows = generator.logs.iter().map(|log| log.definition().clone()).collect();
        let rounds = (0..ROUNDS_A_SCRIPT).map(|_| generator.round()).collect();
        Self { shard_count, start, windows, rounds }
    }
}

impl Generator {
    fn window(&mut self, name: String, is_local: bool) -> Definition {
        let (kind, offset) = if is_local { self.local_frames() } else { self.short_frames() };
        let has_grid = !matches!(kind, FrameKind::Session { .. });
        let zone = (is_local && has_grid).then(|| self.one_of(&Zone::ALL));
        let event_clock = self.chance.random_ratio(3, 4).then(|| self.event_clock());
        let is_keyed = self.chance.random_ratio(2, 3);
        let query = self.one_of(if is_keyed { &KEYED[..] } else { &WHOLE[..] });
        Definition {
            name,
            kind,
            offset,
            zone,
            is_partitioned: self.chance.random_ratio(1, 3),
            key_column: is_keyed.then_some("c"),
            emits_updates: self.chance.random(),
            event_clock,
            query: query.to_owned(),
        }
    }

    /// Frames of seconds, and their offset.
    fn short_frames(&mut self) -> (FrameKind, i64) {
        let span = self.span;
        let (kind, every) = match self.chance.random_range(0..3) {
            0 => {
                let size = self.chance.random_range(span / 2..=2 * span);
                (FrameKind::Tumbling { size }, size)
            }
            1 => {
                let size = self.chance.random_range(span / 2..=2 * span);
                let slide = self.chance.random_range((size / 6).max(1)..=size);
                (FrameKind::Sliding { size, slide }, slide)
            }
            _ => {
                let gap = self.chance.random_range((span / 8).max(1)..=span / 2);
                (FrameKind::Session { gap }, 1)
            }
        };
        (kind, if self.chance.random() { self.chance.random_range(0..every) } else { 0 })
    }

    /// Frames of hours to a week. None begins in an hour that a change of clocks leaves out or repeats.
    fn local_frames(&mut self) -> (FrameKind, i64) {
        let kind = match self.chance.random_range(0..3) {
            0 => FrameKind::Tumbling { size: self.one_of(&[6 * HOUR, 12 * HOUR, DAY, 7 * DAY]) },
            1 => {
                let lengths = [(DAY, 12 * HOUR), (DAY, 6 * HOUR), (12 * HOUR, 6 * HOUR), (7 * DAY, DAY)];
                let (size, slide) = self.one_of(&lengths);
                FrameKind::Sliding { size, slide }
            }
            _ => return (FrameKind::Session { gap: self.one_of(&[HOUR, 4 * HOUR]) }, 0),
        };
        (kind, self.one_of(&[0, 0, HOUR / 2]))
    }

    fn event_clock(&mut self) -> EventClock {
        let span = self.span;
        let has_stamps = self.stamps == Stamps::All;
        let unit = (!has_stamps || self.chance.random()).then(|| self.one_of(&TimeUnit::ALL));
        EventClock {
            unit,
            delay: self.one_of(&[0, span / 4, span]),
            idle_timeout: self.one_of(&[span / 4, span, 3 * span]).max(1),
            lateness: self.one_of(&[0, 0, span / 2, 2 * span]),
        }
    }

    fn round(&mut self) -> WindowRound {
        let span = self.span;
        self.clock = match self.chance.random_range(0..20) {
            0..5 => self.clock,
            5..14 => self.clock + self.chance.random_range(0..=span / 6),
            14..17 => self.clock + self.chance.random_range(span / 2..=2 * span),
            17 => self.clock + self.chance.random_range(3 * span..=6 * span),
            _ if self.clock == self.now => self.clock - self.chance.random_range(1..=60),
            _ => self.clock,
        };
        self.now = self.now.max(self.clock);
        let hazard = self.hazard();
        for log in &mut self.logs {
            log.tick(self.clock);
        }
        let mut messages = Vec::new();
        for _ in 0..self.chance.random_range(1..=8) {
            self.add_message(&mut messages, matches!(hazard, Hazard::KilledMidway { .. }));
        }
        for log in &mut self.logs {
            log.epoch(&messages);
        }
        WindowRound { hazard, clock: self.clock, messages }
    }

    /// A worker that starts knows nothing of a clock that was ahead, so it ends only when none was.
    fn hazard(&mut self) -> Hazard {
        let can_end = self.clock == self.now;
        match self.chance.random_range(0..60) {
            0 | 1 if can_end => Hazard::Stop,
            2 | 3 if can_end => Hazard::Kill,
            4 | 5 if can_end => Hazard::KilledMidway { moment: self.chance.random_range(0..2_000) },
            6 | 7 => {
                let window = self.chance.random_range(0..self.logs.len());
                let definition = Box::new(self.redefined(window));
                self.logs[window].redefine(&definition);
                Hazard::Reload { window, definition }
            }
            _ => Hazard::Nothing,
        }
    }

    /// Another query for a window, which may have another key column, too, or other frames.
    fn redefined(&mut self, window: usize) -> Definition {
        let before = self.logs[window].definition().clone();
        let drawn = self.window(before.name.clone(), self.is_local);
        let after = Definition {
            is_partitioned: before.is_partitioned,
            emits_updates: before.emits_updates,
            event_clock: before.event_clock,
            ..drawn
        };
        if self.chance.random() {
            return after;
        }
        let Definition { kind, offset, zone, .. } = before;
        Definition { kind, offset, zone, ..after }
    }

    /// Adds a message, if the round then still has one outcome.
    fn add_message(&mut self, messages: &mut Vec<WindowMessage>, has_unique_keys: bool) {
        let message = self.message();
        let is_plain = |message: &WindowMessage| message.payload.is_some() && message.at.is_some();
        let is_active = messages.iter().any(|other| other.source == message.source && is_plain(other));
        let mut same_key = messages.iter().filter(|other| other.key == message.key);
        let is_free = same_key.all(|other| other.source == message.source && !has_unique_keys);
        if !is_free || !(is_active || is_plain(&message)) {
            return;
        }
        let mut with_it = messages.clone();
        with_it.push(message.clone());
        with_it.sort_by_key(|message| message.source);
        if !self.logs.iter().all(|log| has_one_outcome(log, &with_it)) {
            return;
        }
        *messages = with_it;
        let WindowMessage { key, source, timestamp, .. } = message;
        let newest = self.keys.get(&key).map(|known| known.timestamp);
        if newest.is_none() {
            self.recent.push(key.clone());
        }
        let timestamp = newest.max(Some(timestamp.unwrap_or(self.now))).expect("one of two");
        self.keys.insert(key, KnownKey { source, timestamp });
    }

    /// A new key, or a change of a recent one. A time of its own is never older than what the topic has of the key.
    fn message(&mut self) -> WindowMessage {
        self.version += 1;
        let mut source = self.one_of(&SOURCES);
        let first = self.recent.len().saturating_sub(RECENT_KEYS);
        let recent = self.recent[first..].choose(&mut self.chance).cloned();
        let changed = recent.filter(|_| self.chance.random());
        let is_stamped = match self.stamps {
            Stamps::All => true,
            Stamps::Some => self.chance.random_ratio(1, 3),
            Stamps::None => false,
        };
        let stored = changed.as_ref().and_then(|key| self.keys.get(key));
        let stored = stored.map(|known| (known.source, known.timestamp));
        let is_deleted = changed.is_some() && self.chance.random_ratio(1, 4);
        let at = (!is_deleted && !self.chance.random_ratio(1, 20)).then(|| self.moment());
        let payload = (!is_deleted).then(|| self.payload(at));
        let mut timestamp = is_stamped.then(|| at.unwrap_or(self.now));
        if let (Some(timestamp), Some((_, newest))) = (&mut timestamp, stored) {
            *timestamp = newest.max(*timestamp);
        }
        if let (true, Some((stored_source, newest))) = (is_deleted, stored) {
            source = stored_source;
            timestamp = (self.stamps == Stamps::All).then_some(newest);
        }
        let key = changed.unwrap_or_else(|| format!("k{}", self.version));
        WindowMessage { source, key, version: self.version, payload, timestamp, at }
    }

    /// The time of a row: mostly near the clock, and now and then late or early.
    fn moment(&mut self) -> i64 {
        let span = self.span;
        let distance = match self.chance.random_range(0..20) {
            0..12 => -self.chance.random_range(0..=span / 3),
            12..15 => -self.chance.random_range(0..=2 * span),
            15..17 => -self.chance.random_range(span..=8 * span),
            _ => self.chance.random_range(0..=span / 2),
        };
        self.now + distance
    }

    /// A payload that says a time in every unit, or in none.
    fn payload(&mut self, at: Option<i64>) -> Value {
        let mut payload = json!({
            "v": self.version,
            "c": self.one_of(&[json!("a"), json!("b"), json!("c"), json!(7), json!(null)]),
            "n": self.one_of(&[json!(null), json!(-2), json!(1), json!(3), json!(5), json!(5), json!(8), json!(13)]),
        });
        if self.chance.random_ratio(4, 5) {
            payload["r"] = self.one_of(&[json!("emea"), json!("apac"), json!(4), json!(null)]);
        }
        let mut times = json!({});
        for unit in TimeUnit::ALL {
            times[unit.name()] = match at {
                Some(at) => self.written(at, unit),
                None => self.one_of(&[json!(null), json!("soon"), json!({}), json!("2026-02-30T00:00:00Z")]),
            };
        }
        if at.is_some() || self.chance.random() {
            payload["at"] = times;
        }
        payload
    }

    /// A time with a random part of its second, which is cut off.
    fn written(&mut self, at: i64, unit: TimeUnit) -> Value {
        let micros = self.one_of(&[0, 0, 1, 250_000, 999_999]);
        match unit {
            TimeUnit::Seconds if micros == 250_000 => json!(at as f64 + 0.25),
            TimeUnit::Seconds => json!(at),
            TimeUnit::Milliseconds => json!(at * 1_000 + micros / 1_000),
            TimeUnit::Microseconds => json!(at * 1_000_000 + micros),
            TimeUnit::Rfc3339 => {
                let (hours, suffix) = self.one_of(&[(0, "Z"), (0, "+00:00"), (2, "+02:00"), (-5, "-05:00")]);
                let text = utc(at + hours * HOUR);
                let fraction = if micros == 0 { String::new() } else { format!(".{micros:06}") };
                json!(format!("{}{fraction}{suffix}", text.trim_end_matches('Z')))
            }
        }
    }

    fn one_of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices.choose(&mut self.chance).expect("there is a choice").clone()
    }
}

/// Whether it is immaterial how the worker spreads messages over epochs: all at once, one by one, one by one with the keys
/// in another order, or with any of them behind all others; and whether it looks at rows that are overwritten at once.
fn has_one_outcome(log: &FrameLog, messages: &[WindowMessage]) -> bool {
    let played = |play: &dyn Fn(&mut FrameLog)| {
        let mut log = log.clone();
        play(&mut log);
        log
    };
    let one_by_one = |log: &mut FrameLog, messages: &[WindowMessage]| {
        messages.chunks(1).for_each(|message| {
            log.epoch(message);
        });
    };
    let backward = with_keys_in_order(messages.iter().rev().cloned().collect());
    let delayed = (0..messages.len()).map(|index| {
        let mut order = messages.to_vec();
        let last = order.remove(index);
        order.push(last);
        with_keys_in_order(order)
    });
    // A batch of a source is stored in the order of the shards, and the sources send one after the other.
    let shuffled = (0..ORDERS).map(|number| {
        let mut order = messages.to_vec();
        order.shuffle(&mut chance(number));
        order.sort_by_key(|message| message.source);
        with_keys_in_order(order)
    });
    let orders: Vec<Vec<WindowMessage>> = iter::once(backward).chain(delayed).chain(shuffled).collect();
    let together = played(&|log| drop(log.epoch(messages)));
    !together.has_collided()
        && together == played(&|log| drop(log.epoch_of_last_versions(messages)))
        && together == played(&|log| one_by_one(log, messages))
        && orders.iter().all(|order| together == played(&|log| one_by_one(log, order)))
}

/// Exchanges messages of the same key until they are in the order of their versions.
fn with_keys_in_order(mut messages: Vec<WindowMessage>) -> Vec<WindowMessage> {
    for first in 0..messages.len() {
        for second in first + 1..messages.len() {
            if messages[first].key == messages[second].key
                && messages[first].version > messages[second].version
            {
                messages.swap(first, second);
            }
        }
    }
    messages
}

#[cfg(test)]
mod tests;
