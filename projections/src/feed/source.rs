//! Public events straight from the log, in order, each with the position before it of its type.

use std::collections::HashMap;

use event_store::EventStore;
use event_store::log::{self, BatchLimits, Filter, LogError};
use sqlx::PgPool;

use super::cloud_event::CloudEvent;
use super::public_event::{EVENT_TYPES, EventType};

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

    /// Reads on, at most up to position `until`. Returns the events that the filter lets through; an empty
    /// batch means that up to `until` there are no more.
    pub async fn next(&mut self, until: i64, limits: BatchLimits) -> Result<Vec<CloudEvent>, LogError> {
        if until <= self.position {
            return Ok(vec![]);
        }
        if !self.settled {
            let newest = newest_of_each_type(self.store.pool(), self.position).await;
            self.newest = newest.map_err(|source| LogError::Database { after: self.position, source })?;
            self.settled = true;
        }
        let batch = log::read_for_feed(self.store.pool(), self.position, until, &self.filter, limits).await?;
        let identity = self.store.identity();
        let mut events = Vec::with_capacity(batch.events.len());
        for read in &batch.events {
            let stored = EventType::of(&read.recorded.event).stored;
            // A filter that leaves some of a type out makes the log say what came before.
            let before = self.newest.insert(stored, read.recorded.position).unwrap_or(0);
            let previous = read.previous.unwrap_or(before);
            events.push(CloudEvent::new(identity, &read.recorded, previous, read.correlation_id.clone()));
        }
        self.position = if batch.whole {
            until
        } else {
            batch.events.last().map_or(self.position, |read| read.recorded.position)
        };
        Ok(events)
    }
}

/// Returns the newest position of each type up to `position`, by its stored name.
pub async fn newest_of_each_type(
    pool: &PgPool,
    position: i64,
) -> Result<HashMap<&'static str, i64>, sqlx::Error> {
    let stored = EVENT_TYPES.iter().map(|known| known.stored).collect::<Vec<_>>();
    let newest = log::newest_of_types(pool, &stored, position).await?;
    Ok(stored.into_iter().zip(newest).collect())
}
