//! Groups of appends of every kind against a serial model: a group must come out as if each of its appends
//! had come alone, in the order of the queue.

use std::collections::HashMap;
use std::ops::Range;

use event_store::append::{Append, AppendError, NewEvent, Outcome, Place};
use event_store::log::{self, StoredEvent};
use futures::future::join_all;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::Config;
use serde_json::Value;
use sqlx::{PgPool, Row};
use tests::TestDatabase;
use uuid::Uuid;

use super::{EVERYTHING, append_to, event, join_all_from_now, json_of, whole_log};

#[test]
fn a_mixed_group_comes_out_as_if_each_append_had_come_alone() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (database, book) = runtime.block_on(async {
        let database = TestDatabase::create().await;
        let book = database.open().await;
        (database, book)
    });
    let config = Config { cases: 150, failure_persistence: None, ..Config::default() };
    // One log serves all cases: each has aggregates and commands of its own, and begins at the log's end.
    proptest!(config, |(groups in vec(group(), 1..4))| {
        runtime.block_on(async {
            let head = log::head(book.pool()).await.unwrap();
            let mut model = Model::new(head);
            for group in groups {
                match group {
                    Group::Appender(steps) => {
                        let (appends, expected) = model.run(&steps);
                        let handed_in = join_all_from_now(book.store.appender(), appends).await;
                        prop_assert_eq!(told(join_all(handed_in).await), expected);
                    }
                    Group::Function(steps, cuts) => {
                        let (appends, expected) = model.run(&steps);
                        let ends = chunk_ends(&appends, &cuts);
                        let fresh = steps.iter().all(|step| !step.keyed);
                        let outcomes = call_log_append(book.pool(), &appends, &ends, fresh).await.unwrap();
                        prop_assert_eq!(outcomes.into_iter().map(Some).collect::<Vec<_>>(), expected);
                    }
                }
            }
            let stored = log::read(book.pool(), head, EVERYTHING).await.unwrap();
            prop_assert_eq!(stored.iter().map(Line::of).collect::<Vec<_>>(), model.log);
            Ok(())
        })?;
    });
    runtime.block_on(async {
        let pool = database.pool().await;
        assert!(whole_log(&pool).await.len() > 1000, "the cases were too small to mean something");
    });
}

#[tokio::test]
async fn a_group_that_is_cut_wrongly_is_not_appended_at_all() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let aggregate = Uuid::now_v7();
    let (first, second) = (append_to(aggregate, 0, 1), append_to(aggregate, 0, 1));
    let error = call_log_append(&pool, &[first.clone(), second.clone()], &[2], false).await.unwrap_err();
    let constraint = error.as_database_error().unwrap().constraint().map(str::to_owned);
    assert_eq!(constraint.as_deref(), Some("events_one_per_sequence"));
    assert_eq!(log::head(&pool).await.unwrap(), 0);

    let outcomes = call_log_append(&pool, &[first, second], &[1, 2], false).await.unwrap();
    assert!(
        matches!(outcomes[..], [Outcome::Appended(_), Outcome::Conflict { actual_version: 1 }]),
        "{outcomes:?}"
    );
}

/// Calls the SQL function as a caller of its own, with the cuts given. `fresh` says that no command of the
/// group can be known.
pub(super) async fn call_log_append(
    pool: &PgPool,
    appends: &[Append],
    chunk_ends: &[i32],
    fresh: bool,
) -> Result<Vec<Outcome>, sqlx::Error> {
    let hmac = |append: &Append| Some(append.request_hmac.clone()).filter(|hmac| !hmac.is_empty());
    let events = appends
        .iter()
        .zip(1..)
        .flat_map(|(append, n)| append.events.iter().zip(1..).map(move |(event, m)| (n, m, event)))
        .collect::<Vec<(i32, i32, &NewEvent)>>();
    let rows = sqlx::query(
        "SELECT outcome, version, first_position, last_position, request_hmac
           FROM log.append($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14,
                           '{}', '{}', '{}', '{}', '{}')",
    )
    .bind(appends.iter().map(|append| append.command_id).collect::<Vec<_>>())
    .bind(appends.iter().map(hmac).collect::<Vec<_>>())
    .bind(appends.iter().map(|append| append.aggregate_type).collect::<Vec<_>>())
    .bind(appends.iter().map(|append| append.aggregate_id.clone()).collect::<Vec<_>>())
    .bind(appends.iter().map(|append| append.expected_version).collect::<Vec<_>>())
    .bind(appends.iter().map(|append| append.events.len() as i32).collect::<Vec<_>>())
    .bind(appends.iter().map(|append| append.metadata.clone()).collect::<Vec<_>>())
    .bind(events.iter().map(|(n, _, _)| *n).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, m, _)| *m).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, _, event)| event.event_type.clone()).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, _, event)| event.event_version.clone()).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, _, event)| event.payload.to_json()).collect::<Vec<_>>())
    .bind(chunk_ends)
    .bind(fresh)
    .fetch_all(pool)
    .await?;
    if rows[0].get::<&str, _>("outcome") == "all appended" {
        let ends = appends.iter().scan(rows[0].get::<i64, _>("first_position") - 1, |last, append| {
            *last += append.events.len() as i64;
            Some((append, *last))
        });
        let place = |(append, last_position): (&Append, i64)| {
            let events = append.events.len() as i64;
            let first_position = (events > 0).then(|| last_position - events + 1);
            Place { version: append.expected_version + events, first_position, last_position }
        };
        return Ok(ends.map(place).map(Outcome::Appended).collect());
    }
    let outcome = |row: &sqlx::postgres::PgRow| {
        let place = || Place { version: row.get(1), first_position: row.get(2), last_position: row.get(3) };
        match row.get("outcome") {
            "appended" => Outcome::Appended(place()),
            "duplicate" => Outcome::Duplicate { place: place(), request_hmac: row.get(4) },
            "conflict" => Outcome::Conflict { actual_version: row.get(1) },
            other => panic!("{other}"),
        }
    };
    Ok(rows.iter().map(outcome).collect())
}

