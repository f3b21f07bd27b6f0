//! What the feed has passed over because it was parked. It goes out once the tables show it, or once it was
//! skipped: later than its neighbours, with its own position.

use std::collections::{BTreeSet, HashSet};

use event_store::EventStore;
use event_store::log::feed::{self, Filter};
use event_store::log::{BatchLimits, Entry, LogError};
use sqlx::{Connection, Executor, PgConnection, PgPool};

use super::cloud_event::CloudEvent;
use super::public_event::EventType;

/// How many of them are read at once, so that little is kept for a reader.
const AT_ONCE: BatchLimits = BatchLimits { events: 64, bytes: 512 * 1024 };

/// Which events of a stretch of the log do not go out as they are.
pub(super) struct Exempt {
    /// Those that the tables do not show.
    pub parked: HashSet<i64>,
    /// Those that have no effect.
    pub skipped: HashSet<i64>,
}

impl Exempt {
    /// Returns those after position `after` and up to `until`.
    pub(super) async fn between(pool: &PgPool, after: i64, until: i64) -> Result<Self, sqlx::Error> {
        let rows: Vec<(i64, bool)> = sqlx::query_as(
            "SELECT position, true FROM ops.parked_events
              WHERE generation = (SELECT generation FROM checkpoint) AND position > $1 AND position <= $2
             UNION ALL
             SELECT position, false FROM ops.parked_decisions
              WHERE outcome = 'skipped' AND position > $1 AND position <= $2",
        )
        .bind(after)
        .bind(until)
        .fetch_all(pool)
        .await?;
        let of =
            |wanted: bool| rows.iter().filter(|(_, parked)| *parked == wanted).map(|(at, _)| *at).collect();
        Ok(Self { parked: of(true), skipped: of(false) })
    }

    /// Lets an event of a type that nobody can subscribe to pass, if it is known to be at fault.
    pub(super) fn excuses(&self, entry: Entry) -> Result<(), LogError> {
        let position = entry.position();
        match entry {
            Entry::Unreadable(unreadable)
                if !self.parked.contains(&position) && !self.skipped.contains(&position) =>
            {
                Err(unreadable.into())
            }
            Entry::Unreadable(_) | Entry::Event(_) => Ok(()),
        }
    }
}

/// Reads the public events at `positions`, which are in order, as many as are read at once; those of unknown
/// types are left out. Returns up to which position these are all.
pub(super) async fn events_at(
    store: &EventStore,
    positions: &[i64],
) -> Result<(Vec<CloudEvent>, i64), LogError> {
    let Some((first, last)) = positions.first().zip(positions.last()) else { return Ok((vec![], 0)) };
    let filter = Filter { positions: Some(positions.to_vec()), ..Filter::default() };
    let read = feed::read(store.pool(), first - 1, *last, &filter, AT_ONCE).await?;
    let until =
        if read.whole { *last } else { read.events.last().map_or(*last, |read| read.entry.position()) };
    let exempt = Exempt::between(store.pool(), first - 1, *last)
        .await
        .map_err(|source| LogError::Database { after: first - 1, source })?;
    let mut events = Vec::with_capacity(read.events.len());
    for feed::FeedEvent { entry, correlation_id, previous } in read.events {
        let skipped = exempt.skipped.contains(&entry.position());
        if let Some(event_type) = EventType::stored(entry.event_type()) {
            let (identity, previous) = (store.identity(), previous.unwrap_or(0));
            let event = CloudEvent::of_entry(identity, entry, event_type, skipped, previous, correlation_id);
            events.push(event?);
        }
    }
    Ok((events, until))
}

/// What one reader of the log has passed over.
pub struct Withheld {
    store: EventStore,
    filter: Filter,
    positions: BTreeSet<i64>,
}

impl Withheld {
    /// Returns what a reader has passed over that had everything up to position `after` which could be had
    /// then.
    pub async fn before(store: EventStore, after: i64, filter: Filter) -> Result<Self, sqlx::Error> {
        // What was decided when that event was there already may have come too late for the reader.
        let positions: Vec<i64> = sqlx::query_scalar(
            "SELECT position FROM ops.parked_events
              WHERE generation = (SELECT generation FROM checkpoint) AND position <= $1
             UNION
             SELECT position FROM ops.parked_decisions
              WHERE position <= $1 AND decided_at >= (SELECT recorded_at FROM log.events WHERE position = $1)",
        )
        .bind(after)
        .fetch_all(store.pool())
        .await?;
        Ok(Self { store, filter, positions: positions.into_iter().collect() })
    }

