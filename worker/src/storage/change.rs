//! The change that a write made, as the `_change` column has it: `{"op":"created"}`, or
//! `{"op":"updated","fields":["amount"]}` with the top-level fields that differ, and `"headers"` where a message has
//! some. Pure.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

/// `_change` of a row that was not there before.
pub(crate) const CREATED: &str = r#"{"op":"created"}"#;

/// `_change` with the headers of the message that made the change, a JSON object.
pub(crate) fn with_headers<'c>(change: Cow<'c, str>, headers: Option<&str>) -> Cow<'c, str> {
    match headers {
        None => change,
        Some(headers) => {
            let fields = change.strip_suffix('}').expect("a change is an object");
            format!("{fields},\"headers\":{headers}}}").into()
        }
    }
}

/// Objects with more fields are compared by way of a map.
const FIELDS_FEW: usize = 16;

/// Two payloads of a row, side by side.
pub(crate) struct PayloadDiff<'a> {
    old: Option<Fields<'a>>,
    new: Option<Fields<'a>>,
}

impl<'a> PayloadDiff<'a> {
    pub(crate) fn between(old: &'a str, new: &'a str) -> Self {
        Self { old: fields(old), new: fields(new) }
    }

    /// `_change` of the row. Where one of the payloads is no object there are no fields to name. Values compare by their
    /// text, so `1.0` differs from `1`.
    pub(crate) fn change(&self) -> String {
        let mut change = String::from(r#"{"op":"updated""#);
        if let (Some(old), Some(new)) = (&self.old, &self.new) {
            change.push_str(r#","fields":["#);
            let (before, after) = (old.by_name(), new.by_name());
            let present = new.0.iter().filter(|(name, value)| !before.has(name, Some(value)));
            let gone = old.0.iter().filter(|(name, _)| !after.has(name, None));
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

    /// Whether the payloads are objects in which SQLite finds the same value for a field; if in doubt, not.
    pub(crate) fn keeps(&self, field: &str) -> bool {
        match (&self.old, &self.new) {
            (Some(old), Some(new)) => {
                let is_plain = |(name, _): &(Cow<'_, str>, _)| matches!(name, Cow::Borrowed(_));
                old.0.iter().chain(&new.0).all(is_plain) && old.first(field) == new.first(field)
            }
            _ => false,
        }
    }
}

/// Top-level fields of an object with the text of their values, in their order.
pub(crate) struct Fields<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Fields<'a> {
    /// The value of a field, the first one if there are several: that is SQLite's choice too.
    pub(crate) fn first(&self, field: &str) -> Option<&'a str> {
        self.0.iter().find(|(name, _)| name == field).map(|(_, value)| value.get())
    }

    /// Sorts the fields by their names; fields of one name stay in their order.
    pub(crate) fn sort(&mut self) {
        self.0.sort_by(|(one, _), (other, _)| one.cmp(other));
    }

    /// Names and values.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, &'a str)> {
        self.0.iter().map(|(name, value)| (&**name, value.get()))
    }

    fn by_name(&self) -> FieldsByName<'_> {
        if self.0.len() <= FIELDS_FEW {
            return FieldsByName::Few(&self.0);
        }
        let mut map: HashMap<&str, Vec<&str>> = HashMap::with_capacity(self.0.len());
        for (name, value) in &self.0 {
            map.entry(name).or_default().push(value.get());
        }
        FieldsByName::Many(map)
    }
}

/// Fields by name; an object may give one several times.
enum FieldsByName<'f> {
    Few(&'f [(Cow<'f, str>, &'f RawValue)]),
    Many(HashMap<&'f str, Vec<&'f str>>),
}

impl FieldsByName<'_> {
    /// Whether there is such a field, with this value if one is given.
    fn has(&self, name: &str, value: Option<&RawValue>) -> bool {
        let fits = |found: &str| value.is_none_or(|value| value.get() == found);
        match self {
            Self::Few(fields) => fields.iter().any(|(other, found)| other == name && fits(found.get())),
            Self::Many(map) => map.get(name).is_some_and(|found| found.iter().any(|found| fits(found))),
        }
    }
}

/// The fields of an object; `None` for anything else.
pub(crate) fn fields(json: &str) -> Option<Fields<'_>> {
    let mut deserializer = serde_json::Deserializer::from_str(json);
    deserializer.deserialize_any(Object).ok().flatten()
}

struct Object;

impl<'de> Visitor<'de> for Object {
    type Value = Option<Fields<'de>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::with_capacity(8);
        while let Some(name) = map.next_key::<Name<'de>>()? {
            fields.push((name.0, map.next_value()?));
        }
        Ok(Some(Fields(fields)))
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
            assert_eq!(PayloadDiff::between(old, new).change(), expected, "{old} -> {new}");
        }
    }

    #[test]
    fn headers_stand_beside_what_changed() {
        let change = with_headers(CREATED.into(), Some(r#"{"trace":"7"}"#));
        assert_eq!(change, r#"{"op":"created","headers":{"trace":"7"}}"#);
        assert_eq!(with_headers(CREATED.into(), None), CREATED);
    }

    #[test]
    fn many_fields_are_compared_as_few_are() {
        let object = |changed: usize| {
            let fields: Vec<String> =
                (0..1_000).map(|n| format!(r#""f{n}":{}"#, u8::from(n == changed))).collect();
            format!("{{{}}}", fields.join(","))
        };
        let change = PayloadDiff::between(&object(1), &object(2)).change();
        assert_eq!(change, r#"{"op":"updated","fields":["f1","f2"]}"#);
    }

    #[test]
    fn a_field_is_kept_if_sqlite_finds_the_same_in_both() {
        let cases = [
            (r#"{"a":1,"b":2}"#, r#"{"b":3,"a":1}"#, true),
            (r#"{"b":2}"#, r#"{"b":3}"#, true),
            (r#"{"a":1}"#, r#"{"a":1.0}"#, false),
            (r#"{"a":1,"a":2}"#, r#"{"a":2,"a":1}"#, false),
            (r#"{"a":1,"a":2}"#, r#"{"a":1}"#, true),
            (r#"{"\u0061":1,"a":2}"#, r#"{"\u0061":1,"a":2}"#, false),
            ("[1]", "[1]", false),
        ];
        for (old, new, expected) in cases {
            assert_eq!(PayloadDiff::between(old, new).keeps("a"), expected, "{old} -> {new}");
        }
    }
}
