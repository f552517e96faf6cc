//! Checks windows: the durations that each type needs, and how they relate.

use std::time::Duration;

use crate::complaint::{Reason, nearest};
use crate::duration::{DURATION_MAX, DurationText};
use crate::kind::Kind;
use crate::names::is_topic;
use crate::plan::{EventClock, Retention, TimeCut, Window};
use crate::validate::complaints::Complaints;
use crate::validate::joins;
use crate::validate::names::{fills_any_topic, topics_of};
use crate::validate::read::{Contents, Named};
use crate::validate::scope::{DURATION_MIN, Scope};
use crate::window::{EventTime, OnStale, TimeUnit, WindowBody, WindowKind};

const SECOND: Duration = Duration::from_secs(1);

/// The greatest number of frames that one row may be in.
const SLIDES_MAX: i64 = 1_440;

/// Checks the windows and resolves which sinks take each.
pub(crate) fn plan(contents: &Contents, complaints: &mut Complaints) -> Vec<Window> {
    let mut windows = Vec::new();
    for named in &contents.windows {
        let body = &named.body;
        joins::check_sinks(contents, named, &body.sinks, complaints);
        check_topic(contents, named, complaints);
        let mut scope = Scope { place: &named.place, complaints: &mut *complaints };
        if body.query.trim().is_empty() {
            scope.error("query", Reason::InvalidValue, "got an empty query; write one SELECT");
        }
        let cut = cut(body, &mut scope);
        let event_time = body.event_time.as_ref().map(|event_time| event_clock(event_time, &mut scope));
        windows.push(Window {
            name: named.name.clone(),
            place: named.place.clone(),
            topic: body.topic.clone(),
            query: body.query.clone(),
            cut,
            partition_by: body.partition_by.clone(),
            key_column: body.key_column.clone(),
            emit: body.emit,
            emit_empty: body.emit_empty,
            event_time,
            sinks: joins::sinks_of(contents, &named.name, &body.sinks),
        });
    }
    windows
}

/// Complains about windows that need rows for longer than retention keeps them.
pub(crate) fn check_retention(windows: &[Window], retention: &Retention, complaints: &mut Complaints) {
    for window in windows {
        // An age of zero is wrong, and complained about.
        let Some(age) = retention.of(&window.topic).filter(|age| !age.is_zero()) else { continue };
        let kept = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        if let Some(needed) = window.rows_needed().filter(|needed| *needed > kept) {
            let message = format!(
                "needs the rows of its topic for {needed}s, until its last message can have come; its retention is {kept}s, \
                 write at least {needed}s"
            );
            complaints.error(&window.place, "", Reason::Conflict, message);
        }
    }
}

/// Complains about a topic that no source may fill, and that is no join and no other window.
fn check_topic(contents: &Contents, named: &Named<WindowBody>, complaints: &mut Complaints) {
    let any_topic = contents.sources.iter().any(|source| fills_any_topic(&source.body));
    let topics: Vec<String> =
        contents.sources.iter().flat_map(|source| topics_of(&source.body)).map(|(topic, _)| topic).collect();
    let outputs = [contents.names(Kind::Join), contents.names(Kind::Window)].concat();
    let topic = &named.body.topic;
    if topic.eq_ignore_ascii_case(&named.name) {
        let message = format!("the window {topic:?} reads itself; write the topic that its rows come from");
        complaints.error(&named.place, "topic", Reason::UnknownReference, message);
        return;
    }
    let mut known = topics.iter().map(String::as_str).chain(outputs);
    let unread = contents.unread.iter().any(|(kind, _)| *kind == Kind::Source);
    let may_be_filled = is_topic(topic) && (any_topic || unread);
    if may_be_filled || known.clone().any(|known| known.eq_ignore_ascii_case(topic)) {
        return;
    }
    if let Some(message) = contents.left_out(&[Kind::Join, Kind::Window], topic) {
        complaints.error(&named.place, "topic", Reason::UnknownReference, message);
        return;
    }
    let near = nearest(topic, known.by_ref().filter(|known| *known != named.name));
    let hint =
        near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_else(|| match is_topic(topic) {
            true => "; add it to a source".to_owned(),
            false => ", and no join or window is called so".to_owned(),
        });
    let message = format!("no source fills the topic {topic:?}{hint}");
    complaints.error(&named.place, "topic", Reason::UnknownReference, message);
}

