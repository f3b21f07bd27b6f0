//! Whoever is forgotten is gone: from every table, whichever process is asked, and whatever was under way; and what
//! is left of the history still replays.

mod at_rest;
mod kills;
mod meetings;
mod restored;
mod under_way;

use std::collections::BTreeMap;

use api::auth::Role;
use api::extract::MIN_POSITION;
use domain::meeting::FORGOTTEN;
use domain::personal_data::Subject;
use event_store::log;
use projections::erasure;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Executor, PgPool};
use tests::TestDatabase;
use tests::server::{Server, answer};
use uuid::Uuid;

use crate::cli::run_on;
use crate::read_models::history::{append, cached, created, enrolled, profile_erased, renamed, started};
use crate::read_models::parked::append_raw;
use crate::read_models::{caught_up_and_equal, eventually};

/// A name that nothing else is called.
pub(crate) const NAME: &str = "Ottilie Brandauer-Xylander";
/// Two numbers are enough to have a direction.
pub(crate) const PLANE: [&str; 2] = ["--voice-models", "resemblyzer-0.1.4=2"];
const REVIEWER: &str = "person:reviewer-7";

/// Returns a voice in this direction, in degrees.
fn voice(degrees: f64) -> Value {
    json!({"model": "resemblyzer-0.1.4", "vector": [degrees.to_radians().cos(), degrees.to_radians().sin()]})
}

fn cluster(label: &str, degrees: f64) -> Value {
    json!({"cluster_id": label, "segments": [{"start_ms": 0, "duration_ms": 40_000}], "voice": voice(degrees)})
}

/// A server that knows two people, of whom the first is forgotten.
pub(crate) struct People {
    pub(crate) database: TestDatabase,
    pub(crate) server: Server,
    pub(crate) pool: PgPool,
    pub(crate) ottilie: Uuid,
    pub(crate) bo: Uuid,
}

impl People {
    pub(crate) async fn known() -> Self {
        let database = TestDatabase::create().await;
        let server = Server::start_with(&database, &PLANE).await;
        Self::of(database, server).await
    }

    /// Enrols both at a server of their own.
    pub(crate) async fn of(database: TestDatabase, server: Server) -> Self {
        let pool = database.pool().await;
        let ottilie = enrol(&server, NAME, 0.0).await;
        let bo = enrol(&server, "Bo", 90.0).await;
        Self { database, server, pool, ottilie, bo }
    }

    pub(crate) async fn command(&self, path: &str, body: Value) -> Value {
        let (status, told) = self.server.post_as(REVIEWER, path, &body).await;
        assert!(matches!(status, 200 | 201), "{path}: {status} {told}");
        told
    }

    /// Registers and starts the `n`th meeting, in which Ottilie (a) and Bo (b) speak; returns its path.
    pub(crate) async fn meeting(&self, n: usize) -> String {
        let told = self.command("/v1/meetings", json!({"sha256": format!("{n:064x}")})).await;
        let meeting = format!("/v1/meetings/{}", told["id"].as_str().unwrap());
        self.command(&format!("{meeting}/start"), json!({"worker": "w"})).await;
        self.command(&format!("{meeting}/fingerprint"), json!({"content_fp": format!("fp{n}")})).await;
        let clusters = json!({"clusters": [cluster("a", 3.0), cluster("b", 91.0)]});
        let told = self.command(&format!("{meeting}/speakers"), clusters).await;
        assert_eq!(told["events"], json!(["SpeakersDiarized", "SpeakerIdentified", "SpeakerIdentified"]));
        meeting
    }

    /// The same, to its end, with an artifact and a cached result.
    pub(crate) async fn completed(&self, n: usize) -> String {
        let meeting = self.meeting(n).await;
        let artifact = json!({"type": "transcript.md", "s3_key": format!("m/{n}.md"), "meta": {"words": 12}});
        self.command(&format!("{meeting}/artifacts"), artifact).await;
        let request = self.server.client.put(self.server.at(&format!("{meeting}/cache/asr")));
        assert_eq!(answer(request.json(&json!({"value": "{}"}))).await.0, 200);
        self.command(&format!("{meeting}/complete"), json!({})).await;
        meeting
    }

    pub(crate) async fn erase(&self, path: &str, body: Value) -> (u16, Value) {
        erase(&self.server, path, body).await
    }

