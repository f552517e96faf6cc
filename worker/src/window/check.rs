//! From the manifest to a window that can run: its query is checked by SQLite, and its expressions by the planner.

use std::sync::Arc;
use std::time::Duration;

use litejoin_crds::plan::{Retention, TimeCut, Window};

use super::grid::Grid;
use super::space;
use super::{CheckedWindow, Grouping};
use crate::join::CheckedJoin;
use crate::join::check::{self, QueryError};
use crate::join::node;
use crate::join::plan::window::{PaneAggregates, key_of_row, no_group, pane_aggregates, row_of, time_of_row};
use crate::storage::sqlite::{open_memory, quoted};
use crate::storage::topics::feed_of;

/// Checks a window, whose topic is the output of `node` if there is one. Reports all errors at once.
pub(crate) fn check(
    window: &Window,
    node: Option<&CheckedJoin>,
    retention: &Retention,
) -> Result<CheckedJoin, Vec<QueryError>> {
    let wrong = |field, message| QueryError { place: window.place.clone(), field, line: 0, message };
    let mut errors = Vec::new();
    let event_time = window.event_time.as_ref();
    let unit = event_time.map(|event_time| event_time.unit).unwrap_or_default();
    let path = event_time.and_then(|event_time| event_time.path.as_deref());
    let time = time_of_row(path, unit).map_err(|message| errors.push(wrong("eventTime.path", message))).ok();
    let partition = window.partition_by.as_deref().map(|sql| {
        let column = node.and_then(|node| node::value_of(node, sql.trim()));
        row_of(column.as_deref().unwrap_or(sql)).ok_or_else(|| {
            errors.push(wrong("partitionBy", partition_refused(sql, node)));
        })
    });
    let join = check::check_window(window, node).map_err(|error| errors.push(error)).ok();
    let (Some(time), Some(mut join), true) = (time, join, errors.is_empty()) else { return Err(errors) };
    let partition = partition.and_then(Result::ok);

    let is_session = matches!(window.cut, TimeCut::Session { .. });
    let view = node.map(node::select_in_frame);
    let queries = node.iter().zip(&view).map(|(node, sql)| (node.name.to_ascii_lowercase(), sql.clone()));
    let queries = queries.collect();
    let key = (!is_session && window.key_column.is_some()).then(|| key_of_row(&join, &queries)).flatten();
    let (grouping, group) = match (&partition, key) {
        (Some(partition), _) => (Grouping::Partition, partition.clone()),
        (None, Some(key)) => (Grouping::Key, key),
        (None, None) => (Grouping::Whole, no_group()),
    };
    let topic = node.map_or_else(|| window.topic.clone(), |node| feed_of(&node.name));
    // The planner splits a query over a topic alone.
    let aggregates = grid_of(&window.cut)
        .filter(|_| node.is_none())
        .and_then(|grid| Some((pane_aggregates(&join, &time, partition.as_ref())?, grid)))
        .filter(|(aggregates, grid)| is_accepted(aggregates, grid))
        .map(|(aggregates, _)| aggregates);
    join.window = Some(Arc::new(CheckedWindow {
        topic,
        view: node.zip(view).map(|(node, sql)| format!("CREATE VIEW {} AS {sql}", quoted(&node.name))),
        cut: window.cut.clone(),
        emit: window.emit,
        emit_empty: window.emit_empty,
        event_time: window.event_time.clone(),
        time,
        group,
        grouping,
        has_key: window.key_column.is_some(),
        aggregates,
        results_kept: seconds(retention.of(&window.name)),
        emit_expiry: retention.emit_expiry,
    }));
    Ok(join)
}

/// An age in seconds; for ever is longer than any.
fn seconds(age: Option<Duration>) -> i64 {
    age.and_then(|age| i64::try_from(age.as_secs()).ok()).unwrap_or(i64::MAX)
}

fn partition_refused(sql: &str, node: Option<&CheckedJoin>) -> String {
    match node {
        None => format!(
            "got {sql:?}, allowed an expression over one message that an index can hold: a column, a field of the payload \
             (payload->>'user'), or a simple function of these"
        ),
        Some(node) => {
            let columns: Vec<&str> = node.shape.columns.iter().map(|(name, _)| name.as_str()).collect();
            format!("got {sql:?}, allowed a column of {}: {}", node.name, columns.join(", "))
        }
    }
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
fn is_accepted(aggregates: &PaneAggregates, grid: &Grid) -> bool {
    let try_out = || -> rusqlite::Result<()> {
        let memory = open_memory()?;
        space::install(&memory, Some(grid))?;
        memory.execute_batch(&aggregates.plan.table_sql())?;
        memory.prepare(&aggregates.row_sql)?;
        memory.prepare(&aggregates.plan.results_sql)?;
        Ok(())
    };
    try_out().is_ok()
}
