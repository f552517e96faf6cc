//! Results of a query: the wait for them, and the comparison with SQLite's over the final rows.

use std::collections::HashMap;
use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use litejoin_tests::oracle::Oracle;
use litejoin_tests::results::Results;
use serde::Deserialize;
use serde_json::Value;

use crate::client::{self, Requests, Sent};
use crate::queries::BenchQuery;
use crate::row::Row;
use crate::worker::BenchWorker;

/// Keys that an error shows when results are wrong.
const SHOWN: usize = 3;

/// Sends all requests and waits until their changes are applied and stored.
pub(crate) fn deliver(worker: &BenchWorker, join: &str, requests: &Requests) -> Result<Sent> {
    let sent = client::send_all(worker.ingest()?, requests)?;
    wait_until_applied(worker, join, sent.epoch)?;
    Ok(sent)
}

/// Waits until `epoch` is applied and stored, and prints the worker's progress now and then.
pub(crate) fn wait_until_applied(worker: &BenchWorker, join: &str, epoch: u64) -> Result<()> {
    // No result has this key, so the answer only shows the epoch.
    let path = format!("/snapshot?join={join}&key=-&minEpoch={epoch}");
    let started = Instant::now();
    loop {
        // The worker answers as soon as the epoch is applied, or 503 after a while.
        let (status, answer) = client::get_all(worker.live()?, &path)?;
        match status {
            200 => return Ok(()),
            503 => {
                let status = worker.status()?;
                writeln!(
                    std::io::stderr(),
                    "  waiting for {join} since {:.0?}: epoch {} of {epoch}, {} results changed",
                    started.elapsed(),
                    status["epoch"],
                    status["joins"][join]["resultsChanged"],
                )?;
                let error = &status["joins"][join]["lastError"];
                ensure!(error.is_null(), "{join} fails: {error}");
            }
            _ => bail!("{path}: {status} {}", String::from_utf8_lossy(&answer)),
        }
    }
}

/// Returns a database with the last row of each key.
pub(crate) fn oracle(topics: &[&'static str], rows: &[Row]) -> Oracle {
    let mut last: HashMap<(&str, &str), Option<&str>> = HashMap::new();
    for row in rows {
        last.insert((row.topic, &row.key), row.payload.as_deref());
    }
    let oracle = Oracle::new(topics.iter().copied());
    for ((topic, key), payload) in last {
        if payload.is_some() {
            oracle.apply(topic, key, payload);
        }
    }
    oracle
}

/// Returns the results of the query over the last row of each key, by SQLite alone.
pub(crate) fn expected(query: BenchQuery, rows: &[Row]) -> Results {
    let mut expected = oracle(query.topics(), rows).results(query.name(), query.sql(), None);
    // Numbers of both sides must come from text, since reading a real may change its last digit.
    for rows in expected.rows.values_mut() {
        for row in rows.iter_mut() {
            let value: Value = serde_json::from_str(row).expect("it was just written");
            *row = value.to_string();
        }
        rows.sort_unstable();
    }
    expected
}

#[derive(Deserialize)]
struct Snapshot {
    results: Vec<StoredResult>,
}

#[derive(Deserialize)]
struct StoredResult {
    key: Value,
    rows: Vec<Value>,
}

/// Compares the stored results with the expected ones.
pub(crate) fn check(worker: &BenchWorker, join: &str, expected: &Results) -> Result<()> {
    let path = format!("/snapshot?join={join}");
    let (status, answer) = client::get_all(worker.live()?, &path)?;
    ensure!(status == 200, "{path}: {status} {}", String::from_utf8_lossy(&answer));
    let snapshot: Snapshot = serde_json::from_slice(&answer).with_context(|| format!("{path} is broken"))?;
    let mut stored = Results::default();
    for StoredResult { key, rows } in &snapshot.results {
        stored.set((join.to_owned(), key.to_string()), rows);
    }
    match difference(expected, &stored) {
        None => Ok(()),
        Some(difference) => bail!("{join}: {difference}"),
    }
}

/// Returns a description of wrong results, if any.
fn difference(expected: &Results, stored: &Results) -> Option<String> {
    let wrong = expected.changes(stored);
    let shown = wrong.iter().take(SHOWN).map(|(result_key, rows)| {
        let wanted = expected.rows.get(result_key).cloned().unwrap_or_default();
        format!("\n  key {}: stored {rows:?}, SQLite says {wanted:?}", result_key.1)
    });
    let all = expected.rows.len();
    let text = format!("{} results are not what SQLite gives, of {all} expected", wrong.len());
    (!wrong.is_empty()).then(|| text + &shown.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(pairs: &[(&str, i64)]) -> Results {
        let mut results = Results::default();
        for (key, n) in pairs {
            results.set(("w1".to_owned(), format!("\"{key}\"")), &[Value::from(*n)]);
        }
        results
    }

    #[test]
    fn a_difference_is_shown_by_key() {
        let expected = results(&[("a", 1), ("b", 2)]);
        assert_eq!(difference(&expected, &expected), None);
        assert_eq!(
            difference(&expected, &results(&[("a", 1), ("b", 3)])).as_deref(),
            Some(
                "1 results are not what SQLite gives, of 2 expected\n  \
                 key \"b\": stored [\"3\"], SQLite says [\"2\"]"
            )
        );
        assert!(difference(&expected, &results(&[("a", 1)])).is_some(), "one is missing");
        assert!(difference(&results(&[("a", 1)]), &expected).is_some(), "one is too many");
    }

    #[test]
    fn only_the_last_row_of_a_key_counts() {
        let row = |topic, key: &str, payload: Option<&str>| Row {
            topic,
            key: key.into(),
            payload: payload.map(Into::into),
        };
        let rows = [
            row("customers", "c1", Some(r#"{"name":"Ada"}"#)),
            row("orders", "o1", Some(r#"{"customer_id":"c1","amount":1.5}"#)),
            row("orders", "o2", Some(r#"{"customer_id":"c1","amount":2}"#)),
            row("orders", "o1", Some(r#"{"customer_id":"c1","amount":2.5}"#)),
            row("orders", "o2", None),
        ];
        let expected: Vec<_> = expected(BenchQuery::W1, &rows).rows.into_values().collect();
        assert_eq!(expected, [[r#"{"amount":2.5,"id":"o1","name":"Ada"}"#]]);
    }
}
