//! A window as its author writes it, and the frames that hold a moment.

use serde_json::{Value, json};

use super::zone::Zone;

/// The topic of every window.
pub const TOPIC: &str = "orders";

/// Seconds between moments at which a frame may begin by the clock of a place: those clocks are off by half hours.
const LOCAL_STEP: i64 = 1_800;

/// The most by which a frame is longer by the clock of a place, in seconds.
const CHANGE_MAX: i64 = 3_600;

/// From midnight of 1 January 1970, a Thursday, to the next Monday, in seconds.
const FIRST_MONDAY: i64 = 4 * 86_400;

const WEEK: i64 = 7 * 86_400;

/// A window. All durations are in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    pub name: String,
    pub kind: FrameKind,
    pub offset: i64,
    pub zone: Option<Zone>,
    /// Whether the rows of each region have frames of their own.
    pub is_partitioned: bool,
    pub key_column: Option<&'static str>,
    /// Whether results are told before their frame is closed.
    pub emits_updates: bool,
    /// None is the time of arrival.
    pub event_clock: Option<EventClock>,
    pub query: String,
}

/// How time is cut into frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    Tumbling { size: i64 },
    Sliding { size: i64, slide: i64 },
    Session { gap: i64 },
}

/// The time that rows bring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EventClock {
    /// How the time in the payload is written; none is the row's own timestamp.
    pub unit: Option<TimeUnit>,
    pub delay: i64,
    pub idle_timeout: i64,
    pub lateness: i64,
}

/// How a time is written. A payload has each under its name, in an object `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeUnit {
    Rfc3339,
    Seconds,
    Milliseconds,
    Microseconds,
}

impl TimeUnit {
    pub const ALL: [Self; 4] = [Self::Rfc3339, Self::Seconds, Self::Milliseconds, Self::Microseconds];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rfc3339 => "rfc3339",
            Self::Seconds => "seconds",
            Self::Milliseconds => "milliseconds",
            Self::Microseconds => "microseconds",
        }
    }
}

impl Definition {
    /// Returns start and end of each tumbling or sliding frame that holds an instant.
    ///
    /// # Panics
    /// If it is a session window.
    pub fn frames_at(&self, instant: i64) -> Vec<(i64, i64)> {
        let (size, slide) = match self.kind {
            FrameKind::Tumbling { size } => (size, size),
            FrameKind::Sliding { size, slide } => (size, slide),
            FrameKind::Session { .. } => panic!("a session is found by its rows"),
        };
        let (step, slack) = if self.zone.is_some() { (LOCAL_STEP, CHANGE_MAX) } else { (1, 0) };
        let monday = if self.zone.is_some() && size % WEEK == 0 { FIRST_MONDAY } else { 0 };
        let wall = |instant| self.zone.map_or(instant, |zone| zone.wall(instant));
        let mut frames = Vec::new();
        let mut start = (instant - size - slack).div_euclid(step) * step;
        while start <= instant {
            if (wall(start) - self.offset - monday).rem_euclid(slide) == 0 {
                let mut end = start + step;
                while wall(end) < wall(start) + size {
                    end += step;
                }
                if instant < end {
                    frames.push((start, end));
                }
            }
            start += step;
        }
        frames
    }

    /// Whether a window has the frames of another one with the same clock and partitions.
    pub fn has_same_frames(&self, other: &Self) -> bool {
        (self.kind, self.offset, self.zone) == (other.kind, other.offset, other.zone)
    }

    /// The window as it is written into a manifest.
    pub fn manifest(&self) -> Value {
        let seconds = |duration: i64| json!(format!("{duration}s"));
        let (kind, mut durations) = match self.kind {
            FrameKind::Tumbling { size } => ("tumbling", vec![("size", size)]),
            FrameKind::Sliding { size, slide } => ("sliding", vec![("size", size), ("slide", slide)]),
            FrameKind::Session { gap } => ("session", vec![("gap", gap)]),
        };
        durations.extend((self.offset != 0).then_some(("offset", self.offset)));
        let mut window = json!({
            "name": self.name,
            "type": kind,
            "topic": TOPIC,
            "query": self.query,
            "emit": if self.emits_updates { "update" } else { "final" },
            "sinks": ["live"],
        });
        let mut set = |field: &str, value: Value| window[field] = value;
        for (field, duration) in durations {
            set(field, seconds(duration));
        }
        if let Some(zone) = self.zone {
            set("timezone", json!(zone.name()));
        }
        if self.is_partitioned {
            set("partitionBy", json!("payload->>'r'"));
        }
        if let Some(column) = self.key_column {
            set("keyColumn", json!(column));
        }
        if let Some(clock) = self.event_clock {
            let mut event_time = json!({
                "watermarkDelay": seconds(clock.delay),
                "idleTimeout": seconds(clock.idle_timeout),
                "allowedLateness": seconds(clock.lateness),
            });
            if let Some(unit) = clock.unit {
                event_time["path"] = json!(format!("$.at.{}", unit.name()));
                event_time["unit"] = json!(unit.name());
            }
            set("eventTime", event_time);
        }
        window
    }
}
