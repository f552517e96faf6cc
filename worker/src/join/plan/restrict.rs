//! Pushing a restriction to some result keys down a query, as far as the topics.

use std::collections::{BTreeSet, HashMap};

use super::names::{Meaning, Names, Scope, SourceColumn, Term, column_of, is_optional, source_name};
use super::print::print_expr;
use super::row::{Cast, Hint, RowExpr};
use super::side::{NotASide, Side, What, at};
use super::syntax::{
    Body, Expr, ExprPart, JoinKind, Kind, Query, SourceItem, UNION_ALL, conjuncts, expressions, nested,
    reads_topics,
};
use super::{Link, Matching, Reason};
use crate::fault::{self, Sabotage};

/// The result of restricting a query.
pub(super) struct Restricted {
    pub(super) rules: Vec<Rule>,
    /// By address of an equality: the casts with which an index can answer it.
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

/// Restricts `query` to some values of its column `key_column`.
pub(super) fn restrict(query: &Query, key_column: usize) -> Result<Restricted, Reason> {
    let mut planner = Planner { names: Names { scopes: Vec::new() }, state: Attempt::default() };
    planner.query(query, key_column, Cast::Not, vec![Link::Keys], None)?;
    Ok(Restricted { rules: planner.state.rules, hints: planner.state.hints })
}

/// The state that is undone when a path of the planner fails.
#[derive(Default, Clone)]
struct Attempt {
    rules: Vec<Rule>,
    /// Restricted sources: scope and source.
    reached: BTreeSet<(usize, usize)>,
    /// The scopes of a subquery's arms (none for VALUES), by address of the subquery.
    arms: HashMap<usize, Vec<Option<usize>>>,
    hints: HashMap<usize, Hint>,
}

struct Planner<'q> {
    names: Names<'q>,
    state: Attempt,
}

/// An equality that every result row satisfies, and its place.
struct Edge<'q> {
    /// The source whose ON or USING contains the equality; `None` for WHERE.
    on: Option<usize>,
    left: Side,
    right: Side,
    /// The expression, if the equality is written out.
    expr: Option<&'q Expr>,
}

/// Occurrences that the query itself does not contain are numbered from here: no query is so long.
const LOOK_UPS_FROM: usize = 1 << 20;

impl<'q> Planner<'q> {
    /// Restricts column `column` of a query, with this cast, to the values of `from`.
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

