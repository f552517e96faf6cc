//! Faults that tests ask for by environment variables, in debug builds only: a release build holds none of this.
//!
//! - `LITEJOIN_FAULT=<point>[:<n>]` kills the process, as SIGKILL does, when it comes to a point for the n-th time.
//! - `LITEJOIN_STALL=<point>[:<n>]` holds the thread there for good, so that a test can see what the others do meanwhile.
//! - `LITEJOIN_FILL=<point>[:<n>]` fills the disk there, by a file whose path is in `LITEJOIN_FILLER`.
//! - `LITEJOIN_SABOTAGE=<what>` breaks the engine on purpose, so that a test can show that it would notice.

/// Ways to break evaluation by key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sabotage {
    /// The image of a row before a change is not looked at.
    NoOldImages,
    /// Changes of the last occurrence of a topic are left out.
    DropKeyQuery,
    /// The last occurrence of a topic is not gathered.
    MissingOccurrence,
    /// A group is looked up by the text of its values, which tells equal numbers apart.
    SplitGroups,
    /// A window does not look at the image of a row before a change.
    NoRetraction,
    /// The watermark of a window may go back.
    WatermarkBack,
    /// A closed frame of a window closes again at each epoch.
    CloseTwice,
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
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::sync::LazyLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::Sabotage;

    /// Whether the engine is to be broken in this way.
    pub(crate) fn sabotaged(how: Sabotage) -> bool {
        static WANTED: LazyLock<Option<Sabotage>> = LazyLock::new(|| {
            match variable("LITEJOIN_SABOTAGE")?.as_str() {
                "no-old-images" => Some(Sabotage::NoOldImages),
                "drop-key-query" => Some(Sabotage::DropKeyQuery),
                "missing-occurrence" => Some(Sabotage::MissingOccurrence),
                "split-groups" => Some(Sabotage::SplitGroups),
                "no-retraction" => Some(Sabotage::NoRetraction),
                "watermark-back" => Some(Sabotage::WatermarkBack),
                "close-twice" => Some(Sabotage::CloseTwice),
                other => panic!(
                    "LITEJOIN_SABOTAGE={other:?} is none of no-old-images, drop-key-query, missing-occurrence, \
                     split-groups, no-retraction, watermark-back, close-twice"
                ),
            }
        });
        *WANTED == Some(how)
    }

    /// A place at which a test may have the process die, or the thread stand still.
    pub(crate) fn point(name: &str) {
        static FAULT: LazyLock<Option<ArmedPoint>> = LazyLock::new(|| ArmedPoint::read("LITEJOIN_FAULT"));
        static STALL: LazyLock<Option<ArmedPoint>> = LazyLock::new(|| ArmedPoint::read("LITEJOIN_STALL"));
        static FILL: LazyLock<Option<ArmedPoint>> = LazyLock::new(|| ArmedPoint::read("LITEJOIN_FILL"));
        if FILL.as_ref().is_some_and(|wanted| wanted.is_here(name)) {
            fill_disk();
        }
        if FAULT.as_ref().is_some_and(|wanted| wanted.is_here(name)) {
            // As abrupt as SIGKILL: nothing is flushed, no destructor runs.
            std::process::abort();
        }
        if STALL.as_ref().is_some_and(|wanted| wanted.is_here(name)) {
            tracing::warn!(point = name, "a test holds this thread");
            loop {
                std::thread::park();
            }
        }
    }

    /// Writes a file until its disk has no more room.
    fn fill_disk() {
        let path = variable("LITEJOIN_FILLER").expect("LITEJOIN_FILL goes with LITEJOIN_FILLER");
        let mut filler = OpenOptions::new().create(true).append(true).open(path).expect("it can be made");
        for size in [1 << 20, 1 << 12, 1] {
            let block = vec![0; size];
            while filler.write_all(&block).is_ok() {}
        }
    }

    /// A point, and how often it has yet to be passed.
    struct ArmedPoint {
        name: String,
        left: AtomicI64,
    }

    impl ArmedPoint {
        fn read(name: &str) -> Option<Self> {
            let wanted = variable(name)?;
            let (point, times) = wanted.split_once(':').unwrap_or((&wanted, "1"));
            let times =
                times.parse().unwrap_or_else(|_| panic!("{name}={wanted}: behind the colon is no number"));
            Some(Self { name: point.to_owned(), left: AtomicI64::new(times) })
        }

        fn is_here(&self, name: &str) -> bool {
            self.name == name && self.left.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    #[expect(clippy::disallowed_methods, reason = "only tests set these, and only debug builds read them")]
    fn variable(name: &str) -> Option<String> {
        std::env::var(name).ok().filter(|value| !value.is_empty())
    }
}
