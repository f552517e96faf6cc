//! Queries of each class. plans.txt shows how each is gathered, or why it is not; `UPDATE_EXPECT=1 cargo test`
//! rewrites that file.

use std::fmt::Write as _;

use expect_test::expect_file;
use litejoin_crds::plan::{Join, Place};

use super::*;
use crate::join::check::{self, Catalog};

fn planned(queries: &[(&str, &str)]) -> (Class, ClockUse) {
    let joins: Vec<Join> = queries
        .iter()
        .map(|(name, query)| Join {
            name: (*name).to_owned(),
            place: Place { document: 0, path: String::new() },
            query: (*query).to_owned(),
            key_column: None,
            result_key: None,
            refresh: std::time::Duration::from_secs(1),
            sinks: Vec::new(),
        })
        .collect();
    let topics = ["orders".to_owned(), "customers".to_owned(), "lines".to_owned()];
    let checked = check::check(&joins, &[], Catalog { topics: &topics, open: false }, &check::no_window)
        .expect("the queries are sound");
    let texts = checked.iter().map(|join| (join.name.to_ascii_lowercase(), join.sql.clone())).collect();
    let last =
        checked.iter().find(|join| join.name == queries.last().expect("a query").0).expect("it is there");
    plan(last, &texts)
}

fn described((class, clock): &(Class, ClockUse)) -> String {
    let mut text = of_class(class);
    for TimeBound { topic, by, clock, ends, .. } in clock.bounds() {
        let _ = writeln!(text, "  in time: {topic} by {} against {clock}, {ends:?}", by.sql());
    }
    text
}

fn of_class(class: &Class) -> String {
    match class {
        Class::Full(reason) => format!("  full: {reason}\n"),
        Class::Accumulated(plan) => {
            plan.to_string().lines().fold(String::new(), |text, line| text + "  " + line + "\n")
        }
        Class::Keyed(keyed) => {
            keyed.to_string().lines().fold(String::new(), |text, line| text + "  " + line + "\n")
                + &format!("  {}\n", keyed.sql)
        }
    }
}

