//! Splitting a query at its aggregates into a query for the rows below and a query for the results above, so that a
//! group is kept current by the rows that come and go.
//!
//! ```text
//! SELECT o.payload->>'customer', sum(o.payload->>'n') + 1 FROM orders o GROUP BY 1
//!
//! rows:     SELECT o.key, o.payload->>'customer', o.payload->>'n' FROM orders o      for some values of o.key
//! results:  SELECT g0, (+a0) + 1 FROM the aggregate states of the groups that have changed
//! ```
//! Each row has one driving value, in the first column: rows are looked up by driving value as a keyed join looks up
//! results. The other columns are the terms of GROUP BY, then the arguments of aggregates.

use std::fmt;

use super::grouping::is_aggregate_call;
use super::names::{Meaning, Names, SourceColumn, Term, columns_of, is_optional};
use super::restrict::{self, Restricted};
use super::row::{Affinity, Column, RowExpr};
use super::side::What;
use super::syntax::{Arm, Body, Expr, ExprPart, Kind, OutputTerm, Query, SelectCore, Source, SourceItem};
use super::{Keyed, Reason, print, table_name_of};
use crate::join::aggregate_state::{Aggregate, Function};
use crate::storage::sqlite::quoted;

/// The plan of a join whose groups have an aggregate state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Accumulated {
    /// The rows below the aggregates by driving value.
    pub(crate) rows: Keyed,
    /// The rows below the aggregates by a term of GROUP BY, and the index of the term; `None` if none finds them.
    pub(crate) group: Option<(usize, Keyed)>,
    /// The query for all rows below the aggregates, ordered by group.
    pub(crate) all_sql: String,
    /// The number of GROUP BY terms.
    pub(crate) group_terms: usize,
    /// Whether the query has exactly one group, with or without rows.
    pub(crate) is_global: bool,
    pub(crate) aggregates: Vec<Aggregate>,
    /// The number of arguments of all aggregates together.
    pub(crate) arguments: usize,
    /// The quoted name of the table of aggregate states: `_n`, terms `g0` …, aggregates `a0` …
    pub(crate) table: String,
    /// The query for the join's rows from that table, with `_n` behind its columns.
    pub(crate) results_sql: String,
    /// How the join is kept current if its values can't be accumulated.
    pub(crate) otherwise: Result<Keyed, Reason>,
}

impl Accumulated {
    /// Returns the statement that creates [`Self::table`].
    pub(crate) fn table_sql(&self) -> String {
        let columns = (0..self.group_terms)
            .map(|term| format!(", g{term}"))
            .chain((0..self.aggregates.len()).map(|aggregate| format!(", a{aggregate}")));
        format!("CREATE TABLE {} (_n INTEGER PRIMARY KEY{})", self.table, columns.collect::<String>())
    }

    /// Returns the plans by which rows are looked up.
    pub(crate) fn plans(&self) -> impl Iterator<Item = &Keyed> {
        [Some(&self.rows), self.group.as_ref().map(|(_, keyed)| keyed), self.otherwise.as_ref().ok()]
            .into_iter()
            .flatten()
    }

    /// Returns whether an extreme may go, and the rows of its group have to be read for the next.
    pub(crate) fn loses_extremes(&self) -> bool {
        self.aggregates.iter().any(|aggregate| matches!(aggregate.function, Function::Min | Function::Max))
    }

    /// Returns a text on which stored aggregate states depend. A change of the text rebuilds the states.
    pub(crate) fn fingerprint(&self) -> String {
        format!("1\n{}\n{}\n{:?}", self.all_sql, self.results_sql, self.aggregates)
    }

    /// Returns the text that is stored instead of the fingerprint once a value can't be accumulated.
    pub(crate) fn given_up_fingerprint(&self) -> String {
        format!("unfit {}", self.fingerprint())
    }
}

