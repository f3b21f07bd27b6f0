//! The audit: who said who a speaker is, when and why, and who it had been.

use chrono::{DateTime, TimeDelta, Utc};
use domain::speaker::LinkedBy;
use event_store::log;
use serde::Serialize;
use sqlx::postgres::PgArguments;
use sqlx::{Arguments, FromRow, PgPool};
use uuid::Uuid;

use crate::tables::read_twice;

/// One time that somebody said who a speaker is.
#[derive(Clone, PartialEq, Serialize, FromRow, utoipa::ToSchema)]
pub struct Reassignment {
    /// The event's place in the log.
    #[schema(example = 42)]
    pub position: i64,
    /// When it was recorded; never earlier than the position before.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub recorded_at: DateTime<Utc>,
    /// The meeting.
    #[schema(example = "6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub meeting_id: Uuid,
    /// The event's place among the meeting's.
    #[schema(example = 9)]
    pub sequence: i64,
    /// The speaker.
    #[schema(example = "0d3f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub speaker_id: Uuid,
    /// The speaker's label in the diarization; null for a speaker of an earlier one, from whom somebody was forgotten.
    #[schema(example = "spk00")]
    pub cluster_id: Option<String>,
    /// Who it was until then; null for nobody known.
    #[schema(example = "018f0000-0000-7000-8000-000000000001")]
    pub from_profile_id: Option<Uuid>,
    /// How that person is called today; null also for whoever has been forgotten.
    #[schema(example = "Ada Lovelace")]
    pub from_name: Option<String>,
    /// Who it is from then on; null for nobody known.
    #[schema(example = "018f0000-0000-7000-8000-000000000002")]
    pub to_profile_id: Option<Uuid>,
    /// How that person is called today; null also for whoever has been forgotten.
    #[schema(example = "Grace Hopper")]
    pub to_name: Option<String>,
    /// Why; null for a reason that was destroyed.
    #[schema(example = "I was there")]
    pub reason: Option<String>,
    /// Who said so, as an opaque id.
    #[schema(example = "reviewer-7")]
    pub actor: Option<String>,
    /// `person`, `service` or `system`.
    #[schema(example = "person")]
    pub actor_kind: Option<String>,
    /// Who had made the link before, or had said that it is nobody known: `machine` or `person`; null if nobody had.
    #[schema(example = "machine")]
    pub previous_by: Option<String>,
    /// How sure the machine had been of the link before, 0 to 1.
    #[schema(example = 0.87)]
    pub previous_confidence: Option<f64>,
    /// What the command belonged to.
    #[schema(example = "req-17")]
    pub correlation_id: Option<String>,
    /// The speaker of an earlier diarization about whom a person had decided, where that was carried over to this
    /// one: then `actor` is who recorded the diarization, and the person is in that speaker's history.
    #[schema(example = "1e3f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub carried_from: Option<Uuid>,
}

/// Which of them are asked for; what is absent does not matter.
#[derive(Debug, Clone, Default)]
pub struct ReassignmentFilter {
    /// From or to this person.
    pub profile: Option<Uuid>,
    /// Said by whoever has this opaque id.
    pub actor: Option<String>,
    /// `person`, `service` or `system`: what kind of actor.
    pub actor_kind: Option<String>,
    /// Of this meeting.
    pub meeting: Option<Uuid>,
    /// Recorded at this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Recorded before this time.
    pub to: Option<DateTime<Utc>>,
    /// Where this one had made the link before.
    pub previous_by: Option<LinkedBy>,
}

/// The columns of the table that are shown.
macro_rules! columns {
    () => {
        "position, recorded_at, meeting_id, sequence, speaker_id, cluster_id, from_profile_id, to_profile_id,
         reason, actor, actor_kind, previous_by, previous_confidence, correlation_id, carried_from"
    };
}

/// What holds for a row whoever it is about.
macro_rules! conditions {
    () => {
        "position > $1 AND position < $2 AND ($3::uuid IS NULL OR meeting_id = $3)
         AND ($4::text IS NULL OR actor = $4) AND ($5::text IS NULL OR actor_kind = $5)
         AND ($6::text IS NULL OR previous_by = $6)"
    };
}

