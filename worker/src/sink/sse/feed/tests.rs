//! A feed whose client is slow, or has gone.

use litejoin_crds::plan::{Serving, SseSink, Synchronous};
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::results::event::ResultChange;
use crate::results::event::{Envelope, Op};
use crate::results::release::Release;
use crate::results::{Applied, Results};
use crate::sink::sse::Snapshots;
use crate::sink::sse::queue::queue;
use crate::storage::replication_barrier::ReplicationBarrier;

/// How long a test waits for what must come.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A sink of one join, with results of so many bytes each.
fn sink(results: usize, bytes: usize, release: Release) -> (TempDir, Arc<SseState>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.db");
    let (store, _) = Results::open(&path, Synchronous::Normal, "lin").unwrap();
    let join = store.register(&[("j", "definition".to_owned())], 1).unwrap()[0].id;
    let rows = format!("[\"{}\"]", "x".repeat(bytes));
    store
        .with_epoch::<_, SqliteError>(1, 0, |writer| {
            for number in 0..results {
                let key = number.to_string();
                writer.store(join, [&ResultChange::event(Op::Created, &key, &rows)])?;
            }
            Ok(())
        })
        .unwrap();
    let envelope = Envelope {
        lineage: "lin".to_owned(),
        join_name: "j".to_owned(),
        result_key: None,
        shape: Arc::default(),
    };
    let reader = Arc::new(Reader::open(&path, 1).unwrap());
    let serving =
        Serving { bearer: None, tls: None, connections_max: 1, client_timeout: Duration::from_secs(1) };
    let state = SseState {
        routes: watch::channel(Arc::new(Routes::from_iter([(join, envelope)]))).1,
        lineage: "lin".to_owned(),
        snapshots: Snapshots::new(Arc::clone(&reader), folder.path().to_owned()),
        reader,
        applied: watch::channel(Applied::default()).1,
        release,
        stopping: watch::channel(false).1,
        status: Arc::default(),
        spec: SseSink {
            addr: String::new(),
            cors_origins: Vec::new(),
            heartbeat_interval: Duration::from_secs(1),
            clients_max: 1,
            serving: Box::new(serving),
        },
    };
    (folder, Arc::new(state))
}

/// A feed that replays all of it.
fn feed(state: &Arc<SseState>, queue: EventQueue) -> Feed {
    let (in_force, routes) = (state.routes.clone(), state.routes());
    let joins = routes.joins().to_vec();
    let (state, wanted, numbers) = (Arc::clone(state), SubscribedJoins::All, Numbers::Json);
    Feed { state, in_force, wanted, routes, joins, numbers, queue }
}

#[tokio::test]
async fn a_client_that_has_gone_does_not_wait_for_the_replica() {
    let (_folder, state) = sink(1, 1, Release::after(ReplicationBarrier::default()));
    let (queue, receiver) = queue();
    let run = tokio::spawn(feed(&state, queue).run(Start::Replay));
    drop(receiver);
    tokio::time::timeout(TIMEOUT, run).await.expect("the feed ends").unwrap();
}
