//! One meeting is healed in place, whatever was done to its rows, while the projector runs and commands go on.

use std::cell::Cell;

use projections::heal::{Healed, heal_meeting};
use sqlx::{Executor, PgPool};
use tests::TestDatabase;
use uuid::Uuid;

use super::caught_up_and_equal;
use super::history::{
    append, artifact_id, cached, completed, created, diarized, erased_with_cached, file_id, fingerprinted,
    identified, language, outdated, reassigned, registered, renamed, speaker, started, stored,
};
use super::parked::append_raw;
use crate::cli::run_on;

const MEETING: Uuid = Uuid::from_u128(0xa0);
const OTHER: Uuid = Uuid::from_u128(0xb0);
const ACTOR: &str = "person:operator-7";

/// Leads a meeting through its life, with rows in every table.
async fn live(book: &api::book::Book, meeting: Uuid) {
    let fp = format!("pcm16k:{}", meeting.as_u128());
    for given in [
        registered(meeting),
        started(meeting, 1),
        fingerprinted(meeting, 1, &fp),
        language(meeting, 1, "de-CH"),
        diarized(meeting, 1, &["spk00", "spk01"]),
        identified(meeting, 1, "spk00", Uuid::from_u128(0xada), 0.9),
        cached(meeting, "words", &fp, "{}", None),
        stored(meeting, 1, "transcript.md", "t.md"),
        completed(meeting, 1, &["spk00", "spk01"], &[("transcript.md", "t.md")]),
        reassigned(meeting, 1, "spk01", Some(Uuid::from_u128(0xada))),
        outdated(meeting, 1, "spk01", &["transcript.md"]),
    ] {
        append(book, &given).await;
    }
}

async fn heal(book: &api::book::Book, meeting: Uuid) -> Healed {
    heal_meeting(&book.store, meeting, ACTOR).await.unwrap().unwrap()
}

/// Returns the bytes of all rows of the other meeting, with where they lie: nobody may have touched them.
async fn others(pool: &PgPool) -> Vec<String> {
    let rows = format!(
        "SELECT f.ctid || f::text FROM files f WHERE id = '{file}' UNION ALL
         SELECT m.ctid || m::text FROM meetings m WHERE id = '{OTHER}' UNION ALL
         SELECT s.ctid || s::text FROM speakers s WHERE meeting_id = '{OTHER}' UNION ALL
         SELECT a.ctid || a::text FROM artifacts a WHERE meeting_id = '{OTHER}' UNION ALL
         SELECT o.ctid || o::text FROM stale_artifacts o WHERE meeting_id = '{OTHER}' UNION ALL
         SELECT r.ctid || r::text FROM speaker_reassignments r WHERE meeting_id = '{OTHER}' UNION ALL
         SELECT c.ctid || c::text FROM cache c WHERE key LIKE '%{OTHER}' ORDER BY 1",
        file = file_id(OTHER)
    );
    let rows = sqlx::query_scalar(&rows).fetch_all(pool).await.unwrap();
    assert_eq!(rows.len(), 8);
    rows
}

