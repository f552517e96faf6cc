//! The decisions of a start, from what it has seen of its directory and of the store. Pure: two starts that race see different
//! things, and each pair of sights is a row of the tests. [`super::boot`] looks, claims and restores.

use litejoin_crds::replication::RestorePolicy;

use super::incarnation::{
    Birth, Claim, Decision, FoundIncarnation, Incarnation, Local, Marker, Remote, Requirements, StartRefusal,
    check_claim, decide, restore,
};
use super::{PointInTime, ReplicationError};

/// The purpose for which a directory is prepared.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Begin<'a> {
    /// To be run: all that is needed is done, and then a Litestream is started, by us or by the user.
    Run,
    /// The same for a user who asks for data: having none is an error.
    Restore,
    /// A Litestream that is not ours runs already, by a configuration of ours: nothing may change.
    Prepared,
    /// To go back to this time.
    At(&'a PointInTime),
}

/// The wishes of a start's command and of the manifest.
#[derive(Debug, Clone)]
pub(super) struct Request<'a> {
    pub(super) begin: Begin<'a>,
    /// `restore.timestamp`: the time that the data is to be gone back to once.
    pub(super) timestamp: Option<PointInTime>,
    /// `restore.fromUrl`: another pipeline's replica, for a start that has nothing of its own.
    pub(super) from_url: Option<&'a str>,
}

/// Where a directory's data comes from, by what was seen so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DataOrigin {
    /// From the directory, or from the pipeline's own replica.
    Own(Decision, Option<PointInTime>),
    /// From another pipeline's replica, which has to be looked at.
    Elsewhere(String, Option<PointInTime>),
}

/// The outcome of renewing a claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Renewal {
    /// The claim was ours all the time.
    Held,
    /// Another start had claimed in between. This is what counted before ours wrote over its claim.
    Overtaken(Remote),
}

/// The contents that the store is taken to have when it can't be reached; `None` if the start can't do without it. All of the data
/// has to be in the directory, and what is written goes below a prefix that no other writes. Whether the claim still
/// names us turns out when the store is back; until then nothing is told to be replicated. `birth` is that of now.
pub(super) fn without_store(
    request: &Request<'_>,
    local: &Local,
    wanted: &Requirements,
    birth: Birth,
) -> Option<Remote> {
    let Local::Marked { marker, is_copy: false, missing } = local else { return None };
    let asks_for_no_more = match (&request.begin, &request.timestamp) {
        (Begin::At(_), _) => false,
        (_, None) => true,
        (_, Some(point)) => marker.gone_back_to.as_ref() == Some(&point.text),
    };
    let has_moved = marker.shard_count.is_some_and(|count| count != wanted.shard_count);
    if !missing.is_empty() || marker.base != wanted.base || !asks_for_no_more || has_moved {
        return None;
    }
    let ready_at = marker.is_ready.then_some(birth.born_at);
    let own = FoundIncarnation { incarnation: marker.incarnation.clone(), birth, ready_at };
    Some(Remote { claim: Some(held(marker, wanted)), found: vec![own] })
}

/// The incarnation of this directory if it is gone, and nobody asks for data of it or for a new one. The worker then goes on as if the
/// store were away: it may come back with all that it held.
pub(super) fn gone(
    request: &Request<'_>,
    local: &Local,
    remote: &Remote,
    wanted: &Requirements,
) -> Option<Incarnation> {
    let (Begin::Run | Begin::Prepared, Local::Marked { marker, .. }) = (request.begin, local) else {
        return None;
    };
    let own = &marker.incarnation;
    let is_asked_for = wanted.begin_anew.as_deref() == Some(&own.to_string());
    let is_there = remote.claim.is_some() || !remote.found.is_empty();
    (marker.is_ready && marker.base == wanted.base && !is_there && !is_asked_for).then(|| own.clone())
}

/// The number of the incarnation that a start mints: above all that the store and the directory know of, so that an old
/// one that comes back does not count for newer.
pub(super) fn next_number(local: &Local, remote: &Remote) -> u64 {
    let own = match local {
        Local::Marked { marker, .. } => marker.incarnation.number + 1,
        Local::Nothing | Local::Unmarked => 0,
    };
    remote.next_number().max(own)
}

