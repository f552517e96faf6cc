//! Consumers of results, and the results that each of them holds.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::kafka::Record;
use crate::results::{Event, Results};
use crate::sse::Subscription;

/// A subscriber by Server-Sent Events, which reconnects after each loss of its connection.
#[derive(Default)]
pub struct Subscriber {
    results: Mutex<Results>,
    last_event_id: Mutex<Option<String>>,
    resets: AtomicUsize,
}

impl Subscriber {
    /// Follows a join, or all joins if it is `*`, until the stream ends: from the last event id, or from the whole state
    /// if there is none.
    ///
    /// # Errors
    /// If no server accepts the subscription.
    pub async fn follow(&self, address: SocketAddr, join: &str) -> Result<(), reqwest::Error> {
        let last = lock(&self.last_event_id).clone();
        let query = format!("join={join}&replay={}", last.is_none());
        let mut stream = Subscription::try_open(address, &query, last.as_deref()).await?;
        while let Some(event) = stream.next().await {
            match event.event.as_str() {
                "join_result" => lock(&self.results).fold([&event.result()]),
                "reset" => {
                    *lock(&self.results) = Results::default();
                    self.resets.fetch_add(1, Ordering::Relaxed);
                }
                _ => {}
            }
            lock(&self.last_event_id).clone_from(&stream.last_event_id);
        }
        Ok(())
    }

    /// Returns the rows that the subscriber holds.
    pub fn results(&self) -> Results {
        lock(&self.results).clone()
    }

    /// Returns the keys that the subscriber holds of a join whose keys are texts.
    pub fn held(&self) -> BTreeSet<String> {
        let text = |key: &String| serde_json::from_str(key).expect("these keys are texts");
        lock(&self.results).rows.keys().map(|(_, key)| text(key)).collect()
    }

    /// Returns the number of `reset` events.
    pub fn resets(&self) -> usize {
        self.resets.load(Ordering::Relaxed)
    }
}

/// Adds the key of a result that has rows, and removes the key of a result without rows.
pub fn note(held: &mut BTreeSet<String>, event: &Event) {
    let key = event.key.as_str().expect("these keys are texts").to_owned();
    match event.rows.is_empty() {
        false => held.insert(key),
        true => held.remove(&key),
    };
}

/// Returns the keys that remain once each record has replaced the earlier one of its key.
pub fn kept(records: Vec<Record>) -> BTreeSet<String> {
    let mut kept = BTreeSet::new();
    for record in records {
        let key = record.key.expect("records of results have keys");
        match record.value {
            Some(_) => kept.insert(key),
            None => kept.remove(&key),
        };
    }
    kept
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
