//! Which partitions there are, and where each is begun with: the brokers are asked every few seconds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use litejoin_crds::plan;
use litejoin_crds::source::kafka::StartOffset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::MetadataTopic;
use tracing::{info, warn};

use super::{ClientSession, DISCOVER_INTERVAL, KafkaClient, Partition, RecordBlock, TELL_INTERVAL};
use crate::kafka::{self, Events, KafkaProblem};
use crate::source::kafka::place::{OffsetGap, Place, Range, TopicFilter, place};
use crate::storage::shard::Stream;
use crate::storage::topics::TopicId;

/// How long a call to the brokers may take.
const CALL_MAX: Duration = Duration::from_secs(3);

/// Looks, a second apart, that must all find that a partition ends before the place that we have read to. A broker that
/// has just come up may be wrong once.
const DOUBTS_MAX: u32 = 3;

/// Why discovery was broken off.
pub(super) enum DiscoveryError {
    /// The reader takes no more records.
    Unwanted,
    Failed(KafkaProblem),
}

/// The state of discovery over all sessions: which topics are read, and which partitions are in doubt.
pub(super) struct Discovery {
    filter: TopicFilter,
    has_looked: bool,
    /// By partition, how many looks in a row have found less than there must be.
    doubts: HashMap<(String, i32), u32>,
}

/// A Kafka topic that is wanted: its partitions, or why it can't be read.
type FoundTopic = (String, Result<Vec<i32>, String>);

impl Discovery {
    pub(super) fn new(spec: &plan::KafkaSource) -> Self {
        Self { filter: TopicFilter::new(spec), has_looked: false, doubts: HashMap::new() }
    }

    /// Asks the brokers which of the wanted topics there are.
    fn find(&self, consumer: &BaseConsumer<Events>) -> Result<Vec<FoundTopic>, KafkaError> {
        let mut all = Vec::new();
        if self.filter.has_patterns() {
            let metadata = consumer.fetch_metadata(None, CALL_MAX)?;
            let topics = metadata.topics().iter().filter(|topic| self.filter.has(topic.name()));
            all.extend(topics.map(found));
        }
        for name in self.filter.names() {
            if !all.iter().any(|(known, _)| known == name) {
                let metadata = consumer.fetch_metadata(Some(name), CALL_MAX)?;
                all.extend(metadata.topics().iter().map(found));
            }
        }
        Ok(all)
    }

    /// Whether to look again before a partition is taken for another one.
    fn doubts(&mut self, kafka_topic: &str, number: i32, gap: Option<OffsetGap>) -> bool {
        let whose = (kafka_topic.to_owned(), number);
        if !matches!(gap, Some(OffsetGap::Replaced { .. })) {
            self.doubts.remove(&whose);
            return false;
        }
        let doubts = self.doubts.entry(whose).or_default();
        *doubts += 1;
        if *doubts >= DOUBTS_MAX {
            *doubts = 0;
            return false;
        }
        true
    }
}

impl KafkaClient {
    /// Finds the partitions there are, and begins with the new ones. A partition whose place is gone is begun with
    /// again.
    pub(super) fn discover(
        &mut self,
        session: &mut ClientSession,
        discovery: &mut Discovery,
    ) -> Result<(), DiscoveryError> {
        let failed = |session: &ClientSession, error: &KafkaError| {
            DiscoveryError::Failed(kafka::problem(session.consumer.context(), error))
        };
        let (mut complaints, mut begun) = (Vec::new(), Vec::new());
        let wanted = discovery.find(&session.consumer).map_err(|error| failed(session, &error))?;
        for (kafka_topic, found) in wanted {
            let numbers = match found {
                Ok(numbers) => numbers,
                Err(trouble) => {
                    complaints.push(trouble);
                    continue;
                }
            };
            let topic = match self.topics.find_or_add(self.spec.topic_of(&kafka_topic)) {
                Ok(topic) => topic,
                Err(trouble) => {
                    complaints.push(format!(
                        "the Kafka topic {kafka_topic:?} is not read: {trouble}, by kafka.topicNames: {{{kafka_topic}: …}}"
                    ));
                    continue;
                }
            };
            for number in numbers {
                let known = session.partitions.get(&kafka_topic).and_then(|known| known.get(&number));
                if known.is_some() && !session.is_lost(&kafka_topic, number)? {
                    continue;
                }
                session.leave(&kafka_topic, number, &mut self.stored)?;
                let (low, high) = session
                    .consumer
                    .fetch_watermarks(&kafka_topic, number, CALL_MAX)
                    .map_err(|error| failed(session, &error))?;
                let range =
                    Range { low: u64::try_from(low).unwrap_or(0), high: u64::try_from(high).unwrap_or(0) };
                let start = self.start(discovery, &session.cluster, &kafka_topic);
                let whose = (self.name.as_str(), session.cluster.as_str(), kafka_topic.as_str(), number);
                let place = place(&self.stored, whose, range, start);
                if discovery.doubts(&kafka_topic, number, place.gap) {
                    session.discover_at = Instant::now() + TELL_INTERVAL;
                    complaints.push(format!(
                        "{kafka_topic}[{number}] ends at {high}, before what was read of it; looking again"
                    ));
                    continue;
                }
                begun.push((kafka_topic.clone(), number, topic, place));
            }
        }
        self.begin(session, begun)?;
        discovery.has_looked = true;
        session.has_doubts = false;
        match complaints.first() {
            None => {
                if session.refused_since.is_none() {
                    self.status.contact.made();
                }
                if session.refused_since.is_none() && self.is_troubled.take() && self.status.error.clear() {
                    info!(source = self.name, "reading from Kafka");
                }
            }
            Some(_) => {
                let text = complaints.join("; ");
                self.is_troubled.set(true);
                self.status.contact.lost(&text);
                if self.status.error.set(&text) {
                    warn!(source = self.name, error = text, "some of what is wanted can't be read");
                }
            }
        }
        Ok(())
    }

