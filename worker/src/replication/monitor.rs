//! The monitor that runs beside Litestream: again and again it has all files shipped up to now, says READY after the
//! first time, and sees whether the claim still names us. One such round is a *sync round*. Commits from before a sync
//! round are in the replica when the round has ended well; so the monitor also tells how far behind the replica is, which
//! Litestream does not. From time to time a sync round begins with a restore point: the writers rest for a moment, so that
//! all shards are known as of one instant.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use litejoin_crds::error::chain;
use litejoin_crds::worker_status::REPLICA_FAILING_SECONDS;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::config::ReplicatedFile;
use super::incarnation::{Claim, Marker, StartRefusal};
use super::restore_points::{self, RestorePoint, RestorePoints};
use super::socket::{LitestreamSocket, Synced};
use super::{BIRTH, READY, RESTORE_POINTS, Replica, ReplicationError, Site};
use super::{boot, directory};
use crate::blocking::blocking;
use crate::clock;
use crate::fault;
use crate::status::replication::{FileProgress, ReplicationStatus};
use crate::storage::ingest::Ingest;
use crate::storage::layout::replace;
use crate::storage::replication_barrier::ReplicationBarrier;
use crate::storage::sqlite;

/// Sync rounds are not closer together than this.
const ROUND_INTERVAL_MIN: Duration = Duration::from_secs(1);

/// How often old incarnations and directories are looked for.
const CLEAN_INTERVAL: Duration = Duration::from_secs(3_600);

/// Waits for the replica that begin within this time share a sync round.
const ROUND_GAP: Duration = Duration::from_millis(50);

/// For one file to be shipped; one that takes longer is seen in the next sync round.
const SYNC_TIMEOUT: Duration = Duration::from_secs(10);

/// Files that are asked for at once.
const SYNCS: usize = 4;

/// How often the claim is read where nothing waits for it.
const CLAIM_INTERVAL: Duration = Duration::from_secs(5);

/// How long writers may take to come to rest for a restore point. One that builds an index takes longer, and the restore point is left out.
const REST_TIMEOUT: Duration = Duration::from_millis(100);

/// For one file to be read while the writers rest; where it takes longer, the restore point is left out.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

/// How often the claim is read while nothing can be shipped.
const CLAIM_INTERVAL_BEHIND: Duration = Duration::from_secs(20);

/// How often it is noted until when the replica has everything, for the next start. So much too far behind it seems to be
/// then, at most, until its first sync round.
const NOTE_INTERVAL: Duration = Duration::from_secs(10);

/// Behind by so much, the replica is worth a warning.
const LAG_WARNED: Duration = Duration::from_secs(30);

/// The monitor of one replica.
pub(crate) struct ReplicaMonitor {
    site: Site,
    marker: Marker,
    replica: Replica,
    socket: LitestreamSocket,
    status: Arc<ReplicationStatus>,
    /// Told once when another worker has taken over.
    overtaken: mpsc::Sender<()>,
    replication_barrier: ReplicationBarrier,
    /// The writers, which rest for restore points.
    ingest: Ingest,
    claim_read: Option<Instant>,
    cleaned: Option<Instant>,
    /// The task that removes old incarnations, while there is one.
    cleaning: JoinSet<()>,
    restore_point_taken: Option<Instant>,
    /// `None` until those of the store were looked at.
    restore_points: Option<RestorePoints>,
    /// When the marker was written last.
    noted: Option<Instant>,
    is_warned: bool,
}

