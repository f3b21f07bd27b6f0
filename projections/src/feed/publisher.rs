//! The publisher: follows the log, never past what the tables show, and puts each event on the stream once,
//! in order.
//!
//! One publisher is active at a time, by an advisory lock on its connection; the others stand by. While it
//! publishes a batch it holds the stream's row in `ops.publications`: a refill takes turns with it. A
//! publisher that has lost its lock without knowing is fenced by the broker: it expects an end of the stream
//! that is no longer there. After a crash the stream's own tail says how far it came.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use event_store::log::feed::Filter;
use event_store::log::{BatchLimits, LogError};
use event_store::retry::backoff;
use event_store::{EventStore, locks};
use sqlx::{Connection, Executor, PgConnection};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::cloud_event::CloudEvent;
use super::public_event::{EVENT_TYPES, Progress};
use super::publication::{self, Publication};
use super::sending::{Published, Sending, Stop};
use super::source::{Source, newest_of_each_type};
use super::stream::{self, EventStream, StreamConfig, StreamError, Tail};
use super::withheld;
use crate::freshness;
use crate::projector::Projection;

/// What is read at once.
pub const BATCH: BatchLimits = BatchLimits { events: 2048, bytes: 8 * 1024 * 1024 };
/// How many events are published in one turn, as long as they are at hand. Between two turns nothing is under way.
const TURN: usize = 16_384;
/// How often a publisher that stands by asks for the lock.
const STANDBY: Duration = Duration::from_millis(500);
/// How often one that refuses to go on looks again.
const REFUSED: Duration = Duration::from_secs(10);
/// How often it says where it stands.
const PROGRESS: Duration = Duration::from_secs(2);
/// How long the database may take for a statement.
const STATEMENT: Duration = Duration::from_secs(60);
/// How long the tables are waited for before looking again whether all is well.
const SHOWN: Duration = Duration::from_secs(1);

/// What the publisher of this process is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Publishing {
    /// There is none: no broker is configured, or another process publishes.
    Off,
    /// Another one is active, or this one has not begun.
    Standby,
    /// The stream has everything up to this position.
    Active {
        /// The last position that the stream has.
        position: i64,
    },
    /// It waits for the broker or for the database, and tries again by itself.
    Waiting {
        /// Why.
        reason: String,
    },
    /// It would do harm to go on: somebody has to look.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
}

impl Publishing {
    /// Returns the state's name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Standby => "standby",
            Self::Active { .. } => "active",
            Self::Waiting { .. } => "waiting",
            Self::Refused { .. } => "refused",
        }
    }

    /// Returns what is the matter.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Self::Waiting { reason } | Self::Refused { reason } => Some(reason),
            Self::Off | Self::Standby | Self::Active { .. } => None,
        }
    }
}

/// Why publishing broke off.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The broker cannot be used.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The log cannot be read.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The database cannot be used.
    #[error("the database cannot be used: {phase}")]
    Database {
        /// What was tried.
        phase: &'static str,
        /// What came of it.
        #[source]
        source: sqlx::Error,
    },
    /// The stream has events of another epoch of the log.
    #[error(
        "the stream ends with position {position} of epoch {found}, but the log is of epoch {expected}: it was \
         restored, and positions have been given out again. Remove the stream (`nats stream rm {stream}`): it is \
         then filled anew from the first position"
    )]
    AnotherEpoch {
        /// The stream.
        stream: String,
        /// The epoch in the stream.
        found: Uuid,
        /// The log's.
        expected: Uuid,
        /// The position at the stream's end.
        position: i64,
    },
    /// The stream has events that the log does not have.
    #[error(
        "the stream ends with position {position}, but the log ends at {head}: events were lost from the log, or \
         this is another database. If the log is right, remove the stream (`nats stream rm {stream}`): it is then \
         filled anew from the first position"
    )]
    AheadOfLog {
        /// The stream.
        stream: String,
        /// The position at the stream's end.
        position: i64,
        /// The log's end.
        head: i64,
    },
    /// A task ended.
    #[error("the reading task ended")]
    ReaderGone,
}

