//! Upgrades of the operator: this version takes over what the API server of an earlier one had stored
//! (`tests/cases/earlier`), while a worker is under load. No pod is made anew, no object is written, every document
//! stays valid, and the worker's image changes only where its owner says so.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, PersistentVolumeClaim, Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use litejoin_crds::kind::{DATA_ANNOTATION, Kind};
use litejoin_tests::earlier::{self, EarlierVersion};
use litejoin_tests::ingest::Ingest;
use litejoin_tests::kubernetes::api_server::{ApiServer, install_definition};
use litejoin_tests::kubernetes::operator;
use litejoin_tests::kubernetes::programs::program;
use litejoin_tests::ports::PortBlock;
use litejoin_tests::programs::{repository, run};
use litejoin_tests::wait::until;
use litejoin_tests::worker::Worker;
use serde_json::{Value, json};

use crate::fields::pod_monitors;
use crate::site::{ControllerSite, condition_of, documents, names};

/// The namespace of the kept objects.
const NAMESPACE: &str = "earlier";

/// The first of the ports of the kept pipeline that runs.
const PORTS: u16 = 32_096;

/// The archive of what an API server had stored.
const STORED: &str = "stored.tar.gz";

/// The archive of the manifests of a version.
const SHIPPED: &str = "shipped.tar.gz";

/// The object with the documents of the pipeline that runs.
const CONFIG: &str = "ConfigMap orders";

/// The image of workers that the operator of the upgrade brings along.
const NEXT_IMAGE: &str = "litejoin:next";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_restarts_and_writes_nothing() {
    for version in EarlierVersion::all() {
        upgrade(&version).await;
    }
}

async fn upgrade(version: &EarlierVersion) {
    eprintln!("from {}", version.name());
    let _ports = PortBlock::kept(PORTS).await;
    let stored = version.unpacked(STORED);
    let site = on_server(ApiServer::on_kept(stored.path()).await).await;
    // An upgrade leaves the earlier worker in its pod. Without its program, today's stands in for it.
    let worker = match version.programs() {
        Some(programs) => start_worker(&site, &programs.join("litejoin")).await,
        None => site.run_pod("orders").await,
    };
    let load = SteadyLoad::start(worker.ingest());
    let (pipelines, before) = (all_names(&site, Kind::Pipeline).await, objects(&site).await);
    let documents = all_documents(&site).await;
    assert!(pipelines.contains(&"orders".to_owned()) && before.contains_key("StatefulSet orders"));

    apply_manifest(&site, &repository().join("charts/litejoin.yaml"));
    let upgraded = all_documents(&site).await;
    let keys = |documents: &BTreeMap<String, DynamicObject>| documents.keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&documents), keys(&upgraded), "every document can be read");
    for (name, document) in &upgraded {
        assert_eq!(
            documents[name].data["spec"], document.data["spec"],
            "{name}: a definition changes no document"
        );
        may_be_edited(&site, name, document).await;
    }

    let arguments = ["--lease-seconds", "3", "--worker-image", NEXT_IMAGE];
    site.proxy.reset(None);
    let first = site.operator_with(&arguments);
    all_are_read(&site, &pipelines).await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    // The only worker that runs is told that there is data, which is no other config.
    let noted = until("the claim of the data to be noted", async || {
        let config = objects(&site).await.remove(CONFIG)?;
        config["data"]["pipeline.yaml"].as_str()?.contains(DATA_ANNOTATION).then_some(config)
    })
    .await;
    first.stop().await;
    let mut writes = site.proxy.writes();
    eprintln!("{} writes", writes.len());
    writes.retain(|write| !write.ends_with("/status") && !write.ends_with("/configmaps/orders"));
    assert_eq!(writes, Vec::<String>::new(), "an upgrade writes statuses and nothing else");
    let mut expected = before.clone();
    expected.insert(CONFIG.to_owned(), noted);
    same(&expected, &objects(&site).await);

    site.proxy.reset(None);
    let second = site.operator_with(&arguments);
    all_are_read(&site, &pipelines).await;
    second.stop().await;
    assert_eq!(site.proxy.writes(), Vec::<String>::new(), "the second look finds nothing to write");

    if version.programs().is_none() {
        site.mount("orders").await;
        assert_eq!(worker.reloaded(1).await["lastReload"]["outcome"], "unchanged");
    }
    let (acknowledged, epoch) = load.stop().await;
    let (_, results) = worker.snapshot("live", "enriched", epoch).await;
    let lost: Vec<_> = (0..acknowledged).map(key).filter(|key| !holds(&results, key)).collect();
    assert!(acknowledged > 0 && lost.is_empty(), "{lost:?} of {acknowledged} are lost");

    let operator = site.operator_with(&arguments);
    an_image_is_asked_for(&site, &before).await;
    operator.stop().await;
    worker.stop().await;
}

