//! The lines in the log about dead letters: for each owner (a sink, source or window) and kind one at the first, and then
//! one a minute at most, unless there are ten times as many as in the line before. All of them are in the queue.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tracing::warn;

/// Seconds between two lines.
const LINE_INTERVAL: i64 = 60;

/// The kinds of dead letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum LetterKind {
    /// A result that is tried again by schedule.
    Retried,
    /// A result that waits for a person.
    Waiting,
    /// A message that can't be read, or is too late for a window.
    Rejected,
}

/// The dead letters of this run that were told and counted.
#[derive(Debug, Default)]
pub(super) struct DeadLetterLog {
    told: Mutex<HashMap<(String, LetterKind), ToldLetters>>,
}

/// The dead letters of one owner and kind.
#[derive(Debug, Default)]
struct ToldLetters {
    count: u64,
    /// Time and count of the last line, in seconds since the epoch.
    last: Option<(i64, u64)>,
}

impl ToldLetters {
    /// Counts one more; returns how many there are if that is to be told.
    fn counted(&mut self, now: i64) -> Option<u64> {
        self.count += 1;
        let is_due =
            self.last.is_none_or(|(at, count)| now - at >= LINE_INTERVAL || self.count >= 10 * count);
        if is_due {
            self.last = Some((now, self.count));
        }
        is_due.then_some(self.count)
    }
}

impl DeadLetterLog {
    /// Counts a dead letter, and writes a line if it is time for one.
    pub(super) fn tell(&self, owner: &str, kind: LetterKind, reason: &str, now: i64) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = told.entry((owner.to_owned(), kind)).or_default().counted(now) else { return };
        match kind {
            LetterKind::Retried => {
                warn!(sink = owner, count, reason, "results failed; as dead letters they are tried again");
            }
            LetterKind::Waiting => warn!(
                sink = owner,
                count, reason, "results were refused; as dead letters they wait for `litejoin dlq retry`"
            ),
            LetterKind::Rejected => {
                warn!(owner, count, reason, "refused messages; they are in the dead-letter queue");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_few_and_the_first_comes_at_once() {
        let mut told = ToldLetters::default();
        let lines: Vec<u64> = (0..5_000).filter_map(|_| told.counted(100)).collect();
        assert_eq!(lines, [1, 10, 100, 1_000]);
        assert_eq!(told.counted(159), None);
        assert_eq!((told.counted(160), told.counted(160)), (Some(5_002), None));
    }
}
