//! What api sources remember from poll to poll, in `sources.db`. It is worth nothing without the shards: where they have
//! lost the end of a poll, its mark does not count, and where the file is lost the next poll is a first one.

use std::collections::HashMap;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::pages::PageFacts;
use crate::source::state::States;
use crate::storage::sqlite::SqliteError;

/// Marks of one stream that are kept: shards lose a few polls at most.
const MARKS_KEPT: u64 = 100;

/// The state that a poll leaves to the next.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Mark {
    /// Polls have rising numbers; 0 is before the first.
    pub(super) number: u64,
    /// The timestamp or cursor; of a source with ETags the one that an earlier version has kept, of its first page.
    pub(super) watermark: Option<String>,
    /// Digests of records that were only noted, by their keys.
    pub(super) noted: Arc<HashMap<Box<str>, u64>>,
    /// ETags by the digests of the URLs of their pages.
    pub(super) tags: HashMap<u64, PageTag>,
}

/// The ETag of a page whose records are stored, and what the page says besides, which a 304 does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageTag {
    /// The poll that has read it; 0 for the one under way.
    pub(super) number: u64,
    pub(super) tag: String,
    pub(super) facts: PageFacts,
}

impl Mark {
    /// Whether no poll came before.
    pub(super) fn is_first(&self) -> bool {
        self.number == 0
    }
}

impl States {
    /// The mark of the last poll that every shard has stored; `stored` is the least of their places.
    pub(super) fn recall(&self, stream: &str, stored: u64) -> Result<Mark, SqliteError> {
        self.doing("read what sources remember", |connection| {
            let found = connection
                .query_row(
                    "SELECT number, watermark FROM marks WHERE stream = ?1 AND number < ?2
                     ORDER BY number DESC LIMIT 1",
                    params![stream, stored],
                    |row| Ok((row.get(0)?, row.get(1)?)),
                )
                .optional()?;
            let Some((number, watermark)) = found else { return Ok(Mark::default()) };
            let mut statement = connection.prepare("SELECT key, digest FROM noted WHERE stream = ?1")?;
            let rows = statement.query_map([stream], |row| {
                Ok((Box::from(row.get_ref(0)?.as_str()?), row.get::<_, i64>(1)?.cast_unsigned()))
            })?;
            let noted = Arc::new(rows.collect::<rusqlite::Result<_>>()?);
            Ok(Mark { number, watermark, noted, tags: page_tags(connection, stream, stored)? })
        })
    }

    /// Stores a mark, with records that are noted and others that are no longer; returns the mark with these.
    pub(super) fn remember(
        &self,
        stream: &str,
        mut mark: Mark,
        noted: Vec<(Box<str>, u64)>,
        forgotten: Vec<Box<str>>,
    ) -> Result<Mark, SqliteError> {
        self.doing("store what sources remember", |connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "INSERT OR REPLACE INTO marks (stream, number, watermark) VALUES (?1, ?2, ?3)",
                params![stream, mark.number, mark.watermark],
            )?;
            transaction.execute(
                "DELETE FROM marks WHERE stream = ?1 AND number <=
                     (SELECT number FROM marks WHERE stream = ?1 ORDER BY number DESC LIMIT 1 OFFSET ?2)",
                params![stream, MARKS_KEPT],
            )?;
            {
                let mut insert = transaction.prepare_cached(
                    "INSERT OR REPLACE INTO noted (stream, key, digest) VALUES (?1, ?2, ?3)",
                )?;
                for (key, digest) in noted {
                    insert.execute(params![stream, key, digest.cast_signed()])?;
                    Arc::make_mut(&mut mark.noted).insert(key, digest);
                }
                let mut delete =
                    transaction.prepare_cached("DELETE FROM noted WHERE stream = ?1 AND key = ?2")?;
                for key in forgotten {
                    delete.execute(params![stream, key])?;
                    Arc::make_mut(&mut mark.noted).remove(&key);
                }
                store_page_tags(&transaction, stream, &mut mark)?;
            }
            transaction.commit()?;
            Ok(mark)
        })
    }

    /// Notes no longer what some records were like.
    pub(super) fn forget(&self, stream: &str, keys: &[Box<str>]) -> Result<(), SqliteError> {
        self.doing("store what sources remember", |connection| {
            let transaction = connection.transaction()?;
            for key in keys {
                transaction
                    .prepare_cached("DELETE FROM noted WHERE stream = ?1 AND key = ?2")?
                    .execute(params![stream, key])?;
            }
            transaction.commit()
        })
    }

    /// Forgets the ETag of a page, also one that an earlier version has kept.
    pub(super) fn forget_tag(&self, stream: &str, page: u64) -> Result<(), SqliteError> {
        self.doing("store what sources remember", |connection| {
            let transaction = connection.transaction()?;
            let page = page.cast_signed();
            transaction
                .execute("DELETE FROM page_tags WHERE stream = ?1 AND page = ?2", params![stream, page])?;
            transaction.execute("UPDATE marks SET watermark = NULL WHERE stream = ?1", params![stream])?;
            transaction.commit()
        })
    }
}

