//! The first thing a user runs: examples/flights, as the README shows it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use litejoin_tests::oracle::Oracle;
use litejoin_tests::results::{Event, ResultKey, Results};
use litejoin_tests::worker::{Ended, WorkerSite};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// Results of both windows, as SQLite finds them over all flights: window, key and row. The newest flight is eighteen
/// hours ahead of the watermark; frames that are still open are told by `hourly_departures` alone.
const WINDOWS: &str = "
    WITH
      flown AS (SELECT unixepoch(payload->>'time_hour') AS hour, payload->>'carrier' AS carrier,
                       payload->>'dep_time' AS dep_time, payload->>'dep_delay' AS dep_delay
                FROM flights),
      told AS (
        SELECT 'hourly_departures' AS name, json_array(strftime('%Y-%m-%dT%H:%M:%SZ', hour, 'unixepoch')) AS key,
               json_object('departures', count(dep_time), 'cancelled', count(*) - count(dep_time)) AS row
        FROM flown GROUP BY hour
        UNION ALL
        SELECT 'recent_delay',
               json_array(strftime('%Y-%m-%dT%H:%M:%SZ', hour - ago.value * 3600, 'unixepoch'), carrier),
               json_object('carrier', carrier, 'flights', count(*), 'average_delay_minutes', round(avg(dep_delay), 1))
        FROM flown, json_each('[0, 1, 2, 3, 4, 5]') AS ago
        WHERE hour + (6 - ago.value) * 3600 <= (SELECT max(hour) - 18 * 3600 FROM flown)
        GROUP BY hour - ago.value * 3600, carrier)
    SELECT json_group_array(json_array(name, json(key), json(row))) FROM told";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests is a folder of the repository").to_owned()
}

/// Runs a copy of the example to its end; the copy lets the system choose the ports, as another worker may run.
async fn run(site: &WorkerSite, change: impl Fn(String) -> String) -> Ended {
    let folder = repository().join("examples/flights");
    for entry in fs::read_dir(&folder).expect("the example is there") {
        let path = entry.expect("a folder can be listed").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a plain name").to_owned();
        if name.ends_with(".csv") || name == "pipeline.yaml" {
            site.write(&name, fs::read(&path).expect("a file can be read"));
        }
    }
    let manifest = fs::read_to_string(folder.join("pipeline.yaml")).expect("the manifest is text");
    let manifest = manifest.replace("127.0.0.1:9090", "127.0.0.1:0").replace("127.0.0.1:9100", "127.0.0.1:0");
    site.write("pipeline.yaml", change(manifest));
    let ended = site.run(["--once"]).end().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended
}

/// The query of a join of the example.
fn query(join: &str) -> String {
    let manifest = fs::read_to_string(repository().join("examples/flights/pipeline.yaml"))
        .expect("the manifest is text");
    let document = serde_yaml::Deserializer::from_str(&manifest).next().expect("a document");
    let pipeline = Value::deserialize(document).expect("the manifest is YAML");
    let joins = pipeline["spec"]["joins"].as_array().expect("joins is a list");
    let join = joins.iter().find(|found| found["name"] == join).expect("the join is there");
    join["query"].as_str().expect("a query is text").to_owned()
}

