//! Windows: a query over the rows of one topic in each stretch of time. The folder has no clock and no sockets; callers
//! hand in moments, readers and a writer.
//!
//! ```text
//! grid, session:   the time of a row ─► its frames
//! watermark:       event times of partitions and the clock ─► how far time has come
//! check, plan:     query ─► how the rows of a frame are found, and which aggregates are kept by pane
//! evaluation:      changed rows ─► frames ─► the user's query on the rows of each ─► differences
//!                  the watermark ─► frames that close, and frames that freeze
//! ```
//! The semantics are in the README of the folder.

pub(crate) mod check;
pub(crate) mod evaluation;
pub(crate) mod grid;
mod panes;
mod results;
mod rows;
pub(crate) mod session;
pub(crate) mod space;
pub(crate) mod watermark;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use litejoin_crds::plan::{EventClock, TimeCut};
use litejoin_crds::window::WindowEmit;

use self::check::grid_of;
use self::grid::Grid;
use self::panes::Panes;
use self::space::FrameSpace;
use crate::join::CheckedJoin;
use crate::join::plan::RowExpr;
use crate::join::plan::window::PaneAggregates;
use crate::results::event::JoinId;
pub(crate) use crate::results::frames::Frame;
use crate::storage::shard::{EventTimes, Index, IndexedTime, PartitionTime};
use crate::storage::topics::TopicId;

/// A window whose query and expressions were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CheckedWindow {
    /// The topic of its rows; the feed of a join or window, if one of these is its topic.
    pub(crate) topic: String,
    /// The statement for the view by which the query reads the rows of a feed; `None` for other topics.
    pub(crate) view: Option<String>,
    pub(crate) cut: TimeCut,
    pub(crate) emit: WindowEmit,
    pub(crate) emit_empty: u32,
    pub(crate) event_time: Option<EventClock>,
    /// The time of a row, in seconds; NULL for a row without one.
    pub(crate) time: RowExpr,
    /// The value by which the rows of a frame are looked up beside their time.
    pub(crate) group: RowExpr,
    pub(crate) grouping: Grouping,
    /// Whether a column of the query is part of the result key.
    pub(crate) has_key: bool,
    /// `None` if frames are evaluated from their rows.
    pub(crate) aggregates: Option<PaneAggregates>,
    /// Seconds for which results are kept after the end of their frame, by the window's own time.
    pub(crate) results_kept: i64,
    /// Whether sinks are told of results that leave then.
    pub(crate) emit_expiry: bool,
}

/// What a row's group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Grouping {
    /// All rows of the topic are in one group.
    Whole,
    /// `partitionBy`.
    Partition,
    /// The result key, so that a change costs the rows of its key.
    Key,
}

impl CheckedWindow {
    /// Returns the index by which rows of a frame are found.
    pub(crate) fn index(&self) -> Index {
        Index {
            topic: self.topic.clone(),
            expression: self.group.sql(),
            parameters: self.group.parameters(),
            fields: self.group.fields().cloned(),
            time: Some(IndexedTime {
                expression: self.time.sql(),
                parameters: self.time.parameters(),
                fields: self.time.fields().cloned(),
            }),
        }
    }

    /// Returns the event times that its watermark follows; `None` if it follows the clock.
    pub(crate) fn event_times(&self) -> Option<EventTimes> {
        self.event_time.as_ref().map(|_| EventTimes {
            topic: self.topic.clone(),
            expression: self.time.sql(),
            parameters: self.time.parameters(),
        })
    }

    /// Returns whether the time of a row is its `timestamp`.
    pub(crate) fn reads_timestamp(&self) -> bool {
        self.event_time.as_ref().is_none_or(|event_time| event_time.path.is_none())
    }

    /// Returns how long a closed frame takes rows, in seconds.
    pub(crate) fn allowed_lateness(&self) -> i64 {
        self.event_time.as_ref().map_or(0, |event_time| event_time.allowed_lateness)
    }