    pub(crate) async fn forget(&self) -> Value {
        let (status, receipt) = self.erase(&format!("/v1/profiles/{}", self.ottilie), json!({})).await;
        assert_eq!((status, &receipt["state"]), (200, &json!("complete")), "{receipt}");
        receipt
    }

    /// Returns who speaks in a meeting, by label.
    pub(crate) async fn names(&self, meeting: &str) -> BTreeMap<String, Value> {
        let label = |speaker: &Value| {
            (speaker["cluster_id"].as_str().unwrap().to_owned(), speaker["user_profile_id"].clone())
        };
        self.speakers(meeting).await.iter().map(label).collect()
    }

    pub(crate) async fn speaker(&self, meeting: &str, label: &str) -> String {
        let speakers = self.speakers(meeting).await;
        let speaker = speakers.iter().find(|speaker| speaker["cluster_id"] == label).unwrap();
        speaker["id"].as_str().unwrap().to_owned()
    }

    /// Returns a meeting's speakers, with all that has happened.
    async fn speakers(&self, meeting: &str) -> Vec<Value> {
        let head = log::head(&self.pool).await.unwrap();
        let read = self.server.client.get(self.server.at(meeting)).header(MIN_POSITION, head);
        let (status, mut shown) = answer(read).await;
        assert_eq!(status, 200, "{shown}");
        serde_json::from_value(shown["speakers"].take()).unwrap()
    }

    /// Returns what is cached under a key.
    pub(crate) async fn cached(&self, key: &str) -> Option<String> {
        let value = sqlx::query_scalar("SELECT value FROM cache WHERE key = $1").bind(key);
        value.fetch_optional(&self.pool).await.unwrap()
    }
}

pub(crate) async fn enrol(server: &Server, name: &str, degrees: f64) -> Uuid {
    let (status, created) = server.post("/v1/profiles", &json!({"display_name": name})).await;
    assert_eq!(status, 201, "{created}");
    let id: Uuid = created["id"].as_str().unwrap().parse().unwrap();
    assert_eq!(server.post(&format!("/v1/profiles/{id}/voice"), &voice(degrees)).await.0, 201);
    id
}

pub(crate) async fn erase(server: &Server, path: &str, body: Value) -> (u16, Value) {
    answer(server.client.request(Method::DELETE, server.at(path)).json(&body)).await
}

/// Checks that the live tables are what history says, by the program's own proof.
pub(crate) async fn verified(database: &TestDatabase) {
    let ran = run_on(database, &["verify"]).await;
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
}

fn id_of(meeting: &str) -> &str {
    meeting.rsplit_once('/').unwrap().1
}

