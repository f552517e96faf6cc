//! Several SELECTs in one: UNION and its like.

use super::pen::{Pen, Query};

/// Rows of either, each once.
pub(super) fn union(pen: &mut Pen<'_>) -> Query {
    arms(pen, &["UNION"])
}

/// Rows of both, all of them.
pub(super) fn union_all(pen: &mut Pen<'_>) -> Query {
    arms(pen, &["UNION ALL"])
}

/// Rows that are in one and not in the other.
pub(super) fn except(pen: &mut Pen<'_>) -> Query {
    arms(pen, &["EXCEPT"])
}

/// Rows that are in both.
pub(super) fn intersect(pen: &mut Pen<'_>) -> Query {
    arms(pen, &["INTERSECT"])
}

/// Any of them, from left to right.
pub(super) fn mixed(pen: &mut Pen<'_>) -> Query {
    let query = arms(pen, &["UNION", "UNION ALL", "EXCEPT", "INTERSECT"]);
    let operator = pen.pick(&["UNION", "UNION ALL", "EXCEPT"]);
    let kinds = vec![Kind::Any; query.columns.len()];
    let sql = format!("{} {operator} {}", query.sql, arm(pen, &kinds).0);
    Query { sql, ..query }
}

/// Values that both arms have, so that they meet.
#[derive(Clone, Copy)]
enum Kind {
    Key,
    Category,
    Any,
}

fn arms(pen: &mut Pen<'_>, operators: &[&str]) -> Query {
    let kinds = pen.pick(&[
        &[Kind::Key][..],
        &[Kind::Category],
        &[Kind::Any],
        &[Kind::Category, Kind::Any],
        &[Kind::Key, Kind::Category],
    ]);
    let (first, columns) = arm(pen, kinds);
    let operator = pen.pick(operators);
    let (second, _) = arm(pen, kinds);
    pen.query(format!("{first} {operator} {second}"), columns)
}

fn arm(pen: &mut Pen<'_>, kinds: &[Kind]) -> (String, Vec<String>) {
    let a = pen.source();
    let value = |kind: &Kind| match kind {
        Kind::Key if pen.one_in(2) => format!("CAST({} AS TEXT)", pen.link(&a)),
        Kind::Key => pen.key(&a),
        Kind::Category => pen.category(&a),
        Kind::Any => pen.group(&a),
    };
    let values: Vec<String> = kinds.iter().map(value).collect();
    let (list, columns) = pen.columns(&values);
    (format!("SELECT {list} FROM {}{}", pen.read(&a), pen.condition(&[&a])), columns)
}
