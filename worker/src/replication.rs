//! Copies of the data at another place, kept by Litestream: under which prefix this worker may write them
//! ([`incarnation`]), how the data comes back ([`boot`]), and what is told of how far they are ([`monitor`]).
//!
//! ```text
//! shard_0.db … results.db, dlq.db, sources.db ──WAL──► Litestream (a child of ours) ──► <replicaUrl>/<identity>/0/incarnation-N-id/…
//!                                                          ▲ control socket
//!                             monitor: how far, READY, does the claim still name us ─► claim.json, READY
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use litejoin_crds::duration::parse_timestamp;
use litejoin_crds::plan::{self, Plan};

use self::config::ReplicatedFile;
use self::fetch::Restored;
use self::incarnation::{Birth, Claim, FoundIncarnation, Incarnation, Marker, Remote, StartRefusal};
use self::litestream::{Litestream, LitestreamError};
use self::location::{LocationError, ReplicaLocation};
use self::objects::{Objects, ObjectsError};
use self::restore_points::RestorePoints;
use self::socket::SocketError;
use crate::credentials::{CredentialError, Secrets};
use crate::reshard::ReshardError;
use crate::storage::layout::{
    self, DEAD_LETTERS_FILE, LayoutError, RESULTS_FILE, SOURCES_FILE, UnusableData,
};
use crate::storage::sqlite::SqliteError;

pub(crate) mod boot;
pub(crate) mod config;
mod decision;
mod directory;
pub(crate) mod fetch;
pub(crate) mod incarnation;
mod listing;
pub(crate) mod litestream;
pub(crate) mod location;
pub(crate) mod monitor;
pub(crate) mod objects;
mod restore_points;
mod sftp;
pub(crate) mod socket;
pub(crate) mod takeover;

/// Which of several workers of a pipeline this is. There is one for now.
const ORDINAL: u32 = 0;

/// Names in the store.
const CLAIM: &str = "claim.json";
const BIRTH: &str = "birth.json";
const READY: &str = "READY";
const RESTORE_POINTS: &str = "cuts.json";

/// The settings of the command line and the environment.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tools {
    /// The program Litestream; `None` is the one on the PATH.
    pub(crate) litestream: Option<PathBuf>,
    /// Whether the user says that there is a replica.
    pub(crate) expects_replica: bool,
}

/// See [`directory::note_shard_count`].
pub(crate) fn note_shard_count(data_dir: &Path, shard_count: usize) -> Result<(), ReplicationError> {
    directory::note_shard_count(data_dir, shard_count).map_err(|source| {
        let path = data_dir.display().to_string();
        ReplicationError::Io { path, doing: "write replication.json", source }
    })
}

/// Why replication can't begin, or can't go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReplicationError {
    #[error(transparent)]
    ReplicaLocation(#[from] LocationError),
    #[error("spec.replication.credentialsSecretRef")]
    Credentials(#[from] CredentialError),
    #[error("could not look at the replica; nothing was changed")]
    Store(#[from] ObjectsError),
    #[error("{place}: {name} is not readable ({detail}); it was not written by this version, or damaged")]
    Unreadable { place: String, name: String, detail: String },
    #[error(transparent)]
    Refused(#[from] StartRefusal),
    #[error(transparent)]
    Litestream(#[from] LitestreamError),
    #[error("the Litestream beside this worker can't be asked to leave the files; see whether it runs")]
    TakeOver(#[from] SocketError),
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    UnusableData(#[from] UnusableData),
    #[error(transparent)]
    Reshard(ReshardError),
    #[error("{path}: could not {doing}")]
    Io { path: String, doing: &'static str, source: std::io::Error },
    #[error(transparent)]
    ReplicatedFile(#[from] SqliteError),
    #[error(
        "{path}: is not ready for the Litestream that runs beside this worker; run `litejoin replication prepare` before \
         both are started"
    )]
    NotPrepared { path: String },
    #[error(
        "{place}: nothing was replicated at that time yet; `litejoin replication status` says what there is"
    )]
    TooEarly { place: String },
    #[error("{path}: is not empty; name a folder that is, or that is not there yet")]
    NotEmpty { path: String },
    #[error("spec.replication: is not enabled; there is nothing to restore from")]
    Disabled,
    #[error(
        "{place}: another worker ({other}) took the pipeline over while this one started; see which of both is to run"
    )]
    Overtaken { place: String, other: Incarnation },
}

impl From<ReshardError> for ReplicationError {
    fn from(error: ReshardError) -> Self {
        match error {
            // The same remedy, whoever was the first to look.
            ReshardError::Layout(problem) => Self::Layout(problem),
            other => Self::Reshard(other),
        }
    }
}

impl ReplicationError {
    /// Adds the way to start without the data of a directory, where it is the data that is in the way.
    fn or_without_data(self, data_dir: &Path) -> Self {
        let is_about_data = match &self {
            Self::Refused(refusal) => {
                matches!(refusal, StartRefusal::Occupied { .. } | StartRefusal::Overtaken { .. })
            }
            Self::Layout(problem) => problem.is_about_data(),
            _ => false,
        };
        let way_on = is_about_data.then(|| UnusableData::new(&self, data_dir)).flatten();
        way_on.map_or(self, Self::UnusableData)
    }
}

/// A time to go back to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PointInTime {
    /// As it was written (RFC 3339).
    pub(crate) text: String,
    /// Since the epoch.
    pub(crate) milliseconds: i64,
}

impl FromStr for PointInTime {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self { text: text.to_owned(), milliseconds: parse_timestamp(text)? })
    }
}

impl PointInTime {
    pub(crate) fn seconds(&self) -> i64 {
        self.milliseconds.div_euclid(1_000)
    }
}

