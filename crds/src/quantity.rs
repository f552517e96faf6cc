//! Amounts of bytes: a plain number, or a Kubernetes quantity such as `512Mi`, `1Gi`, `500M`.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Pattern of an amount of bytes that is written as text.
pub const PATTERN: &str = r"^[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|Pi|k|M|G|T|P)?$";

/// The longest text of an amount, in bytes.
pub const LENGTH_MAX: usize = 24;

const SUFFIXES: [(&str, f64); 10] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
];

/// An amount of bytes as written: a number, or a text such as `1Gi`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Bytes {
    /// So many bytes.
    Number(u64),
    /// A number with a suffix: Ki, Mi, Gi, Ti, Pi (powers of 1024) or k, M, G, T, P (powers of 1000).
    Text(String),
}

impl Bytes {
    /// Returns the number of bytes, or what is wrong with the text and what to write instead.
    pub fn parse(&self) -> Result<u64, String> {
        match self {
            Bytes::Number(bytes) => Ok(*bytes),
            Bytes::Text(text) => parse(text),
        }
    }
}

impl JsonSchema for Bytes {
    fn schema_name() -> Cow<'static, str> {
        "Bytes".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-kubernetes-int-or-string": true, "pattern": PATTERN, "maxLength": LENGTH_MAX })
    }
}

/// An amount of bytes that is always written as text, for rules that compare old and new.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct QuantityText(pub String);

impl JsonSchema for QuantityText {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": LENGTH_MAX })
    }
}

/// Reads an amount of bytes such as `512Mi`; the error says what is wrong and what to write.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || {
        format!("got {text:?}, which is no amount of bytes; write for example \"512Mi\", \"1Gi\" or 1048576")
    };
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let decimal = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if !decimal(whole) || !decimal(fraction) {
        return Err(wrong());
    }
    let factor = match SUFFIXES.iter().find(|(name, _)| *name == suffix) {
        Some((_, factor)) => *factor,
        None if suffix.is_empty() => 1.0,
        None => {
            let bare = suffix.trim().trim_end_matches(['b', 'B']);
            let near = SUFFIXES.iter().map(|(name, _)| name).find(|name| name.eq_ignore_ascii_case(bare));
            return Err(match near {
                Some(near) => {
                    format!("got {text:?}, which is no amount of bytes; did you mean \"{number}{near}\"?")
                }
                None => wrong(),
            });
        }
    };
    let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor;
    if bytes > i64::MAX as f64 {
        return Err(format!("got {text:?}, allowed at most \"8191Pi\""));
    }
    Ok(bytes.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_kubernetes_reads_them() {
        for (text, bytes) in [("1Gi", 1 << 30), ("1.5Ki", 1536), ("500M", 500_000_000), ("42", 42), ("0", 0)]
        {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_amount_says_what_to_write() {
        let table = [
            ("1GiB", "got \"1GiB\", which is no amount of bytes; did you mean \"1Gi\"?"),
            ("1 Gi", "got \"1 Gi\", which is no amount of bytes; did you mean \"1Gi\"?"),
            (
                "much",
                "got \"much\", which is no amount of bytes; write for example \"512Mi\", \"1Gi\" or 1048576",
            ),
            ("9999Pi", "got \"9999Pi\", allowed at most \"8191Pi\""),
        ];
        for (text, message) in table {
            assert_eq!(parse(text), Err(message.to_owned()), "{text}");
        }
    }
}
