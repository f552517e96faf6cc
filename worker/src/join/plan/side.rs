//! Sides of equalities: expressions over a single source that an index can hold.

use std::collections::BTreeSet;

use super::names::{Meaning, Names, Scope, SourceColumn, Term, column_of};
use super::row::{Affinity, Column, RowExpr};
use super::syntax::{Body, Expr, ExprPart, JoinKind, Kind, SourceItem};
use crate::join::now::TIME_FUNCTIONS;

/// One side of an equality: an expression over a single source.
#[derive(Debug, Clone)]
pub(super) struct Side {
    pub(super) scope: usize,
    pub(super) source: usize,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    /// An expression over a topic's row.
    Row(RowExpr),
    /// A column of a subquery.
    Query(usize),
}

/// Functions of one row that never fail, return equal values for equal ones, and return NULL if an argument is NULL.
const STRICT: [&str; 14] = [
    "lower",
    "upper",
    "trim",
    "ltrim",
    "rtrim",
    "length",
    "substr",
    "substring",
    "instr",
    "round",
    "floor",
    "ceil",
    "ceiling",
    "trunc",
];

/// Functions like [`STRICT`] that may return a value for NULL.
const TOTAL: [&str; 4] = ["coalesce", "ifnull", "nullif", "typeof"];

impl<'q> Names<'q> {
    /// Returns a term as an expression over a single source.
    pub(super) fn side_of(&self, scope: usize, term: Term<'q>) -> Result<Side, NotASide> {
        let expr = match term {
            Term::At { source, column } => return at(scope, source, column).ok_or(NotASide::NotIndexable),
            Term::Expr(expr) => expr.bare(),
        };
        let mut places = BTreeSet::new();
        self.places(scope, expr, &mut places)?;
        let mut places = places.into_iter();
        let (Some((at_scope, source)), None) = (places.next(), places.next()) else {
            return Err(NotASide::Several);
        };
        match &self.scopes[at_scope].core.sources[source].item {
            SourceItem::Topic { .. } => {
                let expr = self.row(scope, expr).ok_or(NotASide::NotIndexable)?;
                if expr.is_constant() {
                    return Err(NotASide::NotIndexable);
                }
                Ok(Side { scope: at_scope, source, what: What::Row(expr) })
            }
            SourceItem::Query { .. } => {
                let Kind::Column { table, name } = &expr.kind else { return Err(NotASide::OfSubquery) };
                match self.find(scope, table.as_deref(), name) {
                    Some(Meaning::Column { scope, source, column }) => {
                        at(scope, source, column).ok_or(NotASide::NotIndexable)
                    }
                    Some(Meaning::Output { scope, expr }) => self.side_of(scope, Term::Expr(expr)),
                    Some(Meaning::Merged { right, .. }) => {
                        let column = column_of(self.scopes[scope].core, right, name);
                        column.and_then(|column| at(scope, right, column)).ok_or(NotASide::NotIndexable)
                    }
                    None => Err(NotASide::Several),
                }
            }
            SourceItem::Function { .. } => Err(NotASide::NotIndexable),
        }
    }

    /// Returns the affinity with which the side is compared, or `None` where arms of a subquery differ.
    pub(super) fn affinity(&self, side: &Side) -> Option<Affinity> {
        match &side.what {
            What::Row(expr) => Some(expr.affinity),
            What::Query(column) => {
                let core = self.scopes[side.scope].core;
                let SourceItem::Query { query, .. } = &core.sources[side.source].item else { return None };
                let mut found = None;
                for arm in &query.arms {
                    let Body::Core(core) = &arm.body else { return None };
                    // The subquery gets a scope of its own, since it may not be restricted yet.
                    let mut inner = self.clone();
                    inner.scopes.push(Scope { core, order_by: &[], parent: None });
                    let scope = inner.scopes.len() - 1;
                    let side = inner.side_of(scope, *inner.terms(scope).get(*column)?).ok()?;
                    let affinity = inner.affinity(&side)?;
                    if found.replace(affinity).is_some_and(|other| other != affinity) {
                        return None;
                    }
                }
                found
            }
        }
    }

    pub(super) fn is_strict(&self, side: &Side) -> bool {
        match &side.what {
            What::Row(expr) => expr.strict,
            What::Query(_) => true,
        }
    }

