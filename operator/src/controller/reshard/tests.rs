//! The state machine as a table: each phase, what is seen, and the phase that follows.

use super::*;

use litejoin_crds::kind::Kind;

/// A Pipeline whose data has 8 shards.
fn pipeline(spec: Value, reshard: Value) -> Object {
    let status = json!({ "layout": { "shardCount": 8, "volumeClaimUid": "u" }, "reshard": reshard });
    Object {
        kind: Kind::Pipeline,
        name: "p".to_owned(),
        namespace: "n".to_owned(),
        uid: "uid".to_owned(),
        generation: 1,
        version: None,
        spec,
        status,
    }
}

/// The spec with consent to 16 shards.
fn consenting() -> Value {
    json!({ "storage": { "shardCount": 16, "reshard": { "fromShardCount": 8, "toShardCount": 16 } } })
}

/// The spec as it was before.
fn reverted() -> Value {
    json!({ "storage": { "shardCount": 8 } })
}

/// The spec with consent to 16 shards beside a worker that serves.
fn online() -> Value {
    let mut spec = consenting();
    spec["storage"]["reshard"]["strategy"] = json!("Online");
    spec
}

fn at(phase: Phase, spec: Value) -> Reshard {
    by(ReshardStrategy::Job, phase, spec)
}

fn by(strategy: ReshardStrategy, phase: Phase, spec: Value) -> Reshard {
    let stored = json!({
        "phase": phase.as_str(),
        "fromShardCount": 8,
        "toShardCount": 16,
        "strategy": strategy,
        "settings": settings(&spec),
    });
    Reshard::of(&pipeline(spec, stored)).unwrap()
}

/// What is seen of a pipeline that runs.
const SERVING: Seen = Seen {
    held: None,
    worker: WorkerState::Runs,
    job: JobState::Gone,
    shard_count: Some(8),
    has_volume: true,
    told: None,
};
/// What is seen of a pipeline that has stopped.
const STOPPED: Seen = Seen { worker: WorkerState::Gone, ..SERVING };
/// What is seen while a Job is at work.
const COPYING: Seen = Seen { job: JobState::There, ..STOPPED };

#[test]
fn consent_begins_a_change_and_nothing_else_does() {
    let none = |spec| Reshard::of(&pipeline(spec, Value::Null)).unwrap();
    assert_eq!(none(consenting()).next(&SERVING), Some(Phase::Pausing));
    assert_eq!(none(reverted()).next(&SERVING), None);
    let bare = json!({ "storage": { "shardCount": 16 } });
    assert_eq!((none(bare.clone()).next(&SERVING), none(bare).wish), (None, Wish::Unconsented));
    let other =
        json!({ "storage": { "shardCount": 16, "reshard": { "fromShardCount": 4, "toShardCount": 16 } } });
    assert_eq!((none(other.clone()).next(&SERVING), none(other).wish), (None, Wish::Unconsented));
    // A block that was carried out consents to nothing more.
    let done =
        json!({ "storage": { "shardCount": 8, "reshard": { "fromShardCount": 4, "toShardCount": 8 } } });
    assert_eq!(none(done).next(&SERVING), None);
    // A removed `storage` is the default, which is no consent.
    assert_eq!(none(json!({})).wish, Wish::Same);
    let mut unknown = pipeline(consenting(), Value::Null);
    unknown.status = json!({});
    assert_eq!(Reshard::of(&unknown), None, "there is no data");
}

#[test]
fn what_holds_a_change_back_leaves_it_pending() {
    for held in [Held::Paused, Held::AtRest, Held::NameTaken] {
        let seen = Seen { held: Some(held), ..SERVING };
        let fresh = Reshard::of(&pipeline(consenting(), Value::Null)).unwrap();
        assert_eq!(fresh.next(&seen), Some(Phase::Pending));
        assert_eq!(at(Phase::Pending, consenting()).next(&seen), Some(Phase::Pending));
        assert_eq!(at(Phase::Pending, reverted()).next(&seen), Some(Phase::Cancelled));
    }
    assert_eq!(at(Phase::Pending, consenting()).next(&SERVING), Some(Phase::Pausing));
}

