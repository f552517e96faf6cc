//! The programs of Kubernetes that tests run, built from their Go modules once.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::programs::folder_of;

/// A process that is killed on drop, and whose output goes to a file.
pub struct Process {
    child: Child,
    log: PathBuf,
    name: String,
}

/// Returns a built program, such as `kube-apiserver`. The first call may take minutes.
pub fn program(name: &str) -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| folder_of("kubernetes/build")).join(name)
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
