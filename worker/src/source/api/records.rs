//! Records in the answer of an API, and their keys, by paths in gjson syntax. Pure.

use std::fmt::Write as _;

use gjson::Kind;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::paths::spelled;
use crate::storage::change::fields;
use crate::storage::message::{MessageError, check_key, check_payload};

/// The modifier at the end of a path of records that takes the values of an object for them; the library has none.
const VALUES: &str = "@values";

/// A fault of an answer as a whole.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("the answer is no text in UTF-8")]
    Encoding,
    #[error(
        "the answer is compressed by {encoding:?} though gzip was offered, and only gzip is read; add the header \
         Accept-Encoding: identity"
    )]
    Compressed { encoding: String },
    #[error(
        "the answer is a text in {charset:?}, and UTF-8 and ISO-8859-1 are read; ask the server for UTF-8 by the header \
         Accept-Charset, or a parameter of its own"
    )]
    Charset { charset: String },
    #[error("the answer is no JSON: {0}")]
    Json(serde_json::Error),
    #[error("responsePath {path:?} finds nothing in the answer; compare it with what the API sends")]
    Records { path: String },
    #[error(
        "{} null, which may stand for an error as well as for no records, so nothing is deleted; detectDeletes needs an \
         API that sends an empty list where there are none", place(path.as_deref())
    )]
    Null { path: Option<String> },
}

/// The meaning of `null` in the place of the records of a poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Null {
    /// No records.
    Empty,
    /// `null` may be an error, and says nothing of the records that the API has.
    Unclear,
}

