//! `meetings`: one row per meeting.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::copy::{CopyRow, Fields};
use super::{Statement, column};

/// A row of `meetings`.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct MeetingRow {
    /// The meeting.
    pub id: Uuid,
    /// Its file.
    pub file_id: Option<Uuid>,
    /// `pending`, `processing`, `completed` or `failed`.
    pub status: String,
    /// The language spoken.
    pub language: Option<String>,
    /// The registration until processing starts, then the start of the latest attempt.
    pub started_at: Option<DateTime<Utc>>,
    /// The end of the latest attempt, be it completed or failed.
    pub finished_at: Option<DateTime<Utc>>,
}

/// Returns the rows with these ids.
pub async fn load(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<MeetingRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT id, file_id, status, language, started_at, finished_at FROM meetings WHERE id = ANY ($1)",
    )
    .bind(ids)
    .fetch_all(connection)
    .await
}

/// The statement; where the rows may be in the table, with what to do then appended.
macro_rules! insert {
    () => {
        "INSERT INTO meetings (id, file_id, status, language, started_at, finished_at)
         SELECT id, file_id, status, language, started_at, finished_at
           FROM UNNEST ($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::timestamptz[],
                        $6::timestamptz[])
             AS new (id, file_id, status, language, started_at, finished_at)"
    };
}

/// Inserts rows that the table does not have.
pub fn insert(rows: &[&MeetingRow]) -> Option<Statement> {
    statement(insert!(), rows)
}

/// Puts rows in the place of those with the same id.
pub fn update(rows: &[&MeetingRow]) -> Option<Statement> {
    let update = concat!(
        insert!(),
        " ON CONFLICT (id) DO UPDATE SET
             file_id = excluded.file_id, status = excluded.status, language = excluded.language,
             started_at = excluded.started_at, finished_at = excluded.finished_at",
    );
    statement(update, rows)
}

fn statement(sql: &'static str, rows: &[&MeetingRow]) -> Option<Statement> {
    if rows.is_empty() {
        return None;
    }
    let statement = Statement::new(sql)
        .bind(column!(rows, row => row.id))
        .bind(column!(rows, row => row.file_id))
        .bind(column!(rows, row => row.status.as_str()))
        .bind(column!(rows, row => row.language.as_deref()))
        .bind(column!(rows, row => row.started_at))
        .bind(column!(rows, row => row.finished_at));
    Some(statement)
}

/// Deletes the rows with these ids.
pub fn delete(ids: &[Uuid]) -> Option<Statement> {
    super::delete("DELETE FROM meetings WHERE id = ANY ($1)", ids)
}

impl CopyRow for MeetingRow {
    const COPY: &'static str =
        "COPY meetings (id, file_id, status, language, started_at, finished_at) FROM STDIN (FORMAT binary)";

    fn fields(&self, fields: &mut Fields<'_>) {
        fields.uuid(Some(self.id));
        fields.uuid(self.file_id);
        fields.text(Some(&self.status));
        fields.text(self.language.as_deref());
        fields.timestamp(self.started_at);
        fields.timestamp(self.finished_at);
    }
}
