//! One row that affects a million results: the memory for its change, and the delay of other joins.

use std::io::{BufRead, Write as _};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use litejoin_tests::wait::until_moment;

use crate::client::{self, Connection};
use crate::memory::Memory;
use crate::queries::BenchQuery;
use crate::row::Row;
use crate::shop::{CUSTOMERS, ORDERS};
use crate::table::{Figure, spreads};
use crate::worker::{BenchWorker, Pipeline};
use crate::{results, site};

const QUERY: BenchQuery = BenchQuery::W1;

/// A topic and a join of it that are independent of the measured ones.
const BEATS: &str = "beats";
const OTHER: (&str, &str) = ("other", "SELECT key AS id, payload->>'n' AS n FROM beats");

/// Time between two beats.
const PERIOD: Duration = Duration::from_millis(10);

/// How long beats are observed before and after the change.
const QUIET: Duration = Duration::from_secs(3);

/// The number of the last beat.
const LAST: i64 = -1;

/// Options of `bench wide`.
#[derive(Debug, Args)]
pub(crate) struct WideOptions {
    /// Orders of the one customer
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    orders: u64,

    #[command(flatten)]
    site: site::SiteOptions,
}

/// The figures of one round.
struct WideRound {
    applied: Duration,
    quiet_gap: Duration,
    gap: Duration,
    before: Memory,
    memory: Memory,
}

/// Measures the rounds and prints the table.
pub(crate) fn run(options: &WideOptions) -> Result<()> {
    let site = options.site.site()?;
    site.in_run(|run| {
        let pipeline = Pipeline { joins: &[QUERY.join(), OTHER], ..Pipeline::new(site.shard_count) };
        let start = || BenchWorker::start(&site.binary, run, &pipeline);
        writeln!(std::io::stderr(), "storing {} orders of one customer", options.orders)?;
        let rows: Vec<Row> = std::iter::once(customer(0)).chain((0..options.orders).map(order)).collect();
        let worker = start()?;
        let requests = client::requests(&rows, options.site.sending(), worker.ingest()?);
        results::deliver(&worker, QUERY.name(), &requests)?;
        drop((worker, requests, rows));
        let mut rounds = Vec::new();
        for round in 1..=options.site.rounds {
            let worker = start()?;
            let measured = measure(&worker, u64::from(round), options.orders)?;
            measured.report(round)?;
            rounds.push(measured);
        }
        options.print(&rounds)
    })
}

/// Renames the customer once while beats continue.
fn measure(worker: &BenchWorker, round: u64, orders: u64) -> Result<WideRound> {
    let (ingest, live) = (worker.ingest()?, worker.live()?);
    let send = |row: Row| Connection::open(ingest)?.send(&client::request(&[&row], ingest));
    // A row without a change is in the epoch that contains all rows before it.
    results::wait_until_applied(worker, QUERY.name(), send(customer(round - 1))?)?;
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let times = scope.spawn(|| listen(live));
        let beats = scope.spawn(|| beat(ingest, &is_over));
        let begun = Instant::now();
        until_moment(begun + QUIET);
        let before = worker.memory()?;
        let changed = Instant::now();
        let outcome =
            send(customer(round)).and_then(|epoch| results::wait_until_applied(worker, QUERY.name(), epoch));
        let applied = changed.elapsed();
        let memory = worker.memory()?;
        until_moment(Instant::now() + QUIET);
        is_over.store(true, Ordering::Relaxed);
        beats.join().expect("a client does not panic")?;
        outcome?;
        let times = times.join().expect("a client does not panic")?;
        let count = worker.status()?["joins"][QUERY.name()]["resultsChanged"].as_u64();
        ensure!(count == Some(orders), "{count:?} results have changed of {orders}");
        let gap = |is_counted: &dyn Fn(Instant) -> bool| {
            let pairs = times.windows(2).filter(|pair| is_counted(pair[1]));
            pairs.map(|pair| pair[1] - pair[0]).max().context("no event came of the other join")
        };
        Ok(WideRound {
            applied,
            quiet_gap: gap(&|at| at < changed)?,
            gap: gap(&|at| at >= changed)?,
            before,
            memory,
        })
    })
}

