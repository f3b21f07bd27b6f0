//! `rebuild --until`: the tables as they stood are those of a log that had ended there.

use std::time::Duration;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use event_store::locks;
use event_store::log::{self, BatchLimits};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tests::TestDatabase;
use tokio::time::timeout;
use uuid::Uuid;

use super::{MEETING, assert_clean, contents, history, lines, shape_of, small_book};
use crate::cli::{Ran, minutebook, run_on};
use crate::read_models::history::{append, cached, created, language};
use crate::read_models::{caught_up_and_equal, eventually};

const TABLES: [&str; 9] = [
    "files",
    "meetings",
    "speakers",
    "user_profiles",
    "artifacts",
    "stale_artifacts",
    "speaker_reassignments",
    "cache",
    "cache_origin",
];

#[tokio::test]
async fn tables_laid_down_at_any_position_are_those_of_a_log_that_ended_there() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    history::make(&database, seed).await;
    let head = log::head(&pool).await.unwrap();
    let live = contents(&pool).await;
    let mut positions = vec![0, 1, head];
    positions.extend((0..3).map(|_| fastrand::i64(2..head)));
    for position in positions {
        let schema = format!("at_{position}");
        let said = laid_down(&database, &position.to_string(), &schema).await;
        assert_eq!((&said["schema"], &said["position"]), (&json!(schema), &json!(position)));
        let moment = log::recorded_at(&pool, position).await.unwrap();
        let ended = log_that_ends_at(&pool, position).await;
        let forgotten = forget_what_was_erased_since(&pool, &ended, position).await;
        for table in TABLES {
            let (laid, then) =
                (rows(&pool, &schema, table, None).await, rows(&ended, "read", table, moment).await);
            if table == "cache" && forgotten {
                // Of whoever speaks in them, what stages cached of other meetings is gone, too.
                assert!(laid.iter().all(|row| then.contains(row)), "{table} at position {position}");
            } else {
                assert_eq!(laid, then, "{table} at position {position}");
            }
        }
        assert_eq!(rows(&pool, &schema, "checkpoint", None).await, [format!("(0,{position})")]);
        assert_eq!(shape_of(&pool, &schema).await, shape_of(&pool, "read").await, "position {position}");
        ended.close().await;
    }
    assert_eq!(contents(&pool).await, live, "the live tables are not touched");
    assert_clean(&database).await;
}

#[tokio::test]
async fn a_time_is_the_last_position_that_was_recorded_by_then() {
    let (database, pool) = small_book().await;
    // Apart by a second each, but for two that were recorded at once.
    pool.execute("ALTER TABLE log.events DISABLE TRIGGER events_are_append_only").await.unwrap();
    let spread = "UPDATE log.events
                     SET recorded_at = '2026-01-01T00:00:00Z'::timestamptz + interval '1 s' * least(position, 10)";
    pool.execute(spread).await.unwrap();
    for (n, (time, position)) in [
        ("2025-12-31T23:59:59Z", 0),
        ("2026-01-01T00:00:01Z", 1),
        ("2026-01-01T01:00:01+01:00", 1),
        ("2026-01-01T00:00:01.999999Z", 1),
        ("2026-01-01T00:00:02Z", 2),
        ("2026-01-01T00:00:09.5Z", 9),
        ("2026-01-01T00:00:10Z", 11),
        ("2026-06-01T00:00:00Z", 11),
    ]
    .into_iter()
    .enumerate()
    {
        let schema = format!("at_{n}");
        let said = laid_down(&database, time, &schema).await;
        assert_eq!(said["position"], position, "{time}");
        let expected = rows(&log_that_ends_at(&pool, position).await, "read", "speakers", None).await;
        assert_eq!(rows(&pool, &schema, "speakers", None).await, expected, "{time}");
    }
}

#[tokio::test]
async fn a_time_waits_for_what_was_recorded_by_then_and_is_not_committed_yet() {
    let (database, pool) = small_book().await;
    let mut appending = PgConnection::connect(&database.url).await.unwrap();
    // As an append does it: the lock, the time, the rows, the commit.
    appending.execute("BEGIN").await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(locks::APPEND)
        .execute(&mut appending)
        .await
        .unwrap();
    appending
        .execute(
            "INSERT INTO log.events
             SELECT 12, clock_timestamp(), aggregate_type, aggregate_id, sequence + 1, event_type, event_version,
                    payload, metadata FROM log.events WHERE position = 11",
        )
        .await
        .unwrap();
    let time: DateTime<Utc> =
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&mut appending).await.unwrap();
    let time = time.to_rfc3339_opts(SecondsFormat::Micros, true);
    let mut laying = minutebook(&["rebuild", "--until", &time, "--schema", "just_now", "--json"]);
    let laying = laying.env("DATABASE_URL", &database.url).spawn().unwrap();
    eventually("it waits", async || {
        let waiting = "SELECT count(*) FROM pg_locks
                        WHERE NOT granted AND locktype = 'advisory' AND mode = 'ShareLock'
                          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        (sqlx::query_scalar::<_, i64>(waiting).fetch_one(&pool).await.unwrap() > 0).then_some(())
    })
    .await;
    appending.execute("COMMIT").await.unwrap();
    let output = timeout(Duration::from_secs(60), laying.wait_with_output()).await.unwrap().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let last = serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap();
    assert_eq!(last["laid_down"]["position"], 12, "{said}");
}

