//! What a move takes, before anything is done.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::copy::{joined, readers};
use super::{Move, ReshardError};
use crate::storage::shard::ShardExport;
use crate::storage::sqlite::SqliteError;

/// Rows that are copied and verified in a second, about, where the disk is not the bound.
const ROWS_PER_SECOND: u64 = 100_000;

/// Bytes that each new shard takes at least, and what a file system wants for itself.
const SHARD_BYTES: u64 = 256 << 10;
const RESERVE_BYTES: u64 = 16 << 20;

/// What a move takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Outlook {
    pub(crate) from: usize,
    pub(crate) to: usize,
    /// Rows of all topics.
    pub(crate) rows: u64,
    /// Bytes that the shards hold.
    pub(crate) used: u64,
    /// Bytes that the copy takes beside them, at most.
    pub(crate) needed: u64,
    /// Bytes that are free on the disk.
    pub(crate) free: u64,
    /// How long the pipeline stands still for it, about.
    pub(crate) seconds: u64,
}

pub(super) fn look(data: &Move<'_>) -> Result<Outlook, ReshardError> {
    let (rows, used) = sizes(&data.sources())?;
    let room = nix::sys::statvfs::statvfs(data.locked.path())
        .map_err(|error| data.io("look at the disk")(error.into()))?;
    let free = room.blocks_available() as u64 * room.fragment_size() as u64;
    // Pages of a new file are less full at first.
    let needed = used + used / 4 + data.to as u64 * SHARD_BYTES + RESERVE_BYTES;
    if needed > free {
        let path = data.locked.path().display().to_string();
        return Err(ReshardError::NoRoom { path, needed, free });
    }
    let seconds = rows.div_ceil(ROWS_PER_SECOND).max(1);
    Ok(Outlook { from: data.layout.shard_count, to: data.to, rows, used, needed, free, seconds })
}

/// The rows of all shards, and the bytes that they hold.
fn sizes(shards: &[PathBuf]) -> Result<(u64, u64), SqliteError> {
    let next = AtomicUsize::new(0);
    let look = || {
        let (mut rows, mut used) = (0, 0);
        while let Some(path) = shards.get(next.fetch_add(1, Ordering::Relaxed)) {
            let shard = ShardExport::open(path)?;
            rows += shard.row_count()?;
            used += shard.bytes_used()?;
        }
        Ok::<_, SqliteError>((rows, used))
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..readers(shards.len())).map(|_| scope.spawn(look)).collect();
        threads.into_iter().map(joined).try_fold((0, 0), |(rows, used), looked| {
            let (more_rows, more_used) = looked?;
            Ok((rows + more_rows, used + more_used))
        })
    })
}
