//! Literals that SQLite looks at only when a row comes: paths into JSON, JSON itself, patterns, and what is said of a
//! time. A wrong one would stop the join at its first message, or give NULL for every row, so each is tried out before.
//! Only literals are judged: whether a value of a row fits shows with the row.

use rusqlite::Connection;
use sqlite3_parser::lexer::sql::TokenType;

use super::super::now::TIME_FUNCTIONS;
use super::super::tokens::{Token, arguments, bare, called, tokens};
use crate::storage::sqlite::SqliteError;

/// A literal that SQLite refuses, or that follows from the machine.
pub(super) struct WrongLiteral {
    /// The byte of the query at which the literal stands.
    pub(super) offset: usize,
    pub(super) message: String,
}

/// Functions of JSON, by what their arguments are.
const JSON_FUNCTIONS: [(&[&str], Paths); 4] = [
    (&["json", "jsonb", "json_pretty"], Paths::None),
    (&["json_type", "json_array_length", "json_each", "json_tree", "jsonb_each", "jsonb_tree"], Paths::One),
    (&["json_extract", "jsonb_extract", "json_remove", "jsonb_remove"], Paths::All),
    (
        &[
            "json_set",
            "json_insert",
            "json_replace",
            "json_array_insert",
            "jsonb_set",
            "jsonb_insert",
            "jsonb_replace",
            "jsonb_array_insert",
        ],
        Paths::Pairs,
    ),
];

/// Which arguments behind the document are paths.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Paths {
    None,
    One,
    All,
    /// Each is followed by a value.
    Pairs,
}

impl Paths {
    fn at(self, position: usize) -> bool {
        match self {
            Self::None => false,
            Self::One => position == 1,
            Self::All => position > 0,
            Self::Pairs => position % 2 == 1,
        }
    }
}

/// Modifiers that SQLite knows only right behind a number, so they can't be tried behind another modifier.
const OF_NUMBERS: [&str; 3] = ["'unixepoch'", "'julianday'", "'auto'"];

/// Modifiers by which a time depends on the time zone of the machine.
const OF_MACHINE: [&str; 2] = ["'localtime'", "'utc'"];

/// Operators that take a literal in front of them for a part of a longer value.
const BINDING: [TokenType; 10] = [
    TokenType::TK_CONCAT,
    TokenType::TK_PTR,
    TokenType::TK_PLUS,
    TokenType::TK_MINUS,
    TokenType::TK_STAR,
    TokenType::TK_SLASH,
    TokenType::TK_REM,
    TokenType::TK_LT,
    TokenType::TK_GT,
    TokenType::TK_COLLATE,
];

/// Returns the first wrong literal of a query that SQLite accepts.
pub(super) fn wrong_literal(query: &str, connection: &Connection) -> Option<WrongLiteral> {
    let tokens = tokens(query)?;
    let trial = Trial { connection };
    (0..tokens.len()).find_map(|index| {
        let token = &tokens[index];
        let before = index.checked_sub(1).map(|before| &tokens[before]);
        if token.kind == TokenType::TK_STRING {
            let message = match before {
                Some(before) if before.kind == TokenType::TK_PTR => {
                    trial.fails(&format!("SELECT '{{}}' {} {}", before.text, token.text))
                }
                Some(before) if before.is("REGEXP") => {
                    let is_whole = tokens.get(index + 1).is_none_or(|next| !BINDING.contains(&next.kind));
                    is_whole.then(|| trial.fails(&format!("SELECT '' REGEXP {}", token.text))).flatten()
                }
                _ => None,
            };
            return message.map(|message| WrongLiteral { offset: token.at.start, message });
        }
        let is_name = before.is_some_and(|b| matches!(b.kind, TokenType::TK_AS | TokenType::TK_DOT));
        if is_name || !called(&tokens, index) {
            return None;
        }
        trial.call(&tokens, index)
    })
}

struct Trial<'c> {
    connection: &'c Connection,
}

