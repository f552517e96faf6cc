//! Rules that every file of this repository keeps, checked by plain `cargo test`.
//! A file for each subject; each test lists all its complaints at once: where, what, and what to do.

mod arrows;
mod documents;
mod formatting;
mod modules;
mod names;
mod rooms;
mod size;
mod source;
mod tree;
mod words;

/// Fails with all complaints, one a line; passes when there are none.
#[track_caller]
fn assert_none(complaints: &[String]) {
    assert!(complaints.is_empty(), "\n{}\n", complaints.join("\n"));
}
