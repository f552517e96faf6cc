//! The meaning of a plain scalar: YAML 1.2's core schema. kubectl still reads YAML 1.1, and the same file must mean
//! the same on a laptop and in a cluster, so a word that the two read differently is refused.

use serde_json::{Number, Value};

/// Returns the value of a plain scalar, or why it is refused and what to write instead.
pub(crate) fn plain(text: &str) -> Result<Value, String> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" => return Ok(Value::Bool(false)),
        ".nan" | ".NaN" | ".NAN" => return Err(format!("{text} is no number here; write one with digits")),
        _ => {}
    }
    ambiguous(text)?;
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return Err(format!("{text} is no number here; write one with digits"));
    }
    for (prefix, radix) in [("0x", 16), ("0o", 8)] {
        if let Some(digits) = text.strip_prefix(prefix)
            && !digits.is_empty()
            && digits.chars().all(|c| c.is_digit(radix))
        {
            let number = u64::from_str_radix(digits, radix);
            return number.map(Value::from).map_err(|_| format!("{text} is too large a number"));
        }
    }
    if is_integer(unsigned) {
        let text = text.strip_prefix('+').unwrap_or(text);
        return match (text.parse::<i64>(), text.parse::<u64>()) {
            (Ok(number), _) => Ok(Value::from(number)),
            (_, Ok(number)) => Ok(Value::from(number)),
            _ => Err(format!("{text} is too large a number; put it in quotes if it is a text")),
        };
    }
    if is_float(unsigned) {
        let number = text.parse::<f64>().ok().and_then(Number::from_f64);
        return number.map(Value::Number).ok_or_else(|| format!("{text} is too large a number"));
    }
    Ok(Value::String(text.to_owned()))
}

/// Refuses what YAML 1.1 reads as something else than YAML 1.2.
fn ambiguous(text: &str) -> Result<(), String> {
    let word = text.to_ascii_lowercase();
    let meaning = match word.as_str() {
        "yes" | "on" | "y" => Some("true"),
        "no" | "off" | "n" => Some("false"),
        _ => None,
    };
    if let Some(meaning) = meaning {
        return Err(format!(
            "{text} is {meaning} to kubectl and a text to others; write {meaning}, or \"{text}\" in quotes"
        ));
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if unsigned.len() > 1 && unsigned.starts_with('0') && digits(unsigned) {
        return Err(format!(
            "{text} is an octal number to kubectl and a decimal one to others; write it without the 0 in front, or in quotes"
        ));
    }
    let bare = unsigned.replace('_', "");
    if unsigned.contains('_') && unsigned.starts_with(|c: char| c.is_ascii_digit()) && digits(&bare) {
        return Err(format!(
            "{text} is a number to kubectl and a text to others; write {bare}, or \"{text}\" in quotes"
        ));
    }
    Ok(())
}

fn is_integer(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

/// `[0-9]* (. [0-9]*)? ([eE] [-+]? [0-9]+)?` with a digit before the exponent.
fn is_float(text: &str) -> bool {
    let (mantissa, exponent) = match text.find(['e', 'E']) {
        Some(at) => (&text[..at], Some(&text[at + 1..])),
        None => (text, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| is_integer(exponent.strip_prefix(['-', '+']).unwrap_or(exponent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    use serde_json::json;

    #[test]
    fn scalars_are_those_of_the_core_schema() {
        let table = [
            ("", json!(null)),
            ("~", json!(null)),
            ("True", json!(true)),
            ("8080", json!(8080)),
            ("-1", json!(-1)),
            ("0", json!(0)),
            ("0x1F", json!(31)),
            ("0o17", json!(15)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            (".5", json!(0.5)),
            ("18446744073709551615", json!(u64::MAX)),
            ("10ms", json!("10ms")),
            ("12:30", json!("12:30")),
            ("1.2.3", json!("1.2.3")),
            (":8080", json!(":8080")),
            ("-", json!("-")),
            (".", json!(".")),
            ("e5", json!("e5")),
            ("2026-05-01T12:00:00Z", json!("2026-05-01T12:00:00Z")),
        ];
        for (text, value) in table {
            assert_eq!(plain(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_two_readers_read_differently_is_refused() {
        let table = [
            ("no", "no is false to kubectl and a text to others; write false, or \"no\" in quotes"),
            ("On", "On is true to kubectl and a text to others; write true, or \"On\" in quotes"),
            (
                "012",
                "012 is an octal number to kubectl and a decimal one to others; write it without the 0 in front, or in quotes",
            ),
            (
                "1_000",
                "1_000 is a number to kubectl and a text to others; write 1000, or \"1_000\" in quotes",
            ),
            (".inf", ".inf is no number here; write one with digits"),
            (
                "99999999999999999999",
                "99999999999999999999 is too large a number; put it in quotes if it is a text",
            ),
        ];
        for (text, message) in table {
            assert_eq!(plain(text), Err(message.to_owned()), "{text}");
        }
    }
}
