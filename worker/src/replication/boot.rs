//! How a data directory comes to its data and its prefix, before anything is opened: look, decide, claim, see that the
//! claim is ours, look again, restore. Each write can be cut off at any point: the next start takes it up.

use std::path::{Path, PathBuf};

use litejoin_crds::error::chain;
use litejoin_crds::plan::Plan;
use litejoin_crds::replication::{ReplicationMode, RestorePolicy};
use tracing::{info, warn};

pub(crate) use super::decision::Begin;
use super::decision::{
    DataOrigin, Renewal, Request, announced, from_elsewhere, gone, next_number, origin, overtaker, renewal,
    without_store,
};
use super::directory::{CONFIG, Choice, Directory, restoring};
use super::fetch::Restored;
use super::incarnation::{
    Birth, Claim, Decision, Incarnation, Local, Marker, Remote, Requirements, StartRefusal,
};
use super::litestream::{self, Litestream};
use super::takeover::{self, OWN_CONFIG};
use super::{BIRTH, CLAIM, Replica, ReplicationError, Site, Tools, files};
use crate::clock;
use crate::fault;
use crate::storage::hash::HASH_VERSION;
use crate::storage::layout::{FORMAT_VERSION, LockedDir, random_id, replace};

const LOCK: &str = "litestream.lock";

/// The longest path that a socket can have, with some room.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// Gives a directory its data and its prefix. Where that can't be done without the risk of losing data or of writing
/// where another worker does, it fails and has changed nothing that counts.
pub(crate) async fn prepare(
    locked: &LockedDir,
    plan: &Plan,
    site: Site,
    tools: &Tools,
    begin: Begin<'_>,
) -> Result<Replica, ReplicationError> {
    if !matches!(begin, Begin::Prepared) {
        locked.set_aside(plan.storage.accept_loss.as_deref(), clock::epoch_seconds())?;
    }
    let mut plan = plan.clone();
    plan.storage.shard_count = shard_count(locked, &plan, &site).await?;
    let prepared = prepare_directory(locked, &plan, site, tools, begin).await;
    prepared.map_err(|problem| problem.or_without_data(locked.path()))
}

/// The number of shards to start with: where data may be moved beside the pipeline, the one that the directory has, or the
/// one of the incarnation that it is restored from.
async fn shard_count(locked: &LockedDir, plan: &Plan, site: &Site) -> Result<usize, ReplicationError> {
    let storage = &plan.storage;
    let has = match locked.layout()? {
        Some(layout) => Some(layout.shard_count),
        None if storage.may_move_online() => match restoring(locked.path())? {
            Some(count) => Some(count),
            None => site.look().await?.best().map(|best| best.birth.shard_count),
        },
        None => None,
    };
    Ok(storage.shard_count_for(has))
}

async fn prepare_directory(
    locked: &LockedDir,
    plan: &Plan,
    site: Site,
    tools: &Tools,
    begin: Begin<'_>,
) -> Result<Replica, ReplicationError> {
    let io = |path: &Path, doing| {
        let path = path.display().to_string();
        move |source| ReplicationError::Io { path, doing, source }
    };
    let data_dir = std::fs::canonicalize(locked.path()).map_err(io(locked.path(), "find the folder"))?;
    let litestream = Litestream::find(tools.litestream.as_deref(), &site.environment).await?;
    let files = files(plan, &data_dir);
    let lock = data_dir.join(LOCK);
    litestream::end_orphan(&lock, u32::try_from(files.len()).unwrap_or(u32::MAX)).await?;
    let wanted = wanted(plan, &site, tools, begin);
    let directory = Directory {
        locked,
        site: &site,
        litestream: &litestream,
        plan,
        path: data_dir.clone(),
        files: files.clone(),
    };
    let is_taken_over = takeover::settle(&data_dir, site.replication.mode).await?;
    if !matches!(begin, Begin::Prepared) {
        directory.resume()?;
        directory.reshard().await?;
    }
    let timestamp = site.replication.restore_timestamp.as_deref();
    let request = Request {
        begin,
        timestamp: timestamp.map(|text| text.parse().expect("a plan is made of what was found to be right")),
        from_url: site.replication.restore_from_url.as_deref(),
    };
    let start = ReplicaStart { request, wanted: &wanted, directory: &directory };
    let seen = start.look().await?;
    let choice = start.choose(&seen).await?;
    if let (Begin::Prepared, false) = (begin, matches!(choice.decision, Decision::GoOn(_))) {
        return Err(ReplicationError::NotPrepared { path: data_dir.display().to_string() });
    }
    let (marker, restored) = match start.go_on(seen, choice).await? {
        Continued::Marked(marker) => (marker, None),
        Continued::No(rest) => {
            let (seen, choice) = *rest;
            let minted = start.mint(seen, choice).await?;
            // What was restored may have other shards than those that are wanted.
            directory.reshard().await?;
            minted
        }
    };
    directory.write_marker(&marker)?;
    fault::point("incarnation-marked");
    let socket = socket_path(&data_dir, &marker.incarnation);
    let name = if is_taken_over { OWN_CONFIG } else { CONFIG };
    let config = data_dir.join(name);
    let text = site.litestream_config(&marker.incarnation, &files, Some(&socket));
    replace(&data_dir, name, &text).map_err(io(&config, "write the file"))?;
    info!(incarnation = %marker.incarnation, base = %site.base, "replicating");
    let identity = wanted.identity;
    let marker = *marker;
    let runs_litestream = is_taken_over || site.replication.mode == ReplicationMode::Embedded;
    Ok(Replica {
        site,
        identity,
        restored,
        litestream,
        runs_litestream,
        marker,
        files,
        data_dir,
        socket,
        config,
        lock,
    })
}

