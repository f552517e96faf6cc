//! What a query may do: read topics and outputs, and nothing else. The reads are noted.

use std::collections::BTreeSet;

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use crate::join::checked::mentions;
use crate::join::now;

/// Names that the authorizer has noted during one prepare.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) tables: BTreeSet<String>,
    /// Names that the query itself reads, not through another join.
    pub(super) named: BTreeSet<String>,
    /// Tables whose column `timestamp` is read.
    pub(super) timed: BTreeSet<String>,
    pub(super) functions: BTreeSet<String>,
    pub(super) denied: Option<String>,
}

impl Seen {
    /// Returns the tables whose column `timestamp` the query may read.
    pub(super) fn timed_in(&self, query: &str) -> BTreeSet<String> {
        // SQLite does not tell of the columns that NATURAL and USING compare.
        let compares_any = ["natural", "using"].iter().any(|word| mentions(query, word));
        if compares_any { self.tables.clone() } else { self.timed.clone() }
    }
}

/// Allows a query to read, and notes its reads in `seen`.
pub(super) fn authorize(seen: &mut Seen, context: &AuthContext<'_>) -> Authorization {
    let mut deny = |what: String| {
        seen.denied.get_or_insert(what);
        Authorization::Deny
    };
    match context.action {
        AuthAction::Select | AuthAction::Recursive => Authorization::Allow,
        AuthAction::Read { table_name, column_name } => {
            let lower = table_name.to_ascii_lowercase();
            if lower.starts_with("sqlite_") || lower.starts_with("pragma_") {
                return deny(format!("{table_name} may not be read; a join reads topics and other joins"));
            }
            if context.accessor.is_none() {
                seen.named.insert(lower.clone());
            }
            if column_name.eq_ignore_ascii_case("timestamp") {
                seen.timed.insert(lower.clone());
            }
            seen.tables.insert(lower);
            Authorization::Allow
        }
        AuthAction::Function { function_name } => {
            let lower = function_name.to_ascii_lowercase();
            if lower == "load_extension" {
                return deny("load_extension() is not allowed in a join".to_owned());
            }
            if lower == now::NOW && context.accessor.is_none() {
                return deny(format!("no such function: {function_name}; write unixepoch()"));
            }
            seen.functions.insert(lower);
            Authorization::Allow
        }
        AuthAction::Attach { .. } | AuthAction::Detach { .. } | AuthAction::Pragma { .. } => {
            deny("is no SELECT; a join is one SELECT, without ATTACH or PRAGMA".to_owned())
        }
        _ => deny("is no SELECT; a join only reads".to_owned()),
    }
}
