//! Records of an API as messages of a topic. A poll asks for all pages, one after another; what has changed
//! is found out by the shards, which skip payloads that they have. Where polls ask only for what is new, that mark is
//! kept in `sources.db` and counts only if every shard has stored the poll that it is of.
//!
//! ```text
//! wait ─► page ─► records ─► shards ─► next page … ─► deletes ─► mark ─► place in every shard ─► wait
//! ```
//! A poll that fails stores no mark and deletes nothing. Records that can't be read go to the dead-letter queue, once.

mod gone;
mod pace;
mod pages;
mod records;
pub(crate) mod state;
mod watermark;

use std::collections::{HashMap, HashSet};
use std::hash::Hasher as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};
use fnv::FnvHasher;
use litejoin_crds::error::chain;
use litejoin_crds::plan;
use litejoin_crds::source::api::{ApiMethod, ChangeDetection};
use reqwest::{Method, Url};
use tokio::sync::watch;
use tracing::{info, warn};

use self::pace::{RateLimit, Waits};
use self::pages::{ApiPage, Pages};
use self::records::{ApiRecord, ApiRecordError, Null, Unreadable};
use self::state::{Mark, States};
use self::watermark::Watermark;
use crate::blocking::blocking;
use crate::clock;
use crate::dead_letters::DeadLetters;
use crate::outbound::{Outbound, OutboundError, retry_after};
use crate::status::source::SourceStatus;
use crate::storage::arrivals::BatchArrival;
use crate::storage::ingest::Ingest;
use crate::storage::message::Message;
use crate::storage::shard::{ShardBatch, Stream};
use crate::storage::sqlite::SqliteError;
use crate::storage::topics::{TopicError, TopicId};

/// Largest answer, in bytes. It is held in memory.
const BODY_BYTES_MAX: usize = 64 << 20;

/// Wait between attempts to store records that could not be stored.
const STORE_RETRY: Duration = Duration::from_millis(500);

/// Why a poll came to nothing.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("{complaint}")]
    Refused { complaint: String, wait: Option<Duration> },
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error("{0}")]
    Pages(String),
    #[error(transparent)]
    File(#[from] SqliteError),
    #[error("the worker stops")]
    Stopping,
}

/// An api source, ready to run.
pub(crate) struct Poller {
    name: String,
    spec: plan::ApiSource,
    topic: TopicId,
    /// Under which the shards know how far it is.
    stream: String,
    outbound: Outbound,
    ingest: Ingest,
    letters: Arc<DeadLetters>,
    shard_paths: Vec<PathBuf>,
    states: Arc<States>,
    /// The least place of the stream over all shards.
    stored: u64,
}

/// A record that was read; or its text, and why it can't be.
type Decoded = Result<ApiRecord, (String, ApiRecordError)>;

/// The means of one run.
pub(crate) struct PollerRun {
    pub(crate) status: Arc<SourceStatus>,
    pub(crate) stopping: watch::Receiver<bool>,
    /// The poll under way: its event times count once all of it is stored, in whatever order the API has its records.
    pub(crate) arrival: Option<Arc<BatchArrival>>,
}

/// The parts of the worker that a poller needs.
pub(crate) struct Surroundings<'a> {
    pub(crate) ingest: Ingest,
    pub(crate) letters: Arc<DeadLetters>,
    pub(crate) shard_paths: Vec<PathBuf>,
    pub(crate) states: Arc<States>,
    /// Streams of all sources that the shards know.
    pub(crate) offsets: &'a HashMap<String, u64>,
}

/// The records that one poll has read so far.
struct Poll {
    watermark: Watermark,
    /// Keys of its records, where they are needed.
    keys: HashSet<Box<str>>,
    /// Whether it has all records that the API has.
    is_whole: bool,
    /// Records of the first poll that are only noted.
    noted: Vec<(Box<str>, u64)>,
    /// Records that were only noted and are gone.
    forgotten: Vec<Box<str>>,
}

impl Poller {
    /// Checks all that can be checked before the first request.
    pub(crate) fn new(
        name: &str,
        spec: &plan::ApiSource,
        outbound: Outbound,
        surroundings: Surroundings<'_>,
    ) -> Result<Self, TopicError> {
        let Surroundings { ingest, letters, shard_paths, states, offsets } = surroundings;
        let topic = ingest.topics.find_or_add(&spec.topic)?;
        let stream = format!("{name}:{:016x}", fingerprint(spec));
        let stored = offsets.get(&stream).copied().unwrap_or(0);
        let (name, spec) = (name.to_owned(), spec.clone());
        Ok(Self { name, spec, topic, stream, outbound, ingest, letters, shard_paths, states, stored })
    }

