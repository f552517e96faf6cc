//! What a worker says of the config it runs, as a value.

use std::time::Duration;

use litejoin_crds::worker_status::{DegradedPart, LeftOut, ReshardReport, WorkerStatus};

use super::replica::Replica;

/// The shortest and the longest wait before a worker that does not run the config yet is asked again.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Between these bounds, the wait is this part of the time for which the worker has been waited for.
const ASK_AGAIN_PART: u32 = 10;
/// How soon a worker that refuses the config is asked again.
const ASK_AGAIN_REFUSED: Duration = Duration::from_secs(10);

/// How soon a worker is asked again how far its replica is.
const ASK_AGAIN_REPLICATING: Duration = Duration::from_secs(30);

/// A worker's answer to the question whether it runs a config.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum WorkerReport {
    /// There is no running pod, or no config.
    Absent,
    /// The worker gives no answer; `why` is set where that has to be put right.
    Silent { why: Option<String> },
    /// The worker runs the config.
    Runs {
        /// Parts that are wrong, and that the worker leaves out or runs as they were before.
        left_out: Vec<LeftOut>,
        news: WorkerNews,
    },
    /// The worker runs another config, and may have refused this one.
    Behind { refusal: Option<String>, news: WorkerNews },
}

/// What a worker says of its data and of others, whichever config it runs.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct WorkerNews {
    /// `None` where nothing is replicated.
    pub(crate) replica: Option<Replica>,
    /// Sources and sinks that can't do their work.
    pub(crate) degraded: Vec<DegradedPart>,
    /// Shards that the data has; `None` where the worker does not tell.
    pub(crate) shard_count: Option<u32>,
    /// How far a move of the data to other shards is, beside the worker.
    pub(crate) reshard: Option<ReshardReport>,
}

impl WorkerReport {
    /// Reads from `/status` whether the worker runs the config with this hash.
    pub(crate) fn of(status: WorkerStatus, hash: &str) -> Self {
        let WorkerStatus { config, replication, degraded, shard_count, reshard } = status;
        let news = WorkerNews { replica: replication.map(Replica::from), degraded, shard_count, reshard };
        if config.hash == hash {
            return Self::Runs { left_out: config.left_out, news };
        }
        // A reload of other documents says nothing of these. A reload without a hash was of documents that could not be
        // read, which may be these.
        let about_it = config.last_reload.filter(|last| last.hash.as_deref().is_none_or(|last| last == hash));
        Self::Behind { refusal: about_it.and_then(|last| last.error), news }
    }

    /// What the worker says of its data and of others; `None` without an answer.
    pub(crate) fn news(&self) -> Option<&WorkerNews> {
        match self {
            Self::Runs { news, .. } | Self::Behind { news, .. } => Some(news),
            Self::Absent | Self::Silent { .. } => None,
        }
    }

    /// The sources and sinks that can't do their work.
    pub(crate) fn degraded(&self) -> &[DegradedPart] {
        self.news().map(|news| news.degraded.as_slice()).unwrap_or_default()
    }

    /// Whether the worker has judged the documents as they are now.
    pub(crate) fn is_judgement(&self) -> bool {
        matches!(self, Self::Runs { .. } | Self::Behind { refusal: Some(_), .. })
    }

    /// Whether nothing is known of the worker, which may run on as it did before.
    pub(crate) fn is_silence(&self) -> bool {
        matches!(self, Self::Absent | Self::Silent { .. })
    }

    /// Whether the worker is expected to take up the config by itself.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Behind { refusal: None, .. })
    }

    /// The wait before the worker is asked again, if it has been waited for so long; `None` if there is nothing to wait
    /// for.
    pub(crate) fn look_again_after(&self, awaited: Duration) -> Option<Duration> {
        let (first, last) = ASK_AGAIN;
        match self {
            Self::Silent { .. } | Self::Behind { refusal: None, .. } => {
                Some((awaited / ASK_AGAIN_PART).clamp(first, last))
            }
            Self::Behind { refusal: Some(_), .. } => Some(ASK_AGAIN_REFUSED),
            Self::Runs { news, .. } => {
                let replica = news.replica.as_ref()?;
                Some(if replica.is_ready { ASK_AGAIN_REPLICATING } else { ASK_AGAIN_REFUSED })
            }
            Self::Absent => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn an_old_refusal_is_none_of_what_is_wanted_now() {
        let refusal = |of: Value| {
            let status = json!({ "config": { "hash": "a", "lastReload": { "hash": of, "error": "no" } } });
            match WorkerReport::of(serde_json::from_value(status).unwrap(), "c") {
                WorkerReport::Behind { refusal, .. } => refusal,
                report => panic!("{report:?}"),
            }
        };
        assert_eq!(refusal(json!("b")), None);
        assert_eq!(refusal(json!("c")).as_deref(), Some("no"));
        assert_eq!(refusal(Value::Null).as_deref(), Some("no"));
    }

    #[test]
    fn who_stays_away_is_asked_less_and_less() {
        let silent = WorkerReport::Silent { why: None };
        let after = |seconds| silent.look_again_after(Duration::from_secs(seconds)).unwrap().as_secs();
        assert_eq!([0, 10, 100, 600, 86_400].map(after), [1, 1, 10, 60, 60]);
        assert_eq!(WorkerReport::Absent.look_again_after(Duration::ZERO), None);
    }
}
