//! Windows: rows with event times over HTTP until all of their frames are closed and stored, compared with raw SQLite,
//! in turns.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use litejoin_tests::results::Results;
use litejoin_tests::wait::until_moment;
use serde_json::Value;

use crate::client::Sending;
use crate::measured::{HEADING, Measured, Start, summary};
use crate::row::Row;
use crate::site::{self, BenchSite};
use crate::table::{Spread, layout};
use crate::window_queries::{BenchWindow, MeasuredWindow};
use crate::worker::{BenchWorker, Pipeline};
use crate::{client, raw, results};

/// Pause between two looks at `/status`.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// Options of `bench windows`.
#[derive(Debug, Args)]
pub(crate) struct WindowsOptions {
    /// Changes of the topics that a window reads
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,

    /// Windows to measure; all of them where absent
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<BenchWindow>,

    #[command(flatten)]
    site: site::SiteOptions,
}

/// Windows with their rows and their expected results.
struct WindowsSetup<'o> {
    options: &'o WindowsOptions,
    site: &'o BenchSite,
    scenario: BenchWindow,
    windows: Vec<MeasuredWindow>,
    rows: Vec<Row>,
    /// By window.
    expected: Vec<Results>,
}

/// The windows in `/status` after a run.
#[derive(Debug, Clone)]
struct WindowCounts {
    /// Results that were created, updated or deleted.
    events: u64,
    evaluations: u64,
    classes: Vec<String>,
}

/// Runs the rounds of each scenario and prints the table.
pub(crate) fn run(options: &WindowsOptions) -> Result<()> {
    let site = options.site.site()?;
    let mut heading = HEADING.map(str::to_owned).to_vec();
    heading.extend(["result events", "evaluations", "class"].map(str::to_owned));
    let mut table = vec![heading];
    for scenario in BenchWindow::value_variants() {
        if options.only.is_empty() || options.only.contains(scenario) {
            table.extend(measure_scenario(options, &site, *scenario)?);
        }
    }
    let mut out = std::io::stdout().lock();
    let WindowsOptions { events, site: site::SiteOptions { shards, rounds, connections, batch, .. }, .. } =
        options;
    writeln!(
        out,
        "\n{events} changes, {shards} shards, {rounds} rounds; over HTTP, {connections} connections, {batch} messages a \
         body.\nUntil all frames are closed and stored in results.db; results are checked against SQLite after each \
         run.\nCPU, memory and events are the worker's, in the middle; the client runs beside it on the same cores.\n"
    )?;
    out.write_all(layout(&table).as_bytes())?;
    Ok(())
}

/// Measures one scenario; returns two rows of the table: that of raw SQLite and that of the windows.
fn measure_scenario(
    options: &WindowsOptions,
    site: &BenchSite,
    scenario: BenchWindow,
) -> Result<[Vec<String>; 2]> {
    let name = scenario.name();
    let rows = scenario.rows(options.events, options.site.seed);
    writeln!(std::io::stderr(), "{name}: {} changes; SQLite finds what must come of them", rows.len())?;
    let windows = scenario.windows();
    let oracle = results::oracle(scenario.topics(), &rows);
    let expected = windows.iter().map(|window| window.expected(&oracle)).collect();
    drop(oracle);
    let setup = WindowsSetup { options, site, scenario, windows, rows, expected };
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
    let mut of_scenario = summary(name, &runs, Some(&raws));
    let median = |figure: &dyn Fn(&WindowCounts) -> u64| {
        format!("{:.0}", Spread::of(counts.iter().map(|count| figure(count) as f64)).median)
    };
    of_scenario.extend([median(&|count| count.events), median(&|count| count.evaluations)]);
    of_scenario.push(counts[0].classes.join(", "));
    Ok([summary(&format!("raw of {name}"), &raws, None), of_scenario])
}

impl WindowsSetup<'_> {
    fn measure_raw(&self) -> Result<Measured> {
        let topics = self.scenario.topics();
        let measure = |run: &Path| raw::measure(run, self.site.shard_count, topics, &self.rows);
        self.site.in_run(|run| Measured::beside_others(|| measure(run)))
    }

    /// Measures from the first byte until the frames of all rows are closed and stored.
    fn measure(&self) -> Result<(Measured, WindowCounts)> {
        self.site.in_run(|run| {
            let windows: Vec<Value> = self.windows.iter().map(MeasuredWindow::manifest).collect();
            let pipeline = Pipeline { windows: &windows, ..Pipeline::new(self.site.shard_count) };
            let worker = BenchWorker::start(&self.site.binary, run, &pipeline)?;
            let sending = self.options.site.sending();
            let requests = client::requests(&self.rows, sending, worker.ingest()?);
            let last = self.scenario.last_rows(&self.rows);
            let last = client::requests(&last, Sending { connections: 1, ..sending }, worker.ingest()?);
            let watermark = self.scenario.last_watermark(&self.rows);
            let measured = Measured::beside_others(|| {
                let start = Start::now(&worker)?;
                let sent = client::send_all(worker.ingest()?, &requests)?;
                let end = client::send_all(worker.ingest()?, &last)?;
                for window in &self.windows {
                    wait_until_closed(&worker, window.name, end.epoch, watermark)?;
                }
                start.end(&worker, self.rows.len(), sent.cpu + end.cpu)
            })?;
            let counts = self.counts(&worker.status()?)?;
            for (window, expected) in self.windows.iter().zip(&self.expected) {
                results::check(&worker, window.name, expected)?;
            }
            Ok((measured, counts))
        })
    }

    /// Reads the counts of all windows from `/status`. A row that came too late would make the results differ by chance.
    fn counts(&self, status: &Value) -> Result<WindowCounts> {
        let mut counts = WindowCounts { events: 0, evaluations: 0, classes: Vec::new() };
        for MeasuredWindow { name, .. } in &self.windows {
            let window = &status["joins"][name];
            let refused = &window["window"]["refused"];
            ensure!(refused == 0, "{name}: {refused} rows came too late; the connections are too far apart");
            let count = |what: &str| {
                window[what].as_u64().with_context(|| format!("/status does not count {what} of {name}"))
            };
            counts.events += count("resultsChanged")?;
            counts.evaluations += count("evaluations")?;
            counts.classes.push(window["class"].as_str().unwrap_or_default().to_owned());
        }
        counts.classes.dedup();
        Ok(counts)
    }
}

/// Waits until a window has taken in an epoch, and the frames up to a watermark are closed and stored.
fn wait_until_closed(worker: &BenchWorker, name: &str, epoch: u64, watermark: u64) -> Result<()> {
    results::wait_until_applied(worker, name, epoch)?;
    loop {
        let status = worker.status()?;
        let window = &status["joins"][name];
        ensure!(window["lastError"].is_null(), "{name} fails: {}", window["lastError"]);
        let time = &window["window"];
        if time["watermark"].as_u64() >= Some(watermark) && time["isCurrent"] == true {
            return Ok(());
        }
        until_moment(Instant::now() + LOOK_INTERVAL);
    }
}
