//! Builds a generation from history, beside the live one: each aggregate's whole history through the same
//! fold as the live projector, split over workers, written with COPY; indexes and constraints after.

pub mod compare;
pub mod lay_down;
mod noting;
pub mod run;
pub mod running;
pub mod swap;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, Utc};
use event_store::EventStore;
use event_store::log::{self, LogError, Recorded};
use sqlx::{Connection, Executor, PgConnection};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::fold::{MeetingRows, Rows, fold};
use crate::projector::{BATCH, ProjectError, catch_up};
use crate::rebuild::compare::Report;
use crate::schema::{self, Bare};
use crate::tables::artifacts::ArtifactRow;
use crate::tables::cache::CacheWrite;
use crate::tables::copy::{CopyBuffer, CopyRow};
use crate::tables::files::FileRow;
use crate::tables::meetings::MeetingRow;
use crate::tables::speakers::SpeakerRow;
use crate::tables::user_profiles::UserProfileRow;

/// How many workers fold at once: each keeps a core of its own and one of PostgreSQL's busy.
const WORKERS: usize = 2;
/// Into how many parts the ids are split; more than workers, so that none waits long for the last.
const PARTS: u32 = 32;

/// Why a rebuild failed.
#[derive(Debug, thiserror::Error)]
pub enum RebuildError {
    /// The database cannot be used.
    #[error("{phase} failed")]
    Database {
        /// What was done.
        phase: &'static str,
        /// What came of it.
        #[source]
        source: sqlx::Error,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The catching up failed.
    #[error("catching up failed")]
    CatchUp(#[from] ProjectError),
    /// Another one runs.
    #[error("another rebuild runs: {who}")]
    Running {
        /// Who, since when, how far.
        who: String,
    },
    /// There is nothing to go back to.
    #[error("there is no previous generation to go back to")]
    NoPrevious,
    /// The swap's moment did not come.
    #[error("readers held the tables all the time: the swap did not come to pass; try again")]
    Busy,
    /// A worker ended.
    #[error("a worker broke off")]
    Worker,
    /// It was told to stop.
    #[error("it was interrupted")]
    Interrupted,
    /// The next generation is not what is live, and nobody said that it may be another.
    #[error("rows differ, so the live tables were left as they are; --accept-differences swaps all the same")]
    Differences,
    /// The live tables are not what the log says.
    #[error(
        "the live tables are not what the log says; `minutebook rebuild --accept-differences` mends them"
    )]
    Unproven,
    /// The log itself is damaged.
    #[error("the log is damaged, or newer than this program: a rebuild does not mend that")]
    Damaged,
    /// A moment that has not come yet.
    #[error("{until} has not come yet: the log ends at position {head}")]
    NotYet {
        /// The position or time asked for.
        until: String,
        /// Where the log ends.
        head: i64,
    },
    /// A name that is taken.
    #[error(
        "there is a schema {schema} already; take another name, or drop it: DROP SCHEMA {schema} CASCADE"
    )]
    SchemaExists {
        /// Its name, quoted.
        schema: String,
    },
}

/// Returns the error of a phase in which the database failed.
pub fn database(phase: &'static str) -> impl Fn(sqlx::Error) -> RebuildError {
    move |source| RebuildError::Database { phase, source }
}

