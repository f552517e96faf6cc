//! Parsing a query: the parser's tree, reduced to the parts that the planner needs. Other clauses are kept as text.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sqlite3_parser::ast::fmt::ToTokens;
use sqlite3_parser::ast::{
    self, As, Cmd, JoinConstraint, JoinType, OneSelect, ResultColumn, SelectTable, Stmt,
};
use sqlite3_parser::lexer::sql::Parser;
use sqlite3_parser::{Bump, FallibleIterator as _};

use super::Reason;
use super::syntax::{
    Arm, Body, Expr, ExprPart, JoinKind, Kind, Operator, OutputTerm, Over, Query, SelectCore, Source,
    SourceItem, UNION_ALL, Window, text, window_parts,
};
use crate::storage::sqlite::quoted;

/// Reads one SELECT. `queries` are the texts of other joins by lower-case name; every other name in FROM is a topic.
pub(super) fn read(sql: &str, queries: &BTreeMap<String, String>) -> Result<Query, Reason> {
    // The parser documents that it may panic; the query is then evaluated in full.
    let query = catch_unwind(AssertUnwindSafe(|| parse(sql, queries, 0)));
    let mut query = query.map_err(|_| Reason::Syntax)??;
    let mut next = 0;
    number(&mut query, &mut next);
    Ok(query)
}

/// How deep joins and common table expressions may be nested within each other.
const DEPTH_MAX: usize = 16;

fn parse(sql: &str, queries: &BTreeMap<String, String>, depth: usize) -> Result<Query, Reason> {
    if depth > DEPTH_MAX {
        return Err(Reason::Syntax);
    }
    let bump = Bump::new();
    let mut parser = Parser::new(&bump, sql.as_bytes());
    match parser.next() {
        Ok(Some(Cmd::Stmt(Stmt::Select(select)))) => {
            QueryReader { queries, depth, ctes: Vec::new() }.select(select)
        }
        _ => Err(Reason::Syntax),
    }
}

struct QueryReader<'a> {
    queries: &'a BTreeMap<String, String>,
    depth: usize,
    /// Visible common table expressions, the innermost last: lower-case name, query, names of columns.
    ctes: Vec<(String, Query, Vec<String>)>,
}

