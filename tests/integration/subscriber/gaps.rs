//! What the broker has lost is told, with the command that puts it back; and told again when it is back.

use async_nats::jetstream::stream::Stream;

use super::{Scene, Subscriber};
use crate::cli::{minutebook, run};

/// Four people, each entered and then called otherwise: the one at odd positions, the other at even ones.
async fn tell(scene: &Scene) -> Stream {
    for n in 1..=4 {
        scene.enter(n).await;
        scene.rename(n).await;
    }
    scene.published(8).await
}

/// Deletes the event at `position`, behind everybody's back.
async fn delete(stream: &Stream, position: u64) {
    let message = stream.get_raw_message(position).await.unwrap();
    assert_eq!(message.headers.get("ce-position").unwrap().as_str(), position.to_string());
    assert!(stream.delete_message(position).await.unwrap());
}

/// Runs the command that the subscriber has told, and nothing else.
async fn run_what_it_told(scene: &Scene, told: &str) {
    let command = told.split('`').nth(1).unwrap();
    let (program, arguments) = command.split_once(' ').unwrap();
    assert_eq!(program, "minutebook");
    let arguments = arguments.split(' ').collect::<Vec<_>>();
    let mut command = minutebook(&arguments);
    let ran = run(command.env("DATABASE_URL", &scene.database.url).env("NATS_URL", scene.nats.url())).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
}

#[tokio::test]
async fn a_message_deleted_in_the_middle_and_one_at_the_end_are_told_and_come_back_by_the_command_told() {
    let scene = Scene::start_with(&["--nats-duplicate-window", "0.1"]).await;
    let stream = tell(&scene).await;
    delete(&stream, 3).await;
    delete(&stream, 7).await;
    let subscriber = scene.subscribe("minutes", &["--json"]);
    assert_eq!(subscriber.positions(2).await, [1, 5]);
    let middle = subscriber.says("after position 1, up to position 3").await;
    assert!(middle.contains("`minutebook publish --from 2 --to 3`"), "{middle}");
    // Only the progress messages say that there is more.
    let end = subscriber.says("after position 5, up to position 7").await;
    assert!(end.contains("`minutebook publish --from 6 --to 7`"), "{end}");

    // The one at the end first: the order does not matter.
    run_what_it_told(&scene, &end).await;
    subscriber.says("the missing events after position 5, up to position 7, have come").await;
    run_what_it_told(&scene, &middle).await;
    subscriber.says("the missing events after position 1, up to position 3, have come").await;
    // The publisher goes on after it.
    assert_eq!(scene.enter(5).await, 9);
    assert_eq!(subscriber.positions(5).await, [1, 5, 7, 3, 9]);
    scene.settled("minutes").await;
    let (positions, said) = subscriber.stop().await;
    assert_eq!(positions, [1, 5, 7, 3, 9], "each once");
    assert_eq!(said.matches("events are missing").count(), 2, "each gap is told once: {said}");
    assert_eq!(said.matches("have come").count(), 2, "{said}");
    scene.close().await;
}

#[tokio::test]
async fn what_was_deleted_while_the_subscriber_was_away_is_told_and_stays_known_over_a_restart() {
    let scene = Scene::start_with(&["--nats-duplicate-window", "0.1"]).await;
    assert_eq!(scene.enter(1).await, 1);
    let subscriber = scene.subscribe("minutes", &["--json"]);
    assert_eq!(subscriber.positions(1).await, [1]);
    subscriber.stop().await;
    for n in 2..=4 {
        scene.enter(n).await;
    }
    let stream = scene.published(4).await;
    delete(&stream, 2).await;
    delete(&stream, 3).await;
    let subscriber = scene.subscribe("minutes", &["--json"]);
    let told = subscriber.says("`minutebook publish --from 2 --to 3`").await;
    assert_eq!(subscriber.positions(1).await, [4]);
    scene.settled("minutes").await;
    subscriber.kill_9().await;

    // The next one closes what the one before it has told.
    let subscriber = scene.subscribe("minutes", &["--json"]);
    subscriber.says("listening").await;
    run_what_it_told(&scene, &told).await;
    subscriber.says("up to position 3, have come").await;
    scene.settled("minutes").await;
    assert_eq!(subscriber.stop().await.0, [2, 3]);
    scene.close().await;
}

