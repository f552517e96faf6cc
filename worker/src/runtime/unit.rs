//! Parts of a pipeline that start and stop by themselves, and the set of those that run, by name.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::warn;

use super::config_diff::NameDiff;

/// How long a part that a reload changes or removes may take to finish what it has begun.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The work of a part until it hears that it is to stop.
pub(super) type Work = Box<dyn FnOnce(watch::Receiver<bool>) -> Task + Send>;

/// See [`Work`].
pub(super) type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A part that runs.
pub(super) struct Unit {
    stop: watch::Sender<bool>,
    /// The one task, until it was seen to end.
    task: JoinSet<()>,
}

impl Unit {
    pub(super) fn start(work: Work) -> Self {
        let (stop, stopping) = watch::channel(false);
        let mut task = JoinSet::new();
        task.spawn(work(stopping));
        Self { stop, task }
    }

    /// Tells it to stop, and waits for nothing.
    pub(super) fn ask_to_stop(&self) {
        self.stop.send_replace(true);
    }

    /// Waits for its end.
    pub(super) async fn ended(&mut self) {
        while self.task.join_next().await.is_some() {}
    }

    /// Tells it to stop, and gives up on it when it takes too long.
    async fn stop(mut self, name: &str) {
        self.ask_to_stop();
        if tokio::time::timeout(STOP_TIMEOUT, self.ended()).await.is_err() {
            warn!(name, "it does not come to an end; going on without it");
            self.task.shutdown().await;
        }
    }
}

/// A part that is ready to start: nothing that could fail is left to do.
pub(super) struct Ready<S> {
    pub(super) name: String,
    pub(super) spec: S,
    pub(super) work: Work,
}

/// The parts of one kind that run, each with the spec that it was started with.
pub(super) struct Units<S> {
    running: BTreeMap<String, (S, Unit)>,
}

impl<S> Default for Units<S> {
    fn default() -> Self {
        Self { running: BTreeMap::new() }
    }
}

impl<S: PartialEq> Units<S> {
    /// The names to start and to stop so that `wanted` runs.
    pub(super) fn diff(&self, wanted: &BTreeMap<String, S>) -> NameDiff {
        let running = self.running.iter().map(|(name, (spec, _))| (name.as_str(), spec));
        NameDiff::between(running, wanted.iter().map(|(name, spec)| (name.as_str(), spec)))
    }

    pub(super) fn start(&mut self, ready: Vec<Ready<S>>) {
        for Ready { name, spec, work } in ready {
            self.running.insert(name, (spec, Unit::start(work)));
        }
    }

    /// Stops some, all at once, and returns when they have ended.
    pub(super) async fn stop<'n>(&mut self, names: impl Iterator<Item = &'n str>) {
        let ending = names.filter_map(|name| Some((name, self.running.remove(name)?.1)));
        join_all(ending.map(|(name, unit)| unit.stop(name))).await;
    }

    /// Stops all, at once, and returns when they have ended.
    pub(super) async fn stop_all(&mut self) {
        let ending: Vec<_> = std::mem::take(&mut self.running).into_iter().collect();
        join_all(ending.into_iter().map(|(name, (_, unit))| async move { unit.stop(&name).await })).await;
    }

    /// Tells all to stop, and waits for nothing.
    pub(super) fn ask_to_stop(&self) {
        self.running.values().for_each(|(_, unit)| unit.ask_to_stop());
    }

    /// Waits for the end of all.
    pub(super) async fn ended(&mut self) {
        for (_, unit) in self.running.values_mut() {
            unit.ended().await;
        }
    }
}
