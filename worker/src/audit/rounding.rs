//! Sums of real numbers depend on the order of the rows in their last digits, and SQL leaves that order open: such
//! results are the same. Pure.

use serde_json::Value;

/// The part of a number by which two may differ: far more than rounding adds up to, far less than a row.
const SHARE: f64 = 1e-9;

/// Whether two JSON arrays hold the same rows but for the rounding of real numbers.
pub(super) fn nearly_same(a: &str, b: &str) -> bool {
    let rows = |text: &str| -> Option<Vec<Value>> {
        let mut rows: Vec<Value> = serde_json::from_str(text).ok()?;
        rows.sort_by_key(ToString::to_string);
        Some(rows)
    };
    match (rows(a), rows(b)) {
        (Some(a), Some(b)) => a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| is_near(a, b)),
        _ => false,
    }
}

fn is_near(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) if a.is_f64() && b.is_f64() => {
            let (a, b) = (a.as_f64().unwrap_or_default(), b.as_f64().unwrap_or_default());
            (a - b).abs() <= SHARE * a.abs().max(b.abs())
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|((left, a), (right, b))| left == right && is_near(a, b))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_digits_of_reals_may_differ() {
        let cases = [
            (r#"[{"k":"a","s":0.6000000000000001}]"#, r#"[{"k":"a","s":0.6}]"#, true),
            (r#"[{"s":0.6001}]"#, r#"[{"s":0.6}]"#, false),
            (r#"[{"s":1}]"#, r#"[{"s":2}]"#, false),
            (r#"[{"s":1}]"#, r#"[{"s":1.0}]"#, false),
            (r#"[{"s":0.5}]"#, r#"[{"s":0.5},{"s":0.5}]"#, false),
            (r#"[{"s":0.5}]"#, r#"[{"t":0.5}]"#, false),
            (r#"[{"s":0.5}]"#, r#"broken"#, false),
        ];
        for (a, b, expected) in cases {
            assert_eq!(nearly_same(a, b), expected, "{a} {b}");
        }
    }
}
