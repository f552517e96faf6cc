//! Pipelines that a child or a Secret lets be reconciled and that no reconcile has taken up yet, each at most once.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::{Stream, stream};
use kube::api::DynamicObject;
use kube::runtime::reflector::ObjectRef;
use tokio::sync::Notify;

use crate::controller::kinds;

/// The queue of pipelines to reconcile.
#[derive(Default)]
pub(crate) struct PendingReconciles {
    /// Namespace and name.
    pipelines: Mutex<BTreeSet<(String, String)>>,
    more: Notify,
}

impl PendingReconciles {
    /// Lets a pipeline be reconciled.
    pub(crate) fn add(&self, namespace: &str, pipeline: &str) {
        self.lock().insert((namespace.to_owned(), pipeline.to_owned()));
        self.more.notify_one();
    }

    /// The pipelines in turn, each as it is added. Only one stream may be used, since a pipeline goes to one of
    /// several.
    pub(crate) fn pipelines(self: &Arc<Self>) -> impl Stream<Item = ObjectRef<DynamicObject>> + Send + use<> {
        stream::unfold(Arc::clone(self), |pending| async {
            loop {
                let first = pending.lock().pop_first();
                if let Some((namespace, name)) = first {
                    return Some((kinds::pipeline_ref(&name, &namespace), pending));
                }
                pending.more.notified().await;
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        self.pipelines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