    /// Adds the sources whose columns an expression reads.
    pub(super) fn places(
        &self,
        scope: usize,
        expr: &'q Expr,
        places: &mut BTreeSet<(usize, usize)>,
    ) -> Result<(), NotASide> {
        if let Kind::Column { table, name } = &expr.kind {
            match self.find(scope, table.as_deref(), name).ok_or(NotASide::Several)? {
                Meaning::Column { scope, source, .. } => {
                    places.insert((scope, source));
                }
                Meaning::Merged { left, right } => {
                    if self.scopes[scope].core.sources[right].kind == JoinKind::Full {
                        places.insert((scope, left));
                    }
                    places.insert((scope, right));
                }
                Meaning::Output { scope, expr } => self.places(scope, expr, places)?,
            }
        }
        for part in &expr.parts {
            match part {
                ExprPart::Text(_) => {}
                ExprPart::Expr(expr) => self.places(scope, expr, places)?,
                ExprPart::Query(_) => return Err(NotASide::Several),
            }
        }
        Ok(())
    }

    /// Returns the expression over a topic's row, or `None` if an index can't hold it.
    pub(super) fn row(&self, scope: usize, expr: &'q Expr) -> Option<RowExpr> {
        self.row_of_group(scope, expr, &[])
    }

    /// Returns [`Self::row`] with each of the terms `groups` (in canonical form) in one spelling, so that the value is
    /// equal for all rows of a group.
    pub(super) fn row_of_group(&self, scope: usize, expr: &'q Expr, groups: &[String]) -> Option<RowExpr> {
        if !groups.is_empty() && groups.contains(&self.canonical(scope, expr)) {
            return self.row(scope, expr).map(RowExpr::in_one_spelling);
        }
        let row = |expr: &'q Expr| self.row_of_group(scope, expr, groups);
        let inner = || expr.children().map(row).collect::<Option<Vec<_>>>();
        match &expr.kind {
            Kind::Column { table, name } => match self.find(scope, table.as_deref(), name)? {
                // Old images in the log have no `_change`.
                Meaning::Column { column: SourceColumn::Topic(column), .. } if column != Column::Change => {
                    Some(RowExpr::column(column))
                }
                Meaning::Column { .. } => None,
                Meaning::Merged { .. } => {
                    Column::find(name).filter(|column| *column != Column::Change).map(RowExpr::column)
                }
                Meaning::Output { scope, expr } => self.row_of_group(scope, expr, groups),
            },
            Kind::Literal => match expr.parts.as_slice() {
                [ExprPart::Text(text)] if !text.starts_with(['x', 'X']) => Some(RowExpr::literal(text)),
                _ => None,
            },
            Kind::Parenthesis => {
                let mut inner = inner()?;
                let affinity = inner.first()?.affinity;
                (inner.len() == 1)
                    .then(|| RowExpr::compose(&["(", ")"], std::mem::take(&mut inner), affinity, true))
            }
            Kind::Arrow => {
                let mut children = expr.children();
                let (document, path) = (children.next()?, children.next()?);
                let [_, ExprPart::Text(operator), _] = expr.parts.as_slice() else { return None };
                let field = plain_path(path)?;
                if !self.is_json(scope, document) {
                    return None;
                }
                let (document, path) = (row(document)?, row(path)?);
                let inner = vec![document.clone(), path];
                let taken = RowExpr::compose(&["", operator, ""], inner, Affinity::None, true);
                Some(taken.taking(&document, field))
            }
            Kind::Arithmetic => {
                let [_, ExprPart::Text(operator), _] = expr.parts.as_slice() else { return None };
                Some(RowExpr::compose(&["", operator, ""], inner()?, Affinity::None, true))
            }
            Kind::Cast { to } => {
                let affinity = cast_affinity(to)?;
                let behind = format!(" AS {to})");
                Some(RowExpr::compose(&["CAST(", &behind], inner()?, affinity, true))
            }
            Kind::Function { name, distinct: false, args, over: None } => {
                let name = name.as_str();
                let arguments: Vec<&Expr> = expr.children().take(*args).collect();
                let fits = match name {
                    "json_extract" => {
                        let is_sure = *args == 2 && plain_path(arguments[1]).is_some();
                        is_sure && self.is_json(scope, arguments[0])
                    }
                    _ if STRICT.contains(&name) || TOTAL.contains(&name) => *args > 0,
                    // An index can hold a function of a time only for a time in seconds.
                    _ if is_of_time(name) => self.is_time(scope, name, &arguments),
                    _ => false,
                };
                if !fits || expr.children().count() != *args {
                    return None;
                }
                let inner = inner()?;
                let document = inner[0].clone();
                let field = (name == "json_extract").then(|| plain_path(arguments[1])).flatten().flatten();
                let composed = RowExpr::call(name, inner, !TOTAL.contains(&name));
                Some(composed.taking(&document, field))
            }
            _ => None,
        }
    }

