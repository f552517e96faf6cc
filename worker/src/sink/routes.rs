//! Which joins a sink takes, and how the results of each are written out. A reload may change them while the sink
//! runs, so a sink holds them by a channel and looks for news between two pages.

use std::collections::HashMap;
use std::sync::Arc;

use tokio::sync::watch;

use crate::results::event::{Envelope, JoinId};

/// Where a sink finds the routes that are in force.
pub(crate) type RoutesInForce = watch::Receiver<Arc<Routes>>;

/// The joins that a sink takes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Routes {
    /// In the order of the plan.
    joins: Vec<JoinId>,
    envelopes: HashMap<JoinId, Envelope>,
}

impl Routes {
    /// The joins that the sink takes, in the order of the plan.
    pub(crate) fn joins(&self) -> &[JoinId] {
        &self.joins
    }

    /// How results of a join are written out; `None` for one that the sink doesn't take.
    pub(crate) fn envelope(&self, join: JoinId) -> Option<&Envelope> {
        self.envelopes.get(&join)
    }

    /// The join of that name, if the sink takes it.
    pub(crate) fn named(&self, name: &str) -> Option<JoinId> {
        self.joins.iter().copied().find(|join| self.envelopes[join].join_name == name)
    }

    /// The names of the joins that the sink takes, in the order of the plan.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.joins.iter().map(|join| self.envelopes[join].join_name.as_str()).collect()
    }
}

impl FromIterator<(JoinId, Envelope)> for Routes {
    fn from_iter<T: IntoIterator<Item = (JoinId, Envelope)>>(routes: T) -> Self {
        let envelopes: Vec<(JoinId, Envelope)> = routes.into_iter().collect();
        let joins = envelopes.iter().map(|(join, _)| *join).collect();
        Self { joins, envelopes: envelopes.into_iter().collect() }
    }
}
