//! The audit trail is what the log says, whatever happened, and each question has an index.

use std::collections::BTreeMap;

use api::book::Book;
use chrono::{DateTime, Utc};
use domain::ids::MeetingId;
use domain::meeting::{Meeting, MeetingCommand};
use domain::speaker::LinkedBy;
use event_store::command_bus::Context;
use projections::audit::{self, Reassignment, ReassignmentFilter};
use sqlx::PgPool;
use tests::TestDatabase;
use uuid::Uuid;

use super::caught_up_and_equal;
use super::history::{append, diarized, reassigned, registered, started};
use super::random::meeting_command;
use crate::log::json_of;

const MEETINGS: u128 = 8;
const COMMANDS: usize = 2500;
const REVIEWERS: [&str; 3] = ["anna", "bert", "cleo"];

/// What the log says of one reassignment.
#[derive(Debug, Clone, PartialEq, sqlx::FromRow)]
struct Said {
    position: i64,
    recorded_at: DateTime<Utc>,
    meeting_id: Uuid,
    sequence: i64,
    speaker_id: Uuid,
    from_profile_id: Option<Uuid>,
    to_profile_id: Option<Uuid>,
    reason: Option<String>,
    actor: Option<String>,
    actor_kind: Option<String>,
    previous_by: Option<String>,
    correlation_id: Option<String>,
    carried_from: Option<Uuid>,
}

impl From<Reassignment> for Said {
    fn from(row: Reassignment) -> Self {
        Self {
            position: row.position,
            recorded_at: row.recorded_at,
            meeting_id: row.meeting_id,
            sequence: row.sequence,
            speaker_id: row.speaker_id,
            from_profile_id: row.from_profile_id,
            to_profile_id: row.to_profile_id,
            reason: row.reason,
            actor: row.actor,
            actor_kind: row.actor_kind,
            previous_by: row.previous_by,
            correlation_id: row.correlation_id,
            carried_from: row.carried_from,
        }
    }
}

