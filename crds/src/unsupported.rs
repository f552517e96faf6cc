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
        if document.value["kind"] == "Pipeline" {
            found.pipeline(&document.value["spec"]);
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
        if spec["storage"]["reshard"]["strategy"] == "Online" {
            let message = "this version moves data while the pipeline is stopped only; write Job";
            self.refuse("spec.storage.reshard.strategy", message);
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
            json!({"kind": "Sink", "spec": {"stdout": {}}}),
            json!({"kind": "Pipeline", "spec": {"storage": {"reshard": {"fromShardCount": 8, "toShardCount": 16, "strategy": "Online"}}}}),
        ];
        let documents = values.map(|value| Document { value });
        let complaints = unsupported(&documents);
        let lines: Vec<String> = complaints
            .iter()
            .map(|c| format!("{} {}: {}\n", c.place.document, c.place.path, c.message))
            .collect();
        expect![[r#"
            1 spec.storage.reshard.strategy: this version moves data while the pipeline is stopped only; write Job
        "#]].assert_eq(&lines.concat());
    }
}
