//! The path of a field in a document, such as `spec.joins[0].query`. Complaints, and the map from fields to lines of a
//! file, are both made with these functions, so that their paths are always the same.

/// Returns the path of a field of the object at `parent`; a name that is not plain is put in brackets.
pub fn field(parent: &str, name: &str) -> String {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    match (plain, parent.is_empty()) {
        (true, true) => name.to_owned(),
        (true, false) => format!("{parent}.{name}"),
        (false, _) => format!("{parent}[{name:?}]"),
    }
}

/// Returns the path of an item of the list at `parent`, counted from 0.
pub fn item(parent: &str, index: usize) -> String {
    format!("{parent}[{index}]")
}

/// Returns the path of the object or list that a field or item is in; `None` for the whole document.
pub fn parent(path: &str) -> Option<&str> {
    if path.is_empty() {
        return None;
    }
    if let Some(quoted) = path.strip_suffix("\"]") {
        return quoted.rfind("[\"").map(|at| &path[..at]);
    }
    if path.ends_with(']') {
        return path.rfind('[').map(|at| &path[..at]);
    }
    Some(path.rfind('.').map_or("", |at| &path[..at]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_back_to_the_document() {
        let path = field(&item(&field(&field("", "spec"), "joins"), 0), "query");
        assert_eq!(path, "spec.joins[0].query");
        let mut path = field(&field(&field("", "metadata"), "labels"), "a.b/c");
        let mut seen = vec![path.clone()];
        while let Some(up) = parent(&path) {
            path = up.to_owned();
            seen.push(path.clone());
        }
        assert_eq!(seen, ["metadata.labels[\"a.b/c\"]", "metadata.labels", "metadata", ""]);
        assert_eq!(parent("spec.joins[0]"), Some("spec.joins"));
    }
}
