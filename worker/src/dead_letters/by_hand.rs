//! Looking into the queue by hand: what is in it, tried again, or thrown away. Filters are the same for all of it.

use base64::Engine as _;
use rusqlite::{Row, ToSql, named_params};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::DeadLetters;
use crate::results::event::{Position, ResultId};
use crate::storage::sqlite::SqliteError;

/// Entries that are read at a time.
pub(crate) const PAGE: usize = 100;

/// The entries that a user wants to see: every field that is set must hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Filter {
    /// Any of these; all if there is none.
    pub(crate) ids: Vec<String>,
    pub(crate) sink: Option<String>,
    pub(crate) join: Option<String>,
    /// As people write it: a text, or JSON.
    pub(crate) key: Option<String>,
    pub(crate) source: Option<String>,
    /// Part of the reason.
    pub(crate) reason: Option<String>,
    /// Put in before this time, in seconds since the epoch.
    pub(crate) before: Option<i64>,
    /// Results that are not tried again by themselves.
    pub(crate) given_up: bool,
}

/// An entry of the queue.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "kind")]
pub(crate) enum Entry {
    /// A result that a sink did not take.
    #[serde(rename_all = "camelCase")]
    Result {
        id: String,
        sink: String,
        join: String,
        key: Value,
        op: String,
        reason: String,
        /// Deliveries that have failed.
        attempts: u32,
        /// Seconds since the epoch, as all times here.
        stored_at: i64,
        /// When it is tried again; never by itself if there is no such time.
        retry_at: Option<i64>,
        timestamp: i64,
        #[serde(skip_serializing_if = "Option::is_none")]
        rows: Option<Value>,
    },
    /// A result that can't be evaluated, and stays as it was until its rows change.
    #[serde(rename_all = "camelCase")]
    Evaluation {
        id: String,
        join: String,
        key: Value,
        /// The topics that the join reads.
        topics: String,
        reason: String,
        stored_at: i64,
    },
    /// A message that a source could not read.
    #[serde(rename_all = "camelCase")]
    Message {
        id: String,
        source: String,
        position: String,
        reason: String,
        stored_at: i64,
        /// How it begins, if that is text.
        #[serde(skip_serializing_if = "Option::is_none")]
        body: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        body_base64: Option<String>,
    },
}

/// Where a page begins: behind this entry.
#[derive(Debug, Clone, Default)]
pub(crate) struct After {
    letter: (String, String, String),
    /// `None` until all results were seen.
    message: Option<i64>,
}

impl Filter {
    /// Whether it lets everything through.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn wants_results(&self) -> bool {
        self.source.is_none()
    }

    fn wants_messages(&self) -> bool {
        self.sink.is_none() && !self.given_up
    }
}

/// The ids of results among `ids`, each as lineage, epoch and number; and those of messages.
fn parse_ids(ids: &[String]) -> (String, String) {
    let results: Vec<&str> =
        ids.iter().map(String::as_str).filter(|id| ResultId::parse(id).is_some()).collect();
    let messages: Vec<i64> = ids.iter().filter_map(|id| id.strip_prefix("message-")?.parse().ok()).collect();
    let json = |value: Value| value.to_string();
    (json(Value::from(results)), json(Value::from(messages)))
}

/// The condition on results; its parameters are those of [`DeadLetters::with_filter`].
const RESULTS: &str = "
    (:any_id OR lineage || '.' || epoch || '.' || n IN (SELECT value FROM json_each(:result_ids)))
    AND (:sink IS NULL OR sink = :sink) AND (:join IS NULL OR join_name = :join)
    AND (:key IS NULL OR key IN (:key, :key_text)) AND (:reason IS NULL OR instr(reason, :reason) > 0)
    AND (:before IS NULL OR stored_at < :before) AND (NOT :given_up OR retry_at IS NULL)
    AND :source IS NULL AND :message_ids IS NOT NULL";

