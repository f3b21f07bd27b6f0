//! Appending to the log: all appends now waiting go to the database as one group, in one statement, with
//! one flush to disk.
//!
//! One task per process does so, on a connection of its own. An append whose connection died is settled by
//! calling `log.append` again with the same command id, under the append lock: what was committed answers
//! as a duplicate. (Merely looking could miss an append that is still committing.)

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::Event;
use sqlx::postgres::{PgConnectOptions, PgRow};
use sqlx::{Connection, PgConnection, PgPool, Row};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::warn;
use uuid::Uuid;

use crate::retry::{backoff, is_transient};
use crate::sealing::{KeyError, Keyring, SealError, Sealed};
use crate::wake::Head;

/// The most appends that wait; one more is refused until there is room.
const QUEUE: usize = 4096;
/// The most appends of one group.
const GROUP_APPENDS: usize = 256;
/// The bytes of payload after which a group takes no further append.
const GROUP_BYTES: usize = 8 * 1024 * 1024;
/// How often an append is sealed again because its subject has another key than was thought.
const SEALINGS: u32 = 5;
/// How long one call of the database may take.
const CALL: Duration = Duration::from_secs(20);
/// How long a group is tried before its appends are answered with an error.
const GIVE_UP: Duration = Duration::from_secs(30);

/// Events to be appended to one aggregate, on behalf of one command.
#[derive(Debug, Clone)]
pub struct Append {
    /// The command. Known already, the append is a duplicate.
    pub command_id: Uuid,
    /// The HMAC of the command's request, by which a key used for two requests is found out. Empty for a
    /// command without a key: that one is not remembered, and an append of it that is settled after a lost
    /// connection is known by the `command_id` in its first event's metadata.
    pub request_hmac: Vec<u8>,
    /// `meeting` or `profile`.
    pub aggregate_type: &'static str,
    /// Which one.
    pub aggregate_id: String,
    /// How many events the aggregate must have. Has it another number, the append is a conflict.
    pub expected_version: i64,
    /// Who did it and on behalf of what, as a flat JSON object; of every event. It holds the `command_id`.
    pub metadata: String,
    /// The events. None at all is a command without effect that is to be remembered.
    pub events: Vec<NewEvent>,
}

/// An event to be appended.
#[derive(Debug, Clone)]
pub struct NewEvent {
    /// The event's name.
    pub event_type: String,
    /// The version of its shape.
    pub event_version: String,
    /// What happened. What is personal in it is clear here, and sealed by the append.
    pub payload: Payload,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Payload {
    /// An event as the domain has it.
    Event(Box<Event>),
    /// JSON. It is sealed if it decodes; what nobody can read is taken as it is.
    Json(String),
}

impl Payload {
    /// Returns it as JSON, unsealed.
    pub fn to_json(&self) -> String {
        match self {
            Self::Event(event) => event.to_json(),
            Self::Json(json) => json.clone(),
        }
    }
}

impl From<String> for Payload {
    fn from(json: String) -> Self {
        Self::Json(json)
    }
}

impl From<Event> for NewEvent {
    fn from(event: Event) -> Self {
        Self {
            event_type: event.name().to_owned(),
            event_version: event.version().to_string(),
            payload: Payload::Event(Box::new(event)),
        }
    }
}

/// What became of an append.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the log.
    Appended(Place),
    /// The command was accepted before; this is where.
    Duplicate {
        /// What became of the command then.
        place: Place,
        /// The HMAC of the request then.
        request_hmac: Vec<u8>,
    },
    /// The aggregate has another number of events than expected.
    Conflict {
        /// The number that it has.
        actual_version: i64,
    },
    /// Somebody whom the events are about, or to whom they link a speaker, was forgotten: nothing was appended.
    Forgotten,
}

/// Where in the log an accepted command's events are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The aggregate's version after the command.
    pub version: i64,
    /// The first event's position; none for a command without effect.
    pub first_position: Option<i64>,
    /// The last event's position; for a command without effect the log's end at that moment.
    pub last_position: i64,
}

/// Why an append has no outcome.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// Too many appends are waiting. Nothing was appended.
    #[error("too many appends are waiting")]
    Busy,
    /// The process is shutting down. Nothing was appended.
    #[error("the log is closing")]
    Closed,
    /// The database could not be reached in time. Whether the append took effect is not known; the same
    /// command tells when it is sent again.
    #[error("the database could not be reached: {0}")]
    Unavailable(String),
    /// The database refuses the append's data. Nothing was appended.
    #[error("the database refuses the append ({0})")]
    Refused(String),
    /// The events cannot be sealed. Nothing was appended.
    #[error("the events cannot be sealed: {0}")]
    Unsealed(String),
}

