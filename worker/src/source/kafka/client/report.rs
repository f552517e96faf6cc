//! How reading is told to users: lag, gaps, what the broker takes note of, and what keeps us from reading.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use rdkafka::consumer::Consumer;
use rdkafka::error::RDKafkaErrorCode;
use tracing::{debug, error, info, warn};

use super::{CONNECT_MAX, ClientSession, KafkaClient};
use crate::kafka::KafkaProblem;
use crate::source::kafka::committer::CommitOutcome;
use crate::source::kafka::place::OffsetGap;
use crate::status::kafka::PartitionStatus;

impl KafkaClient {
    /// Shows lag and trouble; returns a problem that another session may not have.
    pub(super) fn show(&self, session: &mut ClientSession) -> Option<KafkaProblem> {
        let events = Arc::clone(session.consumer.context());
        if let Some(statistics) = events.statistics() {
            if statistics.brokers.values().any(|broker| broker.nodeid >= 0 && broker.state == "UP") {
                events.recovered();
                session.refused_since = None;
            }
            let mut shown = BTreeMap::new();
            for (kafka_topic, partitions) in &mut session.partitions {
                for (number, partition) in partitions {
                    let known =
                        statistics.topics.get(kafka_topic).and_then(|topic| topic.partitions.get(number));
                    let ends = known.map_or([-1; 2], |known| [known.ls_offset, known.hi_offset]);
                    let end = ends.into_iter().find_map(|end| u64::try_from(end).ok());
                    // What was fetched by then has been taken, unless some of it waits in the client's queue.
                    if let Some(known) = known.filter(|known| known.fetchq_cnt == 0)
                        && let Ok(fetched) = u64::try_from(known.next_offset)
                    {
                        partition.position = partition.position.max(fetched);
                    }
                    let next = partition.reached(&self.progress);
                    shown.insert((kafka_topic.clone(), *number), PartitionStatus { next, end });
                }
            }
            self.status.kafka.show(shown);
        }
        self.show_commit(session);
        let problem = events.problem()?;
        self.tell(&problem);
        if !problem.is_refusal {
            return None;
        }
        let since = *session.refused_since.get_or_insert_with(Instant::now);
        (since.elapsed() >= CONNECT_MAX).then_some(problem)
    }

    /// Shows whether the broker takes note of where we are: it does not while the group has members of its own.
    fn show_commit(&self, session: &mut ClientSession) {
        let warning = &self.status.kafka.warning;
        match session.committer.outcome() {
            None => {}
            Some(CommitOutcome::Done(Ok(()))) if warning.clear() => {
                info!(source = self.name, "the broker is told again how far we are");
            }
            Some(CommitOutcome::Done(Ok(()))) => {}
            Some(CommitOutcome::Behind) => {
                session.doubt_commits();
                let text = "the replica is behind, so the broker is not told how far we are; nothing is missing here";
                if warning.set(text) {
                    warn!(source = self.name, "{text}");
                }
            }
            Some(CommitOutcome::Done(Err(error))) => {
                use RDKafkaErrorCode as Code;
                session.doubt_commits();
                let group_id = &self.spec.group_id;
                let text = match error.rdkafka_error_code() {
                    Some(Code::UnknownMemberId | Code::IllegalGeneration | Code::RebalanceInProgress) => {
                        format!(
                            "another consumer is a member of the group {group_id:?}; nothing is missing here, but the broker \
                         can't be told how far we are; give this source a kafka.groupId of its own"
                        )
                    }
                    Some(Code::GroupAuthorizationFailed) => format!(
                        "we may not use the group {group_id:?}; nothing is missing here, but the broker can't be told \
                         how far we are; allow READ on the group to our user"
                    ),
                    _ => {
                        debug!(source = self.name, %error, "could not commit offsets");
                        return;
                    }
                };
                if warning.set(&text) {
                    warn!(source = self.name, "{text}");
                }
            }
        }
    }

    pub(super) fn tell(&self, problem: &KafkaProblem) {
        self.is_troubled.set(true);
        self.status.contact.lost(&problem.text);
        if self.status.error.set(&problem.text) {
            warn!(source = self.name, error = problem.text, "can't read from Kafka; trying again");
        }
    }

    pub(super) fn report_gap(&self, kafka_topic: &str, number: i32, gap: OffsetGap) {
        let kafka = &self.status.kafka;
        match gap {
            OffsetGap::Expired { from, to } => {
                kafka.lost.add(to - from);
                let text = format!(
                    "{kafka_topic}[{number}]: records {from} to {} were removed from Kafka before they were read; going \
                     on with {to}, the oldest there is; give the topic a longer retention",
                    to - 1
                );
                kafka.loss.set(&text);
                error!(source = self.name, "{text}");
            }
            OffsetGap::Replaced { read, high } => {
                let text = format!(
                    "{kafka_topic}[{number}] ends at {high}, before offset {read} that was read: the topic was made anew, \
                     or has lost records; reading it again from its oldest record"
                );
                kafka.loss.set(&text);
                error!(source = self.name, "{text}");
            }
        }
    }
}
