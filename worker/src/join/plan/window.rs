//! The SQL of windows: the time of a row, the value that keeps its frames apart from those of other rows, and the
//! query split at its aggregates. Pure.
//!
//! The query of a window is run on the rows of one frame. Its columns `window_start` and `window_end` are the same for
//! all these rows, so above the aggregates they become functions.

use std::collections::BTreeMap;

use litejoin_crds::window::TimeUnit;

use super::aggregate::{self, Accumulated};
use super::grouping::is_aggregate_call;
use super::names::Names;
use super::row::{Affinity, Column, RowExpr};
use super::syntax::{Arm, Body, Expr, ExprPart, Kind, OutputTerm, Query, SelectCore, SourceItem};
use super::{CheckedJoin, Link, Reason, keyed, parse, restrict};
use crate::storage::sqlite::quoted;

/// The columns that the query of a window sees beside those of its topic, and the functions that stand for them.
pub(crate) const BOUNDS: [(&str, &str); 2] =
    [("window_start", "_window_start()"), ("window_end", "_window_end()")];

/// The function of a row's time that returns the start of its pane.
pub(crate) const PANE: &str = "_pane";

/// Latest time that counts: the last second of the year 9999.
const TIME_MAX: i64 = 253_402_300_799;

/// The aggregates of a window, kept by pane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PaneAggregates {
    /// The rows below the aggregates by pane, then by the terms of GROUP BY.
    pub(crate) plan: Accumulated,
    /// The query for what one row of the topic adds; the parameters are its key, payload and timestamp.
    pub(crate) row_sql: String,
}

/// Returns the time of a row in seconds; the column `timestamp` if there is no path. An error says what is wrong with the
/// path.
pub(crate) fn time_of_row(path: Option<&str>, unit: TimeUnit) -> Result<RowExpr, String> {
    let Some(path) = path else { return Ok(RowExpr::column(Column::Timestamp)) };
    let plain = "write a path of plain names such as $.created_at or $.order.at";
    if !path.starts_with('$') || path.contains('\'') {
        return Err(format!("got {path:?}, {plain}"));
    }
    let field = row_of(&format!("payload->>'{path}'")).ok_or_else(|| format!("got {path:?}, {plain}"))?;
    Ok(match unit.per_second() {
        None => {
            // SQLite would take the 30th of February for the second of March.
            let texts =
                ["CASE WHEN date(substr(", ", 1, 10)) = substr(", ", 1, 10) THEN unixepoch(", ") END"];
            RowExpr::compose(&texts, vec![field; 3], Affinity::None, true)
        }
        Some(per_second) => {
            let range = format!(
                ") IN ('integer', 'real') AND {{}} BETWEEN 0 AND {} THEN CAST(",
                TIME_MAX.saturating_mul(per_second)
            );
            let (before, behind) = range.split_once("{}").expect("it is written above");
            let division = format!(" / {per_second} AS INTEGER) END");
            let texts = ["CASE WHEN typeof(", before, behind, &division];
            RowExpr::compose(&texts, vec![field; 3], Affinity::None, true)
        }
    })
}

/// Returns an expression of the user over one row, or `None` if an index can't hold it.
pub(crate) fn row_of(sql: &str) -> Option<RowExpr> {
    let query = parse::read(&format!("SELECT {sql}\nFROM _row"), &BTreeMap::new()).ok()?;
    let core = only_core(&query)?;
    let ([OutputTerm::Expr { expr, .. }], [source]) = (core.outputs.as_slice(), core.sources.as_slice())
    else {
        return None;
    };
    let is_plain = core.filter.is_none() && core.group_by.is_empty() && !core.distinct;
    let reads_row = matches!(&source.item, SourceItem::Topic { name, .. } if name == "_row");
    let row = Names::of(core).row(0, expr)?;
    (is_plain && reads_row && !row.is_constant()).then_some(row)
}

/// Returns the expression over a row whose value is the result key of all that the row can yield, or `None` if there is
/// none. `queries` has the view of the topic by its lower-case name, where the topic is a join or window.
pub(crate) fn key_of_row(join: &CheckedJoin, queries: &BTreeMap<String, String>) -> Option<RowExpr> {
    let query = parse::read(&join.sql, queries).ok()?;
    let rules = restrict::restrict(&query, join.columns.key_column()).ok()?.rules;
    let by = rules.first()?.by.clone();
    rules.iter().all(|rule| rule.from == [Link::Keys] && rule.by == by).then_some(by)
}

/// Returns the expression for rows that are not kept apart.
pub(crate) fn no_group() -> RowExpr {
    RowExpr::literal("0")
}

