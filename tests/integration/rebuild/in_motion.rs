//! Rebuilds while others read and write, while a projector is in the middle of a batch, and killed at any
//! moment: nobody notices, nothing is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use api::book::Book;
use event_store::append::Outcome;
use event_store::locks;
use projections::freshness;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tests::TestDatabase;
use tests::server::Server;
use tests::workload::Workload;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{MEETING, OTHER, assert_clean, generation, history, rebuilt, schemas, small_book};
use crate::cli::{Ran, minutebook, run_on};
use crate::kill::rounds;
use crate::read_models::history::{append, created, language, registered, started};
use crate::read_models::{assert_tables_equal_the_fold, caught_up_and_equal, eventually};

#[tokio::test]
async fn readers_and_writers_do_not_notice_rebuilds() {
    const CLIENTS: usize = 200;
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start(&database).await;
    let finish = CancellationToken::new();
    let reads = Arc::<AtomicUsize>::default();
    let mut generations = vec![generation(&pool).await];
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let client =
            Client { client: server.client.clone(), url: server.url.clone(), reads: Arc::clone(&reads) };
        clients.spawn(client.run(finish.clone()));
    }
    for n in 1..=rounds(10) {
        let (before, started) = (reads.load(Ordering::Relaxed), Instant::now());
        let swapped = rebuilt(&database, &["rebuild", "--json"]).await;
        println!(
            "rebuild {n}: {:?}, {} reads meanwhile, blocked for {} ms",
            started.elapsed(),
            reads.load(Ordering::Relaxed) - before,
            swapped["blocked_ms"]
        );
        generations.push(generation(&pool).await);
    }
    let seen = reads.load(Ordering::Relaxed);
    eventually("reads go on", async || (reads.load(Ordering::Relaxed) > seen + CLIENTS).then_some(())).await;
    finish.cancel();
    clients.join_all().await;
    caught_up_and_equal(&pool).await;
    assert!(generations.is_sorted_by(|before, after| before < after), "{generations:?}");
    assert!(server.stop().await.success());
    assert_clean(&database).await;
}

/// Leads meetings through their life, and after each command reads what it has written.
struct Client {
    client: reqwest::Client,
    url: String,
    reads: Arc<AtomicUsize>,
}

impl Client {
    async fn run(self, finish: CancellationToken) {
        while !finish.is_cancelled() {
            let sha256 = (0..64).map(|_| fastrand::digit(16)).collect::<String>();
            let register = json!({"sha256": sha256, "mime": "audio/flac", "duration": 60});
            let meeting = self.write(Method::POST, "/v1/meetings".to_owned(), &register).await;
            let path = format!("/v1/meetings/{}", meeting["id"].as_str().unwrap());
            for (command, body) in [
                ("start", json!({"worker": "w"})),
                ("fingerprint", json!({"content_fp": format!("pcm:{}", fastrand::u8(..4))})),
                ("language", json!({"language": "en"})),
                ("speakers", json!({"clusters": [{"cluster_id": "spk0", "segments": []}]})),
                ("cache/asr", json!({"value": "words", "ttl_seconds": 1 + fastrand::u8(..3)})),
                ("artifacts", json!({"type": "transcript.md", "s3_key": "1/t.md"})),
                ("complete", json!({})),
            ] {
                let method = if command == "cache/asr" { Method::PUT } else { Method::POST };
                let written = self.write(method, format!("{path}/{command}"), &body).await;
                let position = written["position"].as_i64().unwrap();
                let (shown, read) = self.read(&path, position).await;
                assert!(shown.unwrap() >= position, "asked for {position}, shown {shown:?}");
                assert_eq!(read["version"], written["version"], "{command}: nobody else writes this meeting");
                assert!(read["position"].as_i64().unwrap() >= position, "{command}: {read}");
                if command == "complete" {
                    assert_eq!((&read["status"], &read["language"]), (&json!("completed"), &json!("en")));
                    let of = |list: &str| read[list].as_array().unwrap().len();
                    assert_eq!((of("speakers"), of("artifacts")), (1, 1), "{read}");
                    let (_, page) = self.read("/v1/meetings?limit=50", position).await;
                    assert!(!page["items"].as_array().unwrap().is_empty(), "the tables are never empty");
                }
            }
        }
    }

    async fn write(&self, method: Method, path: String, body: &Value) -> Value {
        let response =
            self.client.request(method, format!("{}{path}", self.url)).json(body).send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    /// Returns which position was shown, where that is said, and the answer.
    async fn read(&self, path: &str, position: i64) -> (Option<i64>, Value) {
        let request = self.client.get(format!("{}{path}", self.url));
        let response = request.header("minutebook-min-position", position).send().await.unwrap();
        let shown = response
            .headers()
            .get("minutebook-position")
            .map(|shown| shown.to_str().unwrap().parse().unwrap());
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, StatusCode::OK, "{path}: {text}");
        self.reads.fetch_add(1, Ordering::Relaxed);
        (shown, serde_json::from_str(&text).unwrap())
    }
}

