//! Data that goes to another number of shards beside the worker while a Litestream that is not its child replicates it.

use std::process::Command;

use litejoin_tests::stores::{Store, litestream};
use litejoin_tests::wait::until;
use litejoin_tests::worker::{Launch, Worker};
use serde_json::{Value, json};

use super::by_hand::by_hand;
use super::reshard::{reshard_online, shard_names, shards};
use super::{Replicated, keys, names, put_all, ready, replicated};
use crate::reshard::online::moved;

/// Points between a Litestream beside the worker and one of its own.
const POINTS: [&str; 2] = ["litestream-emptied", "litestream-taken-over"];

/// The names of the points.
pub(crate) fn points() -> impl Iterator<Item = &'static str> {
    POINTS.into_iter()
}

impl Replicated {
    /// A Litestream beside the worker, as kubelet or systemd keeps it.
    fn litestream(&self) -> Launch {
        let mut command = Command::new("setpriv");
        // Its S3 client fails where this variable is set.
        command.args(["--pdeathsig", "KILL", "env", "-u", "AWS_CA_BUNDLE"]).arg(litestream());
        command.args(["replicate", "-no-expand-env", "-config", "data/litestream.yml"]);
        self.with_environment(self.site.launch(command))
    }

    /// Starts both, as a new pod does.
    async fn start_pod(&self) -> (Worker, Worker) {
        by_hand(self, &["replication", "prepare"]).await;
        (self.litestream().spawn(), self.start().await)
    }

    /// The files that the Litestream beside the worker is to have.
    fn files_beside(&self) -> usize {
        let config = std::fs::read(self.site.data_dir().join("litestream.yml")).expect("it was written");
        let config: Value = serde_json::from_slice(&config).expect("it is JSON");
        config["dbs"].as_array().expect("a list").len()
    }
}

/// A pipeline whose data is replicated by a Litestream beside it.
async fn beside(store: &Store) -> Replicated {
    let pipeline = Replicated::to(store, &json!({"mode": "sidecar"}));
    let (litestream, worker) = pipeline.start_pod().await;
    put_all(&worker, &names("k", 3)).await;
    ready(&worker).await;
    worker.stop().await;
    litestream.stop().await;
    pipeline
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_litestream_beside_the_worker_leaves_moved_data_to_it() {
    let store = Store::s3().await;
    let pipeline = beside(&store).await;
    let (mut litestream, worker) = pipeline.start_pod().await;
    assert_eq!(pipeline.files_beside(), 6);
    reshard_online(&pipeline, 3, 5);
    worker.signal("HUP");
    eprintln!("{}", moved(&worker, 5).await["message"]);
    let mut all = names("k", 3);
    put_all(&worker, &names("moved", 2)).await;
    assert!(ready(&worker).await.starts_with("incarnation-2-"));
    replicated(&worker).await;
    all.extend(names("moved", 2));
    assert_eq!((pipeline.files_beside(), litestream.is_running()), (0, true), "it idles");
    worker.kill().await;
    litestream.kill().await;
    let litestream = pipeline.litestream().spawn();
    let worker = pipeline.start().await;
    put_all(&worker, &names("killed", 2)).await;
    replicated(&worker).await;
    all.extend(names("killed", 2));
    assert_eq!(pipeline.files_beside(), 0, "the worker has them still");
    worker.stop().await;
    litestream.stop().await;
    assert_eq!(shards(&pipeline), shard_names(5));

    // A new pod begins with a Litestream beside the worker again, also on an empty disk.
    for _ in 0..2 {
        let (litestream, worker) = pipeline.start_pod().await;
        assert_eq!(keys(&worker).await, all);
        put_all(&worker, &names("anew", 2)).await;
        all.extend(names("anew", 2));
        replicated(&worker).await;
        ready(&worker).await;
        assert_eq!(pipeline.files_beside(), 8);
        worker.stop().await;
        litestream.stop().await;
        pipeline.lose_disk();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_dies_as_it_takes_the_files_over_goes_on() {
    for point in POINTS {
        let store = Store::file().await;
        let pipeline = beside(&store).await;
        by_hand(&pipeline, &["replication", "prepare"]).await;
        let litestream = pipeline.litestream().spawn();
        reshard_online(&pipeline, 3, 5);
        let died = pipeline.run([]).with_variable("LITEJOIN_FAULT", point).end().await;
        assert_eq!(died.code, None, "{point}: {}", died.stderr);
        let worker = pipeline.start().await;
        moved(&worker, 5).await;
        put_all(&worker, &names("more", 2)).await;
        replicated(&worker).await;
        let all = &names("k", 3) | &names("more", 2);
        assert_eq!(keys(&worker).await, all, "{point}");
        ready(&worker).await;
        worker.stop().await;
        litestream.stop().await;
        pipeline.lose_disk();
        let (litestream, worker) = pipeline.start_pod().await;
        assert_eq!(keys(&worker).await, all, "{point}");
        worker.stop().await;
        litestream.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_answer_of_the_litestream_beside_it_the_switch_waits() {
    let store = Store::file().await;
    let pipeline = beside(&store).await;
    by_hand(&pipeline, &["replication", "prepare"]).await;
    reshard_online(&pipeline, 3, 5);
    let worker = pipeline.start().await;
    until("the word that it does not answer", async || {
        let message = worker.status().await["reshard"]["message"].clone();
        message.as_str().is_some_and(|message| message.contains("see whether it runs")).then_some(())
    })
    .await;
    put_all(&worker, &names("more", 2)).await;
    let litestream = pipeline.litestream().spawn();
    moved(&worker, 5).await;
    assert_eq!(keys(&worker).await, &names("k", 3) | &names("more", 2));
    worker.stop().await;
    litestream.stop().await;
}
