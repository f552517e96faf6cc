//! How far the streams of sources are, read from the shard files beside their writers.

use std::collections::HashMap;
use std::path::PathBuf;

use super::sqlite::{self, SqliteError};

/// For each stream that any shard knows, the offset from which all shards have to see it.
pub(crate) fn stream_offsets(shard_paths: &[PathBuf]) -> Result<HashMap<String, u64>, SqliteError> {
    let mut offsets: HashMap<String, (usize, u64)> = HashMap::new();
    for path in shard_paths {
        let connection = sqlite::open_reader(path)?;
        let known = || -> rusqlite::Result<Vec<(String, u64)>> {
            let mut statement = connection.prepare("SELECT stream, next FROM _offsets")?;
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        };
        for (stream, next) in known().map_err(|source| SqliteError::new(path, "read the offsets", source))? {
            let (shards, least) = offsets.entry(stream).or_insert((0, u64::MAX));
            *shards += 1;
            *least = (*least).min(next);
        }
    }
    // A shard that does not know the stream has to see it from the start.
    let complete = |(shards, least)| if shards == shard_paths.len() { least } else { 0 };
    Ok(offsets.into_iter().map(|(stream, known)| (stream, complete(known))).collect())
}
