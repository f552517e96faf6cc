//! Printing a query, with each occurrence of a topic read from its own table.

use std::collections::HashMap;
use std::fmt::Write as _;

use super::row::Hint;
use super::syntax::{
    Arm, Body, Expr, ExprPart, Kind, OutputTerm, Query, SelectCore, Source, SourceItem, window_parts,
};
use super::table_name;
use crate::storage::sqlite::quoted;

/// Prints the query; equalities with a hint (by address) are printed a second time in a form that an index can answer.
pub(super) fn print(query: &Query, reads: Reads<'_>, hints: &HashMap<usize, Hint>) -> String {
    let mut printer = Printer { sql: String::new(), reads, hints };
    printer.query(query);
    printer.sql
}

/// Prints the query over the topics themselves.
pub(super) fn print_plain(query: &Query) -> String {
    let hints = HashMap::new();
    let mut printer = Printer { sql: String::new(), reads: Reads::Topics, hints: &hints };
    printer.query(query);
    printer.sql
}

/// The tables that a printed query reads.
#[derive(Clone, Copy)]
pub(super) enum Reads<'a> {
    /// The topics by their names.
    Topics,
    /// A table of its own for each use of a topic.
    Occurrences { join_name: &'a str },
}

/// Prints a single expression.
pub(super) fn print_expr(expr: &Expr) -> String {
    let hints = HashMap::new();
    let mut printer = Printer { sql: String::new(), reads: Reads::Topics, hints: &hints };
    printer.expr(expr);
    printer.sql
}

struct Printer<'a> {
    sql: String,
    reads: Reads<'a>,
    hints: &'a HashMap<usize, Hint>,
}

impl Printer<'_> {
    fn text(&mut self, text: &str) {
        self.sql.push_str(text);
    }

    fn query(&mut self, query: &Query) {
        for Arm { operator, body } in &query.arms {
            if let Some(operator) = operator {
                let _ = write!(self.sql, " {operator} ");
            }
            match body {
                Body::Values(text, _) => self.text(text),
                Body::Core(core) => self.core(core),
            }
        }
        self.list(" ORDER BY ", &query.order_by);
        if let Some(limit) = &query.limit {
            let _ = write!(self.sql, " {limit}");
        }
    }

    fn core(&mut self, core: &SelectCore) {
        self.text(if core.distinct { "SELECT DISTINCT " } else { "SELECT " });
        for (index, output) in core.outputs.iter().enumerate() {
            if index > 0 {
                self.text(", ");
            }
            match output {
                OutputTerm::Star(None) => self.text("*"),
                OutputTerm::Star(Some(alias)) => {
                    let _ = write!(self.sql, "{}.*", quoted(alias));
                }
                OutputTerm::Expr { expr, name } => {
                    self.expr(expr);
                    if let Some(name) = name {
                        let _ = write!(self.sql, " AS {}", quoted(name));
                    }
                }
            }
        }
        for (index, source) in core.sources.iter().enumerate() {
            match (index, source.operator.as_str()) {
                (0, _) => self.text(" FROM "),
                (_, ",") => self.text(", "),
                (_, operator) => {
                    let _ = write!(self.sql, " {operator} ");
                }
            }
            self.source(source);
        }
        self.clause(" WHERE ", core.filter.as_ref());
        self.list(" GROUP BY ", &core.group_by);
        self.clause(" HAVING ", core.having.as_ref());
        for (index, (name, window)) in core.windows.iter().enumerate() {
            let _ = write!(self.sql, "{}{} AS (", if index == 0 { " WINDOW " } else { ", " }, quoted(name));
            self.parts(&window_parts(window.clone()));
            self.text(")");
        }
    }

    fn source(&mut self, source: &Source) {
        match &source.item {
            SourceItem::Topic { occurrence, name } => match self.reads {
                Reads::Topics => self.text(&quoted(name)),
                Reads::Occurrences { join_name } => self.text(&table_name(join_name, *occurrence)),
            },
            SourceItem::Query { query, columns } if columns.is_empty() => {
                self.text("(");
                self.query(query);
                self.text(")");
            }
            SourceItem::Query { query, columns } => {
                let columns: Vec<String> = columns.iter().map(|column| quoted(column)).collect();
                let _ = write!(self.sql, "(WITH _named({}) AS (", columns.join(", "));
                self.query(query);
                self.text(") SELECT * FROM _named)");
            }
            SourceItem::Function { name, args } => {
                self.text(name);
                self.text("(");
                self.list("", args);
                self.text(")");
            }
        }
        if let Some(alias) = &source.alias {
            let _ = write!(self.sql, " AS {}", quoted(alias));
        }
        self.clause(" ON ", source.on.as_ref());
        if !source.using.is_empty() {
            let names: Vec<String> = source.using.iter().map(|name| quoted(name)).collect();
            let _ = write!(self.sql, " USING ({})", names.join(", "));
        }
    }

    fn clause(&mut self, keyword: &str, expr: Option<&Expr>) {
        if let Some(expr) = expr {
            self.text(keyword);
            self.expr(expr);
        }
    }

    fn list(&mut self, keyword: &str, exprs: &[Expr]) {
        for (index, expr) in exprs.iter().enumerate() {
            self.text(if index == 0 { keyword } else { ", " });
            self.expr(expr);
        }
    }

    fn expr(&mut self, expr: &Expr) {
        let hint = self.hints.get(&std::ptr::from_ref(expr).addr());
        let sides = [expr.parts.first(), expr.parts.last()];
        if let (Some(hint), Kind::Equals, [Some(ExprPart::Expr(left)), Some(ExprPart::Expr(right))]) =
            (hint, &expr.kind, sides)
        {
            self.text("(");
            self.parts(&expr.parts);
            for (keyword, side, cast) in [(" AND ", left, hint.left), (" = ", right, hint.right)] {
                self.text(keyword);
                self.text(if cast.behind().is_empty() { "" } else { "CAST(" });
                self.expr(side);
                self.text(cast.behind());
            }
            self.text(")");
        } else {
            self.parts(&expr.parts);
        }
    }

    fn parts(&mut self, parts: &[ExprPart]) {
        for part in parts {
            match part {
                ExprPart::Text(text) => self.text(text),
                ExprPart::Expr(expr) => self.expr(expr),
                ExprPart::Query(query) => self.query(query),
            }
        }
    }
}
