//! Grouping of rows: GROUP BY and PARTITION BY terms, the values that follow from them, and which of these values are
//! the same for all rows of a group.

use std::collections::BTreeSet;

use super::Reason;
use super::names::{Meaning, Names, Scope, SourceColumn, Term};
use super::row::Affinity;
use super::side::cast_affinity;
use super::syntax::{Expr, ExprPart, Kind, Over, PARTITION, Query, any, expressions};

/// The functions of SQLite that make one value of many rows.
const AGGREGATES: [&str; 16] = [
    "count",
    "sum",
    "total",
    "avg",
    "min",
    "max",
    "group_concat",
    "string_agg",
    "json_group_array",
    "json_group_object",
    "jsonb_group_array",
    "jsonb_group_object",
    "median",
    "percentile",
    "percentile_cont",
    "percentile_disc",
];

/// Functions that return only texts, or only integers.
const ONE_SPELLING: [&str; 15] = [
    "lower",
    "upper",
    "trim",
    "ltrim",
    "rtrim",
    "substr",
    "substring",
    "typeof",
    "length",
    "instr",
    "date",
    "time",
    "datetime",
    "strftime",
    "unixepoch",
];

impl<'q> Names<'q> {
    pub(super) fn is_aggregate(&self, scope: usize) -> bool {
        let Scope { core, order_by, .. } = self.scopes[scope];
        !core.group_by.is_empty()
            || core.having.is_some()
            || expressions(core, order_by).any(|expr| any(expr, &is_aggregate_call))
    }

