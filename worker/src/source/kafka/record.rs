//! A record as a message of a topic: what its value means, where its key comes from, what its headers say. Pure.

use std::collections::BTreeMap;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::source::encoding::{self, EncodingError};
use crate::storage::message::{Message, MessageError, check_key, check_payload};
use crate::storage::topics::TopicId;

/// Most bytes of names and values of headers that are kept with a row.
const HEADERS_BYTES_MAX: usize = 64 << 10;

/// The parts of a record beside its place.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KafkaRecord<'r> {
    pub(crate) key: Option<&'r [u8]>,
    /// `None` deletes the key.
    pub(crate) value: Option<&'r [u8]>,
}

/// Reads what the value of a record says. Other formats than JSON come in here.
pub(crate) trait Decoder: Send {
    /// Gives the value as JSON text.
    fn decode(&self, value: &[u8]) -> Result<Box<str>, KafkaRecordError>;
}

/// Values that are JSON themselves.
pub(crate) struct Json;

/// Why a record is no message.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KafkaRecordError {
    #[error("value is {0}")]
    ValueEncoding(EncodingError),
    #[error("value is no JSON: {0}")]
    Json(serde_json::Error),
    #[error("the record has no key; write keyPath to take it from the payload")]
    NoKey,
    #[error("key is no UTF-8 (first bad byte at {at}); write keyPath to take it from the payload")]
    KeyUtf8 { at: usize },
    #[error(
        "key has a NUL character, as numbers and Avro have it in bytes; write keyPath to take it from the payload"
    )]
    NulInKey,
    #[error(
        "keyPath {path:?} finds nothing in the payload, or null; where the record's own key holds it, write recordKeyPath \
         instead"
    )]
    KeyPath { path: String },
    #[error(
        "a record without a value deletes by its own key, which is an object, and keyPath gives rows other keys; write \
         recordKeyPath instead of keyPath, such as \"id\" for {{\"id\": 1}}"
    )]
    KeylessDelete,
    #[error(
        "recordKeyPath {path:?} wants a key that is JSON, and the record's own key is none; remove recordKeyPath"
    )]
    RecordKeyJson { path: String },
    #[error("recordKeyPath {path:?} finds nothing in the record's own key, or null")]
    RecordKeyPath { path: String },
    #[error("headers have {got} bytes; at most {HEADERS_BYTES_MAX} are allowed")]
    LargeHeaders { got: usize },
    #[error(transparent)]
    Message(#[from] MessageError),
}

impl Decoder for Json {
    fn decode(&self, value: &[u8]) -> Result<Box<str>, KafkaRecordError> {
        let text = encoding::text(value).map_err(KafkaRecordError::ValueEncoding)?;
        // Before anything recurses into it.
        check_payload(text)?;
        let json: &RawValue = serde_json::from_str(text).map_err(KafkaRecordError::Json)?;
        Ok(json.get().into())
    }
}

/// Where the key of a message is; the record's own key, as it is, where neither path is given.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KeyPaths<'p> {
    /// In the payload.
    pub(crate) payload: Option<&'p str>,
    /// In the record's own key, which is JSON.
    pub(crate) record_key: Option<&'p str>,
}

/// Makes a message of a record of `topic`. A record without a value has no payload, so its key is always the record's own,
/// or in that.
pub(crate) fn message(
    record: KafkaRecord<'_>,
    headers: Option<Box<str>>,
    decoder: &dyn Decoder,
    key_paths: KeyPaths<'_>,
    topic: TopicId,
    source_offset: u64,
) -> Result<Message, KafkaRecordError> {
    let payload = record.value.map(|value| decoder.decode(value)).transpose()?;
    // As everywhere: null deletes.
    let payload = payload.filter(|json| &**json != "null");
    let own_key = || {
        let bytes = record.key.ok_or(KafkaRecordError::NoKey)?;
        std::str::from_utf8(bytes).map_err(|error| KafkaRecordError::KeyUtf8 { at: error.valid_up_to() })
    };
    let key = match (key_paths, &payload) {
        (KeyPaths { record_key: Some(path), .. }, _) => key_in_record_key(path, own_key()?)?,
        (KeyPaths { payload: Some(path), .. }, Some(payload)) => {
            key_at(path, payload).ok_or_else(|| KafkaRecordError::KeyPath { path: path.to_owned() })?
        }
        // With keyPath, rows have other keys than such an object, so it would delete none.
        (KeyPaths { payload: Some(_), .. }, None) if is_object(own_key()?) => {
            return Err(KafkaRecordError::KeylessDelete);
        }
        _ => own_key()?.into(),
    };
    check_key(&key).map_err(|error| match error {
        MessageError::NulInKey if key_paths.payload.is_none() && key_paths.record_key.is_none() => {
            KafkaRecordError::NulInKey
        }
        error => error.into(),
    })?;
    Ok(Message { topic, key, payload, timestamp: None, headers, source_offset })
}

