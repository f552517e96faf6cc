//! Re-shard: rows a second that go to another number of shards, and how long the pipeline stands still for it.

mod online;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use crate::queries::BenchQuery;
use crate::row::Row;
use crate::shop::{CUSTOMER_COUNT, Shop};
use crate::table::{Figure, spreads};
use crate::worker::{BenchWorker, Pipeline, data_dir};
use crate::{client, raw, results, site};

const QUERY: BenchQuery = BenchQuery::W1;

/// Options of `bench reshard`.
#[derive(Debug, Args)]
pub(crate) struct ReshardOptions {
    /// Rows that are stored: 10,000 customers, the others orders
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(CUSTOMER_COUNT + 1..))]
    rows: u64,

    /// Shards that the data gets, and from which it goes back in the next round
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u8).range(1..=64))]
    to: u8,

    /// Move the data while it is served: the pace of ingest beside that, and the pause
    #[arg(long)]
    online: bool,

    #[command(flatten)]
    site: site::SiteOptions,
}

/// The figures of one round.
struct ReshardRound {
    /// The same rows written into as many files.
    raw: Duration,
    /// The command, from its start to its end.
    moved: Duration,
    /// From the signal that stops the worker until the next one serves.
    pause: Duration,
}

/// Measures the rounds and prints the table.
pub(crate) fn run(options: &ReshardOptions) -> Result<()> {
    let site = options.site.site()?;
    let to = usize::from(options.to);
    ensure!(to != site.shard_count, "--to and --shards are both {to}; give two numbers");
    if options.online {
        return online::run(options, &site);
    }
    site.in_run(|run| {
        let joins = [QUERY.join()];
        let pipeline = |shards| Pipeline { joins: &joins, ..Pipeline::new(shards) };
        let start = |shards| BenchWorker::start(&site.binary, run, &pipeline(shards));
        let mut shop = Shop::new(options.rows - CUSTOMER_COUNT, options.site.seed);
        let mut rows = shop.customers();
        rows.extend(shop.orders());
        writeln!(std::io::stderr(), "storing {} rows", rows.len())?;
        let (mut has, mut wanted) = (site.shard_count, to);
        let mut worker = start(has)?;
        let requests = client::requests(&rows, options.site.sending(), worker.ingest()?);
        results::deliver(&worker, QUERY.name(), &requests)?;
        let mut rounds = Vec::new();
        for round in 1..=options.site.rounds {
            let folder = run.join("raw");
            std::fs::create_dir(&folder)?;
            let raw = raw::measure(&folder, wanted, &topics(&rows), &rows)?.took;
            std::fs::remove_dir_all(&folder)?;
            let began = Instant::now();
            worker.stop()?;
            let moving = Instant::now();
            let mut command = Command::new(&site.binary);
            command.arg("reshard").arg("--data-dir").arg(data_dir(run)).args(["--to", &wanted.to_string()]);
            let status = command.stdout(Stdio::null()).status()?;
            ensure!(status.success(), "litejoin reshard ended with {status}");
            let moved = moving.elapsed();
            worker = start(wanted)?;
            let measured = ReshardRound { raw, moved, pause: began.elapsed() };
            measured.report(round, rows.len())?;
            rounds.push(measured);
            std::mem::swap(&mut has, &mut wanted);
        }
        writeln!(std::io::stderr(), "SQLite finds what the results must be")?;
        results::check(&worker, QUERY.name(), &results::expected(QUERY, &rows))?;
        options.print(&rounds)
    })
}

/// The topics that rows are of.
fn topics(rows: &[Row]) -> Vec<&str> {
    let mut topics: Vec<&str> = rows.iter().map(|row| row.topic).collect();
    topics.sort_unstable();
    topics.dedup();
    topics
}

impl ReshardRound {
    /// Prints a round while others are still to come.
    fn report(&self, round: u32, rows: usize) -> Result<()> {
        writeln!(
            std::io::stderr(),
            "round {round}: {:.0} rows/s, {:.2} of raw, a pause of {:.2?}",
            rows as f64 / self.moved.as_secs_f64(),
            self.raw.as_secs_f64() / self.moved.as_secs_f64(),
            self.pause,
        )?;
        Ok(())
    }
}

impl ReshardOptions {
    fn print(&self, rounds: &[ReshardRound]) -> Result<()> {
        let rows = self.rows as f64;
        let per_second = |took: Duration| rows / took.as_secs_f64();
        let figures: [Figure<'_, ReshardRound>; 4] = [
            ("raw rows/s", 0, &|measured| per_second(measured.raw)),
            ("moved rows/s", 0, &|measured| per_second(measured.moved)),
            ("share of raw", 2, &|measured| measured.raw.as_secs_f64() / measured.moved.as_secs_f64()),
            ("pause, s", 2, &|measured| measured.pause.as_secs_f64()),
        ];
        let mut out = std::io::stdout().lock();
        writeln!(
            out,
            "\n{} rows, {} shards to {} and back, {} rounds; copied and verified.\n",
            self.rows,
            self.site.shards,
            self.to,
            rounds.len(),
        )?;
        out.write_all(spreads(rounds, &figures).as_bytes())?;
        Ok(())
    }
}
