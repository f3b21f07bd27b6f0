//! A real subscriber: `minutebook subscribe` beside a server, a nats-server and a PostgreSQL of its own, and
//! the library in a process that dies.

mod broker;
mod erased;
mod gaps;
mod handlers;
mod library;
mod parked;
mod real;
mod server;
mod usage;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use api::book::Book;
use async_nats::jetstream::consumer::{Consumer, pull};
use async_nats::jetstream::stream::Stream;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;
use tests::TestDatabase;
use tests::nats::NatsServer;
use tests::server::Server;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use crate::cli::minutebook;
use crate::read_models::eventually;
use crate::read_models::history::{append, created, renamed};

/// How long anything may take that should come at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// A server that publishes, its broker, and a directory for subscribers.
struct Scene {
    nats: NatsServer,
    database: TestDatabase,
    server: Server,
    /// Appends beside the server.
    book: Book,
    directory: TempDir,
}

impl Scene {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with further arguments.
    async fn start_with(arguments: &[&str]) -> Self {
        let nats = NatsServer::start().await;
        let database = TestDatabase::create().await;
        let url = nats.url();
        let arguments = [&["--nats-url", &url], arguments].concat();
        let server = Server::start_with(&database, &arguments).await;
        let book = database.open().await;
        Self { nats, database, server, book, directory: tempfile::tempdir().unwrap() }
    }

    /// Enters the `n`th person; returns the event's position.
    async fn enter(&self, n: u128) -> i64 {
        append(&self.book, &created(Uuid::from_u128(n), "Ada Lovelace")).await
    }

    /// Says that the `n`th person is called otherwise; returns the event's position.
    async fn rename(&self, n: u128) -> i64 {
        append(&self.book, &renamed(Uuid::from_u128(n), "Ada King")).await
    }

    /// Follows `profile.created` on the broker, as `who`.
    fn subscribe(&self, who: &str, arguments: &[&str]) -> Subscriber {
        self.subscribe_to("profile.created", who, arguments)
    }

    /// Follows one type of event on the broker, as `who`.
    fn subscribe_to(&self, event_type: &str, who: &str, arguments: &[&str]) -> Subscriber {
        let (nats, directory) = (self.nats.url(), self.directory_of(who));
        let ours =
            ["subscribe", event_type, "--nats-url", &nats, "--durable", who, "--state-dir", &directory];
        Subscriber::start(&[&ours, arguments].concat())
    }

    fn directory_of(&self, who: &str) -> String {
        self.path(who).display().to_string()
    }

    fn path(&self, name: impl AsRef<Path>) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    /// Returns the stream, once it is there.
    async fn stream(&self) -> Stream {
        let client = async_nats::connect(self.nats.url()).await.unwrap();
        let context = async_nats::jetstream::new(client);
        eventually("the stream is there", async || context.get_stream("MINUTEBOOK").await.ok()).await
    }

    /// Waits until the stream has the whole log up to `position`, of which nothing was lost; there, positions
    /// are sequences.
    async fn published(&self, position: i64) -> Stream {
        let stream = self.stream().await;
        eventually("it is published", async || {
            let state = stream.get_info().await.unwrap().state;
            (state.last_sequence >= u64::try_from(position).unwrap()).then_some(())
        })
        .await;
        stream
    }

    /// Waits until the durable subscriber has settled everything that the stream has for it.
    async fn settled(&self, durable: &str) {
        let stream = self.stream().await;
        eventually("everything is acknowledged", async || {
            let consumer: Consumer<pull::Config> = stream.get_consumer(durable).await.ok()?;
            let info = consumer.get_info().await.ok()?;
            (info.num_pending == 0 && info.num_ack_pending == 0).then_some(())
        })
        .await;
    }

    async fn close(self) {
        self.book.close().await;
        assert!(self.server.stop().await.success());
    }
}

/// A running `minutebook subscribe`, killed when it is dropped.
struct Subscriber {
    child: Child,
    stdout: Output,
    stderr: Output,
}

/// What a process has said, line by line.
struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    reading: JoinHandle<()>,
}

