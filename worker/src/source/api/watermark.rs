//! The watermark of an API source: a poll remembers it, so that the next asks only for newer records. Pure.

use std::cmp::Ordering;

use axum::http::{HeaderMap, header};
use litejoin_crds::source::api::{ApiWatermark, WatermarkStrategy};

use super::records::scalar;

/// The mark of a source, and how far this poll has moved it.
#[derive(Debug, Default)]
pub(super) struct Watermark {
    strategy: WatermarkStrategy,
    path: String,
    param: String,
    /// The value that is sent.
    sent: Option<String>,
    next: Option<String>,
    /// Whether a timestamp was older than one before it.
    goes_back: bool,
}

impl Watermark {
    /// `value` is what the poll before has left.
    pub(super) fn new(spec: Option<&ApiWatermark>, value: Option<String>) -> Self {
        let text = |text: Option<&String>| text.cloned().unwrap_or_default();
        let sent = value.or_else(|| spec.and_then(|spec| spec.initial.clone()));
        Self {
            strategy: spec.map_or(WatermarkStrategy::None, |spec| spec.strategy),
            path: text(spec.and_then(|spec| spec.path.as_ref())),
            param: text(spec.and_then(|spec| spec.param.as_ref())),
            next: sent.clone(),
            sent,
            goes_back: false,
        }
    }

    /// The query parameter that sends it.
    pub(super) fn parameter(&self) -> Option<(&str, &str)> {
        match self.strategy {
            WatermarkStrategy::Timestamp | WatermarkStrategy::Cursor => {
                Some((&self.param, self.sent.as_deref()?))
            }
            WatermarkStrategy::None | WatermarkStrategy::Etag => None,
        }
    }

    /// The ETag that the server is asked to compare.
    pub(super) fn etag(&self) -> Option<&str> {
        self.sent.as_deref().filter(|_| self.strategy == WatermarkStrategy::Etag)
    }

    /// Looks at a record.
    pub(super) fn saw_record(&mut self, record: &str) {
        if self.strategy != WatermarkStrategy::Timestamp {
            return;
        }
        let Some(time) = scalar(record, &self.path) else { return };
        match self.next.as_ref().map(|next| compare(next, &time)) {
            None | Some(Ordering::Less) => self.next = Some(time),
            Some(Ordering::Equal) => {}
            Some(Ordering::Greater) => self.goes_back = true,
        }
    }

    /// Hears that there are pages which this poll has not read. The records it has read stay behind it only where the rest is
    /// newer: by a cursor, or by timestamps that rise.
    pub(super) fn was_cut(&mut self) {
        let rises = self.strategy == WatermarkStrategy::Timestamp && !self.goes_back;
        if !rises && self.strategy != WatermarkStrategy::Cursor {
            self.next.clone_from(&self.sent);
        }
    }

    /// Looks at an answer.
    pub(super) fn saw_answer(&mut self, headers: &HeaderMap, body: &str, is_first: bool) {
        match self.strategy {
            WatermarkStrategy::Cursor => {
                if let Some(cursor) = scalar(body, &self.path).filter(|cursor| !cursor.is_empty()) {
                    self.next = Some(cursor);
                }
            }
            WatermarkStrategy::Etag if is_first => {
                self.next = headers.get(header::ETAG).and_then(|tag| tag.to_str().ok()).map(str::to_owned);
            }
            _ => {}
        }
    }

    /// The watermark that this poll leaves to the next.
    pub(super) fn into_value(self) -> Option<String> {
        self.next
    }
}

/// Compares numbers as numbers, and anything else, such as times in ISO 8601, as texts.
fn compare(a: &str, b: &str) -> Ordering {
    match (a.parse::<f64>(), b.parse::<f64>()) {
        (Ok(a), Ok(b)) => a.total_cmp(&b),
        _ => a.cmp(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: serde_json::Value) -> ApiWatermark {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn the_newest_timestamp_is_kept() {
        let spec = spec(
            serde_json::json!({"strategy": "timestamp", "path": "at", "param": "since", "initial": "9"}),
        );
        let mut watermark = Watermark::new(Some(&spec), None);
        assert_eq!(watermark.parameter(), Some(("since", "9")));
        for record in [r#"{"at":10}"#, r#"{"at":100}"#, r#"{"at":"20"}"#, "{}"] {
            watermark.saw_record(record);
        }
        assert_eq!(watermark.parameter(), Some(("since", "9")), "all pages of a poll send the same");
        assert_eq!(watermark.into_value().as_deref(), Some("100"));
        let mut watermark = Watermark::new(Some(&spec), Some("2026-01-02T00:00:00Z".to_owned()));
        watermark.saw_record(r#"{"at":"2026-01-01T00:00:00Z"}"#);
        assert_eq!(watermark.into_value().as_deref(), Some("2026-01-02T00:00:00Z"));
    }

    #[test]
    fn what_was_not_read_is_asked_for_again() {
        let timestamp = spec(serde_json::json!({"strategy": "timestamp", "path": "at", "param": "since"}));
        for (records, kept) in [(["1", "2", "2"], Some("2")), (["3", "2", "1"], None)] {
            let mut watermark = Watermark::new(Some(&timestamp), None);
            records.iter().for_each(|at| watermark.saw_record(&format!("{{\"at\":{at}}}")));
            watermark.was_cut();
            assert_eq!(watermark.into_value().as_deref(), kept, "{records:?}");
        }
        let etag = spec(serde_json::json!({"strategy": "etag"}));
        let mut watermark = Watermark::new(Some(&etag), None);
        let headers = HeaderMap::from_iter([(header::ETAG, "\"y\"".parse().unwrap())]);
        watermark.saw_answer(&headers, "", true);
        watermark.was_cut();
        assert_eq!(watermark.into_value(), None);
    }

    #[test]
    fn a_cursor_stays_where_none_comes_and_an_etag_does_not() {
        let cursor = spec(serde_json::json!({"strategy": "cursor", "path": "next", "param": "after"}));
        let mut watermark = Watermark::new(Some(&cursor), None);
        assert_eq!(watermark.parameter(), None);
        for body in [r#"{"next":"a"}"#, r#"{"next":7}"#, r#"{"next":""}"#, "{}"] {
            watermark.saw_answer(&HeaderMap::new(), body, false);
        }
        assert_eq!(watermark.into_value().as_deref(), Some("7"));

        let etag = spec(serde_json::json!({"strategy": "etag"}));
        let mut watermark = Watermark::new(Some(&etag), Some("\"x\"".to_owned()));
        assert_eq!((watermark.etag(), watermark.parameter()), (Some("\"x\""), None));
        let headers = HeaderMap::from_iter([(header::ETAG, "\"y\"".parse().unwrap())]);
        watermark.saw_answer(&headers, "", true);
        watermark.saw_answer(&HeaderMap::new(), "", false);
        assert_eq!(watermark.into_value().as_deref(), Some("\"y\""));
    }
}
