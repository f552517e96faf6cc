//! The findings of a reconcile by the time it reports.

use crate::controller::build::Desired;
use crate::controller::node_loss::LostNode;
use crate::controller::observe::Observed;
use crate::controller::validate::Verdict;
use crate::controller::worker::WorkerReport;
use litejoin_crds::worker_status::ReshardReport;

/// The values that the statuses of a pipeline and its children follow from, but for the time.
pub(crate) struct Findings<'a> {
    pub(crate) observed: &'a Observed,
    pub(crate) verdict: &'a Verdict,
    /// `None` where the Pipeline is wrong.
    pub(crate) desired: Option<&'a Desired>,
    pub(crate) report: &'a WorkerReport,
    /// What the Job has told that copies the data to another number of shards.
    pub(crate) job_report: Option<&'a ReshardReport>,
    /// The node of the pod, if it is lost.
    pub(crate) lost_node: Option<&'a LostNode>,
    /// The API server's answer to a write that it refused, once it has done so several times.
    pub(crate) unwritten: Option<&'a str>,
}