#[tokio::test]
async fn whoever_is_forgotten_is_gone_from_everywhere_and_nothing_brings_them_back() {
    let people = People::known().await;
    let ottilie = people.ottilie;
    let done = people.completed(1).await;
    let under_way = people.meeting(2).await;
    let again = people.completed(3).await;
    // Somebody says that the other is Ottilie, too; what becomes of it with the new diarization is left open.
    let other = people.speaker(&again, "b").await;
    people
        .command(
            &format!("{again}/speakers/{other}/reassign"),
            json!({"profile_id": ottilie, "reason": "I heard her"}),
        )
        .await;
    people.command(&format!("{again}/reprocess"), json!({"worker": "w"})).await;
    let elsewhere = json!([{"cluster_id": "x", "segments": [{"start_ms": 900_000, "duration_ms": 10}]}]);
    people.command(&format!("{again}/speakers"), json!({"clusters": elsewhere})).await;
    let (_, pending) = people.server.get(&format!("{again}/pending-corrections")).await;
    assert_eq!(pending["items"][0]["profile_id"], json!(ottilie), "{pending}");
    caught_up_and_equal(&people.pool).await;
    for meeting in [&done, &again] {
        let cached = people.cached(&format!("meeting:{}", id_of(meeting))).await.unwrap();
        assert!(cached.contains(&ottilie.to_string()), "{cached}");
    }
    let of_stages = ["asr:fp1", "asr:fp3"];
    for key in of_stages {
        assert_eq!(people.cached(key).await.as_deref(), Some("{}"));
    }

    let receipt = people.forget().await;
    let numbers = ["speakers", "meetings"].map(|field| receipt[field].as_i64().unwrap());
    assert_eq!(numbers, [4, 3], "{receipt}");
    assert_eq!((&receipt["kind"], &receipt["subject"]), (&json!("profile"), &json!(ottilie)));
    assert!(!receipt.to_string().contains("Ottilie"), "{receipt}");
    let (_, shown) = people.server.get(&format!("/v1/erasures/{ottilie}")).await;
    assert_eq!(shown, receipt);
    let (_, all) = people.server.get("/v1/erasures").await;
    assert_eq!(all["items"], json!([receipt]));

    // Gone from every table, with events that say why.
    caught_up_and_equal(&people.pool).await;
    assert_eq!(people.server.get(&format!("/v1/profiles/{ottilie}")).await.0, 404);
    for (meeting, bo) in [(&done, json!(people.bo)), (&under_way, json!(people.bo))] {
        let names = people.names(meeting).await;
        assert_eq!((&names["a"], &names["b"]), (&Value::Null, &bo), "{meeting}");
    }
    let cached = people.cached(&format!("meeting:{}", id_of(&done))).await.unwrap();
    assert!(!cached.contains(&ottilie.to_string()) && cached.contains(&people.bo.to_string()), "{cached}");
    assert_eq!(people.cached(&format!("meeting:{}", id_of(&again))).await, None, "the result of before");
    for key in of_stages {
        assert_eq!(people.cached(key).await, None, "a stage may have kept the voice: {key}");
    }
    let (_, pending) = people.server.get(&format!("{again}/pending-corrections")).await;
    assert_eq!(pending["items"], json!([]));
    let (_, shown) = people.server.get(&done).await;
    assert_eq!(shown["artifacts"][0]["stale"], json!(true), "{shown}");
    let speaker = people.speaker(&done, "a").await;
    let (_, history) = people.server.get(&format!("{done}/speakers/{speaker}/history")).await;
    let last = history["decisions"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["reason"], &last["actor_kind"]), (&json!(FORGOTTEN), &json!("system")), "{last}");
    let (_, audited) = people.server.get(&format!("/v1/audit/speaker-reassignments?profile={ottilie}")).await;
    assert_eq!(audited["items"][0]["reason"], json!(FORGOTTEN), "{audited}");
    let events: Vec<String> = sqlx::query_scalar(
        "SELECT event_type FROM log.events WHERE position > $1 AND payload::text LIKE '%profile_erased%'
          ORDER BY event_type",
    )
    .bind(receipt["position"].as_i64().unwrap())
    .fetch_all(&people.pool)
    .await
    .unwrap();
    // Two who are speakers now, and two of the result of before.
    let unlinked = ["SpeakerReassigned"; 4];
    let dropped = ["StageResultsDropped"; 2];
    assert_eq!(events, [&["CorrectionDismissed"][..], &unlinked, &dropped].concat());

    // Nothing brings them back, and asking again is the same erasure.
    assert_eq!(people.forget().await, receipt);
    let path = format!("/v1/profiles/{ottilie}");
    for (path, body) in [
        ("/v1/profiles".to_owned(), json!({"id": ottilie, "display_name": NAME})),
        (format!("{path}/voice"), voice(0.0)),
        (format!("{path}/rename"), json!({"display_name": "Olga"})),
        (
            format!("{done}/speakers/{speaker}/reassign"),
            json!({"profile_id": ottilie, "reason": "I heard her"}),
        ),
    ] {
        let (status, refused) = people.server.post_as(REVIEWER, &path, &body).await;
        assert_eq!((status, &refused["code"]), (409, &json!("profile_erased")), "{path}: {refused}");
    }
    let fourth = people.command("/v1/meetings", json!({"sha256": "ab".repeat(32)})).await;
    let fourth = format!("/v1/meetings/{}", fourth["id"].as_str().unwrap());
    people.command(&format!("{fourth}/start"), json!({"worker": "w"})).await;
    people.command(&format!("{fourth}/speakers"), json!({"clusters": [cluster("a", 0.0)]})).await;
    caught_up_and_equal(&people.pool).await;
    assert_eq!(people.names(&fourth).await["a"], Value::Null, "nobody has that voice any more");

    // The past is told without them.
    let before = receipt["position"].as_i64().unwrap() - 1;
    let (status, shown) = people.server.get(&format!("{done}/speakers?as_of={before}")).await;
    assert_eq!(status, 200, "{shown}");
    assert!(!shown.to_string().contains(&ottilie.to_string()), "{shown}");
    let (status, shown) = people.server.get(&format!("{done}?as_of={before}")).await;
    assert_eq!(status, 200, "{shown}");
    assert_eq!(shown["speakers"][0]["cluster_id"], json!("a"));
    for field in ["user_profile_id", "confidence"] {
        assert_eq!(shown["speakers"][0][field], Value::Null, "{shown}");
    }
    assert_eq!(shown["speakers"][1]["user_profile_id"], json!(people.bo));
    // Nor does anybody's voice resemble theirs.
    for path in [format!("{done}/speakers"), format!("{under_way}/speakers"), format!("{again}/speakers")] {
        let (_, shown) = people.server.get(&path).await;
        assert!(!shown.to_string().contains(&ottilie.to_string()), "{path}: {shown}");
    }
    let evidence = &history["decisions"][0]["evidence"];
    assert!(
        evidence["model"].is_string() && !evidence.to_string().contains(&ottilie.to_string()),
        "{history}"
    );
    assert_eq!(people.server.get(&format!("{path}?as_of={before}")).await.0, 404);
    caught_up_and_equal(&people.pool).await;
    verified(&people.database).await;
}

