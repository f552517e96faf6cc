//! Restart: the time until a killed worker serves again, and until all changes are applied.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use crate::client::{self, Connection};
use crate::memory::Memory;
use crate::queries::BenchQuery;
use crate::row::Row;
use crate::shop::{CUSTOMER_COUNT, Shop};
use crate::table::{Figure, spreads};
use crate::worker::{BenchWorker, Pipeline};
use crate::{results, site};

const QUERY: BenchQuery = BenchQuery::W1;

/// Options of `bench restart`.
#[derive(Debug, Args)]
pub(crate) struct RestartOptions {
    /// Rows that are stored: 10,000 customers, the others orders
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(CUSTOMER_COUNT + 1..))]
    rows: u64,

    /// Updates that are posted just before each kill
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    updates: u64,

    #[command(flatten)]
    site: site::SiteOptions,
}

/// The figures of one round.
struct RestartRound {
    serves: Duration,
    current: Duration,
    cpu: Duration,
    memory: Memory,
}

/// Measures the rounds and prints the table.
pub(crate) fn run(options: &RestartOptions) -> Result<()> {
    let site = options.site.site()?;
    site.in_run(|run| {
        let pipeline = Pipeline { joins: &[QUERY.join()], ..Pipeline::new(site.shard_count) };
        let start = || BenchWorker::start(&site.binary, run, &pipeline);
        let mut shop = Shop::new(options.rows - CUSTOMER_COUNT, options.site.seed);
        let mut rows = shop.customers();
        rows.extend(shop.orders());
        writeln!(std::io::stderr(), "storing {} rows", rows.len())?;
        let mut worker = start()?;
        let requests = client::requests(&rows, options.site.sending(), worker.ingest()?);
        results::deliver(&worker, QUERY.name(), &requests)?;
        let mut rounds = Vec::new();
        for round in 1..=options.site.rounds {
            let updates: Vec<Row> = (0..options.updates).map(|_| shop.event()).collect();
            let requests = client::requests(&updates, options.site.sending(), worker.ingest()?);
            client::send_all(worker.ingest()?, &requests)?;
            drop(worker);
            rows.extend(updates);
            let measured;
            (worker, measured) = measure(start, &rows[rows.len() - 1])?;
            measured.report(round)?;
            rounds.push(measured);
        }
        writeln!(std::io::stderr(), "SQLite finds what the results must be")?;
        results::check(&worker, QUERY.name(), &results::expected(QUERY, &rows))?;
        options.print(&rounds)
    })
}

/// Starts the worker, and waits until it serves and until its results are current. `last` is a stored row.
fn measure(start: impl FnOnce() -> Result<BenchWorker>, last: &Row) -> Result<(BenchWorker, RestartRound)> {
    let started = Instant::now();
    let worker = start()?;
    let (status, _) = client::get_all(worker.admin()?, "/readyz")?;
    ensure!(status == 200, "the worker runs, and /readyz answers {status}");
    let serves = started.elapsed();
    // A row without a change is in the epoch that contains all rows before it.
    let epoch = Connection::open(worker.ingest()?)?.send(&client::request(&[last], worker.ingest()?))?;
    results::wait_until_applied(&worker, QUERY.name(), epoch)?;
    let current = started.elapsed();
    let (cpu, memory) = (worker.cpu_time()?, worker.memory()?);
    Ok((worker, RestartRound { serves, current, cpu, memory }))
}

impl RestartRound {
    /// Prints a round while others are still to come.
    fn report(&self, round: u32) -> Result<()> {
        writeln!(
            std::io::stderr(),
            "round {round}: serves after {:.2?}, current after {:.2?}, {:.0} MB at peak",
            self.serves,
            self.current,
            self.memory.peak_bytes as f64 / 1e6,
        )?;
        Ok(())
    }
}

impl RestartOptions {
    fn print(&self, rounds: &[RestartRound]) -> Result<()> {
        let figures: [Figure<'_, RestartRound>; 5] = [
            ("serves, s", 3, &|measured| measured.serves.as_secs_f64()),
            ("current, s", 3, &|measured| measured.current.as_secs_f64()),
            ("CPU s until current", 2, &|measured| measured.cpu.as_secs_f64()),
            ("peak MB", 0, &|measured| measured.memory.peak_bytes as f64 / 1e6),
            ("anonymous MB", 0, &|measured| measured.memory.anonymous_bytes as f64 / 1e6),
        ];
        let mut out = std::io::stdout().lock();
        let Self { rows, updates, .. } = self;
        writeln!(
            out,
            "\n{rows} rows, {updates} updates acknowledged before each kill, {} shards, {} rounds; from the start of \
             the process.\n",
            self.site.shards,
            rounds.len(),
        )?;
        out.write_all(spreads(rounds, &figures).as_bytes())?;
        Ok(())
    }
}
