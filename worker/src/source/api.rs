//! Records of an API as messages of a topic. A poll asks for all pages, one after another; what has changed
//! is found out by the shards, which skip payloads that they have. Where polls ask only for what is new, that mark is
//! kept in `sources.db` and counts only if every shard has stored the poll that it is of.
//!
//! ```text
//! wait ─► page ─► records ─► shards ─► next page … ─► deletes ─► mark ─► place in every shard ─► wait
//! ```
//! A poll that fails stores no mark, and deletes nothing, nor does one whose pages end without a sign of the API. Records that can't be read go to the dead-letter queue, once.

mod answer;
mod gone;
mod links;
mod pace;
mod pages;
mod paths;
mod question;
mod records;
pub(crate) mod state;
mod timestamp;
mod watermark;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, StatusCode, header};
use litejoin_crds::error::chain;
use litejoin_crds::plan;
use litejoin_crds::source::api::{ChangeDetection, WatermarkStrategy};
use reqwest::Url;
use tokio::sync::watch;
use tracing::{info, warn};

use self::answer::ApiAnswer;
use self::pace::{RateLimit, Waits};
use self::pages::{PageFacts, Pages, PagesEnd};
use self::question::{digest, fingerprint};
use self::records::{ApiRecord, ApiRecordError, Null, Unreadable};
use self::state::{Mark, PageTag};
use self::watermark::Watermark;
use crate::blocking::blocking;
use crate::clock;
use crate::dead_letters::DeadLetters;
use crate::outbound::{Outbound, OutboundError};
use crate::source::state::States;
use crate::status::source::SourceStatus;
use crate::storage::arrivals::BatchArrival;
use crate::storage::ingest::Ingest;
use crate::storage::message::Message;
use crate::storage::shard::{ShardBatch, Stream};
use crate::storage::sqlite::SqliteError;
use crate::storage::topics::{TopicError, TopicId};

/// Pages of a source whose ETags are remembered. Those behind them are asked for in full.
const PAGE_TAGS_MAX: usize = 1_000;

/// Wait between attempts to store records that could not be stored.
const STORE_RETRY: Duration = Duration::from_millis(500);

/// Why a poll came to nothing.
#[derive(Debug, thiserror::Error)]
enum PollError {
    #[error(transparent)]
    Outbound(#[from] OutboundError),
    #[error("{complaint}")]
    Refused { status: StatusCode, complaint: String, wait: Option<Duration> },
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
    /// When unchanged rows were last noted to be there, in seconds since the Unix epoch.
    renewed_at: AtomicI64,
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

/// The pages that a poll wants in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Those that have changed since the last poll, by their ETags.
    Changed,
    All,
}

/// What one poll has read so far.
struct Poll {
    watermark: Watermark,
    /// ETags of its pages.
    tags: HashMap<u64, PageTag>,
    /// Pages that were read, and pages that had not changed.
    pages_changed: usize,
    pages_unchanged: usize,
    /// Keys of its records, where they are needed.
    keys: HashSet<Box<str>>,
    /// Whether it has all pages that the API has, and could read all their records.
    is_whole: bool,
    /// What the user should know of it.
    warnings: Vec<String>,
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
        let (name, spec, renewed_at) = (name.to_owned(), spec.clone(), AtomicI64::new(0));
        Ok(Self {
            name,
            spec,
            topic,
            stream,
            outbound,
            ingest,
            letters,
            shard_paths,
            states,
            stored,
            renewed_at,
        })
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
        let Some(mut poll) = self.read(Wanted::Changed, mark, &mut limit, run).await? else {
            self.renew().await;
            return Ok(());
        };
        if poll.pages_unchanged > 0 {
            self.renew().await;
        }
        let is_same = poll.pages_changed == 0 && poll.tags.len() == mark.tags.len();
        if self.spec.detect_deletes && poll.pages_unchanged > 0 && !is_same {
            // A record may have gone, or to another page: the keys of the unchanged pages are needed too.
            let Some(all) = self.read(Wanted::All, mark, &mut limit, run).await? else { return Ok(()) };
            poll = all;
        }
        poll.warnings.extend(poll.watermark.warning().cloned());
        self.warn(&poll.warnings, run);
        if self.spec.detect_deletes && poll.is_whole && poll.pages_unchanged == 0 {
            self.delete_others(&poll.keys, run).await?;
            poll.forgotten.extend(mark.noted.keys().filter(|key| !poll.keys.contains(*key)).cloned());
        }
        *mark = self.remember(mark, poll, run).await?;
        Ok(())
    }

