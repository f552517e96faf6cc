//! Which page of an answer to ask for next. Pure.

use axum::http::{HeaderMap, header};
use litejoin_crds::source::api::{ApiPagination, PaginationKind};
use reqwest::Url;

use super::records::scalar;

/// A page that has been read.
pub(super) struct ApiPage<'a> {
    pub(super) records: u64,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a str,
}

/// The pages of one poll.
pub(super) struct Pages<'a> {
    spec: Option<&'a ApiPagination>,
    /// The first page's, without what leads to a page.
    base: Url,
    next: Option<Url>,
    asked: u32,
    /// The number of the next page, or of the records before it.
    number: u64,
    cursor: Option<String>,
    is_cut: bool,
}

impl<'a> Pages<'a> {
    pub(super) fn new(spec: Option<&'a ApiPagination>, mut base: Url) -> Self {
        if let Some(ApiPagination { size_param: Some(name), size: Some(size), .. }) = spec {
            set_parameter(&mut base, name, &size.to_string());
        }
        let number = spec.map_or(0, |spec| u64::from(spec.start));
        let mut pages =
            Self { spec, next: Some(base.clone()), base, asked: 0, number, cursor: None, is_cut: false };
        if let Some(spec) = spec
            && matches!(spec.kind, PaginationKind::Page | PaginationKind::Offset)
        {
            pages.next = Some(pages.numbered());
        }
        pages
    }

    /// The page to ask for; `None` after the last one.
    pub(super) fn next(&self) -> Option<&Url> {
        self.next.as_ref()
    }

    /// Pages that have been read.
    pub(super) fn asked(&self) -> u32 {
        self.asked
    }

    /// Whether there are more pages than one poll may have.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Goes to the page behind one that has been read. Numbers lead on until a page has less than it could; a cursor or a
    /// link leads on whatever is on the page, since the API may have filtered what it has.
    pub(super) fn turn(&mut self, page: &ApiPage<'_>) -> Result<(), String> {
        self.asked += 1;
        self.next = None;
        let Some(spec) = self.spec else { return Ok(()) };
        let is_last = page.records == 0 || spec.size.is_some_and(|size| page.records < u64::from(size));
        let next = match spec.kind {
            PaginationKind::Page | PaginationKind::Offset if is_last => None,
            PaginationKind::Page => {
                self.number += 1;
                Some(self.numbered())
            }
            PaginationKind::Offset => {
                self.number += u64::from(spec.size.unwrap_or(1));
                Some(self.numbered())
            }
            PaginationKind::Cursor => self.cursor(spec, page)?,
            PaginationKind::Link => self.linked(page)?,
        };
        self.is_cut = next.is_some() && self.asked >= spec.max_pages;
        self.next = next.filter(|_| !self.is_cut);
        Ok(())
    }

    fn numbered(&self) -> Url {
        let mut url = self.base.clone();
        let name = self.spec.and_then(|spec| spec.param.as_deref()).unwrap_or_default();
        set_parameter(&mut url, name, &self.number.to_string());
        url
    }

    fn cursor(&mut self, spec: &ApiPagination, page: &ApiPage<'_>) -> Result<Option<Url>, String> {
        let path = spec.path.as_deref().unwrap_or_default();
        let Some(cursor) = scalar(page.body, path).filter(|cursor| !cursor.is_empty()) else {
            return Ok(None);
        };
        if self.cursor.as_ref() == Some(&cursor) {
            if page.records == 0 {
                // So APIs say that there is nothing more, whose cursor is also the place to go on from later.
                return Ok(None);
            }
            return Err(format!(
                "pagination.path: the answer has the same cursor as the one before ({cursor:?}), so there is no way on"
            ));
        }
        let mut url = self.base.clone();
        set_parameter(&mut url, spec.param.as_deref().unwrap_or_default(), &cursor);
        self.cursor = Some(cursor);
        Ok(Some(url))
    }

    /// The link to the next page, which has to be on the same server: our credentials go along.
    fn linked(&self, page: &ApiPage<'_>) -> Result<Option<Url>, String> {
        let links = page.headers.get_all(header::LINK).iter().filter_map(|link| link.to_str().ok());
        let Some(target) = links.flat_map(split_links).find_map(next_link) else { return Ok(None) };
        let from = self.base.join(target).map_err(|error| format!("its Link header is no URL: {error}"))?;
        if from.origin() != self.base.origin() {
            return Err("its Link header leads to another server; that is not followed".to_owned());
        }
        Ok(Some(from))
    }
}

/// Sets a query parameter, in place of those of that name.
pub(super) fn set_parameter(url: &mut Url, name: &str, value: &str) {
    let others: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(other, _)| other != name)
        .map(|(other, value)| (other.into_owned(), value.into_owned()))
        .collect();
    url.query_pairs_mut().clear().extend_pairs(others).append_pair(name, value);
}

/// The links of a header: commas within `<…>` are part of a URL.
fn split_links(text: &str) -> impl Iterator<Item = &str> {
    let mut within = false;
    text.split(move |c| {
        within = match c {
            '<' => true,
            '>' => false,
            _ => within,
        };
        c == ',' && !within
    })
}

