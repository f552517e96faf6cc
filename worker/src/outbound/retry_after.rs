//! The header `Retry-After`: a number of seconds, or a date. Pure. Source: RFC 9110, section 10.2.3.

use std::time::{Duration, UNIX_EPOCH};

use axum::http::{HeaderMap, header};

/// The longest wait that a server may ask for; a later request will hear of it again.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// How long a server asks us to wait; `now` is in seconds since the epoch.
pub(crate) fn retry_after(headers: &HeaderMap, now: i64) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
            date.saturating_sub(Duration::from_secs(u64::try_from(now).ok()?))
        }
    };
    Some(wait.min(WAIT_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read() {
        let now = 784_111_777; // Sun, 06 Nov 1994 08:49:37 GMT, the date of the RFC
        for (text, seconds) in [
            ("120", Some(120)),
            ("0", Some(0)),
            ("999999", Some(3_600)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", Some(60)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
