//! The built operator as a child process, for one namespace.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::worker::{Worker, WorkerSite};

/// Starts the operator for a namespace, with this kubeconfig and more `arguments`. The log is that of the process.
pub fn start(site: &WorkerSite, kubeconfig: &Path, namespace: &str, arguments: &[&str]) -> Worker {
    start_program(&program(), site, kubeconfig, namespace, arguments)
}

/// Starts the operator of another version for a namespace.
pub fn start_program(
    program: &Path,
    site: &WorkerSite,
    kubeconfig: &Path,
    namespace: &str,
    arguments: &[&str],
) -> Worker {
    spawn(program, site, kubeconfig, &[&["--namespace", namespace], arguments].concat())
}

/// Starts the operator for all namespaces, with its Lease in `namespace`.
pub fn start_everywhere(site: &WorkerSite, kubeconfig: &Path, namespace: &str, arguments: &[&str]) -> Worker {
    spawn(&program(), site, kubeconfig, &[&["--lease-namespace", namespace], arguments].concat())
}

fn spawn(program: &Path, site: &WorkerSite, kubeconfig: &Path, arguments: &[&str]) -> Worker {
    let mut command = Command::new(program);
    command.env("KUBECONFIG", kubeconfig).args(["--log-format", "json", "--address", "127.0.0.1:0"]);
    command.args(arguments);
    site.launch(command).spawn()
}

/// Returns the operator that was built together with this program.
fn program() -> PathBuf {
    let this = std::env::current_exe().expect("a process knows its executable");
    let beside = |folder: &Path| Some(folder.join("litejoin-operator")).filter(|program| program.is_file());
    let program = this.ancestors().skip(1).take(2).find_map(beside);
    program.expect("litejoin-operator is built beside this; run `cargo build --workspace` first")
}
