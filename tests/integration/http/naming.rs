//! Naming speakers by voice: when a diarization is recorded, and in past meetings once somebody is enrolled.

use std::time::Duration;

use domain::profile::ProfileCommand;
use event_store::command_bus::Context;
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::clock::now;
use tests::server::{Server, answer};
use tokio::time::{sleep, timeout};
use uuid::Uuid;

use super::Scene;
use crate::cli::run_on;
use crate::read_models::caught_up_and_equal;
use crate::read_models::parked::append_raw;

const MODEL: &str = "resemblyzer-0.1.4";
const REVIEWER: &str = "person:reviewer-7";
/// Two numbers are enough to have a direction.
const PLANE: [&str; 2] = ["--voice-models", "resemblyzer-0.1.4=2,other=3"];

/// Returns a voice in this direction, in degrees: two are as similar as the cosine of the angle between them.
fn voice(degrees: f64) -> Value {
    json!({"model": MODEL, "vector": [degrees.to_radians().cos(), degrees.to_radians().sin()]})
}

fn cluster(label: &str, degrees: f64) -> Value {
    json!({"cluster_id": label, "speech_ms": 60_000, "voice": voice(degrees)})
}

/// Enters somebody with voices in these directions.
async fn enrol(server: &Server, name: &str, directions: &[f64]) -> Uuid {
    let (status, created) = server.post("/v1/profiles", &json!({"display_name": name})).await;
    assert_eq!(status, 201, "{created}");
    let id: Uuid = created["id"].as_str().unwrap().parse().unwrap();
    for degrees in directions {
        let (status, enrolled) = server.post(&format!("/v1/profiles/{id}/voice"), &voice(*degrees)).await;
        assert_eq!(status, 201, "{enrolled}");
    }
    id
}

/// Registers and starts the `n`th meeting; returns its path.
async fn meeting(server: &Server, n: usize) -> String {
    let (_, registered) = server.post("/v1/meetings", &json!({"sha256": super::sha256(n)})).await;
    let meeting = format!("/v1/meetings/{}", registered["id"].as_str().unwrap());
    assert_eq!(server.post(&format!("{meeting}/start"), &json!({"worker": "w"})).await.0, 200);
    meeting
}

async fn diarize(server: &Server, meeting: &str, clusters: &[Value]) -> Value {
    let (status, answered) =
        server.post(&format!("{meeting}/speakers"), &json!({"clusters": clusters})).await;
    assert_eq!(status, 200, "{answered}");
    answered
}

/// Returns the speakers of a meeting, in order of label.
async fn speakers(server: &Server, meeting: &str) -> Vec<Value> {
    let (status, shown) = server.get(&format!("{meeting}/speakers")).await;
    assert_eq!(status, 200, "{shown}");
    shown["speakers"].as_array().unwrap().clone()
}

/// Returns who the speakers of a meeting are, in order of label.
async fn names(server: &Server, meeting: &str) -> Vec<Option<Uuid>> {
    let id = |speaker: &Value| speaker["profile"]["id"].as_str().map(|id| id.parse().unwrap());
    speakers(server, meeting).await.iter().map(id).collect()
}

