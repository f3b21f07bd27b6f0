//! Projections change: a fault is mended by a rebuild, and so does a column come to the tables, while the old
//! program serves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use domain::Event;
use domain::meeting::MeetingEvent;
use event_store::log::Recorded;
use projections::fold::{Rows, fold};
use projections::projector::{self, Projection};
use projections::rebuild::pace::Speed;
use projections::rebuild::running::{Asked, Running};
use projections::rebuild::swap::swap;
use projections::rebuild::{self, Progress};
use projections::schema::{LIVE, NEXT};
use projections::tables::checkpoint;
use serde_json::{Value, json};
use sqlx::{Executor, PgPool};
use tests::TestDatabase;
use tests::server::Server;
use tokio::sync::watch;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{assert_clean, history, rebuilt, small_book};
use crate::cli::run_on;
use crate::read_models::history::{append, created, registered};
use crate::read_models::{caught_up_and_equal, eventually};

/// Says which meetings the faulty fold gets wrong.
fn is_hit(meeting: Uuid) -> bool {
    meeting.as_u128().is_multiple_of(3)
}

/// The fold with a fault: some completed meetings are said to have failed.
fn faulty_fold(rows: &mut Rows, recorded: &Recorded) {
    fold(rows, recorded);
    if let (Rows::Meeting(rows), Event::Meeting(id, MeetingEvent::MeetingCompleted(_))) =
        (rows, &recorded.event)
        && let Some(meeting) = &mut rows.meeting
        && is_hit(id.as_uuid())
    {
        "failed".clone_into(&mut meeting.status);
    }
}

#[tokio::test]
async fn a_fault_of_the_fold_is_listed_row_by_row_and_a_rebuild_mends_exactly_those_rows() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    let mut appended = tests::workload::Workload::new(7, 8);
    let mut head = 0;
    while head < 3000 {
        let outcome = book.store.appender().append(appended.next_append()).await.unwrap();
        let event_store::append::Outcome::Appended(place) = outcome else { panic!("{outcome:?}") };
        head = place.last_position;
    }
    let (sender, mut projection) = watch::channel(Projection::Standby);
    let projecting = projector::run(book.store.clone(), faulty_fold, sender, book.shutdown.clone());
    let projecting = tokio::spawn(projecting);
    let done =
        |projection: &Projection| matches!(projection, Projection::Active { position } if *position >= head);
    projection.wait_for(done).await.unwrap();
    book.close().await;
    projecting.await.unwrap();

    let faulty = statuses(&pool).await;
    let hit = faulty.iter().filter(|(id, status)| is_hit(**id) && *status == "failed");
    let hit = hit.map(|(id, _)| *id).collect::<Vec<_>>();
    assert!(hit.len() > 10, "{}", hit.len());
    let report = run_on(&database, &["rebuild", "--dry-run", "--json"]).await;
    let report = report
        .stdout
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).unwrap().get("comparison").cloned());
    let [report] = report.collect::<Vec<_>>().try_into().unwrap();
    for table in report["tables"].as_array().unwrap() {
        let expected = if table["table"] == "meetings" { hit.len() } else { 0 };
        assert_eq!(table["differing"], expected, "{table}");
        assert_eq!((&table["only_live"], &table["only_history"]), (&json!(0), &json!(0)), "{table}");
        if table["table"] == "meetings" {
            assert_eq!(table["columns"], json!({"status": hit.len()}));
            let named = table["examples"].as_array().unwrap().iter().map(|row| row["key"].as_str().unwrap());
            let first = hit.iter().take(5).map(Uuid::to_string).collect::<Vec<_>>();
            assert_eq!(named.collect::<Vec<_>>(), first);
        }
    }
    assert_eq!(statuses(&pool).await, faulty, "a dry run changes nothing");

    rebuilt(&database, &["rebuild", "--accept-differences", "--json"]).await;
    let mended = statuses(&pool).await;
    let changed = mended.iter().filter(|(id, status)| faulty[*id] != **status).map(|(id, _)| *id);
    assert_eq!(changed.collect::<Vec<_>>(), hit);
    assert!(hit.iter().all(|id| mended[id] == "completed"));
    assert_clean(&database).await;
}

async fn statuses(pool: &PgPool) -> BTreeMap<Uuid, String> {
    let rows: Vec<(Uuid, String)> =
        sqlx::query_as("SELECT id, status FROM meetings").fetch_all(pool).await.unwrap();
    rows.into_iter().collect()
}

struct Quiet;

