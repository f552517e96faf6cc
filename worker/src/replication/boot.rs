//! How a data directory comes to its data and its prefix, before anything is opened: look, decide, claim, see that the
//! claim is ours, look again, restore. What is written can be cut off at any point: the next start takes it up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use litejoin_crds::plan::Plan;
use litejoin_crds::replication::RestorePolicy;
use tracing::{info, warn};

use super::config::File;
use super::cuts::Cut;
use super::incarnation::{
    Birth, Claim, Decision, Found, Incarnation, Local, Marker, Refusal, Remote, Wanted, check_claim, decide,
    restore,
};
use super::litestream::{self, Litestream, State};
use super::{BIRTH, CLAIM, PointInTime, Replica, ReplicationError, Site, Tools, files};
use crate::clock;
use crate::error::chain;
use crate::fault;
use crate::results::store::{self, RESULTS_FILE};
use crate::storage::hash::HASH_VERSION;
use crate::storage::layout::{FORMAT_VERSION, LockedDir, random_id, replace};

pub(super) const MARKER: &str = "replication.json";
const CONFIG: &str = "litestream.yml";
const RESTORE_CONFIG: &str = "litestream-restore.yml";
const LOCK: &str = "litestream.lock";
const RESTORING: &str = "restoring";
const SET_ASIDE: &str = "set-aside";

/// What is set aside beside the replicated files, their WALs and Litestream's notes.
const SET_ASIDE_TOO: [&str; 5] = ["layout.json", MARKER, CONFIG, RESTORING, "scratch"];

/// Restores that run at once.
const RESTORES: usize = 2;

/// How often a long restore says how far it is.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// The longest path that a socket can have, with some room.
const SOCKET_PATH_BYTES_MAX: usize = 100;

/// What a directory is prepared for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Begin<'a> {
    /// Whatever is needed is done, and then a Litestream of ours is started, or somebody is told to start one.
    Run,
    /// A Litestream of somebody else's runs already, by a configuration of ours: nothing may change.
    Prepared,
    /// To go back to this time.
    At(&'a PointInTime),
}

/// What was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Restored {
    /// The newest of each file.
    Newest,
    /// All files as they were at this instant, in milliseconds since the epoch.
    Cut { at: i64 },
    /// Each file as it was at its own last moment before the wanted time.
    Apart,
}

