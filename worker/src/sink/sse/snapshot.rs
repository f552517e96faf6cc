//! `/snapshot`: the present results of one join, all as of one read transaction.
//!
//! A snapshot is read to its end before its first byte is sent, since a read transaction that is held for as long as a
//! client reads would keep the WAL of `results.db` from starting over. A small one waits in memory, a larger one in a
//! scratch file that has no name, so that a crash leaves nothing behind.
//!
//! | limit, for each sink | beyond it |
//! |---|---|
//! | 4 snapshots are read from `results.db` at once | the next one waits, then 503 |
//! | 4 GiB of snapshots that clients have not taken yet, in 64 files | 503 |
//! | 4 GiB for a single snapshot, or the room on the disk | 507 |

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use futures::stream;
use litejoin_crds::error::chain;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::numbers::Numbers;
use super::parameters::Parameters;
use super::{SseState, refusal, retry_later, unknown_join};
use crate::blocking::blocking;
use crate::results::Reader;
use crate::results::event::{Envelope, JoinId};
use crate::results::failing::Standing;
use crate::storage::sqlite::SqliteError;

/// How long a snapshot waits for the epoch that was asked for, and then for its turn to be read.
const TURN_WAIT: Duration = Duration::from_secs(10);

/// How long a snapshot waits for the replica.
const RELEASE_WAIT: Duration = Duration::from_secs(20);

/// Bytes that are written to a scratch file or sent in one piece; a snapshot of fewer bytes stays in memory.
const PIECE_BYTES: usize = 64 << 10;

/// Snapshots in scratch files are charged by blocks of this size, so the number of blocks bounds files too.
const BLOCK_BYTES: u64 = 64 << 20;
const BLOCKS_MAX: usize = 64;
const SPOOLED_GIB_MAX: u64 = (BLOCKS_MAX as u64 * BLOCK_BYTES) >> 30;

/// The snapshots of one sink.
pub(crate) struct Snapshots {
    reader: Arc<Reader>,
    /// Permits for read transactions.
    turns: Arc<Semaphore>,
    /// Permits for blocks of scratch files.
    blocks: Arc<Semaphore>,
    scratch_folder: PathBuf,
}

impl Snapshots {
    /// Connections that the reader needs.
    pub(crate) const CONNECTIONS: usize = 4;

    pub(crate) fn new(reader: Arc<Reader>, scratch_folder: PathBuf) -> Self {
        let turns = Arc::new(Semaphore::new(Self::CONNECTIONS));
        Self { reader, turns, blocks: Arc::new(Semaphore::new(BLOCKS_MAX)), scratch_folder }
    }
}

/// What a client asks for.
struct SnapshotQuery {
    join: Option<String>,
    key: Option<String>,
    min_epoch: Option<u64>,
    numbers: Numbers,
}

impl SnapshotQuery {
    fn read(uri: &Uri) -> Result<Self, String> {
        let mut parameters = Parameters::read(uri, &["join", "key", "minEpoch", "numbers"])?;
        Ok(Self {
            join: parameters.text("join"),
            key: parameters.text("key"),
            min_epoch: parameters
                .parsed("minEpoch", "the epoch of an answer to POST /ingest", |text| text.parse().ok())?,
            numbers: Numbers::of(&mut parameters)?,
        })
    }
}

/// Answers `GET /snapshot`.
pub(super) async fn answer(State(state): State<Arc<SseState>>, uri: Uri) -> Response {
    let query = match SnapshotQuery::read(&uri) {
        Ok(query) => query,
        Err(problem) => return refusal(StatusCode::BAD_REQUEST, &problem),
    };
    let routes = state.routes();
    let join = match (&query.join, routes.joins()) {
        (Some(wanted), _) => match routes.named(wanted) {
            Some(join) => join,
            None => return unknown_join(&routes, wanted),
        },
        (None, [join]) => *join,
        (None, _) => {
            let message = format!("say which join: ?join= one of {}", routes.names().join(", "));
            return refusal(StatusCode::BAD_REQUEST, &message);
        }
    };
    if let Some(min_epoch) = query.min_epoch {
        let mut applied = state.applied.clone();
        let reached = applied.wait_for(|applied| applied.epoch >= min_epoch);
        if !matches!(tokio::time::timeout(TURN_WAIT, reached).await, Ok(Ok(_))) {
            let message = format!(
                "epoch {min_epoch} was not applied within {} seconds; the last one is {}",
                TURN_WAIT.as_secs(),
                state.applied.borrow().epoch
            );
            return retry_later(StatusCode::SERVICE_UNAVAILABLE, &message);
        }
    }
    let turn = tokio::time::timeout(TURN_WAIT, Arc::clone(&state.snapshots.turns).acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        return retry_later(StatusCode::SERVICE_UNAVAILABLE, "too many snapshots at once");
    };
    let shared = Arc::clone(&state);
    let envelope = routes.envelope(join).expect("it was looked up in these routes").clone();
    let read = blocking(move || {
        let read = read(&shared, join, &envelope, &query);
        drop(turn);
        read
    });
    let spooled = match read.await {
        Ok(spooled) => spooled,
        Err(error) => return error.answer(),
    };
    // The reading is over, so a sync round from here on has all of it.
    if !state.release.wait_for_all(RELEASE_WAIT).await {
        let message = "its results are not in the replica yet (delivery.after: replicated); ask again";
        return retry_later(StatusCode::SERVICE_UNAVAILABLE, message);
    }
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::CONTENT_LENGTH, spooled.bytes().to_string()),
    ];
    (headers, spooled.into_body()).into_response()
}

