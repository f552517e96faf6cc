//! The gates of the engine: random joins under random load, held to SQLite after every batch, and random windows, held
//! to a model; and faults put into the engine on purpose, each of which they must see.

use std::cell::Cell;

use futures::stream::{self, StreamExt, TryStreamExt};
use litejoin_tests::fuzz;
use litejoin_tests::fuzz::run::Sabotage;
use litejoin_tests::fuzz::script::{BATCHES_A_ROUND, ROUNDS, ROUNDS_LONG};
use litejoin_tests::repetition::{endless_seeds, is_endless};
use litejoin_tests::windows;
use litejoin_tests::windows::drive::WindowSabotage;
use litejoin_tests::windows::generator::{ROUNDS_A_SCRIPT, SCRIPTS, SCRIPTS_LONG};

/// Rounds that are played at once. They wait for commits now and then.
const AT_ONCE: usize = 3;

/// Rounds after which progress is told.
const ROUNDS_A_LINE: u64 = 20;

/// Batches within which every sabotage must be seen.
const BATCHES_UNTIL_CAUGHT: u64 = 500;

/// Fails the test. In an endless run it ends the process, since the other gate would go on for ever.
fn fail(report: String) {
    if is_endless() {
        eprintln!("{report}");
        std::process::exit(1);
    }
    panic!("{report}");
}

#[tokio::test]
async fn folded_deltas_are_what_sqlite_says_after_every_batch() {
    let seeds = stream::iter(endless_seeds(ROUNDS, ROUNDS_LONG));
    let played = Cell::new(0_u64);
    let rounds = seeds.map(Ok).try_for_each_concurrent(AT_ONCE, async |seed| {
        fuzz::round(seed).await?;
        played.set(played.get() + 1);
        if played.get().is_multiple_of(ROUNDS_A_LINE) {
            eprintln!("{} batches in {} rounds: no difference", played.get() * BATCHES_A_ROUND, played.get());
        }
        Ok::<(), String>(())
    });
    rounds.await.unwrap_or_else(fail);
}

#[tokio::test]
async fn every_sabotage_is_seen() {
    for sabotage in Sabotage::ALL {
        let seeds = 1..=BATCHES_UNTIL_CAUGHT / BATCHES_A_ROUND;
        let caught = fuzz::catch(sabotage, seeds).await;
        assert!(caught.is_some(), "{} was not seen in {BATCHES_UNTIL_CAUGHT} batches", sabotage.name());
    }
}

#[tokio::test]
async fn windows_match_the_oracle() {
    let seeds = stream::iter(endless_seeds(SCRIPTS, SCRIPTS_LONG));
    let played = Cell::new(0_u64);
    let scripts = seeds.map(Ok).try_for_each_concurrent(AT_ONCE, async |seed| {
        windows::round(seed).await?;
        played.set(played.get() + 1);
        if played.get().is_multiple_of(ROUNDS_A_LINE) {
            let batches = played.get() * ROUNDS_A_SCRIPT;
            eprintln!("{batches} batches of windows in {} scripts: no difference", played.get());
        }
        Ok::<(), String>(())
    });
    scripts.await.unwrap_or_else(fail);
}

#[tokio::test]
async fn every_sabotage_of_windows_is_seen() {
    for sabotage in WindowSabotage::ALL {
        let seeds = 1..=BATCHES_UNTIL_CAUGHT / ROUNDS_A_SCRIPT;
        let caught = windows::catch(sabotage, seeds).await;
        assert!(caught.is_some(), "{} was not seen in {BATCHES_UNTIL_CAUGHT} batches", sabotage.name());
    }
}