/// Decides where the directory's data comes from: as [`decide`] does, unless an earlier time or another pipeline's
/// data is asked for.
pub(super) fn origin(
    request: &Request<'_>,
    local: &Local,
    remote: &Remote,
    wanted: &Requirements,
) -> Result<DataOrigin, ReplicationError> {
    check_claim(remote, wanted)?;
    if let Begin::At(point) = request.begin {
        return Ok(DataOrigin::Own(lived_then(remote, &wanted.base, point, wanted)?, Some(point.clone())));
    }
    let point = request.timestamp.clone();
    let has_none = matches!(local, Local::Nothing) && remote.best().is_none();
    // Where it is known to have had a replica, having none is a mistake, and another's data is not its own.
    let had_one = wanted.expects_replica && !matches!(request.begin, Begin::Restore);
    let may_restore = wanted.policy != RestorePolicy::Never;
    if let Some(url) = request.from_url.filter(|_| has_none && !had_one && may_restore) {
        return Ok(DataOrigin::Elsewhere(url.to_owned(), point));
    }
    let decision = decide(local, remote, wanted)?;
    match point.filter(|point| decision.gone_back_to(local).as_deref() != Some(&point.text)) {
        Some(point) => Ok(DataOrigin::Own(lived_then(remote, &wanted.base, &point, wanted)?, Some(point))),
        None => Ok(DataOrigin::Own(decision, None)),
    }
}

/// Decides what is taken of another pipeline's replica at `base`.
pub(super) fn from_elsewhere(
    remote: &Remote,
    base: &str,
    point: Option<&PointInTime>,
    wanted: &Requirements,
) -> Result<Decision, ReplicationError> {
    match (point, remote.best()) {
        (Some(point), _) => lived_then(remote, base, point, wanted),
        (None, Some(best)) => Ok(restore(best, wanted)?),
        (None, None) => Err(StartRefusal::NoReplica { base: base.to_owned() }.into()),
    }
}

/// The marker to write before the claim of a directory that goes on is renewed. `drawn` is a new holder.
pub(super) fn announced(own: &Incarnation, marker: &Marker, remote: &Remote, drawn: String) -> Marker {
    let held = &remote.claim.as_ref().expect("a directory goes on where the claim names it").holder;
    let mut marker = marker.clone().announcing(held, drawn);
    // READY may have been written just before the end.
    marker.is_ready |= remote.found.iter().any(|found| found.incarnation == *own && found.is_ready());
    marker
}

/// Compares what is seen after a renewal of the claim of `own` with what was seen before. An incarnation that became
/// READY in between had claimed too, and its claim is the one that was written over: what it has told to be replicated
/// counts.
pub(super) fn renewal(own: &Incarnation, before: &Remote, after: Remote) -> Renewal {
    let is_overtaken = after.newcomer(before).is_some_and(|found| found.incarnation != *own);
    if is_overtaken { Renewal::Overtaken(after.before_claim_of(own, before.clone())) } else { Renewal::Held }
}

/// The incarnation that a start has lost its race against: numbers grow from each to the next, and the next start takes
/// a higher one.
pub(super) fn overtaker<'r>(own: &Incarnation, remote: &'r Remote) -> Option<&'r Incarnation> {
    let claimed = remote.claim.as_ref().map(|claim| &claim.incarnation);
    claimed.filter(|other| other.number > own.number)
}

/// Decides for the incarnation that lived at a time.
fn lived_then(
    remote: &Remote,
    base: &str,
    point: &PointInTime,
    wanted: &Requirements,
) -> Result<Decision, ReplicationError> {
    match remote.lived_at(point.seconds()).first() {
        Some(from) => Ok(restore(from, wanted)?),
        None => Err(ReplicationError::TooEarly { place: base.to_owned() }),
    }
}

/// The claim that a directory held when it was last written.
fn held(marker: &Marker, wanted: &Requirements) -> Claim {
    Claim {
        identity: wanted.identity.clone(),
        incarnation: marker.incarnation.clone(),
        holder: marker.holder.clone(),
        claimed_at: 0,
    }
}

#[cfg(test)]
mod tests;
