//! Litestream and each kind of store, without a worker: replicated data is there after every process was killed.
//! If one of these fails, a failure of replication is the store's.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use litejoin_tests::stores::{Store, StoreKind, StoreProxy, litestream};
use litejoin_tests::wait::TIMEOUT;
use rusqlite::Connection;
use serde_json::{Value, json};

const ROWS: i64 = 1_000;

#[tokio::test]
async fn s3_gives_back_what_was_replicated() {
    gives_back(Store::s3().await).await;
}

#[tokio::test]
async fn sftp_gives_back_what_was_replicated() {
    gives_back(Store::sftp().await).await;
}

#[tokio::test]
async fn azure_gives_back_what_was_replicated() {
    gives_back(Store::azure().await).await;
}

#[tokio::test]
async fn a_folder_gives_back_what_was_replicated() {
    gives_back(Store::file().await).await;
}

#[tokio::test]
async fn uploads_are_counted() {
    let store = Store::s3().await;
    let proxy = StoreProxy::before(&store).await;
    let folder = tempfile::tempdir().unwrap();
    let mut replica = store.replica("counted");
    replica["endpoint"] = store.endpoint_at(&proxy.address()).into();
    write_config(folder.path(), replica);
    let _data = data(folder.path());
    let litestream = replicate(folder.path());
    sync(folder.path()).await;
    let uploads = proxy.take();
    let uploads: Vec<_> = uploads.iter().filter(|call| call.is_upload()).collect();
    assert!(!uploads.is_empty(), "{uploads:?}");
    assert!(uploads.iter().all(|call| call.path.starts_with("/lite/counted/")), "{uploads:?}");
    assert!(uploads.iter().map(|call| call.bytes).sum::<usize>() > 1_000, "{uploads:?}");
    // Without changes nothing is stored.
    sync(folder.path()).await;
    assert_eq!(proxy.uploads(), []);
    drop(litestream);
}

async fn gives_back(mut store: Store) {
    let folder = tempfile::tempdir().unwrap();
    write_config(folder.path(), store.replica("w0/shard_0"));
    let connection = data(folder.path());
    let litestream = replicate(folder.path());
    sync(folder.path()).await;
    // A store that does not answer for a while, or is gone and comes back, loses nothing.
    if store.kind() != StoreKind::File {
        store.pause();
        insert(&connection, ROWS);
        store.resume();
        sync(folder.path()).await;
        store.kill();
        insert(&connection, 2 * ROWS);
        store.restart().await;
    } else {
        insert(&connection, ROWS);
        insert(&connection, 2 * ROWS);
    }
    sync(folder.path()).await;
    drop(litestream);
    let written = rows(&connection);
    assert_eq!(written.len(), 3_000);
    store.kill();
    store.restart().await;

    let output = command("restore", folder.path())
        .args(["-integrity-check", "full", "-o", "restored.db", "data.db"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let restored = open(&folder.path().join("restored.db"));
    assert_eq!(rows(&restored), written);
    if store.kind() != StoreKind::Azure {
        assert!(store.files().join("w0/shard_0").is_dir());
    }
}

/// A Litestream that ends when this is dropped.
struct Litestream(Child);

impl Drop for Litestream {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(subcommand: &str, folder: &Path) -> Command {
    let mut command = Command::new(litestream());
    command.current_dir(folder).env_remove("AWS_CA_BUNDLE").arg(subcommand);
    if subcommand != "sync" {
        command.args(["-config", "litestream.yml"]);
    }
    command
}

fn replicate(folder: &Path) -> Litestream {
    let log = File::create(folder.join("log")).unwrap();
    let errors = log.try_clone().unwrap();
    let mut command = command("replicate", folder);
    Litestream(command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().unwrap())
}

/// Waits until everything that is written now is in the store.
async fn sync(folder: &Path) {
    let mut said = String::new();
    let deadline = Instant::now() + TIMEOUT;
    loop {
        // A proxy may run beside this, in the same thread.
        let mut command = tokio::process::Command::from(command("sync", folder));
        command.args(["-socket", "socket", "-wait", "-timeout", "10", "data.db"]);
        let output = command.output().await.unwrap();
        if output.status.success() {
            return;
        }
        said += &String::from_utf8_lossy(&output.stderr);
        let log = || fs::read_to_string(folder.join("log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "nothing is synced: {said}\n{}", log());
    }
}

fn write_config(folder: &Path, replica: Value) {
    let config = json!({
        "socket": { "enabled": true, "path": folder.join("socket") },
        "dbs": [{ "path": folder.join("data.db"), "monitor-interval": "100ms", "replica": replica }],
    });
    // JSON is YAML too.
    fs::write(folder.join("litestream.yml"), config.to_string()).unwrap();
}

/// A file with rows in it.
fn data(folder: &Path) -> Connection {
    let connection = open(&folder.join("data.db"));
    connection
        .execute_batch(
            "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; PRAGMA busy_timeout = 5000;
             CREATE TABLE t (key INTEGER PRIMARY KEY, value TEXT)",
        )
        .unwrap();
    insert(&connection, 0);
    connection
}

fn insert(connection: &Connection, first: i64) {
    let mut insert = connection.prepare("INSERT INTO t VALUES (?1, hex(randomblob(20)))").unwrap();
    for key in first..first + ROWS {
        insert.execute([key]).unwrap();
    }
}

fn rows(connection: &Connection) -> Vec<(i64, String)> {
    let mut select = connection.prepare("SELECT key, value FROM t ORDER BY key").unwrap();
    let rows = select.query_map((), |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
    rows.map(Result::unwrap).collect()
}

#[expect(clippy::disallowed_methods, reason = "a file of the test's own")]
fn open(path: &Path) -> Connection {
    Connection::open(path).unwrap()
}
