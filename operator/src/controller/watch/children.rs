//! The children of all pipelines, kept in memory by watches: a list of one pipeline's children makes the API server
//! read those of all. Reconciles begin once the watches have listed everything, and a reconcile that a child causes
//! finds the child in here.

use std::sync::Arc;

use futures::StreamExt;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject};
use kube::runtime::reflector::store::{Store, Writer};
use kube::runtime::{WatchStreamExt, watcher};
use litejoin_crds::error::chain;
use litejoin_crds::kind::Kind;
use tracing::warn;

use super::pending::PendingReconciles;
use crate::controller::kinds;
use crate::controller::object::Object;

/// All children of all pipelines.
pub(crate) struct Children {
    stores: Vec<(Kind, Store<DynamicObject>)>,
}

impl Children {
    /// Watches the children of all kinds until the process ends, and lets their pipelines be reconciled.
    pub(crate) fn start(api: impl Fn(Kind) -> Api<DynamicObject>, pending: &Arc<PendingReconciles>) -> Self {
        let stores = kinds::CHILDREN.map(|kind| {
            let writer = Writer::new(kinds::resource(kind));
            let store = writer.as_reader();
            let changed = watcher(api(kind), watcher::Config::default())
                // Managed fields are half of an object's size, and not used here.
                .modify(|object| object.managed_fields_mut().clear())
                .default_backoff()
                .reflect(writer)
                .touched_objects();
            let pending = Arc::clone(pending);
            tokio::spawn(changed.for_each(move |child| {
                match child {
                    Ok(child) => {
                        let pipeline = child.data["spec"]["pipelineRef"]["name"].as_str();
                        if let Some((name, namespace)) = pipeline.zip(child.namespace()) {
                            pending.add(&namespace, name);
                        }
                    }
                    Err(error) => warn!(kind = kind.plural(), error = chain(&error), "could not watch"),
                }
                std::future::ready(())
            }));
            (kind, store)
        });
        Self { stores: stores.to_vec() }
    }

    /// Waits until all children that exist now are known. Only one task may wait, since kube wakes just the last of
    /// several that wait for a store.
    pub(crate) async fn known(&self) {
        for (_, store) in &self.stores {
            // An error means that the watch has ended, and the process with it.
            let _ = store.wait_until_ready().await;
        }
    }

    /// The children of a pipeline in the order of their creation.
    pub(crate) fn of(&self, namespace: &str, pipeline: &str) -> Vec<Object> {
        let mut found: Vec<(Kind, Arc<DynamicObject>)> = Vec::new();
        for (kind, store) in &self.stores {
            let belongs = |object: &DynamicObject| {
                object.metadata.namespace.as_deref() == Some(namespace)
                    && object.data["spec"]["pipelineRef"]["name"] == pipeline
                    && object.metadata.deletion_timestamp.is_none()
            };
            found.extend(store.state_filter(belongs).into_iter().map(|object| (*kind, object)));
        }
        found.sort_by_cached_key(|(kind, object)| {
            (object.metadata.creation_timestamp.clone().map(|time| time.0), *kind, object.name_any())
        });
        found.iter().map(|(kind, object)| Object::new(*kind, object)).collect()
    }
}
