//! Pushing "only these result keys" down a query, as far as the topics.

use std::collections::{BTreeSet, HashMap};

use super::print::print_expr;
use super::row::{Affinity, Cast, Column, RowExpr};
use super::syntax::{
    Body, Core, Expr, Item, JoinKind, Kind, Output, Over, PARTITION, Part, Query, UNION_ALL,
};
use super::{Link, Matching, Reason};
use crate::fault::{self, Sabotage};

/// What was found out about a query.
pub(super) struct Restricted {
    pub(super) rules: Vec<Rule>,
    /// By address of an equality: how to say it so that an index can answer.
    pub(super) hints: HashMap<usize, Hint>,
}

/// How one occurrence of a topic is gathered.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) topic: String,
    pub(super) number: usize,
    pub(super) by: RowExpr,
    pub(super) from: Vec<Link>,
}

/// The casts around both sides of an equality.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hint {
    pub(super) left: Cast,
    pub(super) right: Cast,
}

/// Restricts `query` to some values of its column `key_column`.
pub(super) fn restrict(query: &Query, key_column: usize) -> Result<Restricted, Reason> {
    let mut planner = Planner { scopes: Vec::new(), state: State::default() };
    planner.query(query, key_column, Cast::Not, vec![Link::Keys], None)?;
    Ok(Restricted { rules: planner.state.rules, hints: planner.state.hints })
}

/// A SELECT core and the one around it whose columns it can see.
#[derive(Clone, Copy)]
pub(super) struct Scope<'q> {
    core: &'q Core,
    /// ORDER BY of the query that it is the only arm of.
    order_by: &'q [Expr],
    parent: Option<usize>,
}

/// What is undone when a way turns out to be barred.
#[derive(Default, Clone)]
pub(super) struct State {
    rules: Vec<Rule>,
    /// Sources that are restricted: scope and source.
    reached: BTreeSet<(usize, usize)>,
    /// The scopes of a subquery's arms (none for VALUES), by address of the subquery.
    arms: HashMap<usize, Vec<Option<usize>>>,
    hints: HashMap<usize, Hint>,
}

pub(super) struct Planner<'q> {
    scopes: Vec<Scope<'q>>,
    state: State,
}

/// A column of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SourceColumn {
    Topic(Column),
    /// By number.
    Query(usize),
    Function,
}

/// What a name means.
pub(super) enum Found<'q> {
    Column {
        scope: usize,
        source: usize,
        column: SourceColumn,
    },
    /// A column of USING in an outer join: the first of two sources that is not NULL.
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

/// One side of an equality: something that a single source gives.
#[derive(Debug, Clone)]
pub(super) struct Side {
    scope: usize,
    source: usize,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    /// An expression over a topic's row.
    Row(RowExpr),
    /// A column of a subquery.
    Query(usize),
}

/// An equality that every result row satisfies, at its place.
struct Edge<'q> {
    /// The source in whose ON or USING it stands; WHERE has none.
    on: Option<usize>,
    left: Side,
    right: Side,
    /// Where it is written out.
    expr: Option<&'q Expr>,
}

const AGGREGATES: [&str; 12] = [
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
];

/// Functions of one row that never fail, give equal values for equal ones, and are NULL if an argument is.
const STRICT: [&str; 10] =
    ["lower", "upper", "trim", "ltrim", "rtrim", "length", "substr", "substring", "instr", "round"];

/// The same, but perhaps not NULL.
const TOTAL: [&str; 4] = ["coalesce", "ifnull", "nullif", "typeof"];

/// Functions that give texts alone, or integers alone.
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

/// Numbers of occurrences that stand in no query begin here: no query is so long.
const LOOK_UPS_FROM: usize = 1 << 20;

/// Functions of a time; only fit for an index when it is given in seconds.
const TIME: [&str; 6] = ["date", "time", "datetime", "julianday", "unixepoch", "strftime"];

/// Columns of json_each and json_tree.
const JSON_COLUMNS: [&str; 10] =
    ["key", "value", "type", "atom", "id", "parent", "fullkey", "path", "json", "root"];

impl<'q> Planner<'q> {
    /// Looks at one SELECT as it is; it is scope 0.
    pub(super) fn of(core: &'q Core) -> Self {
        Self { scopes: vec![Scope { core, order_by: &[], parent: None }], state: State::default() }
    }

    /// Restricts column `column` of a query, cast so, to the values of `from`.
    fn query(
        &mut self,
        query: &'q Query,
        column: usize,
        mut cast: Cast,
        mut from: Vec<Link>,
        parent: Option<usize>,
    ) -> Result<(), Reason> {
        if query.limit.is_some() {
            return Err(Reason::Limit);
        }
        let scopes = self.arms(query, parent);
        if cast == Cast::Text && self.groups(query, &scopes)? && !fault::sabotaged(Sabotage::SplitGroups) {
            // As texts, equal numbers of a group may differ.
            cast = Cast::Not;
            from.iter_mut().for_each(Link::match_as_text);
        }
        for scope in scopes.into_iter().flatten() {
            self.core(scope, column, cast, &from)?;
        }
        Ok(())
    }

