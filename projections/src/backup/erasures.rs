//! Who was forgotten: small, and written far more often than a backup, so that a restore forgets them too.

use std::path::Path;

use chrono::{DateTime, Utc};
use event_store::log;
use serde::{Deserialize, Serialize};
use sqlx::{Connection, Executor, PgConnection, PgPool, Row};
use uuid::Uuid;

use super::{BackupError, connect, database};

/// Whose keys are destroyed, of one log. Ids and times, and nothing of anybody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erasures {
    /// The log.
    pub log_id: Uuid,
    /// When the list was made.
    pub taken_at: DateTime<Utc>,
    /// Whose, the earliest first.
    pub erased: Vec<Erased>,
}

/// A key that is destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Erased {
    /// What it was the key of: a profile, a speaker or a meeting.
    pub kind: String,
    /// Which one.
    pub id: Uuid,
    /// Up to which of its lives: a meeting that is registered anew has another one.
    pub life: i32,
    /// When.
    pub destroyed_at: DateTime<Utc>,
}

impl Erasures {
    /// Collects them.
    pub async fn collect(pool: &PgPool) -> Result<Self, BackupError> {
        let failed = || database("reading whose keys are destroyed");
        let mut connection = connect(&pool.connect_options(), "minutebook").await?;
        let log_id = log::identity(&mut connection).await.map_err(failed())?.log_id;
        let taken_at = Utc::now();
        let rows = sqlx::query(
            "SELECT kind, id, CASE WHEN destroyed_at IS NULL THEN life - 1 ELSE life END AS life,
                    coalesce(destroyed_at, created_at) AS destroyed_at
               FROM keys.subjects WHERE destroyed_at IS NOT NULL OR life > 1
              ORDER BY coalesce(destroyed_at, created_at), kind, id",
        )
        .fetch_all(&mut connection)
        .await
        .map_err(failed())?;
        let erased = |row: &sqlx::postgres::PgRow| {
            Ok(Erased {
                kind: row.try_get("kind")?,
                id: row.try_get("id")?,
                life: row.try_get("life")?,
                destroyed_at: row.try_get("destroyed_at")?,
            })
        };
        let erased = rows.iter().map(erased).collect::<Result<_, _>>().map_err(failed())?;
        let _ = connection.close().await;
        Ok(Self { log_id, taken_at, erased })
    }

    /// Writes the list to a file, in the place of an older one.
    pub fn write(&self, path: &Path) -> Result<(), BackupError> {
        let write = || -> std::io::Result<()> {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(format!(".partial-{}", Uuid::new_v4().simple()));
            let partial = path.with_file_name(name);
            let written = super::write::private(&partial).and_then(|mut file| {
                serde_json::to_writer_pretty(&mut file, self)?;
                file.sync_all()?;
                std::fs::rename(&partial, path)
            });
            if written.is_err() {
                let _ = std::fs::remove_file(&partial);
            }
            written
        };
        write().map_err(|source| BackupError::File { phase: "writing", path: path.to_owned(), source })
    }

    /// Reads a list.
    pub fn read(path: &Path) -> Result<Self, BackupError> {
        let text = std::fs::read(path);
        let text =
            text.map_err(|source| BackupError::File { phase: "reading", path: path.to_owned(), source })?;
        serde_json::from_slice(&text)
            .map_err(|source| BackupError::Unreadable { path: path.to_owned(), source })
    }

    /// Destroys these keys; returns how many of them were still there. A tombstone is left also where there was
    /// no key, so that none is made.
    pub(super) async fn apply(&self, connection: &mut PgConnection) -> Result<u64, BackupError> {
        let failed = || database("destroying the keys of the erased");
        if self.erased.is_empty() {
            return Ok(0);
        }
        let destroyed = sqlx::query(
            "WITH erased AS (
                 SELECT DISTINCT ON (kind, id) kind, id, life, destroyed_at
                   FROM UNNEST ($1::text[], $2::uuid[], $3::int[], $4::timestamptz[]) AS e (kind, id, life, destroyed_at)
                  ORDER BY kind, id, life DESC
             ), there AS (
                 SELECT s.kind, s.id FROM keys.subjects s JOIN erased e USING (kind, id)
                  WHERE s.destroyed_at IS NULL AND s.life <= e.life
             ), written AS (
                 INSERT INTO keys.subjects AS s (kind, id, life, wrapped, created_at, destroyed_at)
                 SELECT kind, id, life, NULL, destroyed_at, destroyed_at FROM erased
                 ON CONFLICT (kind, id) DO UPDATE
                    SET life = excluded.life, wrapped = NULL, destroyed_at = excluded.destroyed_at
                  WHERE s.life < excluded.life OR (s.life = excluded.life AND s.destroyed_at IS NULL)
             )
             SELECT count(*) AS destroyed FROM there",
        )
        .bind(self.erased.iter().map(|erased| erased.kind.as_str()).collect::<Vec<_>>())
        .bind(self.erased.iter().map(|erased| erased.id).collect::<Vec<_>>())
        .bind(self.erased.iter().map(|erased| erased.life).collect::<Vec<_>>())
        .bind(self.erased.iter().map(|erased| erased.destroyed_at).collect::<Vec<_>>())
        .fetch_one(&mut *connection)
        .await
        .and_then(|row| row.try_get::<i64, _>("destroyed"))
        .map_err(failed())?;
        let destructions = "UPDATE keys.master SET destructions = destructions + 1";
        connection.execute(destructions).await.map_err(failed())?;
        Ok(u64::try_from(destroyed).unwrap_or(0))
    }
}
