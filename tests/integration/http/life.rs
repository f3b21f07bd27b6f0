//! The straight road: a meeting's whole life, a profile's, and every read on the way.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::server::Server;

use super::{Accepted, MIN_POSITION, Scene, send, sha256};

#[tokio::test]
async fn a_meeting_goes_through_its_whole_life_and_every_read_shows_each_step_at_once() {
    let scene = Scene::start().await;
    let owner = "018f0000-0000-7000-8000-000000000001";
    let file = json!({"sha256": sha256(1), "mime": "audio/flac", "size": 31_457_280, "duration": 1800, "owner": owner});
    let answer = send(scene.post("/v1/meetings", &file)).await;
    let registered = Accepted::of(&answer);
    let meeting = registered.meeting();
    assert_eq!((answer.status, answer.header("location")), (201, Some(meeting.as_str())));
    assert_eq!((registered.version, registered.events), (1, vec!["MeetingRegistered".to_owned()]));

    let again = send(scene.post("/v1/meetings", &file)).await;
    assert_eq!((again.status, again.header("location")), (200, None));
    assert_eq!(Accepted::of(&again).events, Vec::<String>::new());

    let fp = "pcm16k:5f70bf18a086007016e948b04aed3b82";
    let segments = json!([{"start_ms": 0, "duration_ms": 900}, {"start_ms": 1000, "duration_ms": 500}]);
    let clusters =
        json!({"clusters": [{"cluster_id": "spk01"}, {"cluster_id": "spk00", "segments": segments}]});
    let artifact = json!({"type": "transcript.vtt", "s3_key": "m/1/transcript.vtt", "meta": {"words": 5213}});
    let cached = json!({"value": "{\"words\": []}", "ttl_seconds": 60});
    // What is asked, the event that follows, and what the meeting then shows.
    let life = [
        ("start", json!({"worker": "gpu-7"}), "ProcessingStarted", ("/status", json!("processing"))),
        ("fingerprint", json!({"content_fp": fp}), "ContentFingerprinted", ("/file/content_fp", json!(fp))),
        ("language", json!({"language": "EN-gb"}), "LanguageDetected", ("/language", json!("en-GB"))),
        ("cache/transcribe", cached, "StageResultCached", ("/status", json!("processing"))),
        ("speakers", clusters, "SpeakersDiarized", ("/speakers/1/cluster_id", json!("spk01"))),
        ("artifacts", artifact, "ArtifactStored", ("/artifacts/0/meta/words", json!(5213))),
        ("complete", json!({}), "MeetingCompleted", ("/status", json!("completed"))),
        ("reprocess", json!({"worker": "gpu-8"}), "ProcessingStarted", ("/status", json!("processing"))),
        (
            "fail",
            json!({"stage": "diarize", "reason": "out of memory"}),
            "MeetingFailed",
            ("/status", json!("failed")),
        ),
        ("retry", json!({"worker": "gpu-9"}), "ProcessingStarted", ("/status", json!("processing"))),
        ("complete", json!({}), "MeetingCompleted", ("/status", json!("completed"))),
    ];
    let mut version = 1;
    for (route, body, event, (shown, value)) in life {
        version += 1;
        let path = format!("{meeting}/{route}");
        let accepted = step(&scene, &path, &body).await;
        assert_eq!(
            (accepted.version, accepted.events.as_slice()),
            (version, &[event.to_owned()][..]),
            "{route}"
        );
        assert_eq!(accepted.id, registered.id, "{route}");
        let read = scene.read(&meeting, accepted.position).await;
        assert_eq!(read.pointer(shown), Some(&value), "{route}");
        assert_eq!(read["version"], version, "{route}");

        let repeated = step(&scene, &path, &body).await;
        let unmoved = (repeated.version, repeated.position, repeated.events.len());
        assert_eq!(unmoved, (version, accepted.position, 0), "{route} twice");
    }

    let head = scene.log_mark().await.0;
    assert_eq!(head, 12, "one event a step, and none for what was repeated");
    let read = scene.read(&meeting, head).await;
    assert!(read["finished_at"].is_string());
    assert_eq!((&read["file"]["mime"], &read["file"]["duration"]), (&json!("audio/flac"), &json!(1800)));
    let file_id = read["file"]["id"].as_str().unwrap();
    assert_eq!(scene.read(&format!("/v1/files/{file_id}"), head).await, read["file"]);
    for query in [format!("sha256={}", sha256(1)), format!("content_fp={fp}")] {
        let found = scene.read(&format!("/v1/files?{query}"), head).await;
        assert_eq!(found, json!({"items": [read["file"]]}), "{query}");
    }
    let stage = scene.read(&format!("/v1/cache/transcribe:{fp}"), head).await;
    assert_eq!(stage["value"], "{\"words\": []}");
    assert!(stage["expires_at"].is_string());
    let result = scene.read(&format!("/v1/cache/meeting:{}", registered.id), head).await;
    assert!(serde_json::from_str::<Value>(result["value"].as_str().unwrap()).unwrap().is_object());

    let events = scene.read(&format!("{meeting}/events"), head).await;
    let events = events["items"].as_array().unwrap();
    let order = events.iter().map(|event| (event["position"].as_i64(), event["sequence"].as_i64()));
    assert!(order.eq((1..=12).map(|n| (Some(n), Some(n)))));
    assert_eq!((&events[0]["type"], &events[0]["version"]), (&json!("MeetingRegistered"), &json!("1")));
    assert_eq!(events[0].pointer("/payload/MeetingRegistered/file/sha256"), Some(&json!(sha256(1))));
    assert!(events.windows(2).all(|pair| pair[0]["recorded_at"].as_str() <= pair[1]["recorded_at"].as_str()));
}

