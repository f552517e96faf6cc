//! Results in a topic of ours, the feed of a join or window, for other joins and windows that read it as a topic. A row
//! of a result is a row of the topic:
//!
//! ```text
//! result ["2026-01-01T00:00:00Z",7] with the rows a and b
//!   ─► key ["2026-01-01T00:00:00Z",7]     payload a, with "_rows":2 behind its columns
//!      key ["2026-01-01T00:00:00Z",7]#1   payload b, with "_rows":2 behind its columns
//! ```
//! The count says which rows have to go when a result has fewer of them. A call is one batch, whose parts may be stored
//! one without another; so until all are, the greater count is remembered. After a start, rows that the present results
//! do not have are removed first: the process may have died in the middle of a batch, or the results may be others.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use litejoin_crds::error::chain;
use rusqlite::OptionalExtension;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::routes::Routes;
use super::{Delivery, Outcome, Outcomes, Preparation, Sink};
use crate::blocking::blocking;
use crate::results::Reader;
use crate::results::event::JoinId;
use crate::storage::hash::shard_index;
use crate::storage::ingest::Ingest;
use crate::storage::log::ShardReader;
use crate::storage::message::{Message, MessageError, check_key, check_payload};
use crate::storage::sqlite::{SqliteError, quoted};
use crate::storage::topics::TopicId;

/// Rows that are removed together.
const REMOVED_AT_ONCE: usize = 1_000;

/// Wait after shards that could not be written.
const RETRY: Duration = Duration::from_secs(1);

/// The field that stands behind the columns of a row.
const ROWS: &str = ",\"_rows\":";

/// Writes to one topic.
pub(crate) struct TopicSink {
    topic: TopicId,
    ingest: Ingest,
    reader: Arc<Reader>,
    /// The name of the topic, under which its event times count.
    partition: Arc<str>,
    shards: Arc<Mutex<Vec<ShardReader>>>,
    /// The join or window whose rows the topic has, once rows of others are gone.
    prepared: Option<JoinId>,
    /// By result key, the most rows that may be there; of results whose last batch may be stored in part.
    doubtful: HashMap<String, usize>,
}

/// A result, as far as the topic holds it.
#[derive(Deserialize)]
struct ResultRows<'j> {
    #[serde(borrow)]
    rows: Vec<&'j RawValue>,
}

/// A result with its rows, each an object with their count; or what is wrong with one of them.
struct FedResult {
    key: String,
    rows: Result<Vec<String>, String>,
}

impl TopicSink {
    /// Opens the shards, in which the topic has its tables already.
    pub(crate) fn open(
        topic_name: &str,
        ingest: Ingest,
        reader: Arc<Reader>,
        shard_paths: &[PathBuf],
    ) -> Result<Self, SqliteError> {
        let shards = shard_paths.iter().map(|path| ShardReader::open(path)).collect::<Result<_, _>>()?;
        Ok(Self {
            topic: ingest.topics.declare(topic_name),
            ingest,
            reader,
            partition: topic_name.into(),
            shards: Arc::new(Mutex::new(shards)),
            prepared: None,
            doubtful: HashMap::new(),
        })
    }

    /// Runs work that reads the shards.
    async fn reading<T: Send + 'static>(
        &self,
        work: impl FnOnce(&[ShardReader]) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T, String> {
        let shards = Arc::clone(&self.shards);
        let outcome = blocking(move || work(&shards.lock().unwrap_or_else(PoisonError::into_inner))).await;
        outcome.map_err(|error| chain(&error).to_string())
    }

    /// Removes the rows that the present results do not have.
    async fn settle(&mut self, join: JoinId) -> Result<(), String> {
        let (reader, topic_name) = (Arc::clone(&self.reader), Arc::clone(&self.partition));
        let gone = self.reading(move |shards| {
            let mut gone = Vec::new();
            for shard in shards {
                keys(shard, &topic_name, |key| {
                    let (result_key, number) = place_of(key);
                    if reader.row_count(join, result_key)? <= number {
                        gone.push(key.to_owned());
                    }
                    Ok(())
                })?;
            }
            Ok(gone)
        });
        for keys in gone.await?.chunks(REMOVED_AT_ONCE) {
            self.write(keys.iter().map(|key| (key.clone(), None)).collect()).await?;
        }
        Ok(())
    }

    /// Feeds results, and returns the outcome of each; an error means that none of them is surely there.
    async fn feed(&mut self, results: Vec<FedResult>) -> Result<Vec<Outcome>, String> {
        let keys: Vec<String> = results.iter().map(|result| result.key.clone()).collect();
        let topic_name = Arc::clone(&self.partition);
        let counts = self.reading(move |shards| {
            keys.iter().map(|key| present_rows(shards, &topic_name, key)).collect::<Result<Vec<_>, _>>()
        });
        let counts = counts.await?;
        let mut changes = Vec::new();
        let mut outcomes = Vec::with_capacity(results.len());
        let mut taken = Vec::with_capacity(results.len());
        for (FedResult { key, rows }, before) in results.into_iter().zip(counts) {
            let rows = match rows {
                Ok(rows) => rows,
                Err(problem) => {
                    outcomes.push(Outcome::Refused(problem));
                    continue;
                }
            };
            let before = self.doubtful.get(&key).map_or(before, |doubtful| before.max(*doubtful));
            self.doubtful.insert(key.clone(), before.max(rows.len()));
            let count = rows.len();
            let present = rows.into_iter().map(Some).enumerate();
            let gone = (count..before).map(|number| (number, None));
            changes.extend(present.chain(gone).map(|(number, row)| (key_of(&key, number), row)));
            outcomes.push(Outcome::Delivered);
            taken.push(key);
        }
        self.write(changes).await?;
        for key in taken {
            self.doubtful.remove(&key);
        }
        Ok(outcomes)
    }

