//! What is reported, as a value: conditions as kstatus and Gateway API have them. Pure: what was reported before and
//! the time are arguments, and where nothing turned nothing is new.

use jiff::Timestamp;
use litejoin_crds::status::{ChildStatus, PipelineStatus};

mod child;
mod condition;
mod findings;
mod pipeline;
mod pod;
mod replication;

pub(crate) use child::orphan;
pub(crate) use findings::Findings;

/// What is reported of a pipeline and its children.
pub(crate) struct Statuses {
    pub(crate) pipeline: PipelineStatus,
    /// In the order of the observed children.
    pub(crate) children: Vec<ChildStatus>,
}

/// Says what is to be reported.
pub(crate) fn statuses(findings: &Findings<'_>, now: Timestamp) -> Statuses {
    let children = findings.observed.children.iter().enumerate();
    Statuses {
        pipeline: pipeline::status(findings, now),
        children: children.map(|(index, child)| child::status(index, child, findings, now)).collect(),
    }
}
