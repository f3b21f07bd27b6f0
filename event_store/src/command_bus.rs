//! Load, decide, append; on a conflict reload and decide again, a bounded number of times.
//!
//! States are cached. A cached state may have been overtaken by another process, so it never has the last
//! word: an event decided on a stale state meets its conflict at the append, and a refusal or an empty
//! decision is decided again on a fresh load.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cqrs_es::event_sink::EventSink;
use cqrs_es::persist::PersistedEventStore;
use cqrs_es::{Aggregate, AggregateError, DomainEvent, EventStore as _};
use domain::event::{AggregateEvent, DecodeError};
use domain::meeting::{Meeting, MeetingCommand};
use domain::profile::Profile;
use sqlx::{PgPool, Row};
use tokio::time::sleep;
use uuid::Uuid;

use crate::EventStore;
use crate::append::{Append, AppendError, Appender, Outcome, Place};
use crate::log::{self, BatchLimits, LogError};
use crate::repository::LogRepository;
use crate::retry::backoff;
use crate::sealing::{self, Keyring, Needs};
use crate::state_cache::{StateCache, Versioned, Weighed};

/// How often a command that meets a conflict is decided anew.
const TRIES: u32 = 40;
/// How much of a history is read at once to find the event at fault.
const READ: BatchLimits = BatchLimits { events: 1000, bytes: 8 * 1024 * 1024 };

/// Takes commands to meetings and profiles. Cloning it is cheap.
#[derive(Clone)]
pub struct CommandBus {
    meetings: Arc<Handler<Meeting>>,
    profiles: Arc<Handler<Profile>>,
    pool: PgPool,
}

/// What comes with a command besides what it asks.
#[derive(Debug, Clone, Default)]
pub struct Context {
    /// The client's own mark for the command, if it gave one.
    pub key: Option<IdempotencyKey>,
    /// The version that the aggregate must have, or the command is refused.
    pub if_match: Option<i64>,
    /// The aggregate is probably new: spares the look for its events. Right also when it is not.
    pub probably_new: bool,
    /// Who asks: an opaque id.
    pub actor: String,
    /// `person`, `service` or `system`.
    pub actor_kind: String,
    /// What the command belongs to; a new id if absent.
    pub correlation_id: Option<String>,
    /// What caused the command; the command itself if absent.
    pub causation_id: Option<String>,
}

impl Context {
    /// Returns that of a part of Minutebook itself, known as `actor`.
    pub fn system(actor: &str) -> Self {
        Self { actor: actor.to_owned(), actor_kind: "system".to_owned(), ..Self::default() }
    }

    /// Returns that of what follows from the erasure of `subject`.
    pub fn of_erasure(subject: Uuid) -> Self {
        Self { causation_id: Some(subject.to_string()), ..Self::system("erasure") }
    }
}

/// A client's `Idempotency-Key`, bound to caller and route, and what it was used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// The command's id, derived from caller, route and key.
    pub command_id: Uuid,
    /// An HMAC of the request.
    pub request_hmac: Vec<u8>,
}

/// An accepted command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The aggregate.
    pub aggregate_id: String,
    /// Its version after the command.
    pub version: i64,
    /// A position at which the command's effect shows.
    pub position: i64,
    /// The names of the events that followed; empty for a command that had already had its effect.
    pub events: Vec<String>,
}

