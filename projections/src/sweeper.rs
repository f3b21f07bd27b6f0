//! Clears away what has expired: rows of `cache`, remembered commands after 30 days, old accesses. Readers skip what
//! has expired, swept or not, so nothing depends on when this runs.

use std::time::Duration;

use chrono::{TimeDelta, Utc};
use sqlx::PgPool;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::access;
use crate::tables::cache;

/// How many rows go at once, so that no transaction is long.
const CHUNK: i64 = 1000;
/// How long an accepted command is remembered.
const COMMANDS_KEPT: TimeDelta = TimeDelta::days(30);

/// Sweeps every `interval` until `shutdown`.
pub async fn run(pool: PgPool, interval: Duration, access_kept: TimeDelta, shutdown: CancellationToken) {
    let sweeping = async {
        loop {
            if let Err(error) = sweep(&pool, access_kept).await {
                warn!(%error, "sweeping failed and will be tried again");
            }
            sleep(interval).await;
        }
    };
    shutdown.run_until_cancelled(sweeping).await;
}

async fn sweep(pool: &PgPool, access_kept: TimeDelta) -> Result<(), sqlx::Error> {
    let now = Utc::now();
    let mut connection = pool.acquire().await?;
    while cache::sweep(&mut connection, now, CHUNK).await? == CHUNK.unsigned_abs() {}
    while event_store::log::forget_commands(&mut *connection, now - COMMANDS_KEPT, CHUNK).await?
        == CHUNK.unsigned_abs()
    {}
    while access::sweep(&mut connection, now - access_kept, CHUNK).await? == CHUNK.unsigned_abs() {}
    Ok(())
}
