//! The log's end, and how readers learn that it moved.
//!
//! In this process the appender says so. Other processes are told by NOTIFY, outside the append; since a
//! notification can be lost with its connection, everybody also looks now and then. The same look tells that somebody
//! was forgotten: what is remembered unsealed goes.

use std::time::Duration;

use sqlx::postgres::PgListener;
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;

use crate::log;
use crate::retry::backoff;
use crate::sealing::Keyring;

const CHANNEL: &str = "minutebook_log";
/// How often the log's end is looked up, in case that no notification came.
const POLL: Duration = Duration::from_millis(500);
/// The shortest time between two notifications.
const NOTIFY_EVERY: Duration = Duration::from_millis(20);

/// The highest position known here to be committed.
#[derive(Clone)]
pub struct Head {
    sender: watch::Sender<i64>,
    /// The highest position that this process appended: what other processes are told.
    appended: watch::Sender<i64>,
}

impl Head {
    /// Starts watching the log behind `pool`.
    pub(crate) async fn watch(
        pool: PgPool,
        keyring: Keyring,
        shutdown: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Result<Self, sqlx::Error> {
        let head =
            Self { sender: watch::Sender::new(log::head(&pool).await?), appended: watch::Sender::new(0) };
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(listen(pool.clone(), keyring, head.clone())));
        tasks.spawn(shutdown.clone().run_until_cancelled_owned(notify(pool, head.appended.subscribe())));
        Ok(head)
    }

    /// Returns the highest position known to be committed; 0 for an empty log.
    pub fn position(&self) -> i64 {
        *self.sender.borrow()
    }

    /// Returns a receiver that sees each advance.
    pub fn subscribe(&self) -> watch::Receiver<i64> {
        self.sender.subscribe()
    }

    /// Takes note that `position` is committed, by this process.
    pub(crate) fn advance_by_append(&self, position: i64) {
        self.advance(position);
        self.appended.send_replace(position);
    }

    /// Takes note that `position` is committed.
    fn advance(&self, position: i64) {
        self.sender.send_if_modified(|known| {
            let newer = position > *known;
            *known = position.max(*known);
            newer
        });
    }
}

/// Learns of the appends of other processes.
async fn listen(pool: PgPool, keyring: Keyring, head: Head) {
    let mut failures = 0;
    loop {
        match listen_until_error(&pool, &keyring, &head, &mut failures).await {
            Ok(()) => {}
            Err(error) => {
                failures += 1;
                if failures == 1 {
                    warn!(%error, "lost the connection on which appends of other processes are heard");
                }
            }
        }
        sleep(backoff(failures, Duration::from_millis(100), Duration::from_secs(5))).await;
    }
}

async fn listen_until_error(
    pool: &PgPool,
    keyring: &Keyring,
    head: &Head,
    failures: &mut u32,
) -> Result<(), sqlx::Error> {
    let mut listener = PgListener::connect_with(pool).await?;
    listener.listen(CHANNEL).await?;
    loop {
        // Registered first, looked up second: an append in between is seen either way.
        let (position, destructions) = log::head_and_destructions(pool).await?;
        head.advance(position);
        keyring.note_destructions(destructions);
        *failures = 0;
        if let Ok(notification) = timeout(POLL, listener.recv()).await
            && let Ok(position) = notification?.payload().parse()
        {
            head.advance(position);
        }
    }
}

/// Tells other processes of the appends of this one.
async fn notify(pool: PgPool, mut head: watch::Receiver<i64>) {
    let mut connection = None;
    while head.changed().await.is_ok() {
        let position = *head.borrow_and_update();
        if let Err(error) = notify_once(&pool, &mut connection, position).await {
            // Nothing is lost by it: the others look by themselves.
            tracing::debug!(%error, position, "could not notify other processes");
            connection = None;
        }
        sleep(NOTIFY_EVERY).await;
    }
}

async fn notify_once(
    pool: &PgPool,
    connection: &mut Option<PgConnection>,
    position: i64,
) -> Result<(), sqlx::Error> {
    if connection.is_none() {
        let mut new = PgConnection::connect_with(&pool.connect_options()).await?;
        // A notification is a hint: it need not wait for the disk.
        sqlx::query("SET synchronous_commit = off").execute(&mut new).await?;
        *connection = Some(new);
    }
    if let Some(connection) = connection {
        sqlx::query("SELECT pg_notify($1, $2::text)")
            .bind(CHANNEL)
            .bind(position)
            .execute(connection)
            .await?;
    }
    Ok(())
}
