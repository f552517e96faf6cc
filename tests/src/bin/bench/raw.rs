//! The baseline ("raw"): the same rows into as many SQLite files, with one thread for each file.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rusqlite::Connection;

use crate::measured::Measured;
use crate::process;
use crate::row::Row;

/// Rows of one transaction, as in LiteJoin.
const BATCH_ROWS: usize = 1_000;

/// Measures the time to write `rows` of `topics` into new files in `dir`.
pub(crate) fn measure(dir: &Path, shard_count: usize, topics: &[&str], rows: &[Row]) -> Result<Measured> {
    let mut shards: Vec<Vec<&Row>> = vec![Vec::new(); shard_count];
    for row in rows {
        shards[shard_index(&row.key, shard_count)].push(row);
    }
    let start = Barrier::new(shard_count + 1);
    std::thread::scope(|scope| {
        let writers: Vec<_> = shards
            .iter()
            .enumerate()
            .map(|(index, rows)| {
                let (path, start) = (shard_path(dir, index), &start);
                scope.spawn(move || {
                    let connection = create(&path, topics);
                    start.wait();
                    write_shard(&mut connection?, topics, rows).with_context(|| path.display().to_string())
                })
            })
            .collect();
        start.wait();
        let started = Instant::now();
        let mut cpu = Duration::ZERO;
        for writer in writers {
            cpu += writer.join().expect("a writer does not panic")?;
        }
        Ok(Measured {
            changes: rows.len(),
            took: started.elapsed(),
            cpu,
            client_cpu: Duration::ZERO,
            memory: None,
            others_cores: 0.0,
        })
    })
}

/// Returns the number of keys of a topic in the shard files of `dir`.
pub(crate) fn count(dir: &Path, shard_count: usize, topic: &str) -> Result<u64> {
    (0..shard_count)
        .map(|index| {
            let connection = open(&shard_path(dir, index))?;
            Ok(connection
                .query_row(&format!("SELECT count(*) FROM {topic}"), [], |row| row.get::<_, u64>(0))?)
        })
        .sum()
}

fn shard_path(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("shard_{index}.db"))
}

#[expect(clippy::disallowed_methods, reason = "raw SQLite is what the worker's way is measured against")]
fn open(path: &Path) -> Result<Connection> {
    Connection::open(path).with_context(|| format!("could not open {}", path.display()))
}

fn create(path: &Path, topics: &[&str]) -> Result<Connection> {
    let connection = open(path)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.execute_batch("PRAGMA synchronous = NORMAL")?;
    for topic in topics {
        connection.execute_batch(&format!(
            "CREATE TABLE {topic} (key TEXT PRIMARY KEY, payload TEXT, timestamp INTEGER)"
        ))?;
    }
    Ok(connection)
}

fn write_shard(connection: &mut Connection, topics: &[&str], rows: &[&Row]) -> Result<Duration> {
    let before = process::thread_cpu_time()?;
    for batch in rows.chunks(BATCH_ROWS) {
        let transaction = connection.transaction()?;
        {
            let mut upserts = BTreeMap::new();
            let mut deletes = BTreeMap::new();
            for topic in topics {
                let upsert = format!(
                    "INSERT INTO {topic} (key, payload, timestamp) VALUES (?1, ?2, ?3)
                     ON CONFLICT (key) DO UPDATE SET payload = excluded.payload, timestamp = excluded.timestamp"
                );
                upserts.insert(*topic, transaction.prepare_cached(&upsert)?);
                let delete = format!("DELETE FROM {topic} WHERE key = ?1");
                deletes.insert(*topic, transaction.prepare_cached(&delete)?);
            }
            for row in batch {
                let statements = if row.payload.is_some() { &mut upserts } else { &mut deletes };
                let statement = statements.get_mut(row.topic).context("a row of no topic")?;
                match &row.payload {
                    Some(payload) => statement.execute((&row.key, payload, 1_700_000_000))?,
                    None => statement.execute([&row.key])?,
                };
            }
        }
        transaction.commit()?;
    }
    Ok(process::thread_cpu_time()? - before)
}

/// Returns the folded FNV-1a hash, so that rows are distributed as in LiteJoin.
fn shard_index(key: &str, shard_count: usize) -> usize {
    use std::hash::Hasher;
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(key.as_bytes());
    let hash = hasher.finish();
    usize::try_from((hash ^ (hash >> 15) ^ (hash >> 32)) % shard_count as u64).expect("a small number")
}
