//! Reading the log: in order from a position, and its identity and end.

mod check;
mod event;
pub mod feed;
mod moments;

use chrono::{DateTime, Utc};
use domain::event::Event;
use domain::ids::LogSecret;
use futures::{Stream, TryStreamExt};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, PgExecutor, PgPool, Row};
use uuid::Uuid;

pub use self::check::check;
use self::event::version_number;
pub use self::event::{Entry, LogError, Provenance, Recorded, StoredEvent, Unreadable};
pub use self::moments::{position_at, recorded_at, version_at};
use crate::Identity;
use crate::sealing::{Keyring, Needs};

/// What [`entry`] decodes, of `log.events` alone. The metadata is read of those events only of which the fold
/// needs it: who it was that said so.
macro_rules! columns {
    () => {
        "position, recorded_at, sequence, aggregate_type, aggregate_id, event_type, event_version,
         payload::text AS payload,
         CASE WHEN event_type IN ('SpeakerReassigned', 'VoiceEnrolled') THEN metadata::text END AS metadata"
    };
}

/// How much is read at once.
#[derive(Debug, Clone, Copy)]
pub struct BatchLimits {
    /// The most events.
    pub events: usize,
    /// The bytes of payload after which no further event is taken.
    pub bytes: usize,
}

/// Reads the events after position `after`, in order, at most one batch, as they are stored: what is personal is
/// sealed. An empty batch means that the log ends here. A hole is an error that names it.
pub async fn read(pool: &PgPool, after: i64, limits: BatchLimits) -> Result<Vec<StoredEvent>, LogError> {
    let failed = |source| LogError::Database { after, source };
    let mut rows = sqlx::query(
        "SELECT position, recorded_at, aggregate_type, aggregate_id, sequence,
                event_type, event_version, payload::text AS payload, metadata::text AS metadata
           FROM log.events WHERE position > $1 ORDER BY position LIMIT $2",
    )
    .bind(after)
    .bind(i64::try_from(limits.events).unwrap_or(i64::MAX))
    .fetch(pool);

    let mut events = Vec::new();
    let mut bytes = 0;
    let mut expected = after + 1;
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        let event = stored_event(&row).map_err(failed)?;
        if event.position != expected {
            return Err(LogError::Hole { missing: expected, found: event.position });
        }
        expected += 1;
        bytes += event.payload.len();
        events.push(event);
        // Rows are taken from the connection as they come; the rest is passed over, not kept.
        if bytes >= limits.bytes {
            break;
        }
    }
    Ok(events)
}

/// Reads and decodes the events after position `after`, in order, at most one batch, up to a hole: then the
/// error comes beside those before it. What is not needed to fold (most events' metadata) is not read.
pub async fn read_recorded(
    pool: &PgPool,
    keyring: &Keyring,
    after: i64,
    limits: BatchLimits,
) -> (Vec<Entry>, Option<LogError>) {
    let mut events = Vec::new();
    let error = read_into(pool, after, limits, &mut events).await.err();
    // No voice of a cluster is in a table.
    match keyring.open_entries(pool, &mut events, Needs::NoClusters).await {
        Ok(()) => (events, error),
        Err(error) => (vec![], Some(LogError::of_keys(after, error))),
    }
}

async fn read_into(
    pool: &PgPool,
    after: i64,
    limits: BatchLimits,
    events: &mut Vec<Entry>,
) -> Result<(), LogError> {
    let failed = |source| LogError::Database { after, source };
    let mut rows = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        "
           FROM log.events WHERE position > $1 ORDER BY position LIMIT $2",
    ))
    .bind(after)
    .bind(i64::try_from(limits.events).unwrap_or(i64::MAX))
    .fetch(pool);
    let mut bytes = 0;
    let mut expected = after + 1;
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        let position = row.try_get(0).map_err(failed)?;
        if position != expected {
            return Err(LogError::Hole { missing: expected, found: position });
        }
        expected += 1;
        let (entry, size) = entry(&row).map_err(failed)?;
        events.push(entry);
        bytes += size;
        if bytes >= limits.bytes {
            break;
        }
    }
    Ok(())
}

