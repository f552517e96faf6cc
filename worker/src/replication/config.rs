//! The configuration that Litestream is given. Litestream ignores keys that it does not know, so the file is not written by hand: it
//! is made of checked values, and a test asks Litestream what it has understood. JSON is YAML, and quotes itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use litejoin_crds::plan::{Encryption, Replication};
use serde_json::{Map, Value, json};

use super::location::{Backend, ReplicaLocation};

/// How long Litestream tries to ship the last of one file when it ends; it takes one file after another.
pub(crate) const LAST_SYNC_TIMEOUT: Duration = Duration::from_secs(3);

/// How often Litestream looks at a WAL at most, so that it is moved into the file in time.
const MONITOR_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// How long Litestream keeps what it shipped one by one, after it was put together: for so long a restore finds any
/// transaction, and then only every thirtieth second.
pub(crate) const FINE_GRAIN_KEPT: Duration = Duration::from_secs(15 * 60);

/// A file that is replicated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplicatedFile {
    /// Its name in the replica, such as `shard_0.db`.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
}

/// Variables that tell of an sftp server what a URL has no place for: the path of the private key, and the server's
/// public key as `known_hosts` has it.
pub(crate) const SFTP_KEY_PATH: &str = "LITEJOIN_SFTP_KEY_PATH";
/// See [`SFTP_KEY_PATH`].
pub(crate) const SFTP_HOST_KEY: &str = "LITEJOIN_SFTP_HOST_KEY";

/// The variable that names the file with the key by which S3 encrypts, where its owner keeps it.
pub(crate) const SSE_CUSTOMER_KEY_PATH: &str = "LITEJOIN_SSE_CUSTOMER_KEY_PATH";

