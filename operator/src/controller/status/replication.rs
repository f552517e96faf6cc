//! How far the replica is. The steps are coarse, or a status would be written every second.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::CronJobStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::DynamicObject;
use litejoin_crds::PipelineSpec;
use litejoin_crds::duration::DurationText;
use litejoin_crds::status::ReplicationStatus;

use super::condition::{Fact, Holds, read};
use crate::controller::worker::{Replica, WorkerReport};

const KIND: &str = "ReplicationHealthy";

/// A replica that lags by more than this many sync intervals, and by more than [`LAG_MIN`], is not healthy.
const LAG_INTERVALS: u32 = 10;
/// See [`LAG_INTERVALS`].
const LAG_MIN: Duration = Duration::from_secs(30);

/// The lags that a message distinguishes: at least so many seconds, in words.
const STEPS: [(u64, &str); 6] = [
    (86_400, "a day"),
    (21_600, "6 hours"),
    (3_600, "an hour"),
    (900, "15 minutes"),
    (300, "5 minutes"),
    (60, "a minute"),
];

/// The results of drills, as the CronJob's status has them.
#[derive(Debug, Default)]
pub(super) struct Drills {
    last_good: Option<Time>,
    /// When the last drill was due, if it has failed.
    failed: Option<Time>,
}

impl Drills {
    pub(super) fn of(cron: Option<&DynamicObject>) -> Self {
        let Some(cron) = cron else { return Self::default() };
        let CronJobStatus { active, last_schedule_time: due, last_successful_time: good } =
            read(&cron.data["status"]);
        let is_over = active.is_none_or(|active| active.is_empty());
        let failed = due.filter(|due| is_over && good.as_ref().is_none_or(|good| good.0 < due.0));
        Self { last_good: good, failed }
    }
}

/// Whether the replica keeps up with the data, and the last drill could restore it; `None` for a pipeline without a
/// replica.
pub(super) fn healthy(spec: &PipelineSpec, report: &WorkerReport, drills: &Drills) -> Option<Fact> {
    if !spec.replication.enabled {
        return None;
    }
    let unknown = |why: &str| Fact::new(KIND, Holds::Unknown, "NothingTold", why);
    Some(match report.news().map(|news| &news.replica) {
        None => unknown("the worker has not said how far the replica is"),
        Some(None) => unknown("the worker does not replicate yet"),
        Some(Some(replica)) => judged(replica, lag_max(&spec.replication.sync_interval), drills),
    })
}

fn judged(replica: &Replica, lag_max: Duration, drills: &Drills) -> Fact {
    let why = replica.error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
    if replica.lag > lag_max {
        let step = STEPS.iter().find(|(seconds, _)| replica.lag.as_secs() >= *seconds);
        let behind = step.map_or("half a minute", |(_, words)| words);
        let message = format!("the replica is behind by more than {behind}{why}");
        return Fact::new(KIND, Holds::NotYet, "Behind", message);
    }
    if replica.is_failing {
        return Fact::new(
            KIND,
            Holds::NotYet,
            "Failing",
            format!("the replica can't be brought up to date{why}"),
        );
    }
    if !replica.is_ready {
        let message =
            format!("not everything was copied once; until then a restore takes the copy before{why}");
        return Fact::new(KIND, Holds::NotYet, "FirstCopy", message);
    }
    if let Some(due) = &drills.failed {
        let good = drills.last_good.as_ref().map_or("none was good before".to_owned(), |good| {
            format!("the last good one ended at {}", good.0)
        });
        let message = format!(
            "the drill of {} could not restore the replica, or not all of it is sound, and {good}; the log of its job says \
             why, and with another replicaUrl everything is copied anew",
            due.0
        );
        return Fact::new(KIND, Holds::NotYet, "DrillFailed", message);
    }
    Fact::yes(KIND, "Replicating")
}

fn lag_max(sync_interval: &DurationText) -> Duration {
    (sync_interval.parse().unwrap_or_default() * LAG_INTERVALS).max(LAG_MIN)
}

/// The part of the status about the replica. It stays as it was while the worker says nothing.
pub(super) fn status(
    report: &WorkerReport,
    place: Option<String>,
    drills: &Drills,
    before: Option<ReplicationStatus>,
) -> Option<ReplicationStatus> {
    let Some(replica) = report.news().and_then(|news| news.replica.as_ref()) else { return before };
    let before = before.unwrap_or_default();
    // An incomplete replica can't be restored from, and a worker with an older config may write to an older place.
    let is_whole = replica.is_ready && matches!(report, WorkerReport::Runs { .. });
    let (incarnation, place) =
        if is_whole { (replica.incarnation, place) } else { (before.incarnation, before.place) };
    Some(ReplicationStatus {
        incarnation,
        place,
        last_sync_time: last_sync(replica, before.last_sync_time),
        restored_timestamp: replica.restored_timestamp.clone(),
        last_drill_time: drills.last_good.clone().or(before.last_drill_time),
    })
}

