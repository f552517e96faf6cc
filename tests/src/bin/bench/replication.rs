//! The cost of replication: the same rows with and without it, in turns.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use litejoin_tests::results::Results;
use litejoin_tests::stores::Store;
use serde_json::Value;

use crate::measured::{HEADING, Measured, Start, summary};
use crate::queries::BenchQuery;
use crate::row::Row;
use crate::site::{self, BenchSite};
use crate::table::{Spread, layout};
use crate::worker::{BenchWorker, Pipeline};
use crate::{client, results};

const QUERY: BenchQuery = BenchQuery::W1;

/// The longest wait until the replica is complete.
const CATCH_UP_MAX: Duration = Duration::from_secs(120);

/// Pause between two polls of the replica's progress.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);

/// Options of `bench replication`.
#[derive(Debug, Args)]
pub(crate) struct ReplicationOptions {
    /// Changes after the customers
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,

    #[command(flatten)]
    site: site::SiteOptions,
}

/// The last stage that rows pass: into topics, or through the join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Workload {
    Ingest,
    Join,
}

const WAYS: [(Workload, &str, &str); 2] =
    [(Workload::Ingest, "ingest", "… replicated"), (Workload::Join, "w1", "… replicated")];

struct ReplicationSetup<'o> {
    options: &'o ReplicationOptions,
    site: BenchSite,
    runtime: tokio::runtime::Runtime,
    rows: Vec<Row>,
    expected: Results,
}

/// Figures of a run with replication.
#[derive(Debug, Clone, Copy)]
struct After {
    /// Seconds until the replica was complete.
    caught_up: f64,
    /// How long writers were stopped for the last cut.
    held: f64,
    /// The longest WAL, in MB. A WAL that Litestream restarts keeps its length.
    wal: f64,
}

/// Runs the rounds and prints the table; ratios compare with a run without replication.
pub(crate) fn run(options: &ReplicationOptions) -> Result<()> {
    let rows = QUERY.rows(options.events, options.site.seed);
    writeln!(std::io::stderr(), "{} changes; SQLite finds what must come of them", rows.len())?;
    let expected = results::expected(QUERY, &rows);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let setup = ReplicationSetup { options, site: options.site.site()?, runtime, rows, expected };
    let mut heading = HEADING.map(str::to_owned).to_vec();
    heading[2] = "of the same without".to_owned();
    heading.extend(["replica complete after s", "writers rested s", "longest WAL MB"].map(str::to_owned));
    let mut table = vec![heading];
    for (way, plain_name, name) in WAYS {
        let (mut plains, mut runs, mut afters) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=options.site.rounds {
            let (plain, _) = setup.measure(way, None)?;
            plain.report(round, plain_name, None)?;
            let store = setup.runtime.block_on(Store::s3());
            let (measured, after) = setup.measure(way, Some(&store))?;
            measured.report(round, name, Some(&plain))?;
            plains.push(plain);
            runs.push(measured);
            afters.extend(after);
        }
        table.push(summary(plain_name, &plains, None));
        let mut row = summary(name, &runs, Some(&plains));
        row.push(Spread::of(afters.iter().map(|after| after.caught_up)).show(1));
        row.push(Spread::of(afters.iter().map(|after| after.held)).show(3));
        row.push(Spread::of(afters.iter().map(|after| after.wal)).show(0));
        table.push(row);
    }
    let mut out = std::io::stdout().lock();
    let ReplicationOptions { events, site: site::SiteOptions { shards, rounds, connections, batch, .. } } =
        options;
    writeln!(
        out,
        "\n{events} changes, {shards} shards, {rounds} rounds; over HTTP, {connections} connections, {batch} messages a \
         body.\nLitestream and an S3 server run beside the worker on the same cores, and are among the others.\n"
    )?;
    out.write_all(layout(&table).as_bytes())?;
    Ok(())
}

impl ReplicationSetup<'_> {
    fn measure(&self, way: Workload, store: Option<&Store>) -> Result<(Measured, Option<After>)> {
        self.site.in_run(|run| self.measure_in(run, way, store))
    }

    fn measure_in(
        &self,
        run: &Path,
        way: Workload,
        store: Option<&Store>,
    ) -> Result<(Measured, Option<After>)> {
        let joins = [QUERY.join()];
        let joins: &[_] = if way == Workload::Join { &joins } else { &[] };
        let pipeline = Pipeline { joins, store, ..Pipeline::new(self.site.shard_count) };
        let worker = BenchWorker::start(&self.site.binary, run, &pipeline)?;
        if store.is_some() {
            // The first copy is complete before the measurement.
            wait(&worker, |status| status["ready"] == true)?;
        }
        let requests = client::requests(&self.rows, self.options.site.sending(), worker.ingest()?);
        let measured = Measured::beside_others(|| {
            let start = Start::now(&worker)?;
            let sent = match way {
                Workload::Ingest => client::send_all(worker.ingest()?, &requests)?,
                Workload::Join => results::deliver(&worker, QUERY.name(), &requests)?,
            };
            start.end(&worker, self.rows.len(), sent.cpu)
        })?;
        let after = store.map(|_| after(&worker)).transpose()?;
        if way == Workload::Join {
            results::check(&worker, QUERY.name(), &self.expected)?;
        }
        worker.stop()?;
        Ok((measured, after))
    }
}

/// Waits until the replica has all changes committed before the call.
fn after(worker: &BenchWorker) -> Result<After> {
    let ended = Instant::now();
    let now = replication(worker)?["completeUntil"].as_i64().context("the status has no time")?;
    let wanted = now + i64::try_from(replication(worker)?["lagSeconds"].as_u64().unwrap_or_default())? + 1;
    let status = wait(worker, |status| status["completeUntil"].as_i64() >= Some(wanted))?;
    let held = status["lastCutHeldSeconds"].as_f64().unwrap_or_default();
    let files = status["files"].as_object().context("the status has no files")?;
    let longest = files.values().filter_map(|file| file["walBytes"].as_f64()).fold(0.0, f64::max);
    Ok(After { caught_up: ended.elapsed().as_secs_f64(), held, wal: longest / 1e6 })
}

fn replication(worker: &BenchWorker) -> Result<Value> {
    Ok(worker.status()?["replication"].clone())
}

fn wait(worker: &BenchWorker, is_there: impl Fn(&Value) -> bool) -> Result<Value> {
    let deadline = Instant::now() + CATCH_UP_MAX;
    loop {
        let status = replication(worker)?;
        if is_there(&status) {
            return Ok(status);
        }
        if Instant::now() > deadline {
            bail!("the replica does not catch up: {status}");
        }
        std::thread::park_timeout(LOOK_INTERVAL);
    }
}
