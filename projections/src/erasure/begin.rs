//! How an erasure begins: with the event, whatever else of its aggregate can be read or not; and once more after a
//! restore from before it.

use domain::Timestamp;
use domain::ids::{MeetingId, ProfileId};
use domain::meeting::{MeetingCommand, MeetingError};
use domain::profile::{ProfileCommand, ProfileError};
use domain::text::Reason;
use event_store::EventStore;
use event_store::command_bus::{Accepted, CommandBus, CommandError, Context};
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
    despite_unreadable(store, || bus.profile(id, ProfileCommand::Erase { at }, context)).await
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
    let erase = || bus.meeting(id, MeetingCommand::Erase { reason: reason.clone(), at }, context);
    despite_unreadable(store, erase).await
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

/// Erases once more what has a tombstone and lacks the event: a log that was restored from before the erasure.
pub(super) async fn erase_again(store: &EventStore, bus: &CommandBus) -> Result<(), EraseError> {
    let failed = database("looking for what was erased before a restore");
    let left: Vec<(ErasureKind, Uuid)> = sqlx::query_as(
        "SELECT kind, id FROM (
             SELECT kind, id, life FROM keys.subjects
              WHERE destroyed_at IS NOT NULL AND kind IN ('profile', 'meeting')) AS destroyed
          WHERE life > (SELECT count(*) FROM log.events
                             WHERE aggregate_type = kind AND aggregate_id = id::text
                               AND event_type IN ('ProfileErased', 'MeetingErased'))
            AND EXISTS (SELECT FROM log.events WHERE aggregate_type = kind AND aggregate_id = id::text)",
    )
    .fetch_all(store.pool())
    .await
    .map_err(&failed)?;
    if left.is_empty() {
        return Ok(());
    }
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
            Some(error) => warn!(kind, %id, error, "what was erased before a restore is not erased again"),
        }
    }
    Ok(())
}
