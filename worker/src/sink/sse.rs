//! Server-Sent Events: clients subscribe to results and read them from the outbox, each at its own pace, so a
//! slow client costs nothing but its connection.
//!
//! `GET /subscribe?join=NAME|*&replay=true`, `GET /snapshot?join=NAME[&key=K][&minEpoch=E]`, `GET /health`

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use litejoin_crds::plan;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, watch};
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::blocking::blocking;
use crate::results::event::{JoinId, ResultId};
use crate::results::reader::{Page, PageLimit};
use crate::results::{Applied, Position, Reader};
use crate::sink::routes::{Routes, RoutesInForce};
use crate::status::SinkStatus;
use crate::storage::sqlite::SqliteError;

/// How much is read from the outbox at a time for one client.
const PAGE: PageLimit = PageLimit { events: 256, bytes: 1 << 20 };

/// Events that wait in memory for one client.
const CLIENT_EVENTS_MAX: usize = 64;

/// Why a client gets the whole whose stream can't go on where it was.
const TOO_OLD: &str = "the id is too old: the outbox no longer reaches back to it";

/// How long `/snapshot` waits for the epoch that was asked for.
const MIN_EPOCH_WAIT: Duration = Duration::from_secs(10);

/// Snapshots that are written at once; each holds a read transaction.
const SNAPSHOTS_MAX: usize = 4;

/// How long a client may take to accept the next piece of a snapshot.
const SNAPSHOT_PIECE_WAIT: Duration = Duration::from_secs(30);

/// Bytes of a snapshot that are sent in one piece.
const SNAPSHOT_PIECE_BYTES: usize = 64 << 10;

/// What every request of one SSE sink shares.
pub(crate) struct SseState {
    pub(crate) routes: RoutesInForce,
    pub(crate) lineage: String,
    pub(crate) reader: Arc<Reader>,
    /// Connections of its own, since a snapshot holds one for as long as its client reads.
    pub(crate) snapshot_reader: Arc<Reader>,
    pub(crate) snapshots: Arc<Semaphore>,
    pub(crate) applied: watch::Receiver<Applied>,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) status: Arc<SinkStatus>,
    pub(crate) spec: plan::SseSink,
}

impl SseState {
    /// Permits for snapshots at once.
    pub(crate) fn snapshot_permits() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(SNAPSHOTS_MAX))
    }

    /// What the sink takes now.
    fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.borrow())
    }

    /// Connections that the snapshot reader needs.
    pub(crate) const SNAPSHOT_CONNECTIONS: usize = SNAPSHOTS_MAX;
}

/// The endpoints of one SSE sink.
pub(crate) fn router(state: Arc<SseState>) -> Router {
    let origins = &state.spec.cors_origins;
    let origin = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()))
    };
    let last_event_id = header::HeaderName::from_static("last-event-id");
    let cors = CorsLayer::new().allow_origin(origin).allow_headers([last_event_id, header::CACHE_CONTROL]);
    Router::new()
        .route("/subscribe", get(subscribe))
        .route("/snapshot", get(snapshot))
        .route("/health", get(async || axum::Json(json!({"status": "ok"}))))
        .layer(cors)
        .with_state(state)
}

#[derive(Debug, Deserialize)]
struct Subscription {
    join: Option<String>,
    #[serde(default)]
    replay: bool,
}

/// Where a client's stream begins.
enum Start {
    /// With what comes after this place.
    After(Position),
    /// With the present results.
    Replay,
    /// With a `reset` event, then the present results.
    Reset(&'static str),
}

async fn subscribe(
    State(state): State<Arc<SseState>>,
    query: Result<Query<Subscription>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(rejection) => return refusal(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let in_force = state.routes.clone();
    let routes = state.routes();
    let (wanted, joins) = match query.join.as_deref() {
        None | Some("*") => (Wanted::All, routes.joins().to_vec()),
        Some(name) => match routes.named(name) {
            Some(join) => (Wanted::One(join), vec![join]),
            None => return unknown_join(&routes, name),
        },
    };
    if state.status.clients.add(1) > i64::from(state.spec.clients_max) {
        state.status.clients.add(-1);
        let message = format!("{} clients are connected, and no more are allowed", state.spec.clients_max);
        return retry_later(StatusCode::SERVICE_UNAVAILABLE, &message);
    }
    let client = Client { status: Arc::clone(&state.status) };
    let last_id = headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default());
    let start = match last_id.filter(|id| !id.is_empty()) {
        Some(id) => match ResultId::parse(id) {
            Some(id) if id.lineage == state.lineage => Start::After(id.position),
            Some(_) => Start::Reset("the id is of another lineage: the data was restored or laid out anew"),
            None => Start::Reset("the id is not one of ours"),
        },
        None if query.replay => Start::Replay,
        None => Start::After(state.applied.borrow().end),
    };
    let (sender, receiver) = mpsc::channel(CLIENT_EVENTS_MAX);
    let heartbeat = state.spec.heartbeat_interval;
    tokio::spawn(async move {
        let feed = Feed { state, in_force, wanted, routes, joins, sender };
        feed.run(start).await;
        drop(client);
    });
    let events = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|event| (Ok::<_, Infallible>(event), receiver))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(heartbeat).text("heartbeat")).into_response()
}

