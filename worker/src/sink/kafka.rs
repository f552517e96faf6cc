//! Records in a Kafka topic: the result key is the record's key (`record_keys.rs`), a deleted result is a record without a value. The
//! producer is idempotent and waits for all in-sync replicas, so retries of its own neither repeat nor reorder.

mod delivered_ids;
mod record_keys;
mod transaction;

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use litejoin_crds::error::chain;
use litejoin_crds::plan;
use rdkafka::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{DeliveryFuture, FutureProducer, FutureRecord, Producer as _};
use tokio::task::AbortHandle;
use tracing::{info, warn};

pub(crate) use self::record_keys::RecordKeys;
use self::record_keys::{RecordClaim, record_key};
use self::transaction::TransactionSession;
use super::routes::Routes;
use super::{Delivery, Outcome, Outcomes, Preparation, Sink};
use crate::blocking::blocking;
use crate::credentials::Secrets;
use crate::kafka::{self, Events};
use crate::results::event::Op;
use crate::status::sink::SinkStatus;

/// Settings of the producer. A record that was not taken for so long has failed, before the call as a whole has.
const SETTINGS: [(&str, &str); 8] = [
    ("enable.idempotence", "true"),
    ("acks", "all"),
    ("linger.ms", "2"),
    ("compression.type", "lz4"),
    // As the Java clients place keys.
    ("partitioner", "murmur2_random"),
    ("message.timeout.ms", "30000"),
    // How large a record may be is for the topic to say.
    ("message.max.bytes", "100000000"),
    ("queue.buffering.max.kbytes", "65536"),
];

/// How long sessions are opened anew before a call of the sink has failed.
const SESSIONS_MAX: Duration = Duration::from_secs(20);

/// Wait between two attempts to reach the cluster at the start.
const REACH_INTERVAL: Duration = Duration::from_secs(2);

/// How long one attempt takes at most.
const REACH_MAX: Duration = Duration::from_secs(5);

/// A producer, and what it tells of itself.
struct Producer {
    client: FutureProducer<Events>,
    events: Events,
}

/// A Kafka sink.
pub(crate) struct KafkaSink {
    cluster: Cluster,
    keys: RecordKeys,
    /// Without transactions: the producer, once there was something to write.
    producer: Option<Producer>,
    /// With transactions: what goes on from one to the next; none while one is under way, so that a call that is given up
    /// leaves nothing behind that the next could trust.
    session: Option<TransactionSession>,
    /// Looks for the cluster from the start on, so that trouble is known before there is anything to write.
    scout: Option<AbortHandle>,
}

/// Where records go, and who writes them.
#[derive(Clone)]
struct Cluster {
    name: String,
    spec: plan::KafkaSink,
    secrets: Arc<Secrets>,
    /// Our name in the cluster over all restarts: the transactional id, and the group that keeps the ids of written results.
    id: String,
}

impl KafkaSink {
    /// `identity` is that of the pipeline's data.
    pub(crate) fn new(
        name: &str,
        identity: &str,
        spec: plan::KafkaSink,
        keys: RecordKeys,
        secrets: Arc<Secrets>,
    ) -> Self {
        let id = format!("litejoin-{identity}-{name}");
        let cluster = Cluster { name: name.to_owned(), spec, secrets, id };
        Self { cluster, keys, producer: None, session: None, scout: None }
    }

