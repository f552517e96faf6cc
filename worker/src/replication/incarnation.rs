//! Which copy of the data counts, and under which prefix a worker may write. Two Litestreams on one prefix destroy it,
//! so a prefix has one writer for ever: an *incarnation*, minted when a directory is made, restored or taken over, with
//! a random part in its name, so that no race can make the same one twice. [`super::decision`]
//! decides by these values what a start does; looking, claiming and restoring is [`super::boot`]'s.
//!
//! ```text
//! <replicaUrl>/<identity>/<ordinal>/claim.json                 the incarnation that counts, and who holds it
//!                                  /incarnation-7-<id>/birth.json, READY, shard_0.db/…, results.db/…
//! ```

use std::fmt;
use std::str::FromStr;

use litejoin_crds::replication::RestorePolicy;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The name of a prefix that one directory alone writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Incarnation {
    /// Grows from each to the next.
    pub(crate) number: u64,
    /// Random.
    pub(crate) id: String,
}

const PREFIX: &str = "incarnation-";

impl fmt::Display for Incarnation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{PREFIX}{}-{}", self.number, self.id)
    }
}

impl FromStr for Incarnation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no name of an incarnation");
        let (number, id) =
            text.strip_prefix(PREFIX).and_then(|rest| rest.split_once('-')).ok_or_else(wrong)?;
        let number = number.parse().map_err(|_| wrong())?;
        let is_plain = !id.is_empty() && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        is_plain.then(|| Self { number, id: id.to_owned() }).ok_or_else(wrong)
    }
}

impl Serialize for Incarnation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Incarnation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `claim.json`: the worker that it names may go on, every other one ends. Only a start writes it, so nothing that runs can
/// overwrite its successor's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Claim {
    /// Whose data it is.
    pub(crate) identity: String,
    pub(crate) incarnation: Incarnation,
    /// Random, new at each start.
    pub(crate) holder: String,
    /// Seconds since the epoch, for people.
    pub(crate) claimed_at: i64,
}

/// `birth.json`, written before an incarnation is claimed: what it consists of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Birth {
    pub(crate) identity: String,
    pub(crate) shard_count: usize,
    pub(crate) hash_version: u32,
    pub(crate) format_version: u32,
    /// Names of the replicated files.
    pub(crate) files: Vec<String>,
    /// The one whose data it began with.
    pub(crate) parent: Option<Incarnation>,
    /// `restore.timestamp` that was gone back to last, in this one or in those before it.
    #[serde(default)]
    pub(crate) gone_back_to: Option<String>,
    /// Seconds since the epoch.
    pub(crate) born_at: i64,
}

/// An incarnation that lies in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundIncarnation {
    pub(crate) incarnation: Incarnation,
    pub(crate) birth: Birth,
    /// When each of its files was there as a whole for the first time, in seconds since the epoch; `None` before.
    pub(crate) ready_at: Option<i64>,
}

impl FoundIncarnation {
    pub(crate) fn is_ready(&self) -> bool {
        self.ready_at.is_some()
    }

    /// Checks that a worker of these versions can read its files; `base` is where it lies.
    pub(crate) fn check_format(
        &self,
        base: &str,
        format_version: u32,
        hash_version: u32,
    ) -> Result<(), StartRefusal> {
        let found = self.birth.format_version;
        if found == format_version && self.birth.hash_version == hash_version {
            return Ok(());
        }
        let (base, incarnation) = (base.to_owned(), self.incarnation.clone());
        Err(StartRefusal::Format { base, incarnation, found, wanted: format_version })
    }
}

