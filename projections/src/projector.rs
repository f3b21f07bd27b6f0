//! The live projector: from the log through the fold to the tables, batch by batch.
//!
//! One projector is active at a time, by an advisory lock on its connection; the others stand by and take
//! over when that connection is gone. A projector that has lost its lock without knowing (a zombie) is
//! defeated by the checkpoint: it is locked first, and moved by compare-and-set in the transaction that
//! writes the rows.
//!
//! Three tasks work side by side, at most a batch from each other: one reads and decodes, one folds, one
//! writes. A batch that the tables refuse for its data is tried again in ever smaller parts, until the one
//! event at fault is found: that one is parked, as one is that cannot be decoded.

mod fold_ahead;
mod read_ahead;

use std::time::Duration;

use event_store::log::{self, BatchLimits, LogError};
use event_store::retry::{backoff, is_transient};
use event_store::{EventStore, locks};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{Connection, PgConnection};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};

use self::fold_ahead::{Folder, fold_ahead};
pub use self::read_ahead::BATCH;
use self::read_ahead::read_ahead;
use crate::fold::{Fold, fold};
use crate::parked::{self, Exceptions};
use crate::schema;
use crate::tables::Statement;
use crate::tables::checkpoint::{self, Checkpoint};
use crate::tables::parked_events::{self, Parked};

/// How often a projector that stands by asks for the lock.
const STANDBY: Duration = Duration::from_millis(500);
/// How often a stopped projector tries the event again, at which it stopped.
const STOPPED: Duration = Duration::from_secs(10);
/// How long connecting, and reading one batch, may take.
const READ: Duration = Duration::from_secs(60);
/// How long one batch may take.
const WRITE: Duration = Duration::from_secs(60);

/// What the projector of this process is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Projection {
    /// Another one is active, or this one has not begun.
    Standby,
    /// It keeps the tables up to date, and has come to this position.
    Active {
        /// The last position that the tables show.
        position: i64,
    },
    /// It cannot go on, and waits for somebody to look.
    Stopped {
        /// The position from which on.
        position: i64,
        /// Why, without any of its content.
        reason: String,
    },
}

/// Why projecting broke off.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum ProjectError {
    #[error("{phase} failed at position {position}")]
    Database {
        phase: &'static str,
        position: i64,
        #[source]
        source: sqlx::Error,
    },
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the tables have moved from position {expected} to {found} behind the projector's back")]
    Overtaken { expected: i64, found: i64 },
    #[error("generation {found} has taken the place of {expected}")]
    Swapped { expected: i64, found: i64 },
    #[error("writing a batch took too long")]
    TimedOut,
    #[error("the tables refuse a batch of {events} events from position {first} on")]
    Refused {
        first: i64,
        events: usize,
        #[source]
        source: sqlx::Error,
    },
    #[error("more than {} aggregates are parked: that is no fault of single events", parked::MOST_AGGREGATES)]
    TooManyParked { position: i64 },
    #[error(
        "the tables have another shape than this version of Minutebook gives them: either a rebuild by another \
         version has changed them, and that version has to be started, or this one is the new one, and \
         `minutebook rebuild` brings them up to it"
    )]
    OtherShape { position: i64 },
    #[error("a task that works ahead ended")]
    TaskGone,
}

/// How carefully to read: small batches up to a position, where a larger one was refused; and the event
/// that was found at fault.
#[derive(Debug, Clone, Default)]
struct Care {
    until: i64,
    events: usize,
    refused: Option<(i64, String)>,
}

impl Care {
    /// Returns how to go on after a batch was refused; no other failure calls for care.
    fn after(&self, error: &ProjectError) -> Option<Self> {
        match error {
            ProjectError::Refused { first, source, events: 1 } => {
                // One that is refused although it is parked has nothing more to try.
                let new = self.refused.as_ref().is_none_or(|(position, _)| position != first);
                new.then(|| Self { refused: Some((*first, parked::without_content(source))), ..self.clone() })
            }
            ProjectError::Refused { first, events, .. } => Some(Self {
                until: first + i64::try_from(*events).unwrap_or(i64::MAX) - 1,
                events: events.div_ceil(16).min(events - 1),
                ..self.clone()
            }),
            ProjectError::Database { .. }
            | ProjectError::Log(_)
            | ProjectError::Overtaken { .. }
            | ProjectError::Swapped { .. }
            | ProjectError::TimedOut
            | ProjectError::TooManyParked { .. }
            | ProjectError::OtherShape { .. }
            | ProjectError::TaskGone => None,
        }
    }
}

/// A batch of events, folded.
struct Batch {
    first: i64,
    events: usize,
    statements: Vec<Statement>,
    parked: Vec<Parked>,
}

