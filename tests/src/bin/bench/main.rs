//! How fast LiteJoin is, as a share of what plain SQLite does in the same run: absolute figures of two machines,
//! or of two days, can't be compared.
//!
//! Each subcommand repeats its measurements in turns (raw, this, that, raw, …), so that a neighbour who takes the
//! machine for a while slows all of them, and sets each beside the raw run of its own turn.

mod client;
mod ingest;
mod process;
mod raw;
mod table;
mod worker;
mod workload;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Measures LiteJoin beside plain SQLite, on this machine, in turns.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
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
    /// The HTTP client shares the machine with the worker. It is made cheap (bodies are made beforehand and
    /// written to plain sockets), and its CPU time is shown, but on a machine with few cores the worker would be
    /// faster without it.
    Ingest(ingest::Options),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Ingest(options) => ingest::run(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
