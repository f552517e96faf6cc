//! The documents in force, kept in the data directory: a part that is written wrong afterwards goes on as it was, also
//! over a restart.

use std::path::{Path, PathBuf};

use litejoin_crds::document::Document;
use litejoin_crds::error::chain;
use litejoin_crds::kind::Kind;
use litejoin_crds::pipeline::StorageSpec;
use serde_json::Value;
use tracing::warn;

use crate::storage::layout;

/// Returns the documents that were in force last; none if that is not known.
pub(super) fn read(data_dir: &Path) -> Vec<Document> {
    let values: Option<Vec<Value>> = std::fs::read(data_dir.join(layout::IN_FORCE_FILE))
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok());
    values.unwrap_or_default().into_iter().map(|value| Document { value }).collect()
}

/// Keeps the documents. A disk that is full loses no data by it, so a failure is told and no more.
pub(crate) fn write(data_dir: &Path, documents: &[Document]) {
    let values: Vec<&Value> = documents.iter().map(|document| &document.value).collect();
    let bytes = serde_json::to_vec(&values).expect("documents are plain data");
    if let Err(error) = layout::replace(data_dir, layout::IN_FORCE_FILE, &bytes) {
        warn!(
            error = chain(&error),
            "could not keep the documents in force; a part that is wrong at the next start is left out then"
        );
    }
}

/// The data directory that the documents name.
pub(super) fn data_dir(documents: &[Document]) -> PathBuf {
    let mut pipelines = documents.iter().filter(|document| document.value["kind"] == Kind::Pipeline.as_str());
    let written = pipelines.find_map(|pipeline| pipeline.value["spec"]["storage"]["dataDir"].as_str());
    written.map_or_else(|| PathBuf::from(StorageSpec::default().data_dir), PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn documents_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path()), []);
        let documents = [Document { value: json!({ "kind": "Join", "spec": { "query": "SELECT 1" } }) }];
        write(folder.path(), &documents);
        assert_eq!(read(folder.path()), documents);
        std::fs::write(folder.path().join(layout::IN_FORCE_FILE), "[{").unwrap();
        assert_eq!(read(folder.path()), []);
    }
}
