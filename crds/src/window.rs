//! `Window`: a SELECT over the messages of one topic in one stretch of time.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::defaults;
use crate::duration::DurationText;
use crate::names::NAME_PATTERN;
use crate::reference::PipelineRef;
use crate::status::ChildStatus;

/// A window that stands alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, CustomResource, JsonSchema)]
#[kube(
    group = "litejoin.io",
    version = "v1alpha1",
    kind = "Window",
    plural = "windows",
    shortname = "ljw",
    category = "litejoin",
    namespaced,
    status = "ChildStatus",
    derive = "PartialEq",
    selectable = ".spec.pipelineRef.name",
    doc = "A SELECT over the messages of one topic in one stretch of time: tumbling, sliding or session.",
    printcolumn(name = "Pipeline", type_ = "string", json_path = ".spec.pipelineRef.name"),
    printcolumn(name = "Type", type_ = "string", json_path = ".spec.type"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type=='Programmed')].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct WindowSpec {
    /// The Pipeline that the window belongs to.
    pub pipeline_ref: PipelineRef,
    /// The query, and the windows of time that it runs over.
    #[serde(flatten)]
    pub window: WindowBody,
}

/// A window inside a Pipeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InlineWindow {
    /// Name of the window, unique among topics, joins and windows of the pipeline; queries read it by this name.
    #[schemars(regex(pattern = NAME_PATTERN), length(max = 63))]
    pub name: String,
    /// The query, and the windows of time that it runs over.
    #[serde(flatten)]
    pub window: WindowBody,
}

/// The query, and the windows of time that it runs over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::rules::window_body()))]
pub struct WindowBody {
    /// How time is cut: `tumbling` (one after another, needs `size`), `sliding` (overlapping, needs `size` and
    /// `slide`), `session` (until nothing comes for a while, needs `gap`).
    #[serde(rename = "type")]
    pub kind: WindowKind,
    /// Topic whose messages are aggregated, or the join or window whose rows are.
    #[schemars(regex(pattern = NAME_PATTERN), length(max = 63))]
    pub topic: String,
    /// One SELECT over that topic, with the columns `window_start` and `window_end` (seconds since 1970); it sees the
    /// messages of one window.
    #[schemars(length(min = 1, max = 65536))]
    pub query: String,
    /// Length of a tumbling or sliding window, in whole seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<DurationText>,
    /// Time from the start of a sliding window to the start of the next, in whole seconds, at most `size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slide: Option<DurationText>,
    /// Time without a message that ends a session, in whole seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap: Option<DurationText>,
    /// Time by which tumbling and sliding windows begin after midnight of 1 January 1970, in whole seconds; less than
    /// `size`, or `slide` where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<DurationText>,
    /// IANA name of the place by whose clock tumbling and sliding windows begin and end, such as `America/New_York`:
    /// days have 23 to 25 hours when clocks change, and weeks begin on Monday. UTC where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub timezone: Option<String>,
    /// SQL expression over a message, such as `payload->>'user'`: the messages of each value have windows of their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub partition_by: Option<String>,
    /// Output column whose value, with the window, is the key of a result; the window alone where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub key_column: Option<String>,
    /// When results are sent: when the window is `final`, or on every `update` too.
    #[serde(default)]
    pub emit: WindowEmit,
    /// How many windows without a message a key gets a result without rows for, after one with rows; at most 1000.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = 1000))]
    pub emit_empty: u32,
    /// Time that messages carry; without it the time of arrival counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event_time: Option<EventTime>,
    /// Sinks that take the window's results; a sink may name the window instead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)), extend("x-kubernetes-list-type" = "set"))]
    pub sinks: Vec<String>,
}

/// How time is cut into windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WindowKind {
    /// One after another.
    Tumbling,
    /// Overlapping.
    Sliding,
    /// Until nothing comes for a while.
    Session,
}

/// When the results of a window are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WindowEmit {
    /// Once, when no more messages are taken.
    #[default]
    Final,
    /// Whenever they change.
    Update,
}

/// Time that messages carry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::rules::event_time()))]
pub struct EventTime {
    /// SQLite JSON path of the time in the payload, such as `$.created_at`; where absent, the timestamp that the message
    /// came with.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub path: Option<String>,
    /// How the time in the payload is written.
    #[serde(default)]
    pub unit: TimeUnit,
    /// How far the watermark stays behind the newest time seen.
    #[serde(default = "default_watermark_delay")]
    pub watermark_delay: DurationText,
    /// Time without a message after which a partition of a source holds the watermark back no more; once all are
    /// silent, the watermark goes on with the clock.
    #[serde(default = "default_idle_timeout")]
    pub idle_timeout: DurationText,
    /// How long a window takes messages after the watermark has passed its end; later ones are dead letters.
    #[serde(default = "default_allowed_lateness")]
    pub allowed_lateness: DurationText,
    /// What becomes of a message whose time is before that of the message with its key that is there: it takes its
    /// place (`overwrite`) or changes nothing, for all that read the topic (`ignore`).
    #[serde(default)]
    pub on_stale: OnStale,
}

/// What becomes of a message that is older than the one it would replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnStale {
    /// It takes its place.
    #[default]
    Overwrite,
    /// It changes nothing.
    Ignore,
}

/// How a time is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TimeUnit {
    /// A text such as `2026-01-01T09:30:00+01:00`.
    #[default]
    Rfc3339,
    /// A number of seconds since the Unix epoch.
    Seconds,
    /// A number of milliseconds since the Unix epoch.
    Milliseconds,
    /// A number of microseconds since the Unix epoch.
    Microseconds,
}

impl TimeUnit {
    /// Returns how many of the unit make a second; `None` for a text.
    pub fn per_second(self) -> Option<i64> {
        match self {
            Self::Rfc3339 => None,
            Self::Seconds => Some(1),
            Self::Milliseconds => Some(1_000),
            Self::Microseconds => Some(1_000_000),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn default_watermark_delay() -> DurationText {
    defaults::WINDOW_WATERMARK_DELAY.into()
}

fn default_idle_timeout() -> DurationText {
    defaults::WINDOW_IDLE_TIMEOUT.into()
}

fn default_allowed_lateness() -> DurationText {
    defaults::WINDOW_ALLOWED_LATENESS.into()
}
