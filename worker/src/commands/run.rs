//! `litejoin run`: the pipeline of its arguments, at the start and at a reload.

use std::path::Path;

use litejoin_crds::hash::config_hash;

use super::arguments::Run;
use crate::manifest;
use crate::manifest::watch::{self, Look};
use crate::pipeline::{self, InvalidConfig, Pipeline, Reload};
use crate::replication::Tools;

impl Run {
    /// Returns an error for arguments that exclude each other.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.watch && self.reads_stdin() {
            true => Err("error: --watch needs manifests that can be read again, and standard input can't; write them \
                         to a file\n"
                .to_owned()),
            false => Ok(()),
        }
    }

    /// Returns the settings of replication.
    pub(crate) fn tools(&self) -> Tools {
        Tools { litestream: self.litestream.program.clone(), expects_replica: self.expect_replica }
    }

    /// Looks at all that the pipeline is loaded from.
    pub(crate) fn look(&self) -> Look {
        watch::look(&self.files, self.secrets_dir.as_deref())
    }

    /// Loads the pipeline for the start.
    pub(crate) fn load(&self) -> Result<(Pipeline, String), String> {
        let (mut pipeline, warnings) = match self.leave_out_invalid {
            true => pipeline::load_valid(&self.files, self.data_dir.as_deref())?,
            false => pipeline::load(&self.files)?,
        };
        if let Some(data_dir) = &self.data_dir {
            pipeline.plan.storage.data_dir.clone_from(data_dir);
        }
        pipeline.once = self.once;
        Ok((pipeline, warnings))
    }

    /// Loads the pipeline for a reload.
    pub(crate) fn load_again(&self) -> Reload {
        if self.reads_stdin() {
            let complaints = "<stdin>: the manifests came by standard input, which can't be read again; restart to apply\n";
            return Err(InvalidConfig { hash: None, complaints: complaints.to_owned() });
        }
        self.load().map_err(|complaints| {
            let manifest = manifest::load(&self.files).ok();
            InvalidConfig { hash: manifest.map(|manifest| config_hash(&manifest.documents)), complaints }
        })
    }

    fn reads_stdin(&self) -> bool {
        self.files.iter().any(|file| file == Path::new("-"))
    }
}