/// Sends a command: `cache` is put, the others are posted.
async fn step(scene: &Scene, path: &str, body: &Value) -> Accepted {
    let method = if path.contains("/cache/") { reqwest::Method::PUT } else { reqwest::Method::POST };
    let answer = send(scene.request(&method, path).json(body)).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    Accepted::of(&answer)
}

#[tokio::test]
async fn complete_needs_no_body_and_no_content_type() {
    let scene = Scene::start().await;
    let meeting = scene.register(1).await.meeting();
    scene.command(&format!("{meeting}/start"), json!({"worker": "gpu-7"})).await;
    let complete = scene.request(&reqwest::Method::POST, &format!("{meeting}/complete"));
    assert_eq!(Accepted::of(&send(complete).await).events, ["MeetingCompleted"]);
}

#[tokio::test]
async fn a_person_is_entered_under_a_given_or_a_new_id_renamed_and_shown() {
    let scene = Scene::start().await;
    let id = "018f0000-0000-7000-8000-00000000000a";
    let ada = json!({"id": id, "display_name": "Ada Lovelace"});
    let answer = send(scene.post("/v1/profiles", &ada)).await;
    let created = Accepted::of(&answer);
    assert_eq!((answer.status, answer.header("location")), (201, Some(created.profile().as_str())));
    assert_eq!((created.id.as_str(), created.version), (id, 1));
    assert_eq!(created.events, ["ProfileCreated"]);
    assert_eq!(send(scene.post("/v1/profiles", &ada)).await.status, 200);
    let grace = scene.command("/v1/profiles", json!({"display_name": "Grace Hopper"})).await;
    assert_ne!(grace.id, id);

    let rename = json!({"display_name": "Ada King"});
    let renamed = scene.command(&format!("/v1/profiles/{id}/rename"), rename).await;
    assert_eq!((renamed.version, renamed.events), (2, vec!["ProfileRenamed".to_owned()]));
    let shown = scene.read(&format!("/v1/profiles/{id}"), renamed.position).await;
    assert_eq!((&shown["display_name"], &shown["voice_samples"]), (&json!("Ada King"), &json!(0)));
    let other = send(scene.post("/v1/profiles", &ada)).await;
    other.is_problem(409, "profile_exists");
}

