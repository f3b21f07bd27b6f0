//! `rebuild` and `verify`: what history gives is what is live, what is not is named and mended, and what stops
//! half-way leaves the live tables as they were.

mod as_it_stood;
mod evolution;
mod held;
mod history;
mod in_motion;
mod interrupted;
mod over_http;
mod refused;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use sqlx::{Executor, PgPool};
use tests::TestDatabase;
use uuid::Uuid;

use crate::cli::{Ran, run_on};
use crate::import;
use crate::read_models::history::{
    append, artifact_id, cached, completed, created, diarized, file_id, language, reassigned, registered,
    speaker, started,
};
use crate::read_models::{assert_tables_equal_the_fold, caught_up_and_equal};

const MEETING: Uuid = Uuid::from_u128(0xa0);
const OTHER: Uuid = Uuid::from_u128(0xb0);
const ADA: Uuid = Uuid::from_u128(0xada);
const BO: Uuid = Uuid::from_u128(0xb0b);

#[tokio::test]
async fn a_rebuild_of_any_history_equals_the_live_tables_and_there_is_a_way_back() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let fresh = shape(&pool).await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    history::make(&database, seed).await;
    let before = contents(&pool).await;
    let first = generation(&pool).await;

    assert_clean(&database).await;
    assert_eq!(schemas(&pool).await, ["read"], "verify leaves nothing behind");
    let swapped = rebuilt(&database, &["rebuild", "--json"]).await;
    assert_eq!(swapped["position"], event_store::log::head(&pool).await.unwrap());
    assert_eq!(schemas(&pool).await, ["read", "read_previous"]);
    assert_tables_equal_the_fold(&pool).await;
    assert_eq!(contents(&pool).await, before);
    assert_eq!(shape(&pool).await, fresh, "keys, indexes, columns and their defaults");
    let second = generation(&pool).await;
    assert!(second > first, "{second} after {first}");
    assert_clean(&database).await;

    let rebuilt_files = oid(&pool, "read.files").await;
    rebuilt(&database, &["rebuild", "--rollback", "--json"]).await;
    assert_eq!(oid(&pool, "read_previous.files").await, rebuilt_files, "they have changed places");
    assert!(generation(&pool).await > second, "no number comes twice");
    assert_tables_equal_the_fold(&pool).await;
    assert_clean(&database).await;
    rebuilt(&database, &["rebuild", "--rollback", "--json"]).await;
    assert_eq!(oid(&pool, "read.files").await, rebuilt_files, "and back once more");
    let swapped = run_on(&database, &["rebuild"]).await;
    assert_eq!(swapped.code, Some(0), "{}", swapped.stderr);
    assert!(swapped.stdout.contains("are the same at position"), "{}", swapped.stdout);
    assert_eq!(shape(&pool).await, fresh);
    assert_clean(&database).await;
}

#[tokio::test]
async fn a_rollback_catches_up_first() {
    let (database, pool) = small_book().await;
    let before = rebuilt(&database, &["rebuild", "--json"]).await["position"].as_i64().unwrap();
    let book = database.open().await;
    book.start_projector();
    append(&book, &created(Uuid::from_u128(3), "Cy")).await;
    let head = append(&book, &language(OTHER, 1, "fr")).await;
    assert_eq!(caught_up_and_equal(&pool).await, head);
    assert!(before < head);
    assert_eq!(rebuilt(&database, &["rebuild", "--rollback", "--json"]).await["position"], head);
    assert_tables_equal_the_fold(&pool).await;
    book.close().await;
    assert_clean(&database).await;
}

