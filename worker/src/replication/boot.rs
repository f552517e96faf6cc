//! How a data directory comes to its data and its prefix, before anything is opened: look, decide, claim, see that the
//! claim is ours, look again, restore. What is written can be cut off at any point: the next start takes it up.

use std::path::{Path, PathBuf};

use litejoin_crds::error::chain;
use litejoin_crds::plan::Plan;
use litejoin_crds::replication::RestorePolicy;
use tracing::{info, warn};

use super::config::File;
use super::directory::{CONFIG, Choice, Directory};
use super::incarnation::{
    Birth, Claim, Decision, Found, Incarnation, Local, Marker, Refusal, Remote, Wanted, check_claim, decide,
    restore,
};
use super::litestream::{self, Litestream};
use super::{BIRTH, CLAIM, PointInTime, Replica, ReplicationError, Site, Tools, files};
use crate::clock;
use crate::fault;
use crate::storage::hash::HASH_VERSION;
use crate::storage::layout::{FORMAT_VERSION, LockedDir, random_id, replace};

const LOCK: &str = "litestream.lock";

/// The longest path that a socket can have, with some room.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// What a directory is prepared for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Begin<'a> {
    /// Whatever is needed is done, and then a Litestream of ours is started, or somebody is told to start one.
    Run,
    /// The same for somebody who asks for data, and is not served by none.
    Restore,
    /// A Litestream of somebody else's runs already, by a configuration of ours: nothing may change.
    Prepared,
    /// To go back to this time.
    At(&'a PointInTime),
}

/// Gives a directory its data and its prefix. Where that can't be done without the risk of losing data or of writing
/// where somebody else does, it fails and has changed nothing that counts.
pub(crate) async fn prepare(
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
    let replication = &site.replication;
    let wanted = Wanted {
        identity: plan.identity.clone(),
        base: site.base.to_string(),
        shard_count: plan.storage.shard_count,
        hash_version: HASH_VERSION,
        format_version: FORMAT_VERSION,
        policy: if replication.restore_on_boot { replication.restore } else { RestorePolicy::Never },
        expects_replica: tools.expects_replica || matches!(begin, Begin::Restore),
    };
    let directory = Directory {
        locked,
        site: &site,
        litestream: &litestream,
        path: data_dir.clone(),
        files: files.clone(),
    };
    if !matches!(begin, Begin::Prepared) {
        directory.resume(plan.storage.shard_count, &plan.identity)?;
    }
    let local = directory.look()?;
    let mut is_away = false;
    let mut remote = match (site.look().await, &local) {
        (Ok(remote), _) => remote,
        // All of the data is here, and what is written goes below a prefix that nobody else writes. Whether the claim
        // still names us turns out when the store is back; until then nothing is told to be replicated.
        (Err(problem), Local::Marked { marker, is_copy: false, missing })
            if missing.is_empty()
                && marker.base == wanted.base
                && !matches!(begin, Begin::At(_))
                && (replication.restore_timestamp.is_none()
                    || replication.restore_timestamp == marker.gone_back_to) =>
        {
            warn!(
                error = chain(&problem),
                "the replica can't be reached; going on with the data of this directory"
            );
            is_away = true;
            let own = Found {
                incarnation: marker.incarnation.clone(),
                birth: birth(&wanted, &files),
                ready_at: marker.is_ready.then(clock::epoch_seconds),
            };
            Remote { claim: Some(held(marker, &wanted)), found: vec![own] }
        }
        (Err(problem), _) => return Err(problem),
    };
    let mut choice = choose(begin, &site, &local, &remote, &wanted).await?;
    if let (Begin::Prepared, false) = (&begin, matches!(choice.decision, Decision::GoOn(_))) {
        return Err(ReplicationError::NotPrepared { path: data_dir.display().to_string() });
    }
    let mut restored = None;
    let mut gone_on = None;
    if let (Decision::GoOn(own), Local::Marked { marker, .. }) = (&choice.decision, &local) {
        let held = &remote.claim.as_ref().expect("a directory goes on where the claim names it").holder;
        let mut marker = marker.clone().announcing(held, random_id());
        // READY may have been written just before the end.
        marker.is_ready |= remote.found.iter().any(|found| found.incarnation == *own && found.is_ready());
        directory.write_marker(&marker)?;
        fault::point("claim-announced");
        if let Some(holder) = marker.next_holder.clone().filter(|_| !is_away) {
            claim(&site, &wanted.identity, own, &holder).await?;
            fault::point("claim-renewed");
            marker = Marker { holder, next_holder: None, ..marker };
            let seen = site.look().await?;
            let is_overtaken = seen.newcomer(&remote).is_some_and(|found| found.incarnation != *own);
            if is_overtaken {
                // Its claim is what we have just written over. What it has told to be replicated counts.
                remote = seen.before_claim_of(own, remote);
                choice = choose(begin, &site, &local, &remote, &wanted).await?;
            }
        }
        gone_on = Some(marker).filter(|_| matches!(choice.decision, Decision::GoOn(_)));
    }
    let marker = if let Some(marker) = gone_on {
        marker
    } else {
        let (own, holder) = (Incarnation { number: remote.next_number(), id: random_id() }, random_id());
        // What a manifest asks for is done with this start, or with what somebody has asked for by hand.
        let timestamp = replication.restore_timestamp.as_ref();
        let gone_back_to =
            |choice: &Choice| timestamp.cloned().or_else(|| choice.decision.gone_back_to(&local));
        let born = |choice: &Choice| Birth {
            parent: parent(choice),
            gone_back_to: gone_back_to(choice),
            ..birth(&wanted, &files)
        };
        let birth_name = format!("{own}/{BIRTH}");
        site.write(&birth_name, &born(&choice)).await?;
        fault::point("incarnation-born");
        claim(&site, &wanted.identity, &own, &holder).await?;
        fault::point("incarnation-claimed");
        // From now on the one before us tells nobody that something is replicated: what is there now is all there is.
        remote = site.look().await?.before_claim_of(&own, remote);
        // Numbers grow from each to the next, and the next start takes a higher one.
        if let Some(other) = remote.claim.as_ref().map(|claim| &claim.incarnation)
            && other.number > own.number
        {
            return Err(ReplicationError::Overtaken { place: site.base.to_string(), other: other.clone() });
        }
        choice = choose(begin, &site, &local, &remote, &wanted).await?;
        site.write(&birth_name, &born(&choice)).await?;
        let marker = Marker {
            base: wanted.base.clone(),
            incarnation: own,
            holder,
            next_holder: None,
            is_ready: false,
            restoring: None,
            is_fresh: matches!(choice.decision, Decision::Empty { .. }),
            gone_back_to: gone_back_to(&choice),
            complete_until: choice.decision.complete_until(&local, clock::epoch_seconds()),
            lock_inode: locked.inode()?,
        };
        restored = directory.settle(plan, &choice, &local, &marker).await?;
        marker
    };
    directory.write_marker(&marker)?;
    fault::point("incarnation-marked");
    let socket = socket_path(&data_dir, &marker.incarnation);
    let config = data_dir.join(CONFIG);
    let text = site.litestream_config(&marker.incarnation, &files, Some(&socket));
    replace(&data_dir, CONFIG, &text).map_err(io(&config, "write the file"))?;
    info!(incarnation = %marker.incarnation, base = %site.base, "replicating");
    let identity = wanted.identity;
    Ok(Replica { site, identity, restored, litestream, marker, files, data_dir, socket, config, lock })
}

