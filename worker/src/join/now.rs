//! The clock in queries. Each form of now in a query becomes the function `_now()`, whose value is set before each
//! evaluation: all rows of all shards then see one moment, and the moment can be stored beside the results.
//!
//! ```text
//! unixepoch()                ─► unixepoch(_now(), 'unixepoch')
//! datetime('now', '-1 hour') ─► datetime(_now(), 'unixepoch', '-1 hour')
//! CURRENT_TIMESTAMP          ─► datetime(_now(), 'unixepoch')
//! ```
//! The moment has whole seconds, as the timestamps of topics have.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rusqlite::Connection;
use rusqlite::functions::FunctionFlags;
use sqlite3_parser::lexer::sql::TokenType;

use super::tokens::{Token, arguments, bare, called, tokens};

/// The function that stands for every form of now, in lower case.
pub(crate) const NOW: &str = "_now";

/// The first arguments of a function of time whose time is now.
const ARGUMENTS: &str = "_now(), 'unixepoch'";

/// Functions of a time, by the position of that argument; without it, or with `now` in its place, they read the clock.
pub(super) const TIME_FUNCTIONS: [(&str, usize); 6] =
    [("date", 0), ("time", 0), ("datetime", 0), ("julianday", 0), ("unixepoch", 0), ("strftime", 1)];

/// The function whose two arguments are times.
const DIFFERENCE: &str = "timediff";

/// Words that read the clock without being called, with what they stand for.
const WORDS: [(&str, &str); 3] =
    [("current_date", "date"), ("current_time", "time"), ("current_timestamp", "datetime")];

/// The moment that `_now()` returns on a connection, in seconds since the Unix epoch.
#[derive(Debug, Clone, Default)]
pub(crate) struct QueryClock(Arc<AtomicI64>);

impl QueryClock {
    /// Adds `_now()` to a connection.
    pub(crate) fn install(connection: &Connection) -> rusqlite::Result<Self> {
        let clock = Self::default();
        let moment = Arc::clone(&clock.0);
        let flags = FunctionFlags::SQLITE_UTF8
            | FunctionFlags::SQLITE_DETERMINISTIC
            | FunctionFlags::SQLITE_INNOCUOUS;
        connection.create_scalar_function(NOW, 0, flags, move |_| Ok(moment.load(Ordering::Relaxed)))?;
        Ok(clock)
    }

    /// Sets the moment for the statements that are run from here on.
    pub(crate) fn set(&self, now: i64) {
        self.0.store(now, Ordering::Relaxed);
    }
}

/// Returns whether a function, in lower case, may read the clock.
pub(super) fn may_read_clock(function: &str) -> bool {
    function == DIFFERENCE
        || TIME_FUNCTIONS.iter().any(|(name, _)| *name == function)
        || WORDS.iter().any(|(word, _)| *word == function)
}

/// Returns the query with `_now()` in place of each form of now; `None` if there is none. A form that is only found out
/// when the query runs (`datetime('n' || 'ow')`) stays as it is.
pub(crate) fn bind(query: &str) -> Option<String> {
    let tokens = tokens(query)?;
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let is_named = index
            .checked_sub(1)
            .is_some_and(|before| matches!(tokens[before].kind, TokenType::TK_AS | TokenType::TK_DOT));
        if is_named {
            continue;
        }
        if called(&tokens, index) {
            edits.extend(call(&tokens, index));
        } else if let Some((_, function)) = WORDS.iter().find(|(word, _)| token.is(word)) {
            edits.push((token.at.clone(), format!("{function}({ARGUMENTS})")));
        }
    }
    if edits.is_empty() {
        return None;
    }
    edits.sort_by_key(|(at, _)| at.start);
    let (mut bound, mut end) = (String::new(), 0);
    for (at, text) in edits {
        bound.push_str(&query[end..at.start]);
        bound.push_str(&text);
        end = at.end;
    }
    bound.push_str(&query[end..]);
    Some(bound)
}

