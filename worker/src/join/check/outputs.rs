//! The joins and windows that queries may read, as they are written.

use litejoin_crds::plan::{Join, Window};

use super::QueryError;

/// Returns an error for each join and window that waits for another of them.
pub(super) fn circle(postponed: &[Output<'_>]) -> Vec<QueryError> {
    let names: Vec<&str> = postponed.iter().map(Output::name).collect();
    let is_of_joins = postponed.iter().all(|output| matches!(output, Output::Join(_)));
    let kind = if is_of_joins { "joins" } else { "joins and windows" };
    let message = format!("the {kind} {} read each other in a circle; break it", names.join(", "));
    let error = |output: &Output<'_>| {
        let (place, field) = match output {
            Output::Join(join) => (join.place.clone(), "query"),
            Output::Window(window) => (window.place.clone(), "topic"),
        };
        QueryError { place, field, line: 0, message: message.clone() }
    };
    postponed.iter().map(error).collect()
}

/// The joins and windows that queries may read.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    pub(super) joins: &'a [Join],
    pub(super) windows: &'a [Window],
}

/// See [`Outputs`].
#[derive(Clone, Copy)]
pub(super) enum Output<'a> {
    Join(&'a Join),
    Window(&'a Window),
}

impl<'a> Outputs<'a> {
    pub(super) fn all(self) -> impl Iterator<Item = Output<'a>> {
        self.joins.iter().map(Output::Join).chain(self.windows.iter().map(Output::Window))
    }

    pub(super) fn names(self) -> impl Iterator<Item = &'a str> + Clone {
        self.joins
            .iter()
            .map(|join| join.name.as_str())
            .chain(self.windows.iter().map(|window| window.name.as_str()))
    }
}

impl Output<'_> {
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Join(join) => &join.name,
            Self::Window(window) => &window.name,
        }
    }
}