/// Decides how the directory comes to its data: as [`decide`] does, if nobody asks for an earlier time or another
/// pipeline's data.
async fn choose(
    begin: Begin<'_>,
    site: &Site,
    local: &Local,
    remote: &Remote,
    wanted: &Wanted,
) -> Result<Choice, ReplicationError> {
    check_claim(remote, wanted)?;
    let there_then =
        |remote: &Remote, place: &Site, point: &PointInTime| match remote.lived_at(point.seconds()).first() {
            Some(from) => Ok(restore(from, wanted)?),
            None => Err(ReplicationError::TooEarly { place: place.base.to_string() }),
        };
    let point = match begin {
        Begin::At(point) => {
            let decision = there_then(remote, site, point)?;
            return Ok(Choice { decision, elsewhere: None, point: Some(point.clone()) });
        }
        Begin::Run | Begin::Restore | Begin::Prepared => {
            let text = site.replication.restore_timestamp.as_deref();
            text.map(|text| text.parse().expect("a plan is made of what was found to be right"))
        }
    };
    let has_none = matches!(local, Local::Nothing) && remote.best().is_none();
    // Where it is known to have had a replica, having none is a mistake, and another's data is not its own.
    let had_one = wanted.expects_replica && !matches!(begin, Begin::Restore);
    if let Some(url) = &site.replication.restore_from_url
        && has_none
        && !had_one
        && wanted.policy != RestorePolicy::Never
    {
        let elsewhere = site.elsewhere(url)?;
        let remote = elsewhere.look().await?;
        let decision = match (&point, remote.best()) {
            (Some(point), _) => there_then(&remote, &elsewhere, point)?,
            (None, Some(best)) => restore(best, wanted)?,
            (None, None) => return Err(Refusal::NoReplica { base: elsewhere.base.to_string() }.into()),
        };
        return Ok(Choice { decision, elsewhere: Some(elsewhere), point });
    }
    let decision = decide(local, remote, wanted)?;
    match point.filter(|point| decision.gone_back_to(local).as_deref() != Some(&point.text)) {
        Some(point) => {
            let decision = there_then(remote, site, &point)?;
            Ok(Choice { decision, elsewhere: None, point: Some(point) })
        }
        None => Ok(Choice { decision, elsewhere: None, point: None }),
    }
}

/// Says that this incarnation counts, and sees that nobody says otherwise at the same time.
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

/// What is known of an incarnation before it is known whose data it begins with.
fn birth(wanted: &Wanted, files: &[File]) -> Birth {
    Birth {
        identity: wanted.identity.clone(),
        shard_count: wanted.shard_count,
        hash_version: wanted.hash_version,
        format_version: wanted.format_version,
        files: files.iter().map(|file| file.name.clone()).collect(),
        parent: None,
        gone_back_to: None,
        born_at: clock::epoch_seconds(),
    }
}

/// The claim that a directory held when it was last written.
fn held(marker: &Marker, wanted: &Wanted) -> Claim {
    Claim {
        identity: wanted.identity.clone(),
        incarnation: marker.incarnation.clone(),
        holder: marker.holder.clone(),
        claimed_at: 0,
    }
}

/// The incarnation whose data the next one begins with.
fn parent(choice: &Choice) -> Option<Incarnation> {
    match &choice.decision {
        _ if choice.elsewhere.is_some() => None,
        Decision::GoOn(_) | Decision::Empty { .. } => None,
        Decision::Keep { parent, .. } => parent.clone(),
        Decision::Restore { from } | Decision::Complete { from, .. } => Some(from.incarnation.clone()),
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
