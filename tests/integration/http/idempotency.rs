//! `Idempotency-Key`: one key, one effect, one answer.

use std::collections::BTreeSet;

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};

use super::{Accepted, Answer, Scene, send, sha256};

const KEY: &str = "idempotency-key";

/// Returns what of an answer must be the same each time.
fn essence(answer: &Answer) -> (u16, String, Vec<Option<String>>) {
    let headers =
        ["etag", "location", "minutebook-position"].map(|name| answer.header(name).map(str::to_owned));
    (answer.status, answer.body.clone(), headers.to_vec())
}

#[tokio::test]
async fn a_key_sent_twenty_times_at_once_has_one_effect_and_one_answer() {
    let scene = Scene::start().await;
    let meeting = scene.register(1).await.meeting();
    let id = "018f0000-0000-7000-8000-00000000000a";
    for (path, body, event) in [
        ("/v1/meetings".to_owned(), json!({"sha256": sha256(2)}), "MeetingRegistered"),
        (format!("{meeting}/start"), json!({"worker": "gpu-7"}), "ProcessingStarted"),
        (format!("{meeting}/language"), json!({"language": "en"}), "LanguageDetected"),
        ("/v1/profiles".to_owned(), json!({"id": id, "display_name": "Ada"}), "ProfileCreated"),
    ] {
        has_one_effect_at_once(&scene, &path, &body, event).await;
    }
}

#[tokio::test]
async fn a_new_person_has_one_id_however_often_the_same_key_asks_at_once() {
    let scene = Scene::start().await;
    // Each try makes up an id; that of the one that came through is the answer to all.
    for n in 0..10 {
        let body = json!({"display_name": format!("Grace {n}")});
        has_one_effect_at_once(&scene, "/v1/profiles", &body, "ProfileCreated").await;
    }
}

async fn has_one_effect_at_once(scene: &Scene, path: &str, body: &Value, event: &str) {
    let before = scene.log_mark().await;
    let request = scene.post(path, body).header(KEY, format!("key of {body}"));
    let answers = join_all((0..20).map(|_| send(request.try_clone().unwrap()))).await;
    let different = answers.iter().map(essence).collect::<BTreeSet<_>>();
    assert_eq!(different.len(), 1, "{path} {body}: {different:#?}");
    let accepted = Accepted::of(&answers[0]);
    assert_eq!(accepted.events, [event], "{path} {body}");
    assert_eq!(scene.log_mark().await, (before.0 + 1, before.1 + 1), "{path} {body}");
    assert_eq!(accepted.position, before.0 + 1, "{path} {body}");
}

#[tokio::test]
async fn a_key_gets_its_first_answer_also_after_the_world_moved_on_and_after_a_restart() {
    let mut scene = Scene::start().await;
    let meeting = scene.register(1).await.meeting();
    let commands = [
        ("/v1/meetings".to_owned(), json!({"sha256": sha256(2)})),
        (format!("{meeting}/start"), json!({"worker": "gpu-7"})),
        ("/v1/profiles".to_owned(), json!({"display_name": "Grace"})),
    ];
    let all = |scene: &Scene| {
        let requests = commands.each_ref().map(|(path, body)| scene.post(path, body).header(KEY, "the key"));
        async move {
            let mut answers = Vec::new();
            for request in requests {
                answers.push(essence(&send(request).await));
            }
            answers
        }
    };
    let first = all(&scene).await;
    // By now `start` itself would be refused.
    scene.command(&format!("{meeting}/complete"), json!({})).await;
    let mark = scene.log_mark().await;
    assert_eq!(all(&scene).await, first);
    scene.server = tests::server::Server::start(&scene.database).await;
    assert_eq!(all(&scene).await, first);
    assert_eq!(scene.log_mark().await, mark);
}

#[tokio::test]
async fn a_key_comes_before_if_match() {
    let scene = Scene::start().await;
    let path = format!("{}/start", scene.register(1).await.meeting());
    let start = scene.post(&path, &json!({"worker": "gpu-7"})).header(KEY, "k").header("if-match", "\"1\"");
    let first = send(start.try_clone().unwrap()).await;
    assert_eq!(first.status, 200);
    assert_eq!(essence(&send(start).await), essence(&first));
}

