//! From manifests to a pipeline that can run: files are read, documents validated, queries checked by SQLite. This
//! room opens no data and starts nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use litejoin_crds::hash::config_hash;
use litejoin_crds::kind::Kind;
use litejoin_crds::names;
use litejoin_crds::part::{Part, parts};
use litejoin_crds::plan::{self, Plan, SinkKind, SourceKind, TimeCut};
use litejoin_crds::window::WindowEmit;
use litejoin_crds::worker_status::{LeftOut, PartComplaint};
use litejoin_crds::{Candidate, Complaint, Document, HeldBack, Place, Reason, validate_without};

use crate::join::CheckedJoin;
use crate::join::check::{self, Catalog, QueryError};
use crate::manifest::{self, Manifest};
use crate::sink::sqlite;
use crate::storage::topics::feed_of;
use crate::window;

pub(crate) mod in_force;

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
    /// The documents that go into force.
    pub(crate) documents: Vec<Document>,
    /// Parts that don't go into force as they are written.
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
    check(manifest, &BTreeSet::new()).map_err(|wrong| wrong.text)
}

/// Loads manifests as [`load`] does, but holds back invalid sources, joins, windows and sinks: their versions of before
/// run on, as the data directory knows them, or the rest runs without them.
pub(crate) fn load_valid(files: &[PathBuf], data_dir: Option<&Path>) -> Result<(Pipeline, String), String> {
    let mut manifest = read(files)?;
    // The hash of a config covers all documents, also those held back.
    let config_hash = config_hash(&manifest.documents);
    let data_dir = data_dir.map_or_else(|| in_force::data_dir(&manifest.documents), Path::to_owned);
    let before = in_force::read(&data_dir);
    let mut candidate = Candidate::new(manifest.documents.clone(), &before);
    loop {
        let wrong = match check(manifest, candidate.left_out()) {
            Ok((mut pipeline, mut warnings)) => {
                let (documents, held_back) = candidate.finish();
                pipeline.left_out = held_back.iter().map(told).collect();
                for LeftOut { kind, name, message, runs_on, .. } in &pipeline.left_out {
                    let how = if *runs_on { "runs on as it was before" } else { "is left out" };
                    warnings += &format!("{kind} {name} {how}: {message}\n");
                }
                pipeline.plan.config_hash = config_hash;
                pipeline.documents = documents;
                return Ok((pipeline, warnings));
            }
            Err(wrong) => wrong,
        };
        manifest = wrong.manifest;
        if candidate.hold_back(wrong.complaints).is_err() {
            return Err(wrong.text);
        }
        manifest.documents = candidate.documents().to_vec();
    }
}

/// What is told of a part that is held back.
fn told(held: &HeldBack) -> LeftOut {
    let below = |path: &str| {
        let field = path.strip_prefix(held.place.path.as_str()).unwrap_or(path);
        let field =
            if held.place.path.is_empty() { field.strip_prefix("spec").unwrap_or(field) } else { field };
        field.trim_start_matches('.').to_owned()
    };
    let complaints = held.complaints.iter().map(|complaint| PartComplaint {
        field: below(&complaint.place.path),
        message: complaint.message.clone(),
    });
    let lines = held.complaints.iter().map(|complaint| match complaint.place.path.as_str() {
        "" => complaint.message.clone(),
        path => format!("{path}: {}", complaint.message),
    });
    LeftOut {
        kind: held.kind.map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        name: held.name.clone(),
        message: lines.collect::<Vec<_>>().join("; "),
        complaints: complaints.collect(),
        runs_on: held.runs_on,
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
    complaints: Vec<Complaint>,
}

impl Wrong {
    fn new(
        manifest: Manifest,
        mut complaints: Vec<Complaint>,
        queries: Vec<QueryError>,
        text: &str,
    ) -> Box<Self> {
        complaints.extend(queries.into_iter().map(|query| {
            let path = format!("{}.{}", query.place.path, query.field);
            Complaint::error(query.place.document, path, Reason::InvalidQuery, query.message)
        }));
        Box::new(Self { complaints, text: manifest.note() + text, manifest })
    }
}

/// Checks documents and queries without the parts at some places.
fn check(manifest: Manifest, left_out: &BTreeSet<Place>) -> Result<(Pipeline, String), Box<Wrong>> {
    let (mut plan, mut warnings) = match validate_without(&manifest.documents, left_out) {
        Ok(valid) => valid,
        Err(complaints) => {
            // The set of topics is uncertain now, but a query that SQLite can't parse is wrong with any topics.
            let catalog = Catalog { topics: &[], open: true };
            let documents = &manifest.documents;
            let (joins, windows) = (written_joins(documents, left_out), written_windows(documents, left_out));
            let check_window = |window: &plan::Window, node: Option<&CheckedJoin>| {
                check::check_window(window, node).map_err(|error| vec![error])
            };
            let queries = check::check(&joins, &windows, catalog, &check_window).err().unwrap_or_default();
            let text = manifest.render(&complaints) + &render_queries(&manifest, &queries);
            return Err(Wrong::new(manifest, complaints, queries, &text));
        }
    };
    let refused = left_out_of_this_build(&plan);
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
            return Err(Wrong::new(manifest, refused, queries, &text));
        }
    };
    let refused = columns_of_sinks(&plan, &joins);
    if !refused.is_empty() {
        let text = manifest.render(&refused);
        return Err(Wrong::new(manifest, refused, Vec::new(), &text));
    }
    warnings.extend(query_warnings(&plan, &joins));
    feed(&mut plan, &mut joins);
    let source_paths = source_paths(&plan, &manifest);
    let warnings = manifest.note() + &manifest.render(&warnings);
    let documents = manifest.documents.clone();
    let left_out = Vec::new();
    let pipeline = Pipeline { plan, joins, source_paths, once: false, manifest, documents, left_out };
    Ok((pipeline, warnings))
}

