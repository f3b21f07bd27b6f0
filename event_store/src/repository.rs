//! The repository that cqrs-es works with: loading is postgres-es's, appending is ours. An event that an
//! operator has skipped has no effect here either.
//!
//! Snapshots and streams are refused: postgres-es applies events twice with the ones, and ends the others
//! early without an error when the connection is lost (see `docs/adr/0001-log-over-postgres-es.md`).

use cqrs_es::Aggregate;
use cqrs_es::persist::{
    PersistedEventRepository, PersistenceError, ReplayStream, SerializedEvent, SerializedSnapshot,
};
use postgres_es::PostgresEventRepository;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::append::{Append, AppendError, Appender, NewEvent, Outcome};
use crate::log;

/// Loads aggregates' events through postgres-es, and appends through the [`Appender`].
pub struct LogRepository {
    loading: PostgresEventRepository,
    pool: PgPool,
    appender: Appender,
}

impl LogRepository {
    /// Returns a repository over `log.events`.
    pub fn new(pool: PgPool, appender: Appender) -> Self {
        let loading =
            PostgresEventRepository::new(pool.clone()).with_tables("log.events", "log.no_snapshots");
        Self { loading, pool, appender }
    }

    /// Takes out what was skipped. The last event that is left stands for all up to the end, so that the
    /// aggregate keeps its version.
    async fn without_skipped<A: Aggregate>(
        &self,
        id: &str,
        mut events: Vec<SerializedEvent>,
    ) -> Result<Vec<SerializedEvent>, PersistenceError> {
        let skipped = log::skipped_sequences(&self.pool, A::TYPE, id).await;
        let skipped = skipped.map_err(|error| PersistenceError::ConnectionError(Box::new(error)))?;
        if !skipped.is_empty() {
            let version = events.last().map_or(0, |event| event.sequence);
            events.retain(|event| i64::try_from(event.sequence).is_ok_and(|at| !skipped.contains(&at)));
            if let Some(last) = events.last_mut() {
                last.sequence = version;
            }
        }
        known(events)
    }
}

/// cqrs-es would read an event of a newer version as one of today's, if it happened to fit.
fn known(events: Vec<SerializedEvent>) -> Result<Vec<SerializedEvent>, PersistenceError> {
    for event in &events {
        domain::upcast::check_known(&event.event_type, &event.event_version)
            .map_err(|error| PersistenceError::UnknownError(Box::new(error)))?;
    }
    Ok(events)
}

#[derive(Debug, thiserror::Error)]
#[error("{0} are not used here")]
struct Unsupported(&'static str);

impl From<Unsupported> for PersistenceError {
    fn from(error: Unsupported) -> Self {
        Self::UnknownError(Box::new(error))
    }
}

impl PersistedEventRepository for LogRepository {
    async fn get_events<A: Aggregate>(&self, id: &str) -> Result<Vec<SerializedEvent>, PersistenceError> {
        let events = self.loading.get_events::<A>(id).await?;
        self.without_skipped::<A>(id, events).await
    }

    async fn get_last_events<A: Aggregate>(
        &self,
        id: &str,
        last_sequence: usize,
    ) -> Result<Vec<SerializedEvent>, PersistenceError> {
        let events = self.loading.get_last_events::<A>(id, last_sequence).await?;
        self.without_skipped::<A>(id, events).await
    }

    async fn get_snapshot<A: Aggregate>(
        &self,
        _id: &str,
    ) -> Result<Option<SerializedSnapshot>, PersistenceError> {
        Err(Unsupported("snapshots").into())
    }

    async fn persist<A: Aggregate>(
        &self,
        events: &[SerializedEvent],
        snapshot_update: Option<(String, Value, usize)>,
    ) -> Result<(), PersistenceError> {
        if snapshot_update.is_some() {
            return Err(Unsupported("snapshots").into());
        }
        let Some(first) = events.first() else { return Ok(()) };
        let command_id = Uuid::now_v7();
        let mut metadata = first.metadata.clone();
        if let Value::Object(fields) = &mut metadata {
            fields.insert("command_id".to_owned(), command_id.to_string().into());
        }
        let append = Append {
            command_id,
            request_hmac: vec![],
            aggregate_type: A::TYPE,
            aggregate_id: first.aggregate_id.clone(),
            expected_version: i64::try_from(first.sequence).unwrap_or(i64::MAX) - 1,
            metadata: metadata.to_string(),
            events: events
                .iter()
                .map(|event| NewEvent {
                    event_type: event.event_type.clone(),
                    event_version: event.event_version.clone(),
                    payload: event.payload.to_string(),
                })
                .collect(),
        };
        match self.appender.append(append).await {
            // The command is new, so a duplicate is this very append, settled after a lost connection.
            Ok(Outcome::Appended(_) | Outcome::Duplicate { .. }) => Ok(()),
            Ok(Outcome::Conflict { .. }) => Err(PersistenceError::OptimisticLockError),
            Err(error @ AppendError::Unavailable(_)) => {
                Err(PersistenceError::ConnectionError(Box::new(error)))
            }
            Err(error) => Err(PersistenceError::UnknownError(Box::new(error))),
        }
    }

    async fn stream_events<A: Aggregate>(&self, _id: &str) -> Result<ReplayStream, PersistenceError> {
        Err(Unsupported("streams").into())
    }

    async fn stream_all_events<A: Aggregate>(&self) -> Result<ReplayStream, PersistenceError> {
        Err(Unsupported("streams").into())
    }
}