/// An append as the log takes it.
struct SealedAppend {
    command_id: Uuid,
    request_hmac: Vec<u8>,
    aggregate_type: &'static str,
    aggregate_id: String,
    expected_version: i64,
    metadata: String,
    /// Types and versions; the payloads are in `sealed`.
    events: Vec<(String, String)>,
    sealed: Sealed,
}

impl SealedAppend {
    fn of(append: &Append, sealed: Sealed) -> Self {
        let event = |event: &NewEvent| (event.event_type.clone(), event.event_version.clone());
        Self {
            command_id: append.command_id,
            request_hmac: append.request_hmac.clone(),
            aggregate_type: append.aggregate_type,
            aggregate_id: append.aggregate_id.clone(),
            expected_version: append.expected_version,
            metadata: append.metadata.clone(),
            events: append.events.iter().map(event).collect(),
            sealed,
        }
    }
}

struct Waiting {
    append: Arc<SealedAppend>,
    answer: oneshot::Sender<Result<Settled, AppendError>>,
}

/// The way to append. Cloning it is cheap.
#[derive(Clone)]
pub struct Appender {
    queue: mpsc::Sender<Waiting>,
    keyring: Keyring,
}

/// What the database says of an append.
enum Settled {
    /// This became of it.
    Outcome(Outcome),
    /// It was sealed with another key than its subject has, and is to be sealed again.
    Rekey,
}

impl Appender {
    /// Starts the task that appends. It ends when `shutdown` is cancelled or the last `Appender` is gone,
    /// after everything in its queue.
    pub(crate) fn start(
        pool: &PgPool,
        keyring: Keyring,
        head: Head,
        shutdown: &CancellationToken,
        tasks: &TaskTracker,
    ) -> Self {
        let (queue, waiting) = mpsc::channel(QUEUE);
        // Under the append lock each statement must see what the lock's last holder committed, whatever the
        // database's default is.
        let isolation = [("default_transaction_isolation", r"read\ committed")];
        let options = pool.connect_options().as_ref().clone().options(isolation);
        let task = AppendTask { options, connection: None, head };
        tasks.spawn(task.run(waiting, shutdown.clone()));
        Self { queue, keyring }
    }

    /// Appends, and returns what became of it once it is on disk. An append once taken is carried out
    /// even if the caller stops waiting.
    pub async fn append(&self, mut append: Append) -> Result<Outcome, AppendError> {
        read_events(&mut append);
        for _ in 0..SEALINGS {
            let sealed = match seal(&self.keyring, &append)? {
                Some(sealed) => Arc::new(sealed),
                None => return Ok(Outcome::Forgotten),
            };
            let (answer, settled) = oneshot::channel();
            self.queue.try_send(Waiting { append: Arc::clone(&sealed), answer }).map_err(
                |error| match error {
                    mpsc::error::TrySendError::Full(_) => AppendError::Busy,
                    mpsc::error::TrySendError::Closed(_) => AppendError::Closed,
                },
            )?;
            match settled.await.map_err(|_| AppendError::Closed)?? {
                Settled::Outcome(outcome @ Outcome::Appended(_)) => {
                    self.keyring.remember(&sealed.sealed.subjects);
                    return Ok(outcome);
                }
                Settled::Outcome(outcome @ (Outcome::Duplicate { .. } | Outcome::Conflict { .. })) => {
                    return Ok(outcome);
                }
                // Sealed again it is known who was forgotten: a speaker's voice may be left out.
                Settled::Outcome(Outcome::Forgotten) | Settled::Rekey => {
                    look_up(&self.keyring, &sealed).await?;
                }
            }
        }
        Err(AppendError::Unsealed(format!("their keys kept changing, {SEALINGS} times")))
    }
}

/// Reads what was given as JSON: what is personal in it is to be sealed.
fn read_events(append: &mut Append) {
    for event in &mut append.events {
        if let Payload::Json(json) = &event.payload
            && let Ok(read) = Event::decode(
                append.aggregate_type,
                &append.aggregate_id,
                &event.event_type,
                &event.event_version,
                json,
            )
            && read.version().to_string() == event.event_version
        {
            event.payload = Payload::Event(Box::new(read));
        }
    }
}

