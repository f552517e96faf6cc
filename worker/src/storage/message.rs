//! One message on its way into a topic, and the limits that every source holds it to. Pure.

use crate::storage::topics::TopicId;

/// Longest key, in bytes of UTF-8.
pub(crate) const KEY_BYTES_MAX: usize = 4_096;

/// Largest payload, in bytes.
pub(crate) const PAYLOAD_BYTES_MAX: usize = 8 << 20;

/// Deepest nesting of a payload. SQLite itself gives up at 1,000; what people send stays far below both.
pub(crate) const PAYLOAD_DEPTH_MAX: usize = 128;

/// A message that has been checked and belongs to a topic.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Message {
    pub(crate) topic: TopicId,
    pub(crate) key: Box<str>,
    /// JSON text; `None` deletes the key.
    pub(crate) payload: Option<Box<str>>,
    /// The message's own time, in seconds since the epoch; `None` is the time of its arrival.
    pub(crate) timestamp: Option<i64>,
    /// A JSON object of what came beside the payload.
    pub(crate) headers: Option<Box<str>>,
    /// Place in its source's stream; 0 for sources that can't go back.
    pub(crate) source_offset: u64,
}

/// A fault of a message.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum MessageError {
    #[error("key is empty; every message needs one")]
    EmptyKey,
    #[error("key has a NUL character; SQLite would cut it short there, so leave it out")]
    NulInKey,
    #[error("key has {got} bytes; at most {KEY_BYTES_MAX} are allowed")]
    LongKey { got: usize },
    #[error("payload has {got} bytes; at most {PAYLOAD_BYTES_MAX} are allowed")]
    LargePayload { got: usize },
    #[error("payload is nested {got} levels deep; at most {PAYLOAD_DEPTH_MAX} are allowed")]
    DeepPayload { got: usize },
    #[error(
        "{escape} at byte {at} has no other half, so it is no Unicode; send the whole character, or leave it out"
    )]
    LoneSurrogate { escape: String, at: usize },
    #[error("payload is a string that holds no JSON ({detail}); send the JSON itself, or a string of it")]
    BadPayload { detail: String },
    #[error("timestamp {got} is no time in seconds since 1970; milliseconds must be divided by 1000")]
    BadTimestamp { got: i64 },
}

/// Last second of the year 9999: a larger number is one of milliseconds.
const TIMESTAMP_MAX: i64 = 253_402_300_799;

/// Checks a key.
pub(crate) fn check_key(key: &str) -> Result<(), MessageError> {
    if key.is_empty() {
        return Err(MessageError::EmptyKey);
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(MessageError::LongKey { got: key.len() });
    }
    if key.as_bytes().contains(&0) {
        return Err(MessageError::NulInKey);
    }
    Ok(())
}

/// Checks a message's own time.
pub(crate) fn check_timestamp(timestamp: Option<i64>) -> Result<(), MessageError> {
    match timestamp {
        Some(got) if !(0..=TIMESTAMP_MAX).contains(&got) => Err(MessageError::BadTimestamp { got }),
        _ => Ok(()),
    }
}

/// Checks the size and depth of a payload that is known to be JSON, and that its text is Unicode.
pub(crate) fn check_payload(json: &str) -> Result<(), MessageError> {
    if json.len() > PAYLOAD_BYTES_MAX {
        return Err(MessageError::LargePayload { got: json.len() });
    }
    let got = depth(json)?;
    if got > PAYLOAD_DEPTH_MAX { Err(MessageError::DeepPayload { got }) } else { Ok(()) }
}

/// Counts the levels of arrays and objects in JSON text. The error is an escape in a string that is half a character.
pub(crate) fn depth(json: &str) -> Result<usize, MessageError> {
    let bytes = json.as_bytes();
    let (mut depth, mut deepest, mut at) = (0_usize, 0, 0);
    while let Some(byte) = bytes.get(at) {
        at += 1;
        match byte {
            b'"' => {
                while let Some(byte) = bytes.get(at) {
                    at += match byte {
                        b'\\' => escape_bytes(json, at)?,
                        _ => 1,
                    };
                    if *byte == b'"' {
                        break;
                    }
                }
            }
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(deepest)
}

/// Bytes of the escape at `at`, with those of its other half.
fn escape_bytes(json: &str, at: usize) -> Result<usize, MessageError> {
    let unit = |at: usize| {
        let digits = json.get(at..at + 6)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok()
    };
    match unit(at) {
        Some(0xd800..=0xdbff) if matches!(unit(at + 6), Some(0xdc00..=0xdfff)) => Ok(12),
        Some(0xd800..=0xdfff) => Err(MessageError::LoneSurrogate { escape: json[at..at + 6].to_owned(), at }),
        _ => Ok(2),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_strings() {
        let cases =
            [("1", 0), ("{}", 1), (r#"{"a":[1,{"b":2}]}"#, 3), (r#"{"a":"[[[\"[["}"#, 1), ("[[],[]]", 2)];
        for (json, expected) in cases {
            assert_eq!(depth(json), Ok(expected), "{json}");
        }
    }

    #[test]
    fn half_a_character_is_no_text() {
        for json in [r#""\ud83d\ude00""#, r#""\\ud83d""#, r#"{"\u00e4":"\uD83D\uDE00 \u"}"#, r#""\"\u0041""#]
        {
            assert_eq!(check_payload(json), Ok(()), "{json}");
        }
        for (json, escape, at) in [
            (r#"{"v":"cut\ud83d"}"#, r"\ud83d", 9),
            (r#"["\uDE00\uD83D"]"#, r"\uDE00", 2),
            (r#""\ud83d\ud83d\ude00""#, r"\ud83d", 1),
            (r#"{"\ud83d":1}"#, r"\ud83d", 2),
        ] {
            let lone = MessageError::LoneSurrogate { escape: escape.to_owned(), at };
            assert_eq!(check_payload(json), Err(lone), "{json}");
        }
    }

    #[test]
    fn keys_that_sqlite_would_bend_are_refused() {
        assert_eq!(check_key(""), Err(MessageError::EmptyKey));
        assert_eq!(check_key("a\0b"), Err(MessageError::NulInKey));
        assert_eq!(check_key(&"k".repeat(4_097)), Err(MessageError::LongKey { got: 4_097 }));
        assert_eq!(check_key("日本"), Ok(()));
    }

    #[test]
    fn milliseconds_are_told_from_seconds() {
        assert_eq!(check_timestamp(Some(1_700_000_000)), Ok(()));
        assert_eq!(
            check_timestamp(Some(1_700_000_000_000)),
            Err(MessageError::BadTimestamp { got: 1_700_000_000_000 })
        );
    }
}
