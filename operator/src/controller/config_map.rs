//! The ConfigMap with the documents of a pipeline as their authors wrote them, so that `litejoin run -f` on its file
//! does on a laptop what the pod does.

use litejoin_crds::Document;
use serde::Deserialize;
use serde_json::{Value, json};

use super::object::is_ours;
use super::observe::Observed;
use super::slot::Slot;

/// The largest config, in bytes. A ConfigMap holds 1 MiB, its metadata included.
pub(crate) const CONFIG_BYTES_MAX: usize = 900 * 1024;

/// The name of the file in the ConfigMap.
pub(crate) const FILE: &str = "pipeline.yaml";

/// Returns the ConfigMap's data, or its size if that is too large.
pub(crate) fn data(documents: &[Document]) -> Result<Value, usize> {
    let documents = documents.iter().map(|document| {
        let yaml = serde_yaml::to_string(&document.value).expect("JSON is YAML");
        yaml.trim_start_matches("---\n").to_owned()
    });
    let text = documents.collect::<Vec<_>>().join("---\n");
    match text.len() {
        bytes if bytes > CONFIG_BYTES_MAX => Err(bytes),
        _ => Ok(json!({ FILE: text })),
    }
}

/// Returns the documents in the ConfigMap that was written before; none if there is none of ours that can be read.
pub(crate) fn documents(observed: &Observed) -> Vec<Document> {
    let live = observed.built.get(&Slot::ConfigMap).filter(|live| is_ours(live, &observed.pipeline.uid));
    let text = live.and_then(|live| live.data["data"][FILE].as_str()).unwrap_or_default();
    let documents = serde_yaml::Deserializer::from_str(text).map(Value::deserialize);
    documents
        .collect::<Result<Vec<_>, _>>()
        .unwrap_or_default()
        .into_iter()
        .map(|value| Document { value })
        .collect()
}
