//! Aggregates, by group and over all.

use super::pen::{Pen, Query, Source};

/// Aggregates of a topic by one or two values.
pub(super) fn group_by(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let from = format!("FROM {}{}", pen.read(&a), pen.condition(&[&a]));
    grouped(pen, &[&a], &from)
}

/// Aggregates of a join.
pub(super) fn group_by_of_join(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let kind = pen.pick(&["JOIN", "LEFT JOIN", "FULL JOIN"]);
    let from = format!(
        "FROM {} {kind} {} ON {}{}",
        pen.read(&a),
        pen.read(&b),
        pen.equal(&a, &b),
        pen.condition(&[&a, &b])
    );
    grouped(pen, &[&a, &b], &from)
}

/// Groups of which only some are wanted.
pub(super) fn having(pen: &mut Pen<'_>) -> Query {
    let mut query = group_by(pen);
    let condition = pen.pick(&["count(*) > 1", "count(*) BETWEEN 2 AND 3", "NOT count(*) = 1"]);
    query.sql = format!("{} HAVING {condition}", query.sql);
    query
}

/// Letters in any case in one group.
pub(super) fn group_by_nocase(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let category = pen.category(&a);
    let values = [vec![format!("lower({category})")], aggregates(pen, &[&a])].concat();
    let rest = format!("FROM {} GROUP BY {category} COLLATE NOCASE", pen.read(&a));
    pen.select(&values, &rest)
}

/// One row, whatever there is.
pub(super) fn global(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let is_join = pen.one_in(3);
    let sources = if is_join { vec![&a, &b] } else { vec![&a] };
    let mut values = aggregates(pen, &sources);
    if pen.one_in(2) {
        values.insert(0, "'all'".to_owned());
    }
    let mut from = format!("FROM {}", pen.read(&a));
    if is_join {
        from = format!("{from} JOIN {} ON {}", pen.read(&b), pen.equal(&a, &b));
    }
    let rest = format!("{from}{}", pen.condition(&sources));
    pen.select(&values, &rest)
}

/// Each value once.
pub(super) fn distinct(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let (values, from) = if pen.one_in(2) {
        (vec![pen.group(&a), pen.group(&a)], format!("FROM {}", pen.read(&a)))
    } else {
        let on = pen.equal(&a, &b);
        let kind = pen.pick(&["JOIN", "LEFT JOIN"]);
        (vec![pen.group(&a), pen.group(&b)], format!("FROM {} {kind} {} ON {on}", pen.read(&a), pen.read(&b)))
    };
    let condition = pen.condition(&[&a]);
    let (list, columns) = pen.columns(&values);
    pen.query(format!("SELECT DISTINCT {list} {from}{condition}"), columns)
}

/// Aggregates that follow the rows that come and go, over all, of a group, of a join, or of groups within.
pub(super) fn accumulated(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let kind = pen.pick(&["JOIN", "JOIN", "LEFT JOIN"]);
    let (sources, mut from) = match pen.number_from(0..=2) {
        0 | 1 => (vec![&a], format!("FROM {}", pen.read(&a))),
        _ => {
            let (left, right, on) = (pen.read(&a), pen.read(&b), pen.equal(&a, &b));
            (vec![&a, &b], format!("FROM {left} {kind} {right} ON {on}"))
        }
    };
    from.push_str(&pen.condition(&sources));
    let mut by: Vec<String> = (0..pen.number_from(0..=2)).map(|_| pen.group(&a)).collect();
    let values = (0..pen.number_from(1..=3)).map(|_| steady_aggregate(pen, &sources));
    let values: Vec<String> = values.collect();
    let mut rest = from;
    if !by.is_empty() {
        rest = format!("{rest} GROUP BY {}", by.join(", "));
    } else if pen.one_in(3) {
        by.push("'all'".to_owned());
    }
    if pen.one_in(3) {
        let condition = steady_aggregate(pen, &sources);
        let limit = pen.number_from(-1..=3);
        rest = format!("{rest} HAVING {condition} > {limit} OR count(*) = 2");
    }
    pen.select(&[by, values].concat(), &rest)
}

