//! Messages pushed over HTTP: `POST /ingest`, answered after the commit.
//!
//! | answer | when |
//! |---|---|
//! | 200 `{"accepted": N, "epoch": E}` | all stored; they are seen in epoch E |
//! | 400, with `refused` item by item | some can't be taken; the others are stored |
//! | 415 | a browser sends it from another site, or it is packed (`Content-Encoding`) |
//! | 413 | the body is larger than `maxBodyBytes` |
//! | 429 | too much is on its way to the shards |
//! | 503 | it is stored, and not known to be in the replica yet (with `ack: replicated`) |
//! | 503, 507 | the worker stops, a shard fails, or the disk is full: what is listed was not stored |
//!
//! A body takes room as its bytes come, and a body that has come whole takes the room that all sources share. So clients
//! that announce much and send little, or nothing, are in no other request's way; nor do they hold up a stop.

pub(crate) mod body;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use http_body_util::BodyExt;
use litejoin_crds::plan;
use serde_json::{Value, json};
use tokio::sync::watch;

use self::body::{BodyItem, Framing, ItemError, RefusedItem};
use crate::status::source::SourceStatus;
use crate::storage::ingest::{Arrival, Ingest};
use crate::storage::message::Message;
use crate::storage::replication_barrier::ReplicationBarrier;
use crate::storage::topics::TopicId;
use crate::storage::writer::WriteError;

/// Refused messages that an answer lists; the rest is counted.
const REFUSALS_LISTED: usize = 100;

/// Bytes of a body that is too large which are still read, so that the client gets to see the answer.
const DRAINED_BYTES_MAX: u64 = 256 << 20;

/// How long that may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a request waits for the replica. Others wait as well, and there is an end to how many may.
const REPLICA_TIMEOUT: Duration = Duration::from_secs(20);

/// The state that every request of one http source shares.
pub(crate) struct HttpState {
    /// The name of the source.
    pub(crate) name: Arc<str>,
    pub(crate) spec: plan::HttpSource,
    pub(crate) ingest: Ingest,
    pub(crate) status: Arc<SourceStatus>,
    /// Where a message counts as taken once it is in the replica.
    pub(crate) replication_barrier: Option<ReplicationBarrier>,
    pub(crate) stopping: watch::Receiver<bool>,
}

/// The endpoints of one http source.
pub(crate) fn router(state: Arc<HttpState>) -> Router {
    Router::new()
        .route("/ingest", post(ingest))
        .route("/health", get(async || axum::Json(json!({"status": "ok"}))))
        .with_state(state)
}

async fn ingest(State(state): State<Arc<HttpState>>, headers: HeaderMap, mut body: Body) -> Response {
    let mut stopping = state.stopping.clone();
    if *stopping.borrow() {
        return stops();
    }
    // A page on some other site may make a browser send this without asking; only scripts on our own may.
    if headers.contains_key(header::ORIGIN) && !is_json(&headers) {
        let message = "a browser must send Content-Type: application/json or application/x-ndjson";
        return answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, json!({"error": message}));
    }
    let packed = headers.get(header::CONTENT_ENCODING).filter(|how| how.as_bytes() != b"identity");
    if let Some(how) = packed {
        let message = format!("the body has Content-Encoding {how:?}; send it unpacked, without that header");
        return answer(StatusCode::UNSUPPORTED_MEDIA_TYPE, json!({"error": message}));
    }
    let limit = state.spec.body_bytes_max;
    let declared =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if let Some(declared) = declared.filter(|declared| *declared > limit) {
        if declared <= DRAINED_BYTES_MAX {
            drain(body, &mut stopping).await;
        }
        return too_large(limit);
    }
    let wanted = usize::try_from(declared.unwrap_or(1)).unwrap_or(usize::MAX);
    if !state.ingest.has_room(wanted) {
        // Said before all of it is sent in vain.
        return no_room();
    }
    let timeout = state.spec.serving.client_timeout;
    let read = tokio::select! {
        read = tokio::time::timeout(timeout, receive(&state, &mut body)) => read,
        _ = stopping.wait_for(|stopping| *stopping) => return stops(),
    };
    let (arrival, body) = match read {
        Ok(Ok(received)) => received,
        Ok(Err(unread)) => {
            let answer = match unread {
                Unread::BrokeOff(error) => {
                    let message = format!("the body broke off: {error}");
                    return answer(StatusCode::BAD_REQUEST, json!({"error": message}));
                }
                Unread::TooLarge => too_large(limit),
                Unread::NoRoom => no_room(),
            };
            drain(body, &mut stopping).await;
            return answer;
        }
        Err(_) => {
            let message = format!("the body did not arrive within {timeout:?} (clientTimeout)");
            return answer(StatusCode::REQUEST_TIMEOUT, json!({"error": message}));
        }
    };
    let Some(room) = state.ingest.try_room(body.len()) else { return no_room() };
    drop(arrival);
    let framing = if has_type(&headers, &["application/x-ndjson", "application/jsonl"]) {
        Framing::Lines
    } else {
        Framing::Guess
    };
    let response = store(&state, &body, framing).await;
    drop(room);
    response
}

