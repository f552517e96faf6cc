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
    let width = query.columns.len();
    let sql = format!("{} {operator} {}", query.sql, arm(pen, width).0);
    Query { sql, ..query }
}

fn arms(pen: &mut Pen<'_>, operators: &[&str]) -> Query {
    let width = if pen.one_in(2) { 2 } else { 1 };
    let (first, columns) = arm(pen, width);
    let operator = pen.pick(operators);
    let (second, _) = arm(pen, width);
    pen.query(format!("{first} {operator} {second}"), columns)
}

fn arm(pen: &mut Pen<'_>, width: usize) -> (String, Vec<String>) {
    let a = pen.source();
    let values: Vec<String> =
        (0..width).map(|_| if pen.one_in(3) { pen.key(&a) } else { pen.group(&a) }).collect();
    let (list, columns) = pen.columns(&values);
    (format!("SELECT {list} FROM {}{}", pen.read(&a), pen.condition(&[&a])), columns)
}
