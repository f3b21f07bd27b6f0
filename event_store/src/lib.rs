//! How it is remembered: the log, and the way to it and from it.
//!
//! A command goes down this crate ([`command_bus`] loads, decides and hands to [`append`]); what was
//! appended comes back up in order through [`log`]. Nothing here knows a table that is derived.

pub mod append;
pub mod command_bus;
pub mod locks;
pub mod log;
pub mod migrate;
pub mod repository;
pub mod retry;
pub mod sealing;
mod state_cache;
pub mod wake;

use std::sync::Arc;

use domain::ids::LogSecret;
use sqlx::PgPool;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::append::Appender;
use crate::sealing::{KeyError, Keyring, MasterSource};
use crate::wake::Head;

/// The open log: who it is, where its end is, and the way to append to it.
#[derive(Clone)]
pub struct EventStore {
    pool: PgPool,
    identity: Arc<Identity>,
    keyring: Keyring,
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
    ///
    /// A log whose personal data is sealed under none of the master keys of `master` is refused, and so is one that
    /// was written before it was sealed.
    pub async fn open(
        pool: PgPool,
        master: MasterSource,
        shutdown: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, KeyError> {
        let identity = Arc::new(log::identity(&pool).await?);
        let keyring = Keyring::open(pool.clone(), identity.log_id, master).await?;
        let head = Head::watch(pool.clone(), keyring.clone(), shutdown, tasks).await?;
        let appender = Appender::start(&pool, keyring.clone(), head.clone(), shutdown, tasks);
        Ok(Self { pool, identity, keyring, head, appender })
    }

    /// Returns the pool of connections to the database.
    pub const fn pool(&self) -> &PgPool {
        &self.pool
    }

    /// Returns who the log is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the keys of personal data.
    pub const fn keyring(&self) -> &Keyring {
        &self.keyring
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
