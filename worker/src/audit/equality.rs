//! Equality of results whose texts differ. SQL leaves two things open: the last digits of a sum of real numbers depend
//! on the order of rows, and a group that holds 5 and 5.0 may show either. Pure.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::results::event::Op;

/// The relative difference up to which two numbers are equal: far more than rounding adds up to, far less than a row.
const SHARE: f64 = 1e-9;

/// Differing keys that a finding shows.
const KEYS_SHOWN: usize = 3;

/// Bytes of rows that are held until the rows under other spellings of their key arrive.
const HELD_BYTES_MAX: usize = 32 << 20;

/// Differences between stored results and fresh ones.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// The number of result keys whose rows differ.
    pub(super) count: u64,
    /// The first of these keys as JSON, each behind its correction: `updated "o1"`.
    pub(super) keys: Vec<String>,
    /// Differing results with a number as key, by the one spelling of that number.
    held: BTreeMap<String, Respellings>,
    held_bytes: usize,
}

/// The differing results under all spellings of a key.
#[derive(Debug, Default)]
struct Respellings {
    stored: Vec<Value>,
    fresh: Vec<Value>,
    changes: Vec<(Op, String)>,
}

impl Tally {
    /// Adds one result: its correction, and its rows as JSON arrays.
    pub(super) fn add(&mut self, op: Op, key: &str, stored: &str, fresh: &str) {
        let (Some(stored), Some(fresh)) = (rows(stored), rows(fresh)) else { return self.note(op, key) };
        if nearly_same(&stored, &fresh) {
            return;
        }
        self.held_bytes +=
            key.len() + stored.iter().chain(&fresh).map(|row| row.to_string().len()).sum::<usize>();
        match plain_key(key).filter(|_| self.held_bytes <= HELD_BYTES_MAX) {
            Some(plain) => {
                let held = self.held.entry(plain).or_default();
                held.stored.extend(stored);
                held.fresh.extend(fresh);
                held.changes.push((op, key.to_owned()));
            }
            None => self.note(op, key),
        }
    }

    /// Ends the comparison: a key that is deleted and created in another spelling, with the same rows, is no
    /// difference.
    pub(super) fn end(&mut self) {
        for held in std::mem::take(&mut self.held).into_values() {
            if !nearly_same(&held.stored, &held.fresh) {
                held.changes.iter().for_each(|(op, key)| self.note(*op, key));
            }
        }
    }

    /// Counts a difference.
    pub(super) fn note(&mut self, op: Op, key: &str) {
        self.count += 1;
        if self.keys.len() < KEYS_SHOWN {
            self.keys.push(format!("{} {key}", op.as_str()));
        }
    }
}

fn rows(json: &str) -> Option<Vec<Value>> {
    serde_json::from_str(json).ok()
}

/// Returns a key that is a number, or holds some, in the one spelling that all equal numbers share; `None` for any other key.
fn plain_key(key: &str) -> Option<String> {
    let value: Value = serde_json::from_str(key).ok()?;
    (value.is_number() || value.is_array()).then(|| plain(&value).to_string())
}

/// Returns whether rows are equal except for their order, the rounding of real numbers, and spellings of equal
/// numbers.
fn nearly_same(a: &[Value], b: &[Value]) -> bool {
    let sorted = |rows: &[Value]| {
        let mut rows: Vec<(String, Value)> =
            rows.iter().map(|row| (plain(row).to_string(), row.clone())).collect();
        rows.sort_by(|(a, _), (b, _)| a.cmp(b));
        rows
    };
    a.len() == b.len() && sorted(a).iter().zip(&sorted(b)).all(|((_, a), (_, b))| is_near(a, b))
}

fn is_near(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(left), Value::Number(right)) if left.is_f64() && right.is_f64() => {
            let (left, right) = (left.as_f64().unwrap_or_default(), right.as_f64().unwrap_or_default());
            (left - right).abs() <= SHARE * left.abs().max(right.abs())
        }
        // An integer is exact, and so is a real that equals one.
        (Value::Number(_), Value::Number(_)) => plain(a) == plain(b),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|((left, a), (right, b))| left == right && is_near(a, b))
        }
        (a, b) => a == b,
    }
}