/// Reads a snapshot; the read transaction ends with it.
fn read(
    state: &SseState,
    join: JoinId,
    envelope: &Envelope,
    query: &SnapshotQuery,
) -> Result<Spooled, SnapshotError> {
    let known_epoch = state.applied.borrow().epoch;
    let name = serde_json::to_string(&envelope.join_name).expect("a string is always JSON");
    let spool = RefCell::new(Spool::new(&state.snapshots));
    let mut separator: &[u8] = b"";
    state.snapshots.reader.snapshot::<SnapshotError>(
        join,
        query.key.as_deref(),
        |standing| {
            // A join that fails has not reached the epoch that the others have.
            let epoch = if standing.has_failed { standing.epoch } else { known_epoch };
            if query.min_epoch.is_some_and(|wanted| epoch < wanted) {
                return Err(SnapshotError::Behind { join: envelope.join_name.clone(), epoch });
            }
            let failing = failing_json(standing);
            let head = format!("{{\"join\":{name},\"epoch\":{epoch}{failing},\"results\":[");
            spool.borrow_mut().push(head.as_bytes())
        },
        |event, is_stale| {
            let mut spool = spool.borrow_mut();
            spool.push(std::mem::replace(&mut separator, b","))?;
            let mut json = query.numbers.applied(envelope.json(&event, false));
            if is_stale {
                json.truncate(json.len() - 1);
                json.push_str(",\"stale\":true}");
            }
            spool.push(json.as_bytes())
        },
    )?;
    let mut spool = spool.into_inner();
    spool.push(b"]}")?;
    spool.end()
}

/// The most failing keys that a snapshot names.
const FAILING_SHOWN_MAX: usize = 100;

/// The field that names results which can't be evaluated, among them those that never could be; none where all can.
fn failing_json(standing: &Standing) -> String {
    if standing.failing.is_empty() {
        return String::new();
    }
    let shown = standing.failing.iter().take(FAILING_SHOWN_MAX).map(|(key, error)| {
        let error = serde_json::to_string(error).expect("a string is always JSON");
        format!("{{\"key\":{key},\"error\":{error}}}")
    });
    let keys = shown.collect::<Vec<_>>().join(",");
    format!(",\"failing\":{{\"count\":{},\"keys\":[{keys}]}}", standing.failing.len())
}

/// Why there is no snapshot.
#[derive(Debug, thiserror::Error)]
enum SnapshotError {
    #[error(transparent)]
    Results(#[from] SqliteError),
    #[error(
        "join {join} fails, and its results follow from epoch {epoch}; /status says why. Ask without minEpoch for these"
    )]
    Behind { join: String, epoch: u64 },
    #[error("could not keep the snapshot in a file without a name in {}: {source}", .folder.display())]
    Scratch { folder: PathBuf, source: io::Error },
    #[error(
        "the snapshot is larger than {} GiB; ask for single results with key=, or read all of them by \
             /subscribe?join=NAME&replay=true",
        SPOOLED_GIB_MAX
    )]
    TooLarge,
    #[error(
        "snapshots that other clients have not read yet take up the {} GiB that are kept of them; ask again",
        SPOOLED_GIB_MAX
    )]
    NoRoom,
}

impl SnapshotError {
    fn answer(&self) -> Response {
        let message = chain(self).to_string();
        match self {
            Self::Scratch { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                refusal(StatusCode::INSUFFICIENT_STORAGE, &message)
            }
            Self::TooLarge => refusal(StatusCode::INSUFFICIENT_STORAGE, &message),
            Self::Behind { .. } | Self::NoRoom => retry_later(StatusCode::SERVICE_UNAVAILABLE, &message),
            Self::Results(_) | Self::Scratch { .. } => refusal(StatusCode::INTERNAL_SERVER_ERROR, &message),
        }
    }
}

/// A snapshot that is being read.
struct Spool<'a> {
    folder: &'a Path,
    blocks: &'a Arc<Semaphore>,
    /// Bytes that are not in the file.
    piece: Vec<u8>,
    file: Option<ScratchFile>,
}

