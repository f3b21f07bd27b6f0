//! Erases meetings by age, if that is configured: those of which nothing was heard for so long, batch by batch.

use std::time::Duration;

use chrono::TimeDelta;
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
const BATCH: i64 = 100;
/// The longest time between two looks.
const EVERY: Duration = Duration::from_secs(60);
/// The pause between two batches: others want to work, too.
const PAUSE: Duration = Duration::from_millis(100);

/// Erases, until `shutdown`, every meeting of which nothing was heard for `days`: since it was registered, last
/// taken on, or ended. One that is being processed stays.
pub async fn run(store: EventStore, bus: CommandBus, days: u32, shutdown: CancellationToken) {
    let sweeping = async {
        loop {
            let pause = match sweep(&store, &bus, days, now()).await {
                // More may follow at once; if none could be erased, not before the next round.
                Ok(Swept { found: BATCH.., erased: 1.. }) => PAUSE,
                Ok(_) => EVERY,
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "meetings cannot be erased by age and will be tried again");
                    EVERY
                }
            };
            sleep(pause).await;
        }
    };
    shutdown.run_until_cancelled(sweeping).await;
}

/// What came of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Swept {
    /// How many meetings are old enough, at most a batch of them.
    pub found: i64,
    /// How many of them were erased.
    pub erased: i64,
}

/// Erases one batch of the meetings that are older than `days` at the time `now`.
pub async fn sweep(
    store: &EventStore,
    bus: &CommandBus,
    days: u32,
    now: Timestamp,
) -> Result<Swept, sqlx::Error> {
    let before = now - TimeDelta::days(days.into());
    let old = older_than(store.pool(), before).await?;
    let mut swept = Swept { found: i64::try_from(old.len()).unwrap_or(i64::MAX), erased: 0 };
    let reason: Reason = format!("older than {days} days").parse().expect("it is short and not blank");
    let context = Context::system("retention");
    for id in old {
        match erasure::erase_meeting(store, bus, MeetingId::from(id), reason.clone(), now, &context).await {
            Ok(_) => swept.erased += 1,
            // The tables did not show it yet.
            Err(CommandError::Refused(MeetingError::Erased | MeetingError::NotFound)) => {}
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

async fn older_than(pool: &PgPool, before: Timestamp) -> Result<Vec<Uuid>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT id FROM meetings
          WHERE status <> 'processing' AND coalesce(finished_at, started_at) < $1
          ORDER BY coalesce(finished_at, started_at) LIMIT $2",
    )
    .bind(before)
    .bind(BATCH)
    .fetch_all(pool)
    .await
}
