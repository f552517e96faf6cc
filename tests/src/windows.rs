//! Random windows over random rows, held to a model that is written as plain loops: after every round the snapshot and
//! the folded events of each window are what the model says, no event tells what was told before, each closed result
//! was told as final, and the dead letters are the rows that came too late. A seed makes a script; [`drive::play`]
//! plays it to the built worker.
//!
//! ```text
//! seed ─► script: definitions of windows, rounds of a clock and messages ─┬─► worker ─► snapshots, events, dead letters
//!                                                                         └─► model  ─► the same, by plain loops
//! ```
//! The generator takes no round whose outcome depends on how its messages are spread over epochs, since that is the
//! worker's choice: the model plays each round in several orders, which must agree.

pub mod definition;
pub mod drive;
pub mod frames;
pub mod generator;
pub mod model;
pub mod zone;

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

use self::drive::WindowSabotage;
use self::generator::WindowScript;

/// Plays the script of a seed. The error says what was wrong.
pub async fn round(seed: u64) -> Result<(), String> {
    match played(seed, None).await {
        Some(Ok(())) => Ok(()),
        Some(Err(difference)) => Err(format!("seed {seed}, {difference}\n\nLITEJOIN_SEED={seed} replays it")),
        None => {
            Err(format!("seed {seed}: the worker failed, as said above; LITEJOIN_SEED={seed} replays it"))
        }
    }
}

/// Plays the scripts of seeds to a sabotaged worker, until one sees it; returns the seed.
pub async fn catch(sabotage: WindowSabotage, seeds: impl IntoIterator<Item = u64>) -> Option<u64> {
    for seed in seeds {
        if let Some(Err(difference)) = played(seed, Some(sabotage)).await {
            eprintln!("{}: seed {seed}, {difference}", sabotage.name());
            return Some(seed);
        }
    }
    None
}

/// What playing a script came to; none if the worker failed, which has been said then.
async fn played(seed: u64, sabotage: Option<WindowSabotage>) -> Option<Result<(), String>> {
    let script = WindowScript::random(seed);
    AssertUnwindSafe(drive::play(&script, sabotage)).catch_unwind().await.ok()
}
