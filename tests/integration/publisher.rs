//! The publisher against a real broker: whatever dies, and whenever, the stream has every position once and
//! in order, commands and tables do not notice, and what the broker lost comes back.

mod broker;
mod kills;
mod parked;
mod refill;
mod refusals;
mod restored;
mod rows;
mod strangers;

use std::cell::Cell;
use std::collections::HashMap;
use std::time::Duration;

use api::book::Book;
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::{self, Context};
use event_store::append::Outcome;
use event_store::log;
use futures::StreamExt;
use futures::future::join_all;
use projections::feed::cloud_event::{CloudEvent, event_id};
use projections::feed::public_event::EventType;
use projections::feed::stream::{StorageType, StreamConfig};
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::TestDatabase;
use tests::nats::NatsServer;
use tests::server::{Server, answer};
use tests::workload::Workload;
use tokio::time::timeout;
use uuid::Uuid;

use crate::cli::{Ran, run_on};
use crate::read_models::eventually;

/// The stream's name, unless it is configured.
const STREAM: &str = "MINUTEBOOK";
const ONLY_PUBLISHER: [&str; 2] = ["--only", "publisher"];

/// A database and a broker.
struct Scene {
    database: TestDatabase,
    pool: PgPool,
    nats: NatsServer,
}

impl Scene {
    async fn start() -> Self {
        let (database, nats) = tokio::join!(TestDatabase::create(), NatsServer::start());
        let pool = database.pool().await;
        Self { database, pool, nats }
    }

    /// Starts a `minutebook serve` that knows the broker.
    async fn serve(&self, arguments: &[&str]) -> Server {
        let url = self.nats.url();
        let arguments = [arguments, &["--nats-url", &url]].concat();
        Server::start_with(&self.database, &arguments).await
    }

    /// Runs a command that knows the broker.
    async fn run(&self, arguments: &[&str]) -> Ran {
        let url = self.nats.url();
        run_on(&self.database, &[arguments, &["--nats-url", &url]].concat()).await
    }

    /// Opens the log in this process, and keeps the tables up to date in it.
    async fn open(&self) -> Book {
        let book = self.database.open().await;
        book.start_projector();
        book
    }

    async fn head(&self) -> i64 {
        log::head(&self.pool).await.unwrap()
    }

    async fn epoch(&self) -> Uuid {
        log::identity(&self.pool).await.unwrap().epoch
    }

    /// Returns how far the stream is, by the publisher's note of it.
    async fn noted(&self) -> i64 {
        let query = "SELECT position FROM ops.publications WHERE stream = $1";
        sqlx::query_scalar(query).bind(STREAM).fetch_optional(&self.pool).await.unwrap().unwrap_or(0)
    }

    /// Waits until an active publisher has published the whole log; returns its end.
    async fn all_is_published(&self) -> i64 {
        let head = self.head().await;
        let waiting = eventually("everything is published", async || {
            let query = "SELECT count(*) FROM ops.publications
                          WHERE stream = $1 AND state = 'active' AND position >= $2";
            let query = sqlx::query_scalar::<_, i64>(query).bind(STREAM).bind(head);
            (query.fetch_one(&self.pool).await.unwrap() == 1).then_some(())
        });
        if timeout(Duration::from_secs(50), waiting).await.is_err() {
            panic!("position {head} is not published: {}", self.feed_status().await);
        }
        head
    }

    /// Returns what `status` says of the feed.
    async fn feed_status(&self) -> Value {
        let ran = run_on(&self.database, &["status", "--json"]).await;
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["feed"][0].clone()
    }

    /// Connects to the broker, which must be up.
    async fn jetstream(&self) -> Context {
        jetstream::new(async_nats::connect(self.nats.url()).await.unwrap())
    }

    /// Returns the sequence of the stream's newest message; 0 where there is no stream.
    async fn end_of_stream(&self) -> u64 {
        match self.jetstream().await.get_stream(STREAM).await {
            Ok(stream) => stream.cached_info().state.last_sequence,
            Err(_) => 0,
        }
    }

    /// Waits until the stream has more than it has.
    async fn stream_grows(&self) {
        let end = self.end_of_stream().await;
        eventually("the stream grows", async || (self.end_of_stream().await > end).then_some(())).await;
    }

    /// Returns all messages of the stream that are of this feed, as they lie there.
    async fn stream(&self) -> Vec<Kept> {
        self.all_messages().await.into_iter().filter_map(Result::ok).collect()
    }

    /// Returns all messages of the stream: ours, or a stranger's subject.
    async fn all_messages(&self) -> Vec<Result<Kept, String>> {
        let stream = self.jetstream().await.get_stream(STREAM).await.unwrap();
        let count = stream.cached_info().state.messages;
        let config = pull::Config { ack_policy: AckPolicy::None, ..pull::Config::default() };
        let consumer = stream.create_consumer(config).await.unwrap();
        let mut messages = consumer.stream().messages().await.unwrap();
        let mut kept = Vec::new();
        for _ in 0..count {
            let next = timeout(Duration::from_secs(30), messages.next()).await;
            let message = next.expect("the stream has as many messages as it says").unwrap().unwrap();
            let headers = message.headers.clone().unwrap_or_default();
            let subject = message.subject.to_string();
            let event = CloudEvent::from_message(&headers, message.payload.clone());
            kept.push(match event {
                Some(event) => Ok(Kept { subject, headers, event }),
                None => Err(subject),
            });
        }
        kept
    }