/// Splits the query of a window at its aggregates. Returns `None` if they can't be kept by pane. `time` is the time of a
/// row, `partition` the expression by which frames are partitioned.
pub(crate) fn pane_aggregates(
    join: &CheckedJoin,
    time: &RowExpr,
    partition: Option<&RowExpr>,
) -> Option<PaneAggregates> {
    let mut query = parse::read(&join.sql, &BTreeMap::new()).ok()?;
    if query.limit.is_some() {
        return None;
    }
    query.order_by.clear();
    let [Arm { body: Body::Core(core), .. }] = query.arms.as_mut_slice() else { return None };
    let [source] = core.sources.as_slice() else { return None };
    let SourceItem::Topic { name, .. } = &source.item else { return None };
    // As in a topic's table, the columns have an affinity.
    let row = "SELECT CAST(?1 AS TEXT), CAST(?2 AS TEXT), CAST(?3 AS INTEGER)";
    let one_row = format!("WITH {}(key, payload, timestamp) AS ({row}) ", quoted(name));
    drop_bounds_from_groups(core)?;
    if core.group_by.is_empty() && core.filter.is_some() {
        // A frame without a row that fits yields a row all the same.
        return None;
    }
    bind_outputs(core)?;
    if core.filter.iter().chain(&core.group_by).any(mentions_bounds) {
        return None;
    }
    let text = |text: String| Expr { kind: Kind::Other, parts: vec![ExprPart::Text(text)] };
    let mut terms = vec![text(format!("{PANE}({})", time.sql()))];
    terms.extend(partition.map(|partition| text(format!("({})", partition.sql()))));
    core.group_by.splice(0..0, terms);
    let plan = |query: &Query, restricted, part: &str| {
        keyed(join, query, restricted, &format!("{}/{part}", join.name))
    };
    let plan = aggregate::accumulate(&query, &join.name, Err(Reason::Global), plan)?;
    // One row needs no order.
    let (rows_sql, _) = plan.all_sql.rsplit_once(" ORDER BY ")?;
    Some(PaneAggregates { row_sql: one_row + rows_sql, plan })
}

fn only_core(query: &Query) -> Option<&SelectCore> {
    match query.arms.as_slice() {
        [Arm { body: Body::Core(core), .. }] if query.limit.is_none() => Some(core),
        _ => None,
    }
}

/// Returns the function that stands for a column, if it is one of the bounds.
fn bound_of(expr: &Expr) -> Option<&'static str> {
    let Kind::Column { name, .. } = &expr.bare().kind else { return None };
    BOUNDS.iter().find(|(column, _)| column.eq_ignore_ascii_case(name)).map(|(_, function)| *function)
}

/// Removes from GROUP BY what is the same for all rows of a frame; `None` if another term reads a bound.
fn drop_bounds_from_groups(core: &mut SelectCore) -> Option<()> {
    let outputs = core.outputs.clone();
    core.group_by.retain(|term| bound_of(meant(&outputs, term)).is_none());
    (!core.group_by.iter().any(|term| mentions_bounds(meant(&outputs, term)))).then_some(())
}

/// Returns the expression that a term of GROUP BY stands for: a number or a name is one of the select list.
fn meant<'e>(outputs: &'e [OutputTerm], term: &'e Expr) -> &'e Expr {
    let bare = term.bare();
    let at = |number: usize| match outputs.get(number.checked_sub(1)?)? {
        OutputTerm::Expr { expr, .. } => Some(expr),
        OutputTerm::Star(_) => None,
    };
    let named = |name: &str| {
        outputs.iter().find_map(|output| match output {
            OutputTerm::Expr { expr, name: Some(alias) } if alias.eq_ignore_ascii_case(name) => Some(expr),
            _ => None,
        })
    };
    let found = match (&bare.kind, bare.parts.as_slice()) {
        (Kind::Literal, [ExprPart::Text(text)]) => text.trim().parse().ok().and_then(at),
        (Kind::Column { table: None, name }, _) if bound_of(bare).is_none() => named(name),
        _ => None,
    };
    found.unwrap_or(bare)
}

/// Replaces bounds above the aggregates by functions; `None` if an aggregate reads one.
fn bind_outputs(core: &mut SelectCore) -> Option<()> {
    for output in &mut core.outputs {
        if let OutputTerm::Expr { expr, .. } = output {
            *expr = bound(expr)?;
        }
    }
    if let Some(having) = &mut core.having {
        *having = bound(having)?;
    }
    Some(())
}

fn bound(expr: &Expr) -> Option<Expr> {
    if let (Kind::Column { .. }, Some(function)) = (&expr.kind, bound_of(expr)) {
        return Some(Expr { kind: Kind::Other, parts: vec![ExprPart::Text(function.to_owned())] });
    }
    if is_aggregate_call(expr) {
        return (!mentions_bounds(expr)).then(|| expr.clone());
    }
    let parts = expr.parts.iter().map(|part| match part {
        ExprPart::Expr(expr) => bound(expr).map(ExprPart::Expr),
        ExprPart::Text(text) => Some(ExprPart::Text(text.clone())),
        ExprPart::Query(_) => None,
    });
    Some(Expr { kind: expr.kind.clone(), parts: parts.collect::<Option<_>>()? })
}

fn mentions_bounds(expr: &Expr) -> bool {
    (matches!(expr.kind, Kind::Column { .. }) && bound_of(expr).is_some())
        || expr.parts.iter().any(|part| match part {
            ExprPart::Expr(expr) => mentions_bounds(expr),
            ExprPart::Text(_) => false,
            ExprPart::Query(_) => true,
        })
}
