//! What differs between the config in force and the one that is to follow it. Pure.

use std::collections::BTreeMap;
use std::fmt;

use litejoin_crds::plan::{Plan, Serving};
use litejoin_crds::{Complaint, Reason};

use super::Pipeline;

/// Names of things of one kind by what a new config does to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    pub(super) added: Vec<String>,
    pub(super) changed: Vec<String>,
    pub(super) removed: Vec<String>,
}

impl Difference {
    pub(super) fn between<'a, T: PartialEq>(
        old: impl Iterator<Item = (&'a str, T)>,
        new: impl Iterator<Item = (&'a str, T)>,
    ) -> Self {
        let mut old: BTreeMap<&str, T> = old.collect();
        let mut difference = Self::default();
        for (name, new) in new {
            match old.remove(name) {
                None => difference.added.push(name.to_owned()),
                Some(old) if old != new => difference.changed.push(name.to_owned()),
                Some(_) => {}
            }
        }
        difference.removed = old.into_keys().map(str::to_owned).collect();
        difference
    }

    /// Names of what has to start.
    pub(super) fn starting(&self) -> impl Iterator<Item = &str> {
        self.added.iter().chain(&self.changed).map(String::as_str)
    }

    /// Names of what has to stop.
    pub(super) fn stopping(&self) -> impl Iterator<Item = &str> {
        self.removed.iter().chain(&self.changed).map(String::as_str)
    }

    fn is_empty(&self) -> bool {
        self.added.is_empty() && self.changed.is_empty() && self.removed.is_empty()
    }
}

/// All that a new config changes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    pub(super) joins: Difference,
    pub(super) sources: Difference,
    pub(super) sinks: Difference,
    /// Whether `retention`, `delivery` or `audit` differ.
    pub(super) settings: bool,
}

impl Changes {
    pub(super) fn is_empty(&self) -> bool {
        [&self.joins, &self.sources, &self.sinks].iter().all(|difference| difference.is_empty())
            && !self.settings
    }
}

impl fmt::Display for Changes {
    /// `joins: 2 added (a, b), 1 removed (c); sinks: 1 changed (d)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing that runs differs");
        }
        let mut parts = Vec::new();
        for (kind, difference) in [("joins", &self.joins), ("sources", &self.sources), ("sinks", &self.sinks)]
        {
            let deeds = [
                ("added", &difference.added),
                ("changed", &difference.changed),
                ("removed", &difference.removed),
            ];
            let deeds: Vec<String> = deeds
                .iter()
                .filter(|(_, names)| !names.is_empty())
                .map(|(deed, names)| format!("{} {deed} ({})", names.len(), names.join(", ")))
                .collect();
            if !deeds.is_empty() {
                parts.push(format!("{kind}: {}", deeds.join(", ")));
            }
        }
        if self.settings {
            parts.push("settings changed".to_owned());
        }
        f.write_str(&parts.join("; "))
    }
}

/// Joins that differ in what they yield, how it is written out, or which sinks take it.
pub(super) fn joins(old: &Pipeline, new: &Pipeline) -> Difference {
    fn parts(pipeline: &Pipeline) -> impl Iterator<Item = (&str, impl PartialEq)> {
        let checked: BTreeMap<&str, _> =
            pipeline.joins.iter().map(|join| (join.name.as_str(), join)).collect();
        pipeline
            .plan
            .joins
            .iter()
            .map(move |join| (join.name.as_str(), (checked.get(join.name.as_str()).copied(), &join.sinks)))
    }
    Difference::between(parts(old), parts(new))
}

/// Complains about each field that differs and that a running worker can't change.
pub(super) fn fixed(old: &Plan, new: &Pipeline) -> Vec<Complaint> {
    let is_pipeline = |value: &serde_json::Value| value["kind"] == "Pipeline";
    let documents = &new.manifest.documents;
    let document = documents.iter().position(|document| is_pipeline(&document.value)).unwrap_or_default();
    settings(old)
        .into_iter()
        .zip(settings(&new.plan))
        .filter(|((_, old), (_, new))| old != new)
        .map(|((path, old), (_, new))| {
            let message =
                format!("got {new}, and the worker runs with {old}; put that back, or restart to apply");
            Complaint::error(document, path, Reason::NeedsRestart, message)
        })
        .collect()
}

/// Fields of a Pipeline that hold from start to end, with their values.
fn settings(plan: &Plan) -> [(&'static str, String); 12] {
    let storage = &plan.storage;
    // Without one of its own it follows from the name, which is complained about already.
    let own_identity = plan.identity != format!("{}/{}", plan.namespace, plan.name);
    let identity = if own_identity { format!("{:?}", plan.identity) } else { "none".to_owned() };
    [
        ("metadata.name", format!("{:?}", plan.name)),
        ("metadata.namespace", format!("{:?}", plan.namespace)),
        ("spec.replication.identity", identity),
        ("spec.storage.shardCount", storage.shard_count.to_string()),
        ("spec.storage.dataDir", format!("{:?}", storage.data_dir)),
        ("spec.storage.readerPoolSize", storage.reader_pool_size.to_string()),
        ("spec.storage.batchSize", storage.batch_messages_max.to_string()),
        ("spec.storage.flushInterval", format!("{:?}", storage.flush_interval)),
        ("spec.storage.synchronous", format!("{:?}", storage.synchronous).to_lowercase()),
        ("spec.admin.addr", format!("{:?}", plan.admin.addr)),
        ("spec.admin", serving(&plan.admin.serving)),
        (
            "spec.delivery.dlq.path",
            plan.delivery.dlq.path.as_ref().map_or_else(|| "none".to_owned(), |path| format!("{path:?}")),
        ),
    ]
}

/// How an address is served, in a few words.
fn serving(serving: &Serving) -> String {
    let Serving { bearer, tls, connections_max, client_timeout } = serving;
    format!(
        "auth {bearer:?}, tls {tls:?}, maxConnections {connections_max}, clientTimeout {client_timeout:?}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_in_one_line() {
        let old = [("a", 1), ("b", 1), ("c", 1)];
        let new = [("b", 2), ("c", 1), ("d", 1), ("e", 1)];
        let between = || Difference::between(old.into_iter(), new.into_iter());
        let changes = Changes { joins: between(), sinks: between(), settings: true, ..Changes::default() };
        assert_eq!(
            changes.to_string(),
            "joins: 2 added (d, e), 1 changed (b), 1 removed (a); sinks: 2 added (d, e), 1 changed (b), 1 removed (a); \
             settings changed"
        );
        assert_eq!(changes.joins.starting().collect::<Vec<_>>(), ["d", "e", "b"]);
        assert_eq!(changes.joins.stopping().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(Changes::default().to_string(), "nothing that runs differs");
    }
}