    /// Polls until the worker stops.
    pub(crate) async fn run(self, mut run: PollerRun) {
        let waits = Waits {
            interval: self.spec.interval,
            failures_max: self.spec.failures_max,
            backoff_max: self.spec.backoff_max,
        };
        let mut limit = self.spec.rate_limit.map(|(requests, per)| RateLimit::new(requests, per));
        let (mut failures, mut mark) = (0_u32, None);
        loop {
            let began = Instant::now();
            let outcome = self.poll(&mut mark, limit.as_mut(), &mut run).await;
            let wait = match outcome {
                Ok(()) => {
                    run.status.contact.made();
                    if run.status.error.clear() && failures > 0 {
                        info!(source = self.name, "the API answers again");
                    }
                    failures = 0;
                    self.spec.interval.saturating_sub(began.elapsed())
                }
                Err(PollError::Stopping) => return,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    let asked = match &error {
                        PollError::Refused { wait, .. } => *wait,
                        _ => None,
                    };
                    let wait = waits.after(failures, asked, rand::random());
                    let problem = chain(&error);
                    run.status.contact.lost(&problem);
                    if run.status.error.set(&problem) {
                        warn!(
                            source = self.name,
                            error = problem,
                            failures,
                            ?wait,
                            "a poll has failed; trying again"
                        );
                    }
                    wait
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _ = run.stopping.wait_for(|stopping| *stopping) => return,
            }
        }
    }

    /// Asks for everything once, and stores what is new. `mark` is what the last poll has left.
    async fn poll(
        &self,
        mark: &mut Option<Mark>,
        limit: Option<&mut RateLimit>,
        run: &mut PollerRun,
    ) -> Result<(), PollError> {
        let partition = self.name.as_str().into();
        run.arrival = Some(self.ingest.arrivals().begin(&partition));
        let outcome = self.poll_all(mark, limit, run).await;
        run.arrival = None;
        outcome
    }

    /// Polls all pages, and stores their records and the mark behind them.
    async fn poll_all(
        &self,
        mark: &mut Option<Mark>,
        mut limit: Option<&mut RateLimit>,
        run: &mut PollerRun,
    ) -> Result<(), PollError> {
        let mark = match mark {
            Some(mark) => mark,
            None => mark.insert(self.recall().await?),
        };
        let mut poll = Poll {
            watermark: Watermark::new(self.spec.watermark.as_ref(), mark.watermark.clone()),
            keys: HashSet::new(),
            is_whole: true,
            noted: Vec::new(),
            forgotten: Vec::new(),
        };
        let mut pages = Pages::new(self.spec.pagination.as_ref(), self.first_url(&poll.watermark));
        while let Some(url) = pages.next().cloned() {
            if let Some(limit) = limit.as_deref_mut() {
                let wait = limit.wait(Instant::now());
                self.pause(wait, run).await?;
                limit.sent(Instant::now());
            }
            let is_first = pages.asked() == 0;
            let answer = tokio::select! {
                answer = self.ask(url, is_first.then_some(&poll.watermark)) => answer?,
                _ = run.stopping.wait_for(|stopping| *stopping) => return Err(PollError::Stopping),
            };
            let Some((headers, body)) = answer else {
                // Nothing has changed since, or there is nothing more.
                if is_first {
                    return Ok(());
                }
                break;
            };
            let records = self.take(&body, mark, &mut poll, run).await?;
            poll.watermark.saw_answer(&headers, &body, is_first);
            let page = ApiPage { records, headers: &headers, body: &body };
            pages.turn(&page).map_err(PollError::Pages)?;
        }
        if pages.is_cut() {
            poll.is_whole = false;
            poll.watermark.was_cut();
            warn!(source = self.name, "a poll has more pages than pagination.maxPages; the rest is not read");
        }
        if self.spec.detect_deletes && poll.is_whole {
            self.delete_others(&poll.keys, run).await?;
            poll.forgotten.extend(mark.noted.keys().filter(|key| !poll.keys.contains(*key)).cloned());
        }
        *mark = self.remember(mark, poll, run).await?;
        Ok(())
    }

    /// The state that the last poll has left whose data every shard has stored.
    async fn recall(&self) -> Result<Mark, PollError> {
        let (states, stream, stored) = (Arc::clone(&self.states), self.stream.clone(), self.stored);
        Ok(blocking(move || states.recall(&stream, stored)).await?)
    }

