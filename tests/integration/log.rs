//! The log against a real PostgreSQL: what it promises of order and permanence, whoever appends.
//!
//! `model` holds groups of appends against a serial model; `processes` lets several processes append at once;
//! `interrupted` takes their connections away.

pub(crate) mod interrupted;
mod model;
mod processes;
pub(crate) mod proxy;

use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::pin::pin;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use event_store::append::{Append, AppendError, Appender, NewEvent, Outcome, Place};
use event_store::log::{self, BatchLimits, LogError, StoredEvent};
use event_store::migrate::migrate;
use event_store::{EventStore, locks};
use futures::future::{join_all, poll_immediate, try_join_all};
use serde_json::json;
use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tests::TestDatabase;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::read_models::eventually;

/// How long anything may take that must come to an end.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// A batch without bounds.
const EVERYTHING: BatchLimits = BatchLimits { events: usize::MAX, bytes: usize::MAX };

#[tokio::test]
async fn update_delete_and_truncate_are_refused() {
    let database = TestDatabase::create().await;
    let pool = database.open().await.pool().clone();
    fill(&pool, 3).await;
    let before = whole_log(&pool).await;
    for statement in [
        "UPDATE log.events SET payload = '{}' WHERE position = 2",
        "DELETE FROM log.events WHERE position = 2",
        "DELETE FROM log.events WHERE false",
        "TRUNCATE log.events",
        "TRUNCATE log.events CASCADE",
        "INSERT INTO log.events SELECT * FROM log.events WHERE position = 2
             ON CONFLICT (position) DO UPDATE SET payload = '{}'",
    ] {
        let refused = pool.execute(statement).await.unwrap_err();
        let refused = refused.as_database_error().unwrap();
        assert_eq!(refused.code().as_deref(), Some("42501"), "{statement}: {refused}");
        assert!(refused.message().contains("append-only"), "{statement}: {refused}");
    }
    assert_eq!(payloads(&whole_log(&pool).await), payloads(&before));
}

#[tokio::test]
async fn the_log_is_read_in_order_from_a_position_and_within_limits() {
    let database = TestDatabase::create().await;
    let pool = database.open().await.pool().clone();
    fill(&pool, 10).await;
    let positions = async |after, limits| {
        let events = log::read(&pool, after, limits).await.unwrap();
        events.iter().map(|event| event.position).collect::<Vec<_>>()
    };
    assert_eq!(positions(0, EVERYTHING).await, (1..=10).collect::<Vec<_>>());
    assert_eq!(positions(7, EVERYTHING).await, [8, 9, 10]);
    assert_eq!(positions(10, EVERYTHING).await, [0; 0]);
    assert_eq!(positions(3, BatchLimits { events: 2, ..EVERYTHING }).await, [4, 5]);

    // A batch stops at the event that reaches the bound, and always moves on by one.
    let bytes = log::read(&pool, 0, EVERYTHING).await.unwrap()[0].payload.len();
    assert_eq!(positions(3, BatchLimits { bytes: 2 * bytes, ..EVERYTHING }).await, [4, 5]);
    assert_eq!(positions(3, BatchLimits { bytes: 2 * bytes + 1, ..EVERYTHING }).await, [4, 5, 6]);
    assert_eq!(positions(3, BatchLimits { bytes: 0, ..EVERYTHING }).await, [4]);
}

#[tokio::test]
async fn a_hole_is_an_error_that_names_it() {
    let database = TestDatabase::create().await;
    let pool = database.open().await.pool().clone();
    fill(&pool, 6).await;
    // What nobody may do, done by a superuser.
    let damage = "ALTER TABLE log.events DISABLE TRIGGER events_are_append_only;
                  DELETE FROM log.events WHERE position IN (3, 4);
                  ALTER TABLE log.events ENABLE TRIGGER events_are_append_only";
    pool.execute(damage).await.unwrap();

    for after in [0, 2] {
        let error = log::read(&pool, after, EVERYTHING).await.unwrap_err();
        assert!(matches!(error, LogError::Hole { missing: 3, found: 5 }), "{error:?}");
        assert_eq!(error.to_string(), "the log is damaged: position 3 is missing, position 5 follows");
    }
    assert_eq!(log::read(&pool, 4, EVERYTHING).await.unwrap().len(), 2, "behind the hole all is well");
}

