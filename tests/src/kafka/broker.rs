//! One broker as a process: its settings, its certificates, its listeners.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::child::spawn;
use crate::ports::PortBlock;

/// The user of the listeners with credentials.
pub const USER: &str = "reader";
/// The password of [`USER`].
pub const PASSWORD: &str = "r3ader-secret";

/// The listeners of a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// No encryption, no credentials.
    Plain,
    /// SCRAM, not encrypted.
    Sasl,
    /// SCRAM or PLAIN over TLS.
    SaslTls,
    /// TLS with client certificates.
    Tls,
}

/// A broker, which is also a controller.
pub(super) struct Broker {
    folder: PathBuf,
    host: String,
    ports: PortBlock,
    child: Mutex<Option<Child>>,
}

impl Broker {
    /// Formats the folder of a broker and starts it.
    pub(super) fn start(cluster: &Path, host: &str, index: usize, ports: &[PortBlock]) -> Self {
        let folder = cluster.join(format!("broker-{index}"));
        fs::create_dir(&folder).expect("a folder can be made");
        fs::write(folder.join("server.properties"), properties(cluster, &folder, host, index, ports))
            .expect("a file can be written");
        let mut format = java("-Xmx64m");
        format.args(["kafka.tools.StorageTool", "format", "-t", "AAAAAAAAAAAAAAAAAAAAAQ", "-c"]);
        format.arg(folder.join("server.properties"));
        for mechanism in ["SCRAM-SHA-256", "SCRAM-SHA-512"] {
            format.args(["--add-scram", &format!("{mechanism}=[name={USER},password={PASSWORD}]")]);
        }
        let output = format.output().expect("java is there");
        assert!(output.status.success(), "a broker could not be formatted: {output:?}");
        let node =
            Self { folder, host: host.to_owned(), ports: ports[index].clone(), child: Mutex::new(None) };
        node.restart();
        node
    }

    pub(super) fn address(&self, listener: Listener) -> String {
        format!("{}:{}", self.host, self.ports.number(listener as u16))
    }

    pub(super) fn kill(&self) {
        if let Some(mut child) = self.child.lock().unwrap_or_else(PoisonError::into_inner).take() {
            child.kill().expect("a child can be killed");
            child.wait().expect("a killed child ends");
        }
    }