/// Why a body was not read to its end.
enum Unread {
    BrokeOff(axum::Error),
    TooLarge,
    NoRoom,
}

/// Reads a body as far as it is allowed to go, and holds the room that this takes.
async fn receive(state: &HttpState, body: &mut Body) -> Result<(Arrival, Vec<u8>), Unread> {
    let limit = usize::try_from(state.spec.body_bytes_max).unwrap_or(usize::MAX);
    let (mut arrival, mut read) = (state.ingest.arrival(), Vec::new());
    while let Some(frame) = body.frame().await {
        // A frame without data is a trailer.
        let Ok(piece) = frame.map_err(Unread::BrokeOff)?.into_data() else { continue };
        if piece.len() > limit - read.len() {
            return Err(Unread::TooLarge);
        }
        if !arrival.grow(piece.len()) {
            return Err(Unread::NoRoom);
        }
        read.extend_from_slice(&piece);
    }
    Ok((arrival, read))
}

/// Reads the body, stores what can be stored, and answers for each message.
async fn store(state: &HttpState, body: &[u8], framing: Framing) -> Response {
    let mut batch = state.ingest.batch();
    // Number of the item and its shard, for those that were handed over.
    let mut handed: Vec<(usize, usize)> = Vec::new();
    let read = body::read(body, framing, |item, parsed| {
        let message = admit(state, parsed)?;
        handed.push((item, batch.push(message)));
        Ok(())
    });
    let (total, mut refused) = match read {
        Ok(read) => read,
        Err(error) => {
            state.status.refused.add(1);
            return answer(StatusCode::BAD_REQUEST, json!({"error": error, "accepted": 0}));
        }
    };
    let was_refused = !refused.is_empty();
    let is_empty = handed.is_empty();
    let outcome = state.ingest.write(batch, &state.name).await;
    if let Some(replication_barrier) = state.replication_barrier.as_ref().filter(|_| !is_empty) {
        let why = match replication_barrier.wait_unless_failing(REPLICA_TIMEOUT).await {
            Ok(true) => None,
            Ok(false) => Some(format!("in the replica after {} s", REPLICA_TIMEOUT.as_secs())),
            Err(why) => Some(format!("in the replica, which can't be brought up to date ({why})")),
        };
        if let Some(why) = why {
            let error = format!("stored, and not {why}; send it again, which does no harm");
            state.status.error.set(&error);
            return retry_later(StatusCode::SERVICE_UNAVAILABLE, &error);
        }
    }
    let mut failed: Option<WriteError> = None;
    let mut accepted = 0_u64;
    for (item, shard) in handed {
        match &outcome.shards[shard] {
            Some(Err(error)) => {
                refused.push(RefusedItem { item, line: None, error: error.to_string() });
                failed.get_or_insert_with(|| error.clone());
            }
            _ => accepted += 1,
        }
    }
    state.status.accepted.add(accepted);
    state.status.refused.add(refused.len() as u64);
    let mut reply = json!({"accepted": accepted});
    if let Some(epoch) = outcome.epoch() {
        reply["epoch"] = json!(epoch);
    }
    if refused.is_empty() {
        state.status.error.clear();
        return answer(StatusCode::OK, reply);
    }
    refused.sort_by_key(|refusal| refusal.item);
    let first = &refused[0];
    let place = first.line.map_or_else(|| format!("item {}", first.item), |line| format!("line {line}"));
    let error = match (total, &failed) {
        (1, _) => first.error.clone(),
        (_, _) => format!("{} of {total} messages were refused; {place}: {}", refused.len(), first.error),
    };
    state.status.error.set(&error);
    reply["error"] = json!(error);
    refused.truncate(REFUSALS_LISTED);
    reply["refused"] = json!(refused);
    match failed {
        Some(WriteError::DiskFull | WriteError::BytesMax(_)) => {
            answer(StatusCode::INSUFFICIENT_STORAGE, reply)
        }
        Some(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "1")], axum::Json(reply)).into_response()
        }
        None => {
            debug_assert!(was_refused);
            answer(StatusCode::BAD_REQUEST, reply)
        }
    }
}

