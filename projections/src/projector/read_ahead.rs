//! Reads and decodes the log ahead of the fold: it never changes behind the reader.

use event_store::EventStore;
use event_store::log::{self, BatchLimits, Entry, LogError};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Care, ProjectError, READ, timed_out};

/// What a rebuild reads at once.
pub const BATCH: BatchLimits = BatchLimits { events: 4096, bytes: 8 * 1024 * 1024 };
/// What is read and written at once by one who is far behind: the larger, the fewer meetings are written when
/// they begin and again when they end.
const FAR_BEHIND: BatchLimits = BatchLimits { events: 16_384, bytes: 32 * 1024 * 1024 };

/// Reads and decodes batches from after `position` on, as they come, with `care` where it is asked for.
pub(super) async fn read_ahead(
    store: EventStore,
    mut position: i64,
    care: Care,
    batches: mpsc::Sender<Result<Vec<Entry>, ProjectError>>,
) {
    let mut head = store.head().subscribe();
    loop {
        // Marked as seen before reading: an append that comes while we read wakes us again.
        head.mark_unchanged();
        let reading =
            log::read_recorded(store.pool(), store.keyring(), position, care.limits_after(position));
        let (batch, error) = timeout(READ, reading)
            .await
            .unwrap_or_else(|_| (vec![], Some(LogError::Database { after: position, source: timed_out() })));
        let caught_up = batch.is_empty();
        if let Some(last) = batch.last() {
            position = last.position();
            if batches.send(Ok(batch)).await.is_err() {
                return;
            }
        }
        if let Some(error) = error {
            // What came before the hole is applied first.
            let _ = batches.send(Err(error.into())).await;
            return;
        }
        if caught_up && head.changed().await.is_err() {
            return;
        }
    }
}

impl Care {
    /// Returns how much to read after `position`.
    pub(super) fn limits_after(&self, position: i64) -> BatchLimits {
        if position < self.until { BatchLimits { events: self.events, ..FAR_BEHIND } } else { FAR_BEHIND }
    }
}
