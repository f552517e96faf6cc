//! Server-Sent Events: clients subscribe to results and read them from the outbox, each at its own pace, so a
//! slow client costs nothing but its connection.
//!
//! | endpoint | parameters |
//! |---|---|
//! | `GET /subscribe` | `join=NAME`, or `*` for all; `replay=true`; `lastEventId=ID`, where the header can't be set; `numbers` |
//! | `GET /snapshot` | `join=NAME`; `key=K`; `minEpoch=E`; `numbers` |
//! | `GET /health` | |
//!
//! With `numbers=text`, integers that JavaScript can't hold are strings.

mod feed;
mod numbers;
mod parameters;
mod queue;
mod snapshot;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::{StreamExt as _, stream};
use litejoin_crds::plan;
use serde_json::json;
use tokio::sync::watch;
use tower_http::cors::{AllowOrigin, CorsLayer};

use self::feed::{Feed, Start, SubscribedJoins};
use self::numbers::Numbers;
use self::parameters::Parameters;
use self::queue::queue;
pub(crate) use self::snapshot::Snapshots;
use crate::results::event::ResultId;
use crate::results::release::Release;
use crate::results::{Applied, Reader};
use crate::sink::routes::{Routes, RoutesInForce};
use crate::status::sink::SinkStatus;

/// How long a client waits before it connects again: browsers differ in what they do unasked.
const CLIENT_RETRY: Duration = Duration::from_secs(1);

/// The header by which nginx, and proxies that follow it, pass an answer on as it comes.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The state that every request of one SSE sink shares.
pub(crate) struct SseState {
    pub(crate) routes: RoutesInForce,
    pub(crate) lineage: String,
    pub(crate) reader: Arc<Reader>,
    pub(crate) snapshots: Snapshots,
    pub(crate) applied: watch::Receiver<Applied>,
    /// When results may leave.
    pub(crate) release: Release,
    pub(crate) stopping: watch::Receiver<bool>,
    pub(crate) status: Arc<SinkStatus>,
    pub(crate) spec: plan::SseSink,
}

impl SseState {
    /// The routes of the sink that are in force.
    fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.borrow())
    }
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
        .route("/snapshot", get(snapshot::answer))
        .route("/health", get(async || axum::Json(json!({"status": "ok"}))))
        .layer(cors)
        .with_state(state)
}

/// What a client asks `/subscribe` for.
struct SubscribeQuery {
    join: Option<String>,
    replay: bool,
    last_event_id: Option<String>,
    numbers: Numbers,
}

impl SubscribeQuery {
    fn read(uri: &Uri) -> Result<Self, String> {
        let mut parameters = Parameters::read(uri, &["join", "replay", "lastEventId", "numbers"])?;
        Ok(Self {
            join: parameters.text("join"),
            replay: parameters.parsed("replay", "true, false", |text| text.parse().ok())?.unwrap_or(false),
            last_event_id: parameters.text("lastEventId"),
            numbers: Numbers::of(&mut parameters)?,
        })
    }
}

async fn subscribe(State(state): State<Arc<SseState>>, uri: Uri, headers: HeaderMap) -> Response {
    let query = match SubscribeQuery::read(&uri) {
        Ok(query) => query,
        Err(problem) => return refusal(StatusCode::BAD_REQUEST, &problem),
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
    // A client that can't set headers has the id in its URL; one that sets both has read on since it made the URL.
    let in_header = headers.get("last-event-id").map(|id| id.to_str().unwrap_or_default());
    let last_ids = [in_header, query.last_event_id.as_deref()];
    let start = match last_ids.into_iter().flatten().find(|id| !id.is_empty()) {
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
    let (heartbeat, numbers) = (state.spec.heartbeat_interval, query.numbers);
    tokio::spawn(async move {
        let feed = Feed { state, in_force, wanted, routes, joins, numbers, queue };
        feed.run(start).await;
        drop(client);
    });
    let events = stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|queued| (Ok::<_, Infallible>(queued.take()), receiver))
    });
    let events = stream::iter([Ok(Event::default().retry(CLIENT_RETRY))]).chain(events);
    let sse = Sse::new(events).keep_alive(KeepAlive::new().interval(heartbeat).text("heartbeat"));
    ([(X_ACCEL_BUFFERING, "no")], sse).into_response()
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