/// What is to be done.
struct Choice {
    decision: Decision,
    /// Another pipeline's replica, if the data comes from there.
    elsewhere: Option<Site>,
    /// As of when the data is restored; `None` is the newest.
    point: Option<PointInTime>,
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
        expects_replica: tools.expects_replica,
    };
    let directory = Directory {
        locked,
        site: &site,
        litestream: &litestream,
        path: data_dir.clone(),
        files: files.clone(),
    };
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
                birth: birth(&wanted, &files, None),
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
    let holder = random_id();
    let mut restored = None;
    let marker = if let Decision::GoOn(own) = &choice.decision {
        let Local::Marked { marker, .. } = local else { unreachable!("only a marked directory goes on") };
        let mut marker = Marker { next_holder: Some(holder.clone()), ..marker };
        // READY may have been written just before the end.
        marker.is_ready |= remote.found.iter().any(|found| found.incarnation == *own && found.is_ready());
        directory.write_marker(&marker)?;
        fault::point("claim-announced");
        if is_away {
            marker
        } else {
            claim(&site, &wanted.identity, own, &holder).await?;
            fault::point("claim-renewed");
            Marker { holder, next_holder: None, ..marker }
        }
    } else {
        let own = Incarnation { number: remote.next_number(), id: random_id() };
        // What a manifest asks for is done with this start, or with what somebody has asked for by hand.
        let timestamp = replication.restore_timestamp.as_ref();
        let gone_back_to =
            |choice: &Choice| timestamp.cloned().or_else(|| choice.decision.gone_back_to(&local));
        let born = |choice: &Choice| Birth {
            parent: parent(choice),
            gone_back_to: gone_back_to(choice),
            ..birth(&wanted, &files, None)
        };
        let birth_name = format!("{own}/{BIRTH}");
        site.write(&birth_name, &born(&choice)).await?;
        fault::point("incarnation-born");
        claim(&site, &wanted.identity, &own, &holder).await?;
        fault::point("incarnation-claimed");
        // From now on the one before us tells nobody that something is replicated: what is there now is all there is.
        let claimed_before = remote.claim.take();
        remote = site.look().await?;
        remote.claim = claimed_before;
        remote.found.retain(|found| found.incarnation != own);
        choice = choose(begin, &site, &local, &remote, &wanted).await?;
        site.write(&birth_name, &born(&choice)).await?;
        let marker = Marker {
            base: wanted.base.clone(),
            incarnation: own,
            holder,
            next_holder: None,
            is_ready: false,
            is_restoring: false,
            is_fresh: matches!(choice.decision, Decision::Empty { .. }),
            gone_back_to: gone_back_to(&choice),
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
        Begin::Run | Begin::Prepared => {
            let text = site.replication.restore_timestamp.as_deref();
            text.map(|text| text.parse().expect("a plan is made of what was found to be right"))
        }
    };
    let has_none = matches!(local, Local::Nothing) && remote.best().is_none();
    if let Some(url) = &site.replication.restore_from_url
        && has_none
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

fn birth(wanted: &Wanted, files: &[File], parent: Option<Incarnation>) -> Birth {
    Birth {
        identity: wanted.identity.clone(),
        shard_count: wanted.shard_count,
        hash_version: wanted.hash_version,
        format_version: wanted.format_version,
        files: files.iter().map(|file| file.name.clone()).collect(),
        parent,
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

/// A data directory before it is opened.
struct Directory<'a> {
    locked: &'a LockedDir,
    site: &'a Site,
    litestream: &'a Litestream,
    path: PathBuf,
    files: Vec<File>,
}

impl Directory<'_> {
    fn io(&self, doing: &'static str) -> impl Fn(std::io::Error) -> ReplicationError + use<> {
        let path = self.path.display().to_string();
        move |source| ReplicationError::Io { path: path.clone(), doing, source }
    }

    fn look(&self) -> Result<Local, ReplicationError> {
        let marker = match std::fs::read(self.path.join(MARKER)) {
            Ok(bytes) => Some(serde_json::from_slice::<Marker>(&bytes).map_err(|error| {
                ReplicationError::Unreadable {
                    place: self.path.display().to_string(),
                    name: MARKER.to_owned(),
                    detail: error.to_string(),
                }
            })?),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(self.io("read replication.json")(error)),
        };
        let Some(marker) = marker else {
            return Ok(if self.locked.has_data()? { Local::Unmarked } else { Local::Nothing });
        };
        let has_data = self.locked.has_data()?;
        if marker.is_restoring || !(has_data || marker.is_fresh) {
            return Ok(Local::Nothing);
        }
        let is_missing = |file: &&File| !marker.is_fresh && !file.path.exists();
        let missing = self.files.iter().filter(is_missing).map(|file| file.name.clone()).collect();
        let is_copy = marker.lock_inode != self.locked.inode()?;
        Ok(Local::Marked { missing, marker, is_copy })
    }

    fn write_marker(&self, marker: &Marker) -> Result<(), ReplicationError> {
        let bytes = serde_json::to_vec_pretty(marker).expect("plain values are always JSON");
        replace(&self.path, MARKER, &bytes).map_err(self.io("write replication.json"))
    }

    /// Does what was decided, so that the directory may write the marker's incarnation.
    async fn settle(
        &self,
        plan: &Plan,
        choice: &Choice,
        local: &Local,
        marker: &Marker,
    ) -> Result<Option<Restored>, ReplicationError> {
        let source = choice.elsewhere.as_ref().unwrap_or(self.site);
        let mut restored = None;
        match &choice.decision {
            Decision::Empty { why } => {
                warn!(base = %self.site.base, why, "starting empty: nothing is restored");
                self.set_aside(local)?;
            }
            Decision::GoOn(_) => self.forget_litestream()?,
            Decision::Keep { why, .. } => {
                info!(base = %self.site.base, why, "the data of this directory counts; copying all of it");
                // What Litestream knew of its old place.
                self.forget_litestream()?;
            }
            Decision::Restore { from } => {
                self.set_aside(local)?;
                self.write_marker(&Marker { is_restoring: true, ..marker.clone() })?;
                fault::point("restore-begun");
                // One that lies elsewhere is not set aside, and so stays.
                let is_wanted = |file: &&File| from.birth.files.contains(&file.name) && !file.path.exists();
                let all: Vec<File> = self.files.iter().filter(is_wanted).cloned().collect();
                restored = Some(self.restore(source, from, &all, choice.point.as_ref()).await?);
                let lineage = self.locked.lay_out(plan.storage.shard_count, &plan.identity)?;
                store::adopt(&self.path.join(RESULTS_FILE), &lineage)?;
                fault::point("results-adopted");
            }
            Decision::Complete { from, missing } => {
                let files: Vec<File> =
                    self.files.iter().filter(|file| missing.contains(&file.name)).cloned().collect();
                restored = Some(self.restore(source, from, &files, None).await?);
                self.forget_litestream()?;
                let lineage = self.locked.lay_out(plan.storage.shard_count, &plan.identity)?;
                store::adopt(&self.path.join(RESULTS_FILE), &lineage)?;
            }
        }
        Ok(restored)
    }

    /// Fetches files of an incarnation, and moves them to their places when all are there and sound.
    async fn restore(
        &self,
        source: &Site,
        from: &Found,
        files: &[File],
        point: Option<&PointInTime>,
    ) -> Result<Restored, ReplicationError> {
        let folder = self.path.join(RESTORING);
        make_empty(&folder).map_err(self.io("make a folder for the restore"))?;
        info!(incarnation = %from.incarnation, files = files.len(), base = %source.base, "restoring");
        let restored = fetch(source, self.litestream, from, files, point, &folder).await?;
        fault::point("files-fetched");
        for file in files {
            for suffix in ["-wal", "-shm"] {
                let mut beside = file.path.clone().into_os_string();
                beside.push(suffix);
                remove_file(Path::new(&beside)).map_err(self.io("remove what stood there"))?;
            }
            move_file(&folder.join(&file.name), &file.path).map_err(self.io("move a restored file"))?;
            fault::point("file-moved");
        }
        std::fs::remove_dir_all(&folder).map_err(self.io("remove the folder of the restore"))?;
        Ok(restored)
    }

    /// Moves what is in the directory out of the way; nothing of it is lost.
    fn set_aside(&self, local: &Local) -> Result<(), ReplicationError> {
        let was = match local {
            Local::Marked { marker, .. } => marker.incarnation.to_string(),
            Local::Unmarked | Local::Nothing => "unfinished".to_owned(),
        };
        let folder = self.path.join(SET_ASIDE).join(format!("{was}-{}", clock::epoch_seconds()));
        let of_files =
            self.files.iter().filter(|file| file.path.parent() == Some(&self.path)).flat_map(|file| {
                let name = &file.name;
                [name.clone(), format!("{name}-wal"), format!("{name}-shm"), format!(".{name}-litestream")]
            });
        let mut moved = false;
        for name in of_files.chain(SET_ASIDE_TOO.map(str::to_owned)) {
            let path = self.path.join(&name);
            if !path.exists() {
                continue;
            }
            std::fs::create_dir_all(&folder).map_err(self.io("make a folder for what is set aside"))?;
            std::fs::rename(path, folder.join(&name)).map_err(self.io("set data aside"))?;
            moved = true;
        }
        if moved {
            warn!(folder = %folder.display(), "what was in the data directory is set aside");
        }
        Ok(())
    }

    /// Removes Litestream's notes: another prefix begins with a copy of everything.
    fn forget_litestream(&self) -> Result<(), ReplicationError> {
        for file in &self.files {
            let (Some(folder), Some(name)) = (file.path.parent(), file.path.file_name()) else { continue };
            let notes = folder.join(format!(".{}-litestream", name.to_string_lossy()));
            match std::fs::remove_dir_all(&notes) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(self.io("remove Litestream's notes")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes what was set aside before a time; what can't be removed stays.
pub(super) fn remove_set_aside(data_dir: &Path, before: i64) {
    let Ok(entries) = std::fs::read_dir(data_dir.join(SET_ASIDE)) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let since = name.to_str().and_then(|name| name.rsplit_once('-')?.1.parse::<i64>().ok());
        if since.is_some_and(|since| since < before) && std::fs::remove_dir_all(entry.path()).is_ok() {
            info!(folder = %entry.path().display(), "removed what was set aside long ago");
        }
    }
}

/// Fetches files of an incarnation into an empty folder, under their names in the replica: all as of one instant, if one
/// was noted near the wanted time.
pub(crate) async fn fetch(
    site: &Site,
    litestream: &Litestream,
    from: &Found,
    files: &[File],
    point: Option<&PointInTime>,
    folder: &Path,
) -> Result<Restored, ReplicationError> {
    let Some(point) = point else {
        fetch_as(site, litestream, from, files, |_| State::Newest, folder).await?;
        return Ok(Restored::Newest);
    };
    let cuts = site.cuts(&from.incarnation).await?;
    let has_all = |cut: &&Cut| files.iter().all(|file| cuts.txid(cut, &file.name).is_some());
    if let Some(cut) = cuts.nearest(point.milliseconds).filter(has_all) {
        let state = |file: &File| State::After(cuts.txid(cut, &file.name).unwrap_or_default());
        match fetch_as(site, litestream, from, files, state, folder).await {
            Ok(()) => return Ok(Restored::Cut { at: cut.at }),
            Err(problem) => warn!(
                error = chain(&problem),
                "the exact cut before that time can't be restored any more; taking each file as of its own last moment"
            ),
        }
        make_empty(folder).map_err(|source| ReplicationError::Io {
            path: folder.display().to_string(),
            doing: "empty the folder",
            source,
        })?;
    }
    fetch_as(site, litestream, from, files, |_| State::At(point.text.clone()), folder).await?;
    Ok(Restored::Apart)
}

/// Fetches each file in the state that is wanted of it.
async fn fetch_as(
    site: &Site,
    litestream: &Litestream,
    from: &Found,
    files: &[File],
    state: impl Fn(&File) -> State,
    folder: &Path,
) -> Result<(), ReplicationError> {
    let config = folder.join(RESTORE_CONFIG);
    let text = site.litestream_config(&from.incarnation, files, None);
    replace(folder, RESTORE_CONFIG, &text).map_err(|source| ReplicationError::Io {
        path: config.display().to_string(),
        doing: "write the file",
        source,
    })?;
    let restores = futures::stream::iter(files.iter().map(|file| {
        let (config, target, state) = (&config, folder.join(&file.name), state(file));
        async move { litestream.restore(config, &file.path, &target, &state).await }
    }));
    let mut restores = restores.buffer_unordered(RESTORES);
    let mut done = 0;
    let mut tell = tokio::time::interval(TELL_INTERVAL);
    tell.tick().await;
    while done < files.len() {
        tokio::select! {
            restored = restores.try_next() => {
                restored?;
                done += 1;
            }
            _ = tell.tick() => {
                let mebibytes = litestream::folder_bytes(folder) >> 20;
                info!(files = done, of = files.len(), mebibytes, "still restoring");
            }
        }
    }
    Ok(())
}

fn make_empty(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::create_dir(folder),
    }
}

fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Moves a file, to another file system if need be.
fn move_file(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::CrossesDevices => {
            std::fs::copy(from, to)?;
            std::fs::File::open(to)?.sync_all()?;
            std::fs::remove_file(from)
        }
        outcome => outcome,
    }
}