/// The condition on messages, and on results that can't be evaluated.
const MESSAGES: &str = "
    (:any_id OR id IN (SELECT value FROM json_each(:message_ids)))
    AND (:source IS NULL OR result_key IS NULL AND source = :source)
    AND (:join IS NULL OR result_key IS NOT NULL AND source = :join)
    AND (:key IS NULL OR result_key IN (:key, :key_text)) AND (:reason IS NULL OR instr(reason, :reason) > 0)
    AND (:before IS NULL OR stored_at < :before) AND :sink IS NULL AND NOT :given_up
    AND :result_ids IS NOT NULL";

impl DeadLetters {
    /// The next entries behind `after`, which it moves; none at the end. With `whole`, they have their contents.
    pub(crate) fn page(
        &self,
        filter: &Filter,
        after: &mut After,
        whole: bool,
    ) -> Result<Vec<Entry>, SqliteError> {
        let mut entries = Vec::new();
        if after.message.is_none() {
            if filter.wants_results() {
                entries = self.results_after(filter, after, whole)?;
            }
            if entries.is_empty() {
                after.message = Some(0);
            }
        }
        if let (Some(message), true) = (after.message, filter.wants_messages()) {
            entries = self.messages_after(filter, message, after, whole)?;
        }
        Ok(entries)
    }

    fn results_after(
        &self,
        filter: &Filter,
        after: &mut After,
        whole: bool,
    ) -> Result<Vec<Entry>, SqliteError> {
        let sql = format!(
            "SELECT lineage, epoch, n, sink, join_name, key, op, reason, attempts, stored_at, retry_at, timestamp, rows
             FROM letters WHERE (sink, join_name, key) > (:after_sink, :after_join, :after_key) AND {RESULTS}
             ORDER BY sink, join_name, key LIMIT {PAGE}"
        );
        let (sink, join, key) = after.letter.clone();
        let place: [(&str, &dyn ToSql); 3] =
            [(":after_sink", &sink), (":after_join", &join), (":after_key", &key)];
        self.doing("read dead letters", |connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            with_filter(filter, &place, |parameters| {
                let mut rows = statement.query(parameters)?;
                let mut entries = Vec::new();
                while let Some(row) = rows.next()? {
                    after.letter = (row.get(3)?, row.get(4)?, row.get(5)?);
                    entries.push(read_result(row, whole)?);
                }
                Ok(entries)
            })
        })
    }

    fn messages_after(
        &self,
        filter: &Filter,
        message: i64,
        after: &mut After,
        whole: bool,
    ) -> Result<Vec<Entry>, SqliteError> {
        let sql = format!(
            "SELECT id, source, position, reason, stored_at, body, result_key FROM rejected
             WHERE id > :after_message AND {MESSAGES} ORDER BY id LIMIT {PAGE}"
        );
        self.doing("read rejected messages", |connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            with_filter(filter, &[(":after_message", &message)], |parameters| {
                let mut rows = statement.query(parameters)?;
                let mut entries = Vec::new();
                while let Some(row) = rows.next()? {
                    after.message = Some(row.get(0)?);
                    entries.push(read_message(row, whole)?);
                }
                Ok(entries)
            })
        })
    }

    /// Lets results be tried at once, as if for the first time. Returns how many.
    pub(crate) fn retry(&self, filter: &Filter, now: i64) -> Result<u64, SqliteError> {
        if !filter.wants_results() {
            return Ok(0);
        }
        let sql = format!("UPDATE letters SET retry_at = :now, attempts = 0 WHERE {RESULTS}");
        let count = self.doing("retry dead letters", |connection| {
            with_filter(filter, &[(":now", &now)], |parameters| connection.execute(&sql, parameters))
        })?;
        self.intervened();
        Ok(count as u64)
    }

    /// Lets all results be tried at once, unless that was done for this nonce. Returns how many.
    pub(crate) fn retry_once(&self, nonce: &str, now: i64) -> Result<u64, SqliteError> {
        let count = self.doing("retry dead letters once", |connection| {
            let transaction = connection.transaction()?;
            let done =
                transaction.query_row("SELECT count(*) FROM retried WHERE nonce = ?1", [nonce], |row| {
                    row.get::<_, i64>(0)
                })?;
            if done > 0 {
                return Ok(0);
            }
            transaction.execute("DELETE FROM retried", [])?;
            transaction.execute("INSERT INTO retried (nonce) VALUES (?1)", [nonce])?;
            let count = transaction.execute("UPDATE letters SET retry_at = ?1, attempts = 0", [now])?;
            transaction.commit()?;
            Ok(count)
        })?;
        self.intervened();
        Ok(count as u64)
    }

    /// Throws results and messages away. Returns how many.
    pub(crate) fn purge(&self, filter: &Filter) -> Result<u64, SqliteError> {
        let count = self.doing("purge dead letters", |connection| {
            let transaction = connection.transaction()?;
            let mut count = 0;
            for (table, condition, wanted) in [
                ("letters", RESULTS, filter.wants_results()),
                ("rejected", MESSAGES, filter.wants_messages()),
            ] {
                if wanted {
                    let sql = format!("DELETE FROM {table} WHERE {condition}");
                    count += with_filter(filter, &[], |parameters| transaction.execute(&sql, parameters))?;
                }
            }
            transaction.commit()?;
            Ok(count)
        })?;
        self.intervened();
        Ok(count as u64)
    }
}