impl fmt::Display for Accumulated {
    /// Writes lines for the rows and for the results made of them.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "accumulated, as the rows of")?;
        write!(formatter, "{}{}\n{}\n", self.rows, self.rows.sql, self.results_sql)?;
        match &self.group {
            None => {}
            Some((term, keyed)) => write!(formatter, "a lost extreme: by term {}\n{keyed}", term + 1)?,
        }
        match &self.otherwise {
            Ok(keyed) => write!(formatter, "otherwise by key\n{keyed}"),
            Err(reason) => writeln!(formatter, "otherwise full: {reason}"),
        }
    }
}

/// Plans a query that aggregates. Returns `None` if the query doesn't aggregate, or not in a way that can be
/// accumulated. `occurrences` plans a restricted query; its text argument names the tables.
pub(super) fn accumulate(
    query: &Query,
    join_name: &str,
    otherwise: Result<Keyed, Reason>,
    plan: impl Fn(&Query, Restricted, &str) -> Result<Keyed, Reason>,
) -> Option<Accumulated> {
    let ([Arm { body: Body::Core(core), .. }], None) = (query.arms.as_slice(), &query.limit) else {
        return None;
    };
    let names = Names::of(core);
    if core.distinct || core.sources.is_empty() || !names.is_aggregate(0) {
        return None;
    }
    let mut split = Split {
        groups: core.group_by.iter().map(|expr| names.group_term(0, expr)).collect(),
        names: &names,
        aggregates: Vec::new(),
        arguments: Vec::new(),
    };
    let mut results = Vec::new();
    for output in &core.outputs {
        let OutputTerm::Expr { expr, .. } = output else { return None };
        results.push(print::print_expr(&split.rewritten(expr, true)?));
    }
    let having = core.having.as_ref().map(|having| split.rewritten(having, false));
    let having = match having {
        None => String::new(),
        Some(having) => format!(" WHERE {}", print::print_expr(&having?)),
    };
    let table = table_name_of(join_name, "accumulators");
    let results_sql = format!("SELECT {}, _n FROM {table}{having}", results.join(", "));

    let mut columns: Vec<Expr> =
        core.group_by.iter().map(|expr| split.group_expr(expr)).collect::<Option<_>>()?;
    columns.extend(split.arguments.iter().map(|(_, expr)| expr.clone()));
    let (aggregates, arguments) = (split.aggregates.iter().map(|(_, a)| *a).collect(), split.arguments.len());

    let (rows_query, rows) = rows_by_driving_value(core, &columns, &plan)?;
    let is_extreme =
        |(_, aggregate): &(String, Aggregate)| matches!(aggregate.function, Function::Min | Function::Max);
    let loses_extremes = split.aggregates.iter().any(is_extreme);
    let group = (0..core.group_by.len()).filter(|_| loses_extremes).find_map(|term| {
        let restricted = restrict::restrict(&rows_query, term + 1).ok()?;
        Some((term, plan(&rows_query, restricted, "group").ok()?))
    });
    let mut all_sql = print::print_plain(&rows_query);
    // Old images in the log have no `_change`.
    if all_sql.to_ascii_lowercase().contains("_change") || hides_change(&rows_query) {
        return None;
    }
    for term in 0..core.group_by.len() {
        all_sql.push_str(if term == 0 { " ORDER BY " } else { ", " });
        all_sql.push_str(&(term + 2).to_string());
    }
    Some(Accumulated {
        rows,
        group,
        all_sql,
        group_terms: core.group_by.len(),
        is_global: core.group_by.is_empty(),
        aggregates,
        arguments,
        table,
        results_sql,
        otherwise,
    })
}