    /// Whether rows of a query whose values are equal become one, or are looked at together.
    fn groups(&self, query: &Query, scopes: &[Option<usize>]) -> Result<bool, Reason> {
        if query.arms.iter().any(|arm| arm.operator.is_some_and(|operator| operator != UNION_ALL)) {
            return Ok(true);
        }
        for scope in scopes.iter().flatten() {
            let core = self.scopes[*scope].core;
            if core.distinct || self.is_aggregate(*scope) || !self.partitions(*scope)?.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Makes a scope of each arm of a query.
    fn arms(&mut self, query: &'q Query, parent: Option<usize>) -> Vec<Option<usize>> {
        let scopes: Vec<Option<usize>> = query
            .arms
            .iter()
            .map(|arm| match &arm.body {
                Body::Values(..) => None,
                Body::Core(core) => {
                    let order_by = if query.arms.len() == 1 { &query.order_by[..] } else { &[] };
                    self.scopes.push(Scope { core, order_by, parent });
                    Some(self.scopes.len() - 1)
                }
            })
            .collect();
        self.state.arms.insert(std::ptr::from_ref(query).addr(), scopes.clone());
        scopes
    }

    fn core(&mut self, scope: usize, column: usize, cast: Cast, from: &[Link]) -> Result<(), Reason> {
        let core = self.scopes[scope].core;
        let term = self.terms(scope).get(column).copied().ok_or(Reason::Syntax)?;
        let key = || match term {
            Term::Expr(expr) => print_expr(expr),
            Term::At { column: SourceColumn::Topic(column), .. } => column.name().to_owned(),
            Term::At { .. } => format!("column {}", column + 1),
        };
        let mut groupings = self.partitions(scope)?;
        if groupings.iter().any(|partition| !self.follows_from(scope, term, partition)) {
            return Err(Reason::Window { key: key() });
        }
        if self.is_aggregate(scope) {
            if core.group_by.is_empty() {
                return Err(Reason::Global);
            }
            let groups: Vec<String> = core.group_by.iter().map(|expr| self.group_term(scope, expr)).collect();
            if !self.follows_from(scope, term, &groups) {
                return Err(Reason::NotGrouped { key: key() });
            }
            groupings.push(groups);
        }

        if let Some((left, right)) = self.full_join_key(scope, term) {
            self.source(&left, cast, from)?;
            self.source(&right, cast, from)?;
            return self.subqueries(scope);
        }
        let side = self.side_of(scope, term).map_err(|trouble| match trouble {
            Trouble::Several => Reason::KeyOfSeveral { key: key() },
            Trouble::NotIndexable => Reason::NotIndexable { key: key() },
        })?;
        if side.scope != scope {
            return Err(Reason::KeyOfSeveral { key: key() });
        }
        let mut inner = None;
        if is_optional(core, side.source) {
            // A value that is not NULL comes from rows that have matched, as if the join were an inner one.
            let alone = core.sources[side.source].kind == JoinKind::Left
                && core.sources[side.source + 1..]
                    .iter()
                    .all(|source| matches!(source.kind, JoinKind::Inner | JoinKind::Left));
            if from.contains(&Link::Keys) || !alone || !self.is_strict(&side) {
                return Err(Reason::Optional { key: key() });
            }
            inner = Some(side.source);
        }
        if groupings.iter().all(|groups| self.is_one_of_a_group(scope, term, groups)) {
            self.source(&side, cast, from)?;
        } else {
            self.whole_groups(term, &side, &groupings, cast, from)
                .ok_or_else(|| Reason::Spelling { key: key() })??;
        }
        self.spread(scope, inner)?;
        self.subqueries(scope)
    }

    /// Restricts a source to the rows that give a value of `from`, and to all that are in a group with them, though
    /// they give others: an occurrence that the query doesn't read finds the former, and its rows the latter. `None` if
    /// the groups can't be told.
    fn whole_groups(
        &mut self,
        term: Term<'q>,
        side: &Side,
        groupings: &[Vec<String>],
        cast: Cast,
        from: &[Link],
    ) -> Option<Result<(), Reason>> {
        let (Term::Expr(expr), What::Row(by)) = (term, &side.what) else { return None };
        let (groups, others) = groupings.split_first()?;
        if others.iter().any(|other| other != groups) {
            return None;
        }
        let Item::Topic { name, .. } = &self.scopes[side.scope].core.sources[side.source].item else {
            return None;
        };
        let of_group = self.row_of_group(side.scope, expr, groups)?;
        let index = self.state.rules.len();
        let number = LOOK_UPS_FROM + index;
        let by = by.clone().cast(cast);
        self.state.rules.push(Rule { topic: name.clone(), number, by, from: from.to_vec() });
        let mut links = vec![Link::Parent { index, of: of_group.clone(), matching: Matching::Equal }];
        // NULL, by which a result key may be none, links nothing.
        links.extend(from.iter().filter(|link| **link == Link::Keys).cloned());
        let side = Side { what: What::Row(of_group), ..side.clone() };
        Some(self.source(&side, Cast::Not, &links))
    }

    /// Restricts one source to the rows that give, after the cast, a value of `from`.
    fn source(&mut self, side: &Side, cast: Cast, from: &[Link]) -> Result<(), Reason> {
        let core = self.scopes[side.scope].core;
        self.state.reached.insert((side.scope, side.source));
        match (&core.sources[side.source].item, &side.what) {
            (Item::Topic { name, occurrence }, What::Row(by)) => {
                self.state.rules.push(Rule {
                    topic: name.clone(),
                    number: *occurrence,
                    by: by.clone().cast(cast),
                    from: from.to_vec(),
                });
                Ok(())
            }
            (Item::Query { query, .. }, What::Query(column)) => {
                self.query(query, *column, cast, from.to_vec(), self.scopes[side.scope].parent)
            }
            _ => Err(Reason::Syntax),
        }
    }

    /// Restricts the sources of a scope that are not restricted yet, along equalities with those that are. The join
    /// of source `inner` counts as an inner one.
    fn spread(&mut self, scope: usize, inner: Option<usize>) -> Result<(), Reason> {
        let core = self.scopes[scope].core;
        for (index, source) in core.sources.iter().enumerate() {
            let needs_none = match &source.item {
                Item::Function { .. } => true,
                Item::Query { query, .. } => !reads_topics(query),
                Item::Topic { .. } => false,
            };
            if needs_none {
                self.state.reached.insert((scope, index));
            }
        }
        loop {
            let unreached: Vec<usize> = (0..core.sources.len())
                .filter(|source| !self.state.reached.contains(&(scope, *source)))
                .collect();
            let Some(first) = unreached.first() else { return Ok(()) };
            let mut reason = Reason::NoEquality { source_name: source_name(core, *first) };
            let mut moved = false;
            'sources: for source in unreached {
                for edge in self.edges(scope) {
                    let Some((to, other, casts)) = self.usable(scope, source, inner, &edge) else { continue };
                    let Some(links) = self.values(&other, casts.1) else { continue };
                    let before = self.state.clone();
                    match self.source(&to, casts.0, &links) {
                        Ok(()) => {
                            self.hint(&edge);
                            moved = true;
                            break 'sources;
                        }
                        Err(barred) => {
                            self.state = before;
                            reason = barred;
                        }
                    }
                }
            }
            if !moved {
                return Err(reason);
            }
        }
    }

    /// Whether the edge ties `source` to something restricted: its side of the edge, the other one, and the casts
    /// that make both comparable by an index.
    fn usable(
        &self,
        scope: usize,
        source: usize,
        inner: Option<usize>,
        edge: &Edge<'q>,
    ) -> Option<(Side, Side, (Cast, Cast))> {
        let core = self.scopes[scope].core;
        let is_it = |side: &Side| side.scope == scope && side.source == source;
        let (to, other) = match (is_it(&edge.left), is_it(&edge.right)) {
            (true, false) => (&edge.left, &edge.right),
            (false, true) => (&edge.right, &edge.left),
            _ => return None,
        };
        let sound = match edge.on {
            None => true,
            Some(on) => match core.sources[on].kind {
                JoinKind::Inner => true,
                // The optional side may be cut down to what can match; the other one must stay whole.
                JoinKind::Left => source == on || inner == Some(on),
                JoinKind::Right => source < on,
                JoinKind::Full => false,
            },
        };
        if !sound || !self.state.reached.contains(&(other.scope, other.source)) {
            return None;
        }
        let (a, b) = (self.affinity(to)?, self.affinity(other)?);
        Some((to.clone(), other.clone(), RowExpr::casts(a, b)))
    }

    /// Remembers how an edge is told to SQLite in the gathered tables.
    fn hint(&mut self, edge: &Edge<'q>) {
        let (Some(expr), Some(a), Some(b)) =
            (edge.expr, self.affinity(&edge.left), self.affinity(&edge.right))
        else {
            return;
        };
        let (left, right) = RowExpr::casts(a, b);
        let plain = matches!((&edge.left.what, &edge.right.what), (What::Row(_), What::Row(_)));
        if plain && (left, right) != (Cast::Not, Cast::Not) {
            self.state.hints.insert(std::ptr::from_ref(expr).addr(), Hint { left, right });
        }
    }

    /// Restricts the subqueries in the expressions of a scope by what ties them to its rows.
    fn subqueries(&mut self, scope: usize) -> Result<(), Reason> {
        let Scope { core, order_by, .. } = self.scopes[scope];
        let mut found: Vec<(&'q Query, Option<&'q Expr>)> = Vec::new();
        for expr in expressions(core, order_by) {
            nested(expr, &mut |query| found.push((query, None)));
        }
        // An IN that every result row satisfies is an equality too.
        let required = core.filter.iter().chain(
            core.sources.iter().filter(|source| source.kind == JoinKind::Inner).filter_map(|s| s.on.as_ref()),
        );
        for conjunct in required.flat_map(conjuncts) {
            if let (Kind::In { negated: false }, [Part::Expr(left), _, Part::Query(query), _]) =
                (&conjunct.kind, conjunct.parts.as_slice())
            {
                let query: &Query = query;
                found
                    .iter_mut()
                    .filter(|(other, _)| std::ptr::eq(*other, query))
                    .for_each(|(_, lhs)| *lhs = Some(left));
            }
        }
        for (query, lhs) in found {
            let before = self.state.clone();
            let Err(reason) = self.correlated(query, scope) else { continue };
            self.state = before;
            let links = lhs
                .and_then(|lhs| self.side_of(scope, Term::Expr(lhs)).ok())
                .filter(|side| self.state.reached.contains(&(side.scope, side.source)));
            let Some(side) = links else { return Err(reason) };
            self.member(query, &side, scope).map_err(|_| reason)?;
        }
        Ok(())
    }

    /// Restricts a subquery by equalities with columns from around it.
    fn correlated(&mut self, query: &'q Query, around: usize) -> Result<(), Reason> {
        for scope in self.arms(query, Some(around)).into_iter().flatten() {
            self.refuse_outer_aggregates(scope)?;
            self.spread(scope, None).map_err(|reason| match reason {
                Reason::NoEquality { source_name } => Reason::Uncorrelated { source_name },
                other => other,
            })?;
            self.subqueries(scope)?;
        }
        Ok(())
    }

    /// Restricts the subquery behind IN to the values in front of it.
    fn member(&mut self, query: &'q Query, side: &Side, around: usize) -> Result<(), Reason> {
        let mut affinity = None;
        let before = self.scopes.len();
        for scope in self.arms(query, Some(around)).into_iter().flatten() {
            let term = self.terms(scope).first().copied().ok_or(Reason::Syntax)?;
            let found = self.side_of(scope, term).map_err(|_| Reason::Syntax)?;
            let this = self.affinity(&found).ok_or(Reason::Syntax)?;
            if affinity.replace(this).is_some_and(|other| other != this) {
                return Err(Reason::Syntax);
            }
        }
        self.scopes.truncate(before);
        let own = self.affinity(side).ok_or(Reason::Syntax)?;
        // Only where both compare as they are: the subquery's own expressions are not cast.
        if affinity != Some(own) {
            return Err(Reason::Syntax);
        }
        let links = self.values(side, Cast::Not).ok_or(Reason::Syntax)?;
        self.query(query, 0, Cast::Not, links, Some(around))
    }

    /// The values that a restricted side has, as links.
    fn values(&self, side: &Side, cast: Cast) -> Option<Vec<Link>> {
        let core = self.scopes[side.scope].core;
        match (&core.sources[side.source].item, &side.what) {
            (Item::Topic { occurrence, .. }, What::Row(of)) => {
                let index = self.state.rules.iter().position(|rule| rule.number == *occurrence)?;
                let of = of.clone().cast(cast);
                Some(vec![Link::Parent { index, of, matching: Matching::Equal }])
            }
            (Item::Query { query, .. }, What::Query(column)) => {
                let mut links = Vec::new();
                for scope in self.state.arms.get(&std::ptr::from_ref::<Query>(query).addr())? {
                    let scope = (*scope)?;
                    let term = *self.terms(scope).get(*column)?;
                    if self.is_aggregate(scope) {
                        let core = self.scopes[scope].core;
                        let groups: Vec<String> =
                            core.group_by.iter().map(|expr| self.group_term(scope, expr)).collect();
                        if !self.follows_from(scope, term, &groups) {
                            return None;
                        }
                    }
                    let side = self.side_of(scope, term).ok()?;
                    if side.scope != scope {
                        return None;
                    }
                    links.extend(self.values(&side, cast)?);
                }
                Some(links)
            }
            _ => None,
        }
    }

    /// What SQLite does to the side's values before comparing; `None` where arms of a subquery differ.
    pub(super) fn affinity(&self, side: &Side) -> Option<Affinity> {
        match &side.what {
            What::Row(expr) => Some(expr.affinity),
            What::Query(column) => {
                let core = self.scopes[side.scope].core;
                let Item::Query { query, .. } = &core.sources[side.source].item else { return None };
                let mut found = None;
                for arm in &query.arms {
                    let Body::Core(core) = &arm.body else { return None };
                    // A scope of its own, since the subquery need not be restricted yet.
                    let mut inner = Planner { scopes: self.scopes.clone(), state: State::default() };
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

    fn is_strict(&self, side: &Side) -> bool {
        match &side.what {
            What::Row(expr) => expr.strict,
            What::Query(_) => true,
        }
    }

    /// `coalesce(a.x, b.y)` of `a FULL JOIN b ON a.x = b.y`, and the same by USING: both sides.
    fn full_join_key(&self, scope: usize, term: Term<'q>) -> Option<(Side, Side)> {
        let core = self.scopes[scope].core;
        let [_, second] = core.sources.as_slice() else { return None };
        if second.kind != JoinKind::Full {
            return None;
        }
        let Term::Expr(expr) = term else { return None };
        let expr = expr.bare();
        let wanted = match &expr.kind {
            Kind::Function { name, args: 2, over: None, distinct: false }
                if ["coalesce", "ifnull"].contains(&name.as_str()) =>
            {
                let mut args = expr.children();
                let side = |arg: Option<&'q Expr>| self.side_of(scope, Term::Expr(arg?)).ok();
                Some((side(args.next())?, side(args.next())?))
            }
            Kind::Column { table: None, name } => match self.find(scope, None, name)? {
                Found::Merged { .. } => None,
                _ => return None,
            },
            _ => return None,
        };
        self.edges(scope).into_iter().find_map(|edge| {
            if edge.on != Some(1) || self.affinity(&edge.left)? != self.affinity(&edge.right)? {
                return None;
            }
            let same = |a: &Side, b: &Side| {
                (a.scope, a.source) == (b.scope, b.source)
                    && match (&a.what, &b.what) {
                        (What::Row(a), What::Row(b)) => a == b,
                        (What::Query(a), What::Query(b)) => a == b,
                        _ => false,
                    }
            };
            let fits = match &wanted {
                None => edge.expr.is_none(),
                Some((a, b)) => {
                    (same(a, &edge.left) && same(b, &edge.right))
                        || (same(a, &edge.right) && same(b, &edge.left))
                }
            };
            // Several conditions would leave rows alone that share the key.
            fits.then_some((edge.left, edge.right))
        })
    }

    /// The equalities that a scope's rows satisfy, those on a bare key first.
    fn edges(&self, scope: usize) -> Vec<Edge<'q>> {
        let core = self.scopes[scope].core;
        let mut edges = Vec::new();
        let mut add = |on: Option<usize>, expr: &'q Expr| {
            for conjunct in conjuncts(expr) {
                if let (Kind::Equals, [Part::Expr(left), _, Part::Expr(right)]) =
                    (&conjunct.kind, conjunct.parts.as_slice())
                    && let Ok(left) = self.side_of(scope, Term::Expr(left))
                    && let Ok(right) = self.side_of(scope, Term::Expr(right))
                {
                    edges.push(Edge { on, left, right, expr: Some(conjunct) });
                }
            }
        };
        if let Some(filter) = &core.filter {
            add(None, filter);
        }
        for (index, source) in core.sources.iter().enumerate() {
            if let Some(on) = &source.on {
                add(Some(index), on);
            }
        }
        for (index, source) in core.sources.iter().enumerate() {
            for name in &source.using {
                let left = (0..index).find_map(|left| Some((left, column_of(core, left, name)?)));
                let right = column_of(core, index, name);
                if let (Some((left, column)), Some(right)) = (left, right)
                    && let Some(left) = at(scope, left, column)
                    && let Some(right) = at(scope, index, right)
                {
                    edges.push(Edge { on: Some(index), left, right, expr: None });
                }
            }
        }
        let by_key = |side: &Side| matches!(&side.what, What::Row(expr) if expr.is_key());
        edges.sort_by_key(|edge| !(by_key(&edge.left) || by_key(&edge.right)));
        edges
    }

    /// Understands a term as something that a single source gives.
    pub(super) fn side_of(&self, scope: usize, term: Term<'q>) -> Result<Side, Trouble> {
        let expr = match term {
            Term::At { source, column } => return at(scope, source, column).ok_or(Trouble::NotIndexable),
            Term::Expr(expr) => expr.bare(),
        };
        let mut places = BTreeSet::new();
        self.places(scope, expr, &mut places)?;
        let mut places = places.into_iter();
        let (Some((at_scope, source)), None) = (places.next(), places.next()) else {
            return Err(Trouble::Several);
        };
        match &self.scopes[at_scope].core.sources[source].item {
            Item::Topic { .. } => {
                let expr = self.row(scope, expr).ok_or(Trouble::NotIndexable)?;
                if expr.is_constant() {
                    return Err(Trouble::NotIndexable);
                }
                Ok(Side { scope: at_scope, source, what: What::Row(expr) })
            }
            Item::Query { .. } => {
                let Kind::Column { table, name } = &expr.kind else { return Err(Trouble::NotIndexable) };
                match self.find(scope, table.as_deref(), name) {
                    Some(Found::Column { scope, source, column }) => {
                        at(scope, source, column).ok_or(Trouble::NotIndexable)
                    }
                    Some(Found::Output { scope, expr }) => self.side_of(scope, Term::Expr(expr)),
                    Some(Found::Merged { right, .. }) => {
                        let column = column_of(self.scopes[scope].core, right, name);
                        column.and_then(|column| at(scope, right, column)).ok_or(Trouble::NotIndexable)
                    }
                    None => Err(Trouble::Several),
                }
            }
            Item::Function { .. } => Err(Trouble::NotIndexable),
        }
    }

    /// The sources whose columns an expression reads.
    fn places(
        &self,
        scope: usize,
        expr: &'q Expr,
        places: &mut BTreeSet<(usize, usize)>,
    ) -> Result<(), Trouble> {
        if let Kind::Column { table, name } = &expr.kind {
            match self.find(scope, table.as_deref(), name).ok_or(Trouble::Several)? {
                Found::Column { scope, source, .. } => {
                    places.insert((scope, source));
                }
                Found::Merged { left, right } => {
                    if self.scopes[scope].core.sources[right].kind == JoinKind::Full {
                        places.insert((scope, left));
                    }
                    places.insert((scope, right));
                }
                Found::Output { scope, expr } => self.places(scope, expr, places)?,
            }
        }
        for part in &expr.parts {
            match part {
                Part::Text(_) => {}
                Part::Expr(expr) => self.places(scope, expr, places)?,
                Part::Query(_) => return Err(Trouble::Several),
            }
        }
        Ok(())
    }

    /// The expression over a topic's row, if an index can hold it.
    fn row(&self, scope: usize, expr: &'q Expr) -> Option<RowExpr> {
        self.row_of_group(scope, expr, &[])
    }

    /// The same with each of the terms `groups` (in canonical form) in one spelling, so that it is equal for all rows
    /// of a group.
    fn row_of_group(&self, scope: usize, expr: &'q Expr, groups: &[String]) -> Option<RowExpr> {
        if !groups.is_empty() && groups.contains(&self.canonical(scope, expr)) {
            return self.row(scope, expr).map(RowExpr::in_one_spelling);
        }
        let row = |expr: &'q Expr| self.row_of_group(scope, expr, groups);
        let inner = || expr.children().map(row).collect::<Option<Vec<_>>>();
        match &expr.kind {
            Kind::Column { table, name } => match self.find(scope, table.as_deref(), name)? {
                // The log does not tell what `_change` was before.
                Found::Column { column: SourceColumn::Topic(column), .. } if column != Column::Change => {
                    Some(RowExpr::column(column))
                }
                Found::Column { .. } => None,
                Found::Merged { .. } => {
                    Column::find(name).filter(|column| *column != Column::Change).map(RowExpr::column)
                }
                Found::Output { scope, expr } => self.row_of_group(scope, expr, groups),
            },
            Kind::Literal => match expr.parts.as_slice() {
                [Part::Text(text)] if !text.starts_with(['x', 'X']) => Some(RowExpr::literal(text)),
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
                let [_, Part::Text(operator), _] = expr.parts.as_slice() else { return None };
                let field = plain_path(path)?;
                let (document, path) = (row(document)?, row(path)?);
                let inner = vec![document.clone(), path];
                let taken = RowExpr::compose(&["", operator, ""], inner, Affinity::None, true);
                Some(taken.taking(&document, field))
            }
            Kind::Arithmetic => {
                let [_, Part::Text(operator), _] = expr.parts.as_slice() else { return None };
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
                    "json_extract" => *args == 2 && plain_path(arguments[1]).is_some(),
                    _ if STRICT.contains(&name) || TOTAL.contains(&name) => *args > 0,
                    _ if TIME.contains(&name) => self.is_time(scope, name, &arguments),
                    _ => false,
                };
                if !fits || expr.children().count() != *args {
                    return None;
                }
                let opening = format!("{name}(");
                let mut texts = vec![opening.as_str()];
                texts.extend(std::iter::repeat_n(", ", args - 1));
                texts.push(")");
                let inner = inner()?;
                let document = inner[0].clone();
                let field = (name == "json_extract").then(|| plain_path(arguments[1])).flatten().flatten();
                let composed = RowExpr::compose(&texts, inner, Affinity::None, !TOTAL.contains(&name));
                Some(composed.taking(&document, field))
            }
            _ => None,
        }
    }

    /// Whether a function of a time reads the column `timestamp` as seconds, and nothing but it.
    fn is_time(&self, scope: usize, name: &str, args: &[&'q Expr]) -> bool {
        let skip = usize::from(name == "strftime");
        let text = |expr: &Expr| match (&expr.kind, expr.parts.as_slice()) {
            (Kind::Literal, [Part::Text(text)]) => Some(text.to_ascii_lowercase()),
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

    /// What a name means in a scope.
    pub(super) fn find(&self, scope: usize, table: Option<&str>, name: &str) -> Option<Found<'q>> {
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
                        return Some(Found::Merged { left: source, right });
                    }
                    _ if uses(right) => {}
                    _ => return None,
                }
            }
            return Some(Found::Column { scope, source, column });
        }
        if table.is_none() {
            for output in &core.outputs {
                if let Output::Expr { expr, name: Some(alias) } = output
                    && alias.eq_ignore_ascii_case(name)
                {
                    return Some(Found::Output { scope, expr });
                }
            }
        }
        self.find(self.scopes[scope].parent?, table, name)
    }

