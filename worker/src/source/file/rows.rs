//! Lines of JSON as messages, and the text of keys. Pure.

use serde::de::IgnoredAny;

use crate::source::encoding::{self, EncodingError};
use crate::storage::change::fields;
use crate::storage::message::{Message, MessageError, check_key, check_payload};
use crate::storage::topics::TopicId;

/// The text between the parts of a key that is made of several columns.
const KEY_SEPARATOR: char = '|';

/// The text before a separator that is within a part, and before itself.
const KEY_ESCAPE: char = '\\';

/// What to do about a file that is JSON, and not a document a line.
const ONE_A_LINE: &str = "write each document on one line (jq -c . does, and jq -c '.[]' for an array)";

/// Why a row was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RowError {
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    #[error("no JSON: {0}")]
    Json(serde_json::Error),
    #[error("a part of a JSON document; {ONE_A_LINE}")]
    Part,
    #[error("an array, so it has no field {column:?} for the key; {ONE_A_LINE}")]
    Array { column: String },
    #[error("no object, so it has no field {column:?} for the key")]
    NoObject { column: String },
    #[error("{got} fields, and the header has {expected}")]
    Fields { got: usize, expected: usize },
    #[error("field {column:?} is needed for the key, and it is missing or null")]
    NoKey { column: String },
    #[error(
        "column {column:?}: got {got:?}, allowed is {allowed}; give the column another type, or name the value in nullValues"
    )]
    Type { column: String, got: String, allowed: &'static str },
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// A key that is made of parts.
pub(super) struct KeyText {
    text: String,
    /// Whether there are several parts, which must not run into each other.
    is_composite: bool,
    is_begun: bool,
}

impl KeyText {
    pub(super) fn of(parts: usize) -> Self {
        Self { text: String::new(), is_composite: parts > 1, is_begun: false }
    }

    pub(super) fn push(&mut self, part: &str) {
        if self.is_begun {
            self.text.push(KEY_SEPARATOR);
        }
        self.is_begun = true;
        for character in part.chars() {
            if self.is_composite && matches!(character, KEY_SEPARATOR | KEY_ESCAPE) {
                self.text.push(KEY_ESCAPE);
            }
            self.text.push(character);
        }
    }

    pub(super) fn into_string(self) -> String {
        self.text
    }
}

/// Makes a message of a line that is the payload itself; its key is made of its own fields.
pub(crate) fn json_message(
    line: &[u8],
    key_columns: &[String],
    topic: TopicId,
    source_offset: u64,
) -> Result<Message, RowError> {
    let text = encoding::text(line)?.trim();
    check_payload(text)?;
    serde_json::from_str::<IgnoredAny>(text).map_err(|error| match is_part(text) {
        true => RowError::Part,
        false => RowError::Json(error),
    })?;
    let found = fields(text);
    let mut key = KeyText::of(key_columns.len());
    for column in key_columns {
        let column = || column.clone();
        let Some(found) = &found else {
            let is_array = text.starts_with('[');
            return Err(match is_array {
                true => RowError::Array { column: column() },
                false => RowError::NoObject { column: column() },
            });
        };
        match found.first(&column()) {
            None | Some("null") => return Err(RowError::NoKey { column: column() }),
            Some(value) if value.starts_with('"') => {
                key.push(&serde_json::from_str::<String>(value).map_err(RowError::Json)?);
            }
            Some(value) => key.push(value),
        }
    }
    let key = key.into_string();
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

/// Whether a line that is no JSON looks like one of a document that was written over several lines.
pub(super) fn is_part(text: &str) -> bool {
    matches!(text, "{" | "[" | "}" | "]" | "}," | "],") || text.ends_with(['{', '[', ','])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_is_its_own_payload() {
        let columns = ["id".to_owned(), "n".to_owned()];
        let message = json_message(br#"{"n":7,"id":"a"}"#, &columns, TopicId(0), 0).expect("a message");
        assert_eq!((&*message.key, message.payload.as_deref()), ("a|7", Some(r#"{"n":7,"id":"a"}"#)));
        let message =
            json_message(b"\xef\xbb\xbf{\"n\":1.50,\"id\":\"a|\",\"n\":2}", &columns, TopicId(0), 0);
        let message = message.expect("a message");
        assert_eq!(&*message.key, r"a\||1.50", "the first of two fields is SQLite's choice too");
        for (line, expected) in [
            (&b"1"[..], "no object, so it has no field \"id\" for the key"),
            (
                b"[1]",
                "an array, so it has no field \"id\" for the key; write each document on one line (jq -c . does, and \
                 jq -c '.[]' for an array)",
            ),
            (
                b"{\"id\":1,",
                "a part of a JSON document; write each document on one line (jq -c . does, and jq -c '.[]' for an array)",
            ),
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
