//! The certificates that we serve with. They are read again every second, since a mounted Secret changes by links that
//! nothing tells of; new connections get the new ones, and what can't be used changes nothing.

use std::sync::Arc;

use litejoin_crds::credentials::PemSource;
use litejoin_crds::error::chain;
use litejoin_crds::serving::ServerTls;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;
use tracing::{info, warn};

use crate::credentials::{Secret, Secrets};

/// The certificate in force.
pub(super) struct Certificates {
    spec: ServerTls,
    texts: Texts,
    config: Arc<ServerConfig>,
    /// Whether the newest texts can't be used, and that was logged.
    is_refused: bool,
}

/// The PEM texts.
#[derive(PartialEq)]
struct Texts {
    cert: Secret,
    key: Secret,
    client_ca: Option<Secret>,
}

impl Certificates {
    pub(super) fn load(spec: &ServerTls, secrets: &Secrets) -> Result<Self, String> {
        let texts = Texts::read(spec, secrets)?;
        let config = texts.config()?;
        Ok(Self { spec: spec.clone(), texts, config, is_refused: false })
    }

    /// Takes up what has changed.
    pub(super) fn look(&mut self, secrets: &Secrets) {
        let read = Texts::read(&self.spec, secrets);
        if read.as_ref().is_ok_and(|texts| *texts == self.texts) {
            self.is_refused = false;
            return;
        }
        match read.and_then(|texts| Ok((texts.config()?, texts))) {
            Ok((config, texts)) => {
                info!("the certificate has changed; new connections get the new one");
                (self.config, self.texts, self.is_refused) = (config, texts, false);
            }
            Err(problem) if !self.is_refused => {
                warn!(
                    error = problem,
                    "the certificate has changed and can't be used; serving with the one before"
                );
                self.is_refused = true;
            }
            Err(_) => {}
        }
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }
}

impl Texts {
    fn read(spec: &ServerTls, secrets: &Secrets) -> Result<Self, String> {
        let read = |field: &str, source: &PemSource| {
            secrets.pem(source).map_err(|error| format!("tls.{field}: {}", chain(&error)))
        };
        Ok(Self {
            cert: read("cert", &spec.cert)?,
            key: read("key", &spec.key)?,
            client_ca: spec.client_ca.as_ref().map(|source| read("clientCa", source)).transpose()?,
        })
    }

    fn config(&self) -> Result<Arc<ServerConfig>, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("tls: {error}"))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(text) => {
                let wrong = |error: &dyn std::fmt::Display| format!("tls.clientCa: {error}");
                let mut roots = RootCertStore::empty();
                for certificate in certificates("clientCa", text)? {
                    roots.add(certificate).map_err(|error| wrong(&error))?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().map_err(|error| wrong(&error))?)
            }
        };
        let key = PrivateKeyDer::from_pem_slice(self.key.expose().as_bytes())
            .map_err(|_| "tls.key: holds no private key in PEM form".to_owned())?;
        let mut config = builder
            .with_single_cert(certificates("cert", &self.cert)?, key)
            .map_err(|error| format!("tls.cert: does not go with tls.key: {error}"))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}

fn certificates(field: &str, text: &Secret) -> Result<Vec<CertificateDer<'static>>, String> {
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.expose().as_bytes()).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(format!("tls.{field}: holds no certificate in PEM form")),
    }
}
