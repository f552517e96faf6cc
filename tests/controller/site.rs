//! The setup of every test here: a namespace of the shared API server, a proxy before it, and an operator for the
//! namespace. The test plays kubelet: it sets the pod's status, and runs the real worker for it.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, Node, PersistentVolumeClaim, Pod, Secret};
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams,
};
use kube::{Client, ResourceExt};
use litejoin_crds::kind::Kind;
use litejoin_tests::kubernetes::api_server::ApiServer;
use litejoin_tests::kubernetes::operator;
use litejoin_tests::kubernetes::proxy::Proxy;
use litejoin_tests::ports;
use litejoin_tests::wait::until;
use litejoin_tests::worker::{self, Launch, Worker};
use serde_json::{Value, json};

/// A namespace with its proxy and its folder.
pub(crate) struct ControllerSite {
    pub(crate) client: Client,
    pub(crate) namespace: String,
    pub(crate) proxy: Proxy,
    pub(crate) folder: worker::WorkerSite,
    pub(crate) server: Arc<ApiServer>,
}

/// Ports in the documents of a test, since all pods here share one machine.
pub(crate) struct Ports {
    pub(crate) admin: u16,
    pub(crate) ingest: u16,
    pub(crate) live: u16,
}

impl Ports {
    pub(crate) fn free() -> Self {
        let block = ports::PortBlock::free();
        let [admin, ingest, live] = [0, 1, 2].map(|number| block.number(number));
        // The ports stay reserved while the tests run.
        std::mem::forget(block);
        Self { admin, ingest, live }
    }
}

impl ControllerSite {
    pub(crate) async fn new() -> Self {
        Self::on(ApiServer::shared().await).await
    }

    /// Creates a namespace on this server.
    pub(crate) async fn on(server: Arc<ApiServer>) -> Self {
        let namespace = server.namespace(&server.client().await).await;
        Self::within(server, namespace).await
    }

    /// Works in a namespace of this server.
    pub(crate) async fn within(server: Arc<ApiServer>, namespace: String) -> Self {
        let client = server.client().await;
        let proxy = Proxy::start(server.client().await).await;
        Self { client, namespace, proxy, folder: worker::WorkerSite::new(), server }
    }

    /// Starts an operator behind the proxy.
    pub(crate) fn operator(&self) -> Worker {
        self.operator_with(&["--lease-seconds", "3"])
    }

    /// Starts an operator behind the proxy with these arguments.
    pub(crate) fn operator_with(&self, arguments: &[&str]) -> Worker {
        let kubeconfig = self.server.kubeconfig(&self.namespace, &self.proxy.url());
        operator::start(&self.folder, &kubeconfig, &self.namespace, arguments)
    }