    /// Returns whether the query merges rows with equal values or evaluates them together.
    fn groups(&self, query: &Query, scopes: &[Option<usize>]) -> Result<bool, Reason> {
        if query.arms.iter().any(|arm| arm.operator.is_some_and(|operator| operator != UNION_ALL)) {
            return Ok(true);
        }
        for scope in scopes.iter().flatten() {
            let core = self.names.scopes[*scope].core;
            if core.distinct || self.names.is_aggregate(*scope) || !self.names.partitions(*scope)?.is_empty()
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Adds a scope for each arm of a query.
    fn arms(&mut self, query: &'q Query, parent: Option<usize>) -> Vec<Option<usize>> {
        let scopes: Vec<Option<usize>> = query
            .arms
            .iter()
            .map(|arm| match &arm.body {
                Body::Values(..) => None,
                Body::Core(core) => {
                    let order_by = if query.arms.len() == 1 { &query.order_by[..] } else { &[] };
                    self.names.scopes.push(Scope { core, order_by, parent });
                    Some(self.names.scopes.len() - 1)
                }
            })
            .collect();
        self.state.arms.insert(std::ptr::from_ref(query).addr(), scopes.clone());
        scopes
    }

    fn core(&mut self, scope: usize, column: usize, cast: Cast, from: &[Link]) -> Result<(), Reason> {
        let core = self.names.scopes[scope].core;
        let term = self.names.terms(scope).get(column).copied().ok_or(Reason::Syntax)?;
        let key = || match term {
            Term::Expr(expr) => print_expr(expr),
            Term::At { column: SourceColumn::Topic(column), .. } => column.name().to_owned(),
            Term::At { .. } => format!("column {}", column + 1),
        };
        let mut groupings = self.names.partitions(scope)?;
        if groupings.iter().any(|partition| !self.names.follows_from(scope, term, partition)) {
            return Err(Reason::Window { key: key() });
        }
        if self.names.is_aggregate(scope) {
            if core.group_by.is_empty() {
                return Err(Reason::Global);
            }
            let groups: Vec<String> =
                core.group_by.iter().map(|expr| self.names.group_term(scope, expr)).collect();
            if !self.names.follows_from(scope, term, &groups) {
                return Err(Reason::NotGrouped { key: key() });
            }
            groupings.push(groups);
        }

        if let Some((left, right)) = self.full_join_key(scope, term) {
            self.source(&left, cast, from)?;
            self.source(&right, cast, from)?;
            return self.subqueries(scope);
        }
        let side = self.names.side_of(scope, term).map_err(|trouble| match trouble {
            NotASide::Several => Reason::KeyOfSeveral { key: key() },
            NotASide::NotIndexable => Reason::NotIndexable { key: key() },
            NotASide::OfSubquery => Reason::KeyOfSubquery { key: key() },
        })?;
        if side.scope != scope {
            return Err(Reason::KeyOfSeveral { key: key() });
        }
        let mut inner = None;
        if is_optional(core, side.source) {
            // A value other than NULL comes from rows that matched, as in an inner join.
            let alone = core.sources[side.source].kind == JoinKind::Left
                && core.sources[side.source + 1..]
                    .iter()
                    .all(|source| matches!(source.kind, JoinKind::Inner | JoinKind::Left));
            if from.contains(&Link::Keys) || !alone || !self.names.is_strict(&side) {
                return Err(Reason::Optional { key: key() });
            }
            inner = Some(side.source);
        }
        if groupings.iter().all(|groups| self.names.is_one_of_a_group(scope, term, groups)) {
            self.source(&side, cast, from)?;
        } else {
            self.whole_groups(term, &side, &groupings, cast, from)
                .ok_or_else(|| Reason::Spelling { key: key() })??;
        }
        self.spread(scope, inner)?;
        self.subqueries(scope)
    }

    /// Restricts a source to the rows that yield a value of `from`, and to all rows of their groups even if these
    /// yield other values: an extra occurrence that the query doesn't read finds the former, and its rows find the
    /// latter. Returns `None` if the groups are unknown.
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
        let SourceItem::Topic { name, .. } = &self.names.scopes[side.scope].core.sources[side.source].item
        else {
            return None;
        };
        let of_group = self.names.row_of_group(side.scope, expr, groups)?;
        let index = self.state.rules.len();
        let number = LOOK_UPS_FROM + index;
        let by = by.clone().cast(cast);
        self.state.rules.push(Rule { topic: name.clone(), number, by, from: from.to_vec() });
        let mut links = vec![Link::Parent { index, of: of_group.clone(), matching: Matching::Equal }];
        // A result key may be NULL, and NULL links nothing: links to result keys stay.
        links.extend(from.iter().filter(|link| **link == Link::Keys).cloned());
        let side = Side { what: What::Row(of_group), ..side.clone() };
        Some(self.source(&side, Cast::Not, &links))
    }

    /// Restricts one source to the rows that yield, after the cast, a value of `from`.
    fn source(&mut self, side: &Side, cast: Cast, from: &[Link]) -> Result<(), Reason> {
        let core = self.names.scopes[side.scope].core;
        self.state.reached.insert((side.scope, side.source));
        match (&core.sources[side.source].item, &side.what) {
            (SourceItem::Topic { name, occurrence }, What::Row(by)) => {
                self.state.rules.push(Rule {
                    topic: name.clone(),
                    number: *occurrence,
                    by: by.clone().cast(cast),
                    from: from.to_vec(),
                });
                Ok(())
            }
            (SourceItem::Query { query, .. }, What::Query(column)) => {
                self.query(query, *column, cast, from.to_vec(), self.names.scopes[side.scope].parent)
            }
            _ => Err(Reason::Syntax),
        }
    }

    /// Restricts the remaining sources of a scope along equalities with restricted ones. The join of source `inner`
    /// counts as an inner one.
    fn spread(&mut self, scope: usize, inner: Option<usize>) -> Result<(), Reason> {
        let core = self.names.scopes[scope].core;
        for (index, source) in core.sources.iter().enumerate() {
            let needs_none = match &source.item {
                SourceItem::Function { .. } => true,
                SourceItem::Query { query, .. } => !reads_topics(query),
                SourceItem::Topic { .. } => false,
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
            let name = source_name(core, *first);
            let mut reason = match self.is_tied_by_is(scope, *first) {
                true => Reason::NullSafe { source_name: name },
                false => Reason::NoEquality { source_name: name },
            };
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

    /// Returns whether IS compares a value of `source`.
    fn is_tied_by_is(&self, scope: usize, source: usize) -> bool {
        let core = self.names.scopes[scope].core;
        let conditions =
            core.filter.iter().chain(core.sources.iter().filter_map(|source| source.on.as_ref()));
        conditions.flat_map(conjuncts).any(|conjunct| match conjunct.parts.as_slice() {
            [ExprPart::Expr(left), ExprPart::Text(operator), ExprPart::Expr(right)]
                if operator.trim() == "IS" =>
            {
                let sides = [left, right].map(|side| self.names.side_of(scope, Term::Expr(side)));
                sides.into_iter().flatten().any(|side| (side.scope, side.source) == (scope, source))
            }
            _ => false,
        })
    }

    /// Returns how the edge ties `source` to a restricted source: the side of `source`, the other side, and the casts
    /// with which an index can compare them.
    fn usable(
        &self,
        scope: usize,
        source: usize,
        inner: Option<usize>,
        edge: &Edge<'q>,
    ) -> Option<(Side, Side, (Cast, Cast))> {
        let core = self.names.scopes[scope].core;
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
                // The optional side may be reduced to rows that can match; the other side must stay whole.
                JoinKind::Left => source == on || inner == Some(on),
                JoinKind::Right => source < on,
                JoinKind::Full => false,
            },
        };
        if !sound || !self.state.reached.contains(&(other.scope, other.source)) {
            return None;
        }
        let (a, b) = (self.names.affinity(to)?, self.names.affinity(other)?);
        Some((to.clone(), other.clone(), RowExpr::casts(a, b)))
    }

    /// Records the casts with which an edge is printed for the gathered tables.
    fn hint(&mut self, edge: &Edge<'q>) {
        let (Some(expr), Some(a), Some(b)) =
            (edge.expr, self.names.affinity(&edge.left), self.names.affinity(&edge.right))
        else {
            return;
        };
        let (left, right) = RowExpr::casts(a, b);
        let plain = matches!((&edge.left.what, &edge.right.what), (What::Row(_), What::Row(_)));
        if plain && (left, right) != (Cast::Not, Cast::Not) {
            self.state.hints.insert(std::ptr::from_ref(expr).addr(), Hint { left, right });
        }
    }

    /// Restricts the subqueries in the expressions of a scope by the equalities that tie them to its rows.
    fn subqueries(&mut self, scope: usize) -> Result<(), Reason> {
        let Scope { core, order_by, .. } = self.names.scopes[scope];
        let mut found: Vec<(&'q Query, Option<&'q Expr>)> = Vec::new();
        for expr in expressions(core, order_by) {
            nested(expr, &mut |query| found.push((query, None)));
        }
        // An IN that every result row satisfies is an equality too.
        let required = core.filter.iter().chain(
            core.sources.iter().filter(|source| source.kind == JoinKind::Inner).filter_map(|s| s.on.as_ref()),
        );
        for conjunct in required.flat_map(conjuncts) {
            if let (Kind::In { negated: false }, [ExprPart::Expr(left), _, ExprPart::Query(query), _]) =
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
                .and_then(|lhs| self.names.side_of(scope, Term::Expr(lhs)).ok())
                .filter(|side| self.state.reached.contains(&(side.scope, side.source)));
            let Some(side) = links else { return Err(reason) };
            self.member(query, &side, scope).map_err(|_| reason)?;
        }
        Ok(())
    }

    /// Restricts a subquery by equalities with columns of the scope around it.
    fn correlated(&mut self, query: &'q Query, around: usize) -> Result<(), Reason> {
        for scope in self.arms(query, Some(around)).into_iter().flatten() {
            self.names.refuse_outer_aggregates(scope)?;
            self.spread(scope, None).map_err(|reason| match reason {
                Reason::NoEquality { source_name } => Reason::Uncorrelated { source_name },
                other => other,
            })?;
            self.subqueries(scope)?;
        }
        Ok(())
    }

    /// Restricts the subquery behind IN to the values in front of IN.
    fn member(&mut self, query: &'q Query, side: &Side, around: usize) -> Result<(), Reason> {
        let mut affinity = None;
        let before = self.names.scopes.len();
        for scope in self.arms(query, Some(around)).into_iter().flatten() {
            let term = self.names.terms(scope).first().copied().ok_or(Reason::Syntax)?;
            let found = self.names.side_of(scope, term).map_err(|_| Reason::Syntax)?;
            let this = self.names.affinity(&found).ok_or(Reason::Syntax)?;
            if affinity.replace(this).is_some_and(|other| other != this) {
                return Err(Reason::Syntax);
            }
        }
        self.names.scopes.truncate(before);
        let own = self.names.affinity(side).ok_or(Reason::Syntax)?;
        // Both sides must compare without a cast: the subquery's own expressions are not cast.
        if affinity != Some(own) {
            return Err(Reason::Syntax);
        }
        let links = self.values(side, Cast::Not).ok_or(Reason::Syntax)?;
        self.query(query, 0, Cast::Not, links, Some(around))
    }

    /// Returns the values of a restricted side as links.
    fn values(&self, side: &Side, cast: Cast) -> Option<Vec<Link>> {
        let core = self.names.scopes[side.scope].core;
        match (&core.sources[side.source].item, &side.what) {
            (SourceItem::Topic { occurrence, .. }, What::Row(of)) => {
                let index = self.state.rules.iter().position(|rule| rule.number == *occurrence)?;
                let of = of.clone().cast(cast);
                Some(vec![Link::Parent { index, of, matching: Matching::Equal }])
            }
            (SourceItem::Query { query, .. }, What::Query(column)) => {
                let mut links = Vec::new();
                for scope in self.state.arms.get(&std::ptr::from_ref::<Query>(query).addr())? {
                    let scope = (*scope)?;
                    let term = *self.names.terms(scope).get(*column)?;
                    if self.names.is_aggregate(scope) {
                        let core = self.names.scopes[scope].core;
                        let groups: Vec<String> =
                            core.group_by.iter().map(|expr| self.names.group_term(scope, expr)).collect();
                        if !self.names.follows_from(scope, term, &groups) {
                            return None;
                        }
                    }
                    let side = self.names.side_of(scope, term).ok()?;
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

    /// Returns both sides of `coalesce(a.x, b.y)` over `a FULL JOIN b ON a.x = b.y`, or of the same join with USING.
    fn full_join_key(&self, scope: usize, term: Term<'q>) -> Option<(Side, Side)> {
        let core = self.names.scopes[scope].core;
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
                let side = |arg: Option<&'q Expr>| self.names.side_of(scope, Term::Expr(arg?)).ok();
                Some((side(args.next())?, side(args.next())?))
            }
            Kind::Column { table: None, name } => match self.names.find(scope, None, name)? {
                Meaning::Merged { .. } => None,
                _ => return None,
            },
            _ => return None,
        };
        self.edges(scope).into_iter().find_map(|edge| {
            if edge.on != Some(1) || self.names.affinity(&edge.left)? != self.names.affinity(&edge.right)? {
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
            // With several conditions, rows that share the key could stay unmatched.
            fits.then_some((edge.left, edge.right))
        })
    }

    /// Returns the equalities that the rows of a scope satisfy, those on a bare key first.
    fn edges(&self, scope: usize) -> Vec<Edge<'q>> {
        let core = self.names.scopes[scope].core;
        let mut edges = Vec::new();
        let mut add = |on: Option<usize>, expr: &'q Expr| {
            for conjunct in conjuncts(expr) {
                let (Kind::Equals, [ExprPart::Expr(left), _, ExprPart::Expr(right)]) =
                    (&conjunct.kind, conjunct.parts.as_slice())
                else {
                    continue;
                };
                let (lefts, rights) = (row_value(left), row_value(right));
                // A row value equals another if each of its values does.
                let pairs =
                    if lefts.len() == rights.len() { lefts.into_iter().zip(rights) } else { continue };
                let expr = Some(conjunct).filter(|_| pairs.len() == 1);
                for (left, right) in pairs {
                    if let Ok(left) = self.names.side_of(scope, Term::Expr(left))
                        && let Ok(right) = self.names.side_of(scope, Term::Expr(right))
                    {
                        edges.push(Edge { on, left, right, expr });
                    }
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
}

/// Returns the values of a row value, `(a, b)`, or the expression itself.
fn row_value(expr: &Expr) -> Vec<&Expr> {
    match (&expr.kind, expr.parts.first()) {
        (Kind::Other, Some(ExprPart::Text(opening))) if opening == "(" => expr.children().collect(),
        _ => vec![expr],
    }
}
