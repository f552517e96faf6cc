//! The gate of the join engine: random pipelines under random load, held to SQLite after every batch; and faults
//! put into the engine on purpose, each of which it must see.

use std::cell::Cell;

use futures::stream::{self, StreamExt, TryStreamExt};
use litejoin_tests::fuzz;
use litejoin_tests::fuzz::run::Sabotage;
use litejoin_tests::fuzz::script::{BATCHES_A_ROUND, ROUNDS, ROUNDS_LONG};
use litejoin_tests::repetition::endless_seeds;

/// Rounds that are played at once. They wait for commits now and then.
const AT_ONCE: usize = 3;

/// Rounds after which progress is told.
const ROUNDS_A_LINE: u64 = 20;

/// Batches within which every sabotage must be seen.
const BATCHES_UNTIL_CAUGHT: u64 = 500;

#[tokio::test]
async fn folded_deltas_are_what_sqlite_says_after_every_batch() {
    let seeds = stream::iter(endless_seeds(ROUNDS, ROUNDS_LONG));
    let played = Cell::new(0);
    let rounds = seeds.map(Ok).try_for_each_concurrent(AT_ONCE, async |seed| {
        fuzz::round(seed).await?;
        played.set(played.get() + 1);
        if played.get() % ROUNDS_A_LINE == 0 {
            eprintln!("{} batches in {} rounds: no difference", played.get() * BATCHES_A_ROUND, played.get());
        }
        Ok::<(), String>(())
    });
    if let Err(report) = rounds.await {
        panic!("{report}");
    }
}

#[tokio::test]
async fn every_sabotage_is_seen() {
    for sabotage in Sabotage::ALL {
        let seeds = 1..=BATCHES_UNTIL_CAUGHT / BATCHES_A_ROUND;
        let caught = fuzz::catch(sabotage, seeds).await;
        assert!(caught.is_some(), "{} was not seen in {BATCHES_UNTIL_CAUGHT} batches", sabotage.name());
    }
}
