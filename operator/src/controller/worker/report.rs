//! What a worker says of the config it runs, as a value.

use std::time::Duration;

use litejoin_crds::worker_status::{LeftOut, WorkerStatus};

use super::replica::Replica;

/// How soon a worker is asked again that does not run what it is to run: at first, and at last.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// In between, after this part of the time for which it has been so.
const ASK_AGAIN_PART: u32 = 10;
/// How soon one is asked again that refuses it.
const ASK_AGAIN_REFUSED: Duration = Duration::from_secs(10);

/// How soon a worker is asked again how far its replica is.
const ASK_AGAIN_REPLICATING: Duration = Duration::from_secs(30);

/// What a worker says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum WorkerReport {
    /// There is nobody to ask.
    Absent,
    /// It does not answer yet, or doesn't let us in, and why.
    Silent { why: Option<String> },
    /// It runs what it is to run.
    Runs {
        /// Documents that the worker leaves out, because they are wrong.
        left_out: Vec<LeftOut>,
        /// `None` where nothing is replicated.
        replica: Option<Replica>,
    },
    /// It runs something else, and perhaps says why.
    Behind { refusal: Option<String>, replica: Option<Replica> },
}

impl WorkerReport {
    /// What `/status` says of the config with this hash.
    pub(crate) fn of(status: WorkerStatus, hash: &str) -> Self {
        let WorkerStatus { config, replication } = status;
        let replica = replication.map(Replica::from);
        if config.hash == hash {
            return Self::Runs { left_out: config.left_out, replica };
        }
        // A config that the worker has not seen yet can't have been refused; of one that can't be read it tells no hash.
        let about_it = config.last_reload.filter(|last| last.hash.as_deref().is_none_or(|last| last == hash));
        Self::Behind { refusal: about_it.and_then(|last| last.error), replica }
    }

    /// Whether a worker is waited for that is there.
    pub(crate) fn is_awaited(&self) -> bool {
        matches!(self, Self::Silent { .. } | Self::Behind { refusal: None, .. })
    }

    /// When to ask again one that is waited for since a while ago; `None` if there is nothing to wait for.
    pub(crate) fn look_again_after(&self, awaited: Duration) -> Option<Duration> {
        let (first, last) = ASK_AGAIN;
        match self {
            Self::Silent { .. } | Self::Behind { refusal: None, .. } => {
                Some((awaited / ASK_AGAIN_PART).clamp(first, last))
            }
            Self::Behind { refusal: Some(_), .. } => Some(ASK_AGAIN_REFUSED),
            Self::Runs { replica: Some(replica), .. } if replica.is_ready => Some(ASK_AGAIN_REPLICATING),
            Self::Runs { replica: Some(_), .. } => Some(ASK_AGAIN_REFUSED),
            Self::Absent | Self::Runs { .. } => None,
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
