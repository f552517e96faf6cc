//! The move of the data to another number of shards beside a pipeline that runs: a task that copies and follows, until the
//! pipeline can go over to the copy in a short pause.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use litejoin_crds::error::chain;
use litejoin_crds::plan::{Plan, Reshard, SourceKind};
use tokio::task::JoinHandle;
use tracing::{info, warn};

use super::{Running, StartError};
use crate::blocking::blocking;
use crate::credentials::Secrets;
use crate::replication::{ReplicationError, Site, takeover};
use crate::reshard::{self, FollowedCopy, OnlineMove};
use crate::status::Status;
use crate::status::reshard::{MoveProgress, MoveStatus, MoveStep};
use crate::storage::log::LogHold;

/// How long a copy goes on following before the store is looked at again that could not be reached.
const STORE_RETRY: Duration = Duration::from_secs(5);

/// How long a look at the store may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a move may take to end that is called off.
const CALL_OFF_TIMEOUT: Duration = Duration::from_secs(5);

/// Sees that the move is made which the config asks for.
#[derive(Default)]
pub(super) struct Mover {
    moving: Option<Moving>,
    /// The hash of the config under which a move has failed; it is not tried again under the same one.
    failed: Option<String>,
}

/// A move that is under way.
struct Moving {
    consent: Reshard,
    /// Dropped to call the move off.
    call_off: Sender<()>,
    task: JoinHandle<Result<FollowedCopy, StartError>>,
    log_hold: LogHold,
    progress: Arc<MoveProgress>,
}

/// A copy that lacks the rest of the data alone.
pub(super) struct StagedMove {
    pub(super) copy: FollowedCopy,
    /// The move is called off when this is dropped.
    pub(super) call_off: Sender<()>,
    pub(super) told: MoveStatus,
}

impl Mover {
    /// Begins the move that the config in force asks for, and calls off one that it no longer asks for.
    pub(super) async fn follow(&mut self, running: &Running, secrets: &Secrets) {
        let plan = &running.pipeline.plan;
        let wanted = plan.storage.online();
        if self.moving.as_ref().is_some_and(|moving| Some(&moving.consent) != wanted) {
            self.call_off().await;
            remove_copy(running).await;
            tell(&running.status, None);
            info!("the move to another number of shards is called off; the data is as it was");
        }
        if self.failed.as_ref().is_some_and(|hash| *hash != plan.config_hash) {
            self.failed = None;
            tell(&running.status, None);
        }
        let Some(consent) = wanted.filter(|_| self.moving.is_none() && self.failed.is_none()) else { return };
        let told = MoveStatus { from: consent.from, to: consent.to, progress: Arc::default() };
        tell(&running.status, Some(told.clone()));
        info!(
            from = consent.from,
            to = consent.to,
            "moving the data to another number of shards while it is served"
        );
        match Moving::begin(running, secrets, consent, &told.progress) {
            Ok(moving) => self.moving = Some(moving),
            Err(problem) => self.failed(plan, &told, &problem),
        }
    }

    /// Waits until a copy lacks the rest of the data alone, or until there can be none.
    pub(super) async fn staged(&mut self) -> Result<StagedMove, Box<(MoveStatus, StartError)>> {
        let Some(moving) = &mut self.moving else { return std::future::pending().await };
        let outcome = (&mut moving.task).await.expect("a move does not panic");
        let Moving { consent, call_off, log_hold, progress, .. } =
            self.moving.take().expect("it is under way");
        let told = MoveStatus { from: consent.from, to: consent.to, progress };
        match outcome {
            Ok(copy) => Ok(StagedMove { copy, call_off, told }),
            Err(problem) => {
                log_hold.release();
                Err(Box::new((told, problem)))
            }
        }
    }

    /// Says that a move has failed, and tries no other one under this config.
    pub(super) fn failed(&mut self, plan: &Plan, told: &MoveStatus, problem: &StartError) {
        let MoveStatus { from, to, progress } = told;
        let problem = chain(problem);
        warn!(
            from,
            to,
            error = problem,
            "could not move the data; it is as it was, and the pipeline goes on with it"
        );
        progress.begin(MoveStep::Failed, 0);
        let message = format!(
            "{problem}; the pipeline goes on with {from} shards. Once that is mended, restart it or change its manifest \
             to try again"
        );
        progress.say(Some(message));
        self.failed = Some(plan.config_hash.clone());
    }

    /// Ends a move that is under way, without a trace but for files that count for nothing.
    pub(super) async fn call_off(&mut self) {
        let Some(Moving { call_off, task, log_hold, .. }) = self.moving.take() else { return };
        drop(call_off);
        let _ = tokio::time::timeout(CALL_OFF_TIMEOUT, task).await;
        log_hold.release();
    }
}

impl Moving {
    fn begin(
        running: &Running,
        secrets: &Secrets,
        consent: &Reshard,
        progress: &Arc<MoveProgress>,
    ) -> Result<Self, StartError> {
        let plan = &running.pipeline.plan;
        let reads_stdin = |kind: &SourceKind| matches!(kind, SourceKind::File(spec) if spec.path == "-");
        if let Some(source) = plan.sources.iter().find(|source| reads_stdin(&source.kind)) {
            return Err(StartError::StdinInTheWay { name: source.name.clone() });
        }
        let site = Site::of(plan, secrets)?;
        let (call_off, called_off) = channel();
        let log_hold = running.log_hold.clone();
        let online = OnlineMove {
            locked: running.store.data_dir.share()?,
            consent: consent.clone(),
            log_hold: log_hold.clone(),
            ingest: running.ingest.clone(),
            progress: Arc::clone(progress),
            called_off,
        };
        let data_dir = running.store.data_dir.path().to_owned();
        let task = tokio::spawn(stage(online, site, data_dir));
        let (consent, progress) = (consent.clone(), Arc::clone(progress));
        Ok(Self { consent, call_off, task, log_hold, progress })
    }
}

/// Copies, and follows for as long as something is away that the next start needs.
async fn stage(
    online: OnlineMove,
    site: Option<Site>,
    data_dir: PathBuf,
) -> Result<FollowedCopy, StartError> {
    let mut copy = blocking(move || online.stage()).await?;
    let Some(site) = site else { return Ok(copy) };
    loop {
        let problem = match tokio::time::timeout(STORE_TIMEOUT, look(&site, &data_dir)).await {
            Ok(Ok(())) => {
                copy.progress().say(None);
                return Ok(copy);
            }
            Ok(Err(problem)) => chain(&problem),
            Err(_) => "it does not answer".to_owned(),
        };
        let message = format!("the switch waits for the replica, which begins anew then: {problem}");
        warn!("{message}");
        copy.progress().say(Some(message));
        copy = blocking(move || copy.keep_up(STORE_RETRY)).await?;
    }
}

/// Sees that the store answers, and the Litestream that the files are to be taken over from.
async fn look(site: &Site, data_dir: &Path) -> Result<(), ReplicationError> {
    if takeover::is_beside(site.replication.mode, data_dir) {
        takeover::look(data_dir).await?;
    }
    site.look().await.map(|_| ())
}

/// Shows a move in `/status`.
pub(super) fn tell(status: &Status, told: Option<MoveStatus>) {
    *status.reshard.lock().unwrap_or_else(PoisonError::into_inner) = told;
}

/// Removes the copy of a move that has come to nothing.
pub(super) async fn remove_copy(running: &Running) {
    let data_dir = running.store.data_dir.path().to_owned();
    if let Err(error) = blocking(move || reshard::remove_copy(&data_dir)).await {
        warn!(%error, "could not remove the copy of a move that was called off; the next start tries again");
    }
}