#[tokio::test]
async fn what_had_expired_by_then_is_absent_and_what_has_expired_since_is_there() {
    let (database, pool) = small_book().await;
    let book = database.open().await;
    let text = |at: DateTime<Utc>| at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let ttl = Utc::now() + TimeDelta::seconds(2);
    let kept = append(&book, &cached(MEETING, "vad", "pcm:2", "speech", Some(&text(ttl)))).await;
    eventually("it has expired", async || (Utc::now() > ttl).then_some(())).await;
    let after = append(&book, &created(Uuid::from_u128(3), "Cy")).await;
    book.close().await;
    let at_kept = log::recorded_at(&pool, kept).await.unwrap().unwrap();
    assert!(at_kept < ttl, "this machine is too slow for this test");
    let just_before = text(ttl - TimeDelta::microseconds(1));
    for (until, schema, position, there) in [
        (kept.to_string(), "when_kept", kept, true),
        (just_before, "just_before", kept, true),
        (text(ttl), "just_then", kept, false),
        (after.to_string(), "after", after, false),
    ] {
        assert_eq!(laid_down(&database, &until, schema).await["position"], position, "{schema}");
        let cache = rows(&pool, schema, "cache", None).await;
        assert_eq!(cache.iter().any(|row| row.contains("vad:pcm:2")), there, "{schema}: {cache:?}");
        let origins = rows(&pool, schema, "cache_origin", None).await;
        assert!(origins.contains(&format!("(vad:pcm:2,{kept})")), "{schema}: {origins:?}");
    }
}

#[tokio::test]
async fn the_tables_stay_until_they_are_dropped_whatever_happens_to_the_live_ones() {
    let (database, pool) = small_book().await;
    let ran = run_on(&database, &["rebuild", "--until", "7", "--schema", "at_seven"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("DROP SCHEMA \"at_seven\" CASCADE"), "{}", ran.stdout);
    let before = rows(&pool, "at_seven", "meetings", None).await;
    let book = database.open().await;
    book.start_projector();
    append(&book, &language(MEETING, 1, "fr")).await;
    caught_up_and_equal(&pool).await;
    book.close().await;
    super::rebuilt(&database, &["rebuild", "--json"]).await;
    assert_clean(&database).await;
    super::rebuilt(&database, &["rebuild", "--rollback", "--json"]).await;
    assert_eq!(rows(&pool, "at_seven", "meetings", None).await, before);
    pool.execute("DROP SCHEMA \"at_seven\" CASCADE").await.unwrap();
    laid_down(&database, "7", "at_seven").await;
}

#[tokio::test]
async fn what_cannot_be_laid_down_is_refused_and_leaves_nothing() {
    let (database, pool) = small_book().await;
    let refused = async |arguments: &[&str], code: i32, said: &str| {
        let ran = run_on(&database, &[&["rebuild"], arguments].concat()).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(said), "{arguments:?}: {said} is not in {}", ran.stderr);
    };
    let too_long = "a".repeat(64);
    for name in ["", "A", "1a", "a-b", "a b", "a\"b", "a;b", "ä", &too_long] {
        refused(&["--until", "1", "--schema", name], 2, "must be 1 to 63 of a-z 0-9 _").await;
    }
    for name in [
        "read",
        "read_next",
        "read_previous",
        "read_verify",
        "read_until",
        "read_old",
        "read_swapping",
        "log",
        "ops",
        "public",
        "information_schema",
        "pg_catalog",
        "pg_mine",
    ] {
        refused(&["--until", "1", "--schema", name], 2, "has for itself").await;
    }
    for until in ["", "-1", "1.5", "yesterday", "2026-01-01", "2026-01-01T00:00:00"] {
        refused(&[&format!("--until={until}"), "--schema", "s"], 2, "must be a position, or a time").await;
    }
    refused(&["--until", "1"], 2, "--schema").await;
    refused(&["--schema", "s"], 2, "--until").await;
    for other in ["--dry-run", "--accept-differences", "--rollback"] {
        refused(&["--until", "1", "--schema", "s", other], 2, "cannot be used with").await;
    }
    for until in ["12", "9223372036854775807", "2999-01-01T00:00:00Z"] {
        refused(&["--until", until, "--schema", "s"], 1, "has not come yet: the log ends at position 11")
            .await;
    }
    pool.execute("CREATE SCHEMA taken").await.unwrap();
    refused(&["--until", "1", "--schema", "taken"], 1, "there is a schema \"taken\" already").await;
    let left: Vec<String> =
        sqlx::query_scalar("SELECT nspname::text FROM pg_namespace WHERE nspname IN ('s', 'read_until')")
            .fetch_all(&pool)
            .await
            .unwrap();
    assert_eq!(left, [""; 0]);
}

