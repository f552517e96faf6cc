//! Durations as people write them: `10ms`, `1h30m`, `168h`.
//!
//! The syntax is the one that the cluster's validation rules read (Go's), so that `duration(self.slide)` in a rule
//! and `parse` here agree: one or more of a decimal number and a unit, in any order, added up.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// Pattern of a duration in the schemas; `parse` takes exactly what it matches, up to `DURATION_MAX`.
pub const PATTERN: &str = r"^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$";

/// The longest text of a duration, in bytes.
pub const LENGTH_MAX: usize = 32;

/// The longest duration, ten years of 365 days: beyond it a slip of the pen is more likely than a wish.
pub const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Units and their nanoseconds; longer spellings first, so that `ms` is not read as `m`.
const UNITS: [(&str, f64); 6] =
    [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("m", 6e10), ("h", 3.6e12)];

/// A duration as written, such as `10ms`, `1h30m` or `168h`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

impl DurationText {
    /// Returns the duration, or what is wrong with the text and what to write instead.
    pub fn parse(&self) -> Result<Duration, String> {
        parse(&self.0)
    }
}

impl From<&str> for DurationText {
    fn from(text: &str) -> Self {
        DurationText(text.to_owned())
    }
}

/// The text of an age that nothing reaches.
pub const FOREVER: &str = "forever";

/// Pattern of an age in the schemas: a duration, or [`FOREVER`].
pub const AGE_PATTERN: &str = r"^(forever|([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+)$";

/// An age as written: a duration such as `24h`, or `forever`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AgeText(pub String);

impl AgeText {
    /// Returns the duration as it is written, or `None` for `forever`.
    pub fn duration(&self) -> Option<DurationText> {
        (self.0 != FOREVER).then(|| DurationText(self.0.clone()))
    }
}

impl From<&str> for AgeText {
    fn from(text: &str) -> Self {
        AgeText(text.to_owned())
    }
}

impl JsonSchema for AgeText {
    fn schema_name() -> Cow<'static, str> {
        "Age".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": AGE_PATTERN, "maxLength": LENGTH_MAX })
    }
}

impl JsonSchema for DurationText {
    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": PATTERN, "maxLength": LENGTH_MAX })
    }
}

/// Reads a duration such as `1h30m`; zero is a duration. The error says what is wrong and what to write.
pub fn parse(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut nanoseconds = 0.0_f64;
    if text.is_empty() {
        return Err(wrong(text));
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, after) = rest.split_at(digits);
        if !is_decimal(number) {
            return Err(wrong(text));
        }
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
            return Err(wrong(text));
        };
        let number: f64 = number.parse().map_err(|_| wrong(text))?;
        nanoseconds += number * factor;
        rest = next;
    }
    if nanoseconds > DURATION_MAX.as_nanos() as f64 {
        return Err(format!("got {text:?}, allowed at most \"87600h\" (ten years)"));
    }
    Ok(Duration::from_nanos(nanoseconds.round() as u64))
}

/// Whether a text is digits, or digits, a point and digits.
fn is_decimal(text: &str) -> bool {
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    match text.split_once('.') {
        Some((whole, fraction)) => digits(whole) && digits(fraction),
        None => digits(text),
    }
}

/// Says what is wrong with a text that is no duration, by its likeliest cause.
fn wrong(text: &str) -> String {
    if is_decimal(text) {
        return format!("got {text:?}, write a unit: \"{text}s\", \"{text}ms\", \"{text}m\" or \"{text}h\"");
    }
    if text.starts_with('-') {
        return format!("got {text:?}, durations are not negative; write for example \"10ms\" or \"1h30m\"");
    }
    let unit = text.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let number = &text[..text.len() - unit.len()];
    if is_decimal(number)
        && let Some(hours) = match unit {
            "d" | "day" | "days" => Some(24.0),
            "w" | "week" | "weeks" => Some(168.0),
            _ => None,
        }
        && let Ok(number) = number.parse::<f64>()
    {
        return format!("got {text:?}, units are ns, us, ms, s, m and h; write \"{}h\"", number * hours);
    }
    format!("got {text:?}, which is no duration; write for example \"10ms\", \"30s\", \"1h30m\" or \"168h\"")
}

/// Writes a duration of whole seconds, or of less than one, as a user would.
pub fn duration_text(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{}ms", duration.as_millis()),
        seconds if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

/// Reads a point in time as RFC 3339 has it, such as `2026-05-01T12:00:00Z`, in milliseconds since the epoch.
pub fn parse_timestamp(text: &str) -> Result<i64, String> {
    text.parse::<jiff::Timestamp>()
        .map(jiff::Timestamp::as_millisecond)
        .map_err(|_| format!("got {text:?}, write a time with its zone, such as \"2026-05-01T12:00:00Z\""))
}

/// Writes a point in time, in milliseconds since the epoch, as [`parse_timestamp`] reads it.
pub fn timestamp_text(milliseconds: i64) -> String {
    jiff::Timestamp::from_millisecond(milliseconds)
        .map_or_else(|_| milliseconds.to_string(), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_add_up() {
        let table: [(&str, u64); 8] = [
            ("10ms", 10_000_000),
            ("1h30m", 5_400_000_000_000),
            ("168h", 604_800_000_000_000),
            ("1.5s", 1_500_000_000),
            ("30m1h", 5_400_000_000_000),
            ("1us1ns", 1_001),
            ("0s", 0),
            ("87600h", 315_360_000_000_000_000),
        ];
        for (text, nanoseconds) in table {
            assert_eq!(parse(text), Ok(Duration::from_nanos(nanoseconds)), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_says_what_to_write() {
        let table = [
            ("10", "got \"10\", write a unit: \"10s\", \"10ms\", \"10m\" or \"10h\""),
            ("7d", "got \"7d\", units are ns, us, ms, s, m and h; write \"168h\""),
            ("-1s", "got \"-1s\", durations are not negative; write for example \"10ms\" or \"1h30m\""),
            (
                "soon",
                "got \"soon\", which is no duration; write for example \"10ms\", \"30s\", \"1h30m\" or \"168h\"",
            ),
            (
                "1h 30m",
                "got \"1h 30m\", which is no duration; write for example \"10ms\", \"30s\", \"1h30m\" or \"168h\"",
            ),
            (
                "",
                "got \"\", which is no duration; write for example \"10ms\", \"30s\", \"1h30m\" or \"168h\"",
            ),
            (
                "1..5s",
                "got \"1..5s\", which is no duration; write for example \"10ms\", \"30s\", \"1h30m\" or \"168h\"",
            ),
            ("100000h", "got \"100000h\", allowed at most \"87600h\" (ten years)"),
        ];
        for (text, message) in table {
            assert_eq!(parse(text), Err(message.to_owned()), "{text}");
        }
    }
}
