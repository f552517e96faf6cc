//! A whole cluster of one node: API server, controllers, scheduler, kubelet, containerd, CNI, kube-proxy, DNS and a
//! provisioner of volumes, all in namespaces of their own. The node needs root and never outlives the test: the test
//! runs itself again as the first process of a PID namespace, whose end kills all other processes in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Node as KubernetesNode, ServiceAccount};
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tempfile::TempDir;

use super::image;
use super::programs::{Process, program};
use super::volumes::Volumes;
use crate::programs::{repository, run};
use crate::wait::until;

/// The variable that tells a test that it runs inside the namespaces.
const INSIDE: &str = "LITEJOIN_TEST_INSIDE";
/// The node's address, which pods can reach too.
pub const NODE_ADDRESS: &str = "10.244.0.1";
/// The range of pod addresses.
const POD_RANGE: &str = "10.244.0.0/24";
/// The address of the API server's Service.
const SERVER_ADDRESS: &str = "10.96.0.1";
/// The address of the DNS Service.
const DNS_ADDRESS: &str = "10.96.0.10";
/// Folders that programs write to regardless of their arguments.
const PRIVATE_FOLDERS: [&str; 5] = ["/run", "/var/lib/cni", "/var/log", "/etc/cni", "/dev/shm"];

/// A running node.
pub struct Node {
    processes: Vec<Process>,
    /// `None` only while it is started anew.
    kubelet: Mutex<Option<Process>>,
    _volumes: Volumes,
    pub client: Client,
    pub kubeconfig: PathBuf,
    folder: TempDir,
}

/// Runs the test of this name inside its own namespaces. Returns `true` inside; outside, runs it and returns `false`.
pub fn inside(test: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let uid = run(Command::new("id").arg("-u"));
    assert_eq!(uid.trim(), "0", "a node needs root: namespaces, mounts, cgroups");
    let namespaces =
        ["--net", "--pid", "--ipc", "--uts", "--mount", "--fork", "--mount-proc", "--kill-child"];
    let test_program = std::env::current_exe().expect("a process knows its executable");
    let status = Command::new("unshare")
        .args(namespaces)
        .arg(test_program)
        .args([test, "--exact", "--nocapture"])
        .env(INSIDE, "1")
        .stdin(Stdio::null())
        .status()
        .expect("unshare is there");
    assert!(status.success(), "{test} failed inside of its namespaces: {status}");
    false
}

impl Node {
    /// Starts all components, and waits until the node accepts pods. `images` are tar files to import.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        let at = folder.path().to_owned();
        isolate();
        let mut processes = control_plane(&at);
        let kubeconfig = at.join("admin.kubeconfig");
        let client = client(&kubeconfig).await;
        until("the API server", async || {
            processes.iter_mut().for_each(Process::assert_running);
            client.apiserver_version().await.ok()
        })
        .await;
        processes.extend(controllers(&at));
        processes.push(containerd(&at));
        let pause = image::of_busybox("localhost/pause:1", &["/bin/sleep", "1000000"], &at);
        let mut node = Self {
            processes,
            kubelet: Mutex::new(None),
            _volumes: Volumes::start(client.clone(), at.join("volumes")).await,
            client,
            kubeconfig,
            folder,
        };
        until("containerd", async || {
            let version = ctr().arg("version").output().ok()?;
            version.status.success().then_some(())
        })
        .await;
        node.import(&pause);
        node.kubelet = Mutex::new(Some(kubelet(&at)));
        node.processes.extend(network(&at));
        node.dns().await;
        node.wait_until_ready().await;
        node
    }

    /// Imports an image into containerd.
    pub fn import(&self, image: &Path) {
        run(ctr().args(["images", "import"]).arg(image));
    }

    /// Returns the folder of the node's data.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Runs kubectl, and returns its output.
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        run(Command::new(program("kubectl")).env("KUBECONFIG", &self.kubeconfig).args(arguments))
    }

    /// Runs helm, and returns its output.
    pub fn helm(&self, arguments: &[&str]) -> String {
        let home = self.folder().join("helm");
        run(Command::new(program("helm"))
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", home)
            .args(arguments))
    }

    /// Runs a command line in a shell in the repository, with kubectl and helm on its path, and returns its output.
    pub fn shell(&self, command: &str) -> String {
        let programs = program("kubectl").parent().expect("a program is in a folder").to_owned();
        let paths = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
        let path =
            std::env::join_paths(std::iter::once(programs).chain(paths)).expect("paths of this machine");
        run(Command::new("sh")
            .args(["-euc", command])
            .current_dir(repository())
            .env("PATH", path)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", self.folder().join("helm")))
    }

    /// Kills kubelet and starts it anew; pods run on.
    pub fn restart_kubelet(&self) {
        let mut running = self.kubelet.lock().unwrap_or_else(PoisonError::into_inner);
        drop(running.take());
        *running = Some(kubelet(self.folder()));
    }

    /// Returns the last lines of each process's log.
    pub fn logs(&self) -> String {
        let tail = |log: String| {
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(20)..].join("\n")
        };
        let kubelet = self.kubelet.lock().unwrap_or_else(PoisonError::into_inner);
        let all = self.processes.iter().chain(kubelet.as_ref());
        all.map(|process| tail(process.log())).collect::<Vec<_>>().join("\n\n")
    }

    async fn dns(&self) {
        let manifest = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: kube-dns, namespace: kube-system}}\n\
             spec: {{clusterIP: {DNS_ADDRESS}, ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: tcp, port: 53, protocol: TCP}}]}}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: kube-dns-node, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}\n\
             addressType: IPv4\nports: [{{name: dns, port: 53, protocol: UDP}}, {{name: tcp, port: 53, protocol: TCP}}]\n\
             endpoints: [{{addresses: [{NODE_ADDRESS}], conditions: {{ready: true}}}}]\n"
        );
        let path = self.folder().join("dns.yaml");
        fs::write(&path, manifest).expect("the folder is ours");
        self.kubectl(&["apply", "-f", &path.display().to_string()]);
    }

    async fn wait_until_ready(&self) {
        let nodes: Api<KubernetesNode> = Api::all(self.client.clone());
        until("the node to be ready", async || {
            let node = nodes.get_opt("node").await.ok()??;
            let conditions = node.status?.conditions?;
            conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True").then_some(())
        })
        .await;
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), "default");
        until("service accounts", async || accounts.get_opt("default").await.ok()?).await;
    }
}

