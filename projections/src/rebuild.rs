//! Builds a generation from history, beside the live one: each aggregate's whole history through the same
//! fold as the live projector, split over workers, written with COPY; indexes and constraints after.

pub mod compare;
mod holders;
pub mod lay_down;
mod noting;
pub mod pace;
pub mod run;
pub mod running;
pub mod swap;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use chrono::{DateTime, Utc};
use event_store::EventStore;
use event_store::log::{self, Entry, LogError};
use event_store::sealing::Keyring;
use sqlx::{Connection, Executor, PgConnection};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::sleep;
use uuid::Uuid;

use crate::fold::{MeetingRows, Rows, fold};
use crate::parked::{self, Exceptions, ParkedError, Verdict};
use crate::projector::{BATCH, ProjectError, catch_up};
use crate::rebuild::compare::Report;
use crate::rebuild::pace::{Pace, QUIET, Speed};
use crate::schema::{self, Bare};
use crate::tables::artifacts::ArtifactRow;
use crate::tables::cache::CacheWrite;
use crate::tables::checkpoint;
use crate::tables::copy::{CopyBuffer, CopyRow};
use crate::tables::files::FileRow;
use crate::tables::meetings::MeetingRow;
use crate::tables::parked_events::{self, Parked};
use crate::tables::speaker_reassignments::ReassignmentRow;
use crate::tables::speakers::SpeakerRow;
use crate::tables::stale_artifacts::StaleArtifactRow;
use crate::tables::user_profiles::UserProfileRow;

/// How many workers fold at once, unless they make way for those who append: each keeps a core of its own and one of
/// PostgreSQL's busy.
const WORKERS: usize = 2;
/// The phase in which the tables get back what makes COPY slow.
const ADDING: &str = "adding indexes and constraints";
/// Into how many parts the ids of one type are split; more than workers, so that none waits long for the last.
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
    /// The other generation is live, but events are still parked in it that were skipped.
    #[error(
        "the swap came to pass, but what was skipped is still parked: `minutebook parked retry --all` frees it"
    )]
    Parked(#[from] ParkedError),
    /// Another one runs.
    #[error("another rebuild runs: {who}")]
    Running {
        /// Who, since when, how far.
        who: String,
    },
    /// Another version of the program has made it.
    #[error(
        "the generation in {schema} was made by another version of Minutebook, and its tables have another shape: \
         only that version can go on with it"
    )]
    OtherShape {
        /// Where it is.
        schema: String,
    },
    /// The log is damaged.
    #[error(
        "the log contradicts itself: more than one meeting or profile claims the same rows ({rows}); \
         `minutebook events --meeting` shows their histories"
    )]
    Contradiction {
        /// The first ones: table and key.
        rows: String,
    },
    /// It is no fault of single events.
    #[error(
        "more than {} meetings and profiles have an event that cannot be applied",
        parked::MOST_AGGREGATES
    )]
    TooManyParked,
    /// There is nothing to go back to.
    #[error("there is no previous generation to go back to")]
    NoPrevious,
    /// Somebody projects into what was to be replaced.
    #[error("the live tables show something already: another process projects into them")]
    NotEmpty,
    /// The swap's moment did not come.
    #[error(
        "the tables were held all the time, at last by {who}: the swap did not come to pass; try again, or for \
         longer with --swap-timeout"
    )]
    Busy {
        /// Who held them at last, as the database knows them.
        who: String,
    },
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
    /// The swap waits for those who hold the live tables.
    fn waiting(&self, _who: &str) {}
}

