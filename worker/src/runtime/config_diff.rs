//! The difference between the config in force and the one that is to follow it. Pure.

use std::collections::BTreeMap;
use std::fmt;

use litejoin_crds::plan::Plan;
use litejoin_crds::{Complaint, Reason};

use super::Pipeline;

/// Names of things of one kind by what a new config does to them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct NameDiff {
    pub(super) added: Vec<String>,
    pub(super) changed: Vec<String>,
    pub(super) removed: Vec<String>,
}

impl NameDiff {
    pub(super) fn between<'a, T: PartialEq>(
        old: impl Iterator<Item = (&'a str, T)>,
        new: impl Iterator<Item = (&'a str, T)>,
    ) -> Self {
        let mut old: BTreeMap<&str, T> = old.collect();
        let mut diff = Self::default();
        for (name, new) in new {
            match old.remove(name) {
                None => diff.added.push(name.to_owned()),
                Some(old) if old != new => diff.changed.push(name.to_owned()),
                Some(_) => {}
            }
        }
        diff.removed = old.into_keys().map(str::to_owned).collect();
        diff
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

/// All that a new config diff.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ConfigDiff {
    pub(super) joins: NameDiff,
    pub(super) sources: NameDiff,
    pub(super) sinks: NameDiff,
    /// Whether `retention`, `delivery`, `audit` or `storage.maxBytes` differ.
    pub(super) settings: bool,
    /// Whether a move of the data beside the pipeline begins or is called off.
    pub(super) reshard: bool,
}

impl ConfigDiff {
    pub(super) fn is_empty(&self) -> bool {
        self.keeps_parts() && !self.reshard
    }

    /// Whether nothing that runs has to change.
    pub(super) fn keeps_parts(&self) -> bool {
        [&self.joins, &self.sources, &self.sinks].iter().all(|diff| diff.is_empty()) && !self.settings
    }
}

impl fmt::Display for ConfigDiff {
    /// `joins: 2 added (a, b), 1 removed (c); sinks: 1 changed (d)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("nothing that runs differs");
        }
        let mut parts = Vec::new();
        for (kind, diff) in [("joins", &self.joins), ("sources", &self.sources), ("sinks", &self.sinks)] {
            let deeds = [("added", &diff.added), ("changed", &diff.changed), ("removed", &diff.removed)];
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
        if self.reshard {
            parts.push("storage.reshard changed".to_owned());
        }
        f.write_str(&parts.join("; "))
    }
}

/// Joins that differ in what they yield, how it is written out, or which sinks take it.
pub(super) fn joins(old: &Pipeline, new: &Pipeline) -> NameDiff {
    fn parts(pipeline: &Pipeline) -> impl Iterator<Item = (&str, impl PartialEq)> {
        let checked: BTreeMap<&str, _> =
            pipeline.joins.iter().map(|join| (join.name.as_str(), join)).collect();
        pipeline
            .plan
            .outputs()
            .map(move |output| (output.name, (checked.get(output.name).copied(), output.sinks)))
    }
    NameDiff::between(parts(old), parts(new))
}

/// Complains about each field that differs and that a running worker can't change.
pub(super) fn fixed(old: &Plan, new: &Pipeline) -> Vec<Complaint> {
    let is_pipeline = |value: &serde_json::Value| value["kind"] == "Pipeline";
    let documents = &new.manifest.documents;
    let document = documents.iter().position(|document| is_pipeline(&document.value)).unwrap_or_default();
    old.fixed()
        .into_iter()
        .zip(new.plan.fixed())
        .filter(|((_, old), (_, new))| old != new)
        .map(|((path, old), (_, new))| {
            let message =
                format!("got {new}, and the worker runs with {old}; put that back, or restart to apply");
            Complaint::error(document, path, Reason::NeedsRestart, message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_in_one_line() {
        let old = [("a", 1), ("b", 1), ("c", 1)];
        let new = [("b", 2), ("c", 1), ("d", 1), ("e", 1)];
        let between = || NameDiff::between(old.into_iter(), new.into_iter());
        let diff = ConfigDiff { joins: between(), sinks: between(), settings: true, ..ConfigDiff::default() };
        assert_eq!(
            diff.to_string(),
            "joins: 2 added (d, e), 1 changed (b), 1 removed (a); sinks: 2 added (d, e), 1 changed (b), 1 removed (a); \
             settings changed"
        );
        assert_eq!(diff.joins.starting().collect::<Vec<_>>(), ["d", "e", "b"]);
        assert_eq!(diff.joins.stopping().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(ConfigDiff::default().to_string(), "nothing that runs differs");
    }
}
