//! The statuses of a pipeline and its children, as values: conditions as kstatus and Gateway API have them. The
//! functions are pure: the statuses of before and the time are arguments, and a status is the same as before if nothing
//! turned.

use jiff::Timestamp;
use litejoin_crds::status::{ChildStatus, PipelineStatus};

mod child;
mod condition;
mod findings;
mod inline;
mod pipeline;
mod pod;
mod replication;
mod reshard;

pub(crate) use child::orphan;
pub(crate) use condition::is_step;
pub(crate) use findings::Findings;

/// The statuses of a pipeline and its children.
pub(crate) struct Statuses {
    pub(crate) pipeline: PipelineStatus,
    /// In the order of the observed children.
    pub(crate) children: Vec<ChildStatus>,
}

/// Returns the statuses that follow from the findings.
pub(crate) fn statuses(findings: &Findings<'_>, now: Timestamp) -> Statuses {
    let children = findings.observed.children.iter().enumerate();
    Statuses {
        pipeline: pipeline::status(findings, now),
        children: children.map(|(index, child)| child::status(index, child, findings, now)).collect(),
    }
}