#[tokio::test]
async fn whatever_was_done_to_the_rows_of_a_meeting_they_become_what_history_says() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    book.start_projector();
    live(&book, MEETING).await;
    live(&book, OTHER).await;
    let position = caught_up_and_equal(&pool).await;
    let untouched = others(&pool).await;
    let well = heal(&book, MEETING).await;
    assert_eq!((well.events, well.position, well.parked), (11, position, 0));
    assert_eq!((well.missing, well.differing, well.surplus), (0, 0, 0));
    assert_eq!(caught_up_and_equal(&pool).await, position);

    let (one, two) = (speaker(MEETING, 1, "spk00"), speaker(MEETING, 1, "spk01"));
    let artifact = artifact_id(MEETING, 1, "transcript.md");
    let (file, others_file) = (file_id(MEETING), file_id(OTHER));
    let all = format!(
        "DELETE FROM speakers WHERE meeting_id = '{MEETING}'; DELETE FROM artifacts WHERE meeting_id = '{MEETING}';
         DELETE FROM stale_artifacts WHERE meeting_id = '{MEETING}';
         DELETE FROM speaker_reassignments WHERE meeting_id = '{MEETING}';
         DELETE FROM meetings WHERE id = '{MEETING}'; DELETE FROM files WHERE id = '{file}';
         DELETE FROM cache WHERE key LIKE '%{MEETING}' OR key LIKE '%:{}'; ",
        MEETING.as_u128()
    );
    let cache = format!("key IN ('meeting:{MEETING}', 'words:pcm16k:{}')", MEETING.as_u128());
    for (damage, found) in [
        (format!("UPDATE meetings SET status = 'failed', language = NULL WHERE id = '{MEETING}'"), (0, 1, 0)),
        (format!("UPDATE meetings SET file_id = NULL WHERE id = '{MEETING}'"), (0, 1, 0)),
        (format!("UPDATE meetings SET file_id = '{others_file}' WHERE id = '{MEETING}'"), (0, 1, 0)),
        (format!("UPDATE files SET sha256 = 'x', owner = NULL, size = 1 WHERE id = '{file}'"), (0, 1, 0)),
        (
            format!(
                "UPDATE meetings SET file_id = '{others_file}' WHERE id = '{MEETING}';
                 DELETE FROM files WHERE id = '{file}'"
            ),
            (1, 1, 0),
        ),
        (format!("DELETE FROM speakers WHERE id = '{one}'"), (1, 0, 0)),
        (
            format!("UPDATE speakers SET confidence = 0.1, user_profile_id = NULL WHERE id = '{one}'"),
            (0, 1, 0),
        ),
        (format!("UPDATE speakers SET meeting_id = '{OTHER}' WHERE id = '{one}'"), (1, 0, 0)),
        (format!("UPDATE speakers SET meeting_id = NULL WHERE id IN ('{one}', '{two}')"), (2, 0, 0)),
        (format!("UPDATE speakers SET id = gen_random_uuid() WHERE id = '{two}'"), (1, 0, 1)),
        (format!("INSERT INTO speakers (id, meeting_id) VALUES (gen_random_uuid(), '{MEETING}')"), (0, 0, 1)),
        (
            format!(
                "INSERT INTO artifacts (id, meeting_id, type) VALUES (gen_random_uuid(), '{MEETING}', 'summary.json')"
            ),
            (0, 0, 1),
        ),
        (
            format!("UPDATE artifacts SET meeting_id = '{OTHER}', meta = NULL WHERE id = '{artifact}'"),
            (1, 0, 0),
        ),
        (format!("DELETE FROM artifacts WHERE id = '{artifact}'"), (1, 0, 0)),
        (format!("DELETE FROM stale_artifacts WHERE artifact_id = '{artifact}'"), (1, 0, 0)),
        (format!("UPDATE stale_artifacts SET position = 1 WHERE artifact_id = '{artifact}'"), (0, 1, 0)),
        (
            format!("UPDATE stale_artifacts SET meeting_id = '{OTHER}' WHERE artifact_id = '{artifact}'"),
            (1, 0, 0),
        ),
        (format!("INSERT INTO stale_artifacts VALUES (gen_random_uuid(), '{MEETING}', 1)"), (0, 0, 1)),
        (format!("DELETE FROM speaker_reassignments WHERE meeting_id = '{MEETING}'"), (1, 0, 0)),
        (
            format!(
                "UPDATE speaker_reassignments SET reason = 'x', actor = NULL, previous_by = 'machine'
                  WHERE meeting_id = '{MEETING}'"
            ),
            (0, 1, 0),
        ),
        (
            format!("UPDATE speaker_reassignments SET meeting_id = '{OTHER}' WHERE meeting_id = '{MEETING}'"),
            (1, 0, 0),
        ),
        (format!("UPDATE speaker_reassignments SET position = 1 WHERE meeting_id = '{MEETING}'"), (1, 0, 1)),
        (format!("UPDATE cache SET value = 'x', ttl = now() + interval '1 year' WHERE {cache}"), (0, 2, 0)),
        (format!("DELETE FROM cache WHERE {cache}"), (2, 0, 0)),
        (format!("DELETE FROM cache_origin WHERE {cache}"), (0, 2, 0)),
        (format!("UPDATE cache_origin SET position = 1 WHERE {cache}"), (0, 2, 0)),
        (all, (9, 0, 0)),
    ] {
        pool.execute(damage.as_str()).await.unwrap();
        let healed = heal(&book, MEETING).await;
        assert_eq!((healed.missing, healed.differing, healed.surplus), found, "{damage}");
        assert_eq!(caught_up_and_equal(&pool).await, position, "{damage}");
        assert_eq!(others(&pool).await, untouched, "{damage}");
    }

    // Another meeting that names its file stands in nobody's way, and is healed by itself.
    let taken =
        format!("UPDATE meetings SET file_id = '{file}' WHERE id = '{OTHER}'; UPDATE files SET size = 1");
    pool.execute(taken.as_str()).await.unwrap();
    assert_eq!(heal(&book, MEETING).await.differing, 1);
    assert_eq!(heal(&book, OTHER).await.differing, 2);
    assert_eq!(caught_up_and_equal(&pool).await, position);
    // The projector goes on with what is there now.
    append(&book, &started(MEETING, 2)).await;
    append(&book, &language(MEETING, 2, "fr")).await;
    assert_eq!(caught_up_and_equal(&pool).await, position + 2);
    book.close().await;
}