/// Seals an append; returns nothing if somebody whom it is about was forgotten.
fn seal(keyring: &Keyring, append: &Append) -> Result<Option<SealedAppend>, AppendError> {
    match keyring.seal(&append.events, append.expected_version) {
        Ok(sealed) => Ok(Some(SealedAppend::of(append, sealed))),
        Err(SealError::Forgotten) => Ok(None),
        Err(SealError::Twice) => Err(AppendError::Unsealed("they are sealed already".to_owned())),
        Err(SealError::Keys(error)) => Err(AppendError::Unsealed(error.to_string())),
    }
}

async fn look_up(keyring: &Keyring, sealed: &SealedAppend) -> Result<(), AppendError> {
    keyring.look_up(&sealed.sealed.subjects).await.map_err(|error| match error {
        KeyError::Database(error) => AppendError::Unavailable(error.to_string()),
        KeyError::Master(_)
        | KeyError::WrittenUnsealed
        | KeyError::AnotherMaster { .. }
        | KeyError::NothingToRotateTo
        | KeyError::Damaged { .. }
        | KeyError::Rotating
        | KeyError::DamagedSecret
        | KeyError::UnknownKind { .. } => AppendError::Unsealed(error.to_string()),
    })
}

struct AppendTask {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    head: Head,
}

impl AppendTask {
    async fn run(mut self, mut queue: mpsc::Receiver<Waiting>, shutdown: CancellationToken) {
        loop {
            let first = tokio::select! {
                first = queue.recv() => first,
                // Closing lets nobody in; what is in the queue is still received, then `None`.
                () = shutdown.cancelled(), if !queue.is_closed() => { queue.close(); continue }
            };
            let Some(first) = first else { break };
            let_others_in(&queue).await;
            let group = take_group(first, &mut queue);
            self.append_group(group).await;
        }
        if let Some(connection) = self.connection.take() {
            // A server that does not answer any more is not waited for.
            let _ = timeout(Duration::from_secs(1), connection.close()).await;
        }
    }

    /// Appends a group and answers its appends. A group that fails on its data is halved, down to the one
    /// append at fault: it never fails its neighbours.
    async fn append_group(&mut self, group: Vec<Waiting>) {
        let mut sent = false;
        let mut halves = vec![group];
        while let Some(mut group) = halves.pop() {
            let appends = group.iter().map(|waiting| &*waiting.append).collect::<Vec<_>>();
            metrics::histogram!("minutebook_append_group_size").record(appends.len() as f64);
            match self.call_until_settled(&appends, &mut sent).await {
                Ok(outcomes) => {
                    for (waiting, outcome) in group.into_iter().zip(outcomes) {
                        count(&outcome);
                        // Nobody may be waiting any more; the append stands all the same.
                        let _ = waiting.answer.send(Ok(outcome));
                    }
                }
                Err(AppendError::Refused(_)) if group.len() > 1 => {
                    let second = group.split_off(group.len() / 2);
                    halves.push(second);
                    halves.push(group);
                }
                Err(error) => {
                    for waiting in group {
                        let _ = waiting.answer.send(Err(error.clone()));
                    }
                }
            }
        }
    }

    /// Calls the database, again after a lost connection, until it answers or too much time has passed.
    /// `sent` becomes true when an append of the group may be in the log although nobody was told.
    async fn call_until_settled(
        &mut self,
        appends: &[&SealedAppend],
        sent: &mut bool,
    ) -> Result<Vec<Settled>, AppendError> {
        let started = Instant::now();
        let mut failures = 0;
        loop {
            let fresh = !*sent && appends.iter().all(|append| append.request_hmac.is_empty());
            let error = match timeout(CALL, self.call(appends, fresh)).await {
                Ok(Ok(outcomes)) => return Ok(outcomes),
                Ok(Err(error)) => error,
                Err(_) => sqlx::Error::Io(io::ErrorKind::TimedOut.into()),
            };
            if is_about_data(&error) {
                return Err(refusal(&error));
            }
            self.connection = None;
            *sent = true;
            if !is_transient(&error) {
                return Err(AppendError::Unavailable(error.to_string()));
            }
            failures += 1;
            metrics::counter!("minutebook_append_retries_total").increment(1);
            if failures == 1 {
                warn!(%error, appends = appends.len(), "an append was interrupted and will be settled");
            }
            let pause = backoff(failures, Duration::from_millis(20), Duration::from_secs(2));
            if started.elapsed() + pause > GIVE_UP {
                return Err(AppendError::Unavailable(error.to_string()));
            }
            sleep(pause).await;
        }
    }

