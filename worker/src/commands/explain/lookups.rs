//! The number of look-ups for one changed row, by the links of a plan. The estimate assumes that each look-up finds
//! one row, and that a row keeps the values by which it is found. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::join::plan::{Keyed, Link, RowExpr};

/// Look-ups for the change of one row, each in one shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Probes {
    /// Look-ups that find the affected result keys.
    find: u64,
    /// Look-ups that gather the rows of those results.
    gather: u64,
    total: u64,
}

impl Probes {
    pub(super) fn total(self) -> u64 {
        self.total
    }
}

/// Returns the look-ups by topic.
pub(super) fn estimate(keyed: &Keyed, shards: usize) -> BTreeMap<String, Probes> {
    let plan = Plan { keyed, shards: shards as u64 };
    let of_one_key: u64 = keyed
        .occurrences
        .iter()
        .map(|occurrence| plan.shards_of(&occurrence.by) * occurrence.from.len() as u64)
        .sum();
    let mut by_topic: BTreeMap<String, Probes> = BTreeMap::new();
    for (place, occurrence) in keyed.occurrences.iter().enumerate() {
        let (find, keys) = plan.up(place);
        // The changed row itself needs no look-up.
        let known = u64::from(occurrence.by.is_key());
        let probes = by_topic.entry(occurrence.topic.clone()).or_default();
        probes.find += find;
        probes.gather += keys * of_one_key.saturating_sub(known);
        probes.total = probes.find + probes.gather;
    }
    by_topic
}

struct Plan<'a> {
    keyed: &'a Keyed,
    shards: u64,
}

impl Plan<'_> {
    /// Returns the number of shards that a look-up by this expression reads.
    fn shards_of(&self, by: &RowExpr) -> u64 {
        if by.is_key() { 1 } else { self.shards }
    }

    /// Returns the look-ups from one value of an occurrence to result keys, and the number of these keys.
    fn up(&self, place: usize) -> (u64, u64) {
        let (mut probes, mut keys) = (0, 0);
        for link in &self.keyed.occurrences[place].from {
            match link {
                Link::Keys => keys += 1,
                Link::Parent { index, of, .. } => {
                    let (above, found) = self.up(*index);
                    probes += self.shards_of(of) + above;
                    keys += found;
                }
            }
        }
        (probes, keys)
    }
}

#[cfg(test)]
mod tests {
    use litejoin_crds::plan::{Join, Place};

    use super::*;
    use crate::join::check::{self, Catalog};
    use crate::join::plan::Class;

    fn estimated(query: &str) -> Vec<(String, u64, u64)> {
        let join = Join {
            name: "j".to_owned(),
            place: Place { document: 0, path: String::new() },
            query: query.to_owned(),
            key_column: None,
            result_key: None,
            refresh: std::time::Duration::from_secs(1),
            sinks: Vec::new(),
        };
        let topics = ["orders".to_owned(), "customers".to_owned()];
        let joins = check::check(&[join], &[], Catalog { topics: &topics, open: false }, &check::no_window)
            .expect("a query");
        let Class::Keyed(keyed) = &joins[0].class.clone().unaccumulated() else { panic!("{query} is full") };
        let probes = estimate(keyed, 8).into_iter();
        probes.map(|(topic, probes)| (topic, probes.find, probes.gather)).collect()
    }

    #[test]
    fn a_look_up_by_key_goes_to_one_shard_and_any_other_to_all() {
        let probes = |topic: &str, find, gather| (topic.to_owned(), find, gather);
        assert_eq!(estimated("SELECT key FROM orders"), [probes("orders", 0, 0)]);
        assert_eq!(
            estimated("SELECT payload->>'n' AS n, count(*) FROM orders GROUP BY 1"),
            [probes("orders", 0, 8)]
        );
        assert_eq!(
            estimated(
                "SELECT o.key, c.payload->>'name' FROM orders o LEFT JOIN customers c ON c.key = o.payload->>'c'"
            ),
            [probes("customers", 8, 1), probes("orders", 0, 1)]
        );
    }
}