/// A fault of one record.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApiRecordError {
    #[error("keyPath {path:?} finds nothing")]
    NoKey { path: String },
    #[error("keyPath {path:?} finds {kind}, and a key is a text, a number or a boolean")]
    NoScalar { path: String, kind: &'static str },
    #[error("no JSON: {0}")]
    NoJson(#[from] serde_json::Error),
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// A record that can be stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ApiRecord {
    pub(super) key: Box<str>,
    pub(super) payload: Box<str>,
}

/// The records of an answer: the elements of an array, or the one record that it is.
pub(super) fn records(body: &str, path: Option<&str>, null: Null) -> Result<Vec<String>, Unreadable> {
    // gjson takes anything for JSON.
    serde_json::from_str::<IgnoredAny>(body).map_err(Unreadable::Json)?;
    let (takes_values, inner) = match path.and_then(|path| path.strip_suffix(VALUES)) {
        Some(inner) => (true, inner.strip_suffix(['.', '|']).unwrap_or(inner)),
        None => (false, path.unwrap_or_default()),
    };
    let inner = spelled(inner);
    let found = if inner.is_empty() { gjson::parse(body) } else { gjson::get(body, &inner) };
    match found.kind() {
        Kind::Object if takes_values => {
            let mut records = Vec::new();
            found.each(|_, record| {
                records.push(record.json().to_owned());
                true
            });
            Ok(records)
        }
        _ if takes_values || !found.exists() => {
            let path = path.unwrap_or_default().to_owned();
            Err(Unreadable::Records { path })
        }
        Kind::Null if null == Null::Unclear => Err(Unreadable::Null { path: path.map(str::to_owned) }),
        Kind::Null => Ok(Vec::new()),
        Kind::Array => {
            let mut records = Vec::new();
            found.each(|_, record| {
                records.push(record.json().to_owned());
                true
            });
            Ok(records)
        }
        _ => Ok(vec![found.json().to_owned()]),
    }
}

/// Reads one record. With `sorts_fields` it is written anew, so that it is the same whatever the order of its fields.
pub(super) fn record(text: &str, key_path: &str, sorts_fields: bool) -> Result<ApiRecord, ApiRecordError> {
    check_payload(text)?;
    let spelled = spelled(key_path);
    let found = gjson::get(text, &spelled);
    let path = || key_path.to_owned();
    let key = match found.kind() {
        _ if !found.exists() => return Err(ApiRecordError::NoKey { path: path() }),
        Kind::String => found.str().to_owned(),
        Kind::Number | Kind::True | Kind::False => found.json().to_owned(),
        Kind::Null => return Err(ApiRecordError::NoScalar { path: path(), kind: "null" }),
        Kind::Array => return Err(ApiRecordError::NoScalar { path: path(), kind: "an array" }),
        Kind::Object => return Err(ApiRecordError::NoScalar { path: path(), kind: "an object" }),
    };
    check_key(&key)?;
    let payload = if sorts_fields { sorted(text)? } else { text.to_owned() };
    Ok(ApiRecord { key: key.into_boxed_str(), payload: payload.into_boxed_str() })
}

/// JSON with the fields of its objects in the order of their names. Numbers stay as they are written: one of 20 digits would
/// become another one.
fn sorted(json: &str) -> serde_json::Result<String> {
    let mut text = String::with_capacity(json.len());
    if let Some(mut fields) = fields(json) {
        fields.sort();
        for (name, value) in fields.all() {
            text.push(if text.is_empty() { '{' } else { ',' });
            let _ = write!(text, "{}:{}", serde_json::to_string(name)?, sorted(value)?);
        }
        text.push_str(if text.is_empty() { "{}" } else { "}" });
    } else if json.starts_with('[') {
        for value in serde_json::from_str::<Vec<&RawValue>>(json)? {
            text.push(if text.is_empty() { '[' } else { ',' });
            text.push_str(&sorted(value.get())?);
        }
        text.push_str(if text.is_empty() { "[]" } else { "]" });
    } else if json.starts_with('"') {
        // The same text may be escaped otherwise the next time.
        text = serde_json::to_string(&serde_json::from_str::<String>(json)?)?;
    } else {
        text.push_str(json);
    }
    Ok(text)
}

/// Says where something was found.
fn place(path: Option<&str>) -> String {
    path.map_or_else(|| "the answer is".to_owned(), |path| format!("responsePath {path:?} finds"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::api::paths::scalar;

    #[test]
    fn records_are_found_by_their_path() {
        let body = r#"{"data":{"items":[{"id":1},{"id":2,"on":true}]},"one":{"id":3},"none":null}"#;
        let found = |path| records(body, Some(path), Null::Empty).unwrap();
        assert_eq!(found("data.items"), [r#"{"id":1}"#, r#"{"id":2,"on":true}"#]);
        assert_eq!(found("data.items.#(on==true)#"), [r#"{"id":2,"on":true}"#]);
        assert_eq!(found("one"), [r#"{"id":3}"#]);
        assert_eq!(found("none"), Vec::<String>::new());
        assert_eq!(records(" [1, {\"a\":2}]", None, Null::Empty).unwrap(), ["1", "{\"a\":2}"]);
        assert_eq!(records("{}", None, Null::Empty).unwrap(), ["{}"]);
        let by_id = r#"{"data":{"a":{"id":1},"b":{"id":2}}}"#;
        for path in ["data.@values", "data|@values"] {
            assert_eq!(records(by_id, Some(path), Null::Empty).unwrap(), [r#"{"id":1}"#, r#"{"id":2}"#]);
        }
        assert_eq!(records(r#"{"a":1}"#, Some("@values"), Null::Empty).unwrap(), ["1"]);
        assert!(records("[1]", Some("@values"), Null::Empty).is_err());
        let error = |body: &str, path| records(body, path, Null::Unclear).unwrap_err().to_string();
        assert_eq!(
            error(body, Some("data.rows")),
            "responsePath \"data.rows\" finds nothing in the answer; compare it with what the API sends"
        );
        assert_eq!(
            error(body, Some("none")),
            "responsePath \"none\" finds null, which may stand for an error as well as for no records, so nothing is \
             deleted; detectDeletes needs an API that sends an empty list where there are none"
        );
        assert!(error("null", None).starts_with("the answer is null, which may stand for an error"));
        assert_eq!(error("<html>", None), "the answer is no JSON: expected value at line 1 column 1");
    }

    #[test]
    fn keys_are_scalars() {
        let key = |text: &str, path: &str| record(text, path, true).map(|record| record.key.into_string());
        assert_eq!(key(r#"{"id":"a\"b"}"#, "id").unwrap(), "a\"b");
        assert_eq!(key(r#"{"u":{"id":1.50}}"#, "u.id").unwrap(), "1.50");
        assert_eq!(key(r#"{"id":true}"#, "id").unwrap(), "true");
        let wrong = |text: &str| key(text, "id").unwrap_err().to_string();
        assert_eq!(wrong("{}"), "keyPath \"id\" finds nothing");
        assert_eq!(wrong("7"), "keyPath \"id\" finds nothing");
        assert_eq!(
            wrong(r#"{"id":null}"#),
            "keyPath \"id\" finds null, and a key is a text, a number or a boolean"
        );
        assert_eq!(wrong(r#"{"id":""}"#), "key is empty; every message needs one");
    }

    #[test]
    fn the_order_of_fields_counts_only_in_the_text_itself() {
        let [first, second] = [r#"{"id":1,"b":2}"#, r#"{ "b":2, "id":1 }"#];
        assert_eq!(record(first, "id", true).unwrap(), record(second, "id", true).unwrap());
        assert_ne!(record(first, "id", false).unwrap(), record(second, "id", false).unwrap());
    }

    #[test]
    fn odd_paths_find_something_or_nothing() {
        let body = r#"{"a":[1,{"b":"é"}],"c.d":{"*":null}}"#;
        let parts = [
            "a", "#", "(", ")", ".", "@", "|", "{", "}", "[", "]", "\\", "*", "?", "!", "\"", "b==", "é",
            "1", "@this", "..", ":", "~", "%",
        ];
        for first in parts {
            for second in parts {
                for third in parts {
                    let path = format!("{first}{second}{third}");
                    let _ = scalar(body, &path);
                    let _ = records(body, Some(&path), Null::Empty);
                }
            }
        }
    }
}