/// Builds the generation of the history up to position `until` in `schema`, with indexes and constraints. What
/// had expired by `moment`, or by now without one, is not in its cache.
pub async fn build(
    store: &EventStore,
    schema: &str,
    until: i64,
    moment: Option<DateTime<Utc>>,
    speed: Speed,
    progress: &Arc<impl Progress + 'static>,
) -> Result<(), RebuildError> {
    let failed = database("creating the tables");
    let mut connection = connect_to_build(store, schema).await?;
    let mut creating = connection.begin().await.map_err(&failed)?;
    schema::drop(&mut creating, schema).await.map_err(&failed)?;
    schema::create(&mut creating, schema).await.map_err(&failed)?;
    let bare = Bare::make(&mut creating, schema).await.map_err(&failed)?;
    let stage = "CREATE UNLOGGED TABLE cache_staged (key text, position bigint, value text, ttl timestamptz)";
    creating.execute(stage).await.map_err(&failed)?;
    creating.commit().await.map_err(&failed)?;

    let mut pace = Pace::new(store.head().subscribe(), speed);
    progress.phase("folding", until);
    let parked = fold_all(store, schema, until, speed, progress).await?;

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
    for statement in bare.statements() {
        pace.statement(&mut connection).await.map_err(database(ADDING))?;
        if let Err(error) = connection.execute(statement.as_str()).await {
            return Err(contradiction(&mut connection, error).await);
        }
        pace.rest().await;
    }
    if parked.iter().filter(|event| event.reason.is_some()).count() > parked::MOST_AGGREGATES {
        return Err(RebuildError::TooManyParked);
    }
    let generation =
        checkpoint::read(&mut connection).await.map_err(database("noting the position"))?.generation;
    for statement in parked.chunks(BATCH.events).filter_map(|chunk| parked_events::insert(generation, chunk))
    {
        statement.execute(&mut connection).await.map_err(database("noting what is parked"))?;
    }
    sqlx::query("UPDATE checkpoint SET position = $1")
        .bind(until)
        .execute(&mut connection)
        .await
        .map_err(database("noting the position"))?;
    connection
        .execute(
            "ANALYZE files, meetings, speakers, user_profiles, artifacts, stale_artifacts, speaker_reassignments,
                     cache, cache_origin",
        )
        .await
        .map_err(database("collecting statistics"))?;
    Ok(())
}

/// Finds out which rows the constraints refuse: the histories of two aggregates claim the same one, which only
/// damage can bring about.
async fn contradiction(connection: &mut PgConnection, error: sqlx::Error) -> RebuildError {
    if !parked::is_refusal(&error) {
        return database(ADDING)(error);
    }
    let twice = sqlx::query_scalar(
        "SELECT format('%s %s', t, id) FROM (
             SELECT 'files' AS t, id FROM files UNION ALL SELECT 'meetings', id FROM meetings
             UNION ALL SELECT 'speakers', id FROM speakers UNION ALL SELECT 'artifacts', id FROM artifacts
             UNION ALL SELECT 'user_profiles', id FROM user_profiles) claimed
          GROUP BY t, id HAVING count(*) > 1 ORDER BY 1 LIMIT 10",
    );
    let twice: Result<Vec<String>, sqlx::Error> = twice.fetch_all(connection).await;
    match twice {
        Ok(twice) if !twice.is_empty() => RebuildError::Contradiction { rows: twice.join(", ") },
        Ok(_) | Err(_) => database(ADDING)(error),
    }
}

/// Connects with `schema` as the `search_path`, without a bound on statements or on rests between them: an index of a
/// large table takes its time, and a lock lasts as long as its connection.
pub async fn connect(store: &EventStore, schema: &str) -> Result<PgConnection, RebuildError> {
    let options = schema::options(store.pool(), schema).options(
        ["statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"]
            .map(|setting| (setting, "0")),
    );
    PgConnection::connect_with(&options).await.map_err(database("connecting"))
}

/// Connects to build the generation in `schema`. Commits do not flush: what is built counts from the commit on that
/// gives it its name, which flushes all that was written before, and those who append meanwhile wait for no flush but
/// theirs.
async fn connect_to_build(store: &EventStore, schema: &str) -> Result<PgConnection, RebuildError> {
    let mut connection = connect(store, schema).await?;
    connection.execute("SET synchronous_commit = off").await.map_err(database("connecting"))?;
    Ok(connection)
}

