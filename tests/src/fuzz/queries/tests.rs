//! That every query can be asked, and has one answer only.

use std::collections::BTreeMap;

use super::CLASSES;
use crate::fuzz::schema::Message;
use crate::fuzz::script::{Script, Step};
use crate::fuzz::tables::Tables;
use crate::results::Results;

/// Scripts whose joins are looked at; each has a dozen or two.
const SCRIPTS: u64 = 150;

#[test]
fn no_query_depends_on_the_order_of_rows() {
    let mut yielded: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 0..SCRIPTS {
        let script = Script::random(seed);
        let messages = script.steps.iter().flat_map(Step::messages);
        let mut present = BTreeMap::new();
        for message in messages {
            present.insert((message.topic.to_ascii_lowercase(), &message.key), message);
        }
        let forward = answers(&script, present.values().copied(), false);
        let backward = answers(&script, present.values().rev().copied(), true);
        for (join, (one, other)) in script.joins.iter().zip(forward.iter().zip(&backward)) {
            assert_eq!(
                one, other,
                "seed {seed}: {} of class {} is open:\n{}",
                join.name, join.class, join.query
            );
            *yielded.entry(join.class).or_default() += one.rows.len();
        }
    }
    for (class, _) in CLASSES {
        let count = yielded.get(class).copied().unwrap_or(0);
        assert!(count > 20, "class {class} has yielded {count} results in all: it tests next to nothing");
    }
}

#[test]
fn a_script_follows_from_its_seed() {
    for seed in 0..20 {
        assert_eq!(format!("{:?}", Script::random(seed)), format!("{:?}", Script::random(seed)));
    }
}

fn answers<'m>(script: &Script, messages: impl Iterator<Item = &'m Message>, reversed: bool) -> Vec<Results> {
    let mut tables = Tables::new(&script.topics);
    if reversed {
        tables.reverse();
    }
    tables.define(&script.joins);
    for message in messages {
        tables.apply(message);
    }
    script.joins.iter().map(|join| tables.results(join)).collect()
}
