//! Names that mean something else than they seem to, and names of other joins.

use super::joins;
use super::pen::{Pen, Query, Source};

/// Aliases that are the names of other topics.
pub(super) fn alias_of_a_topic(pen: &mut Pen<'_>) -> Query {
    let [first, second] = pen.topics();
    let called = |name: &str| format!("\"{}\"", name.to_ascii_lowercase());
    let a = Source { topic: first, alias: called(&second.name) };
    let b = Source { topic: second, alias: called(&first.name) };
    let values = pen.values(&[&a, &b]);
    let kind = pen.pick(&["JOIN", "LEFT JOIN", "FULL JOIN"]);
    let rest = format!("FROM {} {kind} {} ON {}", pen.read(&a), pen.read(&b), pen.equal(&a, &b));
    pen.select(&values, &rest)
}

/// A WITH clause that has a topic's name.
pub(super) fn cte_hides_a_topic(pen: &mut Pen<'_>) -> Query {
    let [topic, hidden] = pen.topics();
    let a = pen.source_of(topic);
    // Rows of the first under the name of the second.
    let b = pen.source_of(topic);
    let values = pen.values(&[&b]);
    let (list, columns) = pen.columns(&values);
    let sql = format!(
        "WITH {} AS (SELECT {}.* FROM {} WHERE {}) SELECT {list} FROM {} AS {}{}",
        pen.table(&hidden.name),
        a.alias,
        pen.read(&a),
        pen.filter(&a),
        pen.table(&hidden.name),
        b.alias,
        pen.condition(&[&b])
    );
    pen.query(sql, columns)
}

/// A subquery in which an outer alias is another topic.
pub(super) fn inner_alias_hides_outer(pen: &mut Pen<'_>) -> Query {
    let [first, second] = pen.topics();
    let outer = pen.source_of(first);
    let inner = Source { topic: second, alias: outer.alias.clone() };
    let mut values = pen.values(&[&outer]);
    values.push(format!("(SELECT count(*) FROM {} WHERE {})", pen.read(&inner), pen.filter(&inner)));
    let rest = format!(
        "FROM {} WHERE {} OR EXISTS (SELECT 1 FROM {} WHERE {})",
        pen.read(&outer),
        pen.filter(&outer),
        pen.read(&inner),
        pen.filter(&inner)
    );
    pen.select(&values, &rest)
}

/// Another join by its name: filtered, joined with a topic, or grouped.
pub(super) fn of_a_join(pen: &mut Pen<'_>) -> Query {
    let Some(join) = pen.join() else { return joins::projection(pen) };
    let a = pen.source();
    let column = |name: &str| format!("j.\"{name}\"");
    let one = column(&pen.pick(&join.columns));
    let read = format!("{} AS j", pen.quoted(&join.name));
    let query = match pen.number_from(0..=3) {
        0 => {
            let values: Vec<String> = join.columns.iter().map(|name| column(name)).collect();
            pen.select(&values, &format!("FROM {read} WHERE {one} IS NOT NULL"))
        }
        1 => {
            let values = ["count(*)".to_owned(), format!("count(DISTINCT {one})")];
            pen.select(&values, &format!("FROM {read}"))
        }
        2 => {
            let values = [format!("CAST({one} AS TEXT)"), "count(*)".to_owned()];
            pen.select(&values, &format!("FROM {read} GROUP BY 1"))
        }
        _ => {
            let values = [vec![one.clone()], pen.values(&[&a])].concat();
            let kind = pen.pick(&["JOIN", "LEFT JOIN", "RIGHT JOIN"]);
            let rest = format!("FROM {read} {kind} {} ON {one} = {}", pen.read(&a), pen.key(&a));
            pen.select(&values, &rest)
        }
    };
    Query { reads: Some(join.name.clone()), ..query }
}