/// Titles and queries.
const CLASSES: [(&str, &[&str]); 7] = [
    (
        "a projection is gathered by its key",
        &[
            "SELECT key, payload->>'n' AS n FROM orders WHERE payload->>'n' > 3",
            "SELECT payload->>'n' AS n, count(*) AS c FROM orders GROUP BY 1 HAVING count(*) > 1",
            "SELECT payload, key FROM orders",
        ],
    ),
    (
        "joins follow their equalities",
        &[
            "SELECT o.key AS id, c.payload->>'name' AS name FROM orders o JOIN customers c ON c.key = o.payload->>'customer'",
            "SELECT c.key AS id, o.key AS o FROM customers c LEFT JOIN orders o ON c.key = o.payload->>'customer' AND o.payload->>'n' > 2",
            "SELECT o.key AS id FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer' WHERE c.key IS NULL",
            "SELECT o.key AS id, l.key AS line FROM orders o JOIN lines l ON (l.payload->>'order', l.payload->>'city') = (o.key, o.payload->>'city')",
            "SELECT o.key AS id, l.key AS line FROM orders o JOIN lines l ON l.payload->>'city' IS o.payload->>'city'",
            "SELECT payload->>'city' AS city, key FROM (SELECT * FROM orders ORDER BY key)",
            "SELECT city, key FROM (SELECT payload->>'city' AS city, key FROM orders ORDER BY key)",
            "SELECT floor(payload->>'n') AS bucket, count(DISTINCT key) AS c FROM orders GROUP BY 1",
            "SELECT median(payload->>'n') AS middle FROM orders",
            "SELECT c.key AS id, o.key AS o FROM orders o RIGHT JOIN customers c ON c.key = o.payload->>'customer'",
            "SELECT coalesce(a.key, b.key) AS id FROM orders a FULL JOIN lines b ON a.key = b.key",
            "SELECT key, a.payload AS a FROM orders a FULL JOIN lines b USING (key)",
            "SELECT c.key AS id FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'customer'",
            "SELECT a.key AS id, b.key AS other FROM orders a JOIN orders b ON b.payload->>'p' = a.payload->>'p'",
            "SELECT a.key AS id, b.key AS other FROM orders a JOIN orders b ON b.payload->>'p' < a.payload->>'p'",
            "SELECT l.key AS id FROM lines l, orders o, customers c WHERE o.key = l.payload->>'order' AND c.key = o.payload->>'customer'",
        ],
    ),
    (
        "subqueries are restricted by what ties them",
        &[
            "SELECT c.key AS id, (SELECT count(*) FROM orders o WHERE o.payload->>'customer' = c.key) AS n FROM customers c",
            "SELECT c.key AS id FROM customers c WHERE NOT EXISTS (SELECT 1 FROM orders o WHERE o.payload->>'customer' = c.key)",
            "SELECT o.key AS id FROM orders o WHERE o.key IN (SELECT l.key FROM lines l)",
            "SELECT o.key AS id FROM orders o WHERE o.key NOT IN (SELECT l.key FROM lines l)",
            "SELECT c.key AS id, s.n AS n FROM customers c JOIN (SELECT payload->>'customer' AS customer, count(*) AS n FROM orders GROUP BY 1) s ON s.customer = c.key",
            "SELECT c.key AS id, s.v AS v FROM customers c JOIN (SELECT payload->>'p' AS v FROM orders UNION SELECT payload->>'p' FROM lines) s ON s.v = c.key",
            "SELECT c.key AS id, s.v AS v FROM customers c JOIN (SELECT payload->>'p' AS v FROM orders UNION ALL SELECT payload->>'p' FROM lines) s ON s.v = c.key",
            "WITH big AS (SELECT key, payload->>'customer' AS customer FROM orders WHERE payload->>'n' > 3) SELECT c.key AS id, b.key AS o, b2.key AS p FROM customers c JOIN big b ON CAST(b.customer AS TEXT) = c.key JOIN big b2 ON b2.key = b.key",
        ],
    ),
    (
        "groups are accumulated where rows can be told apart by a key",
        &[
            "SELECT count(*) AS n, sum(payload->>'n') + 1 AS s, max(timestamp) AS t FROM orders WHERE payload->>'n' > 3",
            "SELECT payload->>'customer' AS customer, avg(payload->>'n') FILTER (WHERE timestamp > 5) AS a FROM orders WHERE customer <> 'x' GROUP BY customer HAVING count(*) > 1 AND customer > 'a'",
            "SELECT c.payload->>'city' AS city, count(o.key) AS n FROM customers c LEFT JOIN orders o ON o.payload->>'customer' = c.key GROUP BY 1",
            "SELECT c.key AS id, min(o.payload->>'n') AS n FROM orders o JOIN customers c ON o.payload->>'customer' = c.key GROUP BY c.key",
            "SELECT category, avg(final) AS a FROM (SELECT max(l.payload->>'price') AS final, o.payload->>'category' AS category FROM orders o JOIN lines l ON l.payload->>'order' = o.key GROUP BY o.key) GROUP BY category",
            "SELECT payload->>'customer' AS customer, key, max(payload->>'n') AS n FROM orders GROUP BY 1",
            "SELECT count(DISTINCT payload->>'n') AS n FROM orders",
            "SELECT count(_change) AS n FROM orders",
            "SELECT key, count(*) AS n FROM orders GROUP BY key",
        ],
    ),
    (
        "whole sets need the key in each part",
        &[
            "SELECT DISTINCT payload->>'customer' AS customer FROM orders",
            "SELECT key, 1 AS n FROM orders UNION SELECT payload->>'order', 2 FROM lines EXCEPT SELECT key, 1 FROM customers",
            "SELECT payload->>'customer' AS customer, key, row_number() OVER (PARTITION BY payload->>'customer' ORDER BY key) AS n FROM orders",
            "SELECT (payload->>'customer') || '/' || (payload->>'city') AS id, count(DISTINCT key) AS n FROM orders GROUP BY payload->>'customer', payload->>'city'",
            "SELECT typeof(payload->>'n') AS id, count(DISTINCT key) AS n FROM orders GROUP BY payload->>'n'",
            "SELECT lower(payload->>'city') || '!' AS id, count(DISTINCT key) AS n FROM orders GROUP BY lower(payload->>'city')",
            "SELECT CAST(payload->>'n' AS TEXT) AS id, sum(timestamp) OVER (PARTITION BY payload->>'n') AS t FROM orders",
            "SELECT key, row_number() OVER (ORDER BY key) AS n FROM orders",
            "SELECT key FROM orders ORDER BY key LIMIT 3",
            "SELECT count(*) AS n FROM orders",
            "SELECT o.key || l.key AS id FROM orders o JOIN lines l ON l.key = o.key",
            "SELECT key FROM orders WHERE key = 'a' COLLATE NOCASE",
            "SELECT o.key AS id, j.value AS tag FROM orders o, json_each(o.payload, '$.tags') j",
        ],
    ),
    (
        "comparisons with the clock are followed row by row",
        &[
            "SELECT key AS id FROM orders WHERE timestamp > unixepoch() - 3600",
            "SELECT key AS id, strftime('%s', 'now') - 60 <= timestamp AS recent FROM orders",
            "SELECT key AS id FROM orders WHERE payload->>'n' > 3 OR NOT payload->>'at' < datetime('now', '-1 day')",
            "SELECT key AS id FROM orders WHERE CURRENT_TIMESTAMP BETWEEN payload->>'from' AND payload->>'to'",
            "SELECT key AS id FROM orders WHERE julianday(payload->>'at') > julianday('now') - 0.5",
            "SELECT key AS id FROM orders WHERE date(timestamp, 'unixepoch') = date()",
            "SELECT payload->>'customer' AS customer, sum(payload->>'n') AS n FROM orders WHERE timestamp > unixepoch() - 60 GROUP BY 1",
            "SELECT c.key AS id FROM customers c WHERE EXISTS (SELECT 1 FROM orders o WHERE o.payload->>'customer' = c.key AND o.timestamp > unixepoch() - 60)",
            "SELECT id FROM (SELECT key AS id, timestamp AS at FROM orders UNION ALL SELECT key, CAST(payload->>'at' AS INTEGER) FROM lines) WHERE at > unixepoch() - 60",
            "SELECT key AS id FROM orders WHERE timestamp > unixepoch() - 60 ORDER BY key LIMIT 3",
        ],
    ),
    (
        "the clock in other places is read again and again",
        &[
            "SELECT key AS id, unixepoch() - timestamp AS age FROM orders",
            "SELECT payload->>'customer' AS customer, count(*) AS n FROM orders GROUP BY 1 HAVING max(timestamp) > unixepoch() - 60",
            "SELECT key AS id FROM orders WHERE coalesce(payload->>'at', 0) > unixepoch()",
            "SELECT key AS id FROM orders WHERE timestamp > unixepoch() - payload->>'n'",
            "SELECT key AS id FROM orders LIMIT unixepoch() % 2",
            "SELECT id FROM (SELECT key AS id, timestamp AS at FROM orders UNION ALL SELECT key, payload->>'at' FROM lines) WHERE at > unixepoch() - 60",
        ],
    ),
];

#[test]
fn each_class_is_gathered_as_expected() {
    let mut text = String::new();
    for (title, queries) in CLASSES {
        let _ = writeln!(text, "# {title}\n");
        for query in queries {
            let _ = writeln!(text, "{query}\n{}", described(&planned(&[("j", query)])));
        }
    }
    let join = planned(&[
        (
            "named",
            "SELECT o.key AS id, c.payload->>'name' AS name FROM orders o JOIN customers c ON c.key = o.payload->>'customer'",
        ),
        (
            "j",
            "SELECT l.key AS line, n.name AS name FROM lines l LEFT JOIN named n ON n.id = l.payload->>'order'",
        ),
    ]);
    let _ = writeln!(text, "# a join that reads another\n\n{}", described(&join));
    expect_file!["plans.txt"].assert_eq(&text);
}