/// Appends given at once, and to whom.
#[derive(Debug)]
enum Group {
    Appender(Vec<Step>),
    /// With further cuts where none is needed.
    Function(Vec<Step>, Vec<bool>),
}

#[derive(Debug, Clone)]
struct Step {
    /// Whether its client gave the command a key; else it comes once, and is not remembered.
    keyed: bool,
    /// Of a command with a key: one of a few that come again, or one that comes once.
    command: Option<usize>,
    /// One of a few aggregates; two of another type have the same id.
    aggregate: usize,
    /// The version expected; none for the right one.
    expected: Option<i64>,
    events: usize,
    /// What is wrong with the data.
    flaw: Option<Flaw>,
}

/// Data that PostgreSQL does not take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    NulEscape,
    LoneSurrogate,
    NotJson,
    BadMetadata,
    /// A NUL itself: it does not even arrive, so that it is refused where a conflict would be answered else.
    NulByte,
}

const FLAWS: [Flaw; 5] =
    [Flaw::NulEscape, Flaw::LoneSurrogate, Flaw::NotJson, Flaw::BadMetadata, Flaw::NulByte];
const AGGREGATES: usize = 6;

/// The log as it must become.
struct Model {
    aggregates: Vec<(&'static str, Uuid)>,
    repeated_commands: Vec<Uuid>,
    head: i64,
    versions: HashMap<(&'static str, String), i64>,
    commands: HashMap<Uuid, (Place, Vec<u8>)>,
    log: Vec<Line>,
    hmacs: Range<u64>,
}

/// What of an event is compared.
#[derive(Debug, PartialEq)]
struct Line {
    position: i64,
    aggregate_type: String,
    aggregate_id: String,
    sequence: i64,
    payload: Value,
    metadata: Value,
}

impl Model {
    fn new(head: i64) -> Self {
        let ids = (0..AGGREGATES / 2).map(|_| Uuid::now_v7()).collect::<Vec<_>>();
        Self {
            aggregates: ids.iter().flat_map(|id| [("meeting", *id), ("profile", *id)]).collect(),
            repeated_commands: (0..3).map(|_| Uuid::now_v7()).collect(),
            head,
            versions: HashMap::new(),
            commands: HashMap::new(),
            log: vec![],
            hmacs: 0..u64::MAX,
        }
    }

    /// Returns the appends that the steps stand for, and their outcomes; none for a refusal.
    fn run(&mut self, steps: &[Step]) -> (Vec<Append>, Vec<Option<Outcome>>) {
        steps
            .iter()
            .map(|step| {
                let append = self.append_for(step);
                let outcome = self.append(&append, step.flaw);
                (append, outcome)
            })
            .unzip()
    }

    fn append_for(&mut self, step: &Step) -> Append {
        let (aggregate_type, id) = self.aggregates[step.aggregate];
        let actual = self.versions.get(&(aggregate_type, id.to_string())).copied().unwrap_or(0);
        // Only a command with a key is worth remembering when it has no effect.
        let events = if step.keyed { step.events } else { step.events.max(1) };
        let mut append = append_to(id, step.expected.unwrap_or(actual), events);
        append.aggregate_type = aggregate_type;
        if step.keyed {
            append.request_hmac = self.hmacs.next().unwrap().to_be_bytes().to_vec();
            if let Some(command) = step.command {
                append.command_id = self.repeated_commands[command];
            }
        }
        if let Some(flaw) = step.flaw {
            // The last event is at fault: what precedes it must not stay either.
            let flawed = |payload: &str| NewEvent { payload: payload.to_owned().into(), ..event("Flawed") };
            match flaw {
                Flaw::NulEscape => append.events.push(flawed(r#"{"text": "\u0000"}"#)),
                Flaw::LoneSurrogate => append.events.push(flawed(r#"{"text": "\ud800"}"#)),
                Flaw::NotJson => append.events.push(flawed("{")),
                Flaw::NulByte => append.events.push(flawed("{\"text\": \"\0\"}")),
                Flaw::BadMetadata => {
                    append.events.push(event("Noted"));
                    append.metadata = "not JSON".to_owned();
                }
            }
        }
        append
    }

    fn append(&mut self, append: &Append, flaw: Option<Flaw>) -> Option<Outcome> {
        if flaw == Some(Flaw::NulByte) {
            return None;
        }
        if let Some((place, request_hmac)) = self.commands.get(&append.command_id) {
            return Some(Outcome::Duplicate { place: *place, request_hmac: request_hmac.clone() });
        }
        let version = self.versions.entry((append.aggregate_type, append.aggregate_id.clone())).or_default();
        if *version != append.expected_version {
            return Some(Outcome::Conflict { actual_version: *version });
        }
        if flaw.is_some() {
            return None;
        }
        let first_position = (!append.events.is_empty()).then_some(self.head + 1);
        for event in &append.events {
            self.head += 1;
            *version += 1;
            self.log.push(Line {
                position: self.head,
                aggregate_type: append.aggregate_type.to_owned(),
                aggregate_id: append.aggregate_id.clone(),
                sequence: *version,
                payload: json_of(&event.payload.to_json()),
                metadata: json_of(&append.metadata),
            });
        }
        let place = Place { version: *version, first_position, last_position: self.head };
        if !append.request_hmac.is_empty() {
            self.commands.insert(append.command_id, (place, append.request_hmac.clone()));
        }
        Some(Outcome::Appended(place))
    }
}

impl Line {
    fn of(stored: &StoredEvent) -> Self {
        Self {
            position: stored.position,
            aggregate_type: stored.aggregate_type.clone(),
            aggregate_id: stored.aggregate_id.clone(),
            sequence: stored.sequence,
            payload: json_of(&stored.payload),
            metadata: json_of(&stored.metadata),
        }
    }
}

fn told(outcomes: Vec<Result<Outcome, AppendError>>) -> Vec<Option<Outcome>> {
    let told = |outcome| match outcome {
        Ok(outcome) => Some(outcome),
        Err(AppendError::Refused(_)) => None,
        Err(error) => panic!("{error}"),
    };
    outcomes.into_iter().map(told).collect()
}

/// Cuts where an aggregate or a command comes again, as it must be, and where `cuts` says.
fn chunk_ends(appends: &[Append], cuts: &[bool]) -> Vec<i32> {
    let mut ends = Vec::new();
    let mut start = 0;
    for (n, append) in appends.iter().enumerate().skip(1) {
        let again = appends[start..n].iter().any(|earlier| {
            earlier.command_id == append.command_id
                || (earlier.aggregate_type, &earlier.aggregate_id)
                    == (append.aggregate_type, &append.aggregate_id)
        });
        if again || cuts[n % cuts.len()] {
            ends.push(n as i32);
            start = n;
        }
    }
    ends.push(appends.len() as i32);
    ends
}

/// Long groups of all kinds, in which commands and aggregates come again; and short ones without keys, of
/// which many are appended in one set.
fn group() -> impl Strategy<Value = Group> {
    let keyed = || any::<bool>().boxed();
    let keyless = || Just(false).boxed();
    let sound = || Just(None).boxed();
    let flawed = || prop_oneof![3 => Just(None), 1 => select(&FLAWS[..]).prop_map(Some)].boxed();
    let cuts = vec(any::<bool>(), 1..8);
    prop_oneof![
        vec(step(keyed(), flawed()), 1..40).prop_map(Group::Appender),
        vec(step(keyless(), flawed()), 1..5).prop_map(Group::Appender),
        (vec(step(keyed(), sound()), 1..40), cuts).prop_map(|(steps, cuts)| Group::Function(steps, cuts)),
        vec(step(keyless(), sound()), 1..5).prop_map(|steps| Group::Function(steps, vec![false])),
    ]
}

fn step(keyed: BoxedStrategy<bool>, flaw: BoxedStrategy<Option<Flaw>>) -> impl Strategy<Value = Step> {
    let expected = prop_oneof![3 => Just(None), 1 => (-1..5_i64).prop_map(Some)];
    let command = option::weighted(0.2, 0..3_usize);
    (keyed, command, 0..AGGREGATES, expected, 0..4_usize, flaw).prop_map(
        |(keyed, command, aggregate, expected, events, flaw)| Step {
            keyed,
            command,
            aggregate,
            expected,
            events,
            flaw,
        },
    )
}