    /// Sends results and waits for all of them. Results that are refused in company are sent again in halves, down to single ones.
    async fn send(&mut self, results: &[Delivery]) -> Vec<Outcome> {
        let producer = match self.producer.take().map_or_else(|| self.cluster.producer(&[]), Ok) {
            Ok(producer) => producer,
            Err(problem) => return vec![Outcome::Failed(problem); results.len()],
        };
        let producer = self.producer.insert(producer);
        let send = |result: &Delivery| {
            producer
                .client
                .send_result(self.cluster.record(result, &self.cluster.key(result)))
                .map_err(|(error, _)| error)
        };
        let (cluster, events) = (&self.cluster, &producer.events);
        let mut outcomes: Vec<Option<Outcome>> = vec![None; results.len()];
        let mut shares: Vec<Vec<usize>> = vec![(0..results.len()).collect()];
        let mut away = None;
        while away.is_none()
            && let Some(share) = shares.pop()
        {
            // All are sent before the first is waited for.
            let sent: Vec<Result<DeliveryFuture, KafkaError>> =
                share.iter().map(|index| send(&results[*index])).collect();
            let (is_alone, mut refused) = (share.len() == 1, Vec::new());
            for (index, delivery) in share.into_iter().zip(sent) {
                let outcome = match delivered(delivery).await {
                    Ok(()) => Outcome::Delivered,
                    Err(error) => cluster.failure(events, &error),
                };
                match &outcome {
                    Outcome::Refused(_) if !is_alone => {
                        refused.push(index);
                        continue;
                    }
                    Outcome::Failed(_) => away = Some(outcome.clone()),
                    _ => {}
                }
                outcomes[index] = Some(outcome);
            }
            shares.extend(halves(refused));
        }
        let outcomes: Vec<Outcome> =
            outcomes.into_iter().filter_map(|outcome| outcome.or_else(|| away.clone())).collect();
        let is_refused = events.problem().is_some_and(|problem| problem.is_refusal);
        if producer.client.client().fatal_error().is_some() || is_refused {
            // The next one starts over, with credentials looked up again.
            self.producer = None;
        } else if outcomes.iter().any(|outcome| matches!(outcome, Outcome::Delivered)) {
            events.recovered();
        }
        outcomes
    }

    /// Writes those results whose record keys are theirs to write.
    async fn write(&mut self, results: &[Delivery]) -> Vec<Outcome> {
        let (keys, all) = (self.keys.clone(), results.to_vec());
        let claims = match blocking(move || keys.claims(&all)).await {
            Ok(claims) => claims,
            Err(error) => return vec![Outcome::Failed(chain(&error).to_string()); results.len()],
        };
        let pairs = results.iter().zip(&claims);
        let written: Vec<Delivery> = pairs
            .filter(|(_, claim)| matches!(claim, RecordClaim::Write { .. }))
            .map(|(result, _)| result.clone())
            .collect();
        let mut sent = if written.is_empty() {
            Vec::new()
        } else if self.cluster.spec.transactional {
            self.transact(&written).await
        } else {
            self.send(&written).await
        }
        .into_iter();
        let mut outcomes = Vec::with_capacity(results.len());
        for (result, claim) in results.iter().zip(claims) {
            outcomes.push(match claim {
                RecordClaim::Nothing => Outcome::Delivered,
                RecordClaim::Refuse(reason) => Outcome::Refused(reason),
                RecordClaim::Write { was_withheld } => {
                    // Results behind one that is not answered for are handed over again.
                    let Some(outcome) = sent.next() else { break };
                    if was_withheld && outcome == Outcome::Delivered {
                        let (keys, result) = (self.keys.clone(), result.clone());
                        match blocking(move || keys.written(&result)).await {
                            Ok(()) => outcome,
                            Err(error) => Outcome::Failed(chain(&error).to_string()),
                        }
                    } else {
                        outcome
                    }
                }
            });
        }
        outcomes
    }

    /// Writes results in a transaction.
    async fn transact(&mut self, results: &[Delivery]) -> Vec<Outcome> {
        let (cluster, session) = (self.cluster.clone(), self.session.take());
        let results = results.to_vec();
        // Gone when this call is given up, which does not end the thread that works for it.
        let call = Arc::new(());
        let waiting = Arc::downgrade(&call);
        let (session, outcomes) = blocking(move || {
            write_in_sessions(
                session,
                results.len(),
                || waiting.strong_count() > 0,
                || TransactionSession::open(&cluster),
                |session| session.write(&cluster, &results),
            )
        })
        .await;
        drop(call);
        self.session = session;
        outcomes
    }
}

