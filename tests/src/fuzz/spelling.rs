//! Results up to what SQLite leaves open: which of several equal numbers (5 or 5.0) stands for a group.
//!
//! - Rows and result keys are compared by value. Each spelling that was told must be one that SQLite shows in that
//!   place in some order of the rows.
//! - Where the spelling is material (text is made of it, or it is compared with text) other orders give other rows. A
//!   result is right if its rows are those of one of the answers.
//! - Of several groups below one result key each shows any of its spellings, and not every combination comes up. So rows
//!   are right, too, if each is in an answer, and they are as many as answers have.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::results::{ResultKey, Results};

/// Keys of a difference that are shown.
const KEYS_SHOWN: usize = 5;

/// The value with every number spelled one way: whole ones as integers, if an integer can hold them.
pub fn plain(value: &Value) -> Value {
    match value {
        Value::Number(number) if number.is_f64() => {
            number.as_f64().and_then(whole).map_or_else(|| value.clone(), Value::from)
        }
        Value::Array(values) => values.iter().map(plain).collect(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| (name.clone(), plain(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
        other => other.clone(),
    }
}

/// The integer that equals a real.
fn whole(real: f64) -> Option<i64> {
    // Two to the 63rd is the first real above all integers.
    let integers = -9_223_372_036_854_775_808.0..9_223_372_036_854_775_808.0;
    #[expect(clippy::cast_possible_truncation, reason = "it is whole and in range")]
    (real.fract() == 0.0 && integers.contains(&real)).then_some(real as i64)
}

/// Results with every number spelled one way; rows of result keys that become equal are put together.
pub fn plain_results(results: &Results) -> Results {
    let mut plain = Results::default();
    for (key, rows) in &results.rows {
        let rows = rows.iter().map(|row| plain_json(row));
        plain.rows.entry(plain_key(key)).or_default().extend(rows);
    }
    plain.rows.values_mut().for_each(|rows| rows.sort_unstable());
    plain
}

/// Holds what was told of a join to the answers that SQLite gives over the same rows, which come in another order each
/// time. The first answer suffices unless something differs; then they are asked for until each result is right, and a
/// result that none of them has is described.
pub fn judge(told: &Results, answers: impl IntoIterator<Item = Results>) -> Result<(), String> {
    let mut answers = answers.into_iter();
    let first = answers.next().expect("SQLite answers");
    let different = told.changes(&first);
    if different.is_empty() {
        return Ok(());
    }
    let mut suspects: BTreeMap<ResultKey, Suspect> =
        different.keys().map(|key| (plain_key(key), Suspect::default())).collect();
    for (key, told) in respelled(told, &suspects) {
        suspects.insert(key, Suspect { told, ..Suspect::default() });
    }
    let mut count = 0;
    for answer in std::iter::once(first.clone()).chain(answers) {
        count += 1;
        let found = respelled(&answer, &suspects);
        suspects.retain(|key, suspect| !suspect.clear(found.get(key)));
        if suspects.is_empty() {
            return Ok(());
        }
    }
    suspects.retain(|_, suspect| !suspect.is_within());
    if suspects.is_empty() {
        return Ok(());
    }
    let wrong: Vec<ResultKey> =
        different.into_keys().filter(|key| suspects.contains_key(&plain_key(key))).collect();
    let is_spelling = suspects.values().all(|suspect| suspect.bounds.holds(&suspect.told.rows));
    let trouble = if is_spelling { "no row is spelled so" } else { "no order of rows gives this" };
    Err(format!("{trouble}, of {count}\n{}", difference(told, &first, &wrong)))
}

/// Rows of one result key, and how the numbers in them are spelled.
#[derive(Debug, Default, PartialEq)]
struct Respelled {
    /// The rows with every number spelled one way, sorted.
    rows: Vec<String>,
    /// Such a row, a column of it (none for the result key), and how the value there is spelled.
    spellings: BTreeSet<(String, Option<String>, String)>,
}

/// A result that is not what the answers so far say.
#[derive(Debug, Default)]
struct Suspect {
    /// What was told. Spellings are taken away as answers have them.
    told: Respelled,
    /// Whether an answer had the same rows up to their spelling.
    is_answer: bool,
    bounds: Bounds,
}

/// The rows that answers have for one result key.
#[derive(Debug, Default)]
struct Bounds {
    /// The least and the greatest number of rows.
    counts: Option<(usize, usize)>,
    /// By row: how often it is there at least and at most.
    rows: BTreeMap<String, (usize, usize)>,
    answers: usize,
}

impl Suspect {
    /// Whether one more answer clears it.
    fn clear(&mut self, answer: Option<&Respelled>) -> bool {
        let nothing = Respelled::default();
        let answer = answer.unwrap_or(&nothing);
        self.is_answer |= answer.rows == self.told.rows;
        self.told.spellings.retain(|spelling| !answer.spellings.contains(spelling));
        self.bounds.extend(&answer.rows);
        self.is_answer && self.told.spellings.is_empty()
    }

    /// Whether what was told lies between the answers.
    fn is_within(&self) -> bool {
        self.told.spellings.is_empty() && self.bounds.holds(&self.told.rows)
    }
}

impl Bounds {
    fn extend(&mut self, rows: &[String]) {
        let (least, most) = self.counts.unwrap_or((rows.len(), rows.len()));
        self.counts = Some((least.min(rows.len()), most.max(rows.len())));
        let counted = counted(rows);
        for (row, (least, most)) in &mut self.rows {
            let count = counted.get(row.as_str()).copied().unwrap_or(0);
            (*least, *most) = ((*least).min(count), (*most).max(count));
        }
        for (row, count) in counted {
            let least = if self.answers == 0 { count } else { 0 };
            self.rows.entry(row.to_owned()).or_insert((least, count));
        }
        self.answers += 1;
    }

    fn holds(&self, rows: &[String]) -> bool {
        let counted = counted(rows);
        self.counts.is_some_and(|(least, most)| (least..=most).contains(&rows.len()))
            && counted.keys().all(|row| self.rows.contains_key(*row))
            && self.rows.iter().all(|(row, (least, most))| {
                (least..=most).contains(&&counted.get(row.as_str()).copied().unwrap_or(0))
            })
    }
}

/// How often each row is there.
fn counted(rows: &[String]) -> BTreeMap<&str, usize> {
    let mut counted = BTreeMap::new();
    rows.iter().for_each(|row| *counted.entry(row.as_str()).or_default() += 1);
    counted
}

/// The results under some keys, which are given with every number spelled one way.
fn respelled<T>(results: &Results, wanted: &BTreeMap<ResultKey, T>) -> BTreeMap<ResultKey, Respelled> {
    let mut found: BTreeMap<ResultKey, Respelled> = BTreeMap::new();
    for (key, rows) in &results.rows {
        let plain_key = plain_key(key);
        if !wanted.contains_key(&plain_key) {
            continue;
        }
        let found = found.entry(plain_key).or_default();
        for row in rows {
            let value = read(row);
            let plain = plain(&value).to_string();
            let columns = value.as_object().into_iter().flatten();
            let columns = columns.filter(|(_, value)| value.is_number());
            found
                .spellings
                .extend(columns.map(|(name, value)| (plain.clone(), Some(name.clone()), value.to_string())));
            found.spellings.insert((plain.clone(), None, key.1.clone()));
            found.rows.push(plain);
        }
        found.rows.sort_unstable();
    }
    found
}

fn plain_key((join, key): &ResultKey) -> ResultKey {
    let is_number = key.starts_with(|first: char| first.is_ascii_digit() || first == '-');
    (join.clone(), if is_number { plain_json(key) } else { key.clone() })
}

/// A value as JSON with every number spelled one way.
pub fn plain_json(json: &str) -> String {
    plain(&read(json)).to_string()
}

fn read(json: &str) -> Value {
    serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"))
}

/// The first of some keys that differ, with the rows that are missing and those that should not be there.
fn difference(told: &Results, expected: &Results, keys: &[ResultKey]) -> String {
    let lines = keys.iter().take(KEYS_SHOWN).map(|key| {
        let [found, right] =
            [told, expected].map(|results| results.rows.get(key).cloned().unwrap_or_default());
        let (missing, extra) = (without(&right, &found), without(&found, &right));
        let counts = format!("{} rows found, {} expected", found.len(), right.len());
        format!("  key {}: {counts}\n    missing   [{missing}]\n    too many  [{extra}]", key.1)
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// The rows of one bag that another does not have.
fn without(rows: &[String], others: &[String]) -> String {
    let mut rest = rows.to_vec();
    for other in others {
        if let Some(index) = rest.iter().position(|row| row == other) {
            rest.swap_remove(index);
        }
    }
    rest.join(", ")
}

#[cfg(test)]
mod tests;
