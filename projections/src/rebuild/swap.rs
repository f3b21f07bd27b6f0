//! The swap: another generation takes the live one's name, in one short transaction.
//!
//! Whoever writes the live tables holds their checkpoint's row; so the swap holds it too, and brings the other
//! generation to the same position, in transactions of their own that are committed before. Then it waits, for
//! a bounded time, for the readers of the moment, and renames. A statement that comes meanwhile waits, and
//! finds the new tables. A projector that comes late finds another generation, and writes nothing.

use std::fmt;
use std::time::{Duration, Instant};

use event_store::EventStore;
use event_store::retry::backoff;
use sqlx::error::DatabaseError;
use sqlx::{Connection, Executor, PgConnection};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::warn;

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
/// The pause after the first try, and the longest one.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));
/// The try after whose failure it is told who is waited for.
const TOLD_AFTER: u32 = 2;
/// How long looking for them may take.
const LOOK: Duration = Duration::from_secs(2);
/// How many of them are named.
const NAMED: usize = 3;
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

/// Makes the generation in `schema` the live one, while `running` lasts; the live one becomes the previous one. From
/// [`PREVIOUS`] it is the way back: both change places. Where readers hold the tables it is tried again, with
/// growing pauses, until `swap_timeout` is over. Told to stop, it does so between tries, never in one.
pub async fn swap(
    store: &EventStore,
    running: &mut Running,
    schema: &str,
    swap_timeout: Duration,
    progress: &impl Progress,
    stop: &CancellationToken,
) -> Result<Swapped, RebuildError> {
    let failed = database("swapping");
    let mut connection = connect(store, LIVE).await?;
    if !schema::exists(&mut connection, schema).await.map_err(&failed)? {
        return Err(RebuildError::NoPrevious);
    }
    if !schema::fits(&mut connection, schema).await.map_err(&failed)? {
        return Err(RebuildError::OtherShape { schema: schema.to_owned() });
    }
    schema::drop(&mut connection, OLD).await.map_err(&failed)?;
    let (started, mut attempt, mut blocked) = (Instant::now(), 0, Duration::ZERO);
    let mut holders = Holders::default();
    loop {
        // The tries may go on for long: what is in the schema must be ours still.
        running.ensure_alone().await?;
        // Near first, so that the live tables are held for a moment only.
        let shown = checkpoint::read(store.pool()).await.map_err(&failed)?.position;
        let near = stop.run_until_cancelled(catch_up_to(store, schema, shown)).await;
        near.unwrap_or(Err(RebuildError::Interrupted))?;
        let mut holding = connection.begin().await.map_err(&failed)?;
        match try_swap(store, running, &mut holding, schema, &mut blocked).await {
            Ok((position, began)) => {
                holding.commit().await.map_err(&failed)?;
                blocked = blocked.max(began.elapsed());
                // It has come to pass, whatever becomes of the rest: the next one that begins clears away, and what
                // was skipped can be skipped again.
                if let Err(error) = schema::drop(&mut connection, OLD).await {
                    warn!(error = &error as &dyn std::error::Error, "an old generation could not be dropped");
                }
                if let Err(error) = parked::pass_skipped(store).await {
                    warn!(error = &error as &dyn std::error::Error, "what was skipped is parked again");
                }
                return Ok(Swapped { position, blocked });
            }
            Err(NotSwapped::Busy) => holding.rollback().await.map_err(&failed)?,
            Err(NotSwapped::Failed(error)) => return Err(error),
        }
        attempt += 1;
        holders.look(store).await;
        let left = swap_timeout.saturating_sub(started.elapsed());
        if left.is_zero() {
            return Err(RebuildError::Busy { who: holders.to_string() });
        }
        if attempt == TOLD_AFTER {
            progress.waiting(&holders.to_string());
        }
        let pause = backoff(attempt, PAUSES.0, PAUSES.1).min(left);
        stop.run_until_cancelled(sleep(pause)).await.ok_or(RebuildError::Interrupted)?;
    }
}

