//! What a client meets where an event cannot be applied: its own meeting is refused clearly, all others go on.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{MIN_POSITION, Scene, send};
use crate::cli::run_on;
use crate::read_models::caught_up_and_equal;
use crate::read_models::parked::append_raw;

const BROKEN: &str = r#"{"LanguageDetected": {"attempt": "secret"}}"#;

#[tokio::test]
async fn a_command_to_a_meeting_whose_history_cannot_be_read_is_refused_with_the_position() {
    // Whether the server knows the meeting already, or has to load it.
    for restarted in [false, true] {
        let mut scene = Scene::start().await;
        let registered = scene.register(1).await;
        let (meeting, id) = (registered.meeting(), registered.id);
        scene.command(&format!("{meeting}/start"), json!({"worker": "w"})).await;
        append_raw(&scene.pool, ["meeting", &id, "LanguageDetected", "1", BROKEN], 2).await;
        if restarted {
            scene.server = tests::server::Server::start(&scene.database).await;
        }
        let mark = scene.log_mark().await;
        for (command, body) in [
            ("start", json!({"worker": "w"})),
            ("language", json!({"language": "en"})),
            ("complete", json!({})),
            ("retry", json!({"worker": "w"})),
            ("artifacts", json!({"type": "summary.json", "s3_key": "s.json"})),
        ] {
            let answer = send(scene.post(&format!("{meeting}/{command}"), &body)).await;
            answer.is_problem(409, "history_unreadable");
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(detail.contains("position 3") && detail.contains("minutebook parked show 3"), "{detail}");
            assert!(!answer.body.contains("secret"), "{answer:?}");
            let keyed = scene.post(&format!("{meeting}/{command}"), &body).header("idempotency-key", command);
            send(keyed).await.is_problem(409, "history_unreadable");
        }
        let again = send(scene.post("/v1/meetings", &json!({"sha256": super::sha256(1)}))).await;
        again.is_problem(409, "history_unreadable");
        let stale = scene.post(&format!("{meeting}/complete"), &json!({})).header("if-match", "\"2\"");
        assert!(matches!(send(stale).await.status, 409 | 412));
        assert_eq!(scene.log_mark().await, mark, "nothing was entered");
        // What `parked show` is said to show is there.
        assert_eq!(caught_up_and_equal(&scene.pool).await, 3);
        let shown = run_on(&scene.database, &["parked", "show", "3"]).await;
        assert_eq!(shown.code, Some(0), "{}", shown.stderr);
    }
}

#[tokio::test]
async fn a_command_to_a_profile_whose_history_cannot_be_read_is_refused_with_the_position() {
    let scene = Scene::start().await;
    let id = scene.command("/v1/profiles", json!({"display_name": "Ada"})).await.id;
    append_raw(&scene.pool, ["profile", &id, "ProfileRenamed", "7", "{}"], 1).await;
    let renaming = scene.post(&format!("/v1/profiles/{id}/rename"), &json!({"display_name": "Ada King"}));
    let answer = send(renaming).await;
    answer.is_problem(409, "history_unreadable");
    assert!(answer.body.contains("parked show 2"), "{answer:?}");
}

#[tokio::test]
async fn a_read_that_asks_for_a_position_does_not_wait_for_what_is_parked() {
    let scene = Scene::start().await;
    let registered = scene.register(1).await;
    let (meeting, id) = (registered.meeting(), registered.id);
    append_raw(&scene.pool, ["meeting", &id, "LanguageDetected", "1", BROKEN], 1).await;
    append_raw(&scene.pool, ["picnic", "no id", "LanguageDetected", "1", BROKEN], 0).await;
    // The parked position is the last one, and the one asked for.
    let shown = scene.read(&meeting, 3).await;
    assert_eq!(shown["status"], "pending", "{shown}");
    let other = scene.register(2).await;
    assert_eq!(scene.read(&other.meeting(), 4).await["status"], "pending");
    let history = scene.get(&format!("{meeting}/events")).await.expect(200);
    let types = history["items"].as_array().unwrap().iter().map(|event| event["type"].clone());
    assert_eq!(types.collect::<Value>(), json!(["MeetingRegistered", "LanguageDetected"]));
    let beyond = scene.server.client.get(scene.server.at(&meeting)).header(MIN_POSITION, 5);
    send(beyond).await.is_problem(503, "position_not_reached");
    let unknown = scene.get(&format!("/v1/meetings/{}", Uuid::from_u128(1))).await;
    assert_eq!(unknown.status, 404);
}