impl ReplicaMonitor {
    pub(crate) fn new(
        replica: Replica,
        status: Arc<ReplicationStatus>,
        replication_barrier: ReplicationBarrier,
        ingest: Ingest,
        overtaken: mpsc::Sender<()>,
    ) -> Self {
        // A clock that was ahead has noted a time that is yet to come.
        let now = clock::epoch_seconds();
        let marker = &replica.marker;
        status.begin(
            marker.incarnation.to_string(),
            replica.site.base.to_string(),
            marker.gone_back_to.clone(),
            marker.complete_until.map_or(now, |until| until.min(now)),
        );
        status.set_ready(replica.marker.is_ready);
        Self {
            site: replica.site.clone(),
            marker: replica.marker.clone(),
            socket: LitestreamSocket::new(&replica.socket),
            replica,
            status,
            overtaken,
            replication_barrier,
            ingest,
            claim_read: None,
            cleaned: None,
            cleaning: JoinSet::new(),
            restore_point_taken: None,
            restore_points: None,
            noted: None,
            is_warned: false,
        }
    }

    /// Notes what the next start is to know.
    async fn write_marker(&mut self) {
        self.noted = Some(Instant::now());
        let bytes = serde_json::to_vec_pretty(&self.marker).expect("plain values are always JSON");
        let folder = self.replica.data_dir.clone();
        if let Err(problem) = blocking(move || replace(&folder, directory::MARKER, &bytes)).await {
            warn!(error = %problem, "could not note how far the replica is; the next start looks for it in the store");
        }
    }