/// Why a command was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CommandError<E: std::error::Error + 'static> {
    /// The aggregate refuses it.
    #[error(transparent)]
    Refused(E),
    /// The aggregate has another version than `If-Match` says.
    #[error("version {expected} was expected, it is {actual}")]
    StaleVersion {
        /// What the caller said.
        expected: i64,
        /// What it is.
        actual: i64,
    },
    /// The key was used for another request before.
    #[error("the idempotency key was used for another request")]
    KeyReused,
    /// Somebody whom the command names was forgotten.
    #[error("somebody whom it names was forgotten")]
    Forgotten,
    /// Others kept changing the aggregate.
    #[error("the aggregate kept changing; {TRIES} tries met a conflict")]
    Contended,
    /// The append has no outcome.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The database did not answer as it should while {phase}.
    #[error("the database failed while {phase}")]
    Database {
        /// What was being done.
        phase: &'static str,
        /// What the database said.
        #[source]
        source: sqlx::Error,
    },
    /// One of the aggregate's events cannot be decoded, so nothing can be decided.
    #[error("the event at position {position} cannot be read")]
    Unreadable {
        /// Where the first one is.
        position: i64,
        /// Why.
        #[source]
        source: DecodeError,
    },
    /// The aggregate's events cannot be loaded.
    #[error("the aggregate cannot be loaded")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl CommandBus {
    /// Returns a bus over `store`.
    pub fn new(store: &EventStore) -> Self {
        Self {
            meetings: Arc::new(Handler::new(store)),
            profiles: Arc::new(Handler::new(store)),
            pool: store.pool().clone(),
        }
    }

    /// Carries out a command to a meeting.
    pub async fn meeting(
        &self,
        id: domain::ids::MeetingId,
        command: domain::meeting::MeetingCommand,
        context: &Context,
    ) -> Result<Accepted, CommandError<domain::meeting::MeetingError>> {
        let name = command.name();
        let started = Instant::now();
        let mut result = execute(&self.pool, &self.meetings, id.to_string(), command.clone(), context).await;
        if matches!(result, Err(CommandError::Forgotten)) && self.forget_in(id).await? {
            result = execute(&self.pool, &self.meetings, id.to_string(), command, context).await;
        }
        measure("meeting", name, started, &result);
        result
    }

    /// Takes everybody who was forgotten out of a meeting that has not been told yet: what is decided about it would
    /// link them once more, by a decision that is carried over. Says whether there was anybody.
    async fn forget_in(
        &self,
        id: domain::ids::MeetingId,
    ) -> Result<bool, CommandError<domain::meeting::MeetingError>> {
        let Meeting::Active(record) = self.meetings.load(&id.to_string()).await?.state else {
            return Ok(false);
        };
        let people: Vec<Uuid> = record.people().into_iter().map(|profile| profile.as_uuid()).collect();
        let forgotten = sealing::forgotten(&self.pool, &people)
            .await
            .map_err(|source| CommandError::Database { phase: "looking for who was forgotten", source })?;
        for profile in &forgotten {
            let forget = MeetingCommand::ForgetPerson { profile_id: (*profile).into() };
            execute(&self.pool, &self.meetings, id.to_string(), forget, &Context::of_erasure(*profile))
                .await?;
        }
        Ok(!forgotten.is_empty())
    }

    /// Carries out a command to a profile.
    pub async fn profile(
        &self,
        id: domain::ids::ProfileId,
        command: domain::profile::ProfileCommand,
        context: &Context,
    ) -> Result<Accepted, CommandError<domain::profile::ProfileError>> {
        let name = command.name();
        let started = Instant::now();
        let result = execute(&self.pool, &self.profiles, id.to_string(), command, context).await;
        measure("profile", name, started, &result);
        result
    }

    /// Returns the first answer to a command to a meeting that was accepted under the same key before, if it was.
    /// For whoever looks at anything else before handing a command over: the world may have moved on.
    pub async fn first_answer(
        &self,
        context: &Context,
    ) -> Result<Option<Accepted>, CommandError<domain::meeting::MeetingError>> {
        let Some(key) = &context.key else { return Ok(None) };
        match known_command(&self.pool, key.command_id).await? {
            Some((id, place, hmac)) => repeated(&self.pool, id, place, &hmac, context).await.map(Some),
            None => Ok(None),
        }
    }

    /// Loads a meeting afresh: its state and its version.
    pub async fn load_meeting(
        &self,
        id: domain::ids::MeetingId,
    ) -> Result<(Meeting, i64), CommandError<domain::meeting::MeetingError>> {
        let loaded = self.meetings.load(&id.to_string()).await?;
        Ok((loaded.state, loaded.version))
    }

    /// Loads a profile afresh: its state and its version.
    pub async fn load_profile(
        &self,
        id: domain::ids::ProfileId,
    ) -> Result<(Profile, i64), CommandError<domain::profile::ProfileError>> {
        let loaded = self.profiles.load(&id.to_string()).await?;
        Ok((loaded.state, loaded.version))
    }
}

