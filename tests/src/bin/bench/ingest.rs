//! Ingest: the same rows through raw SQLite, over HTTP, and from files, in turns.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::measured::{HEADING, Measured, Start, summary};
use crate::row::Row;
use crate::shop::{self, CUSTOMERS, ORDERS};
use crate::site::{self, BenchSite};
use crate::table::layout;
use crate::worker::{self, BenchWorker, HTTP_SOURCE, Pipeline};
use crate::{client, raw};

/// Options of `bench ingest`.
#[derive(Debug, Args)]
pub(crate) struct IngestOptions {
    /// Events after the customers
    #[arg(long, default_value_t = 500_000)]
    events: u64,

    /// The ways to measure beside raw; all where absent
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<IngestPath>,

    #[command(flatten)]
    site: site::SiteOptions,
}

/// A way for messages to come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum IngestPath {
    Http,
    Ndjson,
    Csv,
}

const WAYS: [IngestPath; 3] = [IngestPath::Http, IngestPath::Ndjson, IngestPath::Csv];

impl IngestPath {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Ndjson => "file, ndjson",
            Self::Csv => "file, csv",
        }
    }
}

/// The inputs of all measurements.
struct IngestSetup<'o> {
    options: &'o IngestOptions,
    site: BenchSite,
    rows: Vec<Row>,
    /// The number of distinct orders among the rows.
    orders: u64,
}

/// Runs the rounds and prints the table.
pub(crate) fn run(options: &IngestOptions) -> Result<()> {
    let site = options.site.site()?;
    let rows = shop::rows(options.events, options.site.seed);
    let orders: HashSet<&str> = rows.iter().filter(|row| row.topic == ORDERS).map(|row| &*row.key).collect();
    let orders = orders.len() as u64;
    let setup = IngestSetup { options, site, rows, orders };
    let ways: Vec<IngestPath> =
        WAYS.into_iter().filter(|way| options.only.is_empty() || options.only.contains(way)).collect();
    if ways.contains(&IngestPath::Ndjson) {
        std::fs::write(setup.site.path().join("rows.ndjson"), client::lines(&setup.rows))?;
    }
    if ways.contains(&IngestPath::Csv) {
        setup.write_csv()?;
    }
    let mut raws = Vec::new();
    let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); ways.len()];
    for round in 1..=options.site.rounds {
        let base = setup.measure(None)?;
        base.report(round, "raw", None)?;
        for (way, runs) in ways.iter().zip(&mut measured) {
            let run = setup.measure(Some(*way))?;
            run.report(round, way.name(), Some(&base))?;
            runs.push(run);
        }
        raws.push(base);
    }
    let mut table = vec![HEADING.map(str::to_owned).to_vec(), summary("raw", &raws, None)];
    for (way, runs) in ways.iter().zip(&measured) {
        table.push(summary(way.name(), runs, Some(&raws)));
    }
    let mut out = std::io::stdout().lock();
    let (messages, site::SiteOptions { shards, rounds, connections, batch, .. }) =
        (setup.rows.len(), &options.site);
    writeln!(
        out,
        "\n{messages} upserts, {shards} shards, {rounds} rounds; http: {connections} connections, {batch} messages \
         a body.\nCPU and peak memory are the worker's, in the middle; the client runs beside it on the same cores.\n"
    )?;
    out.write_all(layout(&table).as_bytes())?;
    Ok(())
}

impl IngestSetup<'_> {
    /// Measures one way, or raw SQLite for `None`.
    fn measure(&self, way: Option<IngestPath>) -> Result<Measured> {
        self.site.in_run(|run| {
            let measured = Measured::beside_others(|| match way {
                None => raw::measure(run, self.site.shard_count, &[CUSTOMERS, ORDERS], &self.rows),
                Some(IngestPath::Http) => self.post(run),
                Some(IngestPath::Ndjson) => {
                    let source = "    - name: rows\n      file: {path: ../rows.ndjson}\n";
                    self.read(run, source, 1)
                }
                Some(IngestPath::Csv) => {
                    let source = |topic: &str| {
                        format!(
                            "    - name: {topic}\n      file: {{path: ../{topic}.csv, topic: {topic}, keyColumns: [id]}}\n"
                        )
                    };
                    self.read(run, &[CUSTOMERS, ORDERS].map(source).concat(), 2)
                }
            })?;
            let data = if way.is_some() { worker::data_dir(run) } else { run.to_owned() };
            let orders = raw::count(&data, self.site.shard_count, ORDERS)?;
            ensure!(orders == self.orders, "{orders} orders were stored instead of {}", self.orders);
            Ok(measured)
        })
    }

    fn start(&self, run: &Path, sources: &str) -> Result<BenchWorker> {
        let pipeline = Pipeline { sources, ..Pipeline::new(self.site.shard_count) };
        BenchWorker::start(&self.site.binary, run, &pipeline)
    }

    /// Posts all rows; measures from the first byte to the last answer.
    fn post(&self, run: &Path) -> Result<Measured> {
        let worker = self.start(run, HTTP_SOURCE)?;
        let requests = client::requests(&self.rows, self.options.site.sending(), worker.ingest()?);
        let start = Start::now(&worker)?;
        let sent = client::send_all(worker.ingest()?, &requests)?;
        start.end(&worker, self.rows.len(), sent.cpu)
    }

    /// Reads files; measures from the start of the sources until all rows are committed.
    fn read(&self, run: &Path, sources: &str, files: usize) -> Result<Measured> {
        let mut worker = self.start(run, sources)?;
        // The worker opens the files just before it logs that it runs.
        let start = Start::of_process();
        for _ in 0..files {
            worker.read_until("read to the end")?;
        }
        start.end(&worker, self.rows.len(), Duration::ZERO)
    }

    fn write_csv(&self) -> Result<()> {
        for topic in [CUSTOMERS, ORDERS] {
            let mut text = String::new();
            for row in self.rows.iter().filter(|row| row.topic == topic) {
                let payload = row.payload.as_deref().context("a shop deletes nothing")?;
                let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(payload)?;
                if text.is_empty() {
                    text = fields.keys().map(String::as_str).collect::<Vec<_>>().join(",");
                    text.push('\n');
                }
                let cell = |value: &serde_json::Value| match value {
                    serde_json::Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                text.push_str(&fields.values().map(cell).collect::<Vec<_>>().join(","));
                text.push('\n');
            }
            std::fs::write(self.site.path().join(format!("{topic}.csv")), text)?;
        }
        Ok(())
    }
}