#[tokio::test]
async fn a_time_is_the_last_position_recorded_by_then() {
    let database = TestDatabase::create().await;
    let pool = database.open().await.pool().clone();
    let at = async |time: DateTime<Utc>| log::position_at(&pool, time).await.unwrap();
    assert_eq!(at(Utc::now() - TimeDelta::seconds(1)).await, Some(0), "an empty log");
    // Several positions share a time.
    for events in [1, 3, 2, 1, 7] {
        fill(&pool, events).await;
    }
    let events = whole_log(&pool).await;
    let until =
        |time| events.iter().filter(|event| event.recorded_at <= time).map(|event| event.position).max();
    for event in &events {
        for microseconds in [-1, 0, 1] {
            let time = event.recorded_at + TimeDelta::microseconds(microseconds);
            assert_eq!(at(time).await, Some(until(time).unwrap_or(0)), "{time}");
        }
    }
    assert_eq!(at(DateTime::UNIX_EPOCH).await, Some(0));
    assert_eq!(at(Utc::now() + TimeDelta::minutes(1)).await, None);
}

#[tokio::test]
async fn a_time_waits_for_an_append_that_may_be_recorded_before_it() {
    let database = TestDatabase::create().await;
    let pool = database.open().await.pool().clone();
    fill(&pool, 1).await;
    // An append in slow motion: the lock, its time, its events, and at last it is seen.
    let mut append = pool.begin().await.unwrap();
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(locks::APPEND).execute(&mut *append).await.unwrap();
    append
        .execute(
            "INSERT INTO log.events (position, recorded_at, aggregate_type, aggregate_id, sequence,
                                     event_type, event_version, payload, metadata)
             SELECT 2, clock_timestamp(), aggregate_type, aggregate_id, 2,
                    event_type, event_version, payload, metadata FROM log.events",
        )
        .await
        .unwrap();
    let now = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&pool).await.unwrap();
    let asking = pool.clone();
    let asked = tokio::spawn(async move { log::position_at(&asking, now).await.unwrap() });
    let waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                                  AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
    let waits = async || sqlx::query_scalar::<_, bool>(waits).fetch_one(&pool).await.unwrap().then_some(());
    eventually("it waits for the append", waits).await;
    append.commit().await.unwrap();
    assert_eq!(timeout(PATIENCE, asked).await.unwrap().unwrap(), Some(2));
}

#[tokio::test]
async fn an_event_that_does_not_decode_names_its_position_and_not_its_content() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let renamed = |payload: &str| NewEvent { payload: payload.to_owned().into(), ..event("ProfileRenamed") };
    let mut append = append_to(Uuid::now_v7(), 0, 0);
    append.events = vec![
        renamed(r#"{"ProfileRenamed": {"display_name": "Mira Sandoz"}}"#),
        renamed(r#"{"ProfileRenamed": {"display_name": ["Mira Sandoz"]}}"#),
        event("NeverHeardOf"),
    ];
    book.store.appender().append(append).await.unwrap();

    let events = whole_log(book.pool()).await;
    assert_eq!(events[0].decode().unwrap().position, 1);
    for event in &events[1..] {
        let error = event.decode().unwrap_err();
        assert!(
            matches!(error, LogError::Decode { position, .. } if position == event.position),
            "{error:?}"
        );
        assert_eq!(error.to_string(), format!("the event at position {} cannot be read", event.position));
        assert!(!format!("{error:?}").contains("Sandoz"), "{error:?}");
    }
}

#[tokio::test]
async fn appends_go_on_under_an_idle_long_lived_snapshot() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    fill(book.pool(), 5).await;
    let mut report = database.pool().await.begin().await.unwrap();
    report.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").await.unwrap();
    assert_eq!(log::head(&mut *report).await.unwrap(), 5);

    let aggregate = Uuid::now_v7();
    for version in 0..500 {
        let outcome = book.store.appender().append(append_to(aggregate, version, 1)).await.unwrap();
        assert_eq!(place(&outcome).last_position, 6 + version);
    }
    assert_eq!(log::head(&mut *report).await.unwrap(), 5, "the snapshot stayed what it was");
    report.commit().await.unwrap();
    assert_eq!(whole_log(book.pool()).await.len(), 505);
}

#[tokio::test]
async fn the_logs_identity_is_made_once_and_differs_between_logs() {
    let (one, other) = (unmigrated_database().await, unmigrated_database().await);
    let mut identities = Vec::new();
    for pool in [&one, &other] {
        // As eight processes that start at once on an empty database.
        try_join_all((0..8).map(|_| migrate(pool))).await.unwrap();
        let identity = log::identity(pool).await.unwrap();
        migrate(pool).await.unwrap();
        let again = log::identity(pool).await.unwrap();
        let who = |identity: &event_store::Identity| {
            (identity.log_id, identity.epoch, identity.secret.hmac(&[b"probe"]))
        };
        assert_eq!(who(&identity), who(&again), "migrating again changes nothing");
        identities.push(who(&identity));
        let second =
            pool.execute("INSERT INTO log.identity (only_row, secret) VALUES (true, sha256(''))").await;
        assert_eq!(second.unwrap_err().as_database_error().unwrap().constraint(), Some("identity_pkey"));
    }
    let (one, other) = (&identities[0], &identities[1]);
    assert!(one.0 != other.0 && one.1 != other.1 && one.2 != other.2, "{one:?}, {other:?}");
}

