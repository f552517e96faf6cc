//! Rows of a file as messages. Pure.

use std::fmt::Write as _;

use serde_json::Value;

use crate::storage::message::{Message, MessageError, check_key, check_payload};
use crate::storage::topics::TopicId;

/// The text between the parts of a key that is made of several columns.
const KEY_SEPARATOR: char = '|';

/// Why a row was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    #[error("no UTF-8 (first bad byte at {at})")]
    Utf8 { at: usize },
    #[error("no JSON: {0}")]
    Json(serde_json::Error),
    #[error("no object, so it has no field {column:?} for the key")]
    NoObject { column: String },
    #[error("field {column:?} is needed for the key, and it is missing or null")]
    NoKey { column: String },
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// Makes a message of a CSV record: an object of all columns, values typed by their look.
pub(crate) fn csv_message<'r>(
    header: &[String],
    fields: impl Iterator<Item = &'r str>,
    key_columns: &[usize],
    null_values: &[String],
    topic: TopicId,
    source_offset: u64,
) -> Result<Message, RowError> {
    let fields: Vec<&str> = fields.collect();
    let mut key = String::new();
    for (n, column) in key_columns.iter().enumerate() {
        let field = fields.get(*column).copied().unwrap_or_default();
        if field.is_empty() || null_values.iter().any(|null| null == field) {
            return Err(RowError::NoKey { column: header[*column].clone() });
        }
        if n > 0 {
            key.push(KEY_SEPARATOR);
        }
        key.push_str(field);
    }
    check_key(&key)?;
    let mut payload = String::from("{");
    for (n, (name, field)) in header.iter().zip(&fields).enumerate() {
        if n > 0 {
            payload.push(',');
        }
        let _ = write!(payload, "{}:", quoted(name));
        if null_values.iter().any(|null| null == field) {
            payload.push_str("null");
        } else if *field == "true" || *field == "false" || is_json_number(field) {
            payload.push_str(field);
        } else {
            payload.push_str(&quoted(field));
        }
    }
    payload.push('}');
    check_payload(&payload)?;
    Ok(Message {
        topic,
        key: key.into_boxed_str(),
        payload: Some(payload.into_boxed_str()),
        timestamp: None,
        headers: None,
        source_offset,
    })
}

/// Makes a message of a line that is the payload itself; its key is made of its own fields.
pub(crate) fn json_message(
    line: &[u8],
    key_columns: &[String],
    topic: TopicId,
    source_offset: u64,
) -> Result<Message, RowError> {
    let text = std::str::from_utf8(line).map_err(|error| RowError::Utf8 { at: error.valid_up_to() })?;
    check_payload(text)?;
    let value: Value = serde_json::from_str(text).map_err(RowError::Json)?;
    let mut key = String::new();
    for (n, column) in key_columns.iter().enumerate() {
        let Value::Object(fields) = &value else { return Err(RowError::NoObject { column: column.clone() }) };
        if n > 0 {
            key.push(KEY_SEPARATOR);
        }
        match fields.get(column) {
            None | Some(Value::Null) => return Err(RowError::NoKey { column: column.clone() }),
            Some(Value::String(text)) => key.push_str(text),
            Some(other) => {
                let _ = write!(key, "{other}");
            }
        }
    }
    check_key(&key)?;
    Ok(Message {
        topic,
        key: key.into_boxed_str(),
        payload: Some(text.into()),
        timestamp: None,
        headers: None,
        source_offset,
    })
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}

/// Whether the text is a number as JSON writes them; `007`, `+1` and `.5` are text.
fn is_json_number(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    digits.starts_with(|first: char| first.is_ascii_digit())
        && text.ends_with(|last: char| last.is_ascii_digit())
        && serde_json::from_str::<serde_json::Number>(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_values_are_typed_by_their_look() {
        let header: Vec<String> = ["id", "a", "b", "c", "d"].map(str::to_owned).into();
        let nulls = ["NA".to_owned(), String::new()];
        let message = csv_message(
            &header,
            ["x1", "1.50", "007", "NA", "say \"hi\""].into_iter(),
            &[0, 1],
            &nulls,
            TopicId(3),
            9,
        )
        .expect("a message");
        assert_eq!(&*message.key, "x1|1.50");
        assert_eq!(
            message.payload.as_deref(),
            Some(r#"{"id":"x1","a":1.50,"b":"007","c":null,"d":"say \"hi\""}"#)
        );
        let missing = csv_message(&header, ["NA", "1", "", "", ""].into_iter(), &[0], &nulls, TopicId(3), 9);
        assert_eq!(
            missing.expect_err("no key").to_string(),
            "field \"id\" is needed for the key, and it is missing or null"
        );
    }

    #[test]
    fn numbers_are_those_of_json() {
        for text in ["0", "-1", "1.5", "1e5", "-0.1E-7"] {
            assert!(is_json_number(text), "{text}");
        }
        for text in ["", "007", "+1", ".5", "1.", "0x1", "1 ", " 1", "NaN", "-"] {
            assert!(!is_json_number(text), "{text:?}");
        }
    }

    #[test]
    fn a_json_line_is_its_own_payload() {
        let columns = ["id".to_owned(), "n".to_owned()];
        let message = json_message(br#"{"n":7,"id":"a"}"#, &columns, TopicId(0), 0).expect("a message");
        assert_eq!((&*message.key, message.payload.as_deref()), ("a|7", Some(r#"{"n":7,"id":"a"}"#)));
        for (line, expected) in [
            (&b"[1]"[..], "no object, so it has no field \"id\" for the key"),
            (b"{\"id\":\"a\"}", "field \"n\" is needed for the key, and it is missing or null"),
            (b"{\"id\":", "no JSON: EOF while parsing a value at line 1 column 6"),
            (b"{\"id\":\"\xff\"}", "no UTF-8 (first bad byte at 7)"),
        ] {
            assert_eq!(
                json_message(line, &columns, TopicId(0), 0).expect_err("refused").to_string(),
                expected
            );
        }
    }
}