/// The ETags of polls that every shard has stored; none if an earlier version, which knows none of pages, has polled since.
fn page_tags(connection: &Connection, stream: &str, stored: u64) -> rusqlite::Result<HashMap<u64, PageTag>> {
    let mut statement = connection.prepare(
        "SELECT page, number, tag, records, next, more, total FROM page_tags WHERE stream = ?1 AND number < ?2 AND
             (SELECT max(number) FROM page_tags WHERE stream = ?1) = (SELECT max(number) FROM marks WHERE stream = ?1)",
    )?;
    let rows = statement.query_map(params![stream, stored], |row| {
        let facts =
            PageFacts { records: row.get(3)?, next: row.get(4)?, more: row.get(5)?, total: row.get(6)? };
        Ok((row.get::<_, i64>(0)?.cast_unsigned(), PageTag { number: row.get(1)?, tag: row.get(2)?, facts }))
    })?;
    rows.collect()
}

/// Stores the ETags that are new with a mark, as those of its poll, and forgets all that it does not have.
fn store_page_tags(connection: &Connection, stream: &str, mark: &mut Mark) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached("SELECT page FROM page_tags WHERE stream = ?1")?;
    let stored = statement.query_map([stream], |row| row.get::<_, i64>(0))?;
    let stored: Vec<i64> = stored.collect::<rusqlite::Result<_>>()?;
    let mut delete = connection.prepare_cached("DELETE FROM page_tags WHERE stream = ?1 AND page = ?2")?;
    for page in stored.into_iter().filter(|page| !mark.tags.contains_key(&page.cast_unsigned())) {
        delete.execute(params![stream, page])?;
    }
    let mut insert = connection.prepare_cached(
        "INSERT OR REPLACE INTO page_tags (stream, page, number, tag, records, next, more, total)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for (page, new) in mark.tags.iter_mut().filter(|(_, tag)| tag.number == 0) {
        new.number = mark.number;
        let PageTag { number, tag, facts: PageFacts { records, next, more, total } } = &*new;
        insert.execute(params![stream, page.cast_signed(), number, tag, records, next, more, total])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use litejoin_crds::plan::Synchronous;

    use super::*;

    const STREAM: &str = "polled:1";

    fn states() -> (tempfile::TempDir, States) {
        let folder = tempfile::tempdir().unwrap();
        let states = States::new(folder.path(), Synchronous::Normal);
        (folder, states)
    }

    fn tag(tag: &str) -> PageTag {
        let facts = PageFacts { records: 2, next: Some("/2".to_owned()), more: Some(true), total: None };
        PageTag { number: 0, tag: tag.to_owned(), facts }
    }

    fn remember(states: &States, number: u64, tags: HashMap<u64, PageTag>) -> Mark {
        let mark = Mark { number, tags, ..Mark::default() };
        states.remember(STREAM, mark, Vec::new(), Vec::new()).unwrap()
    }

    #[test]
    fn tags_count_as_far_as_the_shards_go() {
        let (_folder, states) = states();
        let first = remember(&states, 5, HashMap::from([(1, tag("a")), (u64::MAX, tag("b"))]));
        assert_eq!(states.recall(STREAM, 6).unwrap(), first);
        let mut tags = first.tags.clone();
        tags.insert(1, tag("c"));
        let second = remember(&states, 7, tags);
        assert_eq!(states.recall(STREAM, 8).unwrap(), second);
        assert_eq!((second.tags[&1].number, second.tags[&u64::MAX].number), (7, 5));
        let behind = states.recall(STREAM, 7).unwrap();
        assert_eq!((behind.number, behind.tags.into_keys().collect::<Vec<_>>()), (5, vec![u64::MAX]));
        states.forget_tag(STREAM, u64::MAX).unwrap();
        assert_eq!(states.recall(STREAM, 8).unwrap().tags.into_keys().collect::<Vec<_>>(), [1]);
        remember(&states, 9, HashMap::from([(2, tag("d"))]));
        assert_eq!(states.recall(STREAM, 10).unwrap().tags.into_keys().collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn the_state_of_an_earlier_version_counts_and_takes_tags_back() {
        let (_folder, states) = states();
        remember(&states, 5, HashMap::from([(1, tag("a"))]));
        let earlier = |number: u64| {
            states.doing("write as an earlier version", |connection| {
                connection.execute(
                    "INSERT INTO marks (stream, number, watermark) VALUES (?1, ?2, '\"x\"')",
                    params![STREAM, number],
                )
            })
        };
        earlier(6).unwrap();
        let mark = states.recall(STREAM, 7).unwrap();
        assert_eq!((mark.watermark.as_deref(), mark.tags.len()), (Some("\"x\""), 0));
        states.forget_tag(STREAM, 1).unwrap();
        assert_eq!(states.recall(STREAM, 7).unwrap().watermark, None);
    }
}
