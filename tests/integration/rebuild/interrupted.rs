//! Rebuilds that are stopped or killed in the middle, over HTTP and on the command line: the live tables stay as
//! they are, it is known what became of them, and the next one works.

use serde_json::json;
use sqlx::{Connection, Executor, PgConnection};
use tests::TestDatabase;
use tests::server::Server;

use super::held::{Hold, until_held};
use super::over_http::{REBUILDS, begin, carried_out, outcomes};
use super::{assert_clean, contents, generation, oid, rebuilt, schemas, small_book};
use crate::cli::{interrupt, minutebook, run_on};
use crate::read_models::eventually;

#[tokio::test]
async fn a_server_that_is_told_to_stop_breaks_its_rebuild_off_and_the_next_one_works() {
    for body in [json!({"kind": "rebuild"}), json!({"kind": "dry-run"}), json!({"kind": "verify"})] {
        let (database, pool) = small_book().await;
        let hold = Hold::prepare(&database).await;
        let (before, live) = (contents(&pool).await, oid(&pool, "read.files").await);
        let server = Server::start(&database).await;
        let (location, _) = begin(&server, &body).await;
        until_held(&pool).await;
        assert!(server.stop().await.success(), "{body}");
        assert_eq!(schemas(&pool).await, ["read"], "{body}: nothing half built is left");
        assert_eq!((contents(&pool).await, oid(&pool, "read.files").await), (before, live), "{body}");
        assert_eq!(outcomes(&pool).await, [Some("interrupted".to_owned())], "{body}");

        let server = Server::start(&database).await;
        let (_, row) = server.get(&location).await;
        assert_eq!((&row["running"], &row["outcome"]), (&json!(false), &json!("interrupted")), "{row}");
        assert!(row["done"].as_i64().unwrap() > 0, "it is known how far it came: {row}");
        hold.release().await;
        assert_eq!(carried_out(&server, &body).await["outcome"], "done");
        assert!(server.stop().await.success());
        assert_clean(&database).await;
    }
}

#[tokio::test]
async fn a_server_that_is_told_to_stop_while_its_rebuild_waits_for_readers_does_not_swap() {
    let (database, pool) = small_book().await;
    let server = Server::start(&database).await;
    let mut reader = PgConnection::connect(&database.url).await.unwrap();
    reader.execute("BEGIN; SELECT count(*) FROM read.meetings").await.unwrap();
    let (location, _) = begin(&server, &json!({"kind": "rebuild"})).await;
    eventually("it wants to swap", async || {
        (server.get(&location).await.1["phase"] == "swapping").then_some(())
    })
    .await;
    assert!(server.stop().await.success());
    reader.execute("ROLLBACK").await.unwrap();
    assert_eq!((generation(&pool).await, schemas(&pool).await), (1, vec!["read".to_owned()]));
    assert_eq!(outcomes(&pool).await, [Some("interrupted".to_owned())]);
    rebuilt(&database, &["rebuild", "--json"]).await;
    assert_clean(&database).await;
}

