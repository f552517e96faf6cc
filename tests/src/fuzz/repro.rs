//! Writes a script as a golden case, with the results that SQLite gives.

use serde_json::{Value, json};

use super::script::{Fate, Join, Script, Step};
use super::tables::Tables;
use crate::results::Results;

/// The script as a case for `tests/cases/join`. What a case can't say stands in comments.
pub fn golden_case(script: &Script, wrong: &Join) -> String {
    let mut case =
        format!("# found by the fuzz gate in {} shards: class {}\n", script.shard_count, wrong.class);
    match script.joins.as_slice() {
        [join] => {
            case += &format!("query: {}\n", json!(join.query));
            if let Some(column) = &join.key_column {
                case += &format!("keyColumn: {}\n", json!(column));
            }
        }
        joins => {
            case += "joins:\n";
            for Join { name, query, key_column, .. } in joins {
                let column = key_column
                    .as_ref()
                    .map_or_else(String::new, |name| format!(", keyColumn: {}", json!(name)));
                case += &format!("  - {{ name: {}, query: {}{column} }}\n", json!(name), json!(query));
            }
        }
    }
    if script.has_clock {
        case += "# the clock begins at 0; its moments stand in comments\n";
    }
    let (mut input, mut expect) = (String::new(), String::new());
    let mut tables = Tables::new(&script.topics);
    if script.has_clock {
        tables.set_now(0);
    }
    tables.define(&script.joins);
    let mut results = Results::default();
    for (number, step) in script.steps.iter().enumerate() {
        match step {
            Step::Batch { fate: Fate::Watched, .. } => {}
            Step::Batch { fate: Fate::Unwatched, .. } => input += "  # the next step comes at once\n",
            Step::Batch { fate: Fate::Killed { .. }, .. } => input += "  # killed while this is on its way\n",
            Step::Clock(now) => {
                tables.set_now(*now);
                input += &format!("  # the clock shows {now}\n");
            }
            Step::Stop => input += "  # stopped and started\n",
            Step::Kill => input += "  # killed and started\n",
            Step::Configure { .. } => input += "  # other joins are added, changed and removed\n",
        }
        for message in step.messages() {
            tables.apply(message);
            let mut line = json!({"at": format!("{number}s"), "topic": message.topic, "key": message.key});
            line["payload"] = json!(message.payload);
            if let Some(timestamp) = message.timestamp {
                line["timestamp"] = json!(timestamp);
            }
            input += &format!("  - {line}\n");
        }
        let mut now = Results::default();
        for join in &script.joins {
            now.extend(tables.results(join));
        }
        for ((join, key), rows) in results.changes(&now) {
            let read = |text: &String| serde_json::from_str::<Value>(text).expect("a row is JSON");
            let mut line = json!({"at": format!("{number}s"), "key": read(&key)});
            if script.joins.len() > 1 {
                line["join"] = json!(join);
            }
            line["rows"] = rows.iter().map(read).collect();
            expect += &format!("  - {line}\n");
        }
        results = now;
    }
    format!("{case}input:\n{input}expect:\n{expect}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::Case;

    #[test]
    fn a_script_becomes_a_case_that_can_be_read() {
        for seed in 1..20 {
            let mut script = Script::random(seed);
            script.steps.retain(|step| matches!(step, Step::Batch { .. }));
            script.steps.truncate(5);
            let case = Case::parse("fuzz", &golden_case(&script, &script.joins[0]));
            let names = |joins: Vec<&String>| joins.into_iter().cloned().collect::<Vec<_>>();
            assert_eq!(
                names(case.joins.iter().map(|join| &join.query).collect()),
                names(script.joins.iter().map(|join| &join.query).collect()),
                "seed {seed}"
            );
            for (step, read) in script.steps.iter().zip(&case.steps) {
                let sent: Vec<Value> =
                    step.messages().iter().map(super::super::schema::Message::body).collect();
                assert_eq!(read.messages, sent, "seed {seed}");
            }
        }
    }
}
