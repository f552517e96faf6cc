//! That every query can be asked, and has one answer only.

use std::collections::BTreeMap;

use super::CLASSES;
use crate::fuzz::schema::Message;
use crate::fuzz::script::{Join, ROUNDS, Script, Step};
use crate::fuzz::tables::Tables;
use crate::results::Results;

/// Scripts whose joins are looked at, more than CI plays; each has a dozen joins or two.
const SCRIPTS: u64 = 2 * ROUNDS;

/// Results that a class must yield over the rounds that CI plays, one look at each.
const RESULTS_MIN: usize = 8;

#[test]
fn no_query_depends_on_the_order_of_rows() {
    let mut yielded: BTreeMap<&str, usize> = BTreeMap::new();
    for seed in 1..=SCRIPTS {
        let script = Script::random(seed);
        let [forward, others @ ..] = answers(&script);
        for (index, join) in script.joins.iter().enumerate() {
            let Join { name, query, .. } = join;
            for other in &others {
                let (one, other) = (&forward[index], &other[index]);
                assert_eq!(one, other, "seed {seed}: {name} has more than one answer:\n{query}");
            }
            if seed <= ROUNDS {
                *yielded.entry(join.class).or_default() += forward[index].rows.len();
            }
        }
    }
    for (class, _) in CLASSES {
        let count = yielded.get(class).copied().unwrap_or(0);
        assert!(
            count >= RESULTS_MIN,
            "class {class} yields {count} results in all: it tests next to nothing"
        );
    }
}

#[test]
fn a_script_follows_from_its_seed() {
    for seed in 0..20 {
        assert_eq!(format!("{:?}", Script::random(seed)), format!("{:?}", Script::random(seed)));
    }
}

#[test]
fn a_query_with_two_answers_is_seen() {
    let mut script = Script::random(1);
    let topic = &script.topics[0];
    for query in [
        format!("SELECT 'all' AS id, payload FROM \"{topic}\" GROUP BY 1"),
        format!("SELECT key FROM \"{topic}\" LIMIT 1"),
        format!("SELECT group_concat(key) AS id FROM \"{topic}\""),
    ] {
        script.joins = vec![Join { query, key_column: None, ..script.joins[0].clone() }];
        let [forward, others @ ..] = answers(&script);
        assert!(others.iter().any(|other| *other != forward), "{}", script.joins[0].query);
    }
}

/// Results of the script's joins over all its rows, which come in three orders.
fn answers(script: &Script) -> [Vec<Results>; 3] {
    let mut present = BTreeMap::new();
    for message in script.steps.iter().flat_map(Step::messages) {
        present.insert((message.topic.to_ascii_lowercase(), &message.key), message);
    }
    let forward: Vec<&Message> = present.into_values().collect();
    let backward: Vec<&Message> = forward.iter().rev().copied().collect();
    // Backward in both ways would be forward again, as far as tables are concerned.
    [(&forward, false), (&backward, false), (&forward, true)].map(|(messages, reversed)| {
        let mut tables = Tables::new(&script.topics);
        if reversed {
            tables.reverse();
        }
        tables.define(&script.joins);
        for message in messages {
            tables.apply(message);
        }
        script.joins.iter().map(|join| tables.results(join)).collect()
    })
}
