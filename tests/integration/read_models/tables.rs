//! One spec per table: after each event, what the table shows. Each runs three times, with the history in
//! one batch, in batches of one event, and in batches of one event with a new projector for each, which
//! has to load the rows that the one before it wrote.

use std::time::Duration;

use api::book::Book;
use projections::freshness;
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::TestDatabase;
use tokio::time::Instant;
use uuid::Uuid;

use super::history::*;
use super::{assert_tables_equal_the_fold, caught_up_and_equal};

const M: Uuid = Uuid::from_u128(0xa0);
const N: Uuid = Uuid::from_u128(0xb0);
const ADA: Uuid = Uuid::from_u128(0xada);
const BO: Uuid = Uuid::from_u128(0xb0b);

#[tokio::test]
async fn files_has_the_upload_and_later_its_fingerprint() {
    let row = |content_fp: Option<&str>| {
        json!([{"id": file_id(M), "sha256": "ab".repeat(32), "content_fp": content_fp, "mime": "audio/flac",
                "duration": 1800, "size": 5_000_000_000_i64, "owner": Uuid::from_u128(7),
                "created_at": "2026-01-01T09:00:00.000001+00:00"}])
    };
    spec(
        "files",
        &[
            (registered(M), row(None)),
            (started(M, 1), row(None)),
            (fingerprinted(M, 1, "pcm:1"), row(Some("pcm:1"))),
            (completed(M, 1, &[], &[]), row(Some("pcm:1"))),
            (started(M, 2), row(Some("pcm:1"))),
            (fingerprinted(M, 2, "pcm:2"), row(Some("pcm:2"))),
            (erased(M), json!([])),
            (registered(M), row(None)),
        ],
    )
    .await;
}

#[tokio::test]
async fn meetings_follows_the_state_machine() {
    let row = |status: &str, language: Option<&str>, started: &str, finished: Option<&str>| {
        let at = |time: &str| format!("2026-01-01T{time}+00:00");
        json!([{"id": M, "file_id": file_id(M), "status": status, "language": language,
                "started_at": at(started), "finished_at": finished.map(at)}])
    };
    let done = row("completed", Some("de-CH"), "12:00:00", Some("12:30:00"));
    spec(
        "meetings",
        &[
            (registered(M), row("pending", None, "09:00:00.000001", None)),
            (started(M, 1), row("processing", None, "11:00:00", None)),
            (failed(M, 1), row("failed", None, "11:00:00", Some("11:20:00"))),
            (started(M, 2), row("processing", None, "12:00:00", None)),
            (language(M, 2, "en"), row("processing", Some("en"), "12:00:00", None)),
            (completed(M, 2, &[], &[]), done.clone()),
            (stored(M, 2, "transcript.md", "md"), done),
            (started(M, 3), row("processing", Some("de-CH"), "13:00:00", None)),
            (erased(M), json!([])),
        ],
    )
    .await;
}

#[tokio::test]
async fn speakers_has_the_latest_diarization_and_who_was_named() {
    let row = |attempt, cluster: &str, profile: Option<Uuid>, confidence: Option<f64>| {
        json!({"id": speaker(M, attempt, cluster), "meeting_id": M, "cluster_id": cluster,
               "user_profile_id": profile, "confidence": confidence})
    };
    let unknown = |attempt, cluster: &str| row(attempt, cluster, None, None);
    let sure = Some(0.913_700_000_000_1);
    spec(
        "speakers",
        &[
            (registered(M), json!([])),
            (started(M, 1), json!([])),
            (diarized(M, 1, &["x"]), json!([unknown(1, "x")])),
            (diarized(M, 1, &["a", "b"]), json!([unknown(1, "a"), unknown(1, "b")])),
            // A machine's word has a confidence, a person's has none.
            (
                identified(M, 1, "a", ADA, 0.913_700_000_000_1),
                json!([row(1, "a", Some(ADA), sure), unknown(1, "b")]),
            ),
            (not_identified(M, 1, "b"), json!([row(1, "a", Some(ADA), sure), unknown(1, "b")])),
            (
                reassigned(M, 1, "b", Some(BO)),
                json!([row(1, "a", Some(ADA), sure), row(1, "b", Some(BO), None)]),
            ),
            (reassigned(M, 1, "a", None), json!([unknown(1, "a"), row(1, "b", Some(BO), None)])),
            // What MeetingCompleted says counts.
            (completed(M, 1, &["a", "b"], &[]), json!([unknown(1, "a"), unknown(1, "b")])),
            (started(M, 2), json!([unknown(1, "a"), unknown(1, "b")])),
            (diarized(M, 2, &["a"]), json!([unknown(2, "a")])),
            (completed(M, 2, &["a"], &[]), json!([unknown(2, "a")])),
            (erased(M), json!([])),
            (registered(M), json!([])),
        ],
    )
    .await;
}

