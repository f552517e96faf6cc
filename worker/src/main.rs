//! The program `litejoin`: arguments, logging, signals, exit codes.

#![cfg_attr(
    not(feature = "kafka"),
    allow(dead_code, unused_variables, reason = "parts that only Kafka needs stay")
)]

mod admin;
mod audit;
mod blocking;
mod clock;
mod commands;
mod control;
mod credentials;
mod dead_letters;
mod delivery;
mod evaluator;
mod fault;
mod join;
#[cfg(feature = "kafka")]
mod kafka;
mod manifest;
mod outbound;
mod pipeline;
mod replication;
mod reshard;
mod results;
mod runtime;
mod serve;
mod sink;
mod source;
mod status;
mod storage;
mod window;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use litejoin_crds::error::chain;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::blocking::blocking;
use crate::commands::arguments::{Arguments, Command, LogFormat, ReplicationAction, Run};
use crate::commands::{EXIT_INVALID, complain, environment};
use crate::credentials::Secrets;
use crate::manifest::watch::{self, Watch};
use crate::pipeline::Reload;

/// How often manifests are looked at that are watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// A second signal has cut the stop short.
const EXIT_INTERRUPTED: i32 = 130;

/// A bug in the worker, as Rust programs say it.
const EXIT_PANIC: i32 = 101;

/// Messages are allocated by one thread and freed by another, and SQLite allocates a lot: a tenth less CPU time than with
/// the allocator of glibc. Its settings are in .cargo/config.toml.
#[cfg(all(feature = "jemalloc", target_os = "linux", target_arch = "x86_64"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    // One that is installed already would be the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Run(run) => {
            let run = Arc::new(run);
            start_logging(&arguments.log, arguments.log_format);
            end_with_any_panic();
            if let Err(complaint) = run.check() {
                complain(&complaint);
                return ExitCode::from(EXIT_INVALID);
            }
            let secrets = Arc::new(Secrets::new(environment(), run.secrets_dir.clone()));
            let known = run.look();
            let pipeline = match run.load() {
                Ok((pipeline, warnings)) => {
                    complain(&warnings);
                    pipeline
                }
                Err(complaints) => {
                    complain(&complaints);
                    return ExitCode::from(EXIT_INVALID);
                }
            };
            let tools = run.tools();
            let runtime =
                tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio starts");
            let outcome = runtime.block_on(async {
                let (stop, stopped) = mpsc::channel(1);
                let (reload, reloads) = mpsc::channel(1);
                tokio::spawn(watch_signals(stop.clone()));
                tokio::spawn(watch_config(run, known, reload, stop));
                runtime::run(pipeline, secrets, tools, stopped, reloads).await
            });
            // A thread that reads standard input can't be waited for.
            runtime.shutdown_background();
            match outcome {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => {
                    complain(&format!("error: {}\n", chain(&error)));
                    ExitCode::FAILURE
                }
            }
        }
        Command::Validate(validate) => commands::validate::run(&validate),
        Command::Explain(explain) => commands::explain::run(&explain),
        Command::Audit(audit) => commands::audit::run(&audit),
        Command::Dlq(dlq) => commands::dlq::run(dlq.action),
        Command::Reshard(reshard) => {
            start_logging(&arguments.log, arguments.log_format);
            commands::reshard::run(&reshard)
        }
        Command::Restore(restore) => {
            start_logging(&arguments.log, arguments.log_format);
            commands::replication::run_restore(&restore)
        }
        Command::Replication { action } => {
            if matches!(action, ReplicationAction::Prepare { .. }) {
                start_logging(&arguments.log, arguments.log_format);
            }
            commands::replication::run(action)
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "litejoin", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

/// Stops the pipeline at the first signal, and the process at the second.
async fn watch_signals(stop: mpsc::Sender<()>) {
    let mut terminate = signal(SignalKind::terminate()).expect("signals can be handled");
    let mut interrupt = signal(SignalKind::interrupt()).expect("signals can be handled");
    for signals in 0.. {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if signals > 0 {
            std::process::exit(EXIT_INTERRUPTED);
        }
        let _ = stop.send(()).await;
    }
}

/// Reads the manifests again at each SIGHUP and, where that is asked for, when they have changed since `known`.
async fn watch_config(
    run: Arc<Run>,
    known: watch::Look,
    reload: mpsc::Sender<Reload>,
    stop: mpsc::Sender<()>,
) {
    let mut hangup = signal(SignalKind::hangup()).expect("signals can be handled");
    let had_terminal = std::io::stderr().is_terminal();
    let mut watch = Watch::new(known);
    loop {
        tokio::select! {
            _ = hangup.recv() => {
                // A terminal that is closed sends the same signal, and no key could end us from there any more.
                if had_terminal && !std::io::stderr().is_terminal() {
                    let _ = stop.send(()).await;
                    return;
                }
                info!("SIGHUP: reading the manifests again");
            }
            () = tokio::time::sleep(WATCH_INTERVAL), if run.watch => {
                let looked = Arc::clone(&run);
                if !watch.is_due(blocking(move || looked.look()).await) {
                    continue;
                }
                info!("the manifests or Secrets have changed; reading them again");
            }
        }
        let run = Arc::clone(&run);
        let (look, read) = blocking(move || (run.look(), run.load_again())).await;
        watch = Watch::new(look);
        if reload.send(read).await.is_err() {
            return;
        }
    }
}

fn start_logging(filter: &str, format: LogFormat) {
    let terminal = std::io::stderr().is_terminal();
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // A user who closes standard error does not want to know; complaining about it there would be a panic.
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match format {
        LogFormat::Json => logs.json().flatten_event(true).with_target(false).init(),
        LogFormat::Auto if !terminal => logs.json().flatten_event(true).with_target(false).init(),
        LogFormat::Auto | LogFormat::Human => logs.with_ansi(terminal).with_target(false).init(),
    }
}

/// Ends the process when any thread panics. A part of a pipeline that silently stands still is worse than a
/// restart, and a restart makes everything whole.
fn end_with_any_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        std::process::exit(EXIT_PANIC);
    }));
}