/// Told how a rebuild goes.
pub trait Progress: Send + Sync {
    /// A phase begins, of `total` events; 0 where it has no measure.
    fn phase(&self, name: &'static str, total: i64);
    /// So many events of the phase are done.
    fn done(&self, events: i64);
    /// The log itself is damaged.
    fn damaged(&self, _problem: &str) {}
    /// The live generation was compared with history.
    fn compared(&self, _report: &Report) {}
}

/// Builds the generation of the history up to position `until` in `schema`, with indexes and constraints. What
/// had expired by `moment`, or by now without one, is not in its cache.
pub async fn build(
    store: &EventStore,
    schema: &str,
    generation: i64,
    until: i64,
    moment: Option<DateTime<Utc>>,
    progress: &Arc<impl Progress + 'static>,
) -> Result<(), RebuildError> {
    let failed = database("creating the tables");
    let mut connection = connect(store, schema).await?;
    let mut creating = connection.begin().await.map_err(&failed)?;
    schema::drop(&mut creating, schema).await.map_err(&failed)?;
    schema::create(&mut creating, schema, generation).await.map_err(&failed)?;
    let bare = Bare::make(&mut creating, schema).await.map_err(&failed)?;
    let stage = "CREATE UNLOGGED TABLE cache_staged (key text, position bigint, value text, ttl timestamptz)";
    creating.execute(stage).await.map_err(&failed)?;
    creating.commit().await.map_err(&failed)?;

    progress.phase("folding", until);
    fold_all(store, schema, until, progress).await?;

    progress.phase("indexing", 0);
    let failed = database("writing the cache");
    // Keys are shared between meetings: the highest position has the last word, and what it removed, or what
    // has expired, leaves its mark only.
    connection
        .execute(
            "INSERT INTO cache_origin (key, position) SELECT key, max(position) FROM cache_staged GROUP BY key",
        )
        .await
        .map_err(&failed)?;
    sqlx::query(
        "INSERT INTO cache (key, value, ttl)
         SELECT key, value, ttl FROM (
             SELECT DISTINCT ON (key) key, value, ttl FROM cache_staged ORDER BY key, position DESC) latest
          WHERE value IS NOT NULL AND (ttl IS NULL OR ttl > coalesce($1, now()))",
    )
    .bind(moment)
    .execute(&mut connection)
    .await
    .map_err(&failed)?;
    connection.execute("DROP TABLE cache_staged").await.map_err(&failed)?;
    bare.restore(&mut connection).await.map_err(database("adding indexes and constraints"))?;
    sqlx::query("UPDATE checkpoint SET position = $1")
        .bind(until)
        .execute(&mut connection)
        .await
        .map_err(database("noting the position"))?;
    connection
        .execute("ANALYZE files, meetings, speakers, user_profiles, artifacts, cache, cache_origin")
        .await
        .map_err(database("collecting statistics"))?;
    Ok(())
}

/// Connects with `schema` as the `search_path`, without a bound on statements: an index of a large table
/// takes its time.
pub async fn connect(store: &EventStore, schema: &str) -> Result<PgConnection, RebuildError> {
    let options = schema::options(store.pool(), schema)
        .options([("statement_timeout", "0"), ("idle_in_transaction_session_timeout", "0")]);
    PgConnection::connect_with(&options).await.map_err(database("connecting"))
}

async fn fold_all(
    store: &EventStore,
    schema: &str,
    until: i64,
    progress: &Arc<impl Progress + 'static>,
) -> Result<(), RebuildError> {
    let parts = ["meeting", "profile"].into_iter().flat_map(|kind| (0..PARTS).map(move |n| (kind, n)));
    let parts = Arc::new(Mutex::new(parts.collect::<Vec<_>>()));
    let done = Arc::new(AtomicI64::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let mut writer = connect(store, schema).await?;
        let mut reader = connect(store, schema).await?;
        let (parts, done, progress) = (Arc::clone(&parts), Arc::clone(&done), Arc::clone(progress));
        workers.spawn(async move {
            loop {
                let Some((aggregate_type, part)) = parts.lock().await.pop() else { return Ok(()) };
                let (from, to) = bounds(part);
                let mut worker = Worker { current: None, rows: Batch::default() };
                let mut after = (from, i64::MAX);
                loop {
                    let batch =
                        log::read_aggregates(&mut reader, aggregate_type, &after, &to, until, BATCH).await?;
                    let Some(last) = batch.last() else { break };
                    after = (last.event.aggregate_id().to_string(), last.sequence);
                    let read = i64::try_from(batch.len()).unwrap_or(i64::MAX);
                    worker.fold(batch);
                    worker.rows.take().write(&mut writer).await.map_err(database("writing rows"))?;
                    progress.done(done.fetch_add(read, Ordering::Relaxed) + read);
                }
                worker.finish();
                worker.rows.take().write(&mut writer).await.map_err(database("writing rows"))?;
            }
        });
    }
    while let Some(ended) = workers.join_next().await {
        let result: Result<(), RebuildError> = ended.map_err(|_| RebuildError::Worker)?;
        result?;
    }
    Ok(())
}

/// Returns the bounds of one part of the ids: after the one, before the other. Ids are text in lower case.
fn bounds(part: u32) -> (String, String) {
    let bound = |n: u32| if n == PARTS { "g".to_owned() } else { format!("{:02x}", n * (256 / PARTS)) };
    (bound(part), bound(part + 1))
}

/// Folds the aggregates of one part, one after the other.
struct Worker {
    /// The aggregate in hand: its history may go on in the next batch.
    current: Option<(Uuid, Rows)>,
    rows: Batch,
}

impl Worker {
    fn fold(&mut self, batch: Vec<Recorded>) {
        for recorded in batch {
            let id = recorded.event.aggregate_id();
            if self.current.as_ref().is_none_or(|(current, _)| *current != id) {
                self.finish();
                self.current = Some((id, Rows::empty_for(&recorded.event)));
            }
            if let Some((_, rows)) = &mut self.current {
                fold(rows, &recorded);
            }
        }
    }