/// Reads it from the log itself, the newest first. What was erased since is not asked for.
async fn said(pool: &PgPool) -> Vec<Said> {
    let mut said: Vec<Said> = sqlx::query_as(
        "SELECT position, recorded_at, aggregate_id::uuid AS meeting_id, sequence,
                (p ->> 'speaker_id')::uuid AS speaker_id, (p ->> 'from')::uuid AS from_profile_id,
                (p ->> 'to')::uuid AS to_profile_id, NULL AS reason, metadata ->> 'actor' AS actor,
                metadata ->> 'actor_kind' AS actor_kind, p ->> 'previous_by' AS previous_by,
                metadata ->> 'correlation_id' AS correlation_id,
                (p #>> '{carried_from,speaker_id}')::uuid AS carried_from
           FROM log.events e, LATERAL (SELECT payload -> 'SpeakerReassigned' AS p) q
          WHERE event_type = 'SpeakerReassigned' AND NOT EXISTS (
                SELECT FROM log.events x WHERE x.aggregate_id = e.aggregate_id
                   AND x.event_type = 'MeetingErased' AND x.position > e.position)
          ORDER BY position DESC",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    let log = tests::opened_log(pool).await;
    for row in &mut said {
        let payload = json_of(&log[row.position as usize - 1].payload);
        row.reason = payload["SpeakerReassigned"]["reason"].as_str().map(str::to_owned);
    }
    said
}

/// Asks page by page.
async fn asked(pool: &PgPool, filter: &ReassignmentFilter, limit: i64) -> Vec<Said> {
    let (mut all, mut before) = (vec![], None);
    loop {
        let page = audit::reassignments(pool, filter, before, limit).await.unwrap();
        assert!(page.len() as i64 <= limit);
        let Some(last) = page.last() else { return all };
        before = Some(last.position);
        all.extend(page.into_iter().map(Said::from));
    }
}

/// Says whether a filter lets a row through.
fn passes(filter: &ReassignmentFilter, row: &Said) -> bool {
    let ReassignmentFilter { profile, actor, actor_kind, meeting, from, to, previous_by } = filter;
    profile.is_none_or(|id| row.from_profile_id == Some(id) || row.to_profile_id == Some(id))
        && (actor.is_none() || row.actor == *actor)
        && (actor_kind.is_none() || row.actor_kind == *actor_kind)
        && meeting.is_none_or(|id| row.meeting_id == id)
        && from.is_none_or(|from| row.recorded_at >= from)
        && to.is_none_or(|to| row.recorded_at < to)
        && previous_by.is_none_or(|by| row.previous_by.as_deref() == Some(by.as_str()))
}

fn random_filter(random: &mut fastrand::Rng, rows: &[Said]) -> ReassignmentFilter {
    let one = rows[random.usize(..rows.len())].clone();
    let other = rows[random.usize(..rows.len())].clone();
    let mut sometimes = || random.u8(..3) == 0;
    ReassignmentFilter {
        profile: one.to_profile_id.filter(|_| sometimes()),
        actor: one.actor.filter(|_| sometimes()),
        actor_kind: one.actor_kind.filter(|_| sometimes()),
        meeting: Some(other.meeting_id).filter(|_| sometimes()),
        from: Some(one.recorded_at).filter(|_| sometimes()),
        to: Some(other.recorded_at).filter(|_| sometimes()),
        previous_by: sometimes().then_some(if one.position % 2 == 0 {
            LinkedBy::Person
        } else {
            LinkedBy::Machine
        }),
    }
}

/// Sometimes somebody says who a speaker is that there is, or takes it back.
async fn review(book: &Book, random: &mut fastrand::Rng, id: MeetingId) -> Option<MeetingCommand> {
    let Meeting::Active(record) = book.bus.load_meeting(id).await.unwrap().0 else { return None };
    if record.speakers.is_empty() || random.bool() {
        return None;
    }
    let speaker_id = *record.speakers.keys().nth(random.usize(..record.speakers.len()))?;
    let (expected, reason) = (None, format!("because {}", random.u8(..)).parse().unwrap());
    if random.u8(..3) == 0 {
        return Some(MeetingCommand::UndoReassignment { speaker_id, expected, reason });
    }
    let to = random.bool().then(|| Uuid::from_u128(0xeeee + random.u128(..3)).into());
    Some(MeetingCommand::ReassignSpeaker { speaker_id, to, expected, reason })
}

#[tokio::test]
async fn the_audit_of_any_history_is_what_the_log_says_under_any_filter() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    book.start_projector();
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    for n in 0..COMMANDS {
        let context = Context {
            actor: REVIEWERS[random.usize(..REVIEWERS.len())].to_owned(),
            actor_kind: ["person", "service"][random.usize(..2)].to_owned(),
            correlation_id: random.bool().then(|| format!("review-{n}")),
            ..Context::default()
        };
        let id = MeetingId::from(Uuid::from_u128(0xaaaa + random.u128(..MEETINGS)));
        // Many are refused, as they do not fit the meeting's state.
        let command = review(&book, &mut random, id).await;
        let command = command.unwrap_or_else(|| meeting_command(&mut random, id));
        let _ = book.bus.meeting(id, command, &context).await;
    }
    let pool = book.pool();
    caught_up_and_equal(pool).await;
    let said = said(pool).await;
    assert!(said.len() > 20, "seed {seed}: hardly anything was said");
    assert_eq!(asked(pool, &ReassignmentFilter::default(), 7).await, said, "seed {seed}");
    for _ in 0..100 {
        let filter = random_filter(&mut random, &said);
        let expected = said.iter().filter(|row| passes(&filter, row)).cloned().collect::<Vec<_>>();
        let limit = random.i64(1..20);
        assert_eq!(asked(pool, &filter, limit).await, expected, "seed {seed}: {filter:?}");
    }
    // Each label is the one under which the speaker's id was given. Only somebody who is forgotten can be one of
    // an earlier diarization, which the cached result had still.
    let labels: Vec<(Uuid, Uuid, Option<String>, bool)> = sqlx::query_as(
        "SELECT meeting_id, speaker_id, cluster_id, payload #> '{SpeakerReassigned,cause}' IS NOT NULL
           FROM speaker_reassignments JOIN log.events USING (position)",
    )
    .fetch_all(pool)
    .await
    .unwrap();
    for (meeting, speaker, label, is_forgetting) in labels {
        let Some(label) = label else {
            assert!(is_forgetting, "seed {seed}: {speaker} has no label");
            continue;
        };
        let id = |attempt| MeetingId::from(meeting).speaker(attempt, &label.parse().unwrap()).as_uuid();
        assert!((1..100).any(|attempt| id(attempt) == speaker), "seed {seed}: {speaker} is not {label}");
    }
    book.close().await;
}

#[tokio::test]
async fn a_time_to_come_ends_nothing_and_begins_nothing() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    book.start_projector();
    let meeting = Uuid::from_u128(0xa0);
    for given in [registered(meeting), started(meeting, 1), diarized(meeting, 1, &["a"])] {
        append(&book, &given).await;
    }
    append(&book, &reassigned(meeting, 1, "a", Some(Uuid::from_u128(1)))).await;
    caught_up_and_equal(book.pool()).await;
    let in_a_year = Some(Utc::now() + chrono::TimeDelta::days(365));
    let rows = async |from, to| {
        let filter = ReassignmentFilter { from, to, ..ReassignmentFilter::default() };
        asked(book.pool(), &filter, 10).await.len()
    };
    assert_eq!(rows(None, in_a_year).await, 1);
    assert_eq!(rows(in_a_year, None).await, 0);
    assert_eq!(rows(Some(DateTime::UNIX_EPOCH), in_a_year).await, 1);
    assert_eq!(rows(None, Some(DateTime::UNIX_EPOCH)).await, 0);
    book.close().await;
}

