//! The programs of Kubernetes and of Argo CD that tests run, built from their Go modules once.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// A process that is killed on drop, and whose output goes to a file.
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

/// Returns the path of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the tests' crate is a folder of the repository")
}

/// Returns a built program, such as `kube-apiserver`. The first call may take minutes.
pub fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| folder_of("tests/kubernetes/build")).join(name)
}

/// Returns the program of Argo CD. The first call may take minutes.
pub fn argocd() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| folder_of("tests/argocd/build")).join("argocd")
}

/// Returns the folder that a build script prints.
fn folder_of(script: &str) -> PathBuf {
    let mut build = Command::new(repository().join(script));
    let done = build.stderr(Stdio::inherit()).output().expect("the build script can be run");
    assert!(done.status.success(), "{script} failed");
    PathBuf::from(String::from_utf8_lossy(&done.stdout).trim())
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

impl Process {
    /// Starts a command in a folder, with its log in `<name>.log`.
    pub fn start(name: &str, folder: &Path, command: &mut Command) -> Self {
        let path = folder.join(format!("{name}.log"));
        let log = std::fs::File::create(&path).expect("a log can be made");
        let errors = log.try_clone().expect("a file has several handles");
        command.current_dir(folder).stdin(Stdio::null()).stdout(log).stderr(errors);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: path, name: name.to_owned() }
    }

    /// Returns the output so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Panics if the process has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.child.try_wait().expect("a child can be asked") {
            panic!("{} has ended with {status}:\n{}", self.name, self.log());
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
