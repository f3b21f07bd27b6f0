//! Over restarts: the subscriber's own and the broker's. Nothing is lost, and nothing comes twice.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tests::TestDatabase;
use tests::nats::NatsServer;
use tests::server::Server;
use tokio::time::timeout;

use super::{Scene, Subscriber};
use crate::cli::{minutebook, run_on};

#[tokio::test]
async fn a_durable_subscriber_goes_on_where_it_was() {
    let scene = Scene::start().await;
    for n in 1..=3 {
        scene.enter(n).await;
    }
    let subscriber = scene.subscribe("minutes", &["--json"]);
    assert_eq!(subscriber.positions(3).await, [1, 2, 3]);
    scene.settled("minutes").await;
    assert_eq!(subscriber.stop().await.0, [1, 2, 3]);
    for n in 4..=6 {
        scene.enter(n).await;
    }
    let subscriber = scene.subscribe("minutes", &["--json"]);
    assert_eq!(subscriber.positions(3).await, [4, 5, 6]);
    scene.settled("minutes").await;
    assert_eq!(subscriber.kill_9().await, [4, 5, 6]);
    assert_eq!(scene.enter(7).await, 7);
    let subscriber = scene.subscribe("minutes", &["--json"]);
    assert_eq!(subscriber.positions(1).await, [7]);
    scene.settled("minutes").await;
    let (positions, said) = subscriber.stop().await;
    assert_eq!((positions, said.as_str()), (vec![7], "listening"));
    scene.close().await;
}

#[tokio::test]
async fn what_was_had_is_known_also_where_the_broker_has_forgotten_the_subscriber() {
    let scene = Scene::start().await;
    for n in 1..=3 {
        scene.enter(n).await;
    }
    let subscriber = scene.subscribe("minutes", &["--json"]);
    assert_eq!(subscriber.positions(3).await, [1, 2, 3]);
    scene.settled("minutes").await;
    subscriber.stop().await;
    scene.stream().await.delete_consumer("minutes").await.unwrap();
    let subscriber = scene.subscribe("minutes", &["--json"]);
    assert_eq!(scene.enter(4).await, 4);
    assert_eq!(subscriber.positions(1).await, [4]);
    scene.settled("minutes").await;
    let (positions, said) = subscriber.stop().await;
    assert_eq!((positions, said.as_str()), (vec![4], "listening"));
    scene.close().await;
}

#[tokio::test]
async fn two_that_share_a_directory_or_a_name_for_two_things_are_told_apart() {
    let scene = Scene::start().await;
    scene.enter(1).await;
    let first = scene.subscribe("minutes", &["--json"]);
    assert_eq!(first.positions(1).await, [1]);
    let (code, said) = scene.subscribe("minutes", &["--json"]).end().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("another subscriber uses") && said.contains("minutes"), "{said}");
    // The first one is not disturbed.
    scene.enter(2).await;
    assert_eq!(first.positions(2).await, [1, 2]);
    scene.settled("minutes").await;
    first.stop().await;
    // Nor does the name stand for another type of event.
    let nats = scene.nats.url();
    let arguments = ["subscribe", "profile.renamed", "--nats-url", &nats, "--durable", "minutes"];
    let elsewhere = scene.directory_of("elsewhere");
    let (code, said) =
        Subscriber::start(&[&arguments[..], &["--state-dir", &elsewhere]].concat()).end().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("minutes") && said.contains("take another name"), "{said}");
    scene.close().await;
}

#[tokio::test]
async fn a_directory_of_another_type_of_event_is_refused() {
    let scene = Scene::start().await;
    scene.enter(1).await;
    scene.rename(1).await;
    scene.enter(2).await;
    let subscriber = scene.subscribe("minutes", &["--json"]);
    assert_eq!(subscriber.positions(2).await, [1, 3]);
    scene.settled("minutes").await;
    subscriber.stop().await;
    // Its ledger says nothing of renamed people: believed, it would hide the event at position 2.
    let (directory, url) = (scene.directory_of("minutes"), scene.server.url.clone());
    let arguments = ["subscribe", "profile.renamed", "--json", "--server", &url, "--state-dir", &directory];
    let other = Subscriber::start(&arguments);
    let (code, said) = other.end().await;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("profile.created"), "{said}");
    scene.close().await;
}

#[tokio::test]
async fn a_broker_that_is_away_at_the_start_is_waited_for_and_that_is_said_once() {
    let mut scene = Scene::start().await;
    scene.nats.stop().await;
    let subscriber = scene.subscribe("minutes", &["--json"]);
    subscriber.says("waiting: the broker cannot be used: connecting").await;
    for n in 1..=3 {
        scene.enter(n).await;
    }
    // A server that comes meanwhile waits, too.
    let (database, url) = (&scene.database, scene.nats.url());
    let server = Server::start_with(database, &["--nats-url", &url]).await;
    scene.nats.restart().await;
    subscriber.says("listening").await;
    assert_eq!(subscriber.positions(3).await, [1, 2, 3]);
    scene.settled("minutes").await;
    let (positions, said) = subscriber.stop().await;
    assert_eq!(positions, [1, 2, 3]);
    assert_eq!(said.matches("waiting: ").count(), 1, "{said}");
    assert!(server.stop().await.success());
    scene.close().await;
}

