//! An audit trail of any length, laid down at once: ten reassignments a meeting, by 300 reviewers, among 2,000
//! people, spread over the 24 months of 2025 and 2026.

use chrono::{DateTime, Months, Utc};
use sqlx::{Executor, PgPool};
use uuid::Uuid;

/// How many people are spoken of.
pub const PROFILES: i64 = 2000;
/// How many reviewers there are.
pub const REVIEWERS: i64 = 300;
/// Over how many months it goes.
pub const MONTHS: u32 = 24;

/// Returns the `n`th person.
pub fn profile(n: i64) -> Uuid {
    Uuid::from_u128(0x10_0000 + n as u128)
}

/// Returns the `n`th meeting.
pub fn meeting(n: i64) -> Uuid {
    Uuid::from_u128(0x1000_0000 + n as u128)
}

/// Returns the `n`th reviewer.
pub fn reviewer(n: i64) -> String {
    format!("reviewer-{n}")
}

/// Returns when the `n`th month begins.
pub fn month(n: u32) -> DateTime<Utc> {
    let first = "2025-01-01T00:00:00Z".parse::<DateTime<Utc>>().unwrap();
    first.checked_add_months(Months::new(n)).unwrap()
}

/// Lays down so many reassignments in the live tables, and in the log the events that they are of.
pub async fn lay_down(pool: &PgPool, rows: i64) {
    let sql = format!(
        "CREATE TEMPORARY TABLE said ON COMMIT DROP AS
         SELECT n AS position, n / 10 AS meeting, n % 10 + 1 AS sequence,
                '2025-01-01T00:00:00Z'::timestamptz
                    + ('2027-01-01T00:00:00Z'::timestamptz - '2025-01-01T00:00:00Z') * ((n - 1)::float8 / {rows})
                    AS recorded_at,
                CASE WHEN n % 5 > 0 THEN abs(hashint8extended(n, 1)) % {PROFILES} END AS before,
                CASE WHEN n % 9 > 0 THEN abs(hashint8extended(n, 2)) % {PROFILES} END AS after,
                abs(hashint8extended(n, 3)) % {REVIEWERS} AS reviewer,
                CASE WHEN n % 5 > 0 THEN CASE n % 3 WHEN 0 THEN 'person' ELSE 'machine' END END AS previous_by
           FROM generate_series(1, {rows}) n;
         INSERT INTO user_profiles (id, display_name)
         SELECT {profile}, 'Person ' || n FROM generate_series(0, {PROFILES} - 1) n;
         INSERT INTO meetings (id, status) SELECT DISTINCT {meeting}, 'completed' FROM said;
         INSERT INTO log.events (position, recorded_at, aggregate_type, aggregate_id, sequence, event_type,
                                 event_version, payload, metadata)
         SELECT position, recorded_at, 'meeting', {meeting}::text, sequence, 'SpeakerReassigned', '1',
                jsonb_build_object('SpeakerReassigned', '{{}}'::jsonb),
                jsonb_build_object('actor', 'reviewer-' || reviewer, 'actor_kind', 'person')
           FROM said ORDER BY position;
         INSERT INTO speaker_reassignments
                (position, recorded_at, meeting_id, sequence, speaker_id, cluster_id, from_profile_id,
                 to_profile_id, reason, actor, actor_kind, previous_by, previous_confidence, correlation_id)
         SELECT position, recorded_at, {meeting}, sequence, {speaker}, 'spk0' || position % 4, {before}, {after},
                'heard in the recording at minute ' || position % 60, 'reviewer-' || reviewer, 'person',
                previous_by, CASE previous_by WHEN 'machine' THEN 0.82 + position % 18 / 100.0 END,
                'review-' || position
           FROM said ORDER BY position;
         UPDATE checkpoint SET position = {rows}",
        profile = id("1048576 + n"),
        meeting = id("268435456 + meeting"),
        speaker = id("4294967296 + position"),
        before = id("1048576 + before"),
        after = id("1048576 + after"),
    );
    let mut transaction = pool.begin().await.unwrap();
    transaction.execute("SET LOCAL statement_timeout = 0").await.unwrap();
    transaction.execute(sql.as_str()).await.unwrap();
    transaction.commit().await.unwrap();
    pool.execute("VACUUM ANALYZE speaker_reassignments").await.unwrap();
    pool.execute("ANALYZE user_profiles, meetings, log.events").await.unwrap();
}

/// Returns SQL for the id that has this number.
fn id(number: &str) -> String {
    format!("lpad(to_hex({number}), 32, '0')::uuid")
}
