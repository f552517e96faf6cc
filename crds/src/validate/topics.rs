//! Checks `topics` of a Pipeline: each is a topic that some source may fill, or a window, and is there once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::complaint::{Reason, nearest};
use crate::kind::Kind;
use crate::path;
use crate::pipeline::PipelineSpec;
use crate::validate::names::{fills_any_topic, topics_of};
use crate::validate::read::Contents;
use crate::validate::scope::{SECOND, Scope};

/// Returns the ages of topics for which that of the Pipeline does not hold, by their names in lower case: those that
/// are written, and that of each topic that files alone fill.
pub(crate) fn retention(
    spec: &PipelineSpec,
    contents: &Contents,
    scope: &mut Scope<'_>,
) -> BTreeMap<String, Option<Duration>> {
    let mut ages: BTreeMap<String, Option<Duration>> =
        files_alone(contents).into_iter().map(|topic| (topic, None)).collect();
    let mut seen = BTreeSet::new();
    for (index, topic) in spec.topics.iter().enumerate() {
        let place = path::item("topics", index);
        let lower = topic.name.to_ascii_lowercase();
        if !seen.insert(lower.clone()) {
            let message = format!("the topic {:?} is there twice; write one entry for it", topic.name);
            scope.error(&format!("{place}.name"), Reason::DuplicateName, message);
        }
        if let Some(message) = unknown(contents, &topic.name) {
            scope.error(&format!("{place}.name"), Reason::UnknownReference, message);
        }
        if let Some(age) = &topic.retention {
            ages.insert(lower, scope.age(&format!("{place}.retention"), age, SECOND));
        }
    }
    ages
}

/// Topics, in lower case, that sources of files fill and no other source may.
fn files_alone(contents: &Contents) -> BTreeSet<String> {
    let topics = |of_files: bool| -> BTreeSet<String> {
        let sources = contents.sources.iter().filter(|source| source.body.file.is_some() == of_files);
        let topics = sources.flat_map(|source| topics_of(&source.body));
        topics.map(|(topic, _)| topic.to_ascii_lowercase()).collect()
    };
    let others = topics(false);
    topics(true).into_iter().filter(|topic| !others.contains(topic)).collect()
}

/// Says that no source may fill a topic.
fn unknown(contents: &Contents, name: &str) -> Option<String> {
    let any_topic = contents.sources.iter().any(|source| fills_any_topic(&source.body));
    let unread = contents.unread.iter().any(|(kind, _)| *kind == Kind::Source);
    let topics: Vec<String> =
        contents.sources.iter().flat_map(|source| topics_of(&source.body)).map(|(topic, _)| topic).collect();
    if any_topic || unread || topics.iter().any(|topic| topic.eq_ignore_ascii_case(name)) {
        return None;
    }
    let is_it = |known: &&str| known.eq_ignore_ascii_case(name);
    if contents.names(Kind::Window).iter().any(is_it) {
        return None;
    }
    if contents.names(Kind::Join).iter().any(is_it) {
        return Some(format!("{name:?} is a join, whose results follow from topics; name these"));
    }
    let near = nearest(name, topics.iter().map(String::as_str));
    let hint = near.map_or_else(
        || "; add it to a source, or take the entry away".to_owned(),
        |near| format!("; did you mean {near:?}?"),
    );
    Some(format!("no source fills the topic {name:?}{hint}"))
}