/// Reads and decodes the events of aggregates with ids before `to`, aggregate by aggregate, after the event
/// with the id and the sequence `after`, as far as the log's position `until`; at most one batch.
pub async fn read_aggregates(
    connection: &mut PgConnection,
    keyring: &Keyring,
    aggregate_type: &str,
    after: &(String, i64),
    to: &str,
    until: i64,
    limits: BatchLimits,
) -> Result<Vec<Entry>, LogError> {
    let failed = |source| LogError::Database { after: 0, source };
    let rows = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        "
           FROM log.events
          WHERE aggregate_type = $1 AND (aggregate_id, sequence) > ($2, $3) AND aggregate_id < $4
            AND position <= $5
          ORDER BY aggregate_id, sequence LIMIT $6",
    ))
    .bind(aggregate_type)
    .bind(&after.0)
    .bind(after.1)
    .bind(to)
    .bind(until)
    .bind(i64::try_from(limits.events).unwrap_or(i64::MAX))
    .fetch(&mut *connection);
    let (mut events, _) = gather(rows, limits).await.map_err(failed)?;
    let opened = keyring.open_entries(connection, &mut events, Needs::NoClusters).await;
    opened.map_err(|error| LogError::of_keys(0, error))?;
    Ok(events)
}

/// Reads and decodes the events of one type of aggregates after position `after` and up to `until`, in order, at
/// most one batch; says whether these are all.
pub async fn read_type(
    pool: &PgPool,
    keyring: &Keyring,
    aggregate_type: &str,
    after: i64,
    until: i64,
    limits: BatchLimits,
) -> Result<(Vec<Entry>, bool), LogError> {
    let failed = |source| LogError::Database { after, source };
    let rows = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        "
           FROM log.events WHERE position > $1 AND position <= $2 AND aggregate_type = $3
          ORDER BY position LIMIT $4",
    ))
    .bind(after)
    .bind(until)
    .bind(aggregate_type)
    .bind(i64::try_from(limits.events).unwrap_or(i64::MAX))
    .fetch(pool);
    let (mut events, whole) = gather(rows, limits).await.map_err(failed)?;
    let opened = keyring.open_entries(pool, &mut events, Needs::NoClusters).await;
    opened.map_err(|error| LogError::of_keys(after, error))?;
    Ok((events, whole))
}

/// Decodes rows of [`columns!`], at most one batch; says whether these are all.
async fn gather(
    mut rows: impl Stream<Item = Result<PgRow, sqlx::Error>> + Unpin,
    limits: BatchLimits,
) -> Result<(Vec<Entry>, bool), sqlx::Error> {
    let mut events = Vec::new();
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await? {
        let (entry, size) = entry(&row)?;
        events.push(entry);
        bytes += size;
        if events.len() == limits.events || bytes >= limits.bytes {
            return Ok((events, false));
        }
    }
    Ok((events, true))
}

/// Reads and decodes the latest event of a type of each of these aggregates that has one, in order of their ids;
/// what an operator has skipped is passed over. At most so many `bytes` of payload, and the one event that
/// passes it; says whether these are all.
pub async fn latest_of_type(
    pool: &PgPool,
    keyring: &Keyring,
    aggregate_type: &str,
    aggregate_ids: &[String],
    event_type: &str,
    bytes: usize,
) -> Result<(Vec<Entry>, bool), sqlx::Error> {
    let mut rows = sqlx::query(concat!(
        "SELECT ",
        columns!(),
        "
           FROM unnest($2::text[]) AS wanted (id)
          CROSS JOIN LATERAL (
                SELECT l.position, l.recorded_at, l.sequence, l.aggregate_type, l.aggregate_id, l.event_type,
                       l.event_version, l.payload, l.metadata
                  FROM log.events l
                 WHERE l.aggregate_type = $1 AND l.aggregate_id = wanted.id AND l.event_type = $3
                   AND NOT EXISTS (SELECT FROM ops.parked_decisions d
                                    WHERE d.position = l.position AND d.outcome = 'skipped')
                 ORDER BY l.sequence DESC LIMIT 1) e
          ORDER BY e.aggregate_id",
    ))
    .bind(aggregate_type)
    .bind(aggregate_ids)
    .bind(event_type)
    .fetch(pool);
    let mut events = Vec::new();
    let mut read = 0;
    let mut whole = true;
    while let Some(row) = rows.try_next().await? {
        if read >= bytes {
            whole = false;
            break;
        }
        let (entry, size) = entry(&row)?;
        events.push(entry);
        read += size;
    }
    drop(rows);
    keyring.open_entries(pool, &mut events, Needs::Everything).await?;
    Ok((events, whole))
}

/// Returns which speakers of these meetings somebody has reassigned, and the sequence of the latest time.
pub async fn reassigned_speakers(
    pool: &PgPool,
    meetings: &[String],
) -> Result<Vec<(Uuid, i64)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT (payload #>> '{SpeakerReassigned,speaker_id}')::uuid, max(sequence)
           FROM log.events
          WHERE aggregate_type = 'meeting' AND aggregate_id = ANY ($1) AND event_type = 'SpeakerReassigned'
          GROUP BY 1",
    )
    .bind(meetings)
    .fetch_all(pool)
    .await
}

