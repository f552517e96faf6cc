//! Reconcile as a list of steps. It looks at what is there, never at why it was called, and can stop at any `?` and
//! start over: each step that writes says what is wanted and writes only where that differs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::api::DynamicObject;
use kube::runtime::controller::{self, Action, Config};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use litejoin_crds::error::chain;
use tokio::sync::watch::Receiver;
use tracing::{debug, info, warn};

use crate::error::Error;
use crate::metrics::{Metrics, Reason};
use publish::Publisher;
use status::Findings;
use watch::{Children, PendingReconciles, SecretWatch};
use worker::{Awaited, Workers};

mod apply;
mod build;
mod config_map;
mod kinds;
mod names;
mod node_loss;
mod object;
mod observe;
mod publish;
mod reshard;
mod slot;
mod status;
mod validate;
mod watch;
mod worker;

pub(crate) use build::Operator;
pub(crate) use watch::Scope;

#[cfg(test)]
mod tests;

/// How often a pipeline is reconciled while nothing happens to it.
const RESYNC_INTERVAL: Duration = Duration::from_secs(300);

/// How soon a missing pod is looked for again: a read may be older than the event that led to it.
const NO_POD_AGAIN: Duration = Duration::from_secs(10);

/// How soon a Pipeline is read again if the read was older than the event that led to it.
const STALE_AGAIN: Duration = Duration::from_secs(1);

/// The longest wait before a failed reconcile is tried again.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Failures in a row from which on the status says why: a failure that passes by itself soon is no news.
const FAILURES_REPORTED_MIN: u32 = 3;

/// Changes within this time of each other lead to one reconcile.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// The settings that the operator is started with.
pub(crate) struct Settings {
    pub(crate) scope: Scope,
    pub(crate) operator: Operator,
    /// Pipelines that are reconciled at once.
    pub(crate) concurrency: u16,
    /// How long after its time a pod may still be there before its node, if that does not answer, counts as lost.
    pub(crate) node_loss_after: Duration,
}

/// The clients, memory and settings that every reconcile uses.
struct Context {
    client: Client,
    operator: Operator,
    node_loss_after: Duration,
    children: Children,
    secret_watch: SecretWatch,
    workers: Workers,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    /// Failures in a row, by pipeline.
    failures: Mutex<HashMap<String, u32>>,
    /// Workers that are waited for, by pipeline: since when, and which config of which pod.
    awaited: Mutex<HashMap<String, (Instant, Awaited)>>,
    /// Missing Pipelines whose children are getting a "not found" status; `true` if another child appeared meanwhile.
    missing: Mutex<HashMap<String, bool>>,
}

