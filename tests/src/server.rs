//! A server that the worker calls: it keeps every request, answers as a test decides, can hang, break off or close,
//! and speaks TLS if configured.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::http::{Request, Response};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::wait::until;

/// A request as received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub method: String,
    /// Path and query; the whole URL if the client uses the server as a proxy.
    pub target: String,
    /// Headers by name in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
    pub at: Instant,
}

/// How the server answers a request.
#[derive(Debug, Clone)]
pub enum Reply {
    Answer {
        status: u16,
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
    /// No answer, until the client gives up.
    Hang,
    /// Closes the connection without an answer.
    BreakOff,
}

type Behaviour = Box<dyn Fn(&Received) -> Reply + Send + Sync>;

#[derive(Default)]
struct ServerState {
    received: Mutex<Vec<Received>>,
    behaviour: Mutex<Option<Arc<Behaviour>>>,
    /// Requests in flight, and the maximum so far.
    busy: Mutex<(usize, usize)>,
    connections: AtomicUsize,
    /// Delays answers while locked.
    gate: tokio::sync::RwLock<()>,
}

/// A server; dropping it closes the listener and all connections.
pub struct Server {
    address: SocketAddr,
    scheme: &'static str,
    shared: Arc<ServerState>,
    accepting: JoinHandle<()>,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("the body is text")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Returns the raw value of a query parameter.
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// Returns the path without the query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().expect("a split has a first part")
    }
}

impl Reply {
    /// Returns an answer without a body.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    /// Returns a 200 with this body.
    pub fn json(value: &Value) -> Self {
        Self::status(200).with_header("content-type", "application/json").with_body(value.to_string())
    }

    #[must_use]
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name.to_owned(), value.to_owned()));
        }
        self
    }

    #[must_use]
    pub fn with_body(mut self, text: impl Into<Vec<u8>>) -> Self {
        if let Self::Answer { body, .. } = &mut self {
            *body = text.into();
        }
        self
    }
}

impl Server {
    /// Starts a server on a free port that answers 200 to every request.
    pub async fn start() -> Self {
        Self::listen("127.0.0.1:0".parse().expect("an address"), None).await
    }

    /// Starts a server on the address of an earlier one.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::listen(address, None).await
    }

    /// Starts a server that speaks TLS.
    pub async fn start_tls(config: rustls::ServerConfig) -> Self {
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Self::listen("127.0.0.1:0".parse().expect("an address"), Some(acceptor)).await
    }

    async fn listen(address: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address).await.expect("the address is free");
        let address = listener.local_addr().expect("a socket has an address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(ServerState::default());
        let accepting = tokio::spawn(accept(listener, tls, Arc::clone(&shared)));
        Self { address, scheme, shared, accepting }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.scheme, self.address)
    }

    /// Sets the behaviour for later requests.
    pub fn behave(&self, behaviour: impl Fn(&Received) -> Reply + Send + Sync + 'static) {
        *lock(&self.shared.behaviour) = Some(Arc::new(Box::new(behaviour)));
    }

    /// Returns every request so far, in the order of arrival.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// Removes and returns the requests so far.
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut lock(&self.shared.received))
    }

    /// Waits until there have been `count` requests since the last [`Self::take`].
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        let what = format!("{count} requests");
        until(&what, async || Some(self.received()).filter(|received| received.len() >= count)).await
    }

    /// Returns the maximum of concurrent requests.
    pub fn most_at_once(&self) -> usize {
        lock(&self.shared.busy).1
    }

    /// Returns the number of accepted connections.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// Returns the number of requests in flight.
    pub fn under_way(&self) -> usize {
        lock(&self.shared.busy).0
    }

    /// Delays all answers until the guard is dropped.
    pub async fn hold(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.shared.gate.write().await
    }

    /// Closes the server, so that its address refuses connections; returns the address.
    pub async fn close(self) -> SocketAddr {
        let address = self.address;
        self.accepting.abort();
        let refuses = async || TcpStream::connect(address).await.is_err().then_some(());
        until("the port to be closed", refuses).await;
        address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Accepts connections until aborted, which closes them.
async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<ServerState>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        shared.connections.fetch_add(1, Ordering::Relaxed);
        connections.spawn(async move {
            match tls {
                None => serve(stream, shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, shared).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, shared: Arc<ServerState>) {
    let service = service_fn(move |request| answer(request, Arc::clone(&shared)));
    // An error means that the client has disconnected, or that the reply breaks off.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Counts a request while it is in flight.
struct Busy(Arc<ServerState>);

impl Busy {
    fn begin(shared: &Arc<ServerState>) -> Self {
        let mut busy = lock(&shared.busy);
        busy.0 += 1;
        busy.1 = busy.1.max(busy.0);
        Self(Arc::clone(shared))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        lock(&self.0.busy).0 -= 1;
    }
}

async fn answer(
    request: Request<hyper::body::Incoming>,
    shared: Arc<ServerState>,
) -> Result<Response<Body>, std::io::Error> {
    let _busy = Busy::begin(&shared);
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(Body::new(body), usize::MAX).await.map_err(std::io::Error::other)?;
    let headers = head.headers.iter().map(|(name, value)| {
        (name.as_str().to_owned(), String::from_utf8_lossy(value.as_bytes()).into_owned())
    });
    let received = Received {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        headers: headers.collect(),
        body: body.to_vec(),
        at: Instant::now(),
    };
    let behaviour = lock(&shared.behaviour).clone();
    let reply = behaviour.map_or_else(|| Reply::status(200), |behaviour| behaviour(&received));
    lock(&shared.received).push(received);
    drop(shared.gate.read().await);
    match reply {
        Reply::Hang => std::future::pending::<Result<Response<Body>, std::io::Error>>().await,
        Reply::BreakOff => Err(std::io::Error::other("the connection is broken off")),
        Reply::Answer { status, headers, body } => {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            let body = Body::from(Bytes::from(body));
            Ok(response.body(body).expect("the reply is well-formed"))
        }
    }
}
