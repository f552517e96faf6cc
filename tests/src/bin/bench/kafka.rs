//! Kafka to Kafka: from waiting records in Kafka, through a join, to records in Kafka, compared with raw SQLite, in
//! turns; and the cost of each stage.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use litejoin_tests::kafka::KafkaCluster;
use litejoin_tests::results::{Event, Results};
use litejoin_tests::wait::until_moment;
use serde_json::Value;

use crate::client;
use crate::measured::{HEADING, Measured, Start, summary};
use crate::queries::BenchQuery;
use crate::row::Row;
use crate::site::{self, BenchSite};
use crate::table::{Spread, layout};
use crate::worker::{BenchWorker, HTTP_SOURCE, Pipeline};
use crate::{raw, results};

/// The measured join.
const QUERY: BenchQuery = BenchQuery::W1;

/// Pause between two polls of the worker's progress.
const LOOK: Duration = Duration::from_millis(20);

/// Options of `bench kafka`.
#[derive(Debug, Args)]
pub(crate) struct KafkaOptions {
    /// Updates of orders and customers, after the customers
    #[arg(long, default_value_t = 300_000, value_parser = clap::value_parser!(u64).range(1..))]
    events: u64,

    /// Partitions of each Kafka topic
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    partitions: u8,

    /// Write results in transactions
    #[arg(long)]
    transactional: bool,

    #[command(flatten)]
    site: site::SiteOptions,
}

/// The last stage that records pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Into topics.
    In,
    /// Through the join.
    Join,
    /// Into Kafka again.
    Through,
}

impl Stage {
    const ALL: [Self; 3] = [Self::In, Self::Join, Self::Through];

    fn name(self) -> &'static str {
        match self {
            Self::In => "kafka → topics",
            Self::Join => "… → join",
            Self::Through => "… → kafka",
        }
    }
}

struct KafkaSetup<'o> {
    options: &'o KafkaOptions,
    site: &'o BenchSite,
    runtime: &'o tokio::runtime::Runtime,
    cluster: &'o KafkaCluster,
    rows: Vec<Row>,
    expected: Results,
}

/// Runs the rounds and prints the table.
pub(crate) fn run(options: &KafkaOptions) -> Result<()> {
    let site = options.site.site()?;
    let runtime = tokio::runtime::Runtime::new()?;
    let cluster = runtime.block_on(KafkaCluster::start(1));
    let rows = QUERY.rows(options.events, options.site.seed);
    writeln!(std::io::stderr(), "{} records; SQLite finds what must come of them", rows.len())?;
    let expected = results::expected(QUERY, &rows);
    let setup = KafkaSetup { options, site: &site, runtime: &runtime, cluster: &cluster, rows, expected };
    let partitions = i32::from(options.partitions);
    runtime.block_on(async {
        for topic in QUERY.topics() {
            cluster.create_topic(topic, partitions).await;
            let of_topic = setup.rows.iter().filter(|row| row.topic == *topic);
            let records =
                of_topic.map(|row| (row.key.to_string(), row.payload.as_deref().map(str::to_owned)));
            cluster.producer().send_all(topic, records).await;
        }
    });
    let mut raws = Vec::new();
    let mut runs: [Vec<Measured>; 3] = Default::default();
    for round in 1..=options.site.rounds {
        let base = setup.measure_raw()?;
        base.report(round, "raw", None)?;
        raws.push(base);
        for (way, runs) in Stage::ALL.into_iter().zip(&mut runs) {
            let run = setup.measure(way, round)?;
            run.report(round, way.name(), Some(&base))?;
            runs.push(run);
        }
    }
    let mut table = vec![HEADING.map(str::to_owned).to_vec(), summary("raw", &raws, None)];
    table.extend(Stage::ALL.iter().zip(&runs).map(|(way, runs)| summary(way.name(), runs, Some(&raws))));
    let mut out = std::io::stdout().lock();
    let KafkaOptions { events, partitions, transactional, site: site::SiteOptions { shards, rounds, .. } } =
        options;
    writeln!(
        out,
        "\n{events} updates that wait in {partitions} partitions a topic, {shards} shards, {rounds} rounds, \
         transactions: {transactional}.\nUntil the last result is stored or, with a Kafka sink, acknowledged by the \
         broker; results are checked against SQLite after each run.\nThe broker runs on the same cores; its CPU time is \
         among the others'.\n"
    )?;
    out.write_all(layout(&table).as_bytes())?;
    let median = |runs: &[Measured]| Spread::of(runs.iter().map(|run| run.took.as_secs_f64())).median;
    let [read, joined, through] = [median(&runs[0]), median(&runs[1]), median(&runs[2])];
    let share = |time: f64| 100.0 * time / through;
    writeln!(
        out,
        "\nshare of time by stage: reading and storing {:.0} %, joining {:.0} %, writing to Kafka {:.0} %",
        share(read),
        share(joined - read),
        share(through - joined)
    )?;
    Ok(())
}

