//! A changed result as it is stored and as it is sent. Pure.

use std::borrow::Cow;
use std::fmt;
use std::fmt::Write as _;
use std::sync::Arc;

/// A place in the outbox: the epoch, and the number within it from 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Position {
    pub(crate) epoch: u64,
    pub(crate) n: u64,
}

impl Position {
    /// Before everything in an epoch and after all before it, once the first of the epoch is `n` 1.
    pub(crate) fn start_of(epoch: u64) -> Self {
        Self { epoch, n: 0 }
    }
}

/// How far results have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Applied {
    /// The end of the outbox.
    pub(crate) end: Position,
    /// The newest cut that the results of every join contain.
    pub(crate) epoch: u64,
    /// Where the outbox ended at the start, and the first epoch after it: what lies between was lost.
    pub(crate) begun: (Position, u64),
}

impl Applied {
    /// As of the start, before the epoch `first_epoch`, with results that contain the cut `epoch`.
    pub(crate) fn begin(end: Position, epoch: u64, first_epoch: u64) -> Self {
        Self { end, epoch, begun: (end, first_epoch) }
    }

    /// Whether every join has been evaluated in this run, or could not be. A cut of what was found at the start has the
    /// number before its first epoch.
    pub(crate) fn is_of_this_run(&self) -> bool {
        self.epoch + 1 >= self.begun.1
    }

    /// Whether a place was given by a run before this one, and is not known any more: a crash of the machine took it.
    pub(crate) fn is_lost(&self, position: Position) -> bool {
        position > self.begun.0 && position.epoch < self.begun.1
    }
}

/// The change of a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Created,
    Updated,
    Deleted,
}

impl Op {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Deleted => "deleted",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Created, Self::Updated, Self::Deleted].into_iter().find(|op| op.as_str() == text)
    }
}

/// Whether sinks get an event of a changed result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Emit {
    #[default]
    Silent,
    /// Retention alone brings the change about, and sinks are not told of results that leave by it.
    UnlessGone,
    Event,
}

impl Emit {
    /// Whether a change of this kind is told.
    pub(crate) fn tells(self, op: Op) -> bool {
        match self {
            Self::Silent => false,
            Self::UnlessGone => op != Op::Deleted,
            Self::Event => true,
        }
    }
}

/// A changed result that is about to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResultChange<'a> {
    pub(crate) op: Op,
    /// The result key as JSON.
    pub(crate) key: Cow<'a, str>,
    /// The rows as a JSON array; empty when the result was deleted.
    pub(crate) rows: Cow<'a, str>,
    pub(crate) emit: Emit,
    /// The frame of a window's result, as JSON: start, end, and whether it is final.
    pub(crate) window: Option<Cow<'a, str>>,
}

impl<'a> ResultChange<'a> {
    /// A change of which sinks get an event.
    #[cfg(test)]
    pub(crate) fn event(op: Op, key: &'a str, rows: &'a str) -> Self {
        Self { op, key: key.into(), rows: rows.into(), emit: Emit::Event, window: None }
    }
}

/// The number of a join in `results.db`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct JoinId(pub(crate) i64);

/// A changed result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) position: Position,
    pub(crate) join: JoinId,
    /// The result key as JSON.
    pub(crate) key: String,
    pub(crate) op: Op,
    /// The rows as a JSON array; empty when the result was deleted.
    pub(crate) rows: String,
    /// Seconds since the epoch at which the result was stored.
    pub(crate) timestamp: i64,
    /// The frame of a window's result, as JSON: start, end, and whether it is final.
    pub(crate) window: Option<String>,
}

/// A result on its way to a sink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingResult {
    pub(crate) join_name: String,
    /// Lineage of the result's id; it may be older than the directory's.
    pub(crate) lineage: String,
    pub(crate) event: Event,
}

/// How the results of one join are written out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) lineage: String,
    pub(crate) join_name: String,
    /// Second name of the field `key`.
    pub(crate) result_key: Option<String>,
    /// The columns of the rows.
    pub(crate) shape: Arc<Shape>,
}

