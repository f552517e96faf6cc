//! Expressions over the columns of one row of a topic.

use std::collections::BTreeSet;
use std::fmt::Write as _;

/// A column of every topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Column {
    Key,
    Payload,
    Timestamp,
    Change,
}

impl Column {
    /// All columns in the order of the table.
    pub(crate) const ALL: [Self; 4] = [Self::Key, Self::Payload, Self::Timestamp, Self::Change];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Payload => "payload",
            Self::Timestamp => "timestamp",
            Self::Change => "_change",
        }
    }

    pub(super) fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|column| column.name().eq_ignore_ascii_case(name))
    }
}

/// What SQLite does to a value before it compares it with another. Source: sqlite.org/datatype3.html §4.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Affinity {
    Text,
    Numeric,
    None,
}

/// An expression over one row of a topic, such that equal rows give equal values, nothing fails, and nothing is
/// a BLOB: fit for an index.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RowExpr {
    pieces: Vec<Piece>,
    pub(super) affinity: Affinity,
    /// Whether it is NULL whenever a column that it reads is.
    pub(super) strict: bool,
    /// Top-level fields of the payload, if the value follows from them and the key.
    fields: Option<BTreeSet<String>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Piece {
    Text(String),
    Column(Column),
}

impl RowExpr {
    pub(super) fn column(column: Column) -> Self {
        let affinity = if column == Column::Timestamp { Affinity::Numeric } else { Affinity::Text };
        let fields = (column == Column::Key).then(BTreeSet::new);
        Self { pieces: vec![Piece::Column(column)], affinity, strict: true, fields }
    }

    pub(super) fn literal(text: &str) -> Self {
        Self {
            pieces: vec![Piece::Text(text.to_owned())],
            affinity: Affinity::None,
            strict: true,
            fields: Some(BTreeSet::new()),
        }
    }

    /// Puts expressions between texts: `texts` has one more than `inner`.
    pub(super) fn compose(texts: &[&str], inner: Vec<Self>, affinity: Affinity, strict: bool) -> Self {
        let mut pieces = Vec::new();
        let strict = strict && inner.iter().all(|expr| expr.strict);
        let fields = inner.iter().map(|expr| expr.fields.clone()).collect::<Option<Vec<_>>>();
        let fields = fields.map(|fields| fields.into_iter().flatten().collect());
        let mut inner = inner.into_iter();
        for text in texts {
            pieces.push(Piece::Text((*text).to_owned()));
            pieces.extend(inner.next().into_iter().flat_map(|expr| expr.pieces));
        }
        Self { pieces, affinity, strict, fields }
    }

    /// The same expression, which takes a field out of this document.
    pub(super) fn taking(self, document: &Self, field: Option<String>) -> Self {
        match field {
            Some(field) if document.pieces == [Piece::Column(Column::Payload)] => {
                Self { fields: Some(BTreeSet::from([field])), ..self }
            }
            _ => self,
        }
    }

    /// Top-level fields of the payload, if the value follows from them and the key.
    pub(crate) fn fields(&self) -> Option<&BTreeSet<String>> {
        self.fields.as_ref()
    }

    /// Whether it is the topic's key, by which rows lie in shards.
    pub(crate) fn is_key(&self) -> bool {
        self.pieces == [Piece::Column(Column::Key)]
    }

    /// Whether it reads any column at all.
    pub(super) fn is_constant(&self) -> bool {
        !self.pieces.iter().any(|piece| matches!(piece, Piece::Column(_)))
    }

    /// As SQL over a table of the topic.
    pub(crate) fn sql(&self) -> String {
        self.render(|column| column.name().to_owned())
    }

    /// As SQL over parameters 1 to 4: key, payload, timestamp, `_change`.
    pub(crate) fn parameters(&self) -> String {
        self.render(|column| format!("?{}", column as usize + 1))
    }

    fn render(&self, name: impl Fn(Column) -> String) -> String {
        let mut sql = String::new();
        for piece in &self.pieces {
            let _ = match piece {
                Piece::Text(text) => sql.write_str(text),
                Piece::Column(column) => sql.write_str(&name(*column)),
            };
        }
        sql
    }

    /// The same value in the one spelling that all equal values have: an integer for a real that is a whole number.
    pub(super) fn in_one_spelling(self) -> Self {
        let texts = [
            "CASE WHEN typeof(",
            ") = 'real' AND ",
            " = CAST(",
            " AS INTEGER) THEN CAST(",
            " AS INTEGER) ELSE ",
            " END",
        ];
        Self::compose(&texts, vec![self; texts.len() - 1], Affinity::None, true)
    }

    /// What an equality between expressions of these affinities compares; the texts to put around either side.
    pub(super) fn casts(left: Affinity, right: Affinity) -> (Cast, Cast) {
        use Affinity::{None, Numeric, Text};
        match (left, right) {
            (Numeric, Numeric) | (Text, Text) | (None, None) => (Cast::Not, Cast::Not),
            // A superset of what SQLite finds equal: NUMERIC affinity leaves text alone that is no number.
            (Numeric, _) => (Cast::Not, Cast::Numeric),
            (_, Numeric) => (Cast::Numeric, Cast::Not),
            (Text, None) => (Cast::Not, Cast::Text),
            (None, Text) => (Cast::Text, Cast::Not),
        }
    }

    pub(super) fn cast(self, cast: Cast) -> Self {
        let affinity = match cast {
            Cast::Not => return self,
            Cast::Text => Affinity::Text,
            Cast::Numeric => Affinity::Numeric,
        };
        Self::compose(&["CAST(", cast.behind()], vec![self], affinity, true)
    }
}

/// What stands around one side of an equality so that an index on it can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cast {
    Not,
    Text,
    Numeric,
}

impl Cast {
    pub(super) fn behind(self) -> &'static str {
        match self {
            Self::Not => "",
            Self::Text => " AS TEXT)",
            Self::Numeric => " AS NUMERIC)",
        }
    }
}

/// The casts around both sides of an equality.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hint {
    pub(super) left: Cast,
    pub(super) right: Cast,
}
