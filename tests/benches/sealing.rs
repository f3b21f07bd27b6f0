//! What sealing costs: appends per second at 128 clients, sealed, against the same events in clear; medians of
//! interleaved runs. The events are those of meetings through their life, with a voice for each cluster: each is
//! made, sealed or not, and written as JSON within the time that is measured.
//!
//! `cargo bench --bench sealing`; ROUNDS, SECONDS and CLIENTS change how long it takes.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]

use std::time::{Duration, Instant};

use event_store::EventStore;
use event_store::append::{Append, NewEvent, Outcome, Payload};
use tests::TestDatabase;
use tests::bench::{BenchCluster, quantile, setting};
use tests::workload::Workload;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// More than can be appended in a second.
const MOST: usize = 16_000;

#[tokio::main]
async fn main() {
    let rounds: usize = setting("ROUNDS", 7);
    let duration = Duration::from_secs(setting("SECONDS", 4));
    let clients: usize = setting("CLIENTS", 128);
    let cluster = BenchCluster::start(env!("CARGO_TARGET_TMPDIR")).await;
    let databases = [cluster.database("sealed").await, cluster.database("clear").await];
    let (mut rates, mut ratios) = ([vec![], vec![]], vec![]);
    for round in 0..rounds {
        let mut pair = [0.0; 2];
        // In turns, who is first: what one run leaves behind (a checkpoint, a vacuum) falls on both.
        for n in [round % 2, 1 - round % 2] {
            pair[n] = run(&databases[n], clients, duration, round as u64, n == 0).await;
            rates[n].push(pair[n]);
        }
        ratios.push(pair[0] / pair[1]);
        println!(
            "round {round}: sealed {:>6.0}/s, clear {:>6.0}/s, {:.3}x",
            pair[0],
            pair[1],
            pair[0] / pair[1]
        );
    }
    let pool = databases[0].pool().await;
    let (all, sealed, keys): (i64, i64, i64) = sqlx::query_as(
        "SELECT count(*), count(*) FILTER (WHERE payload::text LIKE '%\"sealed\"%'),
                (SELECT count(*) FROM keys.subjects) FROM log.events",
    )
    .fetch_one(&pool)
    .await
    .expect("the log is there");
    let [sealed_rate, clear_rate] = &mut rates;
    println!(
        "{clients} clients, medians of {rounds} rounds of {duration:?}: sealed {:.0}/s, clear {:.0}/s",
        quantile(sealed_rate, 0.5),
        quantile(clear_rate, 0.5)
    );
    println!(
        "of {all} events {:.0} % have something sealed; {:.2} keys an event",
        100.0 * sealed as f64 / all as f64,
        keys as f64 / all as f64
    );
    println!("sealed/clear {:.3}x (at least 0.90)", quantile(&mut ratios, 0.5));
    cluster.stop().await;
}

/// Returns appends per second.
async fn run(database: &TestDatabase, clients: usize, duration: Duration, round: u64, sealed: bool) -> f64 {
    let pool = database.pool().await;
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let store = EventStore::open(pool, tests::master(), &shutdown, &tasks).await.expect("the log opens");
    let each = (duration.as_secs() as usize * MOST) / clients;
    let batches = (0..clients as u64)
        .map(|client| {
            // The same events for both of a round, and other ones in the next.
            let mut workload = Workload::new(1 + round * 1000 + client, 4).with_voices();
            (0..each).map(|_| workload.next_append()).collect::<Vec<_>>()
        })
        .collect::<Vec<_>>();
    let started = Instant::now();
    let deadline = started + duration;
    let clients = batches.into_iter().map(|batch| {
        let appender = store.appender().clone();
        tokio::spawn(async move {
            for (done, append) in (0_u64..).zip(batch) {
                if Instant::now() >= deadline {
                    return done;
                }
                let append = if sealed { append } else { in_clear(append) };
                let outcome = appender.append(append).await.expect("an append succeeds");
                assert!(matches!(outcome, Outcome::Appended(_)), "{outcome:?}");
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

/// Writes the events as JSON of a version that nobody knows: what is not understood is taken as it is.
fn in_clear(mut append: Append) -> Append {
    let clear = |event: NewEvent| NewEvent {
        event_version: "0".to_owned(),
        payload: Payload::Json(event.payload.to_json()),
        ..event
    };
    append.events = append.events.into_iter().map(clear).collect();
    append
}
