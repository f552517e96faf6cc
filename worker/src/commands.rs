//! The commands of the program, a file for each; `litejoin run` alone starts the engine. Commands look at
//! files, or ask the worker that runs on them, and print what they have found.

pub(crate) mod arguments;
pub(crate) mod audit;
mod client;
pub(crate) mod dlq;
pub(crate) mod explain;
pub(crate) mod replication;
mod run;
pub(crate) mod validate;

use std::io::Write;

/// The manifests are wrong: their author must put them right.
pub(crate) const EXIT_INVALID: u8 = 2;

/// The variables of the environment that are text.
pub(crate) fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Writes to standard error; a user who has closed it does not want to know.
pub(crate) fn complain(text: &str) {
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Writes to standard output; a user who has closed it does not want to know.
fn say(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