#[test]
fn each_phase_follows_from_what_is_seen() {
    use JobState as Job;
    use Phase::{Cancelled, Cancelling, Copying, Done, Failed, Pausing, Switching, Verifying};
    use WorkerState as Worker;
    let (yes, no) = (consenting(), reverted());
    let there = Seen { worker: Worker::There, ..STOPPED };
    let told = |phase| Seen { told: Some(phase), ..COPYING };
    let job = |job| Seen { job, ..STOPPED };
    let paused = |seen| Seen { held: Some(Held::Paused), ..seen };
    let rests = |seen| Seen { held: Some(Held::AtRest), ..seen };
    for (phase, spec, seen, next) in [
        (Pausing, &yes, SERVING, Pausing),
        (Pausing, &yes, there, Pausing),
        (Pausing, &yes, STOPPED, Copying),
        (Pausing, &yes, paused(STOPPED), Pausing),
        (Pausing, &yes, rests(STOPPED), Copying),
        // The Job of an attempt that has failed goes first.
        (Pausing, &yes, job(Job::Failed), Pausing),
        (Pausing, &yes, job(Job::There), Pausing),
        (Pausing, &yes, Seen { has_volume: false, ..STOPPED }, Switching),
        (Pausing, &no, there, Cancelling),
        (Copying, &yes, COPYING, Copying),
        // A Job that somebody has deleted is made again.
        (Copying, &yes, STOPPED, Copying),
        (Copying, &yes, Seen { has_volume: false, ..STOPPED }, Switching),
        (Copying, &yes, told(Verifying), Verifying),
        (Copying, &yes, job(Job::Complete), Switching),
        (Copying, &yes, paused(job(Job::Complete)), Copying),
        (Copying, &yes, job(Job::Failed), Failed),
        (Copying, &no, COPYING, Cancelling),
        (Copying, &no, job(Job::Complete), Cancelling),
        (Copying, &no, job(Job::Failed), Cancelling),
        (Copying, &no, paused(COPYING), Copying),
        (Verifying, &yes, COPYING, Verifying),
        (Verifying, &yes, told(Verifying), Verifying),
        // A pod that was made anew copies again.
        (Verifying, &yes, told(Copying), Copying),
        (Verifying, &yes, job(Job::Complete), Switching),
        (Verifying, &no, job(Job::Complete), Cancelling),
        (Switching, &yes, job(Job::Complete), Switching),
        (Switching, &yes, there, Switching),
        (Switching, &yes, SERVING, Done),
        (Switching, &yes, paused(SERVING), Done),
        (Switching, &yes, Seen { worker: Worker::Fails, ..SERVING }, Switching),
        (Switching, &no, there, Switching),
        (Switching, &no, SERVING, Done),
        (Switching, &no, Seen { worker: Worker::Fails, ..SERVING }, Cancelling),
        (Switching, &no, paused(Seen { worker: Worker::Fails, ..SERVING }), Switching),
        (Cancelling, &no, COPYING, Cancelling),
        (Cancelling, &no, there, Cancelling),
        (Cancelling, &no, STOPPED, Cancelled),
        // Who consents again waits for the end of the first attempt.
        (Cancelling, &yes, STOPPED, Cancelled),
        (Failed, &yes, SERVING, Failed),
        (Failed, &no, SERVING, Cancelled),
        (Done, &no, SERVING, Done),
        (Cancelled, &no, SERVING, Cancelled),
        (Cancelled, &yes, SERVING, Pausing),
        (Done, &yes, SERVING, Pausing),
    ] {
        assert_eq!(at(phase, spec.clone()).next(&seen), Some(next), "{phase:?} {spec} {seen:?}");
    }
}

#[test]
fn a_failure_is_tried_again_with_other_settings() {
    let failed = at(Phase::Failed, consenting());
    assert_eq!(failed.next(&SERVING), Some(Phase::Failed));
    for (field, value) in [
        ("restartNonce", json!("again")),
        ("resources", json!({ "limits": { "memory": "1Gi" } })),
        ("image", json!("other")),
    ] {
        let mut spec = consenting();
        spec[field] = value;
        let changed = Reshard { settings: settings(&spec), ..failed.clone() };
        assert_eq!(changed.next(&SERVING), Some(Phase::Pausing), "{field}");
    }
    let mut spec = consenting();
    spec["joins"] = json!([{ "name": "other" }]);
    assert_eq!(settings(&spec), failed.settings, "another join makes no difference to a copy");
}

