//! SELECTs inside of others: in conditions, as values, and as what is read.

use super::groups;
use super::pen::{Pen, Query};

/// Rows that have, or don't have, a partner of some kind.
pub(super) fn exists(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let values = pen.values(&[&a]);
    let not = pen.pick(&["", "NOT "]);
    let mut condition = pen.equal(&a, &b);
    if pen.one_in(3) {
        condition = format!("{condition} AND {}", pen.filter(&b));
    }
    let mut rest =
        format!("FROM {} WHERE {not}EXISTS (SELECT 1 FROM {} WHERE {condition})", pen.read(&a), pen.read(&b));
    if pen.one_in(3) {
        rest = format!("{rest} {} {}", pen.pick(&["AND", "OR"]), pen.filter(&a));
    }
    pen.select(&values, &rest)
}

/// Rows with a value that is, or isn't, among others. One NULL among those and NOT IN finds nothing.
pub(super) fn within(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let values = pen.values(&[&a]);
    let not = pen.pick(&["", "NOT "]);
    let (one, others) = match pen.number_from(0..=4) {
        0 => (pen.key(&a), pen.link(&b)),
        1 => (pen.category(&a), pen.category(&b)),
        2 => (format!("({}, {})", pen.link(&a), pen.key(&a)), format!("{}, {}", pen.key(&b), pen.link(&b))),
        3 => (pen.number(&a), pen.number(&b)),
        _ => (pen.link(&a), pen.key(&b)),
    };
    let condition = match pen.number_from(0..=2) {
        0 => format!(" WHERE {}", pen.compare(&a, &b)),
        _ => pen.condition(&[&b]),
    };
    let rest = format!(
        "FROM {} WHERE {one} {not}IN (SELECT {others} FROM {}{condition})",
        pen.read(&a),
        pen.read(&b)
    );
    pen.select(&values, &rest)
}

/// A value of the rows that belong to a row.
pub(super) fn scalar(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let mut values = pen.values(&[&a]);
    let condition = pen.equal(&a, &b);
    let read = pen.read(&b);
    values.push(if pen.one_in(2) {
        format!("(SELECT {} FROM {read} WHERE {condition})", groups::aggregate(pen, &[&b]))
    } else {
        let value = pen.values(&[&b]).remove(0);
        format!("(SELECT {value} FROM {read} WHERE {condition} ORDER BY {} LIMIT 1)", pen.order(&[&b]))
    });
    let rest = format!("FROM {}{}", pen.read(&a), pen.condition(&[&a]));
    pen.select(&values, &rest)
}

/// A value of a whole topic beside each row, or as the bound for rows.
pub(super) fn uncorrelated(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let mut values = pen.values(&[&a]);
    let whole = format!("(SELECT {} FROM {})", groups::aggregate(pen, &[&b]), pen.read(&b));
    let number = pen.number(&a);
    let rest = match pen.number_from(0..=2) {
        0 => format!("FROM {} WHERE {number} > {whole}", pen.read(&a)),
        1 => format!(
            "FROM {} WHERE EXISTS (SELECT 1 FROM {} WHERE {})",
            pen.read(&a),
            pen.read(&b),
            pen.filter(&b)
        ),
        _ => {
            values.push(whole);
            format!("FROM {}{}", pen.read(&a), pen.condition(&[&a]))
        }
    };
    pen.select(&values, &rest)
}

/// A subquery in place of a topic.
pub(super) fn in_from(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let inner = format!(
        "SELECT {}.*, {} AS tag FROM {} WHERE {}",
        a.alias,
        pen.group(&a),
        pen.read(&a),
        pen.filter(&a)
    );
    let mut values = pen.values(&[&a, &b]);
    values.push(format!("{}.tag", a.alias));
    let kind = pen.pick(&["JOIN", "LEFT JOIN"]);
    let on = pen.equal(&a, &b);
    let rest = if pen.one_in(2) {
        format!("FROM ({inner}) AS {} {kind} {} ON {on}", a.alias, pen.read(&b))
    } else {
        format!("FROM {} {kind} ({inner}) {} ON {on}", pen.read(&b), a.alias)
    };
    pen.select(&values, &rest)
}

