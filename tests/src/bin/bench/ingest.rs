//! Ingest: the same rows by raw SQLite, over HTTP, and from files, in turns.

use std::collections::HashSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};

use crate::table::{Spread, layout};
use crate::worker::{self, Worker};
use crate::workload::{self, Row, Topic};
use crate::{client, process, raw};

/// Options of `bench ingest`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Events after the customers
    #[arg(long, default_value_t = 500_000)]
    events: u64,

    /// Turns; each measures every way once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Shards, and raw writers
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    shards: u8,

    /// Connections of the HTTP client; each waits for an answer before it sends the next body
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    connections: u16,

    /// Messages in one HTTP body
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    batch: u32,

    /// Seed of the rows
    #[arg(long, default_value_t = 42)]
    seed: u64,

    /// What to measure beside raw; all of it where absent
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Way>,

    /// Measure this worker instead of the one that is built here
    #[arg(long, value_name = "PATH")]
    litejoin: Option<PathBuf>,

    /// Put the data into a new folder in here; beside this program where absent, since /tmp may be in memory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A way for messages to come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    Http,
    Ndjson,
    Csv,
}

const WAYS: [Way; 3] = [Way::Http, Way::Ndjson, Way::Csv];

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Ndjson => "file, ndjson",
            Self::Csv => "file, csv",
        }
    }
}

/// What all measurements share.
struct Setup<'o> {
    options: &'o Options,
    binary: PathBuf,
    dir: PathBuf,
    rows: Vec<Row>,
    /// Distinct orders among the rows.
    orders: u64,
}

/// One run.
#[derive(Debug, Clone, Copy)]
struct Measured {
    took: Duration,
    cpu: Duration,
    client_cpu: Duration,
    /// Not known of raw, which runs in this process.
    peak_memory_bytes: Option<u64>,
    /// Cores that neither the run nor its client used.
    others_cores: f64,
}

/// Runs the turns and prints the table.
pub(crate) fn run(options: &Options) -> Result<()> {
    let binary = match &options.litejoin {
        Some(path) => path.clone(),
        None => worker::build()?,
    };
    let beside = std::env::current_exe()?.with_file_name("");
    let dir = tempfile::Builder::new()
        .prefix("bench-")
        .tempdir_in(options.dir.as_deref().unwrap_or(&beside))
        .context("could not make a folder for the data")?;
    let rows = workload::rows(options.events, options.seed);
    let orders: HashSet<&str> =
        rows.iter().filter(|row| row.topic == Topic::Orders).map(|row| &*row.key).collect();
    let orders = orders.len() as u64;
    let setup = Setup { options, binary, dir: dir.path().to_owned(), rows, orders };
    let ways: Vec<Way> =
        WAYS.into_iter().filter(|way| options.only.is_empty() || options.only.contains(way)).collect();
    if ways.contains(&Way::Ndjson) {
        std::fs::write(setup.dir.join("rows.ndjson"), client::lines(&setup.rows))?;
    }
    if ways.contains(&Way::Csv) {
        setup.write_csv()?;
    }
    let mut raws = Vec::new();
    let mut measured: Vec<Vec<Measured>> = vec![Vec::new(); ways.len()];
    for round in 1..=options.rounds {
        let base = setup.measure(None)?;
        setup.report(round, "raw", &base, None)?;
        raws.push(base);
        for (way, runs) in ways.iter().zip(&mut measured) {
            let run = setup.measure(Some(*way))?;
            setup.report(round, way.name(), &run, Some(&base))?;
            runs.push(run);
        }
    }
    let mut table =
        vec![["", "messages/s min / median / max", "of raw min / median / max"].map(str::to_owned).to_vec()];
    table[0].extend(["CPU s per million", "client CPU", "peak MB", "others' cores"].map(str::to_owned));
    table.push(setup.summary("raw", &raws, None));
    for (way, runs) in ways.iter().zip(&measured) {
        table.push(setup.summary(way.name(), runs, Some(&raws)));
    }
    let mut out = std::io::stdout().lock();
    let (messages, Options { shards, rounds, connections, batch, .. }) = (setup.rows.len(), options);
    writeln!(
        out,
        "\n{messages} upserts, {shards} shards, {rounds} turns; http: {connections} connections, {batch} messages \
         a body.\nCPU and peak memory are the worker's, in the middle; the client runs beside it on the same cores.\n"
    )?;
    out.write_all(layout(&table).as_bytes())?;
    Ok(())
}

