//! The receipts of erasures, `keys.erasures`: what was forgotten, and how far that is. The event that erases leaves
//! one, under way; it is complete when nothing is left to do.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::{FromRow, PgPool};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};
use utoipa::ToSchema;
use uuid::Uuid;

use super::{BATCH, POLL};

/// What was forgotten: the receipt of an erasure.
#[derive(Debug, Clone, Serialize, FromRow, ToSchema)]
pub struct Erasure {
    /// Its number.
    #[schema(example = 7)]
    pub number: i64,
    /// What kind of subject it is.
    pub kind: ErasureKind,
    /// The profile or the meeting.
    #[schema(example = "018f0000-0000-7000-8000-000000000001")]
    pub subject: Uuid,
    /// `complete` once it is carried out everywhere; `under_way` until then.
    #[schema(example = "complete")]
    pub state: String,
    /// The place in the log of the event that says so.
    #[schema(example = 42)]
    pub position: i64,
    /// When it was recorded; from then on the subject's own key is destroyed.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub erased_at: DateTime<Utc>,
    /// When the rest was carried out.
    pub completed_at: Option<DateTime<Utc>>,
    /// Who asked for it.
    #[schema(example = "admin-1")]
    pub actor: Option<String>,
    /// `person`, `service` or `system`.
    #[schema(example = "person")]
    pub actor_kind: Option<String>,
    /// Why, of a meeting.
    pub reason: Option<String>,
    /// How many keys were destroyed.
    #[schema(example = 1001)]
    pub keys: i64,
    /// How many speakers had ever been said to be the person, or speak in the meeting.
    #[schema(example = 1000)]
    pub speakers: i64,
    /// In how many meetings.
    #[schema(example = 1000)]
    pub meetings: i64,
    /// What keeps it from its end, where something does.
    pub waits_for: Option<String>,
}

/// What can be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "lowercase")]
#[sqlx(type_name = "text", rename_all = "lowercase")]
#[schema(example = "profile")]
pub enum ErasureKind {
    /// A person.
    Profile,
    /// A meeting.
    Meeting,
}

impl ErasureKind {
    /// Returns the stored name, which is that of the aggregate too.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Profile => "profile",
            Self::Meeting => "meeting",
        }
    }
}

/// Selects receipts.
macro_rules! select {
    ($which:literal) => {
        concat!(
            "SELECT number, kind, subject, position, erased_at, completed_at, actor, actor_kind, reason, keys,
                    speakers, meetings, waits_for,
                    CASE WHEN completed_at IS NULL THEN 'under_way' ELSE 'complete' END AS state
               FROM keys.erasures ",
            $which
        )
    };
}

/// Returns the latest erasure of a profile or a meeting.
pub async fn of_subject(pool: &PgPool, subject: Uuid) -> Result<Option<Erasure>, sqlx::Error> {
    sqlx::query_as(select!("WHERE subject = $1 ORDER BY number DESC LIMIT 1"))
        .bind(subject)
        .fetch_optional(pool)
        .await
}

/// Returns erasures, the newest first: those before the one with the number `before`, if it is given.
pub async fn latest(pool: &PgPool, before: Option<i64>, limit: i64) -> Result<Vec<Erasure>, sqlx::Error> {
    sqlx::query_as(select!("WHERE $1 IS NULL OR number < $1 ORDER BY number DESC LIMIT $2"))
        .bind(before)
        .bind(limit)
        .fetch_all(pool)
        .await
}

/// Returns erasures that are under way, those first that wait for nothing.
pub(super) async fn under_way(pool: &PgPool) -> Result<Vec<Erasure>, sqlx::Error> {
    sqlx::query_as(select!("WHERE completed_at IS NULL ORDER BY waits_for IS NOT NULL, number LIMIT $1"))
        .bind(i64::try_from(BATCH).unwrap_or(i64::MAX))
        .fetch_all(pool)
        .await
}

/// Returns the erasures of which tables as they stood at `position` may not show all: the links to a person end after
/// the erasure itself, and before it is complete.
pub(super) async fn not_shown_at(pool: &PgPool, position: i64) -> Result<Vec<Erasure>, sqlx::Error> {
    sqlx::query_as(select!(
        "WHERE position > $1 OR completed_at IS NULL
            OR completed_at >= (SELECT recorded_at FROM log.events WHERE events.position = $1)
         ORDER BY number"
    ))
    .bind(position)
    .fetch_all(pool)
    .await
}