impl Progress for Quiet {
    fn phase(&self, _: &'static str, _: i64) {}
    fn done(&self, _: i64) {}
}

#[tokio::test]
async fn a_column_comes_to_the_tables_while_the_old_program_serves() {
    const READERS: usize = 8;
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    history::make(&database, 11).await;
    let server = Server::start(&database).await;
    let meeting: Uuid = sqlx::query_scalar("SELECT id FROM meetings LIMIT 1").fetch_one(&pool).await.unwrap();
    let file: String = sqlx::query_scalar("SELECT sha256 FROM files LIMIT 1").fetch_one(&pool).await.unwrap();
    let finish = Arc::<AtomicBool>::default();
    let reads = Arc::<AtomicUsize>::default();
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let (client, finish, reads) = (server.client.clone(), Arc::clone(&finish), Arc::clone(&reads));
        let urls = [
            server.at(&format!("/v1/meetings/{meeting}")),
            server.at("/v1/meetings?limit=3"),
            server.at(&format!("/v1/files?sha256={file}")),
            server.at("/v1/profiles?limit=3"),
        ];
        readers.spawn(async move {
            while !finish.load(Ordering::Relaxed) {
                for url in &urls {
                    let response = client.get(url).send().await.unwrap();
                    let (status, text) = (response.status(), response.text().await.unwrap());
                    assert_eq!(status, 200, "{url}: {text}");
                    reads.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    let go_on = async || {
        let seen = reads.load(Ordering::Relaxed);
        eventually("reads go on", async || {
            (reads.load(Ordering::Relaxed) > seen + 20 * READERS).then_some(())
        })
        .await;
    };
    go_on().await;

    // What another version does: a generation with one column more and others wider, and the swap.
    let book = database.open().await;
    let asked = Asked { who: "another version".to_owned(), key: None };
    let mut running = Running::begin(&book.store, &asked, "rebuild").await.unwrap();
    let until = checkpoint::read(&pool).await.unwrap().position;
    rebuild::build(&book.store, NEXT, until, None, Speed::Full, &Arc::new(Quiet)).await.unwrap();
    pool.execute(
        "ALTER TABLE read_next.meetings ADD COLUMN title text;
         ALTER TABLE read_next.meetings ALTER language TYPE varchar(20);
         ALTER TABLE read_next.files ALTER mime TYPE varchar(200), ALTER sha256 TYPE text;
         ALTER TABLE read_next.user_profiles ALTER display_name TYPE text",
    )
    .await
    .unwrap();
    swap(&book.store, &mut running, NEXT, Duration::from_secs(10), &Quiet, &book.shutdown).await.unwrap();
    drop(running);
    go_on().await;
    // The old program reads on. It does not write tables that are not its own, and says so.
    let mut marking = pool.begin().await.unwrap();
    marking.execute("COMMENT ON SCHEMA read IS 'minutebook shape of tomorrow'").await.unwrap();
    checkpoint::renew(&mut marking, LIVE).await.unwrap();
    marking.commit().await.unwrap();
    append(&book, &created(Uuid::from_u128(0xc0), "Cy")).await;
    let readiness = eventually("the projector stops", async || {
        let (_, readiness) = server.get("/readyz").await;
        (readiness["status"] == "projector_stopped").then_some(readiness)
    })
    .await;
    assert!(readiness["reason"].as_str().unwrap().contains("another shape"), "{readiness}");
    go_on().await;

    // The new program would take over here; with the old one there is only the way back.
    pool.execute(
        format!("COMMENT ON SCHEMA read IS '{}'", projections::schema::shape(&pool).await.unwrap()).as_str(),
    )
    .await
    .unwrap();
    append(&book, &registered(Uuid::from_u128(0xd0))).await;
    let back = run_on(&database, &["rebuild", "--rollback"]).await;
    assert_eq!(back.code, Some(0), "{}", back.stderr);
    go_on().await;
    finish.store(true, Ordering::Relaxed);
    readers.join_all().await;
    caught_up_and_equal(&pool).await;
    book.close().await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_table_that_the_live_generation_does_not_have_yet_comes_with_all_its_history() {
    let (database, pool) = small_book().await;
    // As the version before left it.
    pool.execute(
        "DROP TABLE speaker_reassignments; COMMENT ON SCHEMA read IS 'minutebook shape of yesterday'",
    )
    .await
    .unwrap();
    let dry = run_on(&database, &["rebuild", "--dry-run"]).await;
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    let line = dry.stdout.lines().find(|line| line.contains("speaker_reassignments"));
    assert!(line.is_some_and(|line| line.contains("new table")), "{}", dry.stdout);
    rebuilt(&database, &["rebuild", "--json"]).await;
    caught_up_and_equal(&pool).await;
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM speaker_reassignments").fetch_one(&pool).await.unwrap();
    assert_eq!(rows, 1);
    assert_clean(&database).await;
}

#[tokio::test]
async fn a_column_that_the_live_tables_do_not_have_yet_is_told_and_is_no_difference() {
    let (database, pool) = small_book().await;
    // As if it had been added since.
    pool.execute(
        "ALTER TABLE files DROP COLUMN mime; COMMENT ON SCHEMA read IS 'minutebook shape of yesterday'",
    )
    .await
    .unwrap();
    let dry = run_on(&database, &["rebuild", "--dry-run"]).await;
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    assert!(dry.stdout.contains("new: mime"), "{}", dry.stdout);
    rebuilt(&database, &["rebuild", "--json"]).await;
    caught_up_and_equal(&pool).await;
    // Its own version alone can go on with the one before.
    let back = run_on(&database, &["rebuild", "--rollback"]).await;
    assert_eq!(back.code, Some(1));
    assert!(back.stderr.contains("another version of Minutebook"), "{}", back.stderr);
    caught_up_and_equal(&pool).await;
    assert_clean(&database).await;
}
