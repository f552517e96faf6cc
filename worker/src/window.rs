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

use std::collections::BTreeMap;
use std::sync::Arc;

use litejoin_crds::plan::TimeCut;

use self::check::grid_of;
use self::grid::Grid;
use self::panes::Panes;
use self::space::FrameSpace;
use crate::join::CheckedJoin;
pub(crate) use crate::join::window::{CheckedWindow, Grouping};
use crate::results::event::JoinId;
pub(crate) use crate::results::frames::Frame;
use crate::storage::shard::PartitionTime;
use crate::storage::topics::TopicId;

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

impl TimeAxis {
    /// Returns the frames of a time, the earliest first; none for sessions, which are made by rows.
    fn frames(&self, time: i64) -> Vec<Frame> {
        match self {
            Self::Grid(grid) => grid.frames(time),
            Self::Session(_) => Vec::new(),
        }
    }

    /// Returns the pane of a time; sessions have none.
    fn pane(&self, time: i64) -> Option<Frame> {
        match self {
            Self::Grid(grid) => Some(grid.pane(time)),
            Self::Session(_) => None,
        }
    }

    /// Returns the greatest end of the frames of a row's time.
    fn last_end(&self, time: i64) -> i64 {
        match self {
            Self::Grid(grid) => grid.last_end(time),
            Self::Session(gap) => time.saturating_add(*gap),
        }
    }
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
    /// What makes its frames.
    basis: String,
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
            basis: window.basis(),
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
