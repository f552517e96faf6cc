//! The measured windows: their manifest, their rows, and the queries by which plain SQLite finds what they must yield.

use clap::ValueEnum;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::results::Results;
use serde_json::{Value, json};

use crate::auction_house::{self, AUCTIONS, BIDS, PERSONS};
use crate::order_stream;
use crate::row::Row;
use crate::shop::ORDERS;

/// How far the watermark is behind the newest order. The connections of the client are not at the same place, and what
/// they bring must not be late.
const ORDERS_DELAY: u64 = 120;

/// The same for bids, of which 9,200 are made in a second, and for auctions and persons, of which 800 are.
const BIDS_DELAY: u64 = 10;
const AUCTIONS_DELAY: u64 = 120;

/// So long after all others comes the last row, so that all of their frames close.
const LAST_AFTER: u64 = 3_600;

/// Windows that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchWindow {
    /// Count and sum of each customer's orders by the minute; sums of integers
    Sums,
    /// The same with sums of decimals, which are added up from the rows of each frame
    Decimals,
    /// Count and sum of each customer's orders in ten minutes, every ten seconds
    Sliding,
    /// Count and sum of each customer's orders until 30 s pass without one
    Sessions,
    /// Nexmark 5: the auctions with the most bids in ten seconds, every two seconds
    Q5,
    /// The counts of Nexmark 5 for all auctions
    Q5Counts,
    /// The two windows of Nexmark 8: new persons, and sellers, every ten seconds; without their join
    Q8,
}

/// A window: its query, and SQL that yields its results over all rows, with their keys as JSON in `result_key`.
pub(crate) struct MeasuredWindow {
    pub(crate) name: &'static str,
    manifest: Value,
    expected_sql: &'static str,
}