/// The same of what a query within yields for each key.
pub(super) fn accumulated_of_groups(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let (group, inner) = (pen.group(&a), small_aggregate(pen, &[&a, &b]));
    let kind = pen.pick(&["JOIN", "LEFT JOIN"]);
    let (key, on) = (format!("{}.key", a.alias), pen.equal(&a, &b));
    let (left, right) = (pen.read(&a), pen.read(&b));
    let within = format!(
        "SELECT {key} AS k, {group} AS g, {inner} AS v FROM {left} {kind} {right} ON {on} GROUP BY {key}, {group}"
    );
    let outer: Vec<String> = (0..pen.number_from(1..=2))
        .map(|_| pen.pick(&["sum(v)", "avg(v)", "max(v)", "min(v)", "count(v)"]).to_owned())
        .collect();
    if pen.one_in(3) {
        pen.select(&outer, &format!("FROM ({within})"))
    } else {
        pen.select(&[vec!["g".to_owned()], outer].concat(), &format!("FROM ({within}) AS s GROUP BY g"))
    }
}

/// An aggregate of integers mostly, so that what is accumulated of it is not given up soon.
fn steady_aggregate(pen: &mut Pen<'_>, sources: &[&Source<'_>]) -> String {
    let a = pen.pick(sources);
    match pen.number_from(0..=9) {
        0 => format!("max({}){}", pen.key(a), filter_clause(pen, a)),
        1 => format!("{}({}){}", pen.pick(&["min", "max"]), pen.number(a), filter_clause(pen, a)),
        _ => small_aggregate(pen, sources),
    }
}

/// The same, such that it can be summed again.
fn small_aggregate(pen: &mut Pen<'_>, sources: &[&Source<'_>]) -> String {
    let a = pen.pick(sources);
    let (key, number, whole) = (pen.key(a), pen.summand(a), pen.whole_summand(a));
    let value = match pen.number_from(0..=6) {
        0 => number,
        1 => format!("length({key})"),
        2 => format!("nullif({whole}, 2)"),
        _ => whole,
    };
    let filter = filter_clause(pen, a);
    match pen.number_from(0..=8) {
        0 => format!("count(*){filter}"),
        1 => format!("count({value}){filter}"),
        2 | 3 => format!("sum({value}){filter}"),
        4 => format!("total({value}){filter}"),
        5 => format!("avg({value}){filter}"),
        6 => format!("min({value}){filter}"),
        7 => format!("max({value}){filter}"),
        _ => format!("max({value}) - min({value}) + count(*)"),
    }
}

/// A condition on what an aggregate reads, or none.
fn filter_clause(pen: &mut Pen<'_>, source: &Source<'_>) -> String {
    if pen.one_in(5) { format!(" FILTER (WHERE {})", pen.filter(source)) } else { String::new() }
}

fn grouped(pen: &mut Pen<'_>, sources: &[&Source<'_>], from: &str) -> Query {
    let mut by = Vec::new();
    for _ in 0..if pen.one_in(3) { 2 } else { 1 } {
        let source = pen.pick(sources);
        by.push(pen.group(source));
    }
    let clause = match (pen.number_from(0..=3), by.len()) {
        (0, 1) => "1".to_owned(),
        (0, _) => "2, 1".to_owned(),
        (1, 1) => "id".to_owned(),
        _ => by.join(", "),
    };
    let values = [by, aggregates(pen, sources)].concat();
    pen.select(&values, &format!("{from} GROUP BY {clause}"))
}

/// One to three aggregates that don't depend on the order of rows, or say which it is.
pub(super) fn aggregates(pen: &mut Pen<'_>, sources: &[&Source<'_>]) -> Vec<String> {
    (0..pen.number_from(1..=3)).map(|_| aggregate(pen, sources)).collect()
}

/// One such aggregate.
pub(super) fn aggregate(pen: &mut Pen<'_>, sources: &[&Source<'_>]) -> String {
    let a = pen.pick(sources);
    let (key, number, category) = (pen.key(a), pen.number(a), pen.category(a));
    let (order, summand) = (pen.order(sources), pen.summand(a));
    match pen.number_from(0..=17) {
        0 => format!("count({number})"),
        1 => format!("count(DISTINCT {category})"),
        2 => format!("count(DISTINCT {})", pen.link(a)),
        3 | 4 => format!("sum({summand})"),
        5 => format!("avg({summand})"),
        // Percentiles refuse texts.
        6 => format!("percentile_disc(CAST({summand} AS REAL), 0.25)"),
        7 => format!("min({number})"),
        8 => format!("max({number})"),
        9 => format!("min({category})"),
        10 => format!("max({key})"),
        11 => format!("group_concat({key}, '|' ORDER BY {order})"),
        12 => format!("json_group_array({number} ORDER BY {order})"),
        13 => format!("sum({summand}) FILTER (WHERE {})", pen.filter(a)),
        14 => format!("median(DISTINCT CAST({summand} AS REAL))"),
        15 => format!("group_concat(DISTINCT {category} ORDER BY {category})"),
        16 => format!("max({number}) - min({number})"),
        _ => "count(*)".to_owned(),
    }
}
