//! The stream of one client: from its place in the outbox on, through reloads that change what its sink takes.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::response::sse::Event as SseEvent;
use serde_json::json;

use super::SseState;
use super::numbers::Numbers;
use super::queue::EventQueue;
use crate::blocking::blocking;
use crate::results::event::{JoinId, ResultId};
use crate::results::reader::{Page, PageLimit};
use crate::results::{Position, Reader};
use crate::sink::routes::{Routes, RoutesInForce};
use crate::storage::sqlite::SqliteError;

/// How much is read from the outbox at a time for one client.
const PAGE: PageLimit = PageLimit { events: 256, bytes: 1 << 20 };

/// How long a client may take to accept an event when the sink stops: it comes back, and goes on with that one.
const LAST_EVENT_WAIT: Duration = Duration::from_secs(1);

/// Why a client gets the whole whose stream can't go on where it was.
const TOO_OLD: &str = "the id is too old: the outbox no longer reaches back to it";

/// Where a client's stream begins.
pub(super) enum Start {
    /// With what comes after this place.
    After(Position),
    /// With the present results.
    Replay,
    /// With a `reset` event, then the present results.
    Reset(&'static str),
}

/// Reads the outbox for one client.
pub(super) struct Feed {
    pub(super) state: Arc<SseState>,
    pub(super) in_force: RoutesInForce,
    pub(super) wanted: SubscribedJoins,
    /// The routes that it follows, until it looks for others.
    pub(super) routes: Arc<Routes>,
    /// The joins among them that it sends.
    pub(super) joins: Vec<JoinId>,
    pub(super) numbers: Numbers,
    pub(super) queue: EventQueue,
}

/// The joins that a client has subscribed to.
pub(super) enum SubscribedJoins {
    All,
    One(JoinId),
}

/// The client or its join has gone, or the worker stops.
struct Ended;

impl Feed {
    /// Sends results until the client goes, its join goes, or the worker stops.
    pub(super) async fn run(mut self, start: Start) {
        // An error is either the end of the client or of our files; both end the stream, and the client comes back.
        if let Err(Some(error)) = self.stream(start).await.map_err(|end| end.err()) {
            self.state.status.error.set(&litejoin_crds::error::chain(&error));
        }
    }

    async fn stream(&mut self, start: Start) -> Result<Infallible, Result<Ended, SqliteError>> {
        let mut applied = self.state.applied.clone();
        let mut stopping = self.state.stopping.clone();
        let mut position = match start {
            Start::After(position) => position,
            Start::Replay => self.replay().await?,
            Start::Reset(reason) => self.reset(reason).await?,
        };
        loop {
            applied.borrow_and_update();
            if self.in_force.has_changed().is_ok_and(|changed| changed) {
                position = self.follow(position).await?;
            }
            let joins = self.joins.clone();
            let page = self.read(move |reader| reader.after(position, &joins, PAGE)).await?;
            let Some(page) = page else {
                position = self.reset(TOO_OLD).await?;
                continue;
            };
            self.send_page(&page).await?;
            position = page.up_to;
            if page.more {
                continue;
            }
            if *stopping.borrow() {
                return Err(Ok(Ended));
            }
            tokio::select! {
                _ = applied.changed() => {}
                Ok(()) = self.in_force.changed() => self.in_force.mark_changed(),
                _ = stopping.changed() => {}
                () = self.queue.closed() => return Err(Ok(Ended)),
            }
        }
    }

    async fn send_page(&self, page: &Page) -> Result<(), Result<Ended, SqliteError>> {
        if let Some(wanted) = page.events.iter().map(|event| event.position).max() {
            self.released(wanted).await?;
        }
        for event in &page.events {
            let envelope = self.routes.envelope(event.join).expect("only joins that it takes are read");
            let id = ResultId { lineage: &self.state.lineage, position: event.position };
            let sent = SseEvent::default().id(id.to_string()).event("join_result");
            self.send(sent, &self.numbers.applied(envelope.json(event, false))).await?;
            self.state.status.delivered.add(1);
        }
        Ok(())
    }