/// The namespace of the kept objects on this server, with PodMonitors.
async fn on_server(server: ApiServer) -> ControllerSite {
    let definition = run(&mut Command::new(repository().join("tests/kubernetes/pod-monitors")));
    install_definition(&server.client().await, Path::new(definition.trim())).await;
    ControllerSite::within(Arc::new(server), NAMESPACE.to_owned()).await
}

/// Applies a manifest as README says.
fn apply_manifest(site: &ControllerSite, manifest: &Path) {
    let kubeconfig = site.server.kubeconfig("kubectl", &site.server.url());
    let mut kubectl = Command::new(program("kubectl"));
    kubectl.env("KUBECONFIG", kubeconfig).args(["apply", "--server-side", "-f"]);
    run(kubectl.arg(manifest));
}

/// Owners that ask for another image get it, each for its own pipeline.
async fn an_image_is_asked_for(site: &ControllerSite, before: &BTreeMap<String, Value>) {
    for (pipeline, spec, image) in [
        ("orders", json!({ "image": "litejoin:asked-for" }), "litejoin:asked-for"),
        ("storage", json!({ "restartNonce": "now" }), NEXT_IMAGE),
    ] {
        let patch = Patch::Merge(json!({ "spec": spec }));
        let patched = site.ours(Kind::Pipeline).patch(pipeline, &PatchParams::default(), &patch).await;
        patched.expect("a Pipeline can be edited");
        let sets: Api<StatefulSet> = site.api();
        until(&format!("the image {image}"), async || {
            let set = sets.get(pipeline).await.ok()?;
            let pod = set.spec?.template.spec?;
            (pod.containers[0].image.as_deref() == Some(image)).then_some(())
        })
        .await;
    }
    let of_others = |objects: &BTreeMap<String, Value>| {
        let mut others = objects.clone();
        others.retain(|name, _| !["orders", "storage"].iter().any(|pipeline| name.contains(pipeline)));
        others
    };
    same(&of_others(before), &of_others(&objects(site).await));
}

/// Checks that the server takes a document as it is, and with another annotation.
async fn may_be_edited(site: &ControllerSite, name: &str, document: &DynamicObject) {
    let (kind, name) = name.split_once(' ').expect("a kind and a name");
    let api = site.ours(Kind::from_name(kind).expect("a kind of ours"));
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let replaced = api.replace(name, &dry_run, document).await;
    replaced.unwrap_or_else(|error| panic!("{kind} {name} as it is: {error}"));
    let note = Patch::Merge(json!({ "metadata": { "annotations": { "note": "nothing to us" } } }));
    let edited = api.patch(name, &PatchParams { dry_run: true, ..PatchParams::default() }, &note).await;
    edited.unwrap_or_else(|error| panic!("{kind} {name}: {error}"));
}

/// Waits until an operator has read each Pipeline since the proxy's last reset. It ends what it has begun.
async fn all_are_read(site: &ControllerSite, pipelines: &[String]) {
    until("every Pipeline to be read", async || {
        let calls = site.proxy.calls();
        let is_read =
            |name: &String| calls.iter().any(|call| call.path.ends_with(&format!("/pipelines/{name}")));
        pipelines.iter().all(is_read).then_some(())
    })
    .await;
}

async fn all_names(site: &ControllerSite, kind: Kind) -> Vec<String> {
    names(&site.ours(kind).list(&ListParams::default()).await.expect("it can be listed").items)
}

/// The documents of all kinds by kind and name.
async fn all_documents(site: &ControllerSite) -> BTreeMap<String, DynamicObject> {
    let mut all = BTreeMap::new();
    for kind in Kind::ALL {
        let listed = site.ours(kind).list(&ListParams::default()).await.expect("they can be listed");
        let ours = site.ours(kind);
        for name in names(&listed.items) {
            let document = ours.get(&name).await.expect("it can be read");
            all.insert(format!("{} {name}", kind.as_str()), document);
        }
    }
    all
}

