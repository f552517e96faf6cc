//! Groups of values that are equal and look different, reached from outside by one spelling: 5 and 5.0 are in one
//! group, and text that is made of it, or that it is compared with, tells them apart.

use super::pen::{Pen, Query, Source};

/// What makes groups.
#[derive(Clone, Copy)]
enum Operator {
    GroupBy,
    Having,
    Nested,
    Distinct,
    Union,
    Except,
    Intersect,
    Partition,
}

/// Rows of a topic, each with the group that its key or one of its fields says.
pub(super) fn group_by(pen: &mut Pen<'_>) -> Query {
    joined(pen, Operator::GroupBy)
}

/// The same of groups of which only some are wanted.
pub(super) fn having(pen: &mut Pen<'_>) -> Query {
    joined(pen, Operator::Having)
}

/// The same of groups of groups.
pub(super) fn nested(pen: &mut Pen<'_>) -> Query {
    joined(pen, Operator::Nested)
}

/// The same of values that are there once.
pub(super) fn distinct(pen: &mut Pen<'_>) -> Query {
    joined(pen, Operator::Distinct)
}

/// The same of values that either of two topics has.
pub(super) fn union(pen: &mut Pen<'_>) -> Query {
    joined(pen, Operator::Union)
}

/// The same of values that one topic has and another has not.
pub(super) fn except(pen: &mut Pen<'_>) -> Query {
    joined(pen, Operator::Except)
}

/// The same of values that two topics have.
pub(super) fn intersect(pen: &mut Pen<'_>) -> Query {
    joined(pen, Operator::Intersect)
}

/// The same of rows that say how many they are with equal ones.
pub(super) fn partition(pen: &mut Pen<'_>) -> Query {
    joined(pen, Operator::Partition)
}

fn joined(pen: &mut Pen<'_>, operator: Operator) -> Query {
    let (inner, outer) = (grouped_by(pen, operator), pen.source());
    let on = reach(pen, "s.v", &outer);
    let values = values(pen, &outer);
    let read = pen.read(&outer);
    let rest = match pen.number_from(0..=2) {
        0 => format!("FROM ({inner}) AS s JOIN {read} ON {on}{}", pen.condition(&[&outer])),
        1 => format!("FROM {read}, ({inner}) s WHERE {on}"),
        _ => format!("FROM {read} JOIN ({inner}) s ON {on}{}", pen.condition(&[&outer])),
    };
    let query = pen.select(&values, &rest);
    let key_column = query.key_column.clone().filter(|_| pen.one_in(4));
    Query { key_column, ..query }
}

/// Rows of a topic with their groups, those without a group among them; or all groups, those without such a row among it.
pub(super) fn left_joined(pen: &mut Pen<'_>) -> Query {
    let (inner, outer) = (grouped(pen), pen.source());
    let on = reach(pen, "s.v", &outer);
    let values = values(pen, &outer);
    let read = pen.read(&outer);
    let rest = match pen.number_from(0..=3) {
        0 => format!("FROM ({inner}) AS s LEFT JOIN {read} ON {on}"),
        1 => format!("FROM ({inner}) s RIGHT JOIN {read} ON {on}"),
        _ => format!("FROM {read} LEFT JOIN ({inner}) s ON {on}{}", pen.condition(&[&outer])),
    };
    let query = pen.select(&values, &rest);
    let key_column = query.key_column.clone().filter(|_| pen.one_in(4));
    Query { key_column, ..query }
}

/// A group that is read twice: side by side, or by a topic's key and by a field.
pub(super) fn read_twice(pen: &mut Pen<'_>) -> Query {
    let (inner, outer) = (grouped(pen), pen.source());
    let hint = pen.pick(&["", "MATERIALIZED ", "NOT MATERIALIZED "]);
    let (s, t) = (reach(pen, "s.v", &outer), reach(pen, "t.v", &outer));
    let (key, read) = (pen.key(&outer), pen.read(&outer));
    let values = [key, "s.n".to_owned(), "t.n".to_owned()];
    let (list, columns) = pen.columns(&values);
    let kind = pen.pick(&["JOIN", "LEFT JOIN"]);
    let from = match pen.number_from(0..=1) {
        0 => format!("FROM {read} JOIN part s ON {s} {kind} part t ON t.v = s.v"),
        _ => format!("FROM {read} LEFT JOIN part s ON {s} {kind} part t ON {t}"),
    };
    pen.query(format!("WITH part AS {hint}({inner}) SELECT {list} {from}"), columns)
}

/// Rows whose key or field is, or isn't, among groups; or the group's count beside them.
pub(super) fn asked(pen: &mut Pen<'_>) -> Query {
    let (inner, outer) = (grouped(pen), pen.source());
    let on = reach(pen, "s.v", &outer);
    let (key, link, read) = (pen.key(&outer), pen.link(&outer), pen.read(&outer));
    let not = pen.pick(&["", "NOT "]);
    let one = pen.pick(&[&key, &link]).clone();
    match pen.number_from(0..=2) {
        0 => {
            let values = [key.clone(), link];
            pen.select(&values, &format!("FROM {read} WHERE {one} {not}IN (SELECT s.v FROM ({inner}) s)"))
        }
        1 => {
            let values = [key.clone(), link];
            pen.select(
                &values,
                &format!("FROM {read} WHERE {not}EXISTS (SELECT 1 FROM ({inner}) s WHERE {on})"),
            )
        }
        _ => {
            let count = format!("(SELECT sum(s.n) FROM ({inner}) s WHERE {on})");
            let condition = pen.condition(&[&outer]);
            pen.select(&[key.clone(), count], &format!("FROM {read}{condition}"))
        }
    }
}

