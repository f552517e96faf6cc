//! The sqlite sink: its tables hold the results of the joins, also for programs that read meanwhile, over crashes and
//! changed queries.

use std::fs;
use std::path::Path;

use expect_test::expect;
use litejoin_tests::ingest::message;
use litejoin_tests::wait::until;
use litejoin_tests::worker::WorkerSite;
use rusqlite::Connection;
use rusqlite::types::Value as SqlValue;
use serde_json::{Value, json};

const ITEMS: &str = "SELECT payload->>'customer' AS customer, key AS id, CAST(payload->>'amount' AS REAL) AS amount, \
                     payload->>'note' AS note, timestamp > 0 AS is_new FROM orders";
const TOTALS: &str =
    "SELECT payload->>'customer' AS customer, sum(payload->>'amount') AS total FROM orders GROUP BY 1";

/// A pipeline with these joins, each a name, a query and further fields, into `out.db`. One shard, so that the messages
/// of one request are stored, and arrive, at once.
fn manifest(joins: &[(&str, &str, &str)]) -> String {
    let joins: String = joins
        .iter()
        .map(|(name, query, more)| {
            format!("    - {{name: {name}, query: \"{query}\", sinks: [tables, live]{more}}}\n")
        })
        .collect();
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 1}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - {{name: ingest, http: {{addr: "127.0.0.1:0", topics: [orders]}}}}
  joins:
{joins}  sinks:
    - {{name: tables, sqlite: {{path: out.db}}}}
    - {{name: live, sse: {{addr: "127.0.0.1:0"}}}}
"#
    )
}

fn order(id: &str, customer: &str, amount: f64) -> Value {
    message("orders", id, json!({"customer": customer, "amount": amount, "note": 7}))
}

/// Waits until a query over the file yields something: the last change that was made. Before the first row its table may
/// not be there yet.
async fn settled(file: &Connection, sql: &str) {
    until(sql, async || (file.prepare(sql).is_ok() && !ask(file, sql).is_empty()).then_some(())).await;
}

/// The rows of a query over the file, a line for each.
fn ask(connection: &Connection, sql: &str) -> Vec<String> {
    let mut statement = connection.prepare(sql).unwrap_or_else(|error| panic!("{error}: {sql}"));
    let columns = statement.column_count();
    let rows = statement.query_map([], |row| {
        let values: rusqlite::Result<Vec<String>> = (0..columns)
            .map(|index| row.get::<_, SqlValue>(index).map(|value| format!("{value:?}")))
            .collect();
        Ok(values?.join(" "))
    });
    rows.and_then(Iterator::collect).unwrap_or_else(|error| panic!("{error}: {sql}"))
}

#[expect(clippy::disallowed_methods, reason = "a reader that is no part of the worker")]
fn open(path: &Path) -> Connection {
    Connection::open(path).expect("the file can be opened")
}

/// Columns of a table, each with its type.
fn columns(connection: &Connection, table: &str) -> Vec<String> {
    ask(
        connection,
        &format!("SELECT trim(name || ' ' || type) FROM pragma_table_info('{table}') ORDER BY cid"),
    )
}

