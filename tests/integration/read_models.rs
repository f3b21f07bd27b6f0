//! The read models: that the tables are those that were asked for, and that they show the history, however
//! it is cut into batches.

mod audit;
mod cache;
mod freshness;
mod healed;
pub(crate) mod history;
pub(crate) mod parked;
pub(crate) mod random;
mod schema;
mod tables;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use event_store::log::{self, BatchLimits};
use event_store::sealing::Needs;
use projections::fold::{Rows, fold};
use projections::tables::artifacts::ArtifactRow;
use projections::tables::checkpoint;
use projections::tables::files::FileRow;
use projections::tables::meetings::MeetingRow;
use projections::tables::speaker_reassignments::ReassignmentRow;
use projections::tables::speakers::SpeakerRow;
use projections::tables::stale_artifacts::StaleArtifactRow;
use projections::tables::user_profiles::UserProfileRow;
use sqlx::{Connection, PgPool};
use uuid::Uuid;

/// How long a condition may take that nothing announces.
const PATIENCE: Duration = Duration::from_secs(60);

/// Looks again and again until there is something, within bounds.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until the tables show the whole log, and compares them with its fold; returns the position.
pub(crate) async fn caught_up_and_equal(pool: &PgPool) -> i64 {
    let head = log::head(pool).await.unwrap();
    eventually(&format!("the tables show position {head}"), async || {
        (checkpoint::read(pool).await.unwrap().position >= head).then_some(())
    })
    .await;
    assert_tables_equal_the_fold(pool).await
}

/// Waits until whoever was erased is gone: what an erasure has to tell is appended by itself.
pub(crate) async fn erasures_are_complete(pool: &PgPool) {
    eventually("whoever was erased is gone", async || {
        let unfinished = "SELECT count(*) FROM keys.erasures WHERE completed_at IS NULL";
        let unfinished: i64 = sqlx::query_scalar(unfinished).fetch_one(pool).await.unwrap();
        (unfinished == 0).then_some(())
    })
    .await;
}

/// Compares the tables, at the position where they are, with the log up to there, folded in memory from
/// nothing; returns the position. They must be equal at every moment, but between an erasure and the tables that
/// show it. What is parked or skipped is as if it had not happened.
pub(crate) async fn assert_tables_equal_the_fold(pool: &PgPool) -> i64 {
    let (position, exempt, mut shown) = Tables::read(pool).await;
    let mut expected = Tables::fold(pool, position, &exempt).await;
    // Whoever is erased is so in history at once, and in the tables when they come to the event that says so.
    let to_be_erased = "SELECT EXISTS (SELECT FROM keys.erasures WHERE position > $1)";
    if sqlx::query_scalar(to_be_erased).bind(position).fetch_one(pool).await.unwrap() {
        return position;
    }
    // An expired row counts as absent. Looked at last: what was swept before has expired now.
    let now = Utc::now();
    for tables in [&mut shown, &mut expected] {
        tables.cache.retain(|_, (_, ttl)| ttl.is_none_or(|ttl| ttl > now));
    }
    assert_same("files", position, &shown.files, &expected.files);
    assert_same("meetings", position, &shown.meetings, &expected.meetings);
    assert_same("speakers", position, &shown.speakers, &expected.speakers);
    assert_same("user_profiles", position, &shown.profiles, &expected.profiles);
    assert_same("artifacts", position, &shown.artifacts, &expected.artifacts);
    assert_same("stale_artifacts", position, &shown.stale, &expected.stale);
    assert_same("speaker_reassignments", position, &shown.reassignments, &expected.reassignments);
    assert_same("cache", position, &shown.cache, &expected.cache);
    assert_same("cache_origin", position, &shown.origins, &expected.origins);
    position
}

fn assert_same<K: Ord + std::fmt::Debug, V: PartialEq + std::fmt::Debug>(
    table: &str,
    position: i64,
    shown: &BTreeMap<K, V>,
    expected: &BTreeMap<K, V>,
) {
    for key in shown.keys().chain(expected.keys()) {
        let (shown, expected) = (shown.get(key), expected.get(key));
        assert!(
            shown == expected,
            "at position {position} {table} shows for {key:?}\n  {shown:?}, the log says\n  {expected:?}"
        );
    }
}

#[derive(Default)]
struct Tables {
    files: BTreeMap<Uuid, FileRow>,
    meetings: BTreeMap<Uuid, MeetingRow>,
    speakers: BTreeMap<Uuid, SpeakerRow>,
    profiles: BTreeMap<Uuid, UserProfileRow>,
    artifacts: BTreeMap<Uuid, ArtifactRow>,
    stale: BTreeMap<Uuid, StaleArtifactRow>,
    reassignments: BTreeMap<i64, ReassignmentRow>,
    cache: BTreeMap<String, (String, Option<DateTime<Utc>>)>,
    origins: BTreeMap<String, i64>,
}

