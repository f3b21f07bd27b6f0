//! Reading the log for the change feed: by type, by aggregate, each with the event of its type before it.

use futures::TryStreamExt;
use sqlx::{PgPool, Row};
use uuid::Uuid;

use super::{BatchLimits, Entry, LogError, entry};

/// Which events a reader of the feed wants.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only these types, by their stored names.
    pub types: Option<Vec<String>>,
    /// Only those of this aggregate.
    pub aggregate: Option<(&'static str, Uuid)>,
    /// Only these, and nothing else is asked.
    pub positions: Option<Vec<i64>>,
}

/// An event for the feed.
#[derive(Debug)]
pub struct FeedEvent {
    /// The event.
    pub entry: Entry,
    /// What it belongs to.
    pub correlation_id: Option<String>,
    /// The position before it of the same type, where the filter leaves some of a type out; 0 for the first.
    pub previous: Option<i64>,
}

/// What was read for the feed.
#[derive(Debug)]
pub struct FeedBatch {
    /// The events that the filter lets through, in order.
    pub events: Vec<FeedEvent>,
    /// Whether these are all of them up to the position asked for.
    pub whole: bool,
}

/// Reads the events after position `after` and up to `until` that `filter` lets through, in order, at most
/// one batch.
pub async fn read(
    pool: &PgPool,
    after: i64,
    until: i64,
    filter: &Filter,
    limits: BatchLimits,
) -> Result<FeedBatch, LogError> {
    macro_rules! select {
        ($previous:expr, $only:literal) => {
            concat!(
                "SELECT e.position, e.recorded_at, e.sequence, e.aggregate_type, e.aggregate_id, e.event_type,
                        e.event_version, e.payload::text AS payload, NULL::text AS metadata,
                        e.metadata ->> 'correlation_id' AS correlation_id, ",
                $previous,
                " AS previous FROM log.events e WHERE e.position > $1 AND e.position <= $2 ",
                $only,
                " ORDER BY e.position LIMIT $3"
            )
        };
    }
    let limit = i64::try_from(limits.events).unwrap_or(i64::MAX);
    let query = |sql: &'static str| sqlx::query(sql).bind(after).bind(until).bind(limit);
    macro_rules! previous {
        () => {
            "coalesce((SELECT p.position FROM log.events p
                        WHERE p.event_type = e.event_type AND p.position < e.position
                        ORDER BY p.position DESC LIMIT 1), 0)"
        };
    }
    let mut rows = match filter {
        Filter { positions: Some(positions), .. } => {
            query(select!(previous!(), "AND e.position = ANY ($4)")).bind(positions)
        }
        Filter { types: None, aggregate: None, .. } => query(select!("NULL::bigint", "")),
        Filter { types: Some(types), aggregate: None, .. } => {
            query(select!("NULL::bigint", "AND e.event_type = ANY ($4)")).bind(types)
        }
        Filter { types, aggregate: Some((aggregate_type, id)), .. } => query(select!(
            previous!(),
            "AND e.aggregate_type = $4 AND e.aggregate_id = $5 AND ($6::text[] IS NULL OR e.event_type = ANY ($6))"
        ))
        .bind(aggregate_type)
        .bind(id.to_string())
        .bind(types),
    }
    .fetch(pool);

    let failed = |source| LogError::Database { after, source };
    let dense = filter.types.is_none() && filter.aggregate.is_none() && filter.positions.is_none();
    let mut batch = FeedBatch { events: Vec::new(), whole: true };
    let mut bytes = 0;
    while let Some(row) = rows.try_next().await.map_err(failed)? {
        let position = row.try_get(0).map_err(failed)?;
        let expected = batch.events.last().map_or(after, |last: &FeedEvent| last.entry.position()) + 1;
        if dense && position != expected {
            return Err(LogError::Hole { missing: expected, found: position });
        }
        let (entry, size) = entry(&row).map_err(failed)?;
        batch.events.push(FeedEvent {
            entry,
            correlation_id: row.try_get(9).map_err(failed)?,
            previous: row.try_get(10).map_err(failed)?,
        });
        bytes += size;
        if batch.events.len() == limits.events || bytes >= limits.bytes {
            batch.whole = position >= until;
            break;
        }
    }
    Ok(batch)
}

/// Returns the newest position of each of `types` up to `position`, 0 where there is none.
pub async fn newest_of_types(pool: &PgPool, types: &[&str], position: i64) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT coalesce((SELECT e.position FROM log.events e
                           WHERE e.event_type = t.name AND e.position <= $2
                           ORDER BY e.position DESC LIMIT 1), 0)
           FROM unnest($1::text[]) WITH ORDINALITY AS t (name, n) ORDER BY t.n",
    )
    .bind(types)
    .bind(position)
    .fetch_all(pool)
    .await
}
