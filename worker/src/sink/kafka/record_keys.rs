//! The keys of records, and which results may have them. As text, two result keys may be one record key: `1` and `"1"`, or
//! `null` and `"null"`. Such results are *twins*. Compaction would keep the record of one of them, and a deleted one would take
//! the other away, so only the first of two is written, and the other is refused by name until the first is gone.
//!
//! Results are told in order, and `results.db` may be ahead of them. What holds whatever is interleaved: of two twins
//! that are there, one is withheld at most, and the record is never of the withheld one.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use litejoin_crds::sink::KafkaKeyFormat;
use serde_json::value::RawValue;

use crate::results::event::{JoinId, Op};
use crate::results::withheld::Twins;
use crate::results::{Reader, Results};
use crate::sink::Delivery;
use crate::sink::routes::Routes;
use crate::storage::sqlite::SqliteError;

/// The keys of the records of one sink.
#[derive(Clone)]
pub(crate) struct RecordKeys {
    format: KafkaKeyFormat,
    sink: String,
    results: Arc<Results>,
    reader: Arc<Reader>,
    joins: HashMap<String, JoinId>,
}

/// What becomes of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RecordClaim {
    /// It is written. `was_withheld` until then.
    Write { was_withheld: bool },
    /// There is nothing to write: the record is of its twin.
    Nothing,
    /// It is refused.
    Refuse(String),
}

impl RecordKeys {
    pub(crate) fn new(
        sink: &str,
        format: KafkaKeyFormat,
        results: Arc<Results>,
        reader: Arc<Reader>,
    ) -> Self {
        Self { format, sink: sink.to_owned(), results, reader, joins: HashMap::new() }
    }

    /// Takes up the joins that the sink takes.
    pub(super) fn follow(&mut self, routes: &Routes) {
        let named = routes.joins().iter().filter_map(|join| Some((routes.envelope(*join)?, *join)));
        self.joins = named.map(|(envelope, join)| (envelope.join_name.clone(), join)).collect();
    }

    /// Says what becomes of results, in their order, and stores which are withheld.
    pub(super) fn claims(&self, results: &[Delivery]) -> Result<Vec<RecordClaim>, SqliteError> {
        results.iter().map(|result| self.claim(result)).collect()
    }

    fn claim(&self, result: &Delivery) -> Result<RecordClaim, SqliteError> {
        let twin = match self.format {
            KafkaKeyFormat::Json => None,
            KafkaKeyFormat::Text => twin(&result.key),
        };
        let (Some(twin), Some(join)) = (twin, self.joins.get(&result.join_name)) else {
            return Ok(RecordClaim::Write { was_withheld: false });
        };
        let twins = self.reader.twins(&self.sink, *join, &result.key, &twin)?;
        let verdict = verdict(result.op, twins);
        if twins.is_withheld != (verdict == TwinVerdict::Withhold) && verdict != TwinVerdict::Write {
            self.results.withhold(&self.sink, *join, &result.key, verdict == TwinVerdict::Withhold)?;
        }
        Ok(match verdict {
            TwinVerdict::Write => RecordClaim::Write { was_withheld: twins.is_withheld },
            TwinVerdict::Nothing => RecordClaim::Nothing,
            TwinVerdict::Withhold => {
                let (key, record_key) = (&result.key, record_key(self.format, &result.key));
                RecordClaim::Refuse(format!(
                    "the result keys {key} and {twin} would both have records of the key {record_key}, and that of {twin} \
                     was there first; write keyFormat: json in the sink's kafka and another topic, or tell the keys apart \
                     in the query; once {twin} is gone, litejoin dlq retry"
                ))
            }
        })
    }

    /// Notes that a result which was withheld has been written.
    pub(super) fn written(&self, result: &Delivery) -> Result<(), SqliteError> {
        match self.joins.get(&result.join_name) {
            Some(join) => self.results.withhold(&self.sink, *join, &result.key, false),
            None => Ok(()),
        }
    }
}

/// The key of a record.
pub(super) fn record_key(format: KafkaKeyFormat, result_key: &str) -> Cow<'_, str> {
    match format {
        KafkaKeyFormat::Json => result_key.into(),
        KafkaKeyFormat::Text => match serde_json::from_str::<String>(result_key) {
            Ok(text) => text.into(),
            Err(_) => result_key.into(),
        },
    }
}

