//! Forgetting a person or a meeting everywhere, and the receipt that says how far that is.
//!
//! It begins with an event. In its transaction the subject's key is destroyed, so that from the next append on
//! nothing is sealed for the subject and nobody is linked to it (`0010_erasures.sql`). What remains is carried
//! out by whoever projects the log, and by a restore, from the receipt that the event left, step by step; each step
//! may be repeated, so that it does not matter when a process dies:
//!
//! 1. the keys of all voices go that were ever said to be the person's, or speak in the meeting;
//! 2. a person is no speaker any more, in any meeting, and what stages cached there is dropped, by events that say
//!    why;
//! 3. what is parked of the subject itself is skipped, for it would keep the erasure from the tables;
//! 4. the tables show all of that;
//! 5. every other generation loses the rows that it has of the subject, the links to a person, and the results that
//!    name the person.
//!
//! Positions never run backwards: what links the person is before the event, so all of it is found; what takes the
//! links away comes after it.

mod begin;
mod generations;
mod receipt;
mod voices;

use std::collections::BTreeSet;
use std::time::Duration;

use domain::ids::{MeetingId, ProfileId};
use domain::meeting::{MeetingCommand, MeetingError};
use event_store::command_bus::{CommandBus, CommandError, Context};
use event_store::retry::{backoff, is_away};
use event_store::{EventStore, locks};
use futures::{StreamExt, TryStreamExt, stream};
use sqlx::{Connection, PgConnection, PgPool};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;

pub use self::begin::{erase_again, erase_meeting, erase_profile};
use self::generations::clean_generations;
pub(crate) use self::generations::leave_out_erased;
pub use self::receipt::{
    Erasure, ErasureKind, KeptElsewhere, Unfinished, kept_elsewhere, latest, of_subject, unfinished, wait,
};
use self::receipt::{note, under_way};
use self::voices::{destroy_voices, links, speakers};
use crate::parked::{self, ParkedError};
use crate::tables::{checkpoint, parked_events};

/// How often it is looked whether an erasure has begun, while the log moves.
const POLL: Duration = Duration::from_millis(50);
/// How soon one is tried again that waits for something.
const AGAIN: Duration = Duration::from_millis(500);
/// How late at most.
const LATER: Duration = Duration::from_secs(30);
/// How often it is looked although the log does not move.
const IDLE: Duration = Duration::from_secs(5);
/// How many meetings are told at once that somebody was forgotten: as many as one group of appends takes.
const AT_ONCE: usize = 256;
/// How many erasures are looked up at once.
const BATCH: usize = 100;
/// How long one pass waits for the tables.
const SHOWN: Duration = Duration::from_secs(10);
/// How long one pass over what is under way may take.
const PASS: Duration = Duration::from_secs(600);
/// Who skips the events that stand in the way of an erasure.
const SKIPPER: &str = "system:erasure";

/// Carries out what is under way, until `shutdown`. Of several processes that do so one works at a time.
pub async fn run(store: EventStore, bus: CommandBus, shutdown: CancellationToken) {
    let carrying_out = async {
        let mut head = store.head().subscribe();
        let (mut failures, mut waits) = (0, 0);
        let mut looked_back = false;
        loop {
            // Marked as seen before looking: an erasure that is appended while we look wakes us again.
            head.borrow_and_update();
            let pass = async {
                if !looked_back {
                    looked_back = erase_again(&store, &bus).await?;
                }
                let nothing_left = carry_out(&store, &bus).await?;
                Ok::<_, EraseError>(nothing_left && looked_back)
            };
            let pause = match timeout(PASS, pass).await.unwrap_or(Err(EraseError::TimedOut)) {
                Ok(true) => {
                    (failures, waits) = (0, 0);
                    IDLE
                }
                Ok(false) => {
                    (failures, waits) = (0, waits + 1);
                    backoff(waits, AGAIN, LATER)
                }
                Err(error) => {
                    failures += 1;
                    if failures == 1 {
                        let error = &error as &dyn std::error::Error;
                        warn!(error, "an erasure was interrupted and will be carried on");
                    }
                    backoff(failures, AGAIN, LATER)
                }
            };
            wait_for_more(store.pool(), &mut head, pause).await;
        }
    };
    shutdown.run_until_cancelled(carrying_out).await;
}

