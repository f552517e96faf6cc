//! Random pipelines under random load, held to SQLite: after every batch the results that a subscriber has been told
//! are those of the query over all rows. A number makes a [`Script`], which is all that happens in one round;
//! [`run`](run::run) plays it to the built worker; [`shrink`](shrink::shrink) takes away what a mismatch does not
//! need.
//!
//! ```text
//! seed ─► schema (topics, messages) ─► queries (a function for each class of SQL) ─► script ─► run ─► mismatch?
//!                                                                                      ▲                  │
//!                                                                                      └──── shrink ◄─────┘
//! ```
//! The generator makes no query whose rows SQLite itself leaves open, but for how equal numbers are spelled: 5 or 5.0 may
//! stand for a group that holds both, and [`spelling`] compares up to it. A test asks each query over rows that come in
//! another order.

pub mod queries;
pub mod repro;
pub mod run;
pub mod schema;
pub mod script;
pub mod shrink;
pub mod spelling;
pub mod tables;

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

use self::run::{Mismatch, Sabotage, run};
use self::script::Script;

/// Plays the round of a seed. The error says what was wrong, with the smallest case found that shows it.
pub async fn round(seed: u64) -> Result<(), String> {
    let script = Script::random(seed);
    let replay = format!("LITEJOIN_SEED={seed} replays the round");
    match played(&script, None).await {
        Some(Ok(())) => Ok(()),
        None => Err(format!("seed {seed}: the worker failed, as said above; {replay}")),
        Some(Err(mismatch)) => {
            eprintln!("seed {seed}, {mismatch}\nlooking for a smaller case");
            let name = &mismatch.join.name;
            let fails = async |script: &Script| match played(script, None).await {
                Some(Err(mismatch)) if mismatch.join.name == *name => Some(mismatch.step),
                _ => None,
            };
            let smaller = shrink::shrink(script, mismatch.step, name, fails).await;
            let case = repro::golden_case(&smaller, &mismatch.join);
            Err(format!("seed {seed}, {mismatch}\n\n{replay}; as a case for tests/cases/join:\n\n{case}"))
        }
    }
}

/// Plays the rounds of seeds to a sabotaged worker, until one sees it; returns the seed.
pub async fn catch(sabotage: Sabotage, seeds: impl IntoIterator<Item = u64>) -> Option<u64> {
    for seed in seeds {
        if let Some(Err(mismatch)) = played(&Script::random(seed), Some(sabotage)).await {
            eprintln!("{}: seed {seed}, {mismatch}", sabotage.name());
            return Some(seed);
        }
    }
    None
}

/// What playing a script came to; none if the worker failed, which has been said then.
async fn played(script: &Script, sabotage: Option<Sabotage>) -> Option<Result<(), Mismatch>> {
    AssertUnwindSafe(run(script, sabotage)).catch_unwind().await.ok()
}