#[tokio::test]
async fn the_flights_are_joined_with_all_that_they_refer_to() {
    let site = WorkerSite::new();
    // The rate of the rows makes no difference to the last results.
    let ended = run(&site, |manifest| {
        let faster = manifest.replace("        rate: 500\n", "");
        assert_ne!(faster, manifest, "the example has a rate");
        faster.replace("sinks: [live]", "sinks: [live, console]")
    })
    .await;
    let events: Vec<Event> = ended.stdout.lines().map(Event::read).collect();
    let results = Results::folded(&events);

    let oracle = Oracle::read(&site.data_dir(), []);
    for (topic, rows) in
        [("flights", 4334), ("airlines", 16), ("airports", 1458), ("planes", 1468), ("weather", 266)]
    {
        assert_eq!(oracle.value(&format!("SELECT count(*) AS n FROM {topic}")), rows, "{topic}");
    }
    let mut expected = oracle.results("departures", &query("departures"), Some("flight"));
    assert_eq!(expected.rows.len(), 4334);
    expected.extend(oracle.results("carrier_delay", &query("carrier_delay"), Some("carrier")));
    let windows = windows(&oracle);
    expected.extend(windows.clone());
    results.assert_same(&expected, "what was printed");

    // Time jumps no further than the watermark allows for: no flight is late, and each frame closes once.
    let is_final = |event: &&Event| event.whole["window"]["final"] == true;
    let closed: Vec<ResultKey> = events.iter().filter(is_final).map(Event::result_key).collect();
    let distinct: BTreeSet<&ResultKey> = closed.iter().collect();
    assert_eq!(closed.len(), distinct.len(), "no result is final twice");
    let recent = |key: &&ResultKey| key.0 == "recent_delay";
    assert_eq!(closed.iter().filter(recent).count(), windows.rows.keys().filter(recent).count());
    assert_shows("examples/flights/README.md", "windows", &ended);

    let row = |join: &str, key: &str| -> Map<String, Value> {
        let rows = &results.rows[&(join.to_owned(), json!(key).to_string())];
        serde_json::from_str(&rows[0]).expect("a row is JSON")
    };
    let united = row("carrier_delay", "UA");
    assert_eq!((&united["airline"], &united["flights"]), (&json!("United Air Lines Inc."), &json!(772)));
    let first = row("departures", "2013|1|1|UA|1545|EWR");
    assert_eq!(
        Value::Object(first),
        json!({
            "flight": "2013|1|1|UA|1545|EWR", "airline": "United Air Lines Inc.",
            "destination": "George Bush Intercontinental", "delay_minutes": 2, "plane": "BOEING 737-824",
            "wind_mph": 13.0, "visibility_miles": 10.0
        })
    );
}

#[tokio::test]
async fn the_readme_shows_what_its_first_command_prints() {
    let ended = run(&WorkerSite::new(), |manifest| manifest).await;
    assert_shows("README.md", "flights", &ended);
}

/// The results of the windows of the example.
fn windows(oracle: &Oracle) -> Results {
    let found = oracle.value(WINDOWS);
    let found: Vec<(String, Value, Value)> =
        serde_json::from_str(found.as_str().expect("a list is text")).expect("it is JSON");
    let mut results = Results::default();
    for (name, key, row) in &found {
        results.set((name.clone(), key.to_string()), [row]);
    }
    results
}

/// Asserts that a document shows, in the block after `<!-- transcript: NAME -->`, results that were printed.
fn assert_shows(document: &str, name: &str, ended: &Ended) {
    let text = fs::read_to_string(repository().join(document)).expect("a document is text");
    let marker = format!("<!-- transcript: {name} -->");
    let (_, after) = text.split_once(&marker).unwrap_or_else(|| panic!("{document} has no {marker}"));
    let mut block = after.lines().skip_while(|line| !line.starts_with("```")).skip(1);
    let shown: Vec<&str> = block
        .by_ref()
        .take_while(|line| !line.starts_with("```"))
        .filter(|line| line.starts_with('{'))
        .collect();
    assert!(!shown.is_empty(), "the block after {marker} shows results");
    let missing: Vec<&str> = shown
        .into_iter()
        .filter(|shown| !ended.stdout.lines().any(|printed| is_shortened(shown, printed)))
        .collect();
    assert!(missing.is_empty(), "{document} shows what is not printed:\n{}", missing.join("\n"));
}

/// Whether `shown` is `printed` with an ellipsis in the place of each part that is left out.
pub(crate) fn is_shortened(shown: &str, printed: &str) -> bool {
    let Some((first, shown)) = shown.split_once('…') else { return shown == printed };
    let (middle, last) = shown.rsplit_once('…').unwrap_or(("", shown));
    let Some(mut rest) = printed.strip_prefix(first).and_then(|rest| rest.strip_suffix(last)) else {
        return false;
    };
    middle.split('…').all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}
