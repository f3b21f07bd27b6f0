//! `artifacts`: at most one row per meeting and type, the latest one stored.

use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use uuid::Uuid;

use super::copy::{CopyRow, Fields};
use super::{Statement, column};

/// A row of `artifacts`.
#[derive(Debug, Clone, PartialEq, Serialize, sqlx::FromRow)]
pub struct ArtifactRow {
    /// The artifact.
    pub id: Uuid,
    /// The meeting.
    #[serde(skip)]
    pub meeting_id: Option<Uuid>,
    /// `transcript.md`, `transcript.vtt`, `transcript.srt` or `summary.json`.
    #[serde(rename = "type")]
    #[sqlx(rename = "type")]
    pub artifact_type: String,
    /// Where it is in the object store.
    pub s3_key: Option<String>,
    /// What else is known of it: an object.
    pub meta: Option<Value>,
}

/// Returns the artifacts of `meetings`.
pub async fn of_meetings(
    connection: &mut PgConnection,
    meetings: &[Uuid],
) -> Result<Vec<ArtifactRow>, sqlx::Error> {
    sqlx::query_as("SELECT id, meeting_id, type, s3_key, meta FROM artifacts WHERE meeting_id = ANY ($1)")
        .bind(meetings)
        .fetch_all(connection)
        .await
}

/// The statement; where the rows may be in the table, with what to do then appended.
macro_rules! insert {
    () => {
        "INSERT INTO artifacts (id, meeting_id, type, s3_key, meta)
         SELECT id, meeting_id, type, s3_key, meta
           FROM UNNEST ($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::jsonb[])
             AS new (id, meeting_id, type, s3_key, meta)"
    };
}

/// Inserts rows that the table does not have.
pub fn insert(rows: &[&ArtifactRow]) -> Option<Statement> {
    statement(insert!(), rows)
}

/// Puts rows in the place of those with the same id.
pub fn update(rows: &[&ArtifactRow]) -> Option<Statement> {
    let update = concat!(
        insert!(),
        " ON CONFLICT (id) DO UPDATE SET
             meeting_id = excluded.meeting_id, type = excluded.type, s3_key = excluded.s3_key,
             meta = excluded.meta",
    );
    statement(update, rows)
}

fn statement(sql: &'static str, rows: &[&ArtifactRow]) -> Option<Statement> {
    if rows.is_empty() {
        return None;
    }
    let statement = Statement::new(sql)
        .bind(column!(rows, row => row.id))
        .bind(column!(rows, row => row.meeting_id))
        .bind(column!(rows, row => row.artifact_type.as_str()))
        .bind(column!(rows, row => row.s3_key.as_deref()))
        .bind(column!(rows, row => row.meta.as_ref()));
    Some(statement)
}

/// Deletes the rows with these ids.
pub fn delete(ids: &[Uuid]) -> Option<Statement> {
    super::delete("DELETE FROM artifacts WHERE id = ANY ($1)", ids)
}

impl CopyRow for ArtifactRow {
    const COPY: &'static str =
        "COPY artifacts (id, meeting_id, type, s3_key, meta) FROM STDIN (FORMAT binary)";

    fn fields(&self, fields: &mut Fields<'_>) {
        fields.uuid(Some(self.id));
        fields.uuid(self.meeting_id);
        fields.text(Some(&self.artifact_type));
        fields.text(self.s3_key.as_deref());
        fields.jsonb(self.meta.as_ref());
    }
}
