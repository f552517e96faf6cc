//! Which of several operators works: the one that holds the Lease. The others wait; one that loses it ends.

use std::time::Duration;

use kube::Client;
use kube_lease_manager::{LeaseManagerBuilder, LeaseManagerError};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// Name of the Lease.
const LEASE: &str = "litejoin-operator";

/// How much earlier than others expect it the holder lets go of a Lease that it can't renew.
const GRACE_PART: u64 = 5;

/// How long handing over may take; the Lease ends by itself after that.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// What an operator says of itself in the Lease.
pub(crate) struct Seat {
    pub(crate) namespace: String,
    pub(crate) identity: String,
    pub(crate) lease_seconds: u64,
}

/// The Lease, while it is ours.
pub(crate) struct Leadership {
    held: watch::Receiver<bool>,
    task: JoinHandle<Result<kube_lease_manager::LeaseManager, LeaseManagerError>>,
}

impl Seat {
    /// Waits for the Lease; `None` if the end is asked for before.
    pub(crate) async fn take(
        self,
        client: &Client,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<Option<Leadership>, LeaseManagerError> {
        // Two pods never have one name, two processes on a laptop may.
        let identity = format!("{}-{}", self.identity, std::process::id());
        let manager = LeaseManagerBuilder::new(client.clone(), LEASE)
            .with_namespace(self.namespace)
            .with_identity(identity)
            .with_duration(self.lease_seconds)
            .with_grace((self.lease_seconds / GRACE_PART).max(1))
            .build()
            .await?;
        let (mut held, task) = manager.watch().await;
        info!("waits for the Lease");
        let ours = tokio::select! {
            ours = held.wait_for(|held| *held) => ours.is_ok(),
            _ = stopped.wait_for(|stopped| *stopped) => false,
        };
        if ours {
            return Ok(Some(Leadership { held, task }));
        }
        drop(held);
        match task.await {
            Ok(Err(error)) => Err(error),
            _ => Ok(None),
        }
    }
}

impl Leadership {
    /// Waits until it is somebody else's.
    pub(crate) async fn lost(&self) {
        // A task that has ended renews nothing.
        let _ = self.held.clone().wait_for(|held| !held).await;
    }

    /// Gives it back, so that nobody has to wait for its end.
    pub(crate) async fn hand_over(self) {
        drop(self.held);
        if tokio::time::timeout(HAND_OVER_TIMEOUT, self.task).await.is_err() {
            warn!("could not give the Lease back in time; it ends by itself");
        }
    }
}
