//! Rows in an order: window functions, and LIMIT. The order leaves nothing open.

use super::pen::{Pen, Query, Source};

/// Window functions over parts of a topic.
pub(super) fn partitioned(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let partition = pen.group(&a);
    windowed(pen, &a, &format!("PARTITION BY {partition} "))
}

/// Window functions over a whole topic.
pub(super) fn whole(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    windowed(pen, &a, "")
}

fn windowed(pen: &mut Pen<'_>, a: &Source<'_>, partition: &str) -> Query {
    let mut values = pen.values(&[a]);
    let order = pen.order(&[a]);
    for _ in 0..pen.number_from(1..=2) {
        let function = function(pen, a);
        values.push(match pen.number_from(0..=3) {
            0 => format!(
                "{function} OVER ({partition}ORDER BY {order} ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING)"
            ),
            1 => format!("{function} OVER w"),
            _ => format!("{function} OVER ({partition}ORDER BY {order})"),
        });
    }
    let rest =
        format!("FROM {}{} WINDOW w AS ({partition}ORDER BY {order})", pen.read(a), pen.condition(&[a]));
    pen.select(&values, &rest)
}

fn function(pen: &mut Pen<'_>, a: &Source<'_>) -> String {
    let (key, number, summand) = (pen.key(a), pen.number(a), pen.summand(a));
    match pen.number_from(0..=9) {
        0 => "rank()".to_owned(),
        1 => format!("sum({summand})"),
        2 => "count(*)".to_owned(),
        3 => format!("lag({key})"),
        4 => format!("lead({number}, 1, 'end')"),
        5 => format!("first_value({key})"),
        6 => format!("median(CAST({summand} AS REAL))"),
        7 => "ntile(3)".to_owned(),
        8 => format!("nth_value({key}, 2)"),
        _ => "row_number()".to_owned(),
    }
}

/// The first rows of each group.
pub(super) fn top_of_group(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let (group, number) = (pen.group(&a), pen.number(&a));
    let inner = format!(
        "SELECT {group} AS g, {} AS id, {number} AS n, row_number() OVER (PARTITION BY {group} ORDER BY {}) AS place FROM {}",
        pen.key(&a),
        pen.order(&[&a]),
        pen.read(&a)
    );
    let most = pen.number_from(1..=3);
    let values = ["g", "id", "n", "place"].map(str::to_owned);
    pen.select(&values, &format!("FROM ({inner}) WHERE place <= {most}"))
}

/// The first rows of all, or those after them.
pub(super) fn limit(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let is_join = pen.one_in(3);
    let sources = if is_join { vec![&a, &b] } else { vec![&a] };
    let values = pen.values(&sources);
    let mut from = format!("FROM {}", pen.read(&a));
    if is_join {
        from =
            format!("{from} {} {} ON {}", pen.pick(&["JOIN", "LEFT JOIN"]), pen.read(&b), pen.equal(&a, &b));
    }
    let mut rest = format!(
        "{from}{} ORDER BY {} LIMIT {}",
        pen.condition(&sources),
        pen.order(&sources),
        pen.number_from(1..=6)
    );
    if pen.one_in(3) {
        rest = format!("{rest} OFFSET {}", pen.number_from(1..=3));
    }
    pen.select(&values, &rest)
}

/// The first rows of a topic as a source of its own.
pub(super) fn limit_in_from(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let values = pen.values(&[&a, &b]);
    let inner = format!(
        "SELECT {0}.* FROM {1} ORDER BY {2} LIMIT {3}",
        a.alias,
        pen.read(&a),
        pen.order(&[&a]),
        pen.number_from(1..=6)
    );
    let kind = pen.pick(&["JOIN", "LEFT JOIN"]);
    let rest = format!("FROM ({inner}) AS {} {kind} {} ON {}", a.alias, pen.read(&b), pen.equal(&a, &b));
    pen.select(&values, &rest)
}
