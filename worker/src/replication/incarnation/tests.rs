//! Every case of the decision, by value: what a directory holds, what the store holds, what is wanted.

use super::*;

const BASE: &str = "s3://b/n/p/0";

pub(in crate::replication) fn incarnation(number: u64) -> Incarnation {
    Incarnation { number, id: format!("id{number}") }
}

pub(in crate::replication) fn found(number: u64, is_ready: bool) -> FoundIncarnation {
    let birth = Birth {
        identity: "n/p".to_owned(),
        shard_count: 2,
        hash_version: 1,
        format_version: 2,
        files: vec!["shard_0.db".to_owned(), "shard_1.db".to_owned()],
        parent: None,
        gone_back_to: None,
        born_at: 0,
    };
    FoundIncarnation { incarnation: incarnation(number), birth, ready_at: is_ready.then_some(0) }
}

pub(in crate::replication) fn claim(number: u64) -> Option<Claim> {
    Some(Claim {
        identity: "n/p".to_owned(),
        incarnation: incarnation(number),
        holder: format!("holder{number}"),
        claimed_at: 0,
    })
}

pub(in crate::replication) fn remote(claimed: Option<u64>, all: &[(u64, bool)]) -> Remote {
    let found = all.iter().map(|(number, is_ready)| found(*number, *is_ready)).collect();
    Remote { claim: claimed.and_then(claim), found }
}

pub(in crate::replication) fn marker(number: u64) -> Marker {
    Marker {
        base: BASE.to_owned(),
        incarnation: incarnation(number),
        holder: format!("holder{number}"),
        next_holder: None,
        is_ready: true,
        restoring: None,
        is_fresh: false,
        gone_back_to: None,
        complete_until: Some(30),
        lock_inode: 1,
        shard_count: None,
    }
}

pub(in crate::replication) fn marked(number: u64) -> Local {
    Local::Marked { marker: Box::new(marker(number)), is_copy: false, missing: Vec::new() }
}

pub(in crate::replication) fn wanted(policy: RestorePolicy) -> Requirements {
    Requirements {
        identity: "n/p".to_owned(),
        base: BASE.to_owned(),
        shard_count: 2,
        reshard_from: None,
        hash_version: 1,
        format_version: 2,
        policy,
        expects_replica: false,
        begin_anew: None,
    }
}

/// The decision in one word and a number.
fn decided(local: &Local, remote: &Remote, wanted: &Requirements) -> String {
    match decide(local, remote, wanted) {
        Ok(Decision::GoOn(own)) => format!("go on {}", own.number),
        Ok(Decision::Keep { .. }) => "keep".to_owned(),
        Ok(Decision::Restore { from }) => format!("restore {}", from.incarnation.number),
        Ok(Decision::Complete { from, missing }) => {
            format!("complete {} with {}", from.incarnation.number, missing.join(","))
        }
        Ok(Decision::Empty { .. }) => "empty".to_owned(),
        Err(StartRefusal::Overtaken { newer, .. }) => format!("overtaken by {}", newer.number),
        Err(refusal) => format!("{refusal:?}").split(' ').next().unwrap().to_lowercase(),
    }
}

use RestorePolicy::{Auto, Never, Required};

#[test]
fn names_are_read_back() {
    let name = incarnation(7).to_string();
    assert_eq!(name, "incarnation-7-id7");
    assert_eq!(name.parse(), Ok(incarnation(7)));
    for text in
        ["", "incarnation-7", "incarnation--x", "incarnation-7-", "incarnation-x-y", "incarnation-7-a/b"]
    {
        assert!(text.parse::<Incarnation>().is_err(), "{text}");
    }
}