/// Sets up the network, and private copies of the folders that programs write to outside their own.
fn isolate() {
    let command = |line: &str| {
        let mut words = line.split_whitespace();
        run(Command::new(words.next().expect("a command")).args(words));
    };
    for folder in PRIVATE_FOLDERS {
        fs::create_dir_all(folder).expect("root can make folders");
        command(&format!("mount -t tmpfs tmpfs {folder}"));
    }
    fs::create_dir_all("/run/netns").expect("it is ours now");
    command("mount --make-rshared /");
    command("ip link set lo up");
    // All components use the Service address of the API server, even before kube-proxy runs.
    command(&format!("ip addr add {SERVER_ADDRESS}/32 dev lo"));
    // kubelet refuses a loopback address for the node, so the bridge of the pods is created in advance.
    command("ip link add cni0 type bridge");
    command(&format!("ip addr add {NODE_ADDRESS}/24 dev cni0"));
    command("ip link set cni0 up");
    command("ip route add default dev cni0");
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("the network is ours");
}

/// Starts etcd and the API server, and writes a kubeconfig for each component.
fn control_plane(at: &Path) -> Vec<Process> {
    run(Command::new("openssl").current_dir(at).args(["genrsa", "-out", "service-accounts.key", "2048"]));
    fs::write(
        at.join("tokens.csv"),
        "admin,admin,admin,system:masters\nnode,system:node:node,node,system:nodes\n",
    )
    .expect("the folder is ours");
    for user in ["admin", "node"] {
        let kubeconfig = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: \"https://{SERVER_ADDRESS}\", insecure-skip-tls-verify: true}}}}]\n\
             users: [{{name: u, user: {{token: {user}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n"
        );
        fs::write(at.join(format!("{user}.kubeconfig")), kubeconfig).expect("the folder is ours");
    }
    let etcd =
        Process::start("etcd", at, Command::new("etcd").args(["--data-dir", "etcd", "--unsafe-no-fsync"]));
    let api_server = Process::start(
        "kube-apiserver",
        at,
        Command::new(program("kube-apiserver")).args([
            "--etcd-servers=http://127.0.0.1:2379",
            "--secure-port=443",
            "--bind-address=0.0.0.0",
            &format!("--advertise-address={NODE_ADDRESS}"),
            "--cert-dir=certificates",
            "--service-cluster-ip-range=10.96.0.0/24",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--service-account-key-file=service-accounts.key",
            "--service-account-signing-key-file=service-accounts.key",
            "--authorization-mode=Node,RBAC",
            "--token-auth-file=tokens.csv",
            "--allow-privileged=true",
            "--kubelet-preferred-address-types=InternalIP",
        ]),
    );
    vec![etcd, api_server]
}

