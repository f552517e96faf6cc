//! Addresses that a worker serves: which clients may connect, how many, and how slow they may be. Ingest, SSE and admin
//! have the same fields.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::credentials::{Credential, PemSource};
use crate::defaults;
use crate::duration::DurationText;

/// How an address is served.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServingSpec {
    /// Credential that clients must send; health checks need none. Where absent, any client may connect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<ServerAuth>,
    /// Certificate to serve with; without it connections are not encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServerTls>,
    /// Connections at once, at least 1; more are turned away.
    #[serde(default = "default_max_connections")]
    #[schemars(range(min = 1, max = 1000000))]
    pub max_connections: u32,
    /// How long a client may take to send a request, or not take data that it is sent.
    #[serde(default = "default_client_timeout")]
    pub client_timeout: DurationText,
}

fn default_max_connections() -> u32 {
    defaults::SERVED_CONNECTIONS_MAX
}

fn default_client_timeout() -> DurationText {
    defaults::SERVED_CLIENT_TIMEOUT.into()
}

impl Default for ServingSpec {
    fn default() -> Self {
        Self {
            auth: None,
            tls: None,
            max_connections: default_max_connections(),
            client_timeout: default_client_timeout(),
        }
    }
}

/// The credential that clients must send.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerAuth {
    /// The token of `Authorization: Bearer`.
    pub bearer: Credential,
}

/// TLS of an address that the worker serves. Files and Secrets that change are taken up without a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerTls {
    /// The certificate (PEM), and those between it and the authority.
    pub cert: PemSource,
    /// Private key (PEM) of `cert`.
    pub key: PemSource,
    /// Certificates (PEM) of the authorities whose clients may connect; others may not. Health checks need one too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PemSource>,
}
