//! Secrets that pipelines name: one that comes, changes or goes lets its pipelines be reconciled. Only namespaces are
//! watched in which some are named, so that rights in those suffice. The watch gets only the metadata of Secrets and
//! keeps none of it; a reconcile reads the Secrets that it needs.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use litejoin_crds::error::chain;
use tracing::warn;

use super::pending::PendingReconciles;
use crate::controller::names::PIPELINE_LABEL;

/// Namespace and name of a pipeline.
type Pipeline = (String, String);

/// The Secrets that each pipeline names.
pub(crate) struct SecretWatch {
    client: Client,
    pending: Arc<PendingReconciles>,
    named: Arc<Mutex<HashMap<Pipeline, BTreeSet<String>>>>,
    /// Namespaces that are watched.
    watched: Mutex<HashSet<String>>,
}

impl SecretWatch {
    /// Changed Secrets let the pipelines that name them be reconciled.
    pub(crate) fn new(client: Client, pending: Arc<PendingReconciles>) -> Self {
        Self { client, pending, named: Arc::default(), watched: Mutex::default() }
    }

    /// Takes note of the Secrets that a pipeline names. A caller does so before it reads them, or a change in between
    /// would be missed.
    pub(crate) fn note(&self, namespace: &str, pipeline: &str, secrets: &BTreeSet<String>) {
        let key = (namespace.to_owned(), pipeline.to_owned());
        match secrets.is_empty() {
            true => lock(&self.named).remove(&key),
            false => lock(&self.named).insert(key, secrets.clone()),
        };
        if !secrets.is_empty() && lock(&self.watched).insert(namespace.to_owned()) {
            self.watch(namespace.to_owned());
        }
    }

    /// Watches the Secrets of a namespace until the process ends.
    fn watch(&self, namespace: String) {
        let api: Api<PartialObjectMeta<Secret>> = Api::namespaced(self.client.clone(), &namespace);
        let (named, pending) = (Arc::clone(&self.named), Arc::clone(&self.pending));
        let changed = watcher(api, watcher::Config::default()).default_backoff().touched_objects();
        tokio::spawn(changed.for_each(move |secret| {
            match secret {
                Ok(secret) => {
                    let mut pipelines = namers(&named, &namespace, &secret.name_any());
                    pipelines.extend(secret.labels().get(PIPELINE_LABEL).cloned());
                    pipelines.iter().for_each(|pipeline| pending.add(&namespace, pipeline));
                }
                Err(error) => warn!(kind = "secrets", namespace, error = chain(&error), "could not watch"),
            }
            std::future::ready(())
        }));
    }
}

/// The pipelines that name a Secret.
fn namers(named: &Mutex<HashMap<Pipeline, BTreeSet<String>>>, namespace: &str, secret: &str) -> Vec<String> {
    let named = lock(named);
    let namers = named.iter().filter(|((there, _), secrets)| there == namespace && secrets.contains(secret));
    namers.map(|((_, pipeline), _)| pipeline.clone()).collect()
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}
