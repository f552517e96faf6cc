//! Entries of a Pipeline, which have no status of their own: what holds one back is told in the Pipeline's, with the
//! path that its author wrote.

use litejoin_crds::part::parts;
use litejoin_crds::worker_status::LeftOut;
use litejoin_crds::{Complaint, HeldBack, Place, Reason};

use super::condition;
use crate::controller::observe::Observed;
use crate::controller::validate::Verdict;
use crate::controller::worker::WorkerReport;

/// An entry that does not go into force as it is written.
pub(super) struct Entry {
    pub(super) complaints: Vec<Complaint>,
    /// Whether its version of before runs on.
    runs_on: bool,
}

/// Returns the entries that are held back by the operator or by the worker.
pub(super) fn held_back(observed: &Observed, verdict: &Verdict, report: &WorkerReport) -> Vec<Entry> {
    let left_out = match report {
        WorkerReport::Runs { left_out, .. } => left_out.as_slice(),
        _ => &[],
    };
    // Where the operator holds a version back, the worker speaks of the one before.
    let is_it = |held: &HeldBack, told: &LeftOut| {
        held.kind.is_some_and(|kind| kind.as_str() == told.kind) && held.name == told.name
    };
    let ours = verdict.held_back.iter().filter(|held| !held.place.path.is_empty());
    let mut entries: Vec<Entry> = ours
        .map(|held| {
            let is_gone = left_out.iter().any(|told| is_it(held, told) && !told.runs_on);
            Entry { complaints: held.complaints.clone(), runs_on: held.runs_on && !is_gone }
        })
        .collect();
    let documents = [observed.pipeline.document()];
    let only_theirs = |told: &&LeftOut| !verdict.held_back.iter().any(|held| is_it(held, told));
    for told in left_out.iter().filter(only_theirs) {
        // The worker's documents may lack entries, so that its paths are not those of the author.
        let Some(part) =
            parts(&documents).find(|part| part.kind.as_str() == told.kind && part.name == told.name)
        else {
            continue;
        };
        let complaint = |field: &str, message: &str| {
            let path = [part.place.path.as_str(), field];
            let path = path.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".");
            Complaint::error(0, path, Reason::InvalidQuery, message)
        };
        let each = told.complaints.iter().map(|told| complaint(&told.field, &told.message));
        let complaints = match told.complaints.is_empty() {
            true => vec![complaint("", &told.message)],
            false => each.collect(),
        };
        entries.push(Entry { complaints, runs_on: told.runs_on });
    }
    entries
}

/// The complaints about the entries, and what runs meanwhile.
pub(super) fn message(entries: &[Entry]) -> String {
    let complaints: Vec<Complaint> =
        entries.iter().flat_map(|entry| entry.complaints.iter().cloned()).collect();
    let meanwhile =
        match (entries.iter().all(|entry| entry.runs_on), entries.iter().any(|entry| entry.runs_on)) {
            (true, _) => "what was there before runs on, and all else is in force",
            (false, false) => "all else is in force",
            (false, true) => {
                "what was there before runs on where there was something, and all else is in force"
            }
        };
    format!("{}; {meanwhile}", condition::message(&complaints))
}

/// The kinds and names of the parts at some places of the documents, the Pipeline's first.
pub(super) fn names<'a>(observed: &Observed, places: impl Iterator<Item = &'a Place>) -> Vec<String> {
    let documents = [observed.pipeline.document()];
    let name = |place: &Place| match place.document.checked_sub(1) {
        Some(index) => {
            let child = observed.children.get(index)?;
            Some(format!("{} {}", child.kind.as_str(), child.name))
        }
        None => {
            let part = parts(&documents).find(|part| part.place == *place)?;
            Some(format!("{} {}", part.kind.as_str(), part.name))
        }
    };
    places.filter_map(name).collect()
}
