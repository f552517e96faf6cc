//! The programs of stores, built or downloaded once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Returns the path of Litestream. The first call may take minutes.
pub fn litestream() -> PathBuf {
    built().join("litestream")
}

pub(super) fn rclone() -> PathBuf {
    built().join("rclone")
}

/// Returns the path of the emulator of Google Cloud Storage.
pub(super) fn google() -> PathBuf {
    built().join("fake-gcs-server")
}

/// Returns the path of the script of Azurite's blob service.
pub(super) fn azurite() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| folder_of("azurite/fetch"));
    folder.join("node_modules/azurite/dist/src/blob/main.js")
}

fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| folder_of("litestream/build"))
}

/// Returns the folder that one of the scripts in `tests` prints.
fn folder_of(script: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(path).stderr(Stdio::inherit()).output().expect("the script is there");
    assert!(output.status.success(), "tests/{script} has failed; tests/run installs what it needs");
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

/// Runs a command to its end and returns its output.
pub(super) fn run(command: &mut Command) -> String {
    let done = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
