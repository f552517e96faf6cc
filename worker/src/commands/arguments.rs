//! The command line as types, whose doc comments are the texts of `--help`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use litejoin_crds::plan::Plan;

use crate::replication::PointInTime;

/// Joins live data with plain SQL, on one machine, durably.
///
/// A pipeline is a manifest: sources fill topics (tables), joins are SQL over them, sinks get every result that
/// changes. The same manifest runs on a laptop and on Kubernetes.
#[derive(Debug, Parser)]
#[command(
    name = "litejoin",
    version,
    after_help = "Examples:\n  litejoin run -f examples/flights            real flights, joined while you watch\n  \
                  litejoin run -f pipeline.yaml -f sinks/      several files and folders make one pipeline\n  \
                  litejoin validate -f pipeline.yaml           say everything that is wrong, run nothing"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,

    /// What to log: error, warn, info, debug, trace, or a tracing filter
    #[arg(
        long,
        global = true,
        value_name = "FILTER",
        default_value = "info",
        env = "LITEJOIN_LOG",
        hide_env_values = true
    )]
    pub(crate) log: String,

    /// How to log: for people, for machines, or for people on a terminal and for machines elsewhere
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        env = "LITEJOIN_LOG_FORMAT",
        hide_env_values = true
    )]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Auto,
    Human,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a pipeline until ctrl-C
    ///
    /// Data goes to storage.dataDir (./data unless the manifest says otherwise), below the working directory.
    /// Ctrl-C stops in order: sources, what is on its way, sinks. Nothing that was acknowledged is ever lost, not
    /// even by kill -9.
    ///
    /// SIGHUP reads the manifests again and applies what has changed while data flows: joins, sources, sinks,
    /// retention and delivery. What is the same is not disturbed, and manifests that are wrong change nothing.
    #[command(
        after_help = "Exit codes: 0 stopped as asked, 1 could not start, or (--once) messages were refused, 2 the manifests are wrong, 130 a second ctrl-C"
    )]
    Run(Run),
    /// Check manifests and say everything that is wrong with them, with file and line
    #[command(after_help = "Exit codes: 0 fine, 2 wrong")]
    Validate(Validate),
    /// Show how joins are kept current, what a change costs them, and what to mind
    ///
    /// A join is keyed where the results that a change concerns can be told from the query: they alone are evaluated,
    /// by look-ups in the shards. Otherwise it is full: each change costs an evaluation over all rows, and the reason
    /// and its remedy are told.
    ///
    /// With --data-dir it also says which indexes are built there and how large they are; where a worker runs on it
    /// (or with --admin), what its evaluations have cost. Nothing is changed, and nothing waits.
    #[command(
        after_help = "Examples:\n  litejoin explain -f pipeline.yaml                         what the manifests alone tell\n  \
                      litejoin explain -f pipeline.yaml enriched --data-dir data   one join, with its indexes and costs\n  \
                      litejoin explain -f pipeline.yaml --deny-warnings            for CI: fails when a join is full\n\n\
                      Exit codes: 0 fine, 1 warnings (with --deny-warnings), or nothing could be read, 2 the manifests \
                      or the names of joins are wrong"
    )]
    Explain(Explain),
    /// Compare stored results with what their queries yield over all rows
    ///
    /// There must be no difference. The worker that runs on the data directory is asked; it reads while it goes on,
    /// one join after another, shows what it found in /status and metrics, and puts right what differs (unless
    /// spec.audit.repair is false). It also does this by itself while nothing is written.
    ///
    /// Where no worker runs, the files are compared as they are, and nothing is changed; that needs the manifests.
    #[command(
        after_help = "Examples:\n  litejoin audit --data-dir data                  all joins of the worker that runs there\n  \
                      litejoin audit enriched --data-dir data         one of them\n  \
                      litejoin audit -f pipeline.yaml                 the files of storage.dataDir, worker or not\n\n\
                      Exit codes: 0 no difference, 1 differences, or something could not be compared, 2 the manifests \
                      or the names of joins are wrong"
    )]
    Audit(Audit),
    /// Look into the dead-letter queue: results that a sink did not take, messages that a source could not read
    ///
    /// A result that fails goes there and is tried again by delivery.dlq of the Pipeline; it holds back its own key
    /// alone, and a newer result of the key takes its place. One that a sink refuses, or that has used up its retries,
    /// stays until it is retried by hand, replaced, or too old.
    ///
    /// The worker that runs on the data directory is asked; where none runs, the file itself is used.
    #[command(
        after_help = "Examples:\n  litejoin dlq list --data-dir data                          what there is\n  \
                      litejoin dlq show --data-dir data 0cjq25b6fyc1d.120.7      one of it, with its rows\n  \
                      litejoin dlq retry --data-dir data --sink hook --given-up  again, now that the sink is well\n  \
                      litejoin dlq export --data-dir data > letters.ndjson       all of it, a line of JSON each\n  \
                      litejoin dlq purge --data-dir data --older-than 24h        throw old ones away\n\n\
                      Exit codes: 0 done, 1 it could not be done, 2 the arguments or manifests are wrong"
    )]
    Dlq(Dlq),
    /// Bring the data back from the replica
    ///
    /// A worker does this by itself where its data directory is gone. By hand it goes back to an earlier time
    /// (--timestamp): what the directory holds is set aside, results are evaluated anew, and sources go on where the
    /// restored data ends. No worker may run meanwhile. With --to the files go elsewhere, and nothing else is touched;
    /// with --verify they are restored beside the data, checked, compared and thrown away.
    #[command(
        after_help = "Examples:\n  litejoin restore -f pipeline.yaml --timestamp 2026-05-01T12:00:00Z   back to noon\n  \
                      litejoin restore -f pipeline.yaml --to /tmp/copy                      a copy to look into\n  \
                      litejoin restore -f pipeline.yaml --verify                            would a restore work?\n\n\
                      Exit codes: 0 restored, 1 it could not be done, or the copy is not sound, 2 the manifests are wrong"
    )]
    Restore(Restore),
    /// Move the data to another number of shards
    ///
    /// Where keys lie depends on that number, so it can't simply be edited: all rows are copied into other files beside
    /// the data, the copy is compared with the data, and one step puts it in place. No worker may run meanwhile. A crash
    /// at any point leaves the data as it was or as it is to be, and the command can be run again.
    ///
    /// The layout of before is kept for a while, and --undo goes back to it.
    #[command(
        after_help = "Examples:\n  litejoin reshard --data-dir data --to 16 --plan   what it would take\n  \
                      litejoin reshard --data-dir data --to 16          do it\n  \
                      litejoin reshard -f pipeline.yaml                 the same, to storage.shardCount\n  \
                      litejoin reshard --data-dir data --undo           back to the layout of before\n\n\
                      Exit codes: 0 done, 1 it could not be done, 2 the arguments or manifests are wrong, 130 ctrl-C, \
                      143 SIGTERM"
    )]
    Reshard(Reshard),
    /// Look at the replica, or make a directory ready for a Litestream of your own
    Replication {
        #[command(subcommand)]
        action: ReplicationAction,
    },
    /// Print a completion script for your shell
    ///
    /// For example: litejoin completions bash > /etc/bash_completion.d/litejoin
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, Parser)]
pub(crate) struct Run {
    /// Manifest, or folder of manifests (*.yaml, *.yml, *.json); `-` is standard input. May be repeated
    #[arg(short = 'f', long = "file", value_name = "PATH", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// Keep the data here instead of storage.dataDir
    #[arg(long, value_name = "DIR", env = "LITEJOIN_DATA_DIR", hide_env_values = true)]
    pub(crate) data_dir: Option<PathBuf>,

