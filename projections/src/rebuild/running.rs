//! Who rebuilds: one at a time, known to all by a lock and a row in `ops.rebuilds`.

use std::time::Duration;

use chrono::{DateTime, Utc};
use event_store::command_bus::IdempotencyKey;
use event_store::{EventStore, locks};
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{Connection, Executor, FromRow, PgConnection, Row};
use tokio::time::sleep;
use tracing::warn;

use super::noting::At;
use super::run::Findings;
use super::{RebuildError, clear, connect, database, swap};
use crate::schema::{self, LAYING, NEXT, SCRATCH};

/// How often the lock is asked for, while it belongs to one that has just begun, or has just ended.
const TRIES: u32 = 20;
/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(50);

/// How long somebody who looks at what a killed one has left is waited for.
const CLEAR: &str = "SET lock_timeout = '10s'";

/// Who asks for a rebuild.
#[derive(Debug, Clone)]
pub struct Asked {
    /// Which process, and for whom.
    pub who: String,
    /// The client's own mark for the request, if it gave one.
    pub key: Option<IdempotencyKey>,
}

/// A rebuild, a verification or a rollback that runs: no other one does.
pub struct Running {
    connection: PgConnection,
    id: i64,
}

/// How a rebuild was last heard of.
#[derive(Debug, Clone, serde::Serialize, FromRow, utoipa::ToSchema)]
pub struct RebuildRow {
    /// Its number.
    #[schema(example = 7)]
    pub id: i64,
    /// `rebuild`, `dry-run`, `rollback`, `verify` or `until`.
    #[schema(example = "rebuild")]
    pub kind: String,
    /// Which process, and for whom.
    #[schema(example = "process 4711 on saturn for service:ops-1")]
    pub who: String,
    /// When it began.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Whether it runs.
    #[schema(example = true)]
    pub running: bool,
    /// Where it is, or ended.
    #[schema(example = "folding")]
    pub phase: String,
    /// Events done in this phase.
    #[schema(example = 34_000)]
    pub done: i64,
    /// Events of this phase; 0 where it has no measure.
    #[schema(example = 200_000)]
    pub total: i64,
    /// How much of the phase that is.
    pub percentage: Option<f64>,
    /// What became of it: `done`, `failed`, `interrupted` or `killed`.
    pub outcome: Option<String>,
    /// What it found, once it has ended. Lists leave it out.
    #[schema(value_type = Option<Findings>)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Value>,
}

impl Running {
    /// Takes the lock, and clears away what one that was killed has left.
    pub async fn begin(store: &EventStore, asked: &Asked, kind: &str) -> Result<Self, RebuildError> {
        let failed = database("beginning");
        let mut connection = connect(store, schema::LIVE).await?;
        take_lock(store, &mut connection).await?;
        let killed =
            "UPDATE ops.rebuilds SET finished_at = now(), outcome = 'killed' WHERE finished_at IS NULL";
        connection.execute(killed).await.map_err(&failed)?;
        connection.execute(CLEAR).await.map_err(&failed)?;
        for left in [NEXT, SCRATCH, LAYING] {
            clear(&mut connection, left).await.map_err(&failed)?;
        }
        connection.execute("RESET lock_timeout").await.map_err(&failed)?;
        // Whoever reads it still keeps a swap from coming to pass, and nothing else.
        if let Err(error) = swap::drop_old(&mut connection).await {
            warn!(error = &error as &dyn std::error::Error, "an old generation could not be dropped");
        }
        let id = sqlx::query_scalar(
            "INSERT INTO ops.rebuilds (who, kind, phase, backend, command_id, request_hmac)
             VALUES ($1, $2, 'beginning', pg_backend_pid(), $3, $4) RETURNING id",
        )
        .bind(&asked.who)
        .bind(kind)
        .bind(asked.key.as_ref().map(|key| key.command_id))
        .bind(asked.key.as_ref().map(|key| &key.request_hmac))
        .fetch_one(&mut connection)
        .await
        .map_err(&failed)?;
        Ok(Self { connection, id })
    }

    /// Returns its number.
    pub const fn id(&self) -> i64 {
        self.id
    }

    /// Returns the session that holds the lock: what is done in it cannot outlive it.
    pub(super) const fn session(&mut self) -> &mut PgConnection {
        &mut self.connection
    }

    /// Fails if the lock is gone with its connection: what is built may be another one's by now.
    pub async fn ensure_alone(&mut self) -> Result<(), RebuildError> {
        self.connection.ping().await.map_err(database("asking whether no other one runs"))
    }

    /// Says what became of it and what it found, and lets others begin.
    pub async fn end(mut self, outcome: &str, at: At, findings: &Findings) -> Result<(), RebuildError> {
        sqlx::query(
            "UPDATE ops.rebuilds
                SET finished_at = now(), outcome = $2, phase = $3, done = $4, total = $5, report = $6
              WHERE id = $1",
        )
        .bind(self.id)
        .bind(outcome)
        .bind(at.phase)
        .bind(at.done)
        .bind(at.total)
        .bind(Json(findings))
        .execute(&mut self.connection)
        .await
        .map_err(database("noting the outcome"))?;
        let _ = self.connection.close().await;
        Ok(())
    }
}