/// The objects that an operator has built, and what Kubernetes has made of them, without their statuses.
async fn objects(site: &ControllerSite) -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    for resource in [
        ApiResource::erase::<ServiceAccount>(&()),
        ApiResource::erase::<ConfigMap>(&()),
        ApiResource::erase::<Service>(&()),
        ApiResource::erase::<NetworkPolicy>(&()),
        ApiResource::erase::<StatefulSet>(&()),
        ApiResource::erase::<CronJob>(&()),
        ApiResource::erase::<PersistentVolumeClaim>(&()),
        ApiResource::erase::<Pod>(&()),
        pod_monitors(),
    ] {
        let api: Api<DynamicObject> = Api::namespaced_with(site.client.clone(), &site.namespace, &resource);
        for object in api.list(&ListParams::default()).await.expect("they can be listed").items {
            let metadata = &object.metadata;
            let value = json!({
                "uid": metadata.uid, "generation": metadata.generation, "labels": metadata.labels,
                "annotations": metadata.annotations, "owners": metadata.owner_references,
                "data": object.data["data"], "spec": object.data["spec"],
            });
            all.insert(format!("{} {}", resource.kind, object.name_any()), value);
        }
    }
    all
}

/// Compares objects; shows only the fields that differ.
fn same(before: &BTreeMap<String, Value>, after: &BTreeMap<String, Value>) {
    let mut differences = Vec::new();
    for name in before.keys().chain(after.keys().filter(|name| !before.contains_key(*name))) {
        let missing = Value::Null;
        let (one, other) = (before.get(name).unwrap_or(&missing), after.get(name).unwrap_or(&missing));
        differ(one, other, name, &mut differences);
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn differ(before: &Value, after: &Value, at: &str, differences: &mut Vec<String>) {
    match (before, after) {
        (Value::Object(one), Value::Object(other)) => {
            for field in one.keys().chain(other.keys().filter(|field| !one.contains_key(*field))) {
                differ(&before[field], &after[field], &format!("{at}.{field}"), differences);
            }
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            for (index, (one, other)) in one.iter().zip(other).enumerate() {
                differ(one, other, &format!("{at}[{index}]"), differences);
            }
        }
        (one, other) if one == other => {}
        (one, other) => differences.push(format!("{at}: {one} has become {other}")),
    }
}

/// Messages that are sent one after the other until the stop.
struct SteadyLoad {
    stopping: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(u64, u64)>,
}

impl SteadyLoad {
    fn start(ingest: Ingest) -> Self {
        let stopping = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&stopping);
        let task = tokio::spawn(async move {
            let (mut sent, mut epoch) = (0, 0);
            while !asked.load(Ordering::Relaxed) {
                epoch = ingest.put("orders", &key(sent), json!({ "n": sent })).await;
                sent += 1;
            }
            (sent, epoch)
        });
        Self { stopping, task }
    }

    /// Ends the load; returns how many messages were acknowledged, and the epoch of the last.
    async fn stop(self) -> (u64, u64) {
        self.stopping.store(true, Ordering::Relaxed);
        self.task.await.expect("every message was taken")
    }
}

fn key(number: u64) -> String {
    format!("o{number}")
}

fn holds(results: &litejoin_tests::results::Results, key: &str) -> bool {
    results.rows.contains_key(&("enriched".to_owned(), json!(key).to_string()))
}

/// Kinds that a version had and did not run, so that no document of theirs was in use.
const NOT_RUN: [(&str, Kind); 1] = [("d070a06", Kind::Window)];

#[test]
fn definitions_keep_what_stored_documents_say() {
    let mut complaints = Vec::new();
    for version in EarlierVersion::all() {
        let shipped = version.unpacked(SHIPPED);
        let path = shipped.path().join("charts/litejoin.yaml");
        let manifest = std::fs::read_to_string(path).expect("it was shipped");
        for kind in Kind::ALL.into_iter().filter(|kind| !NOT_RUN.contains(&(version.name(), *kind))) {
            let name = format!("{}.{}", kind.plural(), litejoin_crds::GROUP);
            let definition =
                documents(&manifest).into_iter().find(|document| document["metadata"]["name"] == name);
            let definition =
                definition.unwrap_or_else(|| panic!("{}: no definition of {name}", version.name()));
            let before =
                &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            let now = &litejoin_crds::crd::definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
                ["properties"]["spec"];
            narrowed(before, now, &format!("{} {}", version.name(), kind.as_str()), &mut complaints);
        }
    }
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// Collects where a schema fills in, demands or refuses what it did not before: stored documents would change, or could
/// not be edited any more.
fn narrowed(before: &Value, now: &Value, at: &str, complaints: &mut Vec<String>) {
    let texts = |list: &Value| -> Vec<String> {
        list.as_array().into_iter().flatten().filter_map(|text| text.as_str()).map(str::to_owned).collect()
    };
    if before["type"] != now["type"] {
        complaints.push(format!("{at}: was {}, and is {}", before["type"], now["type"]));
    }
    let required = texts(&before["required"]);
    complaints.extend(
        texts(&now["required"])
            .iter()
            .filter(|field| !required.contains(field))
            .map(|field| format!("{at}: {field} was optional")),
    );
    let allowed = texts(&now["enum"]);
    complaints.extend(
        texts(&before["enum"])
            .iter()
            .filter(|value| !allowed.is_empty() && !allowed.contains(value))
            .map(|value| format!("{at}: {value} was allowed")),
    );
    for (name, field) in before["properties"].as_object().into_iter().flatten() {
        match &now["properties"][name] {
            Value::Null => complaints.push(format!("{at}.{name}: is gone")),
            later => narrowed(field, later, &format!("{at}.{name}"), complaints),
        }
    }
    for (name, field) in now["properties"].as_object().into_iter().flatten() {
        let default = &field["default"];
        if !default.is_null() && *default != before["properties"][name]["default"] {
            complaints.push(format!("{at}.{name}: {default} is filled into stored documents"));
        }
    }
    for below in ["items", "additionalProperties"] {
        if before[below].is_object() {
            narrowed(&before[below], &now[below], &format!("{at}[]"), complaints);
        }
    }
}

/// Has the operator of an earlier version build the objects, and keeps what the API server has stored then.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "writes what an earlier version has stored; tests/keep runs it"]
async fn the_objects_are_written() {
    let (version, programs) = EarlierVersion::to_write();
    let _ports = PortBlock::kept(PORTS).await;
    let server = ApiServer::empty().await;
    let namespace: Namespace = Namespace {
        metadata: ObjectMeta { name: Some(NAMESPACE.to_owned()), ..ObjectMeta::default() },
        ..Namespace::default()
    };
    let made = Api::all(server.client().await).create(&PostParams::default(), &namespace).await;
    made.expect("a namespace can be made");
    let site = on_server(server).await;
    apply_manifest(&site, &version.unpacked(SHIPPED).path().join("charts/litejoin.yaml"));
    site.secret("credentials", &[("token", "t"), ("tls.crt", "c"), ("tls.key", "k")]).await;
    let kubeconfig = site.server.kubeconfig(NAMESPACE, &site.server.url());
    let operator = operator::start_program(
        &programs.join("litejoin-operator"),
        &site.folder,
        &kubeconfig,
        NAMESPACE,
        &["--lease-seconds", "3"],
    );
    let manifest = std::fs::read_to_string(earlier::folder().join("documents.yaml")).expect("it is there");
    site.apply(&manifest).await;
    let worker = start_worker(&site, &programs.join("litejoin")).await;
    site.wait_for(Kind::Pipeline, "orders", "Ready", "True", "Ready").await;
    until("every document to have its status", async || {
        for document in documents(&manifest) {
            let kind = Kind::from_name(document["kind"].as_str()?)?;
            let object = site.ours(kind).get(document["metadata"]["name"].as_str()?).await.ok()?;
            let is_told = object.data["status"]["observedGeneration"].as_i64() == object.metadata.generation;
            // What has a pod says so once there is one.
            let waits = condition_of(&object, "WorkerReady").is_some_and(|ready| ready["reason"] == "NoPod");
            if !is_told || waits {
                return None;
            }
        }
        Some(())
    })
    .await;
    operator.stop().await;
    worker.stop().await;
    let folder = tempfile::tempdir().expect("a folder can be made");
    let is_ours = |key: &str| {
        let is_passing = key.starts_with("/registry/events/") || key.starts_with("/registry/masterleases/");
        !is_passing && (key.contains("litejoin") || key.split('/').any(|part| part == NAMESPACE))
    };
    site.server.keep(is_ours, folder.path()).await;
    version.pack(folder.path(), STORED);
}

/// Runs another version's worker as the pod of the pipeline that runs.
async fn start_worker(site: &ControllerSite, program: &Path) -> Worker {
    let mut command = Command::new(program);
    command.args(["run", "-f", "pipeline.yaml", "--data-dir", "data", "--log-format", "json"]);
    command.args(["--watch", "--leave-out-invalid", "--secrets-dir", "secrets"]);
    site.run_pod_as("orders", site.folder.launch(command)).await
}