/// Publishes until `shutdown`, telling `publishing` how it stands. `projection` is what the projector of
/// this process does: it knows first what the tables show.
pub async fn run(
    store: EventStore,
    config: StreamConfig,
    projection: watch::Receiver<Projection>,
    publishing: watch::Sender<Publishing>,
    shutdown: CancellationToken,
) {
    publishing.send_replace(Publishing::Standby);
    let working = async {
        let mut failures = 0;
        let mut logged = None;
        loop {
            let error = match lead(&store, &config, &projection, &publishing, &mut failures).await {
                Ok(never) => match never {},
                Err(error) => error,
            };
            failures += 1;
            metrics::counter!("minutebook_publish_failures_total").increment(1);
            let (state, pause) = match &error {
                PublishError::AnotherEpoch { .. }
                | PublishError::AheadOfLog { .. }
                | PublishError::Stream(StreamError::Subjects { .. } | StreamError::Unfit { .. }) => {
                    (Publishing::Refused { reason: error.to_string() }, REFUSED)
                }
                PublishError::Log(LogError::Hole { .. } | LogError::Decode { .. }) => {
                    (Publishing::Refused { reason: with_cause(&error) }, REFUSED)
                }
                PublishError::Stream(StreamError::Broker { .. })
                | PublishError::Log(LogError::Database { .. })
                | PublishError::Database { .. }
                | PublishError::ReaderGone => {
                    let pause = backoff(failures, Duration::from_millis(100), Duration::from_secs(5));
                    (Publishing::Waiting { reason: error.to_string() }, pause)
                }
            };
            let reason = state.reason().map(str::to_owned);
            if logged != reason {
                match &state {
                    Publishing::Refused { reason } => error!(reason, "the publisher refuses to go on"),
                    Publishing::Off
                    | Publishing::Standby
                    | Publishing::Active { .. }
                    | Publishing::Waiting { .. } => {
                        warn!(error = &error as &dyn std::error::Error, "publishing was interrupted");
                    }
                }
                logged = reason.clone();
            }
            let name = state.name();
            publishing.send_replace(state);
            // Best effort: it is for `status`, and the database may be what is away.
            let saying =
                publication::say(store.pool(), &config.name, store.identity().epoch, name, reason.as_deref());
            let _ = timeout(Duration::from_secs(5), saying).await;
            sleep(pause).await;
        }
    };
    shutdown.run_until_cancelled(working).await;
    let before = publishing.send_replace(Publishing::Standby);
    if before != Publishing::Standby {
        let epoch = store.identity().epoch;
        let saying = publication::say(store.pool(), &config.name, epoch, "stopped", None);
        let _ = timeout(Duration::from_secs(5), saying).await;
    }
}

/// What serde and the log say of an event at fault has no content of it.
fn with_cause(error: &PublishError) -> String {
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}"));
    format!("{error}{}", cause.unwrap_or_default())
}

fn database(phase: &'static str) -> impl Fn(sqlx::Error) -> PublishError {
    move |source| PublishError::Database { phase, source }
}

/// Waits for the lock, then publishes until something fails. The lock goes with the connection.
async fn lead(
    store: &EventStore,
    config: &StreamConfig,
    projection: &watch::Receiver<Projection>,
    publishing: &watch::Sender<Publishing>,
    failures: &mut u32,
) -> Result<std::convert::Infallible, PublishError> {
    let mut connection = connect(store).await?;
    loop {
        let leads: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
            .bind(locks::PUBLISHER)
            .fetch_one(&mut connection)
            .await
            .map_err(database("asking for the publisher's lock"))?;
        if leads {
            break;
        }
        publishing.send_replace(Publishing::Standby);
        sleep(STANDBY).await;
    }

    let client = stream::connect(config, "minutebook publisher").await?;
    let stream = EventStream::open(client, config).await?;
    let at = synchronize(&mut connection, &stream, store, config).await?;
    info!(position = at.position, stream = config.name, "publishing");
    let epoch = store.identity().epoch;
    publication::say(&mut connection, &config.name, epoch, "active", None)
        .await
        .map_err(database("saying that it publishes"))?;
    publishing.send_replace(Publishing::Active { position: at.position });

    let newest = newest_of_each_type(store.pool(), at.position)
        .await
        .map_err(database("looking up the newest of each type"))?;
    let (sender, batches) = mpsc::channel(1);
    let reading = read_ahead(store.clone(), projection.clone(), at.position, sender);
    let _reader = AbortOnDropHandle::new(tokio::spawn(reading));
    let store = store.clone();
    Leader { store, connection, stream, config, epoch, at, newest, publishing, failures }
        .publish(batches)
        .await
}

