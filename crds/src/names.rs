//! Which texts may be names, or refer to an environment variable. Topics, joins and windows are tables in queries, so
//! they share one namespace, and like SQLite's its names differ by more than case.

/// Pattern of a topic's name: a plain SQL identifier that needs no quotes.
pub const TOPIC_PATTERN: &str = r"^[A-Za-z][A-Za-z0-9_]*$";
/// Pattern of the name of a source, join, window or sink; with `-` it needs double quotes in a query.
pub const NAME_PATTERN: &str = r"^[A-Za-z][A-Za-z0-9_-]*$";
/// The longest name, in bytes: a DNS label's.
pub const NAME_LENGTH_MAX: usize = 63;
/// The longest name of a Pipeline, in bytes: its StatefulSet's pods add a suffix to it.
pub const PIPELINE_LENGTH_MAX: usize = 52;
/// Pattern of the name of a Pipeline: a DNS label.
pub const PIPELINE_PATTERN: &str = r"^[a-z]([a-z0-9-]*[a-z0-9])?$";

/// Pattern of the name of a Secret: a DNS subdomain.
pub const SECRET_PATTERN: &str = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$";

/// Fields of a result, which a join's `resultKey` may not be called.
pub const RESULT_FIELDS: [&str; 9] =
    ["query", "key", "rows", "op", "id", "epoch", "timestamp", "_replay", "stale"];

/// Whether a text matches `TOPIC_PATTERN`.
pub fn is_topic(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Whether a text matches `NAME_PATTERN`.
pub fn is_name(text: &str) -> bool {
    is_topic(&text.replace('-', "_"))
}

/// Whether a text matches `PIPELINE_PATTERN`.
pub fn is_pipeline(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_lowercase())
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// Whether a text matches `SECRET_PATTERN`.
pub fn is_secret(text: &str) -> bool {
    let is_end = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    text.starts_with(is_end)
        && text.ends_with(is_end)
        && text.chars().all(|c| is_end(c) || c == '.' || c == '-')
}

/// The complaint about a text that refers to no environment variable. The text may be a credential in the wrong place,
/// so the message does not repeat it; an API server would repeat a text that misses a pattern.
pub const VARIABLE_MESSAGE: &str =
    "names no environment variable; write for example ${API_TOKEN}, never the credential itself";

/// Whether a text refers to an environment variable, such as `${API_TOKEN}`.
pub fn is_variable_reference(text: &str) -> bool {
    text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).is_some_and(|name| {
        !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    })
}

/// Returns why a text cannot name a Pipeline and what to write instead, or `None` if it can.
pub fn pipeline_trouble(text: &str) -> Option<String> {
    let allowed = "the name of a Pipeline has lower-case letters, digits and -, a letter first";
    (!is_pipeline(text)).then(|| format!("got {text:?}, {allowed}"))
}

/// Returns why a text cannot name a Secret and what to write instead, or `None` if it can.
pub fn secret_trouble(text: &str) -> Option<String> {
    let allowed = "the name of a Secret has lower-case letters, digits, - and .; it is looked for in the \
                   Pipeline's own namespace";
    (!is_secret(text)).then(|| format!("got {text:?}, {allowed}"))
}

/// Returns why a text cannot name a topic and what to write instead, or `None` if it can.
pub fn topic_trouble(text: &str) -> Option<String> {
    if let Some(trouble) = common_trouble(text) {
        return Some(trouble);
    }
    if is_topic(text) {
        return None;
    }
    let allowed = "a topic is a table: letters, digits and _, a letter first";
    Some(match plain(text) {
        Some(plain) => format!("got {text:?}, {allowed}; write for example {plain:?}"),
        None => format!("got {text:?}, {allowed}"),
    })
}

/// Returns why a text cannot name a source, join, window or sink and what to write instead, or `None` if it can.
pub fn name_trouble(text: &str) -> Option<String> {
    if let Some(trouble) = common_trouble(text) {
        return Some(trouble);
    }
    if is_name(text) {
        return None;
    }
    let allowed = "a name has letters, digits, - and _, a letter first";
    Some(match plain(text) {
        Some(plain) => format!("got {text:?}, {allowed}; write for example {plain:?}"),
        None => format!("got {text:?}, {allowed}"),
    })
}

/// Why a text can be no name at all, or `None` if it can.
fn common_trouble(text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("got \"\", a name must not be empty".to_owned());
    }
    if text.len() > NAME_LENGTH_MAX {
        return Some(format!(
            "got a name of {} bytes, allowed at most {NAME_LENGTH_MAX}; shorten it",
            text.len()
        ));
    }
    if text.starts_with('_') {
        let rest = text.trim_start_matches('_');
        return Some(format!(
            "got {text:?}, names that begin with _ are LiteJoin's own; write for example {rest:?}"
        ));
    }
    if text.to_ascii_lowercase().starts_with("sqlite_") {
        let rest = &text["sqlite_".len()..];
        return Some(format!(
            "got {text:?}, names that begin with sqlite_ are SQLite's own; write for example {rest:?}"
        ));
    }
    None
}

/// The text with characters that no topic's name has replaced by `_`; `None` if even that is no name.
fn plain(text: &str) -> Option<String> {
    let plain: String = text.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    is_topic(&plain).then_some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_to_write_instead() {
        assert_eq!(topic_trouble("orders_2"), None);
        assert_eq!(name_trouble("order-user-join"), None);
        let table = [
            (
                topic_trouble("order-lines"),
                "got \"order-lines\", a topic is a table: letters, digits and _, a letter first; write for example \"order_lines\"",
            ),
            (
                topic_trouble("2024"),
                "got \"2024\", a topic is a table: letters, digits and _, a letter first",
            ),
            (
                topic_trouble("_chg"),
                "got \"_chg\", names that begin with _ are LiteJoin's own; write for example \"chg\"",
            ),
            (
                name_trouble("SQLite_stat1"),
                "got \"SQLite_stat1\", names that begin with sqlite_ are SQLite's own; write for example \"stat1\"",
            ),
            (
                name_trouble("a.b"),
                "got \"a.b\", a name has letters, digits, - and _, a letter first; write for example \"a_b\"",
            ),
            (name_trouble(""), "got \"\", a name must not be empty"),
        ];
        for (trouble, message) in table {
            assert_eq!(trouble.as_deref(), Some(message));
        }
    }
}
