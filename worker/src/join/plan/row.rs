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

/// The conversion that SQLite applies to a value before a comparison. Source: sqlite.org/datatype3.html §4.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Affinity {
    Text,
    Numeric,
    None,
}

/// An expression over one row of a topic that fits in an index: equal rows give equal values, evaluation never fails,
/// and no value is a BLOB.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RowExpr {
    pieces: Vec<Piece>,
    pub(super) affinity: Affinity,
    /// Whether the value is NULL whenever a column in the expression is.
    pub(super) strict: bool,
    /// Top-level fields of the payload, if the value follows from these fields and the key.
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

    /// Puts expressions between texts: `texts` has one more item than `inner`.
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

    /// Calls a function with at least one argument.
    pub(super) fn call(name: &str, arguments: Vec<Self>, strict: bool) -> Self {
        let opening = format!("{name}(");
        let mut texts = vec![opening.as_str()];
        texts.extend(std::iter::repeat_n(", ", arguments.len() - 1));
        texts.push(")");
        Self::compose(&texts, arguments, Affinity::None, strict)
    }

    /// Returns the expression with the field that it extracts from `document` noted in `fields`.
    pub(super) fn taking(self, document: &Self, field: Option<String>) -> Self {
        match field {
            Some(field) if document.pieces == [Piece::Column(Column::Payload)] => {
                Self { fields: Some(BTreeSet::from([field])), ..self }
            }
            _ => self,
        }
    }

    /// Returns the top-level fields of the payload, if the value follows from these fields and the key.
    pub(crate) fn fields(&self) -> Option<&BTreeSet<String>> {
        self.fields.as_ref()
    }

    /// Returns whether the expression is the topic's key, which determines a row's shard.
    pub(crate) fn is_key(&self) -> bool {
        self.pieces == [Piece::Column(Column::Key)]
    }

    /// Returns whether the expression reads no column.
    pub(super) fn is_constant(&self) -> bool {
        !self.pieces.iter().any(|piece| matches!(piece, Piece::Column(_)))
    }

    /// Returns the SQL over a table of the topic.
    pub(crate) fn sql(&self) -> String {
        self.render(|column| column.name().to_owned())
    }

    /// Returns the SQL over parameters 1 to 4: key, payload, timestamp, `_change`.
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

    /// Returns the expression with one spelling for equal values: an integer for a real that is a whole number.
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

    /// Returns the texts to put around either side of an equality between expressions of these affinities.
    pub(super) fn casts(left: Affinity, right: Affinity) -> (Cast, Cast) {
        use Affinity::{None, Numeric, Text};
        match (left, right) {
            (Numeric, Numeric) | (Text, Text) | (None, None) => (Cast::Not, Cast::Not),
            // A superset of what SQLite finds equal: NUMERIC affinity leaves text unchanged that is not a number.
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

/// The text around one side of an equality with which an index on that side can answer.
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