#[test]
fn the_config_has_the_new_number_from_the_switch_on() {
    for phase in Phase::ALL {
        let (consented, gone) = (at(phase, consenting()), at(phase, reverted()));
        let expected = if phase == Phase::Switching { 16 } else { 8 };
        assert_eq!((consented.shard_count(), gone.shard_count()), (expected, expected), "{phase:?}");
        assert_eq!(Phase::read(phase.as_str()), Some(phase));
    }
    assert_eq!(Phase::read("CatchingUp"), None);
}

#[test]
fn a_worker_that_serves_tells_which_phase_follows() {
    use Phase::{Cancelled, Cancelling, Copying, Done, Failed, Pausing, Pending, Switching, Verifying};
    let (yes, no, job) = (online(), reverted(), consenting());
    let told = |phase| Seen { told: Some(phase), ..SERVING };
    let has = |shard_count| Seen { shard_count: Some(shard_count), ..SERVING };
    let silent = Seen { worker: WorkerState::There, shard_count: None, ..SERVING };
    let paused = |seen| Seen { held: Some(Held::Paused), ..seen };
    for (phase, spec, seen, next) in [
        (Pending, &yes, SERVING, Copying),
        // No volume and no Job is needed.
        (Pending, &yes, Seen { has_volume: false, ..SERVING }, Copying),
        (Pending, &yes, paused(SERVING), Pending),
        (Pending, &no, SERVING, Cancelled),
        (Copying, &yes, SERVING, Copying),
        (Copying, &yes, silent, Copying),
        (Copying, &yes, told(Verifying), Verifying),
        (Verifying, &yes, SERVING, Verifying),
        // A worker that has crashed begins anew.
        (Verifying, &yes, told(Copying), Copying),
        (Verifying, &yes, told(Switching), Switching),
        (Switching, &yes, silent, Switching),
        (Switching, &yes, has(16), Done),
        (Copying, &yes, has(16), Done),
        (Copying, &yes, paused(has(16)), Done),
        (Verifying, &yes, told(Failed), Failed),
        (Copying, &no, SERVING, Cancelling),
        (Copying, &no, paused(SERVING), Copying),
        // Another way to move the data begins once this one is called off.
        (Copying, &job, SERVING, Cancelling),
        (Switching, &no, has(16), Cancelling),
        (Cancelling, &no, has(16), Cancelling),
        (Cancelling, &no, silent, Cancelling),
        (Cancelling, &no, SERVING, Cancelled),
        (Failed, &yes, SERVING, Failed),
        (Failed, &no, SERVING, Cancelling),
        (Cancelled, &yes, SERVING, Copying),
        (Cancelled, &job, SERVING, Pausing),
        (Done, &no, SERVING, Done),
    ] {
        let reshard = by(ReshardStrategy::Online, phase, spec.clone());
        assert_eq!(reshard.next(&seen), Some(next), "{phase:?} {spec} {seen:?}");
        assert!(!reshard.wants_job() && !reshard.stops_worker(&[]), "{phase:?}");
    }
}

#[test]
fn any_config_beside_a_move_consents_to_both_numbers() {
    let back = || Consent::Own(json!({ "fromShardCount": 16, "toShardCount": 8, "strategy": "Online" }));
    for phase in Phase::ALL {
        let of = |spec| {
            let reshard = by(ReshardStrategy::Online, phase, spec);
            (reshard.shard_count(), reshard.consent())
        };
        let (consented, gone) = match phase {
            Phase::Pending | Phase::Done | Phase::Cancelled => {
                ((8, Consent::Withheld), (8, Consent::Written))
            }
            Phase::Cancelling | Phase::Failed => ((8, back()), (8, back())),
            _ => ((16, Consent::Written), (8, back())),
        };
        assert_eq!((of(online()), of(reverted())), (consented, gone), "{phase:?}");
    }
}

#[test]
fn phases_during_which_no_other_change_begins_are_those_of_the_rule() {
    let active = Phase::ALL.into_iter().filter(|phase| phase.is_active()).map(Phase::as_str);
    let mut active: Vec<_> = active.collect();
    let mut of_rule = litejoin_crds::status::RESHARD_PHASES_ACTIVE.to_vec();
    active.sort_unstable();
    of_rule.sort_unstable();
    assert_eq!(active, of_rule);
}