#[tokio::test]
async fn what_a_stage_cached_is_in_no_history_before_an_erasure_nor_after_it() {
    let people = People::known().await;
    let meeting = people.completed(1).await;
    let request = people.server.client.put(people.server.at(&format!("{meeting}/cache/embed")));
    let value = json!({"a": [0.25, 0.125], "speaker": NAME}).to_string();
    assert_eq!(answer(request.json(&json!({"value": value}))).await.0, 200);
    let told = async || {
        for role in [Role::Pipeline, Role::Reviewer, Role::Auditor, Role::Admin] {
            let client = people.server.as_(role, "somebody-1");
            let events = people.server.at(&format!("{meeting}/events?limit=500"));
            let (status, events) = answer(client.get(events)).await;
            assert_eq!(status, 200, "{events}");
            let cached = |event: &&Value| event["type"] == "StageResultCached";
            let cached = events["items"].as_array().unwrap().iter().filter(cached).collect::<Vec<_>>();
            assert_eq!(cached.len(), 2, "{events}");
            for event in cached {
                assert_eq!(event["payload"]["StageResultCached"]["value"], Value::Null, "{event}");
            }
            assert!(!events.to_string().contains("Ottilie"), "{events}");
        }
    };
    told().await;
    people.forget().await;
    told().await;
}

#[tokio::test]
async fn whoever_was_never_known_cannot_be_forgotten() {
    let people = People::known().await;
    let (status, refused) = people.erase(&format!("/v1/profiles/{}", Uuid::nil()), json!({})).await;
    assert_eq!((status, &refused["code"]), (404, &json!("profile_not_found")));
    let (status, refused) = people.server.get(&format!("/v1/erasures/{}", people.bo)).await;
    assert_eq!((status, &refused["code"]), (404, &json!("erasure_not_found")));
    let ran = run_on(&people.database, &["profile", "erase", &Uuid::nil().to_string()]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("there is no such profile"), "{}", ran.stderr);
}

