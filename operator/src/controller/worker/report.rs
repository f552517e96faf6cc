//! What a worker says of the config it runs, as a value.

use std::time::Duration;

use serde_json::Value;

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
        /// Documents that it leaves out: kind, name, why.
        refused: Vec<Refused>,
        /// `None` where nothing is replicated.
        replica: Option<Replica>,
    },
    /// It runs something else, and perhaps says why.
    Behind { refusal: Option<String>, replica: Option<Replica> },
}

/// A document that a worker leaves out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refused {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) message: String,
}

impl WorkerReport {
    /// Reads from `/status` what the worker says of the config with this hash.
    pub(crate) fn read(status: &Value, hash: &str) -> Self {
        let config = &status["config"];
        let replica = Replica::read(status);
        if config["hash"] != hash {
            // What it has not seen yet it can't have refused; of what it can't read it tells no hash.
            let last = &config["lastReload"];
            let is_about = last["hash"].is_null() || last["hash"] == hash;
            let refusal = last["error"].as_str().filter(|_| is_about).map(str::to_owned);
            return WorkerReport::Behind { refusal, replica };
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let refused = config["leftOut"].as_array().into_iter().flatten().map(|refused| Refused {
            kind: text(&refused["kind"]),
            name: text(&refused["name"]),
            message: text(&refused["message"]),
        });
        WorkerReport::Runs { refused: refused.collect(), replica }
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
    use serde_json::json;

    use super::*;

    #[test]
    fn an_old_refusal_is_none_of_what_is_wanted_now() {
        let refusal = |of: Value| {
            let told = json!({ "config": { "hash": "a", "lastReload": { "hash": of, "error": "no" } } });
            match WorkerReport::read(&told, "c") {
                WorkerReport::Behind { refusal, .. } => refusal,
                told => panic!("{told:?}"),
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