impl QueryReader<'_> {
    fn select(&mut self, select: &ast::Select<'_>) -> Result<Query, Reason> {
        let in_sight = self.ctes.len();
        if let Some(with) = &select.with {
            for (index, cte) in with.ctes.iter().enumerate() {
                // SQLite lets an expression read itself and later ones, with or without RECURSIVE.
                let name = |cte: &ast::CommonTableExpr<'_>| unquoted(cte.tbl_name.0).to_ascii_lowercase();
                if with.ctes[index..].iter().any(|later| mentions(cte.select, &name(later))) {
                    return Err(Reason::Recursive);
                }
                let name = name(cte);
                let query = self.select(cte.select)?;
                let columns =
                    cte.columns.map(|columns| columns.iter().map(|c| unquoted(c.col_name.0)).collect());
                self.ctes.push((name, query, columns.unwrap_or_default()));
            }
        }
        let mut arms = vec![Arm { operator: None, body: self.body(&select.body.select)? }];
        for compound in select.body.compounds.iter().flatten() {
            let operator = match compound.operator {
                ast::CompoundOperator::Union => "UNION",
                ast::CompoundOperator::UnionAll => UNION_ALL,
                ast::CompoundOperator::Except => "EXCEPT",
                ast::CompoundOperator::Intersect => "INTERSECT",
            };
            arms.push(Arm { operator: Some(operator), body: self.body(&compound.select)? });
        }
        let order_by = self.sorted(select.order_by.unwrap_or_default())?;
        let limit = match select.limit {
            None => None,
            Some(limit) => {
                let offset = limit.offset.as_ref().map(|offset| format!(" OFFSET {}", Shown(offset)));
                Some(format!("LIMIT {}{}", Shown(&limit.expr), offset.unwrap_or_default()))
            }
        };
        self.ctes.truncate(in_sight);
        Ok(Query { arms, order_by, limit })
    }

    fn sorted(&mut self, terms: &[ast::SortedColumn<'_>]) -> Result<Vec<Expr>, Reason> {
        terms.iter().map(|term| self.sorted_term(term)).collect()
    }

    fn sorted_term(&mut self, term: &ast::SortedColumn<'_>) -> Result<Expr, Reason> {
        let mut behind = String::new();
        if let Some(order) = &term.order {
            behind.push(' ');
            behind.push_str(&Shown(order).to_string());
        }
        if let Some(nulls) = &term.nulls {
            behind.push(' ');
            behind.push_str(&Shown(nulls).to_string());
        }
        let expr = self.expr(&term.expr)?;
        Ok(Expr { kind: Kind::Other, parts: vec![ExprPart::Expr(expr), ExprPart::Text(behind)] })
    }

    fn body(&mut self, select: &OneSelect<'_>) -> Result<Body, Reason> {
        let (distinctness, columns, from, where_clause, group_by, having, window_clause) = match select {
            OneSelect::Values(rows) => {
                return Ok(Body::Values(Shown(select).to_string(), rows.first().map_or(0, |row| row.len())));
            }
            OneSelect::Select {
                distinctness,
                columns,
                from,
                where_clause,
                group_by,
                having,
                window_clause,
            } => (distinctness, columns, from, where_clause, group_by, having, window_clause),
        };
        let mut outputs = Vec::new();
        for column in *columns {
            outputs.push(match column {
                ResultColumn::Star => OutputTerm::Star(None),
                ResultColumn::TableStar(name) => OutputTerm::Star(Some(unquoted(name.0))),
                ResultColumn::Expr(expr, name) => {
                    OutputTerm::Expr { expr: self.expr(expr)?, name: name.as_ref().map(alias) }
                }
            });
        }
        let mut sources = Vec::new();
        if let Some(from) = from
            && let Some(first) = from.select
        {
            sources.push(self.source(first, JoinKind::Inner, String::new(), None)?);
            for joined in from.joins.iter().flatten() {
                let (kind, operator) = match joined.operator {
                    ast::JoinOperator::Comma | ast::JoinOperator::TypedJoin(None) => {
                        (JoinKind::Inner, Shown(&joined.operator).to_string())
                    }
                    ast::JoinOperator::TypedJoin(Some(join)) => {
                        if join.contains(JoinType::NATURAL) {
                            return Err(Reason::Natural);
                        }
                        let kind = match (join.contains(JoinType::LEFT), join.contains(JoinType::RIGHT)) {
                            (true, true) => JoinKind::Full,
                            (true, false) => JoinKind::Left,
                            (false, true) => JoinKind::Right,
                            (false, false) => JoinKind::Inner,
                        };
                        let operator = match kind {
                            JoinKind::Full => "FULL JOIN",
                            JoinKind::Left => "LEFT JOIN",
                            JoinKind::Right => "RIGHT JOIN",
                            JoinKind::Inner if join.contains(JoinType::CROSS) => "CROSS JOIN",
                            JoinKind::Inner => "JOIN",
                        };
                        (kind, operator.to_owned())
                    }
                };
                sources.push(self.source(&joined.table, kind, operator, joined.constraint.as_ref())?);
            }
        }
        let mut windows = Vec::new();
        for window in window_clause.unwrap_or_default() {
            windows.push((unquoted(window.name.0), self.window(&window.window)?));
        }
        Ok(Body::Core(Box::new(SelectCore {
            distinct: matches!(distinctness, Some(ast::Distinctness::Distinct)),
            outputs,
            sources,
            filter: where_clause.map(|expr| self.expr(expr)).transpose()?,
            group_by: group_by.unwrap_or_default().iter().map(|e| self.expr(e)).collect::<Result<_, _>>()?,
            having: having.map(|expr| self.expr(expr)).transpose()?,
            windows,
        })))
    }

    fn source(
        &mut self,
        table: &SelectTable<'_>,
        kind: JoinKind,
        operator: String,
        constraint: Option<&JoinConstraint<'_>>,
    ) -> Result<Source, Reason> {
        let (item, alias) = match table {
            SelectTable::Table(name, given, _) => {
                if name.db_name.is_some() {
                    return Err(Reason::Syntax);
                }
                let plain = unquoted(name.name.0);
                let lower = plain.to_ascii_lowercase();
                let alias = Some(given.as_ref().map_or_else(|| plain.clone(), alias));
                let cte = self.ctes.iter().rev().find(|(name, ..)| *name == lower);
                let item = if let Some((_, query, columns)) = cte {
                    SourceItem::Query { query: Box::new(query.clone()), columns: columns.clone() }
                } else if let Some(sql) = self.queries.get(&lower) {
                    let query = Box::new(parse(sql, self.queries, self.depth + 1)?);
                    SourceItem::Query { query, columns: Vec::new() }
                } else if ["json_each", "json_tree"].contains(&lower.as_str()) {
                    return Err(Reason::Syntax);
                } else {
                    SourceItem::Topic { name: plain, occurrence: 0 }
                };
                (item, alias)
            }
            SelectTable::TableCall(name, args, given) => {
                let plain = unquoted(name.name.0);
                let args = args.unwrap_or_default().iter().map(|e| self.expr(e)).collect::<Result<_, _>>()?;
                let alias = Some(given.as_ref().map_or_else(|| plain.clone(), alias));
                (SourceItem::Function { name: plain, args }, alias)
            }
            SelectTable::Select(select, given) => {
                let query = Box::new(self.select(select)?);
                (SourceItem::Query { query, columns: Vec::new() }, given.as_ref().map(alias))
            }
            SelectTable::Sub(..) => return Err(Reason::NestedFrom),
        };
        let (on, using) = match constraint {
            None => (None, Vec::new()),
            Some(JoinConstraint::On(expr)) => (Some(self.expr(expr)?), Vec::new()),
            Some(JoinConstraint::Using(names)) => (None, names.iter().map(|name| unquoted(name.0)).collect()),
        };
        Ok(Source { kind, operator, item, alias, on, using })
    }

    fn window(&mut self, window: &ast::Window<'_>) -> Result<Window, Reason> {
        let partition = window.partition_by.unwrap_or_default();
        let partition_by = partition.iter().map(|e| self.expr(e)).collect::<Result<_, _>>()?;
        let mut rest = Vec::new();
        for (index, term) in window.order_by.unwrap_or_default().iter().enumerate() {
            rest.push(text(if index == 0 { " ORDER BY " } else { ", " }));
            rest.push(ExprPart::Expr(self.sorted_term(term)?));
        }
        if let Some(frame) = &window.frame_clause {
            rest.push(ExprPart::Text(format!(" {}", Shown(frame))));
        }
        Ok(Window { base: window.base.as_ref().map(|name| unquoted(name.0)), partition_by, rest })
    }

    /// Returns an expression as its pieces in order.
    fn expr(&mut self, expr: &ast::Expr<'_>) -> Result<Expr, Reason> {
        use ast::Expr as E;
        let mut parts = Vec::new();
        let kind = match expr {
            E::Collate(..) => return Err(Reason::Collation),
            E::DoublyQualified(..) | E::Raise(..) | E::Variable(_) => return Err(Reason::Syntax),
            E::InTable { .. } => return Err(Reason::InTable),
            E::Id(id) => column(None, id.0, &mut parts),
            E::Name(name) => column(None, name.0, &mut parts),
            E::Qualified(table, name) => column(Some(table.0), name.0, &mut parts),
            E::Literal(literal) => {
                parts.push(ExprPart::Text(Shown(literal).to_string()));
                match literal {
                    ast::Literal::CurrentDate
                    | ast::Literal::CurrentTime
                    | ast::Literal::CurrentTimestamp => Kind::Other,
                    _ => Kind::Literal,
                }
            }
            E::Parenthesized(inner) => {
                self.list("(", inner, ")", &mut parts)?;
                if inner.len() == 1 { Kind::Parenthesis } else { Kind::Other }
            }
            E::Cast { expr, type_name } => {
                let to = type_name.as_ref().map(|name| Shown(name).to_string()).unwrap_or_default();
                parts.extend([text("CAST("), self.part(expr)?, ExprPart::Text(format!(" AS {to})"))]);
                Kind::Cast { to: to.trim().to_ascii_uppercase() }
            }
            E::Case { base, when_then_pairs, else_expr } => {
                parts.push(text("CASE"));
                if let Some(base) = base {
                    parts.extend([text(" "), self.part(base)?]);
                }
                for (when, then) in *when_then_pairs {
                    parts.extend([text(" WHEN "), self.part(when)?, text(" THEN "), self.part(then)?]);
                }
                if let Some(otherwise) = else_expr {
                    parts.extend([text(" ELSE "), self.part(otherwise)?]);
                }
                parts.push(text(" END"));
                Kind::Other
            }
            E::Exists(query) => self.subquery("EXISTS (", query, &mut parts)?,
            E::Subquery(query) => self.subquery("(", query, &mut parts)?,
            E::FunctionCall { .. } | E::FunctionCallStar { .. } => self.call(expr, &mut parts)?,
            E::Unary(operator, inner) => {
                parts.extend([ExprPart::Text(format!("{} ", Shown(operator))), self.part(inner)?]);
                match operator {
                    ast::UnaryOperator::Negative | ast::UnaryOperator::Positive => Kind::Sign,
                    _ => Kind::Other,
                }
            }
            E::Binary(lhs, operator, rhs) => {
                let between = ExprPart::Text(format!(" {} ", Shown(operator)));
                parts.extend([self.part(lhs)?, between, self.part(rhs)?]);
                kind_of(operator)
            }
            predicate => self.predicate(predicate, &mut parts)?,
        };
        Ok(Expr { kind, parts })
    }

    /// Reads IN, BETWEEN, LIKE and the tests for NULL.
    fn predicate(&mut self, expr: &ast::Expr<'_>, parts: &mut Vec<ExprPart>) -> Result<Kind, Reason> {
        use ast::Expr as E;
        match expr {
            E::Between { lhs, not, start, end } => {
                let between = text(if *not { " NOT BETWEEN " } else { " BETWEEN " });
                parts.extend([self.part(lhs)?, between, self.part(start)?, text(" AND "), self.part(end)?]);
                return Ok(Kind::Between);
            }
            E::InList { lhs, not, rhs } => {
                parts.push(self.part(lhs)?);
                let opening = if *not { " NOT IN (" } else { " IN (" };
                self.list(opening, rhs.unwrap_or_default(), ")", parts)?;
            }
            E::InSelect { lhs, not, rhs } => {
                parts.push(self.part(lhs)?);
                self.subquery(if *not { " NOT IN (" } else { " IN (" }, rhs, parts)?;
                return Ok(Kind::In { negated: *not });
            }
            E::IsNull(inner) => parts.extend([self.part(inner)?, text(" ISNULL")]),
            E::NotNull(inner) => parts.extend([self.part(inner)?, text(" NOTNULL")]),
            E::Like { lhs, not, op, rhs, escape } => {
                let like = ExprPart::Text(format!("{} {} ", if *not { " NOT" } else { "" }, Shown(op)));
                parts.extend([self.part(lhs)?, like, self.part(rhs)?]);
                if let Some(escape) = escape {
                    parts.extend([text(" ESCAPE "), self.part(escape)?]);
                }
            }
            _ => return Err(Reason::Syntax),
        }
        Ok(Kind::Other)
    }

    /// Reads a function call with its FILTER and OVER.
    fn call(&mut self, expr: &ast::Expr<'_>, parts: &mut Vec<ExprPart>) -> Result<Kind, Reason> {
        match expr {
            ast::Expr::FunctionCall { name, distinctness, args, order_by, filter_over } => {
                let distinct = matches!(distinctness, Some(ast::Distinctness::Distinct));
                let args = args.unwrap_or_default();
                let opening = format!("{}({}", name.0, if distinct { "DISTINCT " } else { "" });
                self.list(&opening, args, "", parts)?;
                if let Some(ast::FunctionCallOrder::SortList(terms)) = order_by {
                    for (index, term) in terms.iter().enumerate() {
                        parts.push(text(if index == 0 { " ORDER BY " } else { ", " }));
                        parts.push(ExprPart::Expr(self.sorted_term(term)?));
                    }
                }
                parts.push(text(")"));
                let over = self.tail(filter_over.as_ref(), parts)?;
                let name = unquoted(name.0).to_ascii_lowercase();
                Ok(Kind::Function { name, distinct, args: args.len(), over })
            }
            ast::Expr::FunctionCallStar { name, filter_over } => {
                parts.push(ExprPart::Text(format!("{}(*)", name.0)));
                let over = self.tail(filter_over.as_ref(), parts)?;
                let name = unquoted(name.0).to_ascii_lowercase();
                Ok(Kind::Function { name, distinct: false, args: 0, over })
            }
            _ => Err(Reason::Syntax),
        }
    }

    /// Reads expressions separated by commas.
    fn list<'e>(
        &mut self,
        opening: &str,
        exprs: impl IntoIterator<Item = &'e ast::Expr<'e>>,
        closing: &str,
        parts: &mut Vec<ExprPart>,
    ) -> Result<(), Reason> {
        parts.push(text(opening));
        for (index, expr) in exprs.into_iter().enumerate() {
            if index > 0 {
                parts.push(text(", "));
            }
            parts.push(self.part(expr)?);
        }
        parts.push(text(closing));
        Ok(())
    }

    fn subquery(
        &mut self,
        opening: &str,
        query: &ast::Select<'_>,
        parts: &mut Vec<ExprPart>,
    ) -> Result<Kind, Reason> {
        parts.extend([text(opening), ExprPart::Query(Box::new(self.select(query)?)), text(")")]);
        Ok(Kind::Subquery)
    }

    fn part(&mut self, expr: &ast::Expr<'_>) -> Result<ExprPart, Reason> {
        Ok(ExprPart::Expr(self.expr(expr)?))
    }

    /// Reads FILTER and OVER.
    fn tail(
        &mut self,
        tail: Option<&ast::FunctionTail<'_>>,
        parts: &mut Vec<ExprPart>,
    ) -> Result<Option<Box<Over>>, Reason> {
        let Some(tail) = tail else { return Ok(None) };
        if let Some(filter) = tail.filter_clause {
            parts.push(text(" FILTER (WHERE "));
            parts.push(self.part(filter)?);
            parts.push(text(")"));
        }
        match tail.over_clause {
            None => Ok(None),
            Some(ast::Over::Name(name)) => {
                let name = unquoted(name.0);
                parts.push(ExprPart::Text(format!(" OVER {}", quoted(&name))));
                Ok(Some(Box::new(Over::Name(name))))
            }
            Some(ast::Over::Window(window)) => {
                let window = self.window(window)?;
                let partition = window.partition_by.len();
                let base = window.base.clone();
                parts.push(text(" OVER ("));
                parts.extend(window_parts(window));
                parts.push(text(")"));
                Ok(Some(Box::new(Over::Inline { partition, base })))
            }
        }
    }
}

