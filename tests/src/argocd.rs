//! A real Argo CD beside a node: its application controller, its repo-server and Redis, as processes that end with the
//! node. There is no user interface: Argo CD is driven and read by its Applications, as its own interface does it.

pub mod git;
mod history;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};

use crate::kubernetes::node::Node;
use crate::kubernetes::programs::{Process, program};
use crate::programs::{argocd, argocd_manifests};
use crate::wait::{TIMEOUT, until, until_within};
use history::History;
pub use history::{ApplicationState, Health};

/// The namespace of Argo CD.
pub const NAMESPACE: &str = "argocd";

/// The longest wait for a sync, in which pods start.
const SYNC_TIMEOUT: Duration = TIMEOUT.saturating_mul(2);

/// The annotation that asks for a look at Git.
const REFRESH: &str = "argocd.argoproj.io/refresh";

/// The addresses of Redis, the repo-server, and the controller's metrics, in the network of the node.
const REDIS: &str = "127.0.0.1:6379";
const REPO_SERVER: &str = "127.0.0.1:8081";
const CONTROLLER: &str = "127.0.0.1:8082";

/// A running Argo CD.
pub struct ArgoCd {
    applications: Api<DynamicObject>,
    history: History,
    processes: Vec<Process>,
    kubeconfig: PathBuf,
}

impl ArgoCd {
    /// Installs and starts Argo CD, with its own default settings and those in `settings`, files that its README tells
    /// to patch the settings with.
    pub async fn start(node: &Node, settings: &[&Path]) -> Self {
        let at = node.folder().join("argocd");
        install(node, &at, settings).await;
        let kind = GroupVersionKind::gvk("argoproj.io", "v1alpha1", "Application");
        let applications: Api<DynamicObject> =
            Api::namespaced_with(node.client.clone(), NAMESPACE, &ApiResource::from_gvk(&kind));
        let history = History::follow(applications.clone());
        let kubeconfig = node.kubeconfig.clone();
        let mut argocd = Self { applications, history, processes: Vec::new(), kubeconfig };
        let redis = ["--bind", "127.0.0.1", "--port", "6379", "--save", "", "--appendonly", "no"];
        argocd.run("redis-server", &at, Command::new("redis-server").args(redis), REDIS).await;
        let mut repo_server = part("argocd-repo-server", &at, &node.kubeconfig);
        repo_server.args(["--address", "127.0.0.1", "--metrics-address", "127.0.0.1", "--redis", REDIS]);
        argocd.run("argocd-repo-server", &at, &mut repo_server, REPO_SERVER).await;
        let mut controller = part("argocd-application-controller", &at, &node.kubeconfig);
        controller
            .args(["--namespace", NAMESPACE, "--redis", REDIS, "--repo-server", REPO_SERVER])
            // The health of each resource, which the user interface reads from Redis.
            .arg("--persist-resource-health");
        argocd.run("argocd-application-controller", &at, &mut controller, CONTROLLER).await;
        argocd
    }