#[tokio::test]
async fn a_gap_of_several_events_is_told_to_be_closed_once_and_as_it_was_told_to_be_open() {
    let scene = Scene::start_with(&["--nats-duplicate-window", "0.1"]).await;
    for n in 1..=6 {
        scene.enter(n).await;
    }
    let stream = scene.published(6).await;
    for position in 2..=5 {
        delete(&stream, position).await;
    }
    let subscriber = scene.subscribe("minutes", &["--json"]);
    let told = subscriber.says("after position 1, up to position 5").await;
    // In pieces, too.
    run_what_it_told(&scene, "`minutebook publish --from 3 --to 4`").await;
    assert_eq!(subscriber.positions(4).await, [1, 6, 3, 4]);
    run_what_it_told(&scene, &told).await;
    let first = subscriber.says("have come").await;
    assert_eq!(first, "the missing events after position 1, up to position 5, have come");
    scene.settled("minutes").await;
    let (positions, said) = subscriber.stop().await;
    assert_eq!(positions, [1, 6, 3, 4, 2, 5]);
    assert_eq!(said.matches("have come").count(), 1, "{said}");
    scene.close().await;
}

#[tokio::test]
async fn a_gap_that_is_open_is_told_again_by_the_next_start() {
    let scene = Scene::start_with(&["--nats-duplicate-window", "0.1"]).await;
    let stream = tell(&scene).await;
    delete(&stream, 3).await;
    let subscriber = scene.subscribe("minutes", &["--json"]);
    subscriber.says("`minutebook publish --from 2 --to 3`").await;
    assert_eq!(subscriber.positions(3).await, [1, 5, 7]);
    scene.settled("minutes").await;
    subscriber.stop().await;
    let subscriber = scene.subscribe("minutes", &["--json"]);
    subscriber.says("`minutebook publish --from 2 --to 3`").await;
    subscriber.stop().await;
    scene.close().await;
}

#[tokio::test]
async fn the_command_told_works_also_while_the_broker_remembers_the_message_that_it_lost() {
    // The duplicate window of two minutes has not passed.
    let scene = Scene::start().await;
    let stream = tell(&scene).await;
    delete(&stream, 3).await;
    let subscriber = scene.subscribe("minutes", &["--json"]);
    let told = subscriber.says("after position 1, up to position 3").await;
    run_what_it_told(&scene, &told).await;
    subscriber.says("the missing events after position 1, up to position 3, have come").await;
    assert_eq!(subscriber.positions(4).await, [1, 5, 7, 3]);
    scene.close().await;
}

#[tokio::test]
async fn nothing_is_told_missing_that_is_only_under_way() {
    let scene = Scene::start().await;
    // It is in hand over several progress messages.
    let started = scene.path("started");
    let command = format!("touch '{}'; sleep 7", started.display());
    let slow = scene.subscribe("slow", &["--json", "--exec", &command]);
    for n in 1..=2 {
        scene.enter(n).await;
    }
    assert_eq!(slow.positions(2).await, [1, 2]);
    assert!(started.exists());
    let (_, said) = slow.stop().await;
    assert_eq!(said, "listening");
    // Whoever wants only what is new misses nothing of what was before.
    let new = scene.subscribe("new", &["--json", "--only-new"]);
    new.says("listening").await;
    assert_eq!(scene.enter(3).await, 3);
    assert_eq!(new.positions(1).await, [3]);
    let (_, said) = new.stop().await;
    assert_eq!(said, "listening");
    scene.close().await;
}

#[tokio::test]
async fn a_foreign_message_is_passed_over_and_told() {
    let scene = Scene::start().await;
    scene.enter(1).await;
    scene.published(1).await;
    let client = async_nats::connect(scene.nats.url()).await.unwrap();
    let subject = "minutebook.profile.somebody.created";
    async_nats::jetstream::new(client).publish(subject, "hello".into()).await.unwrap().await.unwrap();
    let subscriber: Subscriber = scene.subscribe("minutes", &["--json"]);
    subscriber.says(&format!("a message on {subject} is no event of this feed")).await;
    // The publisher finds somebody else's message at the stream's end, and goes on.
    scene.enter(2).await;
    assert_eq!(subscriber.positions(2).await, [1, 2]);
    scene.settled("minutes").await;
    scene.close().await;
}
