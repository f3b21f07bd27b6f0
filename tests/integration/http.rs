//! HTTP, through the built program: what a client sends, what it gets, and what the log then says.

mod access;
mod attack;
mod audit;
mod bad_input;
pub(crate) mod contract;
mod corrections;
mod files;
mod idempotency;
mod life;
mod limits;
mod listening;
mod metrics;
mod naming;
mod parked;
mod provenance;
mod schemathesis;
mod shutdown;
mod speakers;
mod time_travel;
mod versions;

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sqlx::PgPool;
use tests::TestDatabase;
use tests::server::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long anything may take that should come at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// The header that asks a read to show a position.
const MIN_POSITION: &str = "minutebook-min-position";

/// A server with a database of its own.
pub(crate) struct Scene {
    pub(crate) database: TestDatabase,
    pub(crate) server: Server,
    pub(crate) pool: PgPool,
}

impl Scene {
    pub(crate) async fn start() -> Self {
        Self::start_with(&[]).await
    }

    pub(crate) async fn start_with(arguments: &[&str]) -> Self {
        let database = TestDatabase::create().await;
        let server = Server::start_with(&database, arguments).await;
        let pool = database.pool().await;
        Self { database, server, pool }
    }

    pub(crate) fn request(&self, method: &Method, path: &str) -> RequestBuilder {
        self.server.client.request(method.clone(), self.server.at(path)).timeout(PATIENCE)
    }

    fn post(&self, path: &str, body: &Value) -> RequestBuilder {
        self.request(&Method::POST, path).json(body)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        send(self.request(&Method::GET, path)).await
    }

    /// Reads what must show `position` already.
    async fn read(&self, path: &str, position: i64) -> Value {
        let read = self.request(&Method::GET, path).header(MIN_POSITION, position);
        send(read).await.expect(200)
    }

    /// Sends a command that must be accepted.
    pub(crate) async fn command(&self, path: &str, body: Value) -> Accepted {
        Accepted::of(&send(self.post(path, &body)).await)
    }

    /// Registers the `n`th meeting.
    pub(crate) async fn register(&self, n: usize) -> Accepted {
        self.command("/v1/meetings", json!({"sha256": sha256(n)})).await
    }

    pub(crate) async fn log_mark(&self) -> (i64, i64) {
        log_mark(&self.pool).await
    }
}

/// Returns the log's head and the number of commands that it remembers: what a refusal must not move.
async fn log_mark(pool: &PgPool) -> (i64, i64) {
    sqlx::query_as(
        "SELECT (SELECT coalesce(max(position), 0) FROM log.events), (SELECT count(*) FROM log.commands)",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

/// Returns the hash of a file that no other `n` has.
fn sha256(n: usize) -> String {
    format!("{n:064x}")
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .get(HeaderName::from_bytes(name.as_bytes()).unwrap())
            .map(|value| value.to_str().unwrap())
    }

    /// Returns the JSON of an answer that has this status.
    pub(crate) fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// Checks that this is a well-formed problem; returns its code.
    fn problem(&self) -> String {
        let problem = self.json();
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{self:?}");
        assert_eq!(problem["status"], self.status, "{self:?}");
        let code = problem["code"].as_str().unwrap();
        assert_eq!(problem["type"], format!("urn:minutebook:problem:{code}"), "{self:?}");
        assert!(
            ["title", "detail"].iter().all(|field| !problem[field].as_str().unwrap().is_empty()),
            "{self:?}"
        );
        assert!(self.header("x-request-id").is_some(), "{self:?}");
        let retried = matches!(self.status, 429 | 503);
        assert_eq!(self.header("retry-after").is_some(), retried, "{self:?}");
        code.to_owned()
    }

    /// Checks that this is the problem with this status and code.
    #[track_caller]
    pub(crate) fn is_problem(&self, status: u16, code: &str) {
        assert_eq!((self.status, self.problem().as_str()), (status, code), "{self:?}");
    }
}

pub(crate) async fn send(request: RequestBuilder) -> Answer {
    let response = request.send().await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    Answer { status, headers, body: response.text().await.unwrap() }
}

/// What a command's answer says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Accepted {
    status: u16,
    pub(crate) id: String,
    version: i64,
    pub(crate) position: i64,
    events: Vec<String>,
}

impl Accepted {
    /// Reads the answer of a command, in which body and headers must agree.
    fn of(answer: &Answer) -> Self {
        assert!(matches!(answer.status, 200 | 201), "{answer:?}");
        let body = answer.json();
        let (version, position) = (body["version"].as_i64().unwrap(), body["position"].as_i64().unwrap());
        assert_eq!(answer.header("etag"), Some(format!("\"{version}\"").as_str()), "{answer:?}");
        assert_eq!(answer.header("minutebook-position"), Some(position.to_string().as_str()), "{answer:?}");
        let events = body["events"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned());
        let id = body["id"].as_str().unwrap().to_owned();
        Self { status: answer.status, id, version, position, events: events.collect() }
    }

    pub(crate) fn meeting(&self) -> String {
        format!("/v1/meetings/{}", self.id)
    }

    fn profile(&self) -> String {
        format!("/v1/profiles/{}", self.id)
    }
}

/// A request whose body is under way: the server has begun to read it, and waits for the rest.
struct HeldRequest {
    stream: TcpStream,
    rest: Vec<u8>,
}

impl HeldRequest {
    /// Sends the head of a registration. Its handler asks for the body, by `100 Continue`, when it runs and
    /// holds what a request holds.
    async fn registration(server: &Server, n: usize) -> Self {
        let body = json!({"sha256": sha256(n)}).to_string();
        let what = format!(
            "POST /v1/meetings HTTP/1.1\r\nContent-Type: application/json\r\nAuthorization: {}",
            tests::tokens::usual()
        );
        Self::begin(server, &what, body).await
    }

    /// Sends the head of a login.
    async fn login(server: &Server) -> Self {
        let what = "POST /login HTTP/1.1\r\nContent-Type: application/x-www-form-urlencoded";
        Self::begin(server, what, "token=x".to_owned()).await
    }

    async fn begin(server: &Server, what: &str, body: String) -> Self {
        let head = format!(
            "{what}\r\nHost: localhost\r\nContent-Length: {}\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n",
            body.len()
        );
        let mut stream = connect(server).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut go_on = [0; 25];
        timeout(PATIENCE, stream.read_exact(&mut go_on)).await.unwrap().unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        Self { stream, rest: body.into_bytes() }
    }

    /// Sends the rest; returns what comes back.
    async fn finish(mut self) -> String {
        self.stream.write_all(&self.rest).await.unwrap();
        self.answer().await
    }

    /// Returns what comes back without the rest having been sent.
    async fn answer(&mut self) -> String {
        read_all(&mut self.stream).await
    }
}

/// Sends a form as a browser does.
fn form(request: RequestBuilder, body: &str) -> RequestBuilder {
    request.header("content-type", "application/x-www-form-urlencoded").body(body.to_owned())
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// Returns all that comes until the server closes the connection.
async fn read_all(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is as good as an end.
    let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}
