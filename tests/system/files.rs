//! File sources: CSV and NDJSON, standard input, rate and follow, bad rows, and where a restart goes on.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;

use expect_test::expect;
use litejoin_tests::oracle::Oracle;
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::results::Event;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use rand::RngExt;
use serde_json::{Value, json};

/// A pipeline whose source `input` reads a file as `file` says, and that prints every order.
fn manifest(file: &str) -> String {
    format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 4}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - {{name: input, file: {{{file}}}}}
  joins:
    - {{name: all_orders, query: "SELECT key, payload FROM orders", sinks: [console]}}
  sinks:
    - {{name: console, stdout: {{}}}}
"#
    )
}

/// Key and payload of every result, in the order of keys.
fn rows(stdout: &str) -> String {
    let events = stdout.lines().map(Event::read);
    let mut rows: Vec<String> = events
        .map(|event| format!("{} {}\n", event.key, event.rows[0]["payload"].as_str().unwrap_or("-")))
        .collect();
    rows.sort();
    rows.concat()
}

/// Runs to the end of the input, and returns the results and what the log complains of.
async fn once(site: &WorkerSite) -> (String, String) {
    let ended = site.run(["--once"]).end().await;
    let has_refused = ended.stderr.contains("refused a row");
    assert_eq!(ended.code, Some(i32::from(has_refused)), "{}", ended.stderr);
    (rows(&ended.stdout), complaints(&ended.stderr))
}

/// Warnings and errors of a log, without their times.
fn complaints(stderr: &str) -> String {
    let mut said = String::new();
    for line in stderr.lines() {
        let Ok(Value::Object(mut line)) = serde_json::from_str(line) else { continue };
        if line["level"] != "INFO" {
            line.remove("timestamp");
            let _ = writeln!(said, "{}", Value::Object(line));
        }
    }
    said
}

async fn accepted(worker: &Worker) -> u64 {
    worker.status().await["sources"]["input"]["accepted"].as_u64().expect("a counter is a number")
}