/// Reconciles pipelines until the program is asked to end.
pub(crate) async fn run(
    client: Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    mut stopped: Receiver<bool>,
) {
    let pending = Arc::new(PendingReconciles::default());
    let children = Children::start(|kind| watch::dynamic(&client, &settings.scope, kind), &pending);
    let secret_watch = SecretWatch::new(client.clone(), Arc::clone(&pending));
    children.known().await;
    let controller = watch::controller(&client, &settings.scope).reconcile_on(pending.pipelines());
    let context = Arc::new(Context {
        client: client.clone(),
        children,
        secret_watch,
        operator: settings.operator,
        node_loss_after: settings.node_loss_after,
        workers: Workers::new(pending),
        publisher: Publisher::new(client),
        metrics,
        failures: Mutex::default(),
        awaited: Mutex::default(),
        missing: Mutex::default(),
    });
    let stop = async move {
        // An error means that the sender is gone, so the process is ending anyway.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let config = Config::default().concurrency(settings.concurrency).debounce(DEBOUNCE);
    controller
        .with_config(config)
        .graceful_shutdown_on(stop)
        .run(reconcile, after_error, Arc::clone(&context))
        .for_each(|outcome| {
            after(outcome, &context);
            std::future::ready(())
        })
        .await;
}

/// Gives the children of a missing Pipeline a status that says so. kube's controller repeats a reconcile only for an
/// object that exists, so failures are repeated here.
async fn report_missing(context: Arc<Context>, namespace: String, name: String) {
    let pipeline = format!("{namespace}/{name}");
    let mut attempt = 0;
    loop {
        context.missing().insert(pipeline.clone(), false);
        let Err(error) = steps(&context, None, &namespace, &name).await else {
            let mut missing = context.missing();
            // Another child may have appeared while the others got their status.
            if missing.remove(&pipeline) == Some(true) {
                continue;
            }
            return;
        };
        attempt += 1;
        let wait = context.failed(&pipeline, &error, attempt);
        tokio::time::sleep(wait).await;
    }
}

/// Reacts to the outcome of a reconcile, or of an attempt at one.
fn after(outcome: Outcome, context: &Arc<Context>) {
    match outcome {
        Ok(_) => {}
        // A child names a Pipeline that does not exist.
        Err(controller::Error::ObjectNotFound(pipeline)) => {
            let namespace = pipeline.namespace.unwrap_or_default();
            let key = format!("{namespace}/{}", pipeline.name);
            if context.missing().insert(key, true).is_none() {
                tokio::spawn(report_missing(Arc::clone(context), namespace, pipeline.name));
            }
        }
        // Watches recover by themselves.
        Err(controller::Error::QueueError(error)) => warn!(error = chain(&error), "could not watch"),
        // `reconcile` has logged its own errors already.
        Err(error) => debug!(error = chain(&error), "the controller"),
    }
}

type Outcome = Result<(ObjectRef<DynamicObject>, Action), controller::Error<Error, watcher::Error>>;

async fn reconcile(trigger: Arc<DynamicObject>, context: Arc<Context>) -> Result<Action, Error> {
    let (name, namespace) = (trigger.name_any(), trigger.namespace().unwrap_or_default());
    context.metrics.active.inc();
    let started = Instant::now();
    let outcome = steps(&context, Some(&trigger), &namespace, &name).await;
    context.metrics.active.dec();
    context.metrics.seconds.observe(started.elapsed().as_secs_f64());
    if outcome.is_ok() {
        context.metrics.reconciles.inc();
        context.failures().remove(&format!("{namespace}/{name}"));
    }
    outcome
}

async fn steps(
    context: &Context,
    trigger: Option<&DynamicObject>,
    namespace: &str,
    name: &str,
) -> Result<Action, Error> {
    let client = &context.client;
    let now = jiff::Timestamp::now();
    let Some(observed) =
        observe::observe(client, &context.children, &context.secret_watch, namespace, name).await?
    else {
        // The cluster deletes the objects that were built, since the Pipeline owns them. Its children stay.
        let children = context.children.of(namespace, name);
        context.awaited().remove(&format!("{namespace}/{name}"));
        context.workers.leave(namespace, name);
        context.publisher.publish_orphans(&children, name).await?;
        return Ok(Action::await_change());
    };
    if trigger.is_some_and(|trigger| observed.pipeline.is_before(trigger)) {
        // An outdated status may equal the one to be written, which would then not be written.
        return Ok(Action::requeue(STALE_AGAIN));
    }
    let lost_node = node_loss::look(client, &observed, context.node_loss_after, now).await?;
    let verdict = validate::validate(&observed);
    let desired = build::build(&observed, &verdict, &context.operator);
    // A lost node is dealt with first: the writes that bring the data back must not wait for one that may be refused.
    let mut changes = node_loss::changes(&observed, lost_node.as_ref());
    changes.extend(desired.iter().flat_map(|desired| apply::changes(&observed, desired)));
    if observed.is_paused() {
        changes.clear();
    }
    let applied = apply::apply(client, namespace, changes).await;
    let report = context.workers.ask(&observed, &verdict).await;
    let job_report = context.workers.ask_job(&observed, &verdict).await;
    let findings = Findings {
        observed: &observed,
        verdict: &verdict,
        desired: desired.as_ref(),
        report: &report,
        job_report: job_report.as_ref(),
        lost_node: lost_node.as_ref(),
        unwritten: None,
    };
    if let Err(error) = &applied
        && context.failures_of(namespace, name) + 1 >= FAILURES_REPORTED_MIN
        && let Some(answer) = error.answer()
    {
        let statuses = status::statuses(&Findings { unwritten: Some(&answer), ..findings }, now);
        context.publisher.publish(&observed, statuses).await?;
    }
    let applied = applied?;
    let nudges = [
        worker::nudge(&observed, &verdict, desired.as_ref(), &report),
        worker::restart(&observed, &verdict, &report),
    ];
    let nudged = apply::apply(client, namespace, nudges.into_iter().flatten().collect()).await?;
    context.metrics.writes.inc_by(nudged as u64);
    let published = context.publisher.publish(&observed, status::statuses(&findings, now)).await?;
    context.metrics.writes.inc_by((applied + published) as u64);
    if applied + published > 0 {
        info!(pipeline = format!("{namespace}/{name}"), applied, published, "reconciled");
    }
    let lacks_pod =
        verdict.config.is_ok() && observed.pod.is_none() && !build::is_stopped(&observed, &verdict);
    let awaited = report.is_awaited().then(|| Awaited::of(&observed, &verdict));
    let waits = [
        report.look_again_after(context.awaits(namespace, name, awaited)),
        node_loss::look_again_after(&observed, context.node_loss_after, now),
        lacks_pod.then_some(NO_POD_AGAIN),
        verdict.reshard.as_ref().and_then(|reshard| reshard.look_again_after(now)),
    ];
    Ok(Action::requeue(waits.into_iter().flatten().min().unwrap_or(RESYNC_INTERVAL)))
}

/// Decides when a failed reconcile is tried again: later with each failure in a row.
fn after_error(pipeline: Arc<DynamicObject>, error: &Error, context: Arc<Context>) -> Action {
    let key = format!("{}/{}", pipeline.namespace().unwrap_or_default(), pipeline.name_any());
    let attempt = {
        let mut failures = context.failures();
        let count = failures.entry(key.clone()).or_default();
        *count = count.saturating_add(1);
        *count
    };
    Action::requeue(context.failed(&key, error, attempt))
}

/// Returns the wait after this many failures in a row: a fifth of a second, doubled each time, at most a minute.
fn retry_delay(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    (Duration::from_millis(200) * 2u32.pow(doublings)).min(BACKOFF_MAX)
}

impl Context {
    fn failures_of(&self, namespace: &str, name: &str) -> u32 {
        self.failures().get(&format!("{namespace}/{name}")).copied().unwrap_or_default()
    }

    /// Returns how long this worker has been waited for; with `None`, forgets the one of before.
    fn awaits(&self, namespace: &str, name: &str, worker: Option<Awaited>) -> Duration {
        let (key, mut awaited) = (format!("{namespace}/{name}"), self.awaited());
        let Some(worker) = worker else {
            awaited.remove(&key);
            return Duration::ZERO;
        };
        let known = awaited.get(&key).filter(|(_, known)| *known == worker);
        let since = known.map_or_else(Instant::now, |(since, _)| *since);
        awaited.insert(key, (since, worker));
        since.elapsed()
    }

    fn awaited(&self) -> std::sync::MutexGuard<'_, HashMap<String, (Instant, Awaited)>> {
        self.awaited.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn missing(&self) -> std::sync::MutexGuard<'_, HashMap<String, bool>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts and logs a failure; returns how long to wait before the next attempt.
    fn failed(&self, pipeline: &str, error: &Error, attempt: u32) -> Duration {
        self.metrics.errors.get_or_create(&Reason { reason: error.reason().to_owned() }).inc();
        let wait = retry_delay(attempt);
        warn!(pipeline, error = chain(error), retry_seconds = wait.as_secs_f64(), "could not reconcile");
        wait
    }

    fn failures(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
