//! How fresh the tables are, and waiting until they are fresh enough.

use std::time::Duration;

use chrono::{DateTime, Utc};
use event_store::log;
use sqlx::PgPool;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::projector::Projection;
use crate::tables::checkpoint;

/// How often the checkpoint is looked up while somebody waits and another process projects.
const POLL: Duration = Duration::from_millis(20);

/// How far the tables are behind the log.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lag {
    /// The newest position of the log.
    pub head: i64,
    /// The last position that the tables show.
    pub position: i64,
    /// How many events the tables do not show yet.
    pub events: i64,
    /// How long the oldest of them has been waiting; 0 without any.
    pub seconds: f64,
}

/// Measures the lag. `now` is the database's clock's idea, given by the caller's.
pub async fn lag(pool: &PgPool, now: DateTime<Utc>) -> Result<Lag, sqlx::Error> {
    // The checkpoint first: the tables are never ahead of a log that was looked at later.
    let position = checkpoint::read(pool).await?.position;
    let head = log::head(pool).await?;
    let waiting_since = log::recorded_at(pool, position + 1).await?;
    let seconds = waiting_since.map_or(0.0, |since| (now - since).as_seconds_f64().max(0.0));
    Ok(Lag { head, position, events: head - position, seconds })
}

/// Waits until the tables show `position`, at most until `deadline`; says whether they do.
pub async fn wait_for(
    pool: &PgPool,
    local: &watch::Receiver<Projection>,
    position: i64,
    deadline: Instant,
) -> Result<bool, sqlx::Error> {
    let mut local = local.clone();
    let shows = |projection: &Projection| match projection {
        Projection::Active { position: reached } => *reached >= position,
        Projection::Standby | Projection::Stopped { .. } => false,
    };
    loop {
        if shows(&local.borrow_and_update()) {
            return Ok(true);
        }
        // Whoever projects here knows best; only at the end it is asked whether another one took over.
        let projects_here = matches!(&*local.borrow(), Projection::Active { .. });
        if (!projects_here || Instant::now() >= deadline)
            && checkpoint::read(pool).await?.position >= position
        {
            return Ok(true);
        }
        // A stopped projector does not come any further.
        let stopped = matches!(&*local.borrow(), Projection::Stopped { .. });
        let now = Instant::now();
        if stopped || now >= deadline {
            return Ok(false);
        }
        // The projector of this process says so at once; that of another one has to be asked.
        let next = if projects_here { deadline } else { deadline.min(now + POLL) };
        if !matches!(timeout_at(next, local.changed()).await, Ok(Ok(()))) {
            sleep_until(next).await;
        }
    }
}

/// Returns the last position that the tables show, from the projector of this process where it is active.
pub async fn shown(pool: &PgPool, local: &watch::Receiver<Projection>) -> Result<i64, sqlx::Error> {
    let active = match &*local.borrow() {
        Projection::Active { position } => Some(*position),
        Projection::Standby | Projection::Stopped { .. } => None,
    };
    match active {
        Some(position) => Ok(position),
        None => Ok(checkpoint::read(pool).await?.position),
    }
}
