//! The publisher catching up on a long history, against a bare loop of async-nats that sends as many messages
//! of the same size, with the same headers and window, to the same nats-server, in the same run. Then the
//! time from a command's commit to a subscriber's handler, under a light load.
//!
//! `cargo bench --bench feed`; EVENTS, ROUNDS and COMMANDS change the sizes.

#![expect(clippy::print_stdout, reason = "a benchmark's result")]

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::time::{Duration, Instant};

use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::stream::Config;
use event_store::log::BatchLimits;
use event_store::log::feed::Filter;
use projections::feed::public_event::EventType;
use projections::feed::publisher::Publishing;
use projections::feed::sending::WINDOW;
use projections::feed::source::Source;
use projections::feed::stream::StreamConfig;
use projections::feed::subscriber::{self, NoMemory, SubscriberConfig};
use tests::TestDatabase;
use tests::bench::{BenchCluster, fill, quantile, register, setting};
use tests::nats::NatsServer;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() {
    let rounds = setting("ROUNDS", 5);
    let events = setting("EVENTS", 200_000);
    let cluster = BenchCluster::start(env!("CARGO_TARGET_TMPDIR")).await;
    let database = cluster.database("feed").await;
    fill(&database, events).await;
    let book = database.open().await;
    book.start_projector();
    let head = book.store.head().position();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(300);
    let shown = projections::freshness::wait_for(book.pool(), &book.projection, head, deadline).await;
    assert!(shown.expect("the database answers"), "the projector did not come to the end");
    let sizes = sizes(&book, head).await;
    book.close().await;

    let (mut ratios, mut published, mut bare) = (vec![], vec![], vec![]);
    for round in 0..rounds {
        // Each after the other first, so that neither always finds the warmer machine.
        let (publisher, loop_rate) = if round % 2 == 0 {
            let publisher = catch_up(&database, head).await;
            (publisher, bare_loop(&sizes).await)
        } else {
            let loop_rate = bare_loop(&sizes).await;
            (catch_up(&database, head).await, loop_rate)
        };
        ratios.push(publisher / loop_rate);
        published.push(publisher);
        bare.push(loop_rate);
    }
    println!("bare loop messages/s  publisher events/s   ratio  (medians of {rounds} rounds, {head} events)");
    println!(
        "{:>20.0}  {:>18.0}  {:>5.2}x",
        quantile(&mut bare, 0.5),
        quantile(&mut published, 0.5),
        quantile(&mut ratios, 0.5),
    );
    commit_to_handler(&cluster).await;
    cluster.stop().await;
}

/// Returns the size of each event's data in bytes.
async fn sizes(book: &api::book::Book, head: i64) -> Vec<usize> {
    let mut source = Source::after(book.store.clone(), 0, Filter::default()).await.expect("a source");
    let limits = BatchLimits { events: 4096, bytes: 64 * 1024 * 1024 };
    let mut sizes = vec![];
    while source.position() < head {
        let read = source.next(head, limits).await.expect("the log is read");
        sizes.extend(read.events.iter().map(|event| event.data.len()));
    }
    sizes
}

/// Returns the events per second at which the publisher fills an empty stream.
async fn catch_up(database: &TestDatabase, head: i64) -> f64 {
    let nats = NatsServer::start().await;
    let book = database.open().await;
    sqlx::query("DELETE FROM ops.publications").execute(book.pool()).await.expect("an empty table");
    let started = Instant::now();
    book.start_publisher(StreamConfig::at(nats.url()));
    let mut publishing = book.publishing.clone();
    let done = |publishing: &Publishing| *publishing == Publishing::Active { position: head };
    publishing.wait_for(done).await.expect("the publisher runs");
    let elapsed = started.elapsed();
    book.close().await;
    head as f64 / elapsed.as_secs_f64()
}