    /// Runs sync rounds until it is told to stop, and then a last one.
    pub(crate) async fn run(mut self, mut stopping: watch::Receiver<bool>) {
        // The files are there by now, so that they are missed from now on.
        if std::mem::take(&mut self.marker.is_fresh) {
            self.write_marker().await;
        }
        let interval = self.site.replication.sync_interval.max(ROUND_INTERVAL_MIN);
        loop {
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = self.replication_barrier.wanted_for(ROUND_GAP) => {}
                _ = stopping.wait_for(|stopping| *stopping) => break,
            }
            let is_due =
                self.restore_point_taken.is_none_or(|taken| taken.elapsed() > restore_points::INTERVAL);
            if self.sync_round(is_due).await
                && self.cleaned.is_none_or(|cleaned| cleaned.elapsed() > CLEAN_INTERVAL)
            {
                self.cleaned = Some(Instant::now());
                self.clean();
            }
        }
        self.cleaning.shutdown().await;
        match self.sync_round(true).await {
            true => {
                self.write_marker().await;
                info!("everything is in the replica");
            }
            false => warn!(
                "the last commits are not in the replica yet; they follow at the next start on this disk"
            ),
        }
    }

    /// Has everything shipped that is committed now; returns whether it is in the replica. With a restore point, if there can
    /// be one.
    async fn sync_round(&mut self, with_restore_point: bool) -> bool {
        let restore_point =
            if with_restore_point && self.marker.is_ready { self.take_restore_point().await } else { None };
        let (began, number) = (clock::epoch_seconds(), self.replication_barrier.begin());
        let socket = self.socket.clone();
        let syncs = self.replica.files.clone().into_iter().map(|file| sync(socket.clone(), file));
        let mut answers = futures::stream::iter(syncs).buffered(SYNCS);
        let mut failure = None;
        while let Some((name, wal_bytes, answer)) = answers.next().await {
            let name = name.as_str();
            match answer {
                Ok(Synced { txid, replicated }) => {
                    self.status.synced(name, FileProgress { txid, replicated_txid: replicated, wal_bytes });
                }
                Err(problem) => {
                    self.status.not_synced(name, wal_bytes);
                    // Each file may take its time to fail, and people are told at the first.
                    self.failed(&problem);
                    failure.get_or_insert(problem);
                }
            }
        }
        drop(answers);
        match failure {
            None => {
                failure = self.after_sync(restore_point).await.err().map(|problem| chain(&problem));
                if let Some(problem) = &failure {
                    self.failed(problem);
                }
            }
            // A worker that can't ship can have been overtaken all the same. It may take a while to hear that the store is away.
            Some(_) if self.claim_read.is_none_or(|read| read.elapsed() > CLAIM_INTERVAL_BEHIND) => {
                self.claim_read = Some(Instant::now());
                let _ = self.check_claim().await;
            }
            Some(_) => {}
        }
        if failure.is_some() {
            return false;
        }
        self.replication_barrier.end(number);
        self.status.synced_until(began);
        self.marker.complete_until = Some(began);
        if self.noted.is_none_or(|noted| noted.elapsed() > NOTE_INTERVAL) {
            self.write_marker().await;
        }
        if std::mem::take(&mut self.is_warned) {
            info!("the replica has caught up");
        }
        true
    }

    /// Tells that a sync round fails.
    fn failed(&mut self, problem: &str) {
        self.status.error.set(problem);
        let lag = self.status.lag(clock::epoch_seconds());
        if lag.as_secs() >= REPLICA_FAILING_SECONDS {
            self.replication_barrier.fail(problem);
        }
        if lag > LAG_WARNED && !self.is_warned {
            self.is_warned = true;
            warn!(
                error = problem,
                seconds = lag.as_secs(),
                "the replica is behind; data is safe on this disk only"
            );
        }
    }

    /// Has the writers rest, and sees how far each file is. `None` where that would make them rest for too long.
    async fn take_restore_point(&mut self) -> Option<RestorePoint> {
        // A first read leaves less to read while the writers rest.
        self.read_all().await?;
        let ingest = self.ingest.clone();
        let held = blocking(move || ingest.hold(REST_TIMEOUT)).await?;
        let (began, at) = (Instant::now(), clock::epoch_milliseconds());
        let txids = self.read_all().await;
        drop(held);
        self.restore_point_taken = Some(Instant::now());
        self.status.held(began.elapsed());
        Some(RestorePoint { at, txids: txids? })
    }

    /// The last transaction of each file. `None` where Litestream does not answer: a sync round meets with the same, and tells.
    async fn read_all(&self) -> Option<Vec<u64>> {
        let reads = self.replica.files.iter().map(|file| self.socket.read(&file.path, READ_TIMEOUT));
        futures::future::try_join_all(reads).await.ok()
    }

    /// Notes a restore point of which all is in the store.
    async fn note(&mut self, restore_point: RestorePoint) -> Result<(), ReplicationError> {
        let incarnation = self.marker.incarnation.clone();
        let mut points = match self.restore_points.take() {
            Some(points) => points,
            None => self.site.restore_points(&incarnation).await?,
        };
        let files: Vec<String> = self.replica.files.iter().map(|file| file.name.clone()).collect();
        if points.files != files {
            points = RestorePoints { files, ..RestorePoints::default() };
        }
        let at = restore_point.at;
        points.add(restore_point);
        self.site.write(&format!("{incarnation}/{RESTORE_POINTS}"), &points).await?;
        fault::point("cut-noted");
        self.restore_points = Some(points);
        self.status.restore_point(at);
        Ok(())
    }

    /// Says READY where that is still to be said, and sees from time to time whether the claim names us. All that
    /// belongs to `restore_point` is in the store.
    async fn after_sync(&mut self, restore_point: Option<RestorePoint>) -> Result<(), ReplicationError> {
        if let Some(restore_point) = restore_point {
            self.note(restore_point).await?;
        }
        let is_due = self.replication_barrier.is_awaited()
            || self.claim_read.is_none_or(|read| read.elapsed() > CLAIM_INTERVAL);
        if !self.marker.is_ready || is_due {
            self.check_claim().await?;
        }
        if self.marker.is_ready {
            return Ok(());
        }
        let incarnation = self.marker.incarnation.clone();
        let content = format!("{}\n", clock::epoch_seconds()).into_bytes();
        self.site.objects.put(&format!("{incarnation}/{READY}"), content).await?;
        fault::point("ready-written");
        // A worker that has claimed meanwhile may not have seen READY, so it does not count before the claim was read again.
        self.check_claim().await?;
        info!(%incarnation, "READY: from now on a restore takes this incarnation");
        self.marker.is_ready = true;
        self.write_marker().await;
        self.status.set_ready(true);
        Ok(())
    }

    /// Begins to remove old incarnations and directories, which may take longer than sync rounds are apart.
    fn clean(&mut self) {
        while self.cleaning.try_join_next().is_some() {}
        if !self.cleaning.is_empty() {
            return;
        }
        let (site, marker, data_dir) =
            (self.site.clone(), self.marker.clone(), self.replica.data_dir.clone());
        self.cleaning.spawn(async move {
            if let Err(problem) = clean(&site, &marker, data_dir).await {
                warn!(error = chain(&problem), "could not remove old incarnations; trying again in an hour");
            }
        });
    }

    /// Sees that the claim names us. Where the store was away at the start, it is renewed first.
    async fn check_claim(&mut self) -> Result<(), ReplicationError> {
        let mut claim = self.site.claim().await?;
        if let Some(next_holder) = self.marker.next_holder.clone() {
            let is_held = claim.as_ref().is_some_and(|claim| {
                claim.incarnation == self.marker.incarnation
                    && [&self.marker.holder, &next_holder].contains(&&claim.holder)
            });
            if is_held {
                boot::claim(&self.site, &self.replica.identity, &self.marker.incarnation, &next_holder)
                    .await?;
                self.marker = Marker { holder: next_holder, next_holder: None, ..self.marker.clone() };
                self.write_marker().await;
                claim = self.site.claim().await?;
            }
        }
        let is_ours = self.marker.is_named_by(claim.as_ref());
        self.claim_read = Some(Instant::now());
        if is_ours {
            return Ok(());
        }
        let place = self.site.base.to_string();
        let Some(Claim { incarnation: other, .. }) = claim else {
            // Nobody has taken over, so the data here counts; nothing counts as replicated.
            let refusal = StartRefusal::Gone { base: place, incarnation: self.marker.incarnation.clone() };
            self.replication_barrier.fail(&refusal.to_string());
            return Err(refusal.into());
        };
        error!(%other, place, "another worker has taken this pipeline over; stopping");
        let _ = self.overtaken.try_send(());
        Err(ReplicationError::Overtaken { place, other })
    }
}

