//! Checks sinks: each is of one kind, and takes joins that exist.

use std::path::PathBuf;

use crate::complaint::{Reason, near_or_allowed};
use crate::kind::{Kind, SINK_KINDS};
use crate::path;
use crate::plan::{Join, Plan, Sink, SinkKind, SqliteSink, SseSink, Window};
use crate::sink::{SinkBody, SseSinkSpec};
use crate::validate::complaints::Complaints;
use crate::validate::read::{Contents, Named};
use crate::validate::scope::Scope;
use crate::validate::{connections, kafka};

/// Checks the sinks and resolves which joins each takes.
pub(crate) fn plan(
    contents: &Contents,
    joins: &[Join],
    windows: &[Window],
    complaints: &mut Complaints,
) -> Vec<Sink> {
    let mut known = contents.names(Kind::Join);
    known.extend(contents.names(Kind::Window));
    let mut sinks = Vec::new();
    for named in &contents.sinks {
        let mut scope = Scope { place: &named.place, complaints };
        for (index, join) in
            named.body.joins.iter().enumerate().filter(|(_, join)| !known.contains(&join.as_str()))
        {
            let message = contents.left_out(&[Kind::Join, Kind::Window], join).unwrap_or_else(|| {
                let none = "; there is none, add one to spec.joins or as a Join of its own";
                format!("no join or window is called {join:?}{}", near_or_allowed(join, &known, none))
            });
            scope.error(&path::item("joins", index), Reason::UnknownReference, message);
        }
        if let Some(kind) = kind(named, &mut scope) {
            let twin =
                sinks.iter().find(|other: &&Sink| matches!(kind, SinkKind::Sqlite(_)) && other.kind == kind);
            if let Some(other) = twin {
                let message = format!(
                    "sinks {:?} and {:?} both write this file; give one another, or let one take all joins",
                    other.name, named.name
                );
                scope.error("sqlite.path", Reason::Conflict, message);
            }
            let joins = joins.iter().map(|join| (&join.name, &join.sinks));
            let outputs = joins.chain(windows.iter().map(|window| (&window.name, &window.sinks)));
            let taken = outputs.filter(|(_, sinks)| sinks.contains(&named.name));
            let joins = taken.map(|(name, _)| name.clone()).collect();
            sinks.push(Sink { name: named.name.clone(), place: named.place.clone(), kind, joins });
        }
    }
    sinks
}

fn kind(named: &Named<SinkBody>, scope: &mut Scope<'_>) -> Option<SinkKind> {
    let SinkBody { sse, stdout, http, kafka, sqlite, .. } = &named.body;
    let written = [sse.is_some(), stdout.is_some(), http.is_some(), kafka.is_some(), sqlite.is_some()];
    let written: Vec<&str> =
        SINK_KINDS.into_iter().zip(written).filter(|(_, there)| *there).map(|(kind, _)| kind).collect();
    match written.len() {
        0 => {
            let message =
                "says nowhere to deliver to; add exactly one of sse, stdout, http, kafka and sqlite";
            scope.error("", Reason::NotExactlyOne, message);
        }
        1 => {}
        _ => {
            let message =
                format!("got {}; a sink has exactly one, make others of the rest", written.join(" and "));
            scope.error("", Reason::NotExactlyOne, message);
        }
    }
    let sse = sse.as_ref().map(|sse| SinkKind::Sse(sse_sink(sse, scope)));
    let stdout = stdout.as_ref().map(|_| SinkKind::Stdout);
    let http = http.as_ref().map(|http| SinkKind::Http(Box::new(connections::http_sink(http, scope))));
    let kafka = kafka.as_ref().map(|kafka| SinkKind::Kafka(Box::new(kafka::sink(kafka, scope))));
    let sqlite =
        sqlite.as_ref().map(|sqlite| SinkKind::Sqlite(SqliteSink { path: PathBuf::from(&sqlite.path) }));
    sse.or(stdout).or(http).or(kafka).or(sqlite)
}

fn sse_sink(sse: &SseSinkSpec, scope: &mut Scope<'_>) -> SseSink {
    for (index, origin) in sse.cors_origins.iter().enumerate() {
        let at = path::item("sse.corsOrigins", index);
        if origin == "*" && sse.cors_origins.len() > 1 {
            scope.error(
                &at,
                Reason::Conflict,
                "\"*\" is any origin; write it alone, or the origins without it",
            );
        } else if origin != "*" && !is_origin(origin) {
            let message = format!(
                "got {origin:?}, write scheme and host as a browser sends them, such as \"https://app.example.com\""
            );
            scope.error(&at, Reason::InvalidValue, message);
        }
    }
    SseSink {
        addr: sse.addr.clone(),
        cors_origins: sse.cors_origins.clone(),
        heartbeat_interval: scope.positive("sse.heartbeatInterval", &sse.heartbeat_interval),
        clients_max: sse.max_clients,
        serving: Box::new(connections::serving("sse", &sse.serving, scope)),
    }
}

/// Whether a text is an origin as browsers send it: scheme, host and perhaps a port, nothing behind.
fn is_origin(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, host)| {
        !scheme.is_empty()
            && !host.is_empty()
            && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b))
            && host.bytes().all(|b| b.is_ascii_graphic() && !b"/?#,".contains(&b))
    })
}

/// Warns of sinks that take nothing.
pub(crate) fn unused(plan: &Plan, complaints: &mut Complaints) {
    for sink in plan.sinks.iter().filter(|sink| sink.joins.is_empty()) {
        let message = format!(
            "the sink {:?} takes no join; add joins: [<a join's name>], or its name to a join's sinks",
            sink.name
        );
        complaints.warning(&sink.place, "", Reason::Unused, message);
    }
}

/// Warns of Kafka topics in which results of several joins share their keys.
pub(crate) fn shared_keys(plan: &Plan, complaints: &mut Complaints) {
    for sink in plan.sinks.iter().filter(|sink| sink.joins.len() > 1) {
        if let SinkKind::Kafka(kafka) = &sink.kind {
            let message = format!(
                "the Kafka topic {:?} takes several joins, and results of equal keys are records of one key: compaction \
                 would keep one of them; give each join a sink with a topic of its own",
                kafka.kafka_topic
            );
            complaints.warning(&sink.place, "kafka.topic", Reason::Conflict, message);
        }
    }
}
