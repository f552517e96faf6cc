//! Every state that Applications were seen in, so that a test can tell what has never been the case.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::Value;

use crate::wait::until;

/// A health as Argo CD calls it: `Healthy`, `Progressing`, `Degraded` and others.
pub type Health = String;

/// A state of an Application.
#[derive(Debug, Clone)]
pub struct ApplicationState {
    pub name: String,
    /// `Synced`, `OutOfSync` or `Unknown`.
    pub sync: String,
    pub health: Health,
    /// The health of each resource, by kind and name as in `Join/spent`.
    pub resources: BTreeMap<String, Health>,
    version: u64,
}

/// All states since [`History::follow`].
pub(super) struct History {
    seen: Arc<Mutex<Vec<ApplicationState>>>,
    task: tokio::task::JoinHandle<()>,
}

impl History {
    /// Watches Applications until drop.
    pub(super) fn follow(applications: Api<DynamicObject>) -> Self {
        let seen = Arc::<Mutex<Vec<ApplicationState>>>::default();
        let task = tokio::spawn({
            let seen = Arc::clone(&seen);
            async move {
                let events = watcher(applications, watcher::Config::default()).default_backoff();
                let follow = events.for_each(async |event| {
                    // A watch that fails begins anew.
                    if let Ok(watcher::Event::Apply(of) | watcher::Event::InitApply(of)) = event {
                        lock(&seen).push(state_of(&of));
                    }
                });
                follow.await;
            }
        });
        Self { seen, task }
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.seen).len()
    }

    /// Returns the states of an Application since the first `moment` ones of all, once this version of it was seen.
    pub(super) async fn since(&self, moment: usize, name: &str, version: &str) -> Vec<ApplicationState> {
        let version = number(version);
        until(&format!("version {version} of {name} in the watch"), async || {
            let seen = lock(&self.seen);
            seen.iter().any(|state| state.name == name && state.version >= version).then_some(())
        })
        .await;
        let seen = lock(&self.seen);
        seen[moment..].iter().filter(|state| state.name == name).cloned().collect()
    }
}

impl Drop for History {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(seen: &Mutex<Vec<ApplicationState>>) -> MutexGuard<'_, Vec<ApplicationState>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn number(version: &str) -> u64 {
    version.parse().expect("an API server with etcd counts versions")
}

fn state_of(application: &DynamicObject) -> ApplicationState {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let status = &application.data["status"];
    let resources = status["resources"].as_array().into_iter().flatten();
    ApplicationState {
        name: application.name_any(),
        sync: text(&status["sync"]["status"]),
        health: text(&status["health"]["status"]),
        resources: resources
            .map(|of| (format!("{}/{}", text(&of["kind"]), text(&of["name"])), text(&of["health"]["status"])))
            .collect(),
        version: number(&application.resource_version().unwrap_or_default()),
    }
}
