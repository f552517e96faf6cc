//! Values by which rows are looked up and results are grouped: equal here exactly if `=` finds them equal in
//! SQLite (no collation, no affinity). Pure.

use std::cmp::Ordering;

use rusqlite::ToSql;
use rusqlite::types::{ToSqlOutput, ValueRef};

use super::rows::write_value;

/// A value of SQLite other than a BLOB.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Value {
    Null,
    /// An integer, or a real that is a whole number in the range of integers: `1.0 = 1`.
    Integer(i64),
    /// The bits of any other real.
    Real(u64),
    Text(Box<str>),
}

impl Value {
    /// Returns `None` for a BLOB.
    pub(crate) fn new(value: ValueRef<'_>) -> Option<Self> {
        Some(match value {
            ValueRef::Null => Self::Null,
            ValueRef::Integer(integer) => Self::Integer(integer),
            ValueRef::Real(real) => Self::real(real),
            ValueRef::Text(text) => Self::Text(String::from_utf8_lossy(text).into()),
            ValueRef::Blob(_) => return None,
        })
    }

    /// Reads null, a number or a text of JSON. Returns `None` for anything else.
    pub(crate) fn from_json(json: &str) -> Option<Self> {
        if json == "null" {
            return Some(Self::Null);
        }
        if json.starts_with('"') {
            return serde_json::from_str::<Box<str>>(json).ok().map(Self::Text);
        }
        let integer = json.parse().ok().map(Self::Integer);
        integer.or_else(|| json.parse().ok().filter(|real: &f64| real.is_finite()).map(Self::real))
    }

    fn real(real: f64) -> Self {
        // Minus two to the 63rd is the least integer, and two to the 63rd the first real above all integers.
        let in_range = (-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&real);
        if real.fract() == 0.0 && in_range {
            #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
            Self::Integer(real as i64)
        } else {
            Self::Real(real.to_bits())
        }
    }

    /// Compares as SQLite orders values: NULL, numbers, texts.
    pub(crate) fn order(&self, other: &Self) -> Ordering {
        let rank = |value: &Self| match value {
            Self::Null => 0,
            Self::Integer(_) | Self::Real(_) => 1,
            Self::Text(_) => 2,
        };
        match (self, other) {
            (Self::Integer(left), Self::Integer(right)) => left.cmp(right),
            (Self::Real(left), Self::Real(right)) => f64::from_bits(*left).total_cmp(&f64::from_bits(*right)),
            (Self::Integer(left), Self::Real(right)) => compare(*left, f64::from_bits(*right)),
            (Self::Real(left), Self::Integer(right)) => compare(*right, f64::from_bits(*left)).reverse(),
            (Self::Text(left), Self::Text(right)) => left.as_bytes().cmp(right.as_bytes()),
            _ => rank(self).cmp(&rank(other)),
        }
    }

    /// Returns the number whose cast to TEXT is this text, if there is one.
    pub(crate) fn as_number(text: &str) -> Option<Self> {
        let integer = text.parse().ok().map(Self::Integer);
        integer.or_else(|| text.parse().ok().filter(|real: &f64| !real.is_nan()).map(Self::real))
    }

    /// Returns the spellings of the value as JSON, as result keys are stored.
    pub(crate) fn json_spellings(&self) -> impl Iterator<Item = String> {
        self.spellings().map(|spelling| {
            let mut key = String::new();
            write_value(&mut key, spelling);
            key
        })
    }

    /// Returns the reals and integers that equal the value, or the value itself.
    pub(crate) fn spellings(&self) -> impl Iterator<Item = ValueRef<'_>> {
        let (first, more): (ValueRef<'_>, &[f64]) = match self {
            Self::Null => (ValueRef::Null, &[]),
            Self::Integer(0) => (ValueRef::Integer(0), &[0.0, -0.0]),
            Self::Integer(integer) => (ValueRef::Integer(*integer), &[]),
            Self::Real(bits) => (ValueRef::Real(f64::from_bits(*bits)), &[]),
            Self::Text(text) => (ValueRef::Text(text.as_bytes()), &[]),
        };
        #[expect(clippy::cast_precision_loss, reason = "only a real that is the very same number counts")]
        let real = match self {
            Self::Integer(integer) if *integer != 0 => {
                Some(*integer as f64).filter(|real| Self::real(*real) == *self)
            }
            _ => None,
        };
        std::iter::once(first).chain(more.iter().copied().chain(real).map(ValueRef::Real))
    }
}

