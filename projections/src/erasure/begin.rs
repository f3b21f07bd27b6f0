//! How an erasure begins: with the event, whatever else of its aggregate can be read or not; and once more after a
//! restore from before it.

use std::collections::BTreeSet;

use domain::Timestamp;
use domain::ids::{MeetingId, ProfileId};
use domain::meeting::{CacheKey, MeetingCommand, MeetingError};
use domain::profile::{ProfileCommand, ProfileError};
use domain::text::Reason;
use event_store::EventStore;
use event_store::command_bus::{Accepted, CommandBus, CommandError, Context};
use event_store::log;
use tracing::{info, warn};
use uuid::Uuid;

use super::{EraseError, ErasureKind, SKIPPER, database};
use crate::parked;

/// How many events of one aggregate are set aside to erase it.
const UNREADABLE: usize = 100;

/// Forgets a person. What does not take effect at once is carried out by whoever projects the log.
pub async fn erase_profile(
    store: &EventStore,
    bus: &CommandBus,
    id: ProfileId,
    at: Timestamp,
    context: &Context,
) -> Result<Accepted, CommandError<ProfileError>> {
    let erase = |lost| {
        despite_unreadable(store, move || bus.profile(id, ProfileCommand::Erase { at, lost }, context))
    };
    match erase(false).await {
        Err(CommandError::Refused(ProfileError::NotFound))
            if has_history::<ProfileError>(store, "profile", id.as_uuid()).await? =>
        {
            erase(true).await
        }
        erased => erased,
    }
}

/// Forgets a meeting, as [`erase_profile`] does a person.
pub async fn erase_meeting(
    store: &EventStore,
    bus: &CommandBus,
    id: MeetingId,
    reason: Reason,
    at: Timestamp,
    context: &Context,
) -> Result<Accepted, CommandError<MeetingError>> {
    let erase = |lost: Option<BTreeSet<CacheKey>>| {
        let command = MeetingCommand::Erase { reason: reason.clone(), at, lost };
        despite_unreadable(store, move || bus.meeting(id, command.clone(), context))
    };
    match erase(None).await {
        Err(CommandError::Refused(MeetingError::NotFound))
            if has_history::<MeetingError>(store, "meeting", id.as_uuid()).await? =>
        {
            erase(Some(cached_by(store, id).await?)).await
        }
        erased => erased,
    }
}

/// Says whether an aggregate has events, of which nothing is known any more if what it began with was skipped.
async fn has_history<E: std::error::Error + 'static>(
    store: &EventStore,
    aggregate_type: &str,
    id: Uuid,
) -> Result<bool, CommandError<E>> {
    let version = log::version_at(store.pool(), aggregate_type, id, i64::MAX).await;
    version.map(|version| version > 0).map_err(looking_back)
}

/// Returns the keys under which a meeting ever cached a result. What is no key is in no cache.
async fn cached_by(
    store: &EventStore,
    id: MeetingId,
) -> Result<BTreeSet<CacheKey>, CommandError<MeetingError>> {
    let keys: Vec<(Option<String>, Option<String>)> = sqlx::query_as(
        "SELECT DISTINCT payload #>> '{StageResultCached,stage}', payload #>> '{StageResultCached,content_fp}'
           FROM log.events
          WHERE aggregate_type = 'meeting' AND aggregate_id = $1 AND event_type = 'StageResultCached'",
    )
    .bind(id.to_string())
    .fetch_all(store.pool())
    .await
    .map_err(looking_back::<MeetingError>)?;
    let key = |(stage, content_fp): (Option<String>, Option<String>)| {
        Some(CacheKey { stage: stage?.parse().ok()?, content_fp: content_fp?.parse().ok()? })
    };
    Ok(keys.into_iter().filter_map(key).collect())
}

fn looking_back<E: std::error::Error + 'static>(source: sqlx::Error) -> CommandError<E> {
    CommandError::Database { phase: "looking for what is to be erased", source }
}

/// Erases, and sets aside whichever events cannot be read: the first one is named each time that it is tried.
async fn despite_unreadable<E, F>(
    store: &EventStore,
    erase: impl Fn() -> F,
) -> Result<Accepted, CommandError<E>>
where
    E: std::error::Error + 'static,
    F: Future<Output = Result<Accepted, CommandError<E>>>,
{
    for _ in 0..UNREADABLE {
        match erase().await {
            Err(CommandError::Unreadable { position, .. }) if set_aside(store, position).await => {}
            other => return other,
        }
    }
    erase().await
}

/// Skips an event that cannot be read: nobody keeps what is to be forgotten by being damaged. Says whether it was
/// parked.
async fn set_aside(store: &EventStore, position: i64) -> bool {
    match parked::skip(store, position, "what it is about is to be erased", SKIPPER).await {
        Ok(_) => true,
        Err(error) => {
            warn!(
                position,
                error = &error as &dyn std::error::Error,
                "an event cannot be set aside to erase"
            );
            false
        }
    }
}

/// Erases once more what has a tombstone and lacks the event: a log that was restored from before the erasure. A
/// tombstone is of the moment of its event: what was erased already before it, or begins after it, stays as it is. Says
/// whether nothing is left to erase.
pub async fn erase_again(store: &EventStore, bus: &CommandBus) -> Result<bool, EraseError> {
    let failed = database("looking for what was erased before a restore");
    let left: Vec<(ErasureKind, Uuid)> = sqlx::query_as(
        "SELECT kind, id
           FROM keys.subjects
           JOIN LATERAL (SELECT event_type FROM log.events
                          WHERE aggregate_type = kind AND aggregate_id = id::text AND recorded_at < destroyed_at
                          ORDER BY sequence DESC LIMIT 1) last_before ON true
          WHERE destroyed_at IS NOT NULL AND kind IN ('profile', 'meeting')
            AND last_before.event_type NOT IN ('ProfileErased', 'MeetingErased')
            AND NOT EXISTS (SELECT FROM log.events
                             WHERE aggregate_type = kind AND aggregate_id = id::text
                               AND event_type IN ('ProfileErased', 'MeetingErased')
                               AND recorded_at >= destroyed_at)
          ORDER BY destroyed_at, id",
    )
    .fetch_all(store.pool())
    .await
    .map_err(&failed)?;
    if left.is_empty() {
        return Ok(true);
    }
    let mut whole = true;
    let at: Timestamp =
        sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(store.pool()).await.map_err(&failed)?;
    let reason: Reason = "erased before the log was restored".parse().expect("it is short and not blank");
    for (kind, id) in left {
        let context = Context::of_erasure(id);
        let failure = match kind {
            ErasureKind::Profile => {
                let erased = erase_profile(store, bus, id.into(), at, &context).await;
                erased.err().map(|error| error.to_string())
            }
            ErasureKind::Meeting => {
                let erased = erase_meeting(store, bus, id.into(), reason.clone(), at, &context).await;
                erased.err().map(|error| error.to_string())
            }
        };
        let kind = kind.name();
        match failure {
            None => info!(kind, %id, "erased again after a restore"),
            Some(error) => {
                whole = false;
                warn!(kind, %id, error, "what was erased before a restore is not erased again yet");
            }
        }
    }
    Ok(whole)
}