    /// Writes rows by their keys; `None` removes one.
    async fn write(&self, changes: Vec<(String, Option<String>)>) -> Result<(), String> {
        let bytes = changes.iter().map(|(key, row)| key.len() + row.as_ref().map_or(0, String::len)).sum();
        let mut batch = self.ingest.batch();
        for (key, row) in changes {
            batch.push(Message {
                topic: self.topic,
                key: key.into(),
                payload: row.map(Into::into),
                timestamp: None,
                headers: None,
                source_offset: 0,
            });
        }
        let _room = self.ingest.room(bytes).await;
        let outcome = self.ingest.write(batch, &self.partition).await;
        match outcome.shards.into_iter().flatten().find_map(Result::err) {
            Some(error) => Err(format!("could not write into {}: {error}", self.partition)),
            None => Ok(()),
        }
    }
}

impl Sink for TopicSink {
    fn prepare<'a>(&'a mut self, routes: &'a Routes) -> Preparation<'a> {
        Box::pin(async move {
            let join = *routes.joins().first().expect("a feed has the rows of one join or window");
            if self.prepared != Some(join) {
                self.settle(join).await?;
                self.prepared = Some(join);
            }
            Ok(())
        })
    }

    fn deliver<'a>(&'a mut self, results: &'a [Delivery]) -> Outcomes<'a> {
        Box::pin(async move {
            let fed = self.feed(results.iter().map(FedResult::of).collect()).await;
            // The shards are ours and come back, so no result has to be a dead letter meanwhile.
            fed.unwrap_or_else(|problem| vec![Outcome::Later(problem, RETRY); results.len()])
        })
    }
}

impl FedResult {
    fn of(result: &Delivery) -> Self {
        let rows = rows_of(&result.json).and_then(|rows| {
            let last = key_of(&result.key, rows.len().saturating_sub(1));
            let fits = || -> Result<(), MessageError> {
                check_key(&last)?;
                rows.iter().try_for_each(|row| check_payload(row))
            };
            fits().map_err(|problem| format!("its rows can't be read by others: {problem}"))?;
            Ok(rows)
        });
        Self { key: result.key.clone(), rows }
    }
}

/// Returns the rows of a result as they stand in the topic.
fn rows_of(json: &str) -> Result<Vec<String>, String> {
    let written: ResultRows<'_> =
        serde_json::from_str(json).map_err(|error| format!("its rows can't be read: {error}"))?;
    let count = written.rows.len();
    let with_count = |row: &&RawValue| {
        let columns = row.get().strip_suffix('}').expect("a row is an object");
        format!("{columns}{ROWS}{count}}}")
    };
    Ok(written.rows.iter().map(with_count).collect())
}

/// Returns the key of a row of a result.
fn key_of(result_key: &str, number: usize) -> String {
    if number == 0 { result_key.to_owned() } else { format!("{result_key}#{number}") }
}

/// Returns the key of the result that a row belongs to, and the number of the row: behind JSON no `#` is part of it.
fn place_of(key: &str) -> (&str, usize) {
    let numbered = key.rsplit_once('#').and_then(|(key, number)| Some((key, number.parse().ok()?)));
    numbered.unwrap_or((key, 0))
}

/// Returns the number of rows that a result has in the topic.
fn present_rows(shards: &[ShardReader], topic_name: &str, result_key: &str) -> Result<usize, SqliteError> {
    let shard = &shards[shard_index(result_key, shards.len())];
    let failed = |source| SqliteError::new(shard.path(), "read a feed", source);
    let sql = format!("SELECT payload FROM {} WHERE key = ?1", quoted(topic_name));
    let mut statement = shard.prepare(&sql).map_err(failed)?;
    let payload: Option<String> =
        statement.query_row([result_key], |row| row.get(0)).optional().map_err(failed)?;
    Ok(payload.map_or(0, |payload| count_of(&payload).unwrap_or(1)))
}

/// Returns the number of rows of the result that a row belongs to.
fn count_of(payload: &str) -> Option<usize> {
    let (_, count) = payload.rsplit_once(ROWS)?;
    count.strip_suffix('}')?.parse().ok()
}

/// Calls `each` for the keys of a topic in a shard, in no order.
fn keys(
    shard: &ShardReader,
    topic_name: &str,
    mut each: impl FnMut(&str) -> Result<(), SqliteError>,
) -> Result<(), SqliteError> {
    let failed = |source| SqliteError::new(shard.path(), "read a feed", source);
    let mut statement = shard.prepare(&format!("SELECT key FROM {}", quoted(topic_name))).map_err(failed)?;
    let mut rows = statement.query([]).map_err(failed)?;
    while let Some(row) = rows.next().map_err(failed)? {
        let key: String = row.get(0).map_err(failed)?;
        each(&key)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
