//! How one aggregate stood at a position of the log: its own events up to there, through the one fold. What
//! it gives is what the tables showed at that position.
//!
//! Events up to a position never change, so nothing here needs a snapshot.

use chrono::{DateTime, SecondsFormat, Utc};
use event_store::EventStore;
use event_store::log::{self, BatchLimits};
use event_store::sealing;
use sqlx::PgPool;
use tracing::warn;
use uuid::Uuid;

use crate::fold::{MeetingRows, Rows, fold};
use crate::queries::{self, FileView, Found, MeetingDetails, ProfileSummary};
use crate::tables::parked_events;

/// How many events are held at once, besides the rows.
const BATCH: BatchLimits = BatchLimits { events: 200, bytes: 4 * 1024 * 1024 };

/// Why it cannot be said how something stood.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It has a history, which begins later.
    #[error(
        "nothing was recorded of it up to position {position}; it begins at position {begins}, recorded {}",
        recorded_at.to_rfc3339_opts(SecondsFormat::Micros, true)
    )]
    NotYet {
        /// The position asked for.
        position: i64,
        /// The position of its first event.
        begins: i64,
        /// When its first event was recorded.
        recorded_at: DateTime<Utc>,
    },
    /// It was a meeting's, and the meeting was erased since.
    #[error("the meeting was erased; what was before position {erased} is shown to nobody")]
    Erased {
        /// The position of the erasure.
        erased: i64,
    },
    /// The database did not answer as it should.
    #[error("cannot read the history")]
    Database(#[from] sqlx::Error),
}

/// Returns a meeting with its file, speakers and artifacts as it stood at `position`; nothing if it had been
/// erased then, or never was. What was before an erasure is shown at no position, nor that somebody spoke who was
/// forgotten since.
pub async fn meeting(
    store: &EventStore,
    id: Uuid,
    position: i64,
) -> Result<Option<MeetingDetails>, HistoryError> {
    let version = version(store, "meeting", id, position).await?;
    if let Some((erased, _)) = last_erasure(store, id).await?
        && position < erased
    {
        return Err(HistoryError::Erased { erased });
    }
    match rows(store, "meeting", id, version).await? {
        Some(Rows::Meeting(mut rows)) => {
            unlink_forgotten(store.pool(), &mut rows).await?;
            Ok(MeetingDetails::of(*rows, version, position))
        }
        Some(Rows::Profile(_)) | None => Ok(None),
    }
}

/// Shows whoever was forgotten since as nobody.
async fn unlink_forgotten(pool: &PgPool, rows: &mut MeetingRows) -> Result<(), sqlx::Error> {
    let linked = rows.speakers.values().filter_map(|speaker| speaker.user_profile_id).collect::<Vec<_>>();
    let forgotten = sealing::forgotten(pool, &linked).await?;
    for speaker in rows.speakers.values_mut() {
        if speaker.user_profile_id.is_some_and(|profile| forgotten.contains(&profile)) {
            (speaker.user_profile_id, speaker.confidence) = (None, None);
        }
    }
    Ok(())
}

/// Returns position and sequence of the last erasure of a meeting, if there was one.
pub async fn last_erasure(store: &EventStore, id: Uuid) -> Result<Option<(i64, i64)>, sqlx::Error> {
    log::latest_event(store.pool(), "meeting", id, "MeetingErased").await
}

/// Returns a file as it stood at `position`. It is found by way of its meeting's row: a file whose meeting is
/// erased by now is not.
pub async fn file(store: &EventStore, id: Uuid, position: i64) -> Result<Option<FileView>, HistoryError> {
    let Some(meeting_id) = queries::meeting_of_file(store.pool(), id).await? else { return Ok(None) };
    match meeting(store, meeting_id, position).await {
        Ok(meeting) => Ok(meeting.and_then(|meeting| meeting.file)),
        Err(HistoryError::Erased { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns a person as known at `position`; nothing if there never was one. Whoever has been forgotten since
/// is not shown at any position.
pub async fn profile(
    store: &EventStore,
    id: Uuid,
    position: i64,
) -> Result<Option<Found<ProfileSummary>>, HistoryError> {
    if log::has_event(store.pool(), "profile", id, "ProfileErased").await? {
        return Ok(None);
    }
    let version = version(store, "profile", id, position).await?;
    match rows(store, "profile", id, version).await? {
        Some(Rows::Profile(rows)) => {
            let found = |row| Found { row: ProfileSummary::from(row), version, position };
            Ok(rows.profile.map(found))
        }
        Some(Rows::Meeting(_)) | None => Ok(None),
    }
}

/// Returns the version that an aggregate had at `position`: its number of events up to there; 0 if it has
/// none to this day.
pub async fn version(
    store: &EventStore,
    aggregate_type: &str,
    id: Uuid,
    position: i64,
) -> Result<i64, HistoryError> {
    let version = log::version_at(store.pool(), aggregate_type, id, position).await?;
    if version > 0 {
        return Ok(version);
    }
    let one = BatchLimits { events: 1, ..BATCH };
    let (first, _) = log::read_aggregate(store.pool(), store.keyring(), aggregate_type, id, 0, one).await?;
    match first.first() {
        Some(first) => {
            let (begins, recorded_at) = (first.position, first.recorded_at);
            Err(HistoryError::NotYet { position, begins, recorded_at })
        }
        None => Ok(0),
    }
}

/// Folds the first `version` events of an aggregate; returns nothing if there are none. The fold leaves out
/// what was skipped, and ends before an event that cannot be decoded, as the live one does.
async fn rows(
    store: &EventStore,
    aggregate_type: &str,
    id: Uuid,
    version: i64,
) -> Result<Option<Rows>, sqlx::Error> {
    let skipped = log::skipped_sequences(store.pool(), aggregate_type, &id.to_string()).await?;
    // What the tables refuse they do not show at any position from then on.
    let parked = parked_events::first_of(store.pool(), aggregate_type, &id.to_string()).await?;
    let version = parked.map_or(version, |sequence| version.min(sequence - 1));
    let mut rows = None;
    let mut sequence = 0;
    while sequence < version {
        let rest = usize::try_from(version - sequence).unwrap_or(usize::MAX);
        let limits = BatchLimits { events: rest.min(BATCH.events), ..BATCH };
        let (events, _) =
            log::read_aggregate(store.pool(), store.keyring(), aggregate_type, id, sequence, limits).await?;
        let Some(last) = events.last() else { break };
        sequence = last.sequence;
        for stored in events.iter().filter(|event| !skipped.contains(&event.sequence)) {
            let recorded = match stored.decode() {
                Ok(recorded) => recorded,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "a history is shown up to an event that cannot be read");
                    return Ok(rows);
                }
            };
            fold(rows.get_or_insert_with(|| Rows::empty_for(&recorded.event)), &recorded);
        }
        // Results for the cache are large, and nobody asks for them here, nor for the audit.
        if let Some(Rows::Meeting(rows)) = &mut rows {
            rows.forget_written();
        }
    }
    Ok(rows)
}