/// Checks the durations that cut time.
fn cut(window: &WindowBody, scope: &mut Scope<'_>) -> TimeCut {
    let (noun, needed): (&str, &[&str]) = match window.kind {
        WindowKind::Tumbling => ("tumbling", &["size"]),
        WindowKind::Sliding => ("sliding", &["size", "slide"]),
        WindowKind::Session => ("session", &["gap"]),
    };
    for (name, value) in [("size", &window.size), ("slide", &window.slide), ("gap", &window.gap)] {
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
    let mut seconds = |field: &str, text: &Option<DurationText>| {
        text.as_ref().map(|text| whole_seconds(scope, field, text, SECOND))
    };
    let size = seconds("size", &window.size);
    let slide = seconds("slide", &window.slide);
    let gap = seconds("gap", &window.gap);
    if window.kind == WindowKind::Session {
        let fields = [
            ("offset", window.offset.is_some()),
            ("timezone", window.timezone.is_some()),
            ("emitEmpty", window.emit_empty > 0),
        ];
        for (name, is_there) in fields {
            if is_there {
                let message =
                    format!("a session window has no {name}: its messages say when it begins; remove it");
                scope.error(name, Reason::Conflict, message);
            }
        }
        return TimeCut::Session { gap: gap.unwrap_or(1) };
    }
    let offset =
        window.offset.as_ref().map_or(0, |text| whole_seconds(scope, "offset", text, Duration::ZERO));
    if let Some(name) = &window.timezone {
        check_timezone(name, scope);
    }
    let slide = if window.kind == WindowKind::Sliding { slide } else { size };
    let is_positive = |seconds: &i64| *seconds > 0;
    let (Some(size), Some(slide)) = (size.filter(is_positive), slide.filter(is_positive)) else {
        // A duration is missing or wrong, and complained about; what depends on it can't be told.
        return TimeCut::Grid { size: 1, slide: 1, offset: 0, timezone: None };
    };
    if let (true, Some(written)) = (slide > size, &window.size) {
        let message = format!("longer than size; write at most {:?}", written.0);
        scope.error("slide", Reason::Conflict, message);
    }
    if size / slide > SLIDES_MAX {
        let message = format!(
            "each message would be in {} windows, allowed at most {SLIDES_MAX}; write a slide of at least {}s",
            size / slide,
            (size + SLIDES_MAX - 1) / SLIDES_MAX
        );
        scope.error("slide", Reason::OutOfRange, message);
    }
    if offset >= slide {
        let message = format!("got {offset}s, allowed less than the {slide}s from one start to the next");
        scope.error("offset", Reason::OutOfRange, message);
    }
    TimeCut::Grid { size, slide, offset, timezone: window.timezone.clone() }
}

fn check_timezone(name: &str, scope: &mut Scope<'_>) {
    let database = jiff::tz::db();
    if database.get(name).is_err() {
        let known: Vec<String> = database.available().map(|name| name.as_str().to_owned()).collect();
        let hint = match nearest(name, known.iter().map(String::as_str)) {
            Some(near) => format!("did you mean {near:?}?"),
            None => "write an IANA name such as \"America/New_York\"".to_owned(),
        };
        scope.error("timezone", Reason::InvalidValue, format!("no place is called {name:?}; {hint}"));
    }
}

fn event_clock(event_time: &EventTime, scope: &mut Scope<'_>) -> EventClock {
    if event_time.path.is_none() && event_time.unit != TimeUnit::Rfc3339 {
        let message =
            "needs path, the place of the time in the payload; the timestamp of a message has no unit";
        scope.error("eventTime.unit", Reason::Conflict, message);
    }
    let mut seconds =
        |field: &str, text: &DurationText, least: Duration| whole_seconds(scope, field, text, least);
    EventClock {
        path: event_time.path.clone(),
        unit: event_time.unit,
        watermark_delay: seconds("eventTime.watermarkDelay", &event_time.watermark_delay, Duration::ZERO),
        idle_timeout: seconds("eventTime.idleTimeout", &event_time.idle_timeout, SECOND),
        allowed_lateness: seconds("eventTime.allowedLateness", &event_time.allowed_lateness, Duration::ZERO),
        ignores_stale: event_time.on_stale == OnStale::Ignore,
    }
}

/// Parses a duration of whole seconds: topics carry no finer time.
fn whole_seconds(scope: &mut Scope<'_>, field: &str, text: &DurationText, least: Duration) -> i64 {
    let duration = scope.duration(field, text, least.min(DURATION_MIN), DURATION_MAX);
    if duration.subsec_nanos() != 0 {
        let message = format!("got {:?}, allowed whole seconds; topics carry no finer time", text.0);
        scope.error(field, Reason::InvalidDuration, message);
    }
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}
