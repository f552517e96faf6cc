//! The five kinds of documents, their API group, and the kinds that a source and a sink can be of.

/// The API group.
pub const GROUP: &str = "litejoin.io";
/// The version of the API group.
pub const VERSION: &str = "v1alpha1";
/// `apiVersion` of every document of ours.
pub const API_VERSION: &str = "litejoin.io/v1alpha1";

/// The annotation of a Pipeline by which an operator tells a worker that there is data: the UID of the volume claim that
/// it lies on. A worker that finds none does not start.
pub const DATA_ANNOTATION: &str = "litejoin.io/data-on-claim";

/// The kinds of a source: exactly one of these fields is written.
pub const SOURCE_KINDS: [&str; 4] = ["http", "file", "api", "kafka"];
/// The kinds of a sink: exactly one of these fields is written.
pub const SINK_KINDS: [&str; 5] = ["sse", "stdout", "http", "kafka", "sqlite"];

/// A kind of document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A pipeline: how data is stored and, inline, where it comes from and goes to.
    Pipeline,
    /// Where messages come from.
    Source,
    /// A query kept up to date.
    Join,
    /// A query over stretches of time.
    Window,
    /// Where results go.
    Sink,
}

impl Kind {
    /// All kinds, the Pipeline first.
    pub const ALL: [Kind; 5] = [Kind::Pipeline, Kind::Source, Kind::Join, Kind::Window, Kind::Sink];

    /// The kinds of what a pipeline consists of, written in the Pipeline or as documents of their own.
    pub const CHILDREN: [Kind; 4] = [Kind::Source, Kind::Join, Kind::Window, Kind::Sink];

    /// The names of all kinds, in the same order.
    pub const NAMES: [&str; 5] = ["Pipeline", "Source", "Join", "Window", "Sink"];

    /// The name, as in the field `kind`.
    pub fn as_str(self) -> &'static str {
        Kind::NAMES[self as usize]
    }

    /// The plural, as in the address of the API and in the lists of a Pipeline's spec.
    pub fn plural(self) -> &'static str {
        ["pipelines", "sources", "joins", "windows", "sinks"][self as usize]
    }

    /// The noun, as in a sentence.
    pub fn noun(self) -> &'static str {
        ["pipeline", "source", "join", "window", "sink"][self as usize]
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}
