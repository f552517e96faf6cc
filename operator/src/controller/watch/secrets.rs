//! Secrets that pipelines name: one that comes, changes or goes lets its pipelines be reconciled. The watch gets only
//! the metadata of Secrets and keeps none of it; a reconcile reads the Secrets that it needs.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::{WatchStreamExt, watcher};
use litejoin_crds::error::chain;
use tracing::warn;

use super::pending::PendingReconciles;

/// Namespace and name of a pipeline.
type Pipeline = (String, String);

/// The Secrets that each pipeline names.
#[derive(Default)]
pub(crate) struct SecretWatch {
    named: Mutex<HashMap<Pipeline, BTreeSet<String>>>,
}

impl SecretWatch {
    /// Watches all Secrets until the process ends, and lets the pipelines that name them be reconciled.
    pub(crate) fn start(api: Api<PartialObjectMeta<Secret>>, pending: &Arc<PendingReconciles>) -> Arc<Self> {
        let secrets = Arc::new(Self::default());
        let (known, pending) = (Arc::clone(&secrets), Arc::clone(pending));
        let changed = watcher(api, watcher::Config::default()).default_backoff().touched_objects();
        tokio::spawn(changed.for_each(move |secret| {
            match secret {
                Ok(secret) => {
                    let namespace = secret.namespace().unwrap_or_default();
                    for pipeline in known.namers(&namespace, &secret.name_any()) {
                        pending.add(&namespace, &pipeline);
                    }
                }
                Err(error) => warn!(kind = "secrets", error = chain(&error), "could not watch"),
            }
            std::future::ready(())
        }));
        secrets
    }

    /// Takes note of the Secrets that a pipeline names. A caller does so before it reads them, or a change in between
    /// would be missed.
    pub(crate) fn note(&self, namespace: &str, pipeline: &str, secrets: &BTreeSet<String>) {
        let key = (namespace.to_owned(), pipeline.to_owned());
        match secrets.is_empty() {
            true => self.lock().remove(&key),
            false => self.lock().insert(key, secrets.clone()),
        };
    }

    /// The pipelines that name a Secret.
    fn namers(&self, namespace: &str, secret: &str) -> Vec<String> {
        let named = self.lock();
        let namers =
            named.iter().filter(|((there, _), secrets)| there == namespace && secrets.contains(secret));
        namers.map(|((_, pipeline), _)| pipeline.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Pipeline, BTreeSet<String>>> {
        self.named.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
