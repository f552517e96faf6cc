//! Which of several operators works: the one that holds the Lease. The others wait; one that loses it ends.

use std::pin::pin;
use std::time::Duration;

use futures::{Stream, StreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::Api;
use kube::runtime::watcher::{self, watch_object};
use kube::{Client, runtime::WatchStreamExt};
use kube_lease_manager::{LeaseManagerBuilder, LeaseManagerError};
use litejoin_crds::error::chain;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// Name of the Lease of those who look after all namespaces; who looks after one has its name behind it.
const LEASE: &str = "litejoin-operator";

/// How much earlier than others expect it the holder lets go of a Lease that it can't renew.
const GRACE_PART: u64 = 5;

/// How long handing over may take; the Lease ends by itself after that.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// What an operator says of itself in the Lease.
pub(crate) struct Seat {
    /// The one namespace that is looked after, if it is one: who looks after another is no rival.
    pub(crate) scope: Option<String>,
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
        let leases: Api<Lease> = Api::namespaced(client.clone(), &self.namespace);
        let name = self.scope.map_or_else(|| LEASE.to_owned(), |scope| format!("{LEASE}-{scope}"));
        let mut watched =
            Watched { lease: pin!(watch_object(leases, &name).default_backoff()), is_held: false };
        info!(lease = name, "waits for the Lease");
        // It is seen before a manager asks for it: given back in between, it would be missed.
        tokio::select! {
            () = watched.look() => {}
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(None),
        }
        loop {
            let manager = LeaseManagerBuilder::new(client.clone(), &name)
                .with_namespace(&self.namespace)
                .with_identity(&identity)
                .with_duration(self.lease_seconds)
                .with_grace((self.lease_seconds / GRACE_PART).max(1))
                .build()
                .await?;
            let (mut held, task) = manager.watch().await;
            let next = tokio::select! {
                ours = held.wait_for(|held| *held) => if ours.is_ok() { Next::Lead } else { Next::End },
                _ = stopped.wait_for(|stopped| *stopped) => Next::End,
                () = watched.given_back() => Next::AskAgain,
            };
            if let Next::Lead = next {
                return Ok(Some(Leadership { held, task }));
            }
            drop(held);
            match (task.await, next) {
                (Ok(Err(error)), Next::End) => return Err(error),
                (_, Next::End) => return Ok(None),
                // A manager sleeps until the Lease that it has seen would end; a new one asks at once.
                (_, Next::Lead | Next::AskAgain) => {}
            }
        }
    }
}

/// What an operator that waits does next.
enum Next {
    Lead,
    AskAgain,
    End,
}

/// The Lease, as it was last seen.
struct Watched<S> {
    lease: S,
    is_held: bool,
}

impl<S: Stream<Item = watcher::Result<Option<Lease>>> + Unpin> Watched<S> {
    /// Waits until there is something to see.
    async fn look(&mut self) {
        match self.lease.next().await {
            Some(Ok(lease)) => self.is_held = lease.and_then(|lease| lease.spec?.holder_identity).is_some(),
            // The manager takes it when it ends, as ever.
            Some(Err(error)) => warn!(error = chain(&error), "could not watch the Lease"),
            // A watch never ends.
            None => std::future::pending().await,
        }
    }

    /// Waits until one that held it has given it back.
    async fn given_back(&mut self) {
        loop {
            let was_held = self.is_held;
            self.look().await;
            if was_held && !self.is_held {
                return;
            }
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
