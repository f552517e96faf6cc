//! Death at every named place in turn (`LITEJOIN_FAULT`), the first time it is reached and some later times.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Instant;

use litejoin_tests::repetition::seeds;
use litejoin_tests::wait::TIMEOUT;

use super::power;
use super::run::FaultRun;

/// How a worker comes to the point at which it is to die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trigger {
    /// Messages.
    Load,
    /// Messages, each batch with one that concerns very many results.
    WideLoad,
    /// Messages over some time: delivered events are trimmed about once a second.
    Trim,
    /// A start with another query, which needs other indexes, and messages.
    OtherQuery,
    /// Another query by a reload amid the load.
    Reload,
    /// A start with rows that are too old.
    Expiry,
    /// A start with another number of shards, after a worker that was killed or stopped.
    Reshard,
    /// Messages while the data goes to another number of shards.
    Online,
}

/// Points and their triggers, in the order in which a batch passes them.
const POINTS: [(&str, Trigger); 42] = [
    ("index-built", Trigger::OtherQuery),
    ("shard-prepared", Trigger::OtherQuery),
    ("log-trimmed", Trigger::Load),
    ("batch-written", Trigger::Load),
    ("batch-committed", Trigger::Load),
    ("rows-expired", Trigger::Expiry),
    ("cut", Trigger::Load),
    ("log-read", Trigger::Load),
    ("keys-found", Trigger::Load),
    ("share-taken", Trigger::WideLoad),
    ("evaluated", Trigger::Load),
    ("copied", Trigger::Load),
    ("copied", Trigger::OtherQuery),
    ("evaluated-in-background", Trigger::Load),
    ("slice-stored", Trigger::OtherQuery),
    ("result-stored", Trigger::Load),
    ("results-written", Trigger::Load),
    ("results-committed", Trigger::Load),
    ("delivered", Trigger::Load),
    ("cursor-moved", Trigger::Load),
    ("outbox-trimmed", Trigger::Trim),
    ("joins-registered", Trigger::Reload),
    ("evaluator-resumed", Trigger::Reload),
    ("shard-copied", Trigger::Reshard),
    ("data-copied", Trigger::Reshard),
    ("joins-noted", Trigger::Reshard),
    ("copy-verified", Trigger::Reshard),
    ("switch-prepared", Trigger::Reshard),
    ("layout-switched", Trigger::Reshard),
    ("shard-moved", Trigger::Reshard),
    ("layout-aside", Trigger::Reshard),
    ("joins-switched", Trigger::Reshard),
    ("switch-settled", Trigger::Reshard),
    ("online-copied", Trigger::Online),
    ("online-verified", Trigger::Online),
    ("rest-followed", Trigger::Online),
    ("rest-verified", Trigger::Online),
    ("switch-prepared", Trigger::Online),
    ("layout-switched", Trigger::Online),
    ("shard-moved", Trigger::Online),
    ("joins-switched", Trigger::Online),
    ("switch-settled", Trigger::Online),
];

