//! Stores for replicas, each a real server in a folder of its own: S3 (rclone's), Google Cloud Storage
//! (fake-gcs-server), SFTP (OpenSSH's), Azure Blob Storage (Azurite) and a plain folder. A store can be killed,
//! restarted in place, and paused; dropping it leaves nothing behind. Each provides the settings and variables for a
//! worker.

mod processes;
mod programs;
mod proxy;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpStream;

pub use self::programs::litestream;
pub use self::proxy::{Call, StoreProxy};
use crate::child::spawn;
use crate::ports::PortBlock;
use crate::programs::run;
use crate::wait::until;

/// The name of the bucket or container in every store.
pub const BUCKET: &str = "lite";
/// The access key of an S3 store.
pub const ACCESS_KEY: &str = "testkey";
/// The secret key of [`ACCESS_KEY`].
pub const SECRET_KEY: &str = "t3st-secret-of-s3";
/// The account of an Azure store.
pub const ACCOUNT: &str = "lj";

/// The kind of a store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StoreKind {
    S3,
    /// Needs a [`StoreProxy`], which adds functions that the emulator lacks.
    Google,
    Sftp,
    Azure,
    File,
}

/// A running store, or a folder as a store.
pub struct Store {
    kind: StoreKind,
    /// The address of the server.
    host: String,
    ports: PortBlock,
    folder: TempDir,
    server: Option<Child>,
}

impl Store {
    /// Starts an S3 store with a bucket in it.
    pub async fn s3() -> Self {
        Self::start(StoreKind::S3, "127.0.0.1").await
    }

    /// Starts an SFTP server.
    pub async fn sftp() -> Self {
        Self::start(StoreKind::Sftp, "127.0.0.1").await
    }

    /// Starts an Azure Blob Storage with a container in it.
    pub async fn azure() -> Self {
        Self::start(StoreKind::Azure, "127.0.0.1").await
    }

    /// Creates a folder as a store.
    pub async fn file() -> Self {
        Self::start(StoreKind::File, "127.0.0.1").await
    }

    /// Starts a store of a kind on an address of this machine, and waits until it serves.
    pub async fn start(kind: StoreKind, host: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder can be made");
        fs::create_dir_all(folder.path().join("data").join(BUCKET)).expect("the folder is ours");
        if kind == StoreKind::Sftp {
            write_keys(folder.path());
        }
        let mut store = Self { kind, host: host.to_owned(), ports: PortBlock::free(), folder, server: None };
        store.restart().await;
        if kind == StoreKind::Azure {
            store.make_container();
        }
        store
    }

    pub fn kind(&self) -> StoreKind {
        self.kind
    }

    /// Returns the address of the server.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Returns host and port of the server.
    pub fn address(&self) -> String {
        format!("{}:{}", self.host, self.port())
    }

    fn port(&self) -> u16 {
        self.ports.number(0)
    }

    /// Returns the URL of the server, for stores that speak HTTP.
    pub fn endpoint(&self) -> Option<String> {
        self.endpoint_at(&self.address())
    }

    /// Returns the URL of a proxy at another address, for stores that speak HTTP.
    pub fn endpoint_at(&self, address: &str) -> Option<String> {
        match self.kind {
            StoreKind::S3 => Some(format!("http://{address}")),
            StoreKind::Azure => Some(format!("http://{address}/{ACCOUNT}")),
            StoreKind::Google | StoreKind::Sftp | StoreKind::File => None,
        }
    }

    /// Returns the `replicaUrl` of a folder in the store.
    pub fn url(&self, path: &str) -> String {
        match self.kind {
            StoreKind::S3 => format!("s3://{BUCKET}/{path}"),
            StoreKind::Google => format!("gcs://{BUCKET}/{path}"),
            StoreKind::Azure => format!("abs://{ACCOUNT}@{BUCKET}/{path}"),
            StoreKind::Sftp => {
                format!("sftp://{}@{}{}/{path}", user(), self.address(), self.files().display())
            }
            StoreKind::File => format!("file://{}/{path}", self.files().display()),
        }
    }

