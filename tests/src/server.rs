//! A server that the worker calls: it keeps every request that comes, answers as a test says, may hang, break off or be
//! gone, and speaks TLS where wanted.

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

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    pub method: String,
    /// Path and query; the whole URL where the client takes the server for a proxy.
    pub target: String,
    /// By names in lower case.
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
    /// Nothing, until the client gives up.
    Hang,
    /// Closes the connection.
    BreakOff,
}

type Behaviour = Box<dyn Fn(&Received) -> Reply + Send + Sync>;

#[derive(Default)]
struct ServerState {
    received: Mutex<Vec<Received>>,
    behaviour: Mutex<Option<Arc<Behaviour>>>,
    /// Requests under way now, and the most there were at once.
    busy: Mutex<(usize, usize)>,
    connections: AtomicUsize,
    /// Holds answers back while it is locked.
    gate: tokio::sync::RwLock<()>,
}

/// A server; dropping it closes it and all its connections.
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

    /// The value of a query parameter, as it came.
    pub fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.target.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// The path without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().expect("a split has a first part")
    }
}

impl Reply {
    /// An answer without a body.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Vec::new() }
    }

    /// 200 with this as its body.
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
    /// A server on a free port that answers 200 to everything.
    pub async fn start() -> Self {
        Self::listen("127.0.0.1:0".parse().expect("an address"), None).await
    }

    /// A server on the address of an earlier one.
    pub async fn start_at(address: SocketAddr) -> Self {
        Self::listen(address, None).await
    }

    /// A server that speaks TLS.
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

    /// Says what requests are answered with from now on.
    pub fn behave(&self, behaviour: impl Fn(&Received) -> Reply + Send + Sync + 'static) {
        *lock(&self.shared.behaviour) = Some(Arc::new(Box::new(behaviour)));
    }

    /// Every request so far, in the order in which they came.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// Forgets what has come so far, and returns it.
    pub fn take(&self) -> Vec<Received> {
        std::mem::take(&mut lock(&self.shared.received))
    }

    /// Waits until there have been so many requests since the last [`Self::take`].
    pub async fn wait_for(&self, count: usize) -> Vec<Received> {
        let what = format!("{count} requests");
        until(&what, async || Some(self.received()).filter(|received| received.len() >= count)).await
    }

    /// The most requests that were under way at once.
    pub fn most_at_once(&self) -> usize {
        lock(&self.shared.busy).1
    }

    /// Connections that were made so far.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// How many are under way now.
    pub fn under_way(&self) -> usize {
        lock(&self.shared.busy).0
    }

    /// Holds all answers back until the guard is dropped.
    pub async fn hold(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.shared.gate.write().await
    }

    /// Closes it; its address refuses connections from then on.
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

/// Accepts until it is aborted, and takes its connections along then.
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
    // An error means that the client has gone, or that the reply breaks off.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// Counts a request for as long as it is under way.
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
