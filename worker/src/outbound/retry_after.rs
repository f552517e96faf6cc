//! How long a server asks to be left alone. Pure.

use std::time::{Duration, UNIX_EPOCH};

use axum::http::{HeaderMap, header};

/// The longest wait that a server may ask for; a later request will hear of it again.
const WAIT_MAX: Duration = Duration::from_secs(3_600);

/// A number of seconds above this is a time since the epoch, and above its thousandfold one in milliseconds: APIs differ.
const EPOCH_MIN: u64 = 1_000_000_000;

/// How long the header `Retry-After` asks us to wait, a number of seconds or a date; `now` is in seconds since the epoch.
/// Source: RFC 9110, section 10.2.3.
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

/// How long it is until the requests of a rate limit are counted anew, if none is left.
/// Source: draft-polli-ratelimit-headers (seconds from now), GitHub (`X-RateLimit-Reset`, a time), and kin.
pub(crate) fn rate_limit_reset(headers: &HeaderMap, now: i64) -> Option<Duration> {
    let number = |names: [&str; 3]| {
        let text = names.into_iter().find_map(|name| headers.get(name))?.to_str().ok()?;
        text.trim().parse::<f64>().ok().filter(|number| *number >= 0.0).map(|number| number.ceil() as u64)
    };
    let left = number(["ratelimit-remaining", "x-ratelimit-remaining", "x-rate-limit-remaining"]);
    if left.is_some_and(|left| left > 0) {
        return None;
    }
    let reset = number(["ratelimit-reset", "x-ratelimit-reset", "x-rate-limit-reset"])?;
    let now = u64::try_from(now).ok()?;
    let seconds = match reset {
        reset if reset >= EPOCH_MIN * 1_000 => (reset / 1_000 + 1).saturating_sub(now),
        reset if reset >= EPOCH_MIN => reset.saturating_sub(now),
        reset => reset,
    };
    Some(Duration::from_secs(seconds).min(WAIT_MAX))
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

    #[test]
    fn a_used_up_rate_limit_is_waited_for() {
        let now = 1_800_000_000;
        for (headers, seconds) in [
            (&[("x-ratelimit-remaining", "0"), ("x-ratelimit-reset", "1800000060")][..], Some(60)),
            (&[("x-ratelimit-reset", "1799999999")], Some(0)),
            (&[("x-ratelimit-reset", "1800000059500")], Some(60)),
            (&[("RateLimit-Reset", "50")], Some(50)),
            (&[("x-rate-limit-reset", "12.3")], Some(13)),
            (&[("ratelimit-reset", "99999")], Some(3_600)),
            (&[("x-ratelimit-remaining", "7"), ("x-ratelimit-reset", "1800000060")], None),
            (&[("x-ratelimit-reset", "soon")], None),
            (&[("x-ratelimit-remaining", "0")], None),
        ] {
            let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
            let wait = rate_limit_reset(&headers.clone().collect(), now);
            assert_eq!(wait, seconds.map(Duration::from_secs), "{:?}", headers.collect::<HeaderMap>());
        }
    }
}
