//! What the worker in the pod says of the config it runs, read from `/status` of its admin address.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde_json::Value;
use tracing::debug;

use super::admin::{self, Closed, Door};
use super::apply::{Change, annotate};
use super::build::admin_port;
use super::names;
use super::observe::Observed;
use super::replica::Replica;
use super::validate::Verdict;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// How soon a worker is asked again that does not run what it is to run: at first, and at last.
const ASK_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// In between, after this part of the time for which it has been so.
const ASK_AGAIN_PART: u32 = 10;
/// How soon one is asked again that refuses it.
const ASK_AGAIN_REFUSED: Duration = Duration::from_secs(10);

/// How soon a worker is asked again how far its replica is.
const ASK_AGAIN_REPLICATING: Duration = Duration::from_secs(30);

/// Asks workers.
pub(crate) struct Workers {
    plain: reqwest::Client,
}

/// What a worker says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Told {
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

/// A worker that is waited for: its pod, and the hash of what it is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Awaited {
    pod: Option<String>,
    config: Option<String>,
}

impl Awaited {
    pub(crate) fn of(observed: &Observed, verdict: &Verdict) -> Self {
        let config = verdict.config.as_ref().ok().map(|config| config.hash.clone());
        Self { pod: observed.pod.as_ref().and_then(ResourceExt::uid), config }
    }
}

/// A document that a worker leaves out.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refused {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) message: String,
}

impl Workers {
    pub(crate) fn new() -> Self {
        Self { plain: admin::plain() }
    }

    /// Asks the worker of a pipeline what it runs.
    pub(crate) async fn ask(&self, observed: &Observed, verdict: &Verdict) -> Told {
        let Ok(config) = &verdict.config else { return Told::Absent };
        let Some(address) = observed.pod.as_ref().filter(|pod| is_up(pod)).and_then(pod_ip) else {
            return Told::Absent;
        };
        let host = if address.contains(':') { format!("[{address}]") } else { address.to_owned() };
        let authority = format!("{host}:{}", admin_port(&config.plan));
        let door = match Door::new(&self.plain, &config.plan, &observed.keys) {
            Ok(door) => door,
            Err(why) => return Told::Silent { why: Some(why) },
        };
        match status(&door, &authority).await {
            Ok(status) => read(&status, &config.hash),
            Err(Closed::Refused(why)) => Told::Silent { why: Some(why) },
            Err(Closed::Silent(error)) => {
                debug!(authority, error = litejoin_crds::error::chain(&error), "the worker does not answer");
                Told::Silent { why: None }
            }
        }
    }
}

async fn status(door: &Door, authority: &str) -> Result<Value, Closed> {
    let mut response = door.get(authority, "/status").await?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(Closed::Silent)? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_BYTES_MAX {
            break;
        }
    }
    Ok(serde_json::from_slice(&body).unwrap_or_default())
}

impl Told {
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

/// What `/status` says of the config with this hash.
fn read(status: &Value, hash: &str) -> Told {
    let config = &status["config"];
    let replica = Replica::read(status);
    if config["hash"] != hash {
        // What it has not seen yet it can't have refused; of what it can't read it tells no hash.
        let last = &config["lastReload"];
        let is_about = last["hash"].is_null() || last["hash"] == hash;
        let refusal = last["error"].as_str().filter(|_| is_about).map(str::to_owned);
        return Told::Behind { refusal, replica };
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let refused = config["leftOut"].as_array().into_iter().flatten().map(|refused| Refused {
        kind: text(&refused["kind"]),
        name: text(&refused["name"]),
        message: text(&refused["message"]),
    });
    Told::Runs { refused: refused.collect(), replica }
}

/// Returns the write that makes kubelet look for the config at once, if the worker waits for it.
pub(crate) fn nudge(observed: &Observed, verdict: &Verdict, told: &Told) -> Option<Change> {
    let (config, pod) = (verdict.config.as_ref().ok()?, observed.pod.as_ref()?);
    let behind = matches!(told, Told::Behind { .. });
    let told_already = pod.annotations().get(names::CONFIG_ANNOTATION) == Some(&config.hash);
    (behind && !told_already && !observed.is_paused())
        .then(|| annotate(pod, names::CONFIG_ANNOTATION, &config.hash))
}

fn is_up(pod: &Pod) -> bool {
    let running = pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    running && pod.metadata.deletion_timestamp.is_none()
}

fn pod_ip(pod: &Pod) -> Option<&str> {
    pod.status.as_ref()?.pod_ip.as_deref()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_old_refusal_is_none_of_what_is_wanted_now() {
        let refusal = |of: Value| {
            let told = json!({ "config": { "hash": "a", "lastReload": { "hash": of, "error": "no" } } });
            match read(&told, "c") {
                Told::Behind { refusal, .. } => refusal,
                told => panic!("{told:?}"),
            }
        };
        assert_eq!(refusal(json!("b")), None);
        assert_eq!(refusal(json!("c")).as_deref(), Some("no"));
        assert_eq!(refusal(Value::Null).as_deref(), Some("no"));
    }

    #[test]
    fn who_stays_away_is_asked_less_and_less() {
        let silent = Told::Silent { why: None };
        let after = |seconds| silent.look_again_after(Duration::from_secs(seconds)).unwrap().as_secs();
        assert_eq!([0, 10, 100, 600, 86_400].map(after), [1, 1, 10, 60, 60]);
        assert_eq!(Told::Absent.look_again_after(Duration::ZERO), None);
    }
}