    /// Returns what a reader has passed over that begins.
    pub const fn none(store: EventStore, filter: Filter) -> Self {
        Self { store, filter, positions: BTreeSet::new() }
    }

    /// Says whether there is anything.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Takes note of what was passed over.
    pub fn add(&mut self, positions: Vec<i64>) {
        self.positions.extend(positions);
    }

    /// Returns some of the events that may go out now, in order, as far as the reader's filter lets them
    /// through; none once there are no more.
    pub async fn released(&mut self) -> Result<Option<Vec<CloudEvent>>, LogError> {
        let positions = self.positions.iter().copied().collect::<Vec<_>>();
        let free = sqlx::query_scalar(
            "SELECT position FROM UNNEST ($1::bigint[]) AS withheld (position)
              WHERE NOT EXISTS (SELECT FROM ops.parked_events p
                                 WHERE p.generation = (SELECT generation FROM checkpoint)
                                   AND p.position = withheld.position)
              ORDER BY position LIMIT $2",
        )
        .bind(positions)
        .bind(i64::try_from(AT_ONCE.events).unwrap_or(i64::MAX))
        .fetch_all(self.store.pool());
        let free: Vec<i64> = free.await.map_err(|source| LogError::Database { after: 0, source })?;
        if free.is_empty() {
            return Ok(None);
        }
        let (mut events, until) = events_at(&self.store, &free).await?;
        events.retain(|event| {
            let types = self.filter.types.as_ref();
            types.is_none_or(|types| types.iter().any(|name| name == event.event_type.stored))
                && self.filter.aggregate.is_none_or(|(_, id)| id == event.aggregate_id)
        });
        for position in free.into_iter().filter(|position| *position <= until) {
            self.positions.remove(&position);
        }
        Ok(Some(events))
    }
}

/// Takes note, for good, that a stream passes over events. Comes before anything behind them is published:
/// whatever happens then, they are remembered.
pub(super) async fn note(
    connection: &mut PgConnection,
    stream: &str,
    positions: &[i64],
) -> Result<(), sqlx::Error> {
    if positions.is_empty() {
        return Ok(());
    }
    let mut noting = connection.begin().await?;
    // Unlike how far the stream is, the stream does not tell this after a crash: it has to be on the disk.
    noting.execute("SET LOCAL synchronous_commit = on").await?;
    sqlx::query(
        "INSERT INTO ops.withheld_events (stream, position)
         SELECT $1, position FROM UNNEST ($2::bigint[]) AS withheld (position) ON CONFLICT DO NOTHING",
    )
    .bind(stream)
    .bind(positions)
    .execute(&mut *noting)
    .await?;
    noting.commit().await
}

/// Returns the events over which a stream that has come to `position` has passed, and which may go out now; a
/// limited number.
pub(super) async fn due(
    connection: &mut PgConnection,
    stream: &str,
    position: i64,
) -> Result<Vec<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT w.position FROM ops.withheld_events w
          WHERE w.stream = $1 AND w.position <= $3
            AND NOT EXISTS (SELECT FROM ops.parked_events p
                             WHERE p.generation = (SELECT generation FROM checkpoint) AND p.position = w.position)
          ORDER BY w.position LIMIT $2",
    )
    .bind(stream)
    .bind(i64::try_from(AT_ONCE.events).unwrap_or(i64::MAX))
    .bind(position)
    .fetch_all(connection)
    .await
}

/// Takes note that a stream is filled anew.
pub(super) async fn forget(connection: &mut PgConnection, stream: &str) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM ops.withheld_events WHERE stream = $1").bind(stream).execute(connection).await?;
    Ok(())
}

/// Takes note that events went out.
pub(super) async fn settle(
    connection: &mut PgConnection,
    stream: &str,
    positions: &[i64],
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM ops.withheld_events WHERE stream = $1 AND position = ANY ($2)")
        .bind(stream)
        .bind(positions)
        .execute(connection)
        .await?;
    Ok(())
}
