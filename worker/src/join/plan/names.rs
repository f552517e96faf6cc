//! The meaning of names in a query: columns of its sources, terms of its select list, and columns around a subquery.

use super::print::print_expr;
use super::row::Column;
use super::syntax::{Body, Expr, JoinKind, Kind, OutputTerm, Query, SelectCore, SourceItem};

/// A SELECT core and the index of the scope around it, whose columns the core can see.
#[derive(Clone, Copy)]
pub(super) struct Scope<'q> {
    pub(super) core: &'q SelectCore,
    /// ORDER BY of the query whose only arm is this core.
    pub(super) order_by: &'q [Expr],
    pub(super) parent: Option<usize>,
}

/// The scopes of a query that were visited so far, by number.
#[derive(Clone)]
pub(super) struct Names<'q> {
    pub(super) scopes: Vec<Scope<'q>>,
}

/// A column of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceColumn {
    Topic(Column),
    /// The index of a subquery's column.
    Query(usize),
    Function,
}

/// The meaning of a name.
pub(super) enum Meaning<'q> {
    Column {
        scope: usize,
        source: usize,
        column: SourceColumn,
    },
    /// A USING column of an outer join: the value of the first of two sources that is not NULL.
    Merged {
        left: usize,
        right: usize,
    },
    /// A term of the select list.
    Output {
        scope: usize,
        expr: &'q Expr,
    },
}

/// A term of the select list, `*` written out.
#[derive(Clone, Copy)]
pub(super) enum Term<'q> {
    Expr(&'q Expr),
    At { source: usize, column: SourceColumn },
}

/// Columns of json_each and json_tree.
const JSON_COLUMNS: [&str; 10] =
    ["key", "value", "type", "atom", "id", "parent", "fullkey", "path", "json", "root"];

impl<'q> Names<'q> {
    /// Returns the names of one SELECT without its surroundings; the SELECT is scope 0.
    pub(super) fn of(core: &'q SelectCore) -> Self {
        Self { scopes: vec![Scope { core, order_by: &[], parent: None }] }
    }

    /// Returns the meaning of a name in a scope.
    pub(super) fn find(&self, scope: usize, table: Option<&str>, name: &str) -> Option<Meaning<'q>> {
        let core = self.scopes[scope].core;
        let mut found = (0..core.sources.len()).filter_map(|source| {
            let alias = core.sources[source].alias.as_deref();
            let fits = table.is_none_or(|table| alias.is_some_and(|alias| alias.eq_ignore_ascii_case(table)));
            fits.then(|| column_of(core, source, name)).flatten().map(|column| (source, column))
        });
        if let Some((source, column)) = found.next() {
            if table.is_none()
                && let Some((right, _)) = found.next()
            {
                let uses =
                    |source: usize| core.sources[source].using.iter().any(|u| u.eq_ignore_ascii_case(name));
                match core.sources[right].kind {
                    JoinKind::Right | JoinKind::Full if uses(right) => {
                        return Some(Meaning::Merged { left: source, right });
                    }
                    _ if uses(right) => {}
                    _ => return None,
                }
            }
            return Some(Meaning::Column { scope, source, column });
        }
        if table.is_none() {
            for output in &core.outputs {
                if let OutputTerm::Expr { expr, name: Some(alias) } = output
                    && alias.eq_ignore_ascii_case(name)
                {
                    return Some(Meaning::Output { scope, expr });
                }
            }
        }
        self.find(self.scopes[scope].parent?, table, name)
    }

    /// Returns the select list of a scope with `*` expanded.
    pub(super) fn terms(&self, scope: usize) -> Vec<Term<'q>> {
        let core = self.scopes[scope].core;
        let mut terms = Vec::new();
        for output in &core.outputs {
            match output {
                OutputTerm::Expr { expr, .. } => terms.push(Term::Expr(expr)),
                OutputTerm::Star(of) => terms.extend(
                    star_columns(core, of.as_deref())
                        .into_iter()
                        .map(|(_, source, column)| Term::At { source, column }),
                ),
            }
        }
        terms
    }
}

pub(super) fn source_name(core: &SelectCore, source: usize) -> String {
    core.sources[source].alias.clone().unwrap_or_else(|| format!("source {}", source + 1))
}

/// Returns whether rows of the result may lack this source.
pub(super) fn is_optional(core: &SelectCore, source: usize) -> bool {
    matches!(core.sources[source].kind, JoinKind::Left | JoinKind::Full)
        || core.sources[source + 1..]
            .iter()
            .any(|later| matches!(later.kind, JoinKind::Right | JoinKind::Full))
}

pub(super) fn column_of(core: &SelectCore, source: usize, name: &str) -> Option<SourceColumn> {
    columns_of(core, source)
        .into_iter()
        .find(|(column, _)| column.eq_ignore_ascii_case(name))
        .map(|(_, at)| at)
}

/// Returns the columns of a source by name.
pub(super) fn columns_of(core: &SelectCore, source: usize) -> Vec<(String, SourceColumn)> {
    match &core.sources[source].item {
        SourceItem::Topic { .. } => Column::ALL
            .into_iter()
            .map(|column| (column.name().to_owned(), SourceColumn::Topic(column)))
            .collect(),
        SourceItem::Function { .. } => {
            JSON_COLUMNS.iter().map(|name| ((*name).to_owned(), SourceColumn::Function)).collect()
        }
        SourceItem::Query { query, columns } => {
            let names = if columns.is_empty() { output_names(query) } else { columns.clone() };
            names.into_iter().enumerate().map(|(index, name)| (name, SourceColumn::Query(index))).collect()
        }
    }
}

/// Returns the names of a query's columns, as SQLite names them.
pub(super) fn output_names(query: &Query) -> Vec<String> {
    let core = match query.arms.first().map(|arm| &arm.body) {
        Some(Body::Core(core)) => core,
        Some(Body::Values(_, columns)) => return (1..=*columns).map(|n| format!("column{n}")).collect(),
        None => return Vec::new(),
    };
    let mut names = Vec::new();
    for output in &core.outputs {
        match output {
            OutputTerm::Expr { name: Some(name), .. } => names.push(name.clone()),
            OutputTerm::Expr { expr, name: None } => names.push(match &expr.bare().kind {
                Kind::Column { name, .. } => name.clone(),
                // A query that reads such a column by name finds no column here and is evaluated in full.
                _ => print_expr(expr),
            }),
            OutputTerm::Star(of) => {
                names.extend(star_columns(core, of.as_deref()).into_iter().map(|(name, _, _)| name));
            }
        }
    }
    names
}

/// Returns the columns that `*`, or `of.*`, stands for: name, source, column. `*` has a USING column once.
fn star_columns(core: &SelectCore, of: Option<&str>) -> Vec<(String, usize, SourceColumn)> {
    let mut columns = Vec::new();
    for (source, item) in core.sources.iter().enumerate() {
        let alias = item.alias.as_deref();
        if of.is_some_and(|of| !alias.is_some_and(|alias| alias.eq_ignore_ascii_case(of))) {
            continue;
        }
        for (name, column) in columns_of(core, source) {
            let is_merged = of.is_none() && item.using.iter().any(|using| using.eq_ignore_ascii_case(&name));
            if !is_merged {
                columns.push((name, source, column));
            }
        }
    }
    columns
}