#[tokio::test]
async fn every_question_is_answered_from_an_index_and_reads_little_more_than_its_page() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    tests::audit::lay_down(&pool, 60_000).await;
    let one = |n: i64| Some(tests::audit::profile(n));
    let none = ReassignmentFilter::default;
    let month = (25_000, 27_500);
    let all = (0, i64::MAX);
    let index = |name: &str| format!("speaker_reassignments_{name}");
    for (what, filter, between, expected) in [
        ("nothing", none(), all, vec!["pkey"]),
        ("a month", none(), month, vec!["pkey"]),
        ("profile", ReassignmentFilter { profile: one(7), ..none() }, all, vec!["from", "to"]),
        ("profile and month", ReassignmentFilter { profile: one(7), ..none() }, month, vec!["from", "to"]),
        ("actor", ReassignmentFilter { actor: Some("reviewer-7".to_owned()), ..none() }, all, vec!["actor"]),
        (
            "actor and month",
            ReassignmentFilter { actor: Some("reviewer-7".to_owned()), ..none() },
            month,
            vec!["actor"],
        ),
        (
            "meeting",
            ReassignmentFilter { meeting: Some(tests::audit::meeting(7)), ..none() },
            all,
            vec!["meeting"],
        ),
        (
            "meeting and month",
            ReassignmentFilter { meeting: Some(tests::audit::meeting(2600)), ..none() },
            month,
            vec!["meeting"],
        ),
        (
            "a person's word",
            ReassignmentFilter { previous_by: Some(LinkedBy::Person), ..none() },
            all,
            vec!["pkey"],
        ),
    ] {
        let (sql, arguments) = audit::statement(&filter, between, 51).unwrap();
        let sql = format!("EXPLAIN (ANALYZE, FORMAT JSON, TIMING OFF) {sql}");
        let plan: serde_json::Value =
            sqlx::query_scalar_with(&sql, arguments).persistent(false).fetch_one(&pool).await.unwrap();
        let mut scans = BTreeMap::new();
        collect_scans(&plan[0]["Plan"], &mut scans);
        let expected = expected.into_iter().map(index).collect::<Vec<_>>();
        assert_eq!(scans.keys().cloned().collect::<Vec<_>>(), expected, "{what}: {plan:#}");
        let read = scans.values().sum::<f64>();
        assert!(read <= 600.0, "{what} reads {read} rows: {plan:#}");
    }
}

/// Collects which indexes of the table a plan reads, and how many rows each; a scan of the whole table goes by
/// the table's name.
fn collect_scans(node: &serde_json::Value, scans: &mut BTreeMap<String, f64>) {
    // A bitmap of the index leads to the rows, and is counted already.
    let kind = node["Node Type"].as_str().unwrap();
    let is_scan = kind.contains("Scan") && kind != "Bitmap Heap Scan";
    let name = node["Index Name"].as_str().or(node["Relation Name"].as_str()).unwrap_or_default();
    if is_scan && name.starts_with("speaker_reassignments") {
        let rows = node["Actual Rows"].as_f64().unwrap_or_default();
        let removed = node["Rows Removed by Filter"].as_f64().unwrap_or_default();
        *scans.entry(name.to_owned()).or_default() += rows + removed;
    }
    for below in node["Plans"].as_array().into_iter().flatten() {
        collect_scans(below, scans);
    }
}
