//! Joins: rows over HTTP until the last of them is in the results, compared with raw SQLite, in turns.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use litejoin_tests::results::Results;

use crate::measured::{HEADING, Measured, Start, summary};
use crate::queries::BenchQuery;
use crate::row::Row;
use crate::site::{self, BenchSite};
use crate::table::{Spread, layout};
use crate::worker::{BenchWorker, Pipeline};
use crate::{client, raw, results};

/// Options of `bench joins`.
#[derive(Debug, Args)]
pub(crate) struct JoinsOptions {
    /// Changes of the topics that a query reads, after the customers where it reads customers
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,

    /// Queries to measure; all of them where absent
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<BenchQuery>,

    #[command(flatten)]
    site: site::SiteOptions,
}

/// A query with its rows and its expected results.
struct JoinsSetup<'o> {
    options: &'o JoinsOptions,
    site: &'o BenchSite,
    query: BenchQuery,
    rows: Vec<Row>,
    expected: Results,
}

/// The join in `/status` after a run.
#[derive(Debug, Clone, Copy)]
struct Counts {
    /// Results that were created, updated or deleted.
    events: u64,
    evaluations: u64,
}

/// Runs the rounds of each query and prints the table.
pub(crate) fn run(options: &JoinsOptions) -> Result<()> {
    let site = options.site.site()?;
    let mut heading = HEADING.map(str::to_owned).to_vec();
    heading.extend(["result events", "evaluations"].map(str::to_owned));
    let mut table = vec![heading];
    for query in BenchQuery::value_variants() {
        if options.only.is_empty() || options.only.contains(query) {
            table.extend(measure_query(options, &site, *query)?);
        }
    }
    let mut out = std::io::stdout().lock();
    let JoinsOptions { events, site: site::SiteOptions { shards, rounds, connections, batch, .. }, .. } =
        options;
    writeln!(
        out,
        "\n{events} changes, {shards} shards, {rounds} rounds; over HTTP (the quickest way of `bench ingest`), \
         {connections} connections, {batch} messages a body.\nUntil the last change is applied and stored in \
         results.db; results are checked against SQLite after each run.\nCPU, memory and events are the worker's, in \
         the middle; the client runs beside it on the same cores.\n"
    )?;
    out.write_all(layout(&table).as_bytes())?;
    Ok(())
}

/// Measures one query; returns two rows of the table: that of raw SQLite and that of the query.
fn measure_query(options: &JoinsOptions, site: &BenchSite, query: BenchQuery) -> Result<[Vec<String>; 2]> {
    let name = query.name();
    let rows = query.rows(options.events, options.site.seed);
    writeln!(std::io::stderr(), "{name}: {} changes; SQLite finds what must come of them", rows.len())?;
    let expected = results::expected(query, &rows);
    let setup = JoinsSetup { options, site, query, rows, expected };
    let (mut raws, mut runs, mut counts) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.site.rounds {
        let base = setup.measure_raw()?;
        base.report(round, "raw", None)?;
        raws.push(base);
        let (run, count) = setup.measure()?;
        run.report(round, name, Some(&base))?;
        runs.push(run);
        counts.push(count);
    }
    let mut of_query = summary(name, &runs, Some(&raws));
    let median = |figure: &dyn Fn(&Counts) -> u64| {
        format!("{:.0}", Spread::of(counts.iter().map(|count| figure(count) as f64)).median)
    };
    of_query.extend([median(&|count| count.events), median(&|count| count.evaluations)]);
    Ok([summary(&format!("raw of {name}"), &raws, None), of_query])
}

impl JoinsSetup<'_> {
    fn measure_raw(&self) -> Result<Measured> {
        let measure = |run: &Path| raw::measure(run, self.site.shard_count, self.query.topics(), &self.rows);
        self.site.in_run(|run| Measured::beside_others(|| measure(run)))
    }

    /// Measures from the first byte until all changes are applied.
    fn measure(&self) -> Result<(Measured, Counts)> {
        self.site.in_run(|run| {
            let pipeline = Pipeline { joins: &[self.query.join()], ..Pipeline::new(self.site.shard_count) };
            let worker = BenchWorker::start(&self.site.binary, run, &pipeline)?;
            let requests = client::requests(&self.rows, self.options.site.sending(), worker.ingest()?);
            let measured = Measured::beside_others(|| {
                let start = Start::now(&worker)?;
                let sent = results::deliver(&worker, self.query.name(), &requests)?;
                start.end(&worker, self.rows.len(), sent.cpu)
            })?;
            let status = worker.status()?;
            let count = |name: &str| {
                let count = status["joins"][self.query.name()][name].as_u64();
                count.with_context(|| format!("/status does not count {name} of the join"))
            };
            let counts = Counts { events: count("resultsChanged")?, evaluations: count("evaluations")? };
            results::check(&worker, self.query.name(), &self.expected)?;
            Ok((measured, counts))
        })
    }
}