/// Keeps the tables of the live generation up to date until `shutdown`, telling `projection` how it stands.
/// `fold` is [`fold`] but where a test plants a fault.
pub async fn run(
    store: EventStore,
    fold: Fold,
    projection: watch::Sender<Projection>,
    shutdown: CancellationToken,
) {
    let projecting = async {
        let mut failures = 0;
        let mut logged_stop = None;
        let mut care = Care::default();
        loop {
            let error = match lead(&store, fold, &care, &projection, &mut failures).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            if let Some(more) = care.after(&error) {
                care = more;
                continue;
            }
            if let ProjectError::Swapped { found, .. } = error {
                info!(generation = found, "another generation is live");
                continue;
            }
            failures += 1;
            let pause = match stopping_reason(&error) {
                Some((position, reason)) => {
                    if logged_stop != Some(position) {
                        error!(position, reason, "the projector cannot go on and has stopped");
                        logged_stop = Some(position);
                    }
                    projection.send_replace(Projection::Stopped { position, reason });
                    STOPPED
                }
                None => {
                    if failures == 1 {
                        warn!(error = &error as &dyn std::error::Error, "projecting was interrupted");
                    }
                    projection.send_replace(Projection::Standby);
                    backoff(failures, Duration::from_millis(50), Duration::from_secs(5))
                }
            };
            sleep(pause).await;
        }
    };
    shutdown.run_until_cancelled(projecting).await;
    projection.send_replace(Projection::Standby);
}

/// Tells what will fail again from a database that is away.
fn stopping_reason(error: &ProjectError) -> Option<(i64, String)> {
    match error {
        ProjectError::Log(LogError::Hole { missing, .. }) => Some((*missing, error.to_string())),
        ProjectError::TooManyParked { position }
        | ProjectError::OtherShape { position }
        | ProjectError::Refused { first: position, .. } => Some((*position, error.to_string())),
        ProjectError::Database { position, source, phase } if !is_transient(source) => {
            Some((*position, format!("{phase}: SQLSTATE {}", sqlstate(source).unwrap_or_default())))
        }
        ProjectError::Log(LogError::Database { .. } | LogError::Decode { .. })
        | ProjectError::Database { .. }
        | ProjectError::Overtaken { .. }
        | ProjectError::Swapped { .. }
        | ProjectError::TimedOut
        | ProjectError::TaskGone => None,
    }
}

/// Brings the generation that `options` lead to up to position `until`, and no further, at most `at_once` in a
/// transaction. Nobody else writes it.
pub async fn catch_up(
    store: &EventStore,
    options: PgConnectOptions,
    until: i64,
    at_once: BatchLimits,
) -> Result<(), ProjectError> {
    let mut care = Care::default();
    loop {
        let error = match catch_up_with(store, &care, &options, until, at_once).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        match care.after(&error) {
            Some(more) => care = more,
            None => return Err(error),
        }
    }
}

async fn catch_up_with(
    store: &EventStore,
    care: &Care,
    options: &PgConnectOptions,
    until: i64,
    at_once: BatchLimits,
) -> Result<(), ProjectError> {
    let at_start = |phase| move |source| ProjectError::Database { phase, position: 0, source };
    let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options.clone());
    let mut connection = connect(options).await.map_err(at_start("connecting to catch up"))?;
    let (start, exceptions) = start(&mut connection, care).await?;
    let (written, watched) = watch::channel(start.position);
    let mut folder = Folder::new(pool.clone(), fold, exceptions, watched);
    let mut writer = Writer { connection, checkpoint: start };
    while writer.checkpoint.position < until {
        let position = writer.checkpoint.position;
        let rest = usize::try_from(until - position).unwrap_or(usize::MAX);
        let most = at_once.events.min(care.limits_after(position).events);
        let limits = BatchLimits { events: most.min(rest), ..at_once };
        let (events, error) = log::read_recorded(store.pool(), store.keyring(), position, limits).await;
        if events.is_empty() {
            return Err(error.map_or(ProjectError::TaskGone, ProjectError::Log));
        }
        let batch = folder.fold(&events).await?;
        let position = timeout(WRITE, writer.write(batch)).await.map_err(|_| ProjectError::TimedOut)??;
        written.send_replace(position);
    }
    pool.close().await;
    Ok(())
}

/// Returns where a writer begins, and what it has to treat apart.
async fn start(connection: &mut PgConnection, care: &Care) -> Result<(Checkpoint, Exceptions), ProjectError> {
    let at_start = |phase| move |source| ProjectError::Database { phase, position: 0, source };
    let start = checkpoint::read(&mut *connection).await.map_err(at_start("reading the checkpoint"))?;
    let exceptions = Exceptions::load(connection, start.generation);
    let mut exceptions = exceptions.await.map_err(at_start("reading what is parked"))?;
    exceptions.refused.clone_from(&care.refused);
    Ok((start, exceptions))
}

