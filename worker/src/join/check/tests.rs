//! Error messages of invalid queries, each asserted whole.

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
