//! From a command accepted to its row visible: one client, one command at a time, beside the time of a
//! flush to disk measured in the same run.
//!
//! `cargo bench --bench freshness`; COMMANDS changes how many are sent.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]

use std::time::{Duration, Instant};

use projections::{freshness, queries};
use tests::bench::{BenchCluster, quantile, register, setting};

#[tokio::main]
async fn main() {
    let commands = setting("COMMANDS", 2000);
    let cluster = BenchCluster::start(env!("CARGO_TARGET_TMPDIR")).await;
    let database = cluster.database("freshness").await;
    let book = database.open().await;
    book.start_projector();
    let (mut accepted_after, mut visible_after, mut flushes) = (vec![], vec![], vec![]);
    for n in 0..commands {
        let sent = Instant::now();
        let accepted = register(&book, n as u128).await;
        let accepted_at = Instant::now();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
        let shown = freshness::wait_for(book.pool(), &book.projection, accepted.position, deadline).await;
        assert!(shown.expect("the database answers"), "the row did not show in time");
        visible_after.push(accepted_at.elapsed());
        accepted_after.push(accepted_at - sent);
        let id = accepted.aggregate_id.parse().expect("an id");
        let row = queries::meeting(book.pool(), id).await.expect("the database answers");
        assert!(row.is_some(), "the row is not there at its position");
        if n % 500 == 0 {
            flushes.push(cluster.flush_time());
        }
    }
    println!("{commands} commands, one client; a flush takes {:?}", quantile(&mut flushes, 0.5));
    for (name, times) in
        [("sent to accepted", &mut accepted_after), ("accepted to visible", &mut visible_after)]
    {
        println!("{name:>20}: p50 {:?}, p99 {:?}", quantile(times, 0.5), quantile(times, 0.99));
    }
    book.close().await;
    cluster.stop().await;
}
