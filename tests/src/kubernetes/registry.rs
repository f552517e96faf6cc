//! What an API server has stored: the keys and values of its etcd, and files of them that outlive the server. No uid,
//! hash or field manager changes on the way, as it would if the objects were created anew.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use crate::client::client;
use crate::wait::until;

/// The first part of every key.
const PREFIX: &str = "/registry/";
/// The first key behind all that begin with [`PREFIX`].
const PREFIX_END: &str = "/registry0";

/// The etcd of an API server.
pub(super) struct Registry {
    url: String,
}

impl Registry {
    /// The etcd at this URL.
    pub(super) fn at(url: &str) -> Self {
        Self { url: url.to_owned() }
    }

    /// Waits until etcd answers, and stores each file of a folder under its path. etcd takes all of them at once, so
    /// no controller sees an object without its owner.
    pub(super) async fn restore(&self, folder: &Path) {
        let mut values = Vec::new();
        collect(folder, "", &mut values);
        assert!(!values.is_empty(), "{} has no files", folder.display());
        let puts = values.iter().map(|(key, value)| {
            json!({ "requestPut": { "key": BASE64.encode(key), "value": BASE64.encode(value) } })
        });
        let transaction = json!({ "success": puts.collect::<Vec<_>>() });
        let answer = until("etcd to answer", async || self.ask("txn", &transaction).await).await;
        assert_eq!(answer["succeeded"], true, "{answer}");
    }

    /// Writes all values whose keys are wanted to a folder, each to the file that its key names.
    pub(super) async fn keep(&self, is_wanted: impl Fn(&str) -> bool, folder: &Path) {
        let range = json!({ "key": BASE64.encode(PREFIX), "rangeEnd": BASE64.encode(PREFIX_END) });
        let answer = self.ask("range", &range).await.expect("etcd answers");
        let decoded = |entry: &Value, field: &str| {
            BASE64.decode(entry[field].as_str().expect("a text")).expect("etcd writes base64")
        };
        for entry in answer["kvs"].as_array().expect("there are keys") {
            let key = String::from_utf8(decoded(entry, "key")).expect("a key is text");
            if is_wanted(&key) {
                let path = folder.join(key.trim_start_matches('/'));
                fs::create_dir_all(path.parent().expect("a key has parts")).expect("the folder is ours");
                fs::write(path, decoded(entry, "value")).expect("the folder is ours");
            }
        }
    }

    async fn ask(&self, what: &str, request: &Value) -> Option<Value> {
        let url = format!("{}/v3/kv/{what}", self.url);
        let answer = client().post(url).body(request.to_string()).send().await.ok()?;
        let text = answer.text().await.expect("etcd answers whole");
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"));
        assert!(answer["error"].is_null(), "etcd: {text}");
        Some(answer)
    }
}

/// Collects the files of a folder with their keys.
fn collect(folder: &Path, key: &str, values: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let path = entry.expect("a folder can be listed").path();
        let name = path.file_name().and_then(|name| name.to_str()).expect("a name is text");
        let key = format!("{key}/{name}");
        if path.is_dir() {
            collect(&path, &key, values);
        } else {
            values.push((key, fs::read(&path).expect("a file can be read")));
        }
    }
}
