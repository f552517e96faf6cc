//! Windows: the durations of each type and how they relate, the topic, event time, and how long rows are kept.

use super::*;

use crate::plan::{EventClock, TimeCut};
use crate::window::TimeUnit;

/// A Pipeline with a source of the topic `orders`, a sink, and these windows, one a line.
fn windows(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("- {}\n", line.trim())).collect();
    pipeline(&format!(
        r#"sources: [{{name: in, http: {{addr: ":0", topics: [orders]}}}}]
sinks: [{{name: out, stdout: {{}}}}]
windows:
{lines}"#
    ))
}

/// A window of one minute by the name `w`, with these fields beside.
fn minutes(fields: &str) -> String {
    windows(&format!(
        "{{name: w, type: tumbling, topic: orders, query: SELECT 1, size: 1m, sinks: [out], {fields}}}"
    ))
}

#[test]
fn windows_have_the_durations_of_their_type() {
    check(
        &windows(
            r#"{name: w1, type: tumbling, topic: orders, query: SELECT 1, gap: 1m}
               {name: w2, type: tumbling, topic: orders, query: SELECT 1, size: 1m, slide: 1m}
               {name: w3, type: sliding, topic: orders, query: SELECT 1}
               {name: w4, type: sliding, topic: orders, query: SELECT 1, size: 1m, slide: 1m, gap: 1m}
               {name: w5, type: session, topic: orders, query: SELECT 1}
               {name: w6, type: session, topic: orders, query: SELECT 1, gap: 1m, size: 1m, slide: 1m}
               {name: w7, type: hopping, topic: orders, query: SELECT 1}"#,
        ),
        expect![[r#"
            0 spec.windows[6].type: InvalidValue: got "hopping", allowed: tumbling, sliding, session
            0 spec.windows[0].size: Conflict: a tumbling window needs size; add for example size: 1m
            0 spec.windows[0].gap: Conflict: a tumbling window has no gap; remove it, its fields are size
            0 spec.windows[1].slide: Conflict: a tumbling window has no slide; remove it, its fields are size
            0 spec.windows[2].size: Conflict: a sliding window needs size; add for example size: 1m
            0 spec.windows[2].slide: Conflict: a sliding window needs slide; add for example slide: 1m
            0 spec.windows[3].gap: Conflict: a sliding window has no gap; remove it, its fields are size and slide
            0 spec.windows[4].gap: Conflict: a session window needs gap; add for example gap: 1m
            0 spec.windows[5].size: Conflict: a session window has no size; remove it, its fields are gap
            0 spec.windows[5].slide: Conflict: a session window has no slide; remove it, its fields are gap
        "#]],
    );
}

#[test]
fn a_session_says_itself_when_it_begins() {
    check(
        &windows(
            r#"{name: w1, type: session, topic: orders, query: SELECT 1, gap: 1m, offset: 10s, timezone: Europe/Atlantis, emitEmpty: 1}
               {name: w2, type: session, topic: orders, query: SELECT 1, gap: 1m, emitEmpty: 0, sinks: [out]}"#,
        ),
        expect![[r#"
            0 spec.windows[0].offset: Conflict: a session window has no offset: its messages say when it begins; remove it
            0 spec.windows[0].timezone: Conflict: a session window has no timezone: its messages say when it begins; remove it
            0 spec.windows[0].emitEmpty: Conflict: a session window has no emitEmpty: its messages say when it begins; remove it
        "#]],
    );
}

#[test]
fn durations_of_windows_are_whole_seconds() {
    check(
        &windows(
            r#"{name: w1, type: sliding, topic: orders, query: SELECT 1, size: 1500ms, slide: 500ms, offset: 1ms}
               {name: w2, type: session, topic: orders, query: SELECT 1, gap: 1ns}
               {name: w3, type: tumbling, topic: orders, query: SELECT 1, size: 0s, offset: 1m}
               {name: w4, type: sliding, topic: orders, query: SELECT 1, size: 1m, slide: 0s, offset: 0s}
               {name: w5, type: session, topic: orders, query: SELECT 1, gap: 0s}
               {name: w6, type: tumbling, topic: orders, query: SELECT 1, size: 1m, eventTime: {watermarkDelay: 100ms, idleTimeout: 0s, allowedLateness: 1.5s}}
               {name: w7, type: tumbling, topic: orders, query: SELECT 1, size: 1d}
               {name: w8, type: tumbling, topic: orders, query: SELECT 1, size: 1000ms, offset: 0s, sinks: [out], eventTime: {watermarkDelay: 0s, allowedLateness: 0s}}"#,
        ),
        expect![[r#"
            0 spec.windows[6].size: InvalidDuration: got "1d", units are ns, us, ms, s, m and h; write "24h"
            0 spec.windows[0].size: InvalidDuration: got "1500ms", allowed whole seconds; topics carry no finer time
            0 spec.windows[0].slide: InvalidDuration: got "500ms", allowed whole seconds; topics carry no finer time
            0 spec.windows[0].offset: InvalidDuration: got "1ms", allowed whole seconds; topics carry no finer time
            0 spec.windows[1].gap: InvalidDuration: got "1ns", allowed whole seconds; topics carry no finer time
            0 spec.windows[2].size: InvalidDuration: got "0s", allowed only more than zero
            0 spec.windows[3].slide: InvalidDuration: got "0s", allowed only more than zero
            0 spec.windows[4].gap: InvalidDuration: got "0s", allowed only more than zero
            0 spec.windows[5].eventTime.watermarkDelay: InvalidDuration: got "100ms", allowed whole seconds; topics carry no finer time
            0 spec.windows[5].eventTime.idleTimeout: InvalidDuration: got "0s", allowed only more than zero
            0 spec.windows[5].eventTime.allowedLateness: InvalidDuration: got "1.5s", allowed whole seconds; topics carry no finer time
        "#]],
    );
}

#[test]
fn slides_and_offsets_are_within_the_size() {
    check(
        &windows(
            r#"{name: w1, type: sliding, topic: orders, query: SELECT 1, size: 1m, slide: 90s}
               {name: w2, type: sliding, topic: orders, query: SELECT 1, size: 24h, slide: 1m, sinks: [out]}
               {name: w3, type: sliding, topic: orders, query: SELECT 1, size: 24h, slide: 50s}
               {name: w4, type: tumbling, topic: orders, query: SELECT 1, size: 1m, offset: 59s, sinks: [out]}
               {name: w5, type: tumbling, topic: orders, query: SELECT 1, size: 1m, offset: 1m}
               {name: w6, type: sliding, topic: orders, query: SELECT 1, size: 1m, slide: 20s, offset: 30s}"#,
        ),
        expect![[r#"
            0 spec.windows[0].slide: Conflict: longer than size; write at most "1m"
            0 spec.windows[2].slide: OutOfRange: each message would be in 1728 windows, allowed at most 1440; write a slide of at least 60s
            0 spec.windows[4].offset: OutOfRange: got 60s, allowed less than the 60s from one start to the next
            0 spec.windows[5].offset: OutOfRange: got 30s, allowed less than the 20s from one start to the next
        "#]],
    );
}

#[test]
fn a_duration_that_is_missing_makes_one_complaint() {
    check(
        &windows(
            r#"{name: w1, type: tumbling, topic: orders, query: SELECT 1, offset: 30s}
               {name: w2, type: sliding, topic: orders, query: SELECT 1, size: 1m, offset: 90s}
               {name: w3, type: sliding, topic: orders, query: SELECT 1, slide: 1m, offset: 90s}"#,
        ),
        expect![[r#"
            0 spec.windows[0].size: Conflict: a tumbling window needs size; add for example size: 1m
            0 spec.windows[1].slide: Conflict: a sliding window needs slide; add for example slide: 1m
            0 spec.windows[2].size: Conflict: a sliding window needs size; add for example size: 1m
        "#]],
    );
}

#[test]
fn timezones_are_places() {
    check(
        &windows(
            r#"{name: w1, type: tumbling, topic: orders, query: SELECT 1, size: 24h, timezone: Europe/Berlim}
               {name: w2, type: tumbling, topic: orders, query: SELECT 1, size: 24h, timezone: "+01:00"}
               {name: w3, type: tumbling, topic: orders, query: SELECT 1, size: 24h, timezone: ""}
               {name: w4, type: tumbling, topic: orders, query: SELECT 1, size: 24h, timezone: America/Argentina/Ushuaia, sinks: [out]}"#,
        ),
        expect![[r#"
            0 spec.windows[2].timezone: OutOfRange: got "", must not be empty
            0 spec.windows[0].timezone: InvalidValue: no place is called "Europe/Berlim"; did you mean "Europe/Berlin"?
            0 spec.windows[1].timezone: InvalidValue: no place is called "+01:00"; write an IANA name such as "America/New_York"
        "#]],
    );
}

#[test]
fn the_unit_of_a_time_is_that_of_its_path() {
    for unit in ["seconds", "milliseconds", "microseconds"] {
        let complaints = validate(&documents(&minutes(&format!("eventTime: {{unit: {unit}}}")))).unwrap_err();
        assert_eq!(
            lines(&complaints),
            "0 spec.windows[0].eventTime.unit: Conflict: needs path, the place of the time in the payload; the timestamp \
             of a message has no unit\n"
        );
        check(&minutes(&format!("eventTime: {{path: $.at, unit: {unit}}}")), expect![[r#""#]]);
    }
    check(&minutes("eventTime: {unit: rfc3339}"), expect![[r#""#]]);
    check(
        &minutes("eventTime: {unit: nanoseconds}"),
        expect![[r#"
        0 spec.windows[0].eventTime.unit: InvalidValue: got "nanoseconds", allowed: rfc3339, seconds, milliseconds, microseconds
    "#]],
    );
}

#[test]
fn texts_and_numbers_of_windows_have_bounds() {
    check(
        &windows(
            r#"{name: w1, type: tumbling, topic: orders, query: " ", size: 1m}
               {name: w2, type: tumbling, topic: orders, query: SELECT 1, size: 1m, partitionBy: "", keyColumn: "", emitEmpty: 1001, emit: always}
               {name: w3, type: tumbling, topic: orders, query: SELECT 1, size: 1m, emitEmpty: -1, eventTime: {path: ""}}
               {name: w4, type: tumbling, topic: my-orders, query: SELECT 1, size: 1m}"#,
        ),
        expect![[r#"
            0 spec.windows[1].emit: InvalidValue: got "always", allowed: final, update
            0 spec.windows[1].emitEmpty: OutOfRange: got 1001, allowed 0 to 1000
            0 spec.windows[1].keyColumn: OutOfRange: got "", must not be empty
            0 spec.windows[1].partitionBy: OutOfRange: got "", must not be empty
            0 spec.windows[2].emitEmpty: OutOfRange: got -1, allowed 0 to 1000
            0 spec.windows[2].eventTime.path: OutOfRange: got "", must not be empty
            0 spec.windows[0].query: InvalidValue: got an empty query; write one SELECT
            0 spec.windows[3].topic: UnknownReference: no source fills the topic "my-orders"; did you mean "orders"?
        "#]],
    );
}

#[test]
fn a_source_fills_the_topic_of_a_window() {
    check(
        &windows(
            r#"{name: w1, type: tumbling, topic: order, query: SELECT 1, size: 1m}
               {name: w2, type: tumbling, topic: payments, query: SELECT 1, size: 1m, sinks: [nowhere]}
               {name: w3, type: tumbling, topic: ORDERS, query: SELECT 1, size: 1m, sinks: [out]}
               {name: w4, type: tumbling, topic: W3, query: SELECT 1, size: 1m, sinks: [out]}
               {name: w5, type: tumbling, topic: w5, query: SELECT 1, size: 1m, sinks: [out]}
               {name: hourly, type: tumbling, topic: hourli, query: SELECT 1, size: 1m, sinks: [out]}
               {name: w7, type: tumbling, topic: hourli, query: SELECT 1, size: 1m, sinks: [out]}"#,
        ),
        expect![[r#"
            0 spec.windows[0].topic: UnknownReference: no source fills the topic "order"; did you mean "orders"?
            0 spec.windows[1].sinks[0]: UnknownReference: no sink is called "nowhere"; allowed: out
            0 spec.windows[1].topic: UnknownReference: no source fills the topic "payments"; add it to a source
            0 spec.windows[4].topic: UnknownReference: the window "w5" reads itself; write the topic that its rows come from
            0 spec.windows[5].topic: UnknownReference: no source fills the topic "hourli"; add it to a source
            0 spec.windows[6].topic: UnknownReference: no source fills the topic "hourli"; did you mean "hourly"?
        "#]],
    );
}

#[test]
fn a_source_of_any_topic_may_fill_that_of_a_window() {
    for source in [
        r#"http: {addr: ":0"}"#,
        "file: {path: a.ndjson}",
        r#"kafka: {brokers: "k:9092", topics: ["^o.*"]}"#,
        // A source that is wrong may be the one.
        "http: []",
        "htpp: {}",
    ] {
        let manifest = minutes("").replace(r#"http: {addr: ":0", topics: [orders]}"#, source);
        let complaints = validate(&documents(&manifest)).err().unwrap_or_default();
        assert!(!lines(&complaints).contains("topic \"orders\""), "{source}: {}", lines(&complaints));
    }
    let no_topic = minutes("").replace("topic: orders,", "topic: my-orders,");
    let any = no_topic.replace(r#"http: {addr: ":0", topics: [orders]}"#, r#"http: {addr: ":0"}"#);
    check(
        &any,
        expect![[r#"
        0 spec.windows[0].topic: UnknownReference: no source fills the topic "my-orders", and no join or window is called so
    "#]],
    );
    let one = r#"topic: payments, kafka: {brokers: "k:9092", topics: ["^o.*"]}"#;
    check(
        &minutes("").replace(r#"http: {addr: ":0", topics: [orders]}"#, one),
        expect![[r#"
        0 spec.windows[0].topic: UnknownReference: no source fills the topic "orders"; add it to a source
    "#]],
    );
}

#[test]
fn rows_are_kept_as_long_as_a_window_needs_them() {
    let kept = |retention: &str, window: &str| {
        windows(window) + &format!("  retention: {{duration: {retention}}}\n")
    };
    let window = "{name: w, type: sliding, topic: orders, query: SELECT 1, size: 1h, slide: 1m, sinks: [out], \
                  eventTime: {watermarkDelay: 30s, allowedLateness: 2h}}";
    // An hour, half a minute, two hours, and the minute of `idleTimeout`.
    check(&kept("10890s", window), expect![[r#""#]]);
    check(
        &kept("10889s", window),
        expect![[r#"
        0 spec.windows[0]: Conflict: needs the rows of its topic for 10890s, until its last message can have come; its retention is 10889s, write at least 10890s
    "#]],
    );
    let by_arrival = "{name: w, type: tumbling, topic: orders, query: SELECT 1, size: 2h, sinks: [out]}";
    check(&kept("2h", by_arrival), expect![[r#""#]]);
    check(
        &kept("1h", by_arrival),
        expect![[r#"
        0 spec.windows[0]: Conflict: needs the rows of its topic for 7200s, until its last message can have come; its retention is 3600s, write at least 7200s
    "#]],
    );
    // A retention that is wrong itself is complained about alone.
    check(
        &kept("0s", by_arrival),
        expect![[r#"
        0 spec.retention.duration: InvalidDuration: got "0s", allowed only more than zero
    "#]],
    );
    // A session has no greatest length.
    check(
        &kept("1s", "{name: w, type: session, topic: orders, query: SELECT 1, gap: 1h, sinks: [out]}"),
        expect![[r#""#]],
    );
}

#[test]
fn a_window_that_nobody_takes_is_a_warning() {
    check(
        &windows(
            r#"{name: lost, type: tumbling, topic: orders, query: SELECT 1, size: 1m}
               {name: read, type: tumbling, topic: orders, query: SELECT 1, size: 1m}
               {name: taken, type: tumbling, topic: orders, query: SELECT 1, size: 1m}"#,
        )
        .replace(
            "sinks: [{",
            "joins: [{name: top, query: SELECT * FROM read, sinks: [out]}]\n  sinks: [{joins: [taken], ",
        ),
        expect![[r#"
            0 spec.windows[0]: warning Unused: no sink takes the window "lost" and no other query reads it; add sinks: [<a sink's name>]
        "#]],
    );
}

#[test]
fn a_window_becomes_its_plan() {
    let manifest = windows(
        r#"{name: days, type: sliding, topic: orders, query: SELECT 1, size: 6h, slide: 90m, offset: 1h, timezone: Asia/Kolkata, sinks: [out], emitEmpty: 3, eventTime: {}}
           {name: visits, type: session, topic: orders, query: SELECT 1, gap: 1m30s, sinks: [out]}"#,
    );
    let (plan, warnings) = validate(&documents(&manifest)).unwrap();
    assert_eq!(warnings, []);
    let [days, visits] = &plan.windows[..] else { panic!("{:?}", plan.windows) };
    let timezone = Some("Asia/Kolkata".to_owned());
    assert_eq!(days.cut, TimeCut::Grid { size: 21_600, slide: 5_400, offset: 3_600, timezone });
    let clock = EventClock {
        path: None,
        unit: TimeUnit::Rfc3339,
        watermark_delay: 0,
        idle_timeout: 60,
        allowed_lateness: 0,
        ignores_stale: false,
    };
    assert_eq!((days.event_time.as_ref(), days.emit_empty), (Some(&clock), 3));
    assert_eq!((&visits.cut, &visits.event_time), (&TimeCut::Session { gap: 90 }, &None));
    assert_eq!(plan.sinks[0].joins, ["days", "visits"]);
    assert_eq!(
        plan.outputs().map(|output| output.place.path.as_str()).collect::<Vec<_>>(),
        ["spec.windows[0]", "spec.windows[1]"]
    );
}
