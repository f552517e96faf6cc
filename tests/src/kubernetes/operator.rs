//! The built operator as a child process, for one namespace.

use std::path::Path;
use std::process::Command;

use crate::worker::{Site, Worker};

/// Starts the operator for a namespace, with this kubeconfig and more `arguments`. Its log is the process's.
pub fn start(site: &Site, kubeconfig: &Path, namespace: &str, arguments: &[&str]) -> Worker {
    let mut command = Command::new(program());
    command.env("KUBECONFIG", kubeconfig).args(["--namespace", namespace, "--log-format", "json"]);
    command.args(["--address", "127.0.0.1:0"]).args(arguments);
    site.launch(command).spawn()
}

/// The operator that was built together with this test.
fn program() -> std::path::PathBuf {
    let program = crate::worker::program().with_file_name("litejoin-operator");
    assert!(program.is_file(), "{} is missing; run `cargo build --workspace` first", program.display());
    program
}