    async fn call(&mut self, appends: &[&SealedAppend], fresh: bool) -> Result<Vec<Settled>, sqlx::Error> {
        if self.connection.is_none() {
            self.connection = Some(PgConnection::connect_with(&self.options).await?);
        }
        let Some(connection) = &mut self.connection else { return Err(sqlx::Error::WorkerCrashed) };
        let outcomes = call_log_append(connection, appends, fresh).await?;
        let newest = outcomes.iter().filter_map(|settled| match settled {
            Settled::Outcome(Outcome::Appended(place) | Outcome::Duplicate { place, .. }) => {
                Some(place.last_position)
            }
            Settled::Outcome(Outcome::Conflict { .. } | Outcome::Forgotten) | Settled::Rekey => None,
        });
        if let Some(newest) = newest.max() {
            self.head.advance_by_append(newest);
        }
        Ok(outcomes)
    }
}

/// Lets whoever was just answered hand in the next append, as long as more come in: one flush then serves
/// all of them, instead of each half of them in turn. It costs no more than running what is ready to run.
async fn let_others_in(queue: &mpsc::Receiver<Waiting>) {
    let mut waiting = queue.len();
    loop {
        tokio::task::yield_now().await;
        let more = queue.len();
        if more <= waiting || more >= GROUP_APPENDS {
            return;
        }
        waiting = more;
    }
}

/// Takes what is waiting, within bounds.
fn take_group(first: Waiting, queue: &mut mpsc::Receiver<Waiting>) -> Vec<Waiting> {
    let size = |waiting: &Waiting| waiting.append.sealed.payloads.iter().map(String::len).sum::<usize>();
    let mut bytes = size(&first);
    let mut group = vec![first];
    while group.len() < GROUP_APPENDS && bytes < GROUP_BYTES {
        let Ok(next) = queue.try_recv() else { break };
        bytes += size(&next);
        group.push(next);
    }
    group
}

/// Cuts a group where a command or an aggregate comes a second time; returns the cuts as counts of appends
/// from the start. See `log.append`.
fn chunk_ends(appends: &[&SealedAppend]) -> Vec<i32> {
    let mut ends = Vec::new();
    let mut commands = HashSet::new();
    let mut aggregates = HashSet::new();
    for (n, append) in (0..).zip(appends) {
        let command = commands.contains(&append.command_id);
        if command || aggregates.contains(&(append.aggregate_type, &append.aggregate_id)) {
            ends.push(n);
            commands.clear();
            aggregates.clear();
        }
        commands.insert(append.command_id);
        aggregates.insert((append.aggregate_type, &append.aggregate_id));
    }
    ends.push(i32::try_from(appends.len()).unwrap_or(i32::MAX));
    ends
}

async fn call_log_append(
    connection: &mut PgConnection,
    appends: &[&SealedAppend],
    fresh: bool,
) -> Result<Vec<Settled>, sqlx::Error> {
    let hmac = |append: &'_ SealedAppend| Some(append.request_hmac.clone()).filter(|hmac| !hmac.is_empty());
    let counts = appends.iter().map(|append| append.events.len() as i32).collect::<Vec<_>>();
    let events = || {
        (1..)
            .zip(appends)
            .flat_map(|(n, append)| (1..).zip(&append.events).map(move |(m, event)| (n, m, event)))
    };
    let payloads = appends.iter().flat_map(|append| &append.sealed.payloads).map(String::as_str);
    let subjects = || {
        (1..).zip(appends).flat_map(|(n, append)| append.sealed.subjects.iter().map(move |used| (n, used)))
    };
    let keys = || subjects().map(|(_, used)| used.sealed_with.as_ref());
    let rows = sqlx::query(
        "SELECT outcome, version, first_position, last_position, request_hmac
           FROM log.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
                           $15, $16, $17, $18, $19)",
    )
    .bind(appends.iter().map(|append| append.command_id).collect::<Vec<_>>())
    .bind(appends.iter().map(|append| hmac(append)).collect::<Vec<_>>())
    .bind(appends.iter().map(|append| append.aggregate_type).collect::<Vec<_>>())
    .bind(appends.iter().map(|append| append.aggregate_id.as_str()).collect::<Vec<_>>())
    .bind(appends.iter().map(|append| append.expected_version).collect::<Vec<_>>())
    .bind(counts)
    .bind(appends.iter().map(|append| append.metadata.as_str()).collect::<Vec<_>>())
    .bind(events().map(|(n, _, _)| n).collect::<Vec<i32>>())
    .bind(events().map(|(_, m, _)| m).collect::<Vec<i32>>())
    .bind(events().map(|(_, _, event)| event.0.as_str()).collect::<Vec<_>>())
    .bind(events().map(|(_, _, event)| event.1.as_str()).collect::<Vec<_>>())
    .bind(payloads.collect::<Vec<_>>())
    .bind(chunk_ends(appends))
    .bind(fresh)
    .bind(subjects().map(|(n, _)| n).collect::<Vec<i32>>())
    .bind(subjects().map(|(_, used)| used.subject.kind()).collect::<Vec<_>>())
    .bind(subjects().map(|(_, used)| used.subject.id()).collect::<Vec<_>>())
    .bind(keys().map(|key| key.map(|key| key.life)).collect::<Vec<_>>())
    .bind(keys().map(|key| key.and_then(|key| key.wrapped.as_deref())).collect::<Vec<_>>())
    .fetch_all(connection)
    .await?;
    if let [row] = &rows[..]
        && row.try_get::<&str, _>("outcome")? == "all appended"
    {
        return Ok(all_appended(appends, row.try_get("first_position")?));
    }
    if rows.len() != appends.len() {
        return Err(sqlx::Error::Protocol("log.append did not answer every append".to_owned()));
    }
    rows.iter().map(outcome).collect()
}

