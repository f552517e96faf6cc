//! Where credentials come from: a Secret in a cluster, the environment for files on a laptop. A credential
//! itself has no place in a document, so none can reach a ConfigMap, a status, a log or an error.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::names::SECRET_PATTERN;

/// The folder among a worker's Secrets in which an operator gathers the keys that documents name. No Secret can have its
/// name.
pub const GATHERED_FOLDER: &str = "_gathered";

/// The longest name of a gathered key, in bytes: that of any key of a Secret.
pub const GATHERED_KEY_LENGTH_MAX: usize = 253;

/// Returns the name under which a key is gathered. The name of a Secret has no two dots in a row, so that no two keys
/// have one name.
pub fn gathered_key(secret: &str, key: &str) -> String {
    format!("{secret}..{key}")
}

/// A key of a Secret in the pipeline's namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(regex(pattern = SECRET_PATTERN), length(max = 253))]
    pub name: String,
    /// Key in the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A Secret in the pipeline's namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(regex(pattern = SECRET_PATTERN), length(max = 253))]
    pub name: String,
}

/// A credential: exactly one of `secretKeyRef` and `env`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::rules::credential()))]
pub struct Credential {
    /// Key of a Secret that holds the credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
    /// Environment variable that holds the credential, such as `${API_TOKEN}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = crate::rules::variable()), length(max = 130))]
    pub env: Option<String>,
}

/// How the worker authenticates to a server: exactly one of `bearer`, `basic` and `header`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::rules::auth()))]
pub struct Auth {
    /// Token sent as `Authorization: Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bearer: Option<Credential>,
    /// User and password sent as `Authorization: Basic`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic: Option<BasicAuth>,
    /// A credential sent in a header of any name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub header: Option<HeaderAuth>,
}

/// User and password.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BasicAuth {
    /// The user.
    pub username: Credential,
    /// The password.
    pub password: Credential,
}

/// A header and the credential it carries.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderAuth {
    /// Name of the header, such as `X-Api-Key`.
    #[schemars(length(min = 1, max = 128))]
    pub name: String,
    /// Value of the header.
    pub value: Credential,
}

/// How the worker checks the server of a TLS connection, and authenticates with a certificate of its own.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientTls {
    /// Certificates (PEM) that sign the server's; the system's own where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<PemSource>,
    /// The worker's certificate (PEM), for mutual TLS; needs `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cert: Option<PemSource>,
    /// Private key (PEM) of `cert`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<PemSource>,
    /// Name that the server's certificate must carry; the host of the address where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub server_name: Option<String>,
    /// Whether to accept any certificate. For tests only.
    pub insecure_skip_verify: bool,
}

/// A PEM text: exactly one of `secretKeyRef` and `path`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = crate::rules::pem_source()))]
pub struct PemSource {
    /// Key of a Secret that holds the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<SecretKeyRef>,
    /// File that holds the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub path: Option<String>,
}

/// How the worker authenticates to Kafka.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KafkaSasl {
    /// The mechanism that the brokers want.
    pub mechanism: KafkaSaslMechanism,
    /// The user.
    pub username: Credential,
    /// The password.
    pub password: Credential,
}

/// A mechanism of SASL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KafkaSaslMechanism {
    /// The password itself, for TLS connections only.
    #[serde(rename = "PLAIN")]
    Plain,
    /// Challenge and response with SHA-256.
    #[serde(rename = "SCRAM-SHA-256")]
    ScramSha256,
    /// Challenge and response with SHA-512.
    #[serde(rename = "SCRAM-SHA-512")]
    ScramSha512,
}
