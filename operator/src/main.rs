//! The operator's program: arguments, logging, client, signals.

mod controller;
mod error;
mod leader;
mod metrics;
mod serve;

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use kube::Client;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

use crate::controller::{Operator, Scope, Settings};
use crate::metrics::Metrics;

/// How long reconciles that are under way may take once the program is asked to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// Turns LiteJoin's custom resources into StatefulSets that run the worker.
#[derive(Parser)]
#[command(name = "litejoin-operator", version)]
struct Arguments {
    /// The one namespace to look after; all of them where absent
    #[arg(long, env = "LITEJOIN_NAMESPACE")]
    namespace: Option<String>,

    /// Image of workers whose Pipeline names none
    #[arg(long, env = "LITEJOIN_WORKER_IMAGE", default_value = concat!("litejoin:", env!("CARGO_PKG_VERSION")))]
    worker_image: String,

    /// Where to serve /healthz, /readyz and /metrics
    #[arg(long, env = "LITEJOIN_ADDRESS", default_value = "0.0.0.0:8080")]
    address: String,

    /// Pipelines that are worked on at once
    #[arg(long, env = "LITEJOIN_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,

    /// Seconds that a pod may stay beyond its end before its node counts as lost, if that does not answer
    #[arg(long, env = "LITEJOIN_NODE_LOSS_SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    node_loss_seconds: u64,

    /// Namespace of the Lease by which operators agree who works
    #[arg(long, env = "LITEJOIN_LEASE_NAMESPACE")]
    lease_namespace: Option<String>,

    /// What this operator is called in the Lease, such as its pod's name
    #[arg(long, env = "POD_NAME", default_value = "litejoin-operator")]
    identity: String,

    /// Seconds after which another operator takes over from one that is gone
    #[arg(long, env = "LITEJOIN_LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=3600))]
    lease_seconds: u64,

    /// What to log: error, warn, info, debug, trace, or a tracing filter
    #[arg(long, env = "LITEJOIN_LOG", default_value = "info")]
    log: String,

    /// How to log: for people, for machines, or for people on a terminal and for machines elsewhere
    #[arg(long, value_enum, env = "LITEJOIN_LOG_FORMAT", default_value = "auto")]
    log_format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Auto,
    Human,
    Json,
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    start_logging(&arguments.log, arguments.log_format);
    match run(arguments).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("{problem:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs until a signal asks for the end, or the lease is lost.
async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let client = Client::try_default().await?;
    let metrics = Arc::new(Metrics::default());
    let server = serve::start(&arguments.address, Arc::clone(&metrics)).await?;
    info!(address = %server.address, "serves health and metrics");

    let (stop, stopped) = watch::channel(false);
    tokio::spawn(async move {
        wait_for_signal().await;
        stop.send_replace(true);
    });
    let lease_namespace = arguments
        .lease_namespace
        .or_else(|| arguments.namespace.clone())
        .unwrap_or_else(|| client.default_namespace().to_owned());
    let seat = leader::Seat {
        scope: arguments.namespace.clone(),
        namespace: lease_namespace.clone(),
        identity: arguments.identity,
        lease_seconds: arguments.lease_seconds,
    };
    let Some(leadership) = seat.take(&client, stopped.clone()).await? else { return Ok(()) };
    metrics.leader.set(1);
    info!("leads");

    let settings = Settings {
        scope: arguments.namespace.map_or(Scope::Cluster, Scope::Namespace),
        operator: Operator { worker_image: arguments.worker_image, namespace: lease_namespace },
        concurrency: arguments.concurrency,
        node_loss_after: Duration::from_secs(arguments.node_loss_seconds),
    };
    let controller = controller::run(client, settings, Arc::clone(&metrics), stopped.clone());
    let outcome = tokio::select! {
        () = controller => Ok(()),
        () = idle_after_stop(stopped, &metrics) => Ok(()),
        () = leadership.lost() => Err(anyhow::anyhow!("another operator leads now; this one ends, to start anew")),
    };
    metrics.leader.set(0);
    leadership.hand_over().await;
    outcome
}

/// Waits until the program is asked to end, and then until no reconcile is under way. The controller waits for that
/// too, but without end if it has not seen all pipelines yet. Another operator repeats a reconcile that is cut short.
async fn idle_after_stop(mut stopped: watch::Receiver<bool>, metrics: &Metrics) {
    // An error means that the sender is gone, so the process is ending anyway.
    let _ = stopped.wait_for(|stopped| *stopped).await;
    let idle = async {
        let mut looks = tokio::time::interval(Duration::from_millis(50));
        while metrics.active.get() > 0 {
            looks.tick().await;
        }
    };
    if tokio::time::timeout(STOP_TIMEOUT, idle).await.is_err() {
        warn!("a reconcile takes too long to wait for; it will be repeated");
    }
}

async fn wait_for_signal() {
    let mut terminate = signal(SignalKind::terminate()).expect("a signal can be listened for");
    let mut interrupt = signal(SignalKind::interrupt()).expect("a signal can be listened for");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stops: finishes what it is at");
}

fn start_logging(filter: &str, format: LogFormat) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let json = match format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        logs.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
    } else {
        logs.init();
    }
}