/// A place that replicas of one pipeline go to, and the means to get there.
#[derive(Clone)]
pub(crate) struct Site {
    pub(crate) replication: plan::Replication,
    /// Where the incarnations lie.
    pub(crate) base: ReplicaLocation,
    pub(crate) objects: Objects,
    /// Variables with credentials among them: for Litestream alone.
    pub(crate) environment: BTreeMap<String, String>,
}

impl Site {
    /// The place that the plan names; `None` if nothing is replicated. Nothing is sent yet.
    pub(crate) fn of(plan: &Plan, secrets: &Secrets) -> Result<Option<Self>, ReplicationError> {
        let Some(replication) = &plan.replication else { return Ok(None) };
        let environment = secrets.environment(replication.credentials_secret.as_deref())?;
        let location = ReplicaLocation::parse(&replication.replica_url)?;
        let base = location.join(&format!("{}/{ORDINAL}", plan.identity));
        let objects = Objects::open(&base, replication, &environment)?;
        Ok(Some(Self { replication: replication.clone(), base, objects, environment }))
    }

    /// Where another pipeline's incarnations lie: its `replicaUrl`, followed by its identity. It is only read.
    fn elsewhere(&self, url: &str) -> Result<Self, ReplicationError> {
        let base = ReplicaLocation::parse(url)?.join(&ORDINAL.to_string());
        let objects = Objects::open(&base, &self.replication, &self.environment)?;
        Ok(Self { base, objects, ..self.clone() })
    }

    /// Litestream's configuration for one incarnation.
    fn litestream_config(
        &self,
        incarnation: &Incarnation,
        files: &[ReplicatedFile],
        socket: Option<&Path>,
    ) -> Vec<u8> {
        let location = self.base.join(&incarnation.to_string());
        let variable = |name: &str| self.environment.get(name).cloned();
        let config = config::litestream(&self.replication, &location, files, socket, &variable);
        serde_json::to_vec_pretty(&config).expect("plain values are always JSON")
    }

    /// The claim.
    pub(crate) async fn claim(&self) -> Result<Option<Claim>, ReplicationError> {
        self.read(CLAIM).await
    }

    /// All that lies there.
    pub(crate) async fn look(&self) -> Result<Remote, ReplicationError> {
        let claim = self.claim().await?;
        let mut found = Vec::new();
        for name in self.objects.list("").await?.folders {
            let Ok(incarnation) = name.parse::<Incarnation>() else { continue };
            let Some(birth) = self.read::<Birth>(&format!("{name}/{BIRTH}")).await? else { continue };
            let ready = self.objects.get(&format!("{name}/{READY}")).await?;
            // Its content is for restores to a time; its being there is what counts.
            let ready_at = ready.map(|content| {
                let time = String::from_utf8_lossy(&content).trim().parse();
                time.unwrap_or(birth.born_at)
            });
            found.push(FoundIncarnation { incarnation, birth, ready_at });
        }
        found.sort_by(|a, b| a.incarnation.cmp(&b.incarnation));
        Ok(Remote { claim, found })
    }

    /// The restore points of an incarnation.
    pub(crate) async fn restore_points(
        &self,
        incarnation: &Incarnation,
    ) -> Result<RestorePoints, ReplicationError> {
        Ok(self.read(&format!("{incarnation}/{RESTORE_POINTS}")).await?.unwrap_or_default())
    }

    async fn read<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<Option<T>, ReplicationError> {
        let Some(bytes) = self.objects.get(name).await? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|error| ReplicationError::Unreadable {
            place: self.base.to_string(),
            name: name.to_owned(),
            detail: error.to_string(),
        })
    }

    async fn write<T: serde::Serialize>(&self, name: &str, value: &T) -> Result<(), ReplicationError> {
        let bytes = serde_json::to_vec_pretty(value).expect("plain values are always JSON");
        Ok(self.objects.put(name, bytes).await?)
    }
}

/// The files of a pipeline that are replicated, below a data directory.
pub(crate) fn files(plan: &Plan, data_dir: &Path) -> Vec<ReplicatedFile> {
    files_of(plan, data_dir, plan.storage.shard_count)
}

/// The same for a directory with so many shards.
pub(crate) fn files_of(plan: &Plan, data_dir: &Path, shard_count: usize) -> Vec<ReplicatedFile> {
    let dlq = layout::dead_letters_path(plan.delivery.dlq.path.as_deref(), data_dir);
    let of_dir = |name: &str| ReplicatedFile { name: name.to_owned(), path: data_dir.join(name) };
    let shards = (0..shard_count).map(|index| of_dir(&layout::shard_file_name(index)));
    let others = [
        of_dir(RESULTS_FILE),
        ReplicatedFile { name: DEAD_LETTERS_FILE.to_owned(), path: dlq },
        of_dir(SOURCES_FILE),
    ];
    shards.chain(others).collect()
}

/// A directory that has its data and its prefix: what Litestream may begin with.
pub(crate) struct Replica {
    pub(crate) site: Site,
    /// Whose data it is.
    pub(crate) identity: String,
    pub(crate) litestream: Litestream,
    /// Whether the worker runs it.
    pub(crate) runs_litestream: bool,
    pub(crate) marker: Marker,
    /// The kind of restore that has just been made, if any.
    pub(crate) restored: Option<Restored>,
    pub(crate) files: Vec<ReplicatedFile>,
    pub(crate) data_dir: PathBuf,
    /// Litestream's control socket.
    pub(crate) socket: PathBuf,
    pub(crate) config: PathBuf,
    /// The lock that each Litestream of this directory holds while it lives.
    pub(crate) lock: PathBuf,
}
