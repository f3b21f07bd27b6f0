//! Builds a generation from history, beside the live one: each aggregate's whole history through the same
//! fold as the live projector, split over workers, written with COPY; indexes and constraints after.

pub mod compare;
pub mod swap;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use event_store::EventStore;
use event_store::log::{self, BatchLimits, LogError, Recorded};
use sqlx::{Connection, Executor, PgConnection};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::fold::{MeetingRows, Rows, fold};
use crate::projector::{ProjectError, catch_up};
use crate::schema::{self, Bare};
use crate::tables::artifacts::ArtifactRow;
use crate::tables::cache::CacheWrite;
use crate::tables::copy::{CopyBuffer, CopyRow};
use crate::tables::files::FileRow;
use crate::tables::meetings::MeetingRow;
use crate::tables::speakers::SpeakerRow;
use crate::tables::user_profiles::UserProfileRow;

/// What a worker reads at once.
const BATCH: BatchLimits = BatchLimits { events: 4096, bytes: 8 * 1024 * 1024 };
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
}

/// Builds the generation of the history up to position `until` in `schema`, with indexes and constraints.
pub async fn build(
    store: &EventStore,
    schema: &str,
    generation: i64,
    until: i64,
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
    connection
        .execute(
            "INSERT INTO cache (key, value, ttl)
             SELECT key, value, ttl FROM (
                 SELECT DISTINCT ON (key) key, value, ttl FROM cache_staged ORDER BY key, position DESC) latest
              WHERE value IS NOT NULL AND (ttl IS NULL OR ttl > now())",
        )
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

/// A rebuild, a verification or a rollback that runs: no other one does.
pub struct Running {
    connection: PgConnection,
    id: i64,
}

/// How a rebuild was last heard of.
#[derive(Debug, Clone, serde::Serialize)]
pub struct RebuildRow {
    /// Its number.
    pub id: i64,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
    /// Which process.
    pub who: String,
    /// `rebuild`, `dry-run`, `rollback` or `verify`.
    pub kind: String,
    /// Where it is.
    pub phase: String,
    /// Events done in this phase.
    pub done: i64,
    /// Events of this phase.
    pub total: i64,
    /// What became of it.
    pub outcome: Option<String>,
}

impl Running {
    /// Takes the lock, and clears away what one that was killed has left.
    pub async fn begin(store: &EventStore, who: &str, kind: &str) -> Result<Self, RebuildError> {
        let failed = database("beginning");
        let mut connection = connect(store, schema::LIVE).await?;
        let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(7165932018841088005)")
            .fetch_one(&mut connection)
            .await
            .map_err(&failed)?;
        if !alone {
            let latest = latest(store, 1).await.map_err(&failed)?;
            let who = latest.first().map_or("just begun".to_owned(), |row| {
                format!(
                    "{} by {}, since {}, {} {}/{}",
                    row.kind, row.who, row.started_at, row.phase, row.done, row.total
                )
            });
            return Err(RebuildError::Running { who });
        }
        let killed =
            "UPDATE ops.rebuilds SET finished_at = now(), outcome = 'killed' WHERE finished_at IS NULL";
        connection.execute(killed).await.map_err(&failed)?;
        schema::drop(&mut connection, schema::NEXT).await.map_err(&failed)?;
        schema::drop(&mut connection, schema::SCRATCH).await.map_err(&failed)?;
        schema::drop(&mut connection, swap::OLD).await.map_err(&failed)?;
        let id = sqlx::query_scalar(
            "INSERT INTO ops.rebuilds (who, kind, phase) VALUES ($1, $2, 'beginning') RETURNING id",
        )
        .bind(who)
        .bind(kind)
        .fetch_one(&mut connection)
        .await
        .map_err(&failed)?;
        Ok(Self { connection, id })
    }

    /// Returns its number.
    pub const fn id(&self) -> i64 {
        self.id
    }

    /// Says what became of it, and lets others begin.
    pub async fn end(mut self, outcome: &str) -> Result<(), RebuildError> {
        sqlx::query("UPDATE ops.rebuilds SET finished_at = now(), outcome = $2 WHERE id = $1")
            .bind(self.id)
            .bind(outcome)
            .execute(&mut self.connection)
            .await
            .map_err(database("noting the outcome"))?;
        let _ = self.connection.close().await;
        Ok(())
    }
}

/// Takes note of how far a rebuild is.
pub async fn note_progress(
    store: &EventStore,
    id: i64,
    phase: &str,
    done: i64,
    total: i64,
) -> Result<(), sqlx::Error> {
    sqlx::query("UPDATE ops.rebuilds SET phase = $2, done = $3, total = $4 WHERE id = $1")
        .bind(id)
        .bind(phase)
        .bind(done)
        .bind(total)
        .execute(store.pool())
        .await?;
    Ok(())
}

/// Returns the latest rebuilds, the newest first.
pub async fn latest(store: &EventStore, limit: i64) -> Result<Vec<RebuildRow>, sqlx::Error> {
    use sqlx::Row as _;
    let rows = sqlx::query(
        "SELECT id, started_at, finished_at, who, kind, phase, done, total, outcome
           FROM ops.rebuilds ORDER BY id DESC LIMIT $1",
    )
    .bind(limit)
    .fetch_all(store.pool())
    .await?;
    let row = |row: &sqlx::postgres::PgRow| {
        Ok(RebuildRow {
            id: row.try_get("id")?,
            started_at: row.try_get("started_at")?,
            finished_at: row.try_get("finished_at")?,
            who: row.try_get("who")?,
            kind: row.try_get("kind")?,
            phase: row.try_get("phase")?,
            done: row.try_get("done")?,
            total: row.try_get("total")?,
            outcome: row.try_get("outcome")?,
        })
    };
    rows.iter().map(row).collect()
}

/// Drops a generation that is not live.
pub async fn discard(store: &EventStore, schema: &str) -> Result<(), RebuildError> {
    let mut connection = connect(store, schema::LIVE).await?;
    schema::drop(&mut connection, schema).await.map_err(database("clearing away"))
}

/// Brings the generation in `schema` to position `until`, with the live projector's own statements.
pub async fn catch_up_to(store: &EventStore, schema: &str, until: i64) -> Result<(), RebuildError> {
    Ok(catch_up(store, schema::options(store.pool(), schema), until, BATCH).await?)
}

/// How long the live tables are held for the swap or for the look at both generations, and how often.
pub(crate) const TRIES: u32 = 50;
/// The pause between two tries.
pub(crate) const PAUSE: Duration = Duration::from_millis(200);

/// Names and counts, for the report.
pub type Counts = BTreeMap<String, u64>;
