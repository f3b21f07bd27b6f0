//! An event that cannot be applied parks its aggregate: all others flow, and everybody is told where and why,
//! without its content; until it is tried again with success, or skipped.

use std::time::Duration;

use domain::ids::MeetingId;
use projections::parked::MOST_AGGREGATES;
use projections::projector::Projection;
use serde_json::{Value, json};
use sqlx::{Executor, PgPool};
use tests::TestDatabase;
use tests::server::{Server, answer};
use tokio::time::timeout;
use uuid::Uuid;

use super::history::{append, created, diarized, language, registered, registered_with, renamed, started};
use super::{assert_tables_equal_the_fold, caught_up_and_equal};
use crate::cli::{Ran, run_on};

#[tokio::test]
async fn an_event_that_cannot_be_read_is_parked_and_named_without_its_content_while_all_others_flow() {
    let secret = json!({"MeetingTeleported": {"to": "Ada's secret"}}).to_string();
    let broken = json!({"LanguageDetected": {"attempt": "Ada's secret", "language": "en"}}).to_string();
    let too_long = json!({"LanguageDetected": {"attempt": 1, "language": "Ada's secret"}}).to_string();
    let newer = json!({"LanguageDetected": {"attempt": 1, "language": "en"}}).to_string();
    tokio::join!(
        is_parked(["meeting", "MeetingTeleported", "1", &secret]),
        is_parked(["meeting", "LanguageDetected", "1", &broken]),
        is_parked(["meeting", "LanguageDetected", "1", &too_long]),
        is_parked(["meeting", "LanguageDetected", "2", &newer]),
        is_parked(["meeting", "MeetingFailed", "1", &newer]),
        is_parked(["picnic", "LanguageDetected", "1", &newer]),
    );
}