/// Takes the lock for as long as the connection lasts. Its holder may be one that has said its outcome and is
/// about to leave: whoever saw that outcome may begin.
async fn take_lock(store: &EventStore, connection: &mut PgConnection) -> Result<(), RebuildError> {
    let failed = database("beginning");
    for _ in 0..TRIES {
        let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(locks::REBUILD)
            .fetch_one(&mut *connection)
            .await
            .map_err(&failed)?;
        if alone {
            return Ok(());
        }
        if let Some(row) = current(store).await.map_err(&failed)? {
            let RebuildRow { kind, who, started_at, phase, done, total, .. } = row;
            let who = format!("{kind} by {who}, since {started_at}, {phase} {done}/{total}");
            return Err(RebuildError::Running { who });
        }
        sleep(PAUSE).await;
    }
    Err(RebuildError::Running { who: "just begun".to_owned() })
}

/// Takes note of how far a rebuild is.
pub async fn note_progress(store: &EventStore, id: i64, at: At) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE ops.rebuilds SET phase = $2, done = $3, total = $4 WHERE id = $1")
        .bind(id)
        .bind(at.phase)
        .bind(at.done)
        .bind(at.total)
        .execute(store.pool())
        .await?;
    Ok(())
}

/// Selects rebuilds as they are known: one that has not said its outcome runs while its own connection holds the
/// lock, which is the first parameter, and was killed otherwise.
macro_rules! select {
    ($report:literal, $which:literal) => {
        concat!(
            "SELECT r.id, r.kind, r.who, r.started_at, r.finished_at, r.phase, r.done, r.total,
                    CASE WHEN r.total > 0 THEN round(100.0 * r.done / r.total, 1)::float8 END AS percentage,
                    r.finished_at IS NULL AND l.held AS running,
                    CASE WHEN r.finished_at IS NULL AND NOT l.held THEN 'killed' ELSE r.outcome END AS outcome, ",
            $report,
            " AS report
               FROM ops.rebuilds r CROSS JOIN LATERAL (
                    SELECT EXISTS (SELECT FROM pg_locks h
                                    WHERE h.pid = r.backend AND h.granted AND h.locktype = 'advisory'
                                      AND (h.classid::bigint << 32) + h.objid::bigint = $1
                                      AND h.database = (SELECT oid FROM pg_database
                                                         WHERE datname = current_database())) AS held) l ",
            $which
        )
    };
}

/// Returns the latest rebuilds, the newest first: those before the one with the number `before`, if it is given.
pub async fn latest(
    store: &EventStore,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<RebuildRow>, sqlx::Error> {
    sqlx::query_as(select!("NULL::jsonb", "WHERE $2 IS NULL OR r.id < $2 ORDER BY r.id DESC LIMIT $3"))
        .bind(locks::REBUILD)
        .bind(before)
        .bind(limit)
        .fetch_all(store.pool())
        .await
}

/// Returns the rebuild that runs, if one does.
pub async fn current(store: &EventStore) -> Result<Option<RebuildRow>, sqlx::Error> {
    // Whoever comes after it has had the lock after it.
    Ok(latest(store, None, 1).await?.into_iter().find(|row| row.running))
}

/// Returns one rebuild and what it found.
pub async fn one(store: &EventStore, id: i64) -> Result<Option<RebuildRow>, sqlx::Error> {
    sqlx::query_as(select!("r.report", "WHERE r.id = $2"))
        .bind(locks::REBUILD)
        .bind(id)
        .fetch_optional(store.pool())
        .await
}

/// Returns the number of the rebuild that was asked for under a key, and the request's HMAC.
pub async fn of_key(store: &EventStore, key: &IdempotencyKey) -> Result<Option<(i64, Vec<u8>)>, sqlx::Error> {
    sqlx::query_as("SELECT id, request_hmac FROM ops.rebuilds WHERE command_id = $1")
        .bind(key.command_id)
        .fetch_optional(store.pool())
        .await
}

/// The seconds since something last succeeded, none if it never did.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    /// Since the live tables were last swapped for rebuilt ones.
    pub rebuild: Option<f64>,
    /// Since they were last proved.
    pub verification: Option<f64>,
}

/// Returns how long ago a rebuild and a verification last succeeded.
pub async fn ages(store: &EventStore) -> Result<Ages, sqlx::Error> {
    let row = sqlx::query(
        "SELECT extract(epoch FROM now() - max(finished_at) FILTER (WHERE kind = 'rebuild'))::float8 AS rebuild,
                extract(epoch FROM now() - max(finished_at) FILTER (WHERE kind = 'verify'))::float8 AS verification
           FROM ops.rebuilds WHERE outcome = 'done'",
    )
    .fetch_one(store.pool())
    .await?;
    Ok(Ages { rebuild: row.try_get("rebuild")?, verification: row.try_get("verification")? })
}
