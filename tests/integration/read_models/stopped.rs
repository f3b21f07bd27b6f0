//! An event that cannot be applied stops the projector: what came before it shows, and everybody is told
//! where and why, without its content.

use std::time::Duration;

use projections::projector::Projection;
use serde_json::{Value, json};
use sqlx::{Executor, PgPool};
use tests::TestDatabase;
use tests::server::{Server, answer};
use tokio::time::timeout;
use uuid::Uuid;

use super::history::{append, registered_with};
use super::{assert_tables_equal_the_fold, caught_up_and_equal, eventually};
use crate::cli::run_on;

#[tokio::test]
async fn an_event_that_cannot_be_read_stops_the_projector_and_is_named_without_its_content() {
    let secret = json!({"MeetingTeleported": {"to": "Ada's secret"}}).to_string();
    let broken = json!({"LanguageDetected": {"attempt": "Ada's secret", "language": "en"}}).to_string();
    let too_long = json!({"LanguageDetected": {"attempt": 1, "language": "Ada's secret"}}).to_string();
    let newer = json!({"LanguageDetected": {"attempt": 1, "language": "en"}}).to_string();
    tokio::join!(
        stops_at(["meeting", "MeetingTeleported", "1", &secret]),
        stops_at(["meeting", "LanguageDetected", "1", &broken]),
        stops_at(["meeting", "LanguageDetected", "1", &too_long]),
        stops_at(["meeting", "LanguageDetected", "2", &newer]),
        stops_at(["meeting", "MeetingFailed", "1", &newer]),
        stops_at(["picnic", "LanguageDetected", "1", &newer]),
    );
}

async fn stops_at([aggregate_type, event_type, version, payload]: [&str; 4]) {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start_with(&database, &["--position-timeout", "0.1"]).await;
    register(&server, "ab").await;
    let id = Uuid::from_u128(1).to_string();
    append_raw(&pool, [aggregate_type, &id, event_type, version, payload]).await;
    // Commands still work, and reads show what came before.
    let (after, accepted) = register(&server, "cd").await;

    let readiness = stopped(&server).await;
    assert_eq!(readiness["status"], "projector_stopped", "{readiness}");
    assert_eq!(readiness["stopped_at"], 2, "{readiness}");
    assert!(!readiness.to_string().contains("secret"), "{readiness}");
    assert_eq!(assert_tables_equal_the_fold(&pool).await, 1);
    assert_eq!(accepted["position"], 3);
    let read = server.client.get(server.at(&format!("/v1/meetings/{after}")));
    assert_eq!(answer(read.header("minutebook-min-position", 3)).await.0, 503);

    let status = run_on(&database, &["status", "--json"]).await;
    let status = serde_json::from_str::<Value>(&status.stdout).unwrap();
    assert_eq!(status["log"]["head"], 3);
    assert_eq!(
        (&status["read_models"]["position"], &status["read_models"]["lag_events"]),
        (&json!(1), &json!(2))
    );
    assert!(status["read_models"]["lag_seconds"].as_f64().unwrap() > 0.0, "{status}");
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn what_the_tables_refuse_stops_the_projector_at_that_event_and_it_goes_on_by_itself() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    pool.execute("ALTER TABLE files ADD CONSTRAINT no_ee CHECK (sha256 NOT LIKE 'ee%')").await.unwrap();
    let book = database.open().await;
    // All in one batch: the projector has not started.
    for byte in ["aa", "bb", "ee", "cc"] {
        append(&book, &registered_with(byte)).await;
    }
    let mut projection = book.projection.clone();
    book.start_projector();
    let stopped = |projection: &Projection| matches!(projection, Projection::Stopped { .. });
    let Projection::Stopped { position, reason } = projection.wait_for(stopped).await.unwrap().clone() else {
        panic!("it was waited for")
    };
    assert_eq!(position, 3);
    assert!(reason.contains("23514") && reason.contains("no_ee"), "{reason}");
    assert!(!reason.contains("eeee"), "{reason}");
    assert_eq!(assert_tables_equal_the_fold(&pool).await, 2);

    pool.execute("ALTER TABLE files DROP CONSTRAINT no_ee").await.unwrap();
    // To try again is not to be well again: probes would see it flicker.
    let tried =
        timeout(Duration::from_secs(60), projection.wait_for(|projection| !stopped(projection))).await;
    assert!(matches!(&*tried.unwrap().unwrap(), Projection::Active { position } if *position >= 3));
    assert_eq!(caught_up_and_equal(&pool).await, 4);
    book.close().await;
}

/// Waits until the server says that it is not ready.
async fn stopped(server: &Server) -> Value {
    eventually("the projector stops", async || {
        let (status, readiness) = server.get("/readyz").await;
        (status == 503).then_some(readiness)
    })
    .await
}

async fn register(server: &Server, byte: &str) -> (String, Value) {
    let (status, accepted) = server.post("/v1/meetings", &json!({"sha256": byte.repeat(32)})).await;
    assert_eq!(status, 201, "{accepted}");
    (accepted["id"].as_str().unwrap().to_owned(), accepted)
}

/// Appends an event as a stranger might, of a new aggregate.
async fn append_raw(pool: &PgPool, [aggregate_type, id, event_type, version, payload]: [&str; 5]) {
    let outcome: String = sqlx::query_scalar(
        r#"SELECT outcome FROM log.append(
               ARRAY[gen_random_uuid()], ARRAY[NULL::bytea], ARRAY[$1], ARRAY[$2], ARRAY[0::bigint], ARRAY[1],
               ARRAY['{"actor": "test", "actor_kind": "system"}'], ARRAY[1], ARRAY[1], ARRAY[$3], ARRAY[$4],
               ARRAY[$5], ARRAY[1], true)"#,
    )
    .bind(aggregate_type)
    .bind(id)
    .bind(event_type)
    .bind(version)
    .bind(payload)
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(outcome, "all appended");
}
