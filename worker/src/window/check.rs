//! From the manifest to a window that can run: its query is checked by SQLite, and its expressions by the planner.

use std::sync::Arc;

use litejoin_crds::plan::{Retention, TimeCut, Window};

use super::grid::Grid;
use super::space;
use super::{CheckedWindow, Grouping};
use crate::join::CheckedJoin;
use crate::join::check::{self, QueryError};
use crate::join::plan::window::{PaneAggregates, key_of_row, no_group, pane_aggregates, row_of, time_of_row};
use crate::storage::sqlite::{open_memory, quoted};

/// Checks the windows. Reports all errors at once.
pub(crate) fn check(windows: &[Window], retention: &Retention) -> Result<Vec<CheckedJoin>, Vec<QueryError>> {
    let (mut checked, mut errors) = (Vec::new(), Vec::new());
    for window in windows {
        match check_one(window, retention) {
            Ok(join) => checked.push(join),
            Err(found) => errors.extend(found),
        }
    }
    if errors.is_empty() { Ok(checked) } else { Err(errors) }
}

fn check_one(window: &Window, retention: &Retention) -> Result<CheckedJoin, Vec<QueryError>> {
    let wrong = |field, message| QueryError { place: window.place.clone(), field, line: 0, message };
    let mut errors = Vec::new();
    let event_time = window.event_time.as_ref();
    let unit = event_time.map(|event_time| event_time.unit).unwrap_or_default();
    let path = event_time.and_then(|event_time| event_time.path.as_deref());
    let time = time_of_row(path, unit).map_err(|message| errors.push(wrong("eventTime.path", message))).ok();
    let partition = window.partition_by.as_deref().map(|sql| {
        row_of(sql).ok_or_else(|| {
            let message = format!(
                "got {sql:?}, allowed an expression over one message that an index can hold: a column, a field of the \
                 payload (payload->>'user'), or a simple function of these"
            );
            errors.push(wrong("partitionBy", message));
        })
    });
    let join = check::check_window(window).map_err(|error| errors.push(error)).ok();
    let (Some(time), Some(mut join), true) = (time, join, errors.is_empty()) else { return Err(errors) };
    let partition = partition.and_then(Result::ok);

    let is_session = matches!(window.cut, TimeCut::Session { .. });
    let key = (!is_session && window.key_column.is_some()).then(|| key_of_row(&join)).flatten();
    let (grouping, group) = match (&partition, key) {
        (Some(partition), _) => (Grouping::Partition, partition.clone()),
        (None, Some(key)) => (Grouping::Key, key),
        (None, None) => (Grouping::Whole, no_group()),
    };
    let aggregates = grid_of(&window.cut)
        .and_then(|grid| Some((pane_aggregates(&join, &time, partition.as_ref())?, grid)))
        .filter(|(aggregates, grid)| is_accepted(&window.topic, aggregates, grid))
        .map(|(aggregates, _)| aggregates);
    join.window = Some(Arc::new(CheckedWindow {
        topic: window.topic.clone(),
        cut: window.cut.clone(),
        emit: window.emit,
        emit_empty: window.emit_empty,
        event_time: window.event_time.clone(),
        time,
        group,
        grouping,
        has_key: window.key_column.is_some(),
        aggregates,
        results_kept: i64::try_from(retention.duration.as_secs()).unwrap_or(i64::MAX),
        emit_expiry: retention.emit_expiry,
    }));
    Ok(join)
}

/// Returns the grid of a window; `None` for sessions.
pub(crate) fn grid_of(cut: &TimeCut) -> Option<Grid> {
    match cut {
        TimeCut::Grid { size, slide, offset, timezone } => {
            Grid::new(*size, *slide, *offset, timezone.as_deref())
        }
        TimeCut::Session { .. } => None,
    }
}

/// Returns whether SQLite accepts what the planner has written.
fn is_accepted(topic: &str, aggregates: &PaneAggregates, grid: &Grid) -> bool {
    let try_out = || -> rusqlite::Result<()> {
        let memory = open_memory()?;
        space::install(&memory, Some(grid))?;
        memory.execute_batch(&space::table_sql(&quoted(topic)))?;
        memory.execute_batch(&aggregates.plan.table_sql())?;
        memory.prepare(&aggregates.rows_sql)?;
        memory.prepare(&aggregates.plan.results_sql)?;
        Ok(())
    };
    try_out().is_ok()
}
