//! Folds batches ahead of the writer: what a batch changes is worked out while the one before it is written.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use domain::Event;
use event_store::log::Recorded;
use lru::LruCache;
use sqlx::{PgConnection, PgPool};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use uuid::Uuid;

use super::{Batch, ProjectError, READ, timed_out};
use crate::changes::{Changes, Key};
use crate::fold::{MeetingRows, ProfileRows, Rows, fold};
use crate::tables::{artifacts, files, meetings, speakers, user_profiles};

/// How many aggregates' rows are kept from one batch to the next.
const CACHED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// An aggregate with more rows than this is loaded anew each time, so that the cache stays small.
const CACHED_ROWS: usize = 64;

/// Turns batches of events into what they change, in order, until the one side or the other ends.
/// `written` says up to which position the writer has committed.
pub(super) async fn fold_ahead(
    pool: PgPool,
    mut batches: mpsc::Receiver<Result<Vec<Recorded>, ProjectError>>,
    written: watch::Receiver<i64>,
    folded: mpsc::Sender<Result<Batch, ProjectError>>,
) {
    let mut folder = Folder::new(pool, written);
    while let Some(batch) = batches.recv().await {
        let batch = match batch {
            Ok(events) => folder.fold(&events).await,
            Err(error) => Err(error),
        };
        let failed = batch.is_err();
        if folded.send(batch).await.is_err() || failed {
            return;
        }
    }
}

pub(super) struct Folder {
    pool: PgPool,
    written: watch::Receiver<i64>,
    /// Rows as the tables will show them when all batches folded so far are written.
    cache: LruCache<Key, Rows>,
}

impl Folder {
    pub(super) fn new(pool: PgPool, written: watch::Receiver<i64>) -> Self {
        Self { pool, written, cache: LruCache::new(CACHED) }
    }

    pub(super) async fn fold(&mut self, events: &[Recorded]) -> Result<Batch, ProjectError> {
        let first = events.first().map_or(0, |event| event.position);
        let before = self.rows_before(events, first).await?;
        let mut after = before.clone();
        for recorded in events {
            let rows = after.entry(key(&recorded.event)).or_insert_with(|| Rows::empty_for(&recorded.event));
            fold(rows, recorded);
        }
        let statements = Changes::between(&before, &after).statements();
        for (key, mut rows) in after {
            if let Rows::Meeting(rows) = &mut rows {
                rows.cache.clear();
            }
            if size(&rows) <= CACHED_ROWS {
                self.cache.put(key, rows);
            }
        }
        Ok(Batch { first, events: events.len(), statements })
    }

    /// Returns the rows that the batch's aggregates have before it: from the cache, else from the tables.
    /// An aggregate whose first event is in the batch has none.
    async fn rows_before(
        &mut self,
        events: &[Recorded],
        first: i64,
    ) -> Result<HashMap<Key, Rows>, ProjectError> {
        let mut rows = HashMap::new();
        let mut meetings = vec![];
        let mut profiles = vec![];
        for recorded in events {
            let key = key(&recorded.event);
            if rows.contains_key(&key) {
                continue;
            }
            let known = self.cache.pop(&key);
            if known.is_none() && recorded.sequence > 1 {
                match &recorded.event {
                    Event::Meeting(id, _) => meetings.push(id.as_uuid()),
                    Event::Profile(id, _) => profiles.push(id.as_uuid()),
                }
            }
            rows.insert(key, known.unwrap_or_else(|| Rows::empty_for(&recorded.event)));
        }
        if meetings.is_empty() && profiles.is_empty() {
            return Ok(rows);
        }
        // The tables have to show all batches before this one. The writer bounds how long that takes.
        if self.written.wait_for(|position| *position + 1 >= first).await.is_err() {
            return Err(ProjectError::TaskGone);
        }
        let loading = async {
            let mut connection = self.pool.acquire().await?;
            load_meetings(&mut connection, &meetings, &mut rows).await?;
            load_profiles(&mut connection, &profiles, &mut rows).await
        };
        let loaded = timeout(READ, loading).await.unwrap_or_else(|_| Err(timed_out()));
        loaded.map_err(|source| ProjectError::Database { phase: "loading rows", position: first, source })?;
        Ok(rows)
    }
}

const fn key(event: &Event) -> Key {
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

async fn load_profiles(
    connection: &mut PgConnection,
    ids: &[Uuid],
    rows: &mut HashMap<Key, Rows>,
) -> Result<(), sqlx::Error> {
    if ids.is_empty() {
        return Ok(());
    }
    for profile in user_profiles::load(connection, ids).await? {
        rows.insert(("profile", profile.id), Rows::Profile(ProfileRows { profile: Some(profile) }));
    }
    Ok(())
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