/// Batches after which a point that was not reached will not be.
const BATCHES_MAX: u32 = 2_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amid_messages() {
    die_at_all(Trigger::Load).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amid_messages_that_concern_very_much() {
    die_at_all(Trigger::WideLoad).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amid_the_trimming_of_what_was_delivered() {
    die_at_all(Trigger::Trim).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_start_with_another_query() {
    die_at_all(Trigger::OtherQuery).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amid_a_reload() {
    die_at_all(Trigger::Reload).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amid_expiry() {
    die_at_all(Trigger::Expiry).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_a_start_with_another_number_of_shards() {
    die_at_all(Trigger::Reshard).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn amid_a_move_to_another_number_of_shards() {
    die_at_all(Trigger::Online).await;
}

/// A worker that dies at any step loses nothing and repeats nothing.
async fn die_at_all(by: Trigger) {
    for (point, trigger) in POINTS.into_iter().filter(|(_, trigger)| *trigger == by) {
        let mut run = FaultRun::new(if trigger == Trigger::Trim { "1s" } else { "10m" });
        run.resets_allowed = trigger == Trigger::Trim;
        run.is_wide = trigger == Trigger::WideLoad;
        let times: Vec<u64> = match trigger {
            Trigger::Load => seeds(2, 20).into_iter().map(|seed| seed * (seed + 1) / 2).collect(),
            Trigger::WideLoad => seeds(2, 8),
            Trigger::Trim => seeds(2, 20),
            // Each shard of the layout of before is moved, then each of the new one.
            Trigger::Reshard if point == "shard-moved" => vec![1, 2, 4, 5],
            Trigger::Online if point == "shard-moved" => vec![2, 4],
            Trigger::Reshard | Trigger::Online => vec![1],
            _ => seeds(1, 3),
        };
        for n in times {
            die(&mut run, trigger, point, n).await;
            run.expire(false);
            run.end_online();
            let live = run.start_well().await;
            run.settle(live).await;
        }
    }
}

#[test]
fn every_point_of_the_worker_is_tried() {
    let mut named = BTreeSet::new();
    gather(Path::new(env!("CARGO_MANIFEST_DIR")).join("../worker/src").as_path(), &mut named);
    let tried = POINTS.iter().map(|(point, _)| *point).chain(power::points());
    let tried = tried.chain(crate::kafka::sink::points()).chain(crate::replication::points::points());
    let tried = tried.chain(crate::starting::points()).chain(crate::replication::takeover::points());
    assert_eq!(named, tried.map(str::to_owned).collect(), "fault::point(…) on the left, tests on the right");
}

/// Finds the names of all points in the sources of a folder.
fn gather(folder: &Path, named: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder can be listed") {
        let path = entry.expect("a folder can be listed").path();
        if path.is_dir() {
            gather(&path, named);
        } else {
            let text = fs::read_to_string(&path).expect("sources are text");
            let names = text.split("fault::point(\"").skip(1).filter_map(|rest| rest.split('"').next());
            named.extend(names.map(str::to_owned));
        }
    }
}

/// Lets a worker run until it dies at the point, which is passed `n - 1` times before.
async fn die(run: &mut FaultRun, trigger: Trigger, point: &str, n: u64) {
    run.what = format!("LITEJOIN_FAULT={point}:{n} ({trigger:?})");
    eprintln!("{}", run.what);
    match trigger {
        Trigger::Load | Trigger::WideLoad | Trigger::Trim | Trigger::Reload => {}
        Trigger::OtherQuery => run.change_query(),
        Trigger::Reshard | Trigger::Online => {
            let live = run.start_well().await;
            for _ in 0..20 {
                assert!(run.send(&live).await);
            }
            if n % 2 == 0 {
                run.stop(live).await;
            } else {
                run.kill(live).await;
            }
            if trigger == Trigger::Online { run.reshard_online() } else { run.reshard() }
        }
        Trigger::Expiry => {
            let live = run.start_well().await;
            for _ in 0..20 {
                assert!(run.send(&live).await);
            }
            run.settle(live).await;
            run.expire(true);
        }
    }
    let Some(live) = run.start(Some(("LITEJOIN_FAULT", &format!("{point}:{n}")))).await else { return };
    let began = Instant::now();
    // How many messages come beside a move depends on the machine.
    let goes_on = |number| match trigger {
        Trigger::Online => began.elapsed() < TIMEOUT,
        _ => number < BATCHES_MAX,
    };
    for number in (0..).take_while(|number| goes_on(*number)) {
        if trigger == Trigger::Reload && number % 10 == 5 {
            run.change_query();
            live.worker.signal("HUP");
        }
        if !run.send(&live).await {
            run.bury(live).await;
            return;
        }
    }
    panic!("{}: it was never reached", run.what);
}