/// One start, with all that its steps need.
struct ReplicaStart<'a> {
    request: Request<'a>,
    wanted: &'a Requirements,
    directory: &'a Directory<'a>,
}

/// The directory and the store as a start has seen them.
struct Observed {
    local: Local,
    remote: Remote,
    /// Whether the store can't be reached, and `remote` is what it is taken to hold.
    is_away: bool,
}

/// How a directory that was to go on has fared.
enum Continued {
    Marked(Box<Marker>),
    /// The directory was not to go on, or was overtaken meanwhile: it needs a new incarnation.
    No(Box<(Observed, Choice)>),
}

impl ReplicaStart<'_> {
    /// Looks at the directory and at the store.
    async fn look(&self) -> Result<Observed, ReplicationError> {
        let local = self.directory.look()?;
        let problem = match self.directory.site.look().await {
            Ok(remote) => match gone(&self.request, &local, &remote, self.wanted) {
                Some(incarnation) => {
                    StartRefusal::Gone { base: self.wanted.base.clone(), incarnation }.into()
                }
                None => return Ok(Observed { local, remote, is_away: false }),
            },
            Err(problem) => problem,
        };
        let Some(remote) = without_store(&self.request, &local, self.wanted, self.birth()) else {
            return Err(problem);
        };
        warn!(
            error = chain(&problem),
            "the replica can't be reached or is gone; going on with the data of this directory"
        );
        Ok(Observed { local, remote, is_away: true })
    }

    /// Decides how the directory comes to its data, and looks at another pipeline's replica if that takes it.
    async fn choose(&self, seen: &Observed) -> Result<Choice, ReplicationError> {
        match origin(&self.request, &seen.local, &seen.remote, self.wanted)? {
            DataOrigin::Own(decision, point) => Ok(Choice { decision, elsewhere: None, point }),
            DataOrigin::Elsewhere(url, point) => {
                let elsewhere = self.directory.site.elsewhere(&url)?;
                let remote = elsewhere.look().await?;
                let base = elsewhere.base.to_string();
                let decision = from_elsewhere(&remote, &base, point.as_ref(), self.wanted)?;
                Ok(Choice { decision, elsewhere: Some(elsewhere), point })
            }
        }
    }

    /// Goes on in the directory's own incarnation, if that was decided: announces a new holder, renews the claim, and
    /// sees that no other start has come between.
    async fn go_on(&self, mut seen: Observed, mut choice: Choice) -> Result<Continued, ReplicationError> {
        let (Decision::GoOn(own), Local::Marked { marker, .. }) = (&choice.decision, &seen.local) else {
            return Ok(Continued::No(Box::new((seen, choice))));
        };
        let (directory, site, own) = (self.directory, self.directory.site, own.clone());
        let mut marker = announced(&own, marker, &seen.remote, random_id());
        marker.shard_count = Some(self.wanted.shard_count);
        directory.write_marker(&marker)?;
        fault::point("claim-announced");
        if let Some(holder) = marker.next_holder.clone().filter(|_| !seen.is_away) {
            claim(site, &self.wanted.identity, &own, &holder).await?;
            fault::point("claim-renewed");
            marker = Marker { holder, next_holder: None, ..marker };
            let after = site.look().await?;
            if let Renewal::Overtaken(remote) = renewal(&own, &seen.remote, after) {
                seen.remote = remote;
                choice = self.choose(&seen).await?;
            }
        }
        match choice.decision {
            Decision::GoOn(_) => Ok(Continued::Marked(Box::new(marker))),
            _ => Ok(Continued::No(Box::new((seen, choice)))),
        }
    }

    /// Begins a new incarnation: it is born, claimed, seen to be the newest, and gets its data.
    async fn mint(
        &self,
        mut seen: Observed,
        mut choice: Choice,
    ) -> Result<(Box<Marker>, Option<Restored>), ReplicationError> {
        let (directory, site) = (self.directory, self.directory.site);
        let (own, holder) =
            (Incarnation { number: next_number(&seen.local, &seen.remote), id: random_id() }, random_id());
        let birth_name = format!("{own}/{BIRTH}");
        site.write(&birth_name, &self.birth_of(&choice, &seen.local)).await?;
        fault::point("incarnation-born");
        claim(site, &self.wanted.identity, &own, &holder).await?;
        fault::point("incarnation-claimed");
        // From now on the worker before us acknowledges nothing as replicated: the store now has all that it ever will.
        seen.remote = site.look().await?.before_claim_of(&own, seen.remote);
        if let Some(other) = overtaker(&own, &seen.remote) {
            return Err(ReplicationError::Overtaken { place: site.base.to_string(), other: other.clone() });
        }
        choice = self.choose(&seen).await?;
        site.write(&birth_name, &self.birth_of(&choice, &seen.local)).await?;
        let marker = Box::new(Marker {
            base: self.wanted.base.clone(),
            incarnation: own,
            holder,
            next_holder: None,
            is_ready: false,
            restoring: None,
            is_fresh: matches!(choice.decision, Decision::Empty { .. }),
            gone_back_to: self.gone_back_to(&choice, &seen.local),
            complete_until: choice.decision.complete_until(&seen.local, clock::epoch_seconds()),
            lock_inode: directory.locked.inode()?,
            shard_count: Some(self.wanted.shard_count),
        });
        let restored = directory.carry_out(&choice, &seen.local, &marker).await?;
        Ok((marker, restored))
    }

    /// The birth of an incarnation before it is known whose data it begins with.
    fn birth(&self) -> Birth {
        Birth {
            identity: self.wanted.identity.clone(),
            shard_count: self.wanted.shard_count,
            hash_version: self.wanted.hash_version,
            format_version: self.wanted.format_version,
            files: self.directory.files.iter().map(|file| file.name.clone()).collect(),
            parent: None,
            gone_back_to: None,
            born_at: clock::epoch_seconds(),
        }
    }

    fn birth_of(&self, choice: &Choice, local: &Local) -> Birth {
        let parent = if choice.elsewhere.is_some() { None } else { choice.decision.parent() };
        Birth { parent, gone_back_to: self.gone_back_to(choice, local), ..self.birth() }
    }

    /// The `restore.timestamp` that the data of a new incarnation was gone back to last: a manifest that asks for one has
    /// it with this start, or with a time that was asked for by hand.
    fn gone_back_to(&self, choice: &Choice, local: &Local) -> Option<String> {
        let timestamp = self.request.timestamp.as_ref().map(|point| point.text.clone());
        timestamp.or_else(|| choice.decision.gone_back_to(local))
    }
}