/// How many erasures are not carried out yet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, FromRow)]
pub struct Unfinished {
    /// Erasures that are under way.
    pub erasures: i64,
    /// How long ago the oldest began, in seconds; 0 without any.
    pub seconds: f64,
}

/// Counts the erasures that are under way.
pub async fn unfinished(pool: &PgPool) -> Result<Unfinished, sqlx::Error> {
    sqlx::query_as(
        "SELECT count(*) AS erasures,
                coalesce(extract(epoch FROM now() - min(erased_at)), 0)::float8 AS seconds
           FROM keys.erasures WHERE completed_at IS NULL",
    )
    .fetch_one(pool)
    .await
}

/// Waits until an erasure is carried out, or `deadline`; returns how it stands then.
pub async fn wait(pool: &PgPool, subject: Uuid, deadline: Instant) -> Result<Option<Erasure>, sqlx::Error> {
    loop {
        let erasure = of_subject(pool, subject).await?;
        let under_way = erasure.as_ref().is_some_and(|erasure| erasure.completed_at.is_none());
        if !under_way || Instant::now() >= deadline {
            return Ok(erasure);
        }
        sleep(POLL).await;
    }
}

/// Something that was kept elsewhere of an erased meeting, for whoever has to delete it there.
#[derive(Debug, Clone, Serialize, FromRow, ToSchema)]
pub struct KeptElsewhere {
    /// The place among the meeting's events of the one that told of it.
    #[schema(example = 9)]
    pub sequence: i64,
    /// `recording` (the file's SHA-256), `artifact` (its s3_key) or `cache` (its key in the cache).
    #[schema(example = "artifact")]
    pub kind: String,
    /// Under which name it was kept.
    #[schema(example = "meetings/6a1f4d43/transcript.vtt")]
    pub key: String,
}

/// Returns what was kept elsewhere of an erased meeting, in all of its lives up to the erasure, in the order in
/// which it was told of.
pub async fn kept_elsewhere(
    pool: &PgPool,
    erasure: &Erasure,
    after: i64,
    limit: i64,
) -> Result<Vec<KeptElsewhere>, sqlx::Error> {
    sqlx::query_as(
        "SELECT sequence,
                CASE event_type WHEN 'ArtifactStored' THEN 'artifact'
                                WHEN 'StageResultCached' THEN 'cache' ELSE 'recording' END AS kind,
                CASE event_type
                    WHEN 'ArtifactStored' THEN coalesce(payload #>> '{ArtifactStored,artifact,s3_key}', '')
                    WHEN 'StageResultCached' THEN concat_ws(':', payload #>> '{StageResultCached,stage}',
                                                            payload #>> '{StageResultCached,content_fp}')
                    ELSE coalesce(payload #>> '{MeetingRegistered,file,sha256}', '') END AS key
           FROM log.events
          WHERE aggregate_type = 'meeting' AND aggregate_id = $1 AND sequence > $2 AND position <= $3
            AND event_type IN ('MeetingRegistered', 'ArtifactStored', 'StageResultCached')
          ORDER BY sequence LIMIT $4",
    )
    .bind(erasure.subject.to_string())
    .bind(after)
    .bind(erasure.position)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Notes how far an erasure is: what it waits for, or that it is complete.
pub(super) async fn note(
    pool: &PgPool,
    erasure: &Erasure,
    waits_for: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE keys.erasures
            SET waits_for = $2, completed_at = CASE WHEN $2 IS NULL THEN clock_timestamp() END
          WHERE number = $1",
    )
    .bind(erasure.number)
    .bind(waits_for)
    .execute(pool)
    .await?;
    let (kind, subject) = (erasure.kind.name(), erasure.subject);
    match waits_for {
        None => info!(kind, %subject, position = erasure.position, "an erasure is complete"),
        Some(waits_for) if erasure.waits_for.as_deref() != Some(waits_for) => {
            warn!(kind, %subject, position = erasure.position, waits_for, "an erasure waits");
        }
        Some(_) => {}
    }
    Ok(())
}