/// Carries out what is under way, and before it what a restore has brought back; says whether nothing was left by
/// `deadline`. It needs somebody who projects.
pub async fn finish(store: &EventStore, bus: &CommandBus, deadline: Instant) -> Result<bool, EraseError> {
    let finishing = async {
        let mut waits = 0;
        loop {
            // Both: what cannot be erased again keeps no other from its end.
            let all_begun = erase_again(store, bus).await?;
            if carry_out(store, bus).await? && all_begun {
                return Ok(true);
            }
            waits += 1;
            sleep(backoff(waits, AGAIN, LATER)).await;
        }
    };
    timeout_at(deadline, finishing).await.unwrap_or(Ok(false))
}

/// Waits until an erasure has begun, at most so long.
async fn wait_for_more(pool: &PgPool, head: &mut watch::Receiver<i64>, pause: Duration) {
    let until = Instant::now() + pause;
    while let Ok(Ok(())) = timeout_at(until, head.changed()).await {
        let new =
            "SELECT EXISTS (SELECT FROM keys.erasures WHERE completed_at IS NULL AND waits_for IS NULL)";
        // What cannot be looked up now is found at the end of the pause.
        if let Ok(Ok(true)) = timeout(AGAIN, sqlx::query_scalar(new).fetch_one(pool)).await {
            return;
        }
        // Under load the log moves all the time.
        sleep(POLL).await;
    }
}

/// Carries out what is under way, as far as it goes now; says whether nothing is left.
pub async fn carry_out(store: &EventStore, bus: &CommandBus) -> Result<bool, EraseError> {
    let failed = database("looking for erasures under way");
    if under_way(store.pool()).await.map_err(&failed)?.is_empty() {
        return Ok(true);
    }
    // Outside the pool, for the lock is as long as the connection.
    let options = store.pool().connect_options().as_ref().clone();
    let mut lock = PgConnection::connect_with(&options).await.map_err(&failed)?;
    let alone: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
        .bind(locks::ERASURES)
        .fetch_one(&mut lock)
        .await
        .map_err(&failed)?;
    let mut whole = alone;
    let mut more = alone;
    while more {
        let deadline = Instant::now() + SHOWN;
        let erasures = under_way(store.pool()).await.map_err(&failed)?;
        let full = erasures.len() == BATCH;
        let mut done = 0;
        for erasure in &erasures {
            let carried_out = match erasure.kind {
                ErasureKind::Profile => carry_out_profile(store, bus, erasure, deadline).await,
                ErasureKind::Meeting => carry_out_meeting(store, erasure, deadline).await,
            };
            let waits_for = match carried_out {
                Ok(waits_for) => waits_for,
                Err(EraseError::Database { phase, source }) if is_away(&source) => {
                    return Err(EraseError::Database { phase, source });
                }
                // It must not keep others from being forgotten.
                Err(error) => {
                    let (subject, error) = (erasure.subject, &error as &dyn std::error::Error);
                    warn!(%subject, error, "an erasure goes no further and will be tried again");
                    Some("a failure, of which the log of the process tells".to_owned())
                }
            };
            note(store.pool(), erasure, waits_for.as_deref())
                .await
                .map_err(database("noting how far it is"))?;
            done += usize::from(waits_for.is_none());
        }
        whole = done == erasures.len();
        // Those that wait come last: where nothing moves, whatever is behind them waits as well.
        more = full && done > 0;
    }
    let _ = lock.close().await;
    Ok(whole)
}