async fn is_parked([aggregate_type, event_type, version, payload]: [&str; 4]) {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start(&database).await;
    register(&server, "ab").await;
    let id = Uuid::from_u128(1).to_string();
    append_raw(&pool, [aggregate_type, &id, event_type, version, payload], 0).await;
    // All others flow.
    let (after, accepted) = register(&server, "cd").await;
    assert_eq!(accepted["position"], 3);
    let read = server.client.get(server.at(&format!("/v1/meetings/{after}")));
    assert_eq!(answer(read.header("minutebook-min-position", 3)).await.0, 200);
    assert_eq!(caught_up_and_equal(&pool).await, 3);

    let (status, readiness) = server.get("/readyz").await;
    assert_eq!((status, &readiness["status"]), (200, &json!("degraded")), "{readiness}");
    assert_eq!(readiness["parked_events"], 1, "{readiness}");
    assert!(readiness["parked_seconds"].as_f64().unwrap() >= 0.0, "{readiness}");
    let metrics = server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("minutebook_parked_events 1"), "{metrics}");
    let status = run_on(&database, &["status"]).await;
    assert!(status.stdout.contains("1 events of 1 meetings or profiles"), "{}", status.stdout);

    let [listed] = lines(&run_on(&database, &["parked", "list", "--json"]).await).try_into().unwrap();
    assert_eq!((&listed["position"], &listed["aggregate_type"]), (&json!(2), &json!(aggregate_type)));
    assert_eq!((&listed["event_type"], &listed["waiting_behind"]), (&json!(event_type), &json!(0)));
    assert!(!listed["reason"].as_str().unwrap().is_empty(), "{listed}");
    let table = run_on(&database, &["parked", "list"]).await;
    assert!(table.stdout.contains(event_type), "{}", table.stdout);
    for told in [readiness.to_string(), metrics, status.stdout, listed.to_string(), table.stdout] {
        assert!(!told.contains("secret"), "{told}");
    }
    let shown = run_on(&database, &["parked", "show", "2"]).await;
    let shown = serde_json::from_str::<Value>(&shown.stdout).unwrap();
    assert_eq!(shown["event"]["payload"], serde_json::from_str::<Value>(payload).unwrap());
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn what_waits_behind_a_parked_event_is_applied_when_it_is_skipped_for_a_reason() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    book.start_projector();
    let (meeting, other) = (Uuid::from_u128(0xa0), Uuid::from_u128(0xb0));
    append(&book, &registered(meeting)).await;
    append_raw(&pool, ["meeting", &meeting.to_string(), "LanguageDetected", "1", "{}"], 1).await;
    append(&book, &started(meeting, 1)).await;
    append(&book, &created(other, "Ada")).await;
    append(&book, &language(meeting, 1, "de")).await;
    assert_eq!(caught_up_and_equal(&pool).await, 5);
    let status = "SELECT status || coalesce(language, '') FROM meetings";
    assert_eq!(sqlx::query_scalar::<_, String>(status).fetch_one(&pool).await.unwrap(), "pending");

    let [listed] = lines(&run_on(&database, &["parked", "list", "--json"]).await).try_into().unwrap();
    assert_eq!((&listed["position"], &listed["waiting_behind"]), (&json!(2), &json!(2)));
    let retried = run_on(&database, &["parked", "retry", "--all"]).await;
    assert_eq!(retried.code, Some(3), "{}", retried.stderr);
    assert!(retried.stderr.contains("position 2 still cannot be applied"), "{}", retried.stderr);
    for (arguments, complaint) in [
        (vec!["parked", "skip", "3", "--reason", "no"], "only waits for the one at 2"),
        (vec!["parked", "skip", "1", "--reason", "no"], "no event is parked at position 1"),
        (vec!["parked", "skip", "2"], "--reason"),
        (vec!["parked", "skip", "2", "--reason", " "], "1 to 1000 characters"),
        (vec!["parked", "skip", "2", "--reason", "no", "--actor", "me"], "an actor is"),
        (vec!["parked", "retry", "99"], "no event is parked at position 99"),
        (vec!["parked", "show", "1"], "no event is parked at position 1"),
    ] {
        let refused = run_on(&database, &arguments).await;
        assert_ne!(refused.code, Some(0), "{arguments:?}");
        assert!(refused.stderr.contains(complaint), "{arguments:?}: {}", refused.stderr);
    }
    assert_eq!(caught_up_and_equal(&pool).await, 5);

    let skip = ["parked", "skip", "2", "--reason", "written by hand", "--actor", "person:operator-7"];
    let skipped = run_on(&database, &skip).await;
    assert_eq!(skipped.code, Some(0), "{}", skipped.stderr);
    assert!(skipped.stdout.contains("2 events applied"), "{}", skipped.stdout);
    assert_eq!(sqlx::query_scalar::<_, String>(status).fetch_one(&pool).await.unwrap(), "processingde");
    assert_eq!(assert_tables_equal_the_fold(&pool).await, 5);
    let listed = run_on(&database, &["parked", "list"]).await.stdout;
    assert!(listed.starts_with("nothing is parked"), "{listed}");
    assert!(listed.contains("position 2 skipped by person:operator-7: written by hand"), "{listed}");

    // Commands see the meeting as the tables show it, and the projector goes on with the rows as they are now.
    let server = Server::start_with(&database, &["--only", "api"]).await;
    let fail = json!({"stage": "asr", "reason": "no words"});
    let (status, accepted) = server.post(&format!("/v1/meetings/{meeting}/fail"), &fail).await;
    assert_eq!((status, &accepted["version"]), (200, &json!(5)), "{accepted}");
    assert!(server.stop().await.success());
    append(&book, &renamed(other, "Ada L.")).await;
    assert_eq!(caught_up_and_equal(&pool).await, 7);
    let verified = run_on(&database, &["verify"]).await;
    assert_eq!(verified.code, Some(0), "{} {}", verified.stdout, verified.stderr);
    let rebuilt = run_on(&database, &["rebuild"]).await;
    assert_eq!(rebuilt.code, Some(0), "{} {}", rebuilt.stdout, rebuilt.stderr);
    assert_eq!(caught_up_and_equal(&pool).await, 7);
    book.close().await;
}