#[tokio::test]
async fn a_broker_without_the_stream_is_waited_for() {
    let scene = Scene::start().await;
    let nats = tests::nats::NatsServer::start().await;
    let url = nats.url();
    let directory = scene.directory_of("minutes");
    let subscriber = Subscriber::start(&[
        "subscribe",
        "profile.created",
        "--json",
        "--nats-url",
        &url,
        "--durable",
        "minutes",
        "--state-dir",
        &directory,
    ]);
    subscriber.says("waiting: the broker cannot be used: looking for the stream").await;
    let server = Server::start_with(&scene.database, &["--only", "publisher", "--nats-url", &url]).await;
    // Two publishers of one log take turns by a lock, whatever their broker: the other one goes first.
    let Scene { server: other, book, .. } = scene;
    assert!(other.stop().await.success());
    crate::read_models::history::append(
        &book,
        &crate::read_models::history::created(uuid::Uuid::from_u128(1), "Ada Lovelace"),
    )
    .await;
    book.start_projector();
    assert_eq!(subscriber.positions(1).await, [1]);
    subscriber.stop().await;
    book.close().await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_broker_that_is_killed_and_comes_back_loses_and_doubles_nothing() {
    let mut scene = Scene::start().await;
    let subscriber = scene.subscribe("minutes", &["--json"]);
    let (mut entered, mut waits) = (0, 0);
    for round in 0..2 {
        for _ in 0..5 {
            entered += 1;
            scene.enter(entered).await;
        }
        if round == 0 {
            // With everything had, and with something under way.
            subscriber.positions(5).await;
        }
        scene.nats.kill_9().await;
        for _ in 0..5 {
            entered += 1;
            scene.enter(entered).await;
        }
        waits += 1;
        subscriber.says_often(waits, "waiting: ").await;
        scene.nats.restart().await;
        subscriber.positions(usize::try_from(entered).unwrap()).await;
        waits = subscriber.said("waiting: ").len();
    }
    scene.settled("minutes").await;
    let (positions, said) = subscriber.stop().await;
    assert_eq!(positions, (1..=20).collect::<Vec<_>>());
    assert!(!said.contains("missing"), "{said}");
    scene.close().await;
}

#[tokio::test]
async fn a_broker_that_hangs_is_noticed_and_gone_on_with() {
    let mut scene = Scene::start().await;
    let subscriber = scene.subscribe("minutes", &["--json"]);
    scene.enter(1).await;
    assert_eq!(subscriber.positions(1).await, [1]);
    scene.nats.pause();
    scene.enter(2).await;
    subscriber.says("waiting: ").await;
    scene.nats.resume();
    assert_eq!(subscriber.positions(2).await, [1, 2]);
    scene.settled("minutes").await;
    let (positions, said) = subscriber.stop().await;
    assert_eq!(positions, [1, 2]);
    assert!(!said.contains("missing"), "{said}");
    scene.close().await;
}

#[tokio::test]
async fn user_and_password_or_a_token_in_the_url_reach_a_broker_that_wants_them() {
    for (config, wrong, right) in [
        ("authorization { user: bob, password: right }", "bob:wrong@", "bob:right@"),
        ("authorization { token: s3cret }", "guess@", "s3cret@"),
    ] {
        let nats = NatsServer::start_with(config).await;
        let database = TestDatabase::create().await;
        let url = |user: &str| nats.url().replace("nats://", &format!("nats://{user}"));
        let refused = run_on(&database, &["publish", "--from", "1", "--nats-url", &url(wrong)]).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains("authorization violation"), "{}", refused.stderr);
        assert!(!refused.stderr.contains("wrong") && !refused.stderr.contains("guess"), "{}", refused.stderr);
        let taken = run_on(&database, &["publish", "--from", "1", "--nats-url", &url(right)]).await;
        assert_eq!(taken.code, Some(0), "{}", taken.stderr);
    }
}

#[tokio::test]
async fn a_stream_that_does_not_keep_what_it_is_given_is_refused() {
    let nats = NatsServer::start().await;
    let database = TestDatabase::create().await;
    let client = async_nats::connect(nats.url()).await.unwrap();
    let interest = async_nats::jetstream::stream::Config {
        name: "MINUTEBOOK".to_owned(),
        subjects: vec!["minutebook.>".to_owned()],
        retention: async_nats::jetstream::stream::RetentionPolicy::Interest,
        ..Default::default()
    };
    async_nats::jetstream::new(client).create_stream(interest).await.unwrap();
    let ran = run_on(&database, &["publish", "--from", "1", "--nats-url", &nats.url()]).await;
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    assert!(ran.stderr.contains("retention"), "{}", ran.stderr);
}

#[tokio::test]
async fn a_closed_output_ends_the_subscriber_and_the_event_comes_again() {
    let scene = Scene::start().await;
    for n in 1..=3 {
        scene.enter(n).await;
    }
    let url = scene.nats.url();
    let state = scene.directory_of("piped");
    let arguments =
        ["subscribe", "profile.created", "--nats-url", &url, "--durable", "piped", "--state-dir", &state];
    let mut child = minutebook(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ended = timeout(Duration::from_secs(30), child.wait()).await.unwrap().unwrap();
    assert!(ended.success(), "nobody reads any more: that is no failure");
    // Nothing was set aside, and nothing counts as had.
    assert!(!Path::new(&state).join("set-aside").exists());
    assert!(!Path::new(&state).join("ledger.json").exists());
    scene.close().await;
}