fn read<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

#[test]
fn a_worker_is_gone_once_none_can_come() {
    let set = |replicas: u32, generation: i64, seen: i64| -> DynamicObject {
        read(json!({
            "metadata": { "name": "p", "generation": generation },
            "spec": { "replicas": replicas }, "status": { "observedGeneration": seen },
        }))
    };
    let state = |set: &DynamicObject, pod: Option<&Pod>| worker_state(Some(set), pod, false);
    assert_eq!(state(&set(0, 2, 2), None), WorkerState::Gone);
    assert_eq!(state(&set(0, 2, 1), None), WorkerState::There);
    assert_eq!(state(&set(1, 2, 2), None), WorkerState::There);
    assert_eq!(worker_state(None, None, false), WorkerState::There);
    let pod = |ready: bool, code: i32| -> Pod {
        let container = json!({
            "name": "worker", "ready": ready, "image": "", "imageID": "", "restartCount": 1,
            "lastState": { "terminated": { "exitCode": code } },
        });
        read(json!({ "metadata": {}, "status": { "phase": "Running", "containerStatuses": [container] } }))
    };
    assert_eq!(state(&set(1, 2, 2), Some(&pod(false, 1))), WorkerState::Fails);
    assert_eq!(state(&set(1, 2, 2), Some(&pod(true, 1))), WorkerState::There);
    assert_eq!(state(&set(1, 2, 2), Some(&pod(false, 0))), WorkerState::There);
    assert_eq!(worker_state(None, Some(&pod(true, 0)), true), WorkerState::Runs);
}

#[test]
fn a_job_is_gone_with_its_last_pod() {
    let job = |condition: &str| -> DynamicObject {
        let condition = json!({
            "type": condition, "status": "True", "message": "Pod n/p has failed", "lastTransitionTime": null,
        });
        read(json!({ "metadata": { "name": "p" }, "status": { "conditions": [condition] } }))
    };
    let pod = |phase: &str, message: &str| -> Pod {
        let ended = json!({ "exitCode": 1, "message": message });
        let container = json!({
            "name": "reshard", "ready": false, "image": "", "imageID": "", "restartCount": 0,
            "state": { "terminated": ended },
        });
        read(json!({ "metadata": {}, "status": { "phase": phase, "containerStatuses": [container] } }))
    };
    assert_eq!(job_state(None, &[]), JobState::Gone);
    assert_eq!(job_state(None, &[pod("Failed", "")]), JobState::Gone);
    assert_eq!(job_state(None, &[pod("Running", "")]), JobState::There);
    assert_eq!(job_state(Some(&job("Suspended")), &[]), JobState::There);
    assert_eq!(job_state(Some(&job("Complete")), &[]), JobState::Complete);
    assert_eq!(job_state(Some(&job("Failed")), &[]), JobState::Failed);
    let mut going = job("Complete");
    going.metadata.deletion_timestamp = Some(read(json!("2026-01-01T00:00:00Z")));
    assert_eq!(job_state(Some(&going), &[]), JobState::There);

    let failed = job("Failed");
    let words = |pods: &[Pod]| last_words(Some(&failed), pods);
    assert_eq!(words(&[pod("Failed", "error: the disk is short\n")]), "the disk is short");
    let log = "{\"message\":\"copies\"}\nerror: data: no space is left; raise it\n";
    assert_eq!(words(&[pod("Failed", log)]), "data: no space is left; raise it");
    assert_eq!(words(&[pod("Failed", "pipeline.yaml:3: an error: none")]), "pipeline.yaml:3: an error: none");
    assert_eq!(words(&[pod("Failed", "")]), "it ended with exit code 1");
    assert_eq!(words(&[]), "Pod n/p has failed");
    assert_eq!(last_words(None, &[]), "its Job has failed and said nothing");
}

#[test]
fn a_long_copy_is_asked_less_often() {
    let mut reshard = at(Phase::Copying, consenting());
    let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let mut after = |seconds: i64| {
        reshard.started_at = Some(start);
        let now = Timestamp::from_second(start.as_second() + seconds).unwrap();
        reshard.ask_again_after(now).as_secs()
    };
    assert_eq!([0, 60, 600, 86_400].map(&mut after), [2, 6, 30, 30]);
}
