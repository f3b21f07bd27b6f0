//! Others who publish on the stream's subjects.

use event_store::log::feed::Filter;
use nix::sys::signal::Signal;
use projections::feed::cloud_event::CloudEvent;
use projections::feed::publisher::BATCH;
use projections::feed::source::Source;
use projections::feed::stream::{EventStream, connect};

use super::{ONLY_PUBLISHER, Scene, append, becomes, while_events_flow};

#[tokio::test]
async fn a_strangers_messages_in_the_middle_and_at_the_end_are_passed_over() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    append(&book, 100).await;
    scene.all_is_published().await;

    // At the end, while the publisher lives.
    say_something(&scene, 3).await;
    append(&book, 100).await;
    scene.all_is_published().await;
    // In the middle of what it publishes.
    let interrupting = async {
        for _ in 0..5 {
            scene.stream_grows().await;
            say_something(&scene, 1).await;
        }
    };
    while_events_flow(&book, interrupting).await;
    scene.all_is_published().await;
    // At the end, while there is no publisher.
    publisher.kill_9().await;
    say_something(&scene, 20).await;
    append(&book, 100).await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    scene.all_is_published().await;

    scene.assert_each_position_once().await;
    let foreign = scene.all_messages().await.iter().filter(|message| message.is_err()).count();
    assert_eq!(foreign, 3 + 5 + 20);
    assert!(publisher.stop().await.success());
    book.close().await;
}

#[tokio::test]
async fn a_hole_at_the_streams_end_is_looked_behind() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    append(&book, 100).await;
    scene.all_is_published().await;
    say_something(&scene, 2).await;
    publisher.kill_9().await;
    let end = scene.end_of_stream().await;
    let stream = scene.jetstream().await.get_stream(super::STREAM).await.unwrap();
    for sequence in [end, end - 1] {
        stream.delete_message(sequence).await.unwrap();
    }
    append(&book, 50).await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    scene.all_is_published().await;
    scene.assert_each_position_once().await;
    assert!(publisher.stop().await.success());
    book.close().await;
}

#[tokio::test]
async fn a_second_publisher_that_knows_nothing_of_locks_is_noticed_and_doubles_nothing() {
    let scene = Scene::start().await;
    let book = scene.open().await;
    let publisher = scene.serve(&ONLY_PUBLISHER).await;
    let client = connect(&scene.stream_config(), "zombie").await.unwrap();
    append(&book, 100).await;
    scene.all_is_published().await;
    let stream = EventStream::open(client, &scene.stream_config()).await.unwrap();
    for events in [1, 5, 300] {
        // What comes next, the zombie publishes first.
        publisher.signal(Signal::SIGSTOP);
        let before = scene.head().await;
        let tail = stream.tail().await.unwrap();
        assert_eq!(tail.event.unwrap().1, before);
        append(&book, events).await;
        let head = scene.head().await;
        let mut source = Source::after(book.store.clone(), before, Filter::default()).await.unwrap();
        let next = source.next(head - (head - before) / 3, BATCH).await.unwrap();
        let messages = || next.events.iter().cloned().map(CloudEvent::into_message);
        let published = stream.publish(messages(), Some(tail.sequence)).await;
        assert!(published.stopped.is_none() && published.events == next.events.len(), "{published:?}");
        publisher.signal(Signal::SIGCONT);
        append(&book, 20).await;
        scene.all_is_published().await;
        scene.assert_each_position_once().await;
        becomes(&publisher, "active").await;

        // And it goes on from where it believes the end to be: the broker refuses.
        let late = stream.publish(messages(), Some(published.sequence)).await;
        assert!(late.stopped.is_some() && late.events == 0, "{late:?}");
        scene.assert_each_position_once().await;
    }
    assert!(publisher.stop().await.success());
    book.close().await;
}

/// Publishes messages without any header of ours.
async fn say_something(scene: &Scene, times: usize) {
    let context = scene.jetstream().await;
    for _ in 0..times {
        let subject = format!("minutebook.meeting.{}.completed", uuid::Uuid::from_u128(7));
        context.publish(subject, "something else".into()).await.unwrap().await.unwrap();
    }
}