impl Output {
    fn read(pipe: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&lines);
        let reading = tokio::spawn(async move {
            let mut pipe = BufReader::new(pipe).lines();
            while let Some(line) = pipe.next_line().await.unwrap() {
                kept.lock().unwrap().push(line);
            }
        });
        Self { lines, reading }
    }

    fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }
}

impl Subscriber {
    fn start(arguments: &[&str]) -> Self {
        let mut child = minutebook(arguments)
            .env_remove("NATS_URL")
            .env("MINUTEBOOK_TOKEN", tests::tokens::token(api::auth::Role::Pipeline, "subscriber"))
            .spawn()
            .unwrap();
        let stdout = Output::read(child.stdout.take().unwrap());
        let stderr = Output::read(child.stderr.take().unwrap());
        Self { child, stdout, stderr }
    }

    /// Waits for a line on its standard error that has this in it; returns the line.
    async fn says(&self, what: &str) -> String {
        self.says_often(1, what).await.remove(0)
    }

    /// Waits until so many lines on its standard error have this in them.
    async fn says_often(&self, times: usize, what: &str) -> Vec<String> {
        eventually(&format!("it says {what:?}, not only {:?}", self.stderr.lines()), async || {
            let said = self.said(what);
            (said.len() >= times).then_some(said)
        })
        .await
    }

    /// Returns the lines on its standard error that have this in them.
    fn said(&self, what: &str) -> Vec<String> {
        self.stderr.lines().into_iter().filter(|line| line.contains(what)).collect()
    }

    /// Waits until it has printed `n` events as JSON; returns all that it has printed.
    async fn events(&self, n: usize) -> Vec<Value> {
        let what =
            format!("{n} events come, not only {:?}; it says {:?}", self.stdout.lines(), self.stderr.lines());
        let lines = eventually(&what, async || {
            let lines = self.stdout.lines();
            (lines.len() >= n).then_some(lines)
        });
        lines.await.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits until it has printed `n` events as JSON; returns the positions of all that it has printed.
    async fn positions(&self, n: usize) -> Vec<i64> {
        self.events(n).await.iter().map(|event| event["position"].as_i64().unwrap()).collect()
    }

    /// Asks it to stop; returns the positions of all that it has printed, and what it said.
    async fn stop(mut self) -> (Vec<i64>, String) {
        self.signal(Signal::SIGTERM);
        let ended = timeout(PATIENCE, self.child.wait()).await.expect("it does not end").unwrap();
        assert_eq!(ended.code(), Some(130), "{:?}", self.stderr.lines());
        self.all().await
    }

    /// Waits until it ends by itself; returns its exit code, and what it said.
    async fn end(mut self) -> (Option<i32>, String) {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        let ended = ended.unwrap_or_else(|_| panic!("it goes on: {:?}", self.stderr.lines())).unwrap();
        (ended.code(), self.all().await.1)
    }

    /// Kills it as `kill -9` does; returns the positions of all that it has printed.
    async fn kill_9(mut self) -> Vec<i64> {
        self.child.kill().await.unwrap();
        self.all().await.0
    }

    async fn all(self) -> (Vec<i64>, String) {
        let (printed, said) = (self.stdout.lines, self.stderr.lines);
        for reading in [self.stdout.reading, self.stderr.reading] {
            // A program that it ran may live on, and hold the pipe.
            timeout(PATIENCE, reading).await.expect("somebody holds the pipe").unwrap();
        }
        let position =
            |line: &String| serde_json::from_str::<Value>(line).unwrap()["position"].as_i64().unwrap();
        let positions = printed.lock().unwrap().iter().map(position).collect();
        let said = said.lock().unwrap().join("\n");
        (positions, said)
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().unwrap().try_into().unwrap()), signal).unwrap();
    }
}

/// Returns the lines of a file that a command appends to, once there are `n`.
async fn lines_of(path: &Path, n: usize) -> Vec<String> {
    eventually(&format!("{} has {n} lines", path.display()), async || {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let whole = text.ends_with('\n') && text.lines().count() >= n;
        whole.then(|| text.lines().map(str::to_owned).collect())
    })
    .await
}
