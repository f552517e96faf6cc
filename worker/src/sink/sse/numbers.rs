//! Integers that JavaScript can't hold. `JSON.parse` reads numbers as doubles, which have every integer up to 2^53 − 1
//! and skip some beyond it; `numbers=text` sends those as strings. Pure.

use std::borrow::Cow;

use super::parameters::Parameters;

/// `Number.MAX_SAFE_INTEGER`, in digits.
const SAFE_INTEGER_MAX: &str = "9007199254740991";

/// How a client gets numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Numbers {
    /// As JSON has them.
    #[default]
    Json,
    /// Integers beyond ±(2^53 − 1) as strings, everything else as JSON has it.
    Text,
}

impl Numbers {
    /// Takes the parameter `numbers`.
    pub(super) fn of(parameters: &mut Parameters) -> Result<Self, String> {
        let numbers = parameters.parsed("numbers", "json, text", |text| match text {
            "json" => Some(Self::Json),
            "text" => Some(Self::Text),
            _ => None,
        })?;
        Ok(numbers.unwrap_or_default())
    }

    /// Returns JSON as the client gets it.
    pub(super) fn applied(self, json: String) -> String {
        match self {
            Self::Json => json,
            Self::Text => match large_integers_as_text(&json) {
                Cow::Borrowed(_) => json,
                Cow::Owned(changed) => changed,
            },
        }
    }
}

/// Puts quotes around each integer beyond ±(2^53 − 1) of a JSON text. Strings and numbers with a point or an exponent
/// stay as they are.
fn large_integers_as_text(json: &str) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let mut changed = String::new();
    let (mut at, mut copied) = (0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = string_end(bytes, at),
            b'-' | b'0'..=b'9' => {
                let is_number = |byte: &u8| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9');
                let length = bytes[at..].iter().take_while(|byte| is_number(byte)).count();
                let number = &json[at..at + length];
                if is_large_integer(number) {
                    changed.push_str(&json[copied..at]);
                    changed.push('"');
                    changed.push_str(number);
                    changed.push('"');
                    copied = at + length;
                }
                at += length;
            }
            _ => at += 1,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(json);
    }
    changed.push_str(&json[copied..]);
    Cow::Owned(changed)
}

/// Returns where the string that begins at `start` has ended.
fn string_end(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn is_large_integer(number: &str) -> bool {
    let digits = number.strip_prefix('-').unwrap_or(number);
    // JSON has no leading zeros, so a longer number is a larger one.
    digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits.len(), digits) > (SAFE_INTEGER_MAX.len(), SAFE_INTEGER_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_that_javascript_can_not_hold_are_text() {
        for (json, expected) in [
            ("9007199254740991", "9007199254740991"),
            ("-9007199254740991", "-9007199254740991"),
            ("9007199254740992", "\"9007199254740992\""),
            ("-9007199254740992", "\"-9007199254740992\""),
            ("[0,9223372036854775807,1]", "[0,\"9223372036854775807\",1]"),
            (
                "{\"a\":99999999999999999999,\"b\":{\"c\":[-1]}}",
                "{\"a\":\"99999999999999999999\",\"b\":{\"c\":[-1]}}",
            ),
            // No integers, however large.
            (
                "[9007199254740993.5,1e300,9e999,-9e999,9007199254740993e0]",
                "[9007199254740993.5,1e300,9e999,-9e999,9007199254740993e0]",
            ),
            // Text is text already.
            (
                r#"["9007199254740993","\"9007199254740993","\\",9007199254740993]"#,
                r#"["9007199254740993","\"9007199254740993","\\","9007199254740993"]"#,
            ),
            (r#"{"9007199254740993":null}"#, r#"{"9007199254740993":null}"#),
        ] {
            assert_eq!(Numbers::Text.applied(json.to_owned()), expected);
            assert_eq!(Numbers::Json.applied(json.to_owned()), json);
        }
    }
}
