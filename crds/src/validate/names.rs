//! Checks names: each must have the form of a name, and no two things may share one.

use std::collections::BTreeMap;

use crate::complaint::Reason;
use crate::defaults::TOPICS_MAX;
use crate::names;
use crate::path;
use crate::plan::Place;
use crate::source::SourceBody;
use crate::validate::complaints::Complaints;
use crate::validate::read::{Contents, Named};

/// Checks all names. The names of inline things have been held against their pattern already.
pub(crate) fn check(contents: &Contents, complaints: &mut Complaints) {
    if let Some(pipeline) = &contents.pipeline {
        let place = Place { document: pipeline.document, path: "metadata.name".to_owned() };
        let name = &pipeline.name;
        if name.len() > names::PIPELINE_LENGTH_MAX {
            let message = format!(
                "got a name of {} characters, allowed at most {}: its pods add a suffix",
                name.len(),
                names::PIPELINE_LENGTH_MAX
            );
            complaints.error(&place, "", Reason::InvalidName, message);
        } else if !name.is_empty() && !names::is_pipeline(name) {
            complaints.error(&place, "", Reason::InvalidName, not_a_label(name));
        }
    }
    stand_alone(&contents.sources, complaints);
    stand_alone(&contents.joins, complaints);
    stand_alone(&contents.windows, complaints);
    stand_alone(&contents.sinks, complaints);
    let mut taken = Taken::default();
    taken.all(
        contents.sources.iter().map(|named| (named.name.as_str(), "source", named.name_place())),
        complaints,
    );
    let mut taken = Taken::default();
    taken.all(
        contents.sinks.iter().map(|named| (named.name.as_str(), "sink", named.name_place())),
        complaints,
    );
    tables(contents, complaints);
}

/// Checks the names of stand-alone documents, which are names of Kubernetes objects too.
fn stand_alone<T>(all: &[Named<T>], complaints: &mut Complaints) {
    for named in all.iter().filter(|named| !named.inline() && !named.name.is_empty()) {
        let trouble = names::name_trouble(&named.name)
            .or_else(|| (!names::is_pipeline(&named.name)).then(|| not_a_label(&named.name)));
        if let Some(message) = trouble {
            complaints.error(&named.name_place(), "", Reason::InvalidName, message);
        }
    }
}

/// Says what is wrong with a name that no Kubernetes object can have.
fn not_a_label(name: &str) -> String {
    let allowed = "the name of an object has lower-case letters, digits and -, a letter first and no - last";
    let plain: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .collect::<String>()
        .trim_matches('-')
        .to_owned();
    match names::is_pipeline(&plain) {
        true => format!("got {name:?}, {allowed}; write for example {plain:?}"),
        false => format!("got {name:?}, {allowed}"),
    }
}

/// Checks the names of topics, joins and windows, which share one namespace without regard to case.
fn tables(contents: &Contents, complaints: &mut Complaints) {
    let mut taken = Taken::default();
    let mut topics = 0;
    for source in &contents.sources {
        for (topic, field) in topics_of(&source.body) {
            let place =
                Place { document: source.place.document, path: format!("{}.{field}", source.place.path) };
            topics += usize::from(taken.table(&topic, "topic", place.clone(), complaints));
            if topics == TOPICS_MAX + 1 {
                let message =
                    format!("the sources fill more than {TOPICS_MAX} topics; make a second Pipeline of some");
                complaints.error(&place, "", Reason::OutOfRange, message);
                topics += 1;
            }
        }
    }
    for join in &contents.joins {
        taken.table(&join.name, "join", join.name_place(), complaints);
    }
    for window in &contents.windows {
        taken.table(&window.name, "window", window.name_place(), complaints);
    }
}

/// The topics that a source is known to fill, and where each is written.
pub(crate) fn topics_of(source: &SourceBody) -> Vec<(String, String)> {
    let mut topics = Vec::new();
    if let Some(http) = &source.http {
        let listed = http.topics.iter().enumerate();
        topics.extend(listed.map(|(index, topic)| (topic.clone(), path::item("http.topics", index))));
    }
    if let Some(topic) = source.file.as_ref().and_then(|file| file.topic.clone()) {
        topics.push((topic, "file.topic".to_owned()));
    }
    if let Some(topic) = source.topic.clone().filter(|_| source.api.is_some() || source.kafka.is_some()) {
        topics.push((topic, "topic".to_owned()));
    } else if let Some(kafka) = &source.kafka {
        for (index, kafka_topic) in
            kafka.topics.iter().enumerate().filter(|(_, topic)| !topic.starts_with('^'))
        {
            if !kafka.topic_names.contains_key(kafka_topic) {
                topics.push((kafka_topic.clone(), path::item("kafka.topics", index)));
            }
        }
        for (kafka_topic, topic) in &kafka.topic_names {
            topics.push((topic.clone(), path::field("kafka.topicNames", kafka_topic)));
        }
    }
    topics
}

/// Whether a source may fill topics that it does not name; one without a kind may, too.
pub(crate) fn fills_any_topic(source: &SourceBody) -> bool {
    let SourceBody { http, file, api, kafka, topic, .. } = source;
    let has_kind = http.is_some() || file.is_some() || api.is_some() || kafka.is_some();
    !has_kind
        || http.as_ref().is_some_and(|http| http.topics.is_empty())
        || file.as_ref().is_some_and(|file| file.topic.is_none())
        || (topic.is_none()
            && kafka.as_ref().is_some_and(|kafka| kafka.topics.iter().any(|topic| topic.starts_with('^'))))
}

/// Names that are taken, by their form without case: the name as written, the kind of thing, and the place.
#[derive(Default)]
struct Taken<'a> {
    names: BTreeMap<String, (String, &'a str, Place)>,
}

impl<'a> Taken<'a> {
    /// Takes the names of things of one kind, which may have the same names as things of other kinds.
    fn all<'n>(&mut self, all: impl Iterator<Item = (&'n str, &'a str, Place)>, complaints: &mut Complaints) {
        for (name, noun, place) in all.filter(|(name, ..)| !name.is_empty()) {
            if self.names.contains_key(name) {
                let message = format!("two {noun}s are called {name:?}; rename one");
                complaints.error(&place, "", Reason::DuplicateName, message);
            } else {
                self.names.insert(name.to_owned(), (name.to_owned(), noun, place));
            }
        }
    }

    /// Takes the name of a table; returns whether it is a new one. Several sources may fill one topic.
    fn table(&mut self, name: &str, noun: &'a str, place: Place, complaints: &mut Complaints) -> bool {
        if name.is_empty() {
            return false;
        }
        let Some((other, other_noun, _)) = self.names.get(&name.to_ascii_lowercase()) else {
            self.names.insert(name.to_ascii_lowercase(), (name.to_owned(), noun, place));
            return true;
        };
        if *other_noun == "topic" && noun == "topic" && other == name {
            return false;
        }
        let both = match (other == name, *other_noun == noun) {
            (true, true) => format!("two {noun}s are called {name:?}"),
            (true, false) => format!("a {other_noun} and a {noun} are both called {name:?}"),
            (false, true) => {
                format!("two {noun}s are called {other:?} and {name:?}, which is one name to SQL")
            }
            (false, false) => format!("a {other_noun} {other:?} and a {noun} {name:?} have one name to SQL"),
        };
        let message = format!("{both}; topics, joins and windows are tables of one database, rename one");
        complaints.error(&place, "", Reason::DuplicateName, message);
        false
    }
}
