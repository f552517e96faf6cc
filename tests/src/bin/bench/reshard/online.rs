//! Re-shard beside a worker that serves: the pace of ingest with it against the pace without, and for how long no message
//! is answered.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use litejoin_tests::wait::until_moment;

use super::{QUERY, ReshardOptions};
use crate::client::{self, Connection, Requests};
use crate::results;
use crate::shop::{CUSTOMER_COUNT, Shop};
use crate::site::BenchSite;
use crate::table::{Figure, spreads};
use crate::worker::{BenchWorker, Pipeline};

/// How long the pace without a move is measured, and how long one goes on before it counts.
const ALONE: Duration = Duration::from_secs(10);
const WARM_UP: Duration = Duration::from_secs(2);

/// How often the worker is asked how far it is.
const LOOK: Duration = Duration::from_millis(50);

/// Messages that are sent over and over.
const EVENTS: u64 = 200_000;

/// The figures of one round.
struct OnlineRound {
    /// Messages a second without a move.
    alone: f64,
    /// Messages a second from its beginning to its pause.
    beside: f64,
    /// From its beginning to its pause.
    took: Duration,
    /// The longest time in which a message was not answered.
    pause: Duration,
    /// The longest such time without a move.
    pause_alone: Duration,
}

/// What clients have seen so far.
#[derive(Default)]
struct Seen {
    is_over: AtomicBool,
    rows: AtomicU64,
    /// In microseconds.
    longest: AtomicU64,
}

/// Measures the rounds and prints the table.
pub(super) fn run(options: &ReshardOptions, site: &BenchSite) -> Result<()> {
    let to = usize::from(options.to);
    site.in_run(|run| {
        let joins = [QUERY.join()];
        let pipeline = |shards| Pipeline { joins: &joins, ..Pipeline::new(shards) };
        let mut shop = Shop::new(options.rows - CUSTOMER_COUNT, options.site.seed);
        let mut rows = shop.customers();
        rows.extend(shop.orders());
        writeln!(std::io::stderr(), "storing {} rows", rows.len())?;
        let (mut has, mut wanted) = (site.shard_count, to);
        let worker = BenchWorker::start(&site.binary, run, &pipeline(has))?;
        let requests = client::requests(&rows, options.site.sending(), worker.ingest()?);
        results::deliver(&worker, QUERY.name(), &requests)?;
        let events: Vec<_> = (0..EVENTS).map(|_| shop.event()).collect();
        let load = client::requests(&events, options.site.sending(), worker.ingest()?);
        let probe = client::request(&[&events[0]], worker.ingest()?);
        let mut rounds = Vec::new();
        for round in 1..=options.site.rounds {
            let online = Pipeline { online: Some(wanted), ..pipeline(has) };
            let begin = || worker.reload(run, &online);
            let measured = measure(&worker, &load, options.site.batch.into(), &probe, wanted, begin)?;
            measured.report(round)?;
            rounds.push(measured);
            std::mem::swap(&mut has, &mut wanted);
        }
        print(options, &rounds)
    })
}

fn measure(
    worker: &BenchWorker,
    load: &Requests,
    batch: u64,
    probe: &[u8],
    wanted: usize,
    begin: impl FnOnce() -> Result<()>,
) -> Result<OnlineRound> {
    let (address, seen) = (worker.ingest()?, Seen::default());
    let longest = || Duration::from_micros(seen.longest.swap(0, Ordering::Relaxed));
    std::thread::scope(|scope| {
        for requests in load {
            let seen = &seen;
            scope.spawn(move || seen.send(address, requests.iter().cycle(), batch, Duration::ZERO));
        }
        let probes = std::iter::repeat(probe);
        scope.spawn(|| seen.send(address, probes, 0, Duration::from_millis(5)));
        let outcome = (|| {
            until_moment(Instant::now() + WARM_UP);
            longest();
            let (began, rows) = (Instant::now(), seen.rows.load(Ordering::Relaxed));
            until_moment(began + ALONE);
            let alone = (seen.rows.load(Ordering::Relaxed) - rows) as f64 / began.elapsed().as_secs_f64();
            let pause_alone = longest();
            let (began, rows) = (Instant::now(), seen.rows.load(Ordering::Relaxed));
            begin()?;
            let mut beside = (rows, began.elapsed());
            loop {
                until_moment(Instant::now() + LOOK);
                let now = (seen.rows.load(Ordering::Relaxed), began.elapsed());
                let Ok(status) = worker.status() else { continue };
                let told = &status["reshard"];
                let is_this = told["toShardCount"].as_u64() == Some(wanted as u64);
                match told["phase"].as_str().filter(|_| is_this) {
                    Some("Copying" | "CatchingUp" | "Verifying") => beside = now,
                    Some("Failed") => ensure!(false, "the move has failed: {told}"),
                    Some("Done") => break,
                    _ => {}
                }
            }
            until_moment(Instant::now() + WARM_UP);
            let (rows_then, took) = beside;
            let beside = (rows_then - rows) as f64 / took.as_secs_f64();
            Ok(OnlineRound { alone, beside, took, pause: longest(), pause_alone })
        })();
        seen.is_over.store(true, Ordering::Relaxed);
        outcome
    })
}

impl Seen {
    /// Sends requests, each until it is answered, and rests between them.
    fn send<'r>(
        &self,
        address: SocketAddr,
        requests: impl Iterator<Item = impl AsRef<[u8]> + 'r>,
        rows: u64,
        rest: Duration,
    ) {
        let mut connection = None;
        for request in requests {
            let began = Instant::now();
            loop {
                if self.is_over.load(Ordering::Relaxed) {
                    return;
                }
                let open = connection.take().map_or_else(|| Connection::open(address), Ok);
                let answered = open.and_then(|mut open| open.send(request.as_ref()).map(|_| open));
                match answered {
                    Ok(open) => {
                        connection = Some(open);
                        break;
                    }
                    Err(_) => until_moment(Instant::now() + Duration::from_millis(1)),
                }
            }
            self.rows.fetch_add(rows, Ordering::Relaxed);
            if !rest.is_zero() {
                let took = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                self.longest.fetch_max(took, Ordering::Relaxed);
                until_moment(Instant::now() + rest);
            }
        }
    }
}

impl OnlineRound {
    fn share(&self) -> f64 {
        self.beside / self.alone
    }

    /// Prints a round while others are still to come.
    fn report(&self, round: u32) -> Result<()> {
        writeln!(
            std::io::stderr(),
            "round {round}: {:.0} messages/s alone, {:.2} of that beside a move of {:.1?}, a pause of {:.2?}",
            self.alone,
            self.share(),
            self.took,
            self.pause,
        )?;
        Ok(())
    }
}

fn print(options: &ReshardOptions, rounds: &[OnlineRound]) -> Result<()> {
    let figures: [Figure<'_, OnlineRound>; 6] = [
        ("messages/s alone", 0, &|measured| measured.alone),
        ("messages/s beside", 0, &|measured| measured.beside),
        ("share", 2, &OnlineRound::share),
        ("move, s", 1, &|measured| measured.took.as_secs_f64()),
        ("pause, s", 2, &|measured| measured.pause.as_secs_f64()),
        ("longest answer alone, s", 2, &|measured| measured.pause_alone.as_secs_f64()),
    ];
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\n{} rows, {} shards to {} and back while they are served, {} rounds.\n",
        options.rows,
        options.site.shards,
        options.to,
        rounds.len(),
    )?;
    out.write_all(spreads(rounds, &figures).as_bytes())?;
    Ok(())
}
