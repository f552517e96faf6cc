//! The program `litejoin`: arguments, logging, signals, exit codes.

mod admin;
mod audit;
mod blocking;
mod cli;
mod clock;
mod control;
mod credentials;
mod delivery;
mod dlq;
mod epoch;
mod explain;
mod fault;
mod join;
mod kafka;
mod listen;
mod manifest;
mod message;
mod outbound;
mod replication;
mod results;
mod runtime;
mod serve;
mod sink;
mod source;
mod status;
mod storage;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use litejoin_crds::error::chain;
use litejoin_crds::plan::Plan;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tracing::info;
use tracing_subscriber::EnvFilter;

use crate::audit::command::{CommandError, Table};
use crate::blocking::blocking;
use crate::cli::{
    Arguments, Audit, Command, DlqAction, DlqFilter, DlqQueue, Explain, LogFormat, Output, ReplicaOf,
    ReplicationAction, Run,
};
use crate::credentials::Secrets;
use crate::delivery::dead_letters::inspect::{Entry, Filter};
use crate::dlq::DlqError;
use crate::manifest::watch::{self, Watch};
use crate::replication::command::{self, Aim};
use crate::replication::{ReplicationError, Tools};
use crate::runtime::Reload;

/// How often manifests are looked at that are watched.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The manifests are wrong: their author must put them right.
const EXIT_INVALID: u8 = 2;

/// A second signal has cut the stop short.
const EXIT_INTERRUPTED: i32 = 130;

/// A bug in the worker, as Rust programs say it.
const EXIT_PANIC: i32 = 101;

/// Messages are allocated by one thread and freed by another, and SQLite allocates a lot: a tenth less CPU time than with
/// the allocator of glibc. Its settings are in .cargo/config.toml.
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
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
            let secrets =
                Arc::new(Secrets::new(std::env::vars_os().filter_map(text), run.secrets_dir.clone()));
            let known = watch::look(&run.files);
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
        Command::Validate(validate) => match cli::load(&validate.files) {
            Ok((pipeline, warnings)) => {
                complain(&warnings);
                say(&format!("{}\n", cli::summary(&pipeline.plan)));
                ExitCode::SUCCESS
            }
            Err(complaints) => {
                complain(&complaints);
                ExitCode::from(EXIT_INVALID)
            }
        },
        Command::Explain(explain) => show_costs(&explain),
        Command::Audit(audit) => check_results(&audit),
        Command::Dlq(dlq) => look_into_queue(dlq.action),
        Command::Restore(restore) => {
            start_logging(&arguments.log, arguments.log_format);
            replica_command(&restore.replica, async |plan, secrets, tools| {
                let aim = match (&restore.to, restore.verify) {
                    (Some(folder), _) => Aim::Folder(folder),
                    (None, true) => Aim::Nowhere,
                    (None, false) => Aim::DataDir,
                };
                command::restore(&plan, &secrets, &tools, aim, restore.timestamp.as_ref(), &mut say).await
            })
        }
        Command::Replication { action: ReplicationAction::Status { replica, output } } => {
            replica_command(&replica, async |plan, secrets, _| {
                let told = command::status(&plan, &secrets).await?;
                say(&match output {
                    Output::Text => told.text(clock::epoch_seconds()),
                    Output::Json => {
                        serde_json::to_string_pretty(&told).expect("plain fields are always JSON") + "\n"
                    }
                });
                Ok(())
            })
        }
        Command::Replication { action: ReplicationAction::Prepare { replica, expect_replica } } => {
            start_logging(&arguments.log, arguments.log_format);
            replica_command(&replica, async |plan, secrets, tools| {
                let tools = Tools { expects_replica: expect_replica, ..tools };
                command::prepare(&plan, &secrets, &tools).await
            })
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "litejoin", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

/// Runs a command about a replica.
fn replica_command(
    arguments: &ReplicaOf,
    work: impl AsyncFnOnce(Plan, Secrets, Tools) -> Result<(), ReplicationError>,
) -> ExitCode {
    let plan = match arguments.plan() {
        Ok(plan) => plan,
        Err(complaints) => {
            complain(&complaints);
            return ExitCode::from(EXIT_INVALID);
        }
    };
    let secrets = Secrets::new(std::env::vars_os().filter_map(text), arguments.secrets_dir.clone());
    let tools = Tools { litestream: arguments.litestream.program.clone(), expects_replica: false };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("tokio starts");
    match runtime.block_on(work(plan, secrets, tools)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("error: {}\n", chain(&error)));
            ExitCode::FAILURE
        }
    }
}

fn show_costs(arguments: &Explain) -> ExitCode {
    let (pipeline, complaints) = match cli::load(&arguments.files) {
        Ok(loaded) => loaded,
        Err(complaints) => {
            complain(&complaints);
            return ExitCode::from(EXIT_INVALID);
        }
    };
    complain(&complaints);
    let chosen = match join::named(&pipeline.joins, &arguments.joins) {
        Ok(chosen) => chosen,
        Err(wrong) => {
            complain(&format!("error: {wrong}\n"));
            return ExitCode::from(EXIT_INVALID);
        }
    };
    let known = match explain::know(&pipeline.plan, arguments.data_dir.as_deref(), arguments.admin.as_deref())
    {
        Ok(known) => known,
        Err(error) => {
            complain(&format!("error: {}\n", chain(&error)));
            return ExitCode::FAILURE;
        }
    };
    let explanation = explain::explain(&pipeline.plan, &chosen, &known, complaints.lines().count());
    say(&match arguments.output {
        Output::Text => explanation.text(std::io::stdout().is_terminal()),
        Output::Json => explanation.json(),
    });
    ExitCode::from(u8::from(arguments.deny_warnings && explanation.warnings() > 0))
}

