//! Requests that we send to servers of others: URL, headers, credentials, proxy, TLS and redirects, one way for
//! sources and sinks. The meaning of an answer is left to them.

mod redaction;
mod retry_after;
mod tls;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use litejoin_crds::credentials::Auth;
use litejoin_crds::error::chain;
use litejoin_crds::plan::HttpConnection;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, Method, Proxy, RequestBuilder, Response, StatusCode, Url};

use self::redaction::Redaction;
pub(crate) use self::retry_after::{rate_limit_reset, retry_after};
use crate::credentials::{CredentialError, Secret, Secrets};

/// Redirects that are followed for one request.
const REDIRECTS_MAX: usize = 5;

/// Bytes of an answer that are read when it says that something is wrong: more than are shown, so that a credential is
/// seen whole.
const COMPLAINT_BYTES_MAX: usize = 8 << 10;

/// A server that requests are sent to.
pub(crate) struct Outbound {
    /// With the PEM texts that it was made with.
    client: Mutex<(Vec<Secret>, Client)>,
    connection: HttpConnection,
    secrets: Arc<Secrets>,
    url: Url,
}

/// Why there is no answer, or no request. None of these repeats a URL or a credential.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    #[error("{field}")]
    Credential { field: &'static str, source: CredentialError },
    #[error("url: is no http:// or https:// URL once its variables are filled in")]
    Url,
    #[error("proxy: is no URL of a proxy; write for example http://proxy:3128")]
    Proxy,
    #[error("headers.{name}: cannot be sent in a header; leave out line ends and control characters")]
    Header { name: String },
    #[error("tls.{field}: {problem}")]
    Tls { field: &'static str, problem: String },
    #[error("could not set up the HTTP client: {0}")]
    Client(String),
    #[error("no answer within {0:?} (timeout)")]
    Timeout(Duration),
    #[error("{0}")]
    Network(String),
    /// The server may have had the request, or not.
    #[error("the connection broke off before an answer ({0})")]
    BrokenOff(String),
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
}

impl Outbound {
    /// Looks up everything that the connection needs once, so that what is missing is told at the start.
    pub(crate) fn new(connection: &HttpConnection, secrets: Arc<Secrets>) -> Result<Self, OutboundError> {
        let url = parse_url(&secrets, &connection.url)?;
        let client = Mutex::new((pems(connection, &secrets)?, client(connection, &secrets)?));
        let outbound = Self { client, connection: connection.clone(), secrets, url };
        outbound.headers()?;
        Ok(outbound)
    }

    /// The URL of the connection.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// A request to this URL, with the headers and credentials of the connection.
    pub(crate) fn request(&self, method: Method, url: Url) -> Result<RequestBuilder, OutboundError> {
        Ok(self.client()?.request(method, url).headers(self.headers()?))
    }

    /// A request as [`Self::request`] makes it, for a connection that nobody has used before.
    pub(crate) fn request_anew(&self, method: Method, url: Url) -> Result<RequestBuilder, OutboundError> {
        let client = client(&self.connection, &self.secrets)?;
        Ok(client.request(method, url).headers(self.headers()?))
    }

    /// The client; another one when certificates have changed.
    fn client(&self) -> Result<Client, OutboundError> {
        let mut made = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        let pems = pems(&self.connection, &self.secrets)?;
        if pems != made.0 {
            *made = (pems, client(&self.connection, &self.secrets)?);
        }
        Ok(made.1.clone())
    }

    /// Sends a request and waits for the head of its answer.
    pub(crate) async fn send(&self, request: RequestBuilder) -> Result<Response, OutboundError> {
        request.send().await.map_err(|error| match is_broken_off(&error) {
            true => OutboundError::BrokenOff(cause(error)),
            false => self.failed(error),
        })
    }

    /// Reads the body of an answer, unless it is too large.
    pub(crate) async fn body(
        &self,
        mut response: Response,
        bytes_max: usize,
    ) -> Result<Vec<u8>, OutboundError> {
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(|error| self.failed(error))? {
            if body.len() + piece.len() > bytes_max {
                return Err(OutboundError::TooLarge(bytes_max));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body)
    }

    /// The words of a server that does not do what it was asked: the status, and how its body begins. Should it repeat
    /// our credentials, they are taken out.
    pub(crate) async fn complaint(&self, mut response: Response) -> String {
        let status = response.status();
        if status == StatusCode::NOT_MODIFIED {
            return format!(
                "answered {status}, though no ETag of the worker's was sent; remove If-None-Match and If-Modified-Since from \
                 headers if they are there"
            );
        }
        if status.is_redirection() {
            let to = self.redirect(&response).map_or_else(String::new, |to| format!(" to {to}"));
            return format!(
                "answered {status}, a redirect{to} that is not followed; write the URL that it leads to"
            );
        }
        let mut body = Vec::new();
        let is_whole = loop {
            match response.chunk().await {
                Ok(Some(piece)) => body.extend_from_slice(&piece),
                Ok(None) => break true,
                Err(_) => break false,
            }
            if body.len() >= COMPLAINT_BYTES_MAX {
                break false;
            }
        };
        let text = self.redaction().shown(&body, is_whole);
        if text.is_empty() { format!("answered {status}") } else { format!("answered {status}: {text}") }
    }

    /// The place on the same server that a redirect leads to, without its query: others may hold credentials of others.
    fn redirect(&self, response: &Response) -> Option<String> {
        let location = response.headers().get("location")?.to_str().ok()?;
        let to = response.url().join(location).ok()?;
        (to.origin() == response.url().origin()).then(|| self.redaction().shown(to.path().as_bytes(), true))
    }

    /// Whether a link repeats a credential of the connection, or what a variable was filled in with, behind its host.
    pub(crate) fn repeats_credentials(&self, link: &str) -> bool {
        let path = Url::parse(link).map(|url| format!("{}?{}", url.path(), url.query().unwrap_or_default()));
        self.redaction().finds_any(path.as_deref().unwrap_or(link))
    }

    /// Looks up another credential of the same connection.
    pub(crate) fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    fn failed(&self, error: reqwest::Error) -> OutboundError {
        if error.is_timeout() {
            return OutboundError::Timeout(self.connection.timeout);
        }
        OutboundError::Network(cause(error))
    }

    fn headers(&self) -> Result<HeaderMap, OutboundError> {
        let mut headers = HeaderMap::new();
        for (name, value) in &self.connection.headers {
            let filled = self.secrets.fill_in(value);
            let value = filled.map_err(|source| OutboundError::Credential { field: "headers", source })?;
            headers.insert(header_name(name)?, header_value(name, &value)?);
        }
        let look_up = |field, credential| {
            self.secrets.credential(credential).map_err(|source| OutboundError::Credential { field, source })
        };
        match &self.connection.auth {
            Some(Auth { bearer: Some(bearer), .. }) => {
                let token = look_up("auth.bearer", bearer)?;
                headers.insert("authorization", sensitive(&format!("Bearer {}", token.expose()))?);
            }
            Some(Auth { basic: Some(basic), .. }) => {
                let user = look_up("auth.basic.username", &basic.username)?;
                let password = look_up("auth.basic.password", &basic.password)?;
                headers.insert(
                    "authorization",
                    sensitive(&format!("Basic {}", basic_pair(user.expose(), password.expose())))?,
                );
            }
            Some(Auth { header: Some(header), .. }) => {
                let value = look_up("auth.header", &header.value)?;
                headers.insert(header_name(&header.name)?, sensitive(value.expose())?);
            }
            _ => {}
        }
        Ok(headers)
    }

    /// Everything that must not be repeated, as far as it can be looked up.
    fn redaction(&self) -> Redaction {
        let mut redaction = Redaction::default();
        let look_up = |credential| self.secrets.credential(credential).ok();
        if let Some(Auth { bearer, basic, header }) = &self.connection.auth {
            let values = [bearer.as_ref(), header.as_ref().map(|header| &header.value)];
            values
                .into_iter()
                .flatten()
                .filter_map(look_up)
                .for_each(|secret| redaction.add(secret.expose()));
            if let Some(basic) = basic
                && let (Some(user), Some(password)) = (look_up(&basic.username), look_up(&basic.password))
            {
                redaction.add(password.expose());
                redaction.add(&basic_pair(user.expose(), password.expose()));
            }
        }
        let HttpConnection { url, headers, proxy, .. } = &self.connection;
        for text in [url].into_iter().chain(headers.values()).chain(proxy) {
            self.secrets.values_in(text).iter().for_each(|value| redaction.add_filled_in(value.expose()));
        }
        redaction
    }
}

/// The words for a failed request: reqwest says "error sending request" first; what went wrong is behind that.
fn cause(error: reqwest::Error) -> String {
    let error = error.without_url();
    let cause = std::error::Error::source(&error);
    cause.map_or_else(|| error.to_string(), chain)
}

/// Whether a connection was there and was closed or reset before the head of an answer came. So it often is with one that
/// was kept, when its server has closed it meanwhile.
fn is_broken_off(error: &reqwest::Error) -> bool {
    use std::io::ErrorKind as Kind;
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let is_closed = |cause: &(dyn std::error::Error + 'static)| {
        let by_http = cause.downcast_ref::<hyper::Error>();
        let by_system = cause.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
        by_http.is_some_and(|error| error.is_incomplete_message() || error.is_canceled() || error.is_closed())
            || matches!(
                by_system,
                Some(
                    Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe | Kind::UnexpectedEof
                )
            )
    };
    !error.is_connect() && !error.is_timeout() && causes.into_iter().any(is_closed)
}

/// A client for a connection.
fn client(connection: &HttpConnection, secrets: &Secrets) -> Result<Client, OutboundError> {
    let mut builder = Client::builder()
        .user_agent(concat!("litejoin/", env!("CARGO_PKG_VERSION")))
        .timeout(connection.timeout)
        .redirect(Policy::custom(same_server));
    if let Some(tls) = &connection.tls {
        builder = builder.tls_backend_preconfigured(tls::client_config(tls, secrets)?);
    }
    if let Some(proxy) = &connection.proxy {
        let filled = secrets.fill_in(proxy);
        let filled = filled.map_err(|source| OutboundError::Credential { field: "proxy", source })?;
        // The error would repeat the URL, and a password may be in it.
        builder = builder.proxy(Proxy::all(filled).map_err(|_| OutboundError::Proxy)?);
    }
    builder.build().map_err(|error| OutboundError::Client(chain(&error.without_url())))
}

/// The PEM texts of a connection.
fn pems(connection: &HttpConnection, secrets: &Secrets) -> Result<Vec<Secret>, OutboundError> {
    let Some(tls) = &connection.tls else { return Ok(Vec::new()) };
    [("ca", &tls.ca), ("cert", &tls.cert), ("key", &tls.key)]
        .into_iter()
        .filter_map(|(field, source)| Some((field, source.as_ref()?)))
        .map(|(field, source)| {
            let read = secrets.pem(source);
            read.map_err(|error| OutboundError::Tls { field, problem: chain(&error) })
        })
        .collect()
}

/// Parses a URL, with the environment's values filled in.
fn parse_url(secrets: &Secrets, text: &str) -> Result<Url, OutboundError> {
    let filled =
        secrets.fill_in(text).map_err(|source| OutboundError::Credential { field: "url", source })?;
    let url = Url::parse(&filled).map_err(|_| OutboundError::Url)?;
    let fits = matches!(url.scheme(), "http" | "https") && url.has_host();
    if fits { Ok(url) } else { Err(OutboundError::Url) }
}

/// Follows a redirect on the same server that keeps method and body. Any other would carry results or credentials to
/// where they were not meant to go, or turn a POST into a GET whose 200 would pass for a delivery.
fn same_server(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    let Some(from) = attempt.previous().last() else { return attempt.stop() };
    let keeps_method =
        [StatusCode::TEMPORARY_REDIRECT, StatusCode::PERMANENT_REDIRECT].contains(&attempt.status());
    let same = from.origin() == attempt.url().origin();
    if same && keeps_method && attempt.previous().len() <= REDIRECTS_MAX {
        attempt.follow()
    } else {
        attempt.stop()
    }
}

/// User and password as Basic authentication sends them.
fn basic_pair(user: &str, password: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
}

fn header_name(name: &str) -> Result<HeaderName, OutboundError> {
    name.parse().map_err(|_| OutboundError::Header { name: name.to_owned() })
}

fn header_value(name: &str, value: &str) -> Result<HeaderValue, OutboundError> {
    HeaderValue::from_str(value).map_err(|_| OutboundError::Header { name: name.to_owned() })
}

/// A value that must not be shown.
fn sensitive(value: &str) -> Result<HeaderValue, OutboundError> {
    let mut value = header_value("authorization", value)?;
    value.set_sensitive(true);
    Ok(value)
}
