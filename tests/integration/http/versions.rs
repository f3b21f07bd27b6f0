//! `ETag` and `If-Match`: who read a version changes that one or nothing.

use reqwest::Method;
use serde_json::json;

use super::{Accepted, MIN_POSITION, Scene, send, sha256};

#[tokio::test]
async fn a_read_shows_the_version_that_the_command_answered_with() {
    let scene = Scene::start().await;
    let registered = scene.register(1).await;
    let meeting = registered.meeting();
    let started = scene.command(&format!("{meeting}/start"), json!({"worker": "gpu-7"})).await;
    let profile = scene.command("/v1/profiles", json!({"display_name": "Ada"})).await;
    for (path, accepted) in [(meeting, started), (profile.profile(), profile)] {
        let read = scene.request(&Method::GET, &path).header(MIN_POSITION, accepted.position);
        let read = send(read).await;
        read.expect(200);
        assert_eq!(read.header("etag"), Some(format!("\"{}\"", accepted.version).as_str()));
        let shown = read.header("minutebook-position").unwrap().parse::<i64>().unwrap();
        assert!(shown >= accepted.position, "{read:?}");
    }
}

#[tokio::test]
async fn a_command_for_the_version_at_hand_is_taken_and_one_for_another_changes_nothing() {
    let scene = Scene::start().await;
    let meeting = scene.register(1).await.meeting();
    let profile = scene.command("/v1/profiles", json!({"display_name": "Ada"})).await.profile();
    for (path, body) in [
        (format!("{meeting}/start"), json!({"worker": "gpu-7"})),
        (format!("{profile}/rename"), json!({"display_name": "Grace"})),
    ] {
        let mark = scene.log_mark().await;
        let command = |version: &str| scene.post(&path, &body).header("if-match", version);
        for stale in ["\"0\"", "\"2\"", "\"4294967295\""] {
            send(command(stale)).await.is_problem(412, "stale_version");
        }
        assert_eq!(scene.log_mark().await, mark, "{path}");
        let accepted = Accepted::of(&send(command("\"1\"")).await);
        assert_eq!((accepted.version, accepted.events.len()), (2, 1), "{path}");
        send(command("\"1\"")).await.is_problem(412, "stale_version");
    }
}

#[tokio::test]
async fn a_registration_for_a_version_finds_none_before_the_first_and_that_one_afterwards() {
    let scene = Scene::start().await;
    let register =
        |version: &str| scene.post("/v1/meetings", &json!({"sha256": sha256(1)})).header("if-match", version);
    send(register("\"1\"")).await.is_problem(412, "stale_version");
    assert_eq!(send(register("\"0\"")).await.status, 201);
    assert_eq!(send(register("\"1\"")).await.status, 200);
    send(register("\"0\"")).await.is_problem(412, "stale_version");
}

#[tokio::test]
async fn of_many_commands_for_one_version_exactly_one_is_taken() {
    let scene = Scene::start().await;
    let profile = scene.command("/v1/profiles", json!({"display_name": "Ada"})).await.profile();
    let rename = |n: usize| {
        let body = json!({"display_name": format!("Ada {n}")});
        send(scene.post(&format!("{profile}/rename"), &body).header("if-match", "\"1\""))
    };
    let answers = futures::future::join_all((0..20).map(rename)).await;
    let (taken, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(taken.len(), 1);
    for answer in refused {
        answer.is_problem(412, "stale_version");
    }
}
