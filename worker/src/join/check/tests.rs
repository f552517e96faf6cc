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
fn literals_that_no_row_could_mend_are_refused() {
    let path = "; begin with $, and write a name in double quotes unless it is plain: '$.\"order id\"[0]'";
    let cases = [
        ("SELECT key,\n  payload->>'$x' AS x FROM orders", format!("1: bad JSON path: '$x'{path}")),
        ("SELECT key, json_extract(payload, '$.a', '$.') AS x FROM orders", format!("0: bad JSON path: '$.'{path}")),
        ("SELECT key, json_set(payload, '$.a', 1, '$b', 2) AS x FROM orders", format!("0: bad JSON path: '$b'{path}")),
        (
            "SELECT o.key AS id, e.value AS x FROM orders o, json_each('[1,') e",
            "0: malformed JSON".to_owned(),
        ),
        (
            "SELECT key, json_set(payload, '$.a') AS x FROM orders",
            "0: json_set() takes a document, and a value behind each path".to_owned(),
        ),
        (
            "SELECT key, json_object('a', 1, 'b') AS x FROM orders",
            "0: json_object() takes a value behind each label".to_owned(),
        ),
        (
            "SELECT key FROM orders WHERE key REGEXP '('",
            "0: regexp: pattern \"(\": unclosed group".to_owned(),
        ),
        (
            "SELECT key FROM orders WHERE regexp('[', payload->>'x')",
            "0: regexp: pattern \"[\": unclosed character class".to_owned(),
        ),
        (
            "SELECT key, date(timestamp, 'unixepoch', '+1 dya') AS day FROM orders",
            "0: date() knows no modifier '+1 dya', and gives NULL for every row; write for example '+1 day', 'start of \
             month' or 'unixepoch'"
                .to_owned(),
        ),
        (
            "SELECT key, strftime('%Q', timestamp, 'unixepoch') AS day FROM orders",
            "0: strftime() knows not all of the format '%Q', and gives NULL for every row; write for example \
             '%Y-%m-%dT%H:%M:%SZ'"
                .to_owned(),
        ),
        (
            "SELECT key, datetime(payload->>'at',\n  'LocalTime') AS day FROM orders",
            "1: datetime() with 'localtime' depends on the time zone of the machine, and results must follow from the \
             topics; times are in UTC: write a fixed distance such as '+02:00', or give a Window a timezone"
                .to_owned(),
        ),
    ];
    for (query, expected) in cases {
        assert_eq!(complaint(query), expected, "{query}");
    }
}

#[test]
fn what_a_row_may_make_right_is_accepted() {
    for query in [
        "SELECT key, payload->>'$.a[0].\"b c\"' AS x, payload->'a'->>0 AS y FROM orders",
        "SELECT key, json_extract(key, '$.a') AS x, json(payload->>'inner') AS y FROM orders",
        "SELECT key, payload->>('$' || key) AS x, key REGEXP '(' || key || ')' AS y FROM orders",
        "SELECT key, payload->>'a' || '$x' AS x, '$x' AS y FROM orders WHERE payload->>'zone' = 'utc'",
        "SELECT key, date(timestamp, 'unixepoch', 'start of month', '-1 day', 'weekday 1', '+02:00') AS x FROM orders",
        "SELECT key, date('now', payload->>'modifier') AS x, unixepoch('subsec') AS y FROM orders",
        "SELECT key, json_object('a', 1) AS x, json_object() AS y, json_array('[') AS z FROM orders",
        "SELECT key, json_set(payload, '$.a', '$b') AS x FROM orders",
    ] {
        let joins = [join("enriched", query)];
        let checked = check(&joins, &[], Catalog { topics: &topics(), open: false }, &no_window);
        assert_eq!(checked.map(|joins| joins.len()), Ok(1), "{query}");
    }
}

#[test]
fn sql_of_other_databases_is_known_by_its_looks() {
    let lateral = "SQLite has no LATERAL; json_each(…) reads the tables in front of it as it is, and row_number() OVER \
                   (PARTITION BY …) picks the first rows of each key";
    let cases = [
        (
            "SELECT key, (payload->>'n')::int AS n FROM orders",
            "unrecognized token: \":\"; x::type is the cast of PostgreSQL; write CAST(x AS INTEGER), … AS REAL or … AS TEXT"
                .to_owned(),
        ),
        (
            "SELECT key FROM orders WHERE timestamp > unixepoch() - INTERVAL '1 day'",
            "near \"'1 day'\": syntax error; SQLite has no INTERVAL; write datetime(x, '+1 day'), or add seconds: timestamp \
             + 86400"
                .to_owned(),
        ),
        (
            "SELECT o.key FROM orders o, LATERAL (SELECT 1) x",
            format!("near \"SELECT\": syntax error; {lateral}"),
        ),
        (
            "SELECT o.key FROM orders o CROSS JOIN LATERAL json_each(o.payload) e",
            format!("near \"(\": syntax error; {lateral}"),
        ),
        (
            "SELECT key FROM orders GROUP BY GROUPING SETS ((key), ())",
            "near \"SETS\": syntax error; SQLite has no GROUPING SETS; write a SELECT with GROUP BY for each set, with \
             UNION ALL between"
                .to_owned(),
        ),
        (
            "SELECT key FROM orders EMIT CHANGES",
            "near \"CHANGES\": syntax error; EMIT is the word of other engines; leave it out: a join tells each change of \
             its results, and a Window has the field emit"
                .to_owned(),
        ),
        // What stands elsewhere, in a text or in a comment, says nothing.
        ("SELECT key, 'a::b', interval FRM orders /* x::y */", "near \"orders\": syntax error".to_owned()),
        (
            "SELECT key, -- the key payload FROM orders",
            "incomplete input; the comment \"-- the key payload FROM orders\" goes on to the end of the query: in a folded \
             text (>) all is one line, so write query: |"
                .to_owned(),
        ),
    ];
    for (query, expected) in cases {
        assert_eq!(complaint(query), format!("0: {expected}"), "{query}");
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
