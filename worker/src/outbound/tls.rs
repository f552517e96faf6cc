//! TLS of connections that we open: whose certificates we trust, which name they must carry, and our own.

use std::sync::Arc;

use litejoin_crds::credentials::{ClientTls, PemSource};
use litejoin_crds::error::chain;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::OutboundError;
use crate::credentials::Secrets;

/// The configuration of a client.
pub(super) fn client_config(tls: &ClientTls, secrets: &Secrets) -> Result<ClientConfig, OutboundError> {
    let provider = Arc::new(ring::default_provider());
    let trusted: Arc<dyn ServerCertVerifier> = match &tls.ca {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates("ca", ca, secrets)? {
                roots.add(certificate).map_err(|error| wrong("ca", error))?;
            }
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            verifier.build().map_err(|error| wrong("ca", error))?
        }
        None => {
            let verifier = rustls_platform_verifier::Verifier::new(Arc::clone(&provider));
            Arc::new(verifier.map_err(|error| wrong("ca", error))?)
        }
    };
    let name = match &tls.server_name {
        Some(name) => Some(ServerName::try_from(name.clone()).map_err(|error| wrong("serverName", error))?),
        None => None,
    };
    let verifier =
        Verifier { trusted, name, provider: Arc::clone(&provider), accepts_any: tls.insecure_skip_verify };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong("ca", error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates("cert", cert, secrets)?;
            let text =
                secrets.pem(key).map_err(|source| OutboundError::Credential { field: "tls.key", source })?;
            let key = PrivateKeyDer::from_pem_slice(text.expose().as_bytes())
                .map_err(|error| wrong("key", error))?;
            builder.with_client_auth_cert(chain, key).map_err(|error| wrong("cert", error))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn wrong(field: &'static str, error: impl std::fmt::Display) -> OutboundError {
    OutboundError::Tls { field, problem: error.to_string() }
}

fn certificates(
    field: &'static str,
    source: &PemSource,
    secrets: &Secrets,
) -> Result<Vec<CertificateDer<'static>>, OutboundError> {
    let text = secrets.pem(source).map_err(|error| wrong(field, chain(&error)))?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.expose().as_bytes()).collect();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(wrong(field, "holds no certificate in PEM form")),
        Err(error) => Err(wrong(field, error)),
    }
}

/// Checks a server's certificate against a name of our choice, or (for tests) not at all.
#[derive(Debug)]
struct Verifier {
    trusted: Arc<dyn ServerCertVerifier>,
    name: Option<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
    accepts_any: bool,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.accepts_any {
            return Ok(ServerCertVerified::assertion());
        }
        let name = self.name.as_ref().unwrap_or(server_name);
        self.trusted.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
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