    /// Stores the mark of a poll, then its place in every shard: a mark without the place does not count.
    async fn remember(&self, before: &Mark, poll: Poll, run: &mut PollerRun) -> Result<Mark, PollError> {
        let Poll { watermark, noted, forgotten, .. } = poll;
        let watermark = watermark.into_value();
        let is_first = before.is_first() && !self.spec.initial_snapshot;
        if watermark == before.watermark && noted.is_empty() && forgotten.is_empty() && !is_first {
            return Ok(before.clone());
        }
        let now = u64::try_from(clock::epoch_seconds()).unwrap_or(0);
        let mark = Mark { number: now.max(before.number + 1), watermark, noted: Arc::clone(&before.noted) };
        let (states, stream) = (Arc::clone(&self.states), self.stream.clone());
        let mark = blocking(move || states.remember(&stream, mark, noted, forgotten)).await?;
        for shard_index in 0..self.ingest.shard_count() {
            self.store(shard_index, Vec::new(), Some(mark.number + 1), run).await?;
        }
        Ok(mark)
    }

    /// The URL of the first page.
    fn first_url(&self, watermark: &Watermark) -> Url {
        let mut url = self.outbound.url().clone();
        if let Some((name, value)) = watermark.parameter() {
            pages::set_parameter(&mut url, name, value);
        }
        url
    }

    /// Asks for a page; `None` if nothing has changed since the watermark, or there is nothing to say.
    async fn ask(
        &self,
        url: Url,
        watermark: Option<&Watermark>,
    ) -> Result<Option<(HeaderMap, Arc<str>)>, PollError> {
        let method = match self.spec.method {
            ApiMethod::Get => Method::GET,
            ApiMethod::Post => Method::POST,
            ApiMethod::Put => Method::PUT,
        };
        let mut request = self.outbound.request(method, url)?;
        if let Some(etag) = watermark.and_then(Watermark::etag) {
            request = request.header(header::IF_NONE_MATCH, etag);
        }
        if let Some(body) = &self.spec.body {
            let names = &mut self.spec.connection.headers.keys();
            if !names.any(|name| name.eq_ignore_ascii_case("content-type")) {
                request = request.header(header::CONTENT_TYPE, "application/json");
            }
            request = request.body(body.clone());
        }
        let response = self.outbound.send(request).await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let is_unchanged =
            status == StatusCode::NOT_MODIFIED && watermark.and_then(Watermark::etag).is_some();
        if is_unchanged || status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        if !status.is_success() {
            let wait = retry_after(&headers, clock::epoch_seconds());
            let complaint = self.outbound.complaint(response).await;
            return Err(PollError::Refused { complaint, wait });
        }
        let body = self.outbound.body(response, BODY_BYTES_MAX).await?;
        let body = String::from_utf8(body).map_err(|_| Unreadable::Encoding)?;
        Ok(Some((headers, body.into())))
    }

    /// Stores the records of a page, and returns how many there were.
    async fn take(
        &self,
        body: &Arc<str>,
        mark: &mut Mark,
        poll: &mut Poll,
        run: &mut PollerRun,
    ) -> Result<u64, PollError> {
        let page = self.decode(Arc::clone(body), poll).await?;
        let count = page.len() as u64;
        let room = self.ingest.room(body.len()).await;
        let mut batch = self.ingest.batch();
        let (mut accepted, mut changed) = (0, Vec::new());
        for record in page {
            let ApiRecord { key, payload } = match record {
                Ok(record) => record,
                Err((text, reason)) => {
                    poll.is_whole = false;
                    self.refuse(&text, &reason.to_string(), run);
                    continue;
                }
            };
            if self.spec.detect_deletes {
                poll.keys.insert(key.clone());
            }
            if !self.spec.initial_snapshot {
                let digest = digest(payload.as_bytes());
                if mark.is_first() {
                    poll.noted.push((key, digest));
                    continue;
                }
                match mark.noted.get(&key) {
                    Some(noted) if *noted == digest => continue,
                    Some(_) => changed.push(key.clone()),
                    None => {}
                }
            }
            accepted += 1;
            let (topic, payload) = (self.topic, Some(payload));
            batch.push(Message { topic, key, payload, timestamp: None, headers: None, source_offset: 0 });
        }
        if !changed.is_empty() {
            // Before they are stored: from then on a record that is as it was at first has changed.
            for key in &changed {
                Arc::make_mut(&mut mark.noted).remove(key);
            }
            let (states, stream) = (Arc::clone(&self.states), self.stream.clone());
            blocking(move || states.forget(&stream, &changed)).await?;
        }
        for (shard_index, messages) in batch.into_shards().into_iter().enumerate() {
            if !messages.is_empty() {
                self.store(shard_index, messages, None, run).await?;
            }
        }
        drop(room);
        run.status.accepted.add(accepted);
        Ok(count)
    }

