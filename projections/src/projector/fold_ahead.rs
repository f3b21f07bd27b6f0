//! Folds batches ahead of the writer: what a batch changes is worked out while the one before it is written.

use std::collections::HashMap;
use std::num::NonZeroUsize;

use event_store::log::{Entry, Recorded};
use lru::LruCache;
use sqlx::PgPool;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use super::{Batch, ProjectError, READ, timed_out};
use crate::changes::{Changes, Key};
use crate::fold::{Fold, Rows};
use crate::parked::{self, Exceptions, Verdict};
use crate::stored_rows::{self, key};
use crate::tables::read_twice;

/// How many aggregates' rows are kept from one batch to the next.
const CACHED: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
/// An aggregate with more rows than this is loaded anew each time, so that the cache stays small.
const CACHED_ROWS: usize = 64;

/// Turns batches of events into what they change, in order, until the one side or the other ends.
pub(super) async fn fold_ahead(
    mut folder: Folder,
    mut batches: mpsc::Receiver<Result<Vec<Entry>, ProjectError>>,
    folded: mpsc::Sender<Result<Batch, ProjectError>>,
) {
    while let Some(batch) = batches.recv().await {
        let batch = match batch {
            Ok(entries) => folder.fold(&entries).await,
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
    fold: Fold,
    exceptions: Exceptions,
    /// Up to which position the writer has committed.
    written: watch::Receiver<i64>,
    /// Rows as the tables will show them when all batches folded so far are written.
    cache: LruCache<Key, Rows>,
}

impl Folder {
    pub(super) fn new(
        pool: PgPool,
        fold: Fold,
        exceptions: Exceptions,
        written: watch::Receiver<i64>,
    ) -> Self {
        Self { pool, fold, exceptions, written, cache: LruCache::new(CACHED) }
    }

    pub(super) async fn fold(&mut self, entries: &[Entry]) -> Result<Batch, ProjectError> {
        let first = entries.first().map_or(0, Entry::position);
        let mut events = Vec::with_capacity(entries.len());
        let mut parked = vec![];
        for entry in entries {
            match self.exceptions.judge(entry) {
                Verdict::Apply(recorded) => events.push(recorded),
                Verdict::Park(event) => parked.push(event),
                Verdict::Skip => {}
            }
        }
        if !parked.is_empty() && self.exceptions.aggregates() > parked::MOST_AGGREGATES {
            return Err(ProjectError::TooManyParked { position: first });
        }
        let before = self.rows_before(&events, first).await?;
        let mut after = before.clone();
        for recorded in events {
            let rows = after.entry(key(&recorded.event)).or_insert_with(|| Rows::empty_for(&recorded.event));
            (self.fold)(rows, recorded);
        }
        let statements = Changes::between(&before, &after).statements();
        for (key, mut rows) in after {
            if let Rows::Meeting(rows) = &mut rows {
                rows.forget_written();
            }
            if size(&rows) <= CACHED_ROWS {
                self.cache.put(key, rows);
            }
        }
        Ok(Batch { first, events: entries.len(), statements, parked })
    }

    /// Returns the rows that the batch's aggregates have before it: from the cache, else from the tables.
    /// An aggregate whose first event is in the batch has none.
    async fn rows_before(
        &mut self,
        events: &[&Recorded],
        first: i64,
    ) -> Result<HashMap<Key, Rows>, ProjectError> {
        let mut rows = HashMap::new();
        let mut unknown = vec![];
        for recorded in events {
            let key = key(&recorded.event);
            if rows.contains_key(&key) {
                continue;
            }
            let known = self.cache.pop(&key);
            if known.is_none() && recorded.sequence > 1 {
                unknown.push(key);
            }
            rows.insert(key, known.unwrap_or_else(|| Rows::empty_for(&recorded.event)));
        }
        if unknown.is_empty() {
            return Ok(rows);
        }
        // The tables have to show all batches before this one. The writer bounds how long that takes.
        if self.written.wait_for(|position| *position + 1 >= first).await.is_err() {
            return Err(ProjectError::TaskGone);
        }
        let pool = &self.pool;
        let loading = async { read_twice!(pool, connection => stored_rows::of(&mut connection, &unknown)) };
        let loaded = timeout(READ, loading).await.unwrap_or_else(|_| Err(timed_out()));
        let loaded = loaded.map_err(|source| ProjectError::Database {
            phase: "loading rows",
            position: first,
            source,
        })?;
        rows.extend(loaded);
        Ok(rows)
    }
}

fn size(rows: &Rows) -> usize {
    match rows {
        Rows::Meeting(rows) => rows.speakers.len() + rows.artifacts.len(),
        Rows::Profile(rows) => rows.profile.as_ref().map_or(0, |profile| profile.embeddings.len()),
    }
}