/// Connects for publishing, whoever does it.
pub(super) async fn connect(store: &EventStore) -> Result<PgConnection, PublishError> {
    let options = store.pool().connect_options();
    let connecting = timeout(STATEMENT, PgConnection::connect_with(&options)).await;
    let mut connection = connecting
        .unwrap_or_else(|_| Err(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
        .map_err(database("connecting for publishing"))?;
    // What the stream has is known from the stream: its note here need not wait for the disk. A batch may
    // take a slow broker some time.
    for setting in ["SET synchronous_commit = off", "SET idle_in_transaction_session_timeout = '15min'"] {
        sqlx::query(setting).execute(&mut connection).await.map_err(database("preparing the connection"))?;
    }
    Ok(connection)
}

/// What is read at once.
struct Batch {
    events: Vec<CloudEvent>,
    /// What is passed over.
    withheld: Vec<i64>,
    /// Up to which position this is everything.
    until: i64,
    /// The newest position of each type up to there, by its stored name; also where it is withheld.
    newest: HashMap<&'static str, i64>,
}

/// Reads batches after `position`, as far as the tables show them, at most one ahead.
async fn read_ahead(
    store: EventStore,
    projection: watch::Receiver<Projection>,
    position: i64,
    batches: mpsc::Sender<Result<Batch, PublishError>>,
) {
    let reading = async {
        let mut source = Source::after(store.clone(), position, Filter::default())
            .await
            .map_err(database("preparing to read"))?;
        loop {
            let shown = wait_until_shown(&store, &projection, source.position()).await?;
            while source.position() < shown {
                let reading = timeout(STATEMENT, source.next(shown, BATCH));
                let timed_out = |_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into());
                let read = reading.await.map_err(timed_out).map_err(database("reading the log"))??;
                let newest = source.newest().clone();
                let batch = Batch { events: read.events, withheld: read.withheld, until: read.until, newest };
                if batches.send(Ok(batch)).await.is_err() {
                    return Ok(());
                }
            }
        }
    };
    let result: Result<(), PublishError> = reading.await;
    if let Err(error) = result {
        let _ = batches.send(Err(error)).await;
    }
}

/// Waits until the tables show more than `position`; returns how much they show.
pub async fn wait_until_shown(
    store: &EventStore,
    projection: &watch::Receiver<Projection>,
    position: i64,
) -> Result<i64, PublishError> {
    let mut head = store.head().subscribe();
    loop {
        if *head.borrow_and_update() > position {
            let deadline = Instant::now() + SHOWN;
            let waiting = freshness::wait_for(store.pool(), projection, position + 1, deadline);
            if waiting.await.map_err(database("asking what the tables show"))? {
                let shown = freshness::shown(store.pool(), projection).await;
                return shown.map_err(database("asking what the tables show"));
            }
            // A stopped projector answers at once.
            sleep(Duration::from_millis(50)).await;
        } else if head.changed().await.is_err() {
            return Err(PublishError::ReaderGone);
        }
    }
}

/// Finds out how far the stream is, from its own tail and from the note of it, and takes note.
pub async fn synchronize(
    connection: &mut PgConnection,
    stream: &EventStream,
    store: &EventStore,
    config: &StreamConfig,
) -> Result<Publication, PublishError> {
    let mut turn = connection.begin().await.map_err(database("taking the turn"))?;
    let epoch = store.identity().epoch;
    let noted =
        publication::hold(&mut turn, &config.name, epoch).await.map_err(database("taking the turn"))?;
    let tail = stream.tail().await?;
    // The tail first, the head after it: what was published was in the log before.
    let head = event_store::log::head(&mut *turn).await.map_err(database("asking for the log's end"))?;
    // Whoever was told to remove the stream did so: it is filled anew.
    let anew = tail.sequence == 0
        && publication::is_refused(&mut turn, &config.name).await.map_err(database("reading the note"))?;
    let noted = if anew { Publication { epoch, position: 0, sequence: 0 } } else { noted };
    if anew {
        withheld::forget(&mut turn, &config.name).await.map_err(database("noting that it begins anew"))?;
    }
    let at = position_after(noted, tail, epoch, head, &config.name)?;
    let lost = noted.epoch == epoch && tail.sequence < u64::try_from(noted.sequence).unwrap_or(0);
    if lost {
        warn!(
            position = noted.position,
            "the broker has lost messages of the stream; `minutebook publish --from 1` puts them back"
        );
        publication::lost(&mut *turn, &config.name, noted.position)
            .await
            .map_err(database("noting the loss"))?;
    }
    publication::note(&mut turn, &config.name, at).await.map_err(database("noting the position"))?;
    turn.commit().await.map_err(database("noting the position"))?;
    Ok(at)
}

/// Decides from where to go on. The note is behind the tail after a crash; the tail is behind the note
/// after a refill, or when the broker has lost data.
fn position_after(
    noted: Publication,
    tail: Tail,
    epoch: Uuid,
    head: i64,
    stream: &str,
) -> Result<Publication, PublishError> {
    let stream = || stream.to_owned();
    let in_stream = match tail.event {
        Some((found, position)) if found != epoch => {
            return Err(PublishError::AnotherEpoch { stream: stream(), found, expected: epoch, position });
        }
        Some((_, position)) if position > head => {
            return Err(PublishError::AheadOfLog { stream: stream(), position, head });
        }
        Some((_, position)) => position,
        None => 0,
    };
    let noted = if noted.epoch == epoch { noted.position.min(head) } else { 0 };
    let sequence = i64::try_from(tail.sequence).unwrap_or(i64::MAX);
    Ok(Publication { epoch, position: noted.max(in_stream), sequence })
}

struct Leader<'a> {
    store: EventStore,
    connection: PgConnection,
    stream: EventStream,
    config: &'a StreamConfig,
    epoch: Uuid,
    at: Publication,
    /// The newest position of each type, by its stored name.
    newest: HashMap<&'static str, i64>,
    publishing: &'a watch::Sender<Publishing>,
    failures: &'a mut u32,
}

