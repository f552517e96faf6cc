//! Random pipelines under random load, held to SQLite: after every batch the results that a subscriber has been told
//! are those of the query over all rows. A number makes a [`script::Script`], which is all that happens in one round;
//! [`run`](run::run) plays it to the built worker; [`shrink`] takes away what a mismatch does not need.
//!
//! ```text
//! seed ─► schema (topics, messages) ─► queries (a function for each class of SQL) ─► script ─► run ─► mismatch?
//!                                                                          ▲                     │
//!                                                                          └────── shrink ◄──────┘
//! ```
//! The generator makes no query whose rows SQLite itself leaves open; a test runs each over rows that come in
//! another order.

pub mod queries;
pub mod repro;
pub mod run;
pub mod schema;
pub mod script;
pub mod shrink;
pub mod tables;

use std::panic::AssertUnwindSafe;

use futures::FutureExt;

use self::script::Script;

/// Plays the round of a seed.
///
/// # Panics
/// If results differ from SQLite's, with the smallest script found that shows it; or if the worker fails.
pub async fn round(seed: u64) {
    let script = Script::random(seed);
    let outcome = AssertUnwindSafe(run::run(&script, None)).catch_unwind().await;
    let mismatch = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(mismatch)) => mismatch,
        Err(panic) => {
            eprintln!("seed {seed}: the worker failed; LITEJOIN_SEED={seed} replays the round");
            std::panic::resume_unwind(panic)
        }
    };
    eprintln!("seed {seed}, {mismatch}\nlooking for a smaller script that shows it");
    let smaller = shrink::shrink(&script, &mismatch, None).await;
    panic!(
        "seed {seed}, {mismatch}\n\nLITEJOIN_SEED={seed} replays the round; a case for tests/cases/join:\n\n{}",
        repro::golden_case(&smaller, &mismatch.join)
    );
}
