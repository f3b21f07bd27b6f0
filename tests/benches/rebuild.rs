//! A rebuild, from its start to the swap, against the floor: COPY of all events out in the order of their
//! aggregates, and COPY of the finished rows in, indexes after. Beside it projecting with one transaction per
//! event, and what a rebuild costs those who write meanwhile.
//!
//! `cargo bench --bench rebuild`; EVENTS and MANY_EVENTS change the sizes, ROUNDS how often each is tried.
//! MEANWHILE=1 looks at those who write meanwhile, and at nothing else.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use event_store::log::BatchLimits;
use projections::projector::catch_up;
use projections::rebuild;
use projections::rebuild::compare::compare;
use projections::rebuild::pace::Speed;
use projections::rebuild::running::{Asked, Running};
use projections::rebuild::swap::swap;
use projections::schema::{self, Bare, NEXT};
use projections::tables::checkpoint;
use sqlx::{Connection, Executor, PgConnection};
use tests::TestDatabase;
use tests::bench::{BenchCluster, Silent, fill, numbers_of_a_process, peak_kib, quantile, register, setting};
use tokio_util::sync::CancellationToken;

const TABLES: [&str; 9] = [
    "files",
    "meetings",
    "speakers",
    "user_profiles",
    "artifacts",
    "stale_artifacts",
    "speaker_reassignments",
    "cache",
    "cache_origin",
];

/// Returns what is set in the process whose memory is measured: the database to rebuild, and how fast.
const fn variable(speed: Speed) -> &'static str {
    match speed {
        Speed::Throttled => "MINUTEBOOK_BENCH_REBUILD",
        Speed::Full => "MINUTEBOOK_BENCH_REBUILD_AT_FULL_SPEED",
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let asked_for = [Speed::Throttled, Speed::Full]
        .into_iter()
        .find_map(|speed| std::env::var(variable(speed)).ok().map(|url| (TestDatabase { url }, speed)));
    match asked_for {
        Some((database, speed)) => runtime.block_on(rebuild_and_report(database, speed)),
        None => runtime.block_on(benchmark()),
    }
}

async fn benchmark() {
    let sizes = [setting("EVENTS", 200_000), setting("MANY_EVENTS", 1_000_000)];
    let cluster = BenchCluster::start(env!("CARGO_TARGET_TMPDIR")).await;
    if setting("MEANWHILE", 0) == 1 {
        commands_meanwhile(&cluster.database("meanwhile").await, sizes[0]).await;
        cluster.stop().await;
        return;
    }
    let mut peaks = vec![];
    for (name, events) in ["few", "many"].into_iter().zip(sizes) {
        let database = cluster.database(name).await;
        fill(&database, events).await;
        project_all(&database).await;
        let (mut ratios, mut rates, mut floors, mut swaps, mut memory) =
            (vec![], vec![], vec![], vec![], vec![]);
        for _ in 0..setting("ROUNDS", 3) {
            let floor = floor(&database).await.as_secs_f64();
            let report = rebuild(&database, Speed::Throttled).await;
            ratios.push(report.seconds / floor);
            rates.push(events as f64 / report.seconds);
            floors.push(events as f64 / floor);
            swaps.push(report.blocked_ms);
            memory.push(report.peak_kib);
        }
        println!(
            "{events} events: rebuild {:.0} events/s, floor {:.0} events/s: {:.2}x its time; readers blocked for \
             {:.1} ms; peak memory {:.0} MiB",
            quantile(&mut rates, 0.5),
            quantile(&mut floors, 0.5),
            quantile(&mut ratios, 0.5),
            quantile(&mut swaps, 1.0),
            quantile(&mut memory, 0.5) as f64 / 1024.0,
        );
        peaks.push((quantile(&mut memory, 0.5), quantile(&mut rates, 0.5)));
    }
    println!(
        "peak memory at {} events is {:.2}x that at {}",
        sizes[1],
        peaks[1].0 as f64 / peaks[0].0 as f64,
        sizes[0]
    );
    commands_meanwhile(&cluster.database("meanwhile").await, sizes[0]).await;
    let single = one_by_one(&cluster, setting("SINGLE_EVENTS", 3000)).await;
    println!(
        "one event per transaction: {single:.0} events/s; a rebuild is {:.0}x as fast",
        peaks[0].1 / single
    );
    cluster.stop().await;
}

async fn project_all(database: &TestDatabase) {
    let book = database.open().await;
    book.start_projector();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(600);
    let head = book.store.head().position();
    let shown = projections::freshness::wait_for(book.pool(), &book.projection, head, deadline).await;
    assert!(shown.expect("the database answers"), "the projector came to the end");
    book.close().await;
}

/// Copies the events out, and the finished rows in; returns how long both take.
async fn floor(database: &TestDatabase) -> Duration {
    let mut connection = PgConnection::connect(&database.url).await.expect("a connection");
    connection.execute("DROP SCHEMA IF EXISTS floor CASCADE").await.expect("no old tables");
    let mut creating = connection.begin().await.expect("a transaction");
    schema::create(&mut creating, "floor").await.expect("tables");
    creating.commit().await.expect("tables");
    connection.execute("SET search_path = floor").await.expect("a search path");
    let mut rows = vec![];
    for table in TABLES {
        let out = format!("COPY read.{table} TO STDOUT (FORMAT binary)");
        let mut copied = vec![];
        let mut stream = connection.copy_out_raw(&out).await.expect("rows");
        while let Some(chunk) = futures::StreamExt::next(&mut stream).await {
            copied.extend_from_slice(&chunk.expect("rows"));
        }
        drop(stream);
        rows.push((table, copied));
    }
    let bare = Bare::make(&mut connection, "floor").await.expect("bare tables");

    let started = Instant::now();
    let out = "COPY (SELECT position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version,
                            payload, metadata
                       FROM log.events ORDER BY aggregate_type, aggregate_id, sequence) TO STDOUT";
    let mut stream = connection.copy_out_raw(out).await.expect("events");
    while let Some(chunk) = futures::StreamExt::next(&mut stream).await {
        std::hint::black_box(chunk.expect("events"));
    }
    drop(stream);
    for (table, copied) in rows {
        let statement = format!("COPY {table} FROM STDIN (FORMAT binary)");
        let mut copying = connection.copy_in_raw(&statement).await.expect("a copy");
        for chunk in copied.chunks(1024 * 1024) {
            copying.send(chunk).await.expect("rows");
        }
        copying.finish().await.expect("rows");
    }
    bare.restore(&mut connection).await.expect("indexes");
    let elapsed = started.elapsed();
    connection.execute("DROP SCHEMA floor CASCADE").await.expect("no tables");
    elapsed
}