/// The key that a path finds, if it finds one and not null: a string as it is, anything else as JSON.
fn key_at(path: &str, json: &str) -> Option<Box<str>> {
    let found = gjson::get(json, path);
    match found.kind() {
        _ if !found.exists() => None,
        gjson::Kind::Null => None,
        gjson::Kind::String => Some(found.str().into()),
        _ => Some(found.json().into()),
    }
}

/// The key that a path finds in a record's own key.
fn key_in_record_key(path: &str, own_key: &str) -> Result<Box<str>, KafkaRecordError> {
    // Before anything recurses into it; it may be as long as a payload.
    check_payload(own_key)?;
    if serde_json::from_str::<&RawValue>(own_key).is_err() {
        return Err(KafkaRecordError::RecordKeyJson { path: path.to_owned() });
    }
    key_at(path, own_key).ok_or_else(|| KafkaRecordError::RecordKeyPath { path: path.to_owned() })
}

/// Whether a text is a JSON object.
fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{')
        && check_payload(text).is_ok()
        && serde_json::from_str::<&RawValue>(text).is_ok()
}

/// Headers as a JSON object; `None` if there are none. Text stays text, other bytes become `{"base64": …}`, and a header
/// that is there several times is a list.
pub(crate) fn headers<'h>(
    all: impl Iterator<Item = (&'h str, Option<&'h [u8]>)>,
) -> Result<Option<Box<str>>, KafkaRecordError> {
    let mut by_name: BTreeMap<&str, Vec<Value>> = BTreeMap::new();
    let mut got = 0;
    for (name, value) in all {
        got += name.len() + value.map_or(0, <[u8]>::len);
        let value = value.map(|bytes| match std::str::from_utf8(bytes) {
            Ok(text) => json!(text),
            Err(_) => json!({ "base64": BASE64_STANDARD.encode(bytes) }),
        });
        by_name.entry(name).or_default().push(value.unwrap_or(Value::Null));
    }
    if got > HEADERS_BYTES_MAX {
        return Err(KafkaRecordError::LargeHeaders { got });
    }
    if by_name.is_empty() {
        return Ok(None);
    }
    let object: serde_json::Map<String, Value> = by_name
        .into_iter()
        .map(|(name, mut values)| {
            let value = if values.len() == 1 { values.remove(0) } else { Value::Array(values) };
            (name.to_owned(), value)
        })
        .collect();
    Ok(Some(Value::Object(object).to_string().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        key_path: Option<&str>,
    ) -> Result<(String, Option<String>), String> {
        let record = KafkaRecord { key, value };
        let key_paths = KeyPaths { payload: key_path, record_key: None };
        made(record, key_paths)
    }

    fn made(record: KafkaRecord<'_>, key_paths: KeyPaths<'_>) -> Result<(String, Option<String>), String> {
        message(record, None, &Json, key_paths, TopicId(0), 0)
            .map(|message| (message.key.into_string(), message.payload.map(String::from)))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn keys_come_from_the_record_or_from_the_payload() {
        let payload: &[u8] = br#"{"id": "a", "n": {"of": 7}, "none": null}"#;
        let text = String::from_utf8(payload.to_vec()).ok();
        let key = |path| read(Some(b"k"), Some(payload), path);
        assert_eq!(key(None), Ok(("k".to_owned(), text.clone())));
        assert_eq!(key(Some("id")), Ok(("a".to_owned(), text.clone())));
        assert_eq!(key(Some("n.of")), Ok(("7".to_owned(), text.clone())));
        assert_eq!(read(None, Some(payload), Some("id")), Ok(("a".to_owned(), text)));
        assert_eq!(
            read(Some(b"k"), None, Some("id")),
            Ok(("k".to_owned(), None)),
            "a tombstone has no payload"
        );
        assert_eq!(
            read(Some(b"k"), Some("\u{feff}1".as_bytes()), None),
            Ok(("k".to_owned(), Some("1".to_owned())))
        );
        assert_eq!(read(Some(b"k"), Some(b" null "), Some("id")), Ok(("k".to_owned(), None)), "null deletes");
        for path in ["none", "gone.x"] {
            let expected = format!(
                "keyPath {path:?} finds nothing in the payload, or null; where the record's own key holds it, write \
                 recordKeyPath instead"
            );
            assert_eq!(key(Some(path)), Err(expected));
        }
    }

    #[test]
    fn records_that_delete_have_the_key_of_the_record_that_created() {
        let made = |key: &str, value: Option<&str>| {
            let record = KafkaRecord { key: Some(key.as_bytes()), value: value.map(str::as_bytes) };
            made(record, KeyPaths { payload: None, record_key: Some("id") }).map(|(key, _)| key)
        };
        let own = r#"{"id": 1}"#;
        for value in [Some(r#"{"after": {"id": 1}}"#), Some(r#"{"before": {"id": 1}, "after": null}"#), None]
        {
            assert_eq!(made(own, value), Ok("1".to_owned()), "{value:?}");
        }
        assert_eq!(made(r#"{"id": "a"}"#, None), Ok("a".to_owned()));
        for (key, expected) in [
            (r#"{"no": 1}"#, "recordKeyPath \"id\" finds nothing in the record's own key, or null"),
            (
                "plain",
                "recordKeyPath \"id\" wants a key that is JSON, and the record's own key is none; remove recordKeyPath",
            ),
        ] {
            assert_eq!(made(key, Some("1")), Err(expected.to_owned()));
        }
        // Without it, an object as the key would delete nothing.
        assert_eq!(
            read(Some(own.as_bytes()), None, Some("after.id")),
            Err("a record without a value deletes by its own key, which is an object, and keyPath gives rows other keys; \
                 write recordKeyPath instead of keyPath, such as \"id\" for {\"id\": 1}"
                .to_owned())
        );
    }

    #[test]
    fn what_is_no_message_says_why() {
        for (key, value, expected) in [
            (None, Some(&b"1"[..]), "the record has no key; write keyPath to take it from the payload"),
            (
                Some(&b"a\xff"[..]),
                Some(b"1"),
                "key is no UTF-8 (first bad byte at 1); write keyPath to take it from the payload",
            ),
            (Some(b"a"), Some(b""), "value is no JSON: EOF while parsing a value at line 1 column 0"),
            (Some(b"a"), Some(b"{} x"), "value is no JSON: trailing characters at line 1 column 4"),
            (Some(b"a"), Some(b"\xff"), "value is no UTF-8 (first bad byte at 0)"),
            (Some(b""), Some(b"1"), "key is empty; every message needs one"),
            (
                Some(b"\0\0\0\x07"),
                Some(b"1"),
                "key has a NUL character, as numbers and Avro have it in bytes; write keyPath to take it from the payload",
            ),
            (
                Some(b"a"),
                Some(b"{\"v\":\"\\ud83d\"}"),
                r"\ud83d at byte 6 has no other half, so it is no Unicode; send the whole character, or leave it out",
            ),
        ] {
            assert_eq!(read(key, value, None), Err(expected.to_owned()));
        }
    }

    #[test]
    fn headers_are_an_object() {
        let some = [
            ("trace", Some(&b"t1"[..])),
            ("raw", Some(b"\xff\x00")),
            ("none", None),
            ("twice", Some(b"1")),
            ("twice", Some(b"2")),
        ];
        assert_eq!(
            headers(some.into_iter()).unwrap().as_deref(),
            Some(r#"{"none":null,"raw":{"base64":"/wA="},"trace":"t1","twice":["1","2"]}"#)
        );
        assert_eq!(headers(std::iter::empty()).unwrap(), None);
        let large = vec![b'x'; HEADERS_BYTES_MAX];
        let error = headers([("h", Some(&large[..]))].into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "headers have 65537 bytes; at most 65536 are allowed");
    }
}