/// Who holds the live tables, as the database knows them: each backend with its number.
#[derive(Default)]
struct Holders {
    /// After the last try.
    seen: Vec<(i32, String)>,
    /// Those who did so after the one before, too: they are no passers-by.
    stay: Vec<String>,
}

impl Holders {
    /// Looks who holds the tables, as well as it can: it is for those who wait, and fails nothing.
    async fn look(&mut self, store: &EventStore) {
        // Of other logins a login that may not read all sees no more than this.
        let held = sqlx::query_as(
            "SELECT a.pid, concat_ws(' ', 'backend', a.pid,
                                     '(' || coalesce(nullif(a.application_name, ''), a.backend_type) || ')',
                                     'since ' || to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))
               FROM pg_stat_activity a
              WHERE a.pid IN (
                    SELECT l.pid FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                     WHERE l.granted AND c.relkind = 'r' AND c.relnamespace = to_regnamespace($1)
                       AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()))
              ORDER BY a.pid",
        )
        .bind(LIVE)
        .fetch_all(store.pool());
        let now: Vec<(i32, String)> = match timeout(LOOK, held).await {
            Ok(Ok(now)) => now,
            Ok(Err(_)) | Err(_) => vec![],
        };
        let stays = |(pid, _): &&(i32, String)| self.seen.iter().any(|(seen, _)| seen == pid);
        self.stay = now.iter().filter(stays).map(|(_, who)| who.clone()).collect();
        self.seen = now;
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.stay.len() {
            0 => f.write_str("readers who come and go"),
            n @ ..=NAMED => f.write_str(&self.stay[..n].join(", ")),
            n => write!(f, "{} and {} more", self.stay[..NAMED].join(", "), n - NAMED),
        }
    }
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

/// Changes the names; returns the position, and from when on readers have to wait until that is committed. Where the
/// tables were not to be had, it says in `blocked` for how long readers waited for that.
async fn try_swap(
    store: &EventStore,
    running: &mut Running,
    holding: &mut PgConnection,
    schema: &str,
    blocked: &mut Duration,
) -> Result<(i64, Instant), NotSwapped> {
    let failed = |source: sqlx::Error| {
        if is_busy(&source) { NotSwapped::Busy } else { database("swapping")(source).into() }
    };
    // The table before its row: a projector that came for the row would wait with a lock on the table, which
    // the swap then waits for in turn. Readers pass, so this may take longer.
    let writers = format!("{LOCK_WRITERS}; LOCK TABLE {}.checkpoint IN EXCLUSIVE MODE; {LOCK}", quoted(LIVE));
    holding.execute(writers.as_str()).await.map_err(failed)?;
    let held = checkpoint::lock(holding).await.map_err(failed)?;
    catch_up_to(store, schema, held.position).await?;
    // A reader of several tables sees them all before, or all after. They are locked in the order in which
    // readers come to them (`queries`): none holds one and waits for another that is locked already.
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
    .fetch_all(&mut *holding)
    .await
    .map_err(failed)?;
    running.ensure_alone().await?;
    // Whoever comes for a table waits from here on; also of all the tables together no longer than for one.
    holding.execute(LOCK_ALL).await.map_err(failed)?;
    let began = Instant::now();
    let lock = format!("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE", tables.join(", "));
    if let Err(error) = holding.execute(lock.as_str()).await {
        *blocked = (*blocked).max(began.elapsed());
        return Err(if is_out_of_time(&error) { NotSwapped::Busy } else { failed(error) });
    }
    holding.execute("SET LOCAL statement_timeout = 0").await.map_err(failed)?;
    copy_grants(holding, schema).await.map_err(failed)?;
    rename(holding, schema).await.map_err(failed)?;
    // Never the same number twice, not even on the way back: a projector tells generations apart by it.
    let live = checkpoint::renew(holding, LIVE).await.map_err(failed)?;
    parked::release(holding, held, live).await.map_err(failed)?;
    Ok((held.position, began))
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