#[tokio::test]
async fn a_key_used_for_another_body_is_refused_and_changes_nothing() {
    let scene = Scene::start().await;
    let register = |n: usize| scene.post("/v1/meetings", &json!({"sha256": sha256(n)})).header(KEY, "k");
    assert_eq!(send(register(1)).await.status, 201);
    let mark = scene.log_mark().await;
    send(register(2)).await.is_problem(422, "idempotency_key_reused");
    assert_eq!(scene.log_mark().await, mark);

    // The same JSON in other words is the same request.
    let same = format!("{{ \"sha256\" :\n \"{}\" }}", sha256(1));
    let same =
        scene.request(&Method::POST, "/v1/meetings").body(same).header("content-type", "application/json");
    assert_eq!(send(same.header(KEY, "k")).await.status, 201);
}

#[tokio::test]
async fn of_two_bodies_with_one_key_at_once_one_is_taken_and_the_other_refused() {
    let scene = Scene::start().await;
    let register =
        |n: usize| send(scene.post("/v1/meetings", &json!({"sha256": sha256(n % 2)})).header(KEY, "k"));
    let answers = join_all((0..20).map(register)).await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 201);
    assert_eq!(taken.iter().map(|answer| essence(answer)).collect::<BTreeSet<_>>().len(), 1);
    assert_eq!((taken.len(), refused.len()), (10, 10));
    for answer in refused {
        answer.is_problem(422, "idempotency_key_reused");
    }
    assert_eq!(scene.log_mark().await, (1, 1));
}

#[tokio::test]
async fn the_same_key_on_another_route_or_of_another_actor_is_another_key() {
    let scene = Scene::start().await;
    let meetings = [scene.register(1).await.meeting(), scene.register(2).await.meeting()];
    for meeting in &meetings {
        let start = scene.post(&format!("{meeting}/start"), &json!({"worker": "gpu-7"})).header(KEY, "k");
        assert_eq!(Accepted::of(&send(start).await).events, ["ProcessingStarted"]);
        let complete = scene.post(&format!("{meeting}/complete"), &json!({})).header(KEY, "k");
        assert_eq!(Accepted::of(&send(complete).await).events, ["MeetingCompleted"]);
    }
    let ids = join_all(["person:1", "person:2", "service:1", "system:1"].map(|actor| {
        let create = scene.post("/v1/profiles", &json!({"display_name": "Ada"})).header(KEY, "k");
        send(create.header("authorization", tests::tokens::acting(actor)))
    }))
    .await;
    assert_eq!(ids.iter().map(|answer| Accepted::of(answer).id).collect::<BTreeSet<_>>().len(), 4);
}

#[tokio::test]
async fn a_command_without_effect_is_remembered_under_its_key_too() {
    let scene = Scene::start().await;
    let meeting = scene.register(1).await.meeting();
    let path = format!("{meeting}/language");
    scene.command(&format!("{meeting}/start"), json!({"worker": "gpu-7"})).await;
    scene.command(&path, json!({"language": "en"})).await;
    let english = || send(scene.post(&path, &json!({"language": "en"})).header(KEY, "k"));
    let first = english().await;
    assert_eq!(Accepted::of(&first).events, Vec::<String>::new());

    scene.command(&path, json!({"language": "fr"})).await;
    assert_eq!(
        essence(&english().await),
        essence(&first),
        "now it would have an effect, but it is a repetition"
    );
    send(scene.post(&path, &json!({"language": "de"})).header(KEY, "k"))
        .await
        .is_problem(422, "idempotency_key_reused");
}

#[tokio::test]
async fn a_refused_command_is_not_remembered() {
    let scene = Scene::start().await;
    let meeting = scene.register(1).await.meeting();
    let complete = || send(scene.post(&format!("{meeting}/complete"), &json!({})).header(KEY, "k"));
    complete().await.is_problem(409, "illegal_transition");
    scene.command(&format!("{meeting}/start"), json!({"worker": "gpu-7"})).await;
    assert_eq!(Accepted::of(&complete().await).events, ["MeetingCompleted"]);
}
