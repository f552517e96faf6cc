//! Paths in gjson syntax: modifiers that the worker's gjson does not have would find nothing at every poll.

use crate::complaint::Reason;
use crate::validate::scope::Scope;

/// Modifiers of other implementations of gjson.
const FOREIGN_MODIFIERS: [&str; 6] = ["keys", "values", "tostr", "fromstr", "group", "dig"];

/// The modifier that the worker itself knows at the end of `responsePath`.
const VALUES: &str = "@values";

/// Checks the path of the records in a response, which may end in `@values`.
pub(crate) fn response_path(field: &str, path: &str, scope: &mut Scope<'_>) {
    let of_object = path.strip_suffix(VALUES).map(|rest| rest.strip_suffix(['.', '|']).unwrap_or(rest));
    check_path(field, of_object.unwrap_or(path), scope);
}

/// Checks any other path.
pub(crate) fn check_path(field: &str, path: &str, scope: &mut Scope<'_>) {
    let Some(name) = modifiers(path).find(|name| FOREIGN_MODIFIERS.contains(name)) else { return };
    let remedy = match name {
        "values" => "end responsePath in it to have the values of an object as records",
        _ => "there are @this, @valid, @flatten, @join, @reverse, @pretty and @ugly",
    };
    let message = format!(
        "got @{name}, a modifier of gjson that is not there; {remedy}, and a field of that name is written \\@{name}"
    );
    scope.error(field, Reason::InvalidValue, message);
}

/// The names of the modifiers in a path. Texts and brackets, such as queries, are passed over.
fn modifiers(path: &str) -> impl Iterator<Item = &str> {
    let (mut depth, mut is_quoted, mut is_escaped, mut begins) = (0_u32, false, false, true);
    path.char_indices().filter_map(move |(at, c)| {
        let is_modifier = c == '@' && begins && depth == 0 && !is_quoted;
        begins = matches!(c, '.' | '|') && !is_escaped;
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => is_quoted = !is_quoted,
            '(' | '[' | '{' if !is_quoted => depth += 1,
            ')' | ']' | '}' if !is_quoted => depth = depth.saturating_sub(1),
            _ => {}
        }
        let name = &path[at + c.len_utf8()..];
        let end = name.find(['.', '|', ':']).unwrap_or(name.len());
        is_modifier.then(|| &name[..end])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modifiers_are_found_where_gjson_finds_them() {
        for (path, expected) in [
            ("a.b", &[][..]),
            ("@values", &["values"]),
            ("a.@keys|@flatten:{\"deep\":true}.b", &["keys", "flatten"]),
            ("a@b.c", &[]),
            ("\\@keys", &[]),
            ("a\\.@keys", &[]),
            ("a.#(b==\"x.@keys\")#.@reverse", &["reverse"]),
            ("é.@values", &["values"]),
            ("[a,b.@keys].@this", &["this"]),
        ] {
            assert_eq!(modifiers(path).collect::<Vec<_>>(), expected, "{path}");
        }
    }
}
