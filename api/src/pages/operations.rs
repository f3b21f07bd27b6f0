//! How everything stands: the log and the tables, what is parked, the feed, and the rebuild that runs.

use askama::Template;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use projections::rebuild::running::{self, RebuildRow};
use projections::tables::checkpoint;
use projections::tables::parked_events::{self, ParkedRow};
use serde::Deserialize;

use super::page;
use super::show::{self, Moment};
use super::visit::{Shell, Visit};
use crate::app::AppState;
use crate::error::Problem;
use crate::extract::QueryOf;
use crate::routes::operations::of_process;
use crate::status::{self, Feed, Status};

/// After how many seconds the page is asked for again.
const REFRESH: u32 = 5;
/// The most parked events that are shown.
const PARKED: i64 = 20;
/// The most rebuilds that are shown.
const REBUILDS: i64 = 8;

#[derive(Template)]
#[template(path = "operations.html")]
struct Operations {
    shell: Shell,
    /// `ready`, `degraded`, or what is the matter.
    state: String,
    works: bool,
    reason: Option<String>,
    projector: &'static str,
    publisher: &'static str,
    head: String,
    position: String,
    lag: String,
    behind: bool,
    waiting: String,
    parked: Vec<Parked>,
    more_parked: bool,
    feed: Vec<FeedRow>,
    rebuilds: Vec<Rebuild>,
    counts: [(&'static str, String); 4],
    log_id: String,
    epoch: String,
    postgres: String,
}

struct Parked {
    position: i64,
    event_type: String,
    aggregate: String,
    since: Moment,
    reason: String,
}

impl From<ParkedRow> for Parked {
    fn from(row: ParkedRow) -> Self {
        let ParkedRow { position, aggregate_type, aggregate_id, event_type, reason, parked_at, .. } = row;
        Self {
            position,
            event_type,
            aggregate: format!("{aggregate_type} {aggregate_id}"),
            since: show::precise(parked_at),
            reason: reason.unwrap_or_default(),
        }
    }
}

struct FeedRow {
    stream: String,
    state: String,
    position: String,
    lag: String,
    since: Moment,
    detail: Option<String>,
}

impl From<Feed> for FeedRow {
    fn from(feed: Feed) -> Self {
        let Feed { stream, position, lag_events, state, detail, since, .. } = feed;
        let lag = behind(lag_events);
        Self { stream, state, position: show::number(position), lag, since: show::precise(since), detail }
    }
}

struct Rebuild {
    id: i64,
    kind: String,
    who: String,
    started: Moment,
    running: bool,
    phase: String,
    done: String,
    total: String,
    /// How far it is, for the bar: out of 100.
    percentage: Option<String>,
    outcome: String,
}

impl From<RebuildRow> for Rebuild {
    fn from(row: RebuildRow) -> Self {
        let RebuildRow {
            id, kind, who, started_at, running, phase, done, total, percentage, outcome, ..
        } = row;
        Self {
            id,
            kind,
            who,
            started: show::precise(started_at),
            running,
            phase,
            done: show::number(done),
            total: show::number(total),
            percentage: percentage.map(|percentage| format!("{percentage:.1}")),
            outcome: outcome.unwrap_or_default(),
        }
    }
}

fn behind(events: i64) -> String {
    match events {
        0 => "up to date".to_owned(),
        1 => "1 event behind".to_owned(),
        events => format!("{} events behind", show::number(events)),
    }
}

/// How to show it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowQuery {
    /// To stay as it is.
    #[serde(default)]
    still: bool,
}

/// Shows how everything stands.
pub(super) async fn show(
    State(state): State<AppState>,
    visit: Visit,
    QueryOf(ShowQuery { still }): QueryOf<ShowQuery>,
) -> Result<Response, Problem> {
    let process = of_process(&state).await;
    let status = status::status(&state.book).await?;
    let generation = checkpoint::read(state.book.pool()).await?.generation;
    let mut parked = parked_events::heads(state.book.pool(), generation, 0, PARKED + 1).await?;
    let more_parked = parked.len() as i64 > PARKED;
    parked.truncate(PARKED as usize);
    let rebuilds = running::latest(&state.book.store, None, REBUILDS).await?;

    let Status { database, log, read_models, parked: waiting, feed, meetings, .. } = status;
    let lag = match read_models.lag_events {
        0 => "Up to date".to_owned(),
        events => format!("{}, the oldest for {:.1} s", behind(events), read_models.lag_seconds),
    };
    let waiting = match (waiting.events, waiting.aggregates) {
        (0, _) => "Nothing is parked".to_owned(),
        (events, aggregates) => {
            let (events, aggregates) = (show::number(events), show::number(aggregates));
            format!("{events} of {aggregates} meetings or people, the oldest for {:.0} s", waiting.seconds)
        }
    };
    let mut shell = visit.shell("Operations", "operations");
    shell.refresh = (!still).then_some(REFRESH);
    let operations = Operations {
        shell,
        works: matches!(process.status, "ready" | "degraded"),
        state: process.status.replace('_', " "),
        reason: process.reason.or(process.publisher_reason),
        projector: process.projector,
        publisher: process.publisher,
        head: show::number(log.head),
        position: show::number(read_models.position),
        lag,
        behind: read_models.lag_events > 0,
        waiting,
        parked: parked.into_iter().map(Parked::from).collect(),
        more_parked,
        feed: feed.into_iter().map(FeedRow::from).collect(),
        rebuilds: rebuilds.into_iter().map(Rebuild::from).collect(),
        counts: [
            ("pending", show::number(meetings.pending)),
            ("processing", show::number(meetings.processing)),
            ("completed", show::number(meetings.completed)),
            ("failed", show::number(meetings.failed)),
        ],
        log_id: log.id.to_string(),
        epoch: log.epoch.to_string(),
        postgres: database.version,
    };
    Ok(page(StatusCode::OK, &operations))
}