    /// Returns whether the value is JSON or NULL in every row. A text that is taken out of a payload need not be, and an
    /// index over JSON in it could not take in a row where it is not.
    fn is_json(&self, scope: usize, expr: &'q Expr) -> bool {
        match &expr.kind {
            Kind::Column { table, name } => match self.find(scope, table.as_deref(), name) {
                Some(Meaning::Column { column, .. }) => column == SourceColumn::Topic(Column::Payload),
                Some(Meaning::Merged { .. }) => Column::find(name) == Some(Column::Payload),
                Some(Meaning::Output { scope, expr }) => self.is_json(scope, expr),
                None => false,
            },
            Kind::Parenthesis => expr.children().next().is_some_and(|inner| self.is_json(scope, inner)),
            Kind::Arrow => match expr.parts.as_slice() {
                [ExprPart::Expr(document), ExprPart::Text(operator), _] => {
                    operator.trim() == "->" && self.is_json(scope, document)
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// Returns whether a function of a time reads the column `timestamp` as seconds, and nothing else.
    pub(super) fn is_time(&self, scope: usize, name: &str, args: &[&'q Expr]) -> bool {
        let skip = usize::from(name == "strftime");
        let text = |expr: &Expr| match (&expr.kind, expr.parts.as_slice()) {
            (Kind::Literal, [ExprPart::Text(text)]) => Some(text.to_ascii_lowercase()),
            _ => None,
        };
        let fits = |modifier: &String| {
            modifier == "'unixepoch'"
                || modifier.starts_with("'start of ")
                || modifier.starts_with("'weekday ")
        };
        args.iter().take(skip).all(|format| text(format).is_some())
            && args
                .get(skip)
                .is_some_and(|time| self.row(scope, time) == Some(RowExpr::column(Column::Timestamp)))
            && args.get(skip + 1).and_then(|modifier| text(modifier)).as_deref() == Some("'unixepoch'")
            && args[skip + 1..].iter().all(|modifier| text(modifier).as_ref().is_some_and(fits))
    }
}

fn is_of_time(function: &str) -> bool {
    TIME_FUNCTIONS.iter().any(|(name, _)| *name == function)
}

/// Returns a column of a source as a side, or `None` if an index can't hold it.
pub(super) fn at(scope: usize, source: usize, column: SourceColumn) -> Option<Side> {
    let what = match column {
        SourceColumn::Topic(Column::Change) | SourceColumn::Function => return None,
        SourceColumn::Topic(column) => What::Row(RowExpr::column(column)),
        SourceColumn::Query(column) => What::Query(column),
    };
    Some(Side { scope, source, what })
}

/// Why a term is not an expression over a single source.
pub(super) enum NotASide {
    Several,
    NotIndexable,
    /// It is computed of columns of a subquery.
    OfSubquery,
}

/// Returns the top-level field of a literal JSON path: `Some(None)` for the root or an array index, `None` for a path
/// that may be malformed and for any other expression.
pub(super) fn plain_path(expr: &Expr) -> Option<Option<String>> {
    let (Kind::Literal, [ExprPart::Text(text)]) = (&expr.kind, expr.parts.as_slice()) else { return None };
    if text.parse::<u32>().is_ok() {
        return Some(None);
    }
    let path = text.strip_prefix('\'').and_then(|text| text.strip_suffix('\''))?;
    let plain = |word: &str| !word.is_empty() && word.chars().all(|c| c.is_alphanumeric() || c == '_');
    let Some(rest) = path.strip_prefix('$') else { return plain(path).then(|| Some(path.to_owned())) };
    let mut field = None;
    for (index, step) in rest.split('.').enumerate() {
        let (word, indexes) = step.split_once('[').map_or((step, ""), |(word, rest)| (word, rest));
        let indexes_fit = indexes.is_empty()
            || indexes
                .strip_suffix(']')
                .is_some_and(|inner| inner.split("][").all(|n| n.parse::<u32>().is_ok()));
        let word_fits = if index == 0 { word.is_empty() } else { plain(word) };
        (indexes_fit && word_fits).then_some(())?;
        if index == 1 && rest.starts_with('.') {
            field = Some(word.to_owned());
        }
    }
    Some(field)
}

/// Returns the affinity of a type's name; `None` for BLOB.
pub(super) fn cast_affinity(to: &str) -> Option<Affinity> {
    let has = |word: &str| to.contains(word);
    if has("INT") {
        Some(Affinity::Numeric)
    } else if has("CHAR") || has("CLOB") || has("TEXT") {
        Some(Affinity::Text)
    } else if has("BLOB") || to.is_empty() {
        None
    } else {
        Some(Affinity::Numeric)
    }
}
