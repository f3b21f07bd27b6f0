//! `speaker_reassignments`: one row per time that somebody said who a speaker is. Rows are added and never
//! change; those of an erased meeting go together.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::copy::{CopyRow, Fields};
use super::{Statement, column};

/// A row of `speaker_reassignments`.
#[derive(Clone, PartialEq, sqlx::FromRow)]
pub struct ReassignmentRow {
    /// The event's place in the log.
    pub position: i64,
    /// When it was recorded.
    pub recorded_at: DateTime<Utc>,
    /// The meeting.
    pub meeting_id: Uuid,
    /// The event's place in the meeting.
    pub sequence: i64,
    /// The speaker.
    pub speaker_id: Uuid,
    /// The speaker's label in the diarization; none for a speaker of an earlier one, from whom somebody was forgotten.
    pub cluster_id: Option<String>,
    /// Who it was until then; none for nobody known.
    pub from_profile_id: Option<Uuid>,
    /// Who it is from then on; none for nobody known.
    pub to_profile_id: Option<Uuid>,
    /// Why; none once the meeting was forgotten.
    pub reason: Option<String>,
    /// Who said so, as an opaque id.
    pub actor: Option<String>,
    /// `person`, `service` or `system`.
    pub actor_kind: Option<String>,
    /// Who had made the link before, or had said that it is nobody known: `machine` or `person`; none if nobody
    /// had.
    pub previous_by: Option<String>,
    /// How sure the machine had been of the link before.
    pub previous_confidence: Option<f64>,
    /// What the command belonged to.
    pub correlation_id: Option<String>,
    /// The speaker of an earlier diarization about whom a person had decided, where that was carried over.
    pub carried_from: Option<Uuid>,
}

// A reason may be about people: it does not show itself in a log by way of `{:?}`.
impl std::fmt::Debug for ReassignmentRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ReassignmentRow({} of {})", self.position, self.meeting_id)
    }
}

/// Returns the rows of a meeting.
pub async fn of_meeting(
    connection: &mut PgConnection,
    meeting: Uuid,
) -> Result<Vec<ReassignmentRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT position, recorded_at, meeting_id, sequence, speaker_id, cluster_id, from_profile_id,
                to_profile_id, reason, actor, actor_kind, previous_by, previous_confidence, correlation_id,
                carried_from
           FROM speaker_reassignments WHERE meeting_id = $1",
    )
    .bind(meeting)
    .fetch_all(connection)
    .await
}

/// The statement; where the rows may be in the table, with what to do then appended.
macro_rules! insert {
    () => {
        "INSERT INTO speaker_reassignments
                (position, recorded_at, meeting_id, sequence, speaker_id, cluster_id, from_profile_id,
                 to_profile_id, reason, actor, actor_kind, previous_by, previous_confidence, correlation_id,
                 carried_from)
         SELECT position, recorded_at, meeting_id, sequence, speaker_id, cluster_id, from_profile_id,
                to_profile_id, reason, actor, actor_kind, previous_by, previous_confidence, correlation_id,
                carried_from
           FROM UNNEST ($1::bigint[], $2::timestamptz[], $3::uuid[], $4::bigint[], $5::uuid[], $6::text[],
                        $7::uuid[], $8::uuid[], $9::text[], $10::text[], $11::text[], $12::text[],
                        $13::float8[], $14::text[], $15::uuid[])
             AS new (position, recorded_at, meeting_id, sequence, speaker_id, cluster_id, from_profile_id,
                     to_profile_id, reason, actor, actor_kind, previous_by, previous_confidence,
                     correlation_id, carried_from)"
    };
}

/// Inserts rows that the table does not have.
pub fn insert(rows: &[&ReassignmentRow]) -> Option<Statement> {
    statement(insert!(), rows)
}

/// Puts rows in the place of those with the same position.
pub fn update(rows: &[&ReassignmentRow]) -> Option<Statement> {
    let update = concat!(
        insert!(),
        " ON CONFLICT (position) DO UPDATE SET
             recorded_at = excluded.recorded_at, meeting_id = excluded.meeting_id,
             sequence = excluded.sequence, speaker_id = excluded.speaker_id,
             cluster_id = excluded.cluster_id, from_profile_id = excluded.from_profile_id,
             to_profile_id = excluded.to_profile_id, reason = excluded.reason, actor = excluded.actor,
             actor_kind = excluded.actor_kind, previous_by = excluded.previous_by,
             previous_confidence = excluded.previous_confidence, correlation_id = excluded.correlation_id,
             carried_from = excluded.carried_from",
    );
    statement(update, rows)
}

fn statement(sql: &'static str, rows: &[&ReassignmentRow]) -> Option<Statement> {
    if rows.is_empty() {
        return None;
    }
    let statement = Statement::new(sql)
        .bind(column!(rows, row => row.position))
        .bind(column!(rows, row => row.recorded_at))
        .bind(column!(rows, row => row.meeting_id))
        .bind(column!(rows, row => row.sequence))
        .bind(column!(rows, row => row.speaker_id))
        .bind(column!(rows, row => row.cluster_id.as_deref()))
        .bind(column!(rows, row => row.from_profile_id))
        .bind(column!(rows, row => row.to_profile_id))
        .bind(column!(rows, row => row.reason.as_deref()))
        .bind(column!(rows, row => row.actor.as_deref()))
        .bind(column!(rows, row => row.actor_kind.as_deref()))
        .bind(column!(rows, row => row.previous_by.as_deref()))
        .bind(column!(rows, row => row.previous_confidence))
        .bind(column!(rows, row => row.correlation_id.as_deref()))
        .bind(column!(rows, row => row.carried_from));
    Some(statement)
}

/// Deletes the rows at these positions.
pub fn delete(positions: &[i64]) -> Option<Statement> {
    let delete =
        || Statement::new("DELETE FROM speaker_reassignments WHERE position = ANY ($1)").bind(positions);
    (!positions.is_empty()).then(delete)
}

/// Deletes all rows of these meetings.
pub fn delete_of(meetings: &[Uuid]) -> Option<Statement> {
    super::delete("DELETE FROM speaker_reassignments WHERE meeting_id = ANY ($1)", meetings)
}

impl CopyRow for ReassignmentRow {
    const COPY: &'static str =
        "COPY speaker_reassignments (position, recorded_at, meeting_id, sequence, speaker_id, cluster_id,
             from_profile_id, to_profile_id, reason, actor, actor_kind, previous_by, previous_confidence,
             correlation_id, carried_from) FROM STDIN (FORMAT binary)";

    fn fields(&self, fields: &mut Fields<'_>) {
        fields.bigint(Some(self.position));
        fields.timestamp(Some(self.recorded_at));
        fields.uuid(Some(self.meeting_id));
        fields.bigint(Some(self.sequence));
        fields.uuid(Some(self.speaker_id));
        fields.text(self.cluster_id.as_deref());
        fields.uuid(self.from_profile_id);
        fields.uuid(self.to_profile_id);
        fields.text(self.reason.as_deref());
        fields.text(self.actor.as_deref());
        fields.text(self.actor_kind.as_deref());
        fields.text(self.previous_by.as_deref());
        fields.float(self.previous_confidence);
        fields.text(self.correlation_id.as_deref());
        fields.uuid(self.carried_from);
    }
}
