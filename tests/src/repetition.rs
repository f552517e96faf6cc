//! How often a test with chance in it is repeated, and by which seeds. A failure prints its seed; the seed alone
//! replays the choices: `LITEJOIN_SEED=7 cargo test --workspace --test system kill`. A long run is split by giving
//! the first and the last: `LITEJOIN_SEED=1-500`.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// Seeds of the repetitions to run: `few` of them, `many` when the long run is asked for (`tests/run --long`), or
/// those that are asked for by number.
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

/// The same seeds, or fresh ones without end if `tests/run --forever` asks for them; each fresh seed is printed.
pub fn endless_seeds(few: u64, many: u64) -> Box<dyn Iterator<Item = u64>> {
    if variable("LITEJOIN_FOREVER").is_none_or(|value| value != "1") {
        return Box::new(seeds(few, many).into_iter());
    }
    Box::new(std::iter::repeat_with(|| {
        let seed = rand::random::<u32>();
        eprintln!("seed {seed}");
        u64::from(seed)
    }))
}

/// Whether the long run is asked for.
pub fn is_long() -> bool {
    variable("LITEJOIN_LONG").is_some_and(|value| value == "1")
}

/// Randomness that follows from `seed` alone.
pub fn chance(seed: u64) -> StdRng {
    StdRng::seed_from_u64(seed)
}

#[expect(clippy::disallowed_methods, reason = "tests have no main.rs that could hand the environment in")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}