/// `replication.json` in a data directory: which incarnation it writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Marker {
    /// Where the incarnations lie.
    pub(crate) base: String,
    pub(crate) incarnation: Incarnation,
    /// As which it holds the claim.
    pub(crate) holder: String,
    /// As which it was about to hold it, when it was written.
    pub(crate) next_holder: Option<String>,
    /// Whether the incarnation is known to be READY.
    pub(crate) is_ready: bool,
    /// How far a restore is of which all files were fetched.
    #[serde(default)]
    pub(crate) restoring: Option<Restoring>,
    /// Whether the directory is empty as it should be, since no worker has run on it yet.
    #[serde(default)]
    pub(crate) is_fresh: bool,
    /// `restore.timestamp` that was gone back to last.
    #[serde(default)]
    pub(crate) gone_back_to: Option<String>,
    /// Commits from before this time, in seconds since the epoch, were in the replica when this was written last.
    #[serde(default)]
    pub(crate) complete_until: Option<i64>,
    /// The inode of the lock file: another one in a copy of the directory.
    pub(crate) lock_inode: u64,
    /// Shards of the incarnation; `None` where an earlier version has written the marker.
    #[serde(default)]
    pub(crate) shard_count: Option<usize>,
}

/// The rest of a restore once all of its files lie beside the data: it needs no store any more, and a start that finds it
/// goes on with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Restoring {
    /// Shards of what was fetched.
    pub(crate) shard_count: usize,
    /// The folder that takes what is in the directory; `None` once nothing of that is left.
    pub(crate) set_aside: Option<String>,
}

impl Marker {
    /// Whether it is this directory that a claim names.
    pub(crate) fn is_named_by(&self, claim: Option<&Claim>) -> bool {
        claim.is_some_and(|claim| claim.incarnation == self.incarnation && claim.holder == self.holder)
    }

    /// The marker to write before renewing the claim. `held` is the holder now in the claim. Keeps an earlier
    /// `next_holder` that has not appeared there yet, because that write may still arrive; otherwise uses `drawn`.
    pub(crate) fn announcing(self, held: &str, drawn: String) -> Self {
        let announced = self.next_holder.filter(|announced| announced != held);
        Self { holder: held.to_owned(), next_holder: Some(announced.unwrap_or(drawn)), ..self }
    }
}

/// The contents of a data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Local {
    /// Nothing, or a restore that is under way.
    Nothing,
    /// Data that was never replicated.
    Unmarked,
    Marked {
        marker: Box<Marker>,
        /// Whether the directory is a copy of the one that was marked.
        is_copy: bool,
        /// Files that it should hold and does not.
        missing: Vec<String>,
    },
}

/// The contents of the store.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Remote {
    pub(crate) claim: Option<Claim>,
    pub(crate) found: Vec<FoundIncarnation>,
}

/// The requirements of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requirements {
    pub(crate) identity: String,
    /// Where its incarnations lie.
    pub(crate) base: String,
    pub(crate) shard_count: usize,
    /// Shards that a replica may have of which the data is then moved to those.
    pub(crate) reshard_from: Option<usize>,
    pub(crate) hash_version: u32,
    pub(crate) format_version: u32,
    pub(crate) policy: RestorePolicy,
    /// Whether the user says that there is a replica.
    pub(crate) expects_replica: bool,
    /// The incarnation that the user knows to be gone.
    pub(crate) begin_anew: Option<String>,
}

