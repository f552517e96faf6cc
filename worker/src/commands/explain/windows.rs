//! The time of a window: how it is cut, by which clock, when frames close, and what a change costs.

use jiff::Timestamp;
use litejoin_crds::plan::TimeCut;
use litejoin_crds::window::WindowEmit;
use serde::Serialize;
use serde_json::Value;

use crate::window::{CheckedWindow, Grouping};

/// The report on the time of a window.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExplainedTime {
    /// How time is cut.
    cut: String,
    /// The clock that it follows.
    clock: String,
    /// When results are sent, and until when rows are taken.
    emit: String,
    /// The rows that are read for a change.
    cost: String,
    /// How far time has come in the running worker, and when the next frame closes.
    now: Option<String>,
}

impl ExplainedTime {
    /// `reported` is what `/status` of a running worker has of the window.
    pub(super) fn new(window: &CheckedWindow, reported: Option<&Value>) -> Self {
        Self {
            cut: cut(window),
            clock: clock(window),
            emit: emit(window),
            cost: cost(window),
            now: reported.map(|reported| now(&reported["window"])),
        }
    }

    /// Returns the lines for people, each with its name.
    pub(super) fn lines(&self) -> Vec<(&'static str, &str)> {
        let always =
            [("frames", &self.cut), ("clock", &self.clock), ("sends", &self.emit), ("a change", &self.cost)];
        let always = always.map(|(name, line)| (name, line.as_str()));
        always.into_iter().chain(self.now.as_deref().map(|now| ("now", now))).collect()
    }
}

fn cut(window: &CheckedWindow) -> String {
    let kind = match &window.cut {
        TimeCut::Session { gap } => format!("sessions that end {} after their last message", span(*gap)),
        TimeCut::Grid { size, slide, offset, timezone } => {
            let place = timezone.as_deref().unwrap_or("UTC");
            let shift = if *offset == 0 { String::new() } else { format!(", shifted by {}", span(*offset)) };
            if size == slide {
                format!("{}, one after another, by the clock of {place}{shift}", span(*size))
            } else {
                format!("{}, one every {}, by the clock of {place}{shift}", span(*size), span(*slide))
            }
        }
    };
    match window.grouping {
        Grouping::Partition => format!("{kind}; for each value of {}", window.group.sql()),
        Grouping::Key | Grouping::Whole => kind,
    }
}

fn clock(window: &CheckedWindow) -> String {
    let Some(clock) = &window.event_time else {
        return "the worker's: messages count by their time of arrival".to_owned();
    };
    let time = match &clock.path {
        Some(path) => format!("{path} of each message"),
        None => "the timestamp of each message".to_owned(),
    };
    format!(
        "{time}: the watermark is the newest time seen of the source that is behind, less {}; a source without a message \
         for {} holds it back no more",
        span(clock.watermark_delay),
        span(clock.idle_timeout)
    )
}

fn emit(window: &CheckedWindow) -> String {
    let when = match window.emit {
        WindowEmit::Final => "when a frame closes",
        WindowEmit::Update => "at each change, and when a frame closes",
    };
    match window.allowed_lateness() {
        0 => format!("{when}; later messages are dead letters"),
        lateness => {
            format!("{when}; again for messages up to {} late, later ones are dead letters", span(lateness))
        }
    }
}

fn cost(window: &CheckedWindow) -> String {
    match (&window.aggregates, window.grouping) {
        (Some(_), _) => "costs itself: aggregates are kept for each stretch that frames share".to_owned(),
        (None, Grouping::Whole) => "costs the messages of its frames".to_owned(),
        (None, Grouping::Partition) => "costs the messages of its frames and its partition".to_owned(),
        (None, Grouping::Key) => "costs the messages of its frames with its result key".to_owned(),
    }
}

fn now(reported: &Value) -> String {
    let time = |name: &str| {
        let seconds = reported[name].as_i64()?;
        Some(Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |time| time.to_string()))
    };
    let Some(watermark) = time("watermark") else { return "no time was seen yet".to_owned() };
    match time("nextEnd") {
        None => format!("the watermark is at {watermark}; no frame is open"),
        Some(end) => format!("the watermark is at {watermark}; the next frame closes at {end}"),
    }
}

/// Returns a duration as people write it.
fn span(seconds: i64) -> String {
    match seconds {
        0 => "0s".to_owned(),
        _ if seconds % 86_400 == 0 => format!("{}d", seconds / 86_400),
        _ if seconds % 3_600 == 0 => format!("{}h", seconds / 3_600),
        _ if seconds % 60 == 0 => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}
