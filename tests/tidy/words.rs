//! Words that have no place in any file: work left for later, tests that are skipped or guess at time, names of one
//! machine or one registry. Words are put together here, so that this file passes its own check.

use crate::{arrows, assert_none, source, tree};

/// Marks of unfinished work.
const UNFINISHED: [&str; 3] = [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("to", "do!")];

/// Folders of one machine.
const MACHINE_FOLDERS: [&str; 2] = [concat!("/ro", "ot"), concat!("/wo", "rk")];

/// Registries: a build may use a mirror, so no file of ours names one.
const REGISTRIES: [&str; 6] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("npm", "js"),
    concat!("maven", ".org"),
    concat!("debian", ".org"),
    concat!("proxy.golang", ".org"),
];

/// The one place where tests poll; all others call it, so that waits are bounded and end as soon as they can.
const POLLING: &str = "tests/src/wait.rs";

#[test]
fn nothing_is_left_for_later() {
    assert_none(&complaints(&[], |line| {
        let mark = UNFINISHED.iter().find(|mark| has_word(line, mark))?;
        Some(format!("{mark} marks work left over; do it now, or file an issue and say here how things are"))
    }));
}

#[test]
fn no_file_knows_one_machine() {
    assert_none(&complaints(&[], |line| {
        let folder = MACHINE_FOLDERS.iter().find(|folder| has_path(line, folder))?;
        Some(format!("{folder} is a folder of one machine; write the path relative to the repository"))
    }));
}

#[test]
fn no_file_names_a_registry() {
    // Cargo itself writes the registry into its lock file.
    assert_none(&complaints(&["Cargo.lock"], |line| {
        let line = line.to_lowercase();
        let registry = REGISTRIES.iter().find(|registry| line.contains(*registry))?;
        Some(format!(
            "{registry} is the name of a registry; say the package's name and let the client find it"
        ))
    }));
}

#[test]
fn ignored_tests_say_why() {
    let bare = concat!("#[ig", "nore]");
    assert_none(&complaints(&[], |line| {
        line.contains(bare).then(|| format!("{bare} without a reason; write #[ignore = \"what it needs\"]"))
    }));
}

#[test]
fn tests_wait_for_events_not_for_time() {
    let mut complaints = Vec::new();
    for file in tree::rust_files().iter().filter(|file| *file != POLLING) {
        let text = tree::text(file).expect("source is text");
        let code = source::code(&text);
        let first = if arrows::is_test(file) { 0 } else { source::without_tests(&code).lines().count() };
        for (line, path) in source::paths(&code) {
            let sleeps =
                ["thread::sleep", "time::sleep", "time::sleep_until"].iter().any(|end| path.ends_with(end));
            if sleeps && line > first {
                complaints.push(format!(
                    "{file}:{line}: {path} guesses how long something takes; wait for the event, or poll by {POLLING}"
                ));
            }
        }
    }
    assert_none(&complaints);
}

/// Asks `judge` about each line of each text file, and says where it objects.
fn complaints(except: &[&str], judge: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut complaints = Vec::new();
    for file in tree::files().iter().filter(|file| !except.contains(&file.as_str())) {
        for (index, line) in tree::text(file).unwrap_or_default().lines().enumerate() {
            complaints.extend(judge(line).map(|complaint| format!("{file}:{}: {complaint}", index + 1)));
        }
    }
    complaints
}

/// Whether the line has the word, and not just as a part of a longer one.
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        !line[..at].ends_with(source::is_word) && !line[at + word.len()..].starts_with(source::is_word)
    })
}

/// Whether the line has this absolute path or one below it, and not just a longer one that contains it.
fn has_path(line: &str, path: &str) -> bool {
    let goes_on = |letter: char| source::is_word(letter) || letter == '-';
    let within = |letter: char| goes_on(letter) || "./~}*".contains(letter);
    line.match_indices(path).any(|(at, _)| {
        let before = &line[..at];
        (before.ends_with("//") || !before.ends_with(within)) && !line[at + path.len()..].starts_with(goes_on)
    })
}

#[test]
fn words_and_paths_are_told_from_longer_ones() {
    let [folder, ..] = MACHINE_FOLDERS;
    for (line, has) in [
        (format!("cd {folder}/x"), true),
        (format!("\"{folder}\""), true),
        (format!("file://{folder}/x"), true),
        (format!("a{folder}/x"), false),
        (format!("./{folder}"), false),
        (format!("{folder}er/src"), false),
    ] {
        assert_eq!(has_path(&line, folder), has, "in {line:?}");
    }
    assert!(has_word("// ab: later", "ab") && !has_word("tab", "ab") && !has_word("ab_c", "ab"));
}
