//! Rows out of arrays and objects in payloads.

use super::pen::{Pen, Query, Source};

/// A row for each element.
pub(super) fn each(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let mut values = pen.values(&[&a]);
    values.push("e.value".to_owned());
    values.push(pen.pick(&["e.key", "e.type", "e.atom"]).to_owned());
    let read = pen.read(&a);
    let rest = match pen.number_from(0..=2) {
        0 => format!("FROM {read} LEFT JOIN {} ON e.value <> 7", elements(&a)),
        1 => format!("FROM {read} JOIN {} ON e.value IS NOT NULL{}", elements(&a), pen.condition(&[&a])),
        _ => format!("FROM {read}, {}{}", elements(&a), pen.condition(&[&a])),
    };
    pen.select(&values, &rest)
}

/// Elements that are keys or categories of other rows.
pub(super) fn each_join(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let mut values = pen.values(&[&a, &b]);
    values.push("e.value".to_owned());
    let kind = pen.pick(&["JOIN", "LEFT JOIN"]);
    let partner = if pen.one_in(3) { pen.category(&b) } else { pen.key(&b) };
    let rest =
        format!("FROM {}, {} {kind} {} ON {partner} = e.value", pen.read(&a), elements(&a), pen.read(&b));
    pen.select(&values, &rest)
}

/// How often each element is there.
pub(super) fn each_grouped(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let order = pen.order(&[&a]);
    let key = pen.key(&a);
    let values = [
        "e.value".to_owned(),
        "count(*)".to_owned(),
        format!("group_concat({key}, ' ' ORDER BY {order}, e.id)"),
    ];
    let rest = format!("FROM {}, {}{} GROUP BY e.value", pen.read(&a), elements(&a), pen.condition(&[&a]));
    pen.select(&values, &rest)
}

/// Rows whose list has something that another row says.
pub(super) fn each_exists(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let values = pen.values(&[&a]);
    let not = pen.pick(&["", "NOT "]);
    let rest = format!(
        "FROM {} WHERE {not}EXISTS (SELECT 1 FROM {}, {} WHERE e.value = {})",
        pen.read(&a),
        elements(&a),
        pen.read(&b),
        pen.key(&b)
    );
    pen.select(&values, &rest)
}

/// Everything in a payload, however deep.
pub(super) fn tree(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let mut values = pen.values(&[&a]);
    values.push("e.fullkey".to_owned());
    values.push("e.atom".to_owned());
    let rest = format!(
        "FROM {}, json_tree({}.payload) AS e WHERE {} ",
        pen.read(&a),
        a.alias,
        pen.pick(&["e.type <> 'object'", "e.atom = 7", "e.type = 'integer'"])
    );
    pen.select(&values, &rest)
}

fn elements(a: &Source<'_>) -> String {
    format!("json_each({}.payload, '$.\"{}\"') AS e", a.alias, a.topic.list.name)
}
