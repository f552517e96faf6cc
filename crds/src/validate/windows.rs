//! Checks windows: the durations that each type needs, and how they relate.

use std::time::Duration;

use crate::complaint::{Reason, nearest};
use crate::duration::{DURATION_MAX, DurationText};
use crate::kind::Kind;
use crate::plan::Place;
use crate::source::SourceBody;
use crate::validate::complaints::Complaints;
use crate::validate::joins;
use crate::validate::names::topics_of;
use crate::validate::read::{Contents, Named};
use crate::validate::scope::Scope;
use crate::window::{WindowBody, WindowKind};

/// Checks the windows.
pub(crate) fn check(contents: &Contents, complaints: &mut Complaints) {
    for named in &contents.windows {
        joins::check_sinks(contents, named, &named.body.sinks, complaints);
        check_topic(contents, named, complaints);
        durations(&named.body, &named.place, complaints);
    }
}

/// The sinks that take a window, by name.
pub(crate) fn sinks_taking(contents: &Contents) -> Vec<String> {
    let named = contents.windows.iter().flat_map(|window| window.body.sinks.iter().cloned());
    let naming = contents
        .sinks
        .iter()
        .filter(|sink| contents.windows.iter().any(|window| sink.body.joins.contains(&window.name)));
    named.chain(naming.map(|sink| sink.name.clone())).collect()
}

/// Complains about a topic that no source may fill.
fn check_topic(contents: &Contents, named: &Named<WindowBody>, complaints: &mut Complaints) {
    let any_topic = contents.sources.iter().any(|source| {
        let SourceBody { http, file, kafka, topic, .. } = &source.body;
        http.as_ref().is_some_and(|http| http.topics.is_empty())
            || file.as_ref().is_some_and(|file| file.topic.is_none())
            || (topic.is_none()
                && kafka.as_ref().is_some_and(|kafka| kafka.topics.iter().any(|t| t.starts_with('^'))))
    });
    let topics: Vec<String> =
        contents.sources.iter().flat_map(|source| topics_of(&source.body)).map(|(topic, _)| topic).collect();
    let topic = &named.body.topic;
    let unread = contents.unread.iter().any(|(kind, _)| *kind == Kind::Source);
    if any_topic || unread || topics.iter().any(|known| known.eq_ignore_ascii_case(topic)) {
        return;
    }
    let near = nearest(topic, topics.iter().map(String::as_str));
    let hint = near
        .map(|near| format!("; did you mean {near:?}?"))
        .unwrap_or_else(|| "; add it to a source".to_owned());
    let message = format!("no source fills the topic {topic:?}{hint}");
    complaints.error(&named.place, "topic", Reason::UnknownReference, message);
}

fn durations(window: &WindowBody, place: &Place, complaints: &mut Complaints) {
    let mut scope = Scope { place, complaints };
    let fields = [("size", &window.size), ("slide", &window.slide), ("gap", &window.gap)];
    let (noun, needed): (&str, &[&str]) = match window.kind {
        WindowKind::Tumbling => ("tumbling", &["size"]),
        WindowKind::Sliding => ("sliding", &["size", "slide"]),
        WindowKind::Session => ("session", &["gap"]),
    };
    for (name, value) in fields {
        match value {
            None if needed.contains(&name) => {
                let message = format!("a {noun} window needs {name}; add for example {name}: 1m");
                scope.error(name, Reason::Conflict, message);
            }
            Some(_) if !needed.contains(&name) => {
                let message = format!(
                    "a {noun} window has no {name}; remove it, its fields are {}",
                    needed.join(" and ")
                );
                scope.error(name, Reason::Conflict, message);
            }
            _ => {}
        }
    }
    let size = window.size.as_ref().map(|size| whole_seconds(&mut scope, "size", size));
    let slide = window.slide.as_ref().map(|slide| whole_seconds(&mut scope, "slide", slide));
    if let Some(gap) = &window.gap {
        whole_seconds(&mut scope, "gap", gap);
    }
    if let (Some(size), Some(slide), Some(written)) = (size, slide, &window.size)
        && slide > size
        && !size.is_zero()
    {
        let message = format!("longer than size; write at most {:?}", written.0);
        scope.error("slide", Reason::Conflict, message);
    }
    if let Some(event_time) = &window.event_time {
        scope.duration("eventTime.watermarkDelay", &event_time.watermark_delay, Duration::ZERO, DURATION_MAX);
        scope.duration(
            "eventTime.allowedLateness",
            &event_time.allowed_lateness,
            Duration::ZERO,
            DURATION_MAX,
        );
        if let Some(idle_timeout) = &event_time.idle_timeout {
            scope.positive("eventTime.idleTimeout", idle_timeout);
        }
    }
}

/// Parses a duration of whole seconds: topics carry no finer time.
fn whole_seconds(scope: &mut Scope<'_>, field: &str, text: &DurationText) -> Duration {
    let duration = scope.positive(field, text);
    if duration.subsec_nanos() != 0 {
        let message = format!("got {:?}, allowed whole seconds; topics carry no finer time", text.0);
        scope.error(field, Reason::InvalidDuration, message);
        return Duration::ZERO;
    }
    duration
}
