//! Examples that were computed by hand.

use super::*;
use crate::windows::definition::{EventClock, FrameKind, TimeUnit};
use crate::windows::zone::Zone;

/// Counts rows, tells nothing early, and goes by the times in payloads with nothing allowed.
fn counting(kind: FrameKind) -> Definition {
    Definition {
        name: "w".to_owned(),
        kind,
        offset: 0,
        zone: None,
        is_partitioned: false,
        key_column: None,
        emits_updates: false,
        event_clock: Some(EventClock {
            unit: Some(TimeUnit::Seconds),
            delay: 0,
            idle_timeout: 10,
            lateness: 0,
        }),
        query: "SELECT count(*) AS n FROM orders".to_owned(),
    }
}

fn with_lateness(kind: FrameKind, lateness: i64) -> Definition {
    let mut window = counting(kind);
    window.event_clock = window.event_clock.map(|clock| EventClock { lateness, ..clock });
    window
}

fn row(source: &'static str, key: &str, at: i64) -> WindowMessage {
    let (version, payload) = (u64::try_from(at).expect("a late time"), Some(json!({"r": "emea", "c": 7})));
    WindowMessage { source, key: key.to_owned(), version, payload, timestamp: None, at: Some(at) }
}

fn delete(key: &str) -> WindowMessage {
    WindowMessage { payload: None, at: None, ..row("a", key, 0) }
}

/// Takes each message by itself; then the results are these, as `start..end n`, with a `?` where they are not final.
fn assert_after(model: &mut Model, messages: &[WindowMessage], expected: &[&str]) {
    messages.iter().for_each(|message| model.take(std::slice::from_ref(message)));
    let text = |result: &ShownResult| {
        let number: Value = serde_json::from_str(&result.rows[0]).expect("a row is JSON");
        let mark = if result.window["final"] == true { "" } else { "?" };
        format!("{}..{} {}{mark}", result.window["start"], result.window["end"], number["n"])
    };
    let results: Vec<String> = model.results().values().map(text).collect();
    assert_eq!(results, expected, "after {messages:?}");
}

fn dead(model: &Model) -> Vec<&str> {
    model.dead_letters().iter().map(|(key, _)| key.as_str()).collect()
}

