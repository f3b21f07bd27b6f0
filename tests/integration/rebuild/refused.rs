//! What cannot be done is refused with its reason, and a log that is damaged is told from tables that are.

use event_store::locks;
use sqlx::{Connection, Executor, PgConnection};
use tests::TestDatabase;

use super::{assert_clean, lines, rebuilt, schemas, small_book};
use crate::cli::run_on;

#[tokio::test]
async fn a_rollback_without_a_previous_generation_says_so() {
    let database = TestDatabase::create().await;
    let ran = run_on(&database, &["rebuild", "--rollback"]).await;
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""));
    assert!(ran.stderr.contains("no previous generation"), "{}", ran.stderr);
}

#[tokio::test]
async fn an_empty_book_is_verified_and_rebuilt_like_any_other() {
    let database = TestDatabase::create().await;
    assert_clean(&database).await;
    assert_eq!(rebuilt(&database, &["rebuild", "--json"]).await["position"], 0);
    assert_clean(&database).await;
}

#[tokio::test]
async fn of_two_at_once_the_second_is_refused_and_told_who_runs() {
    let (database, pool) = small_book().await;
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    sqlx::query("SELECT pg_advisory_lock($1)").bind(locks::REBUILD).execute(&mut other).await.unwrap();
    other
        .execute(
            "CREATE SCHEMA read_next;
             INSERT INTO ops.rebuilds (who, kind, phase, done, total, backend)
             VALUES ('process 4711 on saturn', 'rebuild', 'folding', 12, 34, pg_backend_pid())",
        )
        .await
        .unwrap();
    for arguments in [&["rebuild"][..], &["rebuild", "--dry-run"], &["rebuild", "--rollback"], &["verify"]] {
        let ran = run_on(&database, arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{arguments:?}");
        for said in ["another rebuild runs", "process 4711 on saturn", "folding", "12/34"] {
            assert!(ran.stderr.contains(said), "{arguments:?}: {said} is not in {}", ran.stderr);
        }
    }
    assert_eq!(schemas(&pool).await, ["read", "read_next"], "what the other one makes is left alone");
    let rows: Vec<Option<String>> =
        sqlx::query_scalar("SELECT outcome FROM ops.rebuilds").fetch_all(&pool).await.unwrap();
    assert_eq!(rows, [None], "and so is what is known of it");
    // It dies: the lock goes with its connection.
    other.close().await.unwrap();
    rebuilt(&database, &["rebuild", "--json"]).await;
    assert_eq!(schemas(&pool).await, ["read", "read_previous"]);
    let rows: Vec<Option<String>> =
        sqlx::query_scalar("SELECT outcome FROM ops.rebuilds ORDER BY id").fetch_all(&pool).await.unwrap();
    assert_eq!(rows, [Some("killed".to_owned()), Some("done".to_owned())]);
}

#[tokio::test]
async fn verify_names_the_position_at_which_a_log_is_damaged() {
    for (damage, said) in [
        ("DELETE FROM log.events WHERE position = 6", "position 7 follows 5"),
        ("DELETE FROM log.events WHERE position = 1", "position 2 follows 0"),
        (
            "UPDATE log.events SET recorded_at = recorded_at - interval '1 day' WHERE position = 6",
            "position 6 was recorded before position 5",
        ),
        ("UPDATE log.events SET payload = '{\"Unheard\": {}}' WHERE position = 6", "position 6"),
        ("UPDATE log.events SET event_type = 'Unheard' WHERE position = 6", "position 6"),
        ("UPDATE log.events SET event_version = '99' WHERE position = 6", "99 is not known"),
    ] {
        let (database, pool) = small_book().await;
        pool.execute("ALTER TABLE log.events DISABLE TRIGGER events_are_append_only").await.unwrap();
        assert_eq!(pool.execute(damage).await.unwrap().rows_affected(), 1, "{damage}");
        for arguments in [&["verify"][..], &["verify", "--json"]] {
            let ran = run_on(&database, arguments).await;
            assert_eq!(ran.code, Some(1), "{damage}: {}", ran.stdout);
            assert!(
                ran.stderr.contains(said) || ran.stdout.contains(said),
                "{damage}: {said} is not in {}{}",
                ran.stdout,
                ran.stderr
            );
            if arguments.contains(&"--json") {
                let last = lines(&ran).pop().unwrap();
                assert_eq!(last["clean"], false, "{damage}: {last}");
                let mut problems = last["log"].as_array().unwrap().iter();
                assert!(problems.any(|problem| problem.as_str().unwrap().contains(said)), "{damage}: {last}");
            } else {
                assert!(ran.stderr.contains("the log is damaged, or newer than"), "{damage}: {}", ran.stderr);
                assert!(!ran.stdout.is_empty(), "{damage}: it says what was compared, and what was not");
            }
        }
        assert_eq!(schemas(&pool).await, ["read"], "{damage}");
    }
}

#[tokio::test]
async fn verify_sees_an_event_that_was_changed_or_lost_at_the_end_by_what_the_tables_show() {
    for (damage, table) in [
        (
            "UPDATE log.events SET payload = jsonb_set(payload, '{ProfileCreated,display_name}', '\"Zed\"') \
             WHERE position = 1",
            "user_profiles",
        ),
        ("DELETE FROM log.events WHERE position = 11", "meetings"),
    ] {
        let (database, pool) = small_book().await;
        pool.execute("ALTER TABLE log.events DISABLE TRIGGER events_are_append_only").await.unwrap();
        assert_eq!(pool.execute(damage).await.unwrap().rows_affected(), 1, "{damage}");
        let ran = run_on(&database, &["verify", "--json"]).await;
        assert_eq!(ran.code, Some(1), "{damage}: {}", ran.stdout);
        let lines = lines(&ran);
        let report = lines.iter().find(|line| !line["comparison"].is_null());
        let report = report.unwrap_or_else(|| panic!("{damage}: {}{}", ran.stdout, ran.stderr));
        let tables = report["comparison"]["tables"].as_array().unwrap();
        let damaged = tables.iter().find(|compared| compared["table"] == table).unwrap();
        assert_eq!(damaged["differing"], 1, "{damage}: {damaged}");
    }
}

#[tokio::test]
async fn verify_names_every_event_that_cannot_be_read_also_where_the_tables_do_not_show_it_yet() {
    let (database, pool) = small_book().await;
    pool.execute("ALTER TABLE log.events DISABLE TRIGGER events_are_append_only").await.unwrap();
    let damage = "UPDATE log.events SET payload = '{\"Unheard\": {}}' WHERE position IN (6, 9)";
    pool.execute(damage).await.unwrap();
    let ran = run_on(&database, &["verify", "--json"]).await;
    let last = lines(&ran).pop().unwrap();
    let named = last["log"].as_array().unwrap().iter().map(|problem| problem.as_str().unwrap());
    let named = named.map(|problem| problem.split(" cannot").next().unwrap()).collect::<Vec<_>>();
    assert_eq!(named, ["the event at position 6", "the event at position 9"]);

    let (database, pool) = small_book().await;
    pool.execute(
        "INSERT INTO log.events SELECT 12, recorded_at, aggregate_type, aggregate_id, sequence + 1, event_type, '99',
                                       payload, metadata FROM log.events WHERE position = 11",
    )
    .await
    .unwrap();
    let ran = run_on(&database, &["verify", "--json"]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.stdout);
    let last = lines(&ran).pop().unwrap();
    assert_eq!(last["clean"], false);
    assert!(last["log"][0].as_str().unwrap().starts_with("the event at position 12 cannot"), "{last}");
    let report = lines(&ran).into_iter().find(|line| line.get("comparison").is_some()).unwrap();
    assert_eq!(report["comparison"]["position"], 11, "what the tables show is compared all the same");
}