fn check_results(arguments: &Audit) -> ExitCode {
    let pipeline = match arguments.files.is_empty() {
        true => None,
        false => match cli::load(&arguments.files) {
            Ok((pipeline, _)) => Some(pipeline),
            Err(complaints) => {
                complain(&complaints);
                return ExitCode::from(EXIT_INVALID);
            }
        },
    };
    let data_dir = arguments.data.folder(pipeline.as_ref().map(|pipeline| &pipeline.plan));
    let written = pipeline.as_ref().map(|pipeline| (&pipeline.plan, pipeline.joins.as_slice()));
    let (mut table, mut wrong) = (Table::default(), false);
    let outcome = audit::command::run(data_dir, written, &arguments.joins, &mut |finding| {
        wrong |= finding.is_wrong();
        say(&match arguments.output {
            Output::Text => table.row(finding),
            Output::Json => serde_json::to_string(finding).expect("plain fields are always JSON") + "\n",
        });
    });
    if let Err(error) = outcome {
        complain(&format!("error: {}\n", chain(&error)));
        let invalid = matches!(error, CommandError::Names(_));
        return if invalid { ExitCode::from(EXIT_INVALID) } else { ExitCode::FAILURE };
    }
    if arguments.output == Output::Text {
        say(table.end());
    }
    ExitCode::from(u8::from(wrong))
}

/// Why `litejoin dlq` did not do what it was asked, and the exit code that says so.
struct Refusal(String, u8);

impl From<DlqError> for Refusal {
    fn from(error: DlqError) -> Self {
        Self(format!("error: {}\n", chain(&error)), 1)
    }
}

fn look_into_queue(action: DlqAction) -> ExitCode {
    match try_look_into_queue(action) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refusal(complaint, code)) => {
            complain(&complaint);
            ExitCode::from(code)
        }
    }
}

fn try_look_into_queue(action: DlqAction) -> Result<(), Refusal> {
    let now = clock::epoch_seconds();
    let find = |queue: &DlqQueue| queue.queue().map_err(|complaints| Refusal(complaints, EXIT_INVALID));
    let all_of_it = |filter: DlqFilter, all: bool| {
        let filter = filter.filter(now);
        match filter.is_empty() && !all {
            true => Err(Refusal("error: say which ones, or --all\n".to_owned(), EXIT_INVALID)),
            false => Ok(filter),
        }
    };
    let mut stdout = std::io::stdout().lock();
    let mut print = |entry: &Entry| {
        writeln!(stdout, "{}", serde_json::to_string(entry).expect("an entry is always JSON")).map(|()| true)
    };
    match action {
        DlqAction::List { queue, filter, limit, output } => {
            let (queue, mut table, mut left) = (find(&queue)?, dlq::Table::default(), limit);
            queue.read(&filter.filter(now), false, &mut |entry| {
                if left == 0 {
                    return Ok(false);
                }
                left -= 1;
                match output {
                    Output::Json => print(entry),
                    Output::Text => {
                        say(&table.row(entry, now));
                        Ok(true)
                    }
                }
            })?;
            if output == Output::Text {
                say(&table.end());
            }
        }
        DlqAction::Show { queue, ids } => {
            let queue = find(&queue)?;
            for id in ids {
                let (filter, mut found) = (Filter { ids: vec![id.clone()], ..Filter::default() }, false);
                queue.read(&filter, true, &mut |entry| {
                    found = true;
                    say(&(serde_json::to_string_pretty(entry).expect("an entry is always JSON") + "\n"));
                    Ok(true)
                })?;
                if !found {
                    return Err(DlqError::Unknown { id }.into());
                }
            }
        }
        DlqAction::Retry { queue, filter, all } => {
            let count = find(&queue)?.retry(&all_of_it(filter, all)?)?;
            say(&format!("{count} to be tried again\n"));
        }
        DlqAction::Purge { queue, filter, all } => {
            let count = find(&queue)?.purge(&all_of_it(filter, all)?)?;
            say(&format!("{count} thrown away\n"));
        }
        DlqAction::Export { queue, filter } => find(&queue)?.read(&filter.filter(now), true, &mut print)?,
    }
    Ok(())
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
                // A terminal that is closed sends the same signal, and nobody could end us from there any more.
                if had_terminal && !std::io::stderr().is_terminal() {
                    let _ = stop.send(()).await;
                    return;
                }
                info!("SIGHUP: reading the manifests again");
            }
            () = tokio::time::sleep(WATCH_INTERVAL), if run.watch => {
                let looked = Arc::clone(&run);
                if !watch.is_due(blocking(move || watch::look(&looked.files)).await) {
                    continue;
                }
                info!("the manifests have changed; reading them again");
            }
        }
        let run = Arc::clone(&run);
        let (look, read) = blocking(move || (watch::look(&run.files), run.load_again())).await;
        watch = Watch::new(look);
        if reload.send(read).await.is_err() {
            return;
        }
    }
}

fn start_logging(filter: &str, format: LogFormat) {
    let terminal = std::io::stderr().is_terminal();
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    // Whoever closes standard error does not want to know; complaining about it there would be a panic.
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

/// A variable of the environment, if it is text.
fn text((name, value): (OsString, OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

/// Writes to standard error; whoever closed it does not want to know.
fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes to standard output; whoever closed it does not want to know.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
