//! The loop that runs one sink: due dead letters first, then the outbox from the sink's cursor on. A dead letter is
//! stored before the cursor moves, so a crash in between delivers twice and loses nothing.

mod begin;
mod dead_letters;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use litejoin_crds::error::chain;
use litejoin_crds::plan::{self, Guarantee};
use tokio::sync::watch;
use tracing::{info, warn};

use super::circuit::{Allowance, Circuit};
use super::schedule::retry_delay;
use crate::blocking::blocking;
use crate::clock::Moment;
use crate::dead_letters::DeadLetters;
use crate::results::event::{Envelope, Event, JoinId, PendingResult, ResultId};
use crate::results::reader::PageLimit;
use crate::results::release::Release;
use crate::results::{Applied, Position, Reader, Results};
use crate::sink::routes::{Routes, RoutesInForce};
use crate::sink::{Delivery, Outcome, Sink};
use crate::status::sink::SinkStatus;
use crate::storage::sqlite::SqliteError;

/// Bytes that are handed to a sink at a time.
const PAGE_BYTES: usize = 4 << 20;

/// The page with which a sink that may be away is tried.
const PROBE: PageLimit = PageLimit { events: 1, bytes: 1 };

/// How often letters are counted for show.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// One sink and all that it works with.
pub(crate) struct Dispatcher {
    pub(crate) name: String,
    pub(crate) sink: Box<dyn Sink>,
    pub(crate) in_force: RoutesInForce,
    /// The routes that it follows, until it looks for others.
    pub(crate) routes: Arc<Routes>,
    /// The joins among them that it reads from the outbox, having handed over what was there before.
    pub(crate) joins: Vec<JoinId>,
    pub(crate) delivery: plan::Delivery,
    pub(crate) results: Arc<Results>,
    pub(crate) reader: Arc<Reader>,
    pub(crate) letters: Arc<DeadLetters>,
    pub(crate) status: Arc<SinkStatus>,
    pub(crate) applied: watch::Receiver<Applied>,
    /// When results may leave.
    pub(crate) release: Release,
    pub(crate) stopping: watch::Receiver<bool>,
    /// Whether the queue may hold letters of this sink.
    pub(crate) has_letters: bool,
    /// Whether its letters are worth trying. They have a circuit of their own: their failures say nothing about other
    /// keys, so they hold up letters alone.
    pub(crate) letters_circuit: Circuit,
    /// News of letters that were changed by hand.
    pub(crate) letters_changed: watch::Receiver<u64>,
    /// When the letters were last counted.
    pub(crate) counted: Option<Instant>,
    /// Whether there may be another number of them by now.
    pub(crate) is_count_old: bool,
}

/// The kind of result that was handed to the sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tried {
    Result,
    Letter,
}

