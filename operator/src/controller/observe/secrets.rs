//! The Secrets that documents name. Their values are held for one reconcile and appear in no log and no error.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join_all;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::Api;
use litejoin_crds::PipelineSpec;
use litejoin_crds::credentials::SecretKeyRef;
use litejoin_crds::names::is_secret;
use serde_json::Value;

use crate::error::{Doing, Error};

/// The token and the certificate by which the operator and a worker know each other. There is no `Debug`, so they can't
/// get into a log.
#[derive(Default)]
pub(crate) struct AdminKeys {
    pub(crate) token: Option<String>,
    /// The worker's own certificate, as PEM.
    pub(crate) certificate: Option<Vec<u8>>,
}

impl AdminKeys {
    /// Takes the keys that a spec names out of Secrets that were read.
    pub(crate) fn of<'a>(spec: &PipelineSpec, value: impl Fn(&SecretKeyRef) -> Option<&'a [u8]>) -> Self {
        let serving = &spec.admin.serving;
        let token = serving.auth.as_ref().and_then(|auth| auth.bearer.secret_key_ref.as_ref());
        let certificate = serving.tls.as_ref().and_then(|tls| tls.cert.secret_key_ref.as_ref());
        // The worker reads a token without the line end that editors add, so it is dropped here too.
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches(['\r', '\n']).to_owned();
        Self {
            token: token.and_then(&value).map(text),
            certificate: certificate.and_then(&value).map(<[u8]>::to_vec),
        }
    }
}

/// The values of a Secret by key.
type SecretData = BTreeMap<String, ByteString>;

/// The Secrets that documents name, for one reconcile. There is no `Debug`, so they can't get into a log.
#[derive(Default)]
pub(crate) struct SecretValues(BTreeMap<String, Option<SecretData>>);

impl SecretValues {
    /// Reads the Secrets of these names; `None` where the operator may not.
    pub(super) async fn read(
        client: &Client,
        namespace: &str,
        names: BTreeSet<String>,
    ) -> Result<Option<Self>, Error> {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let reads = names.into_iter().map(|name| {
            let api = &api;
            async move {
                let secret = match is_secret(&name) {
                    true => api.get_opt(&name).await,
                    false => Ok(None),
                };
                match secret {
                    Err(kube::Error::Api(status)) if status.code == 403 => Ok(None),
                    secret => {
                        let secret = secret.doing(|| format!("read Secret {namespace}/{name}"))?;
                        Ok(Some((name, secret.map(|secret| secret.data.unwrap_or_default()))))
                    }
                }
            }
        });
        Ok(try_join_all(reads).await?.into_iter().collect::<Option<_>>().map(Self))
    }

    #[cfg(test)]
    pub(crate) fn of(secret: &str, key: &str, value: &str) -> Self {
        let data = BTreeMap::from([(key.to_owned(), ByteString(value.as_bytes().to_vec()))]);
        Self(BTreeMap::from([(secret.to_owned(), Some(data))]))
    }

    /// The names of the keys of each Secret; `None` where there is no such Secret.
    pub(super) fn keys(&self) -> BTreeMap<String, Option<BTreeSet<String>>> {
        let keys = |data: &SecretData| data.keys().cloned().collect();
        self.0.iter().map(|(secret, data)| (secret.clone(), data.as_ref().map(keys))).collect()
    }

    pub(super) fn value(&self, secret: &str, key: &str) -> Option<&[u8]> {
        self.0.get(secret)?.as_ref()?.get(key).map(|value| value.0.as_slice())
    }

    /// A value as the `data` of a Secret has it.
    pub(crate) fn base64(&self, secret: &str, key: &str) -> Option<Value> {
        let value = self.0.get(secret)?.as_ref()?.get(key)?;
        Some(serde_json::to_value(value).expect("bytes are plain data"))
    }
}

/// The Secrets that a spec names, each with its key; `None` where the whole Secret is meant.
pub(crate) fn secret_keys(spec: &Value) -> Vec<(String, Option<String>)> {
    let mut found = Vec::new();
    let reference = |value: &Value| {
        let key = value["key"].as_str().map(str::to_owned);
        value["name"].as_str().map(|name| (name.to_owned(), key))
    };
    match spec {
        Value::Object(map) => {
            for (field, value) in map {
                match field.as_str() {
                    "secretKeyRef" | "credentialsSecretRef" => found.extend(reference(value)),
                    // kubelet resolves the Secrets that a user adds to the pod.
                    "podTemplate" => {}
                    _ => found.extend(secret_keys(value)),
                }
            }
        }
        Value::Array(items) => items.iter().for_each(|item| found.extend(secret_keys(item))),
        _ => {}
    }
    found
}