/// How a directory comes to its data and its prefix. All but the first mint an incarnation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The directory goes on in its own incarnation.
    GoOn(Incarnation),
    /// The directory's data counts, under a new incarnation.
    Keep { parent: Option<Incarnation>, why: &'static str },
    /// The data comes from the store; what is in the directory is set aside.
    Restore { from: FoundIncarnation },
    /// Some files come from the store, beside those that are there.
    Complete { from: FoundIncarnation, missing: Vec<String> },
    /// There is no data anywhere.
    Empty { why: &'static str },
}

/// Why a worker does not start: it could lose data, or take another pipeline's for its own.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StartRefusal {
    #[error(
        "{base}: holds the replica of pipeline {found:?}, and this is {wanted:?}; write another replicaUrl, or that \
         identity (spec.replication.identity)"
    )]
    Foreign { base: String, found: String, wanted: String },
    #[error(
        "{base}: nothing is there, and this data was replicated there as {incarnation}; look at replicaUrl, endpoint and \
         credentials. To begin a new replica with the data that is here, write spec.replication.beginAnew: {incarnation}"
    )]
    Gone { base: String, incarnation: Incarnation },
    #[error(
        "{base}: there is no replica, and one is asked for (restore.fromUrl, restore.policy: Required, or \
         --expect-replica); look at the URL, endpoint and credentials, or ask for none to start empty"
    )]
    NoReplica { base: String },
    #[error(
        "{base}: the claim names {claimed}, and that is not there: the replica is damaged, or only a part of it was \
         copied; put it back, or write restore.policy: Never to start without it"
    )]
    Damaged { base: String, claimed: Incarnation },
    #[error(
        "{base}: holds a replica ({claimed}) that this data directory knows nothing of; write another replicaUrl or \
         identity for this one"
    )]
    Occupied { base: String, claimed: Incarnation },
    #[error(
        "{base}: {newer} has taken over from this data directory, and restore.policy is Never (or restoreOnBoot \
         false); write Auto to restore it"
    )]
    Overtaken { base: String, newer: Incarnation },
    #[error(
        "{base}: {incarnation} holds {found} shards, and the pipeline wants storage.shardCount {wanted}; set it back \
         to {found}, or write storage.reshard: {{fromShardCount: {found}, toShardCount: {wanted}}} to restore and move it"
    )]
    ShardCount { base: String, incarnation: Incarnation, found: usize, wanted: usize },
    #[error(
        "{base}: {incarnation} was written in format {found}, and this worker reads format {wanted}; run the version \
         of litejoin that wrote it"
    )]
    Format { base: String, incarnation: Incarnation, found: u32, wanted: u32 },
}

impl Decision {
    /// The incarnation whose data the next one begins with.
    pub(crate) fn parent(&self) -> Option<Incarnation> {
        match self {
            Decision::GoOn(_) | Decision::Empty { .. } => None,
            Decision::Keep { parent, .. } => parent.clone(),
            Decision::Restore { from } | Decision::Complete { from, .. } => Some(from.incarnation.clone()),
        }
    }

    /// The `restore.timestamp` that the data was gone back to last which this leads to.
    pub(crate) fn gone_back_to(&self, local: &Local) -> Option<String> {
        match (self, local) {
            (Decision::Restore { from }, _) => from.birth.gone_back_to.clone(),
            (Decision::Empty { .. }, _) => None,
            (_, Local::Marked { marker, .. }) => marker.gone_back_to.clone(),
            _ => None,
        }
    }

    /// The time before which nothing was committed that is in this directory alone, in seconds since the epoch. Data that
    /// is replicated for the first time counts from `now` on; what there was before is told by READY.
    pub(crate) fn complete_until(&self, local: &Local, now: i64) -> Option<i64> {
        match (self, local) {
            (Decision::Restore { .. } | Decision::Empty { .. }, _) => Some(now),
            (_, Local::Marked { marker, .. }) => marker.complete_until,
            _ => Some(now),
        }
    }
}

impl Remote {
    /// The incarnation that a restore takes: the claimed one once it is READY, until then the newest that is.
    pub(crate) fn best(&self) -> Option<&FoundIncarnation> {
        let ready = || self.found.iter().filter(|found| found.is_ready());
        let claimed = self.claim.as_ref().map(|claim| &claim.incarnation);
        ready()
            .find(|found| Some(&found.incarnation) == claimed)
            .or_else(|| ready().max_by_key(|found| &found.incarnation))
    }

    /// The newest incarnation that became READY after `before` was read. Its owner may have acknowledged messages as
    /// replicated, so a worker that overwrote its claim must restore from it.
    pub(crate) fn newcomer(&self, before: &Remote) -> Option<&FoundIncarnation> {
        let was_ready = |found: &FoundIncarnation| {
            before.found.iter().any(|then| then.incarnation == found.incarnation && then.is_ready())
        };
        let claimed = before.claim.as_ref().map(|claim| &claim.incarnation);
        let newcomers = self.found.iter().filter(|found| found.is_ready() && !was_ready(found));
        newcomers.max_by_key(|found| {
            let FoundIncarnation { incarnation, .. } = found;
            (incarnation.number, Some(incarnation) != claimed)
        })
    }