impl Leader<'_> {
    async fn publish(
        mut self,
        mut batches: mpsc::Receiver<Result<Batch, PublishError>>,
    ) -> Result<std::convert::Infallible, PublishError> {
        let mut progress = tokio::time::interval(PROGRESS);
        progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut at_hand = None;
        loop {
            let batch = tokio::select! {
                batch = next(&mut at_hand, &mut batches) => batch?,
                _ = progress.tick() => {
                    self.look_around().await?;
                    self.publish_released().await?;
                    self.tell_progress().await?;
                    continue;
                }
            };
            at_hand = self.publish_turn(batch, &mut batches).await?;
            *self.failures = 0;
        }
    }

    /// Publishes a batch and those at hand after it, so that the broker does not wait between them. Returns the
    /// batch that has to wait for the next turn, if there is one.
    async fn publish_turn(
        &mut self,
        mut batch: Batch,
        batches: &mut mpsc::Receiver<Result<Batch, PublishError>>,
    ) -> Result<Option<Result<Batch, PublishError>>, PublishError> {
        // Before anything after it is on the stream: the stream's tail will say that all before it is done.
        withheld::note(&mut self.connection, &self.config.name, &batch.withheld)
            .await
            .map_err(database("noting what is withheld"))?;
        let mut turn = self.connection.begin().await.map_err(database("taking the turn"))?;
        // A refill may have had its turn in between; it may also have come further than this publisher.
        self.at = publication::hold(&mut turn, &self.config.name, self.epoch)
            .await
            .map_err(database("taking the turn"))?;
        let expected = u64::try_from(self.at.sequence).unwrap_or(0);
        let mut sending = Sending::begin(&self.stream, Some(expected));
        let mut positions = vec![];
        let at_hand = 'turn: loop {
            for event in batch.events {
                if event.position > self.at.position {
                    positions.push(event.position);
                    if !sending.send(event.into_message()).await {
                        break 'turn None;
                    }
                }
            }
            batch.events = vec![];
            if positions.len() >= TURN {
                break None;
            }
            match batches.try_recv() {
                Ok(Ok(next)) if next.withheld.is_empty() => batch = next,
                Ok(next) => break Some(next),
                // The next turn finds out that it is closed.
                Err(_) => break None,
            }
        };
        let published = sending.finish().await;

        let done = positions.get(..published.events).unwrap_or_default();
        // What follows the last event was passed over.
        let reached =
            if published.stopped.is_none() { batch.until } else { done.last().copied().unwrap_or(0) };
        if reached > self.at.position {
            self.at.position = reached;
            self.at.sequence = self.at.sequence.max(i64::try_from(published.sequence).unwrap_or(i64::MAX));
            publication::note(&mut turn, &self.config.name, self.at)
                .await
                .map_err(database("noting the position"))?;
        }
        turn.commit().await.map_err(database("noting the position"))?;
        // Whoever was stopped begins anew, and looks it up.
        self.newest = batch.newest;
        metrics::counter!("minutebook_published_events_total").increment(published.events as u64);
        metrics::gauge!("minutebook_publish_position").set(self.at.position as f64);
        self.publishing.send_replace(Publishing::Active { position: self.at.position });
        outcome(published)?;
        Ok(at_hand)
    }

    /// Publishes what was withheld and may go out now: out of order, but each with its own position.
    async fn publish_released(&mut self) -> Result<(), PublishError> {
        let name = &self.config.name;
        loop {
            let failed = database("looking for what was withheld");
            let due = withheld::due(&mut self.connection, name, self.at.position).await.map_err(&failed)?;
            if due.is_empty() {
                return Ok(());
            }
            let (events, until) = withheld::events_at(&self.store, &due).await?;
            let due = due.into_iter().filter(|position| *position <= until).collect::<Vec<_>>();
            // The stream's tail will be older than what was published before: how far that came has to be on
            // the disk first.
            let mut turn = self.connection.begin().await.map_err(&failed)?;
            turn.execute("SET LOCAL synchronous_commit = on").await.map_err(&failed)?;
            self.at = publication::hold(&mut turn, name, self.epoch).await.map_err(&failed)?;
            publication::note(&mut turn, name, self.at).await.map_err(&failed)?;
            turn.commit().await.map_err(&failed)?;

            let mut turn = self.connection.begin().await.map_err(&failed)?;
            self.at = publication::hold(&mut turn, name, self.epoch).await.map_err(&failed)?;
            let count = events.len();
            let messages = events.into_iter().map(CloudEvent::into_message);
            // What the broker remembers of an earlier try is not taken twice.
            let published = self.stream.publish(messages, None).await;
            self.at.sequence = self.at.sequence.max(i64::try_from(published.sequence).unwrap_or(i64::MAX));
            publication::note(&mut turn, name, self.at).await.map_err(&failed)?;
            if published.events == count {
                withheld::settle(&mut turn, name, &due).await.map_err(&failed)?;
            }
            turn.commit().await.map_err(&failed)?;
            metrics::counter!("minutebook_published_events_total").increment(published.events as u64);
            outcome(published)?;
        }
    }

    /// Without events to publish it would not notice that the broker is away or has lost data, nor that one
    /// who had lost the lock has said last how the publisher is.
    async fn look_around(&mut self) -> Result<(), PublishError> {
        let end = self.stream.end().await?;
        if end < u64::try_from(self.at.sequence).unwrap_or(0) {
            return Err(StreamError::broker("looking for the stream's end", "it has lost messages").into());
        }
        publication::insist(&mut self.connection, &self.config.name)
            .await
            .map_err(database("saying that it publishes"))
    }

    async fn tell_progress(&self) -> Result<(), PublishError> {
        let newest = |stored| self.newest.get(stored).copied().unwrap_or(0);
        let newest: BTreeMap<_, _> =
            EVENT_TYPES.iter().map(|known| (known.full.to_owned(), newest(known.stored))).collect();
        let progress = Progress { epoch: self.epoch, position: self.at.position, newest };
        Ok(self.stream.tell_progress(&progress).await?)
    }
}

