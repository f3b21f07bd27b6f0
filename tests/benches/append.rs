//! Appends per second through the log, against one row per transaction into a table of the same shape, at
//! 1, 32 and 128 clients: the median of interleaved runs. Then the same under an idle, long-lived snapshot.
//!
//! `cargo bench --bench append`; ROUNDS and SECONDS change how long it takes.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]

use std::time::{Duration, Instant};

use event_store::EventStore;
use event_store::append::Append;
use sqlx::{Connection, Executor, PgConnection};
use tests::TestDatabase;
use tests::bench::{Baseline, BenchCluster, quantile, setting};
use tests::workload::Workload;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

#[tokio::main]
async fn main() {
    let rounds = setting("ROUNDS", 5);
    let duration = Duration::from_secs(setting("SECONDS", 3));
    let cluster = BenchCluster::start(env!("CARGO_TARGET_TMPDIR")).await;
    let database = cluster.database("append").await;
    let mut source = Source { workload: Workload::new(1, 1) };
    let samples = source.take(200);
    let baseline = Baseline::create(&cluster, &database, &samples).await;

    println!("clients  baseline/s    log/s   ratio  (medians of {rounds} rounds of {duration:?})  flush");
    for clients in [1, 32, 128] {
        let (mut ours, mut theirs, mut ratios) = (vec![], vec![], vec![]);
        let mut flushes = vec![];
        for _ in 0..rounds {
            let base = baseline.run(clients, duration).await;
            let log = append(&database, clients, duration, &mut source).await;
            theirs.push(base);
            ours.push(log);
            ratios.push(log / base);
            flushes.push(cluster.flush_time());
        }
        println!(
            "{clients:>7}  {:>10.0}  {:>7.0}  {:>5.2}x  {:?}",
            quantile(&mut theirs, 0.5),
            quantile(&mut ours, 0.5),
            quantile(&mut ratios, 0.5),
            quantile(&mut flushes, 0.5),
        );
    }
    under_a_long_snapshot(&database, &mut source).await;
    cluster.stop().await;
}

/// Makes appends outside of what is timed.
struct Source {
    workload: Workload,
}

impl Source {
    fn take(&mut self, count: usize) -> Vec<Append> {
        (0..count).map(|_| self.workload.next_registration()).collect()
    }
}

/// Returns appends per second of `clients` tasks.
async fn append(database: &TestDatabase, clients: usize, duration: Duration, source: &mut Source) -> f64 {
    let pool = database.pool().await;
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let store = EventStore::open(pool, tests::master(), &shutdown, &tasks).await.expect("the log opens");
    // More than can be appended in the time.
    let each = (duration.as_secs() as usize * 60_000) / clients;
    let batches = (0..clients).map(|_| source.take(each)).collect::<Vec<_>>();
    let started = Instant::now();
    let deadline = started + duration;
    let clients = batches.into_iter().map(|batch| {
        let appender = store.appender().clone();
        tokio::spawn(async move {
            for (done, append) in (0_u64..).zip(batch) {
                if Instant::now() >= deadline {
                    return done;
                }
                appender.append(append).await.expect("an append succeeds");
            }
            panic!("the appends ran out before the time");
        })
    });
    let done = futures::future::join_all(clients).await;
    let elapsed = started.elapsed();
    shutdown.cancel();
    tasks.close();
    tasks.wait().await;
    store.pool().close().await;
    done.into_iter().map(|done| done.expect("a client ends well")).sum::<u64>() as f64 / elapsed.as_secs_f64()
}

/// A dump or a long report holds a snapshot: appends must not slow down under it.
async fn under_a_long_snapshot(database: &TestDatabase, source: &mut Source) {
    let mut reader = PgConnection::connect(&database.url).await.expect("a connection");
    let window = Duration::from_secs(setting("SECONDS", 3));
    let clients = 32;
    println!("\nunder an idle snapshot, {clients} clients: appends/s in windows of {window:?}");
    for (name, holds) in [("without", false), ("with", true)] {
        if holds {
            reader
                .execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM log.identity")
                .await
                .expect("a snapshot");
        }
        let mut windows = vec![];
        for _ in 0..5 {
            windows.push(append(database, clients, window, source).await);
        }
        let shown = windows.iter().map(|rate| format!("{rate:>7.0}")).collect::<String>();
        println!("{name:>8}{shown}   last/first {:.2}", windows[4] / windows[0]);
    }
    reader.execute("ROLLBACK").await.expect("the snapshot ends");
}
