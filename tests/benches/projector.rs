//! The live projector catching up on a long history, against one SQL statement that folds the same events
//! into the same `meetings`, in the same run. Then its peak memory at five times the history.
//!
//! `cargo bench --bench projector`; EVENTS and MANY_EVENTS change the sizes.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]

use std::time::{Duration, Instant};

use sqlx::PgPool;
use tests::TestDatabase;
use tests::bench::{BenchCluster, fill, numbers_of_a_process, peak_kib, quantile, setting};

/// Set in the process whose memory is measured: the database to catch up on.
const PROJECT: &str = "MINUTEBOOK_BENCH_PROJECT";

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    match std::env::var(PROJECT) {
        Ok(url) => runtime.block_on(project_and_report(TestDatabase { url })),
        Err(_) => runtime.block_on(benchmark()),
    }
}

async fn benchmark() {
    let rounds = setting("ROUNDS", 3);
    let (few, many) = (setting("EVENTS", 200_000), setting("MANY_EVENTS", 1_000_000));
    let cluster = BenchCluster::start(env!("CARGO_TARGET_TMPDIR")).await;
    let database = cluster.database("few").await;
    fill(&database, few).await;

    let (mut ratios, mut projected, mut folded, mut memory) = (vec![], vec![], vec![], vec![]);
    for _ in 0..rounds {
        let statement = few as f64 / fold_by_sql(&database).await.as_secs_f64();
        reset(&database).await;
        let report = project(&database).await;
        let projector = few as f64 / report.seconds;
        ratios.push(projector / statement);
        projected.push(projector);
        folded.push(statement);
        memory.push(report.peak_kib);
    }
    println!("statement events/s  projector events/s   ratio  (medians of {rounds} rounds, {few} events)");
    println!(
        "{:>18.0}  {:>18.0}  {:>5.2}x",
        quantile(&mut folded, 0.5),
        quantile(&mut projected, 0.5),
        quantile(&mut ratios, 0.5),
    );

    let database = cluster.database("many").await;
    fill(&database, many).await;
    let report = project(&database).await;
    let small = quantile(&mut memory, 0.5);
    println!(
        "peak memory: {:.0} MiB at {few} events, {:.0} MiB at {many}: {:.2}x ({:.0} events/s)",
        small as f64 / 1024.0,
        report.peak_kib as f64 / 1024.0,
        report.peak_kib as f64 / small as f64,
        many as f64 / report.seconds,
    );
    cluster.stop().await;
}

/// Folds all events into a table like `meetings`, with its indexes, by one statement.
async fn fold_by_sql(database: &TestDatabase) -> Duration {
    let pool = database.pool().await;
    let prepare = "DROP SCHEMA IF EXISTS bench CASCADE; CREATE SCHEMA bench;
                   CREATE TABLE bench.meetings (LIKE read.meetings INCLUDING ALL)";
    sqlx::raw_sql(prepare).execute(&pool).await.expect("a table");
    let started = Instant::now();
    sqlx::query(
        "INSERT INTO bench.meetings (id, file_id, status, language, started_at, finished_at)
         SELECT aggregate_id::uuid,
                (max(payload #>> '{MeetingRegistered,file,id}') FILTER (WHERE event_type = 'MeetingRegistered'))::uuid,
                (array_agg(CASE event_type WHEN 'MeetingRegistered' THEN 'pending'
                                           WHEN 'ProcessingStarted' THEN 'processing'
                                           WHEN 'MeetingCompleted' THEN 'completed' ELSE 'failed' END
                           ORDER BY sequence DESC)
                    FILTER (WHERE event_type IN ('MeetingRegistered', 'ProcessingStarted',
                                                 'MeetingCompleted', 'MeetingFailed')))[1],
                max(payload #>> '{LanguageDetected,language}') FILTER (WHERE event_type = 'LanguageDetected'),
                coalesce(max(payload #>> '{ProcessingStarted,started_at}')
                             FILTER (WHERE event_type = 'ProcessingStarted'),
                         max(payload #>> '{MeetingRegistered,registered_at}')
                             FILTER (WHERE event_type = 'MeetingRegistered'))::timestamptz,
                (max(payload #>> '{MeetingCompleted,finished_at}')
                     FILTER (WHERE event_type = 'MeetingCompleted'))::timestamptz
           FROM log.events WHERE aggregate_type = 'meeting' GROUP BY aggregate_id",
    )
    .execute(&pool)
    .await
    .expect("the statement folds");
    let elapsed = started.elapsed();
    pool.close().await;
    elapsed
}

/// Empties the tables: the projector begins from nothing.
async fn reset(database: &TestDatabase) {
    let pool = database.pool().await;
    sqlx::raw_sql(
        "TRUNCATE files, meetings, speakers, user_profiles, artifacts, speaker_reassignments, cache, cache_origin;
         UPDATE checkpoint SET position = 0",
    )
    .execute(&pool)
    .await
    .expect("empty tables");
    pool.close().await;
}

struct Report {
    seconds: f64,
    peak_kib: u64,
}

/// Lets a process of its own catch up, so that its memory is its own.
async fn project(database: &TestDatabase) -> Report {
    let numbers = numbers_of_a_process(PROJECT, database).await;
    let [seconds, peak_kib] = numbers[..] else { panic!("no report in {numbers:?}") };
    Report { seconds, peak_kib: peak_kib as u64 }
}

async fn project_and_report(database: TestDatabase) {
    let book = database.open().await;
    let head = book.store.head().position();
    let started = Instant::now();
    book.start_projector();
    wait_for(book.pool(), &book, head).await;
    let seconds = started.elapsed().as_secs_f64();
    book.close().await;
    println!("{seconds} {}", peak_kib());
}

async fn wait_for(pool: &PgPool, book: &api::book::Book, position: i64) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(600);
    let shown = projections::freshness::wait_for(pool, &book.projection, position, deadline).await;
    assert!(shown.expect("the database answers"), "the projector did not come to position {position}");
}
