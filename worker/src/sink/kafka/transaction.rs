//! Results in transactions, each once for consumers of committed records. With the results a transaction commits which
//! they were, as the note beside an offset of a group of our own. The session after a crash reads the note, and passes
//! over what it has, since the cursor may not have moved before the crash. The note has the last few hundred results: more
//! than lie between two moves of the cursor.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerGroupMetadata};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::Producer as _;
use rdkafka::{Offset, TopicPartitionList};
use tracing::debug;

use super::delivered_ids::DeliveredIds;
use super::{Cluster, Producer, delivered, halves};
use crate::kafka::{self, Events};
use crate::sink::{Delivery, Outcome};

/// How long one call to the brokers may take.
const CALL_MAX: Duration = Duration::from_secs(10);

/// How long a commit is tried again before its outcome is left to the next session.
const COMMIT_MAX: Duration = Duration::from_secs(20);

/// How often a call begins again with records that the client has thrown out of its queue.
const PURGES_MAX: usize = 20;

/// After that time brokers give up a transaction of a worker that is gone.
const TRANSACTION_TIMEOUT: &str = "60000";

/// The state that goes on from one transaction to the next.
pub(super) struct TransactionSession {
    producer: Producer,
    group: ConsumerGroupMetadata,
    /// The results that the last transactions have written.
    delivered: DeliveredIds,
}

/// Why a transaction was not committed.
enum Failure {
    /// The transaction is undone, and the session can go on.
    Aborted(KafkaError),
    /// Whether it was committed is for the next session to find out.
    Unknown(KafkaError),
}

impl TransactionSession {
    /// Ends whatever another session has left open, and reads what was committed last.
    pub(super) fn open(cluster: &Cluster) -> Result<Self, String> {
        let producer = cluster.producer(&[
            ("transactional.id", &cluster.id),
            ("transaction.timeout.ms", TRANSACTION_TIMEOUT),
        ])?;
        let problem = |error: KafkaError| kafka::problem(&producer.events, &error).text;
        producer.client.init_transactions(CALL_MAX).map_err(problem)?;
        let mut config = cluster.settings()?;
        config.set("group.id", &cluster.id).set("enable.auto.commit", "false");
        let consumer: BaseConsumer<Events> =
            config.create_with_context(Events::of(&cluster.spec.connection)).map_err(problem)?;
        let mut place = TopicPartitionList::new();
        place.add_partition(&cluster.spec.kafka_topic, 0);
        let committed = consumer.committed_offsets(place, CALL_MAX).map_err(problem)?;
        let delivered = committed
            .elements()
            .first()
            .map(|place| DeliveredIds::read(place.metadata()))
            .unwrap_or_default();
        let group = consumer.group_metadata().ok_or("the Kafka client has no group")?;
        Ok(Self { producer, group, delivered })
    }

    /// Writes results, and gives the session back if it can go on.
    pub(super) fn write(mut self, cluster: &Cluster, results: &[Delivery]) -> (Option<Self>, Vec<Outcome>) {
        let mut outcomes: Vec<Option<Outcome>> = results
            .iter()
            .map(|result| self.delivered.has(&result.id).then_some(Outcome::Delivered))
            .collect();
        let mut shares: Vec<Vec<usize>> =
            vec![(0..results.len()).filter(|index| outcomes[*index].is_none()).collect()];
        let mut purges = 0;
        while let Some(mut share) = shares.pop() {
            if share.is_empty() {
                continue;
            }
            let delivered = loop {
                match self.delivered.with(share.iter().map(|index| results[*index].id.as_str())) {
                    Some(delivered) => break delivered,
                    // More than the note can hold: it is so with hundreds of results of as many epochs.
                    None => shares.push(share.split_off(share.len().div_ceil(2))),
                }
            };
            let deliveries: Vec<&Delivery> = share.iter().map(|index| &results[*index]).collect();
            let mut refused = BTreeMap::new();
            match self.transact(cluster, &deliveries, &delivered.text(), &mut refused) {
                Ok(()) => {
                    self.delivered = delivered;
                    share.iter().for_each(|index| outcomes[*index] = Some(Outcome::Delivered));
                }
                Err(Failure::Aborted(_)) if !refused.is_empty() && share.len() == 1 => {
                    outcomes[share[0]] = refused.into_values().next();
                }
                // The others go without those, which may be refused for their company.
                Err(Failure::Aborted(_)) if !refused.is_empty() => {
                    let suspects = refused.into_keys().map(|n| share[n]).collect::<Vec<_>>();
                    share.retain(|index| !suspects.contains(index));
                    shares.extend(halves(suspects));
                    shares.push(share);
                }
                // These results were not even sent, so nothing is known of them yet.
                Err(Failure::Aborted(error)) if is_purged(&error) && purges < PURGES_MAX => {
                    purges += 1;
                    shares.push(share);
                }
                Err(failure) => {
                    let (session, error) = match failure {
                        Failure::Aborted(error) => (true, error),
                        Failure::Unknown(error) => (false, error),
                    };
                    debug!(sink = cluster.name, %error, session, "a transaction was not committed");
                    let failed = cluster.failure(&self.producer.events, &error);
                    let failed = match failed {
                        Outcome::Refused(reason) => Outcome::Failed(reason),
                        other => other,
                    };
                    let outcomes = outcomes
                        .into_iter()
                        .map(|outcome| outcome.unwrap_or_else(|| failed.clone()))
                        .collect();
                    return (session.then_some(self), outcomes);
                }
            }
        }
        (Some(self), outcomes.into_iter().flatten().collect())
    }

