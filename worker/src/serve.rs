//! Serving an address of ours: TLS, who may come in, how many at once, and how slow they may be. What is answered is the
//! router's.
//!
//! | limit | beyond it |
//! |---|---|
//! | `maxConnections` | 503, and the connection is closed |
//! | `clientTimeout` for the TLS handshake and the head of a request | the connection is closed |
//! | `clientTimeout` for taking a piece of an answer | the connection is closed |
//! | a head of some 64 KiB, or 100 headers | 431, and the connection is closed |

pub(crate) mod listen;
mod stall;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use litejoin_crds::credentials::Credential;
use litejoin_crds::error::chain;
use litejoin_crds::plan::Serving;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::{debug, warn};

use self::stall::Stall;
use self::tls::Certificates;
use crate::credentials::Secrets;

/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// How often certificates are looked at.
const CERTIFICATES_INTERVAL: Duration = Duration::from_secs(1);

/// Wait after a connection could not be accepted, most likely for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Clients that are told at once that there are too many, and how long that may take.
const TURNED_AWAY_MAX: usize = 64;
const TURNED_AWAY_TIME: Duration = Duration::from_secs(1);

/// Requests of one HTTP/2 connection at once.
const STREAMS_MAX: u32 = 100;

/// The front that stands before a router.
pub(crate) struct Front {
    serving: Serving,
    certificates: Option<Certificates>,
    secrets: Arc<Secrets>,
}

/// The means to serve a connection.
#[derive(Clone)]
struct Service {
    router: TowerToHyperService<Router>,
    client_timeout: Duration,
}

impl Front {
    /// Looks up what it needs, or says what is missing.
    pub(crate) fn new(serving: &Serving, secrets: &Arc<Secrets>) -> Result<Self, String> {
        if let Some(bearer) = &serving.bearer {
            secrets.credential(bearer).map_err(|error| format!("auth.bearer: {}", chain(&error)))?;
        }
        let certificates = match &serving.tls {
            Some(tls) => Some(Certificates::load(tls, secrets)?),
            None => None,
        };
        Ok(Self { serving: serving.clone(), certificates, secrets: Arc::clone(secrets) })
    }

    /// Serves until it is told to stop and every request is answered.
    pub(crate) async fn serve(
        mut self,
        listener: TcpListener,
        router: Router,
        mut stopping: watch::Receiver<bool>,
    ) {
        let router = match self.serving.bearer.take() {
            None => router,
            Some(bearer) => {
                let guard = Guard { bearer, secrets: Arc::clone(&self.secrets) };
                router.layer(middleware::from_fn_with_state(Arc::new(guard), admit))
            }
        };
        let service =
            Service { router: TowerToHyperService::new(router), client_timeout: self.serving.client_timeout };
        let (free, turned_away) = (
            Arc::new(Semaphore::new(self.serving.connections_max)),
            Arc::new(Semaphore::new(TURNED_AWAY_MAX)),
        );
        let (graceful, mut connections) = (GracefulShutdown::new(), JoinSet::new());
        let mut look = interval(CERTIFICATES_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                _ = look.tick(), if self.certificates.is_some() => {
                    self.certificates.iter_mut().for_each(|certificates| certificates.look(&self.secrets));
                    continue;
                }
                _ = stopping.wait_for(|stopping| *stopping) => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    warn!(%error, "could not accept a connection; trying again");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            // Events are small and wanted at once.
            let _ = stream.set_nodelay(true);
            let Ok(permit) = Arc::clone(&free).try_acquire_owned() else {
                let permit = Arc::clone(&turned_away).try_acquire_owned();
                if let (Ok(permit), None) = (permit, &self.certificates) {
                    connections.spawn(async move {
                        let _ = timeout(TURNED_AWAY_TIME, turn_away(stream)).await;
                        drop(permit);
                    });
                }
                continue;
            };
            let (service, watcher) = (service.clone(), graceful.watcher());
            let acceptor = self.certificates.as_ref().map(Certificates::acceptor);
            connections.spawn(async move {
                match acceptor {
                    None => service.serve(stream, false, watcher).await,
                    Some(acceptor) => match timeout(service.client_timeout, acceptor.accept(stream)).await {
                        Ok(Ok(stream)) => {
                            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                            service.serve(stream, is_h2, watcher).await;
                        }
                        Ok(Err(error)) => debug!(%error, "a TLS handshake has failed"),
                        Err(_) => {}
                    },
                }
                drop(permit);
            });
        }
        drop(listener);
        graceful.shutdown().await;
    }
}

impl Service {
    /// Serves one connection to its end.
    async fn serve(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        is_h2: bool,
        watcher: Watcher,
    ) {
        let io = TokioIo::new(Stall::new(stream, self.client_timeout));
        // An early end of a connection is the client's doing.
        let outcome = if is_h2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder
                .timer(TokioTimer::new())
                .max_concurrent_streams(STREAMS_MAX)
                .max_header_list_size(u32::try_from(HEAD_BYTES_MAX).expect("64 KiB fits"))
                .keep_alive_interval(self.client_timeout)
                .keep_alive_timeout(self.client_timeout);
            watcher.watch(builder.serve_connection(io, self.router)).await
        } else {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(self.client_timeout)
                .max_buf_size(HEAD_BYTES_MAX);
            watcher.watch(builder.serve_connection(io, self.router)).await
        };
        if let Err(error) = outcome {
            debug!(error = chain(&error), "a connection has ended early");
        }
    }
}

/// Tells a client that there are too many, once it has said something: an answer before that would confuse it.
async fn turn_away(mut stream: TcpStream) {
    let mut unread = [0; 1_024];
    if !stream.read(&mut unread).await.is_ok_and(|read| read > 0) {
        return;
    }
    let body = json!({"error": "too many connections; come back later (maxConnections)"}).to_string();
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nretry-after: 1\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    if stream.write_all(answer.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok() {
        // Bytes that the client still sends would reset the connection, and take the answer along.
        while stream.read(&mut unread).await.is_ok_and(|read| read > 0) {}
    }
}

/// The clients that may come in.
struct Guard {
    bearer: Credential,
    secrets: Arc<Secrets>,
}

/// Paths that tell nothing but health, and are open to probes, which have no token.
const HEALTH: [&str; 3] = ["/health", "/healthz", "/readyz"];

/// Lets a request through that has the token, or needs none. A preflight of CORS can't have one.
async fn admit(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if HEALTH.contains(&request.uri().path()) || request.method() == Method::OPTIONS {
        return next.run(request).await;
    }
    let wanted = match guard.secrets.credential(&guard.bearer) {
        Ok(wanted) => wanted,
        Err(error) => {
            warn!(error = chain(&error), "nobody is let in: the token cannot be looked up");
            return refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                "the token cannot be looked up; see the worker's log",
            );
        }
    };
    let sent = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let sent = sent.and_then(|value| value.split_once(' '));
    let sent =
        sent.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")).map(|(_, token)| token.trim());
    // Digests, so that the time of the comparison tells nothing about the token.
    if sent.is_some_and(|sent| Sha256::digest(sent) == Sha256::digest(wanted.expose())) {
        return next.run(request).await;
    }
    let message = match sent {
        None => "a token is needed; send it as Authorization: Bearer",
        Some(_) => "the token is another one",
    };
    let mut response = refusal(StatusCode::UNAUTHORIZED, message);
    response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    response
}

fn refusal(status: StatusCode, message: &str) -> Response {
    (status, axum::Json(json!({"error": message}))).into_response()
}