/// Returns the query for the rows below the aggregates by a driving value, and its plan. Of several driving values the
/// one that finds most rows by key wins, since its plan reads the fewest rows.
fn rows_by_driving_value(
    core: &SelectCore,
    columns: &[Expr],
    plan: impl Fn(&Query, Restricted, &str) -> Result<Keyed, Reason>,
) -> Option<(Query, Keyed)> {
    let mut best: Option<(usize, Query, Keyed)> = None;
    for (driving, sources) in driving_columns(core) {
        let rows = rows_driven_by(core, driving, sources, columns);
        let Ok(restricted) = restrict::restrict(&rows, 0) else { continue };
        let Ok(keyed) = plan(&rows, restricted, "rows") else { continue };
        let by_result_key = |occurrence: &&super::Occurrence| occurrence.from.contains(&super::Link::Keys);
        if !keyed.occurrences.iter().filter(by_result_key).all(|occurrence| occurrence.by.is_key()) {
            continue;
        }
        let by_others = keyed.occurrences.iter().filter(|occurrence| !occurrence.by.is_key()).count();
        if best.as_ref().is_none_or(|(least, ..)| by_others < *least) {
            best = Some((by_others, rows, keyed));
        }
    }
    best.map(|(_, rows, keyed)| (rows, keyed))
}

/// Returns the query for the rows below the aggregates: the driving value, then `columns`.
fn rows_driven_by(core: &SelectCore, driving: Expr, sources: Vec<Source>, columns: &[Expr]) -> Query {
    let outputs = std::iter::once(driving).chain(columns.iter().cloned());
    let mut outputs: Vec<OutputTerm> = outputs.map(|expr| OutputTerm::Expr { expr, name: None }).collect();
    // WHERE may refer to named terms of the select list.
    outputs.extend(core.outputs.iter().filter(|output| is_named_value(output)).cloned());
    let core = SelectCore {
        distinct: false,
        outputs,
        sources,
        filter: core.filter.clone(),
        group_by: Vec::new(),
        having: None,
        windows: Vec::new(),
    };
    let arms = vec![Arm { operator: None, body: Body::Core(Box::new(core)) }];
    Query { arms, order_by: Vec::new(), limit: None }
}

/// The state of splitting one query.
struct Split<'p, 'q> {
    names: &'p Names<'q>,
    /// The terms of GROUP BY in canonical form.
    groups: Vec<String>,
    /// Aggregate calls by canonical form.
    aggregates: Vec<(String, Aggregate)>,
    /// Arguments by canonical form.
    arguments: Vec<(String, Expr)>,
}

