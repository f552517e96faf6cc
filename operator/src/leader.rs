//! Leader election: of several operators, the one that holds the Lease works and the others wait. An operator that
//! loses the Lease ends.

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

/// Name of the Lease of operators for all namespaces; for an operator of one namespace, `-` and its name follow.
const LEASE: &str = "litejoin-operator";

/// The holder of a Lease that it can't renew stops this part of the Lease's duration before the Lease ends.
const GRACE_PART: u64 = 5;

/// How long handing over may take; the Lease ends by itself after that.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// An operator that wants to lead.
pub(crate) struct Seat {
    /// The one namespace that the operator works in, if it is one: operators of other namespaces have another Lease.
    pub(crate) scope: Option<String>,
    pub(crate) namespace: String,
    pub(crate) identity: String,
    pub(crate) lease_seconds: u64,
}

/// The Lease while this operator holds it.
pub(crate) struct Leadership {
    held: watch::Receiver<bool>,
    task: JoinHandle<Result<kube_lease_manager::LeaseManager, LeaseManagerError>>,
}

impl Seat {
    /// Waits for the Lease; `None` if the program is asked to end before.
    pub(crate) async fn take(
        self,
        client: &Client,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<Option<Leadership>, LeaseManagerError> {
        // Two pods never have the same name, but two processes on a laptop may.
        let identity = format!("{}-{}", self.identity, std::process::id());
        let leases: Api<Lease> = Api::namespaced(client.clone(), &self.namespace);
        let name = self.scope.map_or_else(|| LEASE.to_owned(), |scope| format!("{LEASE}-{scope}"));
        let mut watched =
            Watched { lease: pin!(watch_object(leases, &name).default_backoff()), is_held: false };
        info!(lease = name, "waits for the Lease");
        // The Lease is read before a manager asks for it, or a hand-over in between would be missed.
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
                // A manager sleeps until the Lease that it has seen would end, while a new manager asks at once.
                (_, Next::Lead | Next::AskAgain) => {}
            }
        }
    }
}

/// The next step of an operator that waits.
enum Next {
    Lead,
    AskAgain,
    End,
}

/// The Lease as it was last seen.
struct Watched<S> {
    lease: S,
    is_held: bool,
}

impl<S: Stream<Item = watcher::Result<Option<Lease>>> + Unpin> Watched<S> {
    /// Waits for the next state of the Lease.
    async fn look(&mut self) {
        match self.lease.next().await {
            Some(Ok(lease)) => self.is_held = lease.and_then(|lease| lease.spec?.holder_identity).is_some(),
            // Without a watch, the manager takes the Lease when it ends.
            Some(Err(error)) => warn!(error = chain(&error), "could not watch the Lease"),
            // A watch never ends.
            None => std::future::pending().await,
        }
    }

    /// Waits until another holder has given the Lease back.
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
    /// Waits until this operator does not hold the Lease any more.
    pub(crate) async fn lost(&self) {
        // An error means that the task has ended, which then renews nothing.
        let _ = self.held.clone().wait_for(|held| !held).await;
    }

    /// Gives the Lease back, so that another operator need not wait until it ends.
    pub(crate) async fn hand_over(self) {
        drop(self.held);
        if tokio::time::timeout(HAND_OVER_TIMEOUT, self.task).await.is_err() {
            warn!("could not give the Lease back in time; it ends by itself");
        }
    }
}
