//! The indexes for joins in a data directory. Read-only, also beside a running worker.

use std::collections::BTreeMap;
use std::path::Path;

use litejoin_crds::plan::Plan;

use super::Built;
use crate::storage::layout::{self, LayoutError};
use crate::storage::sqlite::{self, SqliteError};

/// LiteJoin's indexes in all shards.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// Entries and bytes by the name of the index.
    pub(super) indexes: BTreeMap<String, Built>,
}

/// Why a data directory could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    File(#[from] SqliteError),
}

/// Returns the indexes in the shards of the pipeline in `data_dir`. Reads every page of the indexes.
pub(crate) fn look(data_dir: &Path, plan: &Plan) -> Result<Disk, DiskError> {
    let mut disk = Disk::default();
    let shard_count = plan.storage.shard_count_for(layout::shard_count(data_dir)?);
    for path in layout::shard_paths(data_dir, shard_count, &plan.identity)? {
        for (name, entries, bytes) in indexes(&path)? {
            let built = disk.indexes.entry(name).or_default();
            built.built_in += 1;
            built.entries += entries;
            built.bytes += bytes;
        }
    }
    Ok(disk)
}

fn indexes(path: &Path) -> Result<Vec<(String, u64, u64)>, SqliteError> {
    let connection = sqlite::open_read_only(path)?;
    let read = || -> rusqlite::Result<Vec<(String, u64, u64)>> {
        let mut names = connection.prepare(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name LIKE '\\_by\\_%' ESCAPE '\\' ORDER BY name",
        )?;
        // In a tree without rowids every cell is an entry.
        let mut size =
            connection.prepare("SELECT ncell, pgsize FROM dbstat WHERE name = ?1 AND aggregate = TRUE")?;
        let names: Vec<String> = names.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
        names
            .into_iter()
            .map(|name| {
                let (entries, bytes) = size.query_row([&name], |row| Ok((row.get(0)?, row.get(1)?)))?;
                Ok((name, entries, bytes))
            })
            .collect()
    };
    read().map_err(|source| SqliteError::new(path, "read its indexes", source))
}