/// Returns the edits of the call whose name is the token at `index`.
fn call(tokens: &[Token<'_>], index: usize) -> Vec<(Range<usize>, String)> {
    let opening = index + 1;
    let Some(arguments) = arguments(tokens, opening) else { return Vec::new() };
    let is_text = |argument: &Range<usize>, texts: &[&str]| match bare(tokens, argument.clone()) {
        [token] => texts.iter().any(|text| token.is(text)),
        _ => false,
    };
    let place = |argument: &Range<usize>| tokens[argument.start].at.start..tokens[argument.end - 1].at.end;
    let behind = |token: usize| tokens[token].at.end..tokens[token].at.end;
    if tokens[index].is(DIFFERENCE) {
        return arguments
            .iter()
            .filter(|argument| is_text(argument, &["'now'"]))
            .map(|argument| (place(argument), format!("datetime({ARGUMENTS})")))
            .collect();
    }
    let Some((_, time_at)) = TIME_FUNCTIONS.iter().find(|(name, _)| tokens[index].is(name)) else {
        return Vec::new();
    };
    match arguments.get(*time_at) {
        Some(time) if is_text(time, &["'now'"]) => vec![(place(time), ARGUMENTS.to_owned())],
        // Without a time in front, these modifiers mean now.
        Some(time) if is_text(time, &["'subsec'", "'subsecond'"]) => {
            let start = place(time).start;
            vec![(start..start, format!("{ARGUMENTS}, "))]
        }
        Some(_) => Vec::new(),
        None => match arguments.last() {
            None if *time_at == 0 => vec![(behind(opening), ARGUMENTS.to_owned())],
            Some(last) => vec![(behind(last.end - 1), format!(", {ARGUMENTS}"))],
            None => Vec::new(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_now_is_bound() {
        for (query, bound) in [
            ("unixepoch()", "unixepoch(_now(), 'unixepoch')"),
            ("unixepoch ( )", "unixepoch (_now(), 'unixepoch' )"),
            ("UnixEpoch('NOW')", "UnixEpoch(_now(), 'unixepoch')"),
            ("datetime(('now'), '-1 hour')", "datetime(_now(), 'unixepoch', '-1 hour')"),
            ("strftime('%s','now')", "strftime('%s',_now(), 'unixepoch')"),
            ("strftime('%H')", "strftime('%H', _now(), 'unixepoch')"),
            ("unixepoch('subsec')", "unixepoch(_now(), 'unixepoch', 'subsec')"),
            ("current_timestamp", "datetime(_now(), 'unixepoch')"),
            ("timediff('now', at)", "timediff(datetime(_now(), 'unixepoch'), at)"),
            ("max(date('now'), date())", "max(date(_now(), 'unixepoch'), date(_now(), 'unixepoch'))"),
            ("/* 'now' */ date(/* ' */ 'now')", "/* 'now' */ date(/* ' */ _now(), 'unixepoch')"),
        ] {
            let query = format!("SELECT {query} FROM t");
            assert_eq!(bind(&query), Some(format!("SELECT {bound} FROM t")), "{query}");
        }
    }

    #[test]
    fn what_is_no_now_is_left_alone() {
        for query in [
            "date(timestamp, 'unixepoch')",
            "'date(''now'')'",
            "\"current_date\"",
            "o.current_date",
            "1 AS current_date",
            "lower('now')",
            "strftime('%s', timestamp, 'unixepoch')",
            "-- unixepoch()",
            "datetime(payload->>'now')",
        ] {
            assert_eq!(bind(&format!("SELECT {query}\nFROM t")), None, "{query}");
        }
    }

    #[test]
    fn a_bound_query_says_what_sqlite_says() {
        let connection = crate::storage::sqlite::open_memory().unwrap();
        let clock = QueryClock::install(&connection).unwrap();
        let text = |sql: &str| connection.query_row(sql, [], |row| row.get::<_, String>(0)).unwrap();
        for form in [
            "CAST(unixepoch() AS TEXT)",
            "datetime('now', 'start of day', '+1 day')",
            "strftime('%Y-%m-%d', 'now')",
            "date('subsec')",
            "CURRENT_DATE",
        ] {
            let query = format!("SELECT {form}");
            let bound = bind(&query).unwrap();
            // Both statements may run in different seconds, but not time and again.
            let is_same = (0..100).any(|_| {
                clock.set(crate::clock::epoch_seconds());
                text(&bound) == text(&query)
            });
            assert!(is_same, "{bound}");
        }
        clock.set(0);
        assert_eq!(text(&bind("SELECT datetime()").unwrap()), "1970-01-01 00:00:00");
    }
}
