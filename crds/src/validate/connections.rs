//! Connections that the worker opens (URLs, credentials, settings of an `api` source), and addresses that it serves.

use std::time::Duration;

use crate::complaint::Reason;
use crate::credentials::{Auth, ClientTls, Credential, PemSource};
use crate::defaults;
use crate::duration::{DURATION_MAX, DurationText};
use crate::path;
use crate::plan::{ApiSource, HttpConnection, HttpSink, Serving};
use crate::serving::ServingSpec;
use crate::sink::HttpSinkSpec;
use crate::source::api::{
    ApiMethod, ApiPagination, ApiSourceSpec, ApiWatermark, PaginationKind, WatermarkStrategy,
};
use crate::validate::gjson;
use crate::validate::scope::Scope;

/// Checks the `api` of a source and parses it; `topic` is the one it fills.
pub(crate) fn api_source(api: &ApiSourceSpec, topic: &str, scope: &mut Scope<'_>) -> ApiSource {
    url("api.url", &api.url, scope);
    if api.body.is_some() && api.method == ApiMethod::Get {
        scope.error("api.body", Reason::Conflict, "a GET has no body; remove it or write method: POST");
    }
    gjson::check_path("api.keyPath", &api.key_path, scope);
    if let Some(path) = &api.response_path {
        gjson::response_path("api.responsePath", path, scope);
    }
    let interval = scope.positive("api.interval", &api.interval);
    let backoff_max = scope.positive("api.maxBackoff", &api.max_backoff);
    let skew_max = api.watermark.as_ref().and_then(|watermark| watermark.max_skew.clone());
    let skew_max = skew_max.unwrap_or_else(|| DurationText::from(defaults::API_SOURCE_MAX_SKEW));
    let skew_max = scope.duration("api.watermark.maxSkew", &skew_max, Duration::ZERO, DURATION_MAX);
    if let Some(watermark) = &api.watermark {
        api_watermark(watermark, scope);
        let asks_for_part = [WatermarkStrategy::Timestamp, WatermarkStrategy::Cursor];
        if api.detect_deletes && asks_for_part.contains(&watermark.strategy) {
            let message = "a poll that asks only for what is new does not show what is gone; remove it or the watermark";
            scope.error("api.detectDeletes", Reason::Conflict, message);
        }
    }
    if let Some(pagination) = &api.pagination {
        api_pagination(pagination, scope);
    }
    let rate_limit = api
        .rate_limit
        .as_ref()
        .map(|limit| (limit.requests, scope.positive("api.rateLimit.per", &limit.per)));
    headers("api.headers", api.headers.keys(), scope);
    auth("api.auth", api.auth.as_ref(), scope);
    tls("api.tls", api.tls.as_ref(), scope);
    if let Some(proxy) = &api.proxy {
        url("api.proxy", proxy, scope);
    }
    ApiSource {
        connection: HttpConnection {
            url: api.url.clone(),
            timeout: scope.positive("api.timeout", &api.timeout),
            headers: api.headers.clone(),
            auth: api.auth.clone(),
            tls: api.tls.clone(),
            proxy: api.proxy.clone(),
        },
        topic: topic.to_owned(),
        method: api.method,
        body: api.body.clone(),
        interval,
        key_path: api.key_path.clone(),
        response_path: api.response_path.clone(),
        change_detection: api.change_detection,
        detect_deletes: api.detect_deletes,
        initial_snapshot: api.initial_snapshot,
        failures_max: api.max_consecutive_failures,
        backoff_max,
        watermark: api.watermark.clone().filter(|watermark| watermark.strategy != WatermarkStrategy::None),
        skew_max,
        pagination: api.pagination.clone(),
        rate_limit,
    }
}

fn api_watermark(watermark: &ApiWatermark, scope: &mut Scope<'_>) {
    let (noun, sends) = match watermark.strategy {
        WatermarkStrategy::Timestamp => ("timestamp", true),
        WatermarkStrategy::Cursor => ("cursor", true),
        WatermarkStrategy::Etag => ("etag", false),
        WatermarkStrategy::None => ("none", false),
    };
    for (name, value) in [("path", &watermark.path), ("param", &watermark.param)] {
        if sends && value.is_none() {
            let message = format!("strategy {noun} needs {name}; add api.watermark.{name}");
            scope.error(&format!("api.watermark.{name}"), Reason::Conflict, message);
        } else if !sends && value.is_some() {
            let message =
                format!("strategy {noun} has no {name}; remove it or write strategy: timestamp or cursor");
            scope.error(&format!("api.watermark.{name}"), Reason::Conflict, message);
        }
    }
    if let Some(path) = &watermark.path {
        gjson::check_path("api.watermark.path", path, scope);
    }
    if watermark.max_skew.is_some() && watermark.strategy != WatermarkStrategy::Timestamp {
        let message = format!("strategy {noun} has no maxSkew; remove it or write strategy: timestamp");
        scope.error("api.watermark.maxSkew", Reason::Conflict, message);
    }
}

