//! Whether what a source reads from, or a sink writes to, answers.

use std::sync::{Mutex, MutexGuard, PoisonError};

use litejoin_crds::kind::Kind;
use litejoin_crds::worker_status::DegradedPart;

use crate::clock;

/// How long something may be silent before it counts as degraded, in seconds: a server that starts anew is no news.
const SILENT_MAX: i64 = 10;

/// Contact to a server: lost from the first failure until something succeeds.
#[derive(Debug, Default)]
pub(crate) struct Contact(Mutex<Option<LostContact>>);

/// A contact that is lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LostContact {
    /// Since when, in seconds since the epoch.
    pub(super) since: i64,
    /// The last error, or one before it that differs in numbers alone: how long an attempt took is no news.
    pub(super) error: String,
}

impl Contact {
    /// Notes a success.
    pub(crate) fn made(&self) {
        *self.lock() = None;
    }

    /// Notes a failure.
    pub(crate) fn lost(&self, error: &str) {
        self.lost_at(error, clock::epoch_seconds());
    }

    fn lost_at(&self, error: &str, now: i64) {
        let mut lost = self.lock();
        match &mut *lost {
            Some(lost) if is_alike(&lost.error, error) => {}
            Some(lost) => error.clone_into(&mut lost.error),
            None => *lost = Some(LostContact { since: now, error: error.to_owned() }),
        }
    }

    /// Returns the contact if it is lost.
    pub(super) fn if_lost(&self) -> Option<LostContact> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<LostContact>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LostContact {
    /// Whether it has been lost for so long that people are told.
    pub(super) fn is_lasting(&self, now: i64) -> bool {
        now.saturating_sub(self.since) >= SILENT_MAX
    }

    /// Returns what is told of a source or sink. `at` is where it looks.
    pub(super) fn part(self, kind: Kind, name: String, reason: &str, at: Option<String>) -> DegradedPart {
        let Self { since, error } = self;
        let message = at.map_or_else(|| error.clone(), |at| format!("{at}: {error}"));
        DegradedPart { kind: kind.as_str().to_owned(), name, reason: reason.to_owned(), message, since }
    }
}

/// Whether two texts are the same but for their digits.
fn is_alike(a: &str, b: &str) -> bool {
    let is_other = |c: &char| !c.is_ascii_digit();
    a.chars().filter(is_other).eq(b.chars().filter(is_other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contact_is_lost_since_the_first_failure_until_a_success() {
        let contact = Contact::default();
        assert_eq!(contact.if_lost(), None);
        contact.lost_at("refused", 100);
        contact.lost_at("no answer after 3 ms", 105);
        contact.lost_at("no answer after 12 ms", 107);
        let lost = contact.if_lost().expect("it is lost");
        assert_eq!(lost, LostContact { since: 100, error: "no answer after 3 ms".to_owned() });
        assert_eq!([109, 110].map(|now| lost.is_lasting(now)), [false, true]);
        contact.made();
        assert_eq!(contact.if_lost(), None);
    }
}