    /// Creates a Secret, or replaces its values.
    pub(crate) async fn secret(&self, name: &str, values: &[(&str, &str)]) {
        let data: BTreeMap<&str, &str> = values.iter().copied().collect();
        let secret =
            json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": data });
        let secrets: Api<Secret> = self.api();
        let made = secrets.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(&secret)).await;
        made.expect("a Secret can be made");
    }

    /// Returns an API of one of LiteJoin's kinds.
    pub(crate) fn ours(&self, kind: Kind) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk(litejoin_crds::GROUP, litejoin_crds::VERSION, kind.as_str());
        Api::namespaced_with(self.client.clone(), &self.namespace, &ApiResource::from_gvk(&kind))
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Applies documents as `kubectl apply --server-side` does.
    pub(crate) async fn apply(&self, manifest: &str) {
        for document in documents(manifest) {
            let kind = document["kind"].as_str().and_then(Kind::from_name).expect("a kind of ours");
            let name = document["metadata"]["name"].as_str().expect("a name").to_owned();
            let applied = self
                .ours(kind)
                .patch(&name, &PatchParams::apply("test").force(), &Patch::Apply(&document))
                .await;
            applied.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    /// Waits until a document's condition has this status and reason.
    pub(crate) async fn wait_for(&self, kind: Kind, name: &str, condition: &str, status: &str, reason: &str) {
        let api = self.ours(kind);
        let what = format!("{} {name} with {condition} {status} {reason}", kind.as_str());
        let mut seen = SeenStatus::default();
        until(&what, async || {
            let object = api.get_opt(name).await.ok()??;
            seen.0 = object.data["status"].to_string();
            let found = condition_of(&object, condition)?;
            (found["status"] == status && found["reason"] == reason).then_some(())
        })
        .await;
    }

    /// Waits until a document has no such condition.
    pub(crate) async fn wait_without(&self, kind: Kind, name: &str, condition: &str) {
        until(&format!("{} {name} without {condition}", kind.as_str()), async || {
            let object = self.ours(kind).get(name).await.ok()?;
            condition_of(&object, condition).is_none().then_some(())
        })
        .await;
    }

    /// Plays kubelet for a pipeline's pod: binds the claim, runs the worker with the ConfigMap, and sets the pod
    /// ready. Returns the worker, which lives as long as the pod.
    pub(crate) async fn run_pod(&self, pipeline: &str) -> Worker {
        let launch = self.folder.run(["--watch", "--leave-out-invalid", "--secrets-dir", "secrets"]);
        self.run_pod_as(pipeline, launch).await
    }

    /// Plays kubelet as [`Self::run_pod`] does, with a worker of other arguments or variables.
    pub(crate) async fn run_pod_as(&self, pipeline: &str, launch: Launch) -> Worker {
        let pods: Api<Pod> = self.api();
        let pod = format!("{pipeline}-0");
        until("the pod", async || pods.get_opt(&pod).await.ok()?).await;
        self.bind_claim(pipeline).await;
        self.mount(pipeline).await;
        let worker = launch.start().await;
        self.set_pod(&pod, "True").await;
        worker
    }

    /// Writes the ConfigMap and Secrets to the worker's folder, as kubelet does.
    pub(crate) async fn mount(&self, pipeline: &str) {
        let sets: Api<StatefulSet> = self.api();
        let set = sets.get(pipeline).await.expect("there is a StatefulSet");
        let pod = set.spec.expect("it has a spec").template.spec.expect("so has its pod");
        let named = pod.volumes.into_iter().flatten().filter_map(|volume| volume.secret?.secret_name);
        for name in named {
            let secret: Option<Secret> = self.api().get_opt(&name).await.expect("Secrets can be read");
            let is_ours = name == format!("{pipeline}-litejoin");
            let folder = if is_ours { "_gathered" } else { &name };
            let folder = self.folder.path().join("secrets").join(folder);
            fs::create_dir_all(&folder).expect("the folder is ours");
            let data = secret.and_then(|secret| secret.data).unwrap_or_default();
            for (key, value) in &data {
                fs::write(folder.join(key), &value.0).expect("the folder is ours");
            }
            for file in fs::read_dir(&folder).expect("the folder is ours") {
                let file = file.expect("the folder is ours");
                if !data.contains_key(&*file.file_name().to_string_lossy()) {
                    fs::remove_file(file.path()).expect("the folder is ours");
                }
            }
        }
        let config: ConfigMap = self.api().get(pipeline).await.expect("there is a config");
        let text = &config.data.expect("it has data")["pipeline.yaml"];
        // In one step, as kubelet does.
        let (next, path) = (self.folder.path().join("next"), self.folder.path().join("pipeline.yaml"));
        fs::write(&next, text).expect("the folder is ours");
        fs::rename(next, path).expect("the folder is ours");
    }

    /// Sets a claim's status to bound.
    pub(crate) async fn bind_claim(&self, pipeline: &str) {
        let claims: Api<PersistentVolumeClaim> = self.api();
        let name = format!("data-{pipeline}-0");
        let claim = until("the claim", async || claims.get_opt(&name).await.ok()?).await;
        let size = &claim.spec.expect("it has a spec").resources.expect("it asks").requests.expect("it asks")
            ["storage"];
        let status = json!({ "status": { "phase": "Bound", "capacity": { "storage": size.0 } } });
        let patched = claims.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await;
        patched.expect("a claim has a status");
    }

    /// Sets a pod's status: running at this machine's address, and whether ready.
    pub(crate) async fn set_pod(&self, pod: &str, ready: &str) {
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": "127.0.0.1",
            "podIPs": [{ "ip": "127.0.0.1" }],
            "conditions": [{ "type": "Ready", "status": ready }],
        }});
        let pods: Api<Pod> = self.api();
        let patched = pods.patch_status(pod, &PatchParams::default(), &Patch::Merge(&status)).await;
        patched.expect("a pod has a status");
    }

    /// Binds a pod to a node that went silent long ago, and marks the pod for deletion as Kubernetes then does.
    /// Returns the node's name.
    pub(crate) async fn lose_node(&self, pod: &str) -> String {
        let node = format!("lost-{}", self.namespace);
        let nodes: Api<Node> = Api::all(self.client.clone());
        let silent: Node = serde_json::from_value(json!({ "metadata": { "name": node } })).expect("a Node");
        nodes.create(&PostParams::default(), &silent).await.expect("a Node can be made");
        let ready =
            json!({ "type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let status = json!({ "status": { "conditions": [ready] } });
        let patched = nodes.patch_status(&node, &PatchParams::default(), &Patch::Merge(&status)).await;
        patched.expect("it has a status");
        self.schedule(pod, &node).await;
        let pods: Api<Pod> = self.api();
        pods.delete(pod, &DeleteParams::default().grace_period(1)).await.expect("it can be deleted");
        node
    }

    /// Binds a pod to a node, as a scheduler does.
    async fn schedule(&self, pod: &str, node: &str) {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            "metadata": { "name": pod },
            "target": { "apiVersion": "v1", "kind": "Node", "name": node },
        });
        let path = format!("/api/v1/namespaces/{}/pods/{pod}/binding", self.namespace);
        let request = axum::http::Request::post(path).header("content-type", "application/json");
        let request = request.body(binding.to_string().into_bytes()).expect("a request");
        self.client.request_text(request).await.expect("a pod can be bound");
        // The API server deletes a pod at once whose node its cache doesn't know yet, whatever the grace.
        let pods: Api<Pod> = self.api();
        until("the node of the pod in the API server's cache", async || {
            let cached = pods.list(&ListParams::default().match_any()).await.ok()?;
            let bound = cached.items.iter().find(|cached| cached.name_any() == pod)?;
            bound.spec.as_ref()?.node_name.as_ref().map(|_| ())
        })
        .await;
    }
}

/// The last status that was seen, which is printed if it is waited for in vain.
#[derive(Default)]
struct SeenStatus(String);

impl Drop for SeenStatus {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the status was {}", self.0);
        }
    }
}

/// Returns the documents of a manifest.
pub(crate) fn documents(manifest: &str) -> Vec<Value> {
    use serde::Deserialize;
    let read = |document| Value::deserialize(document).expect("a manifest is YAML");
    serde_yaml::Deserializer::from_str(manifest).map(read).filter(|document| !document.is_null()).collect()
}

/// Returns a condition of a status.
pub(crate) fn condition_of(object: &DynamicObject, kind: &str) -> Option<Value> {
    let conditions = object.data["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind).cloned()
}

/// Returns the names of objects, sorted.
pub(crate) fn names<K: ResourceExt>(objects: &[K]) -> Vec<String> {
    let mut names: Vec<String> = objects.iter().map(ResourceExt::name_any).collect();
    names.sort();
    names
}