/// A result key that is made of two terms of GROUP BY.
pub(super) fn composite(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let (x, y) = (pen.bare(&a), pen.bare(&a));
    let key = pen.pick(&[
        format!("{x} || '/' || ({y})"),
        format!("coalesce({x}, '-') || ' ' || coalesce({y}, '-')"),
        format!("CAST({x} AS TEXT) || ({y})"),
    ]);
    let having = pen.pick(&["", "", " HAVING count(*) > 1"]);
    let rest = format!("FROM {}{} GROUP BY {x}, {y}{having}", pen.read(&a), pen.condition(&[&a]));
    pen.select(&[key, "count(*)".to_owned()], &rest)
}

/// A result key that is made of a term of GROUP BY.
pub(super) fn of_a_group(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let x = pen.bare(&a);
    let key = made_of(pen, &x);
    let values = [key, "count(*)".to_owned(), format!("max({})", pen.key(&a))];
    let rest = format!("FROM {}{} GROUP BY {x}", pen.read(&a), pen.condition(&[&a]));
    let query = pen.select(&values, &rest);
    let key_column = query.key_column.clone().filter(|_| pen.one_in(4));
    Query { key_column, ..query }
}

/// A result key that is made of a term of PARTITION BY.
pub(super) fn of_a_partition(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let x = pen.bare(&a);
    let order = pen.order(&[&a]);
    let values = [
        made_of(pen, &x),
        pen.key(&a),
        format!("count(*) OVER (PARTITION BY {x})"),
        format!("row_number() OVER (PARTITION BY {x} ORDER BY {order})"),
    ];
    let rest = format!("FROM {}{}", pen.read(&a), pen.condition(&[&a]));
    let query = pen.select(&values, &rest);
    let key_column = query.key_column.clone().filter(|_| pen.one_in(4));
    Query { key_column, ..query }
}

/// A query for groups: `v` is equal within each, and `n` says how much there is.
fn grouped(pen: &mut Pen<'_>) -> String {
    let operator = pen.pick(&[
        Operator::GroupBy,
        Operator::GroupBy,
        Operator::Having,
        Operator::Nested,
        Operator::Distinct,
        Operator::Union,
        Operator::Except,
        Operator::Intersect,
        Operator::Partition,
    ]);
    grouped_by(pen, operator)
}

fn grouped_by(pen: &mut Pen<'_>, operator: Operator) -> String {
    let (a, b) = (pen.source(), pen.source());
    // Links are most likely to be equal to keys.
    let x = if pen.one_in(3) { pen.bare(&a) } else { pen.link(&a) };
    let (y, z) = (if pen.one_in(3) { pen.bare(&b) } else { pen.link(&b) }, pen.bare(&a));
    let from = format!("FROM {}{}", pen.read(&a), pen.condition(&[&a]));
    let others = format!("FROM {}", pen.read(&b));
    match operator {
        Operator::GroupBy => format!("SELECT {x} AS v, count(*) AS n {from} GROUP BY {x}"),
        Operator::Having => format!("SELECT {x} AS v, count(*) AS n {from} GROUP BY 1 HAVING count(*) > 1"),
        Operator::Nested => format!(
            "SELECT v, sum(m) AS n FROM (SELECT {x} AS v, {z} AS w, count(*) AS m {from} GROUP BY {x}, {z}) GROUP BY v"
        ),
        Operator::Distinct => format!("SELECT DISTINCT {x} AS v, 1 AS n {from}"),
        Operator::Union => format!("SELECT {x} AS v, 1 AS n {from} UNION SELECT {y}, 1 {others}"),
        Operator::Except => format!("SELECT {x} AS v, 1 AS n {from} EXCEPT SELECT {y}, 1 {others}"),
        Operator::Intersect => format!("SELECT {x} AS v, 1 AS n {from} INTERSECT SELECT {y}, 1 {others}"),
        Operator::Partition => format!("SELECT {x} AS v, count(*) OVER (PARTITION BY {x}) AS n {from}"),
    }
}

/// The condition under which a row has the group of value `v`.
fn reach(pen: &mut Pen<'_>, v: &str, outer: &Source<'_>) -> String {
    let (key, bare) = (pen.key(outer), pen.bare(outer));
    match pen.number_from(0..=14) {
        0 => format!("CAST({v} AS TEXT) = {key}"),
        1 => format!("{v} = {bare}"),
        2 => format!("{bare} IS {v}"),
        3 => format!("{v} = CAST({key} AS NUMERIC)"),
        4 => format!("{key} = {v} COLLATE NOCASE"),
        5..=8 => format!("{key} = {v}"),
        _ => format!("{v} = {key}"),
    }
}

/// A row's key and what its group says, or these the other way around.
fn values(pen: &mut Pen<'_>, outer: &Source<'_>) -> Vec<String> {
    let mut values = vec![pen.key(outer), "s.n".to_owned()];
    if pen.one_in(3) {
        values.push("s.v".to_owned());
    }
    if pen.one_in(4) {
        values.insert(0, "s.v".to_owned());
    }
    values
}

/// A value that may tell the spellings of `x` apart.
fn made_of(pen: &mut Pen<'_>, x: &str) -> String {
    match pen.number_from(0..=7) {
        0 => format!("typeof({x})"),
        1 => format!("length({x})"),
        2 => format!("{x} + 1"),
        3 => format!("{x} / 2"),
        4 => format!("{x} || ''"),
        5 => format!("coalesce({x}, 'none')"),
        _ => format!("CAST({x} AS TEXT)"),
    }
}