    /// One transaction. Results that the topic does not take come into `refused`, by their numbers.
    fn transact(
        &self,
        cluster: &Cluster,
        results: &[&Delivery],
        note: &str,
        refused: &mut BTreeMap<usize, Outcome>,
    ) -> Result<(), Failure> {
        self.producer.client.begin_transaction().map_err(Failure::Unknown)?;
        let mut problem = None;
        for (n, outcome) in self.send(cluster, results).into_iter().enumerate() {
            if let Err(error) = outcome {
                if let refusal @ Outcome::Refused(_) = cluster.failure(&self.producer.events, &error) {
                    refused.insert(n, refusal);
                }
                // The first error is why the others were thrown out.
                problem = Some(problem.filter(|first| !is_purged(first)).unwrap_or(error));
            }
        }
        let committed = problem.map_or_else(|| self.commit(cluster, note), Err);
        let Err(error) = committed else { return Ok(()) };
        if !is_abortable(&error) {
            return Err(Failure::Unknown(error));
        }
        self.producer.client.abort_transaction(CALL_MAX).map_err(Failure::Unknown)?;
        Err(Failure::Aborted(error))
    }

    /// Sends results and waits until the brokers have each or don't take it. With nothing under way a commit has nothing to
    /// wait for, which the client would do in steps of 100 ms.
    fn send(&self, cluster: &Cluster, results: &[&Delivery]) -> Vec<Result<(), KafkaError>> {
        let sent: Vec<_> = results
            .iter()
            .map(|result| {
                let key = cluster.key(result);
                let record = cluster.record(result, &key);
                self.producer.client.send_result(record).map_err(|(error, _)| error)
            })
            .collect();
        tokio::runtime::Handle::current().block_on(join_all(sent.into_iter().map(delivered)))
    }

    /// Commits what was sent, with the note.
    fn commit(&self, cluster: &Cluster, note: &str) -> Result<(), KafkaError> {
        let mut place = TopicPartitionList::new();
        // The offset means nothing; there has to be one.
        place.add_partition_offset(&cluster.spec.kafka_topic, 0, Offset::Offset(0))?;
        if let Some(mut place) = place.find_partition(&cluster.spec.kafka_topic, 0) {
            place.set_metadata(note);
        }
        let started = Instant::now();
        again(started, || self.producer.client.send_offsets_to_transaction(&place, &self.group, CALL_MAX))?;
        crate::fault::point("kafka-transaction-written");
        again(started, || self.producer.client.commit_transaction(CALL_MAX))?;
        crate::fault::point("kafka-transaction-committed");
        Ok(())
    }
}

/// Repeats a call for as long as its error says that this may help.
fn again(started: Instant, call: impl Fn() -> Result<(), KafkaError>) -> Result<(), KafkaError> {
    loop {
        match call() {
            Err(KafkaError::Transaction(error)) if error.is_retriable() && started.elapsed() < COMMIT_MAX => {
            }
            outcome => return outcome,
        }
    }
}

/// Whether a record was thrown out of the client's queue before it was sent.
fn is_purged(error: &KafkaError) -> bool {
    matches!(error, KafkaError::MessageProduction(RDKafkaErrorCode::PurgeQueue))
}

/// Whether the transaction can be undone, and the producer goes on. So it is with what was not even sent.
fn is_abortable(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.txn_requires_abort(),
        KafkaError::MessageProduction(code) => *code != RDKafkaErrorCode::Fatal,
        _ => false,
    }
}
