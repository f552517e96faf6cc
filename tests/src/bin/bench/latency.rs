//! Latency: orders posted by a timetable, and the arrival of their results from the SSE sink.

mod marker_times;

use std::io::{BufRead, Write as _};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use litejoin_tests::wait::until_moment;

use self::marker_times::{MarkerTimes, marker_of};
use crate::client::{self, Connection};
use crate::percentile::Durations;
use crate::queries::BenchQuery;
use crate::row::Row;
use crate::shop::Shop;
use crate::table::{Spread, layout};
use crate::worker::{BenchWorker, Pipeline};
use crate::{results, site};

const QUERY: BenchQuery = BenchQuery::W1;

/// Amounts from here on, in cents, are markers: no order of the shop itself costs so much.
const FIRST_MARKER: u64 = 100_000_000;

/// Options of `bench latency`.
#[derive(Debug, Args)]
pub(crate) struct LatencyOptions {
    /// Orders that are stored before the load begins
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    orders: u64,

    /// Changes a second at the peak; measured first where absent
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    peak: Option<u64>,

    /// Changes by which the peak is measured
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1..))]
    peak_events: u64,

    /// The load is the peak divided by this
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    divisor: u64,

    /// Seconds of load in each round
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,

    /// Milliseconds between two bodies; a slow load has one message a body, and more time between them
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..))]
    tick: u64,

    /// storage.flushInterval of the worker, in milliseconds
    #[arg(long, default_value_t = 10)]
    flush_interval: u64,

    #[command(flatten)]
    site: site::SiteOptions,
}

/// The times at which bodies are posted.
#[derive(Debug, Clone, Copy)]
struct Timetable {
    orders_a_body: u64,
    period: Duration,
}

/// Orders with consecutive markers, and the bodies that contain them.
struct LatencyLoad {
    markers: Range<u64>,
    bodies: Vec<Vec<u8>>,
}

/// The figures of one round.
struct LatencyRound {
    latencies: Durations,
    /// Cores that the worker used.
    cores: f64,
    /// The greatest delay of the client behind its timetable.
    late: Duration,
}

/// Measures the rounds and prints the table.
pub(crate) fn run(options: &LatencyOptions) -> Result<()> {
    let site = options.site.site()?;
    site.in_run(|run| {
        let pipeline = Pipeline {
            flush_interval: Duration::from_millis(options.flush_interval),
            joins: &[QUERY.join()],
            ..Pipeline::new(site.shard_count)
        };
        let worker = BenchWorker::start(&site.binary, run, &pipeline)?;
        let mut shop = Shop::new(options.orders, options.site.seed);
        let mut rows = shop.customers();
        rows.extend(shop.orders());
        writeln!(std::io::stderr(), "storing {} rows", rows.len())?;
        options.deliver(&worker, &rows)?;
        let peak = match options.peak {
            Some(peak) => peak as f64,
            None => options.measure_peak(&worker, &mut shop)?,
        };
        let rate = peak / options.divisor as f64;
        let timetable = Timetable::of(rate, Duration::from_millis(options.tick));
        let mut rounds = Vec::new();
        let mut first = FIRST_MARKER;
        for round in 1..=options.site.rounds {
            let count = (rate * options.seconds as f64).ceil().max(1.0) as u64;
            let load = options.load(&mut shop, timetable, first..first + count, worker.ingest()?);
            // The event of an order after the last one shows that all others have arrived.
            let end = shop.order_of(options.index(first + count), first + count);
            first += count + 1;
            let measured = options.measure(&worker, timetable, &load, &end)?;
            measured.report(round)?;
            rounds.push(measured);
        }
        options.print(peak, rate, &rounds)
    })
}

impl Timetable {
    /// Returns a timetable of one body each `tick`, with as many orders as `rate` a second gives, but at least one.
    fn of(rate: f64, tick: Duration) -> Self {
        let orders_a_body = (rate * tick.as_secs_f64()).round().max(1.0);
        Self { orders_a_body: orders_a_body as u64, period: Duration::from_secs_f64(orders_a_body / rate) }
    }

