//! `ops.publications`: how far each stream is, and whose turn it is to publish.

use event_store::locks;
use sqlx::{PgConnection, PgExecutor, Row};
use uuid::Uuid;

/// How far a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publication {
    /// The epoch in which it was published.
    pub epoch: Uuid,
    /// The stream has had every event up to here.
    pub position: i64,
    /// The sequence of its newest message then.
    pub sequence: i64,
}

/// What the publisher last said of itself.
#[derive(Debug, Clone)]
pub struct Said {
    /// The stream.
    pub stream: String,
    /// How far it is.
    pub publication: Publication,
    /// `active`, `waiting`, `refused`, `standby` or `stopped`.
    pub state: String,
    /// What is the matter.
    pub detail: Option<String>,
    /// Since when.
    pub since: chrono::DateTime<chrono::Utc>,
    /// Up to which position the broker has lost events; 0 if it has not.
    pub lost_up_to: i64,
}

/// Holds the stream's row to the end of the transaction: nobody else publishes. Makes it where there is none.
pub async fn hold(
    connection: &mut PgConnection,
    stream: &str,
    epoch: Uuid,
) -> Result<Publication, sqlx::Error> {
    const HOLD: &str = "SELECT epoch, position, sequence FROM ops.publications WHERE stream = $1 FOR UPDATE";
    if let Some(row) = sqlx::query(HOLD).bind(stream).fetch_optional(&mut *connection).await? {
        return publication(&row);
    }
    sqlx::query(
        "INSERT INTO ops.publications (stream, epoch, position, sequence) VALUES ($1, $2, 0, 0)
         ON CONFLICT (stream) DO NOTHING",
    )
    .bind(stream)
    .bind(epoch)
    .execute(&mut *connection)
    .await?;
    publication(&sqlx::query(HOLD).bind(stream).fetch_one(connection).await?)
}

/// Says whether the publisher has refused to go on, and not gone on since.
pub async fn is_refused(connection: &mut PgConnection, stream: &str) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar("SELECT state = 'refused' FROM ops.publications WHERE stream = $1")
        .bind(stream)
        .fetch_one(connection)
        .await
}

/// Takes note of how far the stream is. Whoever does so holds the row.
pub async fn note(
    connection: &mut PgConnection,
    stream: &str,
    publication: Publication,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE ops.publications SET epoch = $2, position = $3, sequence = $4 WHERE stream = $1")
        .bind(stream)
        .bind(publication.epoch)
        .bind(publication.position)
        .bind(publication.sequence)
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes note of how the publisher is.
pub async fn say(
    executor: impl PgExecutor<'_>,
    stream: &str,
    epoch: Uuid,
    state: &str,
    detail: Option<&str>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO ops.publications AS p (stream, epoch, position, sequence, state, detail)
         VALUES ($1, $2, 0, 0, $3, $4)
         ON CONFLICT (stream) DO UPDATE SET state = excluded.state, detail = excluded.detail,
             since = CASE WHEN p.state = excluded.state THEN p.since ELSE now() END",
    )
    .bind(stream)
    .bind(epoch)
    .bind(state)
    .bind(detail)
    .execute(executor)
    .await?;
    Ok(())
}

/// Takes note that the publisher is active, where another one has said otherwise since.
pub async fn insist(executor: impl PgExecutor<'_>, stream: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE ops.publications SET state = 'active', detail = NULL, since = now()
          WHERE stream = $1 AND state <> 'active'",
    )
    .bind(stream)
    .execute(executor)
    .await?;
    Ok(())
}

/// Takes note that the broker has lost events up to `position`.
pub async fn lost(executor: impl PgExecutor<'_>, stream: &str, position: i64) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE ops.publications SET lost_up_to = greatest(lost_up_to, $2::bigint) WHERE stream = $1",
    )
    .bind(stream)
    .bind(position)
    .execute(executor)
    .await?;
    Ok(())
}

/// Takes note that everything from position `from` to position `to` was published again.
pub async fn mended(
    executor: impl PgExecutor<'_>,
    stream: &str,
    from: i64,
    to: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "UPDATE ops.publications SET lost_up_to = 0 WHERE stream = $1 AND $2::bigint = 1 AND $3 >= lost_up_to",
    )
    .bind(stream)
    .bind(from)
    .bind(to)
    .execute(executor)
    .await?;
    Ok(())
}

/// Returns how all streams are.
pub async fn all(executor: impl PgExecutor<'_>) -> Result<Vec<Said>, sqlx::Error> {
    let rows = sqlx::query(
        // A publisher that was killed could not say so; its lock has gone.
        "SELECT stream, epoch, position, sequence, detail, since, lost_up_to,
                CASE WHEN state = 'active' AND NOT EXISTS (
                         SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database
                          WHERE d.datname = current_database() AND l.locktype = 'advisory' AND l.granted
                            AND (l.classid::bigint << 32) + l.objid::bigint = $1)
                     THEN 'stopped' ELSE state END AS state
           FROM ops.publications ORDER BY stream",
    )
    .bind(locks::PUBLISHER)
    .fetch_all(executor)
    .await?;
    let said = |row: &sqlx::postgres::PgRow| {
        Ok(Said {
            stream: row.try_get("stream")?,
            publication: publication(row)?,
            state: row.try_get("state")?,
            detail: row.try_get("detail")?,
            since: row.try_get("since")?,
            lost_up_to: row.try_get("lost_up_to")?,
        })
    };
    rows.iter().map(said).collect()
}

fn publication(row: &sqlx::postgres::PgRow) -> Result<Publication, sqlx::Error> {
    Ok(Publication {
        epoch: row.try_get("epoch")?,
        position: row.try_get("position")?,
        sequence: row.try_get("sequence")?,
    })
}
