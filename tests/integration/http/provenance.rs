//! Who asked, on behalf of what: request ids, and what an event's metadata keeps.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{Answer, Scene, send, sha256};

#[tokio::test]
async fn a_request_keeps_its_id_or_is_given_one() {
    let scene = Scene::start().await;
    let with = |id: &str| send(scene.request(&reqwest::Method::GET, "/healthz").header("x-request-id", id));
    assert_eq!(with("abc.DEF_1-2").await.header("x-request-id"), Some("abc.DEF_1-2"));
    // What may not stand in a log is replaced.
    for id in ["", "a b", "ada@example.org", &"x".repeat(101)] {
        assert!(made_up(&with(id).await), "{id:?}");
    }
    for path in ["/healthz", "/v1/meetings", "/nowhere", "/docs/", "/openapi.json"] {
        assert!(made_up(&scene.get(path).await), "{path}");
    }
}

fn made_up(answer: &Answer) -> bool {
    answer.header("x-request-id").is_some_and(|id| id.parse::<Uuid>().is_ok())
}

#[tokio::test]
async fn an_event_keeps_who_asked_for_it_on_behalf_of_what_and_why() {
    let scene = Scene::start().await;
    let id = |value: &Value| value.as_str().unwrap().parse::<Uuid>().unwrap();

    let metadata = metadata_of(&scene, 1, &[]).await;
    assert_eq!((&metadata["actor_kind"], &metadata["actor"]), (&json!("system"), &json!("local")));
    assert_eq!(metadata["causation_id"], metadata["command_id"]);
    assert_ne!(id(&metadata["correlation_id"]), id(&metadata["command_id"]));

    let metadata = metadata_of(&scene, 2, &[("x-request-id", "request-1")]).await;
    assert_eq!(metadata["correlation_id"], "request-1");

    let all = [
        ("authorization", &*tests::tokens::acting("person:4f2a")),
        ("minutebook-correlation-id", "batch-7"),
        ("minutebook-causation-id", "upload-1"),
        ("x-request-id", "request-1"),
    ];
    let metadata = metadata_of(&scene, 3, &all).await;
    for (field, value) in [
        ("actor_kind", "person"),
        ("actor", "4f2a"),
        ("correlation_id", "batch-7"),
        ("causation_id", "upload-1"),
    ] {
        assert_eq!(metadata[field], value);
    }
    assert_eq!(metadata.as_object().unwrap().len(), 5);
}

/// Registers the `n`th meeting with these headers; returns its event's metadata.
async fn metadata_of(scene: &Scene, n: usize, headers: &[(&str, &str)]) -> Value {
    let mut register = scene.post("/v1/meetings", &json!({"sha256": sha256(n)}));
    for (name, value) in headers {
        register = register.header(*name, *value);
    }
    let meeting = super::Accepted::of(&send(register).await).meeting();
    scene.get(&format!("{meeting}/events")).await.expect(200)["items"][0]["metadata"].clone()
}
