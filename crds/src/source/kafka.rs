//! `kafka` of a source: consumes Kafka topics.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::credentials::{ClientTls, KafkaSasl};

/// Consumes Kafka topics. The place where reading goes on is stored with the data, never taken from the broker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSourceSpec {
    /// Addresses of brokers, `host:port`, with commas between.
    #[schemars(length(min = 1, max = 4096))]
    pub brokers: String,
    /// Kafka topics; one that begins with `^` is a pattern, for topics that are there or come later.
    #[schemars(
        length(min = 1, max = 100),
        inner(length(min = 1, max = 249)),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub topics: Vec<String>,
    /// Topics by the Kafka topics that fill them, where the names differ, such as `{orders.v1: orders}`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 100))]
    pub topic_names: BTreeMap<String, String>,
    /// Consumer group under which the source commits its offsets, for monitoring only;
    /// `litejoin-<namespace>-<pipeline>` where absent. The group needs no other members and shares no partitions.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 249))]
    pub group_id: Option<String>,
    /// Where to start when nothing is stored: at the `earliest` record there is, or after the `latest`. Partitions that
    /// come later are read from their start.
    #[serde(default)]
    pub start_offset: StartOffset,
    /// Path of the key in the payload, in gjson syntax; the record's own key where absent, and for records without a
    /// value, which delete. Where the record's own key is JSON that holds it, write `recordKeyPath`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub key_path: Option<String>,
    /// Path of the key in the record's own key, which is JSON then, in gjson syntax: `id` for records of Debezium, whose
    /// keys are `{"id": 1}`. Records that delete have that key too, and no payload in which `keyPath` could find one; so
    /// write one of the two.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub record_key_path: Option<String>,
    /// How the worker authenticates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sasl: Option<KafkaSasl>,
    /// How the brokers are checked; without it the connection is not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
}

/// Where to start when no offset is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum StartOffset {
    /// At the oldest record there is.
    #[default]
    Earliest,
    /// At the next record to come.
    Latest,
}
