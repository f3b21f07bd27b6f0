//! Several processes that append to one log: it has one order, and no hole.

use std::sync::atomic::{AtomicUsize, Ordering};

use api::book::Book;
use event_store::append::{Append, Appender, Outcome, Place};
use futures::StreamExt;
use futures::future::join_all;
use futures::stream;
use serde_json::{Value, json};
use sqlx::Executor as _;
use tests::TestDatabase;
use tests::server::{Server, answer};
use tokio::time::timeout;
use uuid::Uuid;

use super::{PATIENCE, append_to, assert_in_the_log_once, place, whole_log};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_that_append_to_the_same_aggregates_leave_no_hole() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    append_at_once(&one, &other).await;
    one.close().await;
    other.close().await;
}

/// Under a stricter isolation an append would see the log as it was before its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_do_not_depend_on_the_databases_default_isolation() {
    let database = TestDatabase::create().await;
    let stricter = "DO $$ BEGIN EXECUTE format(
        'ALTER DATABASE %I SET default_transaction_isolation = ''repeatable read''', current_database()); END $$";
    database.pool().await.execute(stricter).await.unwrap();
    append_at_once(&database.open().await, &database.open().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_servers_that_share_every_meeting_leave_no_hole() {
    let database = TestDatabase::create().await;
    let servers = [Server::start(&database).await, Server::start(&database).await];
    let commands = AtomicUsize::new(0);
    let meetings = stream::iter(0..300_usize)
        .map(|n| live_a_meetings_life(&servers[n % 2], &servers[(n + 1) % 2], &commands, n));
    timeout(PATIENCE * 2, meetings.buffer_unordered(16).collect::<Vec<_>>()).await.unwrap();

    let events = whole_log(&database.pool().await).await;
    assert_eq!(events.len(), 300 * 8, "each command has one event");
    assert_eq!(commands.into_inner(), events.len());
    let [one, other] = servers;
    assert!(one.stop().await.success() && other.stop().await.success());
}

/// Appends from two processes to the same aggregates; nothing is lost, and both take their turns.
async fn append_at_once(one: &Book, other: &Book) {
    let aggregates = (0..24).map(|_| Uuid::now_v7()).collect::<Vec<_>>();
    let tasks = (0..48).map(|n| {
        let appender = if n % 2 == 0 { one } else { other }.store.appender().clone();
        let aggregates = aggregates.clone();
        tokio::spawn(async move {
            let mut accepted = Vec::new();
            for step in 0..80 {
                accepted
                    .push(append_against_rivals(&appender, aggregates[(n + step) % aggregates.len()]).await);
            }
            (n % 2, accepted)
        })
    });
    let done = timeout(PATIENCE, join_all(tasks)).await.unwrap();
    let done = done.into_iter().map(Result::unwrap).collect::<Vec<_>>();

    let mut writers = done
        .iter()
        .flat_map(|(store, accepted)| accepted.iter().map(move |(_, place)| (place.last_position, store)))
        .collect::<Vec<_>>();
    writers.sort_unstable();
    let turns = writers.windows(2).filter(|pair| pair[0].1 != pair[1].1).count();
    assert!(turns > 20, "the stores took only {turns} turns");
    let accepted = done.into_iter().flat_map(|(_, accepted)| accepted).collect::<Vec<_>>();
    assert_eq!(accepted.len(), 48 * 80);
    assert_in_the_log_once(one.pool(), &accepted).await;
}

/// Appends one event, whoever else does: a conflict tells the version.
async fn append_against_rivals(appender: &Appender, aggregate: Uuid) -> (Append, Place) {
    let mut append = append_to(aggregate, 0, 1);
    loop {
        match appender.append(append.clone()).await.unwrap() {
            Outcome::Conflict { actual_version } => append.expected_version = actual_version,
            accepted @ (Outcome::Appended(_) | Outcome::Duplicate { .. }) => {
                return (append, place(&accepted));
            }
            Outcome::Forgotten => panic!("nobody was forgotten"),
        }
    }
}

/// Each command goes to the other server than the one before, so that cached states are always stale; some
/// go to both at once.
async fn live_a_meetings_life(one: &Server, other: &Server, commands: &AtomicUsize, n: usize) {
    let send = async |server: &Server, path: String, body: Value| {
        let (status, answer) = answer(server.client.post(server.at(&path)).json(&body)).await;
        assert!(status == 200 || status == 201, "{path}: {status} {answer}");
        commands.fetch_add(answer["events"].as_array().unwrap().len(), Ordering::Relaxed);
        answer
    };
    let registered = send(one, "/v1/meetings".to_owned(), json!({"sha256": format!("{n:064x}")})).await;
    let at = |action: &str| format!("/v1/meetings/{}/{action}", registered["id"].as_str().unwrap());
    let artifact = |kind: &str| json!({"type": kind, "s3_key": format!("meetings/{n}/{kind}")});
    send(other, at("start"), json!({"worker": "gpu-1"})).await;
    send(one, at("fingerprint"), json!({"content_fp": format!("pcm16k:{n}")})).await;
    tokio::join!(
        send(one, at("language"), json!({"language": "de"})),
        send(other, at("artifacts"), artifact("transcript.md")),
        send(one, at("artifacts"), artifact("transcript.vtt")),
        // Twice at once: one of them has no effect.
        send(one, at("artifacts"), artifact("summary.json")),
        send(other, at("artifacts"), artifact("summary.json")),
    );
    send(other, at("complete"), json!({})).await;
}
