//! The swap: another generation takes the live one's name, in one short transaction.
//!
//! Whoever writes the live tables holds their checkpoint's row; so the swap holds it too, and brings the other
//! generation to the same position, in transactions of their own that are committed before. Then it waits, for
//! a bounded time, for the readers of the moment, and renames. A statement that comes meanwhile waits, and
//! finds the new tables. A projector that comes late finds another generation, and writes nothing.

use std::time::{Duration, Instant};

use event_store::EventStore;
use event_store::retry::backoff;
use sqlx::error::DatabaseError;
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::holders::Holders;
use super::running::Running;
use super::{Progress, RebuildError, catch_up_to, connect, database};
use crate::parked;
use crate::schema::{self, LIVE, PREVIOUS, quoted};
use crate::tables::checkpoint;

/// How long readers of the moment are waited for, before trying again later.
const LOCK: &str = "SET LOCAL lock_timeout = '80ms'";
/// How long they are waited for at all of the tables together.
const LOCK_ALL: &str = "SET LOCAL statement_timeout = '80ms'";
/// How long the writer of the moment is waited for; readers go on meanwhile.
const LOCK_WRITERS: &str = "SET LOCAL lock_timeout = '2s'";
/// How long the readers of the generation before the previous one are waited for; nobody waits behind that.
const LOCK_OLD: &str = "SET LOCAL lock_timeout = '2s'";
/// How long the last events may take that the other generation lacks, while the live one is held.
const LAST_STEP: Duration = Duration::from_secs(5);
/// The pause after the first try, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// The try after whose failure it is told who is waited for.
const TOLD_AFTER: u32 = 2;
/// The name that the live generation has in between, on the way back.
pub(super) const ASIDE: &str = "read_swapping";
/// The name that the generation before the previous one has until it is dropped: nobody waits for that.
pub(super) const OLD: &str = "read_old";

/// What the swap took.
#[derive(Debug, Clone, Copy)]
pub struct Swapped {
    /// The position of both generations.
    pub position: i64,
    /// How long readers had to wait at most.
    pub blocked: Duration,
}

/// Why a try did not come to pass.
enum NotSwapped {
    /// The tables were not to be had in time.
    Busy,
    /// Another try would fail, too.
    Failed(RebuildError),
}

impl From<RebuildError> for NotSwapped {
    fn from(error: RebuildError) -> Self {
        Self::Failed(error)
    }
}

impl From<sqlx::Error> for NotSwapped {
    fn from(error: sqlx::Error) -> Self {
        if is_busy(&error) { Self::Busy } else { database("swapping")(error).into() }
    }
}

/// Makes the generation in `schema` the live one; the live one becomes the previous one. From [`PREVIOUS`] it is the
/// way back: both change places. It is done in the session that holds the rebuild's lock, so it cannot outlive it.
/// Where somebody holds the tables it is tried again, with growing pauses, until `swap_timeout` is over. Told to
/// stop, it does so between tries, never in one.
pub async fn swap(
    store: &EventStore,
    running: &mut Running,
    schema: &str,
    swap_timeout: Duration,
    progress: &impl Progress,
    stop: &CancellationToken,
) -> Result<Swapped, RebuildError> {
    let failed = database("swapping");
    let connection = running.session();
    if !schema::exists(connection, schema).await.map_err(&failed)? {
        return Err(RebuildError::NoPrevious);
    }
    if !schema::fits(connection, schema).await.map_err(&failed)? {
        return Err(RebuildError::OtherShape { schema: schema.to_owned() });
    }
    let backend: i32 =
        sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *connection).await.map_err(&failed)?;
    let (started, mut attempt, mut blocked) = (Instant::now(), 0, Duration::ZERO);
    let mut holders = Holders::default();
    loop {
        let tried = tokio::select! {
            tried = try_swap(store, connection, schema, &mut blocked, stop) => tried,
            never = holders.watch(store, backend) => match never {},
        };
        match tried {
            Ok(position) => {
                // It has come to pass, whatever becomes of the rest: the next one that begins clears away, and what
                // was skipped can be skipped again.
                if let Err(error) = drop_old(connection).await {
                    warn!(error = &error as &dyn std::error::Error, "an old generation could not be dropped");
                }
                if let Err(error) = parked::pass_skipped(store).await {
                    warn!(error = &error as &dyn std::error::Error, "what was skipped is parked again");
                }
                return Ok(Swapped { position, blocked });
            }
            Err(NotSwapped::Busy) => {}
            Err(NotSwapped::Failed(error)) => return Err(error),
        }
        attempt += 1;
        let left = swap_timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(RebuildError::Busy { who: holders.to_string() });
        }
        if attempt == TOLD_AFTER {
            progress.waiting(&holders.to_string());
        }
        holders.begin_anew();
        let pause = backoff(attempt, PAUSES.0, PAUSES.1).min(left);
        stop.run_until_cancelled(sleep(pause)).await.ok_or(RebuildError::Interrupted)?;
    }
}

