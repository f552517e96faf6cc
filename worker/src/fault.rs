//! Faults that tests ask for by environment variables, in debug builds only: a release build holds none of this.
//!
//! - `LITEJOIN_FAULT=<point>[:<n>]` kills the process, as SIGKILL does, when it comes to a point for the n-th time.
//! - `LITEJOIN_SABOTAGE=<what>` breaks the engine on purpose, so that a test can show that it would notice.

/// Ways to break evaluation by key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// What a row was before a change is not looked at.
    NoOldImages,
    /// Changes of the last occurrence of a topic concern nobody.
    DropKeyQuery,
    /// The last occurrence of a topic is not gathered.
    MissingOccurrence,
}

#[cfg(not(debug_assertions))]
pub(crate) fn sabotaged(_: Sabotage) -> bool {
    false
}

#[cfg(not(debug_assertions))]
pub(crate) fn point(_: &str) {}

#[cfg(debug_assertions)]
pub(crate) use debug::{point, sabotaged};

#[cfg(debug_assertions)]
mod debug {
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::Sabotage;

    /// Whether the engine is to be broken in this way.
    pub(crate) fn sabotaged(how: Sabotage) -> bool {
        static WANTED: LazyLock<Option<Sabotage>> =
            LazyLock::new(|| match variable("LITEJOIN_SABOTAGE")?.as_str() {
                "no-old-images" => Some(Sabotage::NoOldImages),
                "drop-key-query" => Some(Sabotage::DropKeyQuery),
                "missing-occurrence" => Some(Sabotage::MissingOccurrence),
                other => panic!(
                    "LITEJOIN_SABOTAGE={other:?} is none of no-old-images, drop-key-query, missing-occurrence"
                ),
            });
        *WANTED == Some(how)
    }

    /// A place at which a test may have the process die.
    pub(crate) fn point(name: &str) {
        static WANTED: LazyLock<Option<(String, AtomicI64)>> = LazyLock::new(|| {
            let wanted = variable("LITEJOIN_FAULT")?;
            let (name, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
            let times = times.parse().expect("LITEJOIN_FAULT=<point>:<n> has a number behind the colon");
            Some((name.to_owned(), AtomicI64::new(times)))
        });
        if let Some((wanted, left)) = &*WANTED
            && wanted == name
            && left.fetch_sub(1, Ordering::Relaxed) == 1
        {
            // As abrupt as SIGKILL: nothing is flushed, no destructor runs.
            std::process::abort();
        }
    }

    #[expect(clippy::disallowed_methods, reason = "only tests set these, and only debug builds read them")]
    fn variable(name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }
}