    /// Where Secrets are, each a folder with a file for each key; for manifests with secretKeyRef
    #[arg(long, value_name = "DIR", env = "LITEJOIN_SECRETS_DIR", hide_env_values = true)]
    pub(crate) secrets_dir: Option<PathBuf>,

    /// Stop when every source has come to its end and every sink has its results
    #[arg(long)]
    pub(crate) once: bool,

    /// Hold back sources, joins, windows and sinks that are wrong: what they were before runs on, or the rest runs without
    /// them. /status says which those are. Wrong settings of the Pipeline still stop all
    #[arg(long)]
    pub(crate) leave_out_invalid: bool,

    #[command(flatten)]
    pub(crate) litestream: LitestreamProgram,

    /// Do not start empty: somebody knows that there is a replica (for spec.replication)
    #[arg(long, env = "LITEJOIN_EXPECT_REPLICA", hide_env_values = true)]
    pub(crate) expect_replica: bool,

    /// Apply changes of the manifests while running, as SIGHUP does when it is sent
    #[arg(long, conflicts_with = "once")]
    pub(crate) watch: bool,
}

/// What commands about a replica share.
#[derive(Debug, Args)]
pub(crate) struct ReplicaOf {
    /// Manifest, or folder of manifests (*.yaml, *.yml, *.json); `-` is standard input. May be repeated
    #[arg(short = 'f', long = "file", value_name = "PATH", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// The data is here instead of in storage.dataDir
    #[arg(long, value_name = "DIR", env = "LITEJOIN_DATA_DIR", hide_env_values = true)]
    pub(crate) data_dir: Option<PathBuf>,

    /// Where Secrets are, each a folder with a file for each key
    #[arg(long, value_name = "DIR", env = "LITEJOIN_SECRETS_DIR", hide_env_values = true)]
    pub(crate) secrets_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) litestream: LitestreamProgram,
}