#[test]
fn a_directory_without_data() {
    for (claimed, all, auto, required, never) in [
        (None, &[][..], "empty", "noreplica", "empty"),
        // A first start that died between birth and claim.
        (None, &[(1, false)], "empty", "noreplica", "empty"),
        // Never complete, so never told to be replicated.
        (Some(1), &[(1, false)], "empty", "noreplica", "empty"),
        (Some(1), &[(1, true)], "restore 1", "restore 1", "empty"),
        // The successor died before it was READY.
        (Some(2), &[(1, true), (2, false)], "restore 1", "restore 1", "empty"),
        (Some(2), &[(1, true), (2, true)], "restore 2", "restore 2", "empty"),
        // A loser of a race that became READY just before it was overtaken.
        (Some(2), &[(1, true), (2, true), (3, true)], "restore 2", "restore 2", "empty"),
        (Some(4), &[(1, true), (2, true), (3, true), (4, false)], "restore 3", "restore 3", "empty"),
        // The claim is lost, and what it named is not.
        (None, &[(1, true), (2, true)], "restore 2", "restore 2", "empty"),
        // The claimed incarnation is gone.
        (Some(2), &[(1, true)], "damaged", "damaged", "empty"),
        (Some(1), &[], "damaged", "damaged", "empty"),
    ] {
        let remote = remote(claimed, all);
        for (policy, expected) in [(Auto, auto), (Required, required), (Never, never)] {
            assert_eq!(
                decided(&Local::Nothing, &remote, &wanted(policy)),
                expected,
                "{claimed:?} {all:?} {policy:?}"
            );
        }
    }
}

#[test]
fn somebody_knows_that_there_is_a_replica() {
    let wanted = Requirements { expects_replica: true, ..wanted(Auto) };
    for (claimed, all, expected) in [
        (None, &[][..], "noreplica"),
        (Some(1), &[(1, false)], "noreplica"),
        (Some(1), &[(1, true)], "restore 1"),
    ] {
        assert_eq!(decided(&Local::Nothing, &remote(claimed, all), &wanted), expected);
    }
}

#[test]
fn whoever_was_ready_before_it_was_overtaken_is_what_its_successor_begins_with() {
    for (claimed, before, after, expected) in [
        (Some(1), &[(1, true)][..], &[(1, true)][..], "restore 1"),
        // A worker that claimed between our two looks, and has acknowledged nothing yet.
        (Some(1), &[(1, true)], &[(1, true), (2, false)], "restore 1"),
        // The same, and it may have.
        (Some(1), &[(1, true)], &[(1, true), (2, true)], "restore 2"),
        (Some(1), &[(1, true), (2, false)], &[(1, true), (2, true)], "restore 2"),
        (None, &[], &[(1, true)], "restore 1"),
        // The one that we read the claim of.
        (Some(2), &[(1, true), (2, false)], &[(1, true), (2, true)], "restore 2"),
        (Some(2), &[(1, true), (2, false)], &[(1, true), (2, true), (3, true)], "restore 3"),
        // A loser of an earlier race.
        (Some(2), &[(1, true), (2, true), (3, true)], &[(1, true), (2, true), (3, true)], "restore 2"),
    ] {
        // A worker that began at the same moment has taken the same number.
        let own = Incarnation { number: 4, id: "own".to_owned() };
        let mut seen = remote(None, after);
        seen.found.push(FoundIncarnation { incarnation: own.clone(), ..found(4, false) });
        let seen = seen.before_claim_of(&own, remote(claimed, before));
        assert_eq!(
            decided(&Local::Nothing, &seen, &wanted(Auto)),
            expected,
            "{claimed:?} {before:?} {after:?}"
        );
    }
    let same_number =
        FoundIncarnation { incarnation: Incarnation { number: 2, id: "other".to_owned() }, ..found(2, true) };
    let mut seen = remote(None, &[(1, true), (2, true)]);
    seen.found.push(same_number.clone());
    let seen = seen.before_claim_of(&incarnation(5), remote(Some(2), &[(1, true), (2, false)]));
    assert_eq!(seen.best(), Some(&same_number), "the one that was claimed later");
}

#[test]
fn a_directory_that_was_replicated() {
    for (claimed, all, auto, never) in [
        (Some(3), &[(3, true)][..], "go on 3", "go on 3"),
        // It goes on towards its first READY.
        (Some(3), &[(3, false)], "go on 3", "go on 3"),
        (Some(3), &[(2, true), (3, false)], "go on 3", "go on 3"),
        // It was overtaken.
        (Some(4), &[(3, true), (4, true)], "restore 4", "overtaken by 4"),
        // The worker that took over was never READY: no copy has more than this directory.
        (Some(4), &[(3, true), (4, false)], "keep", "keep"),
        (Some(4), &[(3, false), (4, false)], "keep", "keep"),
        (Some(5), &[(3, true), (4, true), (5, false)], "restore 4", "overtaken by 4"),
        // The replica is gone.
        (None, &[], "gone", "gone"),
        (None, &[(3, true)], "gone", "gone"),
    ] {
        let remote = remote(claimed, all);
        for (policy, expected) in [(Auto, auto), (Required, auto), (Never, never)] {
            assert_eq!(
                decided(&marked(3), &remote, &wanted(policy)),
                expected,
                "{claimed:?} {all:?} {policy:?}"
            );
        }
    }
}