impl Trial<'_> {
    /// Returns what is wrong with a literal among the arguments of the call whose name is the token at `index`.
    fn call(&self, tokens: &[Token<'_>], index: usize) -> Option<WrongLiteral> {
        let name = tokens[index].text.to_ascii_lowercase();
        let arguments = arguments(tokens, index + 1)?;
        let literals = arguments.iter().enumerate().filter_map(|(position, argument)| {
            match bare(tokens, argument.clone()) {
                [token] if token.kind == TokenType::TK_STRING => Some((position, token)),
                _ => None,
            }
        });
        let paths = JSON_FUNCTIONS.iter().find(|(names, _)| names.contains(&name.as_str()));
        if let Some((_, Paths::Pairs)) = paths
            && arguments.len() % 2 == 0
        {
            let message = format!("{name}() takes a document, and a value behind each path");
            return Some(WrongLiteral { offset: tokens[index].at.start, message });
        }
        if matches!(name.as_str(), "json_object" | "jsonb_object") && arguments.len() % 2 == 1 {
            let message = format!("{name}() takes a value behind each label");
            return Some(WrongLiteral { offset: tokens[index].at.start, message });
        }
        let time_at = TIME_FUNCTIONS.iter().find(|(function, _)| *function == name).map(|(_, at)| *at);
        literals.into_iter().find_map(|(position, literal)| {
            let message = match (paths, time_at) {
                (Some(_), _) if position == 0 => self.fails(&format!("SELECT json({})", literal.text)),
                (Some((_, paths)), _) if paths.at(position) => {
                    self.fails(&format!("SELECT json_extract('{{}}', {})", literal.text))
                }
                (None, Some(time_at)) if position > time_at => self.modifier(&name, literal.text),
                (None, Some(time_at)) if position < time_at => self.format(&name, literal.text),
                _ if name == "regexp" && position == 0 => {
                    self.fails(&format!("SELECT regexp({}, '')", literal.text))
                }
                _ => None,
            };
            message.map(|message| WrongLiteral { offset: literal.at.start, message })
        })
    }

    /// Returns what is wrong with a modifier of a time.
    fn modifier(&self, function: &str, literal: &str) -> Option<String> {
        let lower = literal.to_ascii_lowercase();
        if OF_MACHINE.contains(&lower.as_str()) {
            return Some(format!(
                "{function}() with {lower} depends on the time zone of the machine, and results must follow from the \
                 topics; times are in UTC: write a fixed distance such as '+02:00', or give a Window a timezone"
            ));
        }
        let is_known = OF_NUMBERS.contains(&lower.as_str())
            || self.yields(&format!("SELECT datetime(0, 'unixepoch', {literal}) IS NOT NULL"));
        (!is_known).then(|| {
            format!(
                "{function}() knows no modifier {literal}, and gives NULL for every row; write for example '+1 day', \
                 'start of month' or 'unixepoch'"
            )
        })
    }

    /// Returns what is wrong with the format of a time.
    fn format(&self, function: &str, literal: &str) -> Option<String> {
        let is_known = self.yields(&format!("SELECT strftime({literal}, 0, 'unixepoch') IS NOT NULL"));
        (!is_known).then(|| {
            format!(
                "{function}() knows not all of the format {literal}, and gives NULL for every row; write for example \
                 '%Y-%m-%dT%H:%M:%SZ'"
            )
        })
    }

    /// Returns why a query fails.
    fn fails(&self, sql: &str) -> Option<String> {
        let outcome = self.connection.query_row(sql, [], |_| Ok(()));
        let message = outcome.err().map(|error| SqliteError::message_of(&error))?;
        let hint = if message.starts_with("bad JSON path") {
            "; begin with $, and write a name in double quotes unless it is plain: '$.\"order id\"[0]'"
        } else {
            ""
        };
        Some(format!("{message}{hint}"))
    }

    fn yields(&self, sql: &str) -> bool {
        self.connection.query_row(sql, [], |row| row.get(0)).unwrap_or(true)
    }
}