/// When the replica last had everything. The time moves only in large steps, or a status would be written each time.
fn last_sync(replica: &Replica, before: Option<Time>) -> Option<Time> {
    /// The smallest step.
    const GRAIN_SECONDS: i64 = 300;
    let minute = replica.complete_until - replica.complete_until % 60;
    if !replica.is_ready
        || before.as_ref().is_some_and(|before| minute - before.0.as_second() < GRAIN_SECONDS)
    {
        return before;
    }
    Timestamp::from_second(minute).ok().map(Time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::worker::WorkerNews;

    use serde_json::{Value, json};

    fn replica(lag_seconds: u64, is_ready: bool, error: Option<&str>) -> Replica {
        Replica {
            incarnation: Some(2),
            is_ready,
            complete_until: 1_700_000_000,
            lag: Duration::from_secs(lag_seconds),
            restored_timestamp: None,
            error: error.map(str::to_owned),
            is_failing: false,
        }
    }

    #[test]
    fn a_replica_is_healthy_while_it_follows() {
        let cases = [
            (replica(2, true, None), (Holds::Yes, "Replicating", "")),
            (
                replica(31, true, None),
                (Holds::NotYet, "Behind", "the replica is behind by more than half a minute"),
            ),
            (
                replica(4_000, true, Some("no such bucket")),
                (Holds::NotYet, "Behind", "the replica is behind by more than an hour: no such bucket"),
            ),
            (
                replica(1, false, None),
                (
                    Holds::NotYet,
                    "FirstCopy",
                    "not everything was copied once; until then a restore takes the copy before",
                ),
            ),
        ];
        for (replica, expected) in cases {
            let fact = judged(&replica, LAG_MIN, &Drills::default());
            assert_eq!((fact.holds, fact.reason.as_str(), fact.message.as_str()), expected);
        }
    }

    fn drills(status: &Value) -> Drills {
        let cron: DynamicObject =
            serde_json::from_value(json!({ "metadata": { "name": "p" }, "status": status })).unwrap();
        Drills::of(Some(&cron))
    }

    #[test]
    fn a_replica_is_not_healthy_once_a_drill_has_failed() {
        let (due, good) = ("2026-03-02T04:00:00Z", "2026-03-01T04:01:07Z");
        let verdict = |status: Value| judged(&replica(1, true, None), LAG_MIN, &drills(&status));
        for (status, expected) in [
            (json!(null), "Replicating"),
            (json!({ "lastScheduleTime": due, "active": [{ "name": "p-1" }] }), "Replicating"),
            (json!({ "lastScheduleTime": due, "lastSuccessfulTime": "2026-03-02T04:01:07Z" }), "Replicating"),
            // This drill was started by hand.
            (json!({ "lastSuccessfulTime": good }), "Replicating"),
            (json!({ "lastScheduleTime": due, "lastSuccessfulTime": good }), "DrillFailed"),
            (json!({ "lastScheduleTime": due }), "DrillFailed"),
        ] {
            assert_eq!(verdict(status.clone()).reason, expected, "{status}");
        }
        let message = verdict(json!({ "lastScheduleTime": due, "lastSuccessfulTime": good })).message;
        assert!(message.starts_with("the drill of 2026-03-02T04:00:00Z could not restore"), "{message}");
        assert!(message.contains("the last good one ended at 2026-03-01T04:01:07Z"), "{message}");
    }

    #[test]
    fn who_syncs_seldom_may_be_behind_for_longer() {
        assert_eq!(lag_max(&"1s".into()), LAG_MIN);
        assert_eq!(lag_max(&"1m".into()), Duration::from_secs(600));
    }

    #[test]
    fn the_status_names_a_copy_that_can_be_restored_and_keeps_it() {
        let news = |replica| WorkerNews { replica, ..WorkerNews::default() };
        let runs = |replica| WorkerReport::Runs { left_out: Vec::new(), news: news(replica) };
        let place = || Some("file:///r/n/p".to_owned());
        let status = |report: &WorkerReport, before| status(report, place(), &Drills::default(), before);
        let first = status(&runs(Some(replica(1, false, None))), None).unwrap();
        assert_eq!((first.incarnation, &first.place, first.last_sync_time.clone()), (None, &None, None));
        let ready = status(&runs(Some(replica(1, true, None))), Some(first)).unwrap();
        assert_eq!((ready.incarnation, &ready.place), (Some(2), &place()));
        // A worker with another config may write to another place.
        let behind = WorkerReport::Behind { refusal: None, news: news(Some(replica(1, true, None))) };
        let elsewhere = || Some("file:///moved/n/p".to_owned());
        let moved = super::status(&behind, elsewhere(), &Drills::default(), Some(ready.clone())).unwrap();
        assert_eq!(moved.place, place());
        let report = runs(Some(replica(1, false, None)));
        let copying = super::status(&report, elsewhere(), &Drills::default(), Some(moved)).unwrap();
        assert_eq!(copying.place, place());
        let report = runs(Some(replica(1, true, None)));
        let whole = super::status(&report, elsewhere(), &Drills::default(), Some(copying)).unwrap();
        assert_eq!(whole.place, elsewhere());
        assert_eq!(ready.last_sync_time.as_ref().unwrap().0.as_second(), 1_699_999_980);
        let soon = Replica { complete_until: 1_700_000_060, ..replica(1, true, None) };
        assert_eq!(status(&runs(Some(soon)), Some(ready.clone())), Some(ready.clone()));
        let later = Replica { complete_until: 1_700_001_000, ..replica(1, true, None) };
        assert_ne!(status(&runs(Some(later)), Some(ready.clone())), Some(ready.clone()));
        assert_eq!(status(&WorkerReport::Absent, Some(ready.clone())), Some(ready.clone()));

        let good = "2026-03-01T04:01:07Z";
        let drilled = drills(&json!({ "lastSuccessfulTime": good }));
        let after_drill =
            super::status(&runs(Some(replica(1, true, None))), place(), &drilled, Some(ready)).unwrap();
        assert_eq!(after_drill.last_drill_time.as_ref().unwrap().0.to_string(), good);
        // The time of the last good drill stays when the CronJob is gone.
        assert_eq!(status(&runs(Some(replica(1, true, None))), Some(after_drill.clone())), Some(after_drill));
    }
}