    /// Reads the records of a page, in a thread of its own: a large page takes a while.
    async fn decode(&self, body: Arc<str>, poll: &mut Poll) -> Result<Vec<Decoded>, PollError> {
        let (response_path, key_path) = (self.spec.response_path.clone(), self.spec.key_path.clone());
        let sorts_fields = self.spec.change_detection == ChangeDetection::Diff;
        let null = if self.spec.detect_deletes { Null::Unclear } else { Null::Empty };
        let mut watermark = std::mem::take(&mut poll.watermark);
        let (watermark, page) = blocking(move || {
            let page = records::records(&body, response_path.as_deref(), null).map(|texts| {
                let decode = |text: String| {
                    watermark.saw_record(&text);
                    records::record(&text, &key_path, sorts_fields).map_err(|reason| (text, reason))
                };
                texts.into_iter().map(decode).collect()
            });
            (watermark, page)
        })
        .await;
        poll.watermark = watermark;
        Ok(page?)
    }

    /// Deletes the rows of the topic whose keys a poll did not have.
    async fn delete_others(&self, keys: &HashSet<Box<str>>, run: &mut PollerRun) -> Result<(), PollError> {
        let name = self.ingest.topics.name(self.topic);
        for (shard_index, path) in self.shard_paths.iter().enumerate() {
            let mut after: Box<str> = "".into();
            loop {
                let (path, name, from) = (path.clone(), Arc::clone(&name), after.clone());
                let stored = blocking(move || gone::keys_after(&path, &name, &from)).await?;
                let Some(last) = stored.last() else { break };
                after = last.clone();
                let gone = stored.into_iter().filter(|key| !keys.contains(key));
                let topic = self.topic;
                let messages: Vec<Message> = gone
                    .map(|key| Message {
                        topic,
                        key,
                        payload: None,
                        timestamp: None,
                        headers: None,
                        source_offset: 0,
                    })
                    .collect();
                if !messages.is_empty() {
                    self.store(shard_index, messages, None, run).await?;
                }
            }
        }
        Ok(())
    }

    /// Stores messages, and the place in the stream, until the shard has them or the worker stops.
    async fn store(
        &self,
        shard_index: usize,
        messages: Vec<Message>,
        next: Option<u64>,
        run: &mut PollerRun,
    ) -> Result<(), PollError> {
        let messages = Arc::new(messages);
        loop {
            let stream = next.map(|next| Stream { name: self.stream.as_str().into(), next });
            let partition = self.name.as_str().into();
            let arrivals = run.arrival.iter().cloned().collect();
            let batch = ShardBatch { messages: Arc::clone(&messages), partition, arrivals, stream };
            let Err(problem) = self.ingest.write_shard(shard_index, batch).await else { return Ok(()) };
            if run.status.error.set(&problem.to_string()) {
                warn!(source = self.name, error = %problem, "waiting to store records");
            }
            self.pause(STORE_RETRY, run).await?;
        }
    }

    /// Keeps a record that can't be read, unless it is there from another poll.
    fn refuse(&self, text: &str, reason: &str, run: &PollerRun) {
        run.status.refused.add(1);
        let position = format!("record {:016x}", digest(text.as_bytes()));
        let stored = self.letters.reject_and_tell(
            &self.name,
            &position,
            reason,
            text.as_bytes(),
            clock::epoch_seconds(),
        );
        if let Err(error) = stored {
            warn!(source = self.name, position, error = chain(&error), "could not keep a refused record");
        }
    }

    async fn pause(&self, wait: Duration, run: &mut PollerRun) -> Result<(), PollError> {
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            _ = run.stopping.wait_for(|stopping| *stopping) => Err(PollError::Stopping),
        }
    }
}

/// The question that an answer follows from: marks of another question are worth nothing.
fn fingerprint(spec: &plan::ApiSource) -> u64 {
    let plan::ApiSource { connection, topic, method, body, response_path, key_path, .. } = spec;
    let question = format!(
        "{:?}",
        (&connection.url, topic, method, body, response_path, key_path, &spec.watermark, &spec.pagination)
    );
    digest(question.as_bytes())
}

fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(bytes);
    hasher.finish()
}