/// The other result key that is the same record key as text, if there can be one.
fn twin(result_key: &str) -> Option<String> {
    match serde_json::from_str::<String>(result_key) {
        Err(_) => Some(serde_json::to_string(result_key).expect("a string is always JSON")),
        Ok(text) => {
            let json: &RawValue = serde_json::from_str(&text).ok()?;
            (json.get() == text && !text.starts_with('"')).then_some(text)
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TwinVerdict {
    Write,
    Nothing,
    Withhold,
}

/// What becomes of a changed result, by what is stored of it and of its twin.
fn verdict(op: Op, twins: Twins) -> TwinVerdict {
    // Either it has the record, or its event is still to come and finds this one withheld.
    let twin_has_record = twins.twin_is_there && !twins.twin_is_withheld;
    match op {
        Op::Deleted if twins.is_withheld || twin_has_record => TwinVerdict::Nothing,
        Op::Deleted => TwinVerdict::Write,
        Op::Created | Op::Updated if twin_has_record => TwinVerdict::Withhold,
        Op::Created | Op::Updated => TwinVerdict::Write,
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::*;

    #[test]
    fn keys_are_what_consumers_expect() {
        for (result_key, text) in
            [("\"o1\"", "o1"), ("\"a\\\"b\"", "a\"b"), ("42", "42"), ("null", "null"), ("[1]", "[1]")]
        {
            assert_eq!(record_key(KafkaKeyFormat::Text, result_key), text);
            assert_eq!(record_key(KafkaKeyFormat::Json, result_key), result_key);
        }
    }

    #[test]
    fn twins_are_one_record_key() {
        for (key, other) in [
            ("1", Some("\"1\"")),
            ("\"1\"", Some("1")),
            ("null", Some("\"null\"")),
            ("\"null\"", Some("null")),
            ("\"-1.5e3\"", Some("-1.5e3")),
            ("9e999", Some("\"9e999\"")),
            ("\"9e999\"", Some("9e999")),
            ("\"o1\"", None),
            ("\"\"", None),
            ("\" 1\"", None),
            ("\"\\\"1\\\"\"", None),
        ] {
            assert_eq!(twin(key).as_deref(), other, "{key}");
            if let Some(other) = other {
                let [key, other] = [key, other].map(|key| record_key(KafkaKeyFormat::Text, key));
                assert_eq!(key, other);
            }
        }
    }

    /// Two twins come, change and go. The sink is told in order, while the stored results may be ahead by any number of
    /// events; now and then it is told again, as after a crash.
    #[test]
    fn the_record_of_twins_is_of_the_one_that_is_not_withheld() {
        for seed in 0..20_000 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut there = [false; 2];
            let mut events: Vec<(usize, Op)> = Vec::new();
            for _ in 0..random.random_range(1..12) {
                let key = random.random_range(0..2);
                let op = match there[key] {
                    false => Op::Created,
                    true if random.random() => Op::Updated,
                    true => Op::Deleted,
                };
                there[key] = op != Op::Deleted;
                events.push((key, op));
            }
            let stored_after = |count: usize| {
                let mut there = [false; 2];
                events[..count].iter().for_each(|(key, op)| there[*key] = *op != Op::Deleted);
                there
            };
            let (mut withheld, mut record, mut ahead) = ([false; 2], None::<(usize, usize)>, 0);
            let mut told = 0;
            while told < events.len() {
                ahead = random.random_range(ahead.max(told + 1)..=events.len());
                let (key, op) = events[told];
                let twins = Twins {
                    is_withheld: withheld[key],
                    twin_is_there: stored_after(ahead)[1 - key],
                    twin_is_withheld: withheld[1 - key],
                };
                match verdict(op, twins) {
                    TwinVerdict::Write => record = (op != Op::Deleted).then_some((key, told)),
                    TwinVerdict::Nothing | TwinVerdict::Withhold => {}
                }
                withheld[key] = verdict(op, twins) == TwinVerdict::Withhold;
                if random.random_range(0..10) > 0 {
                    told += 1;
                }
            }
            let last = |key: usize| events.iter().rposition(|(other, _)| *other == key);
            match there {
                [false, false] => assert_eq!(record, None, "seed {seed}: {events:?}"),
                [true, true] => {
                    let owner = usize::from(withheld[0]);
                    assert!(withheld[1 - owner], "seed {seed}: one is withheld: {events:?}");
                    assert_eq!(record, last(owner).map(|at| (owner, at)), "seed {seed}: {events:?}");
                }
                _ => {
                    let key = usize::from(there[1]);
                    let written = (!withheld[key]).then(|| last(key).map(|at| (key, at))).flatten();
                    assert_eq!(record, written, "seed {seed}: {events:?}");
                }
            }
        }
    }
}
