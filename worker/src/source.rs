//! Where messages come from: a file for each kind. A source decodes bytes into messages (pure) and hands them
//! to [`crate::storage::ingest::Ingest`]; one bad message never stops it.

pub(crate) mod api;
pub(crate) mod encoding;
pub(crate) mod file;
pub(crate) mod http;
#[cfg(feature = "kafka")]
pub(crate) mod kafka;
pub(crate) mod lanes;
pub(crate) mod state;
