//! Which page of an answer to ask for next, and whether the end of the pages is one. Pure.
//!
//! ```text
//! page ─► facts (kept with the page's ETag: a 304 says none) ─► next URL, or an end
//! ```

use std::collections::HashSet;

use axum::http::{HeaderMap, StatusCode};
use litejoin_crds::source::api::{ApiPagination, PaginationKind};
use reqwest::Url;

use super::links::next_link;
use super::paths::{scalar, truth};

/// What a page says of itself and of the pages behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct PageFacts {
    pub(super) records: u64,
    /// The cursor or URL of the next page.
    pub(super) next: Option<String>,
    /// Whether there are more pages, where the API says so.
    pub(super) more: Option<bool>,
    /// Records of all pages, where the API says how many.
    pub(super) total: Option<u64>,
}

impl PageFacts {
    /// Reads them from a page.
    pub(super) fn read(
        spec: Option<&ApiPagination>,
        records: u64,
        headers: &HeaderMap,
        body: &str,
    ) -> PageFacts {
        let mut facts = PageFacts { records, ..PageFacts::default() };
        let Some(spec) = spec else { return facts };
        facts.more = spec.more_path.as_ref().and_then(|path| truth(body, path));
        facts.total = spec.total_path.as_ref().and_then(|path| scalar(body, path)?.parse().ok());
        if let (PaginationKind::Cursor | PaginationKind::NextUrl, Some(path)) = (spec.kind, &spec.path) {
            facts.next = scalar(body, path).filter(|next| !next.is_empty() && next != "false");
        }
        facts.read_link(spec, headers);
        facts
    }

    /// Reads anew what the headers of a 304 say: a link may have changed where the body has not.
    pub(super) fn read_again(mut self, spec: Option<&ApiPagination>, headers: &HeaderMap) -> PageFacts {
        if let Some(spec) = spec
            && headers.contains_key(axum::http::header::LINK)
        {
            self.read_link(spec, headers);
        }
        self
    }

    fn read_link(&mut self, spec: &ApiPagination, headers: &HeaderMap) {
        if spec.kind == PaginationKind::Link {
            let link = next_link(headers);
            let is_empty = link.as_ref().is_some_and(|link| link.is_empty);
            self.next = link.filter(|link| !link.is_empty).map(|link| link.target);
            if is_empty && spec.more_path.is_none() {
                self.more = Some(false);
            }
        }
    }
}

/// The end of the pages of a poll.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PagesEnd {
    /// All pages have been read, by a sign of the API.
    Whole,
    /// There are, or may be, pages that have not been read; the text says why.
    Open(String),
}

/// The pages of one poll.
pub(super) struct Pages<'a> {
    spec: Option<&'a ApiPagination>,
    /// The first page's, without what leads to a page.
    base: Url,
    next: Option<Url>,
    /// URLs of the pages that are or were asked for.
    seen: HashSet<Url>,
    asked: u32,
    /// The number of the next page, or of the records before it.
    number: u64,
    /// Records of the pages that have been read.
    records: u64,
    /// Whether the first page was shorter than a page is to be. The server may send no more at once, or have no more.
    starts_short: bool,
    end: PagesEnd,
}

impl<'a> Pages<'a> {
    pub(super) fn new(spec: Option<&'a ApiPagination>, mut base: Url) -> Self {
        if let Some(ApiPagination { size_param: Some(name), size: Some(size), .. }) = spec {
            set_parameter(&mut base, name, &size.to_string());
        }
        let number = spec.map_or(0, |spec| u64::from(spec.start));
        let mut pages = Self {
            spec,
            next: None,
            base: base.clone(),
            seen: HashSet::new(),
            asked: 0,
            number,
            records: 0,
            starts_short: false,
            end: PagesEnd::Whole,
        };
        let first = match spec.map(|spec| spec.kind) {
            Some(PaginationKind::Page | PaginationKind::Offset) => pages.numbered(),
            _ => base,
        };
        pages.seen.insert(first.clone());
        pages.next = Some(first);
        pages
    }

    /// The page to ask for; `None` after the last one.
    pub(super) fn next(&self) -> Option<&Url> {
        self.next.as_ref()
    }

    /// Whether no page has been read yet.
    pub(super) fn is_at_first(&self) -> bool {
        self.asked == 0
    }

    /// The end, once there is no next page.
    pub(super) fn end(self) -> PagesEnd {
        self.end
    }

    /// Goes to the page behind one that has been read.
    pub(super) fn turn(&mut self, page: &PageFacts) -> Result<(), String> {
        let from = self.next.take();
        self.asked += 1;
        self.records += page.records;
        let (Some(spec), Some(from)) = (self.spec, from) else { return Ok(()) };
        let next = match self.is_over(spec, page) {
            true => None,
            false => match spec.kind {
                PaginationKind::Page | PaginationKind::Offset => self.behind_numbered(spec, page),
                _ => self.behind_linked(spec, &from, page)?,
            },
        };
        if next.is_some() && self.asked >= spec.max_pages {
            let max = spec.max_pages;
            self.end = PagesEnd::Open(format!(
                "a poll has more pages than pagination.maxPages ({max}); the rest is not read, and nothing counts as gone"
            ));
        } else {
            self.next = next;
        }
        Ok(())
    }