struct Handler<A: Aggregate> {
    pool: PgPool,
    store: PersistedEventStore<LogRepository, A>,
    appender: Appender,
    keyring: Keyring,
    cache: Mutex<Cache<A>>,
}

/// States, all of them made since so many destructions: what a state knows of somebody who is forgotten is not
/// used after that.
struct Cache<A> {
    destructions: i64,
    states: StateCache<A>,
}

impl<A: Clone + Weighed> Cache<A> {
    fn new(destructions: i64) -> Self {
        Self { destructions, states: StateCache::default() }
    }

    /// Returns the states, now that there are so many destructions: if that is news, none.
    fn states(&mut self, destructions: i64) -> &mut StateCache<A> {
        if self.destructions != destructions {
            *self = Self::new(destructions);
        }
        &mut self.states
    }

    /// Keeps a state that was read when there were so many destructions, unless somebody was forgotten since, and
    /// there are more `now`: it may know them.
    fn remember(&mut self, id: &str, new: Versioned<A>, destructions: i64, now: i64) {
        let states = self.states(now);
        if destructions == now {
            states.put(id, new);
        }
    }
}

impl<A: Aggregate + Clone + Weighed> Handler<A>
where
    A::Error: 'static,
{
    fn new(store: &EventStore) -> Self {
        let (pool, appender, keyring) = (store.pool(), store.appender(), store.keyring());
        let repository = LogRepository::new(pool.clone(), keyring.clone(), appender.clone());
        let store =
            PersistedEventStore::new_event_store(repository).with_upcasters(domain::upcast::for_cqrs_es());
        let cache = Mutex::new(Cache::new(keyring.destructions()));
        Self { pool: pool.clone(), store, appender: appender.clone(), keyring: keyring.clone(), cache }
    }

    fn cache(&self) -> MutexGuard<'_, Cache<A>> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cached(&self, id: &str) -> Option<Versioned<A>> {
        let mut cache = self.cache();
        cache.states(self.keyring.destructions()).get(id).cloned()
    }

    fn remember(&self, id: &str, new: Versioned<A>, destructions: i64) {
        let mut cache = self.cache();
        cache.remember(id, new, destructions, self.keyring.destructions());
    }

    async fn load(&self, id: &str) -> Result<Versioned<A>, CommandError<A::Error>> {
        let destructions = self.keyring.destructions();
        let loaded = match self.store.load_aggregate(id).await {
            Ok(loaded) => loaded,
            Err(AggregateError::UserError(error)) => return Err(CommandError::Refused(error)),
            Err(AggregateError::AggregateConflict) => return Err(CommandError::Contended),
            Err(AggregateError::DatabaseConnectionError(source)) => return Err(load_error(source)),
            Err(AggregateError::DeserializationError(source) | AggregateError::UnexpectedError(source)) => {
                let unreadable = first_unreadable(&self.pool, &self.keyring, A::TYPE, id).await;
                return Err(unreadable.map_err(loading)?.unwrap_or_else(|| load_error(source)));
            }
        };
        let mut version = i64::try_from(loaded.current_sequence).unwrap_or(i64::MAX);
        if version == 0
            && let Ok(id) = id.parse()
        {
            // Nothing is left of an aggregate of which every event was skipped, but for their numbers.
            version = log::version_at(&self.pool, A::TYPE, id, i64::MAX).await.map_err(loading)?;
        }
        let loaded = Versioned { state: loaded.aggregate, version };
        if version > 0 {
            self.remember(id, loaded.clone(), destructions);
        }
        Ok(loaded)
    }
}

