//! Formatting: rustfmt has the last word, by the settings in rustfmt.toml.

use std::process::Command;

use crate::tree;

#[test]
fn rust_is_formatted() {
    let done = Command::new(env!("CARGO"))
        .args(["fmt", "--all", "--check", "--", "--color=never"])
        .current_dir(tree::root())
        .output()
        .expect("cargo is on the PATH");
    let (diff, said) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success(), "\n{diff}{said}\nrun `cargo fmt --all`\n");
}
