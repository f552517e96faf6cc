//! Rows of a query as JSON: a result key, and an object by column name. Pure.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rusqlite::Row;
use rusqlite::types::ValueRef;

/// The columns of a query as JSON labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Columns {
    /// `"name":` as JSON, by column.
    labels: Vec<String>,
    key_column: usize,
}

impl Columns {
    pub(crate) fn new(names: &[String], key_column: usize) -> Self {
        let labels = names
            .iter()
            .map(|name| format!("{}:", serde_json::to_string(name).expect("a string is JSON")))
            .collect();
        Self { labels, key_column }
    }

    /// Returns the index of the result key's column.
    pub(crate) fn key_column(&self) -> usize {
        self.key_column
    }

    /// Returns the number of columns.
    pub(crate) fn count(&self) -> usize {
        self.labels.len()
    }

    /// Writes the row's result key and the row itself, replacing the contents of the buffers.
    pub(crate) fn write(&self, row: &Row<'_>, key: &mut String, object: &mut String) -> rusqlite::Result<()> {
        key.clear();
        object.clear();
        object.push('{');
        for (index, label) in self.labels.iter().enumerate() {
            if index > 0 {
                object.push(',');
            }
            object.push_str(label);
            let value = row.get_ref(index)?;
            write_value(object, value);
            if index == self.key_column {
                write_value(key, value);
            }
        }
        object.push('}');
        Ok(())
    }
}

/// Writes a value as JSON: text that is not UTF-8 with replacement characters, a BLOB as base64, an infinite
/// real as SQLite's own JSON has it (`9e999`).
pub(crate) fn write_value(json: &mut String, value: ValueRef<'_>) {
    match value {
        ValueRef::Null => json.push_str("null"),
        ValueRef::Integer(integer) => {
            let _ = write!(json, "{integer}");
        }
        ValueRef::Real(real) if real.is_infinite() => {
            json.push_str(if real > 0.0 { "9e999" } else { "-9e999" })
        }
        ValueRef::Real(real) => {
            json.push_str(&serde_json::to_string(&real).expect("a finite number is JSON"))
        }
        ValueRef::Text(text) => write_string(json, &String::from_utf8_lossy(text)),
        ValueRef::Blob(blob) => write_string(json, &STANDARD.encode(blob)),
    }
}

fn write_string(json: &mut String, text: &str) {
    json.push_str(&serde_json::to_string(text).expect("a string is always JSON"));
}

/// Returns whether two JSON arrays hold the same rows, in any order.
pub(crate) fn same_rows(a: &str, b: &str) -> bool {
    if a == b {
        return true;
    }
    if a.len() != b.len() {
        return false;
    }
    let split = |text: &str| -> Option<Vec<String>> {
        let rows: Vec<&serde_json::value::RawValue> = serde_json::from_str(text).ok()?;
        let mut rows: Vec<String> = rows.into_iter().map(|row| row.get().to_owned()).collect();
        rows.sort_unstable();
        Some(rows)
    };
    match (split(a), split(b)) {
        (Some(a), Some(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_as_sqlite_writes_them() {
        let cases = [
            (ValueRef::Null, "null"),
            (ValueRef::Integer(-1), "-1"),
            (ValueRef::Real(1.0), "1.0"),
            (ValueRef::Real(0.1), "0.1"),
            (ValueRef::Real(f64::NEG_INFINITY), "-9e999"),
            (ValueRef::Text("é\"\n".as_bytes()), r#""é\"\n""#),
            (ValueRef::Text(&[0xff]), "\"\u{fffd}\""),
            (ValueRef::Blob(&[0, 255]), "\"AP8=\""),
        ];
        for (value, expected) in cases {
            let mut json = String::new();
            write_value(&mut json, value);
            assert_eq!(json, expected);
        }
    }

    #[test]
    fn rows_compare_as_a_bag() {
        assert!(same_rows(r#"[{"a":1},{"a":2}]"#, r#"[{"a":2},{"a":1}]"#));
        assert!(!same_rows(r#"[{"a":1},{"a":1}]"#, r#"[{"a":1},{"a":2}]"#));
        assert!(!same_rows(r#"[{"a":1}]"#, r#"[{"a":1},{"a":1}]"#));
    }
}