#[test]
fn a_tumbling_frame_closes_once_and_takes_nothing_more() {
    let mut model = Model::new(counting(FrameKind::Tumbling { size: 10 }), 1_000);
    assert_after(&mut model, &[row("a", "k1", 3), row("a", "k2", 7)], &[]);
    assert_after(&mut model, &[row("a", "k3", 12)], &["0..10 2"]);
    assert_after(&mut model, &[row("a", "k4", 9)], &["0..10 2"]);
    assert_eq!((dead(&model), model.log.watermark()), (vec!["k4"], Some(12)));
    assert_after(&mut model, &[row("a", "k1", 15), delete("k2")], &["0..10 2"]);
    assert_after(&mut model, &[row("a", "k5", 20)], &["0..10 2", "10..20 2"]);
    assert_eq!(model.finals().len(), 2);
    assert_eq!(model.results().keys().next().expect("two results"), r#"["1970-01-01T00:00:00Z"]"#);
}

#[test]
fn a_frame_changes_until_its_lateness_is_over() {
    let mut model = Model::new(with_lateness(FrameKind::Tumbling { size: 10 }, 5), 1_000);
    assert_after(&mut model, &[row("a", "k1", 3), row("a", "k2", 14)], &["0..10 1"]);
    assert_after(&mut model, &[row("a", "k3", 9)], &["0..10 2"]);
    assert_after(&mut model, &[delete("k3"), delete("k1")], &[]);
    assert_after(&mut model, &[row("a", "k4", 8)], &["0..10 1"]);
    assert_after(&mut model, &[row("a", "k5", 15), row("a", "k6", 9)], &["0..10 1"]);
    assert_eq!(dead(&model), ["k6"]);
}

#[test]
fn a_late_row_is_in_the_sliding_frames_that_are_left() {
    let mut window = counting(FrameKind::Sliding { size: 10, slide: 5 });
    window.emits_updates = true;
    let mut model = Model::new(window, 1_000);
    assert_after(&mut model, &[row("a", "k1", 7)], &["0..10 1?", "5..15 1?"]);
    assert_after(&mut model, &[row("a", "k2", 15)], &["0..10 1", "5..15 1", "10..20 1?", "15..25 1?"]);
    assert_after(&mut model, &[row("a", "k3", 12)], &["0..10 1", "5..15 1", "10..20 2?", "15..25 1?"]);
    assert_eq!(dead(&model), [] as [&str; 0]);
}

#[test]
fn sessions_merge_and_split() {
    let mut window = counting(FrameKind::Session { gap: 5 });
    window.emits_updates = true;
    let mut model = Model::new(window, 1_000);
    model.take(&[row("a", "k1", 20), row("a", "k2", 10)]);
    assert_after(&mut model, &[], &["10..15 1", "20..25 1?"]);
    let mut model = Model::new(with_lateness(FrameKind::Session { gap: 5 }, 100), 1_000);
    assert_after(&mut model, &[row("a", "k1", 10), row("a", "k2", 20)], &["10..15 1"]);
    // A row one gap from both, so all are one session that is open.
    assert_after(&mut model, &[row("a", "k3", 15)], &[]);
    assert_after(&mut model, &[row("a", "k4", 30)], &["10..25 3"]);
    assert_after(&mut model, &[delete("k3")], &["10..15 1", "20..25 1"]);
}

#[test]
fn a_frozen_session_takes_no_row_and_a_live_one_takes_a_late_row() {
    let mut model = Model::new(counting(FrameKind::Session { gap: 5 }), 1_000);
    assert_after(&mut model, &[row("a", "k1", 10), row("a", "k2", 17)], &["10..15 1"]);
    // By itself it would end at 17, and is late, though the session that begins then is near.
    assert_after(&mut model, &[row("a", "k3", 12), row("a", "k4", 6)], &["10..15 1"]);
    assert_eq!(dead(&model), ["k3", "k4"]);
    assert_after(&mut model, &[row("a", "k5", 22)], &["10..15 1"]);
    assert_after(&mut model, &[row("a", "k6", 26)], &["10..15 1"]);
    // By itself it would end at 23; the session that is open from 17 on has it all the same.
    assert_after(&mut model, &[row("a", "k7", 18)], &["10..15 1"]);
    assert_after(&mut model, &[row("a", "k8", 40)], &["10..15 1", "17..31 4"]);
}

#[test]
fn a_silent_source_holds_nothing_back_and_the_clock_closes_the_last_frame() {
    let mut model = Model::new(counting(FrameKind::Tumbling { size: 10 }), 1_000);
    assert_eq!(model.log.watermark(), None);
    model.take(&[row("a", "k1", 100), row("b", "k2", 50)]);
    assert_eq!(model.log.watermark(), Some(50));
    model.tick(1_005);
    assert_after(&mut model, &[row("a", "k3", 101)], &[]);
    model.tick(1_009);
    assert_eq!(model.log.watermark(), Some(50));
    model.tick(1_010);
    assert_after(&mut model, &[], &["50..60 1"]);
    assert_eq!(model.log.watermark(), Some(101), "only the other source is active");
    model.tick(1_016);
    assert_eq!(model.log.watermark(), Some(101), "both are silent, and no frame begins meanwhile");
    model.tick(1_060);
    assert_after(&mut model, &[row("b", "k4", 60)], &["50..60 1", "100..110 2"]);
    assert_eq!((model.log.watermark(), dead(&model)), (Some(110), vec!["k4"]));
}

#[test]
fn by_arrival_the_watermark_is_a_clock_that_stands_still() {
    let mut window = counting(FrameKind::Tumbling { size: 10 });
    window.event_clock = None;
    let mut model = Model::new(window, 1_003);
    assert_after(&mut model, &[row("a", "k1", 5)], &[]);
    model.tick(998);
    assert_after(&mut model, &[row("a", "k2", 5)], &[]);
    let stamped = WindowMessage { timestamp: Some(999), ..row("a", "k3", 5) };
    model.tick(1_010);
    assert_after(&mut model, &[stamped], &["1000..1010 2"]);
    assert_eq!(dead(&model), ["k3"]);
}

#[test]
fn a_row_without_a_time_leaves_its_frame() {
    let mut window = counting(FrameKind::Tumbling { size: 10 });
    (window.emits_updates, window.is_partitioned, window.key_column) = (true, true, Some("c"));
    window.query = "SELECT payload->>'c' AS c, window_end - window_start AS n FROM orders".to_owned();
    let mut model = Model::new(window, 1_000);
    assert_after(&mut model, &[row("a", "k1", 3)], &["0..10 10?"]);
    assert_eq!(model.results().keys().collect::<Vec<_>>(), [r#"["1970-01-01T00:00:00Z","emea",7]"#]);
    assert_after(&mut model, &[WindowMessage { at: None, ..row("a", "k1", 4) }], &[]);
    assert_eq!(dead(&model), ["k1"]);
}

#[test]
fn a_frame_whose_rows_are_filtered_out_counts_none_and_a_frozen_result_keeps_its_query() {
    let mut window = counting(FrameKind::Tumbling { size: 10 });
    window.query += " WHERE key = 'nobody'";
    let mut model = Model::new(window.clone(), 1_000);
    assert_after(&mut model, &[row("a", "k1", 3), row("a", "k2", 12)], &["0..10 0"]);
    window.query = "SELECT count(*) + 40 AS n FROM orders".to_owned();
    model.redefine(&window);
    assert_after(&mut model, &[row("a", "k3", 20)], &["0..10 0", "10..20 41"]);
}

#[test]
fn with_other_frames_a_window_begins_anew_with_the_rows_that_are_there() {
    let window = counting(FrameKind::Tumbling { size: 10 });
    let mut model = Model::new(window.clone(), 1_000);
    assert_after(&mut model, &[row("a", "k1", 3), row("a", "k2", 12)], &["0..10 1"]);
    model.redefine(&Definition { kind: FrameKind::Tumbling { size: 4 }, ..window });
    assert_after(&mut model, &[], &["0..4 1"]);
    assert_after(&mut model, &[row("a", "k3", 17)], &["0..4 1", "12..16 1"]);
}

#[test]
fn local_frames_follow_the_clock_on_the_wall() {
    let frames = |kind, zone, offset, instant: &str| {
        let window = Definition { zone: Some(zone), offset, ..counting(kind) };
        let query = format!("SELECT unixepoch('{instant}')");
        let instant = Oracle::new([]).value(&query).as_i64().expect("a moment");
        let frames = window.frames_at(instant);
        frames.into_iter().map(|(start, end)| format!("{} {}", utc(start), utc(end))).collect::<Vec<_>>()
    };
    let (hour, day) = (3_600, 86_400);
    let days = FrameKind::Tumbling { size: day };
    let weeks = FrameKind::Tumbling { size: 7 * day };
    let halves = FrameKind::Sliding { size: day, slide: day / 2 };
    for (kind, zone, offset, instant, expected) in [
        (days, Zone::Berlin, 0, "2026-03-29 12:00", &["2026-03-28T23:00:00Z 2026-03-29T22:00:00Z"][..]),
        (days, Zone::Berlin, 0, "2026-10-25 22:59:59", &["2026-10-24T22:00:00Z 2026-10-25T23:00:00Z"]),
        (days, Zone::Berlin, hour / 2, "2026-10-25 23:00", &["2026-10-24T22:30:00Z 2026-10-25T23:30:00Z"]),
        (days, Zone::Kolkata, 0, "2026-03-28 18:30", &["2026-03-28T18:30:00Z 2026-03-29T18:30:00Z"]),
        (weeks, Zone::NewYork, 0, "2026-11-01 12:00", &["2026-10-26T04:00:00Z 2026-11-02T05:00:00Z"]),
        (weeks, Zone::NewYork, 0, "2026-03-08 07:00", &["2026-03-02T05:00:00Z 2026-03-09T04:00:00Z"]),
        (
            halves,
            Zone::NewYork,
            0,
            "2026-11-01 05:30",
            &["2026-10-31T16:00:00Z 2026-11-01T17:00:00Z", "2026-11-01T04:00:00Z 2026-11-02T05:00:00Z"],
        ),
    ] {
        assert_eq!(frames(kind, zone, offset, instant), expected, "{zone:?} at {instant}");
    }
}
