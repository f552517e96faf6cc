//! Error messages of invalid queries, each asserted whole.

use litejoin_crds::plan::{Retention, TimeCut};
use litejoin_crds::window::WindowEmit;

use super::*;

fn join(name: &str, query: &str) -> Join {
    Join {
        name: name.to_owned(),
        place: Place { document: 0, path: "spec.joins[0]".to_owned() },
        query: query.to_owned(),
        key_column: None,
        result_key: None,
        refresh: Duration::from_secs(1),
        sinks: Vec::new(),
    }
}

fn topics() -> Vec<String> {
    vec!["orders".to_owned(), "customers".to_owned()]
}

fn complaint(query: &str) -> String {
    let joins = [join("enriched", query)];
    let errors = check(&joins, &[], Catalog { topics: &topics(), open: false }, &no_window)
        .expect_err("the query is refused");
    assert_eq!(errors.len(), 1, "{errors:?}");
    format!("{}: {}", errors[0].line, errors[0].message)
}

#[test]
fn a_query_that_cannot_run_says_why() {
    let cases = [
        ("SELECT key\nFORM orders", "1: near \"orders\": syntax error"),
        ("\n\nSELECT key,\n  amuont FROM orders", "3: no such column: amuont"),
        (
            "SELECT key FROM ordres",
            "0: no source fills topic \"ordres\", did you mean \"orders\"; topics and joins: orders, customers",
        ),
        ("SELECT key FROM main.orders", "0: main.orders names a schema; write orders without main."),
        ("SELECT key FROM enriched", "0: join \"enriched\" reads itself; read the topics instead"),
        (
            "SELECT o.key, c.key FROM orders o, customers c",
            "0: columns 1 and 2 are both called \"key\"; give one another name with AS",
        ),
        ("SELECT rowid FROM orders", "0: topics have no rowid, since they are spread over shards; use key"),
        (
            "SELECT name FROM sqlite_schema",
            "0: sqlite_master may not be read; a join reads topics and other joins",
        ),
        ("DELETE FROM orders", "0: is no SELECT; a join only reads"),
        ("PRAGMA user_version", "0: is no SELECT; a join is one SELECT, without ATTACH or PRAGMA"),
        ("SELECT key FROM orders; SELECT 1", "0: holds more than one statement; a join is one SELECT"),
        (
            "SELECT key FROM orders WHERE key = ?",
            "0: has parameters (?), and nothing to fill them with; write the values",
        ),
        ("EXPLAIN SELECT key FROM orders", "0: starts with EXPLAIN; leave that out"),
        (
            "SELECT key, random() AS r FROM orders",
            "0: random() gives another value each time; results must follow from the topics",
        ),
        (
            "SELECT key FROM orders WHERE key = \"x\"",
            "0: no such column: \"x\" - should this be a string literal in single-quotes?",
        ),
    ];
    for (query, expected) in cases {
        assert_eq!(complaint(query), expected, "{query}");
    }
}

#[test]
fn a_key_column_must_be_one_of_the_query() {
    let mut wrong = join("enriched", "SELECT key AS order_id, payload FROM orders");
    wrong.key_column = Some("order_ids".to_owned());
    let errors =
        check(&[wrong], &[], Catalog { topics: &topics(), open: false }, &no_window).expect_err("refused");
    assert_eq!(errors[0].field, "keyColumn");
    assert_eq!(
        errors[0].message,
        "the query yields no column \"order_ids\", did you mean \"order_id\"; its columns are order_id, payload"
    );
}

#[test]
fn joins_come_after_those_they_read_and_know_their_topics() {
    let joins = [
        join("second", "SELECT f.id, c.key AS customer FROM first f JOIN customers c ON c.key = f.id"),
        join("first", "SELECT key AS id FROM Orders WHERE timestamp > unixepoch('now') - 60;"),
    ];
    let checked =
        check(&joins, &[], Catalog { topics: &topics(), open: false }, &no_window).expect("both are fine");
    let seen: Vec<_> = checked
        .iter()
        .map(|join| {
            (
                join.name.as_str(),
                join.topics.iter().map(String::as_str).collect::<Vec<_>>(),
                join.clock != ClockUse::Unread,
            )
        })
        .collect();
    assert_eq!(seen, [("first", vec!["orders"], true), ("second", vec!["customers", "orders"], true)]);
    assert!(checked[1].definition(&checked).contains("unixepoch"));
}

#[test]
fn joins_in_a_circle_are_refused() {
    let joins = [join("a", "SELECT key FROM b"), join("b", "SELECT key FROM a")];
    let errors =
        check(&joins, &[], Catalog { topics: &topics(), open: false }, &no_window).expect_err("refused");
    assert_eq!(errors[0].message, "the joins a, b read each other in a circle; break it");
}