    /// Starts a process, and waits until it listens.
    async fn run(&mut self, name: &str, at: &Path, command: &mut Command, address: &str) {
        let mut process = Process::start(name, at, command);
        until(name, async || {
            process.assert_running();
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await;
        self.processes.push(process);
    }

    /// Returns an Application as it is now; `None` if there is none of this name.
    pub async fn application(&self, name: &str) -> Option<Value> {
        let application = self.applications.get_opt(name).await.expect("Applications can be read")?;
        Some(serde_json::to_value(application).expect("an object is plain data"))
    }

    /// Lets Argo CD look at Git again for all of these Applications, and waits until it has. `how` is `normal`, or
    /// `hard`, which forgets all that was rendered before.
    pub async fn refresh(&self, names: &[&str], how: &str) {
        for name in names {
            let patch = json!({ "metadata": { "annotations": { REFRESH: how } } });
            let patched = self.applications.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await;
            patched.unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        for name in names {
            until(&format!("a look at Git for {name}"), async || {
                let application = self.applications.get(name).await.ok()?;
                (!application.annotations().contains_key(REFRESH)).then_some(())
            })
            .await;
        }
    }

    /// Waits until an Application is Synced and Healthy at a commit, and no sync is under way.
    pub async fn synced(&self, name: &str, commit: &str) {
        let what = format!("{name} to be Synced and Healthy at {commit}");
        self.wait_for(name, &what, |application| {
            let status = &application["status"];
            status["sync"]["status"] == "Synced"
                && status["health"]["status"] == "Healthy"
                && application["operation"].is_null()
                && status["operationState"]["phase"] != "Running"
                && revisions(&status["sync"]).all(|revision| revision == commit)
        })
        .await;
    }

    /// Waits until Argo CD tells of an Application, or of one of its resources, in words that contain this text. It passes
    /// over other words for the same health until it looks anew, so it is asked to.
    pub async fn tells(&self, name: &str, text: &str) {
        until_within(SYNC_TIMEOUT, &format!("{name} to tell: {text}"), async || {
            self.refresh(&[name], "normal").await;
            let application = self.application(name).await?;
            messages(&application).iter().any(|message| message.contains(text)).then_some(())
        })
        .await;
    }

    /// Waits until an Application is as wanted.
    ///
    /// # Panics
    /// With all that Argo CD says of the Application, if it does not come to that.
    pub async fn wait_for(&self, name: &str, what: &str, is_so: impl Fn(&Value) -> bool) {
        let reached = async || self.application(name).await.filter(&is_so).map(|_| ());
        if tokio::time::timeout(SYNC_TIMEOUT, until_within(2 * SYNC_TIMEOUT, what, reached)).await.is_err() {
            let application = self.application(name).await.unwrap_or_default();
            let status = &application["status"];
            panic!(
                "waited in vain for {what}: sync {}, health {}, operation {}: {:#?}\n{:#?}",
                status["sync"]["status"],
                status["health"],
                status["operationState"]["phase"],
                messages(&application),
                status["resources"]
            );
        }
    }

    /// Returns the health of a resource, and its message.
    pub async fn health(&self, application: &str, kind: &str, name: &str) -> (String, String) {
        let found = self.application(application).await.unwrap_or_default();
        let resources = found["status"]["resources"].as_array();
        let resource = resources.into_iter().flatten().find(|of| of["kind"] == kind && of["name"] == name);
        let field =
            |field: &str| resource.and_then(|of| of["health"][field].as_str()).unwrap_or_default().to_owned();
        (field("status"), field("message"))
    }

    /// Returns a moment in the history, for [`Self::since`].
    pub fn moment(&self) -> usize {
        self.history.len()
    }

    /// Returns all states that an Application has had since a moment, up to the one of now.
    pub async fn since(&self, moment: usize, name: &str) -> Vec<ApplicationState> {
        let now = self.applications.get(name).await.expect("there is an Application");
        self.history.since(moment, name, &now.resource_version().unwrap_or_default()).await
    }
}

impl Drop for ArgoCd {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let list = ["-n", NAMESPACE, "get", "applications", "-o", "yaml"];
            let _ = Command::new(program("kubectl")).env("KUBECONFIG", &self.kubeconfig).args(list).status();
            for process in &self.processes {
                let log = process.log();
                let lines: Vec<&str> = log.lines().collect();
                eprintln!("{}\n", lines[lines.len().saturating_sub(20)..].join("\n"));
            }
        }
    }
}

/// Installs the definitions and settings, and the project that a server of Argo CD would make.
async fn install(node: &Node, at: &Path, settings: &[&Path]) {
    for folder in ["home", "tmp", "tls", "ssh", "plugins"] {
        fs::create_dir_all(at.join(folder)).expect("the folder is ours");
    }
    fs::write(at.join("ssh/ssh_known_hosts"), "").expect("the folder is ours");
    let manifests = argocd_manifests().display().to_string();
    node.kubectl(&["create", "namespace", NAMESPACE]);
    // The definitions are too large for the annotation of a client-side apply.
    node.kubectl(&["-n", NAMESPACE, "apply", "--server-side", "-f", &manifests]);
    let key = r#"{"stringData": {"server.secretkey": "of a test"}}"#;
    node.kubectl(&["-n", NAMESPACE, "patch", "secret", "argocd-secret", "-p", key]);
    for file in settings {
        let file = file.display().to_string();
        node.kubectl(&["-n", NAMESPACE, "patch", "configmap", "argocd-cm", "--patch-file", &file]);
    }
    let kind = GroupVersionKind::gvk("argoproj.io", "v1alpha1", "AppProject");
    let projects: Api<DynamicObject> =
        Api::namespaced_with(node.client.clone(), NAMESPACE, &ApiResource::from_gvk(&kind));
    let project = json!({
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "AppProject",
        "metadata": { "name": "default", "namespace": NAMESPACE },
        "spec": {
            "sourceRepos": ["*"],
            "destinations": [{ "namespace": "*", "server": "*" }],
            "clusterResourceWhitelist": [{ "group": "*", "kind": "*" }],
        },
    });
    // A kind is served a moment after its definition is stored.
    until("the default project", async || {
        projects.patch("default", &PatchParams::apply("test"), &Patch::Apply(&project)).await.ok()
    })
    .await;
}

/// Returns the command of a part of Argo CD, which is one program for all of them.
fn part(name: &str, at: &Path, kubeconfig: &Path) -> Command {
    let mut command = Command::new(argocd());
    // The repo-server runs Helm and git.
    let helm = program("helm");
    let helm = helm.parent().expect("a program is in a folder").to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(helm).chain(std::env::split_paths(&path));
    command
        .env("PATH", std::env::join_paths(folders).expect("folders of programs"))
        .env("ARGOCD_BINARY_NAME", name)
        // The address of the cluster in Applications then means the kubeconfig.
        .env("ARGOCD_FAKE_IN_CLUSTER", "true")
        .env("KUBECONFIG", kubeconfig)
        .env("ARGOCD_GPG_ENABLED", "false")
        .env("ARGOCD_TLS_DATA_PATH", at.join("tls"))
        .env("ARGOCD_SSH_DATA_PATH", at.join("ssh"))
        .env("ARGOCD_PLUGINSOCKFILEPATH", at.join("plugins"))
        .env("ARGOCD_ASK_PASS_SOCK", at.join("askpass.sock"))
        // Waves follow each other at once: what is Healthy must be so without a pause in which it may show the contrary.
        .env("ARGOCD_SYNC_WAVE_DELAY", "0")
        .env("HOME", at.join("home"))
        .env("TMPDIR", at.join("tmp"));
    command
}

/// Returns the commits of an Application's one source or of its several ones.
fn revisions(sync: &Value) -> impl Iterator<Item = &Value> {
    let several = sync["revisions"].as_array();
    let one = several.is_none().then_some(&sync["revision"]);
    several.into_iter().flatten().chain(one)
}

/// Returns all texts in which Argo CD tells of an Application and its resources.
fn messages(application: &Value) -> Vec<&str> {
    let status = &application["status"];
    let operation = &status["operationState"];
    let lists = [&status["conditions"], &status["resources"], &operation["syncResult"]["resources"]];
    let listed = lists.into_iter().flat_map(|list| list.as_array().into_iter().flatten());
    let mut all = vec![&status["health"]["message"], &operation["message"]];
    all.extend(listed.flat_map(|of| [&of["message"], &of["health"]["message"]]));
    all.into_iter().filter_map(Value::as_str).collect()
}