impl Tables {
    /// Reads the tables, their checkpoint, and which positions they do not show, in one snapshot.
    async fn read(pool: &PgPool) -> (i64, Vec<i64>, Self) {
        let mut connection = pool.acquire().await.unwrap();
        let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
        let mut snapshot = connection.begin_with(begin).await.unwrap();
        let position = checkpoint::read(&mut *snapshot).await.unwrap().position;
        let exempt = sqlx::query_scalar(
            "SELECT position FROM ops.parked_events WHERE generation = (SELECT generation FROM checkpoint)
             UNION ALL SELECT position FROM ops.parked_decisions WHERE outcome = 'skipped'",
        );
        let exempt = exempt.fetch_all(&mut *snapshot).await.unwrap();
        macro_rules! rows {
            ($sql:literal) => {
                sqlx::query_as($sql).fetch_all(&mut *snapshot).await.unwrap()
            };
        }
        let files: Vec<FileRow> =
            rows!("SELECT id, sha256, content_fp, mime, duration, size, owner, created_at FROM files");
        let meetings: Vec<MeetingRow> =
            rows!("SELECT id, file_id, status, language, started_at, finished_at FROM meetings");
        let speakers: Vec<SpeakerRow> =
            rows!("SELECT id, meeting_id, cluster_id, user_profile_id, confidence FROM speakers");
        let profiles: Vec<UserProfileRow> =
            rows!("SELECT id, display_name, embeddings, created_at FROM user_profiles");
        let artifacts: Vec<ArtifactRow> = rows!("SELECT id, meeting_id, type, s3_key, meta FROM artifacts");
        let stale: Vec<StaleArtifactRow> =
            rows!("SELECT artifact_id, meeting_id, position FROM stale_artifacts");
        let reassignments: Vec<ReassignmentRow> = rows!(
            "SELECT position, recorded_at, meeting_id, sequence, speaker_id, cluster_id, from_profile_id,
                    to_profile_id, reason, actor, actor_kind, previous_by, previous_confidence, correlation_id,
                    carried_from
               FROM speaker_reassignments"
        );
        let cache: Vec<(String, String, Option<DateTime<Utc>>)> = rows!("SELECT key, value, ttl FROM cache");
        let origins: Vec<(String, i64)> = rows!("SELECT key, position FROM cache_origin");
        let tables = Self {
            files: files.into_iter().map(|row| (row.id, row)).collect(),
            meetings: meetings.into_iter().map(|row| (row.id, row)).collect(),
            speakers: speakers.into_iter().map(|row| (row.id, row)).collect(),
            profiles: profiles.into_iter().map(|row| (row.id, row)).collect(),
            artifacts: artifacts.into_iter().map(|row| (row.id, row)).collect(),
            stale: stale.into_iter().map(|row| (row.artifact_id, row)).collect(),
            reassignments: reassignments.into_iter().map(|row| (row.position, row)).collect(),
            cache: cache.into_iter().map(|(key, value, ttl)| (key, (value, ttl))).collect(),
            origins: origins.into_iter().collect(),
        };
        (position, exempt, tables)
    }

    /// Folds the log up to `until`, each aggregate from nothing.
    async fn fold(pool: &PgPool, until: i64, exempt: &[i64]) -> Self {
        let keyring = tests::keyring(pool).await;
        let mut aggregates = BTreeMap::<Uuid, Rows>::new();
        let mut position = 0;
        while position < until {
            let limits = BatchLimits { events: 5000, bytes: 32 << 20 };
            let mut batch = log::read(pool, position, limits).await.unwrap();
            keyring.open_stored(pool, &mut batch, Needs::NoClusters).await.unwrap();
            for stored in batch.iter().take_while(|event| event.position <= until) {
                position = stored.position;
                if exempt.contains(&position) {
                    continue;
                }
                let recorded = stored.decode().unwrap();
                let id = recorded.event.aggregate_id();
                let rows = aggregates.entry(id).or_insert_with(|| Rows::empty_for(&recorded.event));
                fold(rows, &recorded);
            }
        }
        let mut tables = Self::default();
        let mut latest = BTreeMap::new();
        for rows in aggregates.into_values() {
            match rows {
                Rows::Profile(rows) => tables.profiles.extend(rows.profile.map(|row| (row.id, row))),
                Rows::Meeting(rows) => {
                    tables.files.extend(rows.file.map(|row| (row.id, row)));
                    tables.meetings.extend(rows.meeting.map(|row| (row.id, row)));
                    tables.speakers.extend(rows.speakers);
                    tables.artifacts.extend(rows.artifacts);
                    tables.stale.extend(rows.stale_artifacts);
                    tables.reassignments.extend(rows.reassignments);
                    for (key, write) in rows.cache {
                        let known = latest.entry(key).or_insert_with(|| write.clone());
                        if known.position < write.position {
                            *known = write;
                        }
                    }
                }
            }
        }
        for (key, write) in latest {
            tables.origins.insert(key.clone(), write.position);
            tables.cache.extend(write.entry.map(|entry| (key, entry)));
        }
        tables
    }
}
