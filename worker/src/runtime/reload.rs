//! A reload: the parts that run are brought in line with another config while data flows.
//!
//! ```text
//! compare ─► check ─► open sockets and files ─► halt the evaluator ─► register the joins ─► tell the sinks their joins
//!         refused: nothing has changed                                                  │
//!            start sinks and sources anew ◄─ stop those that differ ◄─ another evaluator ┘
//! ```
//! A part that is the same in both configs is not touched. Everything that can fail comes before the joins are
//! registered; if that fails, the evaluator goes on with the joins that it had.

use std::sync::Arc;

use litejoin_crds::error::chain;
use litejoin_crds::plan::{Plan, SourceKind};
use litejoin_crds::{Complaint, Reason};
use tracing::{error, info, warn};

use super::config_diff::{self, ConfigDiff};
use super::listeners::Listeners;
use super::store::declared_topics;
use super::{Pipeline, Reload, Running, StartError, evaluation, sinks, sources};
use crate::blocking::blocking;
use crate::clock;
use crate::join::{classes, needs};
use crate::pipeline::in_force;
use crate::storage::offsets::stream_offsets;
use crate::storage::sqlite::SqliteError;

/// Why a config is not the one in force.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    /// Complaints, each on a line of its own.
    #[error("{0}")]
    Refused(String),
    #[error(transparent)]
    Start(#[from] StartError),
}

impl From<SqliteError> for ReloadError {
    fn from(error: SqliteError) -> Self {
        Self::Start(error.into())
    }
}

impl Running {
    /// Puts the config in force, or says why not and leaves everything as it is.
    pub(super) async fn reload(&mut self, reload: Reload) {
        let hash = match &reload {
            Ok((pipeline, _)) => Some(pipeline.plan.config_hash.clone()),
            Err(unfit) => unfit.hash.clone(),
        };
        let outcome = match reload {
            Ok((pipeline, warnings)) => {
                for line in warnings.lines() {
                    match line.strip_prefix("note: ") {
                        Some(note) => info!("{note}"),
                        None => warn!("{line}"),
                    }
                }
                self.apply(pipeline).await
            }
            Err(unfit) => Err(ReloadError::Refused(unfit.complaints)),
        };
        let now = clock::epoch_seconds();
        match outcome {
            Ok(Some(diff)) => {
                let hash = self.pipeline.plan.config_hash.clone();
                info!(hash, "the new config is in force: {diff}");
                in_force::write(self.store.data_dir.path(), &self.pipeline.documents);
                self.status.config.leaves_out(self.pipeline.left_out.clone());
                self.status.config.applied(hash, now);
            }
            Ok(None) => {
                info!("the config is the one in force; nothing to do");
                self.status.config.unchanged(now);
            }
            Err(problem) => {
                let problem = chain(&problem);
                error!("the new config is refused, and the one before stays in force:");
                problem.lines().for_each(|line| error!("{line}"));
                self.status.config.refused(hash, problem.trim_end().to_owned(), now);
            }
        }
    }

    /// Returns what it has changed; `None` if the documents say what runs already.
    async fn apply(&mut self, mut next: Pipeline) -> Result<Option<ConfigDiff>, ReloadError> {
        let storage = &mut next.plan.storage;
        storage.shard_count = storage.shard_count_for(Some(self.pipeline.plan.storage.shard_count));
        let (present, plan) = (&self.pipeline, &next.plan);
        let fixed = config_diff::fixed(&present.plan, &next);
        if !fixed.is_empty() {
            return Err(ReloadError::Refused(next.manifest.render(&fixed)));
        }
        let (source_specs, sink_specs) = (sources::specs(plan, &next.source_paths), sinks::specs(plan));
        let diff = ConfigDiff {
            joins: config_diff::joins(present, &next),
            sources: self.sources.units.diff(&source_specs),
            sinks: self.sinks.units.diff(&sink_specs),
            settings: settings(&present.plan) != settings(plan),
            reshard: present.plan.storage.online() != plan.storage.online(),
        };
        if diff.keeps_parts() {
            let same = present.plan.config_hash == plan.config_hash;
            self.pipeline = next;
            return Ok((!same || !diff.is_empty()).then_some(diff));
        }

        for name in diff.sources.starting() {
            check_stdin(&next, name)?;
            sources::check(name, &source_specs[name])?;
        }
        if next.once {
            sources::check_ends(&source_specs)?;
        }
        let listeners = Listeners::open(plan, &self.listeners).await.map_err(StartError::from)?;
        let shard_paths = self.maintenance.shard_paths.clone();
        let offsets = blocking(move || stream_offsets(&shard_paths)).await?;
        let ready_sources =
            self.sources.prepare(diff.sources.starting(), &source_specs, &listeners, &offsets)?;
        let ready_sinks = self.sinks.prepare(diff.sinks.starting(), &sink_specs, &listeners)?;

        self.maintenance.stop().await;
        if let Err(problem) = self.take_over(&next).await {
            self.maintenance.start(&self.pipeline.plan, &self.pipeline.joins);
            return Err(problem);
        }

        let (sources, sinks) = (&mut self.sources, &mut self.sinks);
        tokio::join!(
            async {
                sources.units.stop(diff.sources.stopping()).await;
                sources.units.start(ready_sources);
            },
            async {
                sinks.units.stop(diff.sinks.stopping()).await;
                sinks.forget_others(&sink_specs).await;
                sinks.units.start(ready_sinks);
            }
        );
        self.maintenance.start(&next.plan, &next.joins);
        self.listeners = listeners;
        self.pipeline = next;
        Ok(Some(diff))
    }

