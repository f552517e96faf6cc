//! Records of CSV as messages: an object of all columns. A field is text unless the manifest gives its column another type,
//! or has it inferred from the whole column. No type is guessed for one field: it would differ from row to row. Pure.

use std::borrow::Cow;

use litejoin_crds::plan::FileSource;
use litejoin_crds::source::ColumnType;
use serde::de::IgnoredAny;

use super::inference::{TypesByName, is_null, type_name, type_of};
use super::rows::{KeyText, RowError};
use crate::source::encoding::EncodingError;
use crate::storage::message::{Message, check_key, check_payload};
use crate::storage::topics::TopicId;

/// Bytes of a field that an error shows.
const SHOWN_BYTES_MAX: usize = 100;

/// The columns of one CSV file.
#[derive(Debug)]
pub(super) struct CsvColumns<'s> {
    columns: Vec<CsvColumn>,
    /// Indexes of the columns of the key.
    key: Vec<usize>,
    null_values: &'s [String],
    /// First values of another type than was inferred, which are to be told.
    odd_values: Vec<OddValue>,
}

#[derive(Debug)]
struct CsvColumn {
    name: String,
    /// The name as JSON, with the colon behind it.
    field: String,
    column_type: ColumnType,
    basis: TypeBasis,
    /// Whether a value of another type than was inferred has been told.
    is_told: bool,
}

/// What the type of a column rests on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TypeBasis {
    Declared,
    /// Nothing: the column is text.
    Unknown,
    /// The values of the column.
    Inferred,
}

/// The first value of a column that is of another type than was inferred.
#[derive(Debug)]
pub(super) struct OddValue {
    pub(super) column: String,
    /// The type of the column.
    pub(super) read_as: &'static str,
    /// The value, or its beginning.
    pub(super) got: String,
}

impl<'s> CsvColumns<'s> {
    /// The columns that a header names, with their types and the key of a source.
    pub(super) fn new(header: &[String], spec: &'s FileSource) -> Result<Self, String> {
        if header.is_empty() {
            return Err("the file is empty, and its first line must name the columns".to_owned());
        }
        let mut columns: Vec<CsvColumn> = Vec::with_capacity(header.len());
        for (index, name) in header.iter().enumerate() {
            let number = index + 1;
            if name.is_empty() {
                return Err(format!("line 1 gives column {number} no name; name it, or take it out"));
            }
            if let Some(other) = columns.iter().position(|column| column.name == *name) {
                let other = other + 1;
                return Err(format!("line 1 names columns {other} and {number} both {name:?}; rename one"));
            }
            let (column_type, basis) = match spec.types.get(name) {
                Some(column_type) => (*column_type, TypeBasis::Declared),
                None => (ColumnType::Text, TypeBasis::Unknown),
            };
            let field = format!("{}:", quoted(name));
            columns.push(CsvColumn { name: name.clone(), field, column_type, basis, is_told: false });
        }
        let find = |name: &String, what: &str| {
            header.iter().position(|column| column == name).ok_or_else(|| {
                format!("no column {name:?} for {what}; its columns are {}", header.join(", "))
            })
        };
        spec.types.keys().try_for_each(|name| find(name, "types").map(drop))?;
        let key = spec.key_columns.iter().map(|name| find(name, "the key")).collect::<Result<_, _>>()?;
        Ok(Self { columns, key, null_values: &spec.null_values, odd_values: Vec::new() })
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.columns.iter().map(|column| column.name.clone()).collect()
    }

    /// Whether a column without a declared type is not among these.
    pub(super) fn lack(&self, types: &TypesByName) -> bool {
        let mut unknown = self.columns.iter().filter(|column| column.basis == TypeBasis::Unknown);
        unknown.any(|column| !types.contains_key(&column.name))
    }

    /// Gives the columns without a declared type these types.
    pub(super) fn infer(&mut self, types: &TypesByName) {
        for column in self.columns.iter_mut().filter(|column| column.basis == TypeBasis::Unknown) {
            if let Some(column_type) = types.get(&column.name) {
                (column.column_type, column.basis) = (*column_type, TypeBasis::Inferred);
            }
        }
    }

    /// The first value of each column that was kept as text though another type was inferred, since they were asked for.
    pub(super) fn odd_values(&mut self) -> Vec<OddValue> {
        std::mem::take(&mut self.odd_values)
    }