/// Folds every aggregate; returns the events that cannot be applied.
async fn fold_all(
    store: &EventStore,
    schema: &str,
    until: i64,
    speed: Speed,
    progress: &Arc<impl Progress + 'static>,
) -> Result<Vec<Parked>, RebuildError> {
    let mut connection = connect(store, schema).await?;
    let exceptions =
        Exceptions::with_skipped(&mut connection).await.map_err(database("reading what is skipped"))?;
    let types = log::aggregate_types(&mut connection).await.map_err(database("reading the log"))?;
    let parts = types.into_iter().flat_map(|kind| (0..PARTS).map(move |part| (kind.clone(), part)));
    let parts = Arc::new(Mutex::new(parts.collect::<Vec<_>>()));
    let done = Arc::new(AtomicI64::new(0));
    let mut workers = JoinSet::new();
    for n in 0..WORKERS {
        let mut writer = connect_to_build(store, schema).await?;
        let mut reader = connect(store, schema).await?;
        let (parts, done, progress) = (Arc::clone(&parts), Arc::clone(&done), Arc::clone(progress));
        let (exceptions, keyring) = (exceptions.clone(), store.keyring().clone());
        let mut pace = Pace::new(store.head().subscribe(), speed);
        workers.spawn(async move {
            let mut parked = vec![];
            loop {
                // The first goes on, with rests. The others leave their cores to those who append, between parts: one
                // that waits with a part in hand would keep the rebuild from its end.
                while n > 0 && pace.somebody_appends() && !parts.lock().await.is_empty() {
                    sleep(QUIET).await;
                }
                let Some((aggregate_type, part)) = parts.lock().await.pop() else { return Ok(parked) };
                let (from, to) = bounds(part);
                let mut worker = Worker::new(exceptions.clone());
                let mut after = (from, 0);
                loop {
                    let entries = log::read_aggregates(
                        &mut reader,
                        &keyring,
                        &aggregate_type,
                        &after,
                        &to,
                        until,
                        pace.batch(),
                    )
                    .await?;
                    let Some(last) = entries.last() else { break };
                    after = (last.aggregate().1.into_owned(), last.sequence());
                    let read = i64::try_from(entries.len()).unwrap_or(i64::MAX);
                    worker.fold(&entries);
                    worker.write(&mut reader, &mut writer, &keyring, &aggregate_type, until).await?;
                    progress.done(done.fetch_add(read, Ordering::Relaxed) + read);
                    pace.rest().await;
                }
                worker.finish();
                worker.write(&mut reader, &mut writer, &keyring, &aggregate_type, until).await?;
                parked.append(&mut worker.parked);
            }
        });
    }
    let mut parked: Vec<Parked> = vec![];
    while let Some(ended) = workers.join_next().await {
        let result: Result<Vec<Parked>, RebuildError> = ended.map_err(|_| RebuildError::Worker)?;
        parked.append(&mut result?);
    }
    Ok(parked)
}

/// Returns the bounds of one part of the ids: after the one, before the other. Ids are text in lower case;
/// what is no id lies in the first part or in the last one.
fn bounds(part: u32) -> (String, String) {
    let bound = |n: u32| match n {
        0 => String::new(),
        PARTS => char::MAX.to_string(),
        _ => format!("{:02x}", n * (256 / PARTS)),
    };
    (bound(part), bound(part + 1))
}

/// Folds the aggregates of one part, one after the other.
struct Worker {
    exceptions: Exceptions,
    /// The aggregate in hand: its history may go on in the next batch.
    current: Option<(Uuid, Rows)>,
    /// The aggregates whose rows are to be written.
    finished: Vec<Uuid>,
    rows: Batch,
    parked: Vec<Parked>,
}

impl Worker {
    fn new(exceptions: Exceptions) -> Self {
        Self { exceptions, current: None, finished: vec![], rows: Batch::default(), parked: vec![] }
    }

    fn fold(&mut self, entries: &[Entry]) {
        for entry in entries {
            let recorded = match self.exceptions.judge(entry) {
                Verdict::Apply(recorded) => recorded,
                Verdict::Skip => continue,
                Verdict::Park(event) => {
                    self.parked.push(event);
                    continue;
                }
            };
            let id = recorded.event.aggregate_id();
            if self.current.as_ref().is_none_or(|(current, _)| *current != id) {
                self.finish();
                self.current = Some((id, Rows::empty_for(&recorded.event)));
            }
            if let Some((_, rows)) = &mut self.current {
                fold(rows, recorded);
            }
        }
    }

    fn finish(&mut self) {
        if let Some((id, rows)) = self.current.take() {
            self.finished.push(id);
            self.rows.add(rows);
        }
    }