    /// Returns `spec.replication` for a folder in the store; tests add further fields.
    pub fn settings(&self, path: &str) -> Value {
        let mut settings = json!({ "enabled": true, "replicaUrl": self.url(path) });
        if let Some(endpoint) = self.endpoint() {
            settings["endpoint"] = endpoint.into();
        }
        if self.kind == StoreKind::S3 {
            settings["region"] = "us-east-1".into();
        }
        settings
    }

    /// Returns variables with the credentials.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        self.environment_at(&self.address())
    }

    /// Returns variables with the credentials, and the address of a proxy where a variable contains the address.
    pub fn environment_at(&self, address: &str) -> Vec<(&'static str, String)> {
        match self.kind {
            StoreKind::Google => {
                let account = json!({
                    "gcs_base_url": format!("http://{address}"), "disable_oauth": true,
                    "client_email": "", "private_key": "", "private_key_id": "",
                });
                vec![
                    ("STORAGE_EMULATOR_HOST", address.to_owned()),
                    ("GOOGLE_SERVICE_ACCOUNT_KEY", account.to_string()),
                ]
            }
            StoreKind::S3 => {
                vec![
                    ("AWS_ACCESS_KEY_ID", ACCESS_KEY.to_owned()),
                    ("AWS_SECRET_ACCESS_KEY", SECRET_KEY.to_owned()),
                ]
            }
            StoreKind::Azure => vec![("LITESTREAM_AZURE_ACCOUNT_KEY", account_key())],
            StoreKind::Sftp => {
                vec![
                    ("LITEJOIN_SFTP_KEY_PATH", self.key_path().display().to_string()),
                    ("LITEJOIN_SFTP_HOST_KEY", self.host_key()),
                ]
            }
            StoreKind::File => Vec::new(),
        }
    }

    /// Returns the replica of a folder in the store as an entry of `litestream.yml`, with credentials.
    pub fn replica(&self, path: &str) -> Value {
        match self.kind {
            StoreKind::S3 => json!({
                "type": "s3", "bucket": BUCKET, "path": path, "endpoint": self.endpoint(), "region": "us-east-1",
                "force-path-style": true, "access-key-id": ACCESS_KEY, "secret-access-key": SECRET_KEY,
            }),
            StoreKind::Google => json!({ "type": "gs", "bucket": BUCKET, "path": path }),
            StoreKind::Azure => json!({
                "type": "abs", "bucket": BUCKET, "path": path, "endpoint": self.endpoint(),
                "account-name": ACCOUNT, "account-key": account_key(),
            }),
            StoreKind::Sftp => json!({
                "type": "sftp", "host": self.address(), "user": user(), "path": self.files().join(path),
                "key-path": self.key_path(), "host-key": self.host_key(),
            }),
            StoreKind::File => json!({ "type": "file", "path": self.files().join(path) }),
        }
    }

    /// Returns the folder of the stored objects, which are plain files at the paths of their names.
    ///
    /// # Panics
    /// For Azure, whose emulator keeps no plain files.
    pub fn files(&self) -> PathBuf {
        assert!(self.kind != StoreKind::Azure, "Azurite keeps no plain files");
        self.folder.path().join("data").join(BUCKET)
    }

    /// Returns the path of the private key that an SFTP server accepts.
    pub fn key_path(&self) -> PathBuf {
        self.folder.path().join("client")
    }

    /// Returns the public key of an SFTP server.
    pub fn host_key(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("host.pub")).expect("ssh-keygen has made it");
        text.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
    }

    /// Kills the server without a loss of acknowledged objects: Azurite saves its index only now and then, so it gets
    /// SIGTERM. A folder has no server to kill.
    pub fn kill(&mut self) {
        let signal = if self.kind == StoreKind::Azure { "TERM" } else { "KILL" };
        self.end(signal);
    }

    fn end(&mut self, signal: &str) {
        if let Some(mut server) = self.server.take() {
            processes::signal(&server, signal);
            server.wait().expect("a child that gets a signal ends");
        }
    }

    /// Restarts the server in place, and waits until it serves.
    pub async fn restart(&mut self) {
        self.kill();
        let Some(command) = self.command() else { return };
        self.server = Some(spawn(command));
        let address = self.address();
        until("the store to serve", async || {
            self.assert_alive();
            TcpStream::connect(&address).await.is_ok().then_some(())
        })
        .await;
    }

    /// Pauses the server: the system accepts connections, and no request is answered.
    pub fn pause(&self) {
        processes::signal(self.server.as_ref().expect("the store runs"), "STOP");
    }

    /// Resumes a paused server.
    pub fn resume(&self) {
        processes::signal(self.server.as_ref().expect("the store runs"), "CONT");
    }

    /// Returns the server's output so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn assert_alive(&mut self) {
        let status = self.server.as_mut().and_then(|child| child.try_wait().expect("a child can be asked"));
        if let Some(status) = status {
            panic!("the {:?} store has ended with {status}:\n{}", self.kind, self.log());
        }
    }

    /// Returns the command of the server, which dies with this process.
    fn command(&self) -> Option<Command> {
        let folder = self.folder.path();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        match self.kind {
            StoreKind::S3 => {
                command.arg(programs::rclone()).args([
                    "serve",
                    "s3",
                    "--config",
                    "",
                    "--vfs-cache-mode",
                    "off",
                ]);
                command.args([
                    "--addr",
                    &self.address(),
                    "--auth-key",
                    &format!("{ACCESS_KEY},{SECRET_KEY}"),
                ]);
                command.arg(folder.join("data"));
            }
            StoreKind::Google => {
                command.arg(programs::google()).args(["-scheme", "http", "-host", &self.host]);
                command.args(["-port", &self.port().to_string(), "-public-host", &self.address()]);
                command.arg("-filesystem-root").arg(folder.join("data"));
            }
            StoreKind::Azure => {
                command.arg("node").arg(programs::azurite()).args(["--blobHost", &self.host]);
                command.args(["--blobPort", &self.port().to_string(), "--silent", "--skipApiVersionCheck"]);
                command.args(["--disableTelemetry", "--location"]).arg(folder.join("data"));
                command.env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{}", account_key()));
            }
            StoreKind::Sftp => {
                command.arg("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(folder.join("sshd_config"));
                command.args(["-o", &format!("ListenAddress={}", self.host), "-p", &self.port().to_string()]);
            }
            StoreKind::File => return None,
        }
        let log =
            File::options().create(true).append(true).open(folder.join("log")).expect("the folder is ours");
        let errors = log.try_clone().expect("a file has several handles");
        command.current_dir(folder).stdin(Stdio::null()).stdout(log).stderr(errors);
        Some(command)
    }

    fn make_container(&self) {
        let remote = format!(
            ":azureblob,account={ACCOUNT},key='{}',endpoint='{}':{BUCKET}",
            account_key(),
            self.endpoint().expect("it speaks HTTP")
        );
        let mut command = Command::new(programs::rclone());
        run(command.args(["mkdir", "--config", ""]).arg(remote));
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.end("KILL");
    }
}

/// Returns the key of the Azure account.
pub fn account_key() -> String {
    BASE64.encode("a key of tests")
}

/// Returns the user who runs the tests: sshd without root serves no other.
fn user() -> String {
    run(Command::new("id").arg("-un")).trim().to_owned()
}

/// Writes the keys of server and client, and sshd's settings.
fn write_keys(folder: &Path) {
    for name in ["host", "client"] {
        let mut command = Command::new("ssh-keygen");
        run(command.args(["-q", "-t", "ed25519", "-N", "", "-C", "", "-f"]).arg(folder.join(name)));
    }
    // sshd's privilege separation needs this folder, which Debian's service creates.
    let _ = fs::create_dir_all("/run/sshd");
    let at = folder.display();
    let config = format!(
        "HostKey {at}/host\nAuthorizedKeysFile {at}/client.pub\nPidFile none\nPermitRootLogin prohibit-password\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nMaxStartups 100\n\
         MaxSessions 100\nSubsystem sftp internal-sftp\n"
    );
    fs::write(folder.join("sshd_config"), config).expect("the folder is ours");
}
