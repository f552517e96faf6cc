//! A proxy between one operator and the API server: it notes calls, and disturbs the write of a chosen number. Leases
//! and Events, which belong to no pipeline, are no writes here.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use kube::Client;
use tokio::sync::Notify;

/// The largest body that passes, in bytes.
const BODY_BYTES_MAX: usize = 16 << 20;

/// A fault of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The caller dies before the write is sent.
    CrashBefore,
    /// The write is done, and the caller dies before the answer.
    CrashAfter,
    /// The write is refused because of a conflicting write.
    Conflict,
    /// The write fails.
    ServerError,
    /// The write is done, and the connection ends without an answer.
    LostAnswer,
    /// The write is done, and each later read is answered once with the object before the write.
    StaleReads,
}

impl Fault {
    /// Every fault.
    pub const ALL: [Self; 6] = [
        Self::CrashBefore,
        Self::CrashAfter,
        Self::Conflict,
        Self::ServerError,
        Self::LostAnswer,
        Self::StaleReads,
    ];
}

/// A running proxy, which ends on drop.
pub struct Proxy {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    upstream: Client,
    state: Mutex<Calls>,
    /// Notified when the caller has to die.
    crash: Notify,
}

/// A call of the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiCall {
    pub method: Method,
    pub path: String,
    /// Whether it is a watch, which goes on.
    pub is_watch: bool,
}

impl ApiCall {
    /// Whether it is about the Lease by which operators agree.
    pub fn is_of_lease(&self) -> bool {
        self.path.contains("/coordination.k8s.io/")
    }

    /// Whether it writes an object of a pipeline.
    fn is_write(&self) -> bool {
        self.method != Method::GET && !self.is_of_lease() && !self.path.contains("/events.k8s.io/")
    }
}

#[derive(Default)]
struct Calls {
    calls: Vec<ApiCall>,
    /// The number of the write to disturb, from 1.
    fault: Option<(usize, Fault)>,
    /// Answers to reads by path.
    answers: HashMap<String, Bytes>,
    /// Answers to repeat once.
    stale: HashMap<String, Bytes>,
    /// Whether no call passes any more.
    dead: bool,
}

impl Proxy {
    /// Starts a proxy for the server of this client.
    pub async fn start(upstream: Client) -> Self {
        let shared = Arc::new(Shared { upstream, state: Mutex::default(), crash: Notify::new() });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let router = axum::Router::new().fallback(pass).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serving never ends by itself");
        });
        Self { address, shared, task }
    }

    /// Returns the proxy's URL, in place of an API server's.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Restarts the counts, and disturbs the write of this number, if given.
    pub fn reset(&self, fault: Option<(usize, Fault)>) {
        *self.lock() = Calls { fault, ..Calls::default() };
    }

    /// Returns all calls since the last [`Self::reset`].
    pub fn calls(&self) -> Vec<ApiCall> {
        self.lock().calls.clone()
    }

    /// Returns the writes since the last [`Self::reset`]: method and path.
    pub fn writes(&self) -> Vec<String> {
        let calls = self.lock();
        let writes = calls.calls.iter().filter(|call| call.is_write());
        writes.map(|ApiCall { method, path, .. }| format!("{method} {path}")).collect()
    }

    /// Returns the number of reads since the last [`Self::reset`], including watches.
    pub fn reads(&self) -> usize {
        self.lock().calls.iter().filter(|call| call.method == Method::GET).count()
    }

    /// Waits until the caller has to die.
    pub async fn crash(&self) {
        self.shared.crash.notified().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.shared.lock()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call, and returns its fault.
    fn note(&self, call: ApiCall) -> Option<Fault> {
        let mut calls = self.lock();
        if calls.dead {
            return Some(Fault::CrashBefore);
        }
        let is_write = call.is_write();
        calls.calls.push(call);
        let (number, fault) = calls.fault.filter(|_| is_write)?;
        (calls.calls.iter().filter(|call| call.is_write()).count() == number).then_some(fault)
    }

    /// Repeats each answer to a read so far once more.
    fn remember_answers(&self) {
        let mut calls = self.lock();
        calls.stale = calls.answers.clone();
    }

    async fn forward(&self, request: Request) -> Response {
        let (mut parts, body) = request.into_parts();
        let body = axum::body::to_bytes(body, BODY_BYTES_MAX).await.expect("a request is small");
        parts.headers.remove(header::HOST);
        parts.headers.remove(header::AUTHORIZATION);
        parts.headers.remove(header::CONTENT_LENGTH);
        let request = axum::http::Request::from_parts(parts, kube::client::Body::from(body));
        match self.upstream.send(request).await {
            Ok(response) => response.map(Body::new),
            Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
        }
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().to_string();
    let method = request.method().clone();
    let is_watch = path.contains("watch=");
    let call = ApiCall { method: method.clone(), path: request.uri().path().to_owned(), is_watch };
    let fault = shared.note(call);
    match fault {
        Some(Fault::CrashBefore) => crash(&shared).await,
        Some(Fault::CrashAfter) => {
            shared.forward(request).await;
            crash(&shared).await
        }
        Some(Fault::Conflict) => refusal(StatusCode::CONFLICT, "Conflict"),
        Some(Fault::ServerError) => refusal(StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
        Some(Fault::LostAnswer) => {
            shared.forward(request).await;
            // A body that fails at its start closes the connection.
            let failure = std::io::Error::other("the answer is lost");
            Body::from_stream(futures::stream::iter([Err::<Bytes, _>(failure)])).into_response()
        }
        Some(Fault::StaleReads) => {
            shared.remember_answers();
            shared.forward(request).await
        }
        None if method == Method::GET && !is_watch => read(&shared, path, request).await,
        None => shared.forward(request).await,
    }
}

/// Answers a read, with the stale answer if there is one.
async fn read(shared: &Shared, path: String, request: Request) -> Response {
    let stale = shared.lock().stale.remove(&path);
    if let Some(stale) = stale {
        return ([(header::CONTENT_TYPE, "application/json")], stale).into_response();
    }
    let response = shared.forward(request).await;
    if response.status() != StatusCode::OK {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(header::TRANSFER_ENCODING);
    match axum::body::to_bytes(body, BODY_BYTES_MAX).await {
        Ok(body) => {
            shared.lock().answers.insert(path, body.clone());
            Response::from_parts(parts, Body::from(body))
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

/// Notifies that the caller has to die, and never answers.
async fn crash(shared: &Shared) -> Response {
    shared.lock().dead = true;
    shared.crash.notify_one();
    std::future::pending().await
}

/// Returns a refusal as an API server sends it.
fn refusal(status: StatusCode, reason: &str) -> Response {
    let body = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": "disturbed by the test", "reason": reason, "code": status.as_u16(),
    });
    (status, axum::Json(body)).into_response()
}
