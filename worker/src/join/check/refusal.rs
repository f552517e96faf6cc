//! Why a query is refused, in the terms of its author.

use std::sync::LazyLock;

use litejoin_crds::complaint::nearest;
use litejoin_crds::names;
use litejoin_crds::plan::Join;
use regex::Regex;
use rusqlite::ErrorCode;

use super::outputs::Outputs;
use super::swallowed::last_comment;
use super::{CheckProblem, Checker, QueryError};
use crate::storage::topics::fed_by;

/// SQL of other databases, by a pattern over a query without its texts, comments and quoted names, and the way of SQLite.
const FOREIGN: [(&str, &str); 5] = [
    (r"(?i)::\s*\w*", "x::type is the cast of PostgreSQL; write CAST(x AS INTEGER), … AS REAL or … AS TEXT"),
    (
        r"(?i)\binterval\s+\w*",
        "SQLite has no INTERVAL; write datetime(x, '+1 day'), or add seconds: timestamp + 86400",
    ),
    (
        r"(?i)\blateral\s*\(?\s*\w*\s*",
        "SQLite has no LATERAL; json_each(…) reads the tables in front of it as it is, and row_number() OVER (PARTITION \
         BY …) picks the first rows of each key",
    ),
    (
        r"(?i)\bgrouping\s+sets",
        "SQLite has no GROUPING SETS; write a SELECT with GROUP BY for each set, with UNION ALL between",
    ),
    (
        r"(?i)\bemit\s+\w*",
        "EMIT is the word of other engines; leave it out: a join tells each change of its results, and a Window has the \
         field emit",
    ),
];

/// [`FOREIGN`], compiled.
static HINTS: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let compiled = |pattern| Regex::new(pattern).expect("a test compiles each pattern");
    FOREIGN.iter().map(|(pattern, hint)| (compiled(pattern), *hint)).collect()
});

impl Checker<'_> {
    /// Explains in the user's terms why SQLite refused a query. `Ok` means that a topic was added: try again.
    pub(super) fn explain(
        &self,
        join: &Join,
        outputs: Outputs<'_>,
        query: &str,
        error: rusqlite::Error,
    ) -> Result<(), CheckProblem> {
        let (message, offset) = short(&error);
        let wrong = |message| refusal(join, query, offset.unwrap_or(0), message);
        if matches!(error, rusqlite::Error::MultipleStatement) {
            return Err(wrong("holds more than one statement; a join is one SELECT".to_owned()));
        }
        if error.sqlite_error_code() == Some(ErrorCode::AuthorizationForStatementDenied) {
            let what = self.seen().denied.take().unwrap_or(message);
            return Err(wrong(what));
        }
        if let Some(name) = message.strip_prefix("no such table: ") {
            if let Some((schema, table)) = name.split_once('.') {
                return Err(wrong(format!("{name} names a schema; write {table} without {schema}.")));
            }
            let lower = name.to_ascii_lowercase();
            if let Some(output) = fed_by(&lower) {
                return Err(wrong(format!("{name} may not be read; read {output}")));
            }
            if self.broken.contains(&lower) {
                return Err(CheckProblem::NeedsBroken);
            }
            if outputs.names().any(|other| other.eq_ignore_ascii_case(name)) {
                return if join.name.eq_ignore_ascii_case(name) {
                    Err(wrong(format!("join {name:?} reads itself; read the topics instead")))
                } else {
                    Err(CheckProblem::NeedsOutput)
                };
            }
            if self.catalog.open && names::topic_trouble(name).is_none() {
                self.add_topic(name);
                return Ok(());
            }
            let known = self.catalog.topics.iter().map(String::as_str).chain(outputs.names());
            let hint = near(name, known.clone());
            let present: Vec<&str> = known.filter(|known| *known != join.name).collect();
            let present = if present.is_empty() { "there are none".to_owned() } else { present.join(", ") };
            let kinds =
                if outputs.windows.is_empty() { "topics and joins" } else { "topics, joins and windows" };
            return Err(wrong(format!("no source fills topic {name:?}{hint}; {kinds}: {present}")));
        }
        if message == "no such column: rowid" {
            return Err(wrong("topics have no rowid, since they are spread over shards; use key".to_owned()));
        }
        let hint = hint(query, offset, &message).unwrap_or_default();
        Err(wrong(format!("{message}{hint}")))
    }
}