/// Groups in place of a topic: joined, or grouped again.
pub(super) fn aggregated_in_from(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let by = pen.group(&a);
    let inner = format!(
        "SELECT {by} AS g, count(*) AS n, {} AS v FROM {}{} GROUP BY {by}",
        groups::aggregate(pen, &[&a]),
        pen.read(&a),
        pen.condition(&[&a])
    );
    match pen.number_from(0..=2) {
        0 => pen.select(
            &["s.n", "count(*)", "group_concat(s.g, ',' ORDER BY s.g)"].map(str::to_owned),
            &format!("FROM ({inner}) s GROUP BY s.n"),
        ),
        1 => {
            let values = [vec!["s.g".to_owned(), "s.v".to_owned()], pen.values(&[&b])].concat();
            let rest = format!("FROM ({inner}) s LEFT JOIN {} ON s.g = {}", pen.read(&b), pen.key(&b));
            pen.select(&values, &rest)
        }
        _ => {
            let values = [pen.values(&[&b]), vec!["s.n".to_owned(), "s.v".to_owned()]].concat();
            let rest = format!("FROM {} LEFT JOIN ({inner}) s ON s.g IS {}", pen.read(&b), pen.category(&b));
            pen.select(&values, &rest)
        }
    }
}

/// A WITH clause, read once or twice.
pub(super) fn cte(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let hint = pen.pick(&["", "MATERIALIZED ", "NOT MATERIALIZED "]);
    let (group, number) = (pen.group(&a), pen.number(&a));
    let with = format!(
        "WITH part(id, g, n) AS {hint}(SELECT {}, {group}, {number} FROM {}{})",
        pen.key(&a),
        pen.read(&a),
        pen.condition(&[&a])
    );
    let (values, from) = match pen.number_from(0..=2) {
        0 => (
            vec!["p.id".to_owned(), "q.id".to_owned(), "p.g".to_owned()],
            "FROM part p JOIN part q ON p.g = q.g AND p.id < q.id".to_owned(),
        ),
        1 => (
            vec!["p.id".to_owned(), "p.n - (SELECT min(q.n) FROM part q)".to_owned()],
            "FROM part p".to_owned(),
        ),
        _ => (
            [vec!["p.id".to_owned()], pen.values(&[&b])].concat(),
            format!("FROM part p LEFT JOIN {} ON p.id = {}", pen.read(&b), pen.link(&b)),
        ),
    };
    let (list, columns) = pen.columns(&values);
    pen.query(format!("{with} SELECT {list} {from}"), columns)
}

/// What can be reached over links, or a row for each of some numbers.
pub(super) fn recursive(pen: &mut Pen<'_>) -> Query {
    let (a, b) = (pen.source(), pen.source());
    let (key, link) = (pen.key(&a), pen.link(&a));
    let read = pen.read(&a);
    if pen.one_in(3) {
        let number = pen.number(&a);
        let values = ["i".to_owned(), format!("count({key})")];
        let (list, columns) = pen.columns(&values);
        let sql = format!(
            "WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i < 6)
             SELECT {list} FROM numbers LEFT JOIN {read} ON {number} = i GROUP BY i"
        );
        return pen.query(sql, columns);
    }
    let with = format!(
        "WITH RECURSIVE reach(start, node) AS (
             SELECT {key}, {key} FROM {read}{}
             UNION SELECT start, CAST({link} AS TEXT) FROM reach JOIN {read} ON {key} = node)",
        pen.condition(&[&a])
    );
    let (values, from) = if pen.one_in(2) {
        (vec!["start".to_owned(), "node".to_owned()], "FROM reach".to_owned())
    } else {
        (
            vec!["start".to_owned(), "count(*)".to_owned(), format!("count({})", pen.key(&b))],
            format!("FROM reach LEFT JOIN {} ON {} = node GROUP BY start", pen.read(&b), pen.key(&b)),
        )
    };
    let (list, columns) = pen.columns(&values);
    pen.query(format!("{with} SELECT {list} {from}"), columns)
}

/// Rows that stand in the query itself.
pub(super) fn values(pen: &mut Pen<'_>) -> Query {
    let a = pen.source();
    let mut values = pen.values(&[&a]);
    values.insert(0, "level".to_owned());
    let (list, columns) = pen.columns(&values);
    let kind = pen.pick(&["JOIN", "LEFT JOIN"]);
    let on = match pen.number_from(0..=1) {
        0 => format!("{} >= low", pen.number(&a)),
        _ => format!("{} = level", pen.category(&a)),
    };
    let sql = format!(
        "WITH levels(level, low) AS (VALUES ('tea', 8), ('7', 2.5), (7, NULL), (NULL, '1'))
         SELECT {list} FROM levels {kind} {} ON {on}",
        pen.read(&a)
    );
    pen.query(sql, columns)
}
