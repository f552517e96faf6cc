//! Joins: what a query may read, what it yields, and how stored results are brought up to date. No clock, no
//! sockets; the connection on which queries run is handed in.
//!
//! ```text
//! check (at start):   query ─► names and columns, by SQLite itself under an authorizer
//! an epoch:           changes of topics ─► Engine::absorb
//!                     Engine::compute ─► rows by result key
//!                     Engine::compare, with the stored results ─► changed results
//! ```

pub(crate) mod check;
pub(crate) mod diff;
pub(crate) mod full;
pub(crate) mod plan;
pub(crate) mod rows;

pub(crate) use check::CheckedJoin;

use crate::results::store::Change;

/// What brings the results of joins up to date. Evaluating in full is one way to do it, and the oracle for
/// every other.
pub(crate) trait Engine {
    type Error: std::error::Error;

    /// Takes in what a topic's row has become (`None`: it is gone).
    fn absorb(&mut self, topic: &str, key: &str, row: Option<TopicImage<'_>>) -> Result<(), Self::Error>;

    /// Forgets what was computed.
    fn clear(&mut self) -> Result<(), Self::Error>;

    /// Computes one join over everything absorbed.
    fn compute(&mut self, join: &CheckedJoin) -> Result<(), Self::Error>;

    /// Calls `emit` for each result of a computed join that differs from what `stored` yields, in the order of
    /// result keys.
    fn compare<E: From<Self::Error>>(
        &mut self,
        join: &CheckedJoin,
        stored: &mut dyn diff::StoredResults,
        emit: &mut dyn FnMut(Change<'_>) -> Result<(), E>,
    ) -> Result<(), E>;
}

/// A row of a topic as queries see it, beside its key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TopicImage<'a> {
    pub(crate) payload: &'a str,
    pub(crate) timestamp: i64,
    pub(crate) change: Option<&'a str>,
}