/// Returns a row, or a value in it, with each whole number as an integer if an integer can hold it.
fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            number.as_f64().and_then(whole).map_or_else(|| value.clone(), Value::from)
        }
        Value::Object(columns) => {
            Value::Object(columns.iter().map(|(name, value)| (name.clone(), plain(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(plain).collect()),
        other => other.clone(),
    }
}

/// Returns the integer that equals a real.
fn whole(real: f64) -> Option<i64> {
    // Two to the 63rd is the first real above all integers.
    let integers = -9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0;
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
    (real.fract() == 0.0 && integers.contains(&real)).then_some(real as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_digits_of_reals_and_spellings_may_differ() {
        let cases = [
            (r#"[{"k":"a","s":0.6000000000000001}]"#, r#"[{"k":"a","s":0.6}]"#, true),
            (r#"[{"s":3.0000000000000004}]"#, r#"[{"s":3.0}]"#, true),
            (r#"[{"s":0.6001}]"#, r#"[{"s":0.6}]"#, false),
            (r#"[{"s":1}]"#, r#"[{"s":2}]"#, false),
            (r#"[{"s":1}]"#, r#"[{"s":1.0}]"#, true),
            (r#"[{"s":1}]"#, r#"[{"s":1.0000000000000002}]"#, false),
            (r#"[{"s":0}]"#, r#"[{"s":-0.0}]"#, true),
            (r#"[{"s":1}]"#, r#"[{"s":"1"}]"#, false),
            (r#"[{"s":"1"}]"#, r#"[{"s":"1.0"}]"#, false),
            (r#"[{"s":9007199254740992}]"#, r#"[{"s":9007199254740992.0}]"#, true),
            (r#"[{"s":9007199254740993}]"#, r#"[{"s":9007199254740992.0}]"#, false),
            (r#"[{"s":9223372036854775807}]"#, r#"[{"s":9223372036854775807.0}]"#, false),
            (r#"[{"s":10},{"s":9.0}]"#, r#"[{"s":9},{"s":10.0}]"#, true),
            (r#"[{"s":0.5}]"#, r#"[{"s":0.5},{"s":0.5}]"#, false),
            (r#"[{"s":0.5}]"#, r#"[{"t":0.5}]"#, false),
            (r#"[{"s":0.5}]"#, r#"broken"#, false),
        ];
        for (stored, fresh, expected) in cases {
            let mut differences = Tally::default();
            differences.add(Op::Updated, r#""k""#, stored, fresh);
            differences.end();
            assert_eq!(differences.count == 0, expected, "{stored} {fresh}");
        }
    }

    #[test]
    fn a_key_may_come_again_in_another_spelling() {
        let of = |changes: &[(Op, &str, &str, &str)]| {
            let mut differences = Tally::default();
            for (op, key, stored, fresh) in changes {
                differences.add(*op, key, stored, fresh);
            }
            differences.end();
            differences.keys
        };
        let (created, updated, deleted) = (Op::Created, Op::Updated, Op::Deleted);
        let rows = r#"[{"id":5,"n":3}]"#;
        let respelled = r#"[{"id":5.0,"n":3}]"#;
        assert!(of(&[(created, "5", "[]", rows), (deleted, "5.0", respelled, "[]")]).is_empty());
        assert!(of(&[(deleted, "-0.0", "[{}]", "[]"), (created, "0", "[]", "[{}]")]).is_empty());
        let moved = [
            (updated, "5", rows, r#"[{"id":5,"n":3},{"id":5,"n":4}]"#),
            (deleted, "5.0", r#"[{"id":5.0,"n":4}]"#, "[]"),
        ];
        assert!(of(&moved).is_empty(), "a row of several came under the other key");
        let fewer = [(created, "5", "[]", r#"[{"id":5,"n":2}]"#), (deleted, "5.0", respelled, "[]")];
        assert_eq!(of(&fewer), ["created 5", "deleted 5.0"]);
        let text = [(created, r#""5""#, "[]", rows), (deleted, r#""5.0""#, rows, "[]")];
        assert_eq!(of(&text), [r#"created "5""#, r#"deleted "5.0""#], "text is as it is spelled");
        assert_eq!(of(&[(created, "5", "[]", rows)]), ["created 5"]);
    }
}