/// Compares an integer with a real that equals no integer.
fn compare(integer: i64, real: f64) -> Ordering {
    if !(-9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0).contains(&real) {
        return if real > 0.0 { Ordering::Less } else { Ordering::Greater };
    }
    #[expect(clippy::cast_possible_truncation, reason = "it is in range")]
    let floor = real.floor() as i64;
    if integer <= floor { Ordering::Less } else { Ordering::Greater }
}

impl ToSql for Value {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self {
            Self::Null => ValueRef::Null,
            Self::Integer(integer) => ValueRef::Integer(*integer),
            Self::Real(bits) => ValueRef::Real(f64::from_bits(*bits)),
            Self::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_sqlite_finds_equal_is_equal() {
        let value = |value| Value::new(value).expect("no BLOB");
        assert_eq!(value(ValueRef::Real(1.0)), value(ValueRef::Integer(1)));
        assert_eq!(value(ValueRef::Real(-0.0)), value(ValueRef::Integer(0)));
        assert_ne!(value(ValueRef::Real(1.5)), value(ValueRef::Integer(1)));
        assert_ne!(value(ValueRef::Text(b"1")), value(ValueRef::Integer(1)));
        assert_eq!(value(ValueRef::Real(-9_223_372_036_854_775_808.0)), Value::Integer(i64::MIN));
        assert_eq!(value(ValueRef::Real(9_223_372_036_854_775_808.0)), Value::Real(0x43e0_0000_0000_0000));
        assert_eq!(Value::new(ValueRef::Blob(b"1")), None);
    }

    #[test]
    fn values_are_in_the_order_of_sqlite() {
        let values = [
            Value::Null,
            Value::real(f64::NEG_INFINITY),
            Value::Integer(i64::MIN),
            Value::real(-1.5),
            Value::Integer(-1),
            Value::Integer(0),
            Value::real(0.5),
            Value::Integer(1),
            Value::Integer(9_007_199_254_740_993),
            Value::Integer(i64::MAX),
            Value::real(9_223_372_036_854_775_808.0),
            Value::Text("".into()),
            Value::Text("1".into()),
        ];
        for (left, first) in values.iter().enumerate() {
            for (right, second) in values.iter().enumerate() {
                assert_eq!(first.order(second), left.cmp(&right), "{first:?} and {second:?}");
            }
        }
    }

    #[test]
    fn the_text_of_a_number_leads_back_to_it() {
        let connection = crate::storage::sqlite::open_memory().unwrap();
        let mut cast = connection.prepare("SELECT CAST(?1 AS TEXT)").unwrap();
        let mut text = |value: ValueRef<'_>| -> String {
            cast.query_row([ToSqlOutput::Borrowed(value)], |row| row.get(0)).unwrap()
        };
        let mut bits = 1_u64;
        for _ in 0..100_000 {
            // Knuth's linear congruential generator has the full period: it reaches every number.
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let real = f64::from_bits(bits);
            if real.is_nan() {
                continue;
            }
            for value in
                [ValueRef::Real(real), ValueRef::Real(real.round()), ValueRef::Integer(bits.cast_signed())]
            {
                let written = text(value);
                assert_eq!(Value::as_number(&written), Value::new(value), "{value:?} is written {written}");
            }
        }
        for real in
            [0.0, -0.0, 0.1 + 0.2, 1e15, 9_007_199_254_740_993.0, -9.3e18, f64::INFINITY, f64::MIN_POSITIVE]
        {
            let written = text(ValueRef::Real(real));
            assert_eq!(
                Value::as_number(&written),
                Value::new(ValueRef::Real(real)),
                "{real:?} is written {written}"
            );
        }
        assert_eq!(["", "k1", "5 ", "0x5", "nan"].map(Value::as_number), [const { None }; 5]);
    }

    #[test]
    fn a_number_has_every_spelling_that_results_may_be_stored_under() {
        let spelled = |value: &Value| format!("{:?}", value.spellings().collect::<Vec<_>>());
        assert_eq!(spelled(&Value::Integer(1)), "[Integer(1), Real(1.0)]");
        assert_eq!(spelled(&Value::Integer(0)), "[Integer(0), Real(0.0), Real(-0.0)]");
        assert_eq!(spelled(&Value::Integer(i64::MAX)), format!("[Integer({})]", i64::MAX));
        assert_eq!(spelled(&Value::Null), "[Null]");
    }
}
