//! The dead-letter queue over the socket: `POST /dlq/read {"filter": …, "whole": bool}` answers with a line of JSON for
//! each entry and one behind the last; `/dlq/retry` and `/dlq/purge` take a filter and answer `{"count": N}`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use futures::stream;
use litejoin_crds::error::chain;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::END;
use crate::blocking::blocking;
use crate::clock;
use crate::dead_letters::DeadLetters;
use crate::dead_letters::by_hand::{After, Filter};
use crate::storage::sqlite::SqliteError;

/// A request to read the queue.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Reading {
    pub(crate) filter: Filter,
    /// Whether entries have their contents.
    pub(crate) whole: bool,
}

/// How many entries something was done to.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) count: u64,
}

pub(super) fn router(letters: Arc<DeadLetters>) -> Router {
    Router::new()
        .route("/dlq/read", post(read))
        .route("/dlq/retry", post(retry))
        .route("/dlq/purge", post(purge))
        .with_state(letters)
}

/// Page by page, so that memory stays bounded whatever there is and however slowly it is read.
async fn read(State(letters): State<Arc<DeadLetters>>, Json(reading): Json<Reading>) -> Response {
    let lines = stream::unfold(Some((letters, reading, After::default())), |state| async {
        let (letters, reading, mut after) = state?;
        let (page, state) = blocking(move || {
            let page = letters.page(&reading.filter, &mut after, reading.whole);
            (page, (letters, reading, after))
        })
        .await;
        match page {
            Err(error) => Some((Err(std::io::Error::other(chain(&error))), None)),
            Ok(entries) if entries.is_empty() => Some((Ok(format!("{END}\n")), None)),
            Ok(entries) => {
                let lines = entries
                    .iter()
                    .map(|entry| serde_json::to_string(entry).expect("an entry is always JSON") + "\n");
                Some((Ok(lines.collect::<String>()), Some(state)))
            }
        }
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn retry(State(letters): State<Arc<DeadLetters>>, Json(filter): Json<Filter>) -> Response {
    answer(blocking(move || letters.retry(&filter, clock::epoch_seconds())).await)
}

async fn purge(State(letters): State<Arc<DeadLetters>>, Json(filter): Json<Filter>) -> Response {
    answer(blocking(move || letters.purge(&filter)).await)
}

fn answer(outcome: Result<u64, SqliteError>) -> Response {
    match outcome {
        Ok(count) => Json(Count { count }).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": chain(&error)}))).into_response()
        }
    }
}
