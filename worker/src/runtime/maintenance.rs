//! Maintenance beside the data path: the outbox, the dead-letter queue and the topics are kept small, and stored results
//! are compared while nothing else is to do.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use litejoin_crds::error::chain;
use litejoin_crds::plan::{self, Guarantee, Plan};
use tokio::sync::watch;
use tracing::{info, warn};

use super::sinks::is_pushed;
use super::unit::{Unit, Work};
use crate::audit::Auditor;
use crate::blocking::blocking;
use crate::clock;
use crate::dead_letters::DeadLetters;
use crate::join::CheckedJoin;
use crate::reshard;
use crate::results::outbox::Keep;
use crate::results::{Reader, Results};
use crate::status::Status;
use crate::storage::data_size::DataSize;
use crate::storage::expiry::NeededRows;
use crate::storage::ingest::Ingest;
use crate::storage::retention::{Cleaner, Needed};
use crate::storage::sqlite::SqliteError;
use crate::storage::writer::WriterCommand;

/// How often the outbox is looked at, and rates are sampled.
const TIDY_INTERVAL: Duration = Duration::from_secs(1);

/// How often the layout of before a re-shard is looked at.
const OLD_LAYOUT_INTERVAL: Duration = Duration::from_secs(10);

/// Waits for `interval`; `false` if the worker stops first.
async fn tick(interval: Duration, stopping: &mut watch::Receiver<bool>) -> bool {
    tokio::select! {
        () = tokio::time::sleep(interval) => true,
        _ = stopping.wait_for(|stopping| *stopping) => false,
    }
}

/// Has all dead letters tried again, unless that was done for this nonce.
async fn retry_once(letters: Arc<DeadLetters>, nonce: String) {
    match blocking(move || letters.retry_once(&nonce, clock::epoch_seconds())).await {
        Ok(0) => {}
        Ok(count) => info!(count, "dead letters are tried again, as delivery.dlq.retryNonce asks for"),
        Err(error) => {
            warn!(error = chain(&error), "could not try dead letters again; the next start tries to")
        }
    }
}

/// The tasks of maintenance, and all that they work on.
pub(super) struct Maintenance {
    pub(super) units: Vec<Unit>,
    pub(super) results: Arc<Results>,
    pub(super) reader: Arc<Reader>,
    pub(super) letters: Arc<DeadLetters>,
    pub(super) shard_paths: Vec<PathBuf>,
    pub(super) ingest: Ingest,
    pub(super) status: Arc<Status>,
    pub(super) auditor: Arc<Auditor>,
}

impl Maintenance {
    /// Starts all of it, as the plan asks for it.
    pub(super) fn start(&mut self, plan: &Plan, joins: &[CheckedJoin]) {
        self.letters.set_bytes_max(plan.delivery.dlq.bytes_max);
        self.status.storage.bound(plan.storage.bytes_max);
        if let Some(nonce) = plan.delivery.dlq.retry_nonce.clone() {
            tokio::spawn(retry_once(Arc::clone(&self.letters), nonce));
        }
        let (results, ingest, status) =
            (Arc::clone(&self.results), self.ingest.clone(), Arc::clone(&self.status));
        let outbox = plan.clone();
        let (policy, letters) = (plan.delivery.dlq.clone(), Arc::clone(&self.letters));
        let (retention, shard_paths) = (plan.retention.clone(), self.shard_paths.clone());
        let interval = retention.clean_interval;
        self.ingest.topics.keep_for(&retention);
        let needed = needed(Arc::clone(&self.reader), joins);
        let cleaner = Cleaner::new(retention, needed, shard_paths, self.ingest.clone());
        let data_dir = plan.storage.data_dir.clone();
        let measured = self.data_paths();
        let (ingest_of_size, status_of_size) = (self.ingest.clone(), Arc::clone(&self.status));
        let works: [Work; 5] = [
            Box::new(move |stopping| {
                Box::pin(measure_data(measured, ingest_of_size, status_of_size, stopping))
            }),
            Box::new(move |stopping| Box::pin(tidy_outbox(outbox, results, ingest, status, stopping))),
            Box::new(move |stopping| Box::pin(clean_letters(policy, letters, stopping))),
            Box::new(move |stopping| Box::pin(clean_topics(cleaner, interval, stopping))),
            Box::new(move |stopping| Box::pin(remove_old_layout(data_dir, stopping))),
        ];
        self.units.extend(works.map(Unit::start));
        if plan.audit.enabled {
            let (auditor, policy) = (Arc::clone(&self.auditor), plan.audit.clone());
            let watch: Work =
                Box::new(|stopping| Box::pin(async move { auditor.watch(policy, stopping).await }));
            self.units.push(Unit::start(watch));
        }
    }

    /// The files that `storage.maxBytes` bounds.
    fn data_paths(&self) -> Vec<PathBuf> {
        let results = self.results.path().to_owned();
        self.shard_paths.iter().cloned().chain([results]).collect()
    }