impl Setup<'_> {
    /// Measures one way, or raw.
    fn measure(&self, way: Option<Way>) -> Result<Measured> {
        let shard_count = usize::from(self.options.shards);
        let run = self.dir.join("run");
        std::fs::create_dir(&run)?;
        let (before, started) = (process::machine_cpu_time()?, Instant::now());
        let (mut measured, data) = match way {
            None => {
                let (took, cpu) = raw::write(&run, shard_count, &self.rows)?;
                let client_cpu = Duration::ZERO;
                let raw = Measured { took, cpu, client_cpu, peak_memory_bytes: None, others_cores: 0.0 };
                (raw, run.clone())
            }
            Some(Way::Http) => (self.post(&run)?, worker::data_dir(&run)),
            Some(Way::Ndjson) => {
                let source = "    - name: rows\n      file: {path: ../rows.ndjson}\n";
                (self.read(&run, source, 1)?, worker::data_dir(&run))
            }
            Some(Way::Csv) => {
                let source = |topic: Topic| {
                    let topic = topic.name();
                    format!(
                        "    - name: {topic}\n      file: {{path: ../{topic}.csv, topic: {topic}, keyColumns: [id]}}\n"
                    )
                };
                let sources = [Topic::Customers, Topic::Orders].map(source).concat();
                (self.read(&run, &sources, 2)?, worker::data_dir(&run))
            }
        };
        let all = process::machine_cpu_time()?.saturating_sub(before);
        let others = all.saturating_sub(measured.cpu + measured.client_cpu);
        measured.others_cores = others.as_secs_f64() / started.elapsed().as_secs_f64();
        let orders = raw::count_orders(&data, shard_count)?;
        ensure!(orders == self.orders, "{orders} orders were stored instead of {}", self.orders);
        std::fs::remove_dir_all(&run)?;
        Ok(measured)
    }

    /// Posts all rows, from the first byte to the last answer.
    fn post(&self, run: &Path) -> Result<Measured> {
        let source = "    - name: ingest\n      http: {addr: \"127.0.0.1:0\", topics: [orders, customers]}\n";
        let worker = Worker::start(&self.binary, run, usize::from(self.options.shards), source)?;
        let addr = worker.http_addr.as_deref().context("the worker does not say where it listens")?;
        let batch = usize::try_from(self.options.batch)?;
        let requests = client::requests(&self.rows, batch, addr);
        let (cpu_before, started) = (worker.cpu_time()?, Instant::now());
        let client_cpu = client::send_all(addr, usize::from(self.options.connections), &requests)?;
        Measured::of(&worker, started, cpu_before, client_cpu)
    }

    /// Has files read, from the start of the sources until all rows are committed.
    fn read(&self, run: &Path, sources: &str, files: usize) -> Result<Measured> {
        let shard_count = usize::from(self.options.shards);
        let mut worker = Worker::start(&self.binary, run, shard_count, sources)?;
        // The files are opened just before the worker says that it runs.
        let (cpu_before, started) = (Duration::ZERO, Instant::now());
        for _ in 0..files {
            worker.wait_for(&["read to the end"])?;
        }
        Measured::of(&worker, started, cpu_before, Duration::ZERO)
    }

    fn write_csv(&self) -> Result<()> {
        for topic in [Topic::Customers, Topic::Orders] {
            let mut text = String::new();
            for row in self.rows.iter().filter(|row| row.topic == topic) {
                let fields: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&row.payload)?;
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
            std::fs::write(self.dir.join(format!("{}.csv", topic.name())), text)?;
        }
        Ok(())
    }

    fn messages_per_second(&self, run: &Measured) -> f64 {
        self.rows.len() as f64 / run.took.as_secs_f64()
    }

    fn per_million(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.rows.len() as f64
    }

    /// Says how a run went, while the others are still to come.
    fn report(&self, round: u32, name: &str, run: &Measured, raw: Option<&Measured>) -> Result<()> {
        let share = raw.map_or(1.0, |raw| raw.took.as_secs_f64() / run.took.as_secs_f64());
        writeln!(
            std::io::stderr(),
            "turn {round}: {name:<12} {:>9.0} messages/s  {share:>5.2} of raw  {:>5.2} CPU s per million  {:.1} cores to others",
            self.messages_per_second(run),
            self.per_million(run.cpu),
            run.others_cores,
        )?;
        Ok(())
    }

    fn summary(&self, name: &str, runs: &[Measured], raws: Option<&[Measured]>) -> Vec<String> {
        let median = |figure: &dyn Fn(&Measured) -> f64, digits| {
            format!("{:.digits$}", Spread::of(runs.iter().map(figure)).median)
        };
        let share = raws.map_or_else(String::new, |raws| {
            let pairs = raws.iter().zip(runs);
            Spread::of(pairs.map(|(raw, run)| raw.took.as_secs_f64() / run.took.as_secs_f64())).show(2)
        });
        let known = runs[0].peak_memory_bytes.is_some();
        let memory = |run: &Measured| run.peak_memory_bytes.unwrap_or_default() as f64 / 1e6;
        let client = runs.iter().any(|run| !run.client_cpu.is_zero());
        vec![
            name.to_owned(),
            Spread::of(runs.iter().map(|run| self.messages_per_second(run))).show(0),
            share,
            median(&|run| self.per_million(run.cpu), 2),
            if client { median(&|run| self.per_million(run.client_cpu), 2) } else { String::new() },
            if known { median(&memory, 0) } else { String::new() },
            median(&|run| run.others_cores, 1),
        ]
    }
}

impl Measured {
    /// Of a worker that has just acknowledged everything.
    fn of(worker: &Worker, started: Instant, cpu_before: Duration, client_cpu: Duration) -> Result<Self> {
        Ok(Self {
            took: started.elapsed(),
            cpu: worker.cpu_time()?.saturating_sub(cpu_before),
            client_cpu,
            peak_memory_bytes: Some(worker.peak_memory_bytes()?),
            others_cores: 0.0,
        })
    }
}