#[tokio::test]
async fn csv_with_quotes_numbers_nulls_and_a_key_of_two_columns() {
    let site = WorkerSite::with(&manifest(
        r#"path: in.csv, topic: orders, keyColumns: [day, id], nullValues: ["NA", ""]"#,
    ));
    site.write("in.csv", "id,day,text,amount\n1,5,\"a, \"\"b\"\"\nc\",1.50\n2,5,NA,007\r\n3,6,,-1e3\n");
    let (rows, complaints) = once(&site).await;
    expect![[r#"
        "5|1" {"id":"1","day":"5","text":"a, \"b\"\nc","amount":"1.50"}
        "5|2" {"id":"2","day":"5","text":null,"amount":"007"}
        "6|3" {"id":"3","day":"6","text":null,"amount":"-1e3"}
    "#]]
    .assert_eq(&(rows + &complaints));
    // A second run prints nothing.
    assert_eq!(once(&site).await, (String::new(), String::new()));
}

#[tokio::test]
async fn csv_fields_are_text_unless_their_column_has_a_type() {
    let site = WorkerSite::with(&manifest(
        "path: in.csv, topic: orders, keyColumns: [iccid], types: {count: integer, price: real, paid: boolean, more: json}",
    ));
    site.write(
        "in.csv",
        "iccid,zip,sku,count,price,paid,more\n89014103211118510720,01569,1e3,007,5,TRUE,\"{\"\"a\"\": [1]}\"\n\
         89014103211118510721,94107,12E4,,1.50,false,\n\n89014103211118510722,1,2,many,5,true,1\n\
         89014103211118510723,1,2,3,1e400,true,1\n",
    );
    let (rows, complaints) = once(&site).await;
    expect![[r#"
        "89014103211118510720" {"iccid":"89014103211118510720","zip":"01569","sku":"1e3","count":7,"price":5.0,"paid":true,"more":{"a": [1]}}
        "89014103211118510721" {"iccid":"89014103211118510721","zip":"94107","sku":"12E4","count":null,"price":1.50,"paid":false,"more":null}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 5","reason":"column \"count\": got \"many\", allowed is a whole number of 64 bits; give the column another type, or name the value in nullValues","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 6","reason":"column \"price\": got \"1e400\", allowed is a number; give the column another type, or name the value in nullValues","source":"input"}
    "#]].assert_eq(&(rows + &complaints));
}

#[tokio::test]
async fn types_of_csv_columns_are_inferred_from_their_first_rows_and_kept() {
    let file =
        "path: in.csv, topic: orders, keyColumns: [id], types: {code: text}, nullValues: [NA], infer: column";
    let site = WorkerSite::with(&manifest(file));
    let first = "id,zip,code,count,price,paid,none\na,01569,1,NA,1.5,true,NA\nb,94107,2,7,20.0,false,NA\n";
    site.write("in.csv", first);
    let ended = site.run(["--once"]).end().await;
    expect![[r#"
        "a" {"id":"a","zip":"01569","code":"1","count":null,"price":1.5,"paid":true,"none":null}
        "b" {"id":"b","zip":"94107","code":"2","count":7,"price":20.0,"paid":false,"none":null}
    "#]]
    .assert_eq(&rows(&ended.stdout));
    let told = "read as: count integer, paid boolean, price real; all other columns are text";
    assert!(ended.stderr.contains(told), "{}", ended.stderr);
    // The column zip would be of whole numbers by these rows, and count would be text.
    let later = "c,1,3,08,1.50,TRUE,5\nd,2,4,8,2.5,true,6\ne,3,5,many,5,0,7\n";
    site.write("in.csv", format!("{first}{later}"));
    let (rows, complaints) = once(&site).await;
    expect![[r#"
        "c" {"id":"c","zip":"1","code":"3","count":"08","price":"1.50","paid":"TRUE","none":"5"}
        "d" {"id":"d","zip":"2","code":"4","count":8,"price":2.5,"paid":true,"none":"6"}
        "e" {"id":"e","zip":"3","code":"5","count":"many","price":"5","paid":"0","none":"7"}
        {"column":"count","got":"08","level":"WARN","message":"kept a value as text, since its column was inferred to be of another type; told once for each column; give the column a type in types","position":"in.csv: line 4","read_as":"integer","source":"input"}
        {"column":"price","got":"1.50","level":"WARN","message":"kept a value as text, since its column was inferred to be of another type; told once for each column; give the column a type in types","position":"in.csv: line 4","read_as":"real","source":"input"}
        {"column":"paid","got":"TRUE","level":"WARN","message":"kept a value as text, since its column was inferred to be of another type; told once for each column; give the column a type in types","position":"in.csv: line 4","read_as":"boolean","source":"input"}
    "#]]
    .assert_eq(&(rows + &complaints));
}

#[tokio::test]
async fn inferred_types_are_the_same_after_a_kill_in_the_middle() {
    const ROWS: usize = 20_000;
    // Only the first 1,000 rows show what `code` is, and only those behind them have an odd `n`.
    let file = (1..=ROWS).fold("id,code,n\n".to_owned(), |mut file, n| {
        let (code, odd) =
            (if n == 1_000 { "x" } else { "1" }, if n > 1_000 && n % 2 == 0 { "+" } else { "" });
        let _ = writeln!(file, "k{n},{code},{odd}{n}");
        file
    });
    let spec = "path: in.csv, topic: orders, keyColumns: [id], infer: column";
    let site = WorkerSite::with(&manifest(&format!("{spec}, rate: 1000")));
    site.write("in.csv", file);
    let worker = site.start().await;
    until("more rows than decide", async || (accepted(&worker).await > 1_100).then_some(())).await;
    worker.kill().await;
    site.write("pipeline.yaml", manifest(spec));
    let (_, complaints) = once(&site).await;
    assert_eq!(complaints.lines().count(), 1, "{complaints}");
    let oracle = Oracle::read(&site.data_dir(), ["orders"]);
    let types = "SELECT group_concat(kind || ' ' || rows, ', ' ORDER BY kind) AS types FROM (SELECT
        json_type(payload, '$.code') || ' ' || json_type(payload, '$.n') AS kind, count(*) AS rows FROM orders GROUP BY 1)";
    assert_eq!(oracle.value(types), "text integer 10500, text text 9500");
}

#[tokio::test]
async fn inferred_types_of_a_file_that_is_followed_outlive_its_rotation() {
    let spec = "path: in.csv, topic: orders, keyColumns: [id], follow: true, infer: column";
    let site = WorkerSite::with(&manifest(spec));
    let at = |name: &str| site.path().join(name);
    let append = |text: &str| {
        let mut file = OpenOptions::new().append(true).open(at("in.csv")).expect("the file is there");
        file.write_all(text.as_bytes()).expect("a file can be written");
    };
    // A header has no values, and half a row is none: neither says what a column is.
    site.write("in.csv", "id,code,n\n");
    let worker = site.start().await;
    append("a,x,5\nb,1,-");
    worker.wait_for_stdout(1).await;
    append("7\n");
    worker.wait_for_stdout(2).await;
    std::fs::rename(at("in.csv"), at("in.csv.1")).expect("a file can be renamed");
    site.write("in.csv", "id,code,n,more\nc,1,many,1\nd,2,8,2\n");
    let before = worker.wait_for_stdout(4).await;
    worker.kill().await;
    std::fs::remove_file(at("in.csv.1")).expect("a file can be removed");
    append("e,3,9,x\n");
    let worker = site.start().await;
    until("the last row", async || {
        worker.stdout().iter().any(|line| Event::read(line).key == "e").then_some(())
    })
    .await;
    let after = worker.stdout();
    worker.stop().await;
    let mut all: Vec<String> = before.iter().chain(&after).map(|line| rows(line)).collect();
    all.sort();
    all.dedup();
    expect![[r#"
        "a" {"id":"a","code":"x","n":5}
        "b" {"id":"b","code":"1","n":-7}
        "c" {"id":"c","code":"1","n":"many","more":1}
        "d" {"id":"d","code":"2","n":8,"more":2}
        "e" {"id":"e","code":"3","n":9,"more":"x"}
    "#]]
    .assert_eq(&all.concat());
}

#[tokio::test]
async fn standard_input_is_held_back_until_the_types_of_its_columns_are_known() {
    let site = WorkerSite::with(&manifest(
        "path: \"-\", format: csv, topic: orders, keyColumns: [id], infer: column",
    ));
    let mut worker = site.run(["--once"]).with_stdin().start().await;
    let mut stdin = worker.stdin();
    writeln!(stdin, "id,n,code\na,5,1").expect("somebody reads");
    until("the first row to be held", async || {
        worker
            .log()
            .contains("holding the first rows back until 1000 are there or the input ends")
            .then_some(())
    })
    .await;
    writeln!(stdin, "b,6,x").expect("somebody reads");
    assert_eq!(accepted(&worker).await, 0);
    drop(stdin);
    let ended = worker.ended().await;
    expect![[r#"
        "a" {"id":"a","n":5,"code":"1"}
        "b" {"id":"b","n":6,"code":"x"}
    "#]]
    .assert_eq(&rows(&ended.stdout));
    // The types are known to the next run, and rows come one by one.
    let mut worker = site.run(["--once"]).with_stdin().start().await;
    let mut stdin = worker.stdin();
    writeln!(stdin, "id,n,code\nc,many,1").expect("somebody reads");
    let lines = worker.wait_for_stdout(1).await;
    assert_eq!(rows(&lines[0]), "\"c\" {\"id\":\"c\",\"n\":\"many\",\"code\":\"1\"}\n");
    drop(stdin);
    assert_eq!(worker.ended().await.code, Some(0));
}

#[tokio::test]
async fn keys_of_several_columns_do_not_run_into_each_other() {
    for (name, lines) in [
        ("in.csv", "a,b,n\na|b,c,1\na,b|c,2\na\\,b,3\na,\\b,4\n"),
        (
            "in.ndjson",
            r#"{"a":"a|b","b":"c"}
{"a":"a","b":"b|c"}
{"a":"a\\","b":"b"}
{"a":"a","b":"\\b"}"#,
        ),
    ] {
        let site = WorkerSite::with(&manifest(&format!("path: {name}, topic: orders, keyColumns: [a, b]")));
        site.write(name, lines);
        let (rows, complaints) = once(&site).await;
        let keys: Vec<&str> = rows.lines().filter_map(|row| row.split(' ').next()).collect();
        let expected = [r#""a\\\\|b""#, r#""a\\|b|c""#, r#""a|\\\\b""#, r#""a|b\\|c""#];
        assert_eq!((keys.as_slice(), complaints.as_str()), (&expected[..], ""), "{name}");
    }
}

#[tokio::test]
async fn texts_that_are_no_document_a_line_say_what_to_do() {
    let site = WorkerSite::with(&manifest("path: in.ndjson, topic: orders, keyColumns: [id]"));
    site.write(
        "in.ndjson",
        b"\xef\xbb\xbf{\"id\":\"a byte order mark\"}\n{\n  \"id\": 1,\n[{\"id\":1},{\"id\":2}]\n\x1f\x8b\x08\n{\"id\":\"cut\\ud83d\"}\n"
            .as_slice(),
    );
    let (rows, complaints) = once(&site).await;
    expect![[r#"
        "a byte order mark" {"id":"a byte order mark"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.ndjson: line 2","reason":"a part of a JSON document; write each document on one line (jq -c . does, and jq -c '.[]' for an array)","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.ndjson: line 3","reason":"a part of a JSON document; write each document on one line (jq -c . does, and jq -c '.[]' for an array)","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.ndjson: line 4","reason":"an array, so it has no field \"id\" for the key; write each document on one line (jq -c . does, and jq -c '.[]' for an array)","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.ndjson: line 5","reason":"packed by gzip; send it unpacked","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.ndjson: line 6","reason":"\\ud83d at byte 10 has no other half, so it is no Unicode; send the whole character, or leave it out","source":"input"}
    "#]].assert_eq(&(rows + &complaints));
}

#[tokio::test]
async fn bad_rows_of_csv_are_refused_and_the_others_go_on() {
    let site = WorkerSite::with(&manifest("path: in.csv, topic: orders, keyColumns: [id]"));
    site.write(
        "in.csv",
        b"id,name\n1,Ada\n2\n3,Grace,more\n,nobody\n4,\xff\xfe\n5,\"Barbara\"\n6,last".as_slice(),
    );
    let (rows, complaints) = once(&site).await;
    expect![[r#"
        "1" {"id":"1","name":"Ada"}
        "5" {"id":"5","name":"Barbara"}
        "6" {"id":"6","name":"last"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 3","reason":"1 fields, and the header has 2","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 4","reason":"3 fields, and the header has 2","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 5","reason":"field \"id\" is needed for the key, and it is missing or null","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 6","reason":"no UTF-8 (first bad byte at 0)","source":"input"}
    "#]].assert_eq(&(rows + &complaints));
}

#[tokio::test]
async fn a_stray_quote_costs_its_row_and_no_other() {
    // Together these rows are longer than the longest row that is allowed.
    const ROWS: usize = 9_000;
    let text = "x".repeat(1_000);
    let many = (0..ROWS).fold(String::new(), |mut rows, n| {
        let _ = writeln!(rows, "k{n},{text}");
        rows
    });
    // A bad row far from the end of the file, and one near it.
    let file = format!("id,name\n1,\"stray\n{many}2,Ada\n3,\"stray\n4,Grace\n");
    let site = WorkerSite::with(&manifest("path: in.csv, topic: orders, keyColumns: [id]"));
    site.write("in.csv", &file);
    let worker = site.start().await;
    until("the first refusal", async || {
        (worker.status().await["sources"]["input"]["refused"] == 1).then_some(())
    })
    .await;
    let status = until("the end of the file", async || Some(worker.status().await).filter(is_finished)).await;
    assert_eq!(status["sources"]["input"]["refused"], 2, "{status}");
    assert_eq!(status["sources"]["input"]["accepted"], ROWS + 2, "{status}");
    let complaints = complaints(&worker.stop().await.stderr);
    let (first, last) = complaints.trim_end().split_once('\n').expect("two refusals");
    expect![[r#"{"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 2","reason":"the row has no end within 8396800 bytes; see whether it opens a quote and does not close it","source":"input"}"#]].assert_eq(first);
    expect![[r#"{"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 9004","reason":"the row opens a quote and does not close it","source":"input"}"#]].assert_eq(last);
}

#[tokio::test]
async fn ndjson_with_a_topic_and_a_key_of_its_fields() {
    // The format counts, not the suffix of the name.
    let site = WorkerSite::with(&manifest("path: in.csv, format: ndjson, topic: orders, keyColumns: [id]"));
    site.write(
        "in.csv",
        b"{\"id\":1,\"n\":1}\n\n{\"id\":\"a\",\"n\":2}\n{\"n\":3}\n[1]\nnonsense\n{\"id\":\"\xff\"}\n{\"id\":\"b\"}".as_slice(),
    );
    let (rows, complaints) = once(&site).await;
    expect![[r#"
        "1" {"id":1,"n":1}
        "a" {"id":"a","n":2}
        "b" {"id":"b"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 4","reason":"field \"id\" is needed for the key, and it is missing or null","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 5","reason":"an array, so it has no field \"id\" for the key; write each document on one line (jq -c . does, and jq -c '.[]' for an array)","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 6","reason":"no JSON: expected ident at line 1 column 2","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.csv: line 7","reason":"no UTF-8 (first bad byte at 7)","source":"input"}
    "#]].assert_eq(&(rows + &complaints));
}

#[tokio::test]
async fn ndjson_whose_lines_name_their_topic() {
    let site = WorkerSite::with(&manifest("path: in.ndjson, format: ndjson"));
    site.write(
        "in.ndjson",
        r#"{"topic":"orders","key":"a","payload":{"n":1}}
{"topic":"orders","key":"b","payload":"{\"n\":2}"}
{"topic":"all_orders","key":"b","payload":1}
{"topic":"orders","key":"c","payload":3,"timestamp":1700000000000}
{"topic":"orders","key":"a","payload":null}
{"topic":"other","key":"a","payload":1}
"#,
    );
    let (rows, complaints) = once(&site).await;
    expect![[r#"
        "b" {"n":2}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.ndjson: line 3","reason":"topic \"all_orders\" is the name of a join; send to another topic","source":"input"}
        {"level":"WARN","message":"refused a row; it is in the dead-letter queue","position":"in.ndjson: line 4","reason":"timestamp 1700000000000 is no time in seconds since 1970; milliseconds must be divided by 1000","source":"input"}
    "#]].assert_eq(&(rows + &complaints));
}

#[tokio::test]
async fn a_source_that_can_not_be_read_keeps_the_worker_from_starting() {
    let mut said = String::new();
    for (file, content) in [
        ("path: nowhere.csv, topic: orders, keyColumns: [id]", ""),
        ("path: ., format: csv, topic: orders, keyColumns: [id]", ""),
        ("path: in.csv, topic: orders, keyColumns: [order_id]", "id,name\n1,Ada\n"),
        ("path: in.csv, topic: orders, keyColumns: [id]", ""),
        ("path: in.csv, topic: orders, keyColumns: [id]", "id,name,id\n1,Ada,2\n"),
        ("path: in.csv, topic: orders, keyColumns: [id]", "id,name,\n1,Ada,2\n"),
        ("path: in.csv, topic: orders, keyColumns: [id], types: {amount: real}", "id,name\n1,Ada\n"),
        ("path: in.csv, topic: orders, keyColumns: [id]", "\u{feff}id,name\n1,Ada\n"),
    ] {
        let site = WorkerSite::with(&manifest(file));
        site.write("in.csv", content);
        let ended = site.run(["--once"]).end().await;
        let _ = writeln!(
            said,
            "{:?} {}{}",
            ended.code,
            rows(&ended.stdout),
            ended.stderr.lines().filter(|line| !line.starts_with('{')).collect::<String>()
        );
    }
    expect![[r#"
        Some(1) error: source input: nowhere.csv: there is no such file; file.path is relative to the folder of its manifest
        Some(1) error: source input: .: is a folder; file.path must name a file
        Some(1) error: source input: in.csv: no column "order_id" for the key; its columns are id, name
        Some(1) error: source input: in.csv: the file is empty, and its first line must name the columns
        Some(1) error: source input: in.csv: line 1 names columns 1 and 3 both "id"; rename one
        Some(1) error: source input: in.csv: line 1 gives column 3 no name; name it, or take it out
        Some(1) error: source input: in.csv: no column "amount" for types; its columns are id, name
        Some(0) "1" {"id":"1","name":"Ada"}

    "#]].assert_eq(&said);
}

#[tokio::test]
async fn standard_input_is_read_as_it_comes() {
    let site = WorkerSite::with(&manifest(r#"path: "-", format: ndjson"#));
    let mut worker = site.run(["--once"]).with_stdin().start().await;
    let mut stdin = worker.stdin();
    for n in 1..=3 {
        writeln!(stdin, r#"{{"topic":"orders","key":"k{n}","payload":{n}}}"#).expect("somebody reads");
        let lines = worker.wait_for_stdout(n).await;
        assert_eq!(Event::read(&lines[n - 1]).key, format!("k{n}"), "it comes before the input ends");
    }
    drop(stdin);
    assert_eq!(worker.ended().await.code, Some(0));
}

#[tokio::test]
async fn a_file_that_is_followed_goes_on_where_it_grows() {
    let site = WorkerSite::with(&manifest("path: in.csv, topic: orders, keyColumns: [id], follow: true"));
    site.write("in.csv", "id,name\n1,Ada\n");
    let append = |text: &str| {
        let mut file =
            OpenOptions::new().append(true).open(site.path().join("in.csv")).expect("the file is there");
        file.write_all(text.as_bytes()).expect("a file can be written");
    };
    let worker = site.start().await;
    worker.wait_for_stdout(1).await;
    append("2,Grace\n3,Bar");
    worker.wait_for_stdout(2).await;
    append("bara\n");
    let lines = worker.wait_for_stdout(3).await;
    assert_eq!(
        Event::read(&lines[2]).rows[0]["payload"],
        r#"{"id":"3","name":"Barbara"}"#,
        "half a row is no row"
    );
    worker.kill().await;
    append("4,Edith\n");
    let worker = site.start().await;
    let lines = worker.wait_for_stdout(1).await;
    let keys: Vec<Value> = lines.iter().map(|line| Event::read(line).key).collect();
    assert!(keys.contains(&json!("4")), "{keys:?}");
    let status = until("the new row to be stored", async || {
        Some(worker.status().await).filter(|status| status["topics"]["orders"]["created"] == 1)
    })
    .await;
    assert_eq!(status["sources"]["input"]["refused"], 0);
    worker.stop().await;
    let oracle = Oracle::read(&site.data_dir(), ["orders"]);
    assert_eq!(oracle.value("SELECT group_concat(key ORDER BY key) AS keys FROM orders"), "1,2,3,4");
}

#[tokio::test]
async fn a_file_that_was_nearly_empty_is_known_again_after_it_has_grown() {
    for begin in ["", "{\"key\":\"k\",\"n\":1}\n", "{\"key\":\"k\",\"n\":1}\n{\"key\":\"other\","] {
        let with_http = "  sources:\n    - {name: ingest, http: {addr: \"127.0.0.1:0\", topics: [orders]}}";
        let file = "path: in.ndjson, topic: orders, keyColumns: [key], follow: true";
        let site = WorkerSite::with(&manifest(file).replace("  sources:", with_http));
        site.write("in.ndjson", begin);
        let append = |text: &str| {
            let mut file = OpenOptions::new()
                .append(true)
                .open(site.path().join("in.ndjson"))
                .expect("the file is there");
            file.write_all(text.as_bytes()).expect("a file can be written");
        };
        let worker = site.start().await;
        append(if begin.is_empty() { "{\"key\":\"k\",\"n\":1}\n" } else { "" });
        worker.wait_for_stdout(1).await;
        append(if begin.ends_with(',') { "\"n\":1}\n" } else { "{\"key\":\"other\",\"n\":1}\n" });
        worker.wait_for_stdout(2).await;
        worker.ingest().put("orders", "k", json!({"n": 2})).await;
        worker.stop().await;
        append("{\"key\":\"last\",\"n\":1}\n");
        let worker = site.start().await;
        let lines = worker.wait_for_stdout(1).await;
        assert_eq!(Event::read(&lines[0]).key, "last", "{begin:?}");
        worker.stop().await;
        let oracle = Oracle::read(&site.data_dir(), ["orders"]);
        assert_eq!(oracle.value("SELECT payload->>'n' AS n FROM orders WHERE key = 'k'"), 2, "{begin:?}");
    }
}

#[tokio::test]
async fn a_rate_spreads_rows_over_time() {
    const ROWS: u64 = 10_000;
    let site = WorkerSite::with(&manifest("path: in.csv, topic: orders, keyColumns: [id], rate: 2"));
    site.write("in.csv", history(ROWS));
    let worker = site.start().await;
    // The first rows come while the others have more than an hour to wait.
    worker.wait_for_stdout(2).await;
    assert!(accepted(&worker).await < ROWS, "all rows came at once");
    assert_eq!(worker.status().await["sources"]["input"]["finished"], false);
    worker.stop().await;
}

/// A file of `count` rows in which each of 100 keys comes again and again, so that order matters.
fn history(count: u64) -> String {
    (0..count).fold(String::from("id,n\n"), |mut file, n| {
        let _ = writeln!(file, "k{},{n}", n % 100);
        file
    })
}

#[tokio::test]
async fn a_killed_worker_goes_on_in_the_file_where_its_data_stops() {
    const ROWS: u64 = 100_000;
    for seed in seeds(2, 20) {
        let mut chance = chance(seed);
        let with_type = r#"path: in.csv, topic: orders, keyColumns: [id], types: {"n": integer}"#;
        let site = WorkerSite::with(&manifest(with_type));
        site.write("in.csv", history(ROWS));
        let mut killed_amid = false;
        for _ in 0..chance.random_range(1..=3) {
            let worker = site.start().await;
            let goal = chance.random_range(1..=ROWS / 4);
            // The file may have fewer rows left than `goal`.
            until("rows to be stored", async || {
                (accepted(&worker).await >= goal || is_finished(&worker.status().await)).then_some(())
            })
            .await;
            killed_amid |= !is_finished(&worker.status().await);
            worker.kill().await;
        }
        let worker = site.start().await;
        let status =
            until("the end of the file", async || Some(worker.status().await).filter(is_finished)).await;
        let read = status["sources"]["input"]["accepted"].as_u64().expect("a counter is a number");
        assert!(read < ROWS, "seed {seed}: {read} rows were read after a restart, which is the whole file");
        worker.stop().await;
        let oracle = Oracle::read(&site.data_dir(), ["orders"]);
        assert_eq!(oracle.value("SELECT count(*) AS n FROM orders"), 100, "seed {seed}");
        let least = oracle.value("SELECT min(payload->>'n') AS n FROM orders");
        assert_eq!(
            least,
            ROWS - 100,
            "seed {seed}: every key has the last of its rows; killed amid: {killed_amid}"
        );
    }
}

fn is_finished(status: &Value) -> bool {
    status["sources"]["input"]["finished"] == true
}

#[tokio::test]
async fn another_file_of_the_same_name_is_read_from_its_start() {
    let site = WorkerSite::with(&manifest("path: in.csv, topic: orders, keyColumns: [id]"));
    site.write("in.csv", "id,n\n1,1\n2,2\n3,3\n");
    assert_eq!(once(&site).await.0.lines().count(), 3);
    site.write("in.csv", "id,n\n4,4\n");
    assert_eq!(once(&site).await.0, "\"4\" {\"id\":\"4\",\"n\":\"4\"}\n");
    // The file is shorter now, with the same beginning.
    site.write("in.csv", "id,n\n1,1\n5,5\n");
    assert_eq!(once(&site).await.0, "\"5\" {\"id\":\"5\",\"n\":\"5\"}\n");
}
