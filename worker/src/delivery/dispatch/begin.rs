//! How a sink begins, and begins again when other joins are routed to it: it finds its place, and what it takes for
//! the first time is handed over as it stands.

use std::sync::Arc;

use super::{Dispatcher, PROBE, Round};
use crate::blocking::blocking;
use crate::clock::Moment;
use crate::delivery::circuit::{Allowance, Circuit};
use crate::results::event::JoinId;
use crate::results::{Position, Reader};
use crate::storage::sqlite::SqliteError;

/// Why a sink could not begin yet.
#[derive(Debug, thiserror::Error)]
pub(super) enum BeginError {
    #[error(transparent)]
    Files(#[from] SqliteError),
    #[error("{0}")]
    Sink(String),
}

impl Dispatcher {
    /// Begins as soon as the files and the sink let it; `None` if the worker stops first.
    pub(super) async fn begin_at_last(&mut self, circuit: &mut Circuit) -> Option<Position> {
        loop {
            match self.begin(circuit).await {
                Ok(cursor) => return Some(cursor),
                Err(error) => self.pause_after(&error).await,
            }
            if *self.stopping.borrow() {
                return None;
            }
        }
    }

    /// Takes up the routes in force and finds where the sink is. A join that it takes for the first time and that
    /// has results already is handed over as it stands; results that change meanwhile follow from the outbox, in
    /// order.
    pub(super) async fn begin(&mut self, circuit: &mut Circuit) -> Result<Position, BeginError> {
        self.routes = Arc::clone(&self.in_force.borrow_and_update());
        // What is lost is forgotten before the sink makes ready for it: a worker that dies in between hands it over too.
        let lost = self.sink.lost(&self.routes).await.map_err(BeginError::Sink)?;
        let held =
            self.routes.joins().iter().copied().filter(|join| !lost.contains(join)).collect::<Vec<_>>();
        let (results, name) = (Arc::clone(&self.results), self.name.clone());
        blocking(move || results.unsubscribe_others(&name, &held)).await?;
        self.sink.prepare(&self.routes).await.map_err(BeginError::Sink)?;
        self.has_letters = self.letters.has_any(&self.name)?;
        let name = self.name.clone();
        let (cursor, subscriptions, end) = self
            .read(move |reader| Ok((reader.cursor(&name)?, reader.subscriptions(&name)?, reader.end()?)))
            .await?;
        let mut start = cursor.unwrap_or(end);
        let horizon = self.read(Reader::horizon).await?;
        if start < horizon {
            self.warn_of_horizon();
            start = horizon;
        }
        if cursor != Some(start) {
            self.move_cursor(start).await?;
        }
        self.joins.clear();
        // The worker may have stopped in the middle of a hand-over. The hand-over starts again from its beginning, but
        // events from the outbox are sent first.
        let (mut partly, mut new) = (Vec::new(), Vec::new());
        for join in self.routes.joins() {
            match subscriptions.iter().find(|(known, _)| known == join) {
                Some((_, is_whole)) => {
                    self.joins.push(*join);
                    partly.extend((!is_whole).then_some(*join));
                }
                None => new.push(*join),
            }
        }
        if partly.is_empty() && new.is_empty() {
            return Ok(start);
        }
        // A letter of a new join is from before the sink or the join was gone. Its result is handed over, or was
        // deleted meanwhile, and then no event would ever take the letter back.
        for join in &new {
            if let Some(envelope) = self.routes.envelope(*join) {
                self.letters.forget(&self.name, &envelope.join_name)?;
            }
        }
        // While nothing took a join its results were stored without an event, so the outbox has its changes only
        // from here on.
        if !self.catch_up(&mut start, end, circuit).await? {
            return Ok(start);
        }
        for join in partly.into_iter().chain(new) {
            let (results, name) = (Arc::clone(&self.results), self.name.clone());
            blocking(move || results.subscribe(&name, join)).await?;
            if !self.hand_over(join, start, circuit).await? {
                break;
            }
            let (results, name) = (Arc::clone(&self.results), self.name.clone());
            blocking(move || results.handed_over(&name, join)).await?;
            if !self.joins.contains(&join) {
                self.joins.push(join);
            }
        }
        Ok(start)
    }

    /// Hands over what the outbox has up to `end`, and moves the cursor there. Returns whether it came to that
    /// before the worker stopped.
    async fn catch_up(
        &mut self,
        cursor: &mut Position,
        end: Position,
        circuit: &mut Circuit,
    ) -> Result<bool, SqliteError> {
        while *cursor < end {
            if *self.stopping.borrow() {
                return Ok(false);
            }
            match self.round(cursor, circuit, Moment::now()).await? {
                Round::Again => {}
                Round::Idle => {
                    *cursor = end.max(*cursor);
                    self.move_cursor(*cursor).await?;
                }
                Round::Wait(until) => self.wait_until(until, circuit).await,
            }
        }
        Ok(true)
    }

    /// Sends the present results of a join, but for those that changed after `up_to`: they follow from the
    /// outbox. Returns whether it came to the end before the worker stopped.
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
            let now = Moment::now();
            let limit = match circuit.allowance(now.instant) {
                Allowance::Wait(until) => {
                    self.wait_until(until, circuit).await;
                    continue;
                }
                Allowance::Probe => PROBE,
                Allowance::Open => self.page(),
            };
            let from = after.clone();
            let events = self.read(move |reader| reader.present(join, from.as_deref(), up_to, limit)).await?;
            if events.is_empty() {
                return Ok(true);
            }
            let keys: Vec<String> = events.iter().map(|event| event.key.clone()).collect();
            let handled = self.send(events, circuit, now).await?;
            if let Some(last) = handled.checked_sub(1) {
                after = Some(keys[last].clone());
            }
        }
    }
}