/// postgres-es hands the database's error on in a box. Of an event that does not decode nothing goes on:
/// serde quotes what it did not expect, which may be personal.
fn load_error<E: std::error::Error + 'static>(
    source: Box<dyn std::error::Error + Send + Sync>,
) -> CommandError<E> {
    match source.downcast::<sqlx::Error>() {
        Ok(source) => CommandError::Database { phase: "loading an aggregate", source: *source },
        Err(source) => match source.downcast::<DecodeError>() {
            Ok(source) => CommandError::Load(source),
            Err(_) => CommandError::Load("an event of it does not decode".into()),
        },
    }
}

fn loading<E: std::error::Error + 'static>(source: sqlx::Error) -> CommandError<E> {
    CommandError::Database { phase: "loading an aggregate", source }
}

/// Looks for the event with which loading an aggregate must fail: postgres-es does not say which one it was.
async fn first_unreadable<E: std::error::Error + 'static>(
    pool: &PgPool,
    keyring: &Keyring,
    aggregate_type: &str,
    id: &str,
) -> Result<Option<CommandError<E>>, sqlx::Error> {
    let skipped = log::skipped_sequences(pool, aggregate_type, id).await?;
    let Ok(id) = id.parse() else { return Ok(None) };
    let mut after = 0;
    loop {
        let (mut events, more) = log::read_aggregate(pool, keyring, aggregate_type, id, after, READ).await?;
        keyring.open_stored(pool, &mut events, Needs::Everything).await?;
        for event in events.iter().filter(|event| !skipped.contains(&event.sequence)) {
            if let Err(LogError::Decode { position, source }) = event.decode() {
                return Ok(Some(CommandError::Unreadable { position, source }));
            }
        }
        match events.last() {
            Some(last) if more => after = last.sequence,
            Some(_) | None => return Ok(None),
        }
    }
}

/// Carries out a command. One with a key is looked up first, and once more before it is refused: the same
/// command, sent twice at once, must not be refused for its own effect.
async fn execute<A>(
    pool: &PgPool,
    handler: &Handler<A>,
    id: String,
    command: A::Command,
    context: &Context,
) -> Result<Accepted, CommandError<A::Error>>
where
    A: Aggregate<Services = ()> + Clone + Weighed,
    A::Event: AggregateEvent,
    A::Command: Clone,
    A::Error: 'static,
{
    let Some(key) = &context.key else {
        return load_decide_append(pool, handler, id, command, context).await;
    };
    if let Some((aggregate_id, place, request_hmac)) = known_command(pool, key.command_id).await? {
        return repeated(pool, aggregate_id, place, &request_hmac, context).await;
    }
    let refused = match load_decide_append(pool, handler, id, command, context).await {
        Err(error @ (CommandError::Refused(_) | CommandError::StaleVersion { .. })) => error,
        other => return other,
    };
    match known_command(pool, key.command_id).await? {
        Some((aggregate_id, place, hmac)) => repeated(pool, aggregate_id, place, &hmac, context).await,
        None => Err(refused),
    }
}

