//! `Link` headers. Pure. Source: RFC 8288, section 3 and appendix B.2; garbage is passed over up to the next comma.

use axum::http::{HeaderMap, header};

/// A link to the next page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NextLink {
    /// A URL, absolute or relative to that of the page.
    pub(super) target: String,
    /// Whether the page says by `results="false"` that the next one has no records.
    pub(super) is_empty: bool,
}

/// The first link to the next page.
pub(super) fn next_link(headers: &HeaderMap) -> Option<NextLink> {
    let headers = headers.get_all(header::LINK).iter();
    headers.map(|text| String::from_utf8_lossy(text.as_bytes())).find_map(|text| next_of(&text))
}

fn next_of(header: &str) -> Option<NextLink> {
    let mut rest = Rest(header);
    while rest.find_link() {
        let (target, parameters) = (rest.target()?, rest.parameters());
        // Parameters of a name that the link has already do not count.
        let parameter = |wanted: &str| {
            let found = parameters.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted));
            found.map(|(_, value)| value.as_str())
        };
        let mut relations = parameter("rel").unwrap_or_default().split_ascii_whitespace();
        if relations.any(|relation| relation.eq_ignore_ascii_case("next")) {
            let is_empty = parameter("results").is_some_and(|text| text.eq_ignore_ascii_case("false"));
            return Some(NextLink { target, is_empty });
        }
    }
    None
}

/// The part of a header that has not been read.
struct Rest<'h>(&'h str);

impl Rest<'_> {
    /// Goes behind the `<` of the next link; `false` if there is none.
    fn find_link(&mut self) -> bool {
        loop {
            self.skip_blanks();
            match self.next() {
                Some('<') => return true,
                Some(',') => {}
                Some(_) => _ = self.until(&[',']),
                None => return false,
            }
        }
    }

    /// Reads a target and its `>`.
    fn target(&mut self) -> Option<String> {
        let (target, rest) = self.0.split_once('>')?;
        self.0 = rest;
        Some(target.trim().to_owned())
    }

    /// Reads the parameters of a link, each with its value or an empty one.
    fn parameters(&mut self) -> Vec<(String, String)> {
        let mut parameters = Vec::new();
        loop {
            // Blanks, and anything that should not be there.
            self.until(&[';', ',']);
            if !self.0.starts_with(';') {
                return parameters;
            }
            self.next();
            let name = self.until(&['=', ';', ',']);
            let mut value = String::new();
            if self.0.starts_with('=') {
                self.next();
                self.skip_blanks();
                value = match self.0.strip_prefix('"') {
                    Some(rest) => {
                        self.0 = rest;
                        self.quoted()
                    }
                    None => self.until(&[';', ',']),
                };
            }
            parameters.push((name, value));
        }
    }

    /// Reads a quoted text and the quote that ends it.
    fn quoted(&mut self) -> String {
        let mut text = String::new();
        while let Some(c) = self.next() {
            match c {
                '"' => break,
                '\\' => text.extend(self.next()),
                _ => text.push(c),
            }
        }
        text
    }

    /// Reads up to one of some letters, without the blanks around it.
    fn until(&mut self, ends: &[char]) -> String {
        let (text, rest) = self.0.split_at(self.0.find(ends).unwrap_or(self.0.len()));
        self.0 = rest;
        text.trim().to_owned()
    }

    fn next(&mut self) -> Option<char> {
        let mut letters = self.0.chars();
        let next = letters.next();
        self.0 = letters.as_str();
        next
    }

    fn skip_blanks(&mut self) {
        self.0 = self.0.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_link_is_found_however_it_is_written() {
        for (header, expected) in [
            (r#"<http://h/p?q=1,2>; rel="prev", </p?q=3>; rel="next last""#, Some("/p?q=3")),
            ("<?page=2>; title=x; rel=next", Some("?page=2")),
            (r#"</2>; title="Page 2, of 3"; rel="next""#, Some("/2")),
            (r#"</0>; title="<, \"a\"; rel=next"; rel=prev, </2>; rel=next"#, Some("/2")),
            (r#"</2>;a="b=";c;;rel = "NEXT" ;d"#, Some("/2")),
            (r#"</2>; REL=Next; rel=prev"#, Some("/2")),
            (r#"</2>; rel=prev; rel=next"#, None),
            (r#", ,</1>,</2>;rel=next"#, Some("/2")),
            (r#"garbage "x", </2>; rel=next"#, Some("/2")),
            (r#"</2>; title="no end; rel=next"#, None),
            (r#"</2>; title="é – ü"; rel="prev next""#, Some("/2")),
            (r#"</2> junk; rel="x"junk; y, </3>; rel=next"#, Some("/3")),
            (r#"</2>; rel="last""#, None),
            ("</2; rel=next", None),
            ("", None),
        ] {
            let found = next_of(header).map(|link| link.target);
            assert_eq!(found.as_deref(), expected, "{header}");
        }
    }

    #[test]
    fn each_header_counts_and_a_next_page_may_be_said_to_be_empty() {
        let headers = |texts: &[&str]| -> HeaderMap {
            texts.iter().map(|text| (header::LINK, text.as_bytes().try_into().unwrap())).collect()
        };
        let found =
            next_link(&headers(&["</1>; rel=prev; results=false", "</é>; rel=next; results=\"true\""]));
        assert_eq!(found, Some(NextLink { target: "/é".to_owned(), is_empty: false }));
        let found = next_link(&headers(&["</3>; rel=next; results=\"false\"; cursor=\"0:3:0\""]));
        assert_eq!(found, Some(NextLink { target: "/3".to_owned(), is_empty: true }));
        assert_eq!(next_link(&HeaderMap::new()), None);
    }
}
