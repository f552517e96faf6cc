//! Follows workers: each is asked to answer as soon as it has news, and then its pipeline is reconciled. A settled
//! pipeline costs a request a minute that way, and none to the API server.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::AbortHandle;

use super::STATUS;
use super::client::AdminClient;
use crate::controller::watch::PendingReconciles;

/// The shortest time between two reconciles for news of one worker, and before a worker is asked again that went away.
const NEWS_INTERVAL: Duration = Duration::from_secs(1);

/// A worker, and the tag of what it has said last.
pub(super) struct Followed {
    pub(super) admin: AdminClient,
    /// `host:port`.
    pub(super) authority: String,
    pub(super) tag: String,
}

/// All workers that are followed.
pub(super) struct Followers {
    pending: Arc<PendingReconciles>,
    /// By namespace and name of the pipeline.
    tasks: Mutex<HashMap<(String, String), Follower>>,
}

/// The task that waits for news of one worker.
struct Follower {
    authority: String,
    tag: String,
    task: AbortHandle,
}

impl Followers {
    pub(super) fn new(pending: Arc<PendingReconciles>) -> Self {
        Self { pending, tasks: Mutex::default() }
    }

    /// Follows this worker of a pipeline, and no other.
    pub(super) fn follow(&self, namespace: &str, pipeline: &str, followed: Option<Followed>) {
        let key = (namespace.to_owned(), pipeline.to_owned());
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(followed) = followed else {
            if let Some(before) = tasks.remove(&key) {
                before.task.abort();
            }
            return;
        };
        let Followed { authority, tag, .. } = &followed;
        let is_same = |known: &Follower| known.authority == *authority && known.tag == *tag;
        if tasks.get(&key).is_some_and(|known| is_same(known) && !known.task.is_finished()) {
            return;
        }
        let (authority, tag) = (authority.clone(), tag.clone());
        let (pending, (namespace, pipeline)) = (Arc::clone(&self.pending), key.clone());
        let task = tokio::spawn(async move {
            tokio::time::sleep(NEWS_INTERVAL).await;
            // An error is news, too: the worker may have gone.
            while let Ok(false) = followed.admin.has_news(&followed.authority, STATUS, &followed.tag).await {}
            pending.add(&namespace, &pipeline);
        });
        let follower = Follower { authority, tag, task: task.abort_handle() };
        if let Some(before) = tasks.insert(key, follower) {
            before.task.abort();
        }
    }
}
