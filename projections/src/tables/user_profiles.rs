//! `user_profiles`: one row per person known by name.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::postgres::PgRow;
use sqlx::types::Json;
use sqlx::{FromRow, PgConnection, Row};
use uuid::Uuid;

use super::copy::{CopyRow, Fields};
use super::{Statement, column};

/// A row of `user_profiles`.
#[derive(Clone, PartialEq)]
pub struct UserProfileRow {
    /// The profile.
    pub id: Uuid,
    /// How the person is called.
    pub display_name: String,
    /// The samples of the person's voice; `null` in the table when there is none.
    pub embeddings: Vec<Embedding>,
    /// When the person was entered in the book.
    pub created_at: Option<DateTime<Utc>>,
}

/// One sample in `user_profiles.embeddings`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Embedding {
    /// The sample.
    pub sample_id: Uuid,
    /// The embedding model.
    pub model: String,
    /// How many numbers the vector has.
    pub dimension: usize,
    /// The embedding.
    pub vector: Vec<f32>,
    /// Where the sample came from.
    pub source: Option<String>,
    /// Who added it: an opaque id.
    #[serde(default)]
    pub actor: Option<String>,
    /// `person`, `service` or `system`.
    #[serde(default)]
    pub actor_kind: Option<String>,
    /// When it was added.
    pub enrolled_at: DateTime<Utc>,
}

// Names and voices do not show themselves in a log by way of `{:?}`.
impl std::fmt::Debug for UserProfileRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "UserProfileRow({}, {} samples)", self.id, self.embeddings.len())
    }
}

impl FromRow<'_, PgRow> for UserProfileRow {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let embeddings: Option<Json<Vec<Embedding>>> = row.try_get("embeddings")?;
        Ok(Self {
            id: row.try_get("id")?,
            display_name: row.try_get("display_name")?,
            embeddings: embeddings.map(|Json(embeddings)| embeddings).unwrap_or_default(),
            created_at: row.try_get("created_at")?,
        })
    }
}

/// Returns the rows with these ids.
pub async fn load(connection: &mut PgConnection, ids: &[Uuid]) -> Result<Vec<UserProfileRow>, sqlx::Error> {
    sqlx::query_as("SELECT id, display_name, embeddings, created_at FROM user_profiles WHERE id = ANY ($1)")
        .bind(ids)
        .fetch_all(connection)
        .await
}

/// The statement; where the rows may be in the table, with what to do then appended.
macro_rules! insert {
    () => {
        "INSERT INTO user_profiles (id, display_name, embeddings, created_at)
         SELECT id, display_name, embeddings, created_at
           FROM UNNEST ($1::uuid[], $2::text[], $3::jsonb[], $4::timestamptz[])
             AS new (id, display_name, embeddings, created_at)"
    };
}

/// Inserts rows that the table does not have.
pub fn insert(rows: &[&UserProfileRow]) -> Option<Statement> {
    statement(insert!(), rows)
}

/// Puts rows in the place of those with the same id.
pub fn update(rows: &[&UserProfileRow]) -> Option<Statement> {
    let update = concat!(
        insert!(),
        " ON CONFLICT (id) DO UPDATE SET
             display_name = excluded.display_name, embeddings = excluded.embeddings,
             created_at = excluded.created_at",
    );
    statement(update, rows)
}

fn statement(sql: &'static str, rows: &[&UserProfileRow]) -> Option<Statement> {
    if rows.is_empty() {
        return None;
    }
    let embeddings = |row: &UserProfileRow| {
        let there = !row.embeddings.is_empty();
        there.then(|| Json(row.embeddings.clone()))
    };
    let statement = Statement::new(sql)
        .bind(column!(rows, row => row.id))
        .bind(column!(rows, row => row.display_name.as_str()))
        .bind(column!(rows, row => embeddings(row)))
        .bind(column!(rows, row => row.created_at));
    Some(statement)
}

/// Deletes the rows with these ids.
pub fn delete(ids: &[Uuid]) -> Option<Statement> {
    super::delete("DELETE FROM user_profiles WHERE id = ANY ($1)", ids)
}

impl CopyRow for UserProfileRow {
    const COPY: &'static str =
        "COPY user_profiles (id, display_name, embeddings, created_at) FROM STDIN (FORMAT binary)";

    fn fields(&self, fields: &mut Fields<'_>) {
        fields.uuid(Some(self.id));
        fields.text(Some(&self.display_name));
        fields.jsonb((!self.embeddings.is_empty()).then_some(&self.embeddings));
        fields.timestamp(self.created_at);
    }
}
