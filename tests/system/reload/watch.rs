//! `--watch`: files that change are applied without a signal.

use std::fs;
use std::os::unix::fs::symlink;

use litejoin_tests::worker::WorkerSite;

use super::{INGEST, LIVE, all, assert_applied, join, manifest};

#[tokio::test]
async fn a_watched_file_that_is_replaced_is_applied() {
    let site = WorkerSite::with(&manifest(INGEST, &all(), LIVE));
    let worker = site.run(["--watch"]).start().await;
    site.write("next.yaml", manifest(INGEST, &join("other", "SELECT key FROM orders"), LIVE));
    fs::rename(site.path().join("next.yaml"), site.path().join("pipeline.yaml"))
        .expect("a file can be renamed");
    assert_applied(&worker.reloaded(1).await);
    assert!(worker.status().await["joins"]["other"].is_object());
    // A wrong manifest is reported once, not at every look; the next reload shows that some looks have passed.
    site.write("pipeline.yaml", "{");
    assert_eq!(worker.reloaded(2).await["lastReload"]["ok"], false);
    site.write("pipeline.yaml", manifest(INGEST, &all(), LIVE));
    assert_applied(&worker.reloaded(3).await);
    assert_eq!(worker.reloads().await, 3);
    worker.stop().await;
}

#[tokio::test]
async fn a_config_that_lacked_a_secret_is_applied_when_that_comes() {
    let site = WorkerSite::with(&manifest(INGEST, &all(), LIVE));
    let secrets = site.path().join("secrets");
    let worker = site.run(["--watch", "--secrets-dir", "secrets"]).start().await;
    let guarded = "    - {name: guarded, sse: {addr: \"127.0.0.1:0\", auth: {bearer: {secretKeyRef: {name: door, key: token}}}}}";
    site.write("pipeline.yaml", manifest(INGEST, &all(), &format!("{LIVE}\n{guarded}")));
    let refused = worker.reloaded(1).await;
    assert_eq!(refused["lastReload"]["ok"], false, "{refused}");
    // An operator gathers keys in one folder.
    fs::create_dir_all(secrets.join("_gathered")).expect("a folder can be made");
    fs::write(secrets.join("_gathered/door..token"), "hunter2").expect("a file can be written");
    assert_applied(&worker.reloaded(2).await);
    worker.stop().await;
}

#[tokio::test]
async fn a_watched_folder_whose_link_is_swapped_is_applied() {
    // A ConfigMap is mounted like this: the file is a link to ..data/pipeline.yaml, and ..data a link that is replaced.
    let site = WorkerSite::new();
    let config = site.path().join("config");
    let write = |version: &str, joins: &str| {
        let folder = config.join(format!("..{version}"));
        fs::create_dir_all(&folder).expect("a folder can be made");
        fs::write(folder.join("pipeline.yaml"), manifest(INGEST, joins, LIVE))
            .expect("a file can be written");
        symlink(format!("..{version}"), config.join("..data_tmp")).expect("a link can be made");
        fs::rename(config.join("..data_tmp"), config.join("..data")).expect("a link can be replaced");
    };
    write("2026_05_01", &all());
    symlink("..data/pipeline.yaml", config.join("pipeline.yaml")).expect("a link can be made");
    let arguments = ["run", "-f", "config", "--watch", "--data-dir", "data", "--log-format", "json"];
    let worker = site.command(arguments).start().await;
    write("2026_05_02", &join("other", "SELECT key FROM orders"));
    fs::remove_dir_all(config.join("..2026_05_01")).expect("a folder can be removed");
    assert_applied(&worker.reloaded(1).await);
    assert!(worker.status().await["joins"]["other"].is_object());
    worker.stop().await;
}
