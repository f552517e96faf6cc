//! A provisioner for one node: each claim gets a folder, which grows with the claim, and is wiped after the claim's
//! deletion.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::json;

/// The provisioner's name, in the storage class `local`.
const PROVISIONER: &str = "litejoin.io/test";

/// A running provisioner, which ends on drop.
pub struct Volumes {
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Volumes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Volumes {
    /// Starts the provisioner as the cluster's default.
    pub async fn start(client: Client, folder: PathBuf) -> Self {
        let class = json!({
            "metadata": {
                "name": "local",
                "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
            },
            "provisioner": PROVISIONER,
            "allowVolumeExpansion": true,
            "volumeBindingMode": "Immediate",
        });
        let class: StorageClass = serde_json::from_value(class).expect("a storage class");
        Api::all(client.clone()).create(&PostParams::default(), &class).await.expect("it can be made");
        let task = tokio::spawn(async move {
            let claims: Api<PersistentVolumeClaim> = Api::all(client.clone());
            let events = watcher(claims, watcher::Config::default());
            let serve = events.try_for_each(async |event| {
                match event {
                    watcher::Event::Apply(claim) | watcher::Event::InitApply(claim) => {
                        provide(&client, &folder, &claim).await;
                    }
                    watcher::Event::Delete(claim) => remove(&client, &folder, &claim).await,
                    watcher::Event::Init | watcher::Event::InitDone => {}
                }
                Ok(())
            });
            // A watch ends with the API server.
            let _ = serve.await;
        });
        Self { task }
    }
}

/// Creates a claim's volume, or grows it.
async fn provide(client: &Client, folder: &Path, claim: &PersistentVolumeClaim) {
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let (spec, status) = (claim.spec.clone().unwrap_or_default(), claim.status.clone().unwrap_or_default());
    let requests = spec.resources.and_then(|resources| resources.requests).unwrap_or_default();
    let Some(size) = requests.get("storage") else { return };
    let name = format!("pvc-{}", claim.uid().unwrap_or_default());
    match (&spec.volume_name, status.capacity.as_ref().and_then(|capacity| capacity.get("storage"))) {
        (None, _) => {
            let path = folder.join(&name);
            fs::create_dir_all(&path).expect("the folder is ours");
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).expect("the folder is ours");
            let volume = json!({
                "metadata": { "name": name },
                "spec": {
                    "capacity": { "storage": size },
                    "accessModes": spec.access_modes,
                    "storageClassName": spec.storage_class_name,
                    "persistentVolumeReclaimPolicy": "Retain",
                    "claimRef": {
                        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                        "namespace": claim.namespace(), "name": claim.name_any(), "uid": claim.uid(),
                    },
                    "hostPath": { "path": path, "type": "Directory" },
                },
            });
            let volume: PersistentVolume = serde_json::from_value(volume).expect("a volume");
            // An earlier event of the claim may have created the volume.
            let _ = volumes.create(&PostParams::default(), &volume).await;
        }
        (Some(volume), Some(has)) if has != size => {
            let capacity = json!({ "capacity": { "storage": size } });
            let grown = json!({ "spec": capacity });
            let _ = volumes.patch(volume, &PatchParams::default(), &Patch::Merge(&grown)).await;
            let claims: Api<PersistentVolumeClaim> =
                Api::namespaced(client.clone(), &claim.namespace().unwrap_or_default());
            let status = json!({ "status": { "capacity": { "storage": size }, "conditions": null } });
            let _ =
                claims.patch_status(&claim.name_any(), &PatchParams::default(), &Patch::Merge(&status)).await;
        }
        _ => {}
    }
}

async fn remove(client: &Client, folder: &Path, claim: &PersistentVolumeClaim) {
    let name = format!("pvc-{}", claim.uid().unwrap_or_default());
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let _ = volumes.delete(&name, &DeleteParams::default()).await;
    let _ = fs::remove_dir_all(folder.join(name));
}
