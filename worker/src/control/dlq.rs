//! The dead-letter queue over the control socket: `POST /dlq/read {"filter": …, "whole": bool}` answers with a line of
//! JSON for each entry and [`END`] as the last line; `/dlq/retry` and `/dlq/purge` take a filter and answer
//! `{"count": N}`.

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
    /// Whether to send the contents of entries, too.
    pub(crate) whole: bool,
}

/// The number of affected entries.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) count: u64,
}

pub(super) fn router(dead_letters: Arc<DeadLetters>) -> Router {
    Router::new()
        .route("/dlq/read", post(read))
        .route("/dlq/retry", post(retry))
        .route("/dlq/purge", post(purge))
        .with_state(dead_letters)
}

/// Reads page by page, so that memory stays bounded for any number of entries and any speed of the client.
async fn read(State(dead_letters): State<Arc<DeadLetters>>, Json(reading): Json<Reading>) -> Response {
    let lines = stream::unfold(Some((dead_letters, reading, After::default())), |state| async {
        let (dead_letters, reading, mut after) = state?;
        let (page, state) = blocking(move || {
            let page = dead_letters.page(&reading.filter, &mut after, reading.whole);
            (page, (dead_letters, reading, after))
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

async fn retry(State(dead_letters): State<Arc<DeadLetters>>, Json(filter): Json<Filter>) -> Response {
    answer(blocking(move || dead_letters.retry(&filter, clock::epoch_seconds())).await)
}

async fn purge(State(dead_letters): State<Arc<DeadLetters>>, Json(filter): Json<Filter>) -> Response {
    answer(blocking(move || dead_letters.purge(&filter)).await)
}

fn answer(outcome: Result<u64, SqliteError>) -> Response {
    match outcome {
        Ok(count) => Json(Count { count }).into_response(),
        Err(error) => {
            (StatusCode::INTERNAL_SERVER_ERROR, Json(json!({"error": chain(&error)}))).into_response()
        }
    }
}
