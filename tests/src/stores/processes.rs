//! Signals to a server and to its descendants: sshd has a process for each connection, in sessions of their own.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Child, Command, Stdio};

/// Sends a signal to a child and all its descendants.
pub(super) fn signal(child: &Child, name: &str) {
    let processes = family(child.id());
    let mut command = Command::new("kill");
    command.arg(format!("-{name}")).args(processes.iter().map(u32::to_string)).stderr(Stdio::null());
    // `kill` fails if some of the processes have already ended.
    let _ = command.status().expect("kill is there");
}

/// Returns a process and its descendants, parents first.
fn family(root: u32) -> Vec<u32> {
    let mut children: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for entry in fs::read_dir("/proc").expect("a Linux").flatten() {
        let Some(process) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has ended meanwhile has no `stat`.
        if let Some(parent) =
            fs::read_to_string(entry.path().join("stat")).ok().and_then(|stat| parent(&stat))
        {
            children.entry(parent).or_default().push(process);
        }
    }
    let mut found = vec![root];
    let mut next = 0;
    while let Some(process) = found.get(next) {
        let more = children.remove(process).unwrap_or_default();
        found.extend(more);
        next += 1;
    }
    found
}

/// Returns the fourth field; the second one, a name, may contain spaces.
fn parent(stat: &str) -> Option<u32> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}