/// Counts a client for as long as it lives.
struct Client {
    status: Arc<SinkStatus>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.status.clients.add(-1);
    }
}

/// Reads the outbox for one client.
struct Feed {
    state: Arc<SseState>,
    in_force: RoutesInForce,
    wanted: Wanted,
    /// The routes that it follows, until it looks for others.
    routes: Arc<Routes>,
    /// What it sends of them.
    joins: Vec<JoinId>,
    sender: mpsc::Sender<SseEvent>,
}

/// What a client has subscribed to.
enum Wanted {
    All,
    One(JoinId),
}

/// The client or its join has gone, or the worker stops.
struct Ended;

impl Feed {
    async fn run(mut self, start: Start) {
        // An error is either the end of the client or of our files; both end the stream, and the client comes back.
        if let Err(Some(error)) = self.stream(start).await.map_err(|end| end.err()) {
            self.state.status.error.set(&crate::error::chain(&error));
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
                () = self.sender.closed() => return Err(Ok(Ended)),
            }
        }
    }

    async fn send_page(&self, page: &Page) -> Result<(), Result<Ended, SqliteError>> {
        for event in &page.events {
            let envelope = self.routes.envelope(event.join).expect("only joins that it takes are read");
            let id = ResultId { lineage: &self.state.lineage, position: event.position };
            let sent =
                SseEvent::default().id(id.to_string()).event("join_result").data(envelope.json(event, false));
            self.send(sent).await?;
            self.state.status.delivered.add(1);
        }
        Ok(())
    }

    /// Takes up the routes in force, and sends the present results of joins that are new to the client; returns
    /// where its stream goes on.
    async fn follow(&mut self, position: Position) -> Result<Position, Result<Ended, SqliteError>> {
        let routes = Arc::clone(&self.in_force.borrow_and_update());
        let new: Vec<JoinId> = match self.wanted {
            Wanted::One(join) if routes.envelope(join).is_none() => return Err(Ok(Ended)),
            Wanted::One(_) => Vec::new(),
            Wanted::All => routes.joins().iter().copied().filter(|join| !self.joins.contains(join)).collect(),
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
        self.send(SseEvent::default().event("reset").data(json!({"reason": reason}).to_string())).await?;
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
        self.send(SseEvent::default().id(id.to_string()).event("replayed").data(data)).await?;
        Ok(end)
    }

    /// Sends the results of a join that have not changed after `up_to`.
    async fn send_present(&self, join: JoinId, up_to: Position) -> Result<(), Result<Ended, SqliteError>> {
        let envelope = self.routes.envelope(join).expect("only joins that it takes are sent");
        let mut after: Option<String> = None;
        loop {
            let from = after.clone();
            let events =
                self.read(move |reader| reader.present(join, from.as_deref(), up_to, PAGE.events)).await?;
            let Some(last) = events.last() else { return Ok(()) };
            after = Some(last.key.clone());
            for event in &events {
                let sent = SseEvent::default().event("join_result").data(envelope.json(event, true));
                self.send(sent).await?;
            }
        }
    }

    async fn send(&self, event: SseEvent) -> Result<(), Result<Ended, SqliteError>> {
        self.sender.send(event).await.map_err(|_| Ok(Ended))
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Reader) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T, Result<Ended, SqliteError>> {
        let reader = Arc::clone(&self.state.reader);
        blocking(move || work(&reader)).await.map_err(Err)
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SnapshotQuery {
    join: Option<String>,
    key: Option<String>,
    min_epoch: Option<u64>,
}

async fn snapshot(
    State(state): State<Arc<SseState>>,
    query: Result<Query<SnapshotQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Query(query) = match query {
        Ok(query) => query,
        Err(rejection) => return refusal(StatusCode::BAD_REQUEST, &rejection.body_text()),
    };
    let routes = state.routes();
    let join = match (&query.join, routes.joins()) {
        (Some(wanted), _) => match routes.named(wanted) {
            Some(join) => join,
            None => return unknown_join(&routes, wanted),
        },
        (None, [join]) => *join,
        (None, _) => {
            let message = format!("say which join: ?join= one of {}", routes.names().join(", "));
            return refusal(StatusCode::BAD_REQUEST, &message);
        }
    };
    if let Some(min_epoch) = query.min_epoch {
        let mut applied = state.applied.clone();
        let reached = applied.wait_for(|applied| applied.epoch >= min_epoch);
        if !matches!(tokio::time::timeout(MIN_EPOCH_WAIT, reached).await, Ok(Ok(_))) {
            let message = format!(
                "epoch {min_epoch} was not applied within {} seconds; the last one is {}",
                MIN_EPOCH_WAIT.as_secs(),
                state.applied.borrow().epoch
            );
            return retry_later(StatusCode::SERVICE_UNAVAILABLE, &message);
        }
    }
    let permit = tokio::time::timeout(MIN_EPOCH_WAIT, Arc::clone(&state.snapshots).acquire_owned()).await;
    let Ok(Ok(permit)) = permit else {
        return retry_later(StatusCode::SERVICE_UNAVAILABLE, "too many snapshots at once");
    };
    let (sender, receiver) = mpsc::channel::<Result<Bytes, std::io::Error>>(2);
    let known_epoch = state.applied.borrow().epoch;
    let writer = SnapshotWriter { piece: Vec::with_capacity(SNAPSHOT_PIECE_BYTES), sender };
    let shared = Arc::clone(&state);
    tokio::task::spawn_blocking(move || {
        writer.write(&shared.snapshot_reader, &routes, join, query.key.as_deref(), known_epoch);
        drop(permit);
    });
    let pieces = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(pieces)).into_response()
}

/// Writes a snapshot piece by piece, from a thread that may block.
struct SnapshotWriter {
    piece: Vec<u8>,
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
}

impl SnapshotWriter {
    fn write(mut self, reader: &Reader, routes: &Routes, join: JoinId, key: Option<&str>, known_epoch: u64) {
        let envelope = routes.envelope(join).expect("it was looked up in these routes");
        let (mut first, mut gone) = (true, false);
        let piece = std::cell::RefCell::new(&mut self.piece);
        let sender = &self.sender;
        let outcome = reader.snapshot::<SqliteError>(
            &[join],
            key,
            |_, _| {
                let name = serde_json::to_string(&envelope.join_name).expect("a string is always JSON");
                let head = format!("{{\"join\":{name},\"epoch\":{known_epoch},\"results\":[");
                piece.borrow_mut().extend_from_slice(head.as_bytes());
                Ok(())
            },
            |event| {
                let mut piece = piece.borrow_mut();
                if !std::mem::take(&mut first) {
                    piece.push(b',');
                }
                piece.extend_from_slice(envelope.json(&event, false).as_bytes());
                gone = piece.len() >= SNAPSHOT_PIECE_BYTES && !flush(sender, &mut piece);
                Ok(!gone)
            },
        );
        match outcome {
            Ok(()) if gone => {
                // Broken off, not ended: half a snapshot must not look like a whole one.
                let _ = self.sender.try_send(Err(std::io::Error::other("the client took too long")));
            }
            Ok(()) => {
                self.piece.extend_from_slice(b"]}");
                flush(&self.sender, &mut self.piece);
            }
            Err(error) => {
                let error = std::io::Error::other(crate::error::chain(&error));
                let _ = self.sender.blocking_send(Err(error));
            }
        }
    }
}

/// Sends what has gathered; `false` if the client has gone or takes too long.
fn flush(sender: &mpsc::Sender<Result<Bytes, std::io::Error>>, piece: &mut Vec<u8>) -> bool {
    let bytes = Bytes::from(std::mem::take(piece));
    let send = tokio::time::timeout(SNAPSHOT_PIECE_WAIT, sender.send(Ok(bytes)));
    matches!(tokio::runtime::Handle::current().block_on(send), Ok(Ok(())))
}

fn unknown_join(routes: &Routes, wanted: &str) -> Response {
    let message = format!("this sink takes no join {wanted:?}; it has {}", routes.names().join(", "));
    refusal(StatusCode::NOT_FOUND, &message)
}

fn refusal(code: StatusCode, message: &str) -> Response {
    (code, axum::Json(json!({"error": message}))).into_response()
}

fn retry_later(code: StatusCode, message: &str) -> Response {
    (code, [(header::RETRY_AFTER, "1")], axum::Json(json!({"error": message}))).into_response()
}
