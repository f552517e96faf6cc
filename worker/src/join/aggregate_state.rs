//! The aggregate state of a group: the number of its rows, and for each aggregate the number of values, their sum, or
//! the extreme and how often it occurs. Cost grows with the rows that come and go, not with the group. Pure.
//!
//! A state holds only values that are exact in any order: integers are summed, every other number is a
//! [`AggregateError`].

use std::cmp::Ordering;
use std::fmt::Write as _;

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};

/// An aggregate function that can be kept current row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Function {
    Count,
    Sum,
    Total,
    Avg,
    Min,
    Max,
}

/// A call of an aggregate function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Aggregate {
    pub(crate) function: Function,
    /// Index of the argument that the function reads; `None` for `count(*)`.
    pub(crate) argument: Option<usize>,
}

/// Why a row can't be added or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AggregateError {
    /// SQLite's result for such a value depends on the order of rows, or on which of several equal values it returns.
    NotAccumulable,
    /// More rows were removed than had been added: the state belongs to other rows.
    Wrong,
}

/// A value in its spelling: `1` and `1.0` are two values.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Datum {
    Null,
    Integer(i64),
    /// The bits of a real.
    Real(u64),
    Text(Box<str>),
}

/// The state of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AggregateState {
    rows: i64,
    cells: Vec<Cell>,
}

/// The state of one aggregate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Cell {
    /// The number of values that are not NULL.
    values: i64,
    sum: i128,
    /// The sum of absolute values: as long as it fits, no order of rows makes SQLite's sum overflow.
    magnitude: i128,
    /// The least or greatest value and how many values equal it; `None` if unknown, or if there are no values.
    extreme: Option<(Datum, i64)>,
}

impl Datum {
    /// Returns `None` for a BLOB and for text that is not UTF-8.
    pub(crate) fn new(value: ValueRef<'_>) -> Option<Self> {
        Some(match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(integer) => Self::Integer(integer),
            ValueRef::Real(real) => Self::Real(real.to_bits()),
            ValueRef::Text(text) => Self::Text(std::str::from_utf8(text).ok()?.into()),
            ValueRef::Blob(_) => return None,
        })
    }

    pub(crate) fn as_value_ref(&self) -> ValueRef<'_> {
        match self {
            Self::Null => ValueRef::Null,
            Self::Integer(integer) => ValueRef::Integer(*integer),
            Self::Real(bits) => ValueRef::Real(f64::from_bits(*bits)),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
        }
    }

    /// Returns whether a group with this term has no other spelling.
    pub(crate) fn is_one_spelling(&self) -> bool {
        match self {
            Self::Real(bits) => f64::from_bits(*bits).fract() != 0.0,
            _ => true,
        }
    }

    /// Orders values as SQLite does. Source: sqlite.org/datatype3.html §4.1.
    fn compare(&self, other: &Self) -> Ordering {
        let class = |datum: &Self| match datum {
            Self::Null => 0,
            Self::Integer(_) | Self::Real(_) => 1,
            Self::Text(_) => 2,
        };
        match (self, other) {
            (Self::Integer(a), Self::Integer(b)) => a.cmp(b),
            (Self::Real(a), Self::Real(b)) => {
                f64::from_bits(*a).partial_cmp(&f64::from_bits(*b)).unwrap_or(Ordering::Equal)
            }
            (Self::Integer(a), Self::Real(b)) => compare_with_real(*a, f64::from_bits(*b)),
            (Self::Real(a), Self::Integer(b)) => compare_with_real(*b, f64::from_bits(*a)).reverse(),
            (Self::Text(a), Self::Text(b)) => a.as_bytes().cmp(b.as_bytes()),
            _ => class(self).cmp(&class(other)),
        }
    }

    fn write(&self, text: &mut String) {
        let _ = match self {
            Self::Null => write!(text, "n "),
            Self::Integer(integer) => write!(text, "i{integer} "),
            Self::Real(bits) => write!(text, "r{bits:x} "),
            Self::Text(inner) => write!(text, "t{} {inner} ", inner.len()),
        };
    }

    fn read(text: &mut &str) -> Option<Self> {
        let word = word(text)?;
        let (kind, rest) = word.split_at_checked(1)?;
        Some(match kind {
            "n" => Self::Null,
            "i" => Self::Integer(rest.parse().ok()?),
            "r" => Self::Real(u64::from_str_radix(rest, 16).ok()?),
            "t" => {
                let (inner, behind) = text.split_at_checked(rest.parse().ok()?)?;
                *text = behind.strip_prefix(' ')?;
                Self::Text(inner.into())
            }
            _ => return None,
        })
    }
}