/// Returns the types of aggregates that the log has, from the index alone.
pub async fn aggregate_types(connection: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "WITH RECURSIVE types (name) AS (
             (SELECT aggregate_type FROM log.events ORDER BY aggregate_type LIMIT 1)
             UNION ALL
             SELECT (SELECT e.aggregate_type FROM log.events e
                      WHERE e.aggregate_type > t.name ORDER BY e.aggregate_type LIMIT 1)
               FROM types t WHERE t.name IS NOT NULL)
         SELECT name FROM types WHERE name IS NOT NULL",
    )
    .fetch_all(connection)
    .await
}

/// Decodes a row of position, recorded_at, sequence, aggregate type and id, event type and version, payload,
/// and metadata where it is needed; returns the payload's size with it.
fn entry(row: &PgRow) -> Result<(Entry, usize), sqlx::Error> {
    let (position, recorded_at, sequence) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
    let text = |column: usize| row.try_get::<&str, _>(column);
    let (aggregate_type, aggregate_id, event_type, payload) = (text(3)?, text(4)?, text(5)?, text(7)?);
    let entry = match Event::decode(aggregate_type, aggregate_id, event_type, text(6)?, payload) {
        Ok(event) => {
            let provenance = row.try_get::<Option<&str>, _>(8)?.map(Provenance::of);
            let event_version = version_number(text(6)?);
            Entry::Event(Recorded { position, recorded_at, sequence, event_version, event, provenance })
        }
        Err(source) => Entry::Unreadable(Unreadable {
            position,
            recorded_at,
            sequence,
            aggregate_type: aggregate_type.to_owned(),
            aggregate_id: aggregate_id.to_owned(),
            event_type: event_type.to_owned(),
            source,
        }),
    };
    Ok((entry, payload.len()))
}

/// Reads the events of one aggregate after `after_sequence`, in order, at most one batch; says whether more
/// follow.
pub async fn read_aggregate(
    pool: &PgPool,
    keyring: &Keyring,
    aggregate_type: &str,
    aggregate_id: Uuid,
    after_sequence: i64,
    limits: BatchLimits,
) -> Result<(Vec<StoredEvent>, bool), sqlx::Error> {
    read_aggregate_but(pool, keyring, aggregate_type, aggregate_id, after_sequence, None, limits).await
}

/// Reads the events of one aggregate as [`read_aggregate`] does, but those of the type `but`, if one is named:
/// large ones, which the reader would pass over. Voices of clusters stay sealed.
pub async fn read_aggregate_but(
    pool: &PgPool,
    keyring: &Keyring,
    aggregate_type: &str,
    aggregate_id: Uuid,
    after_sequence: i64,
    but: Option<&str>,
    limits: BatchLimits,
) -> Result<(Vec<StoredEvent>, bool), sqlx::Error> {
    let mut rows = sqlx::query(
        "SELECT position, recorded_at, aggregate_type, aggregate_id, sequence,
                event_type, event_version, payload::text AS payload, metadata::text AS metadata
           FROM log.events
          WHERE aggregate_type = $1 AND aggregate_id = $2 AND sequence > $3
            AND ($5::text IS NULL OR event_type <> $5)
          ORDER BY sequence LIMIT $4",
    )
    .bind(aggregate_type)
    .bind(aggregate_id.to_string())
    .bind(after_sequence)
    .bind(i64::try_from(limits.events).unwrap_or(i64::MAX).saturating_add(1))
    .bind(but)
    .fetch(pool);
    let mut events = Vec::new();
    let mut bytes = 0;
    let mut more = false;
    while let Some(row) = rows.try_next().await? {
        if events.len() == limits.events || bytes >= limits.bytes {
            more = true;
            break;
        }
        let event = stored_event(&row)?;
        bytes += event.payload.len();
        events.push(event);
    }
    drop(rows);
    keyring.open_stored(pool, &mut events, Needs::NoClusters).await?;
    Ok((events, more))
}