#[tokio::test]
async fn a_rebuild_whose_server_is_killed_shows_as_killed_at_once_and_the_next_one_clears_up() {
    let (database, pool) = small_book().await;
    let hold = Hold::prepare(&database).await;
    let (before, live) = (contents(&pool).await, oid(&pool, "read.files").await);
    let server = Server::start(&database).await;
    let (location, _) = begin(&server, &json!({"kind": "rebuild"})).await;
    let done = until_held(&pool).await;
    server.kill_9().await;

    let server = Server::start(&database).await;
    // PostgreSQL learns of the death of its client in its own time.
    let killed = eventually("it shows as killed", async || {
        let (_, row) = server.get(&location).await;
        (row["outcome"] == "killed").then_some(row)
    })
    .await;
    assert_eq!((&killed["running"], &killed["finished_at"]), (&json!(false), &json!(null)), "{killed}");
    assert!(killed["done"].as_i64().unwrap() >= done, "{killed}");
    assert_eq!(server.get(REBUILDS).await.1["items"], json!([killed]));
    let status = run_on(&database, &["status"]).await.stdout;
    assert!(!status.contains("rebuild"), "{status}");
    assert_eq!((contents(&pool).await, oid(&pool, "read.files").await), (before, live));
    assert_eq!(schemas(&pool).await, ["read", "read_next"], "it could not clear up");

    // What it was doing still goes on in PostgreSQL, and must not hold up the next one.
    let back = run_on(&database, &["rebuild", "--rollback"]).await;
    assert!(back.stderr.contains("no previous generation"), "{}", back.stderr);
    assert_eq!(schemas(&pool).await, ["read"]);
    hold.release().await;
    assert_eq!(carried_out(&server, &json!({"kind": "rebuild"})).await["outcome"], "done");
    assert!(generation(&pool).await > 1);
    assert_eq!(outcomes(&pool).await[0], Some("killed".to_owned()));
    assert!(server.stop().await.success());
    assert_clean(&database).await;
}

#[tokio::test]
async fn ctrl_c_ends_a_command_with_130_and_clears_up() {
    for arguments in [&["rebuild"][..], &["rebuild", "--dry-run"], &["verify"]] {
        let (database, pool) = small_book().await;
        let hold = Hold::prepare(&database).await;
        let before = contents(&pool).await;
        let child = minutebook(arguments).env("DATABASE_URL", &database.url).spawn().unwrap();
        until_held(&pool).await;
        assert_eq!(interrupt(child).await, Some(130), "{arguments:?}");
        assert_eq!(schemas(&pool).await, ["read"], "{arguments:?}");
        assert_eq!(contents(&pool).await, before, "{arguments:?}");
        assert_eq!(outcomes(&pool).await, [Some("interrupted".to_owned())], "{arguments:?}");
        hold.release().await;
        rebuilt(&database, &["rebuild", "--json"]).await;
        assert_clean(&database).await;
    }
}

#[tokio::test]
async fn tables_laid_down_as_they_stood_are_whole_or_not_there() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let hold = Hold::prepare(&database).await;
    let arguments = ["rebuild", "--until", "4", "--schema", "as_it_stood"];
    let there = async || {
        let query = "SELECT nspname::text FROM pg_namespace WHERE nspname IN ('read_until', 'as_it_stood')";
        sqlx::query_scalar::<_, String>(query).fetch_all(&pool).await.unwrap()
    };
    let child = minutebook(&arguments).env("DATABASE_URL", &database.url).spawn().unwrap();
    until_held_without_progress(&pool).await;
    assert_eq!(interrupt(child).await, Some(130));
    assert_eq!(there().await, [""; 0]);

    let mut child = minutebook(&arguments).env("DATABASE_URL", &database.url).spawn().unwrap();
    until_held_without_progress(&pool).await;
    child.kill().await.unwrap();
    assert_eq!(there().await, ["read_until"], "what is half built has not the name that was asked for");
    hold.release().await;
    eventually("it is tried again", async || {
        let ran = run_on(&database, &arguments).await;
        if ran.stderr.contains("another rebuild runs") {
            return None;
        }
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        Some(())
    })
    .await;
    assert_eq!(there().await, ["as_it_stood"]);
    let outcome = |outcome: &str| Some(outcome.to_owned());
    assert_eq!(outcomes(&pool).await, [outcome("interrupted"), outcome("killed"), outcome("done")]);
}

/// Waits until a rebuild of nothing but the held meeting is held.
async fn until_held_without_progress(pool: &sqlx::PgPool) {
    eventually("a worker waits", async || {
        let waiting =
            "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'advisory' AND objid = 4242
                          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        (sqlx::query_scalar::<_, i64>(waiting).fetch_one(pool).await.unwrap() > 0).then_some(())
    })
    .await;
}