#[tokio::test]
async fn a_rebuild_killed_at_any_moment_leaves_the_live_tables_and_the_next_one_succeeds() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = Arc::new(database.open().await);
    book.start_projector();
    history::append_straight(&book, fastrand::u64(..), 2000).await;
    caught_up_and_equal(&pool).await;
    let finish = CancellationToken::new();
    let writing = tokio::spawn(write(Arc::clone(&book), finish.clone()));

    let phases = ["beginning", "folding", "indexing", "comparing", "swapping"];
    for phase in (0..rounds(2)).flat_map(|_| phases) {
        let mut rebuilding = minutebook(&["rebuild", "--json"]);
        let mut rebuilding = rebuilding.env("DATABASE_URL", &database.url).spawn().unwrap();
        if phase != "beginning" {
            until_said(&mut rebuilding, phase).await;
        }
        // At any moment of the phase.
        sleep(Duration::from_millis(fastrand::u64(..40))).await;
        rebuilding.kill().await.unwrap();
        // PostgreSQL learns of the death of its client in its own time.
        eventually("the lock is free", async || {
            let ran = run_on(&database, &["verify", "--json"]).await;
            if ran.stderr.contains("another rebuild runs") {
                return None;
            }
            assert_eq!(ran.code, Some(0), "killed while {phase}: {}{}", ran.stdout, ran.stderr);
            Some(())
        })
        .await;
        assert_tables_equal_the_fold(&pool).await;
        let left = schemas(&pool).await;
        assert!(left.iter().all(|schema| ["read", "read_previous"].contains(&schema.as_str())), "{left:?}");
    }
    let killed = "SELECT count(*) FROM ops.rebuilds WHERE outcome = 'killed'";
    let killed: i64 = sqlx::query_scalar(killed).fetch_one(&pool).await.unwrap();
    println!("{killed} were killed before they were done");
    assert!(killed > 0);
    rebuilt(&database, &["rebuild", "--json"]).await;
    finish.cancel();
    assert!(writing.await.unwrap() > 0);
    caught_up_and_equal(&pool).await;
    book.close().await;
    assert_clean(&database).await;
    assert_eq!(schemas(&pool).await, ["read", "read_previous"]);
    let unfinished: i64 = sqlx::query_scalar("SELECT count(*) FROM ops.rebuilds WHERE finished_at IS NULL")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(unfinished, 0);
}

/// Registers one meeting after the other, each a moment after the one before is shown; returns how many. A rebuild
/// rests while somebody appends: without a pause the history would grow as fast as it is gone through.
async fn write(book: Arc<Book>, finish: CancellationToken) -> usize {
    let mut workload = Workload::new(fastrand::u64(..), 1);
    let mut written = 0;
    while !finish.is_cancelled() {
        let outcome = book.store.appender().append(workload.next_registration()).await.unwrap();
        let Outcome::Appended(place) = outcome else { panic!("{outcome:?}") };
        let deadline = Instant::now() + Duration::from_secs(60);
        let shown = freshness::wait_for(book.pool(), &book.projection, place.last_position, deadline);
        assert!(shown.await.unwrap(), "{place:?} is not shown");
        written += 1;
        sleep(Duration::from_millis(fastrand::u64(..150))).await;
    }
    written
}

#[tokio::test]
async fn the_swap_waits_for_whoever_holds_the_checkpoint_and_a_projector_of_before_writes_nothing() {
    let (database, pool) = small_book().await;
    let book = database.open().await;
    book.start_projector();
    append(&book, &created(Uuid::from_u128(3), "before")).await;
    caught_up_and_equal(&pool).await;
    let mut swap = AtSwap::reach(&database, &pool).await;

    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    holder.execute("BEGIN; SELECT position FROM read.checkpoint FOR UPDATE").await.unwrap();
    let during = append(&book, &created(Uuid::from_u128(4), "during")).await;
    swap.release_reader().await;
    eventually("the swap and the projector wait for the checkpoint", async || {
        let waiting = "SELECT count(DISTINCT pid) FROM pg_locks
                        WHERE NOT granted AND pid IN (SELECT pid FROM pg_stat_activity WHERE datname = current_database())";
        (sqlx::query_scalar::<_, i64>(waiting).fetch_one(&pool).await.unwrap() >= 2).then_some(())
    })
    .await;
    assert_eq!(generation(&pool).await, 1, "not yet");
    holder.execute("ROLLBACK").await.unwrap();
    let swapped = swap.done().await;
    assert!((during - 1..=during).contains(&swapped), "swapped at {swapped}");

    append(&book, &created(Uuid::from_u128(5), "after")).await;
    let head = append(&book, &language(OTHER, 1, "fr")).await;
    assert_eq!(caught_up_and_equal(&pool).await, head);
    let previous: i64 =
        sqlx::query_scalar("SELECT position FROM read_previous.checkpoint").fetch_one(&pool).await.unwrap();
    assert_eq!(previous, swapped, "the projector of before has written nothing");
    book.close().await;
    assert_clean(&database).await;
}