fn api_pagination(pagination: &ApiPagination, scope: &mut Scope<'_>) {
    let (noun, wants_param, wants_path) = match pagination.kind {
        PaginationKind::Page => ("page", true, false),
        PaginationKind::Offset => ("offset", true, false),
        PaginationKind::Cursor => ("cursor", true, true),
        PaginationKind::Link => ("link", false, false),
        PaginationKind::NextUrl => ("nextUrl", false, true),
    };
    for (name, wanted, there) in
        [("param", wants_param, pagination.param.is_some()), ("path", wants_path, pagination.path.is_some())]
    {
        if wanted && !there {
            let message = format!("type {noun} needs {name}; add api.pagination.{name}");
            scope.error(&format!("api.pagination.{name}"), Reason::Conflict, message);
        } else if !wanted && there {
            let message = format!("type {noun} has no {name}; remove it");
            scope.error(&format!("api.pagination.{name}"), Reason::Conflict, message);
        }
    }
    if pagination.kind == PaginationKind::Offset && pagination.size.is_none() {
        let message = "type offset needs size, the records on a page; add api.pagination.size";
        scope.error("api.pagination.size", Reason::Conflict, message);
    }
    if pagination.size_param.is_some() && pagination.size.is_none() {
        let message = "sizeParam needs size, what it sends; add api.pagination.size";
        scope.error("api.pagination.sizeParam", Reason::Conflict, message);
    }
    let ApiPagination { path, more_path, total_path, hosts, .. } = pagination;
    for (name, path) in [("path", path), ("morePath", more_path), ("totalPath", total_path)] {
        if let Some(path) = path {
            gjson::check_path(&format!("api.pagination.{name}"), path, scope);
        }
    }
    if !hosts.is_empty() && !matches!(pagination.kind, PaginationKind::Link | PaginationKind::NextUrl) {
        let message =
            format!("type {noun} stays on the server of url; remove it or write type: link or nextUrl");
        scope.error("api.pagination.hosts", Reason::Conflict, message);
    }
    for (index, host) in hosts.iter().enumerate().filter(|(_, host)| !is_host(host)) {
        let message = format!("got {host:?}, write host or host:port, such as \"api.example.com\"");
        scope.error(&crate::path::item("api.pagination.hosts", index), Reason::InvalidAddress, message);
    }
}

/// Whether a text is a host, with or without a port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, port),
        _ => (text, "1"),
    };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b))
    };
    let is_address =
        in_brackets.map_or_else(|| is_name(host), |host| host.parse::<std::net::Ipv6Addr>().is_ok());
    is_address && port.parse::<u16>().is_ok()
}

/// Checks the `http` of a sink and parses it.
pub(crate) fn http_sink(http: &HttpSinkSpec, scope: &mut Scope<'_>) -> HttpSink {
    url("http.url", &http.url, scope);
    headers("http.headers", http.headers.keys(), scope);
    sinks_own_headers(http, scope);
    auth("http.auth", http.auth.as_ref(), scope);
    if let Some(signing_key) = &http.signing_key {
        credential("http.signingKey", signing_key, scope);
    }
    tls("http.tls", http.tls.as_ref(), scope);
    if let Some(proxy) = &http.proxy {
        url("http.proxy", proxy, scope);
    }
    HttpSink {
        connection: HttpConnection {
            url: http.url.clone(),
            timeout: scope.positive("http.timeout", &http.timeout),
            headers: http.headers.clone(),
            auth: http.auth.clone(),
            tls: http.tls.clone(),
            proxy: http.proxy.clone(),
        },
        batch_results_max: http.batch_size as usize,
        concurrency: http.concurrency as usize,
        signing_key: http.signing_key.clone(),
    }
}

/// Checks how an address is served; `field` is the part of the spec that the address is in.
pub(crate) fn serving(field: &str, serving: &ServingSpec, scope: &mut Scope<'_>) -> Serving {
    if let Some(auth) = &serving.auth {
        credential(&format!("{field}.auth.bearer"), &auth.bearer, scope);
    }
    if let Some(tls) = &serving.tls {
        let pems = [("cert", Some(&tls.cert)), ("key", Some(&tls.key)), ("clientCa", tls.client_ca.as_ref())];
        for (name, pem) in pems {
            if let Some(source) = pem {
                pem_source(&format!("{field}.tls.{name}"), source, scope);
            }
        }
    }
    Serving {
        bearer: serving.auth.as_ref().map(|auth| auth.bearer.clone()),
        tls: serving.tls.clone(),
        connections_max: serving.max_connections as usize,
        client_timeout: scope.positive(&format!("{field}.clientTimeout"), &serving.client_timeout),
    }
}

