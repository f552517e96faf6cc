//! The setup of measurements: options that all subcommands share, the worker's program, and a folder for data.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use tempfile::TempDir;

use crate::client::Sending;
use crate::worker;

/// Options of every subcommand.
#[derive(Debug, Args)]
#[group(id = "site")]
pub(crate) struct SiteOptions {
    /// Rounds; each measures everything once
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) rounds: u32,

    /// Shards; raw has a writer for each
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) shards: u8,

    /// Connections of the HTTP client; each waits for an answer before it sends the next body
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) connections: u16,

    /// Messages in one HTTP body
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch: u32,

    /// Seed of the rows
    #[arg(long, default_value_t = 42)]
    pub(crate) seed: u64,

    /// Measure this worker instead of the one that is built here
    #[arg(long, value_name = "PATH")]
    litejoin: Option<PathBuf>,

    /// Put the data into a new folder in here; beside this program where absent, since /tmp may be in memory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A temporary folder, and the worker to run in it.
pub(crate) struct BenchSite {
    pub(crate) binary: PathBuf,
    folder: TempDir,
    pub(crate) shard_count: usize,
}

impl SiteOptions {
    /// Returns how the client sends.
    pub(crate) fn sending(&self) -> Sending {
        Sending { connections: usize::from(self.connections), batch: self.batch as usize }
    }

    /// Builds the worker, unless an option names another one, and creates the folder.
    pub(crate) fn site(&self) -> Result<BenchSite> {
        let binary = match &self.litejoin {
            Some(path) => path.clone(),
            None => worker::build()?,
        };
        let beside = std::env::current_exe()?.with_file_name("");
        let folder = tempfile::Builder::new()
            .prefix("bench-")
            .tempdir_in(self.dir.as_deref().unwrap_or(&beside))
            .context("could not make a folder for the data")?;
        Ok(BenchSite { binary, folder, shard_count: usize::from(self.shards) })
    }
}

impl BenchSite {
    /// Returns the path of the folder.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Runs `work` in a subfolder, which is removed afterwards.
    pub(crate) fn in_run<T>(&self, work: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let run = self.path().join("run");
        std::fs::create_dir(&run).with_context(|| format!("could not make {}", run.display()))?;
        let outcome = work(&run)?;
        std::fs::remove_dir_all(&run).with_context(|| format!("could not remove {}", run.display()))?;
        Ok(outcome)
    }
}