/// Writes `count` results, and opens a session wherever there is none that can go on: a new one finds out what the last has
/// done, and goes on from there. No session is opened once its caller is gone: another worker may have one by then, which that
/// would end.
fn write_in_sessions<S>(
    mut session: Option<S>,
    count: usize,
    is_waited_for: impl Fn() -> bool,
    open: impl Fn() -> Result<S, String>,
    write: impl Fn(S) -> (Option<S>, Vec<Outcome>),
) -> (Option<S>, Vec<Outcome>) {
    let started = Instant::now();
    loop {
        let ready = match session.take() {
            Some(session) => Ok(session),
            None if is_waited_for() => open(),
            None => return (None, Vec::new()),
        };
        let (left, outcomes) = match ready {
            Ok(session) => write(session),
            Err(problem) => (None, vec![Outcome::Failed(problem); count]),
        };
        if left.is_some() || started.elapsed() >= SESSIONS_MAX {
            return (left, outcomes);
        }
    }
}

impl Sink for KafkaSink {
    fn start(&mut self, status: &Arc<SinkStatus>) {
        let scout = Scout { cluster: self.cluster.clone(), status: Arc::clone(status) };
        self.scout = Some(tokio::spawn(scout.run()).abort_handle());
    }

    fn prepare<'a>(&'a mut self, routes: &'a Routes) -> Preparation<'a> {
        self.keys.follow(routes);
        Box::pin(async { Ok(()) })
    }

    fn deliver<'a>(&'a mut self, results: &'a [Delivery]) -> Outcomes<'a> {
        Box::pin(self.write(results))
    }
}

impl Drop for KafkaSink {
    fn drop(&mut self) {
        if let Some(scout) = &self.scout {
            scout.abort();
        }
    }
}

impl Cluster {
    fn settings(&self) -> Result<ClientConfig, String> {
        kafka::settings(&self.spec.connection, &self.secrets).map_err(|error| chain(&error))
    }

    fn producer(&self, more: &[(&str, &str)]) -> Result<Producer, String> {
        let mut config = self.settings()?;
        for (setting, value) in SETTINGS.iter().chain(more) {
            config.set(*setting, *value);
        }
        let events = Events::of(&self.spec.connection);
        let client = config.create_with_context(events.clone());
        let client = client.map_err(|error| chain(&kafka::ClientError::from(error)))?;
        Ok(Producer { client, events })
    }

    /// The key of a result's record.
    fn key<'r>(&self, result: &'r Delivery) -> Cow<'r, str> {
        record_key(self.spec.key_format, &result.key)
    }

    /// A result as a record.
    fn record<'r>(&'r self, result: &'r Delivery, key: &'r str) -> FutureRecord<'r, str, str> {
        let headers = [
            ("id", result.id.as_str()),
            ("epoch", &result.epoch.to_string()),
            ("op", result.op.as_str()),
            ("query", &result.join_name),
        ];
        let headers = headers
            .into_iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| all.insert(Header { key, value: Some(value) }));
        let mut record = FutureRecord::to(&self.spec.kafka_topic).key(key).headers(headers);
        record.payload = (result.op != Op::Deleted).then_some(result.json.as_str());
        record
    }

    /// The outcome of a record that was not taken.
    fn failure(&self, events: &Events, error: &KafkaError) -> Outcome {
        use RDKafkaErrorCode as Code;
        let kafka_topic = &self.spec.kafka_topic;
        match error.rdkafka_error_code() {
            Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::MessageBatchTooLarge) => {
                Outcome::Refused(format!(
                    "the record is larger than the Kafka topic {kafka_topic:?} takes; raise its max.message.bytes"
                ))
            }
            Some(Code::InvalidRecord | Code::PolicyViolation | Code::InvalidMessage) => Outcome::Refused(
                format!("the Kafka topic {kafka_topic:?} does not take the record ({error})"),
            ),
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
                Outcome::Failed(format!("there is no Kafka topic {kafka_topic:?}; make it"))
            }
            Some(Code::TopicAuthorizationFailed) => Outcome::Failed(format!(
                "we may not write to the Kafka topic {kafka_topic:?}; allow WRITE on it to our user"
            )),
            _ => Outcome::Failed(kafka::problem(events, error).text),
        }
    }
}

