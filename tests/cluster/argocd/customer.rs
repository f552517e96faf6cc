//! A customer who orders all the time, and a subscriber to the results. Orders count from the moment at which the pipeline
//! has acknowledged them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use litejoin_tests::consumers::Subscriber;
use litejoin_tests::ingest::{Ingest, message};
use litejoin_tests::wait::{pass, until};
use serde_json::{Value, json};

/// The pace of orders.
const PACE: Duration = Duration::from_millis(50);
/// How long the customer waits for an answer before the same order is posted again.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Orders that are acknowledged in a row while the pipeline goes on.
const SOME: usize = 5;

/// A customer, until drop.
pub(super) struct Customer {
    acknowledged: Arc<Mutex<Vec<String>>>,
    subscriber: Arc<Subscriber>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Customer {
    /// Begins to order at the Service of the pipeline, after this first order.
    pub(super) async fn start(service: String, first: String) -> Self {
        let address = |port: u16| -> SocketAddr { format!("{service}:{port}").parse().expect("an address") };
        let (acknowledged, subscriber) = (Arc::new(Mutex::new(vec![first])), Arc::<Subscriber>::default());
        let ordering = tokio::spawn({
            let (acknowledged, ingest) = (Arc::clone(&acknowledged), Ingest::new(address(8080)));
            async move {
                for number in 0_usize.. {
                    let key = format!("o{number}");
                    while !is_taken(&ingest, &messages(&key)).await {
                        pass(PACE).await;
                    }
                    acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(key);
                    pass(PACE).await;
                }
            }
        });
        let following = tokio::spawn({
            let (subscriber, address) = (Arc::clone(&subscriber), address(9100));
            async move {
                loop {
                    let _ = subscriber.follow(address, "enriched").await;
                    // No worker answers, or its pod is gone.
                    pass(PACE).await;
                }
            }
        });
        let customer = Self { acknowledged, subscriber, tasks: [ordering, following] };
        customer.goes_on().await;
        customer
    }

    /// Counts an order that was acknowledged elsewhere.
    pub(super) fn note(&self, key: String) {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(key);
    }

    fn acknowledged(&self) -> BTreeSet<String> {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Waits until further orders are acknowledged, and their results are there.
    pub(super) async fn goes_on(&self) {
        let before = self.acknowledged().len();
        let after = until("further orders to be acknowledged", async || {
            Some(self.acknowledged()).filter(|after| after.len() >= before + SOME)
        })
        .await;
        until("their results", async || after.is_subset(&self.subscriber.held()).then_some(())).await;
    }

    /// Ends the orders, and waits until the result of each acknowledged one is there; returns their number.
    pub(super) async fn has_lost_nothing(self) -> usize {
        self.tasks[0].abort();
        let acknowledged = self.acknowledged();
        until("the results of all orders", async || {
            acknowledged.is_subset(&self.subscriber.held()).then_some(())
        })
        .await;
        acknowledged.len()
    }
}

impl Drop for Customer {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Posts one order, which must be taken at once.
pub(super) async fn order(address: &str, key: &str) {
    Ingest::new(address.parse().expect("an address")).send(&messages(key)).await;
}

/// An order, and the customer of all orders.
fn messages(key: &str) -> [Value; 2] {
    [
        message("customers", "c1", json!({ "name": "Ada" })),
        message("orders", key, json!({ "amount": 1, "customer_id": "c1" })),
    ]
}

async fn is_taken(ingest: &Ingest, messages: &[Value]) -> bool {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, ingest.try_send(messages)).await;
    matches!(answer, Ok(Ok(answer)) if answer.status == 200)
}
