//! How credentials reach the pod. The keys that documents name are gathered in one Secret of ours, which every pod
//! mounts: kubelet keeps its files up to date, so that none that comes, changes or goes needs another pod. The Secret of
//! the replica's store is mounted as it is, since Litestream takes all of it.
//!
//! Pods of earlier operators mount each Secret. They go on so until something else makes another pod.

use std::collections::BTreeSet;

use kube::api::DynamicObject;
use litejoin_crds::Plan;
use litejoin_crds::credentials::{GATHERED_FOLDER, gathered_key};
use serde_json::{Map, Value, json};

use crate::controller::names;
use crate::controller::observe::Observed;
use crate::controller::slot::Slot;
use crate::controller::validate::Config;

/// The folder where Secrets are mounted: a folder for each, and in it a file for each key.
const FOLDER: &str = "/etc/litejoin/secrets";
/// The volume of the gathered keys.
const GATHERED: &str = "secrets";
/// The volume of the credentials for the replica's store.
const CREDENTIALS: &str = "credentials";

/// The volumes that a pod has for its credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SecretVolumes {
    /// One of all keys, and one of this Secret.
    Gathered(Option<String>),
    /// One of each Secret.
    Each(BTreeSet<String>),
}

impl SecretVolumes {
    pub(super) fn gathered(plan: &Plan) -> Self {
        Self::Gathered(
            plan.replication.as_ref().and_then(|replication| replication.credentials_secret.clone()),
        )
    }

    pub(super) fn each(config: &Config) -> Self {
        Self::Each(config.secrets.clone())
    }

    /// Whether a StatefulSet has the volume of gathered keys.
    pub(super) fn are_gathered_in(live: &DynamicObject) -> bool {
        let volumes = live.data["spec"]["template"]["spec"]["volumes"].as_array();
        volumes.into_iter().flatten().any(|volume| volume["name"] == GATHERED)
    }

    /// The variable that tells the worker where they are.
    pub(super) fn variable(&self) -> Option<Value> {
        let is_none = matches!(self, Self::Each(secrets) if secrets.is_empty());
        (!is_none).then(|| json!({ "name": "LITEJOIN_SECRETS_DIR", "value": FOLDER }))
    }

    /// The volumes. A Secret that is missing must not keep a pod from starting; who needs it says so in its status.
    pub(super) fn volumes(&self, pipeline: &str) -> Vec<Value> {
        let volume = |(name, secret, _): (String, String, String)| json!({ "name": name, "secret": { "secretName": secret, "optional": true } });
        self.all(pipeline).into_iter().map(volume).collect()
    }

    /// Their mounts in the worker's container.
    pub(super) fn mounts(&self, pipeline: &str) -> Vec<Value> {
        let mount = |(name, _, folder): (String, String, String)| json!({ "name": name, "mountPath": format!("{FOLDER}/{folder}"), "readOnly": true });
        self.all(pipeline).into_iter().map(mount).collect()
    }

    /// The volume of the credentials for the replica's store.
    pub(super) fn of_credentials(&self, secret: &str) -> String {
        match self {
            Self::Gathered(_) => CREDENTIALS.to_owned(),
            Self::Each(secrets) => {
                numbered(secrets.iter().position(|name| name == secret).unwrap_or_default())
            }
        }
    }

    /// Each volume: its name, its Secret, and its folder.
    fn all(&self, pipeline: &str) -> Vec<(String, String, String)> {
        match self {
            Self::Gathered(credentials) => {
                let ours =
                    (GATHERED.to_owned(), names::gathered_secret(pipeline), GATHERED_FOLDER.to_owned());
                let credentials = credentials.iter();
                let theirs =
                    credentials.map(|secret| (CREDENTIALS.to_owned(), secret.clone(), secret.clone()));
                std::iter::once(ours).chain(theirs).collect()
            }
            Self::Each(secrets) => {
                let secrets = secrets.iter().enumerate();
                secrets.map(|(index, secret)| (numbered(index), secret.clone(), secret.clone())).collect()
            }
        }
    }
}

/// The name of a Secret's volume. It is numbered, since the name of a Secret may be longer than that of a volume.
fn numbered(index: usize) -> String {
    format!("secret-{index}")
}

/// The Secret of gathered keys; `None` where none is named. A key whose Secret is gone for the moment keeps its value.
pub(super) fn gather(config: &Config, observed: &Observed) -> Option<Value> {
    let kept = observed.built.get(&Slot::Secret).map(|live| &live.data["data"]);
    let mut data = Map::new();
    for (secret, key) in &config.secret_keys {
        let name = gathered_key(secret, key);
        let value = observed.secret_values.base64(secret, key);
        if let Some(value) = value.or_else(|| kept.and_then(|kept| kept.get(&name).cloned())) {
            data.insert(name, value);
        }
    }
    (!data.is_empty()).then(|| json!({ "type": "Opaque", "data": data }))
}
