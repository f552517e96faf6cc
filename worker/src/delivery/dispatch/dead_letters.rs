//! How dead letters of a sink are stored, tried again when they are due, and counted. The file that holds them is
//! [`crate::dead_letters`], the schedule is [`crate::delivery::schedule`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use litejoin_crds::error::chain;

use super::{COUNT_INTERVAL, Dispatcher, Tried, Verdict};
use crate::blocking::blocking;
use crate::clock::Moment;
use crate::dead_letters::{DeadLetter, RetryState};
use crate::delivery::circuit::{Allowance, Circuit};
use crate::delivery::schedule::retry_delay;
use crate::results::event::PendingResult;
use crate::storage::sqlite::SqliteError;

/// Dead letters that are tried in one round.
const DEAD_LETTERS_PER_ROUND: usize = 100;

impl Dispatcher {
    /// Looks whether dead letters were put in or taken out by others than this sink.
    pub(super) fn look_at_dead_letters(&mut self) {
        self.has_letters = true;
        self.counted = None;
        if let Err(error) = self.count_dead_letters() {
            self.status.error.set(&chain(&error));
        }
    }

    /// Has dead letters tried that a user has changed, whatever the circuit says of the attempts so far.
    pub(super) fn try_dead_letters(&mut self) {
        self.look_at_dead_letters();
        self.letters_circuit.succeeded();
    }

    /// Tries dead letters that are due.
    pub(super) async fn retry_dead_letters(
        &mut self,
        circuit: &mut Circuit,
        limit: usize,
        now: Moment,
    ) -> Result<(), SqliteError> {
        let limit = match self.letters_circuit.allowance(now.instant) {
            _ if !self.has_letters => return Ok(()),
            Allowance::Wait(_) => return Ok(()),
            Allowance::Probe => 1,
            Allowance::Open => limit.min(DEAD_LETTERS_PER_ROUND),
        };
        let name = self.name.clone();
        let letters = Arc::clone(&self.letters);
        let due = blocking(move || letters.due(&name, now.seconds, limit)).await?;
        if due.is_empty() {
            return Ok(());
        }
        let (known, orphans): (Vec<DeadLetter>, Vec<DeadLetter>) =
            due.into_iter().partition(|letter| self.envelope(&letter.result.join_name).is_some());
        for letter in orphans {
            // The join of this dead letter is gone, and with it the way in which the result was written out.
            self.letters.remove(&self.name, &letter)?;
        }
        let (outcomes, now) = self.deliver(known.iter().map(|letter| &letter.result), now).await;
        for (letter, outcome) in known.iter().zip(outcomes) {
            match self.judge(Tried::Letter, outcome, circuit, now) {
                Verdict::Delivered => self.letters.remove(&self.name, letter)?,
                Verdict::Failed { reason, again } => {
                    self.store_dead_letter(&letter.result, reason, letter.attempts + 1, again, now)?;
                }
                Verdict::Held { reason, wait } => {
                    // Other dead letters that are due come first when the time is over.
                    let retry_at = Some(now.after(wait).seconds);
                    let retry = RetryState { reason, attempts: letter.attempts, retry_at };
                    self.letters.put(&self.name, &letter.result, &retry, now.seconds)?;
                    break;
                }
            }
        }
        self.has_letters = self.letters.has_any(&self.name)?;
        self.count_dead_letters()
    }

    /// Puts a result into the dead-letter queue; `attempts` counts failed deliveries, 0 is due at once.
    pub(super) fn store_dead_letter(
        &mut self,
        result: &PendingResult,
        reason: String,
        attempts: u32,
        again: bool,
        now: Moment,
    ) -> Result<(), SqliteError> {
        let policy = &self.delivery.dlq;
        let given_up = policy.retries_max.is_some_and(|retries_max| attempts > retries_max);
        let retry_at = (again && !given_up).then(|| match attempts {
            0 => now.seconds,
            attempts => now.after(retry_delay(policy, attempts - 1, rand::random())).seconds,
        });
        self.letters.put(&self.name, result, &RetryState { reason, attempts, retry_at }, now.seconds)?;
        self.has_letters = true;
        Ok(())
    }

    /// Brings the number of dead letters in the status up to date, now and then: counting takes time.
    pub(super) fn count_dead_letters(&mut self) -> Result<(), SqliteError> {
        self.is_count_old = false;
        if !self.has_letters {
            self.status.dead_letters.set(0);
        } else if self.counted.is_none_or(|counted| counted.elapsed() >= COUNT_INTERVAL) {
            self.status.dead_letters.set(self.letters.count(&self.name)?);
            self.counted = Some(Instant::now());
        } else {
            self.is_count_old = true;
        }
        Ok(())
    }

    /// Returns the time until the next dead letter is due, an hour if there is none.
    pub(super) async fn next_due(&self) -> Duration {
        let hour = Duration::from_secs(3_600);
        if !self.has_letters {
            return hour;
        }
        let (letters, name) = (Arc::clone(&self.letters), self.name.clone());
        let due = blocking(move || letters.next_due(&name)).await.ok().flatten();
        let now = Moment::now();
        let held = match self.letters_circuit.allowance(now.instant) {
            Allowance::Wait(until) => until - now.instant,
            Allowance::Probe | Allowance::Open => Duration::ZERO,
        };
        due.map_or(hour, |due| {
            let seconds = u64::try_from((due - now.seconds).max(0)).unwrap_or(0);
            Duration::from_secs(seconds).max(held).clamp(Duration::from_millis(100), hour)
        })
    }
}