    /// Notes that the API still has the records that it says are unchanged, so that they don't expire. It does not say which
    /// they are, so all rows of the topic are taken for them.
    async fn renew(&self) {
        let keeps_tags =
            self.spec.watermark.as_ref().is_some_and(|mark| mark.strategy == WatermarkStrategy::Etag);
        let now = clock::epoch_seconds();
        let is_due =
            now - self.renewed_at.load(Ordering::Relaxed) >= self.ingest.topics.refresh_after(self.topic);
        if keeps_tags && is_due && self.ingest.topics.expires(self.topic) {
            let (ingest, topic) = (self.ingest.clone(), self.topic);
            blocking(move || ingest.renew(topic)).await;
            self.renewed_at.store(now, Ordering::Relaxed);
        }
    }

    /// Reads the pages, one after another, and stores their records; `None` if there is nothing to say at all.
    async fn read(
        &self,
        wanted: Wanted,
        mark: &mut Mark,
        limit: &mut Option<&mut RateLimit>,
        run: &mut PollerRun,
    ) -> Result<Option<Poll>, PollError> {
        let mut poll = self.begin(mark);
        let pagination = self.spec.pagination.as_ref();
        let mut pages = Pages::new(pagination, self.first_url(&poll.watermark));
        while let Some(url) = pages.next().cloned() {
            if let Some(limit) = limit.as_deref_mut() {
                let wait = limit.wait(Instant::now());
                self.pause(wait, run).await?;
                limit.sent(Instant::now());
            }
            let page = digest(url.as_str().as_bytes());
            let known = self.tag(page, mark, &pages).filter(|_| wanted == Wanted::Changed);
            let answer = tokio::select! {
                answer = answer::ask(&self.outbound, &self.spec, url, known.as_ref()) => answer,
                _ = run.stopping.wait_for(|stopping| *stopping) => return Err(PollError::Stopping),
            };
            let facts = match (answer, known) {
                (Ok(ApiAnswer::Page { headers, body }), _) => {
                    self.forget_tag(page, mark).await?;
                    poll.pages_changed += 1;
                    let records = self.take(&body, mark, &mut poll, run).await?;
                    poll.watermark.saw_answer(&body);
                    let facts = PageFacts::read(pagination, records, &headers, &body);
                    self.note_tag(page, &headers, &facts, &mut poll);
                    facts
                }
                (Ok(ApiAnswer::Unchanged { headers }), Some(known)) => {
                    poll.pages_unchanged += 1;
                    let facts = known.facts.clone().read_again(pagination, &headers);
                    if mark.tags.contains_key(&page) {
                        let number = if facts == known.facts { known.number } else { 0 };
                        poll.tags.insert(page, PageTag { number, facts: facts.clone(), ..known });
                    }
                    facts
                }
                (Ok(_), _) if pages.is_at_first() => return Ok(None),
                (Ok(_), _) => PageFacts::default(),
                (Err(PollError::Refused { status, .. }), _) if pages.has_no_next(status) => break,
                (Err(error), _) => return Err(error),
            };
            pages.turn(&facts).map_err(PollError::Pages)?;
        }
        if let PagesEnd::Open(problem) = pages.end() {
            poll.is_whole = false;
            poll.watermark.was_cut();
            poll.warnings.push(problem);
        }
        Ok(Some(poll))
    }