#[tokio::test]
async fn the_swap_between_a_projectors_first_write_and_its_checkpoint_loses_and_repeats_nothing() {
    let (database, pool) = small_book().await;
    let book = database.open().await;
    book.start_projector();
    caught_up_and_equal(&pool).await;
    let mut swap = AtSwap::reach(&database, &pool).await;

    // The projector holds the checkpoint, and comes no further than this row.
    let mut holder = PgConnection::connect(&database.url).await.unwrap();
    let hold = format!("BEGIN; SELECT id FROM read.meetings WHERE id = '{MEETING}' FOR UPDATE");
    holder.execute(hold.as_str()).await.unwrap();
    let during = append(&book, &started(MEETING, 2)).await;
    eventually("the projector is in the middle of a batch", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event_type = 'Lock'
                          AND query ~ '(UPDATE|INTO) meetings'";
        (sqlx::query_scalar::<_, i64>(waiting).fetch_one(&pool).await.unwrap() > 0).then_some(())
    })
    .await;
    swap.release_reader().await;
    append(&book, &registered(Uuid::from_u128(0xc0))).await;
    assert_eq!(generation(&pool).await, 1, "not yet");
    holder.execute("ROLLBACK").await.unwrap();
    assert!(swap.done().await >= during, "the swap came after the batch");
    append(&book, &language(MEETING, 2, "it")).await;
    caught_up_and_equal(&pool).await;
    book.close().await;
    assert_clean(&database).await;
}

#[tokio::test]
async fn a_table_held_for_all_the_time_stops_the_swap_and_changes_nothing() {
    let (database, pool) = small_book().await;
    let mut swap = AtSwap::reach_with(&database, &pool, &["--swap-timeout", "5"]).await;
    let holder: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut swap.reader).await.unwrap();
    let (ended, told) = swap.ended().await;
    assert_eq!(ended.code, Some(1), "{told:?}");
    let who = format!("backend {holder} (");
    let waiting = told.iter().find_map(|line| line["waiting_for"].as_str()).unwrap();
    assert!(waiting.starts_with(&who), "{waiting}");
    assert!(ended.stderr.contains("try again") && ended.stderr.contains(&who), "{}", ended.stderr);
    assert_eq!(generation(&pool).await, 1);
    assert_clean(&database).await;
    rebuilt(&database, &["rebuild", "--json"]).await;
}

#[tokio::test]
async fn what_readers_waited_while_the_swap_did_not_come_to_pass_is_told() {
    let (database, pool) = small_book().await;
    let mut swap = AtSwap::reach(&database, &pool).await;
    eventually("a try has been given up", async || {
        (sqlx::query_scalar::<_, i64>(WAITING).fetch_one(&pool).await.unwrap() == 0).then_some(())
    })
    .await;
    swap.release_reader().await;
    let (ran, told) = swap.ended().await;
    assert_eq!(ran.code, Some(0), "{told:?} {}", ran.stderr);
    let swapped = told.iter().find(|line| !line["swapped"].is_null()).unwrap();
    assert!(swapped["swapped"]["blocked_ms"].as_f64().unwrap() >= 80.0, "{swapped}");
}

#[tokio::test]
async fn a_swap_does_not_outlive_the_lock_of_its_rebuild() {
    let (database, pool) = small_book().await;
    let mut swap = AtSwap::reach(&database, &pool).await;
    let holder = "SELECT l.pid FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                   WHERE datname = current_database() AND granted AND locktype = 'advisory'
                     AND (classid::bigint << 32) + objid::bigint = $1";
    let holder: i32 = sqlx::query_scalar(holder).bind(locks::REBUILD).fetch_one(&pool).await.unwrap();
    sqlx::query("SELECT pg_terminate_backend($1)").bind(holder).execute(&pool).await.unwrap();
    eventually("it is gone", async || {
        let left = "SELECT count(*) FROM pg_stat_activity WHERE pid = $1";
        (sqlx::query_scalar::<_, i64>(left).bind(holder).fetch_one(&pool).await.unwrap() == 0).then_some(())
    })
    .await;
    swap.release_reader().await;
    let (ended, told) = swap.ended().await;
    assert_eq!(ended.code, Some(1), "{told:?} {}", ended.stderr);
    assert!(ended.stderr.contains("error: "), "{}", ended.stderr);
    assert_eq!(generation(&pool).await, 1);
    rebuilt(&database, &["rebuild", "--json"]).await;
    assert_clean(&database).await;
}

