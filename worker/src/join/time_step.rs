//! A step of time, from the moment of a join's stored results to that of its new ones. Pure.

use super::value::Value;

/// A step of time for one join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TimeStep {
    /// The moment of the stored results, in seconds since the Unix epoch.
    pub(crate) from: i64,
    /// The moment of the new results.
    pub(crate) to: i64,
    /// The clock's side of each bound at `to`.
    pub(crate) values: Vec<Value>,
    /// By bound: the least and the greatest value of due rows; `None` if the clock has passed no row.
    pub(crate) ranges: Vec<Option<(Value, Value)>>,
}

/// What a step of time changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TimePassed {
    Step(TimeStep),
    /// The clock's side of a bound has become NULL, or is no longer.
    Everything,
}

impl TimeStep {
    /// Returns whether any row is due.
    pub(crate) fn is_any_due(&self) -> bool {
        self.ranges.iter().any(Option::is_some)
    }

    /// Returns the step without its due rows, which were taken in.
    pub(crate) fn taken(&self) -> Self {
        Self { from: self.to, ranges: vec![None; self.ranges.len()], ..self.clone() }
    }
}