    /// The text of a record, which must have a field for each column.
    pub(super) fn row(&self, record: &csv::ByteRecord) -> Result<csv::StringRecord, RowError> {
        let (got, expected) = (record.len(), self.columns.len());
        if got != expected {
            return Err(RowError::Fields { got, expected });
        }
        csv::StringRecord::from_byte_record(record.clone())
            .map_err(|error| EncodingError::Utf8 { at: error.utf8_error().valid_up_to() }.into())
    }

    /// Makes a message of a row.
    pub(super) fn message(
        &mut self,
        record: &csv::StringRecord,
        topic: TopicId,
        source_offset: u64,
    ) -> Result<Message, RowError> {
        let mut key = KeyText::of(self.key.len());
        for index in &self.key {
            let field = &record[*index];
            if field.is_empty() || is_null(self.null_values, field) {
                return Err(RowError::NoKey { column: self.columns[*index].name.clone() });
            }
            key.push(field);
        }
        let key = key.into_string();
        check_key(&key)?;
        let mut payload = String::from("{");
        for (column, field) in self.columns.iter_mut().zip(record) {
            if payload.len() > 1 {
                payload.push(',');
            }
            payload.push_str(&column.field);
            let is_null = is_null(self.null_values, field);
            let is_odd = !is_null && column.is_odd(field);
            payload.push_str(&match (is_null, is_odd) {
                (true, _) => "null".into(),
                (_, true) => quoted(field).into(),
                _ => column.value(field)?,
            });
            if is_odd && !std::mem::replace(&mut column.is_told, true) {
                let (column, read_as) = (column.name.clone(), type_name(column.column_type));
                self.odd_values.push(OddValue { column, read_as, got: shown(field) });
            }
        }
        payload.push('}');
        check_payload(&payload)?;
        Ok(Message {
            topic,
            key: key.into_boxed_str(),
            payload: Some(payload.into_boxed_str()),
            timestamp: None,
            headers: None,
            source_offset,
        })
    }
}

impl CsvColumn {
    /// Whether a field is of another type than was inferred.
    fn is_odd(&self, field: &str) -> bool {
        let has_type = self.basis == TypeBasis::Inferred && self.column_type != ColumnType::Text;
        has_type && type_of(field) != self.column_type
    }

    /// A field as JSON.
    fn value<'f>(&self, field: &'f str) -> Result<Cow<'f, str>, RowError> {
        let trimmed = field.trim();
        let (value, allowed) = match self.column_type {
            ColumnType::Text => return Ok(quoted(field).into()),
            ColumnType::Integer => (
                trimmed.parse::<i64>().ok().map(|number| number.to_string().into()),
                "a whole number of 64 bits",
            ),
            ColumnType::Real => (real(trimmed), "a number"),
            ColumnType::Boolean => {
                let known = ["true", "false"].into_iter().find(|known| known.eq_ignore_ascii_case(trimmed));
                (known.map(Cow::Borrowed), "true or false")
            }
            ColumnType::Json => {
                let is_json = serde_json::from_str::<IgnoredAny>(trimmed).is_ok();
                (is_json.then_some(Cow::Borrowed(trimmed)), "JSON")
            }
        };
        value.ok_or_else(|| RowError::Type { column: self.name.clone(), got: shown(field), allowed })
    }
}

/// A field, or its beginning.
fn shown(field: &str) -> String {
    field[..field.floor_char_boundary(SHOWN_BYTES_MAX)].to_owned()
}

/// A number as JSON writes one that has a fraction: 5 as 5.0, so that a division by SQLite is that of its column.
fn real(field: &str) -> Option<Cow<'_, str>> {
    let number: f64 = field.parse().ok().filter(|number: &f64| number.is_finite())?;
    let has_fraction = field.contains(['.', 'e', 'E']);
    let is_json = serde_json::from_str::<IgnoredAny>(field).is_ok();
    Some(match (is_json, has_fraction) {
        (true, true) => field.into(),
        (true, false) => format!("{field}.0").into(),
        (false, _) => format!("{number:?}").into(),
    })
}

fn quoted(text: &str) -> String {
    serde_json::to_string(text).expect("a string is always JSON")
}

#[cfg(test)]
mod tests {
    use litejoin_crds::plan::FileFormat;

    use super::*;

