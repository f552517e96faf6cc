//! From manifests to a pipeline that can run: files are read, documents validated, queries checked by SQLite. This
//! file opens no data and starts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use litejoin_crds::hash::config_hash;
use litejoin_crds::names;
use litejoin_crds::plan::{self, Plan, SinkKind, SourceKind, TimeCut};
use litejoin_crds::window::WindowEmit;
use litejoin_crds::worker_status::LeftOut;
use litejoin_crds::{Complaint, Place, Reason, Severity, unsupported, validate};

use serde_json::Value;

use crate::join::CheckedJoin;
use crate::join::check::{self, Catalog, QueryError};
use crate::manifest::{self, Manifest};
use crate::storage::topics::feed_of;
use crate::window;

/// A pipeline that can run.
pub(crate) struct Pipeline {
    pub(crate) plan: Plan,
    /// The joins, each after the joins that it reads.
    pub(crate) joins: Vec<CheckedJoin>,
    /// Files of file sources by the name of the source.
    pub(crate) source_paths: BTreeMap<String, PathBuf>,
    /// Whether to stop when every source has ended.
    pub(crate) once: bool,
    /// The manifests that define the pipeline.
    pub(crate) manifest: Manifest,
    /// Invalid documents that the pipeline runs without.
    pub(crate) left_out: Vec<LeftOut>,
}

/// The config to apply in a reload: a pipeline with warnings, or the errors in its manifests.
pub(crate) type Reload = Result<(Pipeline, String), InvalidConfig>;

/// The errors in a config.
pub(crate) struct InvalidConfig {
    /// The hash of the documents; `None` if they can't be read.
    pub(crate) hash: Option<String>,
    /// Each on a line of its own.
    pub(crate) complaints: String,
}

/// Reads manifests and checks everything that can be checked before a start. Returns the pipeline with warnings, or
/// all errors, each on a line of its own.
pub(crate) fn load(files: &[PathBuf]) -> Result<(Pipeline, String), String> {
    let manifest = read(files)?;
    check(manifest).map_err(|wrong| wrong.text)
}

/// Loads manifests as [`load`] does, but leaves out invalid documents other than the Pipeline, as long as the rest is
/// valid without them.
pub(crate) fn load_valid(files: &[PathBuf]) -> Result<(Pipeline, String), String> {
    let mut manifest = read(files)?;
    // The hash of a config covers all documents, also those left out.
    let config_hash = config_hash(&manifest.documents);
    let mut left_out = Vec::new();
    loop {
        let wrong = match check(manifest) {
            Ok((mut pipeline, mut warnings)) => {
                for LeftOut { kind, name, message } in &left_out {
                    warnings += &format!("{kind} {name} is left out: {message}\n");
                }
                pipeline.plan.config_hash = config_hash;
                pipeline.left_out = left_out;
                return Ok((pipeline, warnings));
            }
            Err(wrong) => wrong,
        };
        manifest = wrong.manifest;
        let kind = |document: usize| manifest.documents[document].value["kind"].as_str().unwrap_or_default();
        let own: Vec<(usize, String)> =
            wrong.complaints.into_iter().filter(|(document, _)| kind(*document) != "Pipeline").collect();
        if own.is_empty() {
            return Err(wrong.text);
        }
        let documents: BTreeSet<usize> = own.iter().map(|(document, _)| *document).collect();
        // Removing from the end keeps the indexes of earlier documents.
        for document in documents.into_iter().rev() {
            let value = &manifest.documents[document].value;
            let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let messages = own.iter().filter(|(of, _)| *of == document).map(|(_, message)| message.as_str());
            left_out.push(LeftOut {
                kind: text(&value["kind"]),
                name: text(&value["metadata"]["name"]),
                message: messages.collect::<Vec<_>>().join("; "),
            });
            manifest.leave_out(document);
        }
    }
}

fn read(files: &[PathBuf]) -> Result<Manifest, String> {
    manifest::load(files).map_err(|errors| errors.iter().map(|error| format!("{error}\n")).collect())
}

/// Invalid documents and their errors.
struct Wrong {
    manifest: Manifest,
    /// The errors, each on a line of its own, with file and line.
    text: String,
    /// Document and error, with its field.
    complaints: Vec<(usize, String)>,
}

