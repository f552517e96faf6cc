//! Rust source, read just well enough: without comments and literals, and as the paths it names.

use std::iter::Peekable;
use std::str::Chars;

/// Returns the source with comments and literals turned into spaces. Lines stay where they are.
pub(crate) fn code(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(next) = rest.chars().next() {
        let skipped = match next {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => quoted(rest, '"'),
            'r' if !code.ends_with(is_word) => raw_string(rest),
            '\'' if is_char_literal(rest) => quoted(rest, '\''),
            _ => 0,
        };
        let taken = skipped.max(next.len_utf8());
        if skipped == 0 {
            code.push(next);
        } else {
            code.extend(rest[..taken].chars().map(|letter| if letter == '\n' { '\n' } else { ' ' }));
        }
        rest = &rest[taken..];
    }
    code
}

/// Returns the code up to its inline tests, if it has any.
pub(crate) fn without_tests(code: &str) -> &str {
    &code[..code.find("#[cfg(test)]\nmod tests {").unwrap_or(code.len())]
}

/// Returns every path in the code with its line, from 1: `use std::{fs, io::Read}` names `std::fs` and
/// `std::io::Read`.
pub(crate) fn paths(code: &str) -> Vec<(usize, String)> {
    let mut paths = Vec::new();
    let mut open = Vec::new(); // one entry for each open brace: the path before it, empty for a plain block
    for (index, line) in code.lines().enumerate() {
        let mut letters = line.chars().peekable();
        let mut path: String = String::new();
        while let Some(letter) = letters.next() {
            if is_word(letter) {
                let word = word(letter, &mut letters);
                let grown = path.ends_with("::");
                if !grown {
                    path = open.last().cloned().unwrap_or_default();
                }
                path.push_str(&word);
            } else if letter == ':' && letters.next_if_eq(&':').is_some() {
                path.push_str("::");
                continue;
            } else if letter == '{' {
                open.push(if path.ends_with("::") { std::mem::take(&mut path) } else { String::new() });
                continue;
            } else if letter == '}' {
                open.pop();
            }
            let goes_on = letters.peek() == Some(&':');
            if !goes_on && !path.is_empty() && !path.ends_with("::") {
                paths.push((index + 1, std::mem::take(&mut path)));
            }
        }
    }
    paths
}

fn word(first: char, letters: &mut Peekable<Chars<'_>>) -> String {
    let mut word = String::from(first);
    while let Some(letter) = letters.next_if(|letter| is_word(*letter)) {
        word.push(letter);
    }
    word
}

pub(crate) fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Length of the quoted literal that `rest` begins with.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, letter) in rest.char_indices().skip(1) {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == quote => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

/// Length of the raw string that `rest` begins with, 0 when it is just a word with an r.
fn raw_string(rest: &str) -> usize {
    let hashes = rest[1..].chars().take_while(|letter| *letter == '#').count();
    if !rest[1 + hashes..].starts_with('"') {
        return 0;
    }
    let end = format!("\"{}", "#".repeat(hashes));
    let start = 1 + hashes + 1;
    rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len())
}

/// Length of the block comment that `rest` begins with; they nest.
fn block_comment(rest: &str) -> usize {
    let mut depth = 0;
    for (at, _) in rest.char_indices() {
        if rest[at..].starts_with("/*") {
            depth += 1;
        } else if rest[at..].starts_with("*/") {
            depth -= 1;
            if depth == 0 {
                return at + 2;
            }
        }
    }
    rest.len()
}

/// Whether the quote begins a character rather than a lifetime.
fn is_char_literal(rest: &str) -> bool {
    let mut letters = rest.chars().skip(1);
    match letters.next() {
        Some('\\') => true,
        Some(_) => letters.next() == Some('\''),
        None => false,
    }
}

#[test]
fn code_is_left_without_comments_and_literals() {
    for (source, left) in [
        ("a // b \" c\nd", "a         \nd"),
        ("a /* b /* c */ d */ e", "a                   e"),
        ("f(\"a\\\"b\", x)", "f(      , x)"),
        ("r#\"a\"b\"# + r\"c\" + r2", "         +      + r2"),
        ("'a' '\\'' <'b> '\"'", "         <'b>    "),
        ("\"é\nb\" c", "  \n   c"),
    ] {
        assert_eq!(code(source), left, "of {source:?}");
    }
}

#[test]
fn paths_are_found_in_use_trees_and_in_place() {
    let code = "use std::{\n    fs::File,\n    io::{self, Read},\n};\nuse tokio;\nfn f() { a::b(c); }";
    let found = paths(code);
    let path = |line: usize, path: &str| (line, String::from(path));
    for wanted in [
        path(2, "std::fs::File"),
        path(3, "std::io::self"),
        path(3, "std::io::Read"),
        path(5, "tokio"),
        path(6, "a::b"),
    ] {
        assert!(found.contains(&wanted), "{wanted:?} is missing in {found:?}");
    }
}
