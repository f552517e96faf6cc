//! The speed of LiteJoin as a share of plain SQLite's in the same run: absolute figures of two machines, or of two
//! days, can't be compared.
//!
//! Each subcommand repeats its measurements in turns (raw, this, that, raw, …), so that a neighbour who takes the
//! machine for a while slows all of them, and compares each with the raw run of its own round.

mod auction_house;
mod client;
mod ingest;
mod joins;
mod kafka;
mod latency;
mod measured;
mod memory;
mod order_stream;
mod percentile;
mod pipelines;
mod process;
mod queries;
mod raw;
mod replication;
mod reshard;
mod restart;
mod results;
mod row;
mod shop;
mod site;
mod table;
mod wide;
mod window_queries;
mod windows;
mod worker;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures LiteJoin beside plain SQLite, on this machine, in turns.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct BenchArguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Acknowledged upserts a second, over HTTP and from files
    ///
    /// All ways store the same rows: some customers, then updates of orders, seed 42. `raw` is a writer thread for
    /// each shard that does nothing but upsert into SQLite, 1,000 rows a transaction, with WAL and
    /// synchronous=NORMAL. `http` posts NDJSON bodies over several kept-alive connections and counts what was
    /// answered, `ndjson` and `csv` read files. No join reads the topics, but all that joins need is written: old
    /// and new images, epochs, offsets.
    ///
    /// The HTTP client shares the machine with the worker. The client is made cheap (bodies are made beforehand and
    /// written to plain sockets), and its CPU time is shown, but on a machine with few cores the worker would be
    /// faster without it.
    Ingest(ingest::IngestOptions),

    /// Changes a second through a join, until its results are stored
    ///
    /// W1 and W2 have the rows of `ingest`: 10,000 customers, then events, 1 % of which rename a customer and 99 %
    /// update one of 100,000 orders (1 % of those move to another customer). W1 joins orders with their customers on
    /// a field that is no key, W2 counts and sums the orders of each customer. Q3, Q4, Q9 and Q20 are queries of
    /// Nexmark over the rows of its own generator, with rows that are changed or deleted later mixed in; only the
    /// topics that a query reads are filled. The queries are in tests/src/bin/bench/queries.
    ///
    /// Rows are posted over HTTP, which `ingest` finds to be the quickest way. The time ends when the last change is
    /// applied and its results are stored with their events in results.db, not when it was only acknowledged. Then
    /// the results are compared with what SQLite yields for the query over the final rows; a difference is an error.
    /// `raw` writes the same rows to the same number of SQLite files and joins nothing. Result events are counted
    /// too, and the evaluations they came from: a worker that looks less often has less to tell.
    ///
    /// For a quick look: `bench joins --events 20000 --rounds 1 --only w1`
    Joins(joins::JoinsOptions),

    /// Changes a second through windows, until all of their frames are closed and stored
    ///
    /// Rows bring an event time, and windows close by it. Orders come once each, a thousand in a second of their time,
    /// 10,000 customers in turn by chance; some come up to 5 s late, and one in twenty is corrected, one in 200 cancelled
    /// within the next 10,000. Q5 and Q8 are queries of Nexmark over the rows of its own generator, 10,000 in a second of
    /// their time, of which only the topics are filled that the windows read. The queries are in
    /// tests/src/bin/bench/queries/windows. All results are told once, when their frame closes.
    ///
    /// Rows are posted over HTTP. When the last is acknowledged, one more comes with a time an hour later, which closes
    /// all frames; the time ends when their results are stored with their events in results.db. Then they are compared
    /// with what SQLite yields over the final rows; a difference is an error, and so is a row that came too late. `raw`
    /// writes the same rows to the same number of SQLite files.
    ///
    /// For a quick look: `bench windows --events 20000 --rounds 1 --only sums`
    Windows(windows::WindowsOptions),

    /// Kafka in, a join, Kafka out: records a second until the last result is in Kafka
    ///
    /// The rows of W1 in `joins` wait in Kafka, in a broker that this starts (tests/kafka/fetch gets it). A worker reads
    /// them from the start, once into topics alone, once through the join as well, and once with a Kafka sink, in the
    /// same round: the differences are the stages' shares of the time. Each ends when the last record is stored, the last
    /// result is stored, and the broker has acknowledged the last result. The last record of each key is compared
    /// with what SQLite yields. The broker shares the machine with the worker.
    ///
    /// For a quick look: `bench kafka --events 20000 --rounds 1`
    Kafka(kafka::KafkaOptions),

    /// The cost of replication: changes a second with it, beside the same without
    ///
    /// The rows of W1 in `joins`, once into topics alone and once through the join, each without and with replication to
    /// an S3 server on this machine (tests/litestream/build gets it and Litestream). A run ends as in `joins`; with
    /// replication also shown is the time until the replica has everything, and for how long the writers rested for
    /// exact cuts. Litestream and the S3 server share the machine with the worker, and are among the others.
    ///
    /// For a quick look: `bench replication --events 50000 --rounds 1`
    Replication(replication::ReplicationOptions),

    /// Time from a POST to the event of its result, under a steady load
    ///
    /// Stores 10,000 customers and some orders under the join W1, then posts updates by a timetable at a share of the
    /// peak for some seconds, 1 % of them customers, while one client of the SSE sink reads what comes. The latency
    /// of an order begins when the timetable wants it to be posted, so a worker that makes the client wait gains
    /// nothing by it, and ends when the event is read. A message may wait for others for as long as
    /// storage.flushInterval, so figures are also shown less that. The update of each order must come, or a newer
    /// update of the same order in its place.
    ///
    /// The peak is measured first, with updates posted as in `joins`, unless `--peak` says it.
    Latency(latency::LatencyOptions),

    /// Time from kill -9 until a worker serves again, and until all results are current
    ///
    /// Stores a million rows (10,000 customers, the others orders) under the join W1 and waits for the results. Each
    /// round then posts some updates, kills the worker as soon as they are acknowledged, whether they are applied or
    /// not, and starts it again in the same directory. The worker serves when /readyz answers 200; it is current when the
    /// epoch is applied in which a row is seen that was posted again. The files are in the page cache, so this is a
    /// crash of the process, not of the machine. In the end the results are compared with what SQLite yields.
    Restart(restart::RestartOptions),

    /// Rows a second that go to another number of shards, and how long the pipeline stands still
    ///
    /// Stores a million rows under the join W1. Each round stops the worker, moves the data by `litejoin reshard`, and
    /// starts the worker with the new number; the next round goes back. Raw are the same rows, written into as many
    /// files. In the end the results are compared with what SQLite yields.
    Reshard(reshard::ReshardOptions),

    /// One change that touches a million results: memory, and how long other joins stand still
    ///
    /// Stores a million orders of one customer under the join W1, and starts the worker anew so that its memory is
    /// counted from then on. While a row of another topic is updated every few milliseconds and a client reads the
    /// results of a join of its own, the customer is renamed once a round. Shown are the time until all results have the
    /// new name, the most memory up to then, and the longest time for which no event came of the other join,
    /// beside the longest such time before.
    Wide(wide::WideOptions),

    /// Many Pipelines made at once on a real API server: time until all are settled, calls, memory of the operator
    ///
    /// 500 Pipelines with four documents each are made by 16 requests at a time. They have settled when each status is
    /// about its document and knows of the pod that was made. Then the operator is started anew, which must write
    /// nothing. Build it before: `cargo build --profile dist --workspace`.
    Pipelines(pipelines::PipelinesOptions),
}

fn main() -> ExitCode {
    let outcome = match BenchArguments::parse().command {
        Command::Ingest(options) => ingest::run(&options),
        Command::Joins(options) => joins::run(&options),
        Command::Windows(options) => windows::run(&options),
        Command::Kafka(options) => kafka::run(&options),
        Command::Replication(options) => replication::run(&options),
        Command::Latency(options) => latency::run(&options),
        Command::Restart(options) => restart::run(&options),
        Command::Reshard(options) => reshard::run(&options),
        Command::Wide(options) => wide::run(&options),
        Command::Pipelines(options) => pipelines::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