#[tokio::test]
async fn tables_have_the_rows_of_each_result_with_their_columns_and_types() {
    let site = WorkerSite::with(&manifest(&[("items", ITEMS, ""), ("totals", TOTALS, "")]));
    let worker = site.start().await;
    let file = until("the tables", async || {
        let file = site.path().join("out.db");
        file.is_file().then(|| open(&file)).filter(|file| columns(file, "totals").len() > 1)
    })
    .await;
    expect![[r#"
        Text("customer")
        Text("id TEXT")
        Text("amount REAL")
        Text("note")
        Text("is_new")
        Text("_key TEXT")"#]]
    .assert_eq(&columns(&file, "items").join("\n"));
    assert_eq!(ask(&file, "PRAGMA journal_mode"), ["Text(\"wal\")"]);
    assert_eq!(ask(&file, "SELECT count(*) FROM items"), ["Integer(0)"]);

    worker.ingest().send(&[order("o1", "ada", 1.0), order("o2", "ada", 2.5), order("o3", "bob", 3.0)]).await;
    settled(&file, "SELECT 1 FROM items WHERE id = 'o3'").await;
    expect![[r#"
        Text("ada") Text("o1") Real(1.0) Integer(7) Integer(1)
        Text("ada") Text("o2") Real(2.5) Integer(7) Integer(1)
        Text("bob") Text("o3") Real(3.0) Integer(7) Integer(1)"#]]
    .assert_eq(&ask(&file, "SELECT customer, id, amount, note, is_new FROM items ORDER BY id").join("\n"));

    // A transaction that reads goes on seeing the old rows, and holds up no writer.
    file.execute_batch("BEGIN").expect("a transaction can be begun");
    let before = ask(&file, "SELECT id, amount FROM items ORDER BY id");
    worker
        .ingest()
        .send(&[order("o1", "bob", 10.0), message("orders", "o2", Value::Null), order("o4", "ada", 4.0)])
        .await;
    settled(&open(&site.path().join("out.db")), "SELECT 1 FROM items WHERE id = 'o4'").await;
    assert_eq!(ask(&file, "SELECT id, amount FROM items ORDER BY id"), before);
    file.execute_batch("COMMIT").expect("a transaction can be ended");
    expect![[r#"
        Text("ada") Text("o4") Real(4.0)
        Text("bob") Text("o1") Real(10.0)
        Text("bob") Text("o3") Real(3.0)"#]]
    .assert_eq(&ask(&file, "SELECT customer, id, amount FROM items ORDER BY customer, id").join("\n"));
    assert_eq!(
        ask(&file, "SELECT * FROM totals ORDER BY 1"),
        ["Text(\"ada\") Real(4.0) Text(\"\\\"ada\\\"\")", "Text(\"bob\") Real(13.0) Text(\"\\\"bob\\\"\")"]
    );
    let plan = ask(&file, "EXPLAIN QUERY PLAN DELETE FROM items WHERE _key = ''");
    assert!(
        plan[0].contains("USING INDEX _items_key") || plan[0].contains("USING COVERING INDEX _items_key"),
        "{plan:?}"
    );
    worker.stop().await;
}

#[tokio::test]
async fn tables_agree_with_the_joins_after_every_crash() {
    let site = WorkerSite::with(&manifest(&[("items", ITEMS, ""), ("totals", TOTALS, "")]));
    let mut epoch = 0;
    for round in 0..6_u32 {
        let worker = site.start().await;
        for step in 0..10_u32 {
            let messages: Vec<Value> = (0..40)
                .map(|n| {
                    let (id, number) =
                        (format!("o{}", (n * 7 + step * 13 + round) % 60), n + step * 3 + round);
                    match number % 9 {
                        0 => message("orders", &id, Value::Null),
                        _ => order(&id, &format!("c{}", number % 11), f64::from(number)),
                    }
                })
                .collect();
            epoch = worker.ingest().send(&messages).await;
        }
        worker.kill().await;
    }
    let worker = site.start().await;
    let file = open(&site.path().join("out.db"));
    let epoch = epoch.max(worker.ingest().send(&[order("last", "nobody", 1.0)]).await);
    settled(&file, "SELECT 1 FROM items, totals WHERE id = 'last' AND totals.customer = 'nobody'").await;
    for (join, table) in
        [("items", "SELECT customer, id, amount, note, is_new"), ("totals", "SELECT customer, total")]
    {
        let (_, results) = worker.snapshot("live", join, epoch).await;
        let mut expected: Vec<Value> = results
            .rows
            .values()
            .flatten()
            .map(|row| serde_json::from_str(row).expect("a row is JSON"))
            .collect();
        let mut stored: Vec<Value> = ask_json(&file, &format!("{table} FROM {join}"));
        expected.sort_by_key(Value::to_string);
        stored.sort_by_key(Value::to_string);
        assert_eq!(stored, expected, "{join}");
        assert!(stored.len() > 5, "there is something to compare");
    }
    worker.stop().await;
}

/// The rows of a query, as objects.
fn ask_json(connection: &Connection, sql: &str) -> Vec<Value> {
    let mut statement = connection.prepare(sql).expect("the query is fine");
    let names: Vec<String> = statement.column_names().into_iter().map(str::to_owned).collect();
    let rows = statement.query_map([], |row| {
        let mut object = serde_json::Map::new();
        for (index, name) in names.iter().enumerate() {
            let value = match row.get(index)? {
                SqlValue::Null => Value::Null,
                SqlValue::Integer(integer) => json!(integer),
                SqlValue::Real(real) => json!(real),
                SqlValue::Text(text) => json!(text),
                SqlValue::Blob(_) => panic!("no BLOB was written"),
            };
            object.insert(name.clone(), value);
        }
        Ok(Value::Object(object))
    });
    rows.and_then(Iterator::collect).expect("the rows can be read")
}

#[tokio::test]
async fn a_changed_query_takes_its_table_along() {
    let all = "SELECT key AS id FROM orders";
    let first = "SELECT key AS id, payload->>'amount' AS amount FROM orders";
    // Other joins have names that a temporary table might get.
    let others = [("items_next", all, ""), ("items_key", all, "")];
    let site = WorkerSite::with(&manifest(&[&[("items", first, "")], &others[..]].concat()));
    let worker = site.start().await;
    worker.ingest().send(&[order("o1", "ada", 1.5), order("o2", "ada", 2.5)]).await;
    let file = open(&site.path().join("out.db"));
    settled(&file, "SELECT 1 FROM items WHERE id = 'o2'").await;
    for (query, more, expected) in [
        // One column is new, one is gone, one has another type.
        (
            "SELECT key AS id, CAST(payload->>'amount' AS TEXT) AS amount, payload->>'customer' AS customer FROM orders",
            "",
            "id TEXT | amount TEXT | customer | _key TEXT\n\
             Text(\"o1\") Text(\"1.5\") Text(\"ada\") Text(\"\\\"o1\\\"\")\n\
             Text(\"o2\") Text(\"2.5\") Text(\"ada\") Text(\"\\\"o2\\\"\")",
        ),
        // With another key column, results under the old keys leave.
        (
            "SELECT key AS id, payload->>'customer' AS customer FROM orders",
            ", keyColumn: customer",
            "id TEXT | customer | _key TEXT\n\
             Text(\"o1\") Text(\"ada\") Text(\"\\\"ada\\\"\")\n\
             Text(\"o2\") Text(\"ada\") Text(\"\\\"ada\\\"\")",
        ),
    ] {
        site.write("pipeline.yaml", manifest(&[&[("items", query, more)], &others[..]].concat()));
        let config = worker.reload().await;
        assert_eq!(config["lastReload"]["error"], Value::Null, "{config}");
        let shown = || {
            let columns: Vec<String> =
                ask_json(&file, "SELECT trim(name || ' ' || type) AS c FROM pragma_table_info('items')")
                    .iter()
                    .map(|row| row["c"].as_str().expect("a text").to_owned())
                    .collect();
            format!("{}\n{}", columns.join(" | "), ask(&file, "SELECT * FROM items ORDER BY id").join("\n"))
        };
        until("the new rows", async || (shown() == expected).then_some(())).await;
    }
    assert_eq!(ask(&file, "SELECT id FROM items_next ORDER BY id"), ["Text(\"o1\")", "Text(\"o2\")"]);
    // A join that is removed leaves its table; one that comes back under its name removes the rows that are gone.
    site.write("pipeline.yaml", manifest(&[("other", "SELECT key AS id FROM orders", "")]));
    worker.reload().await;
    worker.ingest().put("orders", "o1", Value::Null).await;
    assert_eq!(ask(&file, "SELECT id FROM items ORDER BY id"), ["Text(\"o1\")", "Text(\"o2\")"]);
    site.write("pipeline.yaml", manifest(&[("items", "SELECT key AS id FROM orders", "")]));
    worker.reload().await;
    until("what has gone meanwhile to go", async || {
        (ask(&file, "SELECT id FROM items ORDER BY id") == ["Text(\"o2\")"]).then_some(())
    })
    .await;
    worker.stop().await;
}

#[tokio::test]
async fn tables_of_somebody_else_are_left_alone() {
    let site = WorkerSite::with(&manifest(&[("items", ITEMS, "")]));
    let file = open(&site.path().join("out.db"));
    file.execute_batch("CREATE TABLE items (precious); INSERT INTO items VALUES (1)")
        .expect("a table can be made");
    let worker = site.start().await;
    worker.ingest().send(&[order("o1", "ada", 1.0)]).await;
    let problem = until("the complaint", async || {
        worker.status().await["sinks"]["tables"]["lastError"].as_str().map(str::to_owned)
    })
    .await;
    expect!["out.db: there is a table items already that is none of ours, and it stays untouched; rename the join, or write another sqlite.path"]
        .assert_eq(&problem);
    assert_eq!(ask(&file, "SELECT * FROM items"), ["Integer(1)"]);
    // Once the other table is out of the way, all goes on.
    file.execute_batch("ALTER TABLE items RENAME TO precious").expect("a table can be renamed");
    until("the table", async || (!columns(&file, "items").is_empty()).then_some(())).await;
    until("the row", async || {
        (ask(&file, "SELECT count(*) FROM items WHERE id = 'o1'") == ["Integer(1)"]).then_some(())
    })
    .await;
    worker.stop().await;
}

#[tokio::test]
async fn a_file_that_cannot_be_is_refused() {
    let mut said = String::new();
    let mut say = |ended: litejoin_tests::worker::Ended| {
        let last = ended.stderr.lines().last().unwrap_or_default();
        said += &format!("{} {last}\n", ended.code.expect("a code"));
    };
    for path in ["absent/out.db", "data/results.db"] {
        let site = WorkerSite::with(&manifest(&[("items", ITEMS, "")]).replace("out.db", path));
        say(site.run([]).end().await);
    }
    let twice = manifest(&[("items", ITEMS, "")]).replace(
        "    - {name: live",
        "    - {name: more, joins: [items], sqlite: {path: out.db}}\n    - {name: live",
    );
    say(WorkerSite::with(&twice).command(["validate", "-f", "pipeline.yaml"]).end().await);
    expect![[r#"
        1 error: sink tables: sqlite.path: absent/out.db: its folder can't be opened (No such file or directory (os error 2)); make it first
        1 error: sink tables: sqlite.path: data/results.db: is in the data directory, whose files are the worker's own; write another folder
        2 pipeline.yaml:14: spec.sinks[1].sqlite.path: sinks "tables" and "more" both write this file; give one another, or let one take all joins
    "#]]
    .assert_eq(&said);
}

#[tokio::test]
async fn an_infinite_number_is_stored_as_such() {
    let query = "SELECT key AS id, payload->>'v' * 10 AS v FROM orders";
    let site = WorkerSite::with(&manifest(&[("items", query, "")]));
    let worker = site.start().await;
    let orders = [("o1", 1e308), ("o2", -1e308), ("o3", 1.0)];
    worker.ingest().send(&orders.map(|(key, v)| message("orders", key, json!({"v": v})))).await;
    let file = until("the file", async || {
        let file = site.path().join("out.db");
        file.is_file().then(|| open(&file)).filter(|file| columns(file, "items").len() > 1)
    })
    .await;
    settled(&file, "SELECT 1 WHERE (SELECT count(*) FROM items) = 3").await;
    assert_eq!(
        ask(&file, "SELECT id, v FROM items ORDER BY id"),
        ["Text(\"o1\") Real(inf)", "Text(\"o2\") Real(-inf)", "Text(\"o3\") Real(10.0)"]
    );
    assert_eq!(worker.status().await["sinks"]["tables"]["deadLetters"], 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_column_that_the_sink_has_for_itself_is_refused_before_anything_runs() {
    let site = WorkerSite::with(&manifest(&[("items", "SELECT key AS id, 1 AS _KEY FROM orders", "")]));
    let ended = site.command(["validate", "-f", "pipeline.yaml"]).end().await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    let said = ended.stdout + &ended.stderr;
    let expected = "spec.sinks[0].sqlite: the query \"items\" has a column \"_KEY\", which is where the sink keeps result keys; \
                    give the column another name, or take the join from the sink";
    assert!(said.contains(expected), "{said}");
}

#[tokio::test]
async fn tables_that_were_removed_are_filled_anew() {
    let site = WorkerSite::with(&manifest(&[("items", ITEMS, ""), ("totals", TOTALS, "")]));
    let worker = site.start().await;
    worker.ingest().send(&[order("o1", "ada", 1.0), order("o2", "bob", 2.5)]).await;
    let path = site.path().join("out.db");
    settled(&open(&path), "SELECT 1 FROM items, totals WHERE id = 'o2' AND totals.customer = 'bob'").await;
    worker.stop().await;
    open(&path).execute_batch("DROP TABLE totals").expect("a table can be dropped");
    let worker = site.start().await;
    settled(&open(&path), "SELECT 1 FROM totals WHERE customer = 'ada'").await;
    assert_eq!(ask(&open(&path), "SELECT id FROM items"), ["Text(\"o1\")", "Text(\"o2\")"]);
    worker.stop().await;
    fs::remove_file(&path).expect("the file can be removed");
    let worker = site.start().await;
    let file = open(&path);
    settled(&file, "SELECT 1 FROM items, totals WHERE id = 'o2' AND totals.customer = 'bob'").await;
    assert_eq!(ask(&file, "SELECT id FROM items ORDER BY id"), ["Text(\"o1\")", "Text(\"o2\")"]);
    worker.stop().await;
}