    /// Writes the rows of the finished aggregates, all of them or, where the tables refuse some, one by one.
    async fn write(
        &mut self,
        reader: &mut PgConnection,
        writer: &mut PgConnection,
        keyring: &Keyring,
        aggregate_type: &str,
        until: i64,
    ) -> Result<(), RebuildError> {
        let finished = std::mem::take(&mut self.finished);
        match self.rows.take().write(writer).await {
            Ok(()) => return Ok(()),
            Err(error) if !parked::is_refusal(&error) => return Err(database("writing rows")(error)),
            Err(_) => {}
        }
        for id in finished {
            let history = read_history(reader, keyring, aggregate_type, id, until).await?;
            let mut exceptions = self.exceptions.for_another_try(None);
            while let Some(refused) = self.write_one(writer, &history, &exceptions).await? {
                exceptions = exceptions.for_another_try(Some(refused));
            }
        }
        Ok(())
    }

    /// Writes the rows of one aggregate; returns the first event with which the tables refuse them.
    async fn write_one(
        &mut self,
        writer: &mut PgConnection,
        history: &[Entry],
        exceptions: &Exceptions,
    ) -> Result<Option<(i64, String)>, RebuildError> {
        let mut alone = Self::new(exceptions.clone());
        alone.fold(history);
        alone.finish();
        match alone.rows.write(writer).await {
            Ok(()) => {
                // What was parked when all of them were folded was parked for other reasons, or not at all.
                if let Some(first) = history.first() {
                    let (_, id) = first.aggregate();
                    self.parked.retain(|event| event.aggregate_id != id);
                }
                self.parked.append(&mut alone.parked);
                Ok(None)
            }
            Err(error) if parked::is_refusal(&error) => {
                let refusal = parked::without_content(&error);
                for (n, entry) in history.iter().enumerate() {
                    let mut part = Self::new(exceptions.clone());
                    part.fold(&history[..=n]);
                    part.finish();
                    match part.rows.try_write(writer).await {
                        Ok(()) => {}
                        Err(error) if parked::is_refusal(&error) => {
                            return Ok(Some((entry.position(), refusal)));
                        }
                        Err(error) => return Err(database("writing rows")(error)),
                    }
                }
                Err(database("writing rows")(error))
            }
            Err(error) => Err(database("writing rows")(error)),
        }
    }
}

async fn read_history(
    reader: &mut PgConnection,
    keyring: &Keyring,
    aggregate_type: &str,
    id: Uuid,
    until: i64,
) -> Result<Vec<Entry>, RebuildError> {
    let id = id.to_string();
    let to = format!("{id}\u{1}");
    let mut history = vec![];
    let mut after = (id, 0);
    loop {
        let mut entries =
            log::read_aggregates(reader, keyring, aggregate_type, &after, &to, until, BATCH).await?;
        let Some(last) = entries.last() else { return Ok(history) };
        after.1 = last.sequence();
        history.append(&mut entries);
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
    reassignments: Vec<ReassignmentRow>,
    stale_artifacts: Vec<StaleArtifactRow>,
}

impl Batch {
    fn take(&mut self) -> Self {
        std::mem::take(self)
    }

    fn add(&mut self, rows: Rows) {
        match rows {
            Rows::Meeting(rows) => {
                let MeetingRows {
                    file,
                    meeting,
                    speakers,
                    artifacts,
                    stale_artifacts,
                    cache,
                    reassignments,
                    forgets_reassignments: _,
                } = *rows;
                self.files.extend(file);
                self.meetings.extend(meeting);
                self.speakers.extend(speakers.into_values());
                self.artifacts.extend(artifacts.into_values());
                self.stale_artifacts.extend(stale_artifacts.into_values());
                self.cache.extend(cache.into_values());
                self.reassignments.extend(reassignments.into_values());
            }
            Rows::Profile(rows) => self.profiles.extend(rows.profile),
        }
    }

    /// Writes all of it, or nothing.
    async fn write(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin().await?;
        self.copy(&mut transaction).await?;
        transaction.commit().await
    }

    /// Finds out whether it can be written.
    async fn try_write(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let mut transaction = connection.begin().await?;
        self.copy(&mut transaction).await?;
        transaction.rollback().await
    }

    async fn copy(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        copy(connection, &self.files).await?;
        copy(connection, &self.meetings).await?;
        copy(connection, &self.speakers).await?;
        copy(connection, &self.artifacts).await?;
        copy(connection, &self.profiles).await?;
        copy(connection, &self.cache).await?;
        copy(connection, &self.reassignments).await?;
        copy(connection, &self.stale_artifacts).await
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