/// The requirements of the pipeline on its replica.
fn wanted(plan: &Plan, site: &Site, tools: &Tools, begin: Begin<'_>) -> Requirements {
    let replication = &site.replication;
    Requirements {
        identity: plan.identity.clone(),
        base: site.base.to_string(),
        shard_count: plan.storage.shard_count,
        reshard_from: plan.storage.reshard_from(),
        hash_version: HASH_VERSION,
        format_version: FORMAT_VERSION,
        policy: if replication.restore_on_boot { replication.restore } else { RestorePolicy::Never },
        expects_replica: tools.expects_replica || matches!(begin, Begin::Restore),
        begin_anew: replication.begin_anew.clone(),
    }
}

/// Claims that this incarnation counts, and sees that no other start claims otherwise at the same time.
pub(super) async fn claim(
    site: &Site,
    identity: &str,
    incarnation: &Incarnation,
    holder: &str,
) -> Result<(), ReplicationError> {
    let claim = Claim {
        identity: identity.to_owned(),
        incarnation: incarnation.clone(),
        holder: holder.to_owned(),
        claimed_at: clock::epoch_seconds(),
    };
    site.write(CLAIM, &claim).await?;
    match site.claim().await? {
        Some(stored) if stored == claim => Ok(()),
        stored => Err(ReplicationError::Overtaken {
            place: site.base.to_string(),
            other: stored.map_or_else(|| incarnation.clone(), |stored| stored.incarnation),
        }),
    }
}

/// Litestream's socket has the incarnation in its name, so that one which runs for another is never taken for ours.
fn socket_path(data_dir: &Path, incarnation: &Incarnation) -> PathBuf {
    let name = format!("litestream-{}.sock", incarnation.id);
    let path = data_dir.join(&name);
    match path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        true => std::env::temp_dir().join(name),
        false => path,
    }
}
