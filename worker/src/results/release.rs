//! When results may leave: at once, or (`delivery.after: replicated`) when a restore would know them, so that no sink holds
//! a result that a lost disk has taken back.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::results::event::Position;
use crate::storage::replication_barrier::ReplicationBarrier;

/// How long the replica is waited for before we see whether the worker stops.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The gate that results pass on their way out.
#[derive(Clone, Default)]
pub(crate) struct Release(Option<Arc<Gate>>);

struct Gate {
    replication_barrier: ReplicationBarrier,
    /// Results up to this place are in the replica.
    released: Mutex<Position>,
}

impl Release {
    /// Results wait for the replica.
    pub(crate) fn after(replication_barrier: ReplicationBarrier) -> Self {
        Self(Some(Arc::new(Gate { replication_barrier, released: Mutex::default() })))
    }

    /// Returns when results up to `wanted` may leave; `committed` is the newest there is. Returns `false` if the worker
    /// stops before.
    pub(crate) async fn wait(
        &self,
        wanted: Position,
        committed: Position,
        stopping: &watch::Receiver<bool>,
    ) -> bool {
        let Some(gate) = &self.0 else { return true };
        let reached = wanted.max(committed);
        while *gate.released.lock().unwrap_or_else(PoisonError::into_inner) < wanted {
            if gate.replication_barrier.wait(TIMEOUT).await {
                let mut released = gate.released.lock().unwrap_or_else(PoisonError::into_inner);
                *released = released.max(reached);
            } else if *stopping.borrow() {
                return false;
            }
        }
        true
    }

    /// Returns when all that is committed now may leave; `false` if that takes too long.
    pub(crate) async fn wait_for_all(&self, timeout: Duration) -> bool {
        match &self.0 {
            Some(gate) => gate.replication_barrier.wait(timeout).await,
            None => true,
        }
    }
}
