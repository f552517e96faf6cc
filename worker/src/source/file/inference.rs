//! Types of CSV columns that are found by the values of whole columns: a value has the one type that prints it as it stands
//! there, and a column the type that all its values have. Pure.

use std::collections::BTreeMap;
use std::io::Read;

use litejoin_crds::source::ColumnType;

use super::lookback::Lookback;

/// The most rows that decide.
pub(super) const SAMPLE_ROWS_MAX: usize = 1_000;

/// The most bytes of a file that decide: those of standard input are held in memory.
const SAMPLE_BYTES_MAX: u64 = 16 << 20;

/// The types that columns can be found to have, and how they are called.
pub(super) const INFERRED: [(ColumnType, &str); 4] = [
    (ColumnType::Boolean, "boolean"),
    (ColumnType::Integer, "integer"),
    (ColumnType::Real, "real"),
    (ColumnType::Text, "text"),
];

/// Types of columns by their names.
pub(super) type TypesByName = BTreeMap<String, ColumnType>;

/// The one type that prints a value as it stands there; any other value is text.
pub(super) fn type_of(value: &str) -> ColumnType {
    let is_integer = || value.parse::<i64>().is_ok_and(|number| number.to_string() == value);
    // SQLite prints a negative zero without its sign.
    let prints_back =
        |number: f64| number.to_bits() != (-0.0_f64).to_bits() && format!("{number:?}") == value;
    let is_real = || !value.contains('e') && value.parse().is_ok_and(prints_back);
    match value {
        "true" | "false" => ColumnType::Boolean,
        // Numbers end with a digit; infinity and NaN, which are none in JSON, do not.
        _ if !value.ends_with(|last: char| last.is_ascii_digit()) => ColumnType::Text,
        _ if is_integer() => ColumnType::Integer,
        _ if is_real() => ColumnType::Real,
        _ => ColumnType::Text,
    }
}

/// What a type that was found is called.
pub(super) fn type_name(column_type: ColumnType) -> &'static str {
    INFERRED.iter().find(|(other, _)| *other == column_type).map_or("json", |(_, name)| name)
}

/// Whether a field stands for null.
pub(super) fn is_null(null_values: &[String], field: &str) -> bool {
    null_values.iter().any(|null| null == field)
}

/// The types of the values of some rows.
pub(super) struct Sample<'s> {
    header: &'s [String],
    null_values: &'s [String],
    /// The type of all values of each column, once it has one.
    types: Vec<Option<ColumnType>>,
    pub(super) rows: usize,
}

impl<'s> Sample<'s> {
    pub(super) fn new(header: &'s [String], null_values: &'s [String]) -> Self {
        Self { header, null_values, types: vec![None; header.len()], rows: 0 }
    }

    pub(super) fn take(&mut self, row: &csv::StringRecord) {
        self.rows += 1;
        for (found, value) in self.types.iter_mut().zip(row) {
            if is_null(self.null_values, value) {
                continue;
            }
            let other = type_of(value);
            let is_alike = found.is_none_or(|found| found == other);
            *found = Some(if is_alike { other } else { ColumnType::Text });
        }
    }

    /// Takes the first rows of a file behind its header, and none that may still grow or that has no end.
    pub(super) fn take_first<R: Read>(&mut self, reader: &mut csv::Reader<Lookback<R>>, grows: bool) {
        let mut record = csv::ByteRecord::new();
        while self.rows < SAMPLE_ROWS_MAX {
            let at = reader.position().byte();
            reader.get_mut().row_begins(at);
            // A fault shows again where the rows are read to be stored.
            let more = at < SAMPLE_BYTES_MAX && reader.read_byte_record(&mut record).unwrap_or(false);
            let (input, next) = (reader.get_ref(), reader.position().byte());
            if !more || input.ends_open(next) || grows && input.ends_cut(next) {
                break;
            }
            let row = csv::StringRecord::from_byte_record(record.clone());
            if let Some(row) = row.ok().filter(|row| row.len() == self.header.len()) {
                self.take(&row);
            }
        }
    }