/// Checks a URL. It may hold credentials, so messages do not repeat it.
fn url(field: &str, text: &str, scope: &mut Scope<'_>) {
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    if rest.is_none_or(str::is_empty) && !text.starts_with("${") {
        let message = "is no URL; write for example https://api.example.com/orders";
        scope.error(field, Reason::InvalidValue, message);
    } else if rest.is_some_and(|rest| rest.split('/').next().is_some_and(|host| host.contains('@'))) {
        let message = "holds a user or password; remove it and use auth, which takes a Secret or ${ENV}";
        scope.error(field, Reason::InvalidValue, message);
    }
}

fn headers<'a>(field: &str, names: impl Iterator<Item = &'a String>, scope: &mut Scope<'_>) {
    for name in names {
        let at = path::field(field, name);
        if name.is_empty()
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
        {
            let message = format!("got {name:?}, which is no name of a header; write for example \"Accept\"");
            scope.error(&at, Reason::InvalidName, message);
        } else if name.eq_ignore_ascii_case("authorization") {
            let message =
                "a credential has no place among the headers; use auth, which takes a Secret or ${ENV}";
            scope.error(&at, Reason::InvalidValue, message);
        }
    }
}

/// Complains about headers that the http sink or its connection writes itself.
fn sinks_own_headers(http: &HttpSinkSpec, scope: &mut Scope<'_>) {
    let by_hand = http.headers.keys().map(|name| (path::field("http.headers", name), name));
    let header = http.auth.as_ref().and_then(|auth| auth.header.as_ref());
    let by_auth = header.map(|header| ("http.auth.header.name".to_owned(), &header.name));
    for (at, name) in by_hand.chain(by_auth) {
        let why = match name.to_ascii_lowercase().as_str() {
            "idempotency-key" => {
                "each request has a key of its own, by which the server knows a result that comes twice"
            }
            "litejoin-signature" => "the sink signs with signingKey",
            "content-type" => "results are application/json",
            "content-length" | "transfer-encoding" | "host" | "expect" => "each request has its own",
            "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "upgrade" => {
                "it is about the connection, which the worker keeps"
            }
            _ => continue,
        };
        let message = format!("got {name:?}, which the sink writes itself: {why}; remove it");
        scope.error(&at, Reason::Conflict, message);
    }
}

fn auth(field: &str, auth: Option<&Auth>, scope: &mut Scope<'_>) {
    let Some(Auth { bearer, basic, header }) = auth else { return };
    one_of(
        field,
        &[("bearer", bearer.is_some()), ("basic", basic.is_some()), ("header", header.is_some())],
        scope,
    );
    if let Some(bearer) = bearer {
        credential(&format!("{field}.bearer"), bearer, scope);
    }
    if let Some(basic) = basic {
        credential(&format!("{field}.basic.username"), &basic.username, scope);
        credential(&format!("{field}.basic.password"), &basic.password, scope);
    }
    if let Some(header) = header {
        credential(&format!("{field}.header.value"), &header.value, scope);
    }
}

pub(super) fn tls(field: &str, tls: Option<&ClientTls>, scope: &mut Scope<'_>) {
    let Some(tls) = tls else { return };
    for (name, pem) in [("ca", &tls.ca), ("cert", &tls.cert), ("key", &tls.key)] {
        if let Some(source) = pem {
            pem_source(&format!("{field}.{name}"), source, scope);
        }
    }
    if tls.cert.is_some() != tls.key.is_some() {
        scope.error(field, Reason::Conflict, "cert and key go together; add the other or remove both");
    }
}

fn pem_source(field: &str, source: &PemSource, scope: &mut Scope<'_>) {
    let PemSource { secret_key_ref, path } = source;
    let written = [("secretKeyRef", secret_key_ref.is_some()), ("path", path.is_some())];
    one_of(field, &written, scope);
}

pub(super) fn credential(field: &str, credential: &Credential, scope: &mut Scope<'_>) {
    let written = [("secretKeyRef", credential.secret_key_ref.is_some()), ("env", credential.env.is_some())];
    one_of(field, &written, scope);
}

/// Complains unless exactly one of some fields is written.
fn one_of(field: &str, fields: &[(&str, bool)], scope: &mut Scope<'_>) {
    let written: Vec<&str> = fields.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect();
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    let names = names.join(", ");
    let message = match written.len() {
        1 => return,
        0 => format!("got none of {names}; write exactly one"),
        _ => format!("got {}; write exactly one of {names}", written.join(" and ")),
    };
    scope.error(field, Reason::NotExactlyOne, message);
}
