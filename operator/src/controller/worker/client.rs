//! A client of a worker's admin address. The operator asks by the pod's address, which is in no certificate, so it
//! accepts only the very certificate that the Secret holds. The token is sent to no server that has not shown that
//! certificate.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use litejoin_crds::Plan;
use reqwest::redirect::Policy;
use reqwest::{StatusCode, header};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};

use crate::controller::observe::AdminKeys;

/// How long a worker may take to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// How long a worker waits for news before it says that there is none.
const NEWS_WAIT: Duration = Duration::from_secs(60);

/// A client of one worker.
pub(crate) struct AdminClient {
    client: reqwest::Client,
    scheme: &'static str,
    token: Option<String>,
    stranger: Arc<AtomicBool>,
}

/// Why a worker gave no answer.
pub(crate) enum AdminError {
    /// The worker does not answer, as while it starts.
    Silent(reqwest::Error),
    /// The worker and the operator don't accept each other; the message is for the status.
    Refused(String),
}

impl AdminClient {
    /// Makes a client with these keys; an error names the field that can't be used.
    pub(crate) fn new(plain: &reqwest::Client, plan: &Plan, keys: &AdminKeys) -> Result<Self, String> {
        let stranger = Arc::default();
        let (client, scheme) = match &plan.admin.serving.tls {
            None => (plain.clone(), "http"),
            Some(_) => (encrypted(keys, &stranger)?, "https"),
        };
        Ok(Self { client, scheme, token: keys.token.clone(), stranger })
    }

    /// Asks for a path of `host:port`.
    pub(crate) async fn get(&self, authority: &str, path: &str) -> Result<reqwest::Response, AdminError> {
        self.send(self.request(authority, path)).await
    }

    /// Waits until a path of `host:port` has something else than what has this `ETag`; `false` if it had not yet.
    pub(crate) async fn has_news(&self, authority: &str, path: &str, tag: &str) -> Result<bool, AdminError> {
        let request = self
            .request(authority, path)
            .header(header::IF_NONE_MATCH, tag)
            .header("prefer", format!("wait={}", NEWS_WAIT.as_secs()))
            .timeout(NEWS_WAIT + TIMEOUT);
        Ok(self.send(request).await?.status() != StatusCode::NOT_MODIFIED)
    }

    fn request(&self, authority: &str, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.get(format!("{}://{authority}{path}", self.scheme));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<reqwest::Response, AdminError> {
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(_) if self.stranger.load(Ordering::Relaxed) => {
                return Err(AdminError::Refused(format!(
                    "the worker shows another certificate than spec.admin.tls.cert names; {COMES_LATE}"
                )));
            }
            Err(error) => return Err(AdminError::Silent(error)),
        };
        if answer.status() == StatusCode::UNAUTHORIZED {
            return Err(AdminError::Refused(format!(
                "the worker does not take the token that spec.admin.auth.bearer names; {COMES_LATE}"
            )));
        }
        if answer.status().is_redirection() && answer.status() != StatusCode::NOT_MODIFIED {
            return Err(AdminError::Refused(format!(
                "what answers in the pod is no worker: it sends the operator elsewhere ({}), where that does not go",
                answer.status()
            )));
        }
        answer.error_for_status().map_err(AdminError::Silent)
    }
}

/// The reason why a changed Secret may need no remedy.
const COMES_LATE: &str = "a changed Secret comes to the pod within two minutes";

/// Makes a client for workers without TLS. It looks for no certificate authorities, because the image holds none.
pub(crate) fn plain() -> reqwest::Client {
    let client = builder().tls_certs_only([]).build();
    client.expect("a client without TLS needs nothing of the system")
}

/// The settings of all clients. Redirects are not followed: the image of a pod is its user's choice, and must not
/// choose where the operator goes from there.
fn builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().timeout(TIMEOUT).no_proxy().redirect(Policy::none())
}

/// Makes a client that talks only to servers which show the certificate of the Secret.
fn encrypted(keys: &AdminKeys, stranger: &Arc<AtomicBool>) -> Result<reqwest::Client, String> {
    let certificate = keys.certificate.as_deref().and_then(|pem| CertificateDer::from_pem_slice(pem).ok());
    let certificate = certificate.ok_or("spec.admin.tls.cert: holds no certificate in PEM form")?;
    let provider = Arc::new(ring::default_provider());
    let known = Known { certificate, stranger: Arc::clone(stranger), provider: Arc::clone(&provider) };
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring knows them all")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(known))
        .with_no_client_auth();
    let client = builder().tls_backend_preconfigured(config).build();
    client.map_err(|error| format!("spec.admin.tls.cert: {error}"))
}

/// Accepts one certificate.
#[derive(Debug)]
struct Known {
    certificate: CertificateDer<'static>,
    /// Whether a server has shown another certificate.
    stranger: Arc<AtomicBool>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Known {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        self.stranger.store(true, Ordering::Relaxed);
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
