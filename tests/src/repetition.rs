//! Repetitions and seeds of a randomized test. A failure prints its seed; the seed alone replays the choices:
//! `LITEJOIN_SEED=7 cargo test --workspace --test system kill`. A range splits a long run: `LITEJOIN_SEED=1-500`.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Returns the seeds to run: `few` of them, `many` in the long run (`tests/run --long`), or those of `LITEJOIN_SEED`.
pub fn seeds(few: u64, many: u64) -> Vec<u64> {
    match variable("LITEJOIN_SEED") {
        Some(seeds) => {
            let (first, last) = seeds.split_once('-').unwrap_or((&seeds, &seeds));
            let number =
                |text: &str| text.parse().expect("LITEJOIN_SEED is a number, or two with a dash between");
            (number(first)..=number(last)).collect()
        }
        None => (1..=if is_long() { many } else { few }).collect(),
    }
}

/// Returns the seeds of [`seeds`], or endless fresh seeds with `tests/run --forever`; prints each fresh seed.
pub fn endless_seeds(few: u64, many: u64) -> Box<dyn Iterator<Item = u64>> {
    if !is_endless() {
        return Box::new(seeds(few, many).into_iter());
    }
    Box::new(std::iter::repeat_with(|| {
        let seed = rand::random::<u32>();
        eprintln!("seed {seed}");
        u64::from(seed)
    }))
}

/// Returns whether gates go on until they find something.
pub fn is_endless() -> bool {
    variable("LITEJOIN_FOREVER").is_some_and(|value| value == "1")
}

/// Returns whether this is the long run.
pub fn is_long() -> bool {
    variable("LITEJOIN_LONG").is_some_and(|value| value == "1")
}

/// Returns a generator that depends on `seed` alone.
pub fn chance(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

#[expect(clippy::disallowed_methods, reason = "tests have no main.rs that could hand the environment in")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