    /// Refuses aggregates over outer columns: SQLite computes such an aggregate in the query around the subquery.
    pub(super) fn refuse_outer_aggregates(&self, scope: usize) -> Result<(), Reason> {
        let Scope { core, order_by, .. } = self.scopes[scope];
        let is_outer = |expr: &'q Expr| {
            is_aggregate_call(expr) && {
                let mut places = BTreeSet::new();
                let known = expr.children().all(|arg| self.places(scope, arg, &mut places).is_ok());
                known && !places.is_empty() && places.iter().all(|(at, _)| *at != scope)
            }
        };
        let outer = expressions(core, order_by).any(|expr| any(expr, &is_outer));
        if outer { Err(Reason::Syntax) } else { Ok(()) }
    }

    /// Returns the PARTITION BY terms of each window function of a scope.
    pub(super) fn partitions(&self, scope: usize) -> Result<Vec<Vec<String>>, Reason> {
        let Scope { core, order_by, .. } = self.scopes[scope];
        let mut calls = Vec::new();
        for expr in expressions(core, order_by) {
            any(expr, &mut |expr: &'q Expr| {
                if matches!(&expr.kind, Kind::Function { over: Some(_), .. }) {
                    calls.push(expr);
                }
                false
            });
        }
        let named = |name: &str| {
            let mut terms = Vec::new();
            let mut next = Some(name.to_owned());
            let mut left = core.windows.len() + 1;
            while let (Some(name), 1..) = (next.take(), left) {
                left -= 1;
                let window = core.windows.iter().find(|(other, _)| other.eq_ignore_ascii_case(&name));
                let (_, window) = window.ok_or(Reason::Syntax)?;
                terms.extend(window.partition_by.iter().map(|expr| self.canonical(scope, expr)));
                next.clone_from(&window.base);
            }
            Ok(terms)
        };
        let mut partitions = Vec::new();
        for call in calls {
            let Kind::Function { over: Some(over), .. } = &call.kind else { continue };
            partitions.push(match &**over {
                Over::Name(name) => named(name)?,
                Over::Inline { partition, base } => {
                    let start = call
                        .parts
                        .iter()
                        .position(|part| matches!(part, ExprPart::Text(text) if text == PARTITION))
                        .unwrap_or(call.parts.len());
                    let terms = call.parts[start..].iter().filter_map(|part| match part {
                        ExprPart::Expr(expr) => Some(self.canonical(scope, expr)),
                        _ => None,
                    });
                    let mut terms: Vec<String> = terms.take(*partition).collect();
                    if let Some(base) = base {
                        terms.extend(named(base)?);
                    }
                    terms
                }
            });
        }
        Ok(partitions)
    }

    /// Returns whether a term's value follows from the values of `known` (in canonical form).
    pub(super) fn follows_from(&self, scope: usize, term: Term<'q>, known: &[String]) -> bool {
        let expr = match term {
            Term::At { source, column } => return known.contains(&canonical_column(scope, source, column)),
            Term::Expr(expr) => expr.bare(),
        };
        if known.contains(&self.canonical(scope, expr)) {
            return true;
        }
        match &expr.kind {
            Kind::Column { table, name } => match self.find(scope, table.as_deref(), name) {
                Some(Meaning::Output { scope, expr }) => self.follows_from(scope, Term::Expr(expr), known),
                _ => false,
            },
            Kind::Function { over: Some(_), .. } | Kind::Subquery | Kind::In { .. } => false,
            _ if is_aggregate_call(expr) => false,
            _ => expr.children().all(|child| self.follows_from(scope, Term::Expr(child), known)),
        }
    }

    /// Returns whether equal values of `groups` (in canonical form) give equal values of a term that follows from
    /// them.
    pub(super) fn is_one_of_a_group(&self, scope: usize, term: Term<'q>, groups: &[String]) -> bool {
        let Term::Expr(expr) = term else { return true };
        let expr = expr.bare();
        let all = |expr: &'q Expr| {
            expr.children().all(|child| self.is_one_of_a_group(scope, Term::Expr(child), groups))
        };
        if groups.contains(&self.canonical(scope, expr)) {
            return true;
        }
        match &expr.kind {
            Kind::Column { table, name } => match self.find(scope, table.as_deref(), name) {
                Some(Meaning::Output { scope, expr }) => {
                    self.is_one_of_a_group(scope, Term::Expr(expr), groups)
                }
                _ => false,
            },
            Kind::Cast { to } if cast_affinity(to) == Some(Affinity::Numeric) => all(expr),
            Kind::Function { name, .. } if ["coalesce", "ifnull", "nullif"].contains(&name.as_str()) => {
                all(expr)
            }
            _ => self.reads_one_spelling(scope, expr, groups),
        }
    }

    /// Returns whether the `groups` that an expression reads have one spelling for equal values.
    pub(super) fn reads_one_spelling(&self, scope: usize, expr: &'q Expr, groups: &[String]) -> bool {
        if groups.contains(&self.canonical(scope, expr)) {
            return self.has_one_spelling(scope, expr);
        }
        if let Kind::Column { table, name } = &expr.kind {
            return match self.find(scope, table.as_deref(), name) {
                Some(Meaning::Output { scope, expr }) => self.reads_one_spelling(scope, expr, groups),
                _ => false,
            };
        }
        expr.children().all(|child| self.reads_one_spelling(scope, child, groups))
    }

    /// Returns whether an expression yields only texts, or only integers.
    pub(super) fn has_one_spelling(&self, scope: usize, expr: &'q Expr) -> bool {
        let expr = expr.bare();
        match &expr.kind {
            Kind::Column { table, name } => match self.find(scope, table.as_deref(), name) {
                Some(Meaning::Column { column, .. }) => matches!(column, SourceColumn::Topic(_)),
                Some(Meaning::Output { scope, expr }) => self.has_one_spelling(scope, expr),
                _ => false,
            },
            Kind::Literal => true,
            Kind::Cast { to } => cast_affinity(to) == Some(Affinity::Text),
            Kind::Arrow | Kind::Arithmetic => {
                let operators = ["->", "||"];
                expr.parts
                    .iter()
                    .any(|part| matches!(part, ExprPart::Text(text) if operators.contains(&text.trim())))
            }
            Kind::Function { name, .. } => ONE_SPELLING.contains(&name.as_str()),
            _ => false,
        }
    }

    /// Returns a GROUP BY term in canonical form; a number stands for a column.
    pub(super) fn group_term(&self, scope: usize, expr: &'q Expr) -> String {
        if let (Kind::Literal, [ExprPart::Text(text)]) = (&expr.bare().kind, expr.bare().parts.as_slice())
            && let Some(index) = text.trim().parse::<usize>().ok().and_then(|number| number.checked_sub(1))
            && let Some(term) = self.terms(scope).get(index)
        {
            return match term {
                Term::Expr(expr) => self.canonical(scope, expr),
                Term::At { source, column } => canonical_column(scope, *source, *column),
            };
        }
        self.canonical(scope, expr)
    }

    /// Returns a text that is equal for expressions that mean the same columns.
    pub(super) fn canonical(&self, scope: usize, expr: &'q Expr) -> String {
        let expr = expr.bare();
        if let Kind::Column { table, name } = &expr.kind {
            match self.find(scope, table.as_deref(), name) {
                Some(Meaning::Column { scope, source, column }) => {
                    return canonical_column(scope, source, column);
                }
                Some(Meaning::Output { scope, expr }) => return self.canonical(scope, expr),
                _ => {}
            }
        }
        let mut text = String::new();
        for part in &expr.parts {
            match part {
                ExprPart::Text(piece) => text.push_str(piece),
                // The parentheses keep operator precedence.
                ExprPart::Expr(expr) => text.push_str(&format!("({})", self.canonical(scope, expr))),
                // An address makes the text of a subquery unique.
                ExprPart::Query(query) => text.push_str(&format!("{:p}", std::ptr::from_ref::<Query>(query))),
            }
        }
        text
    }
}

pub(super) fn is_aggregate_call(expr: &Expr) -> bool {
    match &expr.kind {
        Kind::Function { name, over: None, args, .. } => {
            AGGREGATES.contains(&name.as_str()) && !(["min", "max"].contains(&name.as_str()) && *args > 1)
        }
        _ => false,
    }
}

pub(super) fn canonical_column(scope: usize, source: usize, column: SourceColumn) -> String {
    format!("#{scope}.{source}.{column:?}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sqlite::open_memory;

    #[test]
    fn every_aggregate_of_sqlite_is_known() {
        let connection = open_memory().unwrap();
        let mut statement =
            connection.prepare("SELECT DISTINCT name FROM pragma_function_list WHERE type <> 's'").unwrap();
        let names = statement.query_map([], |row| row.get::<_, String>(0)).unwrap();
        for name in names.map(Result::unwrap) {
            // Without OVER, SQLite refuses a function that is none but a window function.
            let is_aggregate = (0..3).any(|count| {
                let arguments = vec!["1"; count].join(", ");
                connection.prepare(&format!("SELECT {name}({arguments})")).is_ok()
            });
            assert!(!is_aggregate || AGGREGATES.contains(&name.as_str()), "{name}");
        }
    }
}