impl BenchWindow {
    /// Returns the name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sums => "sums",
            Self::Decimals => "decimals",
            Self::Sliding => "sliding",
            Self::Sessions => "sessions",
            Self::Q5 => "q5",
            Self::Q5Counts => "q5-counts",
            Self::Q8 => "q8",
        }
    }

    /// Returns the topics that the windows read.
    pub(crate) fn topics(self) -> &'static [&'static str] {
        match self {
            Self::Sums | Self::Decimals | Self::Sliding | Self::Sessions => &[ORDERS],
            Self::Q5 | Self::Q5Counts => &[BIDS],
            Self::Q8 => &[PERSONS, AUCTIONS],
        }
    }

    /// Returns `events` changes of these topics.
    pub(crate) fn rows(self, events: u64, seed: u64) -> Vec<Row> {
        match self {
            Self::Sums | Self::Decimals | Self::Sliding | Self::Sessions => order_stream::rows(events, seed),
            Self::Q5 | Self::Q5Counts | Self::Q8 => auction_house::new_rows(self.topics(), events),
        }
    }

    /// Returns a row for each topic that is sent when all rows of [`Self::rows`] have come, and closes all of their frames.
    pub(crate) fn last_rows(self, rows: &[Row]) -> Vec<Row> {
        let at = self.last_time(rows);
        let last = |topic: &&'static str| match *topic {
            ORDERS => order_stream::last_order(at),
            topic => auction_house::last_row(topic, at),
        };
        self.topics().iter().map(last).collect()
    }

    /// Returns the watermark that all windows have come to at the end.
    pub(crate) fn last_watermark(self, rows: &[Row]) -> u64 {
        self.last_time(rows) - self.delay()
    }

    fn last_time(self, rows: &[Row]) -> u64 {
        match self {
            Self::Sums | Self::Decimals | Self::Sliding | Self::Sessions => {
                order_stream::time_after(rows.len() as u64, LAST_AFTER)
            }
            Self::Q5 | Self::Q5Counts | Self::Q8 => auction_house::last_time(rows) + LAST_AFTER,
        }
    }

    fn delay(self) -> u64 {
        match self {
            Self::Sums | Self::Decimals | Self::Sliding | Self::Sessions => ORDERS_DELAY,
            Self::Q5 | Self::Q5Counts => BIDS_DELAY,
            Self::Q8 => AUCTIONS_DELAY,
        }
    }

    /// Returns the windows.
    pub(crate) fn windows(self) -> Vec<MeasuredWindow> {
        match self {
            Self::Sums => vec![self.window(
                "sums",
                json!({"type": "tumbling", "size": "1m", "topic": ORDERS, "keyColumn": "customer"}),
                include_str!("queries/windows/sums.sql"),
                include_str!("queries/windows/sums_expected.sql"),
            )],
            Self::Decimals => vec![self.window(
                "decimals",
                json!({"type": "tumbling", "size": "1m", "topic": ORDERS, "keyColumn": "customer"}),
                include_str!("queries/windows/decimals.sql"),
                include_str!("queries/windows/decimals_expected.sql"),
            )],
            Self::Sliding => vec![self.window(
                "sliding",
                json!({"type": "sliding", "size": "10m", "slide": "10s", "topic": ORDERS, "keyColumn": "customer"}),
                include_str!("queries/windows/sums.sql"),
                include_str!("queries/windows/sliding_expected.sql"),
            )],
            Self::Sessions => vec![self.window(
                "sessions",
                json!({"type": "session", "gap": "30s", "topic": ORDERS, "partitionBy": "payload->>'customer_id'"}),
                include_str!("queries/windows/sums.sql"),
                include_str!("queries/windows/sessions_expected.sql"),
            )],
            Self::Q5 => vec![self.window(
                "q5",
                json!({"type": "sliding", "size": "10s", "slide": "2s", "topic": BIDS, "keyColumn": "auction"}),
                include_str!("queries/windows/q5.sql"),
                include_str!("queries/windows/q5_expected.sql"),
            )],
            Self::Q5Counts => vec![self.window(
                "q5_counts",
                json!({"type": "sliding", "size": "10s", "slide": "2s", "topic": BIDS, "keyColumn": "auction"}),
                include_str!("queries/windows/q5_counts.sql"),
                include_str!("queries/windows/q5_counts_expected.sql"),
            )],
            Self::Q8 => vec![
                self.window(
                    "q8_persons",
                    json!({"type": "tumbling", "size": "10s", "topic": PERSONS, "keyColumn": "id"}),
                    include_str!("queries/windows/q8_persons.sql"),
                    include_str!("queries/windows/q8_persons_expected.sql"),
                ),
                self.window(
                    "q8_sellers",
                    json!({"type": "tumbling", "size": "10s", "topic": AUCTIONS, "keyColumn": "seller"}),
                    include_str!("queries/windows/q8_sellers.sql"),
                    include_str!("queries/windows/q8_sellers_expected.sql"),
                ),
            ],
        }
    }

    fn window(
        self,
        name: &'static str,
        mut manifest: Value,
        query: &'static str,
        expected_sql: &'static str,
    ) -> MeasuredWindow {
        manifest["name"] = json!(name);
        manifest["query"] = json!(query);
        let (path, unit) = match self.topics() {
            [ORDERS] => ("$.at", "rfc3339"),
            _ => ("$.date_time", "milliseconds"),
        };
        // Rows alone move time; longer would need a longer retention.
        manifest["eventTime"] = json!({
            "path": path, "unit": unit, "watermarkDelay": format!("{}s", self.delay()), "idleTimeout": "12h",
        });
        MeasuredWindow { name, manifest, expected_sql }
    }
}

impl MeasuredWindow {
    /// Returns the window of the manifest, without sinks.
    pub(crate) fn manifest(&self) -> Value {
        self.manifest.clone()
    }

    /// Returns the results over all rows of the oracle.
    pub(crate) fn expected(&self, oracle: &Oracle) -> Results {
        let mut expected = Results::default();
        for ((name, key), rows) in oracle.results(self.name, self.expected_sql, Some("result_key")).rows {
            let parsed = |text: &str| serde_json::from_str::<Value>(text).expect("it was just written");
            let key = parsed(parsed(&key).as_str().expect("the key is JSON as a text"));
            let rows: Vec<Value> = rows
                .iter()
                .map(|row| {
                    let mut row = parsed(row);
                    row.as_object_mut().expect("a row is an object").remove("result_key");
                    row
                })
                .collect();
            expected.set((name, key.to_string()), &rows);
        }
        expected
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results;

    #[test]
    fn each_scenario_has_rows_that_yield_results_of_each_window() {
        for scenario in BenchWindow::value_variants() {
            let rows = scenario.rows(5_000, 42);
            let last = scenario.last_rows(&rows);
            assert_eq!((rows.len(), last.len()), (5_000, scenario.topics().len()));
            let oracle = results::oracle(scenario.topics(), &rows);
            for window in scenario.windows() {
                assert!(!window.expected(&oracle).rows.is_empty(), "{} has no results", window.name);
            }
        }
    }
}
