//! `/v1/changes`: the change feed as server-sent events, straight from the log.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use domain::ids::MeetingId;
use event_store::EventStore;
use event_store::log::feed::Filter;
use event_store::log::{self, BatchLimits};
use event_store::retry::backoff;
use futures::stream;
use projections::feed::cloud_event::{CloudEvent, event_id, parse_event_id};
use projections::feed::public_event::EventType;
use projections::feed::publisher::{PublishError, wait_until_shown};
use projections::feed::source::Source;
use projections::feed::withheld::Withheld;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tracing::{debug, error};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ReadHeaders, ReadProblems};
use crate::app::AppState;
use crate::auth::{Caller, owners_of};
use crate::book::SharedBook;
use crate::error::Problem;
use crate::extract::{Fresh, QueryOf, header_text};
use crate::places::Place;

/// What is read at once for one client, and so the most that is kept for it.
const BATCH: BatchLimits = BatchLimits { events: 64, bytes: 512 * 1024 };
/// How long a client may leave an event unread before it is dropped.
const UNREAD: Duration = Duration::from_secs(10);
/// How often a client that hears nothing else hears a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often reading is tried again before the client is sent away to reconnect.
const TRIES: u32 = 10;
/// How often it is asked whether what was withheld may go out.
const RELEASES: Duration = Duration::from_secs(2);
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(follow))
}

/// Which changes are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only these types, separated by commas: `meeting.completed,meeting.failed`.
    #[serde(rename = "type")]
    #[param(example = "meeting.completed")]
    types: Option<String>,
    /// Only those of this meeting.
    #[param(value_type = Option<uuid::Uuid>)]
    meeting: Option<MeetingId>,
    /// The first position, or `new` for whatever comes from now on; 1 if absent. `Last-Event-ID` wins over it.
    #[param(example = "1")]
    from: Option<String>,
}

/// Follow the changes
///
/// Server-sent events: `id` is `<epoch>:<position>`, `event` the type, `data` a CloudEvent in JSON. Each is
/// sent once the tables show it, in order of position; `previous` in it is the position before it of the same
/// type. One that could not be applied is withheld, and comes later without an `id`; one that was skipped comes as
/// `minutebook.meeting.skipped.v1`, with its type in `skippedtype`. Reconnect with `Last-Event-ID` and nothing is
/// missed: browsers do so by themselves. A comment comes every 15 seconds as a heartbeat. A client that stops
/// reading is dropped. The answer ends when the token expires. A member is sent what is about its own meetings, and
/// `previous` may be somebody else's event.
#[utoipa::path(get, operation_id = "followChanges", path = "/v1/changes", tag = "changes",
    params(Wanted, ReadHeaders, ("Last-Event-ID" = Option<String>, Header, description = "The last event had.")),
    responses((status = 200, body = String, content_type = "text/event-stream"),
              (status = 409, description = "`epoch_changed`, `position_unknown`: the log was restored", body = Problem,
               content_type = "application/problem+json"),
              ReadProblems))]
async fn follow(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    QueryOf(wanted): QueryOf<Wanted>,
    _fresh: Fresh,
) -> Result<Response, Problem> {
    let resumed = header_text(&headers, &LAST_EVENT_ID)?;
    let after = match resumed {
        Some(id) => position_of(id, &state.book).await?,
        None => position_before(wanted.from.as_deref(), &state.book).await?,
    };
    let filter = filter(&wanted)?;
    let place = state.followers.enter(Some(&caller)).ok_or_else(Problem::too_many)?;
    let store = state.book.store.clone();
    let withheld = match resumed {
        Some(_) => Withheld::before(store.clone(), after, filter.clone()).await?,
        None => Withheld::none(store.clone(), filter.clone()),
    };
    let source = Source::after(store, after, filter).await?;

    let (sender, receiver) = mpsc::channel(1);
    let remaining = caller.remaining();
    let following = send_all(state.book.clone(), source, withheld, caller, sender, place);
    // Whoever has a new token goes on with it.
    let following = async move { timeout(remaining, following).await.unwrap_or(()) };
    state.book.tasks.spawn(state.stopping.clone().run_until_cancelled_owned(following));
    let events = stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await?, receiver)));
    let events = Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("heartbeat"));
    // Intermediaries must neither keep it nor wait for more of it.
    Ok(([("cache-control", "no-store"), ("x-accel-buffering", "no")], events).into_response())
}

/// Returns those events that a client may see.
async fn seen(
    caller: &Caller,
    store: &EventStore,
    mut events: Vec<CloudEvent>,
) -> Result<Vec<CloudEvent>, sqlx::Error> {
    if caller.only().is_none() || events.is_empty() {
        return Ok(events);
    }
    events.retain(|event| event.event_type.aggregate == "meeting");
    let meetings = events.iter().map(|event| event.aggregate_id).collect::<Vec<_>>();
    let owners = owners_of(store, &meetings).await?;
    events.retain(|event| caller.sees(owners.get(&event.aggregate_id).copied()));
    Ok(events)
}