#[derive(Debug, Parser)]
pub(crate) struct Restore {
    #[command(flatten)]
    pub(crate) replica: ReplicaOf,

    /// Go back to this time, such as 2026-05-01T12:00:00Z: the last commits that are not later
    #[arg(long, value_name = "TIME")]
    pub(crate) timestamp: Option<PointInTime>,

    /// Put the files here, and touch nothing else
    #[arg(long, value_name = "DIR")]
    pub(crate) to: Option<PathBuf>,

    /// Restore beside the data, check and compare
    #[arg(long, conflicts_with = "to")]
    pub(crate) verify: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ReplicationAction {
    /// Show which incarnations there are, which one counts, and how far the worker's is
    Status {
        #[command(flatten)]
        replica: ReplicaOf,
        /// What to print: text for people, or JSON
        #[arg(long, value_enum, default_value = "text")]
        output: OutputFormat,
    },
    /// Restore what is missing, and write litestream.yml, for replication.mode: sidecar
    ///
    /// Then Litestream is started with it, and the worker beside it or below it.
    #[command(after_help = "Example:\n  litejoin replication prepare -f pipeline.yaml\n  \
                      litestream replicate -no-expand-env -config data/litestream.yml -exec 'litejoin run -f pipeline.yaml'")]
    Prepare {
        #[command(flatten)]
        replica: ReplicaOf,
        /// Do not start empty: somebody knows that there is a replica
        #[arg(long, env = "LITEJOIN_EXPECT_REPLICA", hide_env_values = true)]
        expect_replica: bool,
    },
}

/// Which Litestream is used.
#[derive(Debug, Args)]
pub(crate) struct LitestreamProgram {
    /// The program Litestream, for spec.replication [default: litestream on the PATH]
    #[arg(long = "litestream", value_name = "PATH", env = "LITEJOIN_LITESTREAM", hide_env_values = true)]
    pub(crate) program: Option<PathBuf>,
}

#[derive(Debug, Parser)]
pub(crate) struct Validate {
    /// Manifest, or folder of manifests (*.yaml, *.yml, *.json); `-` is standard input. May be repeated
    #[arg(short = 'f', long = "file", value_name = "PATH", required = true)]
    pub(crate) files: Vec<PathBuf>,
}

#[derive(Debug, Parser)]
pub(crate) struct Explain {
    /// Joins to explain; all if none is named
    #[arg(value_name = "JOIN")]
    pub(crate) joins: Vec<String>,

    /// Manifest, or folder of manifests (*.yaml, *.yml, *.json); `-` is standard input. May be repeated
    #[arg(short = 'f', long = "file", value_name = "PATH", required = true)]
    pub(crate) files: Vec<PathBuf>,

    /// Look at the indexes here, and ask the worker that runs here, if one does
    #[arg(long, value_name = "DIR", env = "LITEJOIN_DATA_DIR", hide_env_values = true)]
    pub(crate) data_dir: Option<PathBuf>,

    /// Ask the worker whose spec.admin.addr this is, such as http://127.0.0.1:9090
    #[arg(long, value_name = "URL")]
    pub(crate) admin: Option<String>,

    /// What to print: text for people, or JSON
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: OutputFormat,

    /// End with exit code 1 if there is any warning
    #[arg(long)]
    pub(crate) deny_warnings: bool,
}

#[derive(Debug, Parser)]
pub(crate) struct Audit {
    /// Joins to compare; all if none is named
    #[arg(value_name = "JOIN")]
    pub(crate) joins: Vec<String>,

    #[command(flatten)]
    pub(crate) data: ExistingData,

    /// Manifest, or folder of manifests, to compare by where no worker runs. May be repeated
    #[arg(short = 'f', long = "file", value_name = "PATH")]
    pub(crate) files: Vec<PathBuf>,

    /// What to print: text for people, or a line of JSON for each join
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: OutputFormat,
}

#[derive(Debug, Parser)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Reshard {
    /// Manifest, or folder of manifests (*.yaml, *.yml, *.json); `-` is standard input. May be repeated
    #[arg(short = 'f', long = "file", value_name = "PATH")]
    pub(crate) files: Vec<PathBuf>,

    #[command(flatten)]
    pub(crate) data: ExistingData,

    /// Shards that the data is to have [default: storage.shardCount of the manifests]
    #[arg(long, value_name = "N", required_unless_present_any = ["files", "undo"], conflicts_with = "undo")]
    pub(crate) to: Option<usize>,

    /// Say what it takes, and do nothing
    #[arg(long, conflicts_with_all = ["verify_only", "undo", "no_switch", "serve"])]
    pub(crate) plan: bool,

    /// Compare a copy that is there with the data once more
    #[arg(long, conflicts_with_all = ["undo", "no_switch"])]
    pub(crate) verify_only: bool,

