//! Time bounds: comparisons of a row's value with the clock. Where a query reads the clock nowhere else, its results
//! change by themselves only when the clock passes the value of a row, and an index on these values finds the row.
//!
//! ```text
//! timestamp > unixepoch() - 3600    a row leaves when the clock less an hour has come to its timestamp
//! payload->>'until' >= date('now')  a row leaves on the day after
//! ```
//! A comparison may stand anywhere: in WHERE, ON or HAVING, under OR, in an aggregate or in the select list. The rows
//! whose comparison may turn out differently at two moments are those with a value between the two values of the clock.

use super::names::{Names, Scope, Term};
use super::print::{print_expr, print_plain};
use super::row::{Affinity, Cast, RowExpr};
use super::side::{Side, What, cast_affinity};
use super::syntax::{Body, Expr, ExprPart, Kind, Operator, Query, SourceItem, expressions};
use crate::join::now::{NOW, TIME_FUNCTIONS};

/// A comparison of the rows of a topic with the clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimeBound {
    pub(crate) topic: String,
    /// The value of a row, by which an index finds it.
    pub(crate) by: RowExpr,
    /// The value of the clock in SQL, converted as the comparison converts it.
    pub(crate) clock: String,
    pub(crate) ends: Ends,
    /// The comparison, for people.
    pub(crate) written: String,
}

/// Which ends belong to the range of the values whose comparison differs at two values of the clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ends {
    /// `value > clock` and `value <= clock`: the greater end.
    Upper,
    /// `value >= clock` and `value < clock`: the lesser end.
    Lower,
    /// Equality and its like: both ends.
    Both,
}

impl Ends {
    /// Returns the comparisons of a value with the lesser and the greater end.
    pub(crate) fn comparisons(self) -> (&'static str, &'static str) {
        match self {
            Self::Upper => (">", "<="),
            Self::Lower => (">=", "<"),
            Self::Both => (">=", "<="),
        }
    }

    fn of(operator: Operator) -> Self {
        match operator {
            Operator::Greater | Operator::LessOrEqual => Self::Upper,
            Operator::GreaterOrEqual | Operator::Less => Self::Lower,
            Operator::Equality => Self::Both,
        }
    }
}

/// Functions whose value follows from their arguments, in terms of the clock.
const OF_CLOCK: [&str; 10] =
    [NOW, "date", "time", "datetime", "julianday", "unixepoch", "strftime", "round", "floor", "abs"];

/// Returns the time bounds of a query, or the first term that reads the clock in another way, as it was written.
pub(super) fn bounds(query: &Query) -> Result<Vec<TimeBound>, String> {
    let mut search = Search { names: Names { scopes: Vec::new() }, found: Vec::new() };
    search.query(query, None)?;
    Ok(search.found)
}

struct Search<'q> {
    names: Names<'q>,
    found: Vec<TimeBound>,
}

impl<'q> Search<'q> {
    fn query(&mut self, query: &'q Query, around: Option<usize>) -> Result<(), String> {
        if !reads_now(&print_plain(query)) {
            return Ok(());
        }
        for arm in &query.arms {
            let core = match &arm.body {
                Body::Core(core) => core,
                Body::Values(text, _) if reads_now(text) => return Err(written(text)),
                Body::Values(..) => continue,
            };
            let order_by = if query.arms.len() == 1 { query.order_by.as_slice() } else { &[] };
            self.names.scopes.push(Scope { core, order_by, parent: around });
            let scope = self.names.scopes.len() - 1;
            for source in &core.sources {
                if let SourceItem::Query { query, .. } = &source.item {
                    self.query(query, around)?;
                }
            }
            expressions(core, order_by).try_for_each(|expr| self.expr(scope, expr))?;
        }
        let rest = query.order_by.iter().filter(|_| query.arms.len() > 1).map(print_expr);
        match rest.chain(query.limit.clone()).find(|text| reads_now(text)) {
            Some(text) => Err(written(&text)),
            None => Ok(()),
        }
    }

    fn expr(&mut self, scope: usize, expr: &'q Expr) -> Result<(), String> {
        if !reads_now(&print_expr(expr)) {
            return Ok(());
        }
        if let Some(bounds) = self.comparison(scope, expr) {
            for bound in bounds {
                if !self.found.contains(&bound) {
                    self.found.push(bound);
                }
            }
            return Ok(());
        }
        if is_clock(expr) {
            return Err(written(&print_expr(expr)));
        }
        for part in &expr.parts {
            match part {
                ExprPart::Text(_) => {}
                ExprPart::Expr(expr) => self.expr(scope, expr)?,
                ExprPart::Query(query) => self.query(query, Some(scope))?,
            }
        }
        Ok(())
    }

    /// Returns the bounds of an expression that compares rows with the clock and reads the clock in no other way.
    fn comparison(&self, scope: usize, expr: &'q Expr) -> Option<Vec<TimeBound>> {
        let terms: Vec<&Expr> = expr.children().collect();
        let pairs = match (&expr.kind, terms.as_slice()) {
            (Kind::Comparison(operator), [left, right]) => vec![(*left, *operator, *right)],
            (Kind::Equals, [left, right]) => vec![(*left, Operator::Equality, *right)],
            (Kind::Between, [value, start, end]) => {
                vec![(*value, Operator::GreaterOrEqual, *start), (*value, Operator::LessOrEqual, *end)]
            }
            _ => return None,
        };
        let mut bounds = Vec::new();
        for (left, operator, right) in pairs {
            let (value, operator, clock) = match [left, right].map(|side| reads_now(&print_expr(side))) {
                [false, false] => continue,
                [false, true] => (left, operator, right),
                [true, false] => (right, operator.flipped(), left),
                [true, true] => return None,
            };
            if !is_clock(clock) {
                return None;
            }
            let names = &self.names;
            let values =
                rows(names, scope, value).or_else(|| moment(names, scope, value).map(|row| vec![row]))?;
            for (topic, value) in values {
                bounds.push(bound(topic, value, operator, clock, expr)?);
            }
        }
        Some(bounds)
    }
}

