//! Reconcile as a list of steps. It looks at what is there, never at why it was called, and can stop at any `?` and
//! start over: each step that writes says what is wanted and writes only where that differs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, DynamicObject};
use kube::runtime::controller::{self, Action, Config, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use litejoin_crds::error::chain;
use litejoin_crds::kind::Kind;
use tokio::sync::watch;
use tracing::{debug, info, warn};

use crate::error::Error;
use crate::metrics::{Metrics, Reason};
use children::Children;
use names::FIELD_MANAGER;
use secrets::Secrets;
use woken::Woken;
use worker::Awaited;

mod admin;
mod apply;
pub(crate) mod build;
mod children;
mod kinds;
mod names;
mod node_loss;
mod object;
mod observe;
mod publish;
mod replica;
mod secrets;
mod slot;
mod status;
mod validate;
mod woken;
mod worker;

#[cfg(test)]
mod tests;

/// How often a pipeline is looked at that nothing happens to.
const RESYNC_INTERVAL: Duration = Duration::from_secs(300);

/// How soon a pod is looked for again that is to be there and isn't: a read may be older than the event that led to it.
const NO_POD_AGAIN: Duration = Duration::from_secs(10);

/// How soon a Pipeline is read again that was read as it was before the event that led to it.
const STALE_AGAIN: Duration = Duration::from_secs(1);

/// The longest wait before a failed reconcile is tried again.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Failures in a row from which on the status tells why: what passes by itself soon is no news.
const FAILURES_TOLD: u32 = 3;

/// Changes that come together are looked at once.
const DEBOUNCE: Duration = Duration::from_millis(50);

/// Where pipelines are looked after.
pub(crate) enum Scope {
    Cluster,
    Namespace(String),
}

/// What the operator was told at its start.
pub(crate) struct Settings {
    pub(crate) scope: Scope,
    pub(crate) operator: build::Operator,
    /// Pipelines that are worked on at once.
    pub(crate) concurrency: u16,
    /// How long after its time a pod may still be there before its node counts as lost, if it does not answer.
    pub(crate) node_loss_after: Duration,
}

/// What every reconcile needs.
struct Context {
    client: Client,
    operator: build::Operator,
    node_loss_after: Duration,
    children: Children,
    secrets: Arc<Secrets>,
    workers: worker::Workers,
    recorder: Recorder,
    metrics: Arc<Metrics>,
    /// Failures in a row, by pipeline.
    failures: Mutex<HashMap<String, u32>>,
    /// Workers that are waited for: since when, and to run what.
    awaited: Mutex<HashMap<String, (Instant, Awaited)>>,
    /// Pipelines that are named and not there, and whose children are being told; whether there are more by now.
    missing: Mutex<HashMap<String, bool>>,
}

/// Looks after pipelines until the end is asked for.
pub(crate) async fn run(
    client: Client,
    settings: Settings,
    metrics: Arc<Metrics>,
    mut stopped: watch::Receiver<bool>,
) {
    let reporter = Reporter { controller: FIELD_MANAGER.to_owned(), instance: None };
    let woken = Arc::new(Woken::default());
    let children = Children::watch(|kind| dynamic(&client, &settings.scope, kind), &woken);
    let secrets = Secrets::watch(typed(&client, &settings.scope), &woken);
    children.known().await;
    let controller = watches(&client, &settings.scope).reconcile_on(woken.pipelines());
    let context = Arc::new(Context {
        client: client.clone(),
        children,
        secrets,
        operator: settings.operator,
        node_loss_after: settings.node_loss_after,
        workers: worker::Workers::new(),
        recorder: Recorder::new(client.clone(), reporter),
        metrics,
        failures: Mutex::default(),
        awaited: Mutex::default(),
        missing: Mutex::default(),
    });
    let stop = async move {
        // If nobody can ask any more, the process is at its end.
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

/// Tells what refers to a missing Pipeline that it is missing. The controller only repeats what it knows an object of,
/// so this is repeated here.
async fn tell_orphans(context: Arc<Context>, namespace: String, name: String) {
    let pipeline = format!("{namespace}/{name}");
    let mut attempt = 0;
    loop {
        context.missing().insert(pipeline.clone(), false);
        let Err(error) = steps(&context, None, &namespace, &name).await else {
            let mut missing = context.missing();
            // Another child may have come while the others were told.
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

/// What follows a reconcile, or an attempt at one.
fn after(outcome: Outcome, context: &Arc<Context>) {
    match outcome {
        Ok(_) => {}
        // Something named a Pipeline that is not there.
        Err(controller::Error::ObjectNotFound(pipeline)) => {
            let namespace = pipeline.namespace.unwrap_or_default();
            let key = format!("{namespace}/{}", pipeline.name);
            if context.missing().insert(key, true).is_none() {
                tokio::spawn(tell_orphans(Arc::clone(context), namespace, pipeline.name));
            }
        }
        // They go on by themselves.
        Err(controller::Error::QueueError(error)) => warn!(error = chain(&error), "could not watch"),
        // What reconcile said is logged already.
        Err(error) => debug!(error = chain(&error), "the controller"),
    }
}

/// Everything whose change may concern a pipeline, beside what refers to it.
fn watches(client: &Client, scope: &Scope) -> Controller<DynamicObject> {
    let ours = || watcher::Config::default().labels(names::MANAGED_BY_SELECTOR);
    let of_pipelines = || watcher::Config::default().labels(names::PIPELINE_LABEL);
    let any = watcher::Config::default;
    let pipelines = kinds::resource(Kind::Pipeline);
    Controller::new_with(dynamic(client, scope, Kind::Pipeline), any(), pipelines)
        .owns(typed::<StatefulSet>(client, scope), ours())
        .owns(typed::<ConfigMap>(client, scope), ours())
        .owns(typed::<Service>(client, scope), ours())
        .owns(typed::<ServiceAccount>(client, scope), ours())
        .owns(typed::<NetworkPolicy>(client, scope), ours())
        .owns(typed::<CronJob>(client, scope), ours())
        .watches(typed::<Pod>(client, scope), of_pipelines(), |pod| by_label(&pod))
        .watches(typed::<PersistentVolumeClaim>(client, scope), of_pipelines(), |claim| by_label(&claim))
}

/// The pipeline whose label an object has.
fn by_label<K: Resource>(object: &K) -> Option<ObjectRef<DynamicObject>> {
    let name = object.labels().get(names::PIPELINE_LABEL)?;
    object.namespace().map(|namespace| kinds::pipeline_ref(name, &namespace))
}

fn dynamic(client: &Client, scope: &Scope, kind: Kind) -> Api<DynamicObject> {
    let resource = kinds::resource(kind);
    match scope {
        Scope::Cluster => Api::all_with(client.clone(), &resource),
        Scope::Namespace(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
    }
}

fn typed<K>(client: &Client, scope: &Scope) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>,
{
    match scope {
        Scope::Cluster => Api::all(client.clone()),
        Scope::Namespace(namespace) => Api::namespaced(client.clone(), namespace),
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
    let Some(mut observed) =
        observe::observe(client, &context.children, &context.secrets, namespace, name).await?
    else {
        // What was built is taken down by the cluster: everything of ours has an owner. Its children stay.
        let children = context.children.of(namespace, name);
        context.awaited().remove(&format!("{namespace}/{name}"));
        publish::publish_orphans(context, &children, name).await?;
        return Ok(Action::await_change());
    };
    if trigger.is_some_and(|trigger| observed.pipeline.is_before(trigger)) {
        // Its status may look as if it said already what is so now.
        return Ok(Action::requeue(STALE_AGAIN));
    }
    observed.lost = node_loss::look(client, &observed, context.node_loss_after, now).await?;
    let verdict = validate::validate(&observed);
    let desired = build::build(&observed, &verdict, &context.operator);
    // What brings the data back waits for nothing that may be refused.
    let mut changes = node_loss::changes(&observed);
    changes.extend(desired.iter().flat_map(|desired| apply::changes(&observed, desired)));
    if observed.is_paused() {
        changes.clear();
    }
    let applied = apply::apply(client, namespace, changes).await;
    let told = context.workers.ask(&observed, &verdict).await;
    if let Err(error) = &applied
        && context.failures_of(namespace, name) + 1 >= FAILURES_TOLD
        && let Some(answer) = error.answer()
    {
        observed.unwritten = Some(answer);
        let statuses = status::statuses(&observed, &verdict, desired.as_ref(), &told, now);
        publish::publish(context, &observed, statuses).await?;
    }
    let applied = applied?;
    if let Some(nudge) = worker::nudge(&observed, &verdict, &told) {
        apply::apply(client, namespace, vec![nudge]).await?;
        context.metrics.writes.inc();
    }
    let statuses = status::statuses(&observed, &verdict, desired.as_ref(), &told, now);
    let published = publish::publish(context, &observed, statuses).await?;
    context.metrics.writes.inc_by((applied + published) as u64);
    if applied + published > 0 {
        info!(pipeline = format!("{namespace}/{name}"), applied, published, "reconciled");
    }
    let lacks_pod = verdict.config.is_ok() && observed.pod.is_none() && !build::is_at_rest(&observed.spec());
    let awaited = told.is_awaited().then(|| Awaited::of(&observed, &verdict));
    let waits = [
        told.look_again_after(context.awaits(namespace, name, awaited)),
        node_loss::look_again_after(&observed, context.node_loss_after, now),
        lacks_pod.then_some(NO_POD_AGAIN),
    ];
    Ok(Action::requeue(waits.into_iter().flatten().min().unwrap_or(RESYNC_INTERVAL)))
}

/// Tries again, later with each failure in a row.
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

/// The wait after this many failures in a row: a fifth of a second, doubled each time, to a minute.
fn retry_delay(attempt: u32) -> Duration {
    let doublings = attempt.saturating_sub(1).min(16);
    (Duration::from_millis(200) * 2u32.pow(doublings)).min(BACKOFF_MAX)
}

impl Context {
    fn failures_of(&self, namespace: &str, name: &str) -> u32 {
        self.failures().get(&format!("{namespace}/{name}")).copied().unwrap_or_default()
    }

    /// How long this worker has been waited for; with none, nobody is.
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