#[tokio::test]
async fn what_the_tables_refuse_is_parked_alone_and_applied_when_it_is_tried_again() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    pool.execute("ALTER TABLE files ADD CONSTRAINT no_ee CHECK (sha256 NOT LIKE 'ee%')").await.unwrap();
    let book = database.open().await;
    // All in one batch: the projector has not started.
    for byte in ["aa", "bb", "ee", "cc", "ed"] {
        append(&book, &registered_with(byte)).await;
    }
    append(&book, &started(Uuid::from_u128(0xee), 1)).await;
    append(&book, &started(Uuid::from_u128(0xed), 1)).await;
    book.start_projector();
    assert_eq!(caught_up_and_equal(&pool).await, 7);
    let [listed] = lines(&run_on(&database, &["parked", "list", "--json"]).await).try_into().unwrap();
    assert_eq!((&listed["position"], &listed["waiting_behind"]), (&json!(3), &json!(1)));
    let reason = listed["reason"].as_str().unwrap();
    assert!(reason.contains("23514") && reason.contains("no_ee") && !reason.contains("eeee"), "{reason}");

    // Not by itself: whoever mended the cause says so.
    pool.execute("ALTER TABLE files DROP CONSTRAINT no_ee").await.unwrap();
    append(&book, &registered_with("dd")).await;
    assert_eq!(caught_up_and_equal(&pool).await, 8);
    let retried = run_on(&database, &["parked", "retry", "6", "--json"]).await;
    assert_eq!(retried.code, Some(0), "{}", retried.stderr);
    let [retried] = lines(&retried).try_into().unwrap();
    assert_eq!((&retried["applied"], &retried["waiting"]), (&json!(2), &json!(0)));
    assert_eq!(
        sqlx::query_scalar::<_, i64>("SELECT count(*) FROM meetings").fetch_one(&pool).await.unwrap(),
        6
    );
    append(&book, &language(Uuid::from_u128(0xee), 1, "de")).await;
    assert_eq!(caught_up_and_equal(&pool).await, 9);
    book.close().await;
}

#[tokio::test]
async fn a_rebuild_meets_the_same_events_in_the_same_way_and_frees_those_that_fit_again() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    book.start_projector();
    let meeting = Uuid::from_u128(0xa0);
    append(&book, &registered(meeting)).await;
    append_raw(&pool, ["meeting", &meeting.to_string(), "LanguageDetected", "1", "{}"], 1).await;
    append_raw(&pool, ["picnic", "no id", "LanguageDetected", "1", "{}"], 0).await;
    append(&book, &started(meeting, 1)).await;
    pool.execute("ALTER TABLE files ADD CONSTRAINT no_bb CHECK (sha256 NOT LIKE 'bb%')").await.unwrap();
    append(&book, &registered_with("bb")).await;
    append(&book, &started(Uuid::from_u128(0xbb), 1)).await;
    append(&book, &registered_with("cc")).await;
    assert_eq!(caught_up_and_equal(&pool).await, 7);
    let parked = "SELECT position FROM ops.parked_events
                   WHERE generation = (SELECT generation FROM checkpoint) ORDER BY position";
    let parked = async || sqlx::query_scalar::<_, i64>(parked).fetch_all(&pool).await.unwrap();
    assert_eq!(parked().await, [2, 3, 4, 5, 6]);

    // The next generation has no such constraint: the comparison says what would come.
    let verified = run_on(&database, &["verify"]).await;
    assert_eq!(verified.code, Some(1), "{}", verified.stdout);
    let rebuilt = run_on(&database, &["rebuild", "--accept-differences"]).await;
    assert_eq!(rebuilt.code, Some(0), "{} {}", rebuilt.stdout, rebuilt.stderr);
    assert_eq!(parked().await, [2, 3, 4]);
    assert_eq!(caught_up_and_equal(&pool).await, 7);
    let decided = "SELECT position FROM ops.parked_decisions WHERE outcome = 'applied' ORDER BY position";
    assert_eq!(sqlx::query_scalar::<_, i64>(decided).fetch_all(&pool).await.unwrap(), [5, 6]);
    // The way back has them parked again.
    let back = run_on(&database, &["rebuild", "--rollback"]).await;
    assert_eq!(back.code, Some(0), "{}", back.stderr);
    assert_eq!(parked().await, [2, 3, 4, 5, 6]);
    append(&book, &registered_with("dd")).await;
    assert_eq!(caught_up_and_equal(&pool).await, 8);
    book.close().await;
}

