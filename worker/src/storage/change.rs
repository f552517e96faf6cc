//! What a write changed, as the `_change` column tells it: `{"op":"created"}`, or
//! `{"op":"updated","fields":["amount"]}` with the top-level fields that differ. Pure.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// `_change` of a row that was not there before.
pub(crate) const CREATED: &str = r#"{"op":"created"}"#;

/// `_change` of a row whose payload went from `old` to `new`. Where one of them is no object there are no
/// fields to name. Values compare by their text, so `1.0` differs from `1`.
pub(crate) fn updated(old: &str, new: &str) -> String {
    let mut change = String::from(r#"{"op":"updated""#);
    if let (Some(old), Some(new)) = (fields(old), fields(new)) {
        change.push_str(r#","fields":["#);
        let present = new.iter().filter(|(name, value)| {
            !old.iter().any(|(other, before)| other == name && before.get() == value.get())
        });
        let gone = old.iter().filter(|(name, _)| !new.iter().any(|(other, _)| other == name));
        for (index, (name, _)) in present.chain(gone).enumerate() {
            if index > 0 {
                change.push(',');
            }
            change.push_str(&serde_json::to_string(name).expect("a string is always JSON"));
        }
        change.push(']');
    }
    change.push('}');
    change
}

/// Top-level fields of an object with the text of their values; `None` for anything else.
fn fields(json: &str) -> Option<Vec<(Cow<'_, str>, &RawValue)>> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    deserializer.deserialize_any(Fields).ok().flatten()
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Option<Vec<(Cow<'de, str>, &'de RawValue)>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::with_capacity(8);
        while let Some(name) = map.next_key::<Name<'de>>()? {
            fields.push((name.0, map.next_value()?));
        }
        Ok(Some(fields))
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(None)
    }
}

/// A field's name, borrowed unless it holds an escape.
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_names_the_fields_that_differ() {
        let cases = [
            (r#"{"a":1,"b":2}"#, r#"{"a":1,"b":3}"#, r#"{"op":"updated","fields":["b"]}"#),
            (r#"{"a":1}"#, r#"{"a":1,"b":{"c":1}}"#, r#"{"op":"updated","fields":["b"]}"#),
            (r#"{"a":1,"b":2}"#, r#"{"a":1}"#, r#"{"op":"updated","fields":["b"]}"#),
            (r#"{"a":1}"#, r#"{ "a": 1 }"#, r#"{"op":"updated","fields":[]}"#),
            (r#"{"é\"":1}"#, r#"{"é\"":2}"#, r#"{"op":"updated","fields":["é\""]}"#),
            (r#"[1]"#, r#"{"a":1}"#, r#"{"op":"updated"}"#),
            ("1", "2", r#"{"op":"updated"}"#),
        ];
        for (old, new, expected) in cases {
            assert_eq!(updated(old, new), expected, "{old} -> {new}");
        }
    }
}
