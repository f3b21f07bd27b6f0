//! `subscribe --server`: the same events without a broker.

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::TestDatabase;
use tests::server::Server;
use uuid::Uuid;

use super::{Scene, Subscriber, lines_of};
use crate::read_models::history::{append, created, renamed};

#[tokio::test]
async fn the_events_of_a_server_are_those_of_the_broker() {
    let scene = Scene::start().await;
    for n in 1..=5 {
        scene.enter(n).await;
        scene.rename(n).await;
    }
    let of_broker = scene.subscribe("one", &["--json"]);
    let of_server = scene.subscribe("other", &["--json", "--server", &scene.server.url]);
    let events = of_broker.events(5).await;
    assert_eq!(of_server.events(5).await, events);
    assert_eq!(
        events.iter().map(|event| event["position"].as_i64().unwrap()).collect::<Vec<_>>(),
        [1, 3, 5, 7, 9]
    );
    assert_eq!(of_server.stop().await.1, "listening");
    scene.close().await;
}

#[tokio::test]
async fn a_subscriber_of_a_server_goes_on_over_its_own_death_and_the_servers() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let tell = async |from: u128, to: u128| {
        for n in from..=to {
            append(&book, &created(Uuid::from_u128(n), "Ada")).await;
            append(&book, &renamed(Uuid::from_u128(n), "Ada King")).await;
        }
    };
    let server = Server::start(&database).await;
    let (url, address) = (server.url.clone(), server.address());
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("minutes").display().to_string();
    let subscribe = || {
        Subscriber::start(&[
            "subscribe",
            "profile.created",
            "--json",
            "--server",
            &url,
            "--state-dir",
            &state,
        ])
    };

    let subscriber = subscribe();
    tell(1, 3).await;
    assert_eq!(subscriber.positions(3).await, [1, 3, 5]);
    server.kill_9().await;
    subscriber.says("waiting: ").await;
    tell(4, 5).await;
    let server = Server::start_at(&address, &database, &[]).await;
    assert_eq!(subscriber.positions(5).await, [1, 3, 5, 7, 9]);
    subscriber.says_often(2, "listening").await;
    // The ledger is written after the event is printed: the one in hand may come again.
    let (positions, said) = subscriber.stop().await;
    assert_eq!(positions, [1, 3, 5, 7, 9]);
    assert_eq!(said.matches("waiting: ").count(), 1, "it is said once: {said}");
    assert!(!said.contains("missing"), "{said}");

    tell(6, 6).await;
    let subscriber = subscribe();
    let came = subscriber.positions(1).await;
    assert!(came == [11] || came == [9, 11], "{came:?}");
    assert!(server.stop().await.success());
    subscriber.says("waiting: ").await;
    // Started without a server, too, it waits for one.
    subscriber.kill_9().await;
    let subscriber = subscribe();
    subscriber.says("waiting: ").await;
    let server = Server::start_at(&address, &database, &[]).await;
    tell(7, 7).await;
    let came = subscriber.positions(1).await;
    assert!(came == [13] || came == [11, 13], "{came:?}");
    subscriber.stop().await;
    book.close().await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn with_a_server_too_a_failing_command_is_run_again_and_then_set_aside() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let server = Server::start(&database).await;
    let directory = tempfile::tempdir().unwrap();
    let (tried, state) = (directory.path().join("tried"), directory.path().join("minutes"));
    let command = format!(
        r#"echo "$MINUTEBOOK_POSITION $MINUTEBOOK_PROFILE_ID" >> '{}'; [ "$MINUTEBOOK_POSITION" != 2 ]"#,
        tried.display()
    );
    let (url, state_dir) = (server.url.clone(), state.display().to_string());
    let subscriber = Subscriber::start(&[
        "subscribe",
        "profile.created",
        "--server",
        &url,
        "--state-dir",
        &state_dir,
        "--tries",
        "2",
        "--exec",
        &command,
    ]);
    for n in 1..=3 {
        append(&book, &created(Uuid::from_u128(n), "Ada")).await;
    }
    let expected = [1, 2, 2, 3].map(|n: i64| format!("{n} {}", Uuid::from_u128(n as u128)));
    assert_eq!(lines_of(&tried, 4).await, expected);
    subscriber.says("event 2 failed at try 1, again in ").await;
    subscriber.says("event 2 was set aside").await;
    let set_aside = std::fs::read(state.join("set-aside/2.json")).unwrap();
    let set_aside: Value = serde_json::from_slice(&set_aside).unwrap();
    assert_eq!(set_aside["event"]["position"], 2);
    subscriber.stop().await;
    book.close().await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn only_new_events_come_where_only_they_are_wanted() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let server = Server::start(&database).await;
    for n in 1..=3 {
        append(&book, &created(Uuid::from_u128(n), "Ada")).await;
    }
    let url = server.url.clone();
    let subscriber =
        Subscriber::start(&["subscribe", "profile.created", "--json", "--only-new", "--server", &url]);
    subscriber.says("listening").await;
    append(&book, &created(Uuid::from_u128(4), "Ada")).await;
    assert_eq!(subscriber.positions(1).await, [4]);
    subscriber.stop().await;
    book.close().await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_server_that_is_busy_is_waited_for_and_one_that_is_none_is_not() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let server = Server::start_with(&database, &["--max-followers", "1"]).await;
    append(&book, &created(Uuid::from_u128(1), "Ada")).await;
    let url = server.url.clone();
    let subscribe =
        |url: &str| Subscriber::start(&["subscribe", "profile.created", "--json", "--server", url]);
    let first = subscribe(&url);
    assert_eq!(first.positions(1).await, [1]);
    let second = subscribe(&url);
    let said = second.says("waiting: ").await;
    assert!(said.contains("429"), "{said}");
    first.signal(Signal::SIGTERM);
    assert_eq!(second.positions(1).await, [1]);

    // Health is served, the feed is not.
    let elsewhere = Server::start_with(&database, &["--only", "projector"]).await;
    let (code, said) = subscribe(&elsewhere.url).end().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("404"), "{said}");
    book.close().await;
}
