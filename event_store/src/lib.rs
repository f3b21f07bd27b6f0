//! How it is remembered: the log, and the way to it and from it.
//!
//! A command goes down this crate ([`command_bus`] loads, decides and hands to [`append`]); what was
//! appended comes back up in order through [`log`]. Nothing here knows a table that is derived.

pub mod append;
pub mod command_bus;
pub mod log;
pub mod migrate;
pub mod repository;
pub mod retry;
mod state_cache;
pub mod wake;

use std::sync::Arc;

use domain::ids::LogSecret;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::append::Appender;
use crate::wake::Head;

/// The open log: who it is, where its end is, and the way to append to it.
#[derive(Clone)]
pub struct EventStore {
    pool: PgPool,
    identity: Arc<Identity>,
    head: Head,
    appender: Appender,
}

/// Who a log is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Made once, with the log.
    pub log_id: Uuid,
    /// New after a restore or a promotion.
    pub epoch: Uuid,
    /// What derived ids are keyed with.
    pub secret: LogSecret,
}

impl EventStore {
    /// Opens the log that `pool` leads to, which must have been migrated, and starts the tasks that
    /// append and that watch for the appends of others. They end when `shutdown` is cancelled, the
    /// appender after everything handed to it; `tasks` waits for them.
    pub async fn open(
        pool: PgPool,
        shutdown: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, sqlx::Error> {
        let identity = Arc::new(log::identity(&pool).await?);
        let head = Head::watch(pool.clone(), shutdown, tasks).await?;
        let appender = Appender::start(&pool, head.clone(), shutdown, tasks);
        Ok(Self { pool, identity, head, appender })
    }

    /// Returns the pool of connections to the database.
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Returns who the log is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the log's end, as far as it is known here, and the way to wait for more.
    pub const fn head(&self) -> &Head {
        &self.head
    }

    /// Returns the way to append.
    pub const fn appender(&self) -> &Appender {
        &self.appender
    }
}