    /// Returns when body `index` is posted, after the start.
    fn due(&self, index: u64) -> Duration {
        self.period.mul_f64(index as f64)
    }
}

impl LatencyOptions {
    /// Returns the order of a marker. Orders take turns, so that a marker's order repeats as late as possible.
    fn index(&self, marker: u64) -> usize {
        usize::try_from(marker % self.orders).expect("as many as fit into memory")
    }

    fn deliver(&self, worker: &BenchWorker, rows: &[Row]) -> Result<Duration> {
        let requests = client::requests(rows, self.site.sending(), worker.ingest()?);
        let started = Instant::now();
        results::deliver(worker, QUERY.name(), &requests)?;
        Ok(started.elapsed())
    }

    /// Returns changes a second, as `bench joins` counts them.
    fn measure_peak(&self, worker: &BenchWorker, shop: &mut Shop) -> Result<f64> {
        let rows: Vec<Row> = (0..self.peak_events).map(|_| shop.event()).collect();
        let took = self.deliver(worker, &rows)?;
        let peak = rows.len() as f64 / took.as_secs_f64();
        writeln!(std::io::stderr(), "peak: {peak:.0} changes/s")?;
        Ok(peak)
    }

    /// Returns the bodies of one round, with a customer among the orders now and then.
    fn load(
        &self,
        shop: &mut Shop,
        timetable: Timetable,
        markers: Range<u64>,
        address: SocketAddr,
    ) -> LatencyLoad {
        let mut bodies = Vec::new();
        let mut begin = markers.start;
        while begin < markers.end {
            let end = markers.end.min(begin + timetable.orders_a_body);
            let mut rows: Vec<Row> = Vec::new();
            for marker in begin..end {
                rows.extend(shop.rare_customer());
                rows.push(shop.order_of(self.index(marker), marker));
            }
            bodies.push(client::request(&rows.iter().collect::<Vec<_>>(), address));
            begin = end;
        }
        LatencyLoad { markers, bodies }
    }

    /// Posts the load and then `end`, and reads all events until that of `end`.
    fn measure(
        &self,
        worker: &BenchWorker,
        timetable: Timetable,
        load: &LatencyLoad,
        end: &Row,
    ) -> Result<LatencyRound> {
        let (status, mut stream) = client::get(worker.live()?, &format!("/subscribe?join={}", QUERY.name()))?;
        ensure!(status == 200, "the worker lets nobody subscribe: {status}");
        let applied = AtomicBool::new(false);
        let mut markers = MarkerTimes::new(load.markers.clone(), self.orders);
        let (start, cpu) = (Instant::now(), worker.cpu_time()?);
        let (late, cores) = std::thread::scope(|scope| {
            let reader = scope.spawn(|| read_events(&mut stream, &mut markers, &applied));
            let late = self.post(worker, timetable, load, start)?;
            let cpu = worker.cpu_time()?.saturating_sub(cpu);
            let cores = cpu.as_secs_f64() / start.elapsed().as_secs_f64();
            let epoch =
                Connection::open(worker.ingest()?)?.send(&client::request(&[end], worker.ingest()?))?;
            results::wait_until_applied(worker, QUERY.name(), epoch)?;
            applied.store(true, Ordering::Relaxed);
            reader.join().expect("a reader does not panic")?;
            anyhow::Ok((late, cores))
        })?;
        let due = |n: u64| start + timetable.due(n / timetable.orders_a_body);
        let latencies =
            markers.times()?.enumerate().map(|(n, at)| at.saturating_duration_since(due(n as u64)));
        Ok(LatencyRound { latencies: Durations::of(latencies.collect()), cores, late })
    }

