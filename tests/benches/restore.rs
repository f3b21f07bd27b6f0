//! A restore against COPY's own speed: the same rows, from memory, into a table with the log's constraints and
//! indexes. Beside it a backup while appends flow, and what it costs them.
//!
//! `cargo bench --bench restore`; EVENTS changes the size, ROUNDS how often.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]

use std::time::{Duration, Instant};

use api::book::Book;
use api::rebuild::VerifyArgs;
use futures::StreamExt;
use projections::backup::{self, Backup};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tests::TestDatabase;
use tests::bench::{BenchCluster, Silent, fill, quantile, setting};
use tests::workload::Workload;

const COLUMNS: &str = "position, recorded_at, aggregate_type, aggregate_id, sequence, event_type, event_version, payload, metadata";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(benchmark());
}

async fn benchmark() {
    let events = setting("EVENTS", 1_000_000);
    let cluster = BenchCluster::start(env!("CARGO_TARGET_TMPDIR")).await;
    let database = cluster.database("source").await;
    fill(&database, events).await;
    let pool = database.pool().await;
    let head: i64 = event_store::log::head(&pool).await.expect("a head");
    let files = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");

    let dir = files.path().join("backup");
    let started = Instant::now();
    let manifest = backup::write(&pool, &dir, &Silent).await.expect("a backup");
    let seconds = started.elapsed().as_secs_f64();
    let bytes = manifest.tables.iter().map(|table| table.bytes).sum::<u64>() as f64;
    println!("backup: {:.0} events/s, {:.0} bytes an event", head as f64 / seconds, bytes / head as f64);

    let (mut ratios, mut copies, mut restores) = (vec![], vec![], vec![]);
    for round in 0..setting("ROUNDS", 3) {
        let copy = head as f64 / copy(&database).await.as_secs_f64();
        let target = cluster.database(&format!("restored{round}")).await;
        let restore = head as f64 / restore(&target, &dir).await.as_secs_f64();
        println!("COPY {copy:.0} events/s, restore {restore:.0} events/s: {:.2}x", restore / copy);
        ratios.push(restore / copy);
        copies.push(copy);
        restores.push(restore);
        if round == 0 {
            whole(&target).await;
        }
        drop_database(&database, &target).await;
    }
    println!(
        "{head} events: restore {:.0} events/s, COPY {:.0} events/s: {:.2}x its speed",
        quantile(&mut restores, 0.5),
        quantile(&mut copies, 0.5),
        quantile(&mut ratios, 0.5),
    );
    meanwhile(&database, &files.path().join("meanwhile")).await;
    pool.close().await;
    cluster.stop().await;
}

/// Copies the log into a table like it, from memory: the floor. Returns how long it takes.
async fn copy(database: &TestDatabase) -> Duration {
    let mut connection = PgConnection::connect(&database.url).await.expect("a connection");
    let mut rows = vec![];
    let out = format!("COPY (SELECT {COLUMNS} FROM log.events ORDER BY position) TO STDOUT");
    let mut stream = connection.copy_out_raw(&out).await.expect("rows");
    let mut piece = Vec::with_capacity(256 * 1024);
    while let Some(row) = stream.next().await {
        piece.extend_from_slice(&row.expect("rows"));
        if piece.len() >= 256 * 1024 {
            rows.push(std::mem::take(&mut piece));
        }
    }
    rows.push(piece);
    drop(stream);
    connection.execute("DROP TABLE IF EXISTS public.floor").await.expect("no old table");
    connection.execute("CREATE TABLE public.floor (LIKE log.events INCLUDING ALL)").await.expect("a table");
    let started = Instant::now();
    let mut copying =
        connection.copy_in_raw(&format!("COPY public.floor ({COLUMNS}) FROM STDIN")).await.expect("a copy");
    for piece in rows {
        copying.send(piece).await.expect("rows");
    }
    copying.finish().await.expect("rows");
    let took = started.elapsed();
    connection.execute("DROP TABLE public.floor; CHECKPOINT").await.expect("no table");
    took
}

/// Restores the log: looks at the checksums, copies, indexes, checks, commits. Returns how long it takes.
async fn restore(target: &TestDatabase, dir: &std::path::Path) -> Duration {
    let pool = PgPool::connect(&target.url).await.expect("a pool");
    let options = pool.connect_options();
    pool.close().await;
    let started = Instant::now();
    let found = Backup::open(dir).expect("a backup");
    found.check(&Silent).await.expect("a whole backup");
    backup::restore(&options, &found, None, tests::master(), &Silent).await.expect("a restored log");
    started.elapsed()
}

/// Prints what comes after: the tables, and their proof.
async fn whole(target: &TestDatabase) {
    let book: Book = target.open().await;
    let stop = tokio_util::sync::CancellationToken::new();
    let started = Instant::now();
    api::rebuild::build_restored(&book, true, &stop).await.expect("tables");
    let built = started.elapsed().as_secs_f64();
    let started = Instant::now();
    api::rebuild::verify(&book, VerifyArgs { full_speed: false, json: true }, &stop).await.expect("a proof");
    println!("then the tables in {built:.1} s, and verify in {:.1} s", started.elapsed().as_secs_f64());
    book.close().await;
}

async fn drop_database(database: &TestDatabase, target: &TestDatabase) {
    let name = target.url.rsplit_once('/').and_then(|(_, rest)| rest.split('?').next()).expect("a name");
    let mut connection = PgConnection::connect(&database.url).await.expect("a connection");
    let drop = format!("DROP DATABASE {name} WITH (FORCE)");
    connection.execute(drop.as_str()).await.expect("no database");
    connection.execute("CHECKPOINT").await.expect("a checkpoint");
}

/// Prints how long appends take while a backup is taken, and just before.
async fn meanwhile(database: &TestDatabase, dir: &std::path::Path) {
    let book = database.open().await;
    let mut workload = Workload::new(9, 64);
    let before = append_until(&book, &mut workload, tokio::time::sleep(Duration::from_secs(5))).await;
    let taking = async { drop(backup::write(book.pool(), dir, &Silent).await.expect("a backup")) };
    let during = append_until(&book, &mut workload, taking).await;
    let after = append_until(&book, &mut workload, tokio::time::sleep(Duration::from_secs(5))).await;
    for (when, mut times) in [("before", before), ("during", during), ("after", after)] {
        let (count, p50, p99) = (times.len(), quantile(&mut times, 0.5), quantile(&mut times, 0.99));
        println!("appends {when} a backup, one after the other: {count}, median {p50:.2?}, p99 {p99:.2?}");
    }
    book.close().await;
}

async fn append_until(book: &Book, workload: &mut Workload, end: impl Future<Output = ()>) -> Vec<Duration> {
    let mut times = vec![];
    let appending = async {
        loop {
            let started = Instant::now();
            let append = workload.next_append();
            book.store.appender().append(append).await.expect("an append succeeds");
            times.push(started.elapsed());
        }
    };
    tokio::select! {
        never = appending => never,
        () = end => {}
    }
    times
}
