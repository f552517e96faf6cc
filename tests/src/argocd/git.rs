//! A git repository that Argo CD reads by its path.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::programs::run;

/// A repository and its work tree.
pub struct GitRepository {
    folder: PathBuf,
}

impl GitRepository {
    /// Makes a repository with the branch `main` and no commit.
    pub fn new(folder: PathBuf) -> Self {
        fs::create_dir_all(&folder).expect("the folder is ours");
        let repository = Self { folder };
        repository.git(&["init", "--quiet", "--initial-branch=main"]);
        repository
    }

    /// Returns the address at which Argo CD finds it.
    pub fn url(&self) -> String {
        format!("file://{}", self.folder.display())
    }

    /// Copies the files of a folder that git tracks or would add, to the same path below this repository.
    pub fn copy(&self, root: &Path, folder: &str) {
        let listed = run(Command::new("git").current_dir(root).args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            folder,
        ]));
        for file in listed.lines() {
            let to = self.folder.join(file);
            fs::create_dir_all(to.parent().expect("a file is in a folder")).expect("the folder is ours");
            fs::copy(root.join(file), to).unwrap_or_else(|error| panic!("{file}: {error}"));
        }
    }

    /// Writes a file.
    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.join(file), text).expect("the folder is ours");
    }

    /// Returns the text of a file.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// Replaces a text in a file, once.
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        let text = self.read(file);
        assert!(text.contains(from), "{file} has no {from:?}:\n{text}");
        self.write(file, &text.replacen(from, to, 1));
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) {
        fs::remove_file(self.folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    }

    /// Commits everything in the work tree; returns the commit.
    pub fn commit(&self, message: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--message", message]);
        self.head()
    }

    /// Reverts the last commit by another one; returns that.
    pub fn revert(&self) -> String {
        self.git(&["revert", "--no-edit", "HEAD"]);
        self.head()
    }

    fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// Runs git, without settings of this machine.
    fn git(&self, arguments: &[&str]) -> String {
        run(Command::new("git")
            .current_dir(&self.folder)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_SYSTEM", "/dev/null")
            .args(["-c", "user.name=test", "-c", "user.email=test@localhost"])
            .args(arguments))
    }
}
