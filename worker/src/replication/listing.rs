//! The names that a store has in one folder: a value that every kind of store gives.

/// Names of files and folders below a prefix.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    pub(crate) files: Vec<String>,
    pub(crate) folders: Vec<String>,
}