/// Drops the generation before the previous one, unless somebody reads it for long.
pub(super) async fn drop_old(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut dropping = connection.begin().await?;
    dropping.execute(LOCK_OLD).await?;
    schema::drop(&mut dropping, OLD).await?;
    dropping.commit().await
}

/// Puts the generation in `schema` in the place of a live one that shows nothing yet.
pub(super) async fn replace_empty(store: &EventStore, schema: &str) -> Result<(), RebuildError> {
    let failed = database("taking the live tables' place");
    let mut connection = connect(store, LIVE).await?;
    let mut replacing = connection.begin().await.map_err(&failed)?;
    if checkpoint::lock(&mut replacing).await.map_err(&failed)?.position > 0 {
        return Err(RebuildError::NotEmpty);
    }
    schema::drop(&mut replacing, LIVE).await.map_err(&failed)?;
    let rename = format!("ALTER SCHEMA {} RENAME TO {}", quoted(schema), quoted(LIVE));
    replacing.execute(rename.as_str()).await.map_err(&failed)?;
    replacing.commit().await.map_err(&failed)
}

/// Changes the names; returns the position. In `blocked` it notes for how long readers had to wait, whether it came to
/// pass or not.
async fn try_swap(
    store: &EventStore,
    connection: &mut PgConnection,
    schema: &str,
    blocked: &mut Duration,
    stop: &CancellationToken,
) -> Result<i64, NotSwapped> {
    drop_old(connection).await?;
    // Near first, so that the live tables are held for a moment only.
    let shown = checkpoint::read(&mut *connection).await?.position;
    let near = stop.run_until_cancelled(catch_up_to(store, schema, shown)).await;
    near.unwrap_or(Err(RebuildError::Interrupted))?;

    let mut holding = connection.begin().await?;
    let mut began = None;
    let changed = change_places(store, &mut holding, schema, &mut began).await;
    // At once: what is locked is not kept for the pause after it.
    let ended = if changed.is_ok() { holding.commit().await } else { holding.rollback().await };
    *blocked = (*blocked).max(began.map_or(Duration::ZERO, |began| began.elapsed()));
    let position = changed?;
    ended?;
    Ok(position)
}

/// Changes the names, not to be seen by others yet; returns the position. In `began` it notes from when on readers have to
/// wait.
async fn change_places(
    store: &EventStore,
    holding: &mut PgConnection,
    schema: &str,
    began: &mut Option<Instant>,
) -> Result<i64, NotSwapped> {
    // The table before its row: a projector that came for the row would wait with a lock on the table, which
    // the swap then waits for in turn. Readers pass, so this may take longer.
    let writers = format!("{LOCK_WRITERS}; LOCK TABLE {}.checkpoint IN EXCLUSIVE MODE; {LOCK}", quoted(LIVE));
    holding.execute(writers.as_str()).await?;
    let held = checkpoint::lock(holding).await?;
    match timeout(LAST_STEP, catch_up_to(store, schema, held.position)).await {
        Ok(caught_up) => caught_up?,
        Err(_) => return Err(NotSwapped::Busy),
    }
    let lock = lock_all(holding).await?;
    holding.execute(LOCK_ALL).await?;
    // Whoever comes for a table waits from here on; also for all of the tables together no longer than for one.
    *began = Some(Instant::now());
    let changing = async {
        holding.execute(lock.as_str()).await?;
        holding.execute("SET LOCAL statement_timeout = 0").await?;
        copy_grants(holding, schema).await?;
        rename(holding, schema).await?;
        // Never the same number twice, not even on the way back: a projector tells generations apart by it.
        let live = checkpoint::renew(holding, LIVE).await?;
        parked::release(holding, held, live).await
    };
    match changing.await {
        Ok(()) => Ok(held.position),
        // The time may be over in the moment in which the lock is had: then the next statement hears of it.
        Err(error) if is_out_of_time(&error) => Err(NotSwapped::Busy),
        Err(error) => Err(error.into()),
    }
}