/// Removes incarnations and directories that were left longer ago than replicas are kept. Of an incarnation READY goes
/// first, so that no restore takes a part of it, and its birth last, so that what is left of it is found again.
async fn clean(site: &Site, marker: &Marker, data_dir: PathBuf) -> Result<(), ReplicationError> {
    let retention = i64::try_from(site.replication.retention.as_secs()).unwrap_or(i64::MAX);
    let before = clock::epoch_seconds().saturating_sub(retention);
    blocking(move || directory::remove_set_aside(&data_dir, before)).await;
    let remote = site.look().await?;
    if !marker.is_named_by(site.claim().await?.as_ref()) {
        return Ok(());
    }
    for incarnation in remote.outlived(&marker.incarnation, before) {
        site.objects.remove(&incarnation.to_string(), READY, BIRTH).await?;
        info!(%incarnation, "removed an old incarnation");
    }
    Ok(())
}

/// Has a file shipped; returns its name, the length of its WAL, and Litestream's answer. Commits are on the disk before
/// they are shipped: one that came back from a loss of power without it would go on under the same prefix.
async fn sync(socket: LitestreamSocket, file: ReplicatedFile) -> (String, u64, Result<Synced, String>) {
    let path = file.path.clone();
    let synced = match blocking(move || sqlite::sync_wal(&path)).await {
        Ok(()) => socket.sync(&file.path, SYNC_TIMEOUT).await.map_err(|problem| chain(&problem)),
        Err(problem) => Err(format!("{}: could not sync the WAL: {problem}", file.path.display())),
    };
    (file.name, sqlite::wal_bytes(&file.path), synced)
}