/// The target of a link, if it leads to the next page. Source: RFC 8288.
fn next_link(link: &str) -> Option<&str> {
    let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    let is_next =
        parameters.split(';').filter_map(|parameter| parameter.split_once('=')).any(|(name, value)| {
            let values = value.trim().trim_matches('"');
            name.trim().eq_ignore_ascii_case("rel")
                && values.split_whitespace().any(|value| value.eq_ignore_ascii_case("next"))
        });
    is_next.then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(yaml: serde_json::Value) -> ApiPagination {
        serde_json::from_value(yaml).unwrap()
    }

    /// The queries of the pages that are asked for, when these come.
    fn walk(spec: &ApiPagination, pages: &[(u64, &str)]) -> Vec<String> {
        let mut walk = Pages::new(Some(spec), Url::parse("http://h/p?a=1").unwrap());
        let mut asked = Vec::new();
        for (records, body) in pages {
            let Some(url) = walk.next() else { break };
            asked.push(url.query().unwrap().to_owned());
            walk.turn(&ApiPage { records: *records, headers: &HeaderMap::new(), body }).unwrap();
        }
        if walk.next().is_some() {
            asked.push("…".to_owned());
        }
        asked
    }

    #[test]
    fn pages_are_numbered_counted_or_lead_on() {
        let page = spec(
            serde_json::json!({"type": "page", "param": "page", "start": 1, "size": 2, "sizeParam": "n"}),
        );
        assert_eq!(
            walk(&page, &[(2, ""), (2, ""), (1, "")]),
            ["a=1&n=2&page=1", "a=1&n=2&page=2", "a=1&n=2&page=3"]
        );
        let unsized_page = spec(serde_json::json!({"type": "page", "param": "page"}));
        assert_eq!(
            walk(&unsized_page, &[(2, ""), (1, ""), (0, "")]),
            ["a=1&page=0", "a=1&page=1", "a=1&page=2"]
        );
        let offset = spec(serde_json::json!({"type": "offset", "param": "skip", "size": 5}));
        assert_eq!(walk(&offset, &[(5, ""), (5, ""), (0, "")]), ["a=1&skip=0", "a=1&skip=5", "a=1&skip=10"]);
        let cursor = spec(serde_json::json!({"type": "cursor", "param": "after", "path": "meta.next"}));
        let bodies = [
            (1, r#"{"meta":{"next":"x y"}}"#),
            (1, r#"{"meta":{"next":7}}"#),
            (1, r#"{"meta":{"next":null}}"#),
        ];
        assert_eq!(walk(&cursor, &bodies), ["a=1", "a=1&after=x+y", "a=1&after=7"]);
        let cursor = spec(serde_json::json!({"type": "cursor", "param": "after", "path": "next", "size": 2}));
        let filtered =
            [(2, r#"{"next":1}"#), (0, r#"{"next":2}"#), (1, r#"{"next":3}"#), (0, r#"{"next":3}"#)];
        assert_eq!(
            walk(&cursor, &filtered),
            ["a=1", "a=1&after=1", "a=1&after=2", "a=1&after=3"],
            "a cursor leads on from a short page, and ends where nothing comes and it stays"
        );
        let cut = spec(serde_json::json!({"type": "page", "param": "page", "maxPages": 2}));
        assert_eq!(walk(&cut, &[(1, ""), (1, ""), (1, "")]), ["a=1&page=0", "a=1&page=1"]);
    }

    #[test]
    fn links_are_followed_on_the_same_server() {
        let link = spec(serde_json::json!({"type": "link"}));
        let next_of = |records: u64, text: &str| {
            let mut pages = Pages::new(Some(&link), Url::parse("http://h/p").unwrap());
            let headers = HeaderMap::from_iter([(header::LINK, text.parse().unwrap())]);
            pages.turn(&ApiPage { records, headers: &headers, body: "" })?;
            Ok::<_, String>(pages.next().map(ToString::to_string))
        };
        let next = |text: &str| next_of(1, text);
        let there = |url: &str| Ok(Some(url.to_owned()));
        assert_eq!(
            next(r#"<http://h/p?q=1,2>; rel="prev", </p?q=3>; rel="next last""#),
            there("http://h/p?q=3")
        );
        assert_eq!(next("<?page=2>; title=x; rel=next"), there("http://h/p?page=2"));
        assert_eq!(next_of(0, "<?page=2>; rel=next"), there("http://h/p?page=2"), "also from an empty page");
        assert_eq!(next(r#"<http://h/p>; rel="last""#), Ok(None));
        assert!(next("<http://other/p>; rel=next").is_err());
        assert!(next("<https://h/p>; rel=next").is_err());
    }

    #[test]
    fn a_cursor_that_stays_is_no_way_on() {
        let cursor = spec(serde_json::json!({"type": "cursor", "param": "after", "path": "next"}));
        let mut pages = Pages::new(Some(&cursor), Url::parse("http://h/").unwrap());
        let page = ApiPage { records: 1, headers: &HeaderMap::new(), body: r#"{"next":"x"}"# };
        pages.turn(&page).unwrap();
        assert!(pages.turn(&page).is_err());
    }
}