    pub(super) fn restart(&self) {
        let log = File::options().create(true).append(true).open(self.folder.join("log"));
        let log = log.expect("a file can be made");
        let mut command = java("-Xmx160m");
        command.args(["kafka.Kafka"]).arg(self.folder.join("server.properties"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        *self.child.lock().unwrap_or_else(PoisonError::into_inner) = Some(spawn(command));
    }

    /// Panics with the log of a broker that has ended by itself.
    pub(super) fn assert_alive(&self) {
        let mut child = self.child.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(child) = child.as_mut()
            && let Some(status) = child.try_wait().expect("a child can be asked")
        {
            let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            panic!("a broker has ended with {status}:\n{log}");
        }
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Returns the port of the controller, behind those of the listeners.
fn controller(ports: &PortBlock) -> u16 {
    ports.number(Listener::Tls as u16 + 1)
}

/// Returns a command for Java with Kafka's classes: a small heap, a quick start, and an end with this process.
fn java(heap: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "java", heap, "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    // Each login over SASL asks for the names of addresses, for which nobody answers where a node has no DNS but its own.
    command.arg("-Djdk.net.hosts.file=/etc/hosts");
    command.args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp", &format!("{}/*", jars())]);
    command
}

/// Returns the folder of the jars; downloads them first if it is missing.
fn jars() -> &'static str {
    static JARS: OnceLock<String> = OnceLock::new();
    JARS.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kafka/fetch");
        let output = Command::new(script).stderr(Stdio::inherit()).output().expect("the script is there");
        assert!(output.status.success(), "tests/kafka/fetch has failed; tests/run installs what it needs");
        String::from_utf8(output.stdout).expect("a path").trim().to_owned()
    })
}

/// Returns the settings of a broker: small, quick to elect, and with every listener.
fn properties(cluster: &Path, folder: &Path, host: &str, index: usize, ports: &[PortBlock]) -> String {
    let node = |index: usize| index + 1;
    let voters: Vec<String> = ports
        .iter()
        .enumerate()
        .map(|(index, ports)| format!("{}@{host}:{}", node(index), controller(ports)))
        .collect();
    let names = ["PLAINTEXT", "SASL", "SASLTLS", "TLS"];
    let mut listeners: Vec<String> = names
        .iter()
        .zip(0..)
        .map(|(name, number)| format!("{name}://{host}:{}", ports[index].number(number)))
        .collect();
    listeners.push(format!("CONTROLLER://{host}:{}", controller(&ports[index])));
    let copies = ports.len();
    let in_sync = copies.div_ceil(2);
    let scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;";
    let plain = format!(
        "org.apache.kafka.common.security.plain.PlainLoginModule required user_{USER}=\"{PASSWORD}\";"
    );
    let mut text = String::new();
    for (name, value) in [
        ("process.roles", "broker,controller".to_owned()),
        ("node.id", node(index).to_string()),
        ("controller.quorum.voters", voters.join(",")),
        ("listeners", listeners.join(",")),
        ("controller.listener.names", "CONTROLLER".to_owned()),
        ("inter.broker.listener.name", "PLAINTEXT".to_owned()),
        (
            "listener.security.protocol.map",
            "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,SASLTLS:SASL_SSL,TLS:SSL"
                .to_owned(),
        ),
        ("log.dirs", folder.join("data").display().to_string()),
        ("default.replication.factor", copies.to_string()),
        ("min.insync.replicas", in_sync.to_string()),
        ("offsets.topic.replication.factor", copies.to_string()),
        ("offsets.topic.num.partitions", "4".to_owned()),
        ("transaction.state.log.replication.factor", copies.to_string()),
        ("transaction.state.log.min.isr", in_sync.to_string()),
        ("transaction.state.log.num.partitions", "4".to_owned()),
        ("group.initial.rebalance.delay.ms", "0".to_owned()),
        ("auto.create.topics.enable", "false".to_owned()),
        ("log.cleaner.dedupe.buffer.size", "4194304".to_owned()),
        ("broker.session.timeout.ms", "2000".to_owned()),
        ("broker.heartbeat.interval.ms", "500".to_owned()),
        ("num.network.threads", "2".to_owned()),
        ("num.io.threads", "2".to_owned()),
        ("sasl.enabled.mechanisms", "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN".to_owned()),
        ("listener.name.sasl.scram-sha-256.sasl.jaas.config", scram.to_owned()),
        ("listener.name.sasl.scram-sha-512.sasl.jaas.config", scram.to_owned()),
        ("listener.name.sasl.plain.sasl.jaas.config", plain.clone()),
        ("listener.name.sasltls.scram-sha-256.sasl.jaas.config", scram.to_owned()),
        ("listener.name.sasltls.scram-sha-512.sasl.jaas.config", scram.to_owned()),
        ("listener.name.sasltls.plain.sasl.jaas.config", plain),
        ("ssl.keystore.type", "PEM".to_owned()),
        ("ssl.keystore.location", cluster.join("server.pem").display().to_string()),
        ("ssl.truststore.type", "PEM".to_owned()),
        ("ssl.truststore.location", cluster.join("ca.pem").display().to_string()),
        ("listener.name.tls.ssl.client.auth", "required".to_owned()),
    ] {
        let _ = writeln!(text, "{name}={value}");
    }
    text
}

/// Writes the TLS files: `ca.pem`, the brokers' `server.pem`, and `client.pem` with `client-key.pem`.
pub(super) fn write_certificates(folder: &Path, host: &str) {
    let write = |name: &str, text: &str| fs::write(folder.join(name), text).expect("a file can be written");
    let named = |name: &str, hosts: &[&str]| {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("names of hosts");
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let key = || KeyPair::generate().expect("a key can be made");
    let mut authority = named("authority of a test", &[]);
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = key();
    let certificate = authority.self_signed(&authority_key).expect("a certificate can be made");
    write("ca.pem", &certificate.pem());
    let issuer = Issuer::new(authority, authority_key);
    let server_key = key();
    let server = named("broker", &[host]).signed_by(&server_key, &issuer).expect("a certificate");
    write("server.pem", &format!("{}{}", server_key.serialize_pem(), server.pem()));
    let client_key = key();
    let client = named("client", &["client"]).signed_by(&client_key, &issuer).expect("a certificate");
    write("client.pem", &client.pem());
    write("client-key.pem", &client_key.serialize_pem());
}
