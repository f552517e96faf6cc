//! Which package may use which: `operator → crds ← worker`, `tests →` all; and inside the worker, pure rooms without IO.

use crate::{assert_none, source, tree};

/// Each package of the workspace and the packages of ours that it may depend on.
const ARROWS: [(&str, &[&str]); 4] = [
    ("litejoin-crds", &[]),
    ("litejoin-operator", &["litejoin-crds"]),
    ("litejoin-worker", &["litejoin-crds"]),
    ("litejoin-tests", &["litejoin-crds", "litejoin-operator", "litejoin-worker"]),
];

/// Rooms that are handed their data and hand theirs back.
const PURE_ROOMS: [&str; 1] = ["worker/src/join"];

/// Modules that a pure room may not name.
const IO: [&str; 4] = ["axum", "tokio", "std::net", "std::fs"];

/// Crates that we build without, and why.
const UNWANTED: [(&str, &str); 1] = [(
    "aws-lc-rs",
    "it needs a C toolchain of its own; turn on the `ring` feature of what brings it in instead",
)];

#[test]
fn packages_depend_only_along_the_arrows() {
    let metadata = tree::metadata();
    let mut complaints = Vec::new();
    for package in metadata["packages"].as_array().expect("packages is a list") {
        let name = package["name"].as_str().expect("a package has a name");
        let manifest = package["manifest_path"].as_str().expect("a package has a manifest");
        let file = manifest.trim_start_matches(&format!("{}/", tree::root().display())).to_owned();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            complaints.push(format!(
                "{file}:1: package {name} is new; say in tests/tidy/arrows.rs whom it may use"
            ));
            continue;
        };
        for dependency in package["dependencies"].as_array().expect("dependencies is a list") {
            let target = dependency["name"].as_str().expect("a dependency has a name");
            if dependency["path"].is_string() && !allowed.contains(&target) {
                let text = tree::text(&file).expect("a manifest is text");
                let line = text.lines().position(|line| line.contains(target)).map_or(1, |index| index + 1);
                complaints.push(format!(
                    "{file}:{line}: {name} uses {target}, and may use only {allowed:?}; what both sides need lives in crds"
                ));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn pure_rooms_do_no_io() {
    let mut complaints = Vec::new();
    for room in PURE_ROOMS.iter().filter(|room| !tree::root().join(room).is_dir()) {
        complaints.push(format!("{room}: this room is listed as pure and does not exist; take it away"));
    }
    for file in tree::rust_files() {
        let pure = PURE_ROOMS
            .iter()
            .any(|room| file.strip_prefix(room).is_some_and(|rest| rest == ".rs" || rest.starts_with('/')));
        if !pure || is_test(&file) {
            continue;
        }
        let text = tree::text(&file).expect("source is text");
        let code = source::code(&text);
        for (line, path) in source::paths(source::without_tests(&code)) {
            if IO.iter().any(|io| path == *io || path.starts_with(&format!("{io}::"))) {
                complaints.push(format!(
                    "{file}:{line}: {path} in a room without IO; take the value as an argument and let the caller do it"
                ));
            }
        }
    }
    assert_none(&complaints);
}

#[test]
fn unwanted_crates_are_not_built() {
    let mut complaints = Vec::new();
    for (name, why) in UNWANTED {
        let done = std::process::Command::new(env!("CARGO"))
            .args(["tree", "--offline", "--locked", "--workspace", "--invert", name])
            .current_dir(tree::root())
            .output()
            .expect("cargo is on the PATH");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() || said.contains("did not match any packages"), "cargo tree: {said}");
        if !done.stdout.is_empty() {
            complaints.push(format!("Cargo.lock: {name}: {why}\n{}", String::from_utf8_lossy(&done.stdout)));
        }
    }
    assert_none(&complaints);
}

/// Whether the file holds tests only: `tests.rs`, or a file in a folder `tests`.
pub(crate) fn is_test(file: &str) -> bool {
    file.split('/').any(|part| part == "tests" || part == "tests.rs")
}