#[tokio::test]
async fn a_meeting_is_healed_while_the_projector_runs_and_events_come() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    book.start_projector();
    live(&book, MEETING).await;
    append(&book, &created(OTHER, "Ada")).await;
    caught_up_and_equal(&pool).await;
    let done = Cell::new(false);
    let flowing = async {
        let mut n = 0;
        while !done.get() {
            n += 1;
            append(&book, &language(MEETING, 1, ["de", "fr", "it"][n % 3])).await;
            append(&book, &diarized(MEETING, 1, &["spk00", "spk01", "spk02"][..n % 3])).await;
            append(&book, &renamed(OTHER, &format!("Ada {n}"))).await;
            live(&book, Uuid::from_u128(0x1000 + n as u128)).await;
        }
        n
    };
    let healing = async {
        for n in 0..60 {
            let damage = match n % 4 {
                0 => format!("DELETE FROM speakers WHERE meeting_id = '{MEETING}'"),
                1 => format!("INSERT INTO speakers (id, meeting_id) VALUES (gen_random_uuid(), '{MEETING}')"),
                2 => format!("UPDATE meetings SET status = 'failed', file_id = NULL WHERE id = '{MEETING}'"),
                _ => format!("UPDATE files SET sha256 = 'x' WHERE id = '{}'", file_id(MEETING)),
            };
            pool.execute(damage.as_str()).await.unwrap();
            heal(&book, MEETING).await;
        }
        done.set(true);
    };
    let (rounds, ()) = tokio::join!(flowing, healing);
    assert!(rounds > 3, "{rounds} rounds came meanwhile");
    caught_up_and_equal(&pool).await;
    book.close().await;
}

