//! Every case of a start, by value: what is asked, what was seen, what is to be done.

use super::super::incarnation::tests::{claim, found, incarnation, marked, marker, remote, wanted};
use super::*;

const URL: &str = "s3://b/n/other";

fn request(begin: Begin<'_>) -> Request<'_> {
    Request { begin, timestamp: None, from_url: None }
}

fn at(text: &str) -> PointInTime {
    text.parse().unwrap()
}

/// The origin in a few words.
fn decided(request: &Request<'_>, local: &Local, remote: &Remote, wanted: &Requirements) -> String {
    let decision = |decision: &Decision| match decision {
        Decision::GoOn(own) => format!("go on {}", own.number),
        Decision::Keep { .. } => "keep".to_owned(),
        Decision::Restore { from } => format!("restore {}", from.incarnation.number),
        Decision::Complete { from, .. } => format!("complete {}", from.incarnation.number),
        Decision::Empty { .. } => "empty".to_owned(),
    };
    let as_of = |point: &Option<PointInTime>| {
        point.as_ref().map(|point| format!(" as of {}", point.text)).unwrap_or_default()
    };
    match origin(request, local, remote, wanted) {
        Ok(DataOrigin::Own(own, point)) => format!("{}{}", decision(&own), as_of(&point)),
        Ok(DataOrigin::Elsewhere(url, point)) => format!("look at {url}{}", as_of(&point)),
        Err(ReplicationError::TooEarly { .. }) => "too early".to_owned(),
        Err(ReplicationError::Refused(StartRefusal::NoReplica { .. })) => "no replica".to_owned(),
        Err(ReplicationError::Refused(StartRefusal::Damaged { .. })) => "damaged".to_owned(),
        Err(ReplicationError::Refused(StartRefusal::Gone { .. })) => "gone".to_owned(),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_start_asks_for_no_time_and_no_other_replica() {
    let wanted = wanted(RestorePolicy::Auto);
    for begin in [Begin::Run, Begin::Restore, Begin::Prepared] {
        let request = request(begin);
        let ours = remote(Some(3), &[(3, true)]);
        assert_eq!(decided(&request, &marked(3), &ours, &wanted), "go on 3");
        assert_eq!(decided(&request, &Local::Nothing, &ours, &wanted), "restore 3");
        assert_eq!(decided(&request, &Local::Nothing, &remote(None, &[]), &wanted), "empty");
        // Before anything else the claim must be about something that is there.
        assert_eq!(decided(&request, &marked(3), &remote(Some(3), &[]), &wanted), "damaged");
    }
}

#[test]
fn a_time_is_gone_back_to_once() {
    let wanted = wanted(RestorePolicy::Auto);
    let remote = remote(Some(3), &[(3, true)]);
    let (point, early) = (at("2026-01-01T00:00:00Z"), at("1969-01-01T00:00:00Z"));
    let asked = |point: &PointInTime| Request { timestamp: Some(point.clone()), ..request(Begin::Run) };
    assert_eq!(decided(&asked(&point), &marked(3), &remote, &wanted), "restore 3 as of 2026-01-01T00:00:00Z");
    assert_eq!(decided(&asked(&early), &marked(3), &remote, &wanted), "too early");
    let done = Marker { gone_back_to: Some(point.text.clone()), ..marker(3) };
    let local = Local::Marked { marker: Box::new(done), is_copy: false, missing: Vec::new() };
    assert_eq!(decided(&asked(&point), &local, &remote, &wanted), "go on 3");
    // By hand it is gone back to again, and what the manifest says does not count.
    let by_hand = Request { timestamp: Some(early), ..request(Begin::At(&point)) };
    assert_eq!(decided(&by_hand, &local, &remote, &wanted), "restore 3 as of 2026-01-01T00:00:00Z");
}

#[test]
fn another_replica_is_for_those_who_never_had_one() {
    let asked = |begin| Request { from_url: Some(URL), ..request(begin) };
    let auto = wanted(RestorePolicy::Auto);
    let (none, ours) = (remote(None, &[]), remote(Some(1), &[(1, true)]));
    let looked = format!("look at {URL}");
    assert_eq!(decided(&asked(Begin::Run), &Local::Nothing, &none, &auto), looked);
    assert_eq!(decided(&asked(Begin::Run), &Local::Nothing, &ours, &auto), "restore 1");
    assert_eq!(decided(&asked(Begin::Run), &Local::Unmarked, &none, &auto), "keep");
    assert_eq!(decided(&asked(Begin::Run), &Local::Nothing, &none, &wanted(RestorePolicy::Never)), "empty");
    let expecting = Requirements { expects_replica: true, ..auto };
    assert_eq!(decided(&asked(Begin::Run), &Local::Nothing, &none, &expecting), "no replica");
    // A user who asks for data always expects some.
    assert_eq!(decided(&asked(Begin::Restore), &Local::Nothing, &none, &expecting), looked);
    let point = Some(at("2026-01-01T00:00:00Z"));
    let with_time = Request { timestamp: point, ..asked(Begin::Run) };
    assert_eq!(decided(&with_time, &Local::Nothing, &none, &expecting), "no replica");
    let looked = format!("{looked} as of 2026-01-01T00:00:00Z");
    assert_eq!(decided(&with_time, &Local::Nothing, &none, &wanted(RestorePolicy::Required)), looked);
}

#[test]
fn another_replica_gives_its_newest_or_what_it_had_then() {
    let wanted = wanted(RestorePolicy::Auto);
    let there = remote(Some(2), &[(1, true), (2, true)]);
    let restored = |point: Option<&PointInTime>| match from_elsewhere(&there, URL, point, &wanted) {
        Ok(Decision::Restore { from }) => from.incarnation.number.to_string(),
        Err(ReplicationError::TooEarly { place }) => format!("too early at {place}"),
        other => panic!("{other:?}"),
    };
    assert_eq!(restored(None), "2");
    assert_eq!(restored(Some(&at("2026-01-01T00:00:00Z"))), "2");
    assert_eq!(restored(Some(&at("1969-01-01T00:00:00Z"))), format!("too early at {URL}"));
    let nothing = from_elsewhere(&remote(None, &[(1, false)]), URL, None, &wanted);
    assert!(
        matches!(nothing, Err(ReplicationError::Refused(StartRefusal::NoReplica { base })) if base == URL)
    );
}

#[test]
fn a_whole_directory_does_without_the_store() {
    let wanted = wanted(RestorePolicy::Auto);
    let birth = || Birth { born_at: 77, ..found(0, false).birth };
    let seen = |request: &Request<'_>, local: &Local| without_store(request, local, &wanted, birth());
    let expected = Remote {
        claim: claim(3).map(|claim| Claim { claimed_at: 0, ..claim }),
        found: vec![FoundIncarnation { incarnation: incarnation(3), birth: birth(), ready_at: Some(77) }],
    };
    for begin in [Begin::Run, Begin::Restore, Begin::Prepared] {
        assert_eq!(seen(&request(begin), &marked(3)), Some(expected.clone()));
    }
    let run = request(Begin::Run);
    let with = |marker: Marker, is_copy: bool, missing: &[&str]| Local::Marked {
        marker: Box::new(marker),
        is_copy,
        missing: missing.iter().map(|name| (*name).to_owned()).collect(),
    };
    let not_ready = Marker { is_ready: false, ..marker(3) };
    let assumed = seen(&run, &with(not_ready, false, &[])).unwrap();
    assert_eq!(assumed.found[0].ready_at, None);
    for local in [
        Local::Nothing,
        Local::Unmarked,
        with(marker(3), true, &[]),
        with(marker(3), false, &["shard_0.db"]),
        with(Marker { base: URL.to_owned(), ..marker(3) }, false, &[]),
    ] {
        assert_eq!(seen(&run, &local), None, "{local:?}");
    }
    let point = at("2026-01-01T00:00:00Z");
    assert_eq!(seen(&request(Begin::At(&point)), &marked(3)), None);
    let timed = Request { timestamp: Some(point.clone()), ..request(Begin::Run) };
    assert_eq!(seen(&timed, &marked(3)), None);
    let done = Marker { gone_back_to: Some(point.text), ..marker(3) };
    assert_eq!(seen(&timed, &with(done, false, &[])), Some(expected));
}

#[test]
fn a_claim_is_announced_before_it_is_renewed() {
    let not_ready = Marker { is_ready: false, ..marker(3) };
    for (is_ready, expected) in [(false, false), (true, true)] {
        let seen = remote(Some(3), &[(3, is_ready), (2, true)]);
        let announced = announced(&incarnation(3), &not_ready, &seen, "drawn".to_owned());
        assert_eq!(announced.next_holder.as_deref(), Some("drawn"));
        assert_eq!((announced.holder.as_str(), announced.is_ready), ("holder3", expected));
    }
}

#[test]
fn a_start_that_claimed_in_between_counts_once_it_was_ready() {
    let before = remote(Some(3), &[(3, true)]);
    let own = incarnation(3);
    for after in [
        remote(Some(3), &[(3, true)]),
        // Born, and maybe claimed, but nothing was told of it.
        remote(Some(3), &[(3, true), (4, false)]),
    ] {
        assert_eq!(renewal(&own, &before, after), Renewal::Held);
    }
    // Our own may become READY by the hand of a Litestream that is ending.
    let not_yet = remote(Some(3), &[(3, false)]);
    assert_eq!(renewal(&own, &not_yet, remote(Some(3), &[(3, true)])), Renewal::Held);
    let after = remote(Some(3), &[(3, true), (4, true)]);
    let Renewal::Overtaken(counts) = renewal(&own, &before, after) else { panic!("4 was READY") };
    assert_eq!(counts.claim.map(|claim| claim.incarnation), Some(incarnation(4)));
    assert_eq!(counts.found, [found(4, true)]);
}

#[test]
fn a_minted_incarnation_gives_way_to_a_higher_number() {
    let own = incarnation(4);
    for (claimed, overtaken) in [(None, false), (Some(3), false), (Some(4), false), (Some(5), true)] {
        let seen = remote(claimed, &[]);
        assert_eq!(overtaker(&own, &seen), overtaken.then_some(&incarnation(5)), "{claimed:?}");
    }
}

#[test]
fn a_replica_that_is_gone_holds_nobody_up() {
    let (auto, none) = (wanted(RestorePolicy::Auto), Remote::default());
    let local = marked(3);
    let gone_of = |request: &Request<'_>, remote: &Remote, wanted: &Requirements| {
        gone(request, &local, remote, wanted).map(|incarnation| incarnation.number)
    };
    assert_eq!(gone_of(&request(Begin::Run), &none, &auto), Some(3));
    assert_eq!(gone_of(&request(Begin::Run), &remote(Some(3), &[(3, true)]), &auto), None);
    assert_eq!(gone_of(&request(Begin::Restore), &none, &auto), None, "who asks for data is told");
    assert_eq!(decided(&request(Begin::Restore), &local, &none, &auto), "gone");
    let Local::Marked { marker, .. } = &local else { unreachable!() };
    let consenting = Requirements { begin_anew: Some(marker.incarnation.to_string()), ..auto.clone() };
    assert_eq!(gone_of(&request(Begin::Run), &none, &consenting), None);
    assert_eq!(decided(&request(Begin::Run), &local, &none, &consenting), "keep");
    let another = Requirements { begin_anew: Some("incarnation-2-other".to_owned()), ..auto };
    assert_eq!(gone_of(&request(Begin::Run), &none, &another), Some(3));
    assert_eq!(next_number(&local, &none), 4, "an old one that comes back is not the newer");
}
