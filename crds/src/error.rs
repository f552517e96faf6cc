//! Errors as people read them: on one line, printed once, at the edge, by worker and operator alike.

/// An error with its causes. Some crates put a cause into their own message as well, which is said once, or write
/// several lines, which become one.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string().replace(['\r', '\n'], " ");
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}