    fn finish(&mut self) {
        match self.current.take() {
            Some((_, Rows::Meeting(rows))) => {
                let MeetingRows { file, meeting, speakers, artifacts, cache } = *rows;
                self.rows.files.extend(file);
                self.rows.meetings.extend(meeting);
                self.rows.speakers.extend(speakers.into_values());
                self.rows.artifacts.extend(artifacts.into_values());
                self.rows.cache.extend(cache.into_values());
            }
            Some((_, Rows::Profile(rows))) => self.rows.profiles.extend(rows.profile),
            None => {}
        }
    }
}

/// Rows to be written.
#[derive(Default)]
struct Batch {
    files: Vec<FileRow>,
    meetings: Vec<MeetingRow>,
    speakers: Vec<SpeakerRow>,
    artifacts: Vec<ArtifactRow>,
    profiles: Vec<UserProfileRow>,
    cache: Vec<CacheWrite>,
}

impl Batch {
    fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    async fn write(self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        copy(connection, &self.files).await?;
        copy(connection, &self.meetings).await?;
        copy(connection, &self.speakers).await?;
        copy(connection, &self.artifacts).await?;
        copy(connection, &self.profiles).await?;
        copy(connection, &self.cache).await
    }
}

async fn copy<R: CopyRow>(connection: &mut PgConnection, rows: &[R]) -> Result<(), sqlx::Error> {
    if !rows.is_empty() {
        CopyBuffer::of(rows).copy::<R>(connection).await?;
    }
    Ok(())
}

/// Drops a generation that is not live.
pub async fn discard(store: &EventStore, schema: &str) -> Result<(), RebuildError> {
    let mut connection = connect(store, schema::LIVE).await?;
    clear(&mut connection, schema).await.map_err(database("clearing away"))
}

/// Drops a generation that is not live, and ends those of us who are still at work in it: PostgreSQL finishes
/// the statement of a client that has gone away, and the index of a large table takes its time.
async fn clear(connection: &mut PgConnection, schema: &str) -> Result<(), sqlx::Error> {
    sqlx::query(
        "SELECT pg_terminate_backend(a.pid)
           FROM pg_stat_activity a
          WHERE a.datname = current_database() AND a.usename = current_user
            AND a.application_name = current_setting('application_name') AND a.pid <> pg_backend_pid()
            AND EXISTS (SELECT FROM pg_locks l JOIN pg_class c ON c.oid = l.relation
                          JOIN pg_namespace n ON n.oid = c.relnamespace
                         WHERE l.pid = a.pid AND l.granted AND n.nspname = $1)",
    )
    .bind(schema)
    .execute(&mut *connection)
    .await?;
    schema::drop(connection, schema).await
}

/// Brings the generation in `schema` to position `until`, with the live projector's own statements.
pub async fn catch_up_to(store: &EventStore, schema: &str, until: i64) -> Result<(), RebuildError> {
    Ok(catch_up(store, schema::options(store.pool(), schema), until, BATCH).await?)
}