#[tokio::test]
async fn a_speaker_is_named_by_voice_with_the_evidence_and_the_tables_show_it() {
    let Scene { database, server, pool } = Scene::start_with(&PLANE).await;
    let ada = enrol(&server, "Ada", &[0.0, 4.0]).await;
    let bo = enrol(&server, "Bo", &[90.0]).await;
    let meeting = meeting(&server, 1).await;
    let segments = json!([{"start_ms": 1000, "duration_ms": 4000}, {"start_ms": 9000, "duration_ms": 2000}]);
    let heard = json!({"cluster_id": "a", "segments": segments, "voice": voice(10.0)});
    let stranger = cluster("b", 200.0);
    let silent = json!({"cluster_id": "c"});
    let diarized = diarize(&server, &meeting, &[heard, stranger, silent]).await;
    assert_eq!(diarized["events"], json!(["SpeakersDiarized", "SpeakerIdentified", "SpeakerNotIdentified"]));

    let shown = speakers(&server, &meeting).await;
    let [a, b, c] = shown.as_slice() else { panic!("{shown:?}") };
    assert_eq!(a["profile"], json!({"id": ada, "display_name": "Ada"}));
    assert_eq!((&a["cluster_id"], &a["speech_ms"], &a["by"]), (&json!("a"), &json!(6000), &json!("machine")));
    // Six degrees from the closest sample.
    assert!((a["confidence"].as_f64().unwrap() - 6.0_f64.to_radians().cos()).abs() < 1e-5, "{a}");
    let evidence = &a["evidence"];
    assert_eq!((&evidence["model"], &evidence["policy_version"]), (&json!(MODEL), &json!("default-1")));
    let margin = 8.0_f64.to_radians().cos() - 80.0_f64.to_radians().cos();
    assert!((evidence["margin"].as_f64().unwrap() - margin).abs() < 1e-5, "{evidence}");
    assert_eq!(evidence["candidates"][0]["profile"]["display_name"], "Ada");
    assert_eq!(a["latest_decision"]["decision"], "identified");
    assert_eq!(a["latest_decision"]["position"], diarized["position"].as_i64().unwrap() - 1);
    assert!(a.get("segments").is_none(), "{a}");
    assert_eq!((&b["profile"], &b["evidence"]["candidates"]), (&Value::Null, &json!([])));
    assert_eq!(
        (&b["speech_ms"], &b["latest_decision"]["decision"]),
        (&json!(60_000), &json!("not_identified"))
    );
    assert_eq!(
        (&c["profile"], &c["evidence"], &c["latest_decision"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    let (_, with) = server.get(&format!("{meeting}/speakers?segments=true")).await;
    assert_eq!(with["speakers"][0]["segments"], segments);

    // A person decides otherwise: the machine's evidence stays beside it.
    let reassign = format!("{meeting}/speakers/{}/reassign", a["id"].as_str().unwrap());
    let said = json!({"profile_id": bo, "reason": "I was there"});
    assert_eq!(server.post_as(REVIEWER, &reassign, &said).await.0, 200);
    let [a, ..] = &speakers(&server, &meeting).await[..] else { panic!() };
    assert_eq!((&a["profile"]["display_name"], &a["by"]), (&json!("Bo"), &json!("person")));
    assert_eq!(
        (&a["confidence"], &a["evidence"]["candidates"][0]["profile"]["id"]),
        (&Value::Null, &json!(ada))
    );
    let decision = &a["latest_decision"];
    assert_eq!((&decision["decision"], &decision["actor"]), (&json!("reassigned"), &json!("reviewer-7")));
    assert_eq!((&decision["reason"], &decision["actor_kind"]), (&json!("I was there"), &json!("person")));

    caught_up_and_equal(&pool).await;
    let (_, shown) = server.get(&meeting).await;
    assert_eq!(shown["speakers"][0]["user_profile_id"], json!(bo));
    // The voice stays in the book: its history shows the model alone.
    let (_, events) = server.get(&format!("{meeting}/events")).await;
    assert!(events.to_string().contains(MODEL) && !events.to_string().contains("vector"), "{events}");
    let (status, refused) = server.get(&format!("/v1/meetings/{}/speakers", Uuid::nil())).await;
    assert_eq!((status, &refused["code"]), (404, &json!("meeting_not_found")));

    // Another process knows what this one knew.
    assert!(server.stop().await.success());
    let server = Server::start_with(&database, &PLANE).await;
    let again = self::meeting(&server, 2).await;
    diarize(&server, &again, &[cluster("a", 10.0)]).await;
    assert_eq!(names(&server, &again).await, [Some(ada)]);
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn nobody_is_named_without_a_margin_or_enough_speech_and_nobody_twice() {
    let Scene { server, .. } = Scene::start_with(&PLANE).await;
    let ada = enrol(&server, "Ada", &[0.0]).await;
    // As like Ada's as the margin does not allow, from halfway.
    let twin = enrol(&server, "Twin", &[20.0]).await;
    let bo = enrol(&server, "Bo", &[120.0]).await;
    let one = meeting(&server, 1).await;
    let short = json!({"cluster_id": "c", "speech_ms": 4999, "voice": voice(120.0)});
    diarize(&server, &one, &[cluster("a", 10.0), cluster("b", 300.0), short]).await;
    assert_eq!(names(&server, &one).await, [None, None, None]);
    let shown = speakers(&server, &one).await;
    let candidates = |speaker: &Value| {
        let candidates = speaker["evidence"]["candidates"].as_array().unwrap().iter();
        candidates.map(|candidate| candidate["profile"]["id"].clone()).collect::<Vec<_>>()
    };
    let like = candidates(&shown[0]);
    assert!(like.contains(&json!(ada)) && like.contains(&json!(twin)), "{like:?}");
    assert_eq!(candidates(&shown[2]), [json!(bo)], "too little speech for a name, enough for a suggestion");

    // Two clusters that sound like one person: which of them it is takes a human.
    let two = meeting(&server, 2).await;
    diarize(&server, &two, &[cluster("a", 120.0), cluster("b", 121.0), cluster("c", 355.0)]).await;
    assert_eq!(names(&server, &two).await, [None, None, Some(ada)]);
    // One of them clearly more so.
    let three = meeting(&server, 3).await;
    diarize(&server, &three, &[cluster("a", 120.0), cluster("b", 155.0)]).await;
    assert_eq!(names(&server, &three).await, [Some(bo), None]);
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_voice_that_makes_no_sense_is_refused_and_leaves_nothing() {
    let Scene { server, pool, .. } = Scene::start_with(&PLANE).await;
    let meeting = meeting(&server, 1).await;
    let path = format!("{meeting}/speakers");
    let with = |voice: Value| json!({"clusters": [{"cluster_id": "a", "speech_ms": 60_000, "voice": voice}]});
    let of = |model: &str, vector: Value| with(json!({"model": model, "vector": vector}));
    for (body, code) in [
        (of("unheard-of", json!([1, 0])), "unknown_voice_model"),
        (of(MODEL, json!([1, 0, 0])), "wrong_dimension"),
        (of("other", json!([1, 0])), "wrong_dimension"),
        (of(MODEL, json!([0, 0])), "invalid_vector"),
        (of(MODEL, json!([])), "invalid_vector"),
        (of(MODEL, json!([1e39, 0])), "invalid_vector"),
        (of(MODEL, json!([null, 0])), "invalid_body"),
        (of(MODEL, json!(vec![1.0; 2049])), "invalid_vector"),
        (with(json!({"model": MODEL})), "invalid_body"),
        (with(json!([MODEL, [1, 0]])), "invalid_body"),
        (
            json!({"clusters": [{"cluster_id": "a", "speech_ms": 1, "segments": [{"start_ms": 0, "duration_ms": 1}]}]}),
            "invalid_value",
        ),
    ] {
        let (status, refused) = server.post(&path, &body).await;
        assert_eq!((status, &refused["code"]), (422, &json!(code)), "{body} {refused}");
    }
    let nan = format!(
        r#"{{"clusters": [{{"cluster_id": "a", "voice": {{"model": "{MODEL}", "vector": [NaN, 0]}}}}]}}"#
    );
    let request = server.client.post(server.at(&path)).header("content-type", "application/json").body(nan);
    assert_eq!(answer(request).await.0, 400);
    assert_eq!(caught_up_and_equal(&pool).await, 2, "nothing refused left an event");
    // A known model without a policy is kept, and matched by nobody.
    let kept = json!({"cluster_id": "a", "voice": {"model": "other", "vector": [1, 0, 0]}});
    assert_eq!(diarize(&server, &meeting, &[kept]).await["events"], json!(["SpeakersDiarized"]));
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn the_first_answer_stands_when_the_same_clusters_come_again() {
    let Scene { server, .. } = Scene::start_with(&PLANE).await;
    let meeting = meeting(&server, 1).await;
    let clusters = [cluster("a", 0.0)];
    let first = diarize(&server, &meeting, &clusters).await;
    assert_eq!(first["events"], json!(["SpeakersDiarized", "SpeakerNotIdentified"]));
    let ada = enrol(&server, "Ada", &[0.0]).await;
    let again = diarize(&server, &meeting, &clusters).await;
    assert_eq!((&again["events"], &again["version"]), (&json!([]), &first["version"]));
    assert_eq!(names(&server, &meeting).await, [None]);
    // Other clusters are another diarization.
    diarize(&server, &meeting, &[cluster("a", 1.0)]).await;
    assert_eq!(names(&server, &meeting).await, [Some(ada)]);
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn what_another_process_enrolled_removed_or_erased_counts_at_once() {
    let Scene { database, server, .. } = Scene::start_with(&PLANE).await;
    let other = Server::start_with(&database, &["--only", "api", PLANE[0], PLANE[1]]).await;
    for n in 0..10 {
        // Each in a direction of its own.
        let degrees = 36.0 * f64::from(n);
        let somebody = enrol(&other, "Somebody", &[degrees]).await;
        let n = usize::try_from(n).unwrap();
        let meeting = meeting(&server, n + 1).await;
        diarize(&server, &meeting, &[cluster("a", degrees)]).await;
        assert_eq!(names(&server, &meeting).await, [Some(somebody)], "{n}");
    }
    let ada = enrol(&other, "Ada", &[18.0]).await;
    let (_, samples) = answer(other.client.get(other.at(&format!("/v1/profiles/{ada}/voice"))).header(
        "minutebook-min-position",
        {
            let (_, ready) = other.get("/readyz").await;
            ready["log_head"].as_i64().unwrap()
        },
    ))
    .await;
    let sample = samples["samples"][0]["sample_id"].as_str().unwrap();
    let remove = other.client.delete(other.at(&format!("/v1/profiles/{ada}/voice/{sample}")));
    assert_eq!(answer(remove).await.0, 200);
    let after = meeting(&server, 20).await;
    diarize(&server, &after, &[cluster("a", 18.0)]).await;
    assert_eq!(names(&server, &after).await, [None]);

    // Whoever is forgotten is recognised no more.
    let bo = enrol(&other, "Bo", &[54.0]).await;
    let book = database.open().await;
    let context = Context::system("test");
    book.bus.profile(bo.into(), ProfileCommand::Erase { at: now(), lost: false }, &context).await.unwrap();
    book.close().await;
    let after = meeting(&server, 21).await;
    diarize(&server, &after, &[cluster("a", 54.0)]).await;
    let [shown] = &speakers(&server, &after).await[..] else { panic!() };
    assert!(!shown.to_string().contains(&bo.to_string()), "{shown}");
    assert!(server.stop().await.success());
    assert!(other.stop().await.success());
}

#[tokio::test]
async fn a_process_is_ready_once_it_knows_the_voices_and_says_how_far_it_is() {
    let Scene { database, server, .. } = Scene::start_with(&PLANE).await;
    let ada = enrol(&server, "Ada", &[0.0]).await;
    let fresh = Server::start_with(&database, &["--only", "api", PLANE[0], PLANE[1]]).await;
    let ready = ready(&fresh).await;
    assert_eq!(ready["voices_position"], 2, "{ready}");
    assert_eq!(ready["voices_lag_events"], 0, "{ready}");
    let meeting = meeting(&fresh, 1).await;
    diarize(&fresh, &meeting, &[cluster("a", 0.0)]).await;
    assert_eq!(names(&fresh, &meeting).await, [Some(ada)]);
    let metrics = fresh.client.get(fresh.at("/metrics")).send().await.unwrap().text().await.unwrap();
    assert!(metrics.contains("minutebook_voices_position"), "{metrics}");
    let noted = async {
        loop {
            let status = run_on(&database, &["status", "--json"]).await.stdout;
            let status: Value = serde_json::from_str(&status).unwrap();
            assert_eq!(status["voices"]["processes"], 2, "{status}");
            if status["voices"]["lag_events"] == 0 {
                return;
            }
        }
    };
    timeout(super::PATIENCE, noted).await.unwrap();
    let told = run_on(&database, &["status"]).await.stdout;
    assert!(told.contains("in 2 processes"), "{told}");
    // Who does not answer knows no voices, and needs none.
    let projector = Server::start_with(&database, &["--only", "projector"]).await;
    let (status, readiness) = projector.get("/readyz").await;
    assert_eq!(status, 200, "{readiness}");
    assert!(readiness.get("voices_position").is_none(), "{readiness}");
    for server in [server, fresh, projector] {
        assert!(server.stop().await.success());
    }
}

/// Waits until a server is ready.
async fn ready(server: &Server) -> Value {
    let ready = async {
        loop {
            let (status, readiness) = server.get("/readyz").await;
            if status == 200 {
                return readiness;
            }
            assert_eq!(readiness["status"], "voices_loading", "{readiness}");
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(super::PATIENCE, ready).await.unwrap()
}

#[tokio::test]
async fn an_event_that_cannot_be_read_stops_its_profile_alone_until_it_is_skipped() {
    let Scene { database, server, pool } = Scene::start_with(&PLANE).await;
    let ada = enrol(&server, "Ada", &[0.0]).await;
    // Behind an event that cannot be read, a voice waits, here as in the tables.
    append(&pool, ada, 3, "VoiceEnrolled", &json!({"VoiceEnrolled": {"surprise": 1}})).await;
    let sample = json!({"sample_id": Uuid::from_u128(7), "voice": voice(90.0), "enrolled_at": now()});
    append(&pool, ada, 4, "VoiceEnrolled", &json!({"VoiceEnrolled": sample})).await;
    // One that no configured model could have.
    let odd = json!({"model": MODEL, "vector": [1, 2, 3]});
    let sample = json!({"sample_id": Uuid::from_u128(8), "voice": odd, "enrolled_at": now()});
    let cy = enrol(&server, "Cy", &[]).await;
    append(&pool, cy, 2, "VoiceEnrolled", &json!({"VoiceEnrolled": sample})).await;
    let bo = enrol(&server, "Bo", &[180.0]).await;
    let heard = async |server: &Server, n| {
        let meeting = meeting(server, n).await;
        diarize(server, &meeting, &[cluster("a", 0.0), cluster("b", 180.0), cluster("c", 90.0)]).await;
        names(server, &meeting).await
    };
    assert_eq!(heard(&server, 1).await, [Some(ada), Some(bo), None]);
    // As it is for whoever starts now.
    let fresh = Server::start_with(&database, &["--only", "api", PLANE[0], PLANE[1]]).await;
    assert_eq!(heard(&fresh, 2).await, [Some(ada), Some(bo), None]);

    let skip = ["parked", "skip", "3", "--reason", "a test", "--actor", "person:operator-1"];
    let skipped = run_on(&database, &skip).await;
    assert_eq!(skipped.code, Some(0), "{} {}", skipped.stdout, skipped.stderr);
    for (server, base) in [(&server, 100), (&fresh, 200)] {
        let known = async {
            for n in base.. {
                let meeting = meeting(server, n).await;
                diarize(server, &meeting, &[cluster("c", 90.0)]).await;
                if names(server, &meeting).await == [Some(ada)] {
                    return;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        timeout(super::PATIENCE, known).await.unwrap();
    }
    assert!(server.stop().await.success());
    assert!(fresh.stop().await.success());
}

/// Appends an event of a profile, whatever is in it.
async fn append(pool: &PgPool, profile: Uuid, sequence: i64, event_type: &str, payload: &Value) {
    let (id, payload) = (profile.to_string(), payload.to_string());
    append_raw(pool, ["profile", &id, event_type, "1", &payload], sequence - 1).await;
}

#[tokio::test]
async fn past_speakers_are_proposed_page_by_page_and_a_person_makes_it_so() {
    let Scene { server, pool, .. } = Scene::start_with(&PLANE).await;
    let bo = enrol(&server, "Bo", &[90.0]).await;
    let mut meetings = vec![];
    for n in 1..=7 {
        let meeting = meeting(&server, n).await;
        // Ada to come, Bo who is known, somebody who is a little like Ada, and one without a voice.
        let clusters =
            [cluster("ada", 2.0), cluster("bo", 90.0), cluster("like", 318.0), json!({"cluster_id": "mute"})];
        diarize(&server, &meeting, &clusters).await;
        meetings.push(meeting);
    }
    // A person has decided that one of them is nobody known.
    let speaker =
        async |meeting: &str| speakers(&server, meeting).await[0]["id"].as_str().unwrap().to_owned();
    let decided = &meetings[0];
    let reassign = format!("{decided}/speakers/{}/reassign", speaker(decided).await);
    for to in [json!(bo), Value::Null] {
        let said = json!({"profile_id": to, "reason": "heard"});
        assert_eq!(server.post_as(REVIEWER, &reassign, &said).await.0, 200);
    }
    let ada = enrol(&server, "Ada", &[0.0]).await;
    let find = format!("/v1/profiles/{ada}/find-past-meetings");
    let mut found = vec![];
    let mut body = json!({"limit": 3});
    loop {
        let (status, page) = server.post(&find, &body).await;
        assert_eq!(status, 200, "{page}");
        found.extend(page["items"].as_array().unwrap().clone());
        let Some(cursor) = page.get("next_cursor") else { break };
        body["cursor"] = cursor.clone();
    }
    let (status, at_once) = server.post(&find, &json!({})).await;
    assert_eq!((status, at_once["items"].as_array().unwrap()), (200, &found));
    let of = |outcome: &str| {
        let mut of = found.iter().filter(|proposal| proposal["outcome"] == outcome).collect::<Vec<_>>();
        of.sort_by_key(|proposal| proposal["meeting_id"].as_str().unwrap().to_owned());
        of
    };
    assert_eq!((of("identified").len(), of("suggested").len(), found.len()), (6, 7, 13), "{found:#?}");
    for proposal in of("identified") {
        assert_eq!(
            (&proposal["cluster_id"], &proposal["policy_version"]),
            (&json!("ada"), &json!("default-1"))
        );
        assert!(proposal["score"].as_f64().unwrap() > 0.99 && proposal["margin"].as_f64().unwrap() > 0.2);
        assert!(!decided.ends_with(proposal["meeting_id"].as_str().unwrap()), "a person has decided there");
    }
    assert!(of("suggested").iter().all(|proposal| proposal["cluster_id"] == "like"));
    assert_eq!(
        names(&server, &meetings[1]).await,
        [None, Some(bo), None, None],
        "nothing is renamed by itself"
    );

    // What a proposal says is sent, with a reason, and guards against whoever was quicker.
    let proposal = of("identified")[0];
    let mut said = proposal["reassign"].clone();
    let path = said["path"].as_str().unwrap().to_owned();
    said.as_object_mut().unwrap().remove("path");
    said["reason"] = json!("I know the voice");
    let apply = async |body: &Value| server.post_as(REVIEWER, &path, body).await;
    assert_eq!(apply(&said).await.1["events"], json!(["SpeakerReassigned"]));
    let mut late = said.clone();
    late["profile_id"] = json!(bo);
    assert_eq!(apply(&late).await.1["code"], "speaker_changed");
    let (_, rest) = server.post(&find, &json!({})).await;
    assert_eq!(rest["items"].as_array().unwrap().len(), 12);
    let meeting = format!("/v1/meetings/{}", proposal["meeting_id"].as_str().unwrap());
    assert_eq!(names(&server, &meeting).await[0], Some(ada));

    let mute = enrol(&server, "Mute", &[]).await;
    let (status, none) = server.post(&format!("/v1/profiles/{mute}/find-past-meetings"), &json!({})).await;
    assert_eq!((status, &none["items"]), (200, &json!([])));
    let nobody = format!("/v1/profiles/{}/find-past-meetings", Uuid::nil());
    assert_eq!(server.post(&nobody, &json!({})).await.1["code"], "profile_not_found");
    caught_up_and_equal(&pool).await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn the_policy_of_a_model_is_configured_and_its_version_is_in_the_evidence() {
    let policy = |auto: f64, version: &str| {
        json!([{"model": MODEL, "version": version, "auto": auto, "suggest": 0.5, "margin": 0.0, "minimum_speech_ms": 0}])
            .to_string()
    };
    let strict = policy(0.999_999, "strict-1");
    let Scene { database, server, .. } =
        Scene::start_with(&[&PLANE[..], &["--matching-policies", &strict]].concat()).await;
    let ada = enrol(&server, "Ada", &[0.0]).await;
    let one = meeting(&server, 1).await;
    diarize(&server, &one, &[cluster("a", 5.0)]).await;
    let [shown] = &speakers(&server, &one).await[..] else { panic!() };
    assert_eq!((&shown["profile"], &shown["evidence"]["policy_version"]), (&Value::Null, &json!("strict-1")));
    assert!(server.stop().await.success());

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policies.json");
    std::fs::write(&file, policy(0.6, "lax-1")).unwrap();
    let arguments = [&PLANE[..], &["--matching-policies", file.to_str().unwrap()]].concat();
    let server = Server::start_with(&database, &arguments).await;
    let two = meeting(&server, 2).await;
    diarize(&server, &two, &[cluster("a", 50.0)]).await;
    let [shown] = &speakers(&server, &two).await[..] else { panic!() };
    assert_eq!(
        (&shown["profile"]["id"], &shown["evidence"]["policy_version"]),
        (&json!(ada), &json!("lax-1"))
    );
    assert!(server.stop().await.success());

    // What makes no sense is told at the start, with its field.
    let unknown = json!([{"model": "unheard-of", "version": "1", "auto": 1, "suggest": 1, "margin": 0, "minimum_speech_ms": 0}]);
    for (policies, named) in [
        (policy(1.5, "1"), "auto"),
        (policy(0.4, "1"), "suggest"),
        (unknown.to_string(), "--voice-models"),
        (policy(0.9, " "), "version"),
        (policy(0.9, "1").replace("margin", "margni"), "margni"),
    ] {
        let refused =
            run_on(&database, &["serve", "--listen", "127.0.0.1:0", "--matching-policies", &policies]).await;
        assert!(matches!(refused.code, Some(1 | 2)), "{policies}");
        assert!(refused.stderr.contains(named), "{policies}: {}", refused.stderr);
    }
}