impl Wrong {
    fn new(manifest: Manifest, complaints: &[Complaint], queries: &[QueryError], text: String) -> Box<Self> {
        let of_documents =
            complaints.iter().filter(|complaint| complaint.severity == Severity::Error).map(|complaint| {
                (complaint.place.document, format!("{}: {}", complaint.place.path, complaint.message))
            });
        let of_queries = queries.iter().map(|query| {
            (query.place.document, format!("{}.{}: {}", query.place.path, query.field, query.message))
        });
        let all = of_documents.chain(of_queries).collect();
        Box::new(Self { complaints: all, text, manifest })
    }
}

/// Checks documents and queries.
fn check(manifest: Manifest) -> Result<(Pipeline, String), Box<Wrong>> {
    let mut refused = unsupported(&manifest.documents);
    let (mut plan, warnings) = match validate(&manifest.documents) {
        Ok(valid) => valid,
        Err(mut complaints) => {
            complaints.extend(refused);
            // The set of topics is uncertain now, but a query that SQLite can't parse is wrong with any topics.
            let catalog = Catalog { topics: &[], open: true };
            let (joins, windows) = (written_joins(&manifest), written_windows(&manifest));
            let check_window = |window: &plan::Window, node: Option<&CheckedJoin>| {
                check::check_window(window, node).map_err(|error| vec![error])
            };
            let queries = check::check(&joins, &windows, catalog, &check_window).err().unwrap_or_default();
            let text = manifest.render(&complaints) + &render_queries(&manifest, &queries);
            return Err(Wrong::new(manifest, &complaints, &queries, text));
        }
    };
    refused.extend(left_out_of_this_build(&plan));
    let topics = declared_topics(&plan);
    let catalog = Catalog { topics: &topics, open: takes_any_topic(&plan) };
    let check_window = |window: &plan::Window, node: Option<&CheckedJoin>| {
        window::check::check(window, node, &plan.retention)
    };
    let mut joins = match check::check(&plan.joins, &plan.windows, catalog, &check_window) {
        Ok(joins) if refused.is_empty() => joins,
        joins => {
            let queries = joins.err().unwrap_or_default();
            let text = render_queries(&manifest, &queries) + &manifest.render(&refused);
            return Err(Wrong::new(manifest, &refused, &queries, text));
        }
    };
    feed(&mut plan, &mut joins);
    let source_paths = source_paths(&plan, &manifest);
    let warnings = manifest.render(&warnings);
    let pipeline = Pipeline { plan, joins, source_paths, once: false, manifest, left_out: Vec::new() };
    Ok((pipeline, warnings))
}

/// Gives each join and window that others read as a topic a sink of ours, which fills that topic.
fn feed(plan: &mut Plan, joins: &mut [CheckedJoin]) {
    let read: BTreeSet<String> = joins.iter().flat_map(|join| join.topics.iter().cloned()).collect();
    for join in joins.iter_mut().filter(|join| read.contains(&feed_of(&join.name))) {
        join.has_sinks = true;
        let written = plan.outputs().find(|output| output.name == join.name);
        let place = written.expect("each join and window is in the plan").place.clone();
        plan.sinks.push(plan::Sink {
            name: feed_of(&join.name),
            place,
            kind: SinkKind::Topic,
            joins: vec![join.name.clone()],
        });
    }
}

/// Returns complaints about documents that need a feature which this build lacks.
fn left_out_of_this_build(plan: &Plan) -> Vec<Complaint> {
    if cfg!(feature = "kafka") {
        return Vec::new();
    }
    let sources = plan.sources.iter().filter(|source| matches!(source.kind, SourceKind::Kafka(_)));
    let sinks = plan.sinks.iter().filter(|sink| matches!(sink.kind, SinkKind::Kafka(_)));
    let places = sources.map(|source| &source.place).chain(sinks.map(|sink| &sink.place));
    places
        .map(|Place { document, path }| {
            let message =
                "this build of litejoin was made without Kafka; build it again without --no-default-features";
            Complaint::error(*document, format!("{path}.kafka"), Reason::Unsupported, message)
        })
        .collect()
}