async fn load_decide_append<A>(
    pool: &PgPool,
    handler: &Handler<A>,
    id: String,
    command: A::Command,
    context: &Context,
) -> Result<Accepted, CommandError<A::Error>>
where
    A: Aggregate<Services = ()> + Clone + Weighed,
    A::Event: AggregateEvent,
    A::Command: Clone,
    A::Error: 'static,
{
    let command_id = context.key.as_ref().map_or_else(Uuid::now_v7, |key| key.command_id);
    let metadata = metadata(command_id, context);
    let uuid: Uuid = id.parse().map_err(|_| CommandError::Load("the aggregate's id is not a UUID".into()))?;

    let mut destructions = handler.keyring.destructions();
    let mut stale = match handler.cached(&id) {
        None if context.probably_new => Some(Versioned { state: A::default(), version: 0 }),
        cached => cached,
    };
    for attempt in 1..=TRIES {
        let (current, fresh) = match stale.take() {
            Some(state) => (state, false),
            None => {
                destructions = handler.keyring.destructions();
                (handler.load(&id).await?, true)
            }
        };
        if let Some(expected) = context.if_match
            && expected != current.version
        {
            if fresh {
                return Err(CommandError::StaleVersion { expected, actual: current.version });
            }
            continue;
        }
        let mut next = current.clone();
        let sink = EventSink::default();
        let decided = next.state.handle(command.clone(), &(), &sink).await;
        let events = sink.collect().await;
        match decided {
            Err(_) if !fresh => continue,
            Err(error) => return Err(CommandError::Refused(error)),
            Ok(()) if events.is_empty() && !fresh => continue,
            Ok(()) if events.is_empty() && context.key.is_none() => {
                return without_effect(pool, A::TYPE, id, current.version).await;
            }
            Ok(()) => {}
        }
        next.version += events.len() as i64;
        let names = events.iter().map(DomainEvent::event_type).collect();
        let append = Append {
            command_id,
            request_hmac: context.key.as_ref().map(|key| key.request_hmac.clone()).unwrap_or_default(),
            aggregate_type: A::TYPE,
            aggregate_id: id.clone(),
            expected_version: current.version,
            metadata: metadata.clone(),
            events: events.into_iter().map(|event| event.of(uuid).into()).collect(),
        };
        match handler.appender.append(append).await? {
            Outcome::Appended(place) => {
                handler.remember(&id, next, destructions);
                let (version, position) = (place.version, place.last_position);
                return Ok(Accepted { aggregate_id: id, version, position, events: names });
            }
            // The same command came twice at once, or our own append was settled after a lost connection.
            Outcome::Duplicate { place, request_hmac } => {
                // The first of the two may have made another id: its answer is the one that counts.
                let known = known_command(pool, command_id).await?;
                let (id, place, hmac) = known.unwrap_or((id, place, request_hmac));
                return repeated(pool, id, place, &hmac, context).await;
            }
            // What is remembered may be of before; what was just loaded is not.
            Outcome::Forgotten if !fresh => {}
            Outcome::Forgotten => return Err(CommandError::Forgotten),
            Outcome::Conflict { actual_version } => {
                metrics::counter!("minutebook_command_conflicts_total", "aggregate" => A::TYPE).increment(1);
                if let Some(expected) = context.if_match {
                    return Err(CommandError::StaleVersion { expected, actual: actual_version });
                }
                // The first retry comes at once: most conflicts have one rival, and it is through.
                if fresh {
                    sleep(backoff(attempt, Duration::from_millis(1), Duration::from_millis(100))).await;
                }
            }
        }
    }
    Err(CommandError::Contended)
}

fn metadata(command_id: Uuid, context: &Context) -> String {
    let command_id = command_id.to_string();
    let correlation_id = context.correlation_id.clone().unwrap_or_else(|| Uuid::now_v7().to_string());
    let causation_id = context.causation_id.clone().unwrap_or_else(|| command_id.clone());
    let metadata = BTreeMap::from([
        ("command_id", command_id.as_str()),
        ("correlation_id", &correlation_id),
        ("causation_id", &causation_id),
        ("actor", &context.actor),
        ("actor_kind", &context.actor_kind),
    ]);
    serde_json::to_string(&metadata).expect("a map of strings serializes")
}

type KnownCommand = (String, Place, Vec<u8>);