/// Returns the planner's kind for an operator.
fn kind_of(operator: &ast::Operator) -> Kind {
    use ast::Operator as O;
    match operator {
        O::Equals => Kind::Equals,
        O::And => Kind::And,
        O::ArrowRight | O::ArrowRightShift => Kind::Arrow,
        O::Less => Kind::Comparison(Operator::Less),
        O::LessEquals => Kind::Comparison(Operator::LessOrEqual),
        O::Greater => Kind::Comparison(Operator::Greater),
        O::GreaterEquals => Kind::Comparison(Operator::GreaterOrEqual),
        O::NotEquals | O::Is | O::IsNot => Kind::Comparison(Operator::Equality),
        O::Concat | O::Add | O::Subtract | O::Multiply | O::Divide | O::Modulus => Kind::Arithmetic,
        _ => Kind::Other,
    }
}

fn column(table: Option<&str>, name: &str, parts: &mut Vec<ExprPart>) -> Kind {
    let (table, plain) = (table.map(unquoted), unquoted(name));
    if table.is_none() && name == plain && ["true", "false"].contains(&plain.to_ascii_lowercase().as_str()) {
        parts.push(ExprPart::Text(plain));
        return Kind::Literal;
    }
    let qualifier = table.as_deref().map(|table| format!("{}.", quoted(table))).unwrap_or_default();
    parts.push(ExprPart::Text(format!("{qualifier}{}", quoted(&plain))));
    Kind::Column { table, name: plain }
}

