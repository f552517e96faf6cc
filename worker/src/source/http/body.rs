//! The body of a request to `/ingest`: one `{topic, key, payload}`, an array of them, or one a line. Pure.

use std::borrow::Cow;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::source::encoding::{self, EncodingError};
use crate::storage::message::{Message, MessageError, check_key, check_payload, check_timestamp, depth};
use crate::storage::topics::{TopicError, TopicId};

/// One message as it is written on the wire. Also a line of an NDJSON file without a topic of its own.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object {topic, key, payload}")]
pub(crate) struct BodyItem<'a> {
    #[serde(borrow)]
    topic: Cow<'a, str>,
    #[serde(borrow)]
    key: Cow<'a, str>,
    /// JSON, or a string that holds JSON; `null` deletes.
    #[serde(borrow)]
    payload: &'a RawValue,
    #[serde(default)]
    timestamp: Option<i64>,
}

/// Why one message was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ItemError {
    #[error("{0}")]
    Json(String),
    #[error(transparent)]
    Encoding(#[from] EncodingError),
    #[error(transparent)]
    Topic(#[from] TopicError),
    #[error("this source takes no topic {name:?}; it takes {allowed}")]
    OtherTopic { name: String, allowed: String },
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// A message of a body that was refused, and where it stands.
#[derive(Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct RefusedItem {
    /// Counted from 0.
    pub(crate) item: usize,
    /// Line of the body, counted from 1, where messages come one a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) line: Option<usize>,
    pub(crate) error: String,
}

/// How a body is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// By its first character.
    Guess,
    /// One message a line, whatever it looks like.
    Lines,
}

/// Reads a body, calling `each` for every message in it. Messages that can't be read are refused item by item; the error
/// is a body of which nothing can be read.
pub(crate) fn read(
    body: &[u8],
    framing: Framing,
    mut each: impl FnMut(usize, BodyItem<'_>) -> Result<(), ItemError>,
) -> Result<(usize, Vec<RefusedItem>), String> {
    let text = match encoding::text(body) {
        Ok(text) => text,
        // The lines that are UTF-8 are still read.
        Err(EncodingError::Utf8 { .. }) if framing == Framing::Lines => return Ok(read_lines(body, each)),
        Err(error) => return Err(format!("the body is {error}")),
    };
    let start = text.trim_start();
    if start.is_empty() {
        return Err(
            "the body is empty; send {\"topic\":…,\"key\":…,\"payload\":…}, an array of them, or one a line"
                .to_owned(),
        );
    }
    let mut refusals = Vec::new();
    if framing == Framing::Guess && start.starts_with('[') {
        let items: Vec<&RawValue> =
            serde_json::from_str(text).map_err(|error| format!("the body is no JSON: {error}"))?;
        for (item, raw) in items.iter().enumerate() {
            if let Err(error) = parse(raw.get().as_bytes()).and_then(|parsed| each(item, parsed)) {
                refusals.push(RefusedItem { item, line: None, error: error.to_string() });
            }
        }
        return Ok((items.len(), refusals));
    }
    if framing == Framing::Guess {
        match serde_json::from_str::<&RawValue>(text) {
            Ok(raw) => {
                if let Err(error) = parse(raw.get().as_bytes()).and_then(|parsed| each(0, parsed)) {
                    refusals.push(RefusedItem { item: 0, line: None, error: error.to_string() });
                }
                return Ok((1, refusals));
            }
            Err(error) if !start.trim_end().contains('\n') => {
                return Err(format!("the body is no JSON: {error}"));
            }
            Err(_) => {}
        }
    }
    Ok(read_lines(body, each))
}

fn read_lines(
    body: &[u8],
    mut each: impl FnMut(usize, BodyItem<'_>) -> Result<(), ItemError>,
) -> (usize, Vec<RefusedItem>) {
    let mut refusals = Vec::new();
    let mut item = 0;
    for (index, line) in body.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        if let Err(error) = parse(line).and_then(|parsed| each(item, parsed)) {
            refusals.push(RefusedItem { item, line: Some(index + 1), error: error.to_string() });
        }
        item += 1;
    }
    (item, refusals)
}

/// Reads one message.
pub(crate) fn parse(text: &[u8]) -> Result<BodyItem<'_>, ItemError> {
    let text = encoding::text(text)?;
    serde_json::from_str(text).map_err(|error| match depth(text) {
        Err(half) => half.into(),
        Ok(_) => ItemError::Json(error.to_string()),
    })
}

impl BodyItem<'_> {
    pub(crate) fn topic(&self) -> &str {
        &self.topic
    }

    /// Checks the message and makes it one of `topic`.
    pub(crate) fn into_message(self, topic: TopicId, source_offset: u64) -> Result<Message, MessageError> {
        check_key(&self.key)?;
        check_timestamp(self.timestamp)?;
        let payload = payload(self.payload.get())?;
        Ok(Message {
            topic,
            key: self.key.into_owned().into_boxed_str(),
            payload,
            timestamp: self.timestamp,
            headers: None,
            source_offset,
        })
    }
}

