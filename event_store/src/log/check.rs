//! Whether the log is whole.

use sqlx::{Connection, PgConnection, PgPool};

use super::head;

/// Looks at the log itself: positions without a hole, sequences without a hole in every aggregate, times that
/// never run backwards. Returns what is wrong, at most ten of each kind, in chunks with short snapshots.
/// (That every event decodes is seen by whoever folds them.)
pub async fn check(pool: &PgPool) -> Result<Vec<String>, sqlx::Error> {
    /// Events looked at by one statement.
    const CHUNK: i64 = 100_000;
    let mut problems = vec![];
    // Its own connection: the last statement takes as long as the log is.
    let options = pool.connect_options().as_ref().clone().options([("statement_timeout", "0")]);
    let mut connection = PgConnection::connect_with(&options).await?;
    let end = head(&mut connection).await?;
    let mut after = 0;
    while after < end {
        // The row before comes along: its time and place are what the first one follows.
        let wrong: Vec<String> = sqlx::query_scalar(
            "SELECT CASE WHEN position <> coalesce(before, 0) + 1
                         THEN format('position %s follows %s', position, coalesce(before, 0))
                         ELSE format('position %s was recorded before position %s', position, before) END
               FROM (SELECT position, recorded_at, lag(position) OVER w AS before, lag(recorded_at) OVER w AS earlier
                       FROM log.events WHERE position >= $1 AND position <= $2
                     WINDOW w AS (ORDER BY position)) e
              WHERE (position > $1 OR $1 = 0) AND (position <> coalesce(before, 0) + 1 OR recorded_at < earlier)
              ORDER BY position LIMIT 10",
        )
        .bind(after)
        .bind(after + CHUNK)
        .fetch_all(&mut connection)
        .await?;
        problems.extend(wrong);
        after += CHUNK;
    }
    let torn: Vec<String> = sqlx::query_scalar(
        "SELECT format('%s %s has %s events, numbered up to %s', aggregate_type, aggregate_id, count(*), max(sequence))
           FROM log.events WHERE position <= $1
          GROUP BY aggregate_type, aggregate_id HAVING count(*) <> max(sequence) LIMIT 10",
    )
    .bind(end)
    .fetch_all(&mut connection)
    .await?;
    problems.extend(torn);
    let _ = connection.close().await;
    Ok(problems)
}
