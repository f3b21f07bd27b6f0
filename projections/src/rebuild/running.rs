//! Who rebuilds: one at a time, known to all by a lock and a row in `ops.rebuilds`.

use chrono::{DateTime, Utc};
use event_store::EventStore;
use sqlx::{Connection, Executor, PgConnection, Row};

use super::{RebuildError, connect, database, swap};
use crate::schema;

/// A rebuild, a verification or a rollback that runs: no other one does.
pub struct Running {
    connection: PgConnection,
    id: i64,
}

/// How a rebuild was last heard of.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RebuildRow {
    /// Its number.
    pub id: i64,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Which process.
    pub who: String,
    /// `rebuild`, `dry-run`, `rollback` or `verify`.
    pub kind: String,
    /// Where it is.
    pub phase: String,
    /// Events done in this phase.
    pub done: i64,
    /// Events of this phase.
    pub total: i64,
    /// What became of it.
    pub outcome: Option<String>,
}

impl Running {
    /// Takes the lock, and clears away what one that was killed has left.
    pub async fn begin(store: &EventStore, who: &str, kind: &str) -> Result<Self, RebuildError> {
        let failed = database("beginning");
        let mut connection = connect(store, schema::LIVE).await?;
        let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(7165932018841088005)")
            .fetch_one(&mut connection)
            .await
            .map_err(&failed)?;
        if !alone {
            let latest = latest(store, 1).await.map_err(&failed)?;
            let who = latest.first().map_or("just begun".to_owned(), |row| {
                format!(
                    "{} by {}, since {}, {} {}/{}",
                    row.kind, row.who, row.started_at, row.phase, row.done, row.total
                )
            });
            return Err(RebuildError::Running { who });
        }
        let killed =
            "UPDATE ops.rebuilds SET finished_at = now(), outcome = 'killed' WHERE finished_at IS NULL";
        connection.execute(killed).await.map_err(&failed)?;
        schema::drop(&mut connection, schema::NEXT).await.map_err(&failed)?;
        schema::drop(&mut connection, schema::SCRATCH).await.map_err(&failed)?;
        schema::drop(&mut connection, swap::OLD).await.map_err(&failed)?;
        let id = sqlx::query_scalar(
            "INSERT INTO ops.rebuilds (who, kind, phase) VALUES ($1, $2, 'beginning') RETURNING id",
        )
        .bind(who)
        .bind(kind)
        .fetch_one(&mut connection)
        .await
        .map_err(&failed)?;
        Ok(Self { connection, id })
    }

    /// Returns its number.
    pub const fn id(&self) -> i64 {
        self.id
    }

    /// Says what became of it, and lets others begin.
    pub async fn end(mut self, outcome: &str) -> Result<(), RebuildError> {
        sqlx::query("UPDATE ops.rebuilds SET finished_at = now(), outcome = $2 WHERE id = $1")
            .bind(self.id)
            .bind(outcome)
            .execute(&mut self.connection)
            .await
            .map_err(database("noting the outcome"))?;
        let _ = self.connection.close().await;
        Ok(())
    }
}

/// Takes note of how far a rebuild is.
pub async fn note_progress(
    store: &EventStore,
    id: i64,
    phase: &str,
    done: i64,
    total: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE ops.rebuilds SET phase = $2, done = $3, total = $4 WHERE id = $1")
        .bind(id)
        .bind(phase)
        .bind(done)
        .bind(total)
        .execute(store.pool())
        .await?;
    Ok(())
}

/// Returns the latest rebuilds, the newest first.
pub async fn latest(store: &EventStore, limit: i64) -> Result<Vec<RebuildRow>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, started_at, finished_at, who, kind, phase, done, total, outcome
           FROM ops.rebuilds ORDER BY id DESC LIMIT $1",
    )
    .bind(limit)
    .fetch_all(store.pool())
    .await?;
    let row = |row: &sqlx::postgres::PgRow| {
        Ok(RebuildRow {
            id: row.try_get("id")?,
            started_at: row.try_get("started_at")?,
            finished_at: row.try_get("finished_at")?,
            who: row.try_get("who")?,
            kind: row.try_get("kind")?,
            phase: row.try_get("phase")?,
            done: row.try_get("done")?,
            total: row.try_get("total")?,
            outcome: row.try_get("outcome")?,
        })
    };
    rows.iter().map(row).collect()
}
