//! Files that are rotated while they are followed: renamed and made anew, or copied and cut down to nothing, also while the
//! worker is away. Each row of all files is there in the end, and what may be lost is told.

use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use litejoin_tests::oracle::Oracle;
use litejoin_tests::repetition::{chance, seeds};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Worker, WorkerSite};
use rand::RngExt;

const FORMATS: [&str; 2] = ["csv", "ndjson"];

fn site(format: &str) -> WorkerSite {
    WorkerSite::with(&format!(
        r#"
apiVersion: litejoin.io/v1alpha1
kind: Pipeline
metadata: {{name: p}}
spec:
  storage: {{shardCount: 4}}
  admin: {{addr: "127.0.0.1:0"}}
  sources:
    - {{name: input, file: {{path: in.log, format: {format}, topic: rows, keyColumns: [id], follow: true}}}}
  joins:
    - {{name: all_rows, query: "SELECT key, payload FROM rows"}}
"#
    ))
}

/// Rows, each with its number as key and another one of the shared key `last`.
fn rows(format: &str, numbers: impl IntoIterator<Item = u32>) -> String {
    numbers.into_iter().fold(String::new(), |mut rows, n| {
        for id in [n.to_string(), "last".to_owned()] {
            let _ = match format {
                "csv" => writeln!(rows, "{id},{n}"),
                _ => writeln!(rows, r#"{{"id":"{id}","n":{n}}}"#),
            };
        }
        rows
    })
}

/// A file of some rows.
fn file(format: &str, numbers: impl IntoIterator<Item = u32>) -> String {
    let header = if format == "csv" { "id,n\n" } else { "" };
    format!("{header}{}", rows(format, numbers))
}

fn append(site: &WorkerSite, name: &str, text: &str) {
    write(site, name, OpenOptions::new().append(true), text);
}

/// Makes a file, or cuts down to nothing the one that is there, and writes to it.
fn create(site: &WorkerSite, name: &str, text: &str) {
    write(site, name, OpenOptions::new().create(true).write(true).truncate(true), text);
}

/// Writes, a second later than before by the times of files: the clock of a file system has ticks.
fn write(site: &WorkerSite, name: &str, how: &OpenOptions, text: &str) {
    static SECONDS: AtomicU64 = AtomicU64::new(1_800_000_000);
    let mut file = how.open(site.path().join(name)).expect("the file can be opened");
    file.write_all(text.as_bytes()).expect("a file can be written");
    let modified = Duration::from_secs(SECONDS.fetch_add(1, Ordering::Relaxed));
    file.set_modified(SystemTime::UNIX_EPOCH + modified).expect("a file has a time");
}

fn rename(site: &WorkerSite, from: &str, to: &str) {
    fs::rename(site.path().join(from), site.path().join(to)).expect("a file can be renamed");
}

async fn has(worker: &Worker, rows: u64) {
    until(&format!("{rows} rows"), async || {
        (worker.status().await["sources"]["input"]["accepted"].as_u64() >= Some(rows)).then_some(())
    })
    .await;
}

/// Stops the worker, and holds what it has to these numbers, the last of which was written last. Returns its warnings.
async fn stopped(site: &WorkerSite, worker: Worker, numbers: impl IntoIterator<Item = u32>) -> Vec<String> {
    let status = worker.status().await;
    assert_eq!(status["sources"]["input"]["refused"], 0, "{status}");
    let log = worker.stop().await.stderr;
    let oracle = Oracle::read(&site.data_dir(), ["rows"]);
    let numbers: Vec<u32> = numbers.into_iter().collect();
    let keys = numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let found =
        "SELECT group_concat(key ORDER BY CAST(key AS INTEGER)) AS keys FROM rows WHERE key <> 'last'";
    assert_eq!(oracle.value(found), keys, "{log}");
    let last = oracle.value("SELECT CAST(payload->>'n' AS INTEGER) AS n FROM rows WHERE key = 'last'");
    assert_eq!(Some(&last), numbers.last().map(|n| (*n).into()).as_ref(), "{log}");
    log.lines().filter(|line| line.contains(r#""WARN""#)).map(str::to_owned).collect()
}

#[tokio::test]
async fn a_renamed_file_is_read_to_its_end_and_then_the_new_one() {
    for format in FORMATS {
        let site = site(format);
        create(&site, "in.log", &file(format, 1..=3));
        let worker = site.start().await;
        has(&worker, 6).await;
        rename(&site, "in.log", "in.log.1");
        create(&site, "in.log", "");
        // The program that writes has not gone over to the new file yet.
        append(&site, "in.log.1", &rows(format, 4..=5));
        has(&worker, 10).await;
        append(&site, "in.log.1", &rows(format, [6]));
        append(&site, "in.log", &file(format, 7..=8));
        has(&worker, 16).await;
        // Two rotations at once.
        rename(&site, "in.log", "in.log.2");
        create(&site, "in.log", &file(format, 9..=10));
        has(&worker, 20).await;
        assert_eq!(stopped(&site, worker, 1..=10).await, [""; 0]);
    }
}

#[tokio::test]
async fn files_that_are_rotated_while_the_source_is_slow_are_all_read() {
    let site = site("ndjson");
    let manifest = fs::read_to_string(site.path().join("pipeline.yaml")).expect("the manifest is there");
    site.write("pipeline.yaml", manifest.replace("follow: true", "follow: true, rate: 2000"));
    create(&site, "in.log", &file("ndjson", 0..6_000));
    let worker = site.start().await;
    has(&worker, 1).await;
    for n in 0..3 {
        rename(&site, "in.log", &format!("in.log.{n}"));
        create(&site, "in.log", &file("ndjson", [6_000 + n]));
        // The source comes to see each file, long before it reads it.
        let handles = format!("/proc/{}/fd", worker.pid());
        until("the new file to be opened", async || {
            let opened = fs::read_dir(&handles).expect("a process has open files").filter_map(Result::ok);
            let targets: Vec<_> = opened.filter_map(|entry| fs::read_link(entry.path()).ok()).collect();
            targets.contains(&site.path().join("in.log").canonicalize().expect("it is there")).then_some(())
        })
        .await;
    }
    has(&worker, 12_006).await;
    assert_eq!(stopped(&site, worker, 0..=6_002).await, [""; 0]);
}

#[tokio::test]
async fn a_file_that_was_rotated_twice_between_two_looks_is_read_too() {
    for format in FORMATS {
        let site = site(format);
        create(&site, "in.log.0", &file(format, [100]));
        create(&site, "in.log", &file(format, [1]));
        let worker = site.start().await;
        has(&worker, 2).await;
        worker.signal("STOP");
        for n in 2..=4 {
            append(&site, "in.log", &rows(format, [10 * n]));
            rename(&site, "in.log", &format!("in.log.{n}"));
            create(&site, "in.log", &file(format, [10 * n + 1]));
        }
        worker.signal("CONT");
        has(&worker, 14).await;
        assert_eq!(stopped(&site, worker, [1, 20, 21, 30, 31, 40, 41]).await, [""; 0]);
    }
}

#[tokio::test]
async fn a_truncated_file_is_read_to_its_end_in_its_copy() {
    for format in FORMATS {
        let site = site(format);
        let (half, rest) = match format {
            "csv" => ("3,", "3\n"),
            _ => ("{\"id\":3,", "\"n\":3}\n"),
        };
        create(&site, "in.log", &(file(format, 1..=2) + half));
        let worker = site.start().await;
        has(&worker, 4).await;
        // Rows that come between the last look of the worker and the copy.
        create(&site, "in.log.1", &(file(format, 1..=2) + half + rest + &rows(format, [4])));
        create(&site, "in.log", "");
        has(&worker, 7).await;
        append(&site, "in.log", &file(format, [5]));
        has(&worker, 9).await;
        assert_eq!(stopped(&site, worker, 1..=5).await, [""; 0]);
    }
}

#[tokio::test]
async fn half_a_row_of_a_truncated_file_is_no_row_and_the_loss_is_told() {
    for (format, half) in [("csv", "9,\"9"), ("csv", "9,9"), ("ndjson", "{\"id\":9,")] {
        let site = site(format);
        create(&site, "in.log", &(file(format, 1..=20) + half));
        let worker = site.start().await;
        has(&worker, 40).await;
        create(&site, "in.log", &file(format, [21]));
        has(&worker, 42).await;
        // Truncated, and longer than before at the next look.
        create(&site, "in.log", &file(format, 22..=122));
        has(&worker, 244).await;
        let numbers = (1..=20).chain(21..=122);
        let warnings = stopped(&site, worker, numbers).await;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("the file was truncated, so rows that were written behind this byte"));
    }
}

#[tokio::test]
async fn files_that_were_rotated_while_the_worker_was_away_are_read_first() {
    for format in FORMATS {
        let site = site(format);
        create(&site, "in.log", &file(format, 1..=3));
        let worker = site.start().await;
        has(&worker, 6).await;
        worker.kill().await;
        append(&site, "in.log", &rows(format, [4]));
        rename(&site, "in.log", "in.log.2");
        create(&site, "in.log.1", &file(format, 5..=6));
        create(&site, "in.log.1.gz", &file(format, [100]));
        create(&site, "other", &file(format, [100]));
        create(&site, "in.log", &file(format, 7..=8));
        let worker = site.start().await;
        // A kill may make it read some rows again, which are not counted for what they are.
        until("the last row", async || {
            worker.log().contains("the file was rotated and is read to its end").then_some(())
        })
        .await;
        has(&worker, 10).await;
        worker.kill().await;
        let worker = site.start().await;
        append(&site, "in.log", &rows(format, [9]));
        has(&worker, 2).await;
        // Cut down to nothing, with a copy beside it.
        worker.kill().await;
        append(&site, "in.log", &rows(format, [10]));
        let whole = fs::read_to_string(site.path().join("in.log")).expect("the file is there");
        create(&site, "in.log-20260131", &whole);
        create(&site, "in.log", &file(format, [11]));
        let worker = site.start().await;
        has(&worker, 4).await;
        assert_eq!(stopped(&site, worker, 1..=11).await, [""; 0]);
    }
}

#[tokio::test]
async fn a_rotated_file_that_is_gone_is_told() {
    for format in FORMATS {
        let site = site(format);
        create(&site, "in.log", &file(format, 1..=3));
        let worker = site.start().await;
        has(&worker, 6).await;
        worker.stop().await;
        create(&site, "in.log", &file(format, 7..=8));
        let worker = site.start().await;
        has(&worker, 4).await;
        let warnings = stopped(&site, worker, (1..=3).chain(7..=8)).await;
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains(
            "is no longer in its folder, so rows that were written to it behind this byte may be lost"
        ));
        assert!(warnings[0].contains(r#""byte":"#));
    }
}

#[tokio::test]
async fn killed_again_and_again_while_its_file_is_rotated() {
    for seed in seeds(3, 30) {
        let mut chance = chance(seed);
        let format = FORMATS[chance.random_range(0..2)];
        let site = site(format);
        create(&site, "in.log", &file(format, [0]));
        let worker = site.start().await;
        // A source that knows no file yet has none to look for.
        has(&worker, 2).await;
        let mut worker = Some(worker);
        let (mut next, mut rotations) = (1, 0);
        for _ in 0..30 {
            match chance.random_range(0..6) {
                0 => match worker.take() {
                    Some(worker) => drop(worker.kill().await),
                    None => worker = Some(site.start().await),
                },
                1 => {
                    rotations += 1;
                    rename(&site, "in.log", &format!("in.log.{rotations}"));
                    create(&site, "in.log", &file(format, [next]));
                    next += 1;
                }
                _ => {
                    let count = chance.random_range(1..300);
                    append(&site, "in.log", &rows(format, next..next + count));
                    next += count;
                }
            }
        }
        let worker = match worker {
            Some(worker) => worker,
            None => site.start().await,
        };
        append(&site, "in.log", &rows(format, [next]));
        until(&format!("the last row, seed {seed}"), async || {
            let oracle = Oracle::read(&site.data_dir(), ["rows"]);
            (oracle.value(&format!("SELECT count(*) AS n FROM rows WHERE key = '{next}'")) == 1).then_some(())
        })
        .await;
        let warnings = stopped(&site, worker, 0..=next).await;
        assert_eq!(warnings, [""; 0], "seed {seed}");
    }
}