#[tokio::test]
async fn whoever_is_entered_is_listed_also_under_the_lowest_and_the_highest_id() {
    let scene = Scene::start().await;
    let ids = ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"];
    let mut position = 0;
    for id in ids {
        position = scene.command("/v1/profiles", json!({"id": id, "display_name": "Ada"})).await.position;
    }
    let list = scene.read("/v1/profiles", position).await;
    assert_eq!(listed(&list), ids);
}

#[tokio::test]
async fn lists_show_every_row_once_in_order_and_filters_hold_across_pages() {
    let scene = Scene::start().await;
    let owner = "018f0000-0000-7000-8000-000000000002";
    let (mut all, mut position) = (Vec::new(), 0);
    for n in 0..10 {
        // The same file of ten owners, of which the even ones are one.
        let owner = if n % 2 == 0 { owner.to_owned() } else { uuid::Uuid::from_u128(n).to_string() };
        let sha256 = if n % 2 == 0 { sha256(n as usize) } else { sha256(99) };
        let registered = scene.command("/v1/meetings", json!({"sha256": sha256, "owner": owner})).await;
        let meeting = registered.meeting();
        position = scene.command(&format!("{meeting}/start"), json!({"worker": "gpu-7"})).await.position;
        if n < 4 {
            scene.command(&format!("{meeting}/language"), json!({"language": "de-CH"})).await;
            position = scene.command(&format!("{meeting}/complete"), json!({})).await.position;
        }
        all.push(registered.id);
        position = position.max(scene.command("/v1/profiles", json!({"display_name": "Ada"})).await.position);
    }
    // Each list, how many rows it has, and how many pages of three that makes.
    let expected = [
        ("/v1/meetings?", 10, 4),
        ("/v1/meetings?status=completed&", 4, 2),
        ("/v1/meetings?status=processing&", 6, 2),
        ("/v1/meetings?status=failed&", 0, 1),
        (&format!("/v1/meetings?owner={owner}&"), 5, 2),
        (&format!("/v1/meetings?owner={owner}&status=completed&language=DE-ch&"), 2, 1),
        ("/v1/meetings?language=de-CH&", 4, 2),
        ("/v1/meetings?language=fr&", 0, 1),
        (&format!("/v1/files?sha256={}&", sha256(99).to_uppercase()), 5, 2),
        ("/v1/files?content_fp=nobody&", 0, 1),
        ("/v1/profiles?", 10, 4),
    ];
    for (list, rows, pages) in expected {
        let walked = walk(&scene, list, position).await;
        assert_eq!(walked.len(), pages, "{list}");
        let ids = walked.iter().flat_map(listed).collect::<Vec<_>>();
        assert!(ids.is_sorted(), "{list}: {ids:?}");
        assert_eq!((ids.len(), ids.iter().collect::<BTreeSet<_>>().len()), (rows, rows), "{list}");
    }
    all.sort();
    let whole = scene.read("/v1/meetings?limit=500", position).await;
    assert_eq!(listed(&whole), all);
    assert!(whole.get("next_cursor").is_none());

    let one = scene.read(&format!("/v1/meetings?owner={owner}&status=completed&limit=1"), position).await;
    let meeting = format!("/v1/meetings/{}", listed(&one)[0]);
    let history = walk(&scene, &format!("{meeting}/events?"), position).await;
    let sequences =
        history.iter().flat_map(|page| page["items"].as_array().unwrap()).map(|e| e["sequence"].as_i64());
    assert!(sequences.eq((1..=4).map(Some)), "{history:?}");
}

