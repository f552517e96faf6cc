//! That every query can be asked, and has one answer only, up to how equal numbers are spelled.

use std::collections::BTreeMap;

use super::CLASSES;
use crate::fuzz::schema::Message;
use crate::fuzz::script::{Join, ROUNDS, Script, Step};
use crate::fuzz::spelling::{judge, plain, plain_results};
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
        let [forward, others @ ..] = answers(&script, &plain_present(&script));
        for (index, join) in script.joins.iter().enumerate() {
            let Join { name, query, .. } = join;
            for other in &others {
                let (one, other) = (plain_results(&forward[index]), plain_results(&other[index]));
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
        let [forward, others @ ..] = answers(&script, &plain_present(&script));
        assert!(others.iter().any(|other| *other != forward), "{}", script.joins[0].query);
    }
}

#[test]
fn answers_that_differ_in_spelling_are_found_in_other_orders() {
    for seed in 1..=ROUNDS {
        let script = Script::random(seed);
        let messages = present(&script);
        let mut tables = Tables::new(&script.topics);
        tables.set_now(5);
        tables.define(&script.joins);
        messages.iter().for_each(|message| tables.apply(message));
        for others in answers(&script, &messages) {
            for (join, told) in script.joins.iter().zip(others) {
                if let Err(trouble) = judge(&told, tables.answers(join)) {
                    panic!("seed {seed}: {}: {trouble}\n{}", join.name, join.query);
                }
            }
        }
    }
}

/// The last message of each key.
fn present(script: &Script) -> Vec<Message> {
    let mut present = BTreeMap::new();
    for message in script.steps.iter().flat_map(Step::messages) {
        present.insert((message.topic.to_ascii_lowercase(), &message.key), message.clone());
    }
    present.into_values().collect()
}

/// The same with each number spelled one way, so that nothing is left open.
fn plain_present(script: &Script) -> Vec<Message> {
    let mut messages = present(script);
    for message in &mut messages {
        message.payload = message.payload.as_ref().map(plain);
    }
    messages
}

/// Results of the script's joins over messages, which come in three orders.
fn answers(script: &Script, messages: &[Message]) -> [Vec<Results>; 3] {
    let forward: Vec<&Message> = messages.iter().collect();
    let backward: Vec<&Message> = forward.iter().rev().copied().collect();
    // Backward in both ways would be forward again, as far as tables are concerned.
    [(&forward, false), (&backward, false), (&forward, true)].map(|(messages, reversed)| {
        let mut tables = Tables::new(&script.topics);
        tables.set_now(5);
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
