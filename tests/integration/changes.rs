//! `GET /v1/changes`, through the built program: what comes, in which order, from where on, and what it costs
//! the server.

mod clients;
mod order;
mod parked;
mod resume;

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::Response;
use serde_json::Value;
use sqlx::PgPool;
use tests::server::Server;
use tokio::time::timeout;

use crate::http::{Answer, send};

/// How long anything may take that should come at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// An answer that goes on and on.
pub(crate) struct Feed {
    response: Response,
    /// Every byte that came.
    raw: Vec<u8>,
    /// How much of it was taken apart.
    read: usize,
}

/// What stands between two blank lines.
#[derive(Debug, Clone, PartialEq)]
enum Frame {
    Event(Change),
    Comment(String),
}

/// An event as it came.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Change {
    /// Empty where there is none: the event comes later than its place.
    id: String,
    name: String,
    /// The CloudEvent.
    pub(crate) data: Value,
}

impl Change {
    pub(crate) fn position(&self) -> i64 {
        self.data["position"].as_i64().unwrap()
    }

    fn previous(&self) -> i64 {
        self.data["previous"].as_i64().unwrap()
    }
}

impl Feed {
    /// Follows; `query` is what comes after the question mark.
    pub(crate) async fn follow(server: &Server, query: &str, last_event_id: Option<&str>) -> Self {
        Self::of(request(server, query, last_event_id).send().await.unwrap(), query)
    }

    /// Follows as another client does.
    pub(crate) async fn follow_as(client: &reqwest::Client, server: &Server, query: &str) -> Self {
        let response = client.get(server.at(&format!("/v1/changes?{query}"))).send().await.unwrap();
        Self::of(response, query)
    }

    fn of(response: Response, query: &str) -> Self {
        assert_eq!(response.status(), 200, "{query}");
        let header = |name: &str| response.headers()[name].to_str().unwrap();
        assert!(header("content-type").starts_with("text/event-stream"), "{response:?}");
        assert_eq!(header("cache-control"), "no-store");
        Self { response, raw: vec![], read: 0 }
    }

    /// Returns the next frame; none at the answer's end.
    async fn frame(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = next_frame(&self.raw, &mut self.read) {
                return Some(frame);
            }
            let chunk = timeout(PATIENCE, self.response.chunk()).await.expect("nothing comes");
            self.raw.extend_from_slice(&chunk.unwrap()?);
        }
    }

    /// Returns the next event, whatever heartbeats come before it.
    pub(crate) async fn next(&mut self) -> Change {
        loop {
            match self.frame().await.expect("the answer has ended") {
                Frame::Event(change) => return change,
                Frame::Comment(_) => {}
            }
        }
    }

    /// Returns the next `n` events.
    async fn take(&mut self, n: usize) -> Vec<Change> {
        let mut changes = Vec::with_capacity(n);
        while changes.len() < n {
            changes.push(self.next().await);
        }
        changes
    }
}

/// Takes the next frame of what came, if it came whole.
fn next_frame(raw: &[u8], read: &mut usize) -> Option<Frame> {
    let rest = &raw[*read..];
    let end = rest.windows(2).position(|two| two == b"\n\n")?;
    let text = std::str::from_utf8(&rest[..end]).unwrap();
    *read += end + 2;
    let mut fields = BTreeMap::new();
    for line in text.lines() {
        let (name, value) = line.split_once(':').unwrap();
        assert!(fields.insert(name, value.trim_start()).is_none(), "{name} comes twice in {text}");
    }
    if let Some(comment) = fields.get("") {
        return Some(Frame::Comment((*comment).to_owned()));
    }
    let id = fields.remove("id").unwrap_or_default().to_owned();
    assert_eq!(fields.keys().copied().collect::<Vec<_>>(), ["data", "event"], "{text}");
    let data = serde_json::from_str(fields["data"]).unwrap();
    Some(Frame::Event(Change { id, name: fields["event"].to_owned(), data }))
}

fn request(server: &Server, query: &str, last_event_id: Option<&str>) -> reqwest::RequestBuilder {
    let request = server.client.get(server.at(&format!("/v1/changes?{query}")));
    match last_event_id {
        Some(id) => request.header("last-event-id", id),
        None => request,
    }
}

/// Returns the answer to one who is not let in.
async fn refusal(server: &Server, query: &str, last_event_id: Option<&str>) -> Answer {
    let asking = send(request(server, query, last_event_id));
    timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("{query}, {last_event_id:?}: it is a feed"))
}

fn positions(changes: &[Change]) -> Vec<i64> {
    changes.iter().map(Change::position).collect()
}

/// Returns what the log itself has, in order: the position, the type as it is stored, and the aggregate.
async fn log_of(pool: &PgPool) -> Vec<(i64, String, String)> {
    let query = "SELECT position, event_type, aggregate_id FROM log.events ORDER BY position";
    sqlx::query_as(query).fetch_all(pool).await.unwrap()
}

/// Returns the position before each event of the same type, 0 for the first: from the log alone.
fn previous_in(log: &[(i64, String, String)]) -> BTreeMap<i64, i64> {
    let mut newest = BTreeMap::new();
    log.iter().map(|(at, event_type, _)| (*at, newest.insert(event_type, *at).unwrap_or(0))).collect()
}
