//! That equal numbers are told apart where SQLite does, and nowhere else.

use serde_json::{Value, json};

use super::*;

/// Results of a join, by key.
fn results(of: &[(&str, Value)]) -> Results {
    let mut results = Results::default();
    for (key, rows) in of {
        results.set(("j".to_owned(), (*key).to_owned()), rows.as_array().expect("rows"));
    }
    results
}

#[test]
fn a_number_has_one_plain_spelling() {
    let cases = [
        ("5.0", "5"),
        ("5", "5"),
        ("-0.0", "0"),
        ("0.5", "0.5"),
        ("9007199254740992.0", "9007199254740992"),
        ("9007199254740993", "9007199254740993"),
        ("9.2e18", "9200000000000000000"),
        ("9223372036854775807", "9223372036854775807"),
        ("9.223372036854775807e18", "9.223372036854776e+18"),
        ("-9.223372036854775808e18", "-9223372036854775808"),
        ("\"5.0\"", "\"5.0\""),
        ("{\"a\":[5.0,null]}", "{\"a\":[5,null]}"),
    ];
    for (json, expected) in cases {
        assert_eq!(plain_json(json), expected, "{json}");
    }
}

#[test]
fn a_group_may_show_any_spelling_of_its_rows_and_no_other() {
    let integer = results(&[("5", json!([{"id": 5, "n": 2}]))]);
    let real = results(&[("5.0", json!([{"id": 5.0, "n": 2}]))]);
    assert_eq!(judge(&real, [integer.clone(), real.clone()]), Ok(()));
    assert_eq!(judge(&integer, [integer.clone()]), Ok(()));
    let refused = judge(&real, [integer.clone(), integer.clone()]).expect_err("no row has 5.0");
    assert!(
        refused.starts_with("no row is spelled so, of 2\n  key 5: 0 rows found, 1 expected"),
        "{refused}"
    );
    assert_eq!(plain_results(&real), integer);
}

#[test]
fn each_column_of_a_row_has_a_spelling_of_its_own() {
    let answers = [
        results(&[("1", json!([{"id": 1, "max": 5}]))]),
        results(&[("1.0", json!([{"id": 1.0, "max": 5.0}]))]),
    ];
    assert_eq!(judge(&results(&[("1", json!([{"id": 1, "max": 5.0}]))]), answers.clone()), Ok(()));
    assert!(judge(&results(&[("1", json!([{"id": 1, "max": 6.0}]))]), answers).is_err());
}

#[test]
fn two_spellings_of_one_key_are_two_results_only_if_sqlite_has_both() {
    let group = [results(&[("5", json!([{"id": 5}]))]), results(&[("5.0", json!([{"id": 5.0}]))])];
    let rows = results(&[("5", json!([{"id": 5}])), ("5.0", json!([{"id": 5.0}]))]);
    assert!(judge(&rows, group.clone()).is_err(), "the group is there twice");
    assert!(judge(&Results::default(), group).is_err(), "the group is missing");
    assert_eq!(judge(&rows, [rows.clone()]), Ok(()));
}

#[test]
fn each_of_several_groups_below_one_key_shows_any_of_its_spellings() {
    let below = |rows: Value| results(&[("\"real\"", rows)]);
    let answers = [below(json!([{"v": 1}, {"v": 2}])), below(json!([{"v": 1}])), below(json!([]))];
    assert_eq!(judge(&below(json!([{"v": 2}])), answers.clone()), Ok(()));
    for wrong in [json!([{"v": 3}]), json!([{"v": 1}, {"v": 1}]), json!([{"v": 1}, {"v": 2}, {"v": 2}])] {
        assert!(judge(&below(wrong.clone()), answers.clone()).is_err(), "{wrong}");
    }
    let either = [below(json!([{"v": 1}])), below(json!([{"v": 2}]))];
    for wrong in [json!([]), json!([{"v": 1}, {"v": 2}])] {
        assert!(judge(&below(wrong.clone()), either.clone()).is_err(), "one group, {wrong}");
    }
}

/// `customers` have the keys `5` and `5.0`, `orders` the customers 5, 5.0 and 5: which customer has them is open, and
/// that there are three is not.
#[test]
fn a_group_that_was_split_is_seen() {
    let one = |key: &str, count: u64| (format!("{key:?}"), json!([{"id": key, "n": count}]));
    let results = |of: &[(String, Value)]| {
        let of: Vec<(&str, Value)> = of.iter().map(|(key, rows)| (key.as_str(), rows.clone())).collect();
        results(&of)
    };
    let answers = [results(&[one("5", 3)]), results(&[one("5.0", 3)])];
    for answer in &answers {
        assert_eq!(judge(answer, answers.clone()), Ok(()));
    }
    let split = results(&[one("5", 2), one("5.0", 1)]);
    let refused = judge(&split, answers).expect_err("no order gives two customers their orders");
    assert!(refused.starts_with("no order of rows gives this, of 2\n"), "{refused}");
}