/// Halves of what was refused in company, to be taken from the end. A broker refuses a batch as a whole, be it for one of
/// its records or for the size of all together.
fn halves(mut refused: Vec<usize>) -> impl Iterator<Item = Vec<usize>> {
    let second = refused.split_off(refused.len().div_ceil(2));
    [second, refused].into_iter().filter(|half| !half.is_empty())
}

/// Waits for what becomes of a record.
async fn delivered(sent: Result<DeliveryFuture, KafkaError>) -> Result<(), KafkaError> {
    match sent?.await {
        Ok(outcome) => outcome.map(|_| ()).map_err(|(error, _)| error),
        Err(_) => Err(KafkaError::Canceled),
    }
}

/// Looks for the cluster and its topic until they were found once.
struct Scout {
    cluster: Cluster,
    status: Arc<SinkStatus>,
}

impl Scout {
    async fn run(self) {
        loop {
            let cluster = self.cluster.clone();
            match blocking(move || cluster.reach()).await {
                Ok(trouble) => {
                    info!(sink = self.cluster.name, "reached Kafka");
                    if let Some(trouble) = trouble {
                        warn!(sink = self.cluster.name, error = trouble, "results will wait");
                        self.status.error.set(&trouble);
                        self.status.contact.lost(&trouble);
                    } else {
                        self.status.error.clear();
                        self.status.contact.made();
                    }
                    return;
                }
                Err(problem) => {
                    self.status.contact.lost(&problem);
                    if self.status.error.set(&problem) {
                        warn!(
                            sink = self.cluster.name,
                            error = problem,
                            "can't write to Kafka; trying again"
                        );
                    }
                }
            }
            tokio::time::sleep(REACH_INTERVAL).await;
        }
    }
}

impl Cluster {
    /// Asks the cluster for the topic; returns what is wrong with that.
    fn reach(&self) -> Result<Option<String>, String> {
        let producer = self.producer(&[])?;
        let metadata = producer.client.client().fetch_metadata(Some(&self.spec.kafka_topic), REACH_MAX);
        // Events of the client come on a thread of its own.
        let metadata = metadata.map_err(|error| kafka::problem(&producer.events, &error).text)?;
        let trouble = metadata.topics().iter().find_map(|topic| topic.error());
        Ok(trouble.and_then(|code| {
            let error = KafkaError::MetadataFetch(RDKafkaErrorCode::from(code));
            match self.failure(&producer.events, &error) {
                Outcome::Failed(trouble) | Outcome::Refused(trouble) => Some(trouble),
                _ => None,
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn what_is_refused_in_company_goes_in_halves() {
        for (refused, expected) in
            [(vec![], vec![]), (vec![3], vec![vec![3]]), (vec![1, 2, 5], vec![vec![5], vec![1, 2]])]
        {
            assert_eq!(halves(refused).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn a_call_that_is_given_up_opens_no_session() {
        let (opened, waits) = (Cell::new(0), Cell::new(true));
        let open = || {
            opened.set(opened.get() + 1);
            Ok(())
        };
        // The third session goes on; the others were ended by another worker.
        let write = |()| ((opened.get() == 3).then_some(()), vec![Outcome::Delivered]);
        assert!(write_in_sessions(None, 1, || waits.get(), open, write).0.is_some());
        assert_eq!(opened.replace(0), 3);
        let write = |()| {
            waits.set(false);
            (None, vec![Outcome::Failed("fenced".to_owned())])
        };
        assert!(write_in_sessions(Some(()), 1, || waits.get(), open, write).0.is_none());
        assert_eq!(opened.get(), 0);
    }
}
