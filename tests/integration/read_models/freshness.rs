//! A read that asks for a position gets it, or is told that it cannot.

use serde_json::json;
use tests::TestDatabase;
use tests::server::{Server, answer};

use super::eventually;

#[tokio::test]
async fn a_read_waits_for_its_position_while_another_process_projects() {
    let database = TestDatabase::create().await;
    let server = Server::start_with(&database, &["--only", "api", "--position-timeout", "30"]).await;
    let (status, accepted) = server.post("/v1/meetings", &json!({"sha256": "ab".repeat(32)})).await;
    assert_eq!(status, 201);
    let path = format!("/v1/meetings/{}", accepted["id"].as_str().unwrap());
    let read =
        |position: i64| server.client.get(server.at(&path)).header("minutebook-min-position", position);

    // Asked before anybody projects.
    let waiting = tokio::spawn(answer(read(1)));
    let projector = Server::start_with(&database, &["--only", "projector"]).await;
    let (status, meeting) = waiting.await.unwrap();
    assert_eq!((status, &meeting["status"]), (200, &json!("pending")));

    let mut command = "start";
    for worker in 0..20 {
        let body = match command {
            "start" | "retry" => json!({"worker": format!("w{worker}")}),
            _ => json!({"stage": "asr", "reason": "noise"}),
        };
        let (status, accepted) = server.post(&format!("{path}/{command}"), &body).await;
        assert_eq!(status, 200, "{accepted}");
        let position = accepted["position"].as_i64().unwrap();
        let response = read(position).send().await.unwrap();
        let shown = response.headers()["minutebook-position"].to_str().unwrap().parse::<i64>().unwrap();
        assert!(shown >= position);
        let meeting = response.json::<serde_json::Value>().await.unwrap();
        let status = if command == "fail" { "failed" } else { "processing" };
        assert_eq!((&meeting["status"], &meeting["version"]), (&json!(status), &accepted["version"]));
        command = if command == "fail" { "retry" } else { "fail" };
    }
    projector.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_position_that_nobody_reaches_is_refused_within_bounds() {
    let database = TestDatabase::create().await;
    let server = Server::start_with(&database, &["--only", "api", "--position-timeout", "0.2"]).await;
    let (_, accepted) = server.post("/v1/meetings", &json!({"sha256": "ab".repeat(32)})).await;
    let path = server.at(&format!("/v1/meetings/{}", accepted["id"].as_str().unwrap()));
    let read = |position: i64| server.client.get(&path).header("minutebook-min-position", position);

    let refused = read(1).send().await.unwrap();
    assert_eq!((refused.status().as_u16(), &refused.headers()["retry-after"]), (503, &"1".parse().unwrap()));
    let problem = refused.json::<serde_json::Value>().await.unwrap();
    assert_eq!(problem["code"], "position_not_reached");

    let projector = Server::start_with(&database, &["--only", "projector"]).await;
    eventually("the position is reached", async || (answer(read(1)).await.0 == 200).then_some(())).await;
    projector.stop().await;
    server.stop().await;
}
