//! The built operator as a child process, for one namespace.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::worker::{Site, Worker};

/// Starts the operator for a namespace, with this kubeconfig and more `arguments`. Its log is the process's.
pub fn start(site: &Site, kubeconfig: &Path, namespace: &str, arguments: &[&str]) -> Worker {
    let mut command = Command::new(program());
    command.env("KUBECONFIG", kubeconfig).args(["--namespace", namespace, "--log-format", "json"]);
    command.args(["--address", "127.0.0.1:0"]).args(arguments);
    site.launch(command).spawn()
}

/// The operator that was built together with this program.
fn program() -> PathBuf {
    let this = std::env::current_exe().expect("a process knows its executable");
    let beside = |folder: &Path| Some(folder.join("litejoin-operator")).filter(|program| program.is_file());
    let program = this.ancestors().skip(1).take(2).find_map(beside);
    program.expect("litejoin-operator is built beside this; run `cargo build --workspace` first")
}
