//! Times as APIs write them. Pure.

use jiff::Timestamp;
use jiff::civil::{DateTime, Time};
use jiff::fmt::temporal::Pieces;

/// The time that a text says, in nanoseconds since 1970: by RFC 3339, without a zone in UTC, as a date alone, as HTTP and
/// mail write it, as digits (`20260102103000`), or as a number since 1970 whose size tells its unit.
pub(super) fn nanoseconds(text: &str) -> Option<i128> {
    let text = text.trim();
    let mail = || jiff::fmt::rfc2822::parse(text).ok().map(|time| time.timestamp().as_nanosecond());
    digits(text).or_else(|| number(text)).or_else(|| written(text)).or_else(mail)
}

/// A date, with a time and a zone or without. The last day of the year 9999 is one: APIs use it for "never".
fn written(text: &str) -> Option<i128> {
    let pieces = Pieces::parse(text).ok()?;
    let time = DateTime::from_parts(pieces.date(), pieces.time().unwrap_or(Time::midnight()));
    let offset = pieces.to_numeric_offset().map_or(0, |offset| offset.seconds());
    let epoch = jiff::tz::Offset::UTC.to_datetime(Timestamp::UNIX_EPOCH);
    Some(time.duration_since(epoch).as_nanos() - i128::from(offset) * 1_000_000_000)
}

/// Year to second, and maybe milliseconds, without anything between; as a number since 1970 it would lie in a far future.
fn digits(text: &str) -> Option<i128> {
    let fits = matches!(text.len(), 14 | 17) && text.bytes().all(|b| b.is_ascii_digit());
    if !fits || !(text.starts_with("19") || text.starts_with("20")) {
        return None;
    }
    let (date, time) = text.split_at(8);
    let (time, fraction) = time.split_at(6);
    written(&format!("{date}T{time}.{fraction:0<3}"))
}

/// A number of seconds, milliseconds, microseconds or nanoseconds: the smallest that lies before the year 5000.
fn number(text: &str) -> Option<i128> {
    let size: f64 = text.parse().ok().filter(|size: &f64| size.is_finite() && size.abs() < 1e27)?;
    let unit = match size.abs() {
        size if size < 1e11 => 1_000_000_000,
        size if size < 1e14 => 1_000_000,
        size if size < 1e17 => 1_000,
        _ => 1,
    };
    Some(
        text.parse::<i128>()
            .map_or_else(|_| (size * f64::from(unit)) as i128, |number| number * i128::from(unit)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_however_they_are_written() {
        const SECOND: i128 = 1_000_000_000;
        for text in [
            "2026-01-02T10:30:00Z",
            "2026-01-02T10:30:00.000000Z",
            "2026-01-02T12:30:00+02:00",
            "2026-01-02T12:30:00+0200",
            "2026-01-02 10:30:00Z",
            "2026-01-02T10:30:00",
            "2026-01-02 10:30:00",
            "2026-01-02T10:30",
            "20260102T103000Z",
            "20260102103000",
            "20260102103000000",
            "Fri, 02 Jan 2026 10:30:00 GMT",
            "Fri, 02 Jan 2026 12:30:00 +0200",
            "1767349800",
            "1767349800.0",
            "1767349800000",
            "1767349800000000",
            "1767349800000000000",
        ] {
            assert_eq!(nanoseconds(text), Some(1_767_349_800 * SECOND), "{text}");
        }
        for (text, expected) in [
            ("2026-01-02", Some(1_767_312_000 * SECOND)),
            ("1767349800.5", Some(1_767_349_800 * SECOND + SECOND / 2)),
            ("7", Some(7 * SECOND)),
            ("-7", Some(-7 * SECOND)),
            ("", None),
            ("zzz", None),
            ("NaN", None),
            ("1e400", None),
            ("2026-13-02", None),
            ("true", None),
        ] {
            assert_eq!(nanoseconds(text), expected, "{text}");
        }
        assert!(nanoseconds("2026-01-02T00:00:00.5Z") > nanoseconds("2026-01-02T00:00:00Z"));
        assert!(nanoseconds("9999-12-31T23:59:59Z") > nanoseconds("9999-12-30"));
    }
}