/// Updates one row again and again until `is_over`.
fn beat(ingest: SocketAddr, is_over: &AtomicBool) -> Result<()> {
    let mut connection = Connection::open(ingest)?;
    let mut n = 0;
    while !is_over.load(Ordering::Relaxed) {
        let next = Instant::now() + PERIOD;
        n += 1;
        connection.send(&client::request(&[&beat_row(n)], ingest))?;
        until_moment(next);
    }
    connection.send(&client::request(&[&beat_row(LAST)], ingest))?;
    Ok(())
}

/// Returns when the results of the other join arrived, up to the last beat.
fn listen(live: SocketAddr) -> Result<Vec<Instant>> {
    let (_, mut stream) = client::get(live, &format!("/subscribe?join={}", OTHER.0))?;
    let last = format!("\"n\":{LAST}");
    let (mut times, mut line) = (Vec::new(), String::new());
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line)? > 0, "the worker has ended the stream of events");
        if line.starts_with("data:") {
            times.push(Instant::now());
            if line.contains(&last) {
                return Ok(times);
            }
        }
    }
}

fn customer(number: u64) -> Row {
    row(CUSTOMERS, "c0".to_owned(), format!("{{\"id\":\"c0\",\"name\":\"Ada the {number}th\"}}"))
}

fn order(number: u64) -> Row {
    let (cents, note) = (number % 100, "a note of some length, as there are many");
    let payload = format!(
        "{{\"id\":\"o{number:07}\",\"customer_id\":\"c0\",\"amount\":{number}.{cents:02},\"note\":\"{note}\"}}"
    );
    row(ORDERS, format!("o{number:07}"), payload)
}

fn beat_row(n: i64) -> Row {
    row(BEATS, "heart".to_owned(), format!("{{\"n\":{n}}}"))
}

fn row(topic: &'static str, key: String, payload: String) -> Row {
    Row { topic, key: key.into_boxed_str(), payload: Some(payload.into_boxed_str()) }
}

impl WideRound {
    /// Prints a round while others are still to come.
    fn report(&self, round: u32) -> Result<()> {
        let Self { applied, quiet_gap, gap, before, memory } = self;
        writeln!(
            std::io::stderr(),
            "round {round}: applied after {applied:.2?}; the other join stood still for {gap:.0?} ({quiet_gap:.0?} \
             before); peak {:.0} MB ({:.0} before), {:.0} anonymous ({:.0} before)",
            memory.peak_bytes as f64 / 1e6,
            before.peak_bytes as f64 / 1e6,
            memory.anonymous_bytes as f64 / 1e6,
            before.anonymous_bytes as f64 / 1e6,
        )?;
        Ok(())
    }
}

impl WideOptions {
    fn print(&self, rounds: &[WideRound]) -> Result<()> {
        let figures: [Figure<'_, WideRound>; 7] = [
            ("applied, s", 2, &|measured| measured.applied.as_secs_f64()),
            ("other join's longest gap, s", 3, &|measured| measured.gap.as_secs_f64()),
            ("the same before, s", 3, &|measured| measured.quiet_gap.as_secs_f64()),
            ("peak MB", 0, &|measured| measured.memory.peak_bytes as f64 / 1e6),
            ("peak MB before", 0, &|measured| measured.before.peak_bytes as f64 / 1e6),
            ("anonymous MB", 0, &|measured| measured.memory.anonymous_bytes as f64 / 1e6),
            ("anonymous MB before", 0, &|measured| measured.before.anonymous_bytes as f64 / 1e6),
        ];
        let mut out = std::io::stdout().lock();
        let Self { orders, site } = self;
        writeln!(
            out,
            "\n{orders} orders of one customer, {} shards, {} rounds; a beat every {PERIOD:?}.\n",
            site.shards,
            rounds.len(),
        )?;
        out.write_all(spreads(rounds, &figures).as_bytes())?;
        Ok(())
    }
}