/// Returns the messages per second of a loop that does nothing but publish.
async fn bare_loop(sizes: &[usize]) -> f64 {
    let nats = NatsServer::start().await;
    let client = async_nats::connect(nats.url()).await.expect("a connection");
    let jetstream = async_nats::jetstream::new(client);
    let config = Config {
        name: "BARE".to_owned(),
        subjects: vec!["bare.>".to_owned()],
        duplicate_window: Duration::from_secs(120),
        ..Config::default()
    };
    jetstream.create_stream(config).await.expect("a stream");
    let payload = bytes::Bytes::from(vec![b'x'; sizes.iter().copied().max().unwrap_or(0)]);
    let uuid = "0198c1f0-0000-7000-8000-000000000000";
    let mut window = VecDeque::with_capacity(WINDOW);
    let started = Instant::now();
    for (sequence, size) in sizes.iter().enumerate() {
        let position = sequence + 1;
        let mut headers = async_nats::HeaderMap::new();
        headers.insert("Nats-Msg-Id", format!("{uuid}:{position}"));
        headers.insert("Nats-Expected-Last-Sequence", sequence.to_string());
        if sequence > 0 {
            headers.insert("Nats-Expected-Last-Msg-Id", format!("{uuid}:{sequence}"));
        }
        headers.insert("ce-specversion", "1.0");
        headers.insert("ce-id", format!("{uuid}:{position}"));
        headers.insert("ce-source", format!("urn:minutebook:log:{uuid}"));
        headers.insert("ce-type", "minutebook.meeting.completed.v1");
        headers.insert("ce-subject", uuid);
        headers.insert("ce-time", "2026-01-01T09:00:00.000000Z");
        headers.insert("ce-dataschema", "urn:minutebook:schema:minutebook.meeting.completed.v1");
        headers.insert("ce-position", position.to_string());
        headers.insert("ce-previous", sequence.to_string());
        headers.insert("ce-correlationid", uuid);
        headers.insert("content-type", "application/json");
        if window.len() == WINDOW {
            let oldest: async_nats::jetstream::context::PublishAckFuture =
                window.pop_front().expect("it is full");
            oldest.into_future().await.expect("an acknowledgement");
        }
        let message = PublishMessage::build().headers(headers).payload(payload.slice(..*size));
        let subject = format!("bare.meeting.{uuid}.completed");
        window.push_back(jetstream.send_publish(subject, message).await.expect("it is sent"));
    }
    for acknowledgement in window {
        acknowledgement.await.expect("an acknowledgement");
    }
    sizes.len() as f64 / started.elapsed().as_secs_f64()
}

/// Prints how long an event takes from its commit to the handler of a subscriber.
async fn commit_to_handler(cluster: &BenchCluster) {
    let commands = setting("COMMANDS", 1000);
    let nats = NatsServer::start().await;
    let database = cluster.database("light").await;
    let book = database.open().await;
    book.start_projector();
    book.start_publisher(StreamConfig::at(nats.url()));
    let (sender, mut handled) = mpsc::unbounded_channel();
    let config = SubscriberConfig {
        stream: StreamConfig::at(nats.url()),
        event_type: EventType::named("meeting.registered").expect("there is such a type"),
        durable: None,
        only_new: false,
        tries: 5,
    };
    let shutdown = CancellationToken::new();
    let subscribed = shutdown.clone();
    let subscribing = tokio::spawn(async move {
        let handler = |event: projections::feed::cloud_event::CloudEvent| {
            let _ = sender.send((event.position, Instant::now()));
            std::future::ready(Ok(()))
        };
        subscriber::run(&config, NoMemory, handler, |_| {}, &subscribed).await
    });
    let (mut times, mut flushes) = (vec![], vec![]);
    for n in 0..commands {
        let accepted = register(&book, n as u128).await;
        let committed = Instant::now();
        let (position, at) = handled.recv().await.expect("the subscriber runs");
        assert_eq!(position, accepted.position);
        // The first ones wait for the subscription.
        if n >= 20 {
            times.push(at - committed);
        }
        if n % 250 == 0 {
            flushes.push(cluster.flush_time());
        }
    }
    println!(
        "commit to handler: p50 {:?}, p99 {:?}; a flush takes {:?}",
        quantile(&mut times, 0.5),
        quantile(&mut times, 0.99),
        quantile(&mut flushes, 0.5)
    );
    shutdown.cancel();
    subscribing.await.expect("the task ends").expect("the subscriber ends well");
    book.close().await;
}