#[tokio::test]
async fn user_profiles_has_the_name_and_the_voice() {
    let row = |name: &str, samples: &[u128]| {
        let sample = |id: &u128| {
            json!({"sample_id": Uuid::from_u128(*id), "model": "resemblyzer-0.1.4", "dimension": 3,
                   "vector": [0.1, -0.25, 1e-7], "source": "call", "actor": "test", "actor_kind": "system",
                   "enrolled_at": "2026-01-01T08:01:00Z"})
        };
        let embeddings = samples.iter().map(sample).collect::<Vec<_>>();
        let embeddings = if embeddings.is_empty() { Value::Null } else { Value::Array(embeddings) };
        json!([{"id": ADA, "display_name": name, "embeddings": embeddings,
                "created_at": "2026-01-01T08:00:00+00:00"}])
    };
    let (one, two) = (Uuid::from_u128(1), Uuid::from_u128(2));
    let long = "ü".repeat(255);
    spec(
        "user_profiles",
        &[
            (created(ADA, "Ada Lovelace"), row("Ada Lovelace", &[])),
            (enrolled(ADA, one), row("Ada Lovelace", &[1])),
            (enrolled(ADA, two), row("Ada Lovelace", &[1, 2])),
            (renamed(ADA, &long), row(&long, &[1, 2])),
            (voice_removed(ADA, one), row(&long, &[2])),
            (voice_removed(ADA, two), row(&long, &[])),
            (enrolled(ADA, one), row(&long, &[1])),
            (profile_erased(ADA), json!([])),
        ],
    )
    .await;
}

#[tokio::test]
async fn artifacts_has_the_latest_of_each_type() {
    let row = |attempt, artifact_type: &str, s3_key: &str| {
        json!({"id": artifact_id(M, attempt, artifact_type), "meeting_id": M, "type": artifact_type,
               "s3_key": s3_key, "meta": {"words": 12}})
    };
    let (md, vtt) = ("transcript.md", "transcript.vtt");
    let both = json!([row(1, md, "2.md"), row(1, vtt, "1.vtt")]);
    spec(
        "artifacts",
        &[
            (registered(M), json!([])),
            (started(M, 1), json!([])),
            (stored(M, 1, md, "1.md"), json!([row(1, md, "1.md")])),
            (stored(M, 1, vtt, "1.vtt"), json!([row(1, md, "1.md"), row(1, vtt, "1.vtt")])),
            (stored(M, 1, md, "2.md"), both.clone()),
            (completed(M, 1, &[], &[(md, "2.md"), (vtt, "1.vtt")]), both.clone()),
            (started(M, 2), both),
            (stored(M, 2, md, "3.md"), json!([row(2, md, "3.md"), row(1, vtt, "1.vtt")])),
            // The attempt brought no WebVTT: the earlier one's goes.
            (completed(M, 2, &[], &[(md, "3.md")]), json!([row(2, md, "3.md")])),
            (stored(M, 2, vtt, "4.vtt"), json!([row(2, md, "3.md"), row(2, vtt, "4.vtt")])),
            (erased(M), json!([])),
        ],
    )
    .await;
}

#[tokio::test]
async fn stale_artifacts_has_what_is_older_than_a_name_until_it_is_stored_again() {
    let (md, vtt) = ("transcript.md", "transcript.vtt");
    let row = |attempt, artifact_type: &str, position: i64| json!({"artifact_id": artifact_id(M, attempt, artifact_type), "meeting_id": M, "position": position});
    let rows = |mut rows: Vec<Value>| {
        rows.sort_by_key(|row| row["artifact_id"].as_str().unwrap().to_owned());
        Value::Array(rows)
    };
    let both = rows(vec![row(1, md, 6), row(1, vtt, 6)]);
    let one = json!([row(1, vtt, 6)]);
    spec(
        "stale_artifacts",
        &[
            (registered(M), json!([])),
            (started(M, 1), json!([])),
            (diarized(M, 1, &["a"]), json!([])),
            (completed(M, 1, &["a"], &[(md, "1.md"), (vtt, "1.vtt")]), json!([])),
            (reassigned(M, 1, "a", Some(ADA)), json!([])),
            (outdated(M, 1, "a", &[md, vtt]), both),
            (stored(M, 1, md, "1.md"), one.clone()),
            (started(M, 2), one.clone()),
            (stored(M, 2, md, "2.md"), one),
            // The attempt brought no WebVTT: the earlier one's goes, and with it that it was stale.
            (completed(M, 2, &[], &[(md, "2.md")]), json!([])),
            (outdated(M, 2, "a", &[md, vtt]), json!([row(2, md, 11)])),
            (erased(M), json!([])),
        ],
    )
    .await;
}