#[test]
fn a_start_that_died_while_it_claimed() {
    let unready = Marker { is_ready: false, ..marker(3) };
    let local = |marker| Local::Marked { marker: Box::new(marker), is_copy: false, missing: Vec::new() };
    assert_eq!(decided(&local(unready.clone()), &remote(None, &[(3, false)]), &wanted(Auto)), "keep");
    // The claim may or may not have been renewed.
    for (holder, next_holder) in [("holder3", Some("x")), ("y", Some("holder3"))] {
        let marker =
            Marker { holder: holder.to_owned(), next_holder: next_holder.map(str::to_owned), ..marker(3) };
        assert_eq!(decided(&local(marker), &remote(Some(3), &[(3, true)]), &wanted(Auto)), "go on 3");
    }
}

#[test]
fn no_holder_is_forgotten_before_it_is_known_what_became_of_it() {
    for (announced, held, expected) in [
        (None, "a", "drawn"),
        // Its start died before it was written, or could not tell: a request that timed out may still be carried out.
        (Some("b"), "a", "b"),
        (Some("b"), "b", "drawn"),
    ] {
        let before =
            Marker { holder: "a".to_owned(), next_holder: announced.map(str::to_owned), ..marker(3) };
        let after = before.announcing(held, "drawn".to_owned());
        assert_eq!(
            (after.holder.as_str(), after.next_holder.as_deref()),
            (held, Some(expected)),
            "{announced:?}, the claim names {held}"
        );
    }
}

#[test]
fn a_copy_never_writes_the_prefix_of_its_original() {
    let copied = Local::Marked { marker: Box::new(marker(3)), is_copy: true, missing: Vec::new() };
    let renewed = Marker { holder: "before".to_owned(), ..marker(3) };
    let renewed = Local::Marked { marker: Box::new(renewed), is_copy: false, missing: Vec::new() };
    for local in [copied, renewed] {
        for (claimed, all, expected) in [
            (Some(3), &[(3, true)][..], "restore 3"),
            (Some(3), &[(3, false)], "keep"),
            (Some(3), &[(2, true), (3, false)], "keep"),
            (Some(4), &[(2, true), (3, false), (4, false)], "keep"),
            (Some(4), &[(3, true), (4, true)], "restore 4"),
        ] {
            assert_eq!(
                decided(&local, &remote(claimed, all), &wanted(Auto)),
                expected,
                "{claimed:?} {all:?}"
            );
        }
    }
}

#[test]
fn files_that_are_missing_come_from_the_store() {
    let local =
        Local::Marked { marker: Box::new(marker(3)), is_copy: false, missing: vec!["shard_1.db".to_owned()] };
    let remote = |claimed, all: &[_]| remote(Some(claimed), all);
    for (claimed, all, expected) in [
        (3, &[(3, true)][..], "complete 3 with shard_1.db"),
        // A start that was to complete it has claimed, and died.
        (4, &[(3, true), (4, false)], "complete 3 with shard_1.db"),
        // It was not READY yet itself.
        (3, &[(2, true), (3, false)], "complete 2 with shard_1.db"),
        (4, &[(2, true), (3, false), (4, false)], "complete 2 with shard_1.db"),
        (4, &[(3, true), (4, true)], "restore 4"),
        // Nothing was ever complete: opening the directory shows what is missing.
        (3, &[(3, false)], "go on 3"),
    ] {
        assert_eq!(decided(&local, &remote(claimed, all), &wanted(Auto)), expected, "{claimed:?} {all:?}");
    }
}