/// Litestream's configuration: copy these files to below `incarnation`. `variable` looks into the environment, of which
/// nothing secret is taken.
pub(crate) fn litestream(
    replication: &Replication,
    incarnation: &ReplicaLocation,
    files: &[ReplicatedFile],
    socket: Option<&Path>,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Value {
    let databases: Vec<Value> = files
        .iter()
        .map(|file| {
            json!({
                "path": file.path,
                "monitor-interval": duration(replication.sync_interval.min(MONITOR_INTERVAL_MAX)),
                // No TRUNCATE from some size of a WAL on: it keeps all of us out until the file was copied whole.
                "truncate-page-n": -1,
                "replica": replica(replication, &incarnation.join(&file.name), variable),
            })
        })
        .collect();
    let mut config = json!({
        "logging": {"level": "info", "type": "json", "stderr": true},
        "snapshot": {
            "interval": duration(replication.snapshot_interval),
            "retention": duration(replication.retention),
        },
        "l0-retention": duration(FINE_GRAIN_KEPT),
        "shutdown-sync-timeout": duration(LAST_SYNC_TIMEOUT),
        "dbs": databases,
    });
    if let Some(path) = socket {
        config["socket"] = json!({"enabled": true, "path": path});
    }
    config
}

fn replica(
    replication: &Replication,
    location: &ReplicaLocation,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Value {
    let path = &location.path;
    let rooted = format!("/{path}");
    let mut settings = match &location.backend {
        Backend::S3 { bucket } => json!({"type": "s3", "bucket": bucket, "path": path}),
        // Litestream knows no gcs.
        Backend::Gcs { bucket } => json!({"type": "gs", "bucket": bucket, "path": path}),
        Backend::Abs { account, container } => {
            json!({"type": "abs", "account-name": account, "bucket": container, "path": path})
        }
        Backend::Sftp { host, port, user } => json!({
            "type": "sftp",
            "host": format!("{host}:{port}"),
            "user": user,
            "path": rooted,
            "key-path": variable(SFTP_KEY_PATH),
            "host-key": variable(SFTP_HOST_KEY),
        }),
        Backend::File => json!({"type": "file", "path": rooted}),
    };
    let of_s3 = matches!(location.backend, Backend::S3 { .. });
    let of_http = of_s3 || matches!(location.backend, Backend::Abs { .. });
    let (kms_key, customer_key) = match replication.encryption.as_ref().filter(|_| of_s3) {
        Some(Encryption::Kms { key_id }) => (Some(key_id.clone()), None),
        Some(Encryption::CustomerKey) => (None, variable(SSE_CUSTOMER_KEY_PATH)),
        None => (None, None),
    };
    let more = [
        ("endpoint", replication.endpoint.clone().filter(|_| of_http)),
        ("region", replication.region.clone().filter(|_| of_s3)),
        ("sse-kms-key-id", kms_key),
        ("sse-customer-key-path", customer_key),
    ];
    let settings_map = settings.as_object_mut().expect("it is written as an object above");
    settings_map.retain(|_, value| !value.is_null());
    settings_map.extend(more.into_iter().filter_map(|(key, value)| Some((key.to_owned(), json!(value?)))));
    if of_s3 && replication.endpoint.is_some() {
        settings_map.insert("force-path-style".to_owned(), json!(true));
    }
    settings_map.insert("sync-interval".to_owned(), json!(duration(replication.sync_interval)));
    Value::Object(std::mem::take::<Map<String, Value>>(settings_map))
}

/// As Go reads it.
fn duration(duration: Duration) -> String {
    format!("{}ms", duration.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    use expect_test::expect;
    use litejoin_crds::replication::{ReplicationMode, RestorePolicy};

    fn replication(url: &str) -> Replication {
        Replication {
            mode: ReplicationMode::Embedded,
            replica_url: url.to_owned(),
            sync_interval: Duration::from_millis(200),
            snapshot_interval: Duration::from_secs(3_600),
            retention: Duration::from_secs(72 * 3_600),
            restore_on_boot: true,
            credentials_secret: None,
            endpoint: None,
            region: None,
            encryption: None,
            restore: RestorePolicy::Auto,
            restore_timestamp: None,
            restore_from_url: None,
            begin_anew: None,
            results_wait: false,
        }
    }

    fn replica_of(replication: &Replication) -> String {
        let location =
            ReplicaLocation::parse(&replication.replica_url).unwrap().join("n/p/0/incarnation-1-x");
        let file = ReplicatedFile { name: "shard_0.db".to_owned(), path: PathBuf::from("/data/shard_0.db") };
        let variable = |name: &str| match name {
            SFTP_KEY_PATH => Some("/keys/id".to_owned()),
            SSE_CUSTOMER_KEY_PATH => Some("/keys/sse".to_owned()),
            _ => None,
        };
        litestream(replication, &location, &[file], None, &variable)["dbs"][0]["replica"].to_string()
    }

    #[test]
    fn each_backend_has_its_own_keys() {
        let s3 = Replication {
            endpoint: Some("http://minio:9000".to_owned()),
            region: Some("eu-west-1".to_owned()),
            encryption: Some(Encryption::Kms { key_id: "alias/k".to_owned() }),
            ..replication("s3://b/x")
        };
        let own_key = Replication { encryption: Some(Encryption::CustomerKey), ..replication("s3://b/x") };
        let all: Vec<String> = [
            s3,
            own_key,
            replication("gcs://b/x"),
            replication("abs://acct@c/x"),
            replication("sftp://me@h/srv"),
            replication("file:///srv/$x"),
        ]
        .iter()
        .map(|replication| replica_of(replication) + "\n")
        .collect();
        expect![[r#"
            {"bucket":"b","endpoint":"http://minio:9000","force-path-style":true,"path":"x/n/p/0/incarnation-1-x/shard_0.db","region":"eu-west-1","sse-kms-key-id":"alias/k","sync-interval":"200ms","type":"s3"}
            {"bucket":"b","path":"x/n/p/0/incarnation-1-x/shard_0.db","sse-customer-key-path":"/keys/sse","sync-interval":"200ms","type":"s3"}
            {"bucket":"b","path":"x/n/p/0/incarnation-1-x/shard_0.db","sync-interval":"200ms","type":"gs"}
            {"account-name":"acct","bucket":"c","path":"x/n/p/0/incarnation-1-x/shard_0.db","sync-interval":"200ms","type":"abs"}
            {"host":"h:22","key-path":"/keys/id","path":"/srv/n/p/0/incarnation-1-x/shard_0.db","sync-interval":"200ms","type":"sftp","user":"me"}
            {"path":"/srv/$x/n/p/0/incarnation-1-x/shard_0.db","sync-interval":"200ms","type":"file"}
        "#]]
        .assert_eq(&all.concat());
    }

    #[test]
    fn what_holds_for_all_files_stands_above_them() {
        let location = ReplicaLocation::parse("file:///r").unwrap();
        let mut config =
            litestream(&replication("file:///r"), &location, &[], Some(Path::new("/d/l.sock")), &|_| None);
        config["dbs"].take();
        expect![[r#"{"dbs":null,"l0-retention":"900000ms","logging":{"level":"info","stderr":true,"type":"json"},"shutdown-sync-timeout":"3000ms","snapshot":{"interval":"3600000ms","retention":"259200000ms"},"socket":{"enabled":true,"path":"/d/l.sock"}}"#]]
        .assert_eq(&config.to_string());
    }
}
