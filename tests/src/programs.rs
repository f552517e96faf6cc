//! Programs that tests run: those that scripts in this repository build or fetch once, and commands in general.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Returns the path of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests' crate is a folder of the repository")
}

/// Returns the program of Argo CD. The first call may take minutes.
pub fn argocd() -> PathBuf {
    argocd_folder().join("argocd")
}

/// Returns the folder of Argo CD's definitions and default settings.
pub(crate) fn argocd_manifests() -> PathBuf {
    argocd_folder().join("manifests")
}

fn argocd_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| folder_of("argocd/build"))
}

/// Returns the folder that one of the scripts in `tests` prints.
pub(crate) fn folder_of(script: &str) -> PathBuf {
    let path = repository().join("tests").join(script);
    let output = Command::new(path).stderr(Stdio::inherit()).output().expect("the script is there");
    assert!(output.status.success(), "tests/{script} has failed; tests/run installs what it needs");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

/// Runs a command to its end and returns its output.
///
/// # Panics
/// If the command fails.
pub fn run(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