#[tokio::test]
async fn what_was_handed_in_before_a_shutdown_is_appended_and_nothing_later() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let (shutdown, tasks) = (CancellationToken::new(), TaskTracker::new());
    let store = EventStore::open(pool.clone(), tests::master(), &shutdown, &tasks).await.unwrap();
    let aggregates = (0..1000).map(|_| Uuid::now_v7()).collect::<Vec<_>>();
    let handed_in =
        join_all_from_now(store.appender(), aggregates.iter().map(|id| append_to(*id, 0, 1))).await;

    shutdown.cancel();
    tasks.close();
    let outcomes = timeout(PATIENCE, join_all(handed_in)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(Outcome::Appended(_)))));
    timeout(PATIENCE, tasks.wait()).await.unwrap();
    let late = store.appender().append(append_to(Uuid::now_v7(), 0, 1)).await;
    assert!(matches!(late, Err(AppendError::Closed)), "{late:?}");

    let events = whole_log(&pool).await;
    let ids = events.iter().map(|event| event.aggregate_id.clone()).collect::<Vec<_>>();
    assert_eq!(ids, aggregates.iter().map(Uuid::to_string).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_full_queue_refuses_one_more_and_keeps_what_it_has() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let appender = book.store.appender();
    // On this one thread the appender does not come to its turn while nobody waits for anything.
    let mut waiting = Vec::new();
    let refused = loop {
        let mut append = Box::pin(appender.append(append_to(Uuid::now_v7(), 0, 1)));
        match poll_immediate(&mut append).await {
            None => waiting.push(append),
            Some(refused) => break refused,
        }
        assert!(waiting.len() < 100_000, "the queue has no end");
    };
    assert!(matches!(refused, Err(AppendError::Busy)), "{refused:?}");

    let taken = waiting.len();
    let outcomes = timeout(PATIENCE, join_all(waiting)).await.unwrap();
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Ok(Outcome::Appended(_)))));
    assert_eq!(whole_log(book.pool()).await.len(), taken);
    let room_again = appender.append(append_to(Uuid::now_v7(), 0, 1)).await;
    assert!(matches!(room_again, Ok(Outcome::Appended(_))), "{room_again:?}");
}

#[tokio::test]
async fn commands_are_forgotten_after_30_days_and_not_before() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let ids = (0..5).map(Uuid::from_u128).collect::<Vec<_>>();
    for command_id in &ids {
        let append = with_key(*command_id, append_to(Uuid::now_v7(), 0, 1));
        book.store.appender().append(append).await.unwrap();
    }
    let now = Utc::now();
    for (id, age) in ids.iter().zip([31, 40, 400, 29, 0]) {
        sqlx::query("UPDATE log.commands SET accepted_at = $2 WHERE command_id = $1")
            .bind(id)
            .bind(now - TimeDelta::days(age))
            .execute(book.pool())
            .await
            .unwrap();
    }
    let forget =
        async |limit| log::forget_commands(book.pool(), now - TimeDelta::days(30), limit).await.unwrap();
    assert_eq!([forget(2).await, forget(2).await, forget(2).await], [2, 1, 0]);
    let kept: Vec<Uuid> = sqlx::query_scalar("SELECT command_id FROM log.commands ORDER BY command_id")
        .fetch_all(book.pool())
        .await
        .unwrap();
    assert_eq!(kept, ids[3..]);

    let repeated = async |n: usize| {
        let append = with_key(ids[n], append_to(Uuid::now_v7(), 0, 1));
        book.store.appender().append(append).await.unwrap()
    };
    assert!(matches!(repeated(0).await, Outcome::Appended(_)));
    assert!(matches!(repeated(3).await, Outcome::Duplicate { .. }));
    assert_eq!(whole_log(book.pool()).await.len(), 6, "no event is forgotten with its command");
}

/// Returns an event whose content does not matter.
pub(crate) fn event(event_type: &str) -> NewEvent {
    NewEvent {
        event_type: event_type.to_owned(),
        event_version: "1".to_owned(),
        payload: "{}".to_owned().into(),
    }
}