    /// Hears that the server has no such page as the next. Behind a short page that is how many APIs say where the pages
    /// end; returns whether it is an end.
    pub(super) fn has_no_next(&mut self, status: StatusCode) -> bool {
        let statuses = [
            StatusCode::BAD_REQUEST,
            StatusCode::NOT_FOUND,
            StatusCode::RANGE_NOT_SATISFIABLE,
            StatusCode::UNPROCESSABLE_ENTITY,
        ];
        let size = self.spec.and_then(|spec| spec.size).unwrap_or(0);
        if !self.starts_short || !statuses.contains(&status) {
            return false;
        }
        self.next = None;
        if self.asked > 1 {
            self.end = PagesEnd::Open(format!(
                "the server sends fewer records a page than pagination.size ({size}), and answered {status} behind {} of \
                 them, which may not be the end, so nothing counts as gone; write the size of its pages",
                self.records
            ));
        }
        true
    }

    /// Whether the API says that there are no more pages.
    fn is_over(&self, spec: &ApiPagination, page: &PageFacts) -> bool {
        let before = if spec.kind == PaginationKind::Offset { u64::from(spec.start) } else { 0 };
        let has_all = page.total.is_some_and(|total| before + self.records >= total);
        page.more.map_or(has_all, |more| !more)
    }

    /// The page behind one with a number or an offset. A page shorter than the first is the last; behind a short first page
    /// only one without records is.
    fn behind_numbered(&mut self, spec: &ApiPagination, page: &PageFacts) -> Option<Url> {
        let size = spec.size.map_or(0, u64::from);
        let (is_short, says_more) = (page.records < size, page.more == Some(true) || page.total.is_some());
        let can_go_on = spec.kind == PaginationKind::Page && page.more == Some(true);
        if page.records == 0 && !can_go_on {
            return self.ends(page);
        }
        if self.asked == 1 {
            self.starts_short = is_short && !says_more;
        } else if is_short && !self.starts_short && !says_more {
            return None;
        }
        self.number += match spec.kind {
            PaginationKind::Page => 1,
            _ if is_short => page.records,
            _ => size.max(1),
        };
        let next = self.numbered();
        self.seen.insert(next.clone());
        Some(next)
    }

    /// The page that a cursor, a link or a URL leads to, whatever is on the page before it: the API may have filtered that.
    fn behind_linked(
        &mut self,
        spec: &ApiPagination,
        from: &Url,
        page: &PageFacts,
    ) -> Result<Option<Url>, String> {
        let Some(next) = &page.next else { return Ok(self.ends(page)) };
        let next = if spec.kind == PaginationKind::Cursor {
            let mut url = self.base.clone();
            set_parameter(&mut url, spec.param.as_deref().unwrap_or_default(), next);
            url
        } else {
            self.on_allowed_server(spec, from, next)?
        };
        // Some APIs name the last page as the one behind it.
        if !self.seen.insert(next.clone()) {
            return Ok(self.ends(page));
        }
        Ok(Some(next))
    }

    /// Ends the pages, and notes whether the page says otherwise.
    fn ends(&mut self, page: &PageFacts) -> Option<Url> {
        let compare = "so nothing counts as gone; compare pagination with what the API sends";
        self.end = match (page.more, page.total) {
            (Some(true), _) => PagesEnd::Open(format!(
                "the pages end where pagination.morePath says that there are more, {compare}"
            )),
            (None, Some(total)) => PagesEnd::Open(format!(
                "the pages end after {} records where pagination.totalPath says {total}, {compare}",
                self.records
            )),
            _ => PagesEnd::Whole,
        };
        None
    }

    fn numbered(&self) -> Url {
        let mut url = self.base.clone();
        let name = self.spec.and_then(|spec| spec.param.as_deref()).unwrap_or_default();
        set_parameter(&mut url, name, &self.number.to_string());
        url
    }

    /// The URL of a link, which has to be on a server that our headers and credentials may go to.
    fn on_allowed_server(&self, spec: &ApiPagination, from: &Url, link: &str) -> Result<Url, String> {
        let place = match (&spec.path, spec.kind) {
            (Some(path), PaginationKind::NextUrl) => format!("pagination.path {path:?}"),
            _ => "its Link header".to_owned(),
        };
        let mut url = from.join(link).map_err(|error| format!("{place} finds no URL: {error}"))?;
        let scheme = self.base.scheme();
        if scheme == "https" && url.scheme() == "http" && url.port().is_none() {
            // Servers behind a proxy that speaks TLS for them write so of themselves.
            url.set_scheme(scheme).expect("http can become https");
        }
        let named = spec.hosts.iter().filter_map(|host| Url::parse(&format!("{scheme}://{host}")).ok());
        if url.origin() == self.base.origin() || named.into_iter().any(|named| named.origin() == url.origin())
        {
            return Ok(url);
        }
        let (to, own) = (url.origin().ascii_serialization(), self.base.origin().ascii_serialization());
        let remedy = match (url.host_str(), url.port()) {
            (Some(host), port) if url.scheme() == scheme => {
                let host = port.map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
                format!("add {host:?} to pagination.hosts if they may go there too")
            }
            _ => format!("write url with the scheme {:?} if they may go there too", url.scheme()),
        };
        Err(format!(
            "{place} leads to {to}, and requests with the source's headers and credentials go to {own} alone; {remedy}"
        ))
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

#[cfg(test)]
mod tests;
