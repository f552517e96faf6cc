//! Values in an answer, by paths in gjson syntax. Pure.

use std::borrow::Cow;

use gjson::Kind;

/// Modifiers that the library has; any other `@name` is the name of a field.
const MODIFIERS: [&str; 7] = ["this", "valid", "flatten", "join", "reverse", "pretty", "ugly"];

/// A path as the library needs it: it takes every name that begins with `@` for a modifier, and the dot in OData's names for
/// the end of a name.
pub(super) fn spelled(path: &str) -> Cow<'_, str> {
    let Some(rest) = path.strip_prefix('@') else { return Cow::Borrowed(path) };
    let name = &rest[..rest.find(['.', '|', ':']).unwrap_or(rest.len())];
    if MODIFIERS.contains(&name) {
        return Cow::Borrowed(path);
    }
    Cow::Owned(match rest.strip_prefix("odata.") {
        Some(rest) => format!("\\@odata\\.{rest}"),
        None => format!("\\@{rest}"),
    })
}

/// A text, number or boolean at a path, as it is sent in a query parameter.
pub(super) fn scalar(json: &str, path: &str) -> Option<String> {
    let path = spelled(path);
    let found = gjson::get(json, &path);
    match found.kind() {
        _ if !found.exists() => None,
        Kind::String => Some(found.str().to_owned()),
        Kind::Number | Kind::True | Kind::False => Some(found.json().to_owned()),
        _ => None,
    }
}

/// Whether the value at a path says yes; `None` if there is none, or it is a list or an object.
pub(super) fn truth(json: &str, path: &str) -> Option<bool> {
    let path = spelled(path);
    let found = gjson::get(json, &path);
    match found.kind() {
        _ if !found.exists() => None,
        Kind::Array | Kind::Object => None,
        Kind::Null => Some(false),
        Kind::String => Some(!matches!(found.str(), "" | "0" | "false")),
        _ => Some(!matches!(found.json(), "0" | "false")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_begin_with_an_at_sign_are_found() {
        let json = r#"{"@odata.nextLink":"u","@id":7,"@graph":[{"@type":"t"}],"@values":1}"#;
        for (path, expected) in [
            ("@odata.nextLink", Some("u")),
            ("@odata\\.nextLink", Some("u")),
            ("\\@odata\\.nextLink", Some("u")),
            ("@id", Some("7")),
            ("@graph.0.\\@type", Some("t")),
            ("@this.@reverse.\\@id", Some("7")),
            ("@none", None),
        ] {
            assert_eq!(scalar(json, path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn apis_say_yes_and_no_in_many_ways() {
        for (value, expected) in [
            ("true", Some(true)),
            ("\"true\"", Some(true)),
            ("\"abc\"", Some(true)),
            ("3", Some(true)),
            ("false", Some(false)),
            ("\"false\"", Some(false)),
            ("\"\"", Some(false)),
            ("0", Some(false)),
            ("null", Some(false)),
            ("[]", None),
        ] {
            assert_eq!(truth(&format!("{{\"more\":{value}}}"), "more"), expected, "{value}");
        }
        assert_eq!(truth("{}", "more"), None);
    }
}