impl KafkaSetup<'_> {
    fn measure_raw(&self) -> Result<Measured> {
        let measure = |run: &Path| raw::measure(run, self.site.shard_count, QUERY.topics(), &self.rows);
        self.site.in_run(|run| Measured::beside_others(|| measure(run)))
    }

    fn measure(&self, way: Stage, round: u32) -> Result<Measured> {
        let brokers = self.cluster.brokers();
        let output = format!("enriched-{round}");
        let sources = format!(
            "{HTTP_SOURCE}    - {{name: events, kafka: {{brokers: \"{brokers}\", topics: [{}]}}}}\n",
            QUERY.topics().join(", ")
        );
        let sink = format!(
            "    - {{name: out, kafka: {{brokers: \"{brokers}\", topic: {output}, transactional: {}}}}}\n",
            self.options.transactional
        );
        if way == Stage::Through {
            let partitions = i32::from(self.options.partitions);
            self.runtime.block_on(self.cluster.create_topic(&output, partitions));
        }
        let joins = [QUERY.join()];
        self.site.in_run(|run| {
            let pipeline = Pipeline {
                sources: &sources,
                joins: if way == Stage::In { &[] } else { &joins },
                sink: (way == Stage::Through).then_some(("out", &sink)),
                ..Pipeline::new(self.site.shard_count)
            };
            let worker = BenchWorker::start(&self.site.binary, run, &pipeline)?;
            let measured = Measured::beside_others(|| {
                let start = Start::now(&worker)?;
                self.wait(&worker, way)?;
                start.end(&worker, self.rows.len(), Duration::ZERO)
            })?;
            if way != Stage::In {
                results::check(&worker, QUERY.name(), &self.expected)?;
            }
            if way == Stage::Through {
                self.check_output(&output)?;
            }
            Ok(measured)
        })
    }

    /// Waits until all records have passed the last stage.
    fn wait(&self, worker: &BenchWorker, way: Stage) -> Result<()> {
        let all = self.rows.len() as u64;
        until(worker, |status| status["sources"]["events"]["accepted"].as_u64() >= Some(all))?;
        if way == Stage::In {
            return Ok(());
        }
        // The epoch of the last message contains all records.
        let last = Row { topic: "marks", key: "end".into(), payload: Some("1".into()) };
        let ingest = worker.ingest()?;
        let epoch = client::Connection::open(ingest)?.send(&client::request(&[&last], ingest))?;
        results::wait_until_applied(worker, QUERY.name(), epoch)?;
        if way == Stage::Through {
            until(worker, |status| {
                let sink = &status["sinks"]["out"];
                let changed = status["joins"][QUERY.name()]["resultsChanged"].as_u64();
                sink["lagEpochs"] == 0 && sink["delivered"].as_u64() >= changed
            })?;
        }
        Ok(())
    }

    /// Compares the last record of each key in Kafka with the expected results.
    fn check_output(&self, output: &str) -> Result<()> {
        let mut last: BTreeMap<String, String> = BTreeMap::new();
        for record in self.runtime.block_on(self.cluster.read(output)) {
            let key = record.key.context("a record without a key")?;
            match record.value {
                Some(value) => last.insert(key, value),
                None => last.remove(&key),
            };
        }
        let events: Vec<Event> = last.values().map(|value| Event::read(value)).collect();
        let wrong = self.expected.changes(&Results::folded(&events)).len();
        ensure!(wrong == 0, "{wrong} results in Kafka are not what SQLite gives");
        Ok(())
    }
}

/// Waits until `/status` satisfies `is_there`.
fn until(worker: &BenchWorker, is_there: impl Fn(&Value) -> bool) -> Result<()> {
    loop {
        let status = worker.status()?;
        if is_there(&status) {
            return Ok(());
        }
        for (kind, name) in [("sources", "events"), ("sinks", "out")] {
            let error = &status[kind][name]["lastError"];
            ensure!(error.is_null(), "{name} fails: {error}");
        }
        until_moment(std::time::Instant::now() + LOOK);
    }
}
