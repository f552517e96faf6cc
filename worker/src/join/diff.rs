//! Comparing the rows of a query with the stored results: two streams in the order of result keys, walked side by
//! side, so that memory does not grow with the results. Pure.

use std::cmp::Ordering;

use super::rows::same_rows;
use crate::results::event::Op;

/// The stored results of one join in the order of their keys.
pub(crate) trait StoredResults {
    /// Returns the next key and its rows.
    fn next(&mut self) -> rusqlite::Result<Option<(String, String)>>;
}

/// Calls `emit` (kind of change, key, rows) for every key whose rows differ between `fresh` and `stored`, in order.
pub(crate) fn diff<E: From<rusqlite::Error>>(
    mut fresh: impl FnMut() -> rusqlite::Result<Option<(String, String)>>,
    stored: &mut dyn StoredResults,
    emit: &mut dyn FnMut(Op, &str, &str) -> Result<(), E>,
) -> Result<(), E> {
    let (mut new, mut old) = (fresh()?, stored.next()?);
    loop {
        let order = match (&new, &old) {
            (None, None) => return Ok(()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((new, _)), Some((old, _))) => new.as_bytes().cmp(old.as_bytes()),
        };
        if order.is_le()
            && let Some((key, rows)) = &new
        {
            let op = if order.is_lt() { Op::Created } else { Op::Updated };
            let same = order.is_eq() && old.as_ref().is_some_and(|(_, old)| same_rows(old, rows));
            if !same {
                emit(op, key, rows)?;
            }
        }
        if order.is_gt()
            && let Some((key, _)) = &old
        {
            emit(Op::Deleted, key, "[]")?;
        }
        if order.is_le() {
            new = fresh()?;
        }
        if order.is_ge() {
            old = stored.next()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Rows(std::vec::IntoIter<(String, String)>);

    impl StoredResults for Rows {
        fn next(&mut self) -> rusqlite::Result<Option<(String, String)>> {
            Ok(self.0.next())
        }
    }

    fn rows(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(String, String)> {
        pairs
            .iter()
            .map(|(key, rows)| ((*key).to_owned(), (*rows).to_owned()))
            .collect::<Vec<_>>()
            .into_iter()
    }

    #[test]
    fn only_differences_come_out_in_the_order_of_keys() {
        let mut fresh = rows(&[("a", "[1]"), ("b", "[2]"), ("d", "[4,5]"), ("e", "[6]")]);
        let mut stored = Rows(rows(&[("b", "[3]"), ("c", "[1]"), ("d", "[5,4]")]));
        let mut seen = Vec::new();
        diff::<rusqlite::Error>(|| Ok(fresh.next()), &mut stored, &mut |op, key, rows| {
            seen.push(format!("{} {key} {rows}", op.as_str()));
            Ok(())
        })
        .expect("nothing fails");
        assert_eq!(seen, ["created a [1]", "updated b [2]", "deleted c []", "created e [6]"]);
    }
}