#[test]
fn data_that_knows_nothing_of_the_replica() {
    let moved = Marker { base: "s3://other/n/p/0".to_owned(), ..marker(3) };
    let moved = Local::Marked { marker: Box::new(moved), is_copy: false, missing: Vec::new() };
    for local in [Local::Unmarked, moved] {
        for (claimed, all, expected) in [
            (None, &[][..], "keep"),
            (None, &[(1, false)], "keep"),
            (Some(1), &[(1, true)], "occupied"),
            (Some(1), &[(1, false)], "occupied"),
            (None, &[(1, true)], "occupied"),
        ] {
            assert_eq!(
                decided(&local, &remote(claimed, all), &wanted(Auto)),
                expected,
                "{claimed:?} {all:?}"
            );
        }
    }
}

#[test]
fn what_this_worker_cannot_read_or_may_not_touch() {
    let remote = remote(Some(1), &[(1, true)]);
    let with = |change: fn(&mut Requirements)| {
        let mut wanted = wanted(Auto);
        change(&mut wanted);
        decided(&Local::Nothing, &remote, &wanted)
    };
    assert_eq!(with(|wanted| wanted.identity = "n/other".to_owned()), "foreign");
    assert_eq!(with(|wanted| wanted.shard_count = 4), "shardcount");
    assert_eq!(with(|wanted| wanted.hash_version = 2), "format");
    assert_eq!(with(|wanted| wanted.format_version = 3), "format");
}

#[test]
fn what_was_not_in_the_replica_before_a_start_is_not_there_after_it() {
    let until = |local: &Local, claimed, all: &[_]| {
        let decision = decide(local, &remote(claimed, all), &wanted(Auto)).unwrap();
        decision.complete_until(local, 100)
    };
    assert_eq!(until(&marked(3), Some(3), &[(3, true)]), Some(30), "it goes on");
    assert_eq!(until(&marked(3), Some(4), &[(3, true), (4, false)]), Some(30), "it is kept");
    assert_eq!(until(&marked(3), Some(4), &[(3, true), (4, true)]), Some(100), "it comes from the replica");
    assert_eq!(until(&Local::Nothing, None, &[]), Some(100), "there was nothing");
    assert_eq!(until(&Local::Unmarked, None, &[]), Some(100), "nothing was ever replicated");
}

#[test]
fn old_incarnations_are_kept_until_a_later_one_is_old_enough() {
    for (all, before, outlived) in [
        // Born at 10 times their numbers.
        (&[(1, true), (2, true), (3, true)][..], 20, &[][..]),
        (&[(1, true), (2, true), (3, true)], 21, &[1]),
        (&[(1, true), (2, true), (3, true)], 31, &[1, 2]),
        (&[(1, true), (2, false), (3, false)], 100, &[]),
        (&[(1, true), (2, false), (3, true)], 100, &[1, 2]),
    ] {
        let mut remote = remote(Some(3), all);
        for found in &mut remote.found {
            found.birth.born_at = 10 * i64::try_from(found.incarnation.number).unwrap();
        }
        let own = incarnation(3);
        let numbers: Vec<u64> =
            remote.outlived(&own, before).iter().map(|incarnation| incarnation.number).collect();
        assert_eq!(numbers, outlived, "{all:?} {before}");
    }
}

#[test]
fn a_time_leads_to_those_that_lived_then() {
    let mut remote = remote(Some(4), &[(1, true), (2, true), (3, false), (4, true)]);
    for found in &mut remote.found {
        found.birth.born_at = 10 * i64::try_from(found.incarnation.number).unwrap();
        found.ready_at = found.ready_at.map(|_| found.birth.born_at + 3);
    }
    // Before it was whole, what was before it is what there was.
    for (seconds, expected) in
        [(12, &[][..]), (13, &[1]), (22, &[1]), (25, &[2, 1]), (35, &[2, 1]), (99, &[4, 2, 1])]
    {
        let numbers: Vec<u64> =
            remote.lived_at(seconds).iter().map(|found| found.incarnation.number).collect();
        assert_eq!(numbers, expected, "{seconds}");
    }
}

#[test]
fn numbers_grow() {
    for (claimed, all, next) in
        [(None, &[][..], 1), (Some(4), &[(3, true)], 5), (Some(2), &[(2, true), (7, false)], 8)]
    {
        assert_eq!(remote(claimed, all).next_number(), next);
    }
}