/// Waits for the lock, then projects until something fails. The lock goes with the connection.
async fn lead(
    store: &EventStore,
    fold: Fold,
    care: &Care,
    projection: &watch::Sender<Projection>,
    failures: &mut u32,
) -> Result<std::convert::Infallible, ProjectError> {
    let at_start = |phase| move |source| ProjectError::Database { phase, position: 0, source };
    let options = store.pool().connect_options();
    let mut connection = connect(&options).await.map_err(at_start("connecting the projector"))?;
    loop {
        let leads: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(locks::PROJECTOR)
            .fetch_one(&mut connection)
            .await
            .map_err(at_start("asking for the projector's lock"))?;
        if leads {
            break;
        }
        projection.send_replace(Projection::Standby);
        sleep(STANDBY).await;
    }
    let (start, exceptions) = start(&mut connection, care).await?;
    // Where the tables have a column that this version does not know, it would leave it empty.
    if !schema::fits(&mut connection, schema::LIVE).await.map_err(at_start("looking at the tables"))? {
        return Err(ProjectError::OtherShape { position: start.position + 1 });
    }
    info!(position = start.position, generation = start.generation, "projecting");
    // One that stopped is well again when it has passed the place, not when it tries once more.
    projection.send_if_modified(|known| {
        let well = match known {
            Projection::Standby | Projection::Active { .. } => true,
            Projection::Stopped { position, .. } => *position <= start.position,
        };
        if well {
            *known = Projection::Active { position: start.position };
        }
        well
    });

    let (read, batches) = mpsc::channel(1);
    let (sender, mut folded) = mpsc::channel(1);
    let (written, watched) = watch::channel(start.position);
    let reading = read_ahead(store.clone(), start.position, care.clone(), read);
    let folder = Folder::new(store.pool().clone(), fold, exceptions, watched);
    let folding = fold_ahead(folder, batches, sender);
    let _reader = AbortOnDropHandle::new(tokio::spawn(reading));
    let _folder = AbortOnDropHandle::new(tokio::spawn(folding));
    let mut writer = Writer { connection, checkpoint: start };
    while let Some(batch) = folded.recv().await {
        let batch = batch?;
        let events = batch.events;
        let writing = timeout(WRITE, writer.write(batch));
        let position = writing.await.map_err(|_| ProjectError::TimedOut)??;
        written.send_replace(position);
        projection.send_replace(Projection::Active { position });
        metrics::counter!("minutebook_projected_events_total").increment(events as u64);
        *failures = 0;
    }
    Err(ProjectError::TaskGone)
}

/// Connects a writer. It writes a row and what the row refers to in one transaction, by construction of the
/// fold, so it spares the server a look-up per foreign key, as PostgreSQL's own logical replication does;
/// where its role may not, the server looks them up.
async fn connect(options: &PgConnectOptions) -> Result<PgConnection, sqlx::Error> {
    /// What the server says to a role that may not.
    const INSUFFICIENT_PRIVILEGE: &str = "42501";
    let connecting = async {
        let mut connection = PgConnection::connect_with(options).await?;
        match sqlx::query("SET session_replication_role = replica").execute(&mut connection).await {
            Err(error) if sqlstate(&error).as_deref() != Some(INSUFFICIENT_PRIVILEGE) => Err(error),
            Ok(_) | Err(_) => Ok(connection),
        }
    };
    timeout(READ, connecting).await.unwrap_or_else(|_| Err(timed_out()))
}

fn sqlstate(error: &sqlx::Error) -> Option<std::borrow::Cow<'_, str>> {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code)
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

struct Writer {
    connection: PgConnection,
    checkpoint: Checkpoint,
}

impl Writer {
    /// Writes what a batch changes, and the checkpoint with it; returns the position it moved to.
    async fn write(&mut self, batch: Batch) -> Result<i64, ProjectError> {
        let Batch { first, events, statements, parked } = batch;
        let failed = |phase| move |source| ProjectError::Database { phase, position: first, source };
        let mut transaction = self.connection.begin().await.map_err(failed("beginning a batch"))?;
        let locked = checkpoint::lock(&mut transaction).await.map_err(failed("locking the checkpoint"))?;
        if locked.generation != self.checkpoint.generation {
            let (expected, found) = (self.checkpoint.generation, locked.generation);
            return Err(ProjectError::Swapped { expected, found });
        }
        if locked != self.checkpoint || locked.position + 1 != first {
            let (expected, found) = (self.checkpoint.position, locked.position);
            return Err(ProjectError::Overtaken { expected, found });
        }
        for statement in statements.into_iter().chain(parked_events::insert(locked.generation, &parked)) {
            statement.execute(&mut transaction).await.map_err(|source| {
                if parked::is_refusal(&source) {
                    ProjectError::Refused { first, events, source }
                } else {
                    failed("writing rows")(source)
                }
            })?;
        }
        let last = locked.position + i64::try_from(events).unwrap_or(i64::MAX);
        let moved = checkpoint::advance(&mut transaction, locked, last)
            .await
            .map_err(failed("moving the checkpoint"))?;
        if !moved {
            return Err(ProjectError::Overtaken { expected: locked.position, found: last });
        }
        transaction.commit().await.map_err(failed("committing a batch"))?;
        self.checkpoint.position = last;
        for Parked { position, reason, .. } in parked {
            if let Some(reason) = reason {
                error!(position, reason, "an event cannot be applied, and its aggregate is parked");
            }
        }
        Ok(last)
    }
}
