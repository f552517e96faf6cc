//! The watermark of an API source: a poll remembers it, so that the next asks only for newer records. Pure.

use std::cmp::Ordering;
use std::time::Duration;

use litejoin_crds::plan;
use litejoin_crds::source::api::WatermarkStrategy;

use super::paths::scalar;
use super::timestamp::nanoseconds;

/// The mark of a source, and how far this poll has moved it. The ETags of pages are not part of it.
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
    /// The time, in seconds since 1970, and how far ahead of it a timestamp may lie.
    now: i64,
    skew_max: Duration,
    /// The first timestamp that can't be the mark, and why.
    warning: Option<String>,
}

impl Watermark {
    /// `value` is what the poll before has left. One that an earlier version took though it can't be a mark is dropped.
    pub(super) fn new(spec: &plan::ApiSource, value: Option<String>, now: i64) -> Self {
        let mut watermark = Self { now, skew_max: spec.skew_max, ..Self::default() };
        let Some(spec) = &spec.watermark else { return watermark };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        (watermark.strategy, watermark.path, watermark.param) =
            (spec.strategy, text(&spec.path), text(&spec.param));
        let is_mark = |value: &String| match spec.strategy {
            WatermarkStrategy::Timestamp => watermark.time(value).is_ok(),
            _ => true,
        };
        let sent = value.filter(is_mark).or_else(|| spec.initial.clone());
        Self { next: sent.clone(), sent, ..watermark }
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

    /// Looks at a record.
    pub(super) fn saw_record(&mut self, record: &str) {
        if self.strategy != WatermarkStrategy::Timestamp {
            return;
        }
        let Some(text) = scalar(record, &self.path) else { return };
        let time = match self.time(&text) {
            Ok(time) => time,
            Err(problem) => {
                self.warning.get_or_insert(problem);
                return;
            }
        };
        // A first value may be anything that the API understands.
        match self.next.as_deref().and_then(nanoseconds).map(|next| next.cmp(&time)) {
            None | Some(Ordering::Less) => self.next = Some(text),
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
    pub(super) fn saw_answer(&mut self, body: &str) {
        if self.strategy == WatermarkStrategy::Cursor
            && let Some(cursor) = scalar(body, &self.path).filter(|cursor| !cursor.is_empty())
        {
            self.next = Some(cursor);
        }
    }

    /// What the user should know of timestamps.
    pub(super) fn warning(&self) -> Option<&String> {
        self.warning.as_ref()
    }

    /// The watermark that this poll leaves to the next.
    pub(super) fn into_value(self) -> Option<String> {
        self.next
    }

    /// The time that a timestamp says, if it can be the mark.
    fn time(&self, text: &str) -> Result<i128, String> {
        let (path, max) = (&self.path, self.skew_max.as_secs());
        let stays = "the record is stored, and the mark stays where it is; correct it where it comes from";
        let Some(time) = nanoseconds(text) else {
            return Err(format!(
                "watermark.path {path:?} finds {text:?}, which is no time: {stays} to a time of RFC 3339 or to seconds or \
                 milliseconds since 1970"
            ));
        };
        let latest = i128::from(self.now) * 1_000_000_000 + self.skew_max.as_nanos().cast_signed();
        if time > latest {
            return Err(format!(
                "watermark.path {path:?} finds {text:?}, a time more than {max} seconds ahead of the clock: {stays}, or raise \
                 watermark.maxSkew"
            ));
        }
        Ok(time)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noon of a day, in seconds since 1970: 2026-01-02T12:00:00Z.
    const NOON: i64 = 1_767_355_200;

    fn watermark(json: serde_json::Value, value: Option<&str>) -> Watermark {
        let mut source = super::super::question::tests::source();
        source.watermark = Some(serde_json::from_value(json).unwrap());
        Watermark::new(&source, value.map(str::to_owned), NOON)
    }

    fn timestamps(value: Option<&str>) -> Watermark {
        watermark(
            serde_json::json!({"strategy": "timestamp", "path": "at", "param": "since", "initial": "9"}),
            value,
        )
    }

    #[test]
    fn the_newest_timestamp_is_kept() {
        let mut marked = timestamps(None);
        assert_eq!(marked.parameter(), Some(("since", "9")));
        for record in [r#"{"at":10}"#, r#"{"at":100}"#, r#"{"at":"20"}"#, "{}"] {
            marked.saw_record(record);
        }
        assert_eq!(marked.parameter(), Some(("since", "9")), "all pages of a poll send the same");
        assert_eq!(marked.into_value().as_deref(), Some("100"));
        let mut marked = timestamps(Some("2026-01-02T00:00:00Z"));
        for at in ["2026-01-01T00:00:00Z", "2026-01-02T01:30:00+02:00"] {
            marked.saw_record(&serde_json::json!({"at": at}).to_string());
        }
        assert_eq!(marked.parameter(), Some(("since", "2026-01-02T00:00:00Z")));
        marked.saw_record(r#"{"at":"2026-01-02T00:00:00.5Z"}"#);
        assert_eq!(marked.into_value().as_deref(), Some("2026-01-02T00:00:00.5Z"));
    }

    #[test]
    fn a_timestamp_that_is_no_time_or_far_ahead_is_not_kept() {
        let mut marked = timestamps(Some("2026-01-02T00:00:00Z"));
        for at in ["2026-01-03T12:00:01Z", "zzz", "9999999999999", "2026-01-03T12:00:00Z"] {
            marked.saw_record(&serde_json::json!({"at": at}).to_string());
        }
        let warning = marked.warning().unwrap();
        assert!(
            warning.contains("finds \"2026-01-03T12:00:01Z\", a time more than 86400 seconds"),
            "{warning}"
        );
        assert_eq!(marked.into_value().as_deref(), Some("2026-01-03T12:00:00Z"));
        // Earlier versions took anything for the mark.
        for stored in ["9999-12-31T23:59:59Z", "zzz"] {
            assert_eq!(timestamps(Some(stored)).parameter(), Some(("since", "9")));
        }
    }

    #[test]
    fn a_first_value_may_be_anything() {
        let mut marked = watermark(
            serde_json::json!({"strategy": "timestamp", "path": "at", "param": "since", "initial": "yesterday"}),
            None,
        );
        assert_eq!(marked.parameter(), Some(("since", "yesterday")));
        marked.saw_record(r#"{"at":5}"#);
        assert_eq!(marked.into_value().as_deref(), Some("5"));
    }

    #[test]
    fn what_was_not_read_is_asked_for_again() {
        for (records, kept) in [(["1", "2", "2"], Some("2")), (["3", "2", "1"], None)] {
            let timestamp = serde_json::json!({"strategy": "timestamp", "path": "at", "param": "since"});
            let mut marked = watermark(timestamp, None);
            records.iter().for_each(|at| marked.saw_record(&format!("{{\"at\":{at}}}")));
            marked.was_cut();
            assert_eq!(marked.into_value().as_deref(), kept, "{records:?}");
        }
    }

    #[test]
    fn a_cursor_stays_where_none_comes() {
        let mut marked =
            watermark(serde_json::json!({"strategy": "cursor", "path": "next", "param": "after"}), None);
        assert_eq!(marked.parameter(), None);
        for body in [r#"{"next":"a"}"#, r#"{"next":7}"#, r#"{"next":""}"#, "{}"] {
            marked.saw_answer(body);
        }
        assert_eq!(marked.into_value().as_deref(), Some("7"));
    }
}
