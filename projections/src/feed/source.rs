//! Public events straight from the log, in order, each with the position before it of its type. What is
//! parked is withheld, and goes out later; what was skipped goes out as such.

use std::collections::HashMap;

use event_store::EventStore;
use event_store::log::feed::{self, FeedEvent, Filter};
use event_store::log::{BatchLimits, LogError};
use sqlx::PgPool;

use super::cloud_event::CloudEvent;
use super::public_event::{EVENT_TYPES, EventType};
use super::withheld::Exempt;

/// What was read in one go.
#[derive(Debug, Default)]
pub struct Batch {
    /// The public events that the filter lets through.
    pub events: Vec<CloudEvent>,
    /// The positions of those that are parked.
    pub withheld: Vec<i64>,
    /// Up to which position this is everything.
    pub until: i64,
}

/// Reads public events from a position on.
pub struct Source {
    store: EventStore,
    filter: Filter,
    position: i64,
    /// The newest position of each type up to `position`, by its stored name.
    newest: HashMap<&'static str, i64>,
    /// Whether the log had come as far as `position` when these were looked up.
    settled: bool,
}

impl Source {
    /// Starts after `position`, which the log need not have yet.
    pub async fn after(store: EventStore, position: i64, filter: Filter) -> Result<Self, sqlx::Error> {
        // Before the look-up: what is appended in between may lie before `position`.
        let settled = store.head().position() >= position;
        let newest = newest_of_each_type(store.pool(), position).await?;
        Ok(Self { store, filter, position, newest, settled })
    }

    /// Returns the position up to which everything was read.
    pub const fn position(&self) -> i64 {
        self.position
    }

    /// Returns the newest position of each type up to there, by its stored name.
    pub(super) const fn newest(&self) -> &HashMap<&'static str, i64> {
        &self.newest
    }

    /// Reads on, at most up to position `until`, which the tables show.
    pub async fn next(&mut self, until: i64, limits: BatchLimits) -> Result<Batch, LogError> {
        if until <= self.position {
            return Ok(Batch { until: self.position, ..Batch::default() });
        }
        let failed = |source| LogError::Database { after: self.position, source };
        if !self.settled {
            let newest = newest_of_each_type(self.store.pool(), self.position).await;
            self.newest = newest.map_err(failed)?;
            self.settled = true;
        }
        let pool = self.store.pool();
        let read = feed::read(pool, self.position, until, &self.filter, limits).await?;
        let end = if read.whole {
            until
        } else {
            read.events.last().map_or(self.position, |read| read.entry.position())
        };
        // After the events: the tables have shown these before, so what is parked of them is known.
        let exempt = Exempt::between(pool, self.position, end).await.map_err(failed)?;
        let mut batch = Batch { events: Vec::with_capacity(read.events.len()), withheld: vec![], until: end };
        for FeedEvent { entry, correlation_id, previous } in read.events {
            let position = entry.position();
            let Some(event_type) = EventType::stored(entry.event_type()) else {
                exempt.excuses(entry)?;
                continue;
            };
            // A filter that leaves some of a type out makes the log say what came before.
            let before = self.newest.insert(event_type.stored, position).unwrap_or(0);
            let previous = previous.unwrap_or(before);
            if exempt.parked.contains(&position) {
                batch.withheld.push(position);
                continue;
            }
            let identity = self.store.identity();
            let skipped = exempt.skipped.contains(&position);
            batch.events.push(CloudEvent::of_entry(
                identity,
                entry,
                event_type,
                skipped,
                previous,
                correlation_id,
            )?);
        }
        self.position = end;
        Ok(batch)
    }
}

/// Returns the newest position of each type up to `position`, by its stored name.
pub async fn newest_of_each_type(
    pool: &PgPool,
    position: i64,
) -> Result<HashMap<&'static str, i64>, sqlx::Error> {
    let stored = EVENT_TYPES.iter().map(|known| known.stored).collect::<Vec<_>>();
    let newest = feed::newest_of_types(pool, &stored, position).await?;
    Ok(stored.into_iter().zip(newest).collect())
}