#[tokio::test]
async fn a_cursor_that_was_tampered_with_is_refused() {
    let scene = Scene::start().await;
    let mut position = 0;
    for n in 0..4 {
        position = scene.register(n).await.position;
    }
    let page = scene.read("/v1/meetings?limit=3", position).await;
    let cursor = page["next_cursor"].as_str().unwrap();
    let (head, tail) = cursor.split_at(1);
    for tampered in [
        format!("B{tail}"),
        head.to_owned(),
        format!("{cursor}AA"),
        cursor.replace(head, "%00"),
        format!("{cursor}="),
    ] {
        scene.get(&format!("/v1/meetings?cursor={tampered}")).await.is_problem(422, "invalid_query");
    }
    assert_eq!(listed(&scene.read(&format!("/v1/meetings?cursor={cursor}"), position).await).len(), 1);
}

/// Returns the pages of a list, three rows each.
async fn walk(scene: &Scene, list: &str, position: i64) -> Vec<Value> {
    let mut pages = vec![scene.read(&format!("{list}limit=3"), position).await];
    while let Some(cursor) = pages.last().unwrap()["next_cursor"].as_str() {
        let next = format!("{list}limit=3&cursor={cursor}");
        assert_eq!(pages.last().unwrap()["items"].as_array().unwrap().len(), 3, "{list}");
        pages.push(scene.read(&next, position).await);
    }
    pages
}

fn listed(page: &Value) -> Vec<String> {
    page["items"].as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn a_read_for_a_position_that_is_not_there_yet_is_told_to_try_again() {
    let scene = Scene::start_with(&["--position-timeout", "30"]).await;
    let registered = scene.register(1).await;
    let asked = Instant::now();
    let read = |position: i64| {
        send(scene.request(&reqwest::Method::GET, "/v1/meetings").header(MIN_POSITION, position))
    };
    assert_eq!(read(0).await.status, 200);
    assert_eq!(read(registered.position).await.status, 200);
    for beyond in [registered.position + 1, i64::MAX] {
        read(beyond).await.is_problem(503, "position_not_reached");
    }
    // Nobody was told of it, so nobody waits for it.
    assert!(asked.elapsed() < Duration::from_secs(20));
}

#[tokio::test]
async fn a_read_that_waits_for_a_position_is_answered_once_the_tables_show_it() {
    let scene = Scene::start_with(&["--only", "api", "--position-timeout", "30"]).await;
    let registered = scene.register(1).await;
    let (read, projector) = tokio::join!(
        scene.read("/v1/meetings", registered.position),
        Server::start_with(&scene.database, &["--only", "projector"])
    );
    assert!(listed(&read).contains(&registered.id));
    assert!(projector.stop().await.success());
}

#[tokio::test]
async fn an_answer_without_effect_names_a_position_that_shows_the_effect() {
    let scene = Scene::start().await;
    let registered = scene.register(1).await;
    scene.register(2).await;
    let repeated = send(scene.post("/v1/meetings", &json!({"sha256": sha256(1)}))).await;
    let repeated = Accepted::of(&repeated);
    assert_eq!((repeated.version, repeated.position), (registered.version, registered.position));
}

#[tokio::test]
async fn what_is_repeated_is_known_at_once_and_after_a_restart_whatever_numbers_it_holds() {
    let mut scene = Scene::start().await;
    let meeting = scene.register(1).await.meeting();
    scene.command(&format!("{meeting}/start"), json!({"worker": "gpu-7"})).await;
    // jsonb writes numbers in its own way: 1e16 comes back as 10000000000000000.
    let meta =
        json!({"a": 1e16, "b": -1e17, "c": 1e300, "d": -0.0, "e": 0.1, "f": 1e-300, "g": 1.0, "h": u64::MAX});
    let artifact = json!({"type": "summary.json", "s3_key": "m/1/summary.json", "meta": meta});
    let path = format!("{meeting}/artifacts");
    let first = scene.command(&path, artifact.clone()).await;
    assert_eq!(first.events, ["ArtifactStored"]);
    assert_eq!(scene.command(&path, artifact.clone()).await.events, Vec::<String>::new());
    scene.server = Server::start(&scene.database).await;
    let repeated = scene.command(&path, artifact).await;
    assert_eq!((repeated.events.len(), repeated.position), (0, first.position));
}