impl ToSql for Datum {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(self.as_value_ref()))
    }
}

/// Compares exactly, without a conversion: large integers lose digits as reals, and reals lose digits as integers.
fn compare_with_real(integer: i64, real: f64) -> Ordering {
    if real < -9_223_372_036_854_775_808.0 {
        return Ordering::Greater;
    }
    if real >= 9_223_372_036_854_775_808.0 {
        return Ordering::Less;
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is in range, and what is cut off is looked at")]
    let whole = real as i64;
    integer.cmp(&whole).then_with(|| 0.0_f64.total_cmp(&(real - real.trunc() + 0.0)))
}

/// Parses the text that [`group_text`] returns.
pub(crate) fn parse_group(text: &str) -> Option<Vec<Datum>> {
    let mut rest = text.strip_prefix("g ")?;
    let mut group = Vec::new();
    while !rest.is_empty() {
        group.push(Datum::read(&mut rest)?);
    }
    Some(group)
}

/// Returns the text under which a group is stored.
pub(crate) fn group_text(group: &[Datum]) -> String {
    let mut text = "g ".to_owned();
    group.iter().for_each(|datum| datum.write(&mut text));
    text
}

impl AggregateState {
    /// Returns the state of a group without rows.
    pub(crate) fn new(aggregates: usize) -> Self {
        Self { rows: 0, cells: vec![Cell::default(); aggregates] }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(crate) fn rows(&self) -> i64 {
        self.rows
    }

    /// Adds `times` rows with these arguments, or removes them if `times` is negative. Callers add rows before they
    /// remove rows.
    pub(crate) fn add(
        &mut self,
        aggregates: &[Aggregate],
        arguments: &[Datum],
        times: i64,
    ) -> Result<(), AggregateError> {
        self.rows = self.rows.checked_add(times).filter(|rows| *rows >= 0).ok_or(AggregateError::Wrong)?;
        for (aggregate, cell) in aggregates.iter().zip(&mut self.cells) {
            if let Some(argument) = aggregate.argument {
                cell.add(aggregate.function, &arguments[argument], times)?;
            }
        }
        Ok(())
    }

    /// Adds the rows of another state.
    pub(crate) fn merge(&mut self, aggregates: &[Aggregate], other: &Self) -> Result<(), AggregateError> {
        self.rows = self.rows.checked_add(other.rows).ok_or(AggregateError::Wrong)?;
        for ((aggregate, cell), other) in aggregates.iter().zip(&mut self.cells).zip(&other.cells) {
            cell.merge(aggregate.function, other)?;
        }
        Ok(())
    }

    /// Returns whether an extreme is unknown, so that the rows of the group have to be read.
    pub(crate) fn is_lost(&self, aggregates: &[Aggregate]) -> bool {
        aggregates.iter().zip(&self.cells).any(|(aggregate, cell)| {
            matches!(aggregate.function, Function::Min | Function::Max)
                && cell.values > 0
                && cell.extreme.is_none()
        })
    }

    /// Returns the results of the aggregates.
    pub(crate) fn results(&self, aggregates: &[Aggregate]) -> Vec<Datum> {
        aggregates
            .iter()
            .zip(&self.cells)
            .map(|(aggregate, cell)| cell.result(*aggregate, self.rows))
            .collect()
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!("{} ", self.rows);
        for Cell { values, sum, magnitude, extreme } in &self.cells {
            let _ = write!(text, "{values} {sum} {magnitude} ");
            match extreme {
                None => text.push_str("- "),
                Some((datum, times)) => {
                    let _ = write!(text, "{times} ");
                    datum.write(&mut text);
                }
            }
        }
        text
    }

    /// Parses the text that [`Self::text`] returns.
    pub(crate) fn parse(mut text: &str, aggregates: usize) -> Option<Self> {
        let text = &mut text;
        let mut state = Self { rows: word(text)?.parse().ok()?, cells: Vec::with_capacity(aggregates) };
        for _ in 0..aggregates {
            let values = word(text)?.parse().ok()?;
            let sum = word(text)?.parse().ok()?;
            let magnitude = word(text)?.parse().ok()?;
            let extreme = match word(text)? {
                "-" => None,
                times => {
                    let times = times.parse().ok()?;
                    Some((Datum::read(text)?, times))
                }
            };
            state.cells.push(Cell { values, sum, magnitude, extreme });
        }
        text.is_empty().then_some(state)
    }
}

impl Cell {
    fn add(&mut self, function: Function, value: &Datum, times: i64) -> Result<(), AggregateError> {
        if *value == Datum::Null {
            return Ok(());
        }
        self.values =
            self.values.checked_add(times).filter(|values| *values >= 0).ok_or(AggregateError::Wrong)?;
        match function {
            Function::Count => Ok(()),
            Function::Sum | Function::Total | Function::Avg => {
                let Datum::Integer(integer) = value else { return Err(AggregateError::NotAccumulable) };
                let (integer, times) = (i128::from(*integer), i128::from(times));
                self.sum = self.sum.checked_add(integer * times).ok_or(AggregateError::NotAccumulable)?;
                self.magnitude = self
                    .magnitude
                    .checked_add(integer.abs() * times)
                    .ok_or(AggregateError::NotAccumulable)?;
                if self.magnitude > i128::from(i64::MAX) {
                    Err(AggregateError::NotAccumulable)
                } else {
                    Ok(())
                }
            }
            Function::Min | Function::Max => self.add_extreme(function, value, times),
        }
    }

    fn add_extreme(&mut self, function: Function, value: &Datum, times: i64) -> Result<(), AggregateError> {
        let Some((extreme, count)) = &mut self.extreme else {
            // The first value is the extreme. After a loss, no later value is known to be.
            if self.values == times {
                self.extreme = Some((value.clone(), times));
            }
            return Ok(());
        };
        let order = value.compare(extreme);
        let is_beyond = if function == Function::Min { order.is_lt() } else { order.is_gt() };
        if order.is_eq() {
            if value != extreme {
                return Err(AggregateError::NotAccumulable);
            }
            *count += times;
            if *count <= 0 {
                self.extreme = None;
            }
        } else if is_beyond {
            if times < 0 {
                return Err(AggregateError::Wrong);
            }
            self.extreme = Some((value.clone(), times));
        }
        Ok(())
    }

    fn merge(&mut self, function: Function, other: &Self) -> Result<(), AggregateError> {
        self.sum = self.sum.checked_add(other.sum).ok_or(AggregateError::NotAccumulable)?;
        self.magnitude = self.magnitude.checked_add(other.magnitude).ok_or(AggregateError::NotAccumulable)?;
        if self.magnitude > i128::from(i64::MAX) {
            return Err(AggregateError::NotAccumulable);
        }
        let is_known = self.values == 0 || self.extreme.is_some();
        self.values += other.values;
        match &other.extreme {
            Some(extreme) if is_known && self.extreme.is_none() => self.extreme = Some(extreme.clone()),
            Some((value, times)) if is_known => self.add_extreme(function, value, *times)?,
            None if other.values > 0 => self.extreme = None,
            _ => {}
        }
        Ok(())
    }

    fn result(&self, aggregate: Aggregate, rows: i64) -> Datum {
        // The sum fits as long as its magnitude does.
        let sum = i64::try_from(self.sum).unwrap_or(0);
        #[expect(clippy::cast_precision_loss, reason = "as SQLite does")]
        let (real_sum, real_values) = (sum as f64, self.values as f64);
        match aggregate.function {
            Function::Count => Datum::Integer(if aggregate.argument.is_some() { self.values } else { rows }),
            Function::Total => Datum::Real(real_sum.to_bits()),
            Function::Sum if self.values > 0 => Datum::Integer(sum),
            Function::Avg if self.values > 0 => Datum::Real((real_sum / real_values).to_bits()),
            Function::Min | Function::Max => {
                self.extreme.as_ref().map_or(Datum::Null, |(datum, _)| datum.clone())
            }
            Function::Sum | Function::Avg => Datum::Null,
        }
    }
}

/// Returns the text up to the next space, and moves `text` behind that space.
fn word<'t>(text: &mut &'t str) -> Option<&'t str> {
    let (word, rest) = text.split_once(' ')?;
    *text = rest;
    Some(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Function; 6] =
        [Function::Count, Function::Sum, Function::Total, Function::Avg, Function::Min, Function::Max];

    fn aggregates() -> Vec<Aggregate> {
        ALL.into_iter().map(|function| Aggregate { function, argument: Some(0) }).collect()
    }

    fn state_of(values: &[i64]) -> AggregateState {
        let mut state = AggregateState::new(ALL.len());
        for value in values {
            state.add(&aggregates(), &[Datum::Integer(*value)], 1).expect("integers fit");
        }
        state
    }

    fn real(real: f64) -> Datum {
        Datum::Real(real.to_bits())
    }

    #[test]
    fn what_came_and_went_leaves_nothing() {
        let mut state = state_of(&[3, 5, 5, -2]);
        state.add(&aggregates(), &[Datum::Null], 1).unwrap();
        let expected = [
            Datum::Integer(4),
            Datum::Integer(11),
            real(11.0),
            real(2.75),
            Datum::Integer(-2),
            Datum::Integer(5),
        ];
        assert_eq!(state.results(&aggregates()), expected);
        state.add(&aggregates(), &[Datum::Null], -1).unwrap();
        state.add(&aggregates(), &[Datum::Integer(3)], -1).unwrap();
        state.add(&aggregates(), &[Datum::Integer(5)], -1).unwrap();
        assert_eq!(state, state_of(&[5, -2]));
    }

    #[test]
    fn an_extreme_is_lost_with_the_last_value_that_has_it() {
        let mut state = state_of(&[1, 5, 5]);
        state.add(&aggregates(), &[Datum::Integer(5)], -1).unwrap();
        assert!(!state.is_lost(&aggregates()));
        state.add(&aggregates(), &[Datum::Integer(5)], -1).unwrap();
        assert!(state.is_lost(&aggregates()));
        state.add(&aggregates(), &[Datum::Integer(1)], -1).unwrap();
        assert!(!state.is_lost(&aggregates()), "there is nothing to be found");
    }

    #[test]
    fn what_depends_on_the_order_of_rows_does_not_fit() {
        let one = |function| [Aggregate { function, argument: Some(0) }];
        for datum in [real(0.5), Datum::Text("1".into())] {
            assert_eq!(
                AggregateState::new(1).add(&one(Function::Sum), &[datum], 1),
                Err(AggregateError::NotAccumulable)
            );
        }
        let mut state = AggregateState::new(1);
        state.add(&one(Function::Sum), &[Datum::Integer(i64::MAX)], 1).unwrap();
        assert_eq!(
            state.add(&one(Function::Sum), &[Datum::Integer(-1)], 1),
            Err(AggregateError::NotAccumulable)
        );
        let mut state = AggregateState::new(1);
        state.add(&one(Function::Max), &[Datum::Integer(1)], 1).unwrap();
        assert_eq!(state.add(&one(Function::Max), &[real(1.0)], 1), Err(AggregateError::NotAccumulable));
        assert_eq!(state.add(&one(Function::Max), &[Datum::Integer(2)], -2), Err(AggregateError::Wrong));
    }

    #[test]
    fn values_are_ordered_as_in_sqlite() {
        let text = |text: &str| Datum::Text(text.into());
        let ascending = [
            Datum::Null,
            real(f64::NEG_INFINITY),
            Datum::Integer(i64::MIN),
            real(-1.5),
            Datum::Integer(-1),
            real(-0.5),
            Datum::Integer(0),
            real(0.5),
            Datum::Integer(i64::MAX),
            real(9_223_372_036_854_775_808.0),
            text(""),
            text("a"),
            text("é"),
        ];
        for (index, datum) in ascending.iter().enumerate() {
            for (other_index, other) in ascending.iter().enumerate() {
                assert_eq!(datum.compare(other), index.cmp(&other_index), "{datum:?} {other:?}");
            }
        }
        assert_eq!(Datum::Integer(1).compare(&real(1.0)), Ordering::Equal);
        assert_eq!(Datum::Integer(0).compare(&real(-0.0)), Ordering::Equal);
    }

    #[test]
    fn a_state_is_read_as_it_was_written() {
        let extremes = [Datum::Null, real(-0.1), Datum::Text("ä 1 ".into()), Datum::Integer(-7)];
        for datum in extremes {
            let mut state = state_of(&[]);
            state.rows = 3;
            state.cells[4].extreme = Some((datum, 2));
            assert_eq!(AggregateState::parse(&state.text(), ALL.len()), Some(state));
        }
        assert_eq!(AggregateState::parse("1 ", 1), None);
    }
}
