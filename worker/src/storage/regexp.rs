//! The function behind SQLite's operator REGEXP, which SQLite itself leaves out: `text REGEXP pattern` calls
//! `regexp(pattern, text)`. Patterns are those of the crate `regex`, which finds a match in linear time.

use regex::bytes::{Regex, RegexBuilder};
use rusqlite::functions::{Context, FunctionFlags};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Error};

/// The memory that a compiled pattern may take, in bytes, and the memory beside it while it is matched. A pattern may
/// come out of a row, so this bounds what a row can cost.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// Why a pattern can't be used.
#[derive(Debug, thiserror::Error)]
#[error("regexp: pattern {pattern:?}: {trouble}")]
struct PatternError {
    pattern: String,
    trouble: String,
}

/// Adds `regexp()` to a connection.
pub(super) fn install(connection: &Connection) -> rusqlite::Result<()> {
    let flags =
        FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC | FunctionFlags::SQLITE_INNOCUOUS;
    connection.create_scalar_function("regexp", 2, flags, matches)
}

/// Returns whether a text, the second argument, matches a pattern, the first; NULL if either is NULL. Numbers are matched
/// as the texts that SQLite casts them to.
fn matches(context: &Context<'_>) -> rusqlite::Result<Option<bool>> {
    let (pattern, text) = (context.get_raw(0), context.get_raw(1));
    if pattern == ValueRef::Null {
        return Ok(None);
    }
    // SQLite keeps the compiled pattern for the next row if the pattern is the same for all rows.
    let pattern = context.get_or_create_aux(0, compile)?;
    Ok(match text {
        ValueRef::Null => None,
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Some(pattern.is_match(bytes)),
        ValueRef::Integer(integer) => Some(pattern.is_match(integer.to_string().as_bytes())),
        ValueRef::Real(real) => Some(pattern.is_match(text_of(real).as_bytes())),
    })
}

fn compile(pattern: ValueRef<'_>) -> Result<Regex, Error> {
    let pattern = match pattern {
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        ValueRef::Integer(integer) => integer.to_string(),
        ValueRef::Real(real) => text_of(real),
        ValueRef::Null => String::new(),
    };
    let built =
        RegexBuilder::new(&pattern).size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX).build();
    built.map_err(|error| {
        let trouble = match error {
            regex::Error::CompiledTooBig(_) => {
                format!("takes more than {} MiB; repeat less", PATTERN_BYTES_MAX >> 20)
            }
            // The crate draws the pattern with a mark below it, and says the error in the last line.
            error => {
                let drawn = error.to_string();
                let last = drawn.lines().last().unwrap_or_default();
                last.strip_prefix("error: ").unwrap_or(last).to_owned()
            }
        };
        Error::UserFunctionError(Box::new(PatternError { pattern, trouble }))
    })
}

/// Returns the text that SQLite casts a real to.
fn text_of(real: f64) -> String {
    if real.is_infinite() {
        return if real > 0.0 { "Inf" } else { "-Inf" }.to_owned();
    }
    let text = format!("{real:?}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let point = if mantissa.contains('.') { "" } else { ".0" };
    let (sign, digits) = exponent.strip_prefix('-').map_or(('+', exponent), |digits| ('-', digits));
    format!("{mantissa}{point}e{sign}{digits:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sqlite::open_memory;

    #[test]
    fn texts_match_or_not() {
        let connection = open_memory().unwrap();
        let value = |sql: &str| {
            connection.query_row(&format!("SELECT {sql}"), [], |row| row.get::<_, Option<bool>>(0)).unwrap()
        };
        for (sql, expected) in [
            ("'ord-17' REGEXP '^ord-[0-9]+$'", Some(true)),
            ("'ord-x' REGEXP '^ord-[0-9]+$'", Some(false)),
            ("'ord-x' NOT REGEXP '^ord-[0-9]+$'", Some(true)),
            ("regexp('b', 'abc')", Some(true)),
            ("'STRASSE' REGEXP '(?i)straße|strasse'", Some(true)),
            ("'é' REGEXP '^\\p{L}$'", Some(true)),
            ("NULL REGEXP 'a'", None),
            ("'a' REGEXP NULL", None),
            ("17 REGEXP '^17$'", Some(true)),
            ("1.5 REGEXP '^1\\.5$'", Some(true)),
            ("'a17' REGEXP 17", Some(true)),
            ("x'61ff' REGEXP '^a'", Some(true)),
        ] {
            assert_eq!(value(sql), expected, "{sql}");
        }
    }

    #[test]
    fn a_wrong_or_large_pattern_is_named() {
        let connection = open_memory().unwrap();
        let error = |pattern: &str| {
            let sql = "SELECT 'a' REGEXP ?1";
            connection.query_row(sql, [pattern], |row| row.get::<_, Option<bool>>(0)).unwrap_err().to_string()
        };
        assert_eq!(error("("), "regexp: pattern \"(\": unclosed group");
        assert_eq!(error(r"\w{500}"), "regexp: pattern \"\\\\w{500}\": takes more than 1 MiB; repeat less");
    }

    #[test]
    fn a_real_is_matched_as_the_text_that_sqlite_casts_it_to() {
        let connection = open_memory().unwrap();
        for real in
            [0.0, 1.0, -1.5, 0.1, 123_456.789, 1e15, 1e20, 1.5e20, 1e-7, 1.25e-7, 1e300, f64::INFINITY]
        {
            let cast: String =
                connection.query_row("SELECT CAST(?1 AS TEXT)", [real], |row| row.get(0)).unwrap();
            assert_eq!(text_of(real), cast);
        }
    }
}
