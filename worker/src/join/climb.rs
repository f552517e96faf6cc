//! Following the links of a plan up: from changed rows to the keys of the results that they can affect.

use hashbrown::HashSet;

use super::keyed::{AffectedKeys, KEYS_MAX, KeyedError, KeyedJoin, LinkStep};
use super::lookup::{Cost, Raw, lookup_failed, steps_of};
use super::plan::Matching;
use super::value::Value;
use crate::results::event::Emit;
use crate::storage::hash::shard_index;
use crate::storage::log::ShardReader;

/// The walk from changed rows to the keys of results.
pub(super) struct Climb<'a> {
    pub(super) join: &'a KeyedJoin,
    pub(super) readers: &'a [ShardReader],
    /// By occurrence: values that were already followed.
    pub(super) seen: Vec<AffectedKeys>,
    pub(super) keys: AffectedKeys,
    pub(super) keys_max: usize,
    pub(super) cost: &'a mut Cost,
}

impl Climb<'_> {
    /// Follows the links of occurrence `index` from rows whose `by` is `value`.
    pub(super) fn up(&mut self, index: usize, value: Value, emit: Emit) -> Result<(), KeyedError> {
        if let [LinkStep::Keys] = self.join.steps[index].links.as_slice() {
            return self.key(value, emit);
        }
        match self.seen[index].get_mut(&value) {
            Some(before) if *before >= emit => return Ok(()),
            Some(before) => *before = emit,
            None => {
                self.seen[index].insert(value.clone(), emit);
            }
        }
        for link in &self.join.steps[index].links {
            match link {
                LinkStep::Keys => self.key(value.clone(), emit)?,
                LinkStep::Parent { index: parent, of_key, up, matching, .. } => {
                    let mut values = HashSet::new();
                    match matching {
                        _ if value == Value::Null => continue,
                        Matching::Equal => self.parents(&value, *of_key, up, &mut values)?,
                        Matching::AsText => {
                            for text in self.texts(&value)? {
                                self.parents(&text, *of_key, up, &mut values)?;
                            }
                        }
                    }
                    for value in values {
                        self.up(*parent, value, emit)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Follows the links of occurrence `index` from the rows of a shard whose value lies in a range; `sql` looks them up.
    pub(super) fn due(
        &mut self,
        index: usize,
        shard: usize,
        sql: &str,
        range: [&Value; 2],
    ) -> Result<(), KeyedError> {
        let reader = &self.readers[shard];
        let failed = |source| lookup_failed(reader, source);
        let mut statement = reader.prepare(sql).map_err(failed)?;
        let mut rows = statement.query(range).map_err(failed)?;
        while let Some(row) = rows.next().map_err(failed)? {
            let by = row.get_ref(0).map_err(failed)?;
            self.up(index, Value::new(by).ok_or(KeyedError::UnsupportedValue)?, Emit::Event)?;
        }
        drop(rows);
        self.cost.probes += 1;
        self.cost.steps += steps_of(&statement);
        Ok(())
    }

    /// Adds the values by which the parent's rows with `value` are gathered.
    fn parents(
        &mut self,
        value: &Value,
        of_key: bool,
        up: &str,
        found: &mut HashSet<Value>,
    ) -> Result<(), KeyedError> {
        let readers: &[ShardReader] = match (of_key, value) {
            (true, Value::Text(key)) => {
                let shard = shard_index(key, self.readers.len());
                &self.readers[shard..=shard]
            }
            (true, _) => return Ok(()),
            (false, _) => self.readers,
        };
        for reader in readers {
            let failed = |source| lookup_failed(reader, source);
            let mut statement = reader.prepare(up).map_err(failed)?;
            let mut rows = statement.query([value]).map_err(failed)?;
            while let Some(row) = rows.next().map_err(failed)? {
                let by = row.get_ref(0).map_err(failed)?;
                found.insert(Value::new(by).ok_or(KeyedError::UnsupportedValue)?);
                if found.len() > KEYS_MAX {
                    return Err(KeyedError::TooLarge);
                }
            }
            drop(rows);
            self.cost.probes += 1;
            self.cost.steps += steps_of(&statement);
        }
        Ok(())
    }

    /// Returns the texts that SQLite makes of the spellings of a value.
    fn texts(&self, value: &Value) -> Result<Vec<Value>, KeyedError> {
        let reader = self.readers.first().expect("there is a shard");
        let failed = |source| lookup_failed(reader, source);
        let mut cast = reader.prepare("SELECT CAST(?1 AS TEXT)").map_err(failed)?;
        let mut text =
            |spelling| cast.query_row([Raw(spelling)], |row| row.get(0).map(String::into_boxed_str));
        value.spellings().map(|spelling| text(spelling).map(Value::Text).map_err(failed)).collect()
    }

    fn key(&mut self, value: Value, emit: Emit) -> Result<(), KeyedError> {
        let known = self.keys.entry(value).or_default();
        *known = (*known).max(emit);
        if self.keys.len() > self.keys_max { Err(KeyedError::TooLarge) } else { Ok(()) }
    }
}