#[tokio::test]
async fn a_parked_meeting_that_is_healed_is_free_when_its_cause_is_gone() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    pool.execute("ALTER TABLE meetings ADD CONSTRAINT no_fr CHECK (language <> 'fr')").await.unwrap();
    let book = database.open().await;
    book.start_projector();
    live(&book, MEETING).await;
    append(&book, &language(MEETING, 1, "fr")).await;
    append(&book, &language(MEETING, 1, "fr")).await;
    live(&book, OTHER).await;
    let position = caught_up_and_equal(&pool).await;
    // What the tables refuse they refuse also here, and everything stays as it was.
    let parked = async || {
        let query = "SELECT position FROM ops.parked_events ORDER BY position";
        sqlx::query_scalar::<_, i64>(query).fetch_all(&pool).await.unwrap()
    };
    assert_eq!(parked().await, [12, 13]);
    let refused = heal_meeting(&book.store, MEETING, ACTOR).await.unwrap_err();
    assert!(refused.to_string().contains("SQLSTATE 23514 no_fr"), "{refused}");
    assert_eq!(caught_up_and_equal(&pool).await, position);
    assert_eq!(parked().await, [12, 13]);
    pool.execute("ALTER TABLE meetings DROP CONSTRAINT no_fr").await.unwrap();
    let untouched = others(&pool).await;
    let healed = heal(&book, MEETING).await;
    assert_eq!((healed.events, healed.parked), (13, 0));
    assert_eq!(parked().await, [0; 0]);
    assert_eq!(others(&pool).await, untouched);
    let decided = "SELECT position FROM ops.parked_decisions
                    WHERE outcome = 'applied' AND actor = $1 ORDER BY position";
    let decided: Vec<i64> = sqlx::query_scalar(decided).bind(ACTOR).fetch_all(&pool).await.unwrap();
    assert_eq!(decided, [12, 13]);
    assert_eq!(caught_up_and_equal(&pool).await, position);

    // What cannot be decoded stays parked, with what waits behind it, and the rows before it are healed.
    append_raw(&pool, ["meeting", &MEETING.to_string(), "LanguageDetected", "1", "{}"], 13).await;
    append(&book, &started(MEETING, 2)).await;
    let position = caught_up_and_equal(&pool).await;
    pool.execute("UPDATE meetings SET status = 'failed'").await.unwrap();
    let healed = heal(&book, MEETING).await;
    assert_eq!((healed.events, healed.differing, healed.parked), (13, 1, 2));
    assert_eq!(parked().await, [position - 1, position]);
    let listed = run_on(&database, &["parked", "list", "--json"]).await.stdout;
    assert!(listed.contains(&format!("\"position\":{}", position - 1)), "{listed}");
    heal(&book, OTHER).await;
    assert_eq!(caught_up_and_equal(&pool).await, position);
    // Skipped, it is free as well.
    let skip = ["parked", "skip", &(position - 1).to_string(), "--reason", "by hand"];
    assert_eq!(run_on(&database, &skip).await.code, Some(0));
    assert_eq!(heal(&book, MEETING).await.parked, 0);
    assert_eq!(caught_up_and_equal(&pool).await, position);
    book.close().await;
}

#[tokio::test]
async fn an_erased_meeting_has_no_rows_and_an_unknown_one_is_not_found() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    book.start_projector();
    live(&book, MEETING).await;
    live(&book, OTHER).await;
    let fp = format!("pcm16k:{}", MEETING.as_u128());
    append(&book, &erased_with_cached(MEETING, "words", &fp)).await;
    let position = caught_up_and_equal(&pool).await;
    let back = format!(
        "INSERT INTO files (id, sha256) VALUES ('{}', 'x');
         INSERT INTO meetings (id, file_id, status) VALUES ('{MEETING}', '{}', 'completed');
         INSERT INTO speakers (id, meeting_id) VALUES (gen_random_uuid(), '{MEETING}')",
        file_id(MEETING),
        file_id(OTHER)
    );
    pool.execute(back.as_str()).await.unwrap();
    let healed = heal(&book, MEETING).await;
    assert_eq!((healed.missing, healed.differing, healed.surplus), (0, 0, 3));
    assert_eq!(caught_up_and_equal(&pool).await, position);
    let generation = "SELECT generation FROM checkpoint";
    let before: i64 = sqlx::query_scalar(generation).fetch_one(&pool).await.unwrap();
    for unknown in [Uuid::nil(), Uuid::from_u128(1), Uuid::from_u128(0xada)] {
        assert!(heal_meeting(&book.store, unknown, ACTOR).await.unwrap().is_none());
    }
    assert_eq!(before, sqlx::query_scalar::<_, i64>(generation).fetch_one(&pool).await.unwrap());
    book.close().await;
}
