//! Joins in the narrow sense: rows of several sources side by side.

use super::pen::{Pen, Query, Source};

/// Rows of one topic, filtered or not.
pub(super) fn projection(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let values = pen.values(&[&a]);
    let rest = format!("FROM {}{}", pen.read(&a), pen.condition(&[&a]));
    pen.select(&values, &rest)
}

/// An equality, written in one of the ways to write an inner join.
pub(super) fn inner(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let on = pen.equal(&a, &b);
    joined(pen, &a, &b, &on)
}

/// An equality and something that no index helps with.
pub(super) fn inner_residual(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let on = format!("{} AND ({})", pen.equal(&a, &b), pen.compare(&a, &b));
    joined(pen, &a, &b, &on)
}

/// No equality at all.
pub(super) fn range(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let on = format!("({}) AND {}", pen.compare(&a, &b), pen.filter(&a));
    joined(pen, &a, &b, &on)
}

fn joined(pen: &mut Pen<'_>, a: &Source<'_>, b: &Source<'_>, on: &str) -> Query {
    let values = pen.values(&[a, b]);
    let (read_a, read_b) = (pen.read(a), pen.read(b));
    let rest = match pen.number_from(0..=3) {
        0 => format!("FROM {read_a}, {read_b} WHERE {on}"),
        1 => format!("FROM {read_a} CROSS JOIN {read_b} WHERE {on}"),
        2 => format!("FROM {read_a} INNER JOIN {read_b} ON {on}{}", pen.condition(&[a, b])),
        _ => format!("FROM {read_a} JOIN {read_b} ON {on}{}", pen.condition(&[a, b])),
    };
    pen.select(&values, &rest)
}
