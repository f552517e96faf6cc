//! `api` of a source: polls an HTTP API and takes what has changed since.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::credentials::{Auth, ClientTls};
use crate::defaults;
use crate::duration::DurationText;

/// Polls an HTTP API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiSourceSpec {
    /// Address that is polled; `${NAME}` is replaced by the environment variable.
    #[schemars(length(min = 1, max = 4096))]
    pub url: String,
    /// Method of the request.
    #[serde(default)]
    pub method: ApiMethod,
    /// How often the address is polled, from the start of one poll to that of the next.
    pub interval: DurationText,
    /// Path of the key in a record, in gjson syntax, such as `id` or `user.id`.
    #[schemars(length(min = 1, max = 512))]
    pub key_path: String,
    /// Path of the records in the response, in gjson syntax; the whole response, an array or one record, where
    /// absent. A path that ends in `@values` takes the values of an object for records, such as `data.@values`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub response_path: Option<String>,
    /// How a change is noticed: `diff` compares fields and says which, `hash` keeps only a digest of the record.
    #[serde(default)]
    pub change_detection: ChangeDetection,
    /// Whether a row is deleted that is missing from a poll which has read all pages; the topic must then have no other
    /// source.
    #[serde(default)]
    pub detect_deletes: bool,
    /// Time for one request.
    #[serde(default = "default_timeout")]
    pub timeout: DurationText,
    /// Whether the records of the first poll count as changes.
    #[serde(default = "default_initial_snapshot")]
    pub initial_snapshot: bool,
    /// Headers of the request; `${NAME}` is replaced by the environment variable. Credentials belong in `auth`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub headers: BTreeMap<String, String>,
    /// Body of a POST or PUT.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 65536))]
    pub body: Option<String>,
    /// Failed polls in a row before the waits grow, at least 1.
    #[serde(default = "default_max_consecutive_failures")]
    #[schemars(range(min = 1, max = 1000000))]
    pub max_consecutive_failures: u32,
    /// The longest wait between polls that fail.
    #[serde(default = "default_max_backoff")]
    pub max_backoff: DurationText,
    /// How a poll asks only for what is new.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watermark: Option<ApiWatermark>,
    /// How the pages of a long response are asked for. They end where a page has no cursor or link to the next, or, by
    /// `page` and `offset`, no records; also where `morePath`, `totalPath` or a `Link` with `results="false"` say so, or a
    /// cursor or link leads to a page that the poll has read. Behind any other end `detectDeletes` deletes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pagination: Option<ApiPagination>,
    /// How many requests are sent at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<ApiRateLimit>,
    /// How the worker authenticates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// How the server is checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ClientTls>,
    /// Proxy to go through, such as `http://proxy:3128`; the environment's where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub proxy: Option<String>,
}

fn default_timeout() -> DurationText {
    defaults::API_SOURCE_TIMEOUT.into()
}

fn default_initial_snapshot() -> bool {
    defaults::API_SOURCE_INITIAL_SNAPSHOT
}

fn default_max_consecutive_failures() -> u32 {
    defaults::API_SOURCE_MAX_CONSECUTIVE_FAILURES
}

fn default_max_backoff() -> DurationText {
    defaults::API_SOURCE_MAX_BACKOFF.into()
}

/// Method of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ApiMethod {
    /// GET.
    #[default]
    Get,
    /// POST, with `body`.
    Post,
    /// PUT, with `body`.
    Put,
}

/// How a change of a record is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeDetection {
    /// By its fields; the change says which.
    #[default]
    Diff,
    /// By a digest of the whole record.
    Hash,
}

/// How a poll asks only for what is new.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiWatermark {
    /// Mark that is remembered from poll to poll: nothing (`none`), the newest `timestamp`, the last `cursor`, or the
    /// `etag` of each page, of the first 1000.
    #[serde(default)]
    pub strategy: WatermarkStrategy,
    /// Path of the timestamp in a record, or of the cursor in the response, in gjson syntax.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub path: Option<String>,
    /// Query parameter that sends the mark back.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub param: Option<String>,
    /// Value that the first poll sends; no parameter where absent. An `etag` with `pagination` has none to send.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub initial: Option<String>,
    /// How far ahead of the worker's clock a `timestamp` may lie; one day (`24h`) where absent. The record of a timestamp
    /// further ahead, or of one that is no time, is stored, and the mark stays where it is; `/status` and the log tell.
    /// Times are those of RFC 3339, with a zone or in UTC, dates, and numbers of seconds, milliseconds, microseconds or
    /// nanoseconds since 1970, told by their size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_skew: Option<DurationText>,
}

/// The mark that is remembered from poll to poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WatermarkStrategy {
    /// Nothing.
    #[default]
    None,
    /// The newest timestamp of a record.
    Timestamp,
    /// The last cursor.
    Cursor,
    /// The ETag of each page.
    Etag,
}

/// How the pages of a long response are asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiPagination {
    /// Way to the next page: a `page` number, an `offset`, a `cursor` in the response, the `Link` header (`link`), or the
    /// URL in the response (`nextUrl`), absolute or relative to that of the page.
    #[serde(rename = "type")]
    pub kind: PaginationKind,
    /// Query parameter of the page number, the offset or the cursor.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub param: Option<String>,
    /// Number of the first page, or the first offset.
    #[serde(default)]
    pub start: u32,
    /// Path of the next cursor or URL in the response, in gjson syntax, such as `next`, `links.next` or
    /// `@odata.nextLink`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub path: Option<String>,
    /// Other servers that links and URLs may lead to, as `host` or `host:port`, by the scheme of `url`. The headers and
    /// credentials of the source go there too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 261)))]
    pub hosts: Vec<String>,
    /// Path of a value in the response that says whether there are more pages, in gjson syntax, such as `has_more`:
    /// `false`, 0, null and the empty text say no.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub more_path: Option<String>,
    /// Path of the number of all records in the response, in gjson syntax, such as `meta.total`: the pages end where
    /// they have had so many.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    pub total_path: Option<String>,
    /// Query parameter of the size of a page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub size_param: Option<String>,
    /// Records on a page; by `page` and `offset`, a shorter page is the last. If the first page is shorter, the next one is
    /// asked for all the same: a server may send fewer than it is asked for, and is then read until a page is empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000))]
    pub size: Option<u32>,
    /// Pages of one poll at most.
    #[serde(default = "default_max_pages")]
    #[schemars(range(min = 1, max = 1000000))]
    pub max_pages: u32,
}

fn default_max_pages() -> u32 {
    defaults::API_SOURCE_MAX_PAGES
}

/// The way to the next page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PaginationKind {
    /// The number of the page.
    Page,
    /// The number of records before the page.
    Offset,
    /// A cursor in the response.
    Cursor,
    /// The `Link` header.
    Link,
    /// A URL in the response.
    #[serde(rename = "nextUrl")]
    NextUrl,
}

/// How many requests are sent at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiRateLimit {
    /// So many requests, at least 1,
    #[schemars(range(min = 1, max = 1000000))]
    pub requests: u32,
    /// in this time.
    pub per: DurationText,
}
