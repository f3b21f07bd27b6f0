//! `/healthz`, `/readyz`, `/metrics`.

use reqwest::Method;
use serde_json::json;
use tests::server::Server;

use super::{Scene, send, sha256};

#[tokio::test]
async fn health_and_readiness_say_how_the_log_and_the_tables_stand() {
    let scene = Scene::start().await;
    assert_eq!(scene.get("/healthz").await.expect(200), json!({"status": "ok"}));
    let position = scene.register(1).await.position;
    scene.read("/v1/meetings", position).await;
    let mut ready = scene.get("/readyz").await.expect(200);
    // The voices follow by themselves.
    let [position, lag] = ["voices_position", "voices_lag_events"]
        .map(|name| ready.as_object_mut().unwrap().remove(name).unwrap().as_i64().unwrap());
    assert_eq!(position + lag, 1);
    let expected = json!({
        "status": "ready", "projector": "active", "publisher": "off",
        "log_head": 1, "read_models_position": 1, "lag_events": 0, "lag_seconds": 0.0,
        "parked_events": 0, "parked_seconds": 0.0,
    });
    assert_eq!(ready, expected);
}

#[tokio::test]
async fn metrics_show_appends_commands_lag_and_requests() {
    let scene = Scene::start().await;
    let second = Server::start(&scene.database).await;
    let registered = scene.register(1).await;
    let start = format!("{}/start", registered.meeting());
    // The second server takes the meeting on; the first, which still knows it as pending, meets the conflict.
    assert_eq!(second.post(&start, &json!({"worker": "gpu-8"})).await.0, 200);
    send(scene.post(&start, &json!({"worker": "gpu-7"}))).await.is_problem(409, "taken_by_another_worker");
    scene.read("/v1/meetings", registered.position + 1).await;

    let answer = scene.get("/metrics").await;
    assert!(answer.header("content-type").is_some_and(|kind| kind.starts_with("text/plain")), "{answer:?}");
    for line in [
        r#"minutebook_appends_total{outcome="appended"} 1"#,
        r#"minutebook_appends_total{outcome="conflict"} 1"#,
        "minutebook_append_group_size_count 2",
        r#"minutebook_append_group_size_bucket{le="1"} 2"#,
        r#"minutebook_command_conflicts_total{aggregate="meeting"} 1"#,
        r#"minutebook_command_seconds_count{aggregate="meeting",command="register",outcome="accepted"} 1"#,
        r#"minutebook_command_seconds_count{aggregate="meeting",command="start",outcome="refused"} 1"#,
        "minutebook_log_head 2",
        "minutebook_projection_position 2",
        "minutebook_projection_lag_events 0",
        "minutebook_projection_lag_seconds 0",
        r#"minutebook_http_request_seconds_count{route="/v1/meetings",method="POST",status="201"} 1"#,
        r#"minutebook_http_request_seconds_count{route="/v1/meetings/{id}/start",method="POST",status="409"} 1"#,
    ] {
        assert!(answer.body.lines().any(|l| l == line), "{line} is not in\n{}", answer.body);
    }
    // Each metric says what it is.
    for line in answer.body.lines().filter(|line| line.starts_with("# TYPE ")) {
        let name = line.split(' ').nth(2).unwrap();
        assert!(answer.body.contains(&format!("# HELP {name} ")), "{name}");
    }
}

#[tokio::test]
async fn no_label_holds_what_a_client_made_up() {
    let scene = Scene::start().await;
    let meeting = scene.register(1).await;
    for path in [
        "/v1/cache/marker-stage:marker-fp",
        "/marker-path",
        "/v1/meetings?marker=1",
        "/v1/meetings/marker-id",
    ] {
        scene.get(path).await;
    }
    scene.read(&meeting.meeting(), meeting.position).await;
    // A method of one's own, where no route is and where one is.
    let brew = Method::from_bytes(b"MARKER").unwrap();
    for path in ["/marker-path", "/v1/meetings", "/docs/"] {
        assert!(matches!(send(scene.request(&brew, path)).await.status, 404 | 405), "{path}");
    }
    let metrics = scene.get("/metrics").await.body;
    for made_up in ["marker", "MARKER", meeting.id.as_str(), &sha256(1)] {
        let lines = metrics.lines().filter(|line| line.contains(made_up)).collect::<Vec<_>>();
        assert!(lines.is_empty(), "{made_up}: {lines:#?}");
    }
}