/// The JSON that a payload means: itself, or what the string holds. `None` deletes.
fn payload(raw: &str) -> Result<Option<Box<str>>, MessageError> {
    check_payload(raw)?;
    let json: Cow<'_, str> = if raw.starts_with('"') {
        let inner: String = serde_json::from_str(raw)
            .map_err(|error| MessageError::BadPayload { detail: error.to_string() })?;
        check_payload(&inner)?;
        serde_json::from_str::<IgnoredAny>(&inner)
            .map_err(|error| MessageError::BadPayload { detail: error.to_string() })?;
        Cow::Owned(inner.trim().to_owned())
    } else {
        Cow::Borrowed(raw)
    };
    Ok(if json == "null" { None } else { Some(json.into_owned().into_boxed_str()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(body: &str, framing: Framing) -> (Vec<Message>, Vec<RefusedItem>) {
        let mut messages = Vec::new();
        let (_, refusals) = read(body.as_bytes(), framing, |_, item| {
            messages.push(item.into_message(TopicId(0), 0)?);
            Ok(())
        })
        .expect("readable");
        (messages, refusals)
    }

    fn keys(body: &str, framing: Framing) -> Vec<String> {
        messages(body, framing).0.iter().map(|message| message.key.to_string()).collect()
    }

    #[test]
    fn a_body_is_one_message_or_several() {
        let one = r#"{"topic":"t","key":"a","payload":{"x":1}}"#;
        let two = r#"{"topic":"t","key":"b","payload":"{\"x\":1}"}"#;
        assert_eq!(keys(one, Framing::Guess), ["a"]);
        assert_eq!(keys(&one.replace(',', ",\n  "), Framing::Guess), ["a"], "over several lines");
        assert_eq!(keys(&format!("[{one}, {two}]"), Framing::Guess), ["a", "b"]);
        assert_eq!(keys(&format!("{one}\n\n{two}\n"), Framing::Guess), ["a", "b"]);
        assert_eq!(keys(one, Framing::Lines), ["a"]);
        let mark = '\u{feff}';
        assert_eq!(keys(&format!("{mark}[{one}]"), Framing::Guess), ["a"], "a byte order mark");
        assert_eq!(keys(&format!("{mark}{one}\n{mark}{two}"), Framing::Lines), ["a", "b"]);
        let payloads: Vec<_> = messages(&format!("[{one},{two}]"), Framing::Guess).0;
        assert_eq!(payloads[0].payload, payloads[1].payload, "a string of JSON is the JSON");
    }

    #[test]
    fn null_deletes() {
        for payload in ["null", r#""null""#] {
            let body = format!(r#"{{"topic":"t","key":"a","payload":{payload}}}"#);
            assert_eq!(messages(&body, Framing::Guess).0[0].payload, None, "{payload}");
        }
    }

    #[test]
    fn bad_messages_are_refused_one_by_one_with_their_place() {
        let body = [
            r#"{"topic":"t","key":"a","payload":1}"#,
            r#"{"topic":"t","key":"b","payload":"#,
            r#"{"topic":"t","key":"","payload":1}"#,
            r#"{"topic":"t","key":"c","payLoad":1}"#,
            r#"{"topic":"t","key":"d","payload":"not json"}"#,
            r#"{"topic":"t","key":"e","payload":1,"timestamp":1700000000000}"#,
            r#"{"topic":"t","key":"a\u0000b","payload":1}"#,
            r#"{"topic":"t","key":"f","payload":2}"#,
        ]
        .join("\n");
        let (kept, refusals) = messages(&body, Framing::Guess);
        assert_eq!(kept.len(), 2);
        let shown: Vec<_> = refusals
            .iter()
            .map(|refusal| format!("{} {:?} {}", refusal.item, refusal.line, refusal.error))
            .collect();
        assert_eq!(
            shown,
            [
                "1 Some(2) EOF while parsing a value at line 1 column 33",
                "2 Some(3) key is empty; every message needs one",
                "3 Some(4) unknown field `payLoad`, expected one of `topic`, `key`, `payload`, `timestamp` at line 1 column 32",
                "4 Some(5) payload is a string that holds no JSON (expected ident at line 1 column 2); send the JSON itself, or a string of it",
                "5 Some(6) timestamp 1700000000000 is no time in seconds since 1970; milliseconds must be divided by 1000",
                "6 Some(7) key has a NUL character; SQLite would cut it short there, so leave it out",
            ]
        );
    }

    #[test]
    fn deep_and_foreign_bodies_say_what_is_wrong() {
        let deep = format!(r#"{{"topic":"t","key":"a","payload":{}1{}}}"#, "[".repeat(200), "]".repeat(200));
        assert_eq!(
            messages(&deep, Framing::Guess).1[0].error,
            "payload is nested 200 levels deep; at most 128 are allowed"
        );
        let whole = |body: &[u8]| read(body, Framing::Guess, |_, _| Ok(())).expect_err("unreadable");
        assert_eq!(whole(b"\xff{}"), "the body is no UTF-8 (first bad byte at 0)");
        assert_eq!(whole(b"\x1f\x8b\x08"), "the body is packed by gzip; send it unpacked");
        assert_eq!(whole(b"hello"), "the body is no JSON: expected value at line 1 column 1");
        assert_eq!(
            whole(b" \n"),
            "the body is empty; send {\"topic\":…,\"key\":…,\"payload\":…}, an array of them, or one a line"
        );
    }
}