/// The meaning of an outcome for the result.
enum Verdict {
    Delivered,
    Failed {
        reason: String,
        again: bool,
    },
    /// The sink wants to be left alone for a while; that says nothing about the result.
    Held {
        reason: String,
        wait: Duration,
    },
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
        let Some(mut cursor) = self.begin_at_last(&mut circuit).await else { return };
        loop {
            if self.in_force.has_changed().is_ok_and(|changed| changed) {
                match self.begin_at_last(&mut circuit).await {
                    Some(begun) => cursor = begun,
                    None => return,
                }
            }
            let end = self.applied.borrow_and_update().end;
            let stopping = *self.stopping.borrow();
            let round = match self.round(&mut cursor, &mut circuit, Moment::now()).await {
                Ok(round) => round,
                Err(error) => {
                    self.pause_after(&error).await;
                    if stopping { Round::Idle } else { Round::Again }
                }
            };
            let lag = if round == Round::Idle { 0 } else { end.epoch.saturating_sub(cursor.epoch) };
            self.status.lag_epochs.set(lag);
            self.status.circuit_open.store(circuit.is_open(), Ordering::Relaxed);
            match round {
                Round::Again if stopping && circuit.is_open() => return,
                Round::Again => {}
                Round::Idle | Round::Wait(_) if stopping => return,
                Round::Wait(until) => self.wait_until(until, &mut circuit).await,
                Round::Idle => {
                    let due = self.next_due().await;
                    tokio::select! {
                        _ = self.applied.changed() => {}
                        Ok(()) = self.in_force.changed() => self.in_force.mark_changed(),
                        Ok(()) = self.letters_changed.changed() => self.try_dead_letters(),
                        _ = self.stopping.changed() => {}
                        () = tokio::time::sleep(due) => {}
                        () = tokio::time::sleep(COUNT_INTERVAL), if self.is_count_old => self.look_at_dead_letters(),
                    }
                }
            }
        }
    }

    /// Tries what is due, then a page of the outbox.
    async fn round(
        &mut self,
        cursor: &mut Position,
        circuit: &mut Circuit,
        now: Moment,
    ) -> Result<Round, SqliteError> {
        let limit = match circuit.allowance(now.instant) {
            Allowance::Wait(until) => return Ok(Round::Wait(until)),
            Allowance::Probe => PROBE,
            Allowance::Open => self.page(),
        };
        self.retry_dead_letters(circuit, limit.events, now).await?;
        let (after, joins) = (*cursor, self.joins.clone());
        let Some(page) = self.read(move |reader| reader.after(after, &joins, limit)).await? else {
            *cursor = self.read(Reader::horizon).await?;
            self.warn_of_horizon();
            return Ok(Round::Again);
        };
        if page.up_to == *cursor {
            return Ok(Round::Idle);
        }
        let positions: Vec<Position> = page.events.iter().map(|event| event.position).collect();
        let handled = self.send(page.events, circuit, now).await?;
        let reached = match handled.checked_sub(1) {
            _ if handled == positions.len() => page.up_to,
            Some(last) => positions[last],
            None => *cursor,
        };
        if reached > *cursor {
            *cursor = reached;
            self.move_cursor(reached).await?;
        }
        Ok(if page.more || reached < page.up_to { Round::Again } else { Round::Idle })
    }

    /// How much is handed to the sink at a time.
    fn page(&self) -> PageLimit {
        PageLimit { events: self.sink.results_per_call(), bytes: PAGE_BYTES }
    }

    /// Hands results to the sink, in order, and returns how many of them are dealt with: delivered, or in the
    /// dead-letter queue. It stops at the first one that fails while the circuit is open.
    async fn send(
        &mut self,
        events: Vec<Event>,
        circuit: &mut Circuit,
        now: Moment,
    ) -> Result<usize, SqliteError> {
        let wanted = events.iter().map(|event| event.position).max().unwrap_or_default();
        let committed = self.applied.borrow().end;
        if !self.release.wait(wanted, committed, &self.stopping).await {
            return Ok(0);
        }
        let pending: Vec<PendingResult> = events.into_iter().map(|event| self.pending(event)).collect();
        let mut handled = 0;
        while handled < pending.len() {
            let mut call: Vec<&PendingResult> = Vec::new();
            let mut keys = HashSet::new();
            for result in &pending[handled..] {
                let key = (result.join_name.as_str(), result.event.key.as_str());
                // Two results of one key must not be in one call: if the first fails, the second would overtake.
                if keys.contains(&key) {
                    break;
                }
                if self.has_letters && self.letters.holds(&self.name, key.0, key.1)? {
                    if !call.is_empty() {
                        break;
                    }
                    // The result takes the place of the older letter and is tried in its turn, at once.
                    let reason = "an older result of the key had failed".to_owned();
                    self.store_dead_letter(result, reason, 0, true, now)?;
                    handled += 1;
                    continue;
                }
                keys.insert(key);
                call.push(result);
            }
            let (outcomes, now) = self.deliver(call.iter().copied(), now).await;
            for (result, outcome) in call.into_iter().zip(outcomes) {
                let was_open = circuit.is_open();
                match self.judge(Tried::Result, outcome, circuit, now) {
                    Verdict::Delivered => {}
                    Verdict::Failed { .. } if self.delivery.guarantee == Guarantee::BestEffort => {
                        self.status.dropped.add(1);
                    }
                    // The sink as a whole is away: wait here.
                    Verdict::Failed { again: true, .. } if was_open => return Ok(handled),
                    Verdict::Held { .. } => return Ok(handled),
                    Verdict::Failed { reason, again } => {
                        self.store_dead_letter(result, reason, 1, again, now)?
                    }
                }
                handled += 1;
            }
            if circuit.is_open() {
                break;
            }
        }
        self.count_dead_letters()?;
        Ok(handled)
    }

    /// Hands results to the sink. Returns what became of them, and when that was known.
    async fn deliver(
        &mut self,
        results: impl Iterator<Item = &PendingResult>,
        now: Moment,
    ) -> (Vec<Outcome>, Moment) {
        let deliveries: Vec<Delivery> = results.filter_map(|result| self.delivery_of(result)).collect();
        if deliveries.is_empty() {
            return (Vec::new(), now);
        }
        let (began, timeout) = (Instant::now(), self.sink.call_timeout());
        let outcomes = match tokio::time::timeout(timeout, self.sink.deliver(&deliveries)).await {
            Ok(outcomes) => outcomes,
            Err(_) => {
                let reason = format!("no answer within {} seconds", timeout.as_secs());
                vec![Outcome::Failed(reason); deliveries.len()]
            }
        };
        (outcomes, now.after(began.elapsed()))
    }

    /// Counts an outcome, and says what follows from it.
    fn judge(&mut self, tried: Tried, outcome: Outcome, circuit: &mut Circuit, now: Moment) -> Verdict {
        let concerned = match tried {
            Tried::Result => &mut *circuit,
            Tried::Letter => &mut self.letters_circuit,
        };
        match outcome {
            Outcome::Delivered => {
                self.status.delivered.add(1);
                // Letter or result, the sink is there for the others too.
                self.letters_circuit.succeeded();
                if circuit.succeeded() {
                    info!(sink = self.name, "the sink takes results again");
                }
                self.status.error.clear();
                self.status.contact.made();
                Verdict::Delivered
            }
            Outcome::Failed(reason) => {
                self.status.failed.add(1);
                let wait = retry_delay(&self.delivery.dlq, concerned.probes_failed(), rand::random());
                if concerned.failed(now.instant, wait) {
                    match tried {
                        Tried::Result => {
                            warn!(
                                sink = self.name,
                                reason, "the sink keeps failing; leaving it alone for a while"
                            );
                        }
                        Tried::Letter => {
                            warn!(
                                sink = self.name,
                                reason, "its dead letters keep failing; leaving them alone for a while"
                            );
                        }
                    }
                }
                self.status.error.set(&reason);
                self.status.contact.lost(&reason);
                Verdict::Failed { reason, again: true }
            }
            Outcome::Later(reason, wait) => {
                self.status.failed.add(1);
                if concerned.hold(now.instant, wait) {
                    info!(sink = self.name, reason, ?wait, "the sink asks to be left alone for a while");
                }
                self.status.error.set(&reason);
                self.status.contact.lost(&reason);
                match self.delivery.guarantee {
                    Guarantee::AtLeastOnce => Verdict::Held { reason, wait },
                    Guarantee::BestEffort => Verdict::Failed { reason, again: false },
                }
            }
            Outcome::Refused(reason) => {
                self.status.failed.add(1);
                self.status.error.set(&reason);
                Verdict::Failed { reason, again: false }
            }
        }
    }

    fn warn_of_horizon(&self) {
        warn!(
            sink = self.name,
            "the outbox no longer reaches back to where the sink was; going on from its start"
        );
    }

    fn pending(&self, event: Event) -> PendingResult {
        let envelope = self.routes.envelope(event.join).expect("only joins that it takes are read");
        PendingResult { join_name: envelope.join_name.clone(), lineage: envelope.lineage.clone(), event }
    }

    fn delivery_of(&self, result: &PendingResult) -> Option<Delivery> {
        let PendingResult { join_name, lineage, event } = result;
        let envelope = Envelope { lineage: lineage.clone(), ..self.envelope(join_name)?.clone() };
        let id = ResultId { lineage, position: event.position };
        Some(Delivery {
            id: id.to_string(),
            key: event.key.clone(),
            join_name: join_name.clone(),
            epoch: event.position.epoch,
            op: event.op,
            json: envelope.json(event, false),
        })
    }

    fn envelope(&self, join_name: &str) -> Option<&Envelope> {
        self.routes.named(join_name).and_then(|join| self.routes.envelope(join))
    }

    /// Waits for that moment, or for the stop; or until letters are to be tried by hand, which is worth a probe.
    async fn wait_until(&mut self, moment: Instant, circuit: &mut Circuit) {
        tokio::select! {
            () = tokio::time::sleep_until(moment.into()) => {}
            Ok(()) = self.letters_changed.changed() => {
                self.try_dead_letters();
                circuit.probe_at(Instant::now());
            }
            _ = self.stopping.changed() => {}
        }
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

    async fn pause_after(&mut self, error: &(dyn std::error::Error + Sync)) {
        if self.status.error.set(&chain(error)) {
            warn!(sink = self.name, error = chain(error), "delivery waits; trying again");
        }
        tokio::select! {
            () = tokio::time::sleep(super::FILE_RETRY) => {}
            _ = self.stopping.changed() => {}
        }
    }
}

#[cfg(test)]
mod tests;