/// Returns the joins as written, from documents that are otherwise wrong.
fn written_joins(manifest: &Manifest) -> Vec<plan::Join> {
    let join = |(name, place, spec, query): (&str, Place, &Value, &str)| plan::Join {
        name: name.to_owned(),
        place,
        query: query.to_owned(),
        key_column: spec["keyColumn"].as_str().map(str::to_owned),
        result_key: None,
        refresh: Duration::from_secs(1),
        sinks: Vec::new(),
    };
    written(manifest, "joins", "Join").into_iter().map(join).collect()
}

/// Returns the windows as written, as far as their queries can be checked, from documents that are otherwise wrong.
fn written_windows(manifest: &Manifest) -> Vec<plan::Window> {
    let window = |(name, place, spec, query): (&str, Place, &Value, &str)| {
        Some(plan::Window {
            name: name.to_owned(),
            place,
            topic: spec["topic"].as_str().filter(|topic| names::name_trouble(topic).is_none())?.to_owned(),
            query: query.to_owned(),
            cut: TimeCut::Session { gap: 1 },
            partition_by: None,
            key_column: spec["keyColumn"].as_str().map(str::to_owned),
            emit: WindowEmit::Final,
            emit_empty: 0,
            event_time: None,
            sinks: Vec::new(),
        })
    };
    written(manifest, "windows", "Window").into_iter().filter_map(window).collect()
}

/// Returns name, place, spec and query of the joins or windows, inline and alone, each name once.
fn written<'m>(manifest: &'m Manifest, field: &str, kind: &str) -> Vec<(&'m str, Place, &'m Value, &'m str)> {
    let mut found: Vec<(&str, Place, &Value, &str)> = Vec::new();
    for (document, written) in manifest.documents.iter().enumerate() {
        let spec = &written.value["spec"];
        let inline = spec[field].as_array().into_iter().flatten().enumerate();
        let inline = inline.map(|(index, item)| (&item["name"], item, format!("spec.{field}[{index}]")));
        let alone = (written.value["kind"] == kind)
            .then(|| (&written.value["metadata"]["name"], spec, "spec".to_owned()));
        for (name, item, path) in inline.chain(alone) {
            let (Some(name), Some(query)) = (name.as_str(), item["query"].as_str()) else { continue };
            if !found.iter().any(|(other, ..)| other.eq_ignore_ascii_case(name)) {
                found.push((name, Place { document, path }, item, query));
            }
        }
    }
    found
}

fn declared_topics(plan: &Plan) -> Vec<String> {
    let mut topics: Vec<String> = Vec::new();
    for source in &plan.sources {
        for name in source.kind.topics() {
            if !topics.iter().any(|topic| topic.eq_ignore_ascii_case(name)) {
                topics.push(name.to_owned());
            }
        }
    }
    topics
}

fn takes_any_topic(plan: &Plan) -> bool {
    plan.sources.iter().any(|source| match &source.kind {
        SourceKind::Http(spec) => spec.topics.is_empty(),
        SourceKind::File(spec) => spec.topic.is_none(),
        SourceKind::Api(_) => false,
        SourceKind::Kafka(spec) => spec.takes_any_topic(),
    })
}

/// Returns the paths of file sources; a relative path is relative to the folder of its manifest.
fn source_paths(plan: &Plan, manifest: &Manifest) -> BTreeMap<String, PathBuf> {
    let paths = plan.sources.iter().filter_map(|source| match &source.kind {
        SourceKind::File(spec) if spec.path == "-" => Some((source.name.clone(), PathBuf::from("-"))),
        SourceKind::File(spec) => {
            let folder = manifest.folder(source.place.document);
            let folder = if folder == Path::new(".") { Path::new("") } else { folder };
            Some((source.name.clone(), folder.join(&spec.path)))
        }
        _ => None,
    });
    paths.collect()
}

fn render_queries(manifest: &Manifest, errors: &[QueryError]) -> String {
    let lines = errors.iter().map(|error| {
        let path = format!("{}.{}", error.place.path, error.field);
        let place = Place { document: error.place.document, path: path.clone() };
        let location = if error.field == "query" {
            manifest.locate_within(&place, error.line)
        } else {
            manifest.locate(&place)
        };
        let location = location.map(|location| format!("{location}: ")).unwrap_or_default();
        format!("{location}{path}: {}\n", error.message)
    });
    lines.collect()
}