impl<'q> Split<'_, 'q> {
    /// Returns an expression above the aggregates, rewritten to read the table of aggregate states. `is_whole` says
    /// that the value of the expression is a result column itself.
    fn rewritten(&mut self, expr: &'q Expr, is_whole: bool) -> Option<Expr> {
        let expr = expr.bare();
        let canonical = self.names.canonical(0, expr);
        if let Some(term) = self.groups.iter().position(|group| *group == canonical) {
            let text = if is_whole { format!("g{term}") } else { self.group_within(expr, term)? };
            return Some(text_expr(text));
        }
        match &expr.kind {
            Kind::Column { table: None, name } => match self.names.find(0, None, name)? {
                Meaning::Output { expr, .. } => self.rewritten(expr, is_whole),
                _ => None,
            },
            Kind::Function { .. } if is_aggregate_call(expr) => self.aggregate(expr, canonical),
            // A table column doesn't keep SQLite's mark that a text is JSON.
            Kind::Function { name, .. } if name.starts_with("json") => None,
            Kind::Column { .. } | Kind::Function { over: Some(_), .. } | Kind::Subquery | Kind::In { .. } => {
                None
            }
            _ => {
                let mut parts = Vec::with_capacity(expr.parts.len() + 2);
                parts.push(ExprPart::Text("(".to_owned()));
                for part in &expr.parts {
                    parts.push(match part {
                        ExprPart::Text(text) => ExprPart::Text(text.clone()),
                        ExprPart::Expr(expr) => ExprPart::Expr(self.rewritten(expr, false)?),
                        ExprPart::Query(_) => return None,
                    });
                }
                parts.push(ExprPart::Text(")".to_owned()));
                Some(Expr { kind: Kind::Other, parts })
            }
        }
    }

    /// Returns a term of GROUP BY within an expression, with the affinity that the term itself has in a comparison.
    fn group_within(&self, expr: &'q Expr, term: usize) -> Option<String> {
        match &expr.kind {
            Kind::Column { .. } => {
                let side = self.names.side_of(0, Term::Expr(expr)).ok()?;
                let is_timestamp =
                    matches!(&side.what, What::Row(row) if *row == RowExpr::column(Column::Timestamp));
                match self.names.affinity(&side)? {
                    Affinity::Text => Some(format!("CAST(g{term} AS TEXT)")),
                    Affinity::None => Some(format!("(+g{term})")),
                    Affinity::Numeric if is_timestamp => Some(format!("CAST(g{term} AS INTEGER)")),
                    Affinity::Numeric => None,
                }
            }
            Kind::Cast { .. } | Kind::Subquery => None,
            _ => Some(format!("(+g{term})")),
        }
    }

    /// Registers a call of an aggregate function and returns the column that replaces it.
    fn aggregate(&mut self, expr: &'q Expr, canonical: String) -> Option<Expr> {
        let Kind::Function { name, distinct: false, args, over: None } = &expr.kind else { return None };
        let function = match (name.as_str(), args) {
            ("count", 0 | 1) => Function::Count,
            ("sum", 1) => Function::Sum,
            ("total", 1) => Function::Total,
            ("avg", 1) => Function::Avg,
            ("min", 1) => Function::Min,
            ("max", 1) => Function::Max,
            _ => return None,
        };
        let is_filtered =
            expr.parts.iter().any(|part| matches!(part, ExprPart::Text(text) if text == FILTER));
        let children: Vec<&'q Expr> = expr.children().collect();
        // ORDER BY among the arguments would add an expression.
        if children.len() != args + usize::from(is_filtered) {
            return None;
        }
        let argument = match (children.as_slice(), is_filtered) {
            ([], _) => None,
            ([argument], false) => Some(self.resolved(argument)),
            ([filter], true) => Some(self.only_if(filter, text_expr("1".to_owned()))),
            ([argument, filter, ..], _) => Some(self.only_if(filter, self.resolved(argument))),
        };
        let position =
            self.aggregates.iter().position(|(known, _)| *known == canonical).unwrap_or_else(|| {
                let argument = argument.map(|argument| {
                    let text = print::print_expr(&argument);
                    self.arguments.iter().position(|(known, _)| *known == text).unwrap_or_else(|| {
                        self.arguments.push((text, argument));
                        self.arguments.len() - 1
                    })
                });
                self.aggregates.push((canonical, Aggregate { function, argument }));
                self.aggregates.len() - 1
            });
        Some(text_expr(format!("(+a{position})")))
    }

    fn only_if(&self, filter: &'q Expr, value: Expr) -> Expr {
        let text = |text: &str| ExprPart::Text(text.to_owned());
        let filter = ExprPart::Expr(self.resolved(filter));
        let parts = vec![text("CASE WHEN "), filter, text(" THEN "), ExprPart::Expr(value), text(" END")];
        Expr { kind: Kind::Other, parts }
    }

    /// Returns a term of GROUP BY; a number is replaced by its column.
    fn group_expr(&self, expr: &'q Expr) -> Option<Expr> {
        if let (Kind::Literal, [ExprPart::Text(text)]) = (&expr.bare().kind, expr.bare().parts.as_slice())
            && let Ok(number) = text.trim().parse::<usize>()
        {
            let terms = self.names.terms(0);
            let Term::Expr(expr) = *terms.get(number.checked_sub(1)?)? else { return None };
            return Some(expr.clone());
        }
        Some(self.resolved(expr))
    }

    /// Returns the expression with names from the select list replaced by their terms.
    fn resolved(&self, expr: &'q Expr) -> Expr {
        if let Kind::Column { table: None, name } = &expr.kind
            && let Some(Meaning::Output { expr, .. }) = self.names.find(0, None, name)
        {
            let parts = vec![
                ExprPart::Text("(".to_owned()),
                ExprPart::Expr(expr.clone()),
                ExprPart::Text(")".to_owned()),
            ];
            return Expr { kind: Kind::Parenthesis, parts };
        }
        let parts = expr.parts.iter().map(|part| match part {
            ExprPart::Expr(expr) => ExprPart::Expr(self.resolved(expr)),
            other => other.clone(),
        });
        Expr { kind: expr.kind.clone(), parts: parts.collect() }
    }
}

