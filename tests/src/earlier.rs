//! What earlier versions have left in `tests/cases/earlier`: data, replicas, stored objects and shipped manifests.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::programs::{repository, run};

/// The variable with the version that `tests/keep` keeps.
const VERSION: &str = "LITEJOIN_EARLIER";

/// The variable with the folder of that version's programs.
const PROGRAMS: &str = "LITEJOIN_EARLIER_PROGRAMS";

/// An earlier version, named by its release or commit.
pub struct EarlierVersion {
    name: String,
}

impl EarlierVersion {
    /// Returns all versions, in the order of their names.
    pub fn all() -> Vec<Self> {
        let folders = fs::read_dir(folder()).expect("the folder is there").filter_map(|entry| {
            let entry = entry.expect("a folder can be listed");
            let is_folder = entry.file_type().expect("an entry has a type").is_dir();
            is_folder.then(|| entry.file_name().into_string().expect("a name is text"))
        });
        let mut all: Vec<Self> = folders.map(|name| Self { name }).collect();
        all.sort_by(|one, other| one.name.cmp(&other.name));
        assert!(!all.is_empty(), "there are earlier versions");
        all
    }

    /// Returns the version that is to be written, and the folder of its programs.
    pub fn to_write() -> (Self, PathBuf) {
        let name = std::env::var_os(VERSION).and_then(|name| name.into_string().ok());
        let name = name.expect("tests/keep names the version");
        let version = Self { name };
        let programs = version.programs().expect("tests/keep names the folder of its programs");
        (version, programs)
    }

    /// Returns the folder of its programs, while `tests/keep` runs for this version.
    pub fn programs(&self) -> Option<PathBuf> {
        let is_it = std::env::var_os(VERSION).is_some_and(|version| version == self.name.as_str());
        std::env::var_os(PROGRAMS).filter(|_| is_it).map(PathBuf::from)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the path of one of its files or folders.
    pub fn path(&self, name: &str) -> PathBuf {
        folder().join(&self.name).join(name)
    }

    /// Unpacks one of its archives to a folder that is removed on drop.
    pub fn unpacked(&self, name: &str) -> TempDir {
        let folder = tempfile::tempdir().expect("a folder can be made");
        run(Command::new("tar").arg("-xzf").arg(self.path(name)).arg("-C").arg(folder.path()));
        folder
    }

    /// Packs a folder as one of its archives: the same content makes the same bytes.
    pub fn pack(&self, folder: &Path, name: &str) {
        let archive = self.path(name);
        let mut tar = Command::new("tar");
        tar.args([
            "--sort=name",
            "--mtime=@0",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            "--mode=u=rwX,go=rX",
        ]);
        run(tar
            .args(["--use-compress-program", "gzip -9n", "-cf"])
            .arg(archive)
            .arg("-C")
            .arg(folder)
            .arg("."));
    }
}

/// Returns the path of what all versions have in common.
pub fn folder() -> PathBuf {
    repository().join("tests/cases/earlier")
}
