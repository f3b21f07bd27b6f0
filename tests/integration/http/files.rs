//! What may be said about files: keys below their meeting's prefix, recordings of the kinds and sizes taken.

use serde_json::{Value, json};

use super::Scene;

const RULES: [&str; 6] =
    ["--s3-prefix", "meetings/{meeting}/", "--file-types", "audio/*,video/mp4", "--max-file-size", "1000"];

async fn registered(scene: &Scene, byte: &str) -> String {
    let body = json!({"sha256": byte.repeat(32), "mime": "audio/flac", "size": 1000});
    let (status, answer) = scene.server.post("/v1/meetings", &body).await;
    assert_eq!(status, 201, "{answer}");
    let id = answer["id"].as_str().unwrap().to_owned();
    let (status, answer) =
        scene.server.post(&format!("/v1/meetings/{id}/start"), &json!({"worker": "w"})).await;
    assert_eq!(status, 200, "{answer}");
    id
}

async fn refused(scene: &Scene, path: &str, body: Value) -> (u16, String) {
    let head = event_store::log::head(&scene.pool).await.unwrap();
    let (status, answer) = scene.server.post(path, &body).await;
    assert_eq!(event_store::log::head(&scene.pool).await.unwrap(), head, "{body}: nothing was appended");
    (status, answer["code"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn an_artifact_lies_below_the_prefix_of_its_own_meeting() {
    let scene = Scene::start_with(&RULES).await;
    let (mine, other) = (registered(&scene, "ab").await, registered(&scene, "cd").await);
    let path = format!("/v1/meetings/{mine}/artifacts");
    let artifact = |key: &str| json!({"type": "transcript.md", "s3_key": key});
    for key in ["t.md", &format!("meetings/{other}/t.md"), &format!("x/meetings/{mine}/t.md")] {
        let answer = refused(&scene, &path, artifact(key)).await;
        assert_eq!(answer, (422, "s3_key_outside_prefix".to_owned()), "{key}");
    }
    for escape in [
        "../t.md",
        "a/../../t.md",
        "./t.md",
        "/t.md",
        "a//t.md",
        "..\\t.md",
        "%2e%2e/t.md",
        "..%2ft.md",
        "a%5Ct.md",
        "a%00t.md",
        "a%252e%252e/t.md",
        "a\u{7}t.md",
        "a\u{0}t.md",
    ] {
        let (status, code) = refused(&scene, &path, artifact(&format!("meetings/{mine}/{escape}"))).await;
        assert!(status == 422 || status == 400, "{escape:?}: {status} {code}");
    }
    let (status, answer) = scene.server.post(&path, &artifact(&format!("meetings/{mine}/t.md"))).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn a_recording_is_of_a_kind_and_a_size_that_are_taken() {
    let scene = Scene::start_with(&RULES).await;
    let file = |mime: Value, size: Value| json!({"sha256": "ab".repeat(32), "mime": mime, "size": size});
    for (mime, size, expected) in [
        (json!("text/html"), json!(1), (422, "file_type_not_allowed")),
        (json!("video/webm"), json!(1), (422, "file_type_not_allowed")),
        (Value::Null, json!(1), (422, "file_type_not_allowed")),
        (json!("audio/flac"), json!(1001), (413, "file_too_large")),
        (json!("audio/flac"), json!(i64::MAX), (413, "file_too_large")),
        (json!("audio/flac"), Value::Null, (422, "file_size_unknown")),
    ] {
        let answer = refused(&scene, "/v1/meetings", file(mime.clone(), size.clone())).await;
        assert_eq!(answer, (expected.0, expected.1.to_owned()), "{mime} {size}");
    }
    registered(&scene, "ab").await;
}

#[tokio::test]
async fn a_command_that_was_accepted_keeps_its_answer_when_the_rules_change() {
    let scene = Scene::start().await;
    let body = json!({"sha256": "ab".repeat(32), "size": 2000});
    let send = async |scene: &Scene| {
        let request = scene.server.client.post(scene.server.at("/v1/meetings")).json(&body);
        tests::server::answer(request.header("idempotency-key", "k")).await
    };
    let (status, first) = send(&scene).await;
    assert_eq!(status, 201, "{first}");
    let Scene { database, server, pool } = scene;
    assert!(server.stop().await.success());
    let server = tests::server::Server::start_with(&database, &RULES).await;
    let scene = Scene { database, server, pool };
    assert_eq!(send(&scene).await.1, first);
    assert_eq!(refused(&scene, "/v1/meetings", body.clone()).await.0, 422, "another command is refused");
}

#[tokio::test]
async fn without_rules_any_plain_key_and_any_recording_is_taken() {
    let scene = Scene::start().await;
    let (status, answer) = scene.server.post("/v1/meetings", &json!({"sha256": "ab".repeat(32)})).await;
    assert_eq!(status, 201, "{answer}");
    let path = format!("/v1/meetings/{}", answer["id"].as_str().unwrap());
    assert_eq!(scene.server.post(&format!("{path}/start"), &json!({"worker": "w"})).await.0, 200);
    let stored = json!({"type": "transcript.md", "s3_key": "anywhere/at all.md"});
    assert_eq!(scene.server.post(&format!("{path}/artifacts"), &stored).await.0, 200);
    let hidden = json!({"type": "transcript.md", "s3_key": "anywhere/%2e%2e/t.md"});
    assert_eq!(
        refused(&scene, &format!("{path}/artifacts"), hidden).await,
        (422, "invalid_value".to_owned()),
        "whoever decodes it once more would leave the place"
    );
}
