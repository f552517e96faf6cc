//! The measure of all things: the same rows into as many SQLite files, one thread each, with nothing around it.

use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rusqlite::Connection;

use crate::process;
use crate::workload::{Row, Topic};

/// Rows of one transaction, as LiteJoin has them.
const BATCH_ROWS: usize = 1_000;

/// Writes `rows` into new files in `dir`. Returns how long it took, and the CPU time of the writers.
pub(crate) fn write(dir: &Path, shard_count: usize, rows: &[Row]) -> Result<(Duration, Duration)> {
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
                    let connection = create(&path);
                    start.wait();
                    write_shard(&mut connection?, rows).with_context(|| path.display().to_string())
                })
            })
            .collect();
        start.wait();
        let started = Instant::now();
        let mut cpu = Duration::ZERO;
        for writer in writers {
            cpu += writer.join().expect("a writer does not panic")?;
        }
        Ok((started.elapsed(), cpu))
    })
}

/// Counts the orders in the shard files of `dir`.
pub(crate) fn count_orders(dir: &Path, shard_count: usize) -> Result<u64> {
    (0..shard_count)
        .map(|index| {
            let connection = open(&shard_path(dir, index))?;
            Ok(connection.query_row("SELECT count(*) FROM orders", [], |row| row.get::<_, u64>(0))?)
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

fn create(path: &Path) -> Result<Connection> {
    let connection = open(path)?;
    connection.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(()))?;
    connection.execute_batch("PRAGMA synchronous = NORMAL")?;
    for topic in [Topic::Customers, Topic::Orders] {
        let name = topic.name();
        connection.execute_batch(&format!(
            "CREATE TABLE {name} (key TEXT PRIMARY KEY, payload TEXT, timestamp INTEGER)"
        ))?;
    }
    Ok(connection)
}

fn write_shard(connection: &mut Connection, rows: &[&Row]) -> Result<Duration> {
    let before = process::thread_cpu_time()?;
    let upsert = |topic: Topic| {
        format!(
            "INSERT INTO {} (key, payload, timestamp) VALUES (?1, ?2, ?3)
             ON CONFLICT (key) DO UPDATE SET payload = excluded.payload, timestamp = excluded.timestamp",
            topic.name()
        )
    };
    for batch in rows.chunks(BATCH_ROWS) {
        let transaction = connection.transaction()?;
        {
            let mut customers = transaction.prepare_cached(&upsert(Topic::Customers))?;
            let mut orders = transaction.prepare_cached(&upsert(Topic::Orders))?;
            for row in batch {
                let statement = match row.topic {
                    Topic::Customers => &mut customers,
                    Topic::Orders => &mut orders,
                };
                statement.execute((&row.key, &row.payload, 1_700_000_000))?;
            }
        }
        transaction.commit()?;
    }
    Ok(process::thread_cpu_time()? - before)
}

/// FNV-1a, folded: the rows spread as they do in LiteJoin.
fn shard_index(key: &str, shard_count: usize) -> usize {
    use std::hash::Hasher;
    let mut hasher = fnv::FnvHasher::default();
    hasher.write(key.as_bytes());
    let hash = hasher.finish();
    usize::try_from((hash ^ (hash >> 15) ^ (hash >> 32)) % shard_count as u64).expect("a small number")
}