async fn known_command<E: std::error::Error + 'static>(
    pool: &PgPool,
    command_id: Uuid,
) -> Result<Option<KnownCommand>, CommandError<E>> {
    let database = |source| CommandError::Database { phase: "looking up an idempotency key", source };
    let row = sqlx::query(
        "SELECT aggregate_id, version, first_position, last_position, request_hmac
           FROM log.commands WHERE command_id = $1",
    )
    .bind(command_id)
    .fetch_optional(pool)
    .await
    .map_err(database)?;
    let known = |row: sqlx::postgres::PgRow| {
        let place = Place {
            version: row.try_get(1)?,
            first_position: row.try_get(2)?,
            last_position: row.try_get(3)?,
        };
        Ok((row.try_get(0)?, place, row.try_get(4)?))
    };
    row.map(known).transpose().map_err(database)
}

/// Gives a command's first answer once more, if it really is the same command.
async fn repeated<E: std::error::Error + 'static>(
    pool: &PgPool,
    aggregate_id: String,
    place: Place,
    request_hmac: &[u8],
    context: &Context,
) -> Result<Accepted, CommandError<E>> {
    if context.key.as_ref().is_some_and(|key| key.request_hmac != request_hmac) {
        return Err(CommandError::KeyReused);
    }
    let events = sqlx::query_scalar(
        "SELECT event_type FROM log.events WHERE position BETWEEN $1 AND $2 ORDER BY position",
    )
    .bind(place.first_position.unwrap_or(place.last_position + 1))
    .bind(place.last_position)
    .fetch_all(pool)
    .await
    .map_err(|source| CommandError::Database { phase: "reading a repeated command's events", source })?;
    Ok(Accepted { aggregate_id, version: place.version, position: place.last_position, events })
}

/// Answers a command that had already had its effect: the aggregate's newest event shows it.
async fn without_effect<E: std::error::Error + 'static>(
    pool: &PgPool,
    aggregate_type: &str,
    aggregate_id: String,
    version: i64,
) -> Result<Accepted, CommandError<E>> {
    let position = sqlx::query_scalar(
        "SELECT position FROM log.events
          WHERE aggregate_type = $1 AND aggregate_id = $2 AND sequence = $3",
    )
    .bind(aggregate_type)
    .bind(&aggregate_id)
    .bind(version)
    .fetch_optional(pool)
    .await
    .map_err(|source| CommandError::Database { phase: "looking up an aggregate's position", source })?;
    Ok(Accepted { aggregate_id, version, position: position.unwrap_or(0), events: vec![] })
}

fn measure<E: std::error::Error + 'static>(
    aggregate: &'static str,
    command: &'static str,
    started: Instant,
    result: &Result<Accepted, CommandError<E>>,
) {
    let outcome = match result {
        Ok(accepted) if accepted.events.is_empty() => "no_effect",
        Ok(_) => "accepted",
        Err(CommandError::Refused(_)) => "refused",
        Err(CommandError::StaleVersion { .. }) => "stale",
        Err(CommandError::KeyReused) => "key_reused",
        Err(CommandError::Contended) => "contended",
        Err(CommandError::Forgotten) => "forgotten",
        Err(CommandError::Unreadable { .. }) => "unreadable",
        Err(CommandError::Append(_) | CommandError::Database { .. } | CommandError::Load(_)) => "failed",
    };
    let labels = [("aggregate", aggregate), ("command", command), ("outcome", outcome)];
    metrics::histogram!("minutebook_command_seconds", &labels).record(started.elapsed().as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remembered_state_does_not_outlive_whoever_it_may_know() {
        let mut cache = Cache::new(3);
        let state = || Versioned { state: Profile::default(), version: 1 };
        cache.remember("a", state(), 3, 3);
        assert!(cache.states(3).get("a").is_some());
        assert!(cache.states(4).get("a").is_none(), "somebody was forgotten since it was kept");
        cache.remember("b", state(), 3, 4);
        assert!(cache.states(4).get("b").is_none(), "somebody was forgotten since it was read");
        cache.remember("b", state(), 4, 4);
        assert!(cache.states(4).get("b").is_some());
    }
}
