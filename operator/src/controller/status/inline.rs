//! Entries of a Pipeline, which have no status of their own: what holds one back is told in the Pipeline's, with the
//! path that its author wrote.

use litejoin_crds::kind::Kind;
use litejoin_crds::part::parts;
use litejoin_crds::{Complaint, Place, Reason};

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
    let ours = verdict.held_back.iter().filter(|held| !held.place.path.is_empty());
    let mut entries: Vec<Entry> =
        ours.map(|held| Entry { complaints: held.complaints.clone(), runs_on: held.runs_on }).collect();
    let WorkerReport::Runs { left_out, .. } = report else { return entries };
    let documents = [observed.pipeline.document()];
    for told in left_out {
        // The worker's documents may lack entries, so that its paths are not those of the author.
        let is_it = |kind: Kind, name: &str| kind.as_str() == told.kind && name == told.name;
        let Some(part) = parts(&documents).find(|part| is_it(part.kind, part.name)) else { continue };
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
