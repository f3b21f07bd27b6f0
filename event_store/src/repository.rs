//! The repository that cqrs-es works with: loading is postgres-es's, appending is ours. An event that an
//! operator has skipped has no effect here either.
//!
//! Snapshots and streams are refused: postgres-es applies events twice with the ones, and ends the others
//! early without an error when the connection is lost (see `docs/adr/0001-log-over-postgres-es.md`).

use chrono::DateTime;
use cqrs_es::Aggregate;
use cqrs_es::persist::{
    PersistedEventRepository, PersistenceError, ReplayStream, SerializedEvent, SerializedSnapshot,
};
use postgres_es::PostgresEventRepository;
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::append::{Append, AppendError, Appender, NewEvent, Outcome};
use crate::log::{self, StoredEvent};
use crate::sealing::{Keyring, Needs};

/// Loads aggregates' events through postgres-es, and appends through the [`Appender`].
pub struct LogRepository {
    loading: PostgresEventRepository,
    pool: PgPool,
    keyring: Keyring,
    appender: Appender,
}

impl LogRepository {
    /// Returns a repository over `log.events`.
    pub fn new(pool: PgPool, keyring: Keyring, appender: Appender) -> Self {
        let loading =
            PostgresEventRepository::new(pool.clone()).with_tables("log.events", "log.no_snapshots");
        Self { loading, pool, keyring, appender }
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
        let version = events.last().map_or(0, |event| event.sequence);
        events.retain(|event| i64::try_from(event.sequence).is_ok_and(|at| !skipped.contains(&at)));
        // Opened at its own place, before it stands for another.
        let mut events = self.opened(known(events)?).await?;
        if let Some(last) = events.last_mut() {
            last.sequence = version;
        }
        Ok(events)
    }

    /// Opens what is sealed. What was opened has today's shape.
    async fn opened(
        &self,
        mut events: Vec<SerializedEvent>,
    ) -> Result<Vec<SerializedEvent>, PersistenceError> {
        let mut sealed = vec![];
        for (n, event) in events.iter().enumerate() {
            // Text is made of those alone: a long history is mostly speech, with nothing sealed in it.
            if has_sealed(&event.payload) {
                sealed.push((n, stored(event, event.payload.to_string())));
            }
        }
        let (places, mut stored): (Vec<_>, Vec<_>) = sealed.into_iter().unzip();
        let opened = self.keyring.open_stored(&self.pool, &mut stored, Needs::Everything).await;
        opened.map_err(|error| PersistenceError::ConnectionError(Box::new(sqlx::Error::from(error))))?;
        for (n, stored) in places.into_iter().zip(stored) {
            if let Some(damage) = stored.damage {
                return Err(PersistenceError::DeserializationError(Box::new(damage)));
            }
            let read = |error: serde_json::Error| PersistenceError::DeserializationError(Box::new(error));
            events[n].payload = serde_json::from_str(&stored.payload).map_err(read)?;
            events[n].event_version = stored.event_version;
        }
        Ok(events)
    }
}

/// Says whether a payload may have something sealed in it: looking costs less than decoding.
fn has_sealed(payload: &Value) -> bool {
    match payload {
        Value::Object(fields) => fields.contains_key("sealed") || fields.values().any(has_sealed),
        Value::Array(items) => items.iter().any(has_sealed),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

fn stored(event: &SerializedEvent, payload: String) -> StoredEvent {
    StoredEvent {
        position: 0,
        recorded_at: DateTime::UNIX_EPOCH,
        aggregate_type: event.aggregate_type.clone(),
        aggregate_id: event.aggregate_id.clone(),
        sequence: i64::try_from(event.sequence).unwrap_or(i64::MAX),
        event_type: event.event_type.clone(),
        event_version: event.event_version.clone(),
        payload,
        metadata: String::new(),
        damage: None,
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

#[derive(Debug, thiserror::Error)]
#[error("somebody whom the events are about was forgotten")]
struct Forgotten;

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
                    payload: event.payload.to_string().into(),
                })
                .collect(),
        };
        match self.appender.append(append).await {
            // The command is new, so a duplicate is this very append, settled after a lost connection.
            Ok(Outcome::Appended(_) | Outcome::Duplicate { .. }) => Ok(()),
            Ok(Outcome::Conflict { .. }) => Err(PersistenceError::OptimisticLockError),
            Ok(Outcome::Forgotten) => Err(PersistenceError::UnknownError(Box::new(Forgotten))),
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_sealed_is_found_wherever_it_is() {
        let sealed = json!({"sealed": "AQAB"});
        for payload in [
            json!({"ProfileRenamed": {"display_name": sealed}}),
            json!({"SpeakersDiarized": {"clusters": [{"segments": [[0, 10]]}, {"voice": {"vector": sealed}}]}}),
        ] {
            assert!(has_sealed(&payload), "{payload}");
        }
        for payload in [
            json!({"ProfileRenamed": {"display_name": null}}),
            json!({"LanguageDetected": {"attempt": 1, "language": "sealed"}}),
        ] {
            assert!(!has_sealed(&payload), "{payload}");
        }
    }
}
