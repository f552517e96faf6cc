//! What tells a question to an API from any other: marks of another question are worth nothing. Pure.

use std::hash::Hasher as _;

use fnv::FnvHasher;
use litejoin_crds::plan::ApiSource;
use litejoin_crds::source::api::{ApiPagination, ApiWatermark};

/// The digest of a question. Its text is that of the first version, whose marks count as well; younger fields are part of it
/// where they are written.
pub(super) fn fingerprint(spec: &ApiSource) -> u64 {
    let ApiSource { connection, topic, method, body, response_path, key_path, watermark, pagination, .. } =
        spec;
    let watermark = watermark.as_ref().map(|watermark| {
        let ApiWatermark { strategy, path, param, initial, max_skew: _ } = watermark;
        format!("ApiWatermark {{ strategy: {strategy:?}, path: {path:?}, param: {param:?}, initial: {initial:?} }}")
    });
    let mut ends = String::new();
    let pagination = pagination.as_ref().map(|pagination| {
        let ApiPagination { kind, param, start, path, size_param, size, max_pages, .. } = pagination;
        let ApiPagination { hosts: _, more_path, total_path, .. } = pagination;
        if more_path.is_some() || total_path.is_some() {
            ends = format!("{:?}", (more_path, total_path));
        }
        format!(
            "ApiPagination {{ kind: {kind:?}, param: {param:?}, start: {start:?}, path: {path:?}, size_param: \
             {size_param:?}, size: {size:?}, max_pages: {max_pages:?} }}"
        )
    });
    let shown =
        |value: Option<String>| value.map_or_else(|| "None".to_owned(), |value| format!("Some({value})"));
    let (url, watermark, pagination) = (&connection.url, shown(watermark), shown(pagination));
    let question = format!(
        "({url:?}, {topic:?}, {method:?}, {body:?}, {response_path:?}, {key_path:?}, {watermark}, {pagination}){ends}"
    );
    digest(question.as_bytes())
}

/// A digest that is the same in all versions.
pub(super) fn digest(bytes: &[u8]) -> u64 {
    let mut hasher = FnvHasher::default();
    hasher.write(bytes);
    hasher.finish()
}

#[cfg(test)]
pub(super) mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use litejoin_crds::plan::HttpConnection;
    use serde_json::json;

    use super::*;

    /// A source with the defaults of the API.
    pub(in crate::source::api) fn source() -> ApiSource {
        ApiSource {
            connection: HttpConnection {
                url: "http://h/".to_owned(),
                timeout: Duration::from_secs(30),
                headers: BTreeMap::new(),
                auth: None,
                tls: None,
                proxy: None,
            },
            topic: "items".to_owned(),
            method: litejoin_crds::source::api::ApiMethod::Get,
            body: None,
            interval: Duration::from_secs(1),
            key_path: "id".to_owned(),
            response_path: None,
            change_detection: litejoin_crds::source::api::ChangeDetection::Diff,
            detect_deletes: false,
            initial_snapshot: true,
            failures_max: 5,
            backoff_max: Duration::from_secs(300),
            watermark: None,
            skew_max: Duration::from_secs(86_400),
            pagination: None,
            rate_limit: None,
        }
    }

    #[test]
    fn a_question_is_the_one_of_the_first_version() {
        let mut spec = source();
        let first = |rest: &str| {
            digest(format!("(\"http://h/\", \"items\", Get, None, None, \"id\", {rest})").as_bytes())
        };
        assert_eq!(fingerprint(&spec), first("None, None"));
        let watermark = json!({"strategy": "timestamp", "path": "at", "param": "since", "maxSkew": "1h"});
        spec.watermark = Some(serde_json::from_value(watermark).unwrap());
        let pages = json!({"type": "nextUrl", "path": "next", "size": 5, "hosts": ["h"]});
        spec.pagination = Some(serde_json::from_value(pages).unwrap());
        let asked = "Some(ApiWatermark { strategy: Timestamp, path: Some(\"at\"), param: Some(\"since\"), initial: None }), \
                     Some(ApiPagination { kind: NextUrl, param: None, start: 0, path: Some(\"next\"), size_param: None, size: \
                     Some(5), max_pages: 1000 })";
        assert_eq!(fingerprint(&spec), first(asked));
        spec.pagination.as_mut().unwrap().total_path = Some("total".to_owned());
        assert_ne!(fingerprint(&spec), first(asked));
    }
}
