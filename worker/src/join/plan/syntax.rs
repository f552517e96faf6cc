//! A query as a tree that can be read, cloned and printed again. [`parse`](super::parse) builds it.
//!
//! Names of common table expressions and of other joins are replaced by their queries, so that each use of a topic is
//! an occurrence of its own.

use crate::storage::sqlite::quoted;

/// A SELECT: arms joined by UNION and its like, then an order and a limit.
#[derive(Debug, Clone)]
pub(super) struct Query {
    pub(super) arms: Vec<Arm>,
    pub(super) order_by: Vec<Expr>,
    /// LIMIT and OFFSET as text.
    pub(super) limit: Option<String>,
}

/// The operator that keeps all rows of both its arms as they are.
pub(super) const UNION_ALL: &str = "UNION ALL";

/// One arm of a query, with the operator in front of it (none before the first).
#[derive(Debug, Clone)]
pub(super) struct Arm {
    pub(super) operator: Option<&'static str>,
    pub(super) body: Body,
}

#[derive(Debug, Clone)]
pub(super) enum Body {
    Core(Box<SelectCore>),
    /// `VALUES …` as text, with its number of columns.
    Values(String, usize),
}

/// `SELECT … FROM … WHERE … GROUP BY … HAVING …`.
#[derive(Debug, Clone)]
pub(super) struct SelectCore {
    pub(super) distinct: bool,
    pub(super) outputs: Vec<OutputTerm>,
    pub(super) sources: Vec<Source>,
    pub(super) filter: Option<Expr>,
    pub(super) group_by: Vec<Expr>,
    pub(super) having: Option<Expr>,
    /// Named windows.
    pub(super) windows: Vec<(String, Window)>,
}

/// A term of the select list.
#[derive(Debug, Clone)]
pub(super) enum OutputTerm {
    Expr {
        expr: Expr,
        name: Option<String>,
    },
    /// `*`, or `alias.*`.
    Star(Option<String>),
}

/// How a source is joined to those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum JoinKind {
    /// The first source, a comma, JOIN, CROSS JOIN.
    Inner,
    Left,
    Right,
    Full,
}

/// A term of FROM.
#[derive(Debug, Clone)]
pub(super) struct Source {
    pub(super) kind: JoinKind,
    /// The join operator as written; empty for the first source.
    pub(super) operator: String,
    pub(super) item: SourceItem,
    /// The name that qualifies columns of the source.
    pub(super) alias: Option<String>,
    pub(super) on: Option<Expr>,
    pub(super) using: Vec<String>,
}

#[derive(Debug, Clone)]
pub(super) enum SourceItem {
    /// A topic; occurrences are numbered in the order of the text.
    Topic { name: String, occurrence: usize },
    /// A subquery, with names for its columns if the query around it gives any.
    Query { query: Box<Query>, columns: Vec<String> },
    /// A table function.
    Function { name: String, args: Vec<Expr> },
}

/// An expression: its meaning to the planner, and the pieces from which it is printed.
#[derive(Debug, Clone)]
pub(super) struct Expr {
    pub(super) kind: Kind,
    pub(super) parts: Vec<ExprPart>,
}

#[derive(Debug, Clone)]
pub(super) enum ExprPart {
    Text(String),
    Expr(Expr),
    Query(Box<Query>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Column {
        table: Option<String>,
        name: String,
    },
    Literal,
    /// `a = b`.
    Equals,
    /// `a < b` and its like.
    Comparison(Operator),
    /// `a BETWEEN b AND c`, also negated.
    Between,
    /// `-a` and `+a`.
    Sign,
    And,
    Parenthesis,
    /// `->` or `->>`.
    Arrow,
    /// `||` and arithmetic that never fails.
    Arithmetic,
    Cast {
        to: String,
    },
    Function {
        name: String,
        distinct: bool,
        args: usize,
        over: Option<Box<Over>>,
    },
    /// `a IN (SELECT …)`.
    In {
        negated: bool,
    },
    /// EXISTS or a scalar subquery.
    Subquery,
    /// Any other expression.
    Other,
}

/// How two values are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// `<>`, IS and IS NOT; `=` is a kind of its own.
    Equality,
}

impl Operator {
    /// Returns the operator that says the same with its sides exchanged.
    pub(super) fn flipped(self) -> Self {
        match self {
            Self::Less => Self::Greater,
            Self::LessOrEqual => Self::GreaterOrEqual,
            Self::Greater => Self::Less,
            Self::GreaterOrEqual => Self::LessOrEqual,
            Self::Equality => Self::Equality,
        }
    }
}

