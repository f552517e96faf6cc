//! The figures of a measured run, and a table row for several runs.

use std::io::Write as _;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::memory::Memory;
use crate::process;
use crate::table::Spread;
use crate::worker::BenchWorker;

/// The figures of one run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    pub(crate) changes: usize,
    pub(crate) took: Duration,
    pub(crate) cpu: Duration,
    pub(crate) client_cpu: Duration,
    /// `None` for raw SQLite, which runs in this process.
    pub(crate) memory: Option<Memory>,
    /// Cores used by other processes than the run and its client.
    pub(crate) others_cores: f64,
}

/// The start of a measurement.
pub(crate) struct Start {
    at: Instant,
    cpu: Duration,
}

/// The first row of a table of [`summary`]s.
pub(crate) const HEADING: [&str; 8] = [
    "",
    "changes/s min / median / max",
    "of raw min / median / max",
    "CPU s per million",
    "client CPU",
    "peak MB",
    "anonymous MB",
    "others' cores",
];

impl Start {
    /// Starts a measurement after the CPU time that the worker has used so far.
    pub(crate) fn now(worker: &BenchWorker) -> Result<Self> {
        Ok(Self { cpu: worker.cpu_time()?, at: Instant::now() })
    }

    /// Starts a measurement that begins with the process of the worker.
    pub(crate) fn of_process() -> Self {
        Self { cpu: Duration::ZERO, at: Instant::now() }
    }

    /// Returns the figures of a worker that has just applied the last change.
    pub(crate) fn end(&self, worker: &BenchWorker, changes: usize, client_cpu: Duration) -> Result<Measured> {
        Ok(Measured {
            changes,
            took: self.at.elapsed(),
            cpu: worker.cpu_time()?.saturating_sub(self.cpu),
            client_cpu,
            memory: Some(worker.memory()?),
            others_cores: 0.0,
        })
    }
}

impl Measured {
    /// Measures, and adds the cores that other processes use meanwhile.
    pub(crate) fn beside_others(measure: impl FnOnce() -> Result<Self>) -> Result<Self> {
        let (before, started) = (process::machine_cpu_time()?, Instant::now());
        let mut measured = measure()?;
        let all = process::machine_cpu_time()?.saturating_sub(before);
        let others = all.saturating_sub(measured.cpu + measured.client_cpu);
        measured.others_cores = others.as_secs_f64() / started.elapsed().as_secs_f64();
        Ok(measured)
    }

    fn per_second(&self) -> f64 {
        self.changes as f64 / self.took.as_secs_f64()
    }

    fn per_million(&self, cpu: Duration) -> f64 {
        cpu.as_secs_f64() * 1e6 / self.changes as f64
    }

    /// Returns the speed as a share of raw SQLite's.
    fn share(&self, raw: &Self) -> f64 {
        raw.took.as_secs_f64() / self.took.as_secs_f64()
    }

    /// Prints a run while others are still to come.
    pub(crate) fn report(&self, round: u32, name: &str, raw: Option<&Self>) -> Result<()> {
        writeln!(
            std::io::stderr(),
            "round {round}: {name:<12} {:>9.0} changes/s  {:>5.2} of raw  {:>5.2} CPU s per million  {:.1} cores to others",
            self.per_second(),
            raw.map_or(1.0, |raw| self.share(raw)),
            self.per_million(self.cpu),
            self.others_cores,
        )?;
        Ok(())
    }
}

/// Returns a row of the table for several runs, each compared with the raw run of its round.
pub(crate) fn summary(name: &str, runs: &[Measured], raws: Option<&[Measured]>) -> Vec<String> {
    let median = |figure: &dyn Fn(&Measured) -> f64, digits| {
        format!("{:.digits$}", Spread::of(runs.iter().map(figure)).median)
    };
    let megabytes = |part: &dyn Fn(Memory) -> u64| {
        let known = runs.iter().all(|run| run.memory.is_some());
        let of = |run: &Measured| run.memory.map_or(0.0, |memory| part(memory) as f64 / 1e6);
        if known { median(&of, 0) } else { String::new() }
    };
    let client = runs.iter().any(|run| !run.client_cpu.is_zero());
    vec![
        name.to_owned(),
        Spread::of(runs.iter().map(Measured::per_second)).show(0),
        raws.map_or_else(String::new, |raws| {
            Spread::of(raws.iter().zip(runs).map(|(raw, run)| run.share(raw))).show(2)
        }),
        median(&|run| run.per_million(run.cpu), 2),
        if client { median(&|run| run.per_million(run.client_cpu), 2) } else { String::new() },
        megabytes(&|memory| memory.peak_bytes),
        megabytes(&|memory| memory.anonymous_bytes),
        median(&|run| run.others_cores, 1),
    ]
}
