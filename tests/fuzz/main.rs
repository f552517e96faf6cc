//! The gate of the join engine: random pipelines under random load, held to SQLite after every batch.

use litejoin_tests::fuzz;
use litejoin_tests::repetition::seeds;

#[tokio::test]
async fn folded_deltas_are_what_sqlite_says_after_every_batch() {
    for seed in seeds(40, 2_000) {
        fuzz::round(seed).await;
    }
}
