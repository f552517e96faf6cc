//! The programs of stores, built or downloaded once.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::programs::folder_of;

/// Returns the path of Litestream. The first call may take minutes.
pub fn litestream() -> PathBuf {
    built().join("litestream")
}

pub(super) fn rclone() -> PathBuf {
    built().join("rclone")
}

/// Returns the path of the emulator of Google Cloud Storage.
pub(super) fn google() -> PathBuf {
    built().join("fake-gcs-server")
}

/// Returns the path of the script of Azurite's blob service.
pub(super) fn azurite() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| folder_of("azurite/fetch"));
    folder.join("node_modules/azurite/dist/src/blob/main.js")
}

fn built() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| folder_of("litestream/build"))
}