/// Returns the error of a query about what stands at a byte of it; `query` is that of `join`, trimmed.
pub(super) fn refusal(join: &Join, query: &str, offset: usize, message: String) -> CheckProblem {
    let line = query.bytes().take(offset).filter(|byte| *byte == b'\n').count() + leading(&join.query);
    CheckProblem::Wrong(vec![QueryError { place: join.place.clone(), field: "query", line, message }])
}

/// Returns what the query looks like at the byte of it that SQLite can't read.
fn hint(query: &str, offset: Option<usize>, message: &str) -> Option<String> {
    if message == "incomplete input"
        && let Some(comment) = last_comment(query)
    {
        return Some(format!(
            "; the comment {comment:?} goes on to the end of the query: in a folded text (>) all is one line, so write \
             query: |"
        ));
    }
    let offset =
        offset.filter(|_| message.contains("syntax error") || message.contains("unrecognized token"))?;
    let bare = without_texts(query);
    HINTS.iter().find_map(|(pattern, hint)| {
        let is_there = pattern.find_iter(&bare).any(|found| (found.start()..=found.end()).contains(&offset));
        is_there.then(|| format!("; {hint}"))
    })
}

/// Returns the query with blanks for its texts, quoted names and comments, byte for byte.
fn without_texts(query: &str) -> String {
    let mut bare = query.as_bytes().to_vec();
    let mut at = 0;
    while at < bare.len() {
        let rest = &query.as_bytes()[at..];
        let closing = |open: usize, close: &[u8]| {
            let found = rest[open..].windows(close.len()).position(|window| window == close);
            found.map_or(rest.len(), |position| open + position + close.len())
        };
        let length = match rest {
            [quote @ (b'\'' | b'"' | b'`'), ..] => closing(1, &[*quote]),
            [b'-', b'-', ..] => closing(2, b"\n"),
            [b'/', b'*', ..] => closing(2, b"*/"),
            [byte, ..] if !byte.is_ascii() => 1,
            _ => {
                at += 1;
                continue;
            }
        };
        bare[at..at + length].fill(b' ');
        at += length;
    }
    String::from_utf8(bare).expect("what is left is ASCII")
}

/// Returns SQLite's message without the query behind it, and the byte of the query that the message is about.
pub(super) fn short(error: &rusqlite::Error) -> (String, Option<usize>) {
    match error {
        rusqlite::Error::SqlInputError { msg, offset, .. } => (msg.clone(), usize::try_from(*offset).ok()),
        rusqlite::Error::SqliteFailure(_, Some(message)) => (message.clone(), None),
        other => (other.to_string(), None),
    }
}

/// Returns the number of lines that `trim` removes in front of the query.
fn leading(query: &str) -> usize {
    query.len().checked_sub(query.trim_start().len()).map_or(0, |end| query[..end].matches('\n').count())
}

/// Returns `, did you mean "…"` for the nearest of `known`, or an empty text.
pub(super) fn near<'n>(name: &str, known: impl Iterator<Item = &'n str>) -> String {
    nearest(name, known).map_or_else(String::new, |known| format!(", did you mean {known:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_and_comments_are_blank() {
        let query = "SELECT 'it''s', \"x\" -- ::\n, y::int /* :: */ é";
        let bare = without_texts(query);
        assert_eq!(bare.len(), query.len());
        assert_eq!(bare.split_whitespace().collect::<Vec<_>>(), ["SELECT", ",", ",", "y::int"]);
    }

    #[test]
    fn each_pattern_compiles() {
        assert_eq!(HINTS.len(), FOREIGN.len());
    }
}