#[tokio::test]
async fn speaker_reassignments_has_what_was_said_until_the_meeting_is_erased() {
    let row = |sequence: i64, attempt, cluster: Option<&str>, from: Option<Uuid>, to: Option<Uuid>| {
        let sure = from.map(|_| 0.913_700_000_000_1);
        // Of a speaker of an earlier diarization no label is known any longer.
        let speaker_id = speaker(M, attempt, cluster.unwrap_or("gone"));
        json!({"position": sequence, "meeting_id": M, "sequence": sequence, "speaker_id": speaker_id,
               "cluster_id": cluster, "from_profile_id": from, "to_profile_id": to,
               "reason": "heard it", "actor": "test", "actor_kind": "system", "correlation_id": null, "carried_from": null,
               "previous_by": from.map(|_| "machine"), "previous_confidence": sure})
    };
    let first = row(5, 1, Some("a"), Some(ADA), Some(BO));
    let second = row(6, 1, Some("a"), None, None);
    let both = json!([first, second]);
    let third = row(10, 1, None, None, Some(ADA));
    let all = json!([first, second, third]);
    let sure = 0.913_700_000_000_1;
    spec(
        "speaker_reassignments",
        &[
            (registered(M), json!([])),
            (started(M, 1), json!([])),
            (diarized(M, 1, &["a"]), json!([])),
            (identified(M, 1, "a", ADA, sure), json!([])),
            (reassigned_from_machine(M, 1, "a", ADA, sure, Some(BO)), json!([first])),
            (reassigned(M, 1, "a", None), both.clone()),
            (completed(M, 1, &["a"], &[]), both.clone()),
            (started(M, 2), both.clone()),
            (diarized(M, 2, &["b"]), both),
            (reassigned(M, 1, "gone", Some(ADA)), all.clone()),
            (completed(M, 2, &["b"], &[]), all),
            (erased(M), json!([])),
            (registered(M), json!([])),
            (started(M, 3), json!([])),
            (diarized(M, 3, &["c"]), json!([])),
            (reassigned(M, 3, "c", Some(BO)), json!([row(16, 3, Some("c"), None, Some(BO))])),
        ],
    )
    .await;
}

#[tokio::test]
async fn cache_has_the_later_result_of_two_meetings_that_share_a_key() {
    let row = |value: &str, ttl: Option<&str>| json!([{"key": "asr:pcm:1", "value": value, "ttl": ttl}]);
    let (year_3000, then) = (Some("3000-01-01T00:00:00Z"), Some("3000-01-01T00:00:00+00:00"));
    spec(
        "cache",
        &[
            (registered(M), json!([])),
            (cached(M, "asr", "pcm:1", "m's", year_3000), row("m's", then)),
            (registered(N), row("m's", then)),
            (cached(N, "asr", "pcm:1", "n's", None), row("n's", None)),
            (cached(M, "asr", "pcm:1", "m's second", year_3000), row("m's second", then)),
            (cached(N, "asr", "pcm:1", "n's second", year_3000), row("n's second", then)),
            // Shared with others, it goes all the same when one of them is erased: it was sealed with that one's key.
            (erased_with_cached(N, "asr", "pcm:1"), json!([])),
        ],
    )
    .await;
}

async fn spec(table: &str, steps: &[(Given, Value)]) {
    let (_, last) = steps.last().unwrap();

    let (database, book) = new_book().await;
    for (event, _) in steps {
        append(&book, event).await;
    }
    book.start_projector();
    caught_up_and_equal(book.pool()).await;
    assert_eq!(rows(book.pool(), table).await, *last, "in one batch");
    close(book, database).await;

    let (database, book) = new_book().await;
    book.start_projector();
    for (n, (event, expected)) in steps.iter().enumerate() {
        let position = append(&book, event).await;
        show(&book, position).await;
        assert_eq!(rows(book.pool(), table).await, *expected, "after event {}", n + 1);
    }
    assert_tables_equal_the_fold(book.pool()).await;
    close(book, database).await;

    let (database, book) = new_book().await;
    for (n, (event, expected)) in steps.iter().enumerate() {
        let position = append(&book, event).await;
        let other = database.open().await;
        other.start_projector();
        show(&other, position).await;
        other.close().await;
        assert_eq!(rows(book.pool(), table).await, *expected, "after event {}, loaded", n + 1);
    }
    assert_tables_equal_the_fold(book.pool()).await;
    close(book, database).await;
}

async fn new_book() -> (TestDatabase, Book) {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    (database, book)
}

async fn close(book: Book, _database: TestDatabase) {
    book.close().await;
}

async fn show(book: &Book, position: i64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    assert!(freshness::wait_for(book.pool(), &book.projection, position, deadline).await.unwrap());
}

/// Returns all of a table's rows, whole, in the order of what tells them apart.
async fn rows(pool: &PgPool, table: &str) -> Value {
    let order = match table {
        "speakers" => "cluster_id",
        "artifacts" => "type",
        "cache" => "key",
        "speaker_reassignments" => "position",
        "stale_artifacts" => "artifact_id",
        _ => "id",
    };
    // When something was recorded is the log's affair; the comparison with the fold sees to it.
    let query = format!(
        "SELECT coalesce(jsonb_agg(to_jsonb(t) - 'recorded_at' ORDER BY {order}), '[]') FROM {table} t"
    );
    sqlx::query_scalar(&query).fetch_one(pool).await.unwrap()
}