/// Returns an append of so many events, which tell their command, to a profile.
pub(crate) fn append_to(profile: Uuid, expected_version: i64, events: usize) -> Append {
    let command_id = Uuid::now_v7();
    let noted =
        |n| NewEvent { payload: json!({"command": command_id, "n": n}).to_string().into(), ..event("Noted") };
    Append {
        command_id,
        request_hmac: vec![],
        aggregate_type: "profile",
        aggregate_id: profile.to_string(),
        expected_version,
        metadata: json!({ "command_id": command_id }).to_string(),
        events: (0..events).map(noted).collect(),
    }
}

/// Returns the append as one of a command that its client marked with a key.
fn with_key(command_id: Uuid, append: Append) -> Append {
    Append { command_id, request_hmac: vec![7; 32], ..append }
}

/// Hands appends in, in this order, and returns what is to be waited for.
pub(crate) async fn join_all_from_now(
    appender: &Appender,
    appends: impl IntoIterator<Item = Append>,
) -> Vec<impl Future<Output = Result<Outcome, AppendError>>> {
    let mut handed_in = Vec::new();
    for append in appends {
        let appender = appender.clone();
        let mut outcome = Box::pin(async move { appender.append(append).await });
        // An append is in the queue once it was polled.
        assert!(poll_immediate(&mut outcome).await.is_none(), "the appender answered before its turn");
        handed_in.push(outcome);
    }
    handed_in
}

/// Returns where an accepted append is, be it that it was settled after a lost connection.
pub(crate) fn place(outcome: &Outcome) -> Place {
    match outcome {
        Outcome::Appended(place) | Outcome::Duplicate { place, .. } => *place,
        Outcome::Conflict { .. } | Outcome::Forgotten => panic!("{outcome:?}"),
    }
}

/// Returns the whole log, and makes sure that it is in order: positions dense from 1, each aggregate's
/// sequences too, times never backwards.
pub(crate) async fn whole_log(pool: &PgPool) -> Vec<StoredEvent> {
    let events = log::read(pool, 0, EVERYTHING).await.unwrap();
    let mut versions = HashMap::new();
    let mut before = DateTime::<Utc>::MIN_UTC;
    for (position, event) in (1..).zip(&events) {
        assert_eq!(event.position, position);
        let version: &mut i64 = versions.entry((&event.aggregate_type, &event.aggregate_id)).or_default();
        *version += 1;
        assert_eq!(event.sequence, *version, "at position {position}");
        assert!(event.recorded_at >= before, "time runs backwards at position {position}");
        before = event.recorded_at;
    }
    events
}

/// Makes sure that `accepted` appends are all that is in the log, each once and where its answer says.
pub(crate) async fn assert_in_the_log_once(pool: &PgPool, accepted: &[(Append, Place)]) {
    let events = whole_log(pool).await;
    let mut taken = HashSet::new();
    for (append, place) in accepted {
        let first = place.first_position.unwrap();
        assert_eq!(place.last_position - first + 1, append.events.len() as i64);
        for (position, given) in (first..).zip(&append.events) {
            let stored = &events[position as usize - 1];
            assert_eq!(json_of(&stored.payload), json_of(&given.payload.to_json()), "at position {position}");
            assert_eq!(stored.aggregate_id, append.aggregate_id, "at position {position}");
            assert!(taken.insert(position), "two appends were told position {position}");
        }
        assert_eq!(events[place.last_position as usize - 1].sequence, place.version);
    }
    assert_eq!(taken.len(), events.len(), "the log holds what no answer told of");
}

pub(crate) fn json_of(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap()
}

fn payloads(events: &[StoredEvent]) -> Vec<&str> {
    events.iter().map(|event| event.payload.as_str()).collect()
}

/// Appends so many events by the SQL function alone.
async fn fill(pool: &PgPool, events: usize) {
    let append = append_to(Uuid::now_v7(), 0, events);
    let outcomes = pin!(model::call_log_append(pool, &[append], &[1], false)).await.unwrap();
    assert!(matches!(outcomes[..], [Outcome::Appended(_)]), "{outcomes:?}");
}

async fn unmigrated_database() -> PgPool {
    let name = format!("t_{}", Uuid::now_v7().simple());
    let mut connection = PgConnection::connect(&tests::server_url()).await.unwrap();
    connection.execute(format!("CREATE DATABASE {name}").as_str()).await.unwrap();
    connection.close().await.unwrap();
    let options = PgConnectOptions::from_str(&tests::server_url()).unwrap().database(&name);
    PgPool::connect_with(options).await.unwrap()
}
