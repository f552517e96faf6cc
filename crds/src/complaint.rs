//! Complaints about documents: what is wrong, where, and what to do about it.
//!
//! A message says what is wrong, got against allowed, then the remedy; in lower case and without a full stop. The place
//! is not in the message: a program that prints the complaint puts it before.

use serde::Serialize;

use crate::plan::Place;

/// One thing that is wrong with the documents. Only their author can put it right.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Complaint {
    /// The document, and the field in it, such as `spec.joins[0].query`; an empty path is the whole document.
    pub place: Place,
    /// The kind of mistake, for conditions, events and metric labels.
    pub reason: Reason,
    /// The message: what is wrong, got against allowed, then the remedy.
    pub message: String,
    /// Whether the pipeline can run all the same.
    pub severity: Severity,
}

impl Complaint {
    /// An error about the field `path` of a document.
    pub fn error(
        document: usize,
        path: impl Into<String>,
        reason: Reason,
        message: impl Into<String>,
    ) -> Self {
        let place = Place { document, path: path.into() };
        Complaint { place, reason, message: message.into(), severity: Severity::Error }
    }

    /// A warning about the field `path` of a document.
    pub fn warning(
        document: usize,
        path: impl Into<String>,
        reason: Reason,
        message: impl Into<String>,
    ) -> Self {
        Complaint { severity: Severity::Warning, ..Complaint::error(document, path, reason, message) }
    }
}

/// Whether a pipeline with this mistake can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Severity {
    /// The pipeline cannot run.
    Error,
    /// The pipeline can run, but its author probably wanted something else.
    Warning,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// One CamelCase word for the kind of a mistake: the same in conditions, events and metric labels.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum Reason { $($(#[doc = $doc])+ $name),+ }

        impl Reason {
            /// The word.
            pub fn as_str(self) -> &'static str {
                match self { $(Reason::$name => stringify!($name)),+ }
            }
        }
    };
}

reasons! {
    /// Not the API group and version that we know.
    UnknownApiVersion,
    /// Not a kind that we know.
    UnknownKind,
    /// A field that the kind does not have.
    UnknownField,
    /// A required field is missing.
    MissingField,
    /// A value of another type than the field's.
    InvalidType,
    /// A value that the field does not take.
    InvalidValue,
    /// A text that is no duration, or a duration that is not positive.
    InvalidDuration,
    /// A text that is no name, or a name that is taken by us or by SQLite.
    InvalidName,
    /// A text that is no address to listen on.
    InvalidAddress,
    /// A number or a list outside its bounds.
    OutOfRange,
    /// None or several of fields of which exactly one is wanted.
    NotExactlyOne,
    /// Two fields that do not go together, or one that lacks its companion.
    Conflict,
    /// Two things with one name.
    DuplicateName,
    /// Two listeners on one address.
    DuplicateAddress,
    /// A name that nothing has.
    UnknownReference,
    /// A part that nothing takes, or that takes nothing.
    Unused,
    /// No Pipeline among the documents.
    NoPipeline,
    /// More than one Pipeline among the documents.
    SeveralPipelines,
    /// A part of the API that this worker cannot run yet.
    Unsupported,
    /// A query that SQLite refuses.
    InvalidQuery,
    /// A change that a running worker cannot make.
    NeedsRestart,
}

/// Returns the candidate that `wrong` was probably meant to be: the fewest edits, at most a third of its
/// length (and at least one), ignoring case; the first of equals.
pub fn nearest<'a>(wrong: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let folded = wrong.to_lowercase();
    let budget = (folded.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&folded, &candidate.to_lowercase()), candidate))
        .filter(|(distance, candidate)| *distance <= budget && *candidate != wrong)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Returns `; did you mean "near"?` when there is a near spelling, else `; allowed: a, b, c`, else the
/// words in `none` (for a list of candidates that is empty).
pub fn near_or_allowed(wrong: &str, candidates: &[&str], none: &str) -> String {
    match nearest(wrong, candidates.iter().copied()) {
        Some(near) => format!("; did you mean {near:?}?"),
        None if candidates.is_empty() => none.to_owned(),
        None => format!("; allowed: {}", list(candidates)),
    }
}

/// Returns the names with commas between, cut short after twenty.
pub fn list(names: &[&str]) -> String {
    const SHOWN_MAX: usize = 20;
    let shown = names[..names.len().min(SHOWN_MAX)].join(", ");
    match names.len().saturating_sub(SHOWN_MAX) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_spelling_is_within_a_third() {
        let names = ["orders", "customers", "live"];
        assert_eq!(nearest("order", names), Some("orders"));
        assert_eq!(nearest("Orders", names), Some("orders"));
        assert_eq!(nearest("customres", names), Some("customers"));
        assert_eq!(nearest("payments", names), None);
    }

    #[test]
    fn reasons_are_their_own_words() {
        assert_eq!(Reason::UnknownField.as_str(), "UnknownField");
    }
}
