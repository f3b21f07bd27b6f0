//! `cache`: results by key. Keys are shared between meetings, so of two writers of one key the one with
//! the higher position wins; `cache_origin` keeps that position, also past the row's expiry.

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::copy::{CopyRow, Fields};
use super::{Statement, column};

/// What an event wrote under a key.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheWrite {
    /// The key.
    pub key: String,
    /// The event's position.
    pub position: i64,
    /// The value and the moment of its expiry; absent if the key was removed.
    pub entry: Option<(String, Option<DateTime<Utc>>)>,
}

/// Carries out those of `writes` that no later event has overtaken. A key comes once.
pub fn write(writes: &[&CacheWrite]) -> [Option<Statement>; 2] {
    let (kept, removed): (Vec<_>, Vec<_>) = writes.iter().partition(|write| write.entry.is_some());
    [remove(&removed), keep(&kept)]
}

fn keep(writes: &[&CacheWrite]) -> Option<Statement> {
    if writes.is_empty() {
        return None;
    }
    let statement = Statement::new(
        "WITH new AS MATERIALIZED (
             SELECT key, position, value, ttl
               FROM UNNEST ($1::text[], $2::bigint[], $3::text[], $4::timestamptz[])
                 AS new (key, position, value, ttl)
         ), won AS (
             INSERT INTO cache_origin (key, position) SELECT key, position FROM new
             ON CONFLICT (key) DO UPDATE SET position = excluded.position
                 WHERE cache_origin.position < excluded.position
             RETURNING key
         )
         INSERT INTO cache (key, value, ttl)
         SELECT new.key, new.value, new.ttl FROM new JOIN won ON won.key = new.key
         ON CONFLICT (key) DO UPDATE SET value = excluded.value, ttl = excluded.ttl",
    )
    .bind(column!(writes, write => write.key.as_str()))
    .bind(column!(writes, write => write.position))
    .bind(column!(writes, write => write.entry.as_ref().map(|(value, _)| value.as_str())))
    .bind(column!(writes, write => write.entry.as_ref().and_then(|(_, ttl)| *ttl)));
    Some(statement)
}

fn remove(writes: &[&CacheWrite]) -> Option<Statement> {
    if writes.is_empty() {
        return None;
    }
    let statement = Statement::new(
        "WITH won AS (
             INSERT INTO cache_origin (key, position)
             SELECT key, position FROM UNNEST ($1::text[], $2::bigint[]) AS removed (key, position)
             ON CONFLICT (key) DO UPDATE SET position = excluded.position
                 WHERE cache_origin.position < excluded.position
             RETURNING key
         )
         DELETE FROM cache USING won WHERE cache.key = won.key",
    )
    .bind(column!(writes, write => write.key.as_str()))
    .bind(column!(writes, write => write.position));
    Some(statement)
}

/// Forgets where the rows of these keys come from, if not from a later event: they can be written again.
pub(crate) fn forget(writes: &[&CacheWrite]) -> Option<Statement> {
    if writes.is_empty() {
        return None;
    }
    let statement = Statement::new(
        "DELETE FROM cache_origin USING UNNEST ($1::text[], $2::bigint[]) AS written (key, position)
          WHERE cache_origin.key = written.key AND cache_origin.position <= written.position",
    )
    .bind(column!(writes, write => write.key.as_str()))
    .bind(column!(writes, write => write.position));
    Some(statement)
}

/// Returns how many rows of these keys, if not of a later event, are missing, differ, and should not be there.
pub(crate) async fn damage(
    connection: &mut PgConnection,
    writes: &[&CacheWrite],
) -> Result<(usize, usize, usize), sqlx::Error> {
    let (missing, differing, surplus): (i64, i64, i64) = sqlx::query_as(
        "SELECT count(*) FILTER (WHERE w.value IS NOT NULL AND c.key IS NULL AND (w.ttl IS NULL OR w.ttl > now())),
                count(*) FILTER (WHERE (w.value IS NULL) = (c.key IS NULL)
                                   AND ((c.value, c.ttl) IS DISTINCT FROM (w.value, w.ttl)
                                        OR o.position IS DISTINCT FROM w.position)),
                count(*) FILTER (WHERE w.value IS NULL AND c.key IS NOT NULL)
           FROM UNNEST ($1::text[], $2::bigint[], $3::text[], $4::timestamptz[]) AS w (key, position, value, ttl)
           LEFT JOIN cache c ON c.key = w.key LEFT JOIN cache_origin o ON o.key = w.key
          WHERE o.position IS NULL OR o.position <= w.position",
    )
    .bind(column!(writes, write => write.key.as_str()))
    .bind(column!(writes, write => write.position))
    .bind(column!(writes, write => write.entry.as_ref().map(|(value, _)| value.as_str())))
    .bind(column!(writes, write => write.entry.as_ref().and_then(|(_, ttl)| *ttl)))
    .fetch_one(connection)
    .await?;
    let count = |rows: i64| usize::try_from(rows).unwrap_or_default();
    Ok((count(missing), count(differing), count(surplus)))
}

/// Deletes at most `limit` rows that expired by `now`; returns how many.
pub async fn sweep(
    connection: &mut PgConnection,
    now: DateTime<Utc>,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let swept = sqlx::query(
        "DELETE FROM cache WHERE key IN (
             SELECT key FROM cache WHERE ttl <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(now)
    .bind(limit)
    .execute(connection)
    .await?;
    Ok(swept.rows_affected())
}

impl CopyRow for CacheWrite {
    const COPY: &'static str = "COPY cache_staged (key, position, value, ttl) FROM STDIN (FORMAT binary)";

    fn fields(&self, fields: &mut Fields<'_>) {
        fields.text(Some(&self.key));
        fields.bigint(Some(self.position));
        fields.text(self.entry.as_ref().map(|(value, _)| value.as_str()));
        fields.timestamp(self.entry.as_ref().and_then(|(_, ttl)| *ttl));
    }
}