/// Returns the batch at hand, or waits for the next one.
async fn next(
    at_hand: &mut Option<Result<Batch, PublishError>>,
    batches: &mut mpsc::Receiver<Result<Batch, PublishError>>,
) -> Result<Batch, PublishError> {
    match at_hand.take() {
        Some(batch) => batch,
        None => batches.recv().await.unwrap_or(Err(PublishError::ReaderGone)),
    }
}

fn outcome(published: Published) -> Result<(), PublishError> {
    match published.stopped {
        None => Ok(()),
        Some(Stop::Failed(error)) => Err(error.into()),
        // Whoever leads again reads the stream's tail first.
        Some(Stop::Overtaken) => {
            Err(StreamError::broker("publishing", "the stream's end is not where it was expected").into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Uuid = Uuid::from_u128(1);

    fn after(noted: (Uuid, i64), tail: Option<(Uuid, i64)>) -> Result<i64, PublishError> {
        let (epoch, position) = noted;
        let noted = Publication { epoch, position, sequence: 10 };
        position_after(noted, Tail { sequence: 7, event: tail }, OURS, 100, "S").map(|at| at.position)
    }

    #[test]
    fn the_note_and_the_tail_say_together_how_far_the_stream_is() {
        assert_eq!(after((OURS, 0), None).unwrap(), 0);
        // After a crash, before the note.
        assert_eq!(after((OURS, 5), Some((OURS, 9))).unwrap(), 9);
        // After a refill, or a loss.
        assert_eq!(after((OURS, 9), Some((OURS, 5))).unwrap(), 9);
        assert_eq!(after((OURS, 9), None).unwrap(), 9);
        // The stream was removed after a restore.
        assert_eq!(after((Uuid::nil(), 9), None).unwrap(), 0);
    }

    #[test]
    fn a_stream_of_another_epoch_or_ahead_of_the_log_is_refused() {
        let refused = after((OURS, 9), Some((Uuid::nil(), 9))).unwrap_err();
        assert!(matches!(refused, PublishError::AnotherEpoch { position: 9, .. }), "{refused}");
        let refused = after((OURS, 9), Some((OURS, 101))).unwrap_err();
        assert!(refused.to_string().contains("nats stream rm S"), "{refused}");
    }
}