/// A file without a name.
struct ScratchFile {
    file: File,
    bytes: u64,
    blocks: Vec<OwnedSemaphorePermit>,
}

impl<'a> Spool<'a> {
    fn new(snapshots: &'a Snapshots) -> Self {
        Self { folder: &snapshots.scratch_folder, blocks: &snapshots.blocks, piece: Vec::new(), file: None }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        self.piece.extend_from_slice(bytes);
        if self.piece.len() < PIECE_BYTES { Ok(()) } else { self.write_piece() }
    }

    fn write_piece(&mut self) -> Result<(), SnapshotError> {
        let scratch = |source| SnapshotError::Scratch { folder: self.folder.to_owned(), source };
        if self.file.is_none() {
            let file = tempfile::tempfile_in(self.folder).map_err(scratch)?;
            self.file = Some(ScratchFile { file, bytes: 0, blocks: Vec::new() });
        }
        let file = self.file.as_mut().expect("just made");
        file.bytes += self.piece.len() as u64;
        while file.blocks.len() as u64 * BLOCK_BYTES < file.bytes {
            let block = Arc::clone(self.blocks).try_acquire_owned();
            let is_alone = file.blocks.len() == BLOCKS_MAX;
            let error = if is_alone { SnapshotError::TooLarge } else { SnapshotError::NoRoom };
            file.blocks.push(block.map_err(|_| error)?);
        }
        file.file.write_all(&self.piece).map_err(scratch)?;
        self.piece.clear();
        Ok(())
    }

    fn end(mut self) -> Result<Spooled, SnapshotError> {
        if self.file.is_some() {
            self.write_piece()?;
        }
        match self.file {
            None => Ok(Spooled::Memory(self.piece)),
            Some(mut file) => {
                let rewound = file.file.rewind();
                rewound
                    .map_err(|source| SnapshotError::Scratch { folder: self.folder.to_owned(), source })?;
                Ok(Spooled::File(file))
            }
        }
    }
}

/// A snapshot that has been read.
enum Spooled {
    Memory(Vec<u8>),
    File(ScratchFile),
}

impl Spooled {
    fn bytes(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(file) => file.bytes,
        }
    }

    /// The body of the answer, which is read from the file as the client takes it.
    fn into_body(self) -> Body {
        match self {
            Self::Memory(bytes) => Body::from(bytes),
            Self::File(file) => Body::from_stream(stream::try_unfold(file, |mut file| {
                blocking(move || {
                    let mut piece = Vec::with_capacity(PIECE_BYTES);
                    (&mut file.file).take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
                    Ok::<_, io::Error>((!piece.is_empty()).then(|| (Bytes::from(piece), file)))
                })
            })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshots(folder: &Path) -> Snapshots {
        let path = folder.join("results.db");
        drop(crate::results::Results::open(&path, litejoin_crds::plan::Synchronous::Normal, "lin").unwrap());
        Snapshots::new(Arc::new(Reader::open(&path, 1).unwrap()), folder.to_owned())
    }

    fn spooled(snapshots: &Snapshots, bytes: usize) -> Result<Spooled, SnapshotError> {
        let mut spool = Spool::new(snapshots);
        let result = vec![b'x'; 1 << 20];
        for start in (0..bytes).step_by(result.len()) {
            spool.push(&result[..result.len().min(bytes - start)])?;
        }
        spool.end()
    }

    #[tokio::test]
    async fn a_snapshot_is_the_same_from_memory_and_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = snapshots(folder.path());
        for bytes in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 5 << 20] {
            let spooled = spooled(&snapshots, bytes).unwrap();
            assert_eq!(
                (spooled.bytes(), matches!(spooled, Spooled::File(_))),
                (bytes as u64, bytes >= PIECE_BYTES)
            );
            let body = axum::body::to_bytes(spooled.into_body(), usize::MAX).await.unwrap();
            assert!(body.len() == bytes && body.iter().all(|byte| *byte == b'x'));
        }
        assert_eq!(snapshots.blocks.available_permits(), BLOCKS_MAX, "what was read makes room");
    }

    #[test]
    fn files_are_bounded_and_what_stays_in_memory_needs_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let snapshots = snapshots(folder.path());
        let kept: Vec<Spooled> = (0..BLOCKS_MAX).map(|_| spooled(&snapshots, PIECE_BYTES).unwrap()).collect();
        assert!(matches!(spooled(&snapshots, PIECE_BYTES), Err(SnapshotError::NoRoom)));
        assert!(spooled(&snapshots, PIECE_BYTES - 1).is_ok());
        drop(kept);
        assert!(spooled(&snapshots, PIECE_BYTES).is_ok());
    }
}