/// Why an erasure did not come further.
#[derive(Debug, thiserror::Error)]
pub enum EraseError {
    /// The database cannot be used.
    #[error("the database cannot be used: {phase}")]
    Database {
        /// What was tried.
        phase: &'static str,
        /// What came of it.
        #[source]
        source: sqlx::Error,
    },
    /// A meeting does not take it.
    #[error("meeting {id} cannot be told that the person was forgotten")]
    Meeting {
        /// Which one.
        id: MeetingId,
        /// Why.
        #[source]
        source: Box<CommandError<MeetingError>>,
    },
    /// Parked events of the subject stand in the way.
    #[error(transparent)]
    Parked(#[from] ParkedError),
    /// It takes too long.
    #[error("it took too long")]
    TimedOut,
}

fn database(phase: &'static str) -> impl Fn(sqlx::Error) -> EraseError {
    move |source| EraseError::Database { phase, source }
}

/// Carries out the erasure of a person; returns what it waits for, if it does.
async fn carry_out_profile(
    store: &EventStore,
    bus: &CommandBus,
    erasure: &Erasure,
    deadline: Instant,
) -> Result<Option<String>, EraseError> {
    let links = links(store.pool(), erasure).await.map_err(database("looking for the person's speakers"))?;
    let speakers: BTreeSet<Uuid> = links.iter().map(|(_, speaker)| *speaker).collect();
    let meetings: BTreeSet<Uuid> = links.iter().map(|(meeting, _)| *meeting).collect();
    destroy_voices(store, erasure, &speakers, meetings.len()).await?;

    let profile_id = ProfileId::from(erasure.subject);
    let context = Context::of_erasure(erasure.subject);
    let forget = |meeting: Uuid| {
        let (id, context) = (MeetingId::from(meeting), &context);
        async move {
            match bus.meeting(id, MeetingCommand::ForgetPerson { profile_id }, context).await {
                Ok(accepted) => Ok((accepted.position, None)),
                // Decided on with those who look after parked events; here the others go on.
                Err(CommandError::Unreadable { position, .. }) => Ok((0, Some(position))),
                Err(source) => Err(EraseError::Meeting { id, source: Box::new(source) }),
            }
        }
    };
    let told: Vec<(i64, Option<i64>)> =
        stream::iter(meetings.iter().copied().map(forget)).buffer_unordered(AT_ONCE).try_collect().await?;
    if let Some(position) = told.iter().find_map(|(_, unreadable)| *unreadable) {
        return Ok(Some(format!("the event at position {position}, which cannot be read")));
    }
    let last = told.iter().map(|(position, _)| *position).max().unwrap_or(0).max(erasure.position);

    skip_parked(store, erasure).await?;
    if !shown(store.pool(), last, deadline).await.map_err(database("waiting for the tables"))? {
        return Ok(Some("the tables, which do not show it yet".to_owned()));
    }
    let ids: Vec<String> = meetings.iter().map(Uuid::to_string).collect();
    let parked = parked_of(store.pool(), &ids, last).await.map_err(database("looking for parked events"))?;
    if let Some(position) = parked {
        return Ok(Some(format!("the event at position {position}, which is parked")));
    }
    clean_generations(store, erasure, &ids).await
}

/// Carries out the erasure of a meeting; returns what it waits for, if it does.
async fn carry_out_meeting(
    store: &EventStore,
    erasure: &Erasure,
    deadline: Instant,
) -> Result<Option<String>, EraseError> {
    let speakers =
        speakers(store.pool(), erasure).await.map_err(database("looking for the meeting's speakers"))?;
    destroy_voices(store, erasure, &speakers, 1).await?;
    skip_parked(store, erasure).await?;
    if !shown(store.pool(), erasure.position, deadline).await.map_err(database("waiting for the tables"))? {
        return Ok(Some("the tables, which do not show it yet".to_owned()));
    }
    clean_generations(store, erasure, &[erasure.subject.to_string()]).await
}

/// Takes all effect from parked events of the subject itself: the erasure waits behind them.
async fn skip_parked(store: &EventStore, erasure: &Erasure) -> Result<(), EraseError> {
    let failed = database("looking for parked events");
    loop {
        let generation = checkpoint::read(store.pool()).await.map_err(&failed)?.generation;
        let id = erasure.subject.to_string();
        let parked = parked_events::of_aggregate(store.pool(), generation, erasure.kind.name(), &id)
            .await
            .map_err(&failed)?;
        let Some(head) = parked.first().filter(|head| head.position < erasure.position) else {
            return Ok(());
        };
        match parked::skip(store, head.position, "what it is about was erased", SKIPPER).await {
            // Somebody else has decided on it meanwhile.
            Ok(_) | Err(ParkedError::NotParked { .. } | ParkedError::Waits { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until the live tables show `position`, at most until `deadline`; says whether they do.
async fn shown(pool: &PgPool, position: i64, deadline: Instant) -> Result<bool, sqlx::Error> {
    loop {
        if checkpoint::read(pool).await?.position >= position {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(POLL / 5).await;
    }
}

/// Returns the first parked event of these meetings up to `until`: behind it the tables still show the person.
async fn parked_of(pool: &PgPool, meetings: &[String], until: i64) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT min(position) FROM ops.parked_events
          WHERE generation = (SELECT generation FROM checkpoint) AND aggregate_type = 'meeting'
            AND aggregate_id = ANY ($1) AND position <= $2",
    )
    .bind(meetings)
    .bind(until)
    .fetch_one(pool)
    .await
}
