//! What the API has and today's worker cannot run. It refuses these by name, so that nothing is accepted and
//! then ignored; each later version of the worker makes this room smaller.

use serde_json::Value;

use crate::complaint::{Complaint, Reason};
use crate::path;
use crate::validate::Document;

/// Returns a complaint for each part of the documents that today's worker cannot run. They need not be valid.
pub fn unsupported(documents: &[Document]) -> Vec<Complaint> {
    let mut found = Refusals::default();
    for (index, document) in documents.iter().enumerate() {
        found.document = index;
        let spec = &document.value["spec"];
        match document.value["kind"].as_str() {
            Some("Pipeline") => found.pipeline(spec),
            Some("Source") => found.source(spec, "spec"),
            Some("Window") => {
                found.refuse("kind", "windows are not run by this version yet; remove this document")
            }
            Some("Sink") => found.sink(spec, "spec"),
            _ => {}
        }
    }
    found.complaints
}

#[derive(Default)]
struct Refusals {
    document: usize,
    complaints: Vec<Complaint>,
}

impl Refusals {
    fn refuse(&mut self, path: &str, message: impl Into<String>) {
        self.complaints.push(Complaint::error(self.document, path, Reason::Unsupported, message));
    }

    fn pipeline(&mut self, spec: &Value) {
        for (list, check) in
            [("sources", Refusals::source as fn(&mut _, &Value, &str)), ("sinks", Refusals::sink)]
        {
            let at = path::field("spec", list);
            for (index, item) in spec[list].as_array().into_iter().flatten().enumerate() {
                check(self, item, &path::item(&at, index));
            }
        }
        if spec["windows"].as_array().is_some_and(|windows| !windows.is_empty()) {
            self.refuse("spec.windows", "windows are not run by this version yet; remove them");
        }
        if spec["replication"]["enabled"] == true {
            let message = "replication is not run by this version yet; write enabled: false";
            self.refuse("spec.replication.enabled", message);
        }
        if spec["delivery"]["after"] == "replicated" {
            self.refuse(
                "spec.delivery.after",
                "replication is not run by this version yet; write after: committed",
            );
        }
        if spec["storage"]["reshard"].is_object() {
            let message = "the number of shards cannot be changed by this version yet; remove reshard and put the old shardCount back";
            self.refuse("spec.storage.reshard", message);
        }
    }

    fn source(&mut self, source: &Value, at: &str) {
        for kind in ["api"] {
            if source[kind].is_object() {
                let message =
                    format!("{kind} sources are not run by this version yet; use http, file or kafka");
                self.refuse(&path::field(at, kind), message);
            }
        }
        if source["ack"] == "replicated" {
            let message = "replication is not run by this version yet; write ack: committed";
            self.refuse(&path::field(at, "ack"), message);
        }
    }

    fn sink(&mut self, sink: &Value, at: &str) {
        for kind in ["http", "sqlite"] {
            if sink[kind].is_object() {
                let message =
                    format!("{kind} sinks are not run by this version yet; use sse, stdout or kafka");
                self.refuse(&path::field(at, kind), message);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use expect_test::expect;
    use serde_json::json;

    #[test]
    fn what_is_not_run_is_refused_by_name() {
        let values = [
            json!({"kind": "Pipeline", "spec": {
                "storage": {"reshard": {"fromShardCount": 8, "toShardCount": 16}},
                "delivery": {"after": "replicated"},
                "replication": {"enabled": true},
                "sources": [{"name": "a", "http": {"addr": ":1"}, "ack": "replicated"}, {"name": "b", "kafka": {}}, {"name": "c", "api": {}}],
                "windows": [{"name": "w"}],
                "sinks": [{"name": "s", "sse": {"addr": ":2"}}, {"name": "t", "sqlite": {}}],
            }}),
            json!({"kind": "Source", "spec": {"api": {}}}),
            json!({"kind": "Window", "spec": {}}),
            json!({"kind": "Sink", "spec": {"http": {}}}),
        ];
        let documents = values.map(|value| Document { value });
        let complaints = unsupported(&documents);
        let lines: Vec<String> = complaints
            .iter()
            .map(|c| format!("{} {}: {}\n", c.place.document, c.place.path, c.message))
            .collect();
        expect![[r#"
            0 spec.sources[0].ack: replication is not run by this version yet; write ack: committed
            0 spec.sources[2].api: api sources are not run by this version yet; use http, file or kafka
            0 spec.sinks[1].sqlite: sqlite sinks are not run by this version yet; use sse, stdout or kafka
            0 spec.windows: windows are not run by this version yet; remove them
            0 spec.replication.enabled: replication is not run by this version yet; write enabled: false
            0 spec.delivery.after: replication is not run by this version yet; write after: committed
            0 spec.storage.reshard: the number of shards cannot be changed by this version yet; remove reshard and put the old shardCount back
            1 spec.api: api sources are not run by this version yet; use http, file or kafka
            2 kind: windows are not run by this version yet; remove this document
            3 spec.http: http sinks are not run by this version yet; use sse, stdout or kafka
        "#]].assert_eq(&lines.concat());
    }
}
