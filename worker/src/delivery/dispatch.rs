//! The loop that runs one sink: due letters first, then the outbox from the sink's cursor on. A dead letter is
//! stored before the cursor moves, so a crash in between delivers twice and loses nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use litejoin_crds::plan::{self, Guarantee};
use tokio::sync::watch;
use tracing::{info, warn};

use super::circuit::{Circuit, Passage};
use super::dead_letters::{DeadLetters, Letter, Postmark};
use super::schedule::retry_delay;
use crate::clock;
use crate::results::event::{Envelope, Event, JoinId, ResultId};
use crate::results::reader::PageLimit;
use crate::results::{Position, Reader, Results};
use crate::sink::{Delivery, Outcome, Sink};
use crate::status::SinkStatus;
use crate::storage::sqlite::SqliteError;
use crate::storage::writer::chain;

/// How much is handed to a sink at a time.
const PAGE: PageLimit = PageLimit { events: 500, bytes: 4 << 20 };

/// Letters that are tried in one round.
const LETTERS_PER_ROUND: usize = 100;

/// How long one call of a sink may take before it counts as failed.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(60);

/// Wait after a failure of our own files.
const FILE_RETRY: Duration = Duration::from_secs(1);

/// One sink and all that it works with.
pub(crate) struct Dispatcher {
    pub(crate) name: String,
    pub(crate) sink: Box<dyn Sink>,
    pub(crate) joins: Vec<JoinId>,
    pub(crate) envelopes: Arc<HashMap<JoinId, Envelope>>,
    pub(crate) delivery: plan::Delivery,
    pub(crate) results: Arc<Results>,
    pub(crate) reader: Arc<Reader>,
    pub(crate) letters: Arc<DeadLetters>,
    pub(crate) status: Arc<SinkStatus>,
    pub(crate) applied: watch::Receiver<Position>,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// Whether there is more to do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    Again,
    Idle,
    /// The circuit is open until then.
    Wait(Instant),
}