async fn position_before(from: Option<&str>, book: &SharedBook) -> Result<i64, Problem> {
    match from {
        None => Ok(0),
        Some("new") => Ok(log::head(book.pool()).await?),
        Some(number) => {
            number.parse::<i64>().ok().filter(|from| *from >= 1).map(|from| from - 1).ok_or_else(|| {
                Problem::invalid("invalid_query", "from must be a position of at least 1, or new")
            })
        }
    }
}

async fn position_of(id: &str, book: &SharedBook) -> Result<i64, Problem> {
    let invalid =
        || Problem::invalid("invalid_header", "Last-Event-ID must be the id of an event of this feed");
    let (epoch, position) = parse_event_id(id).ok_or_else(invalid)?;
    let conflict = |code, detail: &str| Err(Problem::new(StatusCode::CONFLICT, code, detail));
    if epoch != book.store.identity().epoch {
        return conflict(
            "epoch_changed",
            "the log was restored since, and positions have been given out again: begin anew without Last-Event-ID",
        );
    }
    // Another process may have appended what this one has not heard of yet.
    if position > book.store.head().position() && position > log::head(book.pool()).await? {
        return conflict("position_unknown", "the log has no such position: is this the right server?");
    }
    Ok(position)
}

fn filter(wanted: &Wanted) -> Result<Filter, Problem> {
    let stored = |name: &str| {
        EventType::named(name.trim()).map(|known| known.stored.to_owned()).ok_or_else(|| {
            Problem::invalid(
                "invalid_query",
                "type must name events such as meeting.completed; docs/EVENTS.md has all",
            )
        })
    };
    let types = wanted.types.as_ref().map(|types| types.split(',').map(stored).collect()).transpose()?;
    let aggregate = wanted.meeting.map(|id| ("meeting", id.as_uuid()));
    Ok(Filter { types, aggregate, positions: None })
}

/// Sends what comes, until the client is gone or does not read.
async fn send_all(
    book: SharedBook,
    mut source: Source,
    mut withheld: Withheld,
    caller: Caller,
    sender: mpsc::Sender<Result<Event, Infallible>>,
    _place: Place,
) {
    let mut failures = 0;
    while failures < TRIES {
        let sending = async {
            tokio::select! {
                sent = send_next(&book, &mut source, &mut withheld, &caller, &sender) => sent,
                () = sender.closed() => Ok(false),
            }
        };
        match sending.await {
            Ok(true) => failures = 0,
            Ok(false) => return,
            Err(PublishError::Log(
                error @ (event_store::log::LogError::Decode { .. } | event_store::log::LogError::Hole { .. }),
            )) => {
                error!(error = &error as &dyn std::error::Error, "the changes cannot be read on");
                return;
            }
            Err(problem) => {
                debug!(error = &problem as &dyn std::error::Error, "reading the changes was interrupted");
                failures += 1;
                sleep(backoff(failures, Duration::from_millis(50), Duration::from_secs(5))).await;
            }
        }
    }
}

/// Sends the next batch; says whether the client is still there.
async fn send_next(
    book: &SharedBook,
    source: &mut Source,
    withheld: &mut Withheld,
    caller: &Caller,
    sender: &mpsc::Sender<Result<Event, Infallible>>,
) -> Result<bool, PublishError> {
    let send = async |event: Event| matches!(timeout(UNREAD, sender.send(Ok(event))).await, Ok(Ok(())));
    let shown = tokio::select! {
        shown = wait_until_shown(&book.store, &book.projection, source.position()) => Some(shown?),
        () = sleep(RELEASES), if !withheld.is_empty() => None,
    };
    if !withheld.is_empty() {
        // Before anything that the tables came to show later: whoever reconnects after that is not sent these
        // again. Without an id: it goes on where it was, not where these belong.
        while let Some(events) = withheld.released().await? {
            // If that cannot be found out, the client reconnects, and goes on where it was.
            let Ok(events) = seen(caller, &book.store, events).await else { return Ok(false) };
            for event in events {
                if !send(sse_event(&event)).await {
                    return Ok(false);
                }
            }
        }
    }
    if let Some(shown) = shown {
        let batch = source.next(shown, BATCH).await?;
        withheld.add(batch.withheld);
        let Ok(events) = seen(caller, &book.store, batch.events).await else { return Ok(false) };
        for event in events {
            let id = event_id(event.epoch, event.position);
            if !send(sse_event(&event).id(id)).await {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

fn sse_event(event: &CloudEvent) -> Event {
    Event::default().event(event.full_type()).data(event.to_json())
}
