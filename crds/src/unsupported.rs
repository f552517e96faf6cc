//! Parts of the API that today's worker cannot run. They are refused by name, so that nothing is accepted and then
//! ignored; each later version of the worker makes this room smaller.

use serde_json::Value;

use crate::complaint::{Complaint, Reason};
use crate::document::Document;

/// Returns a complaint for each part of the documents that today's worker cannot run. The documents need not be valid.
pub fn unsupported(documents: &[Document]) -> Vec<Complaint> {
    let mut found = Refusals::default();
    for (index, document) in documents.iter().enumerate() {
        found.document = index;
        let spec = &document.value["spec"];
        match document.value["kind"].as_str() {
            Some("Pipeline") => found.pipeline(spec),
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
        if spec["storage"]["reshard"].is_object() {
            let message = "the number of shards cannot be changed by this version yet; remove reshard and put the old shardCount back";
            self.refuse("spec.storage.reshard", message);
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
                "sources": [{"name": "a", "kafka": {}}, {"name": "b", "kafka": {}}, {"name": "c", "api": {}}],
                "windows": [{"name": "w"}],
                "sinks": [{"name": "s", "sse": {"addr": ":2"}}, {"name": "t", "kafka": {}}],
            }}),
            json!({"kind": "Source", "spec": {"kafka": {}}}),
            json!({"kind": "Window", "spec": {}}),
            json!({"kind": "Sink", "spec": {"kafka": {}}}),
        ];
        let documents = values.map(|value| Document { value });
        let complaints = unsupported(&documents);
        let lines: Vec<String> = complaints
            .iter()
            .map(|c| format!("{} {}: {}\n", c.place.document, c.place.path, c.message))
            .collect();
        expect![[r#"
            0 spec.storage.reshard: the number of shards cannot be changed by this version yet; remove reshard and put the old shardCount back
        "#]].assert_eq(&lines.concat());
    }
}
