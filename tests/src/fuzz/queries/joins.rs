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
    inner_on(pen, &a, &b, &on)
}

/// An equality and something that no index helps with.
pub(super) fn inner_residual(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let on = format!("{} AND {}", pen.equal(&a, &b), pen.compare(&a, &b));
    inner_on(pen, &a, &b, &on)
}

/// No equality at all.
pub(super) fn range(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let on = format!("{} AND {}", pen.compare(&a, &b), pen.filter(&a));
    inner_on(pen, &a, &b, &on)
}

fn inner_on(pen: &mut Pen<'_>, a: &Source<'_>, b: &Source<'_>, on: &str) -> Query {
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

/// All of the left side; conditions on either side stand in ON or in WHERE.
pub(super) fn left(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    outer(pen, "LEFT JOIN", &a, &b)
}

/// All of the right side.
pub(super) fn right(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    outer(pen, "RIGHT JOIN", &a, &b)
}

/// All of both sides.
pub(super) fn full(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    if pen.one_in(3) {
        return outer(pen, "FULL OUTER JOIN", &a, &b);
    }
    let mut values = pen.values(&[&a, &b]);
    let (key_a, key_b) = (pen.key(&a), pen.key(&b));
    let (read_a, read_b) = (pen.read(&a), pen.read(&b));
    let condition = if pen.one_in(3) {
        values[0] = "key".to_owned();
        "USING (key)".to_owned()
    } else {
        values[0] = format!("coalesce({key_a}, {key_b})");
        format!("ON {}", pen.equal(&a, &b))
    };
    pen.select(&values, &format!("FROM {read_a} FULL JOIN {read_b} {condition}"))
}

fn outer(pen: &mut Pen<'_>, kind: &str, a: &Source<'_>, b: &Source<'_>) -> Query {
    let values = pen.values(&[a, b]);
    let mut on = pen.equal(a, b);
    if pen.one_in(3) {
        let source = pen.pick(&[a, b]);
        on = format!("{on} AND {}", pen.filter(source));
    }
    if pen.one_in(4) {
        on = format!("{on} AND {}", pen.compare(a, b));
    }
    let rest = format!("FROM {} {kind} {} ON {on}{}", pen.read(a), pen.read(b), pen.condition(&[a, b]));
    pen.select(&values, &rest)
}

/// Rows without a partner.
pub(super) fn anti(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let values = pen.values(&[&a, &b]);
    let (on, key) = (pen.equal(&a, &b), pen.key(&b));
    let rest = format!("FROM {} LEFT JOIN {} ON {on} WHERE {key} IS NULL", pen.read(&a), pen.read(&b));
    pen.select(&values, &rest)
}

/// A topic beside itself.
pub(super) fn self_join(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let b = pen.source_of(a.topic);
    match pen.number_from(0..=2) {
        0 => outer(pen, "LEFT JOIN", &a, &b),
        1 => {
            let on = format!("{} AND {} < {}", pen.equal(&a, &b), pen.key(&a), pen.key(&b));
            inner_on(pen, &a, &b, &on)
        }
        _ => {
            let on = pen.equal(&a, &b);
            inner_on(pen, &a, &b, &on)
        }
    }
}

/// Each source belongs to the one before it.
pub(super) fn chain(pen: &mut Pen<'_>) -> Query {
    several(pen, 1)
}

/// Each source belongs to the first.
pub(super) fn star(pen: &mut Pen<'_>) -> Query {
    several(pen, usize::MAX)
}

/// Three or four sources, each joined to the one that stands `back` before it.
fn several(pen: &mut Pen<'_>, back: usize) -> Query {
    let mut sources = vec![pen.source()];
    let mut from = format!("FROM {}", pen.read(&sources[0]));
    for _ in 0..pen.number_from(2..=3) {
        let source = pen.source();
        let kind = pen.pick(&["JOIN", "JOIN", "LEFT JOIN"]);
        let partner = &sources[sources.len().saturating_sub(back)];
        // By keys alone: four sources in every combination would be too much.
        let on = match pen.number_from(0..=2) {
            0 => format!("{} = {}", pen.key(&source), pen.key(partner)),
            1 => format!("{} = {}", pen.key(partner), pen.link(&source)),
            _ => format!("{} = {}", pen.key(&source), pen.link(partner)),
        };
        from = format!("{from} {kind} {} ON {on}", pen.read(&source));
        sources.push(source);
    }
    let sources: Vec<&Source<'_>> = sources.iter().collect();
    let values = pen.values(&sources);
    let rest = format!("{from}{}", pen.condition(&sources));
    pen.select(&values, &rest)
}

/// A LEFT JOIN of a join in parentheses.
pub(super) fn nested(pen: &mut Pen<'_>) -> Query {
    let (a, b, c) = (pen.source(), pen.source(), pen.source());
    let values = pen.values(&[&a, &b, &c]);
    let inner = format!("{} JOIN {} ON {} = {}", pen.read(&b), pen.read(&c), pen.key(&c), pen.link(&b));
    let rest = format!("FROM {} LEFT JOIN ({inner}) ON {}", pen.read(&a), pen.equal(&a, &b));
    pen.select(&values, &rest)
}