    /// The select list of a scope with `*` written out.
    pub(super) fn terms(&self, scope: usize) -> Vec<Term<'q>> {
        let core = self.scopes[scope].core;
        let mut terms = Vec::new();
        for output in &core.outputs {
            match output {
                Output::Expr { expr, .. } => terms.push(Term::Expr(expr)),
                Output::Star(of) => {
                    for (source, item) in core.sources.iter().enumerate() {
                        let alias = item.alias.as_deref();
                        let wanted = match of {
                            None => true,
                            Some(of) => alias.is_some_and(|alias| alias.eq_ignore_ascii_case(of)),
                        };
                        for (name, column) in wanted.then(|| columns_of(core, source)).into_iter().flatten() {
                            let merged =
                                of.is_none() && item.using.iter().any(|u| u.eq_ignore_ascii_case(&name));
                            if !merged {
                                terms.push(Term::At { source, column });
                            }
                        }
                    }
                }
            }
        }
        terms
    }

    pub(super) fn is_aggregate(&self, scope: usize) -> bool {
        let Scope { core, order_by, .. } = self.scopes[scope];
        !core.group_by.is_empty()
            || core.having.is_some()
            || expressions(core, order_by).any(|expr| any(expr, &is_aggregate_call))
    }

    /// SQLite gives an aggregate over columns from around a subquery to the query around it.
    fn refuse_outer_aggregates(&self, scope: usize) -> Result<(), Reason> {
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

    /// The terms by which each window function of a scope partitions.
    fn partitions(&self, scope: usize) -> Result<Vec<Vec<String>>, Reason> {
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
                        .position(|part| matches!(part, Part::Text(text) if text == PARTITION))
                        .unwrap_or(call.parts.len());
                    let terms = call.parts[start..].iter().filter_map(|part| match part {
                        Part::Expr(expr) => Some(self.canonical(scope, expr)),
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

    /// Whether a term's value follows from the values of `known` (in canonical form).
    fn follows_from(&self, scope: usize, term: Term<'q>, known: &[String]) -> bool {
        let expr = match term {
            Term::At { source, column } => return known.contains(&canonical_column(scope, source, column)),
            Term::Expr(expr) => expr.bare(),
        };
        if known.contains(&self.canonical(scope, expr)) {
            return true;
        }
        match &expr.kind {
            Kind::Column { table, name } => match self.find(scope, table.as_deref(), name) {
                Some(Found::Output { scope, expr }) => self.follows_from(scope, Term::Expr(expr), known),
                _ => false,
            },
            Kind::Function { over: Some(_), .. } | Kind::Subquery | Kind::In { .. } => false,
            _ if is_aggregate_call(expr) => false,
            _ => expr.children().all(|child| self.follows_from(scope, Term::Expr(child), known)),
        }
    }

    /// Whether equal values of `groups` (in canonical form) give equal values of a term that follows from them.
    fn is_one_of_a_group(&self, scope: usize, term: Term<'q>, groups: &[String]) -> bool {
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
                Some(Found::Output { scope, expr }) => {
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

    /// Whether equal values of those of `groups` that an expression reads are written in one way.
    fn reads_one_spelling(&self, scope: usize, expr: &'q Expr, groups: &[String]) -> bool {
        if groups.contains(&self.canonical(scope, expr)) {
            return self.has_one_spelling(scope, expr);
        }
        if let Kind::Column { table, name } = &expr.kind {
            return match self.find(scope, table.as_deref(), name) {
                Some(Found::Output { scope, expr }) => self.reads_one_spelling(scope, expr, groups),
                _ => false,
            };
        }
        expr.children().all(|child| self.reads_one_spelling(scope, child, groups))
    }

    /// Whether an expression gives texts alone, or integers alone.
    fn has_one_spelling(&self, scope: usize, expr: &'q Expr) -> bool {
        let expr = expr.bare();
        match &expr.kind {
            Kind::Column { table, name } => match self.find(scope, table.as_deref(), name) {
                Some(Found::Column { column, .. }) => matches!(column, SourceColumn::Topic(_)),
                Some(Found::Output { scope, expr }) => self.has_one_spelling(scope, expr),
                _ => false,
            },
            Kind::Literal => true,
            Kind::Cast { to } => cast_affinity(to) == Some(Affinity::Text),
            Kind::Arrow | Kind::Arithmetic => {
                let operators = ["->", "||"];
                expr.parts
                    .iter()
                    .any(|part| matches!(part, Part::Text(text) if operators.contains(&text.trim())))
            }
            Kind::Function { name, .. } => ONE_SPELLING.contains(&name.as_str()),
            _ => false,
        }
    }

    /// A GROUP BY term in canonical form; a number stands for a column.
    pub(super) fn group_term(&self, scope: usize, expr: &'q Expr) -> String {
        if let (Kind::Literal, [Part::Text(text)]) = (&expr.bare().kind, expr.bare().parts.as_slice())
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

    /// Text that is the same for expressions that mean the same columns.
    pub(super) fn canonical(&self, scope: usize, expr: &'q Expr) -> String {
        let expr = expr.bare();
        if let Kind::Column { table, name } = &expr.kind {
            match self.find(scope, table.as_deref(), name) {
                Some(Found::Column { scope, source, column }) => {
                    return canonical_column(scope, source, column);
                }
                Some(Found::Output { scope, expr }) => return self.canonical(scope, expr),
                _ => {}
            }
        }
        let mut text = String::new();
        for part in &expr.parts {
            match part {
                Part::Text(piece) => text.push_str(piece),
                // Which belongs to which is told by parentheses alone.
                Part::Expr(expr) => text.push_str(&format!("({})", self.canonical(scope, expr))),
                // Never equal to anything.
                Part::Query(query) => text.push_str(&format!("{:p}", std::ptr::from_ref::<Query>(query))),
            }
        }
        text
    }
}

/// Why a term is nothing that a single source gives.
pub(super) enum Trouble {
    Several,
    NotIndexable,
}

fn at(scope: usize, source: usize, column: SourceColumn) -> Option<Side> {
    let what = match column {
        SourceColumn::Topic(Column::Change) | SourceColumn::Function => return None,
        SourceColumn::Topic(column) => What::Row(RowExpr::column(column)),
        SourceColumn::Query(column) => What::Query(column),
    };
    Some(Side { scope, source, what })
}

fn canonical_column(scope: usize, source: usize, column: SourceColumn) -> String {
    format!("#{scope}.{source}.{column:?}")
}

fn source_name(core: &Core, source: usize) -> String {
    core.sources[source].alias.clone().unwrap_or_else(|| format!("source {}", source + 1))
}

/// Whether rows of the result may lack this source.
pub(super) fn is_optional(core: &Core, source: usize) -> bool {
    matches!(core.sources[source].kind, JoinKind::Left | JoinKind::Full)
        || core.sources[source + 1..]
            .iter()
            .any(|later| matches!(later.kind, JoinKind::Right | JoinKind::Full))
}

fn column_of(core: &Core, source: usize, name: &str) -> Option<SourceColumn> {
    columns_of(core, source)
        .into_iter()
        .find(|(column, _)| column.eq_ignore_ascii_case(name))
        .map(|(_, at)| at)
}

/// The columns of a source by name.
pub(super) fn columns_of(core: &Core, source: usize) -> Vec<(String, SourceColumn)> {
    match &core.sources[source].item {
        Item::Topic { .. } => Column::ALL
            .into_iter()
            .map(|column| (column.name().to_owned(), SourceColumn::Topic(column)))
            .collect(),
        Item::Function { .. } => {
            JSON_COLUMNS.iter().map(|name| ((*name).to_owned(), SourceColumn::Function)).collect()
        }
        Item::Query { query, columns } => {
            let names = if columns.is_empty() { output_names(query) } else { columns.clone() };
            names.into_iter().enumerate().map(|(index, name)| (name, SourceColumn::Query(index))).collect()
        }
    }
}

/// The names of a query's columns, as SQLite gives them.
fn output_names(query: &Query) -> Vec<String> {
    let core = match query.arms.first().map(|arm| &arm.body) {
        Some(Body::Core(core)) => core,
        Some(Body::Values(_, columns)) => return (1..=*columns).map(|n| format!("column{n}")).collect(),
        None => return Vec::new(),
    };
    let mut names = Vec::new();
    for output in &core.outputs {
        match output {
            Output::Expr { name: Some(name), .. } => names.push(name.clone()),
            Output::Expr { expr, name: None } => names.push(match &expr.bare().kind {
                Kind::Column { name, .. } => name.clone(),
                // Whoever reads such a column by name is evaluated in full: it is not found here.
                _ => print_expr(expr),
            }),
            Output::Star(of) => {
                for (source, item) in core.sources.iter().enumerate() {
                    let alias = item.alias.as_deref();
                    let wanted = match of {
                        None => true,
                        Some(of) => alias.is_some_and(|alias| alias.eq_ignore_ascii_case(of)),
                    };
                    let columns = wanted.then(|| columns_of(core, source)).into_iter().flatten();
                    names.extend(columns.map(|(name, _)| name).filter(|name| {
                        !(of.is_none() && item.using.iter().any(|using| using.eq_ignore_ascii_case(name)))
                    }));
                }
            }
        }
    }
    names
}

/// All expressions of a core that may hold something to look at.
fn expressions<'q>(core: &'q Core, order_by: &'q [Expr]) -> impl Iterator<Item = &'q Expr> {
    let outputs = core.outputs.iter().filter_map(|output| match output {
        Output::Expr { expr, .. } => Some(expr),
        Output::Star(_) => None,
    });
    let sources = core.sources.iter().flat_map(|source| {
        let args = match &source.item {
            Item::Function { args, .. } => args.as_slice(),
            _ => &[],
        };
        source.on.iter().chain(args)
    });
    let windows = core.windows.iter().flat_map(|(_, window)| {
        window.partition_by.iter().chain(window.rest.iter().filter_map(|part| match part {
            Part::Expr(expr) => Some(expr),
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
fn nested<'q>(expr: &'q Expr, each: &mut dyn FnMut(&'q Query)) {
    for part in &expr.parts {
        match part {
            Part::Text(_) => {}
            Part::Expr(expr) => nested(expr, each),
            Part::Query(query) => each(query),
        }
    }
}

/// Whether `is` holds for the expression or one within it, subqueries aside.
fn any<'q>(expr: &'q Expr, mut is: impl FnMut(&'q Expr) -> bool) -> bool {
    fn walk<'q>(expr: &'q Expr, is: &mut dyn FnMut(&'q Expr) -> bool) -> bool {
        is(expr) || expr.children().any(|child| walk(child, is))
    }
    walk(expr, &mut is)
}

pub(super) fn is_aggregate_call(expr: &Expr) -> bool {
    match &expr.kind {
        Kind::Function { name, over: None, args, .. } => {
            AGGREGATES.contains(&name.as_str()) && !(["min", "max"].contains(&name.as_str()) && *args > 1)
        }
        _ => false,
    }
}

/// The terms that are joined by AND.
fn conjuncts(expr: &Expr) -> Vec<&Expr> {
    let expr = expr.bare();
    match (&expr.kind, expr.parts.as_slice()) {
        (Kind::And, [Part::Expr(left), _, Part::Expr(right)]) => {
            let mut terms = conjuncts(left);
            terms.extend(conjuncts(right));
            terms
        }
        _ => vec![expr],
    }
}

fn reads_topics(query: &Query) -> bool {
    query.arms.iter().any(|arm| match &arm.body {
        Body::Values(..) => false,
        Body::Core(core) => {
            let in_from = core.sources.iter().any(|source| match &source.item {
                Item::Topic { .. } => true,
                Item::Query { query, .. } => reads_topics(query),
                Item::Function { .. } => false,
            });
            let mut found = in_from;
            for expr in expressions(core, &[]) {
                nested(expr, &mut |query| found |= reads_topics(query));
            }
            found
        }
    })
}

/// The top-level field that a path into JSON goes through, if it is a literal that can't be malformed; none for one that
/// goes elsewhere.
fn plain_path(expr: &Expr) -> Option<Option<String>> {
    let (Kind::Literal, [Part::Text(text)]) = (&expr.kind, expr.parts.as_slice()) else { return None };
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

/// The affinity that a type's name gives; `None` for BLOB.
fn cast_affinity(to: &str) -> Option<Affinity> {
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
