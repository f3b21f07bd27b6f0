//! The live projector: from the log through the fold to the tables, batch by batch.
//!
//! One projector is active at a time, by an advisory lock on its connection; the others stand by and take
//! over when that connection is gone. A projector that has lost its lock without knowing (a zombie) is
//! defeated by the checkpoint: it is locked first, and moved by compare-and-set in the transaction that
//! writes the rows.
//!
//! Two tasks work side by side: one reads and decodes ahead (the log never changes behind it), the other
//! folds and writes.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::time::Duration;

use domain::Event;
use event_store::EventStore;
use event_store::log::{self, BatchLimits, LogError, Recorded};
use event_store::retry::{backoff, is_transient};
use lru::LruCache;
use sqlx::{Connection, PgConnection};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};
use uuid::Uuid;

use crate::fold::{MeetingRows, ProfileRows, Rows, fold};
use crate::tables::checkpoint::{self, Checkpoint};
use crate::tables::{artifacts, cache, files, meetings, speakers, user_profiles};

/// What is read and written at once.
const BATCH: BatchLimits = BatchLimits { events: 4096, bytes: 8 * 1024 * 1024 };
/// How many aggregates' rows are kept from one batch to the next.
const CACHED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// An aggregate with more rows than this is loaded anew each time, so that the cache stays small.
const CACHED_ROWS: usize = 64;
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
    /// It cannot apply an event, and waits for somebody to look.
    Stopped {
        /// The position of the event.
        position: i64,
        /// Why, without any of its content.
        reason: String,
    },
}

/// Why projecting broke off.
#[derive(Debug, thiserror::Error)]
enum ProjectError {
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
    #[error("writing a batch took too long")]
    TimedOut,
    #[error("the reading task ended")]
    ReaderGone,
}

