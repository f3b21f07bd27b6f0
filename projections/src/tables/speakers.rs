//! `speakers`: the speakers of each meeting's latest diarization, one per cluster.

use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

use super::copy::{CopyRow, Fields};
use super::{Statement, column};

/// A row of `speakers`.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct SpeakerRow {
    /// The speaker.
    pub id: Uuid,
    /// The meeting.
    #[serde(skip)]
    pub meeting_id: Option<Uuid>,
    /// The label in the diarization.
    pub cluster_id: Option<String>,
    /// Who it is, where that is known.
    pub user_profile_id: Option<Uuid>,
    /// How sure the machine was, 0 to 1; null where a person said so.
    pub confidence: Option<f64>,
}

/// Returns the speakers of `meetings`.
pub async fn of_meetings(
    connection: &mut PgConnection,
    meetings: &[Uuid],
) -> Result<Vec<SpeakerRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT id, meeting_id, cluster_id, user_profile_id, confidence
           FROM speakers WHERE meeting_id = ANY ($1)",
    )
    .bind(meetings)
    .fetch_all(connection)
    .await
}

/// The statement; where the rows may be in the table, with what to do then appended.
macro_rules! insert {
    () => {
        "INSERT INTO speakers (id, meeting_id, cluster_id, user_profile_id, confidence)
         SELECT id, meeting_id, cluster_id, user_profile_id, confidence
           FROM UNNEST ($1::uuid[], $2::uuid[], $3::text[], $4::uuid[], $5::float8[])
             AS new (id, meeting_id, cluster_id, user_profile_id, confidence)"
    };
}

/// Inserts rows that the table does not have.
pub fn insert(rows: &[&SpeakerRow]) -> Option<Statement> {
    statement(insert!(), rows)
}

/// Puts rows in the place of those with the same id.
pub fn update(rows: &[&SpeakerRow]) -> Option<Statement> {
    let update = concat!(
        insert!(),
        " ON CONFLICT (id) DO UPDATE SET
             meeting_id = excluded.meeting_id, cluster_id = excluded.cluster_id,
             user_profile_id = excluded.user_profile_id, confidence = excluded.confidence",
    );
    statement(update, rows)
}

fn statement(sql: &'static str, rows: &[&SpeakerRow]) -> Option<Statement> {
    if rows.is_empty() {
        return None;
    }
    let statement = Statement::new(sql)
        .bind(column!(rows, row => row.id))
        .bind(column!(rows, row => row.meeting_id))
        .bind(column!(rows, row => row.cluster_id.as_deref()))
        .bind(column!(rows, row => row.user_profile_id))
        .bind(column!(rows, row => row.confidence));
    Some(statement)
}

/// Deletes the rows with these ids.
pub fn delete(ids: &[Uuid]) -> Option<Statement> {
    super::delete("DELETE FROM speakers WHERE id = ANY ($1)", ids)
}

impl CopyRow for SpeakerRow {
    const COPY: &'static str =
        "COPY speakers (id, meeting_id, cluster_id, user_profile_id, confidence) FROM STDIN (FORMAT binary)";

    fn fields(&self, fields: &mut Fields<'_>) {
        fields.uuid(Some(self.id));
        fields.uuid(self.meeting_id);
        fields.text(self.cluster_id.as_deref());
        fields.uuid(self.user_profile_id);
        fields.float(self.confidence);
    }
}
