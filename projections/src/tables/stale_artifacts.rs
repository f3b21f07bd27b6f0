//! `stale_artifacts`: which artifacts are older than a speaker's name.

use sqlx::PgConnection;
use uuid::Uuid;

use super::copy::{CopyRow, Fields};
use super::{Statement, column};

/// A row of `stale_artifacts`.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct StaleArtifactRow {
    /// The artifact.
    pub artifact_id: Uuid,
    /// The meeting.
    pub meeting_id: Uuid,
    /// The place in the log of the event that says so.
    pub position: i64,
}

/// Returns the stale artifacts of `meetings`.
pub async fn of_meetings(
    connection: &mut PgConnection,
    meetings: &[Uuid],
) -> Result<Vec<StaleArtifactRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT artifact_id, meeting_id, position FROM stale_artifacts WHERE meeting_id = ANY ($1)",
    )
    .bind(meetings)
    .fetch_all(connection)
    .await
}

/// The statement; where the rows may be in the table, with what to do then appended.
macro_rules! insert {
    () => {
        "INSERT INTO stale_artifacts (artifact_id, meeting_id, position)
         SELECT artifact_id, meeting_id, position
           FROM UNNEST ($1::uuid[], $2::uuid[], $3::bigint[]) AS new (artifact_id, meeting_id, position)"
    };
}

/// Inserts rows that the table does not have.
pub fn insert(rows: &[&StaleArtifactRow]) -> Option<Statement> {
    statement(insert!(), rows)
}

/// Puts rows in the place of those of the same artifact.
pub fn update(rows: &[&StaleArtifactRow]) -> Option<Statement> {
    let update = concat!(
        insert!(),
        " ON CONFLICT (artifact_id) DO UPDATE SET
             meeting_id = excluded.meeting_id, position = excluded.position",
    );
    statement(update, rows)
}

fn statement(sql: &'static str, rows: &[&StaleArtifactRow]) -> Option<Statement> {
    if rows.is_empty() {
        return None;
    }
    let statement = Statement::new(sql)
        .bind(column!(rows, row => row.artifact_id))
        .bind(column!(rows, row => row.meeting_id))
        .bind(column!(rows, row => row.position));
    Some(statement)
}

/// Deletes the rows of these artifacts.
pub fn delete(artifacts: &[Uuid]) -> Option<Statement> {
    super::delete("DELETE FROM stale_artifacts WHERE artifact_id = ANY ($1)", artifacts)
}

impl CopyRow for StaleArtifactRow {
    const COPY: &'static str =
        "COPY stale_artifacts (artifact_id, meeting_id, position) FROM STDIN (FORMAT binary)";

    fn fields(&self, fields: &mut Fields<'_>) {
        fields.uuid(Some(self.artifact_id));
        fields.uuid(Some(self.meeting_id));
        fields.bigint(Some(self.position));
    }
}
