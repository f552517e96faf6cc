//! Result keys that fail: told in the log, in `/status` and as dead letters, until a change of their rows mends them.

use tracing::{info, warn};

use super::join_state::JoinState;
use super::schedule::EpochLoop;
use crate::clock;
use crate::dead_letters::DeadLetters;
use crate::join::value::Value;
use crate::status::Status;
use crate::storage::sqlite::SqliteError;

impl EpochLoop {
    /// Tells which keys fail by now. Unless the joins know that already (`are_known`), the keys are read from where they
    /// are stored.
    pub(super) fn tell_failing(&mut self, are_known: bool) -> Result<(), SqliteError> {
        let Self { joins, committer, letters, .. } = self;
        for state in joins.iter_mut().filter(|state| state.has_failing_news) {
            if !are_known {
                state.failing = committer.failing(state.id)?;
            }
            tell(state, committer.status(), letters);
            state.has_failing_news = false;
        }
        Ok(())
    }
}

/// The most keys that `/status` shows.
const SHOWN_MAX: usize = 10;

fn tell(state: &mut JoinState, status: &Status, letters: &DeadLetters) {
    let JoinState { join, failing, told, .. } = state;
    let status = status.join(&join.name);
    let shown = failing.iter().take(SHOWN_MAX).map(|(key, error)| (json(key), error.clone())).collect();
    status.set_failing(failing.len(), shown);
    let news: Vec<_> = failing.iter().filter(|(key, error)| told.get(*key) != Some(*error)).collect();
    let mended: Vec<&Value> = told.keys().filter(|key| !failing.contains_key(*key)).collect();
    if let Some((key, error)) = news.first() {
        let (key, count) = (json(key), failing.len());
        warn!(
            join = join.name,
            key,
            error,
            failing = count,
            "a result can't be evaluated and stays as it was, until its rows change"
        );
        status.error.set(&format!(
            "{count} results can't be evaluated and stay as they were, such as {key}: {error}"
        ));
    }
    if failing.is_empty() && !mended.is_empty() {
        info!(join = join.name, "all results can be evaluated again");
        status.error.clear();
    }
    let now = clock::epoch_seconds();
    let topics = join.topics.iter().cloned().collect::<Vec<_>>().join(", ");
    let news: Vec<(String, &str)> =
        news.into_iter().map(|(key, error)| (json(key), error.as_str())).collect();
    let mended: Vec<String> = mended.into_iter().map(json).collect();
    let stored = letters.note_failing(&join.name, &topics, &news, &mended, now);
    if let Err(error) = stored {
        warn!(
            error = litejoin_crds::error::chain(&error),
            "could not store a dead letter of a result that fails"
        );
    }
    *told = failing.clone();
}

/// The first spelling of a key.
fn json(key: &Value) -> String {
    key.json_spellings().next().expect("a value has a spelling")
}
