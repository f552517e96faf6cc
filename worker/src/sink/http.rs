//! Results posted as JSON: one as an object, or several as an array. Requests go out in order, some at once; after the
//! first that fails no more are begun. A request whose connection breaks off before an answer is sent once more at once, on
//! a new connection and under the same key; so a connection that the server has closed meanwhile costs no wait.
//!
//! | header | holds |
//! |---|---|
//! | `Idempotency-Key` | the id of the result; of an array, a digest of its ids: the same for the same results |
//! | `LiteJoin-Signature` | `sha256=` and the HMAC of the body in hex, with a `signingKey` |

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::stream::FuturesOrdered;
use hmac::{Hmac, Mac as _};
use litejoin_crds::error::chain;
use litejoin_crds::plan;
use reqwest::{Method, RequestBuilder, StatusCode, header};
use sha2::{Digest as _, Sha256};

use super::{Delivery, Outcome, Outcomes, RESULTS_PER_CALL, Sink};
use crate::clock;
use crate::credentials::Secrets;
use crate::outbound::{Outbound, OutboundError, retry_after};

/// Time after which a call begins no more requests, so that what is delivered is noted now and then.
const CALL_TIME: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read to keep its connection.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Posts results.
pub(crate) struct HttpSink {
    outbound: Outbound,
    spec: plan::HttpSink,
}

impl HttpSink {
    /// Looks up what it needs, or says what is missing.
    pub(crate) fn new(spec: &plan::HttpSink, secrets: &Arc<Secrets>) -> Result<Self, String> {
        let new = || -> Result<Self, OutboundError> {
            let outbound = Outbound::new(&spec.connection, Arc::clone(secrets))?;
            let sink = Self { outbound, spec: spec.clone() };
            sink.signature(b"")?;
            Ok(sink)
        };
        new().map_err(|error| chain(&error))
    }

    /// Posts results together. Where they are refused, each is posted by itself, so that one alone is to blame.
    async fn post(&self, results: &[Delivery]) -> Vec<Outcome> {
        let outcome = self.post_together(results).await;
        if results.len() == 1 || !matches!(outcome, Outcome::Refused(_)) {
            return vec![outcome; results.len()];
        }
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(results.len());
        for result in results {
            let away = outcomes.last().filter(|last| is_away(last)).cloned();
            outcomes.push(match away {
                Some(outcome) => outcome,
                None => self.post_together(std::slice::from_ref(result)).await,
            });
        }
        outcomes
    }

    async fn post_together(&self, results: &[Delivery]) -> Outcome {
        match self.try_post(results).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(chain(&error)),
        }
    }

    async fn try_post(&self, results: &[Delivery]) -> Result<Outcome, OutboundError> {
        let body = if self.spec.batch_results_max == 1 { results[0].json.clone() } else { array(results) };
        let signature = self.signature(body.as_bytes())?;
        let whole = |request: RequestBuilder| {
            let request = request
                .header(header::CONTENT_TYPE, "application/json")
                .header("idempotency-key", idempotency_key(results));
            let signed = match &signature {
                Some(signature) => request.header("litejoin-signature", signature),
                None => request,
            };
            signed.body(body.clone())
        };
        let url = self.outbound.url();
        let request = self.outbound.request(Method::POST, url.clone())?;
        let response = match self.outbound.send(whole(request)).await {
            // A server that had the request all the same knows it by its key.
            Err(OutboundError::BrokenOff(_)) => {
                let request = self.outbound.request_anew(Method::POST, url.clone())?;
                self.outbound.send(whole(request)).await?
            }
            sent => sent?,
        };
        let status = response.status();
        if status.is_success() {
            // A connection is used again only once its answer has been read; what it says does not matter.
            let _ = self.outbound.body(response, ANSWER_BYTES_MAX).await;
            return Ok(Outcome::Delivered);
        }
        // A server that asks for no time at all, or for one that is over, leaves it to our schedule.
        let wait = retry_after(response.headers(), clock::epoch_seconds()).filter(|wait| !wait.is_zero());
        let complaint = self.outbound.complaint(response).await;
        Ok(match wait {
            _ if !may_pass(status) => Outcome::Refused(complaint),
            Some(wait) => Outcome::Later(complaint, wait),
            None => Outcome::Failed(complaint),
        })
    }

    fn signature(&self, body: &[u8]) -> Result<Option<String>, OutboundError> {
        let Some(key) = &self.spec.signing_key else { return Ok(None) };
        let looked_up = self.outbound.secrets().credential(key);
        let key = looked_up.map_err(|source| OutboundError::Credential { field: "signingKey", source })?;
        let mut mac =
            Hmac::<Sha256>::new_from_slice(key.expose().as_bytes()).expect("a key may have any length");
        mac.update(body);
        Ok(Some(format!("sha256={}", hex(&mac.finalize().into_bytes()))))
    }
}

