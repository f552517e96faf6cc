//! Notices that manifests or Secrets have changed, by what they hold: an editor replaces a file, a mounted ConfigMap swaps a
//! link above it, and neither need change a name, a size or a time.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use super::{bytes, files, is_stdin};

/// The contents of the files of some paths at one look; equal looks mean equal files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look(u64);

/// Looks at everything that [`super::load`] would read, and at the files of Secrets: a config may be refused for the lack
/// of one. Standard input can't be looked at and never changes.
pub(crate) fn look(paths: &[PathBuf], secrets_dir: Option<&Path>) -> Look {
    let mut hasher = DefaultHasher::new();
    for secret in secrets_dir.map(entries).unwrap_or_default() {
        entries(&secret).iter().for_each(|file| hash_file(file, &mut hasher));
    }
    for path in paths.iter().filter(|path| !is_stdin(path)) {
        match files(path) {
            Ok(files) => files.iter().for_each(|file| hash_file(file, &mut hasher)),
            Err(error) => error.message.hash(&mut hasher),
        }
    }
    Look(hasher.finish())
}

/// What lies in a folder, by name, but for what kubelet keeps there for itself.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let shown = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with(".."));
    let mut paths: Vec<_> = shown.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn hash_file(file: &Path, hasher: &mut DefaultHasher) {
    file.hash(hasher);
    match bytes(file) {
        Ok(bytes) => bytes.hash(hasher),
        Err(error) => error.kind().hash(hasher),
    }
}

/// Tells a change that has come to rest from one that goes on.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The look that was taken last.
    known: Look,
    last: Look,
}

impl Watch {
    /// `known` is a look from before the files were read.
    pub(crate) fn new(known: Look) -> Self {
        Self { known, last: known }
    }

    /// Takes another look in, and returns whether the files are to be read: they differ from what was read last, and
    /// have been the same for two looks.
    pub(crate) fn is_due(&mut self, look: Look) -> bool {
        let rests = look == self.last;
        self.last = look;
        let due = rests && look != self.known;
        if due {
            self.known = look;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_due_once_and_when_it_rests() {
        let mut watch = Watch::new(Look(1));
        let due = [1, 2, 3, 3, 3, 1, 1, 2, 1].map(|look| watch.is_due(Look(look)));
        assert_eq!(due, [false, false, false, true, false, false, true, false, false]);
    }

    #[test]
    fn a_look_sees_what_files_hold() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let paths = [folder.path().to_owned(), PathBuf::from("-")];
        let look = |paths: &[PathBuf]| look(paths, None);
        let empty = look(&paths);
        write("a.yaml", "one");
        let one = look(&paths);
        assert_eq!(look(&paths), one);
        write("a.yaml", "two");
        let two = look(&paths);
        write("b.txt", "no manifest");
        assert_eq!(look(&paths), two);
        write("b.yaml", "");
        let looks = [empty, one, two, look(&paths)];
        let differ = |look: &Look| looks.iter().filter(|other| *other == look).count() == 1;
        assert!(looks.iter().all(differ), "{looks:?}");
    }

    #[test]
    fn a_look_sees_the_keys_of_secrets() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("door");
        std::fs::create_dir_all(secret.join("..data")).unwrap();
        let seen = || look(&[], Some(folder.path()));
        let without = seen();
        std::fs::write(secret.join("token"), "hunter2").unwrap();
        let with = seen();
        std::fs::write(secret.join("token"), "correct horse").unwrap();
        let turned = seen();
        std::fs::write(secret.join("..data/token"), "correct horse").unwrap();
        assert_eq!(seen(), turned);
        assert!(without != with && with != turned);
    }
}
