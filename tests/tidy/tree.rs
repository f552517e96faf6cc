//! The files of the repository: those that git tracks, and those it would add.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Returns the root of the repository.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the tests' crate is a folder of the repository")
        .into()
}

/// Returns all files, relative to the root with `/` between, sorted. New files count before they are added, so
/// that what passes here passes in a fresh clone.
pub(crate) fn files() -> Vec<String> {
    let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
    let listed = output(Command::new("git").args(arguments));
    let mut files: Vec<String> =
        listed.split('\0').filter(|file| !file.is_empty()).map(String::from).collect();
    files.retain(|file| root().join(file).is_file());
    files.sort();
    files.dedup();
    files
}

/// Returns the files that end in `.rs`.
pub(crate) fn rust_files() -> Vec<String> {
    files().into_iter().filter(|file| file.ends_with(".rs")).collect()
}

/// Returns a file's text; `None` when it isn't text.
pub(crate) fn text(file: &str) -> Option<String> {
    let bytes = std::fs::read(root().join(file)).expect("a listed file can be read");
    String::from_utf8(bytes).ok()
}

/// Returns what Cargo knows of the workspace, from its manifests alone.
pub(crate) fn metadata() -> serde_json::Value {
    let arguments = ["metadata", "--format-version=1", "--no-deps", "--offline"];
    let printed = output(Command::new(env!("CARGO")).args(arguments));
    serde_json::from_str(&printed).expect("cargo metadata prints JSON")
}

/// Runs a command in the root that must succeed, and returns its standard output.
fn output(command: &mut Command) -> String {
    let done = command.current_dir(root()).output().expect("git and cargo are on the PATH");
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).expect("git and cargo print UTF-8")
}
