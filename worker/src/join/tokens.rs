//! The tokens of a query: enough to find calls and literals in it, without its grammar.

use std::ops::Range;

use sqlite3_parser::lexer::Scanner;
use sqlite3_parser::lexer::sql::{TokenType, Tokenizer};

/// A token of a query.
pub(super) struct Token<'q> {
    pub(super) kind: TokenType,
    pub(super) text: &'q str,
    pub(super) at: Range<usize>,
}

impl Token<'_> {
    pub(super) fn is(&self, word: &str) -> bool {
        self.text.eq_ignore_ascii_case(word)
    }
}

/// Returns the tokens of a query without its comments; `None` if a part of it is no token.
pub(super) fn tokens(query: &str) -> Option<Vec<Token<'_>>> {
    let mut scanner = Scanner::new(Tokenizer::new());
    let mut tokens = Vec::new();
    loop {
        match scanner.scan(query.as_bytes()).ok()? {
            (start, Some((_, kind)), end) => {
                tokens.push(Token { kind, text: query.get(start..end)?, at: start..end });
            }
            (_, None, _) => return Some(tokens),
        }
    }
}

/// Returns whether the token at `index` is followed by the arguments of a call.
pub(super) fn called(tokens: &[Token<'_>], index: usize) -> bool {
    tokens.get(index + 1).is_some_and(|next| next.kind == TokenType::TK_LP)
}

/// Returns the arguments of a call as ranges of tokens; `None` if the call has no end.
pub(super) fn arguments(tokens: &[Token<'_>], opening: usize) -> Option<Vec<Range<usize>>> {
    let (mut found, mut depth, mut start) = (Vec::new(), 0_usize, opening + 1);
    for (index, token) in tokens.iter().enumerate().skip(opening) {
        match token.kind {
            TokenType::TK_LP => depth += 1,
            TokenType::TK_RP => depth -= 1,
            _ => {}
        }
        let ends = depth == 0 || depth == 1 && token.kind == TokenType::TK_COMMA;
        if ends && index > start {
            found.push(start..index);
        }
        if depth == 0 {
            return Some(found);
        }
        if ends {
            start = index + 1;
        }
    }
    None
}

/// Returns the tokens of an argument without parentheses around all of it.
pub(super) fn bare<'t, 'q>(tokens: &'t [Token<'q>], argument: Range<usize>) -> &'t [Token<'q>] {
    match &tokens[argument.clone()] {
        [first, inner @ .., last]
            if inner.len() == 1 && first.kind == TokenType::TK_LP && last.kind == TokenType::TK_RP =>
        {
            inner
        }
        all => all,
    }
}