#[tokio::test]
async fn what_was_skipped_while_another_generation_was_live_is_skipped_on_the_way_back() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    book.start_projector();
    let meeting = Uuid::from_u128(0xa0);
    append(&book, &registered(meeting)).await;
    append_raw(&pool, ["meeting", &meeting.to_string(), "LanguageDetected", "1", "{}"], 1).await;
    append(&book, &started(meeting, 1)).await;
    append_raw(&pool, ["meeting", &meeting.to_string(), "LanguageDetected", "1", "{}"], 3).await;
    append(&book, &language(meeting, 1, "de")).await;
    assert_eq!(caught_up_and_equal(&pool).await, 5);
    let done = async |arguments: &[&str]| {
        let ran = run_on(&database, arguments).await;
        assert_eq!(ran.code, Some(0), "{arguments:?}: {}{}", ran.stdout, ran.stderr);
    };
    let parked = async || {
        let parked = "SELECT position FROM ops.parked_events
                       WHERE generation = (SELECT generation FROM checkpoint) ORDER BY position";
        sqlx::query_scalar::<_, i64>(parked).fetch_all(&pool).await.unwrap()
    };
    done(&["rebuild"]).await;
    let skip = ["parked", "skip", "2", "--reason", "by hand"];
    assert_eq!(run_on(&database, &skip).await.code, Some(3), "the next one is at fault as well");
    done(&["parked", "skip", "4", "--reason", "by hand"]).await;
    assert_eq!(parked().await, [0; 0]);
    done(&["rebuild", "--rollback"]).await;
    assert_eq!(parked().await, [0; 0]);
    assert_eq!(caught_up_and_equal(&pool).await, 5);
    append(&book, &language(meeting, 1, "fr")).await;
    assert_eq!(caught_up_and_equal(&pool).await, 6);
    done(&["verify"]).await;

    // Skipped once more, as after a swap that broke off, it is skipped.
    append_raw(&pool, ["meeting", &meeting.to_string(), "LanguageDetected", "1", "{}"], 6).await;
    assert_eq!(caught_up_and_equal(&pool).await, 7);
    let before =
        "INSERT INTO ops.parked_decisions (position, outcome, actor) VALUES (7, 'skipped', 'system:test')";
    pool.execute(before).await.unwrap();
    done(&["parked", "skip", "7", "--reason", "by hand"]).await;
    assert_eq!(parked().await, [0; 0]);
    assert_eq!(caught_up_and_equal(&pool).await, 7);
    book.close().await;
}