/// Lays the tables down; returns what was said of them.
async fn laid_down(database: &TestDatabase, until: &str, schema: &str) -> Value {
    let ran: Ran = run_on(database, &["rebuild", "--until", until, "--schema", schema, "--json"]).await;
    assert_eq!(ran.code, Some(0), "{until}: {}{}", ran.stdout, ran.stderr);
    lines(&ran).pop().unwrap()["laid_down"].clone()
}

/// A subject's kind, id and life, its wrapped key, and when that was destroyed.
type Key = (String, Uuid, i32, Option<Vec<u8>>, Option<DateTime<Utc>>);

/// Returns a database into which only the first events came, shown by the live projector.
async fn log_that_ends_at(pool: &PgPool, position: i64) -> PgPool {
    let database = TestDatabase::create().await;
    let limits = BatchLimits { events: usize::try_from(position).unwrap(), bytes: usize::MAX };
    let events = log::read(pool, 0, limits).await.unwrap();
    assert_eq!(events.len() as i64, position);
    let book = database.open().await;
    let mut inserting = book.pool().begin().await.unwrap();
    // Who was forgotten is so already, and who was registered anew has another key: no event does it once more.
    inserting.execute("SET LOCAL session_replication_role = replica").await.unwrap();
    let keys: Vec<Key> = sqlx::query_as("SELECT kind, id, life, wrapped, destroyed_at FROM keys.subjects")
        .fetch_all(pool)
        .await
        .unwrap();
    for (kind, id, life, wrapped, destroyed_at) in keys {
        let insert =
            "INSERT INTO keys.subjects (kind, id, life, wrapped, destroyed_at) VALUES ($1, $2, $3, $4, $5)";
        sqlx::query(insert)
            .bind(kind)
            .bind(id)
            .bind(life)
            .bind(wrapped)
            .bind(destroyed_at)
            .execute(&mut *inserting)
            .await
            .unwrap();
    }
    for event in events {
        sqlx::query("INSERT INTO log.events VALUES ($1, $2, $3, $4, $5, $6, $7, $8::jsonb, $9::jsonb)")
            .bind(event.position)
            .bind(event.recorded_at)
            .bind(event.aggregate_type)
            .bind(event.aggregate_id)
            .bind(event.sequence)
            .bind(event.event_type)
            .bind(event.event_version)
            .bind(event.payload)
            .bind(event.metadata)
            .execute(&mut *inserting)
            .await
            .unwrap();
    }
    inserting.commit().await.unwrap();
    book.start_projector();
    caught_up_and_equal(book.pool()).await;
    book.close().await;
    database.pool().await
}

/// Takes out of the live tables of `ended` what they have of meetings that were erased after `position`, and of people
/// who ever were, whose links end after it; says whether there was anybody.
async fn forget_what_was_erased_since(pool: &PgPool, ended: &PgPool, position: i64) -> bool {
    let erased = "SELECT kind, subject FROM keys.erasures WHERE position > $1 OR kind = 'profile'";
    let erased: Vec<(String, Uuid)> = sqlx::query_as(erased).bind(position).fetch_all(pool).await.unwrap();
    for (kind, subject) in &erased {
        let deletes = match kind.as_str() {
            "profile" => &[
                "DELETE FROM user_profiles WHERE id = $1",
                "UPDATE speakers SET user_profile_id = NULL, confidence = NULL WHERE user_profile_id = $1",
            ][..],
            _ => &[
                "DELETE FROM stale_artifacts WHERE meeting_id = $1",
                "DELETE FROM speaker_reassignments WHERE meeting_id = $1",
                "DELETE FROM artifacts WHERE meeting_id = $1",
                "DELETE FROM speakers WHERE meeting_id = $1",
                "WITH deleted AS (DELETE FROM meetings WHERE id = $1 RETURNING file_id)
                 DELETE FROM files USING deleted WHERE files.id = deleted.file_id",
            ],
        };
        for delete in deletes {
            sqlx::query(delete).bind(subject).execute(ended).await.unwrap();
        }
    }
    !erased.is_empty()
}

/// Returns the rows of a table as text, in order; of the cache those that had not expired by `moment`.
async fn rows(pool: &PgPool, schema: &str, table: &str, moment: Option<DateTime<Utc>>) -> Vec<String> {
    let counts = match moment {
        Some(moment) if table == "cache" => format!("ttl IS NULL OR ttl > '{moment}'"),
        Some(_) | None => "true".to_owned(),
    };
    let query = format!("SELECT t::text FROM {schema}.{table} t WHERE {counts} ORDER BY 1");
    sqlx::query_scalar(&query).fetch_all(pool).await.unwrap()
}