    /// Ends all of it; what it has begun is done.
    pub(super) async fn stop(&mut self) {
        self.units.iter().for_each(Unit::ask_to_stop);
        for mut unit in self.units.drain(..) {
            unit.ended().await;
        }
    }
}

/// Returns what finds the rows that windows need: those of frames that are not frozen.
fn needed(reader: Arc<Reader>, joins: &[CheckedJoin]) -> Needed {
    let windows: Vec<(String, String, String)> = joins
        .iter()
        .filter_map(|join| {
            let window = join.window.as_ref()?;
            Some((join.name.clone(), window.topic.clone(), window.time.sql()))
        })
        .collect();
    Box::new(move || {
        let mut needed = Vec::new();
        for (name, topic, time) in &windows {
            if let Some(since) = reader.first_frame(name)? {
                needed.push(NeededRows { topic: topic.clone(), time: time.clone(), since });
            }
        }
        Ok(needed)
    })
}

async fn tidy_outbox(
    plan: Plan,
    results: Arc<Results>,
    ingest: Ingest,
    status: Arc<Status>,
    mut stopping: watch::Receiver<bool>,
) {
    let has_pushed = plan.sinks.iter().any(|sink| is_pushed(&sink.kind));
    let must_get_all = has_pushed && plan.delivery.guarantee == Guarantee::AtLeastOnce;
    let window = i64::try_from(plan.delivery.replay_window.as_secs()).unwrap_or(i64::MAX);
    while tick(TIDY_INTERVAL, &mut stopping).await {
        status.sample_rates(TIDY_INTERVAL.as_secs_f64());
        status.inflight_bytes.set(ingest.inflight_bytes() as u64);
        let results = Arc::clone(&results);
        let bytes_max = plan.delivery.outbox_bytes_max;
        let since = clock::epoch_seconds() - window;
        let tidied = blocking(move || {
            let slowest = if must_get_all { Some(results.slowest_cursor()?) } else { None };
            results.tidy_outbox(Keep { since, slowest, bytes_max })
        })
        .await;
        match tidied {
            Ok(tidied) => {
                status.outbox_bytes.set(tidied.bytes);
                status.outbox_compacted.add(tidied.compacted);
                if tidied.compacted > 0 {
                    warn!(
                        results = tidied.compacted,
                        "a sink lags; it will get only the newest result of each key (delivery.outboxMaxBytes)"
                    );
                }
            }
            Err(error) => warn!(error = chain(&error), "could not tidy the outbox; trying again"),
        }
    }
}

/// Measures the data each second. While it takes too much no writes come that would trim the change logs, and these are a
/// part of it.
async fn measure_data(
    paths: Vec<PathBuf>,
    ingest: Ingest,
    status: Arc<Status>,
    mut stopping: watch::Receiver<bool>,
) {
    let mut size = None;
    while tick(TIDY_INTERVAL, &mut stopping).await {
        let paths = paths.clone();
        let measured = blocking(move || {
            let open = size.map_or_else(|| DataSize::open(paths), Ok)?;
            Ok::<_, SqliteError>((open.bytes()?, open))
        })
        .await;
        size = match measured {
            Ok((bytes, open)) => {
                status.storage.measured(bytes);
                Some(open)
            }
            Err(error) => {
                warn!(error = chain(&error), "could not measure the data; trying again");
                None
            }
        };
        if status.storage.excess().is_some() {
            ingest.command_all((0..ingest.shard_count()).map(|_| WriterCommand::Trim).collect());
        }
    }
}

async fn clean_letters(policy: plan::Dlq, letters: Arc<DeadLetters>, mut stopping: watch::Receiver<bool>) {
    while tick(policy.cleanup_interval, &mut stopping).await {
        let letters = Arc::clone(&letters);
        let before = clock::epoch_seconds() - i64::try_from(policy.ttl.as_secs()).unwrap_or(i64::MAX);
        match blocking(move || letters.clean(before)).await {
            Ok(0) => {}
            Ok(dropped) => warn!(dropped, "dropped dead letters that were too old or too many"),
            Err(error) => warn!(error = chain(&error), "could not clean the dead-letter queue; trying again"),
        }
    }
}

async fn remove_old_layout(data_dir: PathBuf, mut stopping: watch::Receiver<bool>) {
    while tick(OLD_LAYOUT_INTERVAL, &mut stopping).await {
        let data_dir = data_dir.clone();
        blocking(move || reshard::remove_expired(&data_dir, clock::epoch_seconds())).await;
    }
}

async fn clean_topics(mut cleaner: Cleaner, interval: Duration, mut stopping: watch::Receiver<bool>) {
    while tick(interval, &mut stopping).await {
        let stop = stopping.clone();
        cleaner = blocking(move || {
            cleaner.clean(clock::epoch_seconds(), || *stop.borrow());
            cleaner
        })
        .await;
    }
}