    fn spec(types: &[(&str, ColumnType)]) -> FileSource {
        FileSource {
            path: "a.csv".to_owned(),
            format: FileFormat::Csv,
            topic: Some("t".to_owned()),
            key_columns: vec!["id".to_owned(), "a".to_owned()],
            null_values: vec!["NA".to_owned(), String::new()],
            infer: None,
            types: types.iter().map(|(name, column_type)| ((*name).to_owned(), *column_type)).collect(),
            rows_per_second_max: None,
            follow: false,
        }
    }

    fn header(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    /// Key and payload of a record with the columns `id`, `a` and `v`, the last of this type.
    fn read(record: [&str; 3], column_type: ColumnType) -> Result<(String, String), String> {
        let spec = spec(&[("v", column_type)]);
        let mut columns = CsvColumns::new(&header(&["id", "a", "v"]), &spec).expect("the columns are there");
        let message = columns.message(&csv::StringRecord::from(record.to_vec()), TopicId(3), 9);
        let message = message.map_err(|error| error.to_string())?;
        Ok((message.key.into_string(), message.payload.map(String::from).unwrap_or_default()))
    }

    #[test]
    fn a_field_is_text_unless_its_column_has_a_type() {
        for text in ["01569", "94107", "1e3", "12E4", "89014103211118510720", "true", "1.50", " x"] {
            let (key, payload) = read(["1", "2", text], ColumnType::Text).expect("a message");
            assert_eq!((key, payload), ("1|2".to_owned(), format!(r#"{{"id":"1","a":"2","v":"{text}"}}"#)));
        }
        for (column_type, field, expected) in [
            (ColumnType::Integer, " -7", "-7"),
            (ColumnType::Integer, "007", "7"),
            (ColumnType::Real, "5", "5.0"),
            (ColumnType::Real, "1e3", "1e3"),
            (ColumnType::Real, "-0.0", "-0.0"),
            (ColumnType::Real, ".5", "0.5"),
            (ColumnType::Real, "+1", "1.0"),
            (ColumnType::Boolean, "TRUE", "true"),
            (ColumnType::Json, "{\"x\": [1]} ", "{\"x\": [1]}"),
            (ColumnType::Integer, "NA", "null"),
        ] {
            let (_, payload) = read(["1", "2", field], column_type).expect("a message");
            assert_eq!(payload, format!(r#"{{"id":"1","a":"2","v":{expected}}}"#), "{field}");
        }
        for (column_type, field, allowed) in [
            (ColumnType::Integer, "1.0", "a whole number of 64 bits"),
            (ColumnType::Integer, "89014103211118510720", "a whole number of 64 bits"),
            (ColumnType::Real, "NaN", "a number"),
            (ColumnType::Real, "1e400", "a number"),
            (ColumnType::Real, "1,5", "a number"),
            (ColumnType::Boolean, "1", "true or false"),
            (ColumnType::Json, "{", "JSON"),
        ] {
            let error = format!(
                "column \"v\": got {field:?}, allowed is {allowed}; give the column another type, or name the value in nullValues"
            );
            assert_eq!(read(["1", "2", field], column_type), Err(error));
        }
    }

    #[test]
    fn keys_of_several_columns_do_not_collide() {
        let key = |id, a| read([id, a, ""], ColumnType::Text).expect("a message").0;
        assert_eq!((key("a|b", "c"), key("a", "b|c")), (r"a\|b|c".to_owned(), r"a|b\|c".to_owned()));
        assert_eq!((key(r"a\", "b"), key("a", r"\|b")), (r"a\\|b".to_owned(), r"a|\\\|b".to_owned()));
        assert_eq!(
            read(["NA", "1", ""], ColumnType::Text).expect_err("no key"),
            "field \"id\" is needed for the key, and it is missing or null"
        );
    }

    #[test]
    fn headers_that_can_not_be_told_apart_are_refused() {
        let said = |names: &[&str], types: &[(&str, ColumnType)]| {
            CsvColumns::new(&header(names), &spec(types)).expect_err("refused")
        };
        assert_eq!(said(&[], &[]), "the file is empty, and its first line must name the columns");
        assert_eq!(said(&["id", "", "a"], &[]), "line 1 gives column 2 no name; name it, or take it out");
        assert_eq!(said(&["id", "a", "id"], &[]), "line 1 names columns 1 and 3 both \"id\"; rename one");
        assert_eq!(said(&["id"], &[]), "no column \"a\" for the key; its columns are id");
        assert_eq!(
            said(&["id", "a"], &[("v", ColumnType::Real)]),
            "no column \"v\" for types; its columns are id, a"
        );
    }
}