/// Adds the names of today, each looked up by id: few rows are asked for, of however many people there are.
macro_rules! named {
    ($rows:expr) => {
        concat!(
            "SELECT r.position, r.recorded_at, r.meeting_id, r.sequence, r.speaker_id, r.cluster_id,
                    r.from_profile_id,
                    (SELECT display_name FROM user_profiles WHERE id = r.from_profile_id) AS from_name,
                    r.to_profile_id,
                    (SELECT display_name FROM user_profiles WHERE id = r.to_profile_id) AS to_name,
                    r.reason, r.actor, r.actor_kind, r.previous_by, r.previous_confidence, r.correlation_id,
                    r.carried_from
               FROM (",
            $rows,
            " ORDER BY position DESC LIMIT $7) r ORDER BY r.position DESC"
        )
    };
}

/// The statement where it does not matter who it is about.
const ABOUT_ANYBODY: &str =
    named!(concat!("SELECT ", columns!(), " FROM speaker_reassignments WHERE ", conditions!()));

/// The statement about one person. Each half comes from its own index, newest first, and no further than the
/// page goes: an OR over both columns would have to read all of them first, and sort.
const ABOUT_PROFILE: &str = named!(concat!(
    "SELECT ",
    columns!(),
    " FROM ((SELECT ",
    columns!(),
    " FROM speaker_reassignments WHERE from_profile_id = $8 AND ",
    conditions!(),
    " ORDER BY position DESC LIMIT $7) UNION ALL (SELECT ",
    columns!(),
    " FROM speaker_reassignments WHERE to_profile_id = $8 AND from_profile_id IS DISTINCT FROM $8 AND ",
    conditions!(),
    " ORDER BY position DESC LIMIT $7)) either"
));

/// Returns reassignments, the newest first, before position `before`, at most `limit`.
pub async fn reassignments(
    pool: &PgPool,
    filter: &ReassignmentFilter,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Reassignment>, sqlx::Error> {
    let Some((after, end)) = positions(pool, filter).await? else { return Ok(vec![]) };
    let between = (after, before.map_or(end, |before| before.min(end)));
    read_twice!(pool, connection => async {
        let (sql, arguments) = statement(filter, between, limit)?;
        // Planned for these very values, so that an absent filter costs nothing and a rare one uses its index.
        sqlx::query_as_with(sql, arguments).persistent(false).fetch_all(&mut *connection).await
    })
}

/// Returns the statement for rows strictly between two positions, with its values.
pub fn statement(
    filter: &ReassignmentFilter,
    (after, before): (i64, i64),
    limit: i64,
) -> Result<(&'static str, PgArguments), sqlx::Error> {
    let mut arguments = PgArguments::default();
    let mut add = || {
        arguments.add(after)?;
        arguments.add(before)?;
        arguments.add(filter.meeting)?;
        arguments.add(filter.actor.as_deref())?;
        arguments.add(filter.actor_kind.as_deref())?;
        arguments.add(filter.previous_by.map(LinkedBy::as_str))?;
        arguments.add(limit)?;
        match filter.profile {
            None => Ok(ABOUT_ANYBODY),
            Some(profile) => arguments.add(profile).map(|()| ABOUT_PROFILE),
        }
    };
    let sql = add().map_err(sqlx::Error::Encode)?;
    Ok((sql, arguments))
}

/// Returns the positions between which a filter's times lie, both outside; `None` if that time has not come yet.
pub async fn positions(
    pool: &PgPool,
    filter: &ReassignmentFilter,
) -> Result<Option<(i64, i64)>, sqlx::Error> {
    // The last position before a time: the log's times have microseconds.
    let last_before = async |time: Option<DateTime<Utc>>| match time {
        None => Ok(None),
        Some(time) => log::position_at(pool, time - TimeDelta::microseconds(1)).await.map(Some),
    };
    let (from, to) = tokio::try_join!(last_before(filter.from), last_before(filter.to))?;
    let after = match from {
        None => 0,
        Some(Some(position)) => position,
        Some(None) => return Ok(None),
    };
    let end = to.flatten().map_or(i64::MAX, |position| position + 1);
    Ok(Some((after, end)))
}
