//! The budget of a user's query: steps of SQLite's virtual machine (counted, not timed, so that a query which passes
//! on one machine passes on any), time, and the length of a value.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rusqlite::limits::Limit;

/// Steps that one evaluation may take: minutes of one core.
pub(crate) const STEPS_MAX: u64 = 20_000_000_000;

/// How long one evaluation may take: far beyond the time of [`STEPS_MAX`] on a healthy machine.
pub(crate) const TIME_MAX: Duration = Duration::from_secs(900);

/// Rows that one evaluation may yield.
pub(crate) const ROWS_MAX: u64 = 50_000_000;

/// Steps between two checks of the budget.
const STEPS_A_LOOK: u64 = 1_000_000;

/// Longest text or BLOB that a query may make, in bytes.
const VALUE_BYTES_MAX: i32 = 64 << 20;

/// The budget of the queries on one connection.
#[derive(Debug, Clone)]
pub(crate) struct Budget {
    /// Checks that the running query has left; endless while no user's query runs.
    looks_left: Arc<AtomicI64>,
    /// Milliseconds after `began` at which the running query is stopped.
    deadline: Arc<AtomicU64>,
    began: Instant,
    steps_max: u64,
    cancelled: Arc<AtomicBool>,
}

impl Budget {
    /// Guards a connection: a query between [`Self::open`] and [`Self::close`] may take `steps_max` steps, and any
    /// query is stopped once `cancelled` is set.
    pub(crate) fn guard(
        connection: &mut Connection,
        steps_max: u64,
        cancelled: Arc<AtomicBool>,
    ) -> rusqlite::Result<Self> {
        let budget = Self {
            looks_left: Arc::new(AtomicI64::new(i64::MAX)),
            deadline: Arc::new(AtomicU64::new(u64::MAX)),
            began: Instant::now(),
            steps_max,
            cancelled,
        };
        let watched = budget.clone();
        let is_spent = move || {
            watched.looks_left.fetch_sub(1, Ordering::Relaxed) <= 0
                || watched.is_cancelled()
                || watched.elapsed() >= watched.deadline.load(Ordering::Relaxed)
        };
        connection.progress_handler(STEPS_A_LOOK as i32, Some(is_spent))?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, VALUE_BYTES_MAX)?;
        Ok(budget)
    }

    /// Starts the budget of a user's query.
    pub(crate) fn open(&self) {
        self.looks_left.store((self.steps_max / STEPS_A_LOOK).cast_signed(), Ordering::Relaxed);
        let limit = u64::try_from(TIME_MAX.as_millis()).unwrap_or(u64::MAX);
        self.deadline.store(self.elapsed() + limit, Ordering::Relaxed);
    }

    /// Ends the budget: the following queries are LiteJoin's own and have no limit.
    pub(crate) fn close(&self) {
        self.looks_left.store(i64::MAX, Ordering::Relaxed);
        self.deadline.store(u64::MAX, Ordering::Relaxed);
    }

    pub(crate) fn steps_max(&self) -> u64 {
        self.steps_max
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}
