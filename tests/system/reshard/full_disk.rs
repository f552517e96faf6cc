//! The disk is full from some step of a move on: the move is made or not made, and with room again it goes on.

use std::process::Command;

use litejoin_tests::wait::{TIMEOUT, until_within};
use litejoin_tests::worker::{Launch, WorkerSite, program, try_get};
use serde_json::Value;

use super::online::{moved, online, shard_count};
use super::{assert_whole, manifest, stored};

/// Runs the worker's program with the data on a small disk, and copies the data back to where it came from; `data` has all of
/// it in between. The disk is full from a point on.
fn on_small_disk(site: &WorkerSite, point: &str, run: &str) -> Launch {
    let script = format!(
        "mkdir small && mount -t tmpfs -o size=32m tmpfs small && cp -r data/. small && {run}; code=$?; \
         rm -f small/filler && rm -rf data && cp -r small data; exit $code"
    );
    let mut command = Command::new("unshare");
    // A test that is not run by root is root in a user namespace.
    command.args(["--mount", "--map-root-user", "sh", "-c", &script]).arg(program());
    let filler = site.path().join("small/filler");
    site.launch(command)
        .with_variable("LITEJOIN_FILL", point)
        .with_variable("LITEJOIN_FILLER", &filler.display().to_string())
}

/// The disk is full while a stopped pipeline is moved.
#[tokio::test]
async fn a_command_that_finds_no_room_leaves_data_to_go_on_with() {
    for point in [
        "shard-copied",
        "data-copied",
        "joins-noted",
        "copy-verified",
        "switch-prepared",
        "layout-switched",
        "shard-moved",
        "layout-aside",
        "joins-switched",
        "switch-settled",
    ] {
        let (site, last_id) = stored().await;
        let ended = on_small_disk(&site, point, "\"$0\" reshard --data-dir small --to 5").end().await;
        let said: String = ended.stderr.lines().filter(|line| !line.starts_with('{')).collect();
        eprintln!("{point}: {:?} {said} {}", ended.code, shard_count(&site));
        match ended.code {
            Some(0) => assert_eq!(shard_count(&site), 5, "{point}"),
            Some(1) => assert!(said.contains("the disk is full"), "{point}: {said}"),
            code => panic!("{point}: {code:?}: {said}"),
        }
        site.write("pipeline.yaml", manifest("shardCount: 5, reshard: {fromShardCount: 2, toShardCount: 5}"));
        let worker = site.start().await;
        let lineage = assert_whole(&site, &worker, 90).await;
        assert!(last_id.starts_with(&lineage), "{point}: ids go on");
        worker.stop().await;
        assert_eq!(shard_count(&site), 5, "{point}");
    }
}

/// The disk is full while the data is moved beside the worker.
#[tokio::test]
async fn a_worker_that_finds_no_room_goes_on_with_the_data_as_it_was_or_as_it_will_be() {
    for point in [
        "online-copied",
        "online-verified",
        "rest-followed",
        "rest-verified",
        "switch-prepared",
        "layout-switched",
        "shard-moved",
        "joins-switched",
        "switch-settled",
    ] {
        let (site, last_id) = stored().await;
        site.write("pipeline.yaml", online(2, 5));
        let run = "{ \"$0\" run -f pipeline.yaml --data-dir small --log-format json & } && pid=$! && \
                   trap 'kill -INT $pid' INT TERM && { wait $pid; wait $pid; }";
        let mut worker = on_small_disk(&site, point, run).start().await;
        let mut last = Value::Null;
        until_within(2 * TIMEOUT, "the end of the move, or of the worker", async || {
            if !worker.is_running() {
                return Some(());
            }
            let (_, body) = try_get(&worker.url("admin", "/status")).await.ok()?;
            last = serde_json::from_str::<Value>(&body).ok()?["reshard"].clone();
            ["Failed", "Done"].contains(&last["phase"].as_str()?).then_some(())
        })
        .await;
        let ended = if worker.is_running() { worker.stop().await } else { worker.ended().await };
        eprintln!("{point}: {last} {:?} {}", ended.code, shard_count(&site));
        if last["phase"] != "Done" {
            let said = format!("{last} {}", ended.stderr);
            assert!(said.contains("disk") && said.contains("full"), "{point}: {said}");
        }
        let worker = site.start().await;
        if shard_count(&site) == 2 {
            moved(&worker, 5).await;
        }
        let lineage = assert_whole(&site, &worker, 90).await;
        assert!(last_id.starts_with(&lineage), "{point}: ids go on");
        worker.stop().await;
        assert_eq!(shard_count(&site), 5, "{point}");
    }
}