/// Returns the statement that locks all tables. A reader of several sees them all before, or all after. They are locked
/// in the order in which readers come to them (`queries`): none holds one and waits for another that is locked already.
async fn lock_all(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    let tables = [
        "meetings",
        "files",
        "speaker_reassignments",
        "user_profiles",
        "checkpoint",
        "speakers",
        "artifacts",
        "stale_artifacts",
        "cache",
        "cache_origin",
    ];
    let tables = tables.map(|table| format!("{}.{}", quoted(LIVE), quoted(table)));
    // One that comes with this version is not there yet.
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT t FROM UNNEST ($1::text[]) WITH ORDINALITY AS tables (t, n)
          WHERE to_regclass(t) IS NOT NULL ORDER BY n",
    )
    .bind(&tables[..])
    .fetch_all(connection)
    .await?;
    Ok(format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", tables.join(", ")))
}

async fn rename(transaction: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    let aside =
        (schema != PREVIOUS && schema::exists(transaction, PREVIOUS).await?).then_some((PREVIOUS, OLD));
    for (from, to) in aside.into_iter().chain([(LIVE, ASIDE), (schema, LIVE), (ASIDE, PREVIOUS)]) {
        let rename = format!("ALTER SCHEMA {} RENAME TO {}", quoted(from), quoted(to));
        transaction.execute(rename.as_str()).await?;
    }
    Ok(())
}

/// Who may do what with the live tables may do it with the others, before these are live. What the tables come
/// with is there already; this is for what somebody has granted by hand, to a whole table or to a column of it. The
/// program's own roles have what this version gives them and no more, whatever an earlier one gave.
async fn copy_grants(transaction: &mut PgConnection, to: &str) -> Result<(), sqlx::Error> {
    let statements: Vec<String> = sqlx::query_scalar(
        "WITH granted AS (
             SELECT n.nspname, t.relname, NULL AS attname, acl.privilege_type, acl.grantee
               FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace, aclexplode(t.relacl) acl
              WHERE n.nspname IN ($1, $2) AND t.relkind = 'r'
             UNION ALL
             SELECT n.nspname, t.relname, a.attname, acl.privilege_type, acl.grantee
               FROM pg_class t JOIN pg_namespace n ON n.oid = t.relnamespace
               JOIN pg_attribute a ON a.attrelid = t.oid AND NOT a.attisdropped, aclexplode(a.attacl) acl
              WHERE n.nspname IN ($1, $2) AND t.relkind = 'r'
             UNION ALL
             SELECT n.nspname, NULL, NULL, acl.privilege_type, acl.grantee
               FROM pg_namespace n, aclexplode(n.nspacl) acl WHERE n.nspname IN ($1, $2)
         ), missing AS (
             SELECT relname, attname, privilege_type, grantee FROM granted WHERE nspname = $1
             EXCEPT SELECT relname, attname, privilege_type, grantee FROM granted WHERE nspname = $2
         )
         SELECT concat('GRANT ', m.privilege_type, ' (' || quote_ident(m.attname) || ')', ' ON ',
                       CASE WHEN m.relname IS NULL THEN format('SCHEMA %I', $2)
                            ELSE format('%I.%I', $2, m.relname) END,
                       ' TO ', CASE m.grantee WHEN 0 THEN 'PUBLIC' ELSE m.grantee::regrole::text END)
           FROM missing m
          WHERE pg_get_userbyid(m.grantee) NOT LIKE 'minutebook\\_%'
            AND (m.relname IS NULL OR to_regclass(format('%I.%I', $2, m.relname)) IS NOT NULL)
            AND (m.attname IS NULL OR EXISTS (
                    SELECT FROM pg_attribute a
                     WHERE a.attrelid = to_regclass(format('%I.%I', $2, m.relname)) AND a.attname = m.attname))",
    )
    .bind(LIVE)
    .bind(to)
    .fetch_all(&mut *transaction)
    .await?;
    for statement in statements {
        transaction.execute(statement.as_str()).await?;
    }
    Ok(())
}

/// Tells a lock that was not to be had in time, or a deadlock, from a failure.
fn is_busy(error: &sqlx::Error) -> bool {
    matches!(error.as_database_error().and_then(DatabaseError::code).as_deref(), Some("55P03" | "40P01"))
}

/// Tells a statement that ran out of its time.
fn is_out_of_time(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::code).as_deref() == Some("57014")
}