#[tokio::test]
async fn whoever_reads_an_old_generation_holds_up_the_swap_that_would_drop_it_and_nothing_else() {
    let (database, pool) = small_book().await;
    rebuilt(&database, &["rebuild", "--json"]).await;
    let mut reader = PgConnection::connect(&database.url).await.unwrap();
    reader.execute("BEGIN; SELECT count(*) FROM read_previous.meetings").await.unwrap();
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut reader).await.unwrap();
    rebuilt(&database, &["rebuild", "--json"]).await;
    assert_eq!(schemas(&pool).await, ["read", "read_old", "read_previous"]);
    assert_clean(&database).await;
    let held_up = run_on(&database, &["rebuild", "--swap-timeout", "3"]).await;
    assert_eq!(held_up.code, Some(1), "{}", held_up.stderr);
    assert!(held_up.stderr.contains(&format!("backend {backend} (")), "{}", held_up.stderr);
    reader.execute("ROLLBACK").await.unwrap();
    rebuilt(&database, &["rebuild", "--json"]).await;
    assert_eq!(schemas(&pool).await, ["read", "read_previous"]);
    assert_clean(&database).await;
}

/// How many wait for a table of their own.
const WAITING: &str = "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database
                        WHERE datname = current_database() AND NOT granted AND mode = 'AccessExclusiveLock'";

/// A rebuild that is ready to swap, and is kept from it by somebody who reads a table.
struct AtSwap {
    rebuilding: Child,
    told: JoinHandle<Vec<Value>>,
    reader: PgConnection,
}

impl AtSwap {
    async fn reach(database: &TestDatabase, pool: &PgPool) -> Self {
        Self::reach_with(database, pool, &[]).await
    }

    async fn reach_with(database: &TestDatabase, pool: &PgPool, options: &[&str]) -> Self {
        let mut reader = PgConnection::connect(&database.url).await.unwrap();
        reader.execute("BEGIN; SELECT count(*) FROM read.meetings").await.unwrap();
        let mut rebuilding = minutebook(&[&["rebuild", "--json"], options].concat());
        let mut rebuilding = rebuilding.env("DATABASE_URL", &database.url).spawn().unwrap();
        let told = until_said(&mut rebuilding, "swapping").await;
        eventually("the swap waits for the reader", async || {
            (sqlx::query_scalar::<_, i64>(WAITING).fetch_one(pool).await.unwrap() > 0).then_some(())
        })
        .await;
        assert_eq!(generation(pool).await, 1);
        Self { rebuilding, told, reader }
    }

    async fn release_reader(&mut self) {
        self.reader.execute("ROLLBACK").await.unwrap();
    }

    /// Waits for the swap; returns its position.
    async fn done(self) -> i64 {
        let (ran, told) = self.ended().await;
        assert_eq!(ran.code, Some(0), "{told:?} {}", ran.stderr);
        let swapped = told.iter().find(|line| !line["swapped"].is_null()).unwrap();
        swapped["swapped"]["position"].as_i64().unwrap()
    }

    /// Waits for the end; returns it, and what was said since the swap began.
    async fn ended(self) -> (Ran, Vec<Value>) {
        let ended = timeout(Duration::from_secs(60), self.rebuilding.wait_with_output());
        let output = ended.await.expect("the rebuild does not end").unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        let ran = Ran { code: output.status.code(), stdout: String::new(), stderr };
        (ran, self.told.await.unwrap())
    }
}

/// Waits until a rebuild says that a phase begins; what it says after that is collected.
async fn until_said(rebuilding: &mut Child, phase: &str) -> JoinHandle<Vec<Value>> {
    let mut said = BufReader::new(rebuilding.stdout.take().unwrap()).lines();
    let reached = timeout(Duration::from_secs(60), async {
        while let Some(line) = said.next_line().await.unwrap() {
            if serde_json::from_str::<Value>(&line).unwrap()["phase"] == phase {
                return true;
            }
        }
        false
    });
    assert!(reached.await.expect("the rebuild does not get on"), "it ended before it was {phase}");
    tokio::spawn(async move {
        let mut rest = vec![];
        while let Some(line) = said.next_line().await.unwrap() {
            // The last words of one that is killed may be cut short.
            rest.extend(serde_json::from_str::<Value>(&line));
        }
        rest
    })
}
