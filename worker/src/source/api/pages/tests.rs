//! Pages as APIs have them: the requests that follow, and the end.

use axum::http::header;
use serde_json::json;

use super::*;

fn spec(yaml: serde_json::Value) -> ApiPagination {
    serde_json::from_value(yaml).unwrap()
}

/// The queries of the pages that are asked for when these come, and whether the end is one.
fn walk(spec: &ApiPagination, pages: &[(u64, &str)]) -> (Vec<String>, bool) {
    let mut walk = Pages::new(Some(spec), Url::parse("http://h/p?a=1").unwrap());
    let mut asked = Vec::new();
    for (records, body) in pages {
        let Some(url) = walk.next() else { break };
        asked.push(url.query().unwrap().to_owned());
        walk.turn(&PageFacts::read(Some(spec), *records, &HeaderMap::new(), body)).unwrap();
    }
    if walk.next().is_some() {
        asked.push("…".to_owned());
    }
    (asked, walk.end() == PagesEnd::Whole)
}

fn check(spec: &ApiPagination, pages: &[(u64, &str)], queries: &[&str], is_whole: bool) {
    let (asked, whole) = walk(spec, pages);
    assert_eq!(asked, queries, "{spec:?}");
    assert_eq!(whole, is_whole, "{spec:?} {pages:?}");
}

