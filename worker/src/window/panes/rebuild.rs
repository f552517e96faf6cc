//! The states of all panes, computed anew from the rows of the topic.

use std::collections::{BTreeMap, BTreeSet};

use super::{GroupRows, STATES_MAX};
use crate::join::aggregate_state::{AggregateState, group_text};
use crate::join::keyed::KeyedError;
use crate::join::lookup::lookup_failed;
use crate::results::store::EpochWriter;
use crate::storage::log::ShardReader;
use crate::storage::sqlite::quoted;
use crate::window::WindowEvaluation;

/// Rows that are read at a time.
const ROWS_AT_ONCE: u64 = 4_096;

impl WindowEvaluation {
    /// Computes the states of all panes from the rows of the topic, but for panes whose frames are frozen.
    pub(in crate::window) fn rebuild_panes(
        &mut self,
        readers: &[ShardReader],
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        writer.forget_panes(self.id, i64::MAX)?;
        self.panes.as_mut().expect("aggregates are kept by pane").forget();
        let mut states: BTreeMap<(i64, String), AggregateState> = BTreeMap::new();
        let sql = format!("SELECT key, payload, timestamp FROM {}", quoted(&self.window.topic));
        for reader in readers {
            let failed = |source| lookup_failed(reader, source);
            let mut statement = reader.prepare(&sql).map_err(failed)?;
            let mut rows = statement.query([]).map_err(failed)?;
            let mut is_end = false;
            while !is_end {
                let mut found = GroupRows::new();
                is_end = self.count_rows(&mut rows, reader, ROWS_AT_ONCE, &mut found)?;
                self.add_to_states(found, &mut states)?;
                if states.len() > STATES_MAX {
                    self.store_states(&mut states, writer)?;
                }
            }
        }
        self.store_states(&mut states, writer)
    }

    fn add_to_states(
        &self,
        found: GroupRows,
        states: &mut BTreeMap<(i64, String), AggregateState>,
    ) -> Result<(), KeyedError> {
        for ((pane, group), rows) in found {
            if self.live_frames(pane).is_empty() {
                continue;
            }
            let panes = self.panes();
            let state = states.entry((pane, group_text(&group))).or_insert_with(|| panes.new_state());
            for arguments in rows {
                state.add(&panes.aggregates.plan.aggregates, &arguments, 1)?;
            }
        }
        Ok(())
    }

    fn store_states(
        &mut self,
        states: &mut BTreeMap<(i64, String), AggregateState>,
        writer: &mut EpochWriter<'_>,
    ) -> Result<(), KeyedError> {
        let mut panes = BTreeSet::new();
        for ((pane, group), mut state) in std::mem::take(states) {
            if let Some(known) = self.pane_state(pane, &group, writer)? {
                state.merge(&self.panes().aggregates.plan.aggregates, &known)?;
            }
            writer.set_pane_state(self.id, pane, &group, Some(&state.text()))?;
            panes.insert(pane);
        }
        for pane in panes {
            self.note_frames(pane, true, writer)?;
        }
        Ok(())
    }
}
