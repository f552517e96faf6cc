//! Collects complaints, each with its document and the path of its field.

use crate::complaint::{Complaint, Reason};
use crate::plan::Place;

/// The complaints that were found so far.
#[derive(Default)]
pub(crate) struct Complaints {
    pub(crate) found: Vec<Complaint>,
}

impl Complaints {
    /// Adds an error about `field`, a path below `place`; an empty one is the place itself.
    pub(crate) fn error(&mut self, place: &Place, field: &str, reason: Reason, message: impl Into<String>) {
        self.found.push(Complaint::error(place.document, below(place, field), reason, message));
    }

    /// Adds a warning about `field`, a path below `place`; an empty one is the place itself.
    pub(crate) fn warning(&mut self, place: &Place, field: &str, reason: Reason, message: impl Into<String>) {
        self.found.push(Complaint::warning(place.document, below(place, field), reason, message));
    }
}

/// The path of a field below a place.
fn below(place: &Place, field: &str) -> String {
    match (place.path.is_empty(), field.is_empty()) {
        (_, true) => place.path.clone(),
        (true, false) => field.to_owned(),
        (false, false) => format!("{}.{field}", place.path),
    }
}