    /// The same for a worker that has just claimed it for `own`, and saw `before` earlier: with the claim that counted
    /// until then, and without `own`.
    pub(crate) fn before_claim_of(mut self, own: &Incarnation, before: Remote) -> Self {
        self.found.retain(|found| found.incarnation != *own);
        let newcomer = self.newcomer(&before).map(|found| found.incarnation.clone());
        self.claim = match (before.claim, newcomer) {
            // No worker is left that holds it.
            (Some(claim), Some(incarnation)) if claim.incarnation != incarnation => {
                Some(Claim { incarnation, holder: String::new(), ..claim })
            }
            (claim, _) => claim,
        };
        self
    }

    /// The incarnations that may hold the data of a time, in seconds since the epoch; the most likely one comes first.
    pub(crate) fn lived_at(&self, seconds: i64) -> Vec<&FoundIncarnation> {
        let mut all: Vec<&FoundIncarnation> =
            self.found.iter().filter(|found| found.ready_at.is_some_and(|at| at <= seconds)).collect();
        all.sort_by_key(|found| std::cmp::Reverse((found.birth.born_at, &found.incarnation)));
        all
    }

    /// The incarnations that are of no use any more beside `own`: a later one that is READY was born before this time.
    pub(crate) fn outlived(&self, own: &Incarnation, before: i64) -> Vec<&Incarnation> {
        let claimed = self.claim.as_ref().map(|claim| &claim.incarnation);
        let is_outlived = |incarnation: &Incarnation| {
            self.found.iter().any(|later| {
                later.is_ready()
                    && later.birth.born_at < before
                    && later.incarnation.number > incarnation.number
            })
        };
        let all = self.found.iter().map(|found| &found.incarnation);
        all.filter(|incarnation| {
            *incarnation != own && Some(*incarnation) != claimed && is_outlived(incarnation)
        })
        .collect()
    }

    /// The number of the incarnation that is to follow.
    pub(crate) fn next_number(&self) -> u64 {
        let found = self.found.iter().map(|found| found.incarnation.number);
        found.chain(self.claim.iter().map(|claim| claim.incarnation.number)).max().unwrap_or(0) + 1
    }
}

/// Decides how a directory comes to its data and its prefix.
pub(crate) fn decide(
    local: &Local,
    remote: &Remote,
    wanted: &Requirements,
) -> Result<Decision, StartRefusal> {
    let base = || wanted.base.clone();
    check_claim(remote, wanted)?;
    let best = remote.best();
    match local {
        Local::Nothing if wanted.policy == RestorePolicy::Never => {
            Ok(Decision::Empty { why: "restore.policy is Never, or restoreOnBoot false" })
        }
        Local::Nothing => match best {
            Some(from) => restore(from, wanted),
            None if wanted.policy == RestorePolicy::Required || wanted.expects_replica => {
                Err(StartRefusal::NoReplica { base: base() })
            }
            None if remote.claim.is_some() => {
                Ok(Decision::Empty { why: "the replica was never complete, so there is nothing to restore" })
            }
            None => Ok(Decision::Empty { why: "nothing was ever replicated there" }),
        },
        Local::Unmarked => begin(remote, wanted, "it is replicated for the first time"),
        Local::Marked { marker, .. } if marker.base != wanted.base => {
            begin(remote, wanted, "its replica has moved")
        }
        Local::Marked { marker, is_copy, missing } => marked(marker, *is_copy, missing, remote, wanted),
    }
}

/// Sees that the claim is this pipeline's, and about something that is there.
pub(super) fn check_claim(remote: &Remote, wanted: &Requirements) -> Result<(), StartRefusal> {
    let Some(claim) = &remote.claim else { return Ok(()) };
    let base = wanted.base.clone();
    if claim.identity != wanted.identity {
        let (found, wanted) = (claim.identity.clone(), wanted.identity.clone());
        return Err(StartRefusal::Foreign { base, found, wanted });
    }
    let is_there = remote.found.iter().any(|found| found.incarnation == claim.incarnation);
    match is_there || wanted.policy == RestorePolicy::Never {
        true => Ok(()),
        false => Err(StartRefusal::Damaged { base, claimed: claim.incarnation.clone() }),
    }
}