impl Envelope {
    /// `{"query","key","rows","op","id","epoch","timestamp"}` on one line, with `window` for the result of a window; `_replay` marks what is sent again
    /// as part of the present state.
    pub(crate) fn json(&self, event: &Event, replay: bool) -> String {
        let mut json = String::with_capacity(event.rows.len() + 160);
        let quoted = |text: &str| serde_json::to_string(text).expect("a string is always JSON");
        let _ = write!(json, "{{\"query\":{},\"key\":{}", quoted(&self.join_name), event.key);
        if let Some(alias) = &self.result_key {
            let _ = write!(json, ",{}:{}", quoted(alias), event.key);
        }
        let _ = write!(
            json,
            ",\"rows\":{},\"op\":\"{}\",\"id\":\"{}\",\"epoch\":{},\"timestamp\":{}",
            event.rows,
            event.op.as_str(),
            ResultId { lineage: &self.lineage, position: event.position },
            event.position.epoch,
            event.timestamp
        );
        if let Some(window) = &event.window {
            let _ = write!(json, ",\"window\":{window}");
        }
        json.push_str(if replay { ",\"_replay\":true}" } else { "}" });
        json
    }
}

/// Columns of a query as a table may have them: each a name, and the type that its values surely have, if they have
/// one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) columns: Vec<(String, Option<&'static str>)>,
}

impl Shape {
    /// `types` are those that SQLite finds for a view of the query.
    pub(crate) fn new(names: &[String], types: &[String]) -> Self {
        let kind = |text: &str| match text.to_ascii_uppercase().as_str() {
            "TEXT" => Some("TEXT"),
            "INT" | "INTEGER" => Some("INTEGER"),
            "REAL" => Some("REAL"),
            "NUM" | "NUMERIC" => Some("NUMERIC"),
            _ => None,
        };
        let kinds = types.iter().map(|text| kind(text)).chain(std::iter::repeat(None));
        Self { columns: names.iter().cloned().zip(kinds).collect() }
    }
}

/// `<lineage>.<epoch>.<n>`, the same over retries and restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResultId<'a> {
    pub(crate) lineage: &'a str,
    pub(crate) position: Position,
}

impl fmt::Display for ResultId<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.lineage, self.position.epoch, self.position.n)
    }
}

impl<'a> ResultId<'a> {
    /// Reads an id back; `None` for anything else.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('.');
        let (lineage, epoch, n) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || lineage.is_empty() {
            return None;
        }
        Some(Self { lineage, position: Position { epoch: epoch.parse().ok()?, n: n.parse().ok()? } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_one_line_of_json() {
        let event = Event {
            position: Position { epoch: 7, n: 2 },
            join: JoinId(1),
            key: "\"o1\"".to_owned(),
            op: Op::Updated,
            rows: r#"[{"order_id":"o1"}]"#.to_owned(),
            timestamp: 1_700_000_000,
            window: None,
        };
        let envelope = Envelope {
            lineage: "abc".to_owned(),
            join_name: "enriched".to_owned(),
            result_key: Some("order".to_owned()),
            shape: Arc::default(),
        };
        assert_eq!(
            envelope.json(&event, true),
            r#"{"query":"enriched","key":"o1","order":"o1","rows":[{"order_id":"o1"}],"op":"updated","id":"abc.7.2","epoch":7,"timestamp":1700000000,"_replay":true}"#
        );
    }

    #[test]
    fn ids_read_back() {
        let id = ResultId { lineage: "abc", position: Position { epoch: 7, n: 2 } };
        assert_eq!(ResultId::parse(&id.to_string()), Some(id));
        for text in ["", "abc", "abc.7", "abc.7.x", "abc.7.2.1", ".7.2", "7.2"] {
            assert_eq!(ResultId::parse(text), None, "{text}");
        }
    }
}