impl Sink for HttpSink {
    fn deliver<'a>(&'a mut self, results: &'a [Delivery]) -> Outcomes<'a> {
        let sink = &*self;
        Box::pin(async move {
            let began = Instant::now();
            let mut batches = results.chunks(sink.spec.batch_results_max);
            let (mut under_way, mut outcomes) = (FuturesOrdered::new(), Vec::with_capacity(results.len()));
            let mut goes_on = true;
            loop {
                while goes_on
                    && under_way.len() < sink.spec.concurrency
                    && let Some(batch) = batches.next()
                {
                    under_way.push_back(sink.post(batch));
                }
                let Some(answered) = under_way.next().await else { return outcomes };
                goes_on = goes_on && !answered.iter().any(is_away) && began.elapsed() < CALL_TIME;
                outcomes.extend(answered);
            }
        })
    }

    fn results_per_call(&self) -> usize {
        RESULTS_PER_CALL.max(self.spec.batch_results_max)
    }

    fn call_timeout(&self) -> Duration {
        // A batch that is refused takes a request for each of its results; that is bounded by each of them.
        let requests = u32::try_from(self.spec.batch_results_max).unwrap_or(u32::MAX).saturating_add(1);
        CALL_TIME + self.spec.connection.timeout.saturating_mul(requests)
    }
}

/// Whether an outcome says that the server is away, and not what it makes of a result.
fn is_away(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Failed(_) | Outcome::Later(..))
}

/// Whether the same request may go through later. A request that the server refuses for what it holds never will; what
/// blames the credentials, the URL or the moment is no fault of the result.
fn may_pass(status: StatusCode) -> bool {
    const NOT_THE_RESULT: [StatusCode; 8] = [
        StatusCode::UNAUTHORIZED,
        StatusCode::FORBIDDEN,
        StatusCode::NOT_FOUND,
        StatusCode::METHOD_NOT_ALLOWED,
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        StatusCode::REQUEST_TIMEOUT,
        StatusCode::TOO_EARLY,
        StatusCode::TOO_MANY_REQUESTS,
    ];
    !status.is_client_error() || NOT_THE_RESULT.contains(&status)
}

fn array(results: &[Delivery]) -> String {
    let length: usize = results.iter().map(|result| result.json.len() + 1).sum();
    let mut text = String::with_capacity(length + 1);
    for (index, result) in results.iter().enumerate() {
        text.push(if index == 0 { '[' } else { ',' });
        text.push_str(&result.json);
    }
    text.push(']');
    text
}

/// The id of a batch, the same for the same results. Two arrays may begin with the same result and yet differ, so the id
/// of the result is not enough.
fn idempotency_key(results: &[Delivery]) -> String {
    if let [result] = results {
        return result.id.clone();
    }
    let mut digest = Sha256::new();
    for result in results {
        digest.update(&result.id);
        digest.update(b" ");
    }
    hex(&digest.finalize()[..16])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::event::Op;

    fn delivery(id: &str) -> Delivery {
        Delivery {
            id: id.to_owned(),
            key: "\"k\"".to_owned(),
            join_name: "j".to_owned(),
            epoch: 1,
            op: Op::Created,
            json: format!("{{\"id\":{id:?}}}"),
        }
    }

    #[test]
    fn what_may_pass_is_told_from_what_never_will() {
        for (status, passes) in [
            (400, false),
            (401, true),
            (404, true),
            (408, true),
            (409, false),
            (422, false),
            (425, true),
            (429, true),
            (500, true),
            (503, true),
            (302, true),
        ] {
            assert_eq!(may_pass(StatusCode::from_u16(status).unwrap()), passes, "{status}");
        }
    }

    #[test]
    fn equal_batches_alone_have_the_same_key() {
        let results = [delivery("l.1.1"), delivery("l.1.2"), delivery("l.1.3")];
        assert_eq!(idempotency_key(&results[..1]), "l.1.1");
        assert_eq!(idempotency_key(&results[..2]), idempotency_key(&results.clone()[..2]));
        assert_ne!(idempotency_key(&results[..2]), idempotency_key(&results));
        assert_eq!(array(&results[..2]), r#"[{"id":"l.1.1"},{"id":"l.1.2"}]"#);
    }
}