fn alias(alias: &As<'_>) -> String {
    match alias {
        As::As(name) | As::Elided(name) => unquoted(name.0),
    }
}

/// Returns the identifier that SQLite reads: the name without its quotes.
fn unquoted(name: &str) -> String {
    let mut chars = name.chars();
    match chars.next() {
        Some(quote @ ('"' | '`' | '\'' | '[')) if name.len() >= 2 => {
            let end = if quote == '[' { ']' } else { quote };
            let inner = &name[1..name.len() - 1];
            inner.replace(&format!("{end}{end}"), &end.to_string())
        }
        _ => name.to_owned(),
    }
}

/// Returns whether the text of the query contains this name anywhere, which is enough to detect a recursion.
fn mentions(select: &ast::Select<'_>, lower: &str) -> bool {
    let text = Shown(select).to_string().to_ascii_lowercase();
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == lower)
}

/// Prints a part of the parser's tree.
struct Shown<'a, T>(&'a T);

impl<T: ToTokens> fmt::Display for Shown<'_, T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_fmt(formatter)
    }
}

/// Assigns a number to each occurrence of a topic.
fn number(query: &mut Query, next: &mut usize) {
    for arm in &mut query.arms {
        if let Body::Core(core) = &mut arm.body {
            for source in &mut core.sources {
                match &mut source.item {
                    SourceItem::Topic { occurrence, .. } => {
                        *occurrence = *next;
                        *next += 1;
                    }
                    SourceItem::Query { query, .. } => number(query, next),
                    SourceItem::Function { args, .. } => {
                        args.iter_mut().for_each(|arg| number_expr(arg, next))
                    }
                }
                if let Some(on) = &mut source.on {
                    number_expr(on, next);
                }
            }
            for output in &mut core.outputs {
                if let OutputTerm::Expr { expr, .. } = output {
                    number_expr(expr, next);
                }
            }
            let rest = core.filter.iter_mut().chain(&mut core.group_by).chain(core.having.iter_mut());
            rest.for_each(|expr| number_expr(expr, next));
            for (_, window) in &mut core.windows {
                window.partition_by.iter_mut().for_each(|expr| number_expr(expr, next));
                window.rest.iter_mut().for_each(|part| number_part(part, next));
            }
        }
    }
    query.order_by.iter_mut().for_each(|expr| number_expr(expr, next));
}

fn number_expr(expr: &mut Expr, next: &mut usize) {
    expr.parts.iter_mut().for_each(|part| number_part(part, next));
}

fn number_part(part: &mut ExprPart, next: &mut usize) {
    match part {
        ExprPart::Text(_) => {}
        ExprPart::Expr(expr) => number_expr(expr, next),
        ExprPart::Query(query) => number(query, next),
    }
}