/// Keeps the tables of the live generation up to date until `shutdown`, telling `projection` how it stands.
pub async fn run(store: EventStore, projection: watch::Sender<Projection>, shutdown: CancellationToken) {
    let projecting = async {
        let mut failures = 0;
        let mut logged_stop = None;
        loop {
            let error = match lead(&store, &projection, &mut failures).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            failures += 1;
            let pause = match stopping_reason(&error) {
                Some((position, reason)) => {
                    if logged_stop != Some(position) {
                        error!(position, reason, "the projector cannot apply an event and has stopped");
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

/// Tells an event that will fail again from a database that is away.
fn stopping_reason(error: &ProjectError) -> Option<(i64, String)> {
    match error {
        ProjectError::Log(LogError::Hole { missing, .. }) => Some((*missing, error.to_string())),
        ProjectError::Log(LogError::Decode { position, source }) => Some((*position, source.to_string())),
        ProjectError::Database { position, source, phase } if !is_transient(source) => {
            // The database's own words may quote the row: its code and the constraint's name do not.
            let database = source.as_database_error();
            let code = database.and_then(|e| e.code()).unwrap_or_default().into_owned();
            let constraint = database.and_then(|e| e.constraint()).unwrap_or_default();
            Some((*position, format!("{phase}: SQLSTATE {code} {constraint}")))
        }
        ProjectError::Log(LogError::Database { .. })
        | ProjectError::Database { .. }
        | ProjectError::Overtaken { .. }
        | ProjectError::TimedOut
        | ProjectError::ReaderGone => None,
    }
}

/// Waits for the lock, then projects until something fails. The lock goes with the connection.
async fn lead(
    store: &EventStore,
    projection: &watch::Sender<Projection>,
    failures: &mut u32,
) -> Result<std::convert::Infallible, ProjectError> {
    let at_start = |phase| move |source| ProjectError::Database { phase, position: 0, source };
    let options = store.pool().connect_options();
    let connecting = timeout(READ, PgConnection::connect_with(&options)).await;
    let mut connection =
        connecting.unwrap_or_else(|_| Err(timed_out())).map_err(at_start("connecting the projector"))?;
    loop {
        let leads: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock(7165932018841088003)")
            .fetch_one(&mut connection)
            .await
            .map_err(at_start("asking for the projector's lock"))?;
        if leads {
            break;
        }
        projection.send_replace(Projection::Standby);
        sleep(STANDBY).await;
    }
    let start = checkpoint::read(&mut connection).await.map_err(at_start("reading the checkpoint"))?;
    info!(position = start.position, generation = start.generation, "projecting");
    // One that stopped is well again when it has passed the event, not when it tries once more.
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

    let (sender, mut batches) = mpsc::channel(1);
    let _reader = AbortOnDropHandle::new(tokio::spawn(read_ahead(store.clone(), start.position, sender)));
    let mut writer = Writer { connection, checkpoint: start, cache: LruCache::new(CACHED) };
    while let Some(batch) = batches.recv().await {
        let batch = batch?;
        timeout(WRITE, writer.write(&batch, projection)).await.map_err(|_| ProjectError::TimedOut)??;
        *failures = 0;
    }
    Err(ProjectError::ReaderGone)
}

fn timed_out() -> sqlx::Error {
    sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// Reads and decodes batches from after `position` on, as they come, at most one ahead of the writer.
async fn read_ahead(
    store: EventStore,
    mut position: i64,
    batches: mpsc::Sender<Result<Vec<Recorded>, LogError>>,
) {
    let mut head = store.head().subscribe();
    loop {
        // Marked as seen before reading: an append that comes while we read wakes us again.
        head.mark_unchanged();
        let (batch, error) = match timeout(READ, log::read(store.pool(), position, BATCH)).await {
            Ok(Ok(stored)) => decode(&stored),
            Ok(Err(error)) => (vec![], Some(error)),
            Err(_) => (vec![], Some(LogError::Database { after: position, source: timed_out() })),
        };
        let caught_up = batch.is_empty();
        if let Some(last) = batch.last() {
            position = last.position;
            if batches.send(Ok(batch)).await.is_err() {
                return;
            }
        }
        if let Some(error) = error {
            // What came before the event at fault is applied first.
            let _ = batches.send(Err(error)).await;
            return;
        }
        if caught_up && head.changed().await.is_err() {
            return;
        }
    }
}

/// Decodes events up to the first that cannot be.
fn decode(stored: &[log::StoredEvent]) -> (Vec<Recorded>, Option<LogError>) {
    let mut decoded = Vec::with_capacity(stored.len());
    for event in stored {
        match event.decode() {
            Ok(recorded) => decoded.push(recorded),
            Err(error) => return (decoded, Some(error)),
        }
    }
    (decoded, None)
}

/// Which aggregate.
type Key = (&'static str, Uuid);

struct Writer {
    connection: PgConnection,
    checkpoint: Checkpoint,
    /// Rows as the tables show them at the checkpoint.
    cache: LruCache<Key, Rows>,
}

impl Writer {
    /// Writes a batch; where the database refuses it for its data, ever smaller parts of it, so that all
    /// events before the one at fault take effect and the fault has a position.
    async fn write(
        &mut self,
        batch: &[Recorded],
        projection: &watch::Sender<Projection>,
    ) -> Result<(), ProjectError> {
        let mut parts = vec![batch];
        while let Some(part) = parts.pop() {
            match self.write_part(part).await {
                Ok(position) => {
                    metrics::counter!("minutebook_projected_events_total").increment(part.len() as u64);
                    projection.send_replace(Projection::Active { position });
                }
                Err(ProjectError::Database { source, .. }) if part.len() > 1 && !is_transient(&source) => {
                    self.cache.clear();
                    let (first, second) = part.split_at(part.len() / 2);
                    parts.push(second);
                    parts.push(first);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn write_part(&mut self, batch: &[Recorded]) -> Result<i64, ProjectError> {
        let (Some(first), Some(last)) = (batch.first(), batch.last()) else {
            return Ok(self.checkpoint.position);
        };
        let failed = |phase| move |source| ProjectError::Database { phase, position: first.position, source };
        let mut transaction = self.connection.begin().await.map_err(failed("beginning a batch"))?;
        let locked = checkpoint::lock(&mut transaction).await.map_err(failed("locking the checkpoint"))?;
        if locked != self.checkpoint || locked.position + 1 != first.position {
            let (expected, found) = (self.checkpoint.position, locked.position);
            return Err(ProjectError::Overtaken { expected, found });
        }

        let before =
            rows_before(&mut transaction, &mut self.cache, batch).await.map_err(failed("loading rows"))?;
        let mut after = before.clone();
        for recorded in batch {
            let rows = after.entry(key(&recorded.event)).or_insert_with(|| Rows::empty_for(&recorded.event));
            fold(rows, recorded);
        }
        Changes::between(&before, &after).write(&mut transaction).await.map_err(failed("writing rows"))?;

        let moved = checkpoint::advance(&mut transaction, locked, last.position)
            .await
            .map_err(failed("moving the checkpoint"))?;
        if !moved {
            let (expected, found) = (locked.position, last.position);
            return Err(ProjectError::Overtaken { expected, found });
        }
        transaction.commit().await.map_err(failed("committing a batch"))?;

        self.checkpoint.position = last.position;
        for (key, mut rows) in after {
            if let Rows::Meeting(rows) = &mut rows {
                rows.cache.clear();
            }
            if size(&rows) <= CACHED_ROWS {
                self.cache.put(key, rows);
            }
        }
        Ok(last.position)
    }
}

fn key(event: &Event) -> Key {
    match event {
        Event::Meeting(id, _) => ("meeting", id.as_uuid()),
        Event::Profile(id, _) => ("profile", id.as_uuid()),
    }
}

fn size(rows: &Rows) -> usize {
    match rows {
        Rows::Meeting(rows) => rows.speakers.len() + rows.artifacts.len(),
        Rows::Profile(rows) => rows.profile.as_ref().map_or(0, |profile| profile.embeddings.len()),
    }
}

/// Returns the rows that the batch's aggregates have before it: from the cache, else from the tables. An
/// aggregate whose first event is in the batch has none.
async fn rows_before(
    connection: &mut PgConnection,
    cache: &mut LruCache<Key, Rows>,
    batch: &[Recorded],
) -> Result<HashMap<Key, Rows>, sqlx::Error> {
    let mut rows = HashMap::new();
    let mut meetings = vec![];
    let mut profiles = vec![];
    for recorded in batch {
        let key = key(&recorded.event);
        if rows.contains_key(&key) {
            continue;
        }
        let known = cache.pop(&key);
        if known.is_none() && recorded.sequence > 1 {
            match &recorded.event {
                Event::Meeting(id, _) => meetings.push(id.as_uuid()),
                Event::Profile(id, _) => profiles.push(id.as_uuid()),
            }
        }
        rows.insert(key, known.unwrap_or_else(|| Rows::empty_for(&recorded.event)));
    }
    load_meetings(connection, &meetings, &mut rows).await?;
    if !profiles.is_empty() {
        for profile in user_profiles::load(connection, &profiles).await? {
            rows.insert(("profile", profile.id), Rows::Profile(ProfileRows { profile: Some(profile) }));
        }
    }
    Ok(rows)
}

async fn load_meetings(
    connection: &mut PgConnection,
    ids: &[Uuid],
    rows: &mut HashMap<Key, Rows>,
) -> Result<(), sqlx::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    let mut loaded: HashMap<Uuid, MeetingRows> = ids.iter().map(|id| (*id, MeetingRows::default())).collect();
    let mut files = files::of_meetings(connection, ids)
        .await?
        .into_iter()
        .map(|file| (file.id, file))
        .collect::<HashMap<_, _>>();
    for meeting in meetings::load(connection, ids).await? {
        if let Some(rows) = loaded.get_mut(&meeting.id) {
            rows.file = meeting.file_id.and_then(|id| files.remove(&id));
            rows.meeting = Some(meeting);
        }
    }
    for speaker in speakers::of_meetings(connection, ids).await? {
        if let Some(rows) = speaker.meeting_id.and_then(|id| loaded.get_mut(&id)) {
            rows.speakers.insert(speaker.id, speaker);
        }
    }
    for artifact in artifacts::of_meetings(connection, ids).await? {
        if let Some(rows) = artifact.meeting_id.and_then(|id| loaded.get_mut(&id)) {
            rows.artifacts.insert(artifact.id, artifact);
        }
    }
    rows.extend(loaded.into_iter().map(|(id, rows)| (("meeting", id), Rows::Meeting(Box::new(rows)))));
    Ok(())
}

/// What a batch changes, table by table.
#[derive(Default)]
struct Changes<'a> {
    files: Set<'a, files::FileRow>,
    meetings: Set<'a, meetings::MeetingRow>,
    speakers: Set<'a, speakers::SpeakerRow>,
    artifacts: Set<'a, artifacts::ArtifactRow>,
    profiles: Set<'a, user_profiles::UserProfileRow>,
    /// By key, the latest write only.
    cache: BTreeMap<&'a str, &'a cache::CacheWrite>,
}

struct Set<'a, Row> {
    upserts: Vec<&'a Row>,
    deletes: Vec<Uuid>,
}

impl<Row> Default for Set<'_, Row> {
    fn default() -> Self {
        Self { upserts: vec![], deletes: vec![] }
    }
}

impl<'a, Row: PartialEq> Set<'a, Row> {
    fn compare(&mut self, id: impl Fn(&Row) -> Uuid, before: Option<&Row>, after: Option<&'a Row>) {
        match (before, after) {
            (_, Some(after)) if before != Some(after) => self.upserts.push(after),
            (Some(before), None) => self.deletes.push(id(before)),
            (Some(_) | None, _) => {}
        }
    }

    fn compare_all(&mut self, before: &BTreeMap<Uuid, Row>, after: &'a BTreeMap<Uuid, Row>) {
        self.upserts
            .extend(after.iter().filter(|(id, row)| before.get(*id) != Some(row)).map(|(_, row)| row));
        self.deletes.extend(before.keys().filter(|id| !after.contains_key(*id)));
    }
}

impl<'a> Changes<'a> {
    fn between(before: &HashMap<Key, Rows>, after: &'a HashMap<Key, Rows>) -> Self {
        let mut changes = Self::default();
        let no_rows = MeetingRows::default();
        for (key, after) in after {
            match after {
                Rows::Meeting(after) => {
                    let before = match before.get(key) {
                        Some(Rows::Meeting(before)) => before,
                        Some(Rows::Profile(_)) | None => &no_rows,
                    };
                    changes.add_meeting(before, after);
                }
                Rows::Profile(after) => {
                    let before = match before.get(key) {
                        Some(Rows::Profile(before)) => before.profile.as_ref(),
                        Some(Rows::Meeting(_)) | None => None,
                    };
                    changes.profiles.compare(|row| row.id, before, after.profile.as_ref());
                }
            }
        }
        changes.sort();
        changes
    }

    /// In the order of their keys rows go into neighbouring places of the indexes.
    fn sort(&mut self) {
        self.files.upserts.sort_unstable_by_key(|row| row.id);
        self.meetings.upserts.sort_unstable_by_key(|row| row.id);
        self.speakers.upserts.sort_unstable_by_key(|row| row.id);
        self.artifacts.upserts.sort_unstable_by_key(|row| row.id);
        self.profiles.upserts.sort_unstable_by_key(|row| row.id);
    }

    fn add_meeting(&mut self, before: &MeetingRows, after: &'a MeetingRows) {
        self.files.compare(|row| row.id, before.file.as_ref(), after.file.as_ref());
        self.meetings.compare(|row| row.id, before.meeting.as_ref(), after.meeting.as_ref());
        self.speakers.compare_all(&before.speakers, &after.speakers);
        self.artifacts.compare_all(&before.artifacts, &after.artifacts);
        for write in after.cache.values() {
            let latest = self.cache.entry(&write.key).or_insert(write);
            if latest.position < write.position {
                *latest = write;
            }
        }
    }

    /// Deletes from the leaves, inserts from the root: foreign keys hold after every statement.
    async fn write(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        speakers::delete(connection, &self.speakers.deletes).await?;
        artifacts::delete(connection, &self.artifacts.deletes).await?;
        meetings::delete(connection, &self.meetings.deletes).await?;
        files::delete(connection, &self.files.deletes).await?;
        user_profiles::delete(connection, &self.profiles.deletes).await?;
        files::upsert(connection, &self.files.upserts).await?;
        meetings::upsert(connection, &self.meetings.upserts).await?;
        speakers::upsert(connection, &self.speakers.upserts).await?;
        artifacts::upsert(connection, &self.artifacts.upserts).await?;
        user_profiles::upsert(connection, &self.profiles.upserts).await?;
        cache::write(connection, &self.cache.values().copied().collect::<Vec<_>>()).await
    }
}
