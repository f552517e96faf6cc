//! Checks Kafka sources and sinks: brokers, credentials, and which topics Kafka topics fill.

use regex::Regex;

use crate::complaint::Reason;
use crate::credentials::{ClientTls, KafkaSasl, KafkaSaslMechanism};
use crate::durability::Durability;
use crate::names::topic_trouble;
use crate::path;
use crate::plan::{KafkaConnection, KafkaSink, KafkaSource};
use crate::sink::KafkaSinkSpec;
use crate::source::kafka::KafkaSourceSpec;
use crate::validate::connections;
use crate::validate::scope::Scope;

/// Checks the `kafka` of a source and parses it. `topic` is where all records go, if it is written beside it.
pub(crate) fn source(
    kafka: &KafkaSourceSpec,
    topic: Option<&String>,
    default_group_id: &str,
    ack: Durability,
    scope: &mut Scope<'_>,
) -> KafkaSource {
    topics(kafka, topic.is_some(), scope);
    if kafka.key_path.is_some() && kafka.record_key_path.is_some() {
        let message = "a message has one key; remove keyPath, which takes it from the payload, or recordKeyPath, which \
                       takes it from the record's own key";
        scope.error("kafka.recordKeyPath", Reason::Conflict, message);
    }
    KafkaSource {
        connection: connection(&kafka.brokers, kafka.sasl.as_ref(), kafka.tls.as_ref(), scope),
        kafka_topics: kafka.topics.clone(),
        topic: topic.cloned(),
        topic_names: kafka.topic_names.clone(),
        group_id: kafka.group_id.clone().unwrap_or_else(|| default_group_id.to_owned()),
        start_offset: kafka.start_offset,
        key_path: kafka.key_path.clone(),
        record_key_path: kafka.record_key_path.clone(),
        waits_for_replica: ack == Durability::Replicated,
    }
}

/// Checks the `kafka` of a sink and parses it.
pub(crate) fn sink(kafka: &KafkaSinkSpec, scope: &mut Scope<'_>) -> KafkaSink {
    if !is_kafka_topic(&kafka.topic) {
        scope.error("kafka.topic", Reason::InvalidName, not_a_kafka_topic(&kafka.topic));
    }
    KafkaSink {
        connection: connection(&kafka.brokers, kafka.sasl.as_ref(), kafka.tls.as_ref(), scope),
        kafka_topic: kafka.topic.clone(),
        transactional: kafka.transactional,
        key_format: kafka.key_format.unwrap_or_default(),
    }
}

fn connection(
    brokers: &str,
    sasl: Option<&KafkaSasl>,
    tls: Option<&ClientTls>,
    scope: &mut Scope<'_>,
) -> KafkaConnection {
    let brokers: Vec<String> = brokers.split(',').map(|broker| broker.trim().to_owned()).collect();
    for broker in &brokers {
        let port = broker.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then_some(port));
        if port.is_none_or(|port| !port.parse::<u16>().is_ok_and(|port| port > 0)) {
            let message = format!(
                "got {broker:?}, write host:port, with commas between several, such as \"kafka-0:9092,kafka-1:9092\""
            );
            scope.error("kafka.brokers", Reason::InvalidAddress, message);
        }
    }
    if let Some(sasl) = sasl {
        connections::credential("kafka.sasl.username", &sasl.username, scope);
        connections::credential("kafka.sasl.password", &sasl.password, scope);
        if sasl.mechanism == KafkaSaslMechanism::Plain && tls.is_none() {
            let message =
                "PLAIN sends the password itself; add kafka.tls, or write SCRAM-SHA-256 or SCRAM-SHA-512";
            scope.error("kafka.sasl.mechanism", Reason::Conflict, message);
        }
    }
    connections::tls("kafka.tls", tls, scope);
    if tls.is_some_and(|tls| tls.server_name.is_some()) {
        let message = "each broker is checked by the host that it tells; remove serverName, and let the brokers \
                       advertise the names of their certificates";
        scope.error("kafka.tls.serverName", Reason::Conflict, message);
    }
    KafkaConnection { brokers, sasl: sasl.cloned(), tls: tls.cloned() }
}

/// Complains about names that no Kafka topic can have, and Kafka topics whose topic could be no table.
fn topics(kafka: &KafkaSourceSpec, one_topic: bool, scope: &mut Scope<'_>) {
    if one_topic && !kafka.topic_names.is_empty() {
        let message = "topic sends all records to one topic; remove topic or topicNames";
        scope.error("kafka.topicNames", Reason::Conflict, message);
    }
    for (kafka_topic, topic) in &kafka.topic_names {
        if let Some(message) = topic_trouble(topic) {
            scope.error(&path::field("kafka.topicNames", kafka_topic), Reason::InvalidName, message);
        }
    }
    for (index, kafka_topic) in kafka.topics.iter().enumerate() {
        let at = path::item("kafka.topics", index);
        if kafka_topic.starts_with('^') {
            if let Err(error) = Regex::new(kafka_topic) {
                // The last line says what is wrong, and the lines before it say where.
                let text = error.to_string();
                let what = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                let message =
                    format!("got {kafka_topic:?}, no pattern ({what}); write for example \"^orders[.].*$\"");
                scope.error(&at, Reason::InvalidValue, message);
            }
        } else if !is_kafka_topic(kafka_topic) {
            scope.error(&at, Reason::InvalidName, not_a_kafka_topic(kafka_topic));
        } else if !one_topic
            && !kafka.topic_names.contains_key(kafka_topic)
            && topic_trouble(kafka_topic).is_some()
        {
            let plain: String =
                kafka_topic.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            let message = format!(
                "the Kafka topic {kafka_topic:?} cannot be a table of that name; add topicNames: {{{kafka_topic}: {}}}",
                plain.trim_matches('_')
            );
            scope.error(&at, Reason::InvalidName, message);
        }
    }
}

/// Whether Kafka lets a topic have this name.
fn is_kafka_topic(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.len() <= 249
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
}

fn not_a_kafka_topic(text: &str) -> String {
    format!("got {text:?}, a Kafka topic has letters, digits, '.', '_' and '-', 249 at most")
}