    /// Go back to the layout of before: at once where nothing was written since, by moving the data where something was
    #[arg(long)]
    pub(crate) undo: bool,

    /// Leave the verified copy beside the data: the next start whose manifest has storage.reshard and the new number puts
    /// it in place
    #[arg(long, conflicts_with = "undo")]
    pub(crate) no_switch: bool,

    /// Answer the addresses of the manifests meanwhile: 503 for clients, /healthz and /status for the admin
    #[arg(long, requires = "files")]
    pub(crate) serve: bool,

    /// How long the layout of before is kept [default: storage.reshard.keepOldLayout, or 24h]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) keep_old_layout: Option<Duration>,

    /// Where Secrets are, each a folder with a file for each key; for --serve
    #[arg(long, value_name = "DIR", env = "LITEJOIN_SECRETS_DIR", hide_env_values = true)]
    pub(crate) secrets_dir: Option<PathBuf>,
}

#[derive(Debug, Parser)]
pub(crate) struct Dlq {
    #[command(subcommand)]
    pub(crate) action: DlqAction,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DlqAction {
    /// Show what is in the queue
    List {
        #[command(flatten)]
        queue: DlqQueue,
        #[command(flatten)]
        filter: DlqFilter,
        /// Entries to show at most
        #[arg(long, default_value = "1000")]
        limit: usize,
        /// What to print: text for people, or a line of JSON for each entry
        #[arg(long, value_enum, default_value = "text")]
        output: OutputFormat,
    },
    /// Show entries with their contents, as JSON
    Show {
        #[command(flatten)]
        queue: DlqQueue,
        /// Ids, as `list` shows them
        #[arg(value_name = "ID", required = true)]
        ids: Vec<String>,
    },
    /// Try results again at once, with all their retries before them
    Retry {
        #[command(flatten)]
        queue: DlqQueue,
        #[command(flatten)]
        filter: DlqFilter,
        /// Every result there is
        #[arg(long)]
        all: bool,
    },
    /// Throw entries away; a sink never gets what is purged
    Purge {
        #[command(flatten)]
        queue: DlqQueue,
        #[command(flatten)]
        filter: DlqFilter,
        /// Everything there is
        #[arg(long)]
        all: bool,
    },
    /// Print entries with their contents, a line of JSON each
    Export {
        #[command(flatten)]
        queue: DlqQueue,
        #[command(flatten)]
        filter: DlqFilter,
    },
}

/// A data directory that is there already, said by itself or by the manifests (`files` of the command).
#[derive(Debug, Args)]
pub(crate) struct ExistingData {
    /// The data directory of the pipeline [default: storage.dataDir of the manifests]
    #[arg(
        long,
        value_name = "DIR",
        env = "LITEJOIN_DATA_DIR",
        hide_env_values = true,
        required_unless_present = "files"
    )]
    data_dir: Option<PathBuf>,
}

impl ExistingData {
    /// Returns the data directory; `plan` comes from the manifests, if any were given.
    pub(crate) fn folder<'a>(&'a self, plan: Option<&'a Plan>) -> &'a Path {
        let of_manifest = plan.map(|plan| &plan.storage.data_dir);
        self.data_dir.as_ref().or(of_manifest).expect("clap asks for one of both")
    }
}

/// Where the queue is.
#[derive(Debug, Parser)]
pub(crate) struct DlqQueue {
    #[command(flatten)]
    pub(crate) data: ExistingData,

    /// Manifest, or folder of manifests, that says where the data and the queue are. May be repeated
    #[arg(short = 'f', long = "file", value_name = "PATH")]
    pub(crate) files: Vec<PathBuf>,
}

/// Which entries are meant: those for which all that is given holds.
#[derive(Debug, Parser)]
pub(crate) struct DlqFilter {
    /// Results of this sink
    #[arg(long)]
    pub(crate) sink: Option<String>,

    /// Results of this join
    #[arg(long)]
    pub(crate) join: Option<String>,

    /// Results of this key
    #[arg(long)]
    pub(crate) key: Option<String>,

    /// Messages of this source
    #[arg(long, conflicts_with_all = ["sink", "join", "key", "given_up"])]
    pub(crate) source: Option<String>,

    /// Entries whose reason has this text in it
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,

    /// Entries that are in the queue for longer than this, such as 90m or 24h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) older_than: Option<Duration>,

    /// Results that are not tried again by themselves
    #[arg(long)]
    pub(crate) given_up: bool,

    /// The entry of this id, as `list` shows it. May be repeated
    #[arg(long = "id", value_name = "ID")]
    pub(crate) ids: Vec<String>,
}

/// How to print what was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    Text,
    Json,
}

fn duration(text: &str) -> Result<Duration, String> {
    litejoin_crds::duration::parse(text)
}
