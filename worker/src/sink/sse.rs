//! Server-Sent Events: clients subscribe to results and read them from the outbox, each at its own pace, so a
//! slow client costs nothing but its connection.
//!
//! `GET /subscribe?join=NAME|*&replay=true`, `GET /snapshot?join=NAME[&key=K][&minEpoch=E]`, `GET /health`

mod feed;
mod queue;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::sse::{KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::stream;
use litejoin_crds::plan;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{Semaphore, mpsc, watch};
use tower_http::cors::{AllowOrigin, CorsLayer};

use self::feed::{Feed, Start, SubscribedJoins};
use self::queue::queue;
use crate::results::event::{JoinId, ResultId};
use crate::results::release::Release;
use crate::results::{Applied, Reader};
use crate::sink::routes::{Routes, RoutesInForce};
use crate::status::sink::SinkStatus;
use crate::storage::sqlite::SqliteError;

/// How long `/snapshot` waits for the epoch that was asked for.
const MIN_EPOCH_WAIT: Duration = Duration::from_secs(10);

/// Snapshots that are written at once; each holds a read transaction.
const SNAPSHOTS_MAX: usize = 4;

/// How long a client may take to accept the next piece of a snapshot.
const SNAPSHOT_PIECE_WAIT: Duration = Duration::from_secs(30);

/// How long a snapshot waits for the replica.
const RELEASE_WAIT: Duration = Duration::from_secs(20);

/// Bytes of a snapshot that are sent in one piece.
const SNAPSHOT_PIECE_BYTES: usize = 64 << 10;

/// The state that every request of one SSE sink shares.
pub(crate) struct SseState {
    pub(crate) routes: RoutesInForce,
    pub(crate) lineage: String,
    pub(crate) reader: Arc<Reader>,
    /// Connections of its own, since a snapshot holds one for as long as its client reads.
    pub(crate) snapshot_reader: Arc<Reader>,
    pub(crate) snapshots: Arc<Semaphore>,
    pub(crate) applied: watch::Receiver<Applied>,
    /// When results may leave.
    pub(crate) release: Release,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) status: Arc<SinkStatus>,
    pub(crate) spec: plan::SseSink,
}

impl SseState {
    /// Permits for snapshots at once.
    pub(crate) fn snapshot_permits() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(SNAPSHOTS_MAX))
    }

    /// The routes of the sink that are in force.
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
    let cors = CorsLayer::new().allow_origin(origin).allow_headers([
        last_event_id,
        header::CACHE_CONTROL,
        header::AUTHORIZATION,
    ]);
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
        None | Some("*") => (SubscribedJoins::All, routes.joins().to_vec()),
        Some(name) => match routes.named(name) {
            Some(join) => (SubscribedJoins::One(join), vec![join]),
            None => return unknown_join(&routes, name),
        },
    };
    if state.status.clients.add(1) > i64::from(state.spec.clients_max) {
        state.status.clients.add(-1);
        let message = format!("{} clients are connected, and no more are allowed", state.spec.clients_max);
        return retry_later(StatusCode::SERVICE_UNAVAILABLE, &message);
    }
    let client = ConnectedClient { status: Arc::clone(&state.status) };
    let last_id = headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default());
    let start = match last_id.filter(|id| !id.is_empty()) {
        Some(id) => match ResultId::parse(id) {
            Some(id) if id.lineage != state.lineage => {
                Start::Reset("the id is of another lineage: the data was restored or laid out anew")
            }
            Some(id) if state.applied.borrow().is_lost(id.position) => {
                Start::Reset("the id was lost in a crash of the machine, with the result that had it")
            }
            Some(id) => Start::After(id.position),
            None => Start::Reset("the id is not one of ours"),
        },
        None if query.replay => Start::Replay,
        None => Start::After(state.applied.borrow().end),
    };
    let (queue, receiver) = queue();
    let heartbeat = state.spec.heartbeat_interval;
    tokio::spawn(async move {
        let feed = Feed { state, in_force, wanted, routes, joins, queue };
        feed.run(start).await;
        drop(client);
    });
    let events = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|queued| (Ok::<_, Infallible>(queued.take()), receiver))
    });
    Sse::new(events).keep_alive(KeepAlive::new().interval(heartbeat).text("heartbeat")).into_response()
}

/// Counts a client for as long as it lives.
struct ConnectedClient {
    status: Arc<SinkStatus>,
}

impl Drop for ConnectedClient {
    fn drop(&mut self) {
        self.status.clients.add(-1);
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
        writer.write(&shared, &routes, join, query.key.as_deref(), known_epoch);
        drop(permit);
    });
    let pieces = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|piece| (piece, receiver))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(pieces)).into_response()
}

/// Why a snapshot breaks off.
#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error(transparent)]
    File(#[from] SqliteError),
    #[error("its results are not in the replica yet (delivery.after: replicated); ask again")]
    NotReleased,
}

/// Writes a snapshot piece by piece, from a thread that may block.
struct SnapshotWriter {
    piece: Vec<u8>,
    sender: mpsc::Sender<Result<Bytes, std::io::Error>>,
}

impl SnapshotWriter {
    fn write(mut self, state: &SseState, routes: &Routes, join: JoinId, key: Option<&str>, known_epoch: u64) {
        let envelope = routes.envelope(join).expect("it was looked up in these routes");
        let (mut first, mut gone) = (true, false);
        let piece = std::cell::RefCell::new(&mut self.piece);
        let sender = &self.sender;
        let runtime = tokio::runtime::Handle::current();
        let outcome = state.snapshot_reader.snapshot::<SnapshotError>(
            &[join],
            key,
            |_, _| {
                // The reading is fixed now, so that a sync round from here on has all of it.
                if !state.release.wait_for_all(&runtime, RELEASE_WAIT) {
                    return Err(SnapshotError::NotReleased);
                }
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
                let error = std::io::Error::other(litejoin_crds::error::chain(&error));
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
