//! The words of a server without our credentials, should it repeat them. Pure.

use std::cmp::Reverse;

use reqwest::Url;

/// Bytes that are shown.
const SHOWN_BYTES_MAX: usize = 300;

/// A value that is filled in and shorter than that is no credential, and may be part of many words.
const FILLED_IN_BYTES_MIN: usize = 4;

/// The texts that must not be shown.
#[derive(Default)]
pub(super) struct Redaction(Vec<String>);

impl Redaction {
    /// Adds a credential as it is sent.
    pub(super) fn add(&mut self, text: &str) {
        if !text.is_empty() {
            self.0.push(text.to_owned());
        }
    }

    /// Adds what a variable was filled in with, also as it is spelled in URLs.
    pub(super) fn add_filled_in(&mut self, value: &str) {
        if value.len() < FILLED_IN_BYTES_MIN {
            return;
        }
        self.add(value);
        let mut url = Url::parse("http://host").expect("a URL with a host");
        url.set_query(Some(value));
        self.add(url.query().unwrap_or_default());
        url.set_query(None);
        url.query_pairs_mut().append_key_only(value);
        let of_form = url.query().unwrap_or_default();
        self.add(of_form);
        self.add(&of_form.replace('+', "%20"));
    }

    /// Whether any of them is in a text.
    pub(super) fn finds_any(&self, text: &str) -> bool {
        self.0.iter().any(|secret| without(text, secret) != text)
    }

    /// Returns how a body begins, as one line without credentials. A body that is not whole may end within one.
    pub(super) fn shown(mut self, body: &[u8], is_whole: bool) -> String {
        // A text may be a part of another.
        self.0.sort_by_key(|secret| Reverse(secret.len()));
        let mut text = String::from_utf8_lossy(body).into_owned();
        for secret in &self.0 {
            text = without(&text, secret);
        }
        if !is_whole {
            let begun = self.0.iter().map(|secret| bytes_begun(&text, secret)).max().unwrap_or(0);
            text.truncate(text.len() - begun);
        }
        let mut text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        text.truncate(text.floor_char_boundary(SHOWN_BYTES_MAX));
        text
    }
}

/// The text with `***` in place of a secret, in capitals or not: so are the digits of what is encoded.
fn without(text: &str, secret: &str) -> String {
    let (lower, wanted) = (text.to_ascii_lowercase(), secret.to_ascii_lowercase());
    let (mut kept, mut from) = (String::with_capacity(text.len()), 0);
    while let Some(at) = lower[from..].find(&wanted) {
        kept.push_str(&text[from..from + at]);
        kept.push_str("***");
        from += at + wanted.len();
    }
    kept.push_str(&text[from..]);
    kept
}

/// Bytes of a secret with which the text ends.
fn bytes_begun(text: &str, secret: &str) -> usize {
    let lengths = (1..secret.len()).rev().filter(|length| secret.is_char_boundary(*length));
    lengths.into_iter().find(|length| text.ends_with(&secret[..*length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redaction() -> Redaction {
        let mut redaction = Redaction::default();
        redaction.add("secret");
        redaction.add("secret-of-many");
        redaction.add("");
        redaction.add_filled_in("a b/ç");
        redaction.add_filled_in("no");
        redaction
    }

    fn shown(body: &str, is_whole: bool) -> String {
        redaction().shown(body.as_bytes(), is_whole)
    }

    #[test]
    fn credentials_are_not_shown_however_they_are_spelled() {
        for (body, expected) in [
            ("no\n secret", "no ***"),
            ("secret-of-many SECRET", "*** ***"),
            ("?key=a%20b/%C3%A7&key=a+b%2F%C3%A7", "?key=***&key=***"),
            ("a%20b%2f%c3%a7 a b/ç", "*** ***"),
            ("ends with sec", "ends with sec"),
        ] {
            assert_eq!(shown(body, true), expected, "{body}");
            assert_eq!(redaction().finds_any(body), expected.contains("***"), "{body}");
        }
        assert_eq!(shown("it is cut within a sec", false), "it is cut within a");
    }

    #[test]
    fn what_is_shown_ends_within_no_credential_and_no_letter() {
        for before in 280..300 {
            let text = shown(&format!("{}secret ççç", "-".repeat(before)), true);
            assert!(text.len() <= SHOWN_BYTES_MAX && !text.contains('s'), "{text}");
        }
        assert_eq!(shown(&"ç".repeat(200), true), "ç".repeat(150));
    }
}