    fn begin(&self, mark: &Mark) -> Poll {
        Poll {
            watermark: Watermark::new(&self.spec, mark.watermark.clone(), clock::epoch_seconds()),
            tags: HashMap::new(),
            pages_changed: 0,
            pages_unchanged: 0,
            keys: HashSet::new(),
            is_whole: true,
            warnings: Vec::new(),
            noted: Vec::new(),
            forgotten: Vec::new(),
        }
    }

    /// Tells what the user should know of a poll; in the log once, until it is another.
    fn warn(&self, warnings: &[String], run: &PollerRun) {
        let warning = warnings.join("; ");
        if warnings.is_empty() {
            run.status.warning.clear();
        } else if run.status.warning.set(&warning) {
            warn!(source = self.name, warning, "a poll has ended with a warning");
        }
    }

    fn has_etags(&self) -> bool {
        self.spec.watermark.as_ref().is_some_and(|watermark| watermark.strategy == WatermarkStrategy::Etag)
    }

    /// The ETag of a page. One that is written, or was kept by an earlier version, is that of the first page, and says nothing
    /// of the pages behind it.
    fn tag(&self, page: u64, mark: &Mark, pages: &Pages<'_>) -> Option<PageTag> {
        if let Some(tag) = mark.tags.get(&page) {
            return Some(tag.clone());
        }
        if !self.has_etags() || !pages.is_at_first() || self.spec.pagination.is_some() {
            return None;
        }
        let initial = self.spec.watermark.as_ref().and_then(|watermark| watermark.initial.as_ref());
        let tag = mark.watermark.as_ref().or(initial.filter(|_| mark.is_first()))?.clone();
        Some(PageTag { number: mark.number, tag, facts: PageFacts::default() })
    }

    /// Forgets the ETag of a page before its records are stored: from then on a page that is as it was has changed.
    async fn forget_tag(&self, page: u64, mark: &mut Mark) -> Result<(), PollError> {
        let is_kept = mark.tags.remove(&page).is_some();
        if is_kept || (self.has_etags() && mark.watermark.take().is_some()) {
            let (states, stream) = (Arc::clone(&self.states), self.stream.clone());
            blocking(move || states.forget_tag(&stream, page)).await?;
        }
        Ok(())
    }

    /// Notes the ETag of a page, unless a credential would be stored with it: some APIs repeat them in their links.
    fn note_tag(&self, page: u64, headers: &HeaderMap, facts: &PageFacts, poll: &mut Poll) {
        let tag = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok());
        let has_room = self.has_etags() && poll.tags.len() < PAGE_TAGS_MAX;
        let can_be_stored =
            |_: &&str| !facts.next.as_ref().is_some_and(|next| self.outbound.repeats_credentials(next));
        if let Some(tag) = tag.filter(|_| has_room).filter(can_be_stored) {
            poll.tags.insert(page, PageTag { number: 0, tag: tag.to_owned(), facts: facts.clone() });
        }
    }

    /// The state that the last poll has left whose data every shard has stored.
    async fn recall(&self) -> Result<Mark, PollError> {
        let (states, stream, stored) = (Arc::clone(&self.states), self.stream.clone(), self.stored);
        Ok(blocking(move || states.recall(&stream, stored)).await?)
    }

    /// Stores the mark of a poll, then its place in every shard: a mark without the place does not count.
    async fn remember(&self, before: &Mark, poll: Poll, run: &mut PollerRun) -> Result<Mark, PollError> {
        let Poll { watermark, tags, noted, forgotten, .. } = poll;
        let watermark = if self.has_etags() { before.watermark.clone() } else { watermark.into_value() };
        let is_first = before.is_first() && !self.spec.initial_snapshot;
        let is_as_before = watermark == before.watermark && tags == before.tags;
        if is_as_before && noted.is_empty() && forgotten.is_empty() && !is_first {
            return Ok(before.clone());
        }
        let now = u64::try_from(clock::epoch_seconds()).unwrap_or(0);
        let noted_before = Arc::clone(&before.noted);
        let mark = Mark { number: now.max(before.number + 1), watermark, noted: noted_before, tags };
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
