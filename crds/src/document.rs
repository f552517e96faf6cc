//! A document as it was written: JSON, before it is held against a schema or read into a type.

use serde_json::Value;

/// One document of a manifest, as JSON.
#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// The whole document: apiVersion, kind, metadata, spec.
    pub value: Value,
}
