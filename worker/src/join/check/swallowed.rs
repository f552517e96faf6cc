//! Comments that swallow the end of a query. A folded text of YAML (`>`) is one line, so a `--` comment in it goes on to
//! the end, with all clauses that were written below.

use crate::join::tokens::tokens;

/// Words with which a clause or an operator begins, behind which SQL goes on.
const CLAUSES: [&str; 17] = [
    "FROM",
    "WHERE",
    "GROUP",
    "HAVING",
    "ORDER",
    "LIMIT",
    "WINDOW",
    "UNION",
    "EXCEPT",
    "INTERSECT",
    "JOIN",
    "LEFT",
    "INNER",
    "FULL",
    "CROSS",
    "AND",
    "OR",
];

/// Returns a warning if the comment at the end of a query of one line holds a clause with which the query is one, too, as
/// `is_query` finds out.
pub(super) fn swallowed(query: &str, is_query: impl Fn(&str) -> bool) -> Option<String> {
    let comment = last_comment(query).filter(|_| !query.trim().contains('\n'))?;
    let before = query.trim_end().strip_suffix(comment)?;
    let mut words = comment.match_indices(char::is_whitespace).map(|(at, _)| comment[at..].trim_start());
    let clause = words.find(|rest| {
        let word = rest.split_whitespace().next().unwrap_or_default();
        CLAUSES.iter().any(|clause| word.eq_ignore_ascii_case(clause)) && is_query(&format!("{before}{rest}"))
    })?;
    Some(format!(
        "the comment goes on to the end of the query, and {clause:?} is a part of it: in a folded text (>) all is one line, \
         so write query: |-, or end the comment (/* … */)"
    ))
}

/// Returns the comment at the end of a query that no line end has ended.
pub(super) fn last_comment(query: &str) -> Option<&str> {
    let query = query.trim_end();
    let end = tokens(query)?.last().map_or(0, |token| token.at.end);
    let mut rest = query[end..].trim_start();
    loop {
        rest = if rest.starts_with("--") {
            match rest.split_once('\n') {
                None => return Some(rest),
                Some((_, below)) => below.trim_start(),
            }
        } else {
            rest.strip_prefix("/*")?.split_once("*/")?.1.trim_start()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clause_behind_a_comment_is_seen() {
        let is_query = |query: &str| query == "SELECT key FROM t WHERE paid = 1";
        assert!(swallowed("SELECT key FROM t -- only the paid ones WHERE paid = 1", is_query).is_some());
        assert!(swallowed("SELECT key FROM t -- where paid", is_query).is_none());
        assert!(swallowed("SELECT key FROM t\n-- only the paid ones WHERE paid = 1", is_query).is_none());
        assert!(swallowed("SELECT key, '-- only WHERE paid = 1' FROM t", is_query).is_none());
    }

    #[test]
    fn the_last_comment_is_one_without_an_end() {
        for (query, comment) in [
            ("SELECT 1 -- a", Some("-- a")),
            ("SELECT 1 -- a\n /* b */ -- c ", Some("-- c")),
            ("SELECT 1 /* -- a */", None),
            ("SELECT '-- a'", None),
            ("SELECT \"-- a\"", None),
        ] {
            assert_eq!(last_comment(query), comment, "{query}");
        }
    }
}