fn controllers(at: &Path) -> [Process; 2] {
    let controllers = Process::start(
        "kube-controller-manager",
        at,
        Command::new(program("kube-controller-manager")).args([
            "--kubeconfig=admin.kubeconfig",
            "--service-account-private-key-file=service-accounts.key",
            // The API server's self-made certificate file contains its signer.
            "--root-ca-file=certificates/apiserver.crt",
            "--use-service-account-credentials=true",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        ]),
    );
    let scheduler = Process::start(
        "kube-scheduler",
        at,
        Command::new(program("kube-scheduler")).args([
            "--kubeconfig=admin.kubeconfig",
            "--bind-address=127.0.0.1",
            "--leader-elect=false",
        ]),
    );
    [controllers, scheduler]
}

fn containerd(at: &Path) -> Process {
    let root = at.display();
    // A container may not lower oom_score_adj, and pods would fail to start.
    let config = format!(
        "version = 2\nroot = \"{root}/containerd\"\nstate = \"/run/containerd\"\n\
         [grpc]\naddress = \"/run/containerd.sock\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"localhost/pause:1\"\nrestrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{root}/cni\"\n"
    );
    fs::write(at.join("containerd.toml"), config).expect("the folder is ours");
    let network = format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [
            {{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true, "ipMasq": false,
              "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{POD_RANGE}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
            {{"type": "portmap", "capabilities": {{"portMappings": true}}}}]}}"#
    );
    fs::create_dir_all(at.join("cni")).expect("the folder is ours");
    fs::write(at.join("cni/pods.conflist"), network).expect("the folder is ours");
    Process::start("containerd", at, Command::new("containerd").args(["-c", "containerd.toml"]))
}

fn ctr() -> Command {
    let mut command = Command::new("ctr");
    command.args(["-a", "/run/containerd.sock", "-n", "k8s.io"]);
    command
}

/// Starts kubelet, which keeps its default of one sync of a pod a minute.
fn kubelet(at: &Path) -> Process {
    let config = format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1\nkind: KubeletConfiguration\n\
         authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}\n\
         authorization: {{mode: AlwaysAllow}}\n\
         containerRuntimeEndpoint: unix:///run/containerd.sock\ncgroupDriver: cgroupfs\nfailSwapOn: false\n\
         clusterDNS: [{DNS_ADDRESS}]\nclusterDomain: cluster.local\nresolvConf: \"\"\n\
         evictionHard: {{nodefs.available: \"1%\", imagefs.available: \"1%\", memory.available: \"100Mi\"}}\n\
         imageGCHighThresholdPercent: 100\n"
    );
    fs::write(at.join("kubelet.yaml"), config).expect("the folder is ours");
    Process::start(
        "kubelet",
        at,
        Command::new(program("kubelet")).args([
            "--config=kubelet.yaml",
            "--kubeconfig=node.kubeconfig",
            "--hostname-override=node",
            &format!("--node-ip={NODE_ADDRESS}"),
            &format!("--root-dir={}/kubelet", at.display()),
        ]),
    )
}

/// Starts kube-proxy and CoreDNS.
fn network(at: &Path) -> [Process; 2] {
    let proxy = Process::start(
        "kube-proxy",
        at,
        Command::new(program("kube-proxy")).args([
            "--kubeconfig=admin.kubeconfig",
            "--hostname-override=node",
            "--proxy-mode=iptables",
            &format!("--cluster-cidr={POD_RANGE}"),
            &format!("--bind-address={NODE_ADDRESS}"),
            "--conntrack-max-per-core=0",
        ]),
    );
    let corefile = format!(
        "cluster.local:53 {{\n  bind {NODE_ADDRESS}\n  kubernetes cluster.local {{\n    kubeconfig {}/admin.kubeconfig\n  }}\n}}\n",
        at.display()
    );
    fs::write(at.join("Corefile"), corefile).expect("the folder is ours");
    let dns = Process::start("coredns", at, Command::new(program("coredns")).args(["-conf", "Corefile"]));
    [proxy, dns]
}

async fn client(kubeconfig: &Path) -> Client {
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("we wrote it");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("it has all that a client needs")).expect("a client can be made")
}