/// The window behind OVER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Over {
    Name(String),
    /// The window itself; its partition terms are the first parts of the call behind the arguments.
    Inline {
        partition: usize,
        base: Option<String>,
    },
}

/// A named window.
#[derive(Debug, Clone)]
pub(super) struct Window {
    pub(super) base: Option<String>,
    pub(super) partition_by: Vec<Expr>,
    /// ORDER BY and the frame.
    pub(super) rest: Vec<ExprPart>,
}

impl Expr {
    pub(super) fn children(&self) -> impl Iterator<Item = &Expr> {
        self.parts.iter().filter_map(|part| match part {
            ExprPart::Expr(expr) => Some(expr),
            _ => None,
        })
    }

    /// Returns the expression without the parentheses around it.
    pub(super) fn bare(&self) -> &Expr {
        match (&self.kind, self.parts.as_slice()) {
            (Kind::Parenthesis, [_, ExprPart::Expr(inner), _]) => inner.bare(),
            _ => self,
        }
    }
}

/// The text before the first partition term of a window.
pub(super) const PARTITION: &str = "PARTITION BY ";

/// Returns the parts between the parentheses of a window.
pub(super) fn window_parts(window: Window) -> Vec<ExprPart> {
    let mut parts = Vec::new();
    if let Some(base) = window.base {
        parts.push(ExprPart::Text(format!("{} ", quoted(&base))));
    }
    for (index, term) in window.partition_by.into_iter().enumerate() {
        parts.push(text(if index == 0 { PARTITION } else { ", " }));
        parts.push(ExprPart::Expr(term));
    }
    parts.extend(window.rest);
    parts
}

pub(super) fn text(text: &str) -> ExprPart {
    ExprPart::Text(text.to_owned())
}

/// Returns all expressions of a core that the planner examines.
pub(super) fn expressions<'q>(core: &'q SelectCore, order_by: &'q [Expr]) -> impl Iterator<Item = &'q Expr> {
    let outputs = core.outputs.iter().filter_map(|output| match output {
        OutputTerm::Expr { expr, .. } => Some(expr),
        OutputTerm::Star(_) => None,
    });
    let sources = core.sources.iter().flat_map(|source| {
        let args = match &source.item {
            SourceItem::Function { args, .. } => args.as_slice(),
            _ => &[],
        };
        source.on.iter().chain(args)
    });
    let windows = core.windows.iter().flat_map(|(_, window)| {
        window.partition_by.iter().chain(window.rest.iter().filter_map(|part| match part {
            ExprPart::Expr(expr) => Some(expr),
            _ => None,
        }))
    });
    outputs
        .chain(sources)
        .chain(&core.filter)
        .chain(&core.group_by)
        .chain(&core.having)
        .chain(windows)
        .chain(order_by)
}

/// Calls `each` for the subqueries right below an expression.
pub(super) fn nested<'q>(expr: &'q Expr, each: &mut dyn FnMut(&'q Query)) {
    for part in &expr.parts {
        match part {
            ExprPart::Text(_) => {}
            ExprPart::Expr(expr) => nested(expr, each),
            ExprPart::Query(query) => each(query),
        }
    }
}

/// Returns whether `is` holds for the expression or one within it, subqueries excluded.
pub(super) fn any<'q>(expr: &'q Expr, mut is: impl FnMut(&'q Expr) -> bool) -> bool {
    fn walk<'q>(expr: &'q Expr, is: &mut dyn FnMut(&'q Expr) -> bool) -> bool {
        is(expr) || expr.children().any(|child| walk(child, is))
    }
    walk(expr, &mut is)
}

/// Returns the terms joined by AND.
pub(super) fn conjuncts(expr: &Expr) -> Vec<&Expr> {
    let expr = expr.bare();
    match (&expr.kind, expr.parts.as_slice()) {
        (Kind::And, [ExprPart::Expr(left), _, ExprPart::Expr(right)]) => {
            let mut terms = conjuncts(left);
            terms.extend(conjuncts(right));
            terms
        }
        _ => vec![expr],
    }
}

pub(super) fn reads_topics(query: &Query) -> bool {
    query.arms.iter().any(|arm| match &arm.body {
        Body::Values(..) => false,
        Body::Core(core) => {
            let in_from = core.sources.iter().any(|source| match &source.item {
                SourceItem::Topic { .. } => true,
                SourceItem::Query { query, .. } => reads_topics(query),
                SourceItem::Function { .. } => false,
            });
            let mut found = in_from;
            for expr in expressions(core, &[]) {
                nested(expr, &mut |query| found |= reads_topics(query));
            }
            found
        }
    })
}