/// Returns the first event of each of these aggregates that has one, as it is stored: what is personal is sealed.
pub async fn first_events(
    pool: &PgPool,
    aggregate_type: &str,
    aggregate_ids: &[Uuid],
) -> Result<Vec<StoredEvent>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT position, recorded_at, aggregate_type, aggregate_id, sequence,
                event_type, event_version, payload::text AS payload, metadata::text AS metadata
           FROM log.events
          WHERE aggregate_type = $1 AND aggregate_id = ANY ($2) AND sequence = 1",
    )
    .bind(aggregate_type)
    .bind(aggregate_ids.iter().map(Uuid::to_string).collect::<Vec<_>>())
    .fetch_all(pool)
    .await?;
    rows.iter().map(stored_event).collect()
}

fn stored_event(row: &sqlx::postgres::PgRow) -> Result<StoredEvent, sqlx::Error> {
    Ok(StoredEvent {
        position: row.try_get(0)?,
        recorded_at: row.try_get(1)?,
        aggregate_type: row.try_get(2)?,
        aggregate_id: row.try_get(3)?,
        sequence: row.try_get(4)?,
        event_type: row.try_get(5)?,
        event_version: row.try_get(6)?,
        payload: row.try_get(7)?,
        metadata: row.try_get(8)?,
        damage: None,
    })
}

/// Returns the position of the newest event; 0 for an empty log.
pub async fn head(executor: impl PgExecutor<'_>) -> Result<i64, sqlx::Error> {
    let newest = sqlx::query_scalar("SELECT position FROM log.events ORDER BY position DESC LIMIT 1");
    Ok(newest.fetch_optional(executor).await?.unwrap_or(0))
}

/// Returns the position of the newest event, and how often somebody was forgotten.
pub(crate) async fn head_and_destructions(executor: impl PgExecutor<'_>) -> Result<(i64, i64), sqlx::Error> {
    sqlx::query_as(
        "SELECT coalesce((SELECT position FROM log.events ORDER BY position DESC LIMIT 1), 0),
                coalesce((SELECT destructions FROM keys.master), 0)",
    )
    .fetch_one(executor)
    .await
}

/// Returns the sequences of an aggregate's events that an operator has skipped.
pub async fn skipped_sequences(
    executor: impl PgExecutor<'_>,
    aggregate_type: &str,
    aggregate_id: &str,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT e.sequence FROM ops.parked_decisions d JOIN log.events e ON e.position = d.position
          WHERE d.outcome = 'skipped' AND e.aggregate_type = $1 AND e.aggregate_id = $2",
    )
    .bind(aggregate_type)
    .bind(aggregate_id)
    .fetch_all(executor)
    .await
}

/// Says whether an aggregate has an event of a type.
pub async fn has_event(
    executor: impl PgExecutor<'_>,
    aggregate_type: &str,
    aggregate_id: Uuid,
    event_type: &str,
) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT EXISTS (SELECT FROM log.events
                         WHERE aggregate_type = $1 AND aggregate_id = $2 AND event_type = $3)",
    )
    .bind(aggregate_type)
    .bind(aggregate_id.to_string())
    .bind(event_type)
    .fetch_one(executor)
    .await
}

/// Returns position and sequence of the latest event of a type that an aggregate has.
pub async fn latest_event(
    executor: impl PgExecutor<'_>,
    aggregate_type: &str,
    aggregate_id: Uuid,
    event_type: &str,
) -> Result<Option<(i64, i64)>, sqlx::Error> {
    sqlx::query_as(
        "SELECT position, sequence FROM log.events
          WHERE aggregate_type = $1 AND aggregate_id = $2 AND event_type = $3
          ORDER BY sequence DESC LIMIT 1",
    )
    .bind(aggregate_type)
    .bind(aggregate_id.to_string())
    .bind(event_type)
    .fetch_optional(executor)
    .await
}

/// Returns who the log is.
pub async fn identity(executor: impl PgExecutor<'_>) -> Result<Identity, sqlx::Error> {
    let row = sqlx::query("SELECT log_id, epoch, secret FROM log.identity").fetch_one(executor).await?;
    let secret: Vec<u8> = row.try_get("secret")?;
    let secret = secret.try_into().map_err(|_| sqlx::Error::Decode("the secret has not 32 bytes".into()))?;
    Ok(Identity {
        log_id: row.try_get("log_id")?,
        epoch: row.try_get("epoch")?,
        secret: LogSecret::new(secret),
    })
}

/// Forgets at most `limit` commands accepted before `before`; returns how many.
pub async fn forget_commands(
    executor: impl PgExecutor<'_>,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    let forgotten = sqlx::query(
        "DELETE FROM log.commands WHERE command_id IN (
             SELECT command_id FROM log.commands WHERE accepted_at < $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
    )
    .bind(before)
    .bind(limit)
    .execute(executor)
    .await?;
    Ok(forgotten.rows_affected())
}
