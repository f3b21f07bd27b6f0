//! Voices and who speaks: samples enrolled and removed, speakers named by people, corrected and undone, each
//! decision with who made it.

use domain::profile::ProfileCommand;
use event_store::command_bus::Context;
use serde_json::{Value, json};
use tests::TestDatabase;
use tests::server::{Server, answer};
use uuid::Uuid;

use crate::cli::run_on;
use crate::read_models::caught_up_and_equal;

const REVIEWER: &str = "person:reviewer-7";

async fn create(server: &Server, name: &str) -> Uuid {
    let (status, created) = server.post("/v1/profiles", &json!({"display_name": name})).await;
    assert_eq!(status, 201, "{created}");
    created["id"].as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_voice_is_enrolled_once_and_removed_again_and_its_numbers_stay_in_the_book() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start(&database).await;
    let ada = create(&server, "Ada").await;
    let path = format!("/v1/profiles/{ada}/voice");
    let mut vector = vec![0.0; 256];
    vector[3] = 0.625;
    let sample = json!({"model": "resemblyzer-0.1.4", "vector": vector, "source": "onboarding"});
    let enrolled = server.client.post(server.at(&path)).json(&sample).send().await.unwrap();
    assert_eq!(enrolled.status(), 201);
    let location = enrolled.headers()["location"].to_str().unwrap().to_owned();
    assert!(location.starts_with(&path), "{location}");
    let (status, again) = server.post(&path, &sample).await;
    assert_eq!((status, &again["events"]), (200, &json!([])), "{again}");

    let read = server.client.get(server.at(&path)).header("minutebook-min-position", 2);
    let (status, samples) = answer(read).await;
    assert_eq!(status, 200);
    let [shown] = samples["samples"].as_array().unwrap().as_slice() else { panic!("{samples}") };
    assert!(location.ends_with(shown["sample_id"].as_str().unwrap()));
    assert_eq!((&shown["dimension"], &shown["source"]), (&json!(256), &json!("onboarding")));
    assert!(!samples.to_string().contains("0.625"), "{samples}");

    let unfit = |change: &dyn Fn(&mut Value)| {
        let mut body = sample.clone();
        change(&mut body);
        body
    };
    for (body, code) in [
        (unfit(&|body| body["vector"] = json!(vec![0.0; 256])), "invalid_vector"),
        (unfit(&|body| body["vector"] = json!(vec![1.0; 255])), "wrong_dimension"),
        (unfit(&|body| body["vector"] = json!(vec![1e39; 256])), "invalid_vector"),
        (unfit(&|body| body["vector"] = json!(vec![1.0; 2049])), "invalid_vector"),
        (unfit(&|body| body["vector"] = json!([])), "invalid_vector"),
        (unfit(&|body| body["vector"] = json!("0.1")), "invalid_body"),
        (unfit(&|body| body["model"] = json!("unheard-of")), "unknown_voice_model"),
        (unfit(&|body| body["name"] = json!("Ada")), "invalid_body"),
    ] {
        let (status, refused) = server.post(&path, &body).await;
        assert_eq!((status, &refused["code"]), (422, &json!(code)), "{refused}");
    }
    let nobody = format!("/v1/profiles/{}/voice", Uuid::from_u128(1));
    assert_eq!(server.post(&nobody, &sample).await.1["code"], "profile_not_found");
    assert_eq!(server.get(&nobody).await.0, 404);

    let (status, removed) = answer(server.client.delete(server.at(&location))).await;
    assert_eq!((status, &removed["events"]), (200, &json!(["VoiceRemoved"])), "{removed}");
    let (status, removed) = answer(server.client.delete(server.at(&location))).await;
    assert_eq!((status, &removed["events"]), (200, &json!([])), "{removed}");
    let (status, unknown) =
        answer(server.client.delete(server.at(&format!("{path}/{}", Uuid::from_u128(1))))).await;
    assert_eq!((status, &unknown["code"]), (404, &json!("sample_not_found")));
    assert_eq!(caught_up_and_equal(&pool).await, 3, "nothing refused left an event");
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_person_says_who_speaks_and_undoes_it_and_the_history_has_each_decision() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let server = Server::start(&database).await;
    let (ada, bo) = (create(&server, "Ada").await, create(&server, "Bo").await);
    let (_, registered) = server.post("/v1/meetings", &json!({"sha256": "ab".repeat(32)})).await;
    let meeting = format!("/v1/meetings/{}", registered["id"].as_str().unwrap());
    server.post(&format!("{meeting}/start"), &json!({"worker": "w"})).await;
    let clusters = json!({"clusters": [{"cluster_id": "a"}, {"cluster_id": "b"}]});
    let (_, diarized) = server.post(&format!("{meeting}/speakers"), &clusters).await;
    server.post(&format!("{meeting}/complete"), &json!({})).await;
    let shown = server.client.get(server.at(&meeting));
    let shown =
        answer(shown.header("minutebook-min-position", diarized["position"].as_i64().unwrap())).await.1;
    let speaker = format!("{meeting}/speakers/{}", shown["speakers"][0]["id"].as_str().unwrap());
    let (reassign, undo) = (format!("{speaker}/reassign"), format!("{speaker}/undo"));

    let reason = json!({"reason": "I was there"});
    let (status, refused) = server.post_as(REVIEWER, &undo, &reason).await;
    assert_eq!((status, &refused["code"]), (409, &json!("nothing_to_undo")), "{refused}");
    let to = |profile: Option<Uuid>| json!({"profile_id": profile, "reason": "I was there"});
    let (status, refused) = server.post_as("service:pipeline-1", &reassign, &to(Some(ada))).await;
    assert_eq!((status, &refused["code"]), (403, &json!("person_required")));
    let (status, refused) = server.post_as(REVIEWER, &reassign, &to(Some(Uuid::from_u128(1)))).await;
    assert_eq!((status, &refused["code"]), (422, &json!("unknown_profile")));
    let (status, refused) = server.post_as(REVIEWER, &reassign, &reason).await;
    assert_eq!((status, &refused["code"]), (422, &json!("invalid_body")), "null has to be said");
    let stranger = format!("{meeting}/speakers/{}/reassign", Uuid::from_u128(1));
    assert_eq!(server.post_as(REVIEWER, &stranger, &to(Some(ada))).await.1["code"], "speaker_not_found");

    assert_eq!(
        server.post_as(REVIEWER, &reassign, &to(Some(ada))).await.1["events"],
        json!(["SpeakerReassigned"])
    );
    assert_eq!(server.post_as(REVIEWER, &reassign, &to(Some(ada))).await.1["events"], json!([]));
    let mut second = to(Some(bo));
    second["expected_profile_id"] = Value::Null;
    let (status, refused) = server.post_as("person:reviewer-8", &reassign, &second).await;
    assert_eq!(
        (status, &refused["code"]),
        (412, &json!("speaker_changed")),
        "the first reviewer was quicker"
    );
    second["expected_profile_id"] = json!(ada);
    assert_eq!(server.post_as("person:reviewer-8", &reassign, &second).await.0, 200);
    assert_eq!(server.post_as(REVIEWER, &undo, &reason).await.0, 200);
    caught_up_and_equal(&pool).await;
    let shown = server.get(&meeting).await.1;
    assert_eq!(
        (&shown["speakers"][0]["user_profile_id"], &shown["status"]),
        (&json!(ada), &json!("completed"))
    );

    let (status, history) = server.get(&format!("{speaker}/history")).await;
    assert_eq!(status, 200, "{history}");
    let told = history["decisions"].as_array().unwrap().iter();
    let told =
        told.map(|decision| (decision["actor"].clone(), decision["from"].clone(), decision["to"].clone()));
    let (seven, eight) = (json!("reviewer-7"), json!("reviewer-8"));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            (seven.clone(), Value::Null, json!(ada)),
            (eight, json!(ada), json!(bo)),
            (seven, json!(bo), json!(ada)),
        ]
    );
    let first = &history["decisions"][0];
    assert_eq!((&first["reason"], &first["decision"]), (&json!("I was there"), &json!("reassigned")));
    assert_eq!(server.get(&format!("{meeting}/speakers/{}/history", Uuid::from_u128(1))).await.0, 404);
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn people_are_imported_once_and_bad_lines_are_left_out_by_number() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("people.jsonl");
    let ones = serde_json::to_string(&vec![1.0; 256]).unwrap();
    let good = [
        r#"{"name": "Ada"}"#.to_owned(),
        format!(r#"{{"name": "Bo", "samples": [{{"model": "resemblyzer-0.1.4", "vector": {ones}}}]}}"#),
        format!(r#"{{"name": "Bo", "id": "{}"}}"#, Uuid::from_u128(7)),
    ];
    std::fs::write(&file, good.join("\n")).unwrap();
    let file = file.to_str().unwrap();
    let imported = run_on(&database, &["profile", "import", file]).await;
    assert_eq!(
        (imported.code, imported.stdout.trim()),
        (Some(0), "3 people, 4 events"),
        "{}",
        imported.stderr
    );
    let again = run_on(&database, &["profile", "import", file]).await;
    assert_eq!((again.code, again.stdout.trim()), (Some(0), "3 people, 0 events"));
    // Whoever has the database alone does not find out who is in it by trying names.
    let ada: Uuid = sqlx::query_scalar("SELECT aggregate_id::uuid FROM log.events WHERE position = 1")
        .fetch_one(&pool)
        .await
        .unwrap();
    let parts = [&b"profile"[..], b"Ada"];
    assert_ne!(ada, event_store::log::identity(&pool).await.unwrap().secret.uuid(&parts));
    assert_eq!(ada, tests::keyring(&pool).await.secret().uuid(&parts));

    // What somebody has removed stays away.
    let enrolled = "SELECT aggregate_id::uuid, (payload #>> '{VoiceEnrolled,sample_id}')::uuid
                      FROM log.events WHERE event_type = 'VoiceEnrolled'";
    let (profile, sample): (Uuid, Uuid) = sqlx::query_as(enrolled).fetch_one(&pool).await.unwrap();
    let book = database.open().await;
    let remove = ProfileCommand::RemoveVoice { sample_id: sample.into() };
    book.bus.profile(profile.into(), remove, &Context::default()).await.unwrap();
    book.close().await;
    let again = run_on(&database, &["profile", "import", file]).await;
    assert_eq!((again.code, again.stdout.trim()), (Some(0), "3 people, 0 events"));

    let bad = [
        r#"{"name": "Secret Cy"}"#.to_owned(),
        r#"{"name": "Secret Cy"}"#.to_owned(),
        r#"{"name": "Secret Di", "samples": [{"model": "resemblyzer-0.1.4", "vector": [1]}]}"#.to_owned(),
        r#"{"name": "Secret Ed", "samples": [{"model": "unheard-of", "vector": [1]}]}"#.to_owned(),
        r#"{"name": ""}"#.to_owned(),
        "not JSON, Secret".to_owned(),
        format!(r#"{{"name": "Secret Fi", "id": "{}"}}"#, Uuid::from_u128(7)),
    ];
    std::fs::write(file, bad.join("\n")).unwrap();
    let partly = run_on(&database, &["profile", "import", file]).await;
    assert_eq!((partly.code, partly.stdout.trim()), (Some(3), "1 people, 1 events, 6 left out"));
    for line in 2..=7 {
        assert!(partly.stderr.contains(&format!("people.jsonl:{line}: ")), "{line}: {}", partly.stderr);
    }
    assert!(!partly.stderr.contains("Secret"), "{}", partly.stderr);
    let book = database.open().await;
    book.start_projector();
    assert_eq!(caught_up_and_equal(&pool).await, 6);
    book.close().await;
}
