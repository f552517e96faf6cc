//! A proxy before a store that speaks HTTP, which records every request, so that tests can count uploads. A test can
//! cut off one worker by its proxy, while other workers still reach the store.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{Method, Response, StatusCode, header};
use axum::response::IntoResponse;
use tokio::sync::watch;

use super::{BUCKET, Store, StoreKind};
use crate::client::client_with;

/// A request that has passed the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub method: String,
    /// The path without the query: bucket or account, and the object.
    pub path: String,
    /// Bytes of the body.
    pub bytes: usize,
    /// The digest of the encryption key, if the request carries one for S3.
    pub customer_key: Option<String>,
}

impl Call {
    /// Returns whether the request has stored an object.
    pub fn is_upload(&self) -> bool {
        self.method == "PUT" || self.method == "POST"
    }
}

/// A running proxy, which ends on drop.
pub struct StoreProxy {
    address: SocketAddr,
    shared: Arc<StoreProxyState>,
    task: tokio::task::JoinHandle<()>,
}

struct StoreProxyState {
    kind: StoreKind,
    /// Host and port of the store.
    upstream: String,
    client: reqwest::Client,
    calls: Mutex<Vec<Call>>,
    is_cut: watch::Sender<bool>,
}

impl StoreProxy {
    /// Starts a proxy before a store, on the same address of this machine.
    ///
    /// # Panics
    /// If the store doesn't speak HTTP.
    pub async fn before(store: &Store) -> Self {
        let speaks_http = matches!(store.kind(), StoreKind::S3 | StoreKind::Google | StoreKind::Azure);
        assert!(speaks_http, "a {:?} store doesn't speak HTTP", store.kind());
        let client = client_with(|builder| builder.redirect(reqwest::redirect::Policy::none()).no_gzip());
        let shared = Arc::new(StoreProxyState {
            kind: store.kind(),
            upstream: store.address(),
            client,
            calls: Mutex::default(),
            is_cut: watch::Sender::default(),
        });
        let listener = tokio::net::TcpListener::bind((store.host(), 0)).await.expect("there is a free port");
        let address = listener.local_addr().expect("it is bound");
        let router = axum::Router::new().fallback(pass).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.expect("serving never ends by itself");
        });
        Self { address, shared, task }
    }

    /// Returns host and port; see [`Store::endpoint_at`].
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Delays all requests and answers until [`Self::mend`], as in a network partition.
    pub fn cut(&self) {
        self.shared.is_cut.send_replace(true);
    }

    /// Ends the partition; delayed requests and answers pass first.
    pub fn mend(&self) {
        self.shared.is_cut.send_replace(false);
    }

    /// Returns the calls since the last [`Self::take`].
    pub fn calls(&self) -> Vec<Call> {
        self.shared.lock().clone()
    }

    /// Removes and returns the calls so far.
    pub fn take(&self) -> Vec<Call> {
        std::mem::take(&mut *self.shared.lock())
    }

    /// Returns the calls that have stored an object since the last [`Self::take`].
    pub fn uploads(&self) -> Vec<Call> {
        self.calls().into_iter().filter(Call::is_upload).collect()
    }
}

impl Drop for StoreProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StoreProxyState {
    fn lock(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn passable(&self) {
        // The sender lives as long as `self`, so the wait can't fail.
        let _ = self.is_cut.subscribe().wait_for(|is_cut| !is_cut).await;
    }

    /// Sends the request to the store with unchanged headers: the signature covers the host.
    async fn forward(&self, request: Request) -> Result<Response<Body>, Box<dyn std::error::Error>> {
        let (head, body) = request.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await?;
        let mut target = head.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
        let customer_key = head.headers.get("x-amz-server-side-encryption-customer-key-md5");
        let call = Call {
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            bytes: body.len(),
            customer_key: customer_key.map(|key| key.to_str().expect("it is base64").to_owned()),
        };
        let mut headers = head.headers;
        headers.remove(header::EXPECT);
        // The emulator supports Google's XML API only for signed links under its own name, and omits the ETag.
        let is_google = self.kind == StoreKind::Google;
        let is_xml_upload =
            is_google && head.method == Method::PUT && target.starts_with(&format!("/{BUCKET}/"));
        if is_google {
            headers.remove(header::HOST);
        }
        if is_xml_upload {
            target.push_str("?X-Goog-Algorithm=any");
        }
        let mut asked = self.client.request(head.method.clone(), format!("http://{}{target}", self.upstream));
        asked = asked.headers(headers);
        if head.method != Method::GET && head.method != Method::HEAD {
            asked = asked.body(body);
        }
        self.passable().await;
        let answer = asked.send().await?;
        self.passable().await;
        self.lock().push(call);
        let mut response = Response::builder().status(answer.status());
        for (name, value) in answer.headers() {
            if name != header::TRANSFER_ENCODING && name != header::CONNECTION {
                response = response.header(name, value);
            }
        }
        if is_xml_upload {
            response = response.header(header::ETAG, "\"any\"");
        }
        Ok(response.body(Body::from_stream(answer.bytes_stream()))?)
    }
}

async fn pass(State(shared): State<Arc<StoreProxyState>>, request: Request) -> Response<Body> {
    match shared.forward(request).await {
        Ok(response) => response,
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