/// Returns the warnings about queries that can run.
fn query_warnings(plan: &Plan, joins: &[CheckedJoin]) -> Vec<Complaint> {
    let warned = joins.iter().filter_map(|join| Some((join, join.warning.as_ref()?)));
    warned
        .filter_map(|(join, warning)| {
            let output = plan.outputs().find(|output| output.name == join.name)?;
            let Place { document, path } = output.place.clone();
            Some(Complaint::warning(document, format!("{path}.query"), Reason::InvalidQuery, warning))
        })
        .collect()
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

/// Returns complaints about columns that a sink has for itself.
fn columns_of_sinks(plan: &Plan, joins: &[CheckedJoin]) -> Vec<Complaint> {
    let sinks = plan.sinks.iter().filter(|sink| matches!(sink.kind, SinkKind::Sqlite(_)));
    let taken = sinks.flat_map(|sink| {
        joins.iter().filter(|join| sink.joins.contains(&join.name)).map(move |join| (sink, join))
    });
    taken
        .filter_map(|(sink, join)| {
            let (column, _) = join.shape.columns.iter().find(|(name, _)| name.eq_ignore_ascii_case(sqlite::KEY))?;
            let message = format!(
                "the query {:?} has a column {column:?}, which is where the sink keeps result keys; give the column another \
                 name, or take the join from the sink",
                join.name
            );
            let Place { document, path } = &sink.place;
            Some(Complaint::error(*document, format!("{path}.sqlite"), Reason::Conflict, message))
        })
        .collect()
}

/// Returns the joins as written, from documents that are otherwise wrong.
fn written_joins(documents: &[Document], left_out: &BTreeSet<Place>) -> Vec<plan::Join> {
    let join = |(part, place, query): (Part<'_>, Place, &str)| plan::Join {
        name: part.name.to_owned(),
        place,
        query: query.to_owned(),
        key_column: part.value["keyColumn"].as_str().map(str::to_owned),
        result_key: None,
        refresh: Duration::from_secs(1),
        sinks: Vec::new(),
    };
    written(documents, left_out, Kind::Join).into_iter().map(join).collect()
}

/// Returns the windows as written, as far as their queries can be checked, from documents that are otherwise wrong.
fn written_windows(documents: &[Document], left_out: &BTreeSet<Place>) -> Vec<plan::Window> {
    let window = |(part, place, query): (Part<'_>, Place, &str)| {
        let topic = part.value["topic"].as_str().filter(|topic| names::name_trouble(topic).is_none())?;
        Some(plan::Window {
            name: part.name.to_owned(),
            place,
            topic: topic.to_owned(),
            query: query.to_owned(),
            cut: TimeCut::Session { gap: 1 },
            partition_by: None,
            key_column: part.value["keyColumn"].as_str().map(str::to_owned),
            emit: WindowEmit::Final,
            emit_empty: 0,
            event_time: None,
            sinks: Vec::new(),
        })
    };
    written(documents, left_out, Kind::Window).into_iter().filter_map(window).collect()
}

/// Returns the joins or windows with their places in the plan and their queries, each name once.
fn written<'d>(
    documents: &'d [Document],
    left_out: &BTreeSet<Place>,
    kind: Kind,
) -> Vec<(Part<'d>, Place, &'d str)> {
    let mut found: Vec<(Part<'_>, Place, &str)> = Vec::new();
    for part in parts(documents).filter(|part| part.kind == kind && !left_out.contains(&part.place)) {
        let Some(query) = part.value["query"].as_str().filter(|_| !part.name.is_empty()) else { continue };
        if !found.iter().any(|(other, ..)| other.name.eq_ignore_ascii_case(part.name)) {
            let mut place = part.place.clone();
            if !part.is_inline() {
                "spec".clone_into(&mut place.path);
            }
            found.push((part, place, query));
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
