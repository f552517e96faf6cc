//! Clients that send messages under load, and the keys that were acknowledged to them. Each message has a key of its
//! own, so a message that was acknowledged and is not there later is missing by its name.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::wait::{pass, until};
use litejoin_tests::worker::Worker;
use serde_json::json;
use tokio::task::JoinHandle;

/// Keys that several tasks add to.
#[derive(Clone, Default)]
pub(super) struct SharedKeys(Arc<Mutex<BTreeSet<String>>>);

impl SharedKeys {
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn keys(&self) -> BTreeSet<String> {
        self.lock().clone()
    }

    pub(super) fn add(&self, keys: BTreeSet<String>) {
        self.lock().extend(keys);
    }

    pub(super) fn count(&self) -> usize {
        self.lock().len()
    }

    /// Waits until it has more than `count` keys.
    pub(super) async fn exceeds(&self, count: usize) {
        let what = format!("more than {count} acknowledged messages");
        until(&what, async || (self.count() > count).then_some(())).await;
    }
}

#[derive(Default)]
struct Pace {
    is_calm: AtomicBool,
    stopping: AtomicBool,
}

/// Pause between two messages of a calm client.
const CALM: Duration = Duration::from_millis(200);

/// Clients that send one message after another, each with a new key.
pub(super) struct ClientLoad {
    /// Keys that the source `ingest` has acknowledged: their messages are committed.
    pub(super) plain: SharedKeys,
    /// Keys that the source `safe` has acknowledged: their messages are in the replica.
    pub(super) safe: SharedKeys,
    pace: Arc<Pace>,
    clients: Vec<JoinHandle<()>>,
}

impl ClientLoad {
    /// Loads both sources of a worker; keys begin with `prefix`.
    pub(super) fn on(worker: &Worker, prefix: &str) -> Self {
        let mut load = Self {
            plain: SharedKeys::default(),
            safe: SharedKeys::default(),
            pace: Arc::default(),
            clients: Vec::new(),
        };
        for number in 0..2 {
            for (source, name, acknowledged) in
                [("ingest", "plain", &load.plain), ("safe", "safe", &load.safe)]
            {
                let ingest = Ingest::new(worker.address(&format!("source {source}")));
                let prefix = format!("{prefix}-{name}-{number}-");
                let client = send(ingest, prefix, acknowledged.clone(), Arc::clone(&load.pace));
                load.clients.push(tokio::spawn(client));
            }
        }
        load
    }

    /// Lets the clients pause after each message from now on, for a load that lasts.
    pub(super) fn calm_down(&self) {
        self.pace.is_calm.store(true, Ordering::Relaxed);
    }

    /// Lets each client end with its present message.
    pub(super) async fn stop(&mut self) {
        self.pace.stopping.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.await.expect("a client ends well");
        }
    }
}

/// Sends messages until `pace` says to stop, or the worker answers no more.
async fn send(ingest: Ingest, prefix: String, acknowledged: SharedKeys, pace: Arc<Pace>) {
    for number in 0.. {
        if pace.stopping.load(Ordering::Relaxed) {
            return;
        }
        if pace.is_calm.load(Ordering::Relaxed) {
            pass(CALM).await;
        }
        let key = format!("{prefix}{number}");
        match ingest.try_send(&[message("orders", &key, json!({"n": number}))]).await {
            Ok(answer) if answer.status == 200 => {
                acknowledged.lock().insert(key);
            }
            // A worker that stops acknowledges no message that it has not stored or shipped.
            Ok(answer) if answer.status == 503 => {}
            Ok(answer) => panic!("{}: {}", answer.status, answer.body),
            Err(_) => return,
        }
    }
}