#[tokio::test]
async fn more_parked_aggregates_than_single_faults_explain_stop_the_projector_until_one_is_decided_on() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    let most = i64::try_from(MOST_AGGREGATES).unwrap();
    let id = |n: i64| Uuid::from_u128(0x1000 + n as u128).to_string();
    append(&book, &registered_with("aa")).await;
    for n in 1..=most {
        append_raw(&pool, ["meeting", &id(n), "MeetingTeleported", "1", r#"{"secret": 1}"#], 0).await;
    }
    book.start_projector();
    assert_eq!(caught_up_and_equal(&pool).await, most + 1);
    // What waits behind one of them is no further aggregate.
    append_raw(&pool, ["meeting", &id(1), "MeetingTeleported", "1", "{}"], 1).await;
    append(&book, &registered_with("bb")).await;
    assert_eq!(caught_up_and_equal(&pool).await, most + 3);

    append_raw(&pool, ["meeting", &id(0), "MeetingTeleported", "1", r#"{"secret": 1}"#], 0).await;
    let mut projection = book.projection.clone();
    let stopped = |projection: &Projection| matches!(projection, Projection::Stopped { .. });
    let stopped = timeout(Duration::from_secs(60), projection.wait_for(stopped)).await.unwrap();
    let Projection::Stopped { position, reason } = stopped.unwrap().clone() else {
        panic!("it was waited for")
    };
    assert_eq!(position, most + 4);
    assert!(reason.contains("more than 1000 aggregates are parked"), "{reason}");
    append(&book, &registered_with("cc")).await;
    assert_eq!(assert_tables_equal_the_fold(&pool).await, most + 3);

    let skipped = run_on(&database, &["parked", "skip", "2", "--reason", "by hand"]).await;
    assert_eq!(skipped.code, Some(3), "the one behind it cannot be read either: {}", skipped.stderr);
    let behind = (most + 2).to_string();
    let skipped = run_on(&database, &["parked", "skip", &behind, "--reason", "by hand"]).await;
    assert_eq!(skipped.code, Some(0), "{}", skipped.stderr);
    // It tries again by itself.
    assert_eq!(caught_up_and_equal(&pool).await, most + 5);
    book.close().await;
}

#[tokio::test]
async fn a_meeting_whose_registration_was_skipped_has_no_rows_and_can_be_registered_again() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start(&database).await;
    let file = json!({"sha256": "ab".repeat(32)});
    let book = database.open().await;
    let id = MeetingId::derive(&book.store.identity().secret, None, &"ab".repeat(32).parse().unwrap());
    append_raw(&pool, ["meeting", &id.to_string(), "MeetingRegistered", "9", "{}"], 0).await;
    append(&book, &started(id.as_uuid(), 1)).await;
    append(&book, &diarized(id.as_uuid(), 1, &["a"])).await;
    assert_eq!(caught_up_and_equal(&pool).await, 3);
    let (status, refused) = server.post("/v1/meetings", &file).await;
    assert_eq!((status, &refused["code"]), (409, &json!("history_unreadable")), "{refused}");

    for position in ["1", "2", "3"] {
        let skipped = run_on(&database, &["parked", "skip", position, "--reason", "a tool's mistake"]).await;
        // What waits behind it is applied at once, and finds nothing that it could belong to.
        assert_eq!(skipped.code, Some(i32::from(position != "1")), "{}", skipped.stderr);
    }
    let verified = run_on(&database, &["verify"]).await;
    assert_eq!(verified.code, Some(0), "{} {}", verified.stdout, verified.stderr);
    let (status, registered) = server.post("/v1/meetings", &file).await;
    assert_eq!((status, &registered["version"]), (201, &json!(4)), "{registered}");
    assert_eq!(caught_up_and_equal(&pool).await, 4);
    let rebuilt = run_on(&database, &["rebuild"]).await;
    assert_eq!(rebuilt.code, Some(0), "{} {}", rebuilt.stdout, rebuilt.stderr);
    assert_eq!(caught_up_and_equal(&pool).await, 4);
    book.close().await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn what_was_skipped_has_no_effect_either_in_a_generation_that_showed_it_before() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    book.start_projector();
    let meeting = Uuid::from_u128(0xa0);
    append(&book, &registered(meeting)).await;
    append(&book, &started(meeting, 1)).await;
    append(&book, &language(meeting, 1, "de")).await;
    assert_eq!(caught_up_and_equal(&pool).await, 3);
    pool.execute("ALTER TABLE log.events DISABLE TRIGGER events_are_append_only").await.unwrap();
    pool.execute("UPDATE log.events SET event_version = '9' WHERE position = 3").await.unwrap();
    for arguments in [
        &["rebuild", "--accept-differences"][..],
        &["parked", "skip", "3", "--reason", "damaged on the disk"],
        &["rebuild", "--rollback"],
    ] {
        let ran = run_on(&database, arguments).await;
        assert_eq!(ran.code, Some(0), "{arguments:?}: {} {}", ran.stdout, ran.stderr);
    }
    let language = "SELECT language FROM meetings";
    assert_eq!(sqlx::query_scalar::<_, Option<String>>(language).fetch_one(&pool).await.unwrap(), None);
    assert_eq!(caught_up_and_equal(&pool).await, 3);
    book.close().await;
}

/// Returns the JSON objects that a command has printed, one a line.
fn lines(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn register(server: &Server, byte: &str) -> (String, Value) {
    let (status, accepted) = server.post("/v1/meetings", &json!({"sha256": byte.repeat(32)})).await;
    assert_eq!(status, 201, "{accepted}");
    (accepted["id"].as_str().unwrap().to_owned(), accepted)
}

/// Appends an event as a stranger might, of an aggregate that has `before` events.
pub(crate) async fn append_raw(
    pool: &PgPool,
    [aggregate_type, id, event_type, version, payload]: [&str; 5],
    before: i64,
) {
    let outcome: String = sqlx::query_scalar(
        r#"SELECT outcome FROM log.append(
               ARRAY[gen_random_uuid()], ARRAY[NULL::bytea], ARRAY[$1], ARRAY[$2], ARRAY[$6::bigint], ARRAY[1],
               ARRAY['{"actor": "test", "actor_kind": "system"}'], ARRAY[1], ARRAY[1], ARRAY[$3], ARRAY[$4],
               ARRAY[$5], ARRAY[1], true, '{}', '{}', '{}', '{}', '{}')"#,
    )
    .bind(aggregate_type)
    .bind(id)
    .bind(event_type)
    .bind(version)
    .bind(payload)
    .bind(before)
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(outcome, "all appended");
}
