//! A real API server with etcd, on free ports of this machine, with LiteJoin's definitions installed, and the
//! controllers that create pods and claims of StatefulSets and remove objects without an owner. There is no node: a
//! test writes for the scheduler and the kubelet.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock, Weak};

use axum::http::Request;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use tempfile::TempDir;
use tokio::sync::Mutex;

use super::programs::{Process, program};
use super::registry::Registry;
use crate::programs::{repository, run};
use crate::wait::until;

/// The token of the tests; its user is in the group that may do everything.
const TOKEN: &str = "test";

/// The controllers of Kubernetes that tests need.
const CONTROLLERS: &str = "statefulset-controller,job-controller,garbage-collector-controller,namespace-controller,persistentvolumeclaim-protection-controller";

/// A running API server.
pub struct ApiServer {
    // Fields are in the order of shutdown: the API server before etcd, the folder last.
    controllers: Process,
    api_server: Process,
    etcd: Process,
    registry: Registry,
    port: u16,
    folder: TempDir,
}

impl ApiServer {
    /// Returns the API server that all tests of this process share while any of them uses it. PodMonitors are
    /// installed.
    pub async fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Mutex<Weak<ApiServer>>> = OnceLock::new();
        let mut shared = SHARED.get_or_init(Mutex::default).lock().await;
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let started = Arc::new(Self::start().await);
        let pod_monitors = run(&mut Command::new(repository().join("tests/kubernetes/pod-monitors")));
        install_definition(&started.client().await, Path::new(pod_monitors.trim())).await;
        *shared = Arc::downgrade(&started);
        started
    }

    /// Starts an API server and waits until it serves LiteJoin's kinds.
    pub async fn start() -> Self {
        let started = Self::empty().await;
        install_definitions(&started.client().await).await;
        started
    }

    /// Starts an API server that has no definition of LiteJoin.
    pub async fn empty() -> Self {
        Self::launch(None).await
    }

    /// Starts an API server on what another one had stored, as [`Self::keep`] wrote it to a folder. LiteJoin's kinds are
    /// among it.
    pub async fn on_kept(folder: &Path) -> Self {
        Self::launch(Some(folder)).await
    }

    /// Writes what is stored under the wanted keys to a folder.
    pub async fn keep(&self, is_wanted: impl Fn(&str) -> bool, folder: &Path) {
        self.registry.keep(is_wanted, folder).await;
    }

    async fn launch(kept: Option<&Path>) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let at = folder.path();
        let [port, etcd_port, peer_port] = free_ports();
        let etcd_url = format!("http://127.0.0.1:{etcd_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let etcd = Process::start(
            "etcd",
            at,
            Command::new("etcd").args(["--data-dir", "etcd", "--unsafe-no-fsync"]).args([
                // What another server had stored is written at once.
                "--max-txn-ops=10000".to_owned(),
                "--max-request-bytes=33554432".to_owned(),
                format!("--listen-client-urls={etcd_url}"),
                format!("--advertise-client-urls={etcd_url}"),
                format!("--listen-peer-urls={peer_url}"),
                format!("--initial-advertise-peer-urls={peer_url}"),
                format!("--initial-cluster=default={peer_url}"),
            ]),
        );
        let registry = Registry::at(&etcd_url);
        if let Some(kept) = kept {
            registry.restore(kept).await;
        }
        let url = format!("https://127.0.0.1:{port}");
        let mut api_server = api_server(at, &etcd_url, port);
        let config = config(&kubeconfig(&url, TOKEN)).await;
        let client = Client::try_from(config).expect("a client can be made");
        until("the API server", async || {
            api_server.assert_running();
            client.request_text(request("/readyz")).await.ok()
        })
        .await;
        if kept.is_some() {
            for kind in litejoin_crds::kind::Kind::ALL {
                let path = format!("/apis/{}/{}", litejoin_crds::API_VERSION, kind.plural());
                let served = async || client.request_text(request(&path)).await.ok();
                until("the kept kinds to be served", served).await;
            }
        }
        let controllers = controllers(at, &url);
        Self { controllers, api_server, etcd, registry, port, folder }
    }

    /// Returns the URL of the server.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// Returns a new client for each caller: connections belong to the runtime that opened them.
    pub async fn client(&self) -> Client {
        Client::try_from(config(&kubeconfig(&self.url(), TOKEN)).await).expect("a client can be made")
    }

    /// Writes a kubeconfig for this address, the server's own or a proxy's, and returns its path.
    pub fn kubeconfig(&self, name: &str, url: &str) -> PathBuf {
        self.kubeconfig_with(name, url, TOKEN)
    }

    /// Writes a kubeconfig with this token, and returns its path.
    pub fn kubeconfig_with(&self, name: &str, url: &str, token: &str) -> PathBuf {
        let path = self.folder.path().join(format!("{name}.kubeconfig"));
        fs::write(&path, kubeconfig(url, token)).expect("it is ours");
        path
    }

    /// Creates a namespace and returns its name.
    pub async fn namespace(&self, client: &Client) -> String {
        let metadata = ObjectMeta { generate_name: Some("test-".to_owned()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        let made = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
        made.expect("a namespace can be made").name_any()
    }

    /// Returns the logs of the controllers, the API server and etcd.
    pub fn log(&self) -> String {
        format!("{}\n{}\n{}", self.controllers.log(), self.api_server.log(), self.etcd.log())
    }
}

fn api_server(at: &Path, etcd_url: &str, port: u16) -> Process {
    run(Command::new("openssl").current_dir(at).args(["genrsa", "-out", "service-accounts.key", "2048"]));
    fs::write(at.join("tokens.csv"), format!("{TOKEN},test,test,system:masters\n")).expect("it is ours");
    Process::start(
        "kube-apiserver",
        at,
        Command::new(program("kube-apiserver"))
            .args([
                "--bind-address=127.0.0.1",
                "--cert-dir=certificates",
                "--service-cluster-ip-range=10.0.0.0/16",
                "--service-account-issuer=https://kubernetes.default.svc",
                "--service-account-key-file=service-accounts.key",
                "--service-account-signing-key-file=service-accounts.key",
                "--authorization-mode=RBAC",
                "--token-auth-file=tokens.csv",
                // No controller creates the service accounts that this plugin requires.
                "--disable-admission-plugins=ServiceAccount",
            ])
            .args([format!("--etcd-servers={etcd_url}"), format!("--secure-port={port}")]),
    )
}

fn controllers(at: &Path, url: &str) -> Process {
    let path = at.join("controllers.kubeconfig");
    fs::write(&path, kubeconfig(url, TOKEN)).expect("it is ours");
    let [port] = free_ports();
    Process::start(
        "kube-controller-manager",
        at,
        Command::new(program("kube-controller-manager"))
            .args(["--leader-elect=false", "--bind-address=127.0.0.1", "--cert-dir=certificates"])
            // The controller manager's own rate limits would only slow tests and benchmarks down.
            .args(["--kube-api-qps=1000", "--kube-api-burst=1000"])
            .arg(format!("--controllers={CONTROLLERS}"))
            .arg(format!("--secure-port={port}"))
            .arg("--kubeconfig")
            .arg(&path),
    )
}

/// Installs `crds/*.yaml`, and waits until they are served.
pub async fn install_definitions(client: &Client) {
    for kind in litejoin_crds::kind::Kind::ALL {
        install_definition(client, &repository().join(format!("crds/{}.yaml", kind.plural()))).await;
    }
}

/// Installs the definition in a file, and waits until it is served.
pub async fn install_definition(client: &Client, path: &Path) {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let text = fs::read_to_string(path).expect("a definition can be read");
    let definition: CustomResourceDefinition = serde_yaml::from_str(&text).expect("a definition is YAML");
    let name = definition.name_any();
    definitions.create(&PostParams::default(), &definition).await.expect("the server takes it");
    until("the definition to be served", async || {
        let definition = definitions.get_status(&name).await.ok()?;
        let conditions = definition.status?.conditions?;
        let served = |kind: &str| conditions.iter().any(|c| c.type_ == kind && c.status == "True");
        (served("Established") && served("NamesAccepted")).then_some(())
    })
    .await;
    // A definition is Established a moment before the server answers on its path.
    let spec = definition.spec;
    let path = format!("/apis/{}/{}/{}", spec.group, spec.versions[0].name, spec.names.plural);
    until("the kind to be served", async || client.request_text(request(&path)).await.ok()).await;
}

fn request(path: &str) -> Request<Vec<u8>> {
    Request::get(path).body(Vec::new()).expect("a path is a request")
}

/// Returns a kubeconfig for a server at this address.
fn kubeconfig(url: &str, token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: test\n\
         clusters: [{{name: test, cluster: {{server: \"{url}\", insecure-skip-tls-verify: true}}}}]\n\
         users: [{{name: test, user: {{token: {token}}}}}]\n\
         contexts: [{{name: test, context: {{cluster: test, user: test}}}}]\n"
    )
}

async fn config(kubeconfig: &str) -> Config {
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).expect("we wrote it");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    config.expect("it has all that a client needs")
}

/// Returns free ports.
fn free_ports<const COUNT: usize>() -> [u16; COUNT] {
    let listeners = [(); COUNT].map(|()| TcpListener::bind("127.0.0.1:0").expect("there is a free port"));
    listeners.map(|listener| listener.local_addr().expect("it is bound").port())
}