/// Decides for data that was never replicated to this place: it may begin there if nothing is.
fn begin(remote: &Remote, wanted: &Requirements, why: &'static str) -> Result<Decision, StartRefusal> {
    let claimed = remote.claim.as_ref().map(|claim| &claim.incarnation);
    match claimed.or(remote.best().map(|best| &best.incarnation)) {
        None => Ok(Decision::Keep { parent: None, why }),
        Some(claimed) => Err(StartRefusal::Occupied { base: wanted.base.clone(), claimed: claimed.clone() }),
    }
}

/// Decides for a directory that was replicated to the same place before.
fn marked(
    marker: &Marker,
    is_copy: bool,
    missing: &[String],
    remote: &Remote,
    wanted: &Requirements,
) -> Result<Decision, StartRefusal> {
    let base = || wanted.base.clone();
    let own = &marker.incarnation;
    let best = remote.best();
    let keep = |why| Decision::Keep { parent: Some(own.clone()), why };
    let Some(claim) = &remote.claim else {
        // The claim is written last, so a first start may have died before it; nothing was READY then.
        return match marker.is_ready || best.is_some() {
            true if wanted.begin_anew.as_deref() == Some(&own.to_string()) => {
                Ok(keep("a new replica is asked for in place of one that is gone"))
            }
            true => Err(StartRefusal::Gone { base: base(), incarnation: own.clone() }),
            false => Ok(keep("its first start came to no claim")),
        };
    };
    let holds = [Some(&marker.holder), marker.next_holder.as_ref()].contains(&Some(&claim.holder));
    let is_own = claim.incarnation == *own && holds && !is_copy;
    let own_birth = remote.found.iter().find(|found| found.incarnation == *own).map(|found| &found.birth);
    let own_count = marker.shard_count.or(own_birth.map(|birth| birth.shard_count));
    let decision = match best {
        _ if is_own && own_count.is_some_and(|count| count != wanted.shard_count) => {
            keep("its data was moved to another number of shards")
        }
        _ if is_own => Decision::GoOn(own.clone()),
        // The worker that took over has never been READY: this directory holds all that was ever acknowledged as replicated.
        None => keep("no other was ever complete"),
        Some(best) if best.incarnation.number < own.number => keep("no later one was ever complete"),
        Some(best) if best.incarnation == *own && !is_copy && claim.incarnation != *own => {
            keep("whoever took over was never complete")
        }
        Some(best) if wanted.policy == RestorePolicy::Never => {
            return Err(StartRefusal::Overtaken { base: base(), newer: best.incarnation.clone() });
        }
        Some(from) => return restore(from, wanted),
    };
    // The directory's data counts, and is made whole first: a worker that goes on without a file never gets it back.
    let Some(from) = best else { return Ok(decision) };
    let missing: Vec<String> =
        missing.iter().filter(|name| from.birth.files.contains(name)).cloned().collect();
    if missing.is_empty() {
        return Ok(decision);
    }
    let all = restore(from, wanted)?;
    match from.birth.shard_count == wanted.shard_count {
        true => Ok(Decision::Complete { from: from.clone(), missing }),
        // Shards of two layouts are no data.
        false => Ok(all),
    }
}

/// Takes the data from there, whatever the directory holds, if this worker can read it.
pub(super) fn restore(from: &FoundIncarnation, wanted: &Requirements) -> Result<Decision, StartRefusal> {
    from.check_format(&wanted.base, wanted.format_version, wanted.hash_version)?;
    let (base, incarnation) = (wanted.base.clone(), from.incarnation.clone());
    let shard_count = from.birth.shard_count;
    if shard_count != wanted.shard_count && Some(shard_count) != wanted.reshard_from {
        return Err(StartRefusal::ShardCount {
            base,
            incarnation,
            found: shard_count,
            wanted: wanted.shard_count,
        });
    }
    Ok(Decision::Restore { from: from.clone() })
}

#[cfg(test)]
pub(super) mod tests;