fn bound(
    topic: String,
    value: RowExpr,
    operator: Operator,
    clock: &Expr,
    comparison: &Expr,
) -> Option<TimeBound> {
    // A value of a missing row must be NULL: no index would find it.
    if !value.strict {
        return None;
    }
    let affinity = match &clock.bare().kind {
        Kind::Cast { to } => cast_affinity(to)?,
        _ => Affinity::None,
    };
    let (of_value, of_clock) = RowExpr::casts(value.affinity, affinity);
    let sql = print_expr(clock);
    let clock = match of_clock {
        Cast::Not => sql,
        Cast::Text | Cast::Numeric => format!("CAST({sql}{}", of_clock.behind()),
    };
    let by = value.cast(of_value);
    Some(TimeBound { topic, by, clock, ends: Ends::of(operator), written: written(&print_expr(comparison)) })
}

/// Returns an expression as values of rows, by topic: several where it is a column of a subquery with arms.
fn rows<'q>(names: &Names<'q>, scope: usize, expr: &'q Expr) -> Option<Vec<(String, RowExpr)>> {
    let side = names.side_of(scope, Term::Expr(expr)).ok()?;
    // Where arms differ in affinity, it is open which of them SQLite applies to all.
    names.affinity(&side)?;
    rows_of(names, &side)
}

fn rows_of(names: &Names<'_>, side: &Side) -> Option<Vec<(String, RowExpr)>> {
    let core = names.scopes[side.scope].core;
    match (&side.what, &core.sources[side.source].item) {
        (What::Row(row), SourceItem::Topic { name, .. }) => Some(vec![(name.clone(), row.clone())]),
        (What::Query(column), SourceItem::Query { query, .. }) => {
            let mut all = Vec::new();
            for arm in &query.arms {
                let Body::Core(core) = &arm.body else { return None };
                let mut inner = names.clone();
                inner.scopes.push(Scope { core, order_by: &[], parent: names.scopes[side.scope].parent });
                let scope = inner.scopes.len() - 1;
                let side = inner.side_of(scope, *inner.terms(scope).get(*column)?).ok()?;
                all.extend(rows_of(&inner, &side)?);
            }
            Some(all)
        }
        _ => None,
    }
}

/// Returns a function that reads a field as a time, as the value of a row. A field that says now has no such value.
fn moment<'q>(names: &Names<'q>, scope: usize, expr: &'q Expr) -> Option<(String, RowExpr)> {
    let expr = expr.bare();
    let Kind::Function { name, distinct: false, args, over: None } = &expr.kind else { return None };
    let (_, time_at) = TIME_FUNCTIONS.iter().find(|(function, _)| function == name)?;
    let arguments: Vec<&Expr> = expr.children().collect();
    if arguments.len() != *args {
        return None;
    }
    let time = *arguments.get(*time_at)?;
    let (topic, row) = rows(names, scope, time)?.try_into().ok().map(|[row]: [_; 1]| row)?;
    let guarded = RowExpr::compose(
        &["CASE WHEN lower(", ") IN ('now', 'subsec', 'subsecond') THEN NULL ELSE ", " END"],
        vec![row.clone(), row],
        Affinity::None,
        true,
    );
    let mut inner = Vec::new();
    for (index, argument) in arguments.iter().enumerate() {
        inner.push(if index == *time_at { guarded.clone() } else { RowExpr::literal(&modifier(argument)?) });
    }
    Some((topic, RowExpr::call(name, inner, true)))
}

/// Returns the text of a literal that means the same on each machine and at any time.
fn modifier(expr: &Expr) -> Option<String> {
    let (Kind::Literal, [ExprPart::Text(text)]) = (&expr.kind, expr.parts.as_slice()) else { return None };
    let lower = text.to_ascii_lowercase();
    let is_fixed = lower.starts_with('\'') && !["'now'", "'localtime'", "'utc'"].contains(&lower.as_str());
    is_fixed.then(|| text.clone())
}

/// Returns whether an expression follows from the clock alone.
fn is_clock(expr: &Expr) -> bool {
    let is_fit = match &expr.kind {
        Kind::Literal | Kind::Parenthesis | Kind::Arithmetic | Kind::Cast { .. } | Kind::Sign => true,
        Kind::Function { name, distinct: false, args, over: None } => {
            OF_CLOCK.contains(&name.as_str()) && expr.children().count() == *args
        }
        _ => false,
    };
    is_fit
        && expr.parts.iter().all(|part| match part {
            ExprPart::Text(_) => true,
            ExprPart::Expr(expr) => is_clock(expr),
            ExprPart::Query(_) => false,
        })
}

/// Returns whether an SQL text reads the clock.
pub(super) fn reads_now(sql: &str) -> bool {
    sql.contains("_now()")
}

/// Returns a term as the user wrote it, or nearly so.
fn written(sql: &str) -> String {
    sql.replace("_now(), 'unixepoch'", "'now'")
}