fn admit(state: &HttpState, item: BodyItem<'_>) -> Result<Message, ItemError> {
    let topic = topic(state, item.topic())?;
    Ok(item.into_message(topic, 0)?)
}

fn topic(state: &HttpState, name: &str) -> Result<TopicId, ItemError> {
    let allowed = &state.spec.topics;
    if allowed.is_empty() {
        return Ok(state.ingest.topics.find_or_add(name)?);
    }
    match allowed.iter().find(|allowed| allowed.eq_ignore_ascii_case(name)) {
        Some(allowed) => Ok(state.ingest.topics.find_or_add(allowed)?),
        None => Err(ItemError::OtherTopic { name: name.to_owned(), allowed: allowed.join(", ") }),
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    has_type(headers, &["application/json", "application/x-ndjson", "application/jsonl"])
}

fn has_type(headers: &HeaderMap, types: &[&str]) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = value.split(';').next().unwrap_or_default().trim();
    types.iter().any(|known| known.eq_ignore_ascii_case(essence))
}

/// Reads a body to nowhere, so that the client sees the answer instead of a broken connection.
async fn drain(body: Body, stopping: &mut watch::Receiver<bool>) {
    let mut pieces = body.into_data_stream();
    let mut left = DRAINED_BYTES_MAX;
    let read = async {
        while let Some(Ok(piece)) = pieces.next().await {
            left = left.saturating_sub(piece.len() as u64);
            if left == 0 {
                break;
            }
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(DRAIN_TIMEOUT, read) => {}
        _ = stopping.wait_for(|stopping| *stopping) => {}
    }
}

fn stops() -> Response {
    retry_later(StatusCode::SERVICE_UNAVAILABLE, &WriteError::Stopping.to_string())
}

fn no_room() -> Response {
    retry_later(
        StatusCode::TOO_MANY_REQUESTS,
        "too many messages are on their way to the shards; send this again in a second",
    )
}

fn too_large(limit: u64) -> Response {
    let message =
        format!("the body is larger than the {limit} bytes that maxBodyBytes allows; send it in pieces");
    answer(StatusCode::PAYLOAD_TOO_LARGE, json!({"error": message}))
}

fn retry_later(code: StatusCode, message: &str) -> Response {
    (code, [(header::RETRY_AFTER, "1")], axum::Json(json!({"error": message}))).into_response()
}

fn answer(code: StatusCode, value: Value) -> Response {
    (code, axum::Json(value)).into_response()
}