struct Report {
    seconds: f64,
    blocked_ms: f64,
    peak_kib: u64,
}

/// Lets a process of its own rebuild, so that its memory is its own.
async fn rebuild(database: &TestDatabase, speed: Speed) -> Report {
    let numbers = numbers_of_a_process(variable(speed), database).await;
    let [seconds, blocked_ms, peak_kib] = numbers[..] else { panic!("no report in {numbers:?}") };
    Report { seconds, blocked_ms, peak_kib: peak_kib as u64 }
}

async fn rebuild_and_report(database: TestDatabase, speed: Speed) {
    let book = database.open().await;
    let live = checkpoint::read(book.pool()).await.expect("a checkpoint");
    let started = Instant::now();
    let progress = Arc::new(Silent);
    let asked = Asked { who: "a benchmark".to_owned(), key: None };
    let mut running = Running::begin(&book.store, &asked, "rebuild").await.expect("nobody else rebuilds");
    rebuild::build(&book.store, NEXT, live.position, None, speed, &progress).await.expect("it builds");
    let built = started.elapsed();
    // Apart from the time that counts.
    let report = compare(&book.store, NEXT, speed).await.expect("both are compared");
    assert!(report.is_clean(), "{report:?}");
    let started = Instant::now();
    let (stop, bound) = (CancellationToken::new(), Duration::from_secs(30));
    let swapped = swap(&book.store, &mut running, NEXT, bound, &Silent, &stop).await.expect("it swaps");
    let seconds = (built + started.elapsed()).as_secs_f64();
    book.close().await;
    println!("{seconds} {} {}", swapped.blocked.as_secs_f64() * 1000.0, peak_kib());
}

/// Prints what one client's commands take, without a rebuild and during one that makes way for them, or does not, in
/// turns.
async fn commands_meanwhile(database: &TestDatabase, events: usize) {
    fill(database, events).await;
    project_all(database).await;
    let book = database.open().await;
    book.start_projector();
    let mut measured = [Speed::Throttled, Speed::Full].map(|speed| (speed, Meanwhile::default()));
    for _ in 0..setting("ROUNDS", 3) {
        for (speed, Meanwhile { alone, during, ratios, seconds }) in &mut measured {
            let mut times = vec![];
            let started = Instant::now();
            while started.elapsed() < Duration::from_secs(3) {
                times.push(register_one(&book).await);
            }
            let without = quantile(&mut times, 0.99);
            let (with, took) = commands_during(&book, database, *speed).await;
            ratios.push(with.as_secs_f64() / without.as_secs_f64());
            alone.push(without);
            during.push(with);
            seconds.push(took);
        }
    }
    for (speed, Meanwhile { mut alone, mut during, mut ratios, mut seconds }) in measured {
        println!(
            "a command's p99: {:?} without a rebuild, {:?} during one ({speed:?}): {:.2}x; it took {:.1} s beside the \
             commands",
            quantile(&mut alone, 0.5),
            quantile(&mut during, 0.5),
            quantile(&mut ratios, 0.5),
            quantile(&mut seconds, 0.5),
        );
    }
    book.close().await;
}

/// What was measured at one speed, round by round.
#[derive(Default)]
struct Meanwhile {
    alone: Vec<Duration>,
    during: Vec<Duration>,
    ratios: Vec<f64>,
    seconds: Vec<f64>,
}

/// Returns the p99 of one client's commands during a rebuild, and how many seconds that took.
async fn commands_during(book: &api::book::Book, database: &TestDatabase, speed: Speed) -> (Duration, f64) {
    let mut rebuilding = Box::pin(rebuild(database, speed));
    let mut times = vec![];
    let report = loop {
        tokio::select! {
            report = &mut rebuilding => break report,
            took = register_one(book) => times.push(took),
        }
    };
    (quantile(&mut times, 0.99), report.seconds)
}

/// Registers a meeting; returns how long it took.
async fn register_one(book: &api::book::Book) -> Duration {
    let n = uuid::Uuid::now_v7().as_u128();
    let started = Instant::now();
    register(book, n).await;
    started.elapsed()
}

/// Returns the events per second of projecting each in a transaction of its own, as event stores do.
async fn one_by_one(cluster: &BenchCluster, events: usize) -> f64 {
    let database = cluster.database("single").await;
    fill(&database, events).await;
    let book = database.open().await;
    let head = book.store.head().position();
    let started = Instant::now();
    let at_once = BatchLimits { events: 1, bytes: usize::MAX };
    let options = schema::options(book.pool(), schema::LIVE);
    catch_up(&book.store, options, head, at_once).await.expect("it is projected");
    let rate = head as f64 / started.elapsed().as_secs_f64();
    book.close().await;
    rate
}
