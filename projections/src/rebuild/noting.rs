//! Progress that is noted in `ops.rebuilds`, whoever else is told of it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use event_store::EventStore;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::compare::Report;
use super::{Progress, running};

/// How long noting may take.
const NOTE: Duration = Duration::from_secs(5);
/// The pause between two notes.
const PAUSE: Duration = Duration::from_millis(200);

/// How far a rebuild is.
#[derive(Debug, Clone, Copy)]
pub struct At {
    /// The phase.
    pub phase: &'static str,
    /// Events done in it.
    pub done: i64,
    /// Events of it; 0 where it has no measure.
    pub total: i64,
}

/// Passes on what it is told, and keeps it for the note.
pub(super) struct Noted<P> {
    inner: Arc<P>,
    at: watch::Sender<At>,
}

impl<P: Progress> Noted<P> {
    pub(super) fn new(inner: Arc<P>) -> Arc<Self> {
        let (at, _) = watch::channel(At { phase: "beginning", done: 0, total: 0 });
        Arc::new(Self { inner, at })
    }

    /// Returns how far it is.
    pub(super) fn at(&self) -> At {
        *self.at.borrow()
    }

    /// Notes in the rebuild's row how far it is, for as long as it is waited for.
    pub(super) async fn note_all(&self, store: &EventStore, id: i64) -> Infallible {
        let mut at = self.at.subscribe();
        loop {
            // The sender is ours: it does not go away.
            let _ = at.changed().await;
            let now = *at.borrow_and_update();
            // Best effort: the last note comes with the outcome.
            let _ = timeout(NOTE, running::note_progress(store, id, now)).await;
            sleep(PAUSE).await;
        }
    }
}

impl<P: Progress> Progress for Noted<P> {
    fn phase(&self, name: &'static str, total: i64) {
        self.at.send_replace(At { phase: name, done: 0, total });
        self.inner.phase(name, total);
    }

    fn done(&self, events: i64) {
        // Two workers may tell it out of turn.
        self.at.send_modify(|at| at.done = at.done.max(events));
        self.inner.done(events);
    }

    fn damaged(&self, problem: &str) {
        self.inner.damaged(problem);
    }

    fn compared(&self, report: &Report) {
        self.inner.compared(report);
    }

    fn waiting(&self, who: &str) {
        self.inner.waiting(who);
    }
}