    /// Returns a text on which the results depend beside the query.
    pub(crate) fn definition(&self) -> String {
        let fields: BTreeSet<String> = [
            format!("cut {:?}", self.cut),
            format!("time {}", self.time.sql()),
            format!("group {:?} {}", self.grouping, self.group.sql()),
            format!("key {}", self.has_key),
            format!("emit {:?} {}", self.emit, self.emit_empty),
        ]
        .into();
        fields.into_iter().collect::<Vec<_>>().join("\n")
    }
}

/// A window and what is known of its frames.
pub(crate) struct WindowEvaluation {
    join: Arc<CheckedJoin>,
    window: Arc<CheckedWindow>,
    id: JoinId,
    topic: TopicId,
    cut: TimeAxis,
    space: FrameSpace,
    statements: Statements,
    /// `None` if frames are evaluated from their rows.
    panes: Option<Panes>,
    /// How far time has come, as far as rows are concerned.
    reached: Option<i64>,
    /// The end of the frame that closes next; unknown once frames were added.
    next_end: Option<Option<i64>>,
    /// The newest event time of each partition of a source, as of the last epoch.
    partitions: BTreeMap<String, PartitionTime>,
    /// By partition, the newest event time of messages that are stored with all before them, as stored.
    sure: BTreeMap<Arc<str>, i64>,
    /// Whether frames are due beside those of the changes.
    has_more: bool,
    /// The moment at which stored results have to be looked through for those that leave.
    next_expiry: Option<i64>,
    /// Whether `reached` is what is stored, or later.
    is_known: bool,
    /// Why a frame could not be evaluated.
    error: Option<String>,
    results: u64,
}

/// How time is cut.
pub(crate) enum TimeAxis {
    Grid(Grid),
    /// By the longest gap within a session.
    Session(i64),
}

/// Statements on a shard, and on images of rows.
struct Statements {
    /// Rows of a frame: key, payload, timestamp, `_change`.
    rows: String,
    times: String,
    values_and_times: String,
    event_times: &'static str,
    /// Group and time of a row given as parameters.
    image: String,
    /// The name of its event clock; `arrival` if it follows the clock.
    clock: String,
}

/// A row that no frame takes.
pub(crate) struct RefusedRow<'a> {
    pub(crate) key: &'a str,
    pub(crate) payload: &'a str,
    pub(crate) reason: String,
}

/// The moments of an epoch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Moments {
    /// Seconds since the Unix epoch.
    pub(crate) now: i64,
    /// What arrives from here on has no earlier timestamp.
    pub(crate) arrived: i64,
}

impl WindowEvaluation {
    /// Prepares the tables and statements of a window.
    pub(crate) fn new(join: Arc<CheckedJoin>, id: JoinId, topic: TopicId) -> rusqlite::Result<Self> {
        let window = Arc::clone(join.window.as_ref().expect("it is a window"));
        let cut = match (&window.cut, grid_of(&window.cut)) {
            (TimeCut::Session { gap }, _) => TimeAxis::Session(*gap),
            (TimeCut::Grid { .. }, Some(grid)) => TimeAxis::Grid(grid),
            (TimeCut::Grid { .. }, None) => unreachable!("the name of the place was checked"),
        };
        let grid = match &cut {
            TimeAxis::Grid(grid) => Some(grid),
            TimeAxis::Session(_) => None,
        };
        let space = FrameSpace::new(&window, grid)?;
        let index = window.index();
        let statements = Statements {
            rows: index.select_frame("key, payload, timestamp, _change"),
            times: index.times(),
            values_and_times: index.values_and_times(),
            event_times: "SELECT partition, newest, arrived FROM _event_times WHERE clock = ?1",
            image: format!("SELECT {}, {}", window.group.parameters(), window.time.parameters()),
            clock: window.event_times().map_or_else(|| "arrival".to_owned(), |times| times.name()),
        };
        let panes = window.aggregates.clone().map(Panes::new);
        Ok(Self {
            join,
            window,
            id,
            topic,
            cut,
            space,
            statements,
            panes,
            reached: None,
            next_end: None,
            partitions: BTreeMap::new(),
            sure: BTreeMap::new(),
            has_more: true,
            next_expiry: None,
            is_known: false,
            error: None,
            results: 0,
        })
    }
}