    /// Posts each body at its time, waits for the answers, and until all changes are applied. Returns the greatest
    /// delay of a post.
    fn post(
        &self,
        worker: &BenchWorker,
        timetable: Timetable,
        load: &LatencyLoad,
        start: Instant,
    ) -> Result<Duration> {
        let address = worker.ingest()?;
        let next = AtomicUsize::new(0);
        let post = || -> Result<(Duration, u64)> {
            let mut connection = Connection::open(address)?;
            let (mut late, mut epoch) = (Duration::ZERO, 0);
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(body) = load.bodies.get(index) else { return Ok((late, epoch)) };
                let due = start + timetable.due(index as u64);
                until_moment(due);
                late = late.max(due.elapsed());
                epoch = epoch.max(connection.send(body)?);
            }
        };
        let (late, epoch) = std::thread::scope(|scope| {
            let clients: Vec<_> = (0..self.site.connections).map(|_| scope.spawn(post)).collect();
            let mut all = (Duration::ZERO, 0);
            for client in clients {
                let (late, epoch) = client.join().expect("a client does not panic")?;
                all = (all.0.max(late), all.1.max(epoch));
            }
            anyhow::Ok(all)
        })?;
        results::wait_until_applied(worker, QUERY.name(), epoch)?;
        Ok(late)
    }

    fn print(&self, peak: f64, rate: f64, rounds: &[LatencyRound]) -> Result<()> {
        let interval = Duration::from_millis(self.flush_interval);
        let row = |name: &str, less: Duration| {
            let figure = |percent: f64| {
                let of = |measured: &LatencyRound| {
                    milliseconds(measured.latencies.percentile(percent)) - milliseconds(less)
                };
                Spread::of(rounds.iter().map(of)).show(1)
            };
            vec![name.to_owned(), figure(50.0), figure(99.0), figure(100.0)]
        };
        let heading = ["min / median / max", "p50 ms", "p99 ms", "max ms"].map(str::to_owned).to_vec();
        let table = [
            heading,
            row("POST to event", Duration::ZERO),
            row(&format!("less {interval:?} of flushInterval"), interval),
        ];
        let mut out = std::io::stdout().lock();
        let (cores, late) = (
            Spread::of(rounds.iter().map(|measured| measured.cores)).median,
            Spread::of(rounds.iter().map(|measured| milliseconds(measured.late))).max,
        );
        let Self { orders, seconds, divisor, .. } = self;
        writeln!(
            out,
            "\n{rate:.0} orders/s for {seconds} s (the peak of {peak:.0} divided by {divisor}), {} rounds, {orders} \
             orders stored, {} shards.\nThe worker used {cores:.2} cores; the client was late by {late:.1} ms at \
             most, which counts as latency.\n",
            rounds.len(),
            self.site.shards,
        )?;
        out.write_all(layout(&table).as_bytes())?;
        Ok(())
    }
}

impl LatencyRound {
    /// Prints a round while others are still to come.
    fn report(&self, round: u32) -> Result<()> {
        let [p50, p99, max] =
            [50.0, 99.0, 100.0].map(|percent| milliseconds(self.latencies.percentile(percent)));
        writeln!(
            std::io::stderr(),
            "round {round}: p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms; {:.2} cores, late by {:.1} ms at most",
            self.cores,
            milliseconds(self.late),
        )?;
        Ok(())
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Reads events until the one after the last marker. A heartbeat after all changes were `applied` means that this
/// event will not come: the worker sends a heartbeat when it had nothing to send for a while.
fn read_events(stream: &mut impl BufRead, markers: &mut MarkerTimes, applied: &AtomicBool) -> Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).context("the stream of events broke off")? == 0 {
            bail!("the worker has ended the stream of events");
        }
        if line.starts_with(':') && applied.load(Ordering::Relaxed) {
            bail!("the worker has applied all changes, and did not tell the last of them");
        }
        let Some(marker) = marker_of(&line) else { continue };
        if markers.take(marker, Instant::now()) {
            return Ok(());
        }
    }
}