    /// Lets an evaluator of the new joins take over, unless they are the same, and tells the sinks what they take.
    async fn take_over(&mut self, next: &Pipeline) -> Result<(), ReloadError> {
        let topics = Arc::clone(&self.store.topics);
        let (old_names, new_names) = (names(&self.pipeline), names(next));
        let both = old_names.iter().chain(&new_names).copied();
        topics.reserve(both).map_err(|taken| name_taken(next, taken))?;
        let mut successor = None;
        if self.pipeline.joins != next.joins {
            // Both evaluators find what they need; what only the old one did is dropped when it is gone.
            let all: Vec<_> = self.pipeline.joins.iter().chain(&next.joins).cloned().collect();
            let ingest = self.ingest.clone();
            if let Err(problem) = blocking(move || ingest.prepare(needs(&all))).await {
                topics.reserve(old_names).expect("they are reserved");
                return Err(problem.into());
            }
            let halted = self.evaluation.halt().await;
            let (results, joins) = (Arc::clone(&self.store.results), next.joins.clone());
            let shard_count = next.plan.storage.shard_count;
            match blocking(move || evaluation::register(&results, &joins, shard_count)).await {
                Ok(progress) => {
                    crate::fault::point("joins-registered");
                    self.ids = evaluation::ids(&next.joins, &progress);
                    successor = Some(evaluation::successor(halted, next.joins.clone(), progress));
                }
                Err(problem) => {
                    self.evaluation.resume(halted);
                    topics.reserve(old_names).expect("they are reserved");
                    return Err(problem.into());
                }
            }
        }
        topics.reserve(new_names).expect("they are reserved");
        declared_topics(&next.plan, &next.joins).for_each(|topic| {
            topics.declare(topic);
        });
        self.status.follow(&next.plan, classes(&next.joins));
        self.maintenance.auditor.follow(&next.joins, next.plan.audit.clone());
        self.sinks.route(next, &self.ids, self.store.results.lineage());
        if let Some(successor) = successor {
            self.evaluation.resume(successor);
            crate::fault::point("evaluator-resumed");
            let (ingest, needs) = (self.ingest.clone(), needs(&next.joins));
            if let Err(problem) = blocking(move || ingest.prepare(needs)).await {
                warn!(
                    error = chain(&problem),
                    "could not drop indexes that no join needs; the next start tries again"
                );
            }
        }
        Ok(())
    }
}

/// The settings by which maintenance works.
fn settings(plan: &Plan) -> impl PartialEq + '_ {
    (&plan.retention, &plan.delivery, &plan.audit, plan.storage.bytes_max)
}

fn names(pipeline: &Pipeline) -> Vec<&str> {
    pipeline.joins.iter().map(|join| join.name.as_str()).collect()
}

/// Complains about a new join that is called like a topic.
fn name_taken(next: &Pipeline, name: &str) -> ReloadError {
    let place = next.plan.outputs().find(|output| output.name == name).map(|output| output.place);
    let place = place.expect("only names of new joins can be taken");
    let path = match place.path.as_str() {
        "spec" => "metadata.name".to_owned(),
        inline => format!("{inline}.name"),
    };
    let message = format!(
        "the running worker has a topic {name:?}, and a join can't take its name; rename the join, or restart to apply"
    );
    refused(next, Complaint::error(place.document, path, Reason::NeedsRestart, message))
}

/// Complains about a source that would read standard input: what reads it now can't be told to let go of it.
fn check_stdin(next: &Pipeline, starting: &str) -> Result<(), ReloadError> {
    let source = next.plan.sources.iter().find(|source| source.name == starting);
    match source {
        Some(source) if matches!(&source.kind, SourceKind::File(spec) if spec.path == "-") => {
            let path = format!("{}.file.path", source.place.path);
            let message = "standard input is read from the start or not at all; restart to apply";
            Err(refused(next, Complaint::error(source.place.document, path, Reason::NeedsRestart, message)))
        }
        _ => Ok(()),
    }
}

fn refused(next: &Pipeline, complaint: Complaint) -> ReloadError {
    ReloadError::Refused(next.manifest.render(&[complaint]))
}
