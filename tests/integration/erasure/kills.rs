//! Whenever the process that carries an erasure out is killed: the next one finishes it.

use std::time::Duration;

use domain::profile::ProfileCommand;
use event_store::command_bus::Context;
use projections::erasure;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tests::TestDatabase;
use tests::clock::now;
use tests::server::Server;
use tokio::time::sleep;
use uuid::Uuid;

use super::{PLANE, People, verified};
use crate::cli::run_on;
use crate::kill::rounds;
use crate::read_models::{caught_up_and_equal, eventually};

#[tokio::test]
async fn an_erasure_killed_at_any_step_is_finished_by_the_next_process() {
    // What each step has to write is held by somebody else, so that it is killed in just this step.
    for step in [
        "LOCK TABLE keys.subjects IN EXCLUSIVE MODE",
        "LOCK TABLE log.events IN EXCLUSIVE MODE",
        "SELECT FROM read.checkpoint FOR UPDATE",
        "LOCK TABLE read_previous.user_profiles IN EXCLUSIVE MODE",
    ] {
        let (database, pool, ottilie, meetings) = erased(2).await;
        let mut holder = PgConnection::connect(&database.url).await.unwrap();
        let mut holding = holder.begin().await.unwrap();
        holding.execute(step).await.unwrap();
        let server = Server::start_with(&database, &["--only", "projector"]).await;
        eventually(&format!("it waits for {step}"), async || {
            let waits: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted
                                   AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database()))",
            )
            .fetch_one(&pool)
            .await
            .unwrap();
            waits.then_some(())
        })
        .await;
        server.kill_9().await;
        let receipt = erasure::of_subject(&pool, ottilie).await.unwrap().unwrap();
        assert_eq!(receipt.state, "under_way", "{step}");
        holding.rollback().await.unwrap();
        let status = run_on(&database, &["status", "--json"]).await;
        let status: Value = serde_json::from_str(&status.stdout).unwrap();
        assert_eq!(status["unfinished_erasures"]["erasures"], 1, "{step}: {status}");
        finishes(&database, &pool, ottilie, meetings).await;
    }
}

#[tokio::test]
async fn an_erasure_killed_at_random_moments_is_finished() {
    for _ in 0..rounds(2) {
        let (database, pool, ottilie, meetings) = erased(12).await;
        for _ in 0..2 {
            let server = Server::start_with(&database, &["--only", "projector"]).await;
            sleep(Duration::from_millis(fastrand::u64(..150))).await;
            server.kill_9().await;
        }
        finishes(&database, &pool, ottilie, meetings).await;
    }
}

/// Returns a database in which somebody who speaks in so many meetings was erased, and nobody carries it out yet.
async fn erased(meetings: usize) -> (TestDatabase, PgPool, Uuid, usize) {
    let people = People::known().await;
    for n in 1..=meetings {
        people.completed(n).await;
    }
    caught_up_and_equal(&people.pool).await;
    let People { database, server, pool, ottilie, .. } = people;
    assert!(server.stop().await.success());
    let ran = run_on(&database, &["rebuild"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let book = database.open().await;
    let erase = ProfileCommand::Erase { at: now(), lost: false };
    let context = Context::system("test");
    book.bus.profile(ottilie.into(), erase, &context).await.unwrap();
    book.close().await;
    (database, pool, ottilie, meetings)
}

async fn finishes(database: &TestDatabase, pool: &PgPool, ottilie: Uuid, meetings: usize) {
    let server = Server::start_with(database, &PLANE).await;
    let receipt = eventually("the erasure is complete", async || {
        let receipt = erasure::of_subject(pool, ottilie).await.unwrap().unwrap();
        receipt.completed_at.is_some().then_some(receipt)
    })
    .await;
    let meetings = i64::try_from(meetings).unwrap();
    assert_eq!((receipt.meetings, receipt.speakers), (meetings, meetings), "{receipt:?}");
    let metrics = server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("minutebook_erasures_under_way 0"), "{metrics}");
    let unlinked: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM log.events
          WHERE event_type = 'SpeakerReassigned' AND payload #>> '{SpeakerReassigned,from}' = $1",
    )
    .bind(ottilie.to_string())
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(unlinked, meetings, "each is told once");
    let living: i64 = sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM read_previous.user_profiles WHERE id = $1)
              + (SELECT count(*) FROM read.user_profiles WHERE id = $1)
              + (SELECT count(*) FROM read.speakers WHERE user_profile_id = $1)",
    )
    .bind(ottilie)
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(living, 0);
    caught_up_and_equal(pool).await;
    assert_eq!(server.post("/v1/profiles", &json!({"id": ottilie, "display_name": "Olga"})).await.0, 409);
    assert!(server.stop().await.success());
    verified(database).await;
}
