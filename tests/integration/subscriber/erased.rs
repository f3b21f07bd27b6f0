//! A subscriber goes on over the erasure of a person and of a meeting, and one that comes later reads what was
//! published before; also from the log, and after the broker was filled anew.

use serde_json::{Value, json};
use tests::server::answer;

use super::{Scene, Subscriber};
use crate::cli::run_on;
use crate::erasure::{NAME, PLANE, People};
use crate::read_models::eventually;

#[tokio::test]
async fn the_feed_goes_on_over_an_erasure_and_names_nobody() {
    let Scene { nats, database, server, book, directory } = Scene::start_with(&PLANE).await;
    let people = People::of(database, server).await;
    let scene =
        |people: People| Scene { nats, database: people.database, server: people.server, book, directory };
    let forgotten = json!(people.ottilie);
    let done = people.completed(1).await;
    let removed = people.completed(2).await;
    people.forget().await;
    let (status, told) = people.erase(&removed, json!({"reason": "uploaded by mistake"})).await;
    assert_eq!(status, 200, "{told}");
    let registered = people.command("/v1/meetings", json!({"sha256": "ab".repeat(32)})).await;
    let again = format!("/v1/meetings/{}", registered["id"].as_str().unwrap());
    people.command(&format!("{again}/start"), json!({"worker": "w"})).await;
    people.command(&format!("{again}/complete"), json!({})).await;
    let (_, shown) = answer(people.server.client.get(people.server.at("/readyz"))).await;
    let head = shown["log_head"].as_i64().unwrap();
    let meetings = [done, removed, again].map(|path| json!(path.rsplit_once('/').unwrap().1));
    let scene = scene(people);
    scene.published(head).await;

    for (event_type, field, expected) in [
        ("meeting.completed", "meeting_id", &meetings[..]),
        ("meeting.erased", "meeting_id", &meetings[1..2]),
        ("profile.erased", "profile_id", &[forgotten][..]),
    ] {
        let of_broker =
            scene.subscribe_to(event_type, &format!("broker-{}", event_type.replace('.', "-")), &["--json"]);
        let state = scene.directory_of("server");
        let of_server = Subscriber::start(&[
            "subscribe",
            event_type,
            "--json",
            "--server",
            &scene.server.url,
            "--state-dir",
            &state,
        ]);
        let events = of_broker.events(expected.len()).await;
        assert_eq!(of_server.events(expected.len()).await, events, "{event_type}");
        let about: Vec<Value> = events.iter().map(|event| event["data"][field].clone()).collect();
        assert_eq!(about, expected, "{event_type}");
        let text = serde_json::to_string(&events).unwrap();
        assert!(!text.contains(NAME) && !text.contains("mistake"), "{text}");
        for subscriber in [of_broker, of_server] {
            let (_, said) = subscriber.stop().await;
            assert_eq!(said, "listening", "no gap, no complaint: {event_type}");
        }
        std::fs::remove_dir_all(state).unwrap();
    }

    // A broker that has lost everything is filled from a history of which parts are sealed for good.
    let mut scene = scene;
    scene.nats.kill_9().await;
    scene.nats.wipe();
    scene.nats.restart().await;
    eventually("the loss is told", async || {
        let status = run_on(&scene.database, &["status", "--json"]).await;
        status.stdout.contains("minutebook publish --from 1").then_some(())
    })
    .await;
    let filled = run_on(&scene.database, &["publish", "--from", "1", "--nats-url", &scene.nats.url()]).await;
    assert_eq!(filled.code, Some(0), "{}{}", filled.stdout, filled.stderr);
    let late = scene.subscribe_to("meeting.completed", "late", &["--json"]);
    let about =
        late.events(3).await.iter().map(|event| event["data"]["meeting_id"].clone()).collect::<Vec<_>>();
    assert_eq!(about, meetings);
    assert_eq!(late.stop().await.1, "listening");
    scene.close().await;
}
