//! How the log stood at a time or a position.

use chrono::{DateTime, Utc};
use sqlx::{PgExecutor, PgPool, Row};
use uuid::Uuid;

use crate::locks;

/// Returns the version that an aggregate had when the log ended at `position`: its number of events.
pub async fn version_at(
    executor: impl PgExecutor<'_>,
    aggregate_type: &str,
    aggregate_id: Uuid,
    position: i64,
) -> Result<i64, sqlx::Error> {
    let version = sqlx::query_scalar(
        "SELECT sequence FROM log.events
          WHERE aggregate_type = $1 AND aggregate_id = $2 AND position <= $3
          ORDER BY sequence DESC LIMIT 1",
    )
    .bind(aggregate_type)
    .bind(aggregate_id.to_string())
    .bind(position);
    Ok(version.fetch_optional(executor).await?.unwrap_or(0))
}

/// Returns when the event at `position` was recorded, if there is one.
pub async fn recorded_at(
    executor: impl PgExecutor<'_>,
    position: i64,
) -> Result<Option<DateTime<Utc>>, sqlx::Error> {
    sqlx::query_scalar("SELECT recorded_at FROM log.events WHERE position = $1")
        .bind(position)
        .fetch_optional(executor)
        .await
}

/// Returns the position at which the log stood at `time`: the last one recorded at or before it, 0 before
/// the first; `None` if the time is still to come. It is the same whenever it is asked.
pub async fn position_at(pool: &PgPool, time: DateTime<Utc>) -> Result<Option<i64>, sqlx::Error> {
    let mut connection = pool.acquire().await?;
    let row = sqlx::query(
        "SELECT clock_timestamp(), (SELECT recorded_at FROM log.events ORDER BY position DESC LIMIT 1)",
    )
    .fetch_one(&mut *connection)
    .await?;
    let (now, newest): (DateTime<Utc>, Option<DateTime<Utc>>) = (row.try_get(0)?, row.try_get(1)?);
    if newest.is_none_or(|newest| newest < time) {
        if now < time {
            return Ok(None);
        }
        // An append under way may have taken its time before this one, and not be seen yet. It holds the
        // append lock until it is; later ones take a later time.
        sqlx::query("SELECT pg_advisory_xact_lock_shared($1)")
            .bind(locks::APPEND)
            .execute(&mut *connection)
            .await?;
    }
    // Times never run backwards along positions, so halving finds it, one look at the primary key each time.
    // A hole ends the search without a row.
    let found = sqlx::query_scalar(
        "WITH RECURSIVE search (low, high) AS (
             SELECT 0::bigint, coalesce((SELECT position FROM log.events ORDER BY position DESC LIMIT 1), 0)
             UNION ALL
             SELECT CASE WHEN e.recorded_at <= $1 THEN e.position ELSE s.low END,
                    CASE WHEN e.recorded_at <= $1 THEN s.high ELSE e.position - 1 END
               FROM search s
              CROSS JOIN LATERAL (
                        SELECT position, recorded_at FROM log.events
                         WHERE position = (s.low + s.high + 1) / 2 LIMIT 1) e
              WHERE s.low < s.high
         )
         SELECT low FROM search WHERE low = high",
    )
    .bind(time)
    // A plan made while the log was short must not scan it when it is long.
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    Ok(Some(found))
}