#[tokio::test]
async fn each_row_damaged_by_hand_is_named_and_mended_when_the_operator_says_so() {
    let (database, pool) = small_book().await;
    let stray = Uuid::from_u128(0x5712a);
    let differing = |key: &dyn ToString, columns: &[&str]| json!({"key": key.to_string(), "what": "differing", "columns": columns});
    let only = |key: &dyn ToString, what: &str| json!({"key": key.to_string(), "what": what, "columns": []});
    let asr = "asr:pcm:1";
    let lost: String =
        sqlx::query_scalar("SELECT key FROM cache WHERE key LIKE 'meeting:%' ORDER BY key LIMIT 1")
            .fetch_one(&pool)
            .await
            .unwrap();
    let artifact = artifact_id(MEETING, 1, "transcript.md");
    let damages = [
        (format!("UPDATE files SET size = size + 1, mime = NULL WHERE id = '{}'", file_id(MEETING)), "files"),
        (format!("UPDATE meetings SET status = 'failed' WHERE id = '{OTHER}'"), "meetings"),
        (format!("UPDATE speakers SET confidence = 0 WHERE id = '{}'", speaker(MEETING, 1, "a")), "speakers"),
        (format!("DELETE FROM speakers WHERE id = '{}'", speaker(MEETING, 1, "b")), "speakers"),
        (format!("INSERT INTO speakers (id) VALUES ('{stray}')"), "speakers"),
        (format!("DELETE FROM user_profiles WHERE id = '{ADA}'"), "user_profiles"),
        (format!("UPDATE user_profiles SET display_name = 'Bob' WHERE id = '{BO}'"), "user_profiles"),
        (format!("UPDATE artifacts SET meta = NULL WHERE id = '{artifact}'"), "artifacts"),
        (
            "UPDATE speaker_reassignments SET actor = 'nobody', to_profile_id = NULL".to_owned(),
            "speaker_reassignments",
        ),
        (
            format!(
                "INSERT INTO speaker_reassignments (position, recorded_at, meeting_id, sequence, speaker_id, reason)
                 VALUES (7, now(), '{MEETING}', 5, '{stray}', 'so they say')"
            ),
            "speaker_reassignments",
        ),
        (format!("UPDATE cache SET value = value || ' ' WHERE key = '{asr}'"), "cache"),
        (format!("DELETE FROM cache WHERE key = '{lost}'"), "cache"),
        (format!("UPDATE cache_origin SET position = position - 1 WHERE key = '{asr}'"), "cache_origin"),
    ];
    for (damage, _) in &damages {
        assert_eq!(pool.execute(damage.as_str()).await.unwrap().rows_affected(), 1, "{damage}");
    }
    let mut expected = BTreeMap::from([
        ("files", vec![differing(&file_id(MEETING), &["mime", "size"])]),
        ("meetings", vec![differing(&OTHER, &["status"])]),
        (
            "speakers",
            vec![
                differing(&speaker(MEETING, 1, "a"), &["confidence"]),
                only(&speaker(MEETING, 1, "b"), "only_history"),
                only(&stray, "only_live"),
            ],
        ),
        ("user_profiles", vec![only(&ADA, "only_history"), differing(&BO, &["display_name"])]),
        ("artifacts", vec![differing(&artifact, &["meta"])]),
        ("speaker_reassignments", vec![differing(&6, &["to_profile_id", "actor"]), only(&7, "only_live")]),
        ("cache", vec![differing(&asr, &["value"]), only(&lost, "only_history")]),
        ("cache_origin", vec![differing(&asr, &["position"])]),
    ]);
    expected.values_mut().for_each(|rows| rows.sort_by_key(|row| row["key"].as_str().map(str::to_owned)));
    let damaged = contents(&pool).await;
    let live = oid(&pool, "read.files").await;

    let verified = run_on(&database, &["verify", "--json"]).await;
    assert_eq!(verified.code, Some(1), "{}", verified.stdout);
    assert_names(&verified, &expected);
    assert_eq!(lines(&verified).last().unwrap(), &json!({"log": [], "clean": false}));
    let text = run_on(&database, &["verify"]).await;
    assert_eq!(text.code, Some(1));
    let named = format!("files {} differing: mime, size", file_id(MEETING));
    assert!(text.stdout.contains(&named) && text.stdout.contains("differ at position"), "{}", text.stdout);

    let dry = run_on(&database, &["rebuild", "--dry-run", "--json"]).await;
    assert_eq!(dry.code, Some(0), "{}", dry.stderr);
    assert_names(&dry, &expected);
    let refused = run_on(&database, &["rebuild", "--json"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("--accept-differences"), "{}", refused.stderr);
    assert_names(&refused, &expected);
    assert_eq!(
        (contents(&pool).await, oid(&pool, "read.files").await),
        (damaged, live),
        "nothing was changed"
    );
    assert_eq!(schemas(&pool).await, ["read"], "and nothing is left behind");

    rebuilt(&database, &["rebuild", "--accept-differences", "--json"]).await;
    assert_tables_equal_the_fold(&pool).await;
    assert_clean(&database).await;
    let outcomes: Vec<(String, Option<String>)> =
        sqlx::query_as("SELECT kind, outcome FROM ops.rebuilds ORDER BY id").fetch_all(&pool).await.unwrap();
    let outcome = |kind: &str, outcome: &str| (kind.to_owned(), Some(outcome.to_owned()));
    let expected = [
        outcome("verify", "failed"),
        outcome("verify", "failed"),
        outcome("dry-run", "done"),
        outcome("rebuild", "failed"),
        outcome("rebuild", "done"),
        outcome("verify", "done"),
    ];
    assert_eq!(outcomes, expected);
}

#[tokio::test]
async fn a_dry_run_over_whole_tables_changes_nothing_and_leaves_nothing_behind() {
    let (database, pool) = small_book().await;
    let (before, live) = (contents(&pool).await, oid(&pool, "read.files").await);
    let ran = run_on(&database, &["rebuild", "--dry-run"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("are the same at position"), "{}", ran.stdout);
    assert_eq!(schemas(&pool).await, ["read"]);
    assert_eq!((contents(&pool).await, oid(&pool, "read.files").await), (before, live));
    assert_eq!(generation(&pool).await, 1);
}

#[tokio::test]
async fn real_diarizations_rebuilt_have_the_speakers_that_their_files_name() {
    let name = "real_diarizations_rebuilt_have_the_speakers_that_their_files_name";
    let Some(data) = tests::real_data(name) else { return };
    let dirs = [data.join("ami/rttm"), data.join("voxconverse/rttm")];
    let paths = dirs.iter().flat_map(|dir| import::rttm_files(dir)).collect::<Vec<_>>();
    let recordings = paths.iter().flat_map(|path| import::read(path)).collect::<Vec<_>>();
    let mut labels = BTreeMap::<String, std::collections::BTreeSet<String>>::new();
    for path in &paths {
        for line in std::fs::read_to_string(path).unwrap().lines() {
            let fields = line.split_whitespace().collect::<Vec<_>>();
            labels.entry(fields[1].to_owned()).or_default().insert(fields[7].to_owned());
        }
    }
    let mut clusters = labels.values().map(|labels| labels.len() as i64).collect::<Vec<_>>();
    clusters.sort_unstable();

    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let dirs = dirs.map(|dir| dir.display().to_string());
    let ran = run_on(&database, &["import", "rttm", &dirs[0], &dirs[1]]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let swapped = rebuilt(&database, &["rebuild", "--json"]).await;
    assert_eq!(swapped["position"], recordings.len() as i64 * 4);
    import::assert_book_has(&pool, &recordings).await;
    let shown: Vec<i64> = sqlx::query_scalar(
        "SELECT count(s.id) FROM meetings m LEFT JOIN speakers s ON s.meeting_id = m.id GROUP BY m.id ORDER BY 1",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    assert_eq!(shown, clusters, "speakers of each recording");
    assert_tables_equal_the_fold(&pool).await;
    assert_clean(&database).await;
}

/// A few meetings and profiles, all shown.
async fn small_book() -> (TestDatabase, PgPool) {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    for event in [
        created(ADA, "Ada"),
        created(BO, "Bo"),
        registered(MEETING),
        started(MEETING, 1),
        diarized(MEETING, 1, &["a", "b"]),
        reassigned(MEETING, 1, "a", Some(ADA)),
        cached(MEETING, "asr", "pcm:1", "words", None),
        completed(MEETING, 1, &["a", "b"], &[("transcript.md", "1.md")]),
        registered(OTHER),
        started(OTHER, 1),
        completed(OTHER, 1, &[], &[]),
    ] {
        append(&book, &event).await;
    }
    book.start_projector();
    caught_up_and_equal(book.pool()).await;
    book.close().await;
    let pool = database.pool().await;
    (database, pool)
}

/// Returns what a command said in JSON, line by line.
fn lines(ran: &Ran) -> Vec<Value> {
    ran.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Runs a rebuild that swaps; returns what it said of the swap.
async fn rebuilt(database: &TestDatabase, arguments: &[&str]) -> Value {
    let ran = run_on(database, arguments).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    let swapped = lines(&ran).into_iter().find(|line| !line["swapped"].is_null());
    let swapped = swapped.unwrap_or_else(|| panic!("no word of the swap: {}", ran.stdout));
    swapped["swapped"].clone()
}

/// Lets the program prove that the live tables are what the log says.
async fn assert_clean(database: &TestDatabase) {
    let ran = run_on(database, &["verify", "--json"]).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    assert_eq!(lines(&ran).last().unwrap(), &json!({"log": [], "clean": true}));
}

/// Checks that a comparison names exactly these rows, table by table.
fn assert_names(ran: &Ran, expected: &BTreeMap<&str, Vec<Value>>) {
    let lines = lines(ran);
    let report = lines.iter().find(|line| !line["comparison"].is_null()).unwrap();
    for table in report["comparison"]["tables"].as_array().unwrap() {
        let name = table["table"].as_str().unwrap();
        let rows = expected.get(name).map(Vec::as_slice).unwrap_or_default();
        assert_eq!(table["examples"], json!(rows), "{name}");
        for what in ["only_live", "only_history", "differing"] {
            assert_eq!(table[what], rows.iter().filter(|row| row["what"] == what).count(), "{name}: {what}");
        }
    }
}

async fn schemas(pool: &PgPool) -> Vec<String> {
    let query = "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE 'read%' ORDER BY 1";
    sqlx::query_scalar(query).fetch_all(pool).await.unwrap()
}

async fn generation(pool: &PgPool) -> i64 {
    sqlx::query_scalar("SELECT generation FROM read.checkpoint").fetch_one(pool).await.unwrap()
}

/// Tells a table from another one of the same name.
async fn oid(pool: &PgPool, table: &str) -> i64 {
    let query = "SELECT to_regclass($1)::oid::bigint";
    sqlx::query_scalar(query).bind(table).fetch_one(pool).await.unwrap()
}

/// Returns the live rows as text, but for cache rows that have a time to live: they go when it is over.
async fn contents(pool: &PgPool) -> String {
    let mut text = String::new();
    for table in [
        "files",
        "meetings",
        "speakers",
        "user_profiles",
        "artifacts",
        "speaker_reassignments",
        "cache t WHERE ttl IS NULL",
        "cache_origin",
    ] {
        let from = if table.contains(' ') { table.to_owned() } else { format!("{table} t") };
        let query = format!("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY t::text), '') FROM {from}");
        let rows: String = sqlx::query_scalar(&query).fetch_one(pool).await.unwrap();
        text.push_str(&rows);
        text.push('\n');
    }
    text
}

/// Returns all that the live tables are besides their rows.
async fn shape(pool: &PgPool) -> Vec<String> {
    shape_of(pool, "read").await
}

/// Returns the same of the tables in another schema; names are told without it.
async fn shape_of(pool: &PgPool, schema: &str) -> Vec<String> {
    let shape: Vec<String> = sqlx::query_scalar(
        "SELECT concat_ws(' ', t.relname, c.conname, pg_get_constraintdef(c.oid), c.convalidated)
           FROM pg_constraint c JOIN pg_class t ON t.oid = c.conrelid
          WHERE c.connamespace = $1::text::regnamespace
         UNION ALL
         SELECT concat_ws(' ', pg_get_indexdef(i.indexrelid), i.indisprimary, i.indisvalid)
           FROM pg_index i JOIN pg_class t ON t.oid = i.indrelid
          WHERE t.relnamespace = $1::text::regnamespace
         UNION ALL
         SELECT concat_ws(' ', t.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod),
                    a.attnotnull, pg_get_expr(d.adbin, d.adrelid))
           FROM pg_class t JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
           LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum
          WHERE t.relnamespace = $1::text::regnamespace AND t.relkind = 'r'
         UNION ALL
         SELECT concat_ws(' ', relkind, relname, relpersistence, reloptions)
           FROM pg_class WHERE relnamespace = $1::text::regnamespace
          ORDER BY 1",
    )
    .bind(schema)
    .fetch_all(pool)
    .await
    .unwrap();
    let mut shape = shape.iter().map(|line| line.replace(&format!("{schema}."), "")).collect::<Vec<_>>();
    shape.sort_unstable();
    shape
}
