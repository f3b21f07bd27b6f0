//! The voices of everybody known, in memory, as the log has them: built once from the profiles' events, then
//! following the log. Every process that names speakers by voice has one.
//!
//! **Invariant: the index says what the profiles' events up to its position say**, with the exceptions that all
//! make: an event that an operator has skipped has no effect, and behind one that cannot be read the later ones
//! of its profile wait, but for an erasure: whoever is forgotten leaves at once.
//!
//! Voices of a model that is not configured, or of another dimension than is configured for it, stay out: no
//! cluster could be compared with them. So no event, in whatever order, finds the index unfit for it.

use std::collections::{BTreeSet, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use domain::Event;
use domain::ids::ProfileId;
use domain::profile::ProfileEvent;
use domain::speaker_matching::VoiceIndex;
use domain::voice::VoiceModels;
use event_store::EventStore;
use event_store::log::{self, BatchLimits, Entry, LogError};
use event_store::retry::backoff;
use sqlx::{PgExecutor, PgPool};
use tokio::sync::{OwnedRwLockReadGuard, RwLock, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::parked::skipped_between;

/// How much is read at once: a vector takes ten times as much space in the log as in the index.
const BATCH: BatchLimits = BatchLimits { events: 1000, bytes: 4 * 1024 * 1024 };
/// How long reading one batch may take.
const READ: Duration = Duration::from_secs(60);
/// How often it is looked up whether somebody has skipped an event, and noted how far this process is.
const DECISIONS: Duration = Duration::from_secs(1);
/// How often it is noted that this process lives, where its position stays the same.
const ALIVE: Duration = Duration::from_secs(5);
/// How long a note of a process counts.
const NOTED: Duration = Duration::from_secs(15);
/// The shortest time between two readings: under load, many appends are read at once.
const PAUSE: Duration = Duration::from_millis(5);

/// The voices of everybody known.
#[derive(Clone)]
pub struct Voices {
    models: VoiceModels,
    index: Arc<RwLock<VoiceIndex>>,
    /// Up to which position of the log the index is; nothing before it has caught up once.
    reached: Arc<watch::Sender<Option<i64>>>,
}

impl Voices {
    /// Returns the voices of `models`, none before they follow the log.
    pub fn new(models: VoiceModels) -> Self {
        Self { models, index: Arc::default(), reached: Arc::new(watch::Sender::new(None)) }
    }

    /// Returns the position up to which the voices are those of the log; nothing before they have caught up
    /// once.
    pub fn position(&self) -> Option<i64> {
        *self.reached.borrow()
    }

    /// Waits until the voices have caught up with the log once.
    pub async fn caught_up(&self) {
        // The sender is this very value's.
        let _ = self.reached.subscribe().wait_for(Option::is_some).await;
    }

    /// Waits until the voices are those of the log up to `position` at least, and lends them: as long as they
    /// are lent they stay as they are. Returns nothing if they are not so far by `deadline`.
    pub async fn at(&self, position: i64, deadline: Instant) -> Option<OwnedRwLockReadGuard<VoiceIndex>> {
        let mut reached = self.reached.subscribe();
        let waiting = reached.wait_for(|reached| reached.is_some_and(|reached| reached >= position));
        let lent = async {
            waiting.await.ok()?;
            Some(Arc::clone(&self.index).read_owned().await)
        };
        timeout_at(deadline, lent).await.ok().flatten()
    }

    /// Follows the log until `shutdown`.
    pub async fn follow(self, store: EventStore, shutdown: CancellationToken) {
        let process = Uuid::now_v7();
        let following = async {
            let mut follower = None;
            let mut failures = 0;
            loop {
                let Err(error) = self.follow_until_error(&store, process, &mut follower, &mut failures).await;
                failures += 1;
                if failures == 1 {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "following the voices was interrupted");
                }
                sleep(backoff(failures, Duration::from_millis(50), Duration::from_secs(5))).await;
            }
        };
        shutdown.run_until_cancelled(following).await;
        // Nothing is lost by a note that stays: it grows old.
        let _ = timeout(DECISIONS, forget(store.pool(), process)).await;
    }

    async fn follow_until_error(
        &self,
        store: &EventStore,
        process: Uuid,
        follower: &mut Option<Follower>,
        failures: &mut u32,
    ) -> Result<Infallible, LogError> {
        let mut head = store.head().subscribe();
        let follower = match follower {
            Some(follower) => follower,
            None => {
                let (built, index) = Follower::build(store, &self.models).await?;
                *self.index.write().await = index;
                self.reached.send_replace(Some(built.position));
                info!(position = built.position, "the voices are those of the log");
                let built = follower.insert(built);
                built.note(store.pool(), process).await?;
                built
            }
        };
        loop {
            if follower.looked.elapsed() >= DECISIONS {
                follower.heed_decisions(self, store).await?;
                follower.note(store.pool(), process).await?;
            }
            // Marked as seen before reading: an append that comes while we read wakes us again.
            let until = *head.borrow_and_update();
            let whole = follower.read_on(self, store, until).await?;
            *failures = 0;
            if whole {
                sleep(PAUSE).await;
                // Ends by itself too, to look for decisions.
                if let Ok(Err(_)) = timeout(DECISIONS, head.changed()).await {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// How far the log was read, and what is to be treated apart.
struct Follower {
    position: i64,
    exceptions: Exceptions,
    /// The latest decision about parked events that was heeded, and when it was looked for.
    decision: i64,
    looked: Instant,
    /// Which position was noted last for others to see, and when.
    noted: Option<(i64, Instant)>,
}

/// Events that have no effect, and profiles whose later events wait.
#[derive(Default)]
struct Exceptions {
    skipped: HashSet<i64>,
    waiting: BTreeSet<String>,
}

impl Follower {
    /// Reads the profiles one after the other, by the index that the log has for it: which of two profiles came
    /// first makes no difference.
    async fn build(store: &EventStore, models: &VoiceModels) -> Result<(Self, VoiceIndex), LogError> {
        let failed = |source| LogError::Database { after: 0, source };
        let mut connection = store.pool().acquire().await.map_err(failed)?;
        // The decisions first: one that comes while we read is heeded afterwards.
        let looked = Instant::now();
        let decision = latest_decision(&mut *connection).await.map_err(failed)?;
        let skipped = skipped_between(&mut *connection, 0, i64::MAX).await.map_err(failed)?;
        let mut exceptions = Exceptions { skipped: skipped.into_iter().collect(), ..Exceptions::default() };
        let position = log::head(&mut *connection).await.map_err(failed)?;
        let mut index = VoiceIndex::default();
        let mut after = (String::new(), 0);
        loop {
            // No id is behind this.
            let to = "~";
            let reading = log::read_aggregates(
                &mut connection,
                store.keyring(),
                "profile",
                &after,
                to,
                position,
                BATCH,
            );
            let entries = within(reading).await?;
            let Some(last) = entries.last() else { break };
            after = (last.aggregate().1.into_owned(), last.sequence());
            for entry in &entries {
                exceptions.apply(&mut index, models, entry);
            }
        }
        Ok((Self { position, exceptions, decision, looked, noted: None }, index))
    }

    /// Reads a batch, up to the position `until` at most; says whether that was reached.
    async fn read_on(&mut self, voices: &Voices, store: &EventStore, until: i64) -> Result<bool, LogError> {
        if until <= self.position {
            return Ok(true);
        }
        let reading = log::read_type(store.pool(), store.keyring(), "profile", self.position, until, BATCH);
        let (entries, whole) = within(reading).await?;
        if !entries.is_empty() {
            let mut index = voices.index.write().await;
            for entry in &entries {
                self.exceptions.apply(&mut index, &voices.models, entry);
            }
        }
        self.position = match entries.last() {
            Some(last) if !whole => last.position(),
            Some(_) | None => until,
        };
        voices.reached.send_replace(Some(self.position));
        Ok(whole)
    }

    /// Notes how far this process is, if that is news.
    async fn note(&mut self, pool: &PgPool, process: Uuid) -> Result<(), LogError> {
        let known = |(position, at): (i64, Instant)| position == self.position && at.elapsed() < ALIVE;
        if !self.noted.is_some_and(known) {
            note(pool, process, self.position).await?;
            self.noted = Some((self.position, Instant::now()));
        }
        Ok(())
    }

    /// Reads the profiles anew about whose events somebody has decided.
    async fn heed_decisions(&mut self, voices: &Voices, store: &EventStore) -> Result<(), LogError> {
        let pool = store.pool();
        let failed = |source| LogError::Database { after: self.position, source };
        let latest = latest_decision(pool).await.map_err(failed)?;
        if latest > self.decision {
            let skipped = skipped_between(pool, 0, i64::MAX).await.map_err(failed)?;
            self.exceptions.skipped = skipped.into_iter().collect();
            for id in profiles_decided_on(pool, self.decision, latest).await.map_err(failed)? {
                self.read_anew(voices, store, &id).await?;
            }
            self.decision = latest;
        }
        self.looked = Instant::now();
        Ok(())
    }

    async fn read_anew(&mut self, voices: &Voices, store: &EventStore, id: &str) -> Result<(), LogError> {
        let Ok(profile) = id.parse::<Uuid>().map(ProfileId::from) else { return Ok(()) };
        let failed = |source| LogError::Database { after: self.position, source };
        let mut connection = store.pool().acquire().await.map_err(failed)?;
        let (mut after, to) = ((id.to_owned(), 0), format!("{id}\u{1}"));
        let mut history = vec![];
        loop {
            // One person has a bounded number of samples.
            let reading = log::read_aggregates(
                &mut connection,
                store.keyring(),
                "profile",
                &after,
                &to,
                self.position,
                BATCH,
            );
            let mut entries = within(reading).await?;
            let Some(last) = entries.last() else { break };
            after.1 = last.sequence();
            history.append(&mut entries);
        }
        let mut index = voices.index.write().await;
        index.remove_profile(profile);
        self.exceptions.waiting.remove(id);
        for entry in &history {
            self.exceptions.apply(&mut index, &voices.models, entry);
        }
        Ok(())
    }
}

impl Exceptions {
    fn apply(&mut self, index: &mut VoiceIndex, models: &VoiceModels, entry: &Entry) {
        if self.skipped.contains(&entry.position()) {
            return;
        }
        let recorded = match entry {
            Entry::Event(recorded) => recorded,
            Entry::Unreadable(unreadable) => {
                self.waiting.insert(unreadable.aggregate_id.clone());
                return;
            }
        };
        let Event::Profile(profile_id, event) = &recorded.event else { return };
        let waits = !self.waiting.is_empty() && self.waiting.contains(&profile_id.to_string());
        match event {
            ProfileEvent::ProfileErased { .. } => index.remove_profile(*profile_id),
            ProfileEvent::VoiceEnrolled { sample_id, voice, .. } if !waits => {
                // A voice that was destroyed is nobody's.
                let voice = voice.known().filter(|voice| models.check(voice).is_ok());
                if let Some(voice) = voice
                    && let Err(error) = index.add(*profile_id, *sample_id, &voice)
                {
                    let (position, error) = (recorded.position, &error as &dyn std::error::Error);
                    warn!(position, error, "a voice does not fit the index and stays out");
                }
            }
            ProfileEvent::VoiceRemoved { sample_id } if !waits => {
                index.remove_sample(*profile_id, *sample_id);
            }
            ProfileEvent::VoiceEnrolled { .. }
            | ProfileEvent::VoiceRemoved { .. }
            | ProfileEvent::ProfileCreated { .. }
            | ProfileEvent::ProfileRenamed { .. } => {}
        }
    }
}

/// Bounds how long a reading takes.
async fn within<T>(reading: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
    let timed_out =
        || LogError::Database { after: 0, source: sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()) };
    timeout(READ, reading).await.unwrap_or_else(|_| Err(timed_out()))
}

async fn latest_decision(executor: impl PgExecutor<'_>) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM ops.parked_decisions").fetch_one(executor).await
}

async fn profiles_decided_on(pool: &PgPool, after: i64, until: i64) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT DISTINCT e.aggregate_id
           FROM ops.parked_decisions d JOIN log.events e ON e.position = d.position
          WHERE d.id > $1 AND d.id <= $2 AND e.aggregate_type = 'profile'",
    )
    .bind(after)
    .bind(until)
    .fetch_all(pool)
    .await
}

/// Notes how far a process is, and clears away what others left behind.
async fn note(pool: &PgPool, process: Uuid, position: i64) -> Result<(), LogError> {
    let noting = async {
        sqlx::query(
            "INSERT INTO ops.voice_followers (id, position) VALUES ($1, $2)
             ON CONFLICT (id) DO UPDATE SET position = excluded.position, noted_at = now()",
        )
        .bind(process)
        .bind(position)
        .execute(pool)
        .await?;
        sqlx::query("DELETE FROM ops.voice_followers WHERE noted_at < now() - make_interval(secs => $1)")
            .bind(10.0 * NOTED.as_secs_f64())
            .execute(pool)
            .await
    };
    within(async { noting.await.map_err(|source| LogError::Database { after: position, source }) }).await?;
    Ok(())
}

async fn forget(pool: &PgPool, process: Uuid) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM ops.voice_followers WHERE id = $1").bind(process).execute(pool).await?;
    Ok(())
}

/// How far the processes are that name speakers by voice.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Followers {
    /// How many there are.
    pub processes: i64,
    /// The position up to which all of them know the voices.
    pub position: i64,
    /// How long ago the first of these was noted, in seconds.
    pub noted_seconds: f64,
}

/// Returns how far those are that follow the log now, if there are any.
pub async fn followers(pool: &PgPool) -> Result<Option<Followers>, sqlx::Error> {
    let (processes, position, noted_seconds): (i64, Option<i64>, Option<f64>) = sqlx::query_as(
        "SELECT count(*), min(position), extract(epoch FROM now() - min(noted_at))::float8
           FROM ops.voice_followers WHERE noted_at > now() - make_interval(secs => $1)",
    )
    .bind(NOTED.as_secs_f64())
    .fetch_one(pool)
    .await?;
    let followers = |(position, noted_seconds)| Followers { processes, position, noted_seconds };
    Ok(position.zip(noted_seconds).map(followers))
}
