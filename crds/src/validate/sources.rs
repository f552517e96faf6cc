//! Checks sources: each is of one kind, and has the fields that its kind needs.

use crate::complaint::Reason;
use crate::durability::Durability;
use crate::kind::SOURCE_KINDS;
use crate::path;
use crate::plan::{FileFormat, FileSource, HttpSource, Source, SourceKind};
use crate::source::{FileSourceFormat, FileSourceSpec, HttpSourceSpec, SourceBody};
use crate::validate::complaints::Complaints;
use crate::validate::read::{Contents, Named};
use crate::validate::scope::Scope;
use crate::validate::{connections, kafka};

/// The smallest limit of a body: below it no message fits.
const BODY_BYTES_LEAST: u64 = 64;

/// Checks the sources and parses them.
pub(crate) fn plan(contents: &Contents, complaints: &mut Complaints) -> Vec<Source> {
    let replicated = contents.pipeline.as_ref().is_none_or(|pipeline| pipeline.spec.replication.enabled);
    let group_id = contents.pipeline.as_ref().map(|p| format!("litejoin-{}-{}", p.namespace, p.name));
    let group_id = group_id.unwrap_or_default();
    let mut stdin: Option<&str> = None;
    let mut sources = Vec::new();
    for named in &contents.sources {
        let mut scope = Scope { place: &named.place, complaints };
        if named.body.ack == Durability::Replicated {
            if named.body.api.is_some() || named.body.file.is_some() {
                let message = "an api or file source acknowledges nothing to anybody: how far it is lies with its rows, \
                               and both come back together, so replicated would change nothing; write committed";
                scope.error("ack", Reason::Conflict, message);
            } else if !replicated {
                let message =
                    "replicated needs replication.enabled: true in the Pipeline; else write committed";
                scope.error("ack", Reason::Conflict, message);
            }
        }
        if named.body.file.as_ref().is_some_and(|file| file.path == "-") {
            if let Some(other) = stdin {
                let message = format!(
                    "sources {other:?} and {:?} both read standard input; give one a file",
                    named.name
                );
                scope.error("file.path", Reason::Conflict, message);
            }
            stdin = Some(&named.name);
        }
        if let Some(kind) = kind(named, &group_id, &mut scope) {
            let kinds = sources.iter().map(|source: &Source| (&source.name, &source.kind));
            if let Some((deleting, other, topic)) = mirrored_topic(&named.name, &kind, kinds) {
                let message = format!(
                    "detectDeletes of {deleting:?} removes every row of {topic:?} that its API does not have, also those \
                     of {other:?}; give them topics of their own"
                );
                scope.error("", Reason::Conflict, message);
            }
            sources.push(Source { name: named.name.clone(), place: named.place.clone(), kind });
        }
    }
    sources
}

fn kind(named: &Named<SourceBody>, group_id: &str, scope: &mut Scope<'_>) -> Option<SourceKind> {
    let SourceBody { http, file, api, kafka, topic, .. } = &named.body;
    let written = [http.is_some(), file.is_some(), api.is_some(), kafka.is_some()];
    let written: Vec<&str> =
        SOURCE_KINDS.into_iter().zip(written).filter(|(_, there)| *there).map(|(kind, _)| kind).collect();
    match written.len() {
        0 => {
            let message = "says nothing to read; add exactly one of http, file, api and kafka";
            scope.error("", Reason::NotExactlyOne, message);
        }
        1 => {}
        _ => {
            let message =
                format!("got {}; a source has exactly one, make others of the rest", written.join(" and "));
            scope.error("", Reason::NotExactlyOne, message);
        }
    }
    if topic.is_some() && (http.is_some() || file.is_some()) {
        let instead = if http.is_some() { "http.topics" } else { "file.topic" };
        let message = format!("topic belongs to api and kafka sources; write {instead} instead");
        scope.error("topic", Reason::Conflict, message);
    }
    if api.is_some() && topic.is_none() {
        let message = "an api source needs a topic to fill; add topic beside api";
        scope.error("topic", Reason::Conflict, message);
    }
    let kafka =
        kafka.as_ref().map(|kafka| kafka::source(kafka, topic.as_ref(), group_id, named.body.ack, scope));
    let file = file.as_ref().map(|file| file_source(file, scope));
    let http = http.as_ref().map(|http| http_source(http, named.body.ack, scope));
    let api =
        api.as_ref().map(|api| connections::api_source(api, topic.as_deref().unwrap_or_default(), scope));
    let http = http.map(SourceKind::Http);
    let file = file.map(|file| file.map(SourceKind::File));
    let api = api.map(|api| SourceKind::Api(Box::new(api)));
    let kafka = kafka.map(|kafka| SourceKind::Kafka(Box::new(kafka)));
    match (http, file) {
        (Some(http), _) => Some(http),
        (None, Some(file)) => file,
        (None, None) => api.or(kafka),
    }
}

