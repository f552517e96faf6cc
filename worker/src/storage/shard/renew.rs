//! Rows that their source still has, although no message brings them: they are as old as the source's last word of them.

use rusqlite::params;

use super::{Pending, Shard};
use crate::storage::message::Message;
use crate::storage::sqlite::{SqliteError, quoted};
use crate::storage::topics::{TopicId, Topics};

/// Rows that one transaction renews at most, so that no message waits for long.
const ROWS_MAX: usize = 500;

impl Shard {
    /// Opens a transaction and gives rows of a topic the timestamp `now`, as a message with their payload would. Returns
    /// whether there may be more of them.
    pub(crate) fn renew(
        &mut self,
        topic: TopicId,
        topics: &Topics,
        now: i64,
    ) -> Result<(Pending, bool), SqliteError> {
        let refresh_after = topics.refresh_after(topic);
        let mut has_more = false;
        let pending = self.in_transaction("renew rows", |shard, pending| {
            if !shard.tables.contains_key(&topic) {
                return Ok(());
            }
            let table = quoted(&topics.name(topic));
            let sql = format!("SELECT key, payload FROM {table} WHERE timestamp <= ?1 LIMIT ?2");
            let message = |row: &rusqlite::Row<'_>| {
                let (key, payload) = (row.get(0)?, row.get(1)?);
                Ok(Message { topic, key, payload, timestamp: None, headers: None, source_offset: 0 })
            };
            let due: Vec<Message> = shard
                .connection
                .prepare_cached(&sql)?
                .query_map(params![now - refresh_after, ROWS_MAX], message)?
                .collect::<rusqlite::Result<_>>()?;
            has_more = due.len() == ROWS_MAX;
            if !due.is_empty() {
                shard.apply(&due.iter().collect::<Vec<_>>(), (now, refresh_after), pending)?;
                // These are no messages.
                pending.counts.clear();
            }
            Ok(())
        })?;
        Ok((pending, has_more))
    }
}