    pub(super) fn types(self) -> TypesByName {
        let types = self.types.into_iter().map(|found| found.unwrap_or(ColumnType::Text));
        self.header.iter().cloned().zip(types).collect()
    }
}

/// The columns that are no text, each with its type.
pub(super) fn told(types: &TypesByName) -> String {
    let others = types.iter().filter(|(_, column_type)| **column_type != ColumnType::Text);
    let others: Vec<_> =
        others.map(|(name, column_type)| format!("{name} {}", type_name(*column_type))).collect();
    match (others.len(), types.len()) {
        (0, _) => "all columns are text".to_owned(),
        (typed, all) if typed == all => others.join(", "),
        _ => format!("{}; all other columns are text", others.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_has_the_type_that_prints_it_as_it_stands_there() {
        for (column_type, values) in [
            (ColumnType::Integer, "0|7|-7|94107|9223372036854775807|-9223372036854775808"),
            (ColumnType::Real, "0.0|5.0|-0.05|1.5|41.1304722|12.658579999999999|0.30000000000000004"),
            (ColumnType::Boolean, "true|false"),
            (
                ColumnType::Text,
                "01569|89014103211118510720|9223372036854775808|1e3|12E4|5e10|1e16|+5|-0|-0.0|1.50|.5|5.|1,5| 5|5 |1_000|\
                 0x1f|١|NaN|inf|-inf|infinity|True|TRUE|t|yes|NULL||-|2013-01-01|1.0000000000000000001",
            ),
        ] {
            for value in values.split('|') {
                assert_eq!(type_of(value), column_type, "{value:?}");
            }
        }
    }

    /// What is told of the rows of a file with the columns `id` and `v`, whose nulls are `NA` and nothing.
    fn found(file: &str, grows: bool) -> String {
        let header = ["id".to_owned(), "v".to_owned()];
        let null_values = ["NA".to_owned(), String::new()];
        let mut sample = Sample::new(&header, &null_values);
        let input = Lookback::new(file.as_bytes(), 0, 1 << 20);
        let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(input);
        sample.take_first(&mut reader, grows);
        told(&sample.types())
    }

    #[test]
    fn a_column_has_the_type_that_all_its_values_have() {
        for (values, expected) in [
            ("1,5\n2,-7\n", "id integer, v integer"),
            ("1,5\n2,1.5\n", "id integer; all other columns are text"),
            ("1,1.5\n2,7.0\n", "id integer, v real"),
            ("1,true\n2,false\n", "id integer, v boolean"),
            ("1,true\n2,0\n", "id integer; all other columns are text"),
            ("1,5\n2,x\n3,5\n", "id integer; all other columns are text"),
            ("a,NA\n01,5\n,\n", "v integer; all other columns are text"),
            ("a,NA\nb,\n", "all columns are text"),
            ("a,5\nb\nc,x,y\nd,6\n", "v integer; all other columns are text"),
            ("1,\"5\"\n", "id integer, v integer"),
            ("", "all columns are text"),
        ] {
            assert_eq!(found(values, false), expected, "{values:?}");
        }
    }

    #[test]
    fn rows_that_decide_are_the_first_thousand_and_have_an_end() {
        let many = "1,5\n".repeat(SAMPLE_ROWS_MAX - 1);
        assert_eq!(found(&format!("{many}1,x\n"), false), "id integer; all other columns are text");
        assert_eq!(found(&format!("1,5\n{many}1,x\n"), false), "id integer, v integer");
        assert_eq!(found("1,5\n2,x", false), "id integer; all other columns are text");
        assert_eq!(found("1,5\n2,x", true), "id integer, v integer");
        assert_eq!(found("1,5\n\"2,x\n3,x\n", false), "id integer, v integer");
    }
}