#[test]
fn an_open_source_brings_topics_to_life() {
    let joins = [join("any", "SELECT key FROM whatever")];
    let checked = check(&joins, &[], Catalog { topics: &[], open: true }, &no_window).expect("fine");
    assert!(checked[0].topics.contains("whatever"));
}

#[test]
fn counting_alone_still_reads_the_topic() {
    let joins = [join("count", "SELECT count(*) AS n FROM orders")];
    let checked = check(&joins, &[], Catalog { topics: &topics(), open: false }, &no_window).expect("fine");
    assert!(checked[0].topics.contains("orders"));
}

fn window(name: &str, topic: &str, query: &str) -> Window {
    Window {
        name: name.to_owned(),
        place: Place { document: 0, path: "spec.windows[0]".to_owned() },
        topic: topic.to_owned(),
        query: query.to_owned(),
        cut: TimeCut::Session { gap: 1 },
        partition_by: None,
        key_column: None,
        emit: WindowEmit::Final,
        emit_empty: 0,
        event_time: None,
        sinks: Vec::new(),
    }
}

/// Checks joins and windows as a Pipeline has them.
fn check_both(joins: &[Join], windows: &[Window]) -> Result<Vec<CheckedJoin>, Vec<String>> {
    let retention = Retention {
        duration: Some(Duration::from_secs(60)),
        topics: BTreeMap::new(),
        clean_interval: Duration::from_secs(60),
        emit_expiry: false,
        tombstone_duration: Duration::from_secs(60),
    };
    let check_window =
        |window: &Window, node: Option<&CheckedJoin>| crate::window::check::check(window, node, &retention);
    check(joins, windows, Catalog { topics: &topics(), open: false }, &check_window).map_err(|errors| {
        errors
            .into_iter()
            .map(|error| format!("{}.{}: {}", error.place.path, error.field, error.message))
            .collect()
    })
}

#[test]
fn joins_and_windows_are_checked_after_those_they_read() {
    let windows = [
        window("peaks", "Hourly", "SELECT max(n) AS n, window_start FROM hourly"),
        window("hourly", "placed", "SELECT count(*) AS n, window_end AS until FROM placed"),
    ];
    let joins = [
        join("late", "SELECT h.until, o.key FROM hourly h JOIN orders o ON o.timestamp = h.until"),
        join("placed", "SELECT key AS id FROM orders"),
        join("hours", "SELECT count(*) AS n FROM Hourly"),
    ];
    let checked = check_both(&joins, &windows).expect("all are fine");
    let topics: Vec<_> = checked
        .iter()
        .map(|output| (output.name.as_str(), output.topics.iter().map(String::as_str).collect::<Vec<_>>()))
        .collect();
    let expected = [
        ("placed", vec!["orders"]),
        ("late", vec!["_of_hourly", "orders"]),
        ("hours", vec!["_of_hourly"]),
        ("hourly", vec!["_of_placed"]),
        ("peaks", vec!["_of_hourly"]),
    ];
    assert_eq!(topics, expected);
    let of = |name: &str| checked.iter().find(|output| output.name == name).expect("it is there");
    assert!(matches!(of("late").class, Class::Keyed(_)), "{:?}", of("late").class);
    assert!(of("late").definition(&checked).contains("count(*)"), "a window that changes is evaluated anew");
}

#[test]
fn what_joins_and_windows_cannot_read_says_why() {
    let hourly = || window("hourly", "orders", "SELECT count(*) AS n FROM orders");
    let read = |query: &str| check_both(&[join("j", query)], &[hourly()]).expect_err("refused").join("\n");
    let cases = [
        (
            "SELECT n FROM hourli",
            "spec.joins[0].query: no source fills topic \"hourli\", did you mean \"hourly\"; topics, joins and windows: \
             orders, customers, hourly",
        ),
        ("SELECT m FROM hourly", "spec.joins[0].query: no such column: m"),
        ("SELECT key FROM _of_hourly", "spec.joins[0].query: _of_hourly may not be read; read hourly"),
    ];
    for (query, expected) in cases {
        assert_eq!(read(query), expected, "{query}");
    }
    let joins = [join("a", "SELECT n FROM w")];
    let circle = check_both(&joins, &[window("w", "a", "SELECT count(*) AS n FROM a")]);
    let message = "the joins and windows a, w read each other in a circle; break it";
    assert_eq!(
        circle.expect_err("refused"),
        [format!("spec.joins[0].query: {message}"), format!("spec.windows[0].topic: {message}")]
    );
    let mut by_region = window("w", "hourly", "SELECT count(*) AS n FROM hourly");
    by_region.partition_by = Some("region".to_owned());
    assert_eq!(
        check_both(&[], &[hourly(), by_region]).expect_err("refused"),
        ["spec.windows[0].partitionBy: got \"region\", allowed a column of hourly: n"]
    );
}