#[test]
fn pages_are_numbered_counted_or_lead_on() {
    let page = spec(json!({"type": "page", "param": "page", "start": 1, "size": 2, "sizeParam": "n"}));
    check(&page, &[(2, ""), (2, ""), (1, "")], &["a=1&n=2&page=1", "a=1&n=2&page=2", "a=1&n=2&page=3"], true);
    let unsized_page = spec(json!({"type": "page", "param": "page"}));
    check(&unsized_page, &[(2, ""), (1, ""), (0, "")], &["a=1&page=0", "a=1&page=1", "a=1&page=2"], true);
    let offset = spec(json!({"type": "offset", "param": "skip", "size": 5}));
    check(&offset, &[(5, ""), (5, ""), (0, "")], &["a=1&skip=0", "a=1&skip=5", "a=1&skip=10"], true);
    let cursor = spec(json!({"type": "cursor", "param": "after", "path": "meta.next"}));
    let bodies =
        [(1, r#"{"meta":{"next":"x y"}}"#), (1, r#"{"meta":{"next":7}}"#), (1, r#"{"meta":{"next":null}}"#)];
    check(&cursor, &bodies, &["a=1", "a=1&after=x+y", "a=1&after=7"], true);
    let cursor = spec(json!({"type": "cursor", "param": "after", "path": "next", "size": 2}));
    // A cursor leads on from a short page, and ends where it stays or is none.
    let filtered = [(2, r#"{"next":1}"#), (0, r#"{"next":2}"#), (1, r#"{"next":3}"#), (1, r#"{"next":3}"#)];
    check(&cursor, &filtered, &["a=1", "a=1&after=1", "a=1&after=2", "a=1&after=3"], true);
    let round = [(1, r#"{"next":1}"#), (1, r#"{"next":2}"#), (1, r#"{"next":1}"#)];
    check(&cursor, &round, &["a=1", "a=1&after=1", "a=1&after=2"], true);
    check(&cursor, &[(1, r#"{"next":false}"#)], &["a=1"], true);
    let cut = spec(json!({"type": "page", "param": "page", "maxPages": 2}));
    check(&cut, &[(1, ""), (1, ""), (1, "")], &["a=1&page=0", "a=1&page=1"], false);
}

#[test]
fn a_short_first_page_is_the_last_only_if_the_next_is_empty() {
    let offset = spec(json!({"type": "offset", "param": "at", "size": 5}));
    check(&offset, &[(3, ""), (0, "")], &["a=1&at=0", "a=1&at=3"], true);
    check(
        &offset,
        &[(2, ""), (2, ""), (1, ""), (0, "")],
        &["a=1&at=0", "a=1&at=2", "a=1&at=4", "a=1&at=5"],
        true,
    );
    let page = spec(json!({"type": "page", "param": "p", "size": 5}));
    check(&page, &[(2, ""), (5, ""), (1, ""), (0, "")], &["a=1&p=0", "a=1&p=1", "a=1&p=2", "a=1&p=3"], true);
    check(&page, &[(5, ""), (4, "")], &["a=1&p=0", "a=1&p=1"], true);
    check(&page, &[(0, "")], &["a=1&p=0"], true);
}

#[test]
fn a_page_that_is_not_there_ends_short_pages_alone() {
    let page = spec(json!({"type": "page", "param": "p", "size": 5}));
    for (records, status, is_end, is_whole) in [
        (&[3][..], 404, true, true),
        (&[3], 400, true, true),
        (&[3], 403, false, true),
        (&[3], 500, false, true),
        (&[3, 2], 404, true, false),
        (&[5], 404, false, true),
        (&[], 404, false, true),
    ] {
        let mut pages = Pages::new(Some(&page), Url::parse("http://h/").unwrap());
        for records in records {
            pages.turn(&PageFacts { records: *records, ..PageFacts::default() }).unwrap();
        }
        assert_eq!(pages.has_no_next(StatusCode::from_u16(status).unwrap()), is_end, "{records:?} {status}");
        assert_eq!(
            (pages.next().is_none(), pages.end() == PagesEnd::Whole),
            (is_end, is_whole),
            "{records:?}"
        );
    }
}

#[test]
fn the_api_says_where_its_pages_end() {
    let more = spec(json!({"type": "page", "param": "p", "size": 5, "morePath": "more"}));
    let (yes, no) = (r#"{"more":true}"#, r#"{"more":false}"#);
    check(&more, &[(2, yes), (0, yes), (5, no)], &["a=1&p=0", "a=1&p=1", "a=1&p=2"], true);
    let offset = spec(json!({"type": "offset", "param": "at", "size": 5, "morePath": "more"}));
    check(&offset, &[(2, yes), (0, yes)], &["a=1&at=0", "a=1&at=2"], false);
    let cursor = spec(json!({"type": "cursor", "param": "c", "path": "next", "morePath": "more"}));
    check(&cursor, &[(2, r#"{"more":false,"next":1}"#)], &["a=1"], true);
    check(&cursor, &[(2, yes)], &["a=1"], false);
    let stays = r#"{"more":true,"next":1}"#;
    check(&cursor, &[(2, stays), (2, stays)], &["a=1", "a=1&c=1"], false);
    let total = spec(json!({"type": "offset", "param": "at", "start": 1, "size": 2, "totalPath": "n"}));
    check(&total, &[(2, r#"{"n":"4"}"#), (1, r#"{"n":4}"#)], &["a=1&at=1", "a=1&at=3"], true);
    check(&total, &[(2, r#"{"n":9}"#), (0, r#"{"n":9}"#)], &["a=1&at=1", "a=1&at=3"], false);
}

#[test]
fn links_are_followed_on_servers_that_are_named() {
    let link = |base: &str, hosts: &[&str], text: &str| {
        let spec = spec(json!({"type": "link", "hosts": hosts}));
        let mut pages = Pages::new(Some(&spec), Url::parse(base).unwrap());
        let headers = HeaderMap::from_iter([(header::LINK, text.parse().unwrap())]);
        pages.turn(&PageFacts::read(Some(&spec), 0, &headers, ""))?;
        Ok::<_, String>(pages.next().map(ToString::to_string))
    };
    let there = |url: &str| Ok(Some(url.to_owned()));
    let base = "http://h/a/p";
    assert_eq!(link(base, &[], "</p?q=3>; rel=next"), there("http://h/p?q=3"));
    assert_eq!(link(base, &[], "<?page=2>; rel=next"), there("http://h/a/p?page=2"));
    assert_eq!(link(base, &[], "<q>; rel=next"), there("http://h/a/q"));
    assert_eq!(link(base, &[], "<http://h/a/p>; rel=next"), Ok(None), "a link to itself");
    assert_eq!(link(base, &[], "<http://h/p>; rel=last"), Ok(None));
    assert_eq!(link(base, &["other"], "<http://other/p>; rel=next"), there("http://other/p"));
    assert_eq!(link(base, &["other:81"], "<http://other:81/p>; rel=next"), there("http://other:81/p"));
    for (base, hosts, target, remedy) in [
        (
            base,
            &["other:81"][..],
            "http://other",
            "add \"other\" to pagination.hosts if they may go there too",
        ),
        (base, &["h:81"], "http://h:82", "add \"h:82\" to pagination.hosts if they may go there too"),
        (base, &["h", "h:443"], "https://h", "write url with the scheme \"https\" if they may go there too"),
        ("https://h/", &[], "http://h:80800", ""),
        ("https://h/", &[], "http://h:8080", "write url with the scheme \"http\" if they may go there too"),
        (
            base,
            &[],
            "http://h.evil.example",
            "add \"h.evil.example\" to pagination.hosts if they may go there too",
        ),
        (base, &[], "http://[::1]:7", "add \"[::1]:7\" to pagination.hosts if they may go there too"),
    ] {
        let error = link(base, hosts, &format!("<{target}/p>; rel=next")).unwrap_err();
        let own = Url::parse(base).unwrap().origin().ascii_serialization();
        let expected = match remedy {
            "" => "its Link header finds no URL: invalid port number".to_owned(),
            _ => format!(
                "its Link header leads to {target}, and requests with the source's headers and credentials go to {own} \
                 alone; {remedy}"
            ),
        };
        assert_eq!(error, expected);
    }
    // A server behind a proxy that speaks TLS for it.
    assert_eq!(link("https://h/", &[], "<http://h/p>; rel=next"), there("https://h/p"));
}

#[test]
fn a_page_that_has_not_changed_may_lead_elsewhere() {
    let link = spec(json!({"type": "link"}));
    let headers = |text: &str| HeaderMap::from_iter([(header::LINK, text.parse().unwrap())]);
    let facts = PageFacts::read(Some(&link), 2, &headers("</2>; rel=next"), "");
    assert_eq!(facts.next.as_deref(), Some("/2"));
    assert_eq!(facts.clone().read_again(Some(&link), &HeaderMap::new()), facts);
    assert_eq!(facts.clone().read_again(Some(&link), &headers("</3>; rel=next")).next.as_deref(), Some("/3"));
    assert_eq!(facts.read_again(Some(&link), &headers("</1>; rel=prev")).next, None);
}