/// Binds a filter, and more parameters.
fn with_filter<T>(
    filter: &Filter,
    more: &[(&str, &dyn ToSql)],
    work: impl FnOnce(&[(&str, &dyn ToSql)]) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let (result_ids, message_ids) = parse_ids(&filter.ids);
    let key_text = filter.key.as_ref().map(|key| Value::from(key.as_str()).to_string());
    let any_id = filter.ids.is_empty();
    let parameters = named_params! {
        ":any_id": any_id,
        ":result_ids": result_ids,
        ":message_ids": message_ids,
        ":sink": filter.sink,
        ":join": filter.join,
        ":key": filter.key,
        ":key_text": key_text,
        ":source": filter.source,
        ":reason": filter.reason,
        ":before": filter.before,
        ":given_up": filter.given_up,
    };
    work(&[parameters, more].concat())
}

fn read_result(row: &Row<'_>, whole: bool) -> rusqlite::Result<Entry> {
    let lineage: String = row.get(0)?;
    let position = Position { epoch: row.get(1)?, n: row.get(2)? };
    let key: String = row.get(5)?;
    let rows: Option<String> = if whole { Some(row.get(12)?) } else { None };
    Ok(Entry::Result {
        id: ResultId { lineage: &lineage, position }.to_string(),
        sink: row.get(3)?,
        join: row.get(4)?,
        key: serde_json::from_str(&key).unwrap_or(Value::String(key)),
        op: row.get(6)?,
        reason: row.get(7)?,
        attempts: row.get(8)?,
        stored_at: row.get(9)?,
        retry_at: row.get(10)?,
        timestamp: row.get(11)?,
        rows: rows.map(|rows| serde_json::from_str(&rows).unwrap_or(Value::String(rows))),
    })
}

fn read_message(row: &Row<'_>, whole: bool) -> rusqlite::Result<Entry> {
    let id: i64 = row.get(0)?;
    if let Some(key) = row.get::<_, Option<String>>(6)? {
        return Ok(Entry::Evaluation {
            id: format!("message-{id}"),
            join: row.get(1)?,
            key: serde_json::from_str(&key).unwrap_or(Value::String(key)),
            topics: row.get(2)?,
            reason: row.get(3)?,
            stored_at: row.get(4)?,
        });
    }
    let body: Option<Vec<u8>> = if whole { row.get(5)? } else { None };
    let (body, body_base64) = match body.map(String::from_utf8) {
        None => (None, None),
        Some(Ok(text)) => (Some(text), None),
        Some(Err(error)) => (None, Some(base64::engine::general_purpose::STANDARD.encode(error.as_bytes()))),
    };
    Ok(Entry::Message {
        id: format!("message-{id}"),
        source: row.get(1)?,
        position: row.get(2)?,
        reason: row.get(3)?,
        stored_at: row.get(4)?,
        body,
        body_base64,
    })
}
