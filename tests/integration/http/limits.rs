//! What the server does not take: too much at once, too slow, too large.

use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tests::server::client;
use tests::tokens::acting;
use tokio::time::timeout;

use super::{HeldRequest, Scene, form, send, sha256};
use crate::read_models::eventually;

#[tokio::test]
async fn a_request_too_many_is_told_to_come_back() {
    let scene = Scene::start_with(&["--max-requests", "1"]).await;
    let held = HeldRequest::registration(&scene.server, 1).await;
    scene.get("/v1/meetings").await.is_problem(429, "too_many_requests");
    send(scene.post("/v1/meetings", &json!({"sha256": sha256(2)})))
        .await
        .is_problem(429, "too_many_requests");
    let answer = held.finish().await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
    assert_eq!(scene.get("/v1/meetings").await.status, 200);
    assert_eq!(scene.log_mark().await.0, 1);
}

#[tokio::test]
async fn strangers_who_log_in_without_end_keep_nobody_from_the_api() {
    let scene = Scene::start_with(&["--max-requests", "2"]).await;
    let mut held = vec![];
    for _ in 0..128 {
        held.push(HeldRequest::login(&scene.server).await);
    }
    let login = || form(scene.request(&Method::POST, "/login"), "token=x");
    send(login()).await.is_problem(429, "too_many_requests");
    scene.register(1).await;
    // And for not long.
    let answer = timeout(Duration::from_secs(15), held[0].answer()).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    drop(held);
    eventually("there is room", async || (send(login()).await.status == 401).then_some(())).await;
    let large = form(scene.request(&Method::POST, "/login"), &format!("token={}", "x".repeat(17_000)));
    send(large).await.is_problem(413, "body_too_large");
}

#[tokio::test]
async fn one_caller_does_not_take_every_place() {
    let scene = Scene::start_with(&["--max-requests", "4"]).await;
    let mut held = vec![];
    for n in 0..3 {
        held.push(HeldRequest::registration(&scene.server, n).await);
    }
    scene.get("/v1/meetings").await.is_problem(429, "too_many_requests");
    let another = client(&acting("person:reviewer-7"));
    assert_eq!(send(another.get(scene.server.at("/v1/meetings"))).await.status, 200);
    held.pop().unwrap().finish().await;
    eventually("there is room", async || (scene.get("/v1/meetings").await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn a_full_server_is_alive_and_says_how_it_is() {
    let scene = Scene::start_with(&["--max-requests", "1"]).await;
    let _held = HeldRequest::registration(&scene.server, 1).await;
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(scene.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn a_request_that_takes_too_long_is_cut_off_and_has_no_effect() {
    let scene = Scene::start_with(&["--request-timeout", "1"]).await;
    let mut held = HeldRequest::registration(&scene.server, 1).await;
    let answer = held.answer().await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("retry-after: "), "{answer}");
    assert!(body.contains("\"code\":\"timeout\""), "{answer}");
    assert_eq!(scene.log_mark().await, (0, 0));
    scene.register(1).await;
}

#[tokio::test]
async fn a_read_that_waits_for_a_position_is_cut_off_too() {
    let limits = ["--request-timeout", "0.5", "--position-timeout", "60"];
    // Nobody projects.
    let scene = Scene::start_with(&[&limits[..], &["--only", "api"]].concat()).await;
    scene.register(1).await;
    let read = scene.request(&Method::GET, "/v1/meetings").header("minutebook-min-position", 1);
    send(read).await.is_problem(503, "timeout");
}

#[tokio::test]
async fn a_body_of_just_the_limit_is_taken() {
    let scene = Scene::start_with(&["--body-limit", "1000"]).await;
    for (length, status) in [(1000, 201), (1001, 413)] {
        let body = format!("{:length$}", json!({"sha256": sha256(length)}).to_string());
        let register =
            scene.request(&Method::POST, "/v1/meetings").header("content-type", "application/json");
        assert_eq!(send(register.body(body)).await.status, status, "{length} bytes");
    }
}
