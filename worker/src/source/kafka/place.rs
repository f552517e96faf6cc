//! Where a partition is read from, and which Kafka topics are read. Pure.

use std::collections::HashMap;

use litejoin_crds::plan;
use litejoin_crds::source::kafka::StartOffset;
use regex::Regex;

/// Offsets that a partition has now: from the first record up to, but without, the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) low: u64,
    pub(crate) high: u64,
}

/// Where reading a partition begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The name under which the shards keep the place.
    pub(crate) stream: String,
    pub(crate) next: u64,
    /// Whether the shards know nothing of the stream yet.
    pub(crate) is_new: bool,
    pub(crate) gap: Option<OffsetGap>,
}

/// A partition that is not as it was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OffsetGap {
    /// Records that we have not read are gone.
    Expired { from: u64, to: u64 },
    /// There are fewer records than we have read: the partition was made anew, or has lost its end.
    Replaced { read: u64, high: u64 },
}

/// The name of a partition's stream.
fn stream(source: &str, cluster: &str, kafka_topic: &str, partition: i32, generation: u32) -> String {
    let base = format!("{source}:{cluster}/{kafka_topic}/{partition}");
    if generation == 0 { base } else { format!("{base}#{generation}") }
}

/// Where to begin with a partition. `stored` has the places that the shards know. A stream that ends before ours is
/// followed by another generation: the shards would drop records that they think they have seen. `start` is where to
/// begin with what is not known.
pub(crate) fn place(
    stored: &HashMap<String, u64>,
    (source, cluster, kafka_topic, partition): (&str, &str, &str, i32),
    range: Range,
    start: StartOffset,
) -> Place {
    let stream = |generation| stream(source, cluster, kafka_topic, partition, generation);
    let known =
        (0_u32..).map_while(|generation| Some((generation, *stored.get(&stream(generation))?))).last();
    match known {
        None => {
            let next = match start {
                StartOffset::Earliest => range.low,
                StartOffset::Latest => range.high,
            };
            Place { stream: stream(0), next, is_new: true, gap: None }
        }
        Some((generation, read)) if read > range.high => {
            let gap = Some(OffsetGap::Replaced { read, high: range.high });
            Place { stream: stream(generation + 1), next: range.low, is_new: true, gap }
        }
        Some((generation, read)) => {
            let gap = (read < range.low).then_some(OffsetGap::Expired { from: read, to: range.low });
            Place { stream: stream(generation), next: read.max(range.low), is_new: false, gap }
        }
    }
}

/// Which Kafka topics are read.
pub(crate) struct TopicFilter {
    names: Vec<String>,
    patterns: Vec<Regex>,
}

impl TopicFilter {
    /// # Panics
    /// On a pattern that is none; validation has refused it.
    pub(crate) fn new(spec: &plan::KafkaSource) -> Self {
        let (patterns, names): (Vec<&String>, Vec<&String>) =
            spec.kafka_topics.iter().partition(|topic| topic.starts_with('^'));
        let patterns = patterns.iter().map(|text| Regex::new(text).expect("patterns were validated"));
        Self { names: names.into_iter().cloned().collect(), patterns: patterns.collect() }
    }

    /// Kafka topics that are named.
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether any topic of the cluster may be wanted.
    pub(crate) fn has_patterns(&self) -> bool {
        !self.patterns.is_empty()
    }

    /// Whether a Kafka topic is read. Kafka's own begin with `__` and are read only if they are named.
    pub(crate) fn has(&self, kafka_topic: &str) -> bool {
        self.names.iter().any(|name| name == kafka_topic)
            || (!kafka_topic.starts_with("__")
                && self.patterns.iter().any(|pattern| pattern.is_match(kafka_topic)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: (&str, &str, &str, i32) = ("src", "c1", "orders.v1", 3);

    fn from(stored: &[(&str, u64)], low: u64, high: u64, start: StartOffset) -> Place {
        let stored = stored.iter().map(|(name, next)| ((*name).to_owned(), *next)).collect();
        place(&stored, P, Range { low, high }, start)
    }

    #[test]
    fn what_is_stored_counts_and_else_the_start() {
        use StartOffset::{Earliest, Latest};
        let known = [("src:c1/orders.v1/3", 7)];
        let place = from(&known, 0, 10, Latest);
        assert_eq!((place.stream.as_str(), place.next, place.is_new), ("src:c1/orders.v1/3", 7, false));
        assert_eq!(from(&known, 7, 7, Latest).next, 7);
        assert_eq!(from(&[], 4, 10, Earliest).next, 4);
        assert_eq!(from(&[], 4, 10, Latest).next, 10);
        let other_cluster = [("src:c0/orders.v1/3", 7)];
        assert_eq!(from(&other_cluster, 4, 10, Earliest).next, 4);
    }

    #[test]
    fn expired_records_are_passed_over_and_told() {
        let place = from(&[("src:c1/orders.v1/3", 7)], 9, 12, StartOffset::Latest);
        assert_eq!((place.next, place.gap), (9, Some(OffsetGap::Expired { from: 7, to: 9 })));
    }

    #[test]
    fn a_partition_that_was_made_anew_is_read_whole_under_another_name() {
        let known = [("src:c1/orders.v1/3", 70)];
        let place = from(&known, 0, 5, StartOffset::Latest);
        assert_eq!((place.stream.as_str(), place.next, place.is_new), ("src:c1/orders.v1/3#1", 0, true));
        assert_eq!(place.gap, Some(OffsetGap::Replaced { read: 70, high: 5 }));
        let both = [("src:c1/orders.v1/3", 70), ("src:c1/orders.v1/3#1", 4)];
        for high in [5, 100] {
            let place = from(&both, 0, high, StartOffset::Latest);
            assert_eq!((place.stream.as_str(), place.next, place.gap), ("src:c1/orders.v1/3#1", 4, None));
        }
    }

    #[test]
    fn patterns_find_topics_and_leave_those_of_kafka_alone() {
        let spec = plan::KafkaSource {
            connection: plan::KafkaConnection { brokers: Vec::new(), sasl: None, tls: None },
            kafka_topics: ["plain", "^orders[.].*$", "^_"].map(str::to_owned).into(),
            topic: None,
            topic_names: [("orders.v1".to_owned(), "orders".to_owned())].into(),
            group_id: String::new(),
            start_offset: StartOffset::Earliest,
            key_path: None,
            record_key_path: None,
            waits_for_replica: false,
        };
        let wanted = TopicFilter::new(&spec);
        for (name, expected) in [
            ("plain", true),
            ("plain2", false),
            ("orders.v1", true),
            ("my.orders.v1", false),
            ("_mine", true),
            ("__consumer_offsets", false),
        ] {
            assert_eq!(wanted.has(name), expected, "{name}");
        }
        assert_eq!((spec.topic_of("orders.v1"), spec.topic_of("plain")), ("orders", "plain"));
    }
}