    /// Takes up the routes in force, and sends the present results of joins that are new to the client; returns
    /// where its stream goes on.
    async fn follow(&mut self, position: Position) -> Result<Position, Result<Ended, SqliteError>> {
        let routes = Arc::clone(&self.in_force.borrow_and_update());
        let new: Vec<JoinId> = match self.wanted {
            SubscribedJoins::One(join) if routes.envelope(join).is_none() => return Err(Ok(Ended)),
            SubscribedJoins::One(_) => Vec::new(),
            SubscribedJoins::All => {
                routes.joins().iter().copied().filter(|join| !self.joins.contains(join)).collect()
            }
        };
        self.joins.retain(|join| routes.envelope(*join).is_some());
        self.routes = routes;
        if new.is_empty() {
            return Ok(position);
        }
        // While nothing took a join its results were stored without an event, so the outbox has its changes only
        // from here on.
        let end = self.read(Reader::end).await?;
        let mut position = position;
        loop {
            let joins = self.joins.clone();
            let page = self.read(move |reader| reader.after(position, &joins, PAGE)).await?;
            let Some(page) = page else {
                self.joins.extend(new);
                return self.reset(TOO_OLD).await;
            };
            self.send_page(&page).await?;
            position = page.up_to;
            if !page.more {
                break;
            }
        }
        position = position.max(end);
        for join in new {
            self.send_present(join, position).await?;
            self.joins.push(join);
        }
        Ok(position)
    }

    async fn reset(&self, reason: &str) -> Result<Position, Result<Ended, SqliteError>> {
        self.send(SseEvent::default().event("reset"), &json!({"reason": reason}).to_string()).await?;
        self.replay().await
    }

    /// Sends the present results, then `replayed` with the id from which the stream goes on. Results that change
    /// meanwhile are left out here and follow after it, so each key's results come in order. Only the last event
    /// carries an id: a client that breaks off in between starts over.
    async fn replay(&self) -> Result<Position, Result<Ended, SqliteError>> {
        let end = self.read(Reader::end).await?;
        for join in &self.joins {
            self.send_present(*join, end).await?;
        }
        let id = ResultId { lineage: &self.state.lineage, position: end };
        let data = json!({"epoch": end.epoch}).to_string();
        self.send(SseEvent::default().id(id.to_string()).event("replayed"), &data).await?;
        Ok(end)
    }

    /// Sends the results of a join that have not changed after `up_to`.
    async fn send_present(&self, join: JoinId, up_to: Position) -> Result<(), Result<Ended, SqliteError>> {
        self.released(up_to).await?;
        let envelope = self.routes.envelope(join).expect("only joins that it takes are sent");
        let mut after: Option<String> = None;
        loop {
            let from = after.clone();
            let events = self.read(move |reader| reader.present(join, from.as_deref(), up_to, PAGE)).await?;
            let Some(last) = events.last() else { return Ok(()) };
            if *self.state.stopping.borrow() {
                // It has no id yet, and starts over when it comes back.
                return Err(Ok(Ended));
            }
            after = Some(last.key.clone());
            for event in &events {
                let sent = SseEvent::default().event("join_result");
                self.send(sent, &self.numbers.applied(envelope.json(event, true))).await?;
            }
        }
    }

    /// Returns when results up to this place may leave, if the client waits for them.
    async fn released(&self, wanted: Position) -> Result<(), Result<Ended, SqliteError>> {
        let committed = self.state.applied.borrow().end;
        let released = tokio::select! {
            released = self.state.release.wait(wanted, committed, &self.state.stopping) => released,
            () = self.queue.closed() => false,
        };
        if released { Ok(()) } else { Err(Ok(Ended)) }
    }

    async fn send(&self, event: SseEvent, data: &str) -> Result<(), Result<Ended, SqliteError>> {
        let mut stopping = self.state.stopping.clone();
        let sent = tokio::select! {
            sent = self.queue.send(event.data(data), data.len()) => sent,
            () = async {
                let _ = stopping.wait_for(|stopping| *stopping).await;
                tokio::time::sleep(LAST_EVENT_WAIT).await;
            } => false,
        };
        if sent { Ok(()) } else { Err(Ok(Ended)) }
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T, Result<Ended, SqliteError>> {
        let reader = Arc::clone(&self.state.reader);
        blocking(move || work(&reader)).await.map_err(Err)
    }
}

#[cfg(test)]
mod tests;
