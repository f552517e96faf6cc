//! A join or window that others read as they read a topic: its rows are fed into a topic of ours, each row a payload, and
//! a SELECT over that topic has its columns. A join that another join reads is no such node: its query is put in place of
//! its name.

use super::CheckedJoin;
use super::plan::window::BOUNDS;
use crate::storage::sqlite::quoted;
use crate::storage::topics::feed_of;

/// Returns the SELECT that yields the rows of an output from its feed.
pub(crate) fn select(output: &CheckedJoin) -> String {
    let columns: Vec<String> = names(output).map(column).collect();
    format!("SELECT {} FROM {}", columns.join(", "), quoted(&feed_of(&output.name)))
}

/// Returns the SELECT that yields the rows of an output in one frame of a window, with the bounds of the frame. The
/// bounds hide columns of their names.
pub(crate) fn select_in_frame(output: &CheckedJoin) -> String {
    let is_bound = |name: &str| BOUNDS.iter().any(|(bound, _)| bound.eq_ignore_ascii_case(name));
    let columns = names(output).filter(|name| !is_bound(name)).map(column);
    let bounds = BOUNDS.iter().map(|(bound, _)| (*bound).to_owned());
    let columns: Vec<String> = columns.chain(bounds).collect();
    format!("SELECT {} FROM {}", columns.join(", "), quoted(&feed_of(&output.name)))
}

/// Returns the expression over a row of the feed whose value is that of a column, or `None` if there is no such column.
pub(crate) fn value_of(output: &CheckedJoin, name: &str) -> Option<String> {
    names(output).find(|column| column.eq_ignore_ascii_case(name)).map(value)
}

fn names(output: &CheckedJoin) -> impl Iterator<Item = &str> {
    output.shape.columns.iter().map(|(name, _)| name.as_str())
}

fn column(name: &str) -> String {
    format!("{} AS {}", value(name), quoted(name))
}

fn value(name: &str) -> String {
    let is_plain = name.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    let path = if is_plain {
        name.to_owned()
    } else {
        format!("$.{}", serde_json::to_string(name).expect("a string is always JSON"))
    };
    format!("payload->>'{}'", path.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sqlite::open_memory;

    #[test]
    fn any_name_of_a_column_is_found_in_a_payload() {
        let memory = open_memory().unwrap();
        for name in
            ["price", "Preis", "é", "_x", "5", "count(*)", "max(payload->>'price')", "a.b", "[0]", "$", "a b"]
        {
            let payload = serde_json::json!({"other": 1, name: 2.5}).to_string();
            let sql = format!("SELECT {} FROM (SELECT ?1 AS payload)", column(name));
            let found: f64 = memory.query_row(&sql, [payload], |row| row.get(0)).unwrap();
            assert_eq!(found, 2.5, "{name}");
        }
    }
}
