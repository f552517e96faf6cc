//! Asks for one page, and reads the text of the answer: JSON is UTF-8, whatever the server says of it.

use std::sync::Arc;

use axum::http::{HeaderMap, StatusCode, header};
use litejoin_crds::plan::ApiSource;
use litejoin_crds::source::api::ApiMethod;
use reqwest::{Method, Url};

use super::PollError;
use super::records::Unreadable;
use super::state::PageTag;
use crate::clock;
use crate::outbound::{Outbound, rate_limit_reset, retry_after};

/// Largest answer, in bytes. It is held in memory.
const BODY_BYTES_MAX: usize = 64 << 20;

/// The answer to a request for a page.
pub(super) enum ApiAnswer {
    Page {
        headers: HeaderMap,
        body: Arc<str>,
    },
    /// The page is as its ETag says.
    Unchanged {
        headers: HeaderMap,
    },
    /// There is nothing to say.
    Nothing,
}

/// Asks for a page, unless it is as its ETag says.
pub(super) async fn ask(
    outbound: &Outbound,
    spec: &ApiSource,
    url: Url,
    known: Option<&PageTag>,
) -> Result<ApiAnswer, PollError> {
    let method = match spec.method {
        ApiMethod::Get => Method::GET,
        ApiMethod::Post => Method::POST,
        ApiMethod::Put => Method::PUT,
    };
    let mut request = outbound.request(method, url)?;
    if let Some(PageTag { tag, .. }) = known {
        request = request.header(header::IF_NONE_MATCH, tag);
    }
    if let Some(body) = &spec.body {
        let names = &mut spec.connection.headers.keys();
        if !names.any(|name| name.eq_ignore_ascii_case("content-type")) {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request = request.body(body.clone());
    }
    let response = outbound.send(request).await?;
    let (status, headers) = (response.status(), response.headers().clone());
    match status {
        StatusCode::NOT_MODIFIED if known.is_some() => return Ok(ApiAnswer::Unchanged { headers }),
        StatusCode::NO_CONTENT => return Ok(ApiAnswer::Nothing),
        _ if status.is_success() => {}
        _ => {
            let now = clock::epoch_seconds();
            let is_limited = [StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS].contains(&status);
            let reset = || rate_limit_reset(&headers, now).filter(|_| is_limited);
            let wait = retry_after(&headers, now).or_else(reset);
            let complaint = outbound.complaint(response).await;
            return Err(PollError::Refused { status, complaint, wait });
        }
    }
    let body = outbound.body(response, BODY_BYTES_MAX).await?;
    let body = text(&headers, body)?.into();
    Ok(ApiAnswer::Page { headers, body })
}

/// Reads a body as a text, without a byte order mark. A body that is no UTF-8 is read as ISO-8859-1 where the server says so.
fn text(headers: &HeaderMap, body: Vec<u8>) -> Result<String, Unreadable> {
    let body = match String::from_utf8(body) {
        Ok(text) => {
            return Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text));
        }
        Err(error) => error.into_bytes(),
    };
    let said =
        |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_lowercase();
    let encoding = said(header::CONTENT_ENCODING);
    if !matches!(encoding.as_str(), "" | "identity") {
        return Err(Unreadable::Compressed { encoding });
    }
    match charset(&said(header::CONTENT_TYPE)) {
        "" | "utf-8" | "utf8" => Err(Unreadable::Encoding),
        // Each byte is the letter of its number.
        "iso-8859-1" | "iso8859-1" | "latin1" => Ok(body.into_iter().map(char::from).collect()),
        charset => Err(Unreadable::Charset { charset: charset.to_owned() }),
    }
}

/// The charset of a content type; empty if it has none.
fn charset(content_type: &str) -> &str {
    let mut parameters = content_type.split(';').skip(1).filter_map(|parameter| parameter.split_once('='));
    let charset = parameters.find(|(name, _)| name.trim() == "charset");
    charset.map_or("", |(_, value)| value.trim().trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_or_it_is_said_what_they_are() {
        let utf_8 = "é".as_bytes();
        for (name, value, body, expected) in [
            ("content-type", "application/json", utf_8, Ok("é")),
            ("content-type", "application/json; charset=ISO-8859-1", utf_8, Ok("é")),
            ("content-type", "text/json; q=1; Charset=\"ISO-8859-1\"", b"\xe9", Ok("é")),
            ("content-type", "application/json", b"\xef\xbb\xbf[]", Ok("[]")),
            ("content-type", "application/json", b"\xe9", Err("the answer is no text in UTF-8")),
            (
                "content-type",
                "application/json; charset=windows-1252",
                b"\x80",
                Err(
                    "the answer is a text in \"windows-1252\", and UTF-8 and ISO-8859-1 are read; ask the server for UTF-8 \
                     by the header Accept-Charset, or a parameter of its own",
                ),
            ),
            ("content-encoding", "gzip, deflate", b"[]", Ok("[]")),
            (
                "content-encoding",
                "deflate",
                b"\x78\x9c",
                Err(
                    "the answer is compressed by \"deflate\" though gzip was offered, and only gzip is read; add the header \
                     Accept-Encoding: identity",
                ),
            ),
        ] {
            let headers = HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())]);
            let read = text(&headers, body.to_vec()).map_err(|error| error.to_string());
            assert_eq!(read.as_deref().map_err(String::as_str), expected, "{value}");
        }
    }
}