    /// Checks that the stream has every position of the log once and in order, each as it should be.
    async fn assert_each_position_once(&self) {
        let kept = self.stream().await;
        let positions = kept.iter().map(|kept| kept.event.position).collect::<Vec<_>>();
        let expected = (1..=self.head().await).collect::<Vec<_>>();
        if positions != expected {
            let wrong = positions.iter().zip(&expected).position(|(found, expected)| found != expected);
            let around = wrong.unwrap_or(positions.len().min(expected.len())).saturating_sub(3);
            panic!(
                "the stream has {} events of {}; from index {around} on {:?}",
                positions.len(),
                expected.len(),
                positions.iter().skip(around).take(10).collect::<Vec<_>>()
            );
        }
        self.assert_sound(&kept).await;
    }

    /// Checks each event's envelope against the log.
    async fn assert_sound(&self, kept: &[Kept]) {
        let epoch = self.epoch().await;
        let logged: Vec<(i64, String, Uuid)> = sqlx::query_as(
            "SELECT position, event_type, aggregate_id::uuid FROM log.events ORDER BY position",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let mut newest = HashMap::<&str, i64>::new();
        let mut links = HashMap::new();
        for (position, stored, aggregate) in &logged {
            let previous = newest.insert(stored.as_str(), *position).unwrap_or(0);
            links.insert(*position, (stored, previous, *aggregate));
        }
        for kept in kept {
            let (stored, previous, aggregate) = links[&kept.event.position];
            let header = |name| kept.headers.get(name).map(async_nats::HeaderValue::as_str);
            let id = event_id(epoch, kept.event.position);
            assert_eq!(header("Nats-Msg-Id"), Some(id.as_str()), "{kept:?}");
            assert_eq!(header("ce-id"), Some(id.as_str()), "{kept:?}");
            assert_eq!(header("ce-position"), Some(kept.event.position.to_string().as_str()), "{kept:?}");
            assert_eq!(header("ce-previous"), Some(previous.to_string().as_str()), "{kept:?}");
            let event_type = EventType::named(stored).unwrap();
            assert_eq!(header("ce-type"), Some(event_type.full), "{kept:?}");
            let EventType { aggregate: kind, name, .. } = event_type;
            assert_eq!(kept.subject, format!("minutebook.{kind}.{aggregate}.{name}"), "{kept:?}");
        }
    }

    fn stream_config(&self) -> StreamConfig {
        StreamConfig {
            url: self.nats.url(),
            credentials: None,
            name: STREAM.to_owned(),
            storage: StorageType::File,
            replicas: 1,
            max_age: Duration::ZERO,
            max_bytes: -1,
            duplicate_window: Duration::from_secs(120),
        }
    }
}

/// An event in the stream.
#[derive(Debug)]
struct Kept {
    subject: String,
    headers: HeaderMap,
    event: CloudEvent,
}

/// Appends about `events` events, some at once, as fast as the log takes them.
async fn append(book: &Book, events: usize) {
    const WRITERS: usize = 8;
    let write = async || {
        let mut workload = Workload::new(fastrand::u64(..), 4);
        let mut written = 0;
        while written < events.div_ceil(WRITERS) {
            let append = workload.next_append();
            written += append.events.len();
            let outcome = book.store.appender().append(append).await.unwrap();
            assert!(matches!(outcome, Outcome::Appended(_)), "{outcome:?}");
        }
    };
    join_all((0..WRITERS).map(|_| write())).await;
}

/// Appends without a pause until `during` is done.
async fn while_events_flow<T>(book: &Book, during: impl Future<Output = T>) -> T {
    let done = Cell::new(false);
    let flowing = async {
        while !done.get() {
            append(book, 200).await;
        }
    };
    let during = async {
        let outcome = during.await;
        done.set(true);
        outcome
    };
    tokio::join!(flowing, during).1
}

/// Leads a meeting through its life by HTTP: every command must succeed, whatever the broker does.
async fn complete_a_meeting(server: &Server) -> Uuid {
    let sha256 = (0..64).map(|_| fastrand::digit(16)).collect::<String>();
    let register = json!({"sha256": sha256, "mime": "audio/flac", "duration": 60});
    let id =
        command(server, "/v1/meetings", &register).await["id"].as_str().unwrap().parse::<Uuid>().unwrap();
    let clusters =
        (0..3).map(|n| json!({"cluster_id": format!("spk{n}"), "segments": []})).collect::<Vec<_>>();
    for (name, body) in [
        ("start", json!({"worker": "w"})),
        ("fingerprint", json!({"content_fp": format!("pcm:{sha256}")})),
        ("language", json!({"language": "en"})),
        ("speakers", json!({"clusters": clusters})),
        ("artifacts", json!({"type": "transcript.md", "s3_key": format!("{id}/t.md")})),
        ("artifacts", json!({"type": "summary.json", "s3_key": format!("{id}/s.json")})),
        ("complete", json!({})),
    ] {
        command(server, &format!("/v1/meetings/{id}/{name}"), &body).await;
    }
    id
}

async fn command(server: &Server, path: &str, body: &Value) -> Value {
    let request = server.client.post(server.at(path)).json(body).timeout(Duration::from_secs(20));
    let (status, answered) = answer(request).await;
    assert!(matches!(status, 200 | 201), "{path}: {status} {answered}");
    answered
}

/// Waits until the publisher of a process says so of itself; returns the status and all that it says.
async fn becomes(server: &Server, state: &str) -> (u16, Value) {
    eventually(&format!("the publisher is {state}"), async || {
        let (status, ready) = server.get("/readyz").await;
        (ready["publisher"] == state).then_some((status, ready))
    })
    .await
}

/// Returns a counter or a gauge of a process.
async fn metric(server: &Server, name: &str) -> Option<f64> {
    let text = server.client.get(server.at("/metrics")).send().await.unwrap().text().await.unwrap();
    text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}
