//! A window as the planner leaves it: how time is cut, how the rows of a frame are found, and what is kept of them.

use std::collections::BTreeSet;

use litejoin_crds::plan::{EventClock, TimeCut};
use litejoin_crds::window::WindowEmit;

use super::plan::RowExpr;
use super::plan::window::PaneAggregates;
use crate::storage::shard::{EventTimes, Index, IndexedTime};

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

    /// Returns a text of what makes frames: of two windows with the same text, frames and what is frozen are the same.
    pub(crate) fn basis(&self) -> String {
        let partition = match self.grouping {
            Grouping::Partition => self.group.sql(),
            Grouping::Key | Grouping::Whole => "none".to_owned(),
        };
        let clock = self.event_times().map_or_else(|| "arrival".to_owned(), |times| times.name());
        format!(
            "topic {}\ncut {:?}\ntime {}\nclock {clock}\npartition {partition}",
            self.topic,
            self.cut,
            self.time.sql()
        )
    }

    /// Returns a text on which the results depend beside the query.
    pub(crate) fn definition(&self) -> String {
        let fields: BTreeSet<String> = [
            self.basis(),
            format!("group {:?} {}", self.grouping, self.group.sql()),
            format!("key {}", self.has_key),
            format!("emit {:?} {}", self.emit, self.emit_empty),
        ]
        .into();
        fields.into_iter().collect::<Vec<_>>().join("\n")
    }
}