/// A topic that an `api` source mirrors and another source fills too: the names of both, and the topic.
fn mirrored_topic<'a>(
    name: &'a String,
    kind: &'a SourceKind,
    others: impl Iterator<Item = (&'a String, &'a SourceKind)>,
) -> Option<(&'a str, &'a str, &'a str)> {
    let mirrors = |kind: &'a SourceKind| match kind {
        SourceKind::Api(api) if api.detect_deletes => Some(api.topic.as_str()),
        _ => None,
    };
    let fills = |kind: &SourceKind, topic: &str| kind.topics().iter().any(|t| t.eq_ignore_ascii_case(topic));
    others.into_iter().find_map(|(other, other_kind)| {
        let by_this =
            mirrors(kind).filter(|topic| fills(other_kind, topic)).map(|topic| (name, other, topic));
        let by_other =
            mirrors(other_kind).filter(|topic| fills(kind, topic)).map(|topic| (other, name, topic));
        by_this.or(by_other).map(|(deleting, other, topic)| (deleting.as_str(), other.as_str(), topic))
    })
}

fn http_source(http: &HttpSourceSpec, ack: Durability, scope: &mut Scope<'_>) -> HttpSource {
    HttpSource {
        addr: http.addr.clone(),
        topics: http.topics.clone(),
        body_bytes_max: scope.bytes("http.maxBodyBytes", &http.max_body_bytes, BODY_BYTES_LEAST),
        waits_for_replica: ack == Durability::Replicated,
        serving: Box::new(connections::serving("http", &http.serving, scope)),
    }
}

/// Checks a file source; `None`, with a complaint, if its format is unknown.
fn file_source(file: &FileSourceSpec, scope: &mut Scope<'_>) -> Option<FileSource> {
    let by_ending =
        [(".csv", FileFormat::Csv), (".ndjson", FileFormat::Ndjson), (".jsonl", FileFormat::Ndjson)]
            .into_iter()
            .find(|(ending, _)| file.path.ends_with(ending))
            .map(|(_, format)| format);
    let format = match file.format {
        Some(FileSourceFormat::Csv) => Some(FileFormat::Csv),
        Some(FileSourceFormat::Ndjson) => Some(FileFormat::Ndjson),
        None => by_ending,
    };
    let has_keys = !file.key_columns.is_empty();
    match &file.topic {
        Some(_) if !has_keys => {
            let message =
                "topic needs keyColumns; add the columns whose values are the key, such as keyColumns: [id]";
            scope.error("file.keyColumns", Reason::Conflict, message);
        }
        None if format == Some(FileFormat::Csv) => {
            let message = "a csv file needs topic and keyColumns; its lines carry neither topic nor key";
            scope.error("file.topic", Reason::Conflict, message);
        }
        None if has_keys => {
            let message = "keyColumns needs topic; without it each line brings its own topic and key";
            scope.error("file.keyColumns", Reason::Conflict, message);
        }
        _ => {}
    }
    if format == Some(FileFormat::Ndjson) && !file.types.is_empty() {
        let message = "types is for csv; the values of ndjson have the types that they are written with";
        scope.error("file.types", Reason::Conflict, message);
    }
    if format == Some(FileFormat::Ndjson) && file.infer.is_some() {
        let message = "infer is for csv; the values of ndjson have the types that they are written with";
        scope.error("file.infer", Reason::Conflict, message);
    }
    for (index, column) in file.key_columns.iter().enumerate() {
        if file.key_columns[..index].contains(column) {
            let message = format!("got column {column:?} twice; remove one");
            scope.error(&path::item("file.keyColumns", index), Reason::DuplicateName, message);
        }
    }
    let Some(format) = format else {
        let message = match file.path.as_str() {
            "-" => "standard input has no ending that says its format; add format: csv or format: ndjson"
                .to_owned(),
            path => format!(
                "the ending of {path:?} says no format (.csv, .ndjson, .jsonl); add format: csv or format: ndjson"
            ),
        };
        scope.error("file.format", Reason::Conflict, message);
        return None;
    };
    Some(FileSource {
        path: file.path.clone(),
        format,
        topic: file.topic.clone(),
        key_columns: file.key_columns.clone(),
        null_values: file.null_values.clone(),
        types: file.types.clone(),
        infer: file.infer,
        rows_per_second_max: file.rate,
        follow: file.follow,
    })
}