impl Dispatcher {
    /// Runs until the worker stops and everything applied by then was handed over, or can't be for now.
    pub(crate) async fn run(mut self) {
        let mut circuit = Circuit::new(self.delivery.circuit_failures);
        let mut cursor = loop {
            match self.begin(&mut circuit).await {
                Ok(cursor) => break cursor,
                Err(error) => self.pause_after(&error).await,
            }
            if *self.stopping.borrow() {
                return;
            }
        };
        loop {
            let end = *self.applied.borrow_and_update();
            let stopping = *self.stopping.borrow();
            self.status.lag_epochs.set(end.epoch.saturating_sub(cursor.epoch));
            let round = match self.round(&mut cursor, &mut circuit).await {
                Ok(round) => round,
                Err(error) => {
                    self.pause_after(&error).await;
                    Round::Again
                }
            };
            self.status.circuit_open.store(circuit.is_open(), Ordering::Relaxed);
            match round {
                Round::Again if stopping && circuit.is_open() => return,
                Round::Again => {}
                Round::Idle | Round::Wait(_) if stopping => return,
                Round::Wait(until) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(until.into()) => {}
                        _ = self.stopping.changed() => {}
                    }
                }
                Round::Idle => {
                    let due = self.next_due().await;
                    tokio::select! {
                        _ = self.applied.changed() => {}
                        _ = self.stopping.changed() => {}
                        () = tokio::time::sleep(due) => {}
                    }
                }
            }
        }
    }

    /// Finds where the sink is. A join that it takes for the first time and that has results already is handed
    /// over as it stands; results that change meanwhile follow from the outbox, in order.
    async fn begin(&mut self, circuit: &mut Circuit) -> Result<Position, SqliteError> {
        let name = self.name.clone();
        let (cursor, known, end) = self
            .read(move |reader| Ok((reader.cursor(&name)?, reader.subscriptions(&name)?, reader.end()?)))
            .await?;
        let mut start = cursor.unwrap_or(end);
        let horizon = self.read(Reader::horizon).await?;
        if start < horizon {
            warn!(
                sink = self.name,
                "the outbox no longer reaches back to where the sink was; going on from its start"
            );
            start = horizon;
        }
        if cursor != Some(start) {
            self.move_cursor(start).await?;
        }
        for join in self.joins.clone().into_iter().filter(|join| !known.contains(join)) {
            if !self.hand_over(join, start, circuit).await? {
                break;
            }
            let (results, name) = (Arc::clone(&self.results), self.name.clone());
            blocking(move || results.subscribe(&name, join)).await?;
        }
        Ok(start)
    }

    /// Sends the present results of a join, but for those that changed after `up_to`: they follow from the outbox.
    /// Returns whether it came to the end before the worker stopped.
    async fn hand_over(
        &mut self,
        join: JoinId,
        up_to: Position,
        circuit: &mut Circuit,
    ) -> Result<bool, SqliteError> {
        let mut after: Option<String> = None;
        loop {
            if *self.stopping.borrow() {
                return Ok(false);
            }
            let limit = match circuit.passage(Instant::now()) {
                Passage::Wait(until) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(until.into()) => {}
                        _ = self.stopping.changed() => {}
                    }
                    continue;
                }
                Passage::Probe => 1,
                Passage::Open => PAGE.events,
            };
            let from = after.clone();
            let events = self.read(move |reader| reader.present(join, from.as_deref(), up_to, limit)).await?;
            let Some(last) = events.last() else { return Ok(true) };
            after = Some(last.key.clone());
            self.send(events, circuit).await?;
        }
    }

    /// Tries what is due, then a page of the outbox.
    async fn round(&mut self, cursor: &mut Position, circuit: &mut Circuit) -> Result<Round, SqliteError> {
        let limit = match circuit.passage(Instant::now()) {
            Passage::Wait(until) => return Ok(Round::Wait(until)),
            Passage::Probe => PageLimit { events: 1, bytes: 1 },
            Passage::Open => PAGE,
        };
        if self.retry_letters(circuit, limit.events).await? && circuit.is_open() {
            return Ok(Round::Again);
        }
        let (after, joins) = (*cursor, self.joins.clone());
        let Some(page) = self.read(move |reader| reader.after(after, &joins, limit)).await? else {
            *cursor = self.read(Reader::horizon).await?;
            warn!(
                sink = self.name,
                "the outbox no longer reaches back to where the sink was; going on from its start"
            );
            return Ok(Round::Again);
        };
        if page.up_to == *cursor {
            return Ok(Round::Idle);
        }
        self.send(page.events, circuit).await?;
        *cursor = page.up_to;
        self.move_cursor(*cursor).await?;
        Ok(if page.more || circuit.is_open() { Round::Again } else { Round::Idle })
    }

    /// Tries letters that are due, and returns whether there were any.
    async fn retry_letters(&mut self, circuit: &mut Circuit, limit: usize) -> Result<bool, SqliteError> {
        if self.status.dead_letters.value() == 0 {
            return Ok(false);
        }
        let now = clock::epoch_seconds();
        let name = self.name.clone();
        let letters = Arc::clone(&self.letters);
        let due = blocking(move || letters.due(&name, now, limit.min(LETTERS_PER_ROUND))).await?;
        if due.is_empty() {
            return Ok(false);
        }
        let deliveries: Vec<Delivery> =
            due.iter().filter_map(|letter| self.delivery_of_letter(letter)).collect();
        if deliveries.len() < due.len() {
            // Letters of joins that are gone: nobody can say how they were written out.
            for letter in due.iter().filter(|letter| self.delivery_of_letter(letter).is_none()) {
                self.letters.remove(&self.name, letter)?;
            }
            self.count_letters()?;
            return Ok(true);
        }
        let outcomes = self.deliver(&deliveries).await;
        for (letter, outcome) in due.iter().zip(outcomes) {
            match self.judge(outcome, circuit) {
                None => self.letters.remove(&self.name, letter)?,
                Some((reason, again)) => self.store_letter(letter, reason, letter.attempts + 1, again)?,
            }
        }
        self.count_letters()?;
        Ok(true)
    }

    /// Hands results to the sink, in order; what it does not take goes to the dead-letter queue.
    async fn send(&mut self, events: Vec<Event>, circuit: &mut Circuit) -> Result<(), SqliteError> {
        let mut ready = Vec::with_capacity(events.len());
        let held = self.status.dead_letters.value() > 0;
        for event in events {
            let letter = self.letter(event);
            if held && self.letters.holds(&self.name, &letter.join_name, &letter.event.key)? {
                // It takes the place of the older one and is tried in its turn, soon.
                self.store_letter(&letter, "an older result of the key was held back".to_owned(), 0, true)?;
            } else {
                ready.push(letter);
            }
        }
        // Two results of one key must not be in one call: if the first fails, the second would overtake it.
        while !ready.is_empty() {
            let mut keys = std::collections::HashSet::new();
            let count = ready
                .iter()
                .position(|letter| !keys.insert((letter.join_name.clone(), letter.event.key.clone())))
                .unwrap_or(ready.len());
            let rest = ready.split_off(count);
            let deliveries: Vec<Delivery> =
                ready.iter().filter_map(|letter| self.delivery_of_letter(letter)).collect();
            let outcomes = self.deliver(&deliveries).await;
            let mut failed = false;
            for (letter, outcome) in ready.iter().zip(outcomes) {
                if let Some((reason, again)) = self.judge(outcome, circuit) {
                    failed = true;
                    if self.delivery.guarantee == Guarantee::AtLeastOnce {
                        self.store_letter(letter, reason, 1, again)?;
                    } else {
                        self.status.dropped.add(1);
                    }
                }
            }
            self.count_letters()?;
            ready = rest;
            if failed && !ready.is_empty() {
                // What was held back by this failure goes to the queue as well, and the rest goes on.
                let events = ready.drain(..).map(|letter| letter.event).collect();
                return Box::pin(self.send(events, circuit)).await;
            }
        }
        Ok(())
    }

    async fn deliver(&mut self, deliveries: &[Delivery]) -> Vec<Outcome> {
        match tokio::time::timeout(DELIVERY_TIMEOUT, self.sink.deliver(deliveries)).await {
            Ok(outcomes) => outcomes,
            Err(_) => {
                let reason = format!("no answer within {} seconds", DELIVERY_TIMEOUT.as_secs());
                vec![Outcome::Failed(reason); deliveries.len()]
            }
        }
    }

    /// Counts an outcome; gives the reason of a failure and whether it is tried again.
    fn judge(&self, outcome: Outcome, circuit: &mut Circuit) -> Option<(String, bool)> {
        match outcome {
            Outcome::Delivered => {
                self.status.delivered.add(1);
                if circuit.succeeded() {
                    info!(sink = self.name, "the sink takes results again");
                }
                self.status.error.clear();
                None
            }
            Outcome::Failed(reason) => {
                self.status.failed.add(1);
                let wait = retry_delay(&self.delivery.dlq, circuit.probes_failed(), rand::random());
                if circuit.failed(Instant::now(), wait) {
                    warn!(sink = self.name, reason, "the sink keeps failing; leaving it alone for a while");
                }
                self.status.error.set(&reason);
                Some((reason, true))
            }
            Outcome::Refused(reason) => {
                self.status.failed.add(1);
                self.status.error.set(&reason);
                Some((reason, false))
            }
        }
    }

    /// Puts a letter into the queue; `attempts` counts failed deliveries, 0 is due at once.
    fn store_letter(
        &self,
        letter: &Letter,
        reason: String,
        attempts: u32,
        again: bool,
    ) -> Result<(), SqliteError> {
        let now = clock::epoch_seconds();
        let policy = &self.delivery.dlq;
        let given_up = policy.retries_max.is_some_and(|retries_max| attempts > retries_max);
        let retry_at = (again && !given_up).then(|| match attempts {
            0 => now,
            attempts => {
                let wait = retry_delay(policy, attempts - 1, rand::random());
                now + i64::try_from(wait.as_secs()).unwrap_or(i64::MAX)
            }
        });
        self.letters.put(&self.name, letter, &Postmark { reason, attempts, retry_at }, now)?;
        self.status.dead_letters.set(self.status.dead_letters.value().max(1).unsigned_abs());
        Ok(())
    }

    fn count_letters(&self) -> Result<(), SqliteError> {
        if self.status.dead_letters.value() > 0 {
            self.status.dead_letters.set(self.letters.count(&self.name)?);
        }
        Ok(())
    }

    fn letter(&self, event: Event) -> Letter {
        let envelope = &self.envelopes[&event.join];
        Letter {
            join_name: envelope.join_name.clone(),
            lineage: envelope.lineage.clone(),
            event,
            attempts: 0,
        }
    }

    fn delivery_of_letter(&self, letter: &Letter) -> Option<Delivery> {
        let envelope = self.envelopes.values().find(|envelope| envelope.join_name == letter.join_name)?;
        let envelope = Envelope { lineage: letter.lineage.clone(), ..envelope.clone() };
        let id = ResultId { lineage: &letter.lineage, position: letter.event.position };
        Some(Delivery {
            id: id.to_string(),
            key: letter.event.key.clone(),
            json: envelope.json(&letter.event, false),
        })
    }

    /// Time until the next letter is due, an hour if there is none.
    async fn next_due(&self) -> Duration {
        let (letters, name) = (Arc::clone(&self.letters), self.name.clone());
        let due = blocking(move || letters.next_due(&name)).await.ok().flatten();
        let hour = Duration::from_secs(3_600);
        due.map_or(hour, |due| {
            let seconds = u64::try_from((due - clock::epoch_seconds()).max(0)).unwrap_or(0);
            Duration::from_secs(seconds).clamp(Duration::from_millis(100), hour)
        })
    }

    async fn move_cursor(&self, cursor: Position) -> Result<(), SqliteError> {
        let (results, name) = (Arc::clone(&self.results), self.name.clone());
        blocking(move || results.move_cursor(&name, cursor)).await
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T, SqliteError> {
        let reader = Arc::clone(&self.reader);
        blocking(move || work(&reader)).await
    }

    async fn pause_after(&mut self, error: &SqliteError) {
        if self.status.error.set(&chain(error)) {
            warn!(sink = self.name, error = chain(error), "delivery waits for its files");
        }
        tokio::select! {
            () = tokio::time::sleep(FILE_RETRY) => {}
            _ = self.stopping.changed() => {}
        }
    }
}

/// Runs work on files in a thread where it may block.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.expect("work on files does not panic")
}

#[cfg(test)]
mod tests;
