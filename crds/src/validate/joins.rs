//! Checks joins: their sinks, and the names in their results. SQLite judges the query itself, later.

use std::time::Duration;

use crate::complaint::{Reason, near_or_allowed};
use crate::kind::Kind;
use crate::names::RESULT_FIELDS;
use crate::path;
use crate::plan::{Join, Plan};
use crate::validate::complaints::Complaints;
use crate::validate::read::{Contents, Named};
use crate::validate::scope::Scope;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Checks the joins and resolves which sinks take each.
pub(crate) fn plan(contents: &Contents, complaints: &mut Complaints) -> Vec<Join> {
    for named in &contents.joins {
        let body = &named.body;
        check_sinks(contents, named, &body.sinks, complaints);
        if body.query.trim().is_empty() {
            complaints.error(
                &named.place,
                "query",
                Reason::InvalidValue,
                "got an empty query; write one SELECT",
            );
        }
        if let Some(result_key) = &body.result_key
            && RESULT_FIELDS.contains(&result_key.as_str())
        {
            let message =
                format!("got {result_key:?}, which is a field of every result; choose another name");
            complaints.error(&named.place, "resultKey", Reason::InvalidName, message);
        }
    }
    contents
        .joins
        .iter()
        .map(|join| Join {
            name: join.name.clone(),
            place: join.place.clone(),
            query: join.body.query.clone(),
            key_column: join.body.key_column.clone(),
            result_key: join.body.result_key.clone(),
            refresh: Scope { place: &join.place, complaints: &mut *complaints }.duration(
                "refresh",
                &join.body.refresh,
                SECOND,
                DAY,
            ),
            sinks: sinks_of(contents, &join.name, &join.body.sinks),
        })
        .collect()
}

/// Returns the sinks that take a join or window, whether it names the sink or the sink names it.
pub(crate) fn sinks_of(contents: &Contents, name: &String, named: &[String]) -> Vec<String> {
    let takes =
        |sink: &&Named<crate::sink::SinkBody>| named.contains(&sink.name) || sink.body.joins.contains(name);
    contents.sinks.iter().filter(takes).map(|sink| sink.name.clone()).collect()
}

/// Complains about sinks of a join or window that do not exist.
pub(crate) fn check_sinks<T>(
    contents: &Contents,
    named: &Named<T>,
    sinks: &[String],
    complaints: &mut Complaints,
) {
    let known = contents.names(Kind::Sink);
    for (index, sink) in sinks.iter().enumerate().filter(|(_, sink)| !known.contains(&sink.as_str())) {
        let message = contents.left_out(&[Kind::Sink], sink).unwrap_or_else(|| {
            let none = "; there is none, add one to spec.sinks or as a Sink of its own";
            format!("no sink is called {sink:?}{}", near_or_allowed(sink, &known, none))
        });
        complaints.error(&named.place, &path::item("sinks", index), Reason::UnknownReference, message);
    }
}

/// Warns of joins and windows that no sink takes and no other query could read.
pub(crate) fn unused(plan: &Plan, complaints: &mut Complaints) {
    let joins = plan.joins.iter().map(|join| (join.name.as_str(), join.query.as_str()));
    let reads = joins.chain(plan.windows.iter().map(|window| (window.name.as_str(), window.topic.as_str())));
    for output in plan.outputs().filter(|output| output.sinks.is_empty()) {
        let name = output.name;
        let is_read = |(other, reads): (&str, &str)| other != name && mentions(reads, name);
        if !reads.clone().any(is_read) {
            let kind = if plan.joins.iter().any(|join| join.name == name) { "join" } else { "window" };
            let message = format!(
                "no sink takes the {kind} {name:?} and no other query reads it; add sinks: [<a sink's name>]"
            );
            complaints.warning(output.place, "", Reason::Unused, message);
        }
    }
}

/// Whether a name stands in a query as a word of its own.
fn mentions(query: &str, name: &str) -> bool {
    let (query, name) = (query.to_ascii_lowercase(), name.to_ascii_lowercase());
    let part = |c: char| c.is_alphanumeric() || c == '_';
    query
        .match_indices(&name)
        .any(|(at, _)| !query[..at].ends_with(part) && !query[at + name.len()..].starts_with(part))
}
