//! The cache through HTTP: results are found until they expire, and an older one never returns.

use chrono::{DateTime, Utc};
use domain::ids::{MeetingId, ProfileId};
use domain::meeting::MeetingCommand;
use domain::profile::ProfileCommand;
use event_store::command_bus::Context;
use projections::tables::cache::{self, CacheWrite};
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::TestDatabase;
use tests::clock::now;
use tests::server::{Server, answer};
use uuid::Uuid;

use super::{assert_tables_equal_the_fold, caught_up_and_equal, eventually};

#[tokio::test]
async fn a_completed_meeting_s_result_is_cached_renewed_and_holds_no_name() {
    let database = TestDatabase::create().await;
    let server = Server::start(&database).await;
    let book = database.open().await;
    let profile = ProfileId::from(Uuid::from_u128(0xada));
    let create = ProfileCommand::Create {
        profile_id: profile,
        display_name: "Ada Lovelace".parse().unwrap(),
        at: now(),
    };
    book.bus.profile(profile, create, &Context::default()).await.unwrap();
    let id = meeting(&server, "ab").await;
    command(&server, &id, "speakers", &json!({"clusters": [{"cluster_id": "b"}, {"cluster_id": "a"}]})).await;
    let path = format!("/v1/cache/meeting:{id}");
    let before =
        command(&server, &id, "artifacts", &json!({"type": "transcript.md", "s3_key": "1.md"})).await;
    assert_eq!(read(&server, &path, before).await.0, 404, "it is not completed yet");

    let completed = command(&server, &id, "complete", &json!({})).await;
    let first = result(&server, &path, completed).await;
    assert_eq!(first["status"], "completed");
    assert_eq!(labels(&first), [("a".to_owned(), Value::Null), ("b".to_owned(), Value::Null)]);
    assert_eq!(first["artifacts"][0]["s3_key"], "1.md");

    let later = command(&server, &id, "artifacts", &json!({"type": "transcript.md", "s3_key": "2.md"})).await;
    assert_eq!(result(&server, &path, later).await["artifacts"][0]["s3_key"], "2.md");

    let meeting_id = id.parse::<MeetingId>().unwrap();
    let reassign = MeetingCommand::ReassignSpeaker {
        speaker_id: meeting_id.speaker(1, &"b".parse().unwrap()),
        to: Some(profile),
        expected: None,
        reason: "heard it".parse().unwrap(),
    };
    let reassigned = book.bus.meeting(meeting_id, reassign, &Context::default()).await.unwrap();
    let last = result(&server, &path, reassigned.position).await;
    assert_eq!(labels(&last), [("a".to_owned(), Value::Null), ("b".to_owned(), json!(profile))]);
    assert!(!last.to_string().contains("Ada"), "{last}");

    // While it is done anew the last result stays, and goes when the meeting does.
    let again = command(&server, &id, "reprocess", &json!({"worker": "w"})).await;
    assert_eq!(result(&server, &path, again).await, last);
    let erase = MeetingCommand::Erase { reason: "on request".parse().unwrap(), at: now(), lost: None };
    let erased = book.bus.meeting(meeting_id, erase, &Context::default()).await.unwrap();
    assert_eq!(read(&server, &path, erased.position).await.0, 404);
    assert_eq!(read(&server, &format!("/v1/meetings/{id}"), erased.position).await.0, 404);

    caught_up_and_equal(book.pool()).await;
    book.close().await;
    server.stop().await;
}

#[tokio::test]
async fn an_expired_result_is_not_found_and_then_swept_and_no_older_one_returns() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start_with(&database, &["--sweep-interval", "3600"]).await;
    let (one, two) = (meeting(&server, "ab").await, meeting(&server, "cd").await);
    let older = put(&server, &one, "older", 3600).await;
    let position = put(&server, &two, "newer", 1).await;
    let path = "/v1/cache/asr:pcm:same";
    let (status, found) = read(&server, path, position).await;
    if status == 200 {
        assert_eq!(found["value"], "newer");
        let expires_at = found["expires_at"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap();
        eventually("the result has expired", async || (expires_at <= Utc::now()).then_some(())).await;
    }
    assert_eq!(read(&server, path, position).await.0, 404, "also before it is swept");
    assert_eq!(origin(&pool).await, (1, position), "nobody has swept it");
    assert_tables_equal_the_fold(&pool).await;
    server.stop().await;

    let server = Server::start_with(&database, &["--sweep-interval", "1"]).await;
    eventually("the row is swept", async || (origin(&pool).await == (0, position)).then_some(())).await;
    assert_eq!(read(&server, path, position).await.0, 404);
    assert_tables_equal_the_fold(&pool).await;

    // Whoever comes with the older result, be it late or a rebuild, finds the later one's mark.
    let entry = Some(("older".to_owned(), None));
    let write = CacheWrite { key: "asr:pcm:same".to_owned(), position: older, entry };
    for statement in cache::write(&[&write]).into_iter().flatten() {
        statement.execute(&mut pool.acquire().await.unwrap()).await.unwrap();
    }
    assert_eq!(origin(&pool).await, (0, position));

    let position = put(&server, &two, "newest", 3600).await;
    assert_eq!(read(&server, path, position).await.1["value"], "newest");
    caught_up_and_equal(&pool).await;
    server.stop().await;
}

/// Returns how many rows the key has, and the position that it came from.
async fn origin(pool: &PgPool) -> (i64, i64) {
    let query = "SELECT (SELECT count(*) FROM cache WHERE key = 'asr:pcm:same'),
                        (SELECT position FROM cache_origin WHERE key = 'asr:pcm:same')";
    sqlx::query_as(query).fetch_one(pool).await.unwrap()
}

/// Registers and starts a meeting of a file whose hash repeats `byte`; its audio is the same as another's.
async fn meeting(server: &Server, byte: &str) -> String {
    let (status, accepted) = server.post("/v1/meetings", &json!({"sha256": byte.repeat(32)})).await;
    assert_eq!(status, 201);
    let id = accepted["id"].as_str().unwrap().to_owned();
    command(server, &id, "start", &json!({"worker": "w"})).await;
    command(server, &id, "fingerprint", &json!({"content_fp": "pcm:same"})).await;
    id
}

async fn command(server: &Server, id: &str, command: &str, body: &Value) -> i64 {
    let (status, accepted) = server.post(&format!("/v1/meetings/{id}/{command}"), body).await;
    assert_eq!(status, 200, "{command}: {accepted}");
    accepted["position"].as_i64().unwrap()
}

async fn put(server: &Server, id: &str, value: &str, ttl_seconds: i64) -> i64 {
    let request = server.client.put(server.at(&format!("/v1/meetings/{id}/cache/asr")));
    let (status, accepted) = answer(request.json(&json!({"value": value, "ttl_seconds": ttl_seconds}))).await;
    assert_eq!(status, 200, "{accepted}");
    accepted["position"].as_i64().unwrap()
}

async fn read(server: &Server, path: &str, position: i64) -> (u16, Value) {
    answer(server.client.get(server.at(path)).header("minutebook-min-position", position)).await
}

async fn result(server: &Server, path: &str, position: i64) -> Value {
    let (status, found) = read(server, path, position).await;
    assert_eq!(status, 200, "{found}");
    serde_json::from_str(found["value"].as_str().unwrap()).unwrap()
}

fn labels(result: &Value) -> Vec<(String, Value)> {
    let label = |speaker: &Value| {
        (speaker["cluster_id"].as_str().unwrap().to_owned(), speaker["user_profile_id"].clone())
    };
    result["speakers"].as_array().unwrap().iter().map(label).collect()
}