    /// Where to begin with a partition of which nothing is stored. Partitions that come after the first look at a topic
    /// are read from their start.
    fn start(&self, discovery: &Discovery, cluster: &str, kafka_topic: &str) -> StartOffset {
        let prefix = format!("{}:{cluster}/{kafka_topic}/", self.name);
        let is_known = || self.stored.keys().any(|stream| stream.starts_with(&prefix));
        if discovery.has_looked || is_known() { StartOffset::Earliest } else { self.spec.start_offset }
    }

    /// Starts reading partitions from their places.
    fn begin(
        &mut self,
        session: &mut ClientSession,
        begun: Vec<(String, i32, TopicId, Place)>,
    ) -> Result<(), DiscoveryError> {
        let stream = |place: &Place| Stream { name: Arc::from(place.stream.as_str()), next: place.next };
        let all = begun.iter().map(|(.., place)| place);
        let new: Vec<Stream> = all.filter(|place| place.is_new).map(stream).collect();
        if !new.is_empty() {
            self.blocks.blocking_send(RecordBlock::Begin(new)).map_err(|_| DiscoveryError::Unwanted)?;
        }
        for (kafka_topic, number, topic, place) in begun {
            if let Some(gap) = place.gap {
                self.report_gap(&kafka_topic, number, gap);
            }
            info!(
                source = self.name,
                kafka_topic,
                partition = number,
                offset = place.next,
                "reading a partition"
            );
            session.assign(&kafka_topic, number, place.next)?;
            let Stream { name: stream, next } = stream(&place);
            let partition =
                Partition { topic, stream, begun: next, next, position: next, committed: 0, run: None };
            session.partitions.entry(kafka_topic).or_default().insert(number, partition);
        }
        Ok(())
    }
}

impl ClientSession {
    /// Whether the place of a partition that is read is not there any more.
    fn is_lost(&self, kafka_topic: &str, number: i32) -> Result<bool, DiscoveryError> {
        let known = self.partitions.get(kafka_topic).and_then(|known| known.get(&number));
        let Some(partition) = known.filter(|_| self.has_doubts) else { return Ok(false) };
        let (low, high) = self
            .consumer
            .fetch_watermarks(kafka_topic, number, CALL_MAX)
            .map_err(|error| DiscoveryError::Failed(kafka::problem(self.consumer.context(), &error)))?;
        let next = i64::try_from(partition.next).unwrap_or(i64::MAX);
        Ok(!(low..=high).contains(&next))
    }
}

fn found(topic: &MetadataTopic) -> FoundTopic {
    use RDKafkaErrorCode as Code;
    let name = topic.name();
    let outcome = match topic.error().map(Code::from) {
        None => Ok(topic.partitions().iter().map(|partition| partition.id()).collect()),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic) => {
            let seconds = DISCOVER_INTERVAL.as_secs();
            Err(format!(
                "there is no Kafka topic {name:?}; make it, it is looked for every {seconds} seconds"
            ))
        }
        Some(Code::TopicAuthorizationFailed) => {
            Err(format!("we may not read the Kafka topic {name:?}; allow READ on it to our user"))
        }
        Some(code) => Err(format!("the Kafka topic {name:?} can't be read now ({code})")),
    };
    (name.to_owned(), outcome)
}