#[tokio::test]
async fn the_command_line_forgets_without_a_server_and_prints_the_receipt() {
    let people = People::known().await;
    people.completed(1).await;
    let People { database, server, pool, ottilie, .. } = people;
    assert!(server.stop().await.success());
    let ran = run_on(&database, &["profile", "erase", &ottilie.to_string(), "--json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let receipt: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&receipt["state"], &receipt["meetings"]), (&json!("complete"), &json!(1)), "{receipt}");
    let linked: i64 = sqlx::query_scalar("SELECT count(*) FROM speakers WHERE user_profile_id = $1")
        .bind(ottilie)
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(linked, 0);
    let told = run_on(&database, &["profile", "erase", &ottilie.to_string()]).await;
    assert!(told.stdout.contains("complete since"), "{}", told.stdout);
    caught_up_and_equal(&pool).await;
}

#[tokio::test]
async fn tables_of_before_lose_the_person_and_can_still_become_the_live_ones() {
    let people = People::known().await;
    let meeting = people.completed(1).await;
    // What somebody else was said to be by then stays.
    let moved = people.completed(2).await;
    let speaker = people.speaker(&moved, "a").await;
    let said = json!({"profile_id": people.bo, "reason": "it is Bo"});
    people.command(&format!("{moved}/speakers/{speaker}/reassign"), said).await;
    caught_up_and_equal(&people.pool).await;
    for arguments in [
        &["rebuild"][..],
        &["rebuild", "--until", "12", "--schema", "as_it_stood"],
        &["rebuild", "--dry-run"],
    ] {
        let ran = run_on(&people.database, arguments).await;
        assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    }
    let named = async |schema: &str| -> i64 {
        let count = format!("SELECT count(*) FROM {schema}.user_profiles WHERE id = $1");
        sqlx::query_scalar(&count).bind(people.ottilie).fetch_one(&people.pool).await.unwrap()
    };
    let kept = async |schema: &str| -> i64 {
        let count = format!("SELECT count(*) FROM {schema}.cache WHERE key = 'asr:fp1'");
        sqlx::query_scalar(&count).fetch_one(&people.pool).await.unwrap()
    };
    let linked = async |schema: &str| -> (i64, i64) {
        let count = format!(
            "SELECT (SELECT count(*) FROM {schema}.speakers WHERE user_profile_id = $1),
                    (SELECT count(*) FROM {schema}.cache WHERE value LIKE '%' || $1::text || '%')"
        );
        sqlx::query_as(&count).bind(people.ottilie).fetch_one(&people.pool).await.unwrap()
    };
    for schema in ["read_previous", "as_it_stood"] {
        assert_eq!((named(schema).await, kept(schema).await), (1, 1), "{schema}");
    }
    assert_eq!((linked("read_previous").await, linked("as_it_stood").await), ((1, 1), (1, 0)));
    let erased = people.forget().await["position"].to_string();
    // Just at the erasure, too: the links end after it.
    for (until, schema) in [("12", "as_it_stood_too"), (&*erased, "as_it_was_erased")] {
        let ran = run_on(&people.database, &["rebuild", "--until", until, "--schema", schema]).await;
        assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    }
    for schema in ["read_previous", "as_it_stood", "as_it_stood_too", "as_it_was_erased"] {
        assert_eq!((named(schema).await, kept(schema).await), (0, 0), "{schema}");
        assert_eq!(linked(schema).await, (0, 0), "{schema}");
    }
    let ran = run_on(&people.database, &["rebuild", "--rollback"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    caught_up_and_equal(&people.pool).await;
    verified(&people.database).await;
    assert_eq!(people.names(&meeting).await["a"], Value::Null);
}

#[tokio::test]
async fn an_event_that_cannot_be_read_keeps_nobody_from_being_forgotten() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start(&database).await;
    let book = database.open().await;
    let (ada, bo) = (Uuid::from_u128(0xada), Uuid::from_u128(0xb0));
    for profile in [ada, bo] {
        append(&book, &created(profile, "Ada")).await;
    }
    let broken = json!({"ProfileRenamed": {"name": "Ada"}}).to_string();
    append_raw(&pool, ["profile", &ada.to_string(), "ProfileRenamed", "1", &broken], 1).await;
    append(&book, &renamed(ada, "Ada King")).await;
    parked(&pool, 2).await;
    let (status, receipt) = erase(&server, &format!("/v1/profiles/{ada}"), json!({})).await;
    assert_eq!((status, &receipt["state"]), (200, &json!("complete")), "{receipt}");
    let known: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM user_profiles").fetch_all(&pool).await.unwrap();
    assert_eq!(known, [bo]);
    parked(&pool, 0).await;
    caught_up_and_equal(&pool).await;
    book.close().await;
}

#[tokio::test]
async fn what_was_asked_of_whoever_is_forgotten_cannot_be_tried_out_and_the_erasure_can_be_repeated() {
    let people = People::known().await;
    let (server, pool) = (&people.server, &people.pool);
    let ask = async |method: Method, path: &str, key: &str, body: Value| {
        let request = server.client.request(method, server.at(path)).header("idempotency-key", key);
        answer(request.json(&body)).await
    };
    let rename = format!("/v1/profiles/{}/rename", people.ottilie);
    let others = format!("/v1/profiles/{}/rename", people.bo);
    // One has an effect, and one has none.
    for (key, path, name) in [("a", &rename, "Ottilie"), ("b", &rename, "Ottilie"), ("c", &others, "Boris")] {
        let (status, told) = ask(Method::POST, path, key, json!({"display_name": name})).await;
        assert_eq!(status, 200, "{told}");
    }
    let kept = async || {
        let rows = "SELECT aggregate_id, request_hmac FROM log.commands ORDER BY accepted_at, command_id";
        sqlx::query_as::<_, (String, Vec<u8>)>(rows).fetch_all(pool).await.unwrap()
    };
    let before = kept().await;
    let profile = format!("/v1/profiles/{}", people.ottilie);
    let erase = async || ask(Method::DELETE, &profile, "d", json!({})).await;
    let (status, receipt) = erase().await;
    assert!(matches!(status, 200 | 202), "{receipt}");
    let after = kept().await;
    assert_eq!(after.len(), before.len() + 1);
    for (before, after) in before.iter().zip(&after) {
        let hers = before.0 == people.ottilie.to_string();
        assert_eq!(before.1 != after.1, hers, "{}", before.0);
        assert_eq!((after.1.len(), &after.0), (32, &before.0));
    }
    let (status, again) = erase().await;
    assert!(matches!(status, 200 | 202), "{again}");
    assert_eq!(again["position"], receipt["position"]);
    assert_eq!(kept().await, after, "and it is the same command still");
}

#[tokio::test]
async fn whoever_s_first_event_cannot_be_read_is_forgotten_all_the_same() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start_with(&database, &PLANE).await;
    let book = database.open().await;
    let ada = Uuid::from_u128(0xada);
    let broken = json!({"ProfileCreated": {"name": "Ada"}}).to_string();
    append_raw(&pool, ["profile", &ada.to_string(), "ProfileCreated", "1", &broken], 0).await;
    let mut enrolled = enrolled(ada, Uuid::from_u128(1));
    let sample =
        json!({"sample_id": Uuid::from_u128(1), "voice": voice(0.0), "enrolled_at": "2026-01-01T08:01:00Z"});
    enrolled.spoil(json!({"VoiceEnrolled": sample}));
    append(&book, &enrolled).await;
    parked(&pool, 2).await;
    let (status, receipt) = erase(&server, &format!("/v1/profiles/{ada}"), json!({})).await;
    assert_eq!((status, &receipt["state"]), (200, &json!("complete")), "{receipt}");
    assert_eq!(receipt["keys"], json!(1));
    parked(&pool, 0).await;
    let gone: bool =
        sqlx::query_scalar("SELECT wrapped IS NULL FROM keys.subjects WHERE kind = 'profile' AND id = $1")
            .bind(ada)
            .fetch_one(&pool)
            .await
            .unwrap();
    assert!(gone);
    // Once the first event is skipped the voice would be known again.
    let (_, meeting) = server.post("/v1/meetings", &json!({"sha256": "ab".repeat(32)})).await;
    let meeting = format!("/v1/meetings/{}", meeting["id"].as_str().unwrap());
    assert_eq!(server.post(&format!("{meeting}/start"), &json!({"worker": "w"})).await.0, 200);
    let heard = json!({"clusters": [cluster("a", 0.0)]});
    let (_, told) = server.post(&format!("{meeting}/speakers"), &heard).await;
    assert_eq!(told["events"], json!(["SpeakersDiarized", "SpeakerNotIdentified"]), "{told}");
    let (_, again) = erase(&server, &format!("/v1/profiles/{ada}"), json!({})).await;
    assert_eq!(again, receipt);
    caught_up_and_equal(&pool).await;
    verified(&database).await;
    book.close().await;
}

#[tokio::test]
async fn a_meeting_whose_registration_cannot_be_read_is_erased_with_what_it_cached() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start(&database).await;
    let book = database.open().await;
    let meeting = Uuid::from_u128(0xa0);
    let broken = json!({"MeetingRegistered": {"meeting": "a0"}}).to_string();
    append_raw(&pool, ["meeting", &meeting.to_string(), "MeetingRegistered", "1", &broken], 0).await;
    append(&book, &started(meeting, 1)).await;
    append(&book, &cached(meeting, "asr", "fp", "words", None)).await;
    parked(&pool, 3).await;
    let path = format!("/v1/meetings/{meeting}");
    let (status, receipt) = erase(&server, &path, json!({"reason": "on request"})).await;
    assert_eq!((status, &receipt["state"]), (200, &json!("complete")), "{receipt}");
    assert_eq!(receipt["keys"], json!(1));
    let left: i64 = sqlx::query_scalar("SELECT count(*) FROM cache").fetch_one(&pool).await.unwrap();
    assert_eq!(left, 0);
    caught_up_and_equal(&pool).await;
    verified(&database).await;
    book.close().await;
}

async fn parked(pool: &PgPool, expected: i64) {
    eventually("so many are parked", async || {
        let parked: i64 =
            sqlx::query_scalar("SELECT count(*) FROM ops.parked_events").fetch_one(pool).await.unwrap();
        (parked == expected).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_erasure_that_fails_keeps_no_other_one_from_its_end() {
    let people = People::known().await;
    let meeting = people.completed(1).await;
    let voice = people.speaker(&meeting, "a").await;
    let trap = format!(
        "CREATE FUNCTION keys.trap() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
         CREATE TRIGGER trap BEFORE UPDATE ON keys.subjects FOR EACH ROW WHEN (OLD.id = '{voice}')
             EXECUTE FUNCTION keys.trap()"
    );
    people.pool.execute(trap.as_str()).await.unwrap();
    let (status, waiting) = people.erase(&format!("/v1/profiles/{}", people.ottilie), json!({})).await;
    assert_eq!((status, &waiting["state"]), (202, &json!("under_way")), "{waiting}");
    let (status, receipt) = people.erase(&format!("/v1/profiles/{}", people.bo), json!({})).await;
    assert_eq!((status, &receipt["state"]), (200, &json!("complete")), "{receipt}");
    let (_, waiting) = people.server.get(&format!("/v1/erasures/{}", people.ottilie)).await;
    assert!(waiting["waits_for"].as_str().unwrap().starts_with("a failure"), "{waiting}");
    people.pool.execute("DROP TRIGGER trap ON keys.subjects").await.unwrap();
    eventually("it is carried out", async || {
        let (_, receipt) = people.server.get(&format!("/v1/erasures/{}", people.ottilie)).await;
        (receipt["state"] == "complete").then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_erased_again_at_start_is_tried_again() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let pool = book.pool();
    let (ada, bo) = (Uuid::from_u128(0xada), Uuid::from_u128(0xb0));
    let broken = json!({"ProfileCreated": {"name": "Ada"}}).to_string();
    append_raw(pool, ["profile", &ada.to_string(), "ProfileCreated", "1", &broken], 0).await;
    append(&book, &created(bo, "Bo")).await;
    // Tombstones without events, as a restore leaves them.
    for id in [ada, bo] {
        let mut connection = pool.acquire().await.unwrap();
        book.store.keyring().destroy(&mut connection, &[Subject::Profile(id.into())]).await.unwrap();
    }
    book.start_erasures();
    let erased = async |id: Uuid| erasure::of_subject(pool, id).await.unwrap();
    eventually("one is erased again", async || erased(bo).await).await;
    // The other one's event is not parked yet, and so cannot be set aside.
    assert!(erased(ada).await.is_none());
    book.start_projector();
    eventually("the other one is, too", async || {
        erased(ada).await.filter(|erasure| erasure.completed_at.is_some())
    })
    .await;
    book.close().await;
}

#[tokio::test]
async fn erasures_in_bulk_are_carried_out_at_one_go() {
    const PEOPLE: u128 = 120;
    let database = TestDatabase::create().await;
    let book = database.open().await;
    book.start_projector();
    for id in (1..=PEOPLE).map(Uuid::from_u128) {
        append(&book, &created(id, "Somebody")).await;
        append(&book, &profile_erased(id)).await;
    }
    let unfinished = async || erasure::unfinished(book.pool()).await.unwrap().erasures;
    assert_eq!(unfinished().await, 120);
    assert!(erasure::carry_out(&book.store, &book.bus).await.unwrap());
    assert_eq!(unfinished().await, 0);
    book.close().await;
}
