//! Erases meetings by age, if that is configured: those of which nothing was heard for so long, batch by batch.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use domain::Timestamp;
use domain::ids::MeetingId;
use domain::meeting::MeetingError;
use domain::text::Reason;
use event_store::EventStore;
use event_store::command_bus::{CommandBus, CommandError, Context};
use projections::erasure;
use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::clock::now;

/// How many meetings are looked up at once.
const BATCH: i64 = 1000;
/// The time between two rounds.
const EVERY: Duration = Duration::from_secs(60);
/// The pause between two batches: others want to work, too.
const PAUSE: Duration = Duration::from_millis(100);

/// Erases, until `shutdown`, every meeting of which nothing was heard for `days`: since it was registered, last
/// taken on, or ended. One that is being processed stays as long as events come.
pub async fn run(store: EventStore, bus: CommandBus, days: u32, shutdown: CancellationToken) {
    let sweeping = async {
        loop {
            if let Err(error) = sweep_all(&store, &bus, days).await {
                let error = &error as &dyn std::error::Error;
                warn!(error, "meetings cannot be erased by age and will be tried again");
            }
            sleep(EVERY).await;
        }
    };
    shutdown.run_until_cancelled(sweeping).await;
}

/// One round. Each meeting is come by once, so that those which cannot be erased keep nobody waiting.
async fn sweep_all(store: &EventStore, bus: &CommandBus, days: u32) -> Result<(), sqlx::Error> {
    let mut swept = sweep(store, bus, days, now(), None).await?;
    while swept.found == BATCH {
        sleep(PAUSE).await;
        swept = sweep(store, bus, days, now(), swept.last).await?;
    }
    Ok(())
}

/// What came of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// How many meetings are old enough, at most a batch of them.
    pub found: i64,
    /// How many of them were erased.
    pub erased: i64,
    /// Behind which one the next batch begins.
    pub last: Option<Old>,
}

/// A meeting, and when it was heard of last.
pub type Old = (DateTime<Utc>, Uuid);

/// Erases one batch of the meetings that are older than `days` at the time `now`: the oldest behind `after`.
pub async fn sweep(
    store: &EventStore,
    bus: &CommandBus,
    days: u32,
    now: Timestamp,
    after: Option<Old>,
) -> Result<Swept, sqlx::Error> {
    let before = now - TimeDelta::days(days.into());
    let old = older_than(store.pool(), before, after).await?;
    let found = i64::try_from(old.len()).unwrap_or(i64::MAX);
    let mut swept = Swept { found, erased: 0, last: old.last().copied() };
    let reason: Reason = format!("older than {days} days").parse().expect("it is short and not blank");
    let context = Context::system("retention");
    for (_, id) in old {
        match erasure::erase_meeting(store, bus, MeetingId::from(id), reason.clone(), now, &context).await {
            Ok(accepted) if !accepted.events.is_empty() => swept.erased += 1,
            // The tables did not show it yet.
            Ok(_) | Err(CommandError::Refused(MeetingError::Erased | MeetingError::NotFound)) => {}
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                warn!(meeting.id = %id, error, "a meeting cannot be erased by age");
            }
        }
    }
    if swept.erased > 0 {
        info!(meetings = swept.erased, days, "meetings were erased by age");
    }
    Ok(swept)
}

/// Of one that is being processed the log knows when it was heard of last.
async fn older_than(pool: &PgPool, before: Timestamp, after: Option<Old>) -> Result<Vec<Old>, sqlx::Error> {
    let (after, id) = after.unzip();
    sqlx::query_as(
        "SELECT since, id FROM (
             SELECT m.id, coalesce(m.finished_at, m.started_at) AS since, m.status FROM meetings m) AS old
          WHERE since < $1 AND ($2::timestamptz IS NULL OR (since, id) > ($2, $3))
            AND (status <> 'processing' OR (
                    SELECT e.recorded_at FROM log.events e
                     WHERE e.aggregate_type = 'meeting' AND e.aggregate_id = old.id::text
                     ORDER BY e.sequence DESC LIMIT 1) < $1)
          ORDER BY since, id LIMIT $4",
    )
    .bind(before)
    .bind(after)
    .bind(id)
    .bind(BATCH)
    .fetch_all(pool)
    .await
}