/// The text before the condition of a filtered aggregate.
const FILTER: &str = " FILTER (WHERE ";

fn text_expr(text: String) -> Expr {
    Expr { kind: Kind::Other, parts: vec![ExprPart::Text(text)] }
}

/// Returns columns with one value for every row below the aggregates, and the FROM that contains them.
fn driving_columns(core: &SelectCore) -> Vec<(Expr, Vec<Source>)> {
    let mut columns = Vec::new();
    for (index, source) in core.sources.iter().enumerate() {
        if is_optional(core, index) {
            continue;
        }
        for (name, column) in columns_of(core, index) {
            if matches!(column, SourceColumn::Topic(Column::Key) | SourceColumn::Query(_)) {
                columns.push((column_of(source, &name), core.sources.clone()));
            }
        }
        let SourceItem::Query { query, columns: column_names } = &source.item else { continue };
        if !column_names.is_empty() {
            continue;
        }
        for key in hidden_keys(query) {
            let mut sources = core.sources.clone();
            if let SourceItem::Query { query, .. } = &mut sources[index].item
                && let Some(Arm { body: Body::Core(inner), .. }) = query.arms.first_mut()
            {
                inner.outputs.push(OutputTerm::Expr { expr: key, name: Some(HIDDEN.to_owned()) });
                columns.push((column_of(source, HIDDEN), sources));
            }
        }
    }
    columns
}

/// The name under which a subquery in FROM returns a key.
const HIDDEN: &str = "_driving";

/// Returns keys of topics that the query could return as more columns without a change of its rows.
fn hidden_keys(query: &Query) -> Vec<Expr> {
    let [Arm { body: Body::Core(core), .. }] = query.arms.as_slice() else { return Vec::new() };
    let names = Names::of(core);
    if core.distinct {
        return Vec::new();
    }
    if !names.is_aggregate(0) {
        let topics = core.sources.iter().filter(|source| matches!(source.item, SourceItem::Topic { .. }));
        return topics.map(|source| column_of(source, Column::Key.name())).collect();
    }
    let is_key = |expr: &&Expr| match &expr.bare().kind {
        Kind::Column { table, name } => matches!(
            names.find(0, table.as_deref(), name),
            Some(Meaning::Column { scope: 0, column: SourceColumn::Topic(Column::Key), .. })
        ),
        _ => false,
    };
    core.group_by.iter().filter(is_key).cloned().collect()
}

fn column_of(source: &Source, name: &str) -> Expr {
    let qualifier = source.alias.as_deref().map(|alias| format!("{}.", quoted(alias))).unwrap_or_default();
    Expr {
        kind: Kind::Column { table: source.alias.clone(), name: name.to_owned() },
        parts: vec![ExprPart::Text(format!("{qualifier}{}", quoted(name)))],
    }
}

/// Returns whether a term of the select list is a named value of a single row.
fn is_named_value(output: &OutputTerm) -> bool {
    fn aggregates(expr: &Expr) -> bool {
        is_aggregate_call(expr) || expr.children().any(aggregates)
    }
    matches!(output, OutputTerm::Expr { expr, name: Some(_) } if !aggregates(expr))
}

/// Returns whether some `*` may include a column `_change` whose value matters.
fn hides_change(query: &Query) -> bool {
    query.arms.iter().any(|arm| {
        let Body::Core(core) = &arm.body else { return false };
        let has_star = core.outputs.iter().any(|output| matches!(output, OutputTerm::Star(_)));
        let compares = core.distinct || query.arms.len() > 1;
        has_star && compares
            || core.sources.iter().any(|source| match &source.item {
                SourceItem::Query { query, columns } => !columns.is_empty() || hides_change(query),
                _ => false,
            })
    })
}
