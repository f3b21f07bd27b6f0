//! `files`: one row per uploaded file and owner.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;
use uuid::Uuid;

use super::copy::{CopyRow, Fields};
use super::{Statement, column};

/// A row of `files`.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
pub struct FileRow {
    /// The file.
    pub id: Uuid,
    /// The hash of its bytes.
    pub sha256: String,
    /// The fingerprint of its audio.
    pub content_fp: Option<String>,
    /// Its media type.
    pub mime: Option<String>,
    /// Its length in seconds.
    pub duration: Option<i32>,
    /// Its size in bytes.
    pub size: Option<i64>,
    /// Who may see it.
    pub owner: Option<Uuid>,
    /// When its meeting was registered.
    pub created_at: Option<DateTime<Utc>>,
}

/// Returns the file with this id.
pub async fn load(connection: &mut PgConnection, id: Uuid) -> Result<Option<FileRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT id, sha256, content_fp, mime, duration, size, owner, created_at FROM files WHERE id = $1",
    )
    .bind(id)
    .fetch_optional(connection)
    .await
}

/// Returns the files of `meetings`.
pub async fn of_meetings(
    connection: &mut PgConnection,
    meetings: &[Uuid],
) -> Result<Vec<FileRow>, sqlx::Error> {
    sqlx::query_as(
        "SELECT f.id, f.sha256, f.content_fp, f.mime, f.duration, f.size, f.owner, f.created_at
           FROM files f JOIN meetings m ON m.file_id = f.id WHERE m.id = ANY ($1)",
    )
    .bind(meetings)
    .fetch_all(connection)
    .await
}

/// The statement; where the rows may be in the table, with what to do then appended.
macro_rules! insert {
    () => {
        "INSERT INTO files (id, sha256, content_fp, mime, duration, size, owner, created_at)
         SELECT id, sha256, content_fp, mime, duration, size, owner, created_at
           FROM UNNEST ($1::uuid[], $2::text[], $3::text[], $4::text[], $5::int[], $6::bigint[],
                        $7::uuid[], $8::timestamptz[])
             AS new (id, sha256, content_fp, mime, duration, size, owner, created_at)"
    };
}

/// Inserts rows that the table does not have.
pub fn insert(rows: &[&FileRow]) -> Option<Statement> {
    statement(insert!(), rows)
}

/// Puts rows in the place of those with the same id.
pub fn update(rows: &[&FileRow]) -> Option<Statement> {
    let update = concat!(
        insert!(),
        " ON CONFLICT (id) DO UPDATE SET
             sha256 = excluded.sha256, content_fp = excluded.content_fp, mime = excluded.mime,
             duration = excluded.duration, size = excluded.size, owner = excluded.owner,
             created_at = excluded.created_at",
    );
    statement(update, rows)
}

fn statement(sql: &'static str, rows: &[&FileRow]) -> Option<Statement> {
    if rows.is_empty() {
        return None;
    }
    let statement = Statement::new(sql)
        .bind(column!(rows, row => row.id))
        .bind(column!(rows, row => row.sha256.as_str()))
        .bind(column!(rows, row => row.content_fp.as_deref()))
        .bind(column!(rows, row => row.mime.as_deref()))
        .bind(column!(rows, row => row.duration))
        .bind(column!(rows, row => row.size))
        .bind(column!(rows, row => row.owner))
        .bind(column!(rows, row => row.created_at));
    Some(statement)
}

/// Deletes the rows with these ids.
pub fn delete(ids: &[Uuid]) -> Option<Statement> {
    super::delete("DELETE FROM files WHERE id = ANY ($1)", ids)
}

impl CopyRow for FileRow {
    const COPY: &'static str = "COPY files (id, sha256, content_fp, mime, duration, size, owner, created_at) FROM STDIN (FORMAT binary)";

    fn fields(&self, fields: &mut Fields<'_>) {
        fields.uuid(Some(self.id));
        fields.text(Some(&self.sha256));
        fields.text(self.content_fp.as_deref());
        fields.text(self.mime.as_deref());
        fields.integer(self.duration);
        fields.bigint(self.size);
        fields.uuid(self.owner);
        fields.timestamp(self.created_at);
    }
}
