//! The ConfigMap with the documents of a pipeline as their authors wrote them, so that `litejoin run -f` on its file
//! does on a laptop what the pod does.

use serde_json::{Value, json};

use crate::controller::validate::Config;

/// The largest config, in bytes. A ConfigMap holds 1 MiB, its metadata included.
pub(crate) const CONFIG_BYTES_MAX: usize = 900 * 1024;

/// The name of the file in the ConfigMap.
pub(crate) const FILE: &str = "pipeline.yaml";

/// Returns the ConfigMap's data, or its size if that is too large.
pub(crate) fn data(config: &Config) -> Result<Value, usize> {
    let documents = config.documents.iter().map(|document| {
        let yaml = serde_yaml::to_string(&document.value).expect("JSON is YAML");
        yaml.trim_start_matches("---\n").to_owned()
    });
    let text = documents.collect::<Vec<_>>().join("---\n");
    match text.len() {
        bytes if bytes > CONFIG_BYTES_MAX => Err(bytes),
        _ => Ok(json!({ FILE: text })),
    }
}