/// Tells each append's place in a group that was appended whole, from `position` on.
fn all_appended(appends: &[&SealedAppend], mut position: i64) -> Vec<Settled> {
    let place = |append: &&SealedAppend| {
        let events = append.events.len() as i64;
        let first_position = (events > 0).then_some(position);
        position += events;
        let version = append.expected_version + events;
        Settled::Outcome(Outcome::Appended(Place { version, first_position, last_position: position - 1 }))
    };
    appends.iter().map(place).collect()
}

fn outcome(row: &PgRow) -> Result<Settled, sqlx::Error> {
    let version = row.try_get("version")?;
    let place = || {
        Ok::<_, sqlx::Error>(Place {
            version,
            first_position: row.try_get("first_position")?,
            last_position: row.try_get("last_position")?,
        })
    };
    let outcome = match row.try_get("outcome")? {
        "appended" => Outcome::Appended(place()?),
        "duplicate" => {
            // None for an append without a key that was settled.
            let hmac: Option<Vec<u8>> = row.try_get("request_hmac")?;
            Outcome::Duplicate { place: place()?, request_hmac: hmac.unwrap_or_default() }
        }
        "conflict" => Outcome::Conflict { actual_version: version },
        "forgotten" => Outcome::Forgotten,
        "rekey" => return Ok(Settled::Rekey),
        other => return Err(sqlx::Error::Protocol(format!("log.append answered {other:?}"))),
    };
    Ok(Settled::Outcome(outcome))
}

/// Says whether the database refuses what was sent: data exceptions, violated constraints, limits exceeded.
/// Then nothing of the group was appended.
fn is_about_data(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|e| e.code());
    code.is_some_and(|code| ["22", "23", "54"].iter().any(|class| code.starts_with(class)))
}

/// The database's own words may quote the data: only the code and a constraint's name go on.
fn refusal(error: &sqlx::Error) -> AppendError {
    let database = error.as_database_error();
    let code = database.and_then(|e| e.code()).map(|code| format!("SQLSTATE {code}"));
    let constraint = database.and_then(|e| e.constraint()).map(|name| format!(", constraint {name}"));
    AppendError::Refused(match code {
        Some(code) => code + &constraint.unwrap_or_default(),
        None => "protocol error".to_owned(),
    })
}

fn count(settled: &Settled) {
    let outcome = match settled {
        Settled::Outcome(Outcome::Appended(_)) => "appended",
        Settled::Outcome(Outcome::Duplicate { .. }) => "duplicate",
        Settled::Outcome(Outcome::Conflict { .. }) => "conflict",
        Settled::Outcome(Outcome::Forgotten) => "forgotten",
        Settled::Rekey => "rekey",
    };
    metrics::counter!("minutebook_appends_total", "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn append(command: u128, aggregate: &str) -> SealedAppend {
        SealedAppend {
            command_id: Uuid::from_u128(command),
            request_hmac: vec![],
            aggregate_type: "meeting",
            aggregate_id: aggregate.to_owned(),
            expected_version: 0,
            metadata: "{}".to_owned(),
            events: vec![],
            sealed: Sealed { payloads: vec![], subjects: vec![] },
        }
    }

    #[test]
    fn a_group_is_cut_where_a_command_or_an_aggregate_comes_twice() {
        let appends = [append(1, "a"), append(2, "b"), append(3, "a"), append(3, "c"), append(4, "d")];
        assert_eq!(chunk_ends(&appends.iter().collect::<Vec<_>>()), [2, 3, 5]);
        assert_eq!(chunk_ends(&appends[..2].iter().collect::<Vec<_>>()), [2]);
    }
}
