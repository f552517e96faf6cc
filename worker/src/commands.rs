//! The commands of the program, a file for each; only `litejoin run` starts the engine. Commands read files, or send a
//! request to the worker that runs on them, and print the answer.

pub(crate) mod arguments;
pub(crate) mod audit;
mod client;
pub(crate) mod dlq;
pub(crate) mod explain;
pub(crate) mod replication;
pub(crate) mod reshard;
mod run;
pub(crate) mod validate;

use std::io::Write;

/// The exit code for invalid manifests, which only their author can correct.
pub(crate) const EXIT_INVALID: u8 = 2;

/// Returns the variables of the environment whose names and values are text.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Writes to standard error; ignores failures, since the user may have closed it.
pub(crate) fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes to standard output; ignores failures, since the user may have closed it.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
