//! A broker that is away, hangs, or is killed.

use std::time::Duration;

use tokio::time::sleep;

use super::{ONLY_PUBLISHER, Scene, becomes, complete_a_meeting, metric, while_events_flow};
use crate::kill::rounds;
use crate::read_models::eventually;

#[tokio::test]
async fn a_broker_that_is_away_stops_no_command_and_gets_everything_later() {
    let mut scene = Scene::start().await;
    let server = scene.serve(&[]).await;
    let alone = scene.serve(&ONLY_PUBLISHER).await;
    complete_a_meeting(&server).await;
    scene.all_is_published().await;

    scene.nats.stop().await;
    // One of the two has the lock, and says what is the matter; the other may say so when it has it.
    for _ in 0..5 {
        complete_a_meeting(&server).await;
    }
    let (status, ready) = eventually("the publisher waits", async || {
        for process in [&server, &alone] {
            let (status, ready) = process.get("/readyz").await;
            if ready["publisher"] == "waiting" {
                return Some((status, ready));
            }
        }
        None
    })
    .await;
    let reason = ready["publisher_reason"].as_str().unwrap();
    assert!(reason.contains("broker"), "{reason}");
    assert!(matches!(status, 200 | 503), "{ready}");
    let said = eventually("status says so", async || {
        let said = scene.feed_status().await;
        (said["state"] == "waiting").then_some(said)
    })
    .await;
    assert!(said["detail"].as_str().unwrap().contains("broker"), "{said}");
    let (status, ready) = becomes(&alone, "waiting").await;
    assert_eq!((status, ready["status"].as_str()), (503, Some("publisher_waiting")), "{ready}");
    let (status, ready) = becomes(&server, "waiting").await;
    assert_eq!(
        (status, ready["status"].as_str()),
        (200, Some("ready")),
        "commands and tables go on: {ready}"
    );
    assert_eq!(metric(&server, "minutebook_publish_healthy").await, Some(0.0));
    for _ in 0..5 {
        complete_a_meeting(&server).await;
    }
    let shown = server.get("/readyz").await.1;
    assert_eq!(shown["log_head"], scene.head().await, "{shown}");

    scene.nats.restart().await;
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    let said = scene.feed_status().await;
    assert_eq!(
        (said["state"].as_str(), &said["detail"]),
        (Some("active"), &serde_json::Value::Null),
        "{said}"
    );
    assert!(alone.stop().await.success());
    becomes(&server, "active").await;
    assert_eq!(metric(&server, "minutebook_publish_healthy").await, Some(1.0));
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_server_starts_without_its_broker_and_publishes_when_it_comes() {
    let mut scene = Scene::start().await;
    scene.nats.stop().await;
    let server = scene.serve(&[]).await;
    complete_a_meeting(&server).await;
    let (status, ready) = becomes(&server, "waiting").await;
    assert_eq!((status, ready["status"].as_str()), (200, Some("ready")), "{ready}");
    let stopping = scene.serve(&ONLY_PUBLISHER).await;
    assert!(stopping.stop().await.success(), "one that waits can be stopped");
    scene.nats.restart().await;
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_broker_that_goes_away_while_nothing_happens_is_noticed() {
    let mut scene = Scene::start().await;
    let server = scene.serve(&[]).await;
    complete_a_meeting(&server).await;
    scene.all_is_published().await;
    scene.nats.stop().await;
    becomes(&server, "waiting").await;
    scene.nats.restart().await;
    becomes(&server, "active").await;
    scene.nats.pause();
    becomes(&server, "waiting").await;
    scene.nats.resume();
    becomes(&server, "active").await;
    complete_a_meeting(&server).await;
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_broker_that_hangs_while_events_flow_gets_every_position_once() {
    let mut scene = Scene::start().await;
    let server = scene.serve(&[]).await;
    let book = scene.database.open().await;
    for _ in 0..rounds(1) {
        let hanging = async {
            scene.stream_grows().await;
            scene.nats.pause();
            becomes(&server, "waiting").await;
            scene.nats.resume();
            scene.stream_grows().await;
        };
        while_events_flow(&book, hanging).await;
        scene.all_is_published().await;
        scene.assert_each_position_once().await;
    }
    book.close().await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_broker_killed_while_events_flow_gets_every_position_once() {
    let mut scene = Scene::start().await;
    let server = scene.serve(&[]).await;
    let book = scene.database.open().await;
    for _ in 0..rounds(3) {
        let killing = async {
            scene.stream_grows().await;
            // At any moment of the next batch.
            sleep(Duration::from_millis(fastrand::u64(..50))).await;
            scene.nats.kill_9().await;
            scene.nats.restart().await;
            scene.stream_grows().await;
        };
        while_events_flow(&book, killing).await;
    }
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    book.close().await;
    assert!(server.stop().await.success());
}
