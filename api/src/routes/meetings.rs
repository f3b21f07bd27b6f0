//! `/v1/meetings`: what the tables and the log show of meetings.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chrono::{DateTime, Utc};
use domain::ids::MeetingId;
use domain::text::Language;
use event_store::log::{self, BatchLimits};
use projections::history::{self, HistoryError};
use projections::queries::{self, MeetingDetails, MeetingFilter, MeetingSummary};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{Page, PastReadProblems, ReadHeaders, ReadProblems, etag_header, position_header};
use crate::app::AppState;
use crate::as_of::{AsOf, AsOfQuery};
use crate::auth::Caller;
use crate::error::Problem;
use crate::extract::{Cursor, Fresh, Id, Limit, QueryOf};

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(events))
}

/// Show a meeting with its file, speakers and artifacts
///
/// One that has been erased since is not shown with `as_of` either (404 `meeting_erased`).
#[utoipa::path(get, operation_id = "showMeeting", path = "/v1/meetings/{id}", tag = "meetings", params(("id" = Uuid, Path), AsOfQuery, ReadHeaders),
    responses((status = 200, body = MeetingDetails), PastReadProblems))]
async fn show(
    State(state): State<AppState>,
    Id(id): Id<MeetingId>,
    QueryOf(AsOfQuery { as_of }): QueryOf<AsOfQuery>,
    _fresh: Fresh,
) -> Result<Response, Problem> {
    let meeting = find(&state, id, as_of).await?;
    let position = position_header(meeting.position);
    let etag = as_of.is_none().then(|| etag_header(meeting.version));
    Ok((position, etag, Json(meeting)).into_response())
}

/// Returns a meeting as it stands, or stood.
pub(crate) async fn find(
    state: &AppState,
    id: MeetingId,
    as_of: Option<AsOf>,
) -> Result<MeetingDetails, Problem> {
    let pool = state.book.pool();
    let found = match as_of {
        None => queries::meeting(pool, id.as_uuid()).await?,
        Some(as_of) => history::meeting(&state.book.store, id.as_uuid(), as_of.position(pool).await?).await?,
    };
    found.ok_or_else(|| Problem::not_found("meeting_not_found", "there is no such meeting"))
}

/// Which meetings to list.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    /// `pending`, `processing`, `completed` or `failed`.
    #[param(inline)]
    status: Option<MeetingStatus>,
    /// Whose.
    owner: Option<Uuid>,
    /// In this language.
    #[param(value_type = Option<String>, max_length = 10)]
    language: Option<Language>,
    /// Where the page begins: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor>,
    /// How many, 50 if not said.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500)]
    limit: Limit,
}

/// Where a meeting stands.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum MeetingStatus {
    Pending,
    Processing,
    Completed,
    Failed,
}

impl MeetingStatus {
    const fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
        }
    }
}

/// List meetings
///
/// In the order of their ids, which says nothing but stays. A member is shown its own.
#[utoipa::path(get, operation_id = "listMeetings", path = "/v1/meetings", tag = "meetings", params(ListQuery, ReadHeaders),
    responses((status = 200, body = Page<MeetingSummary>), ReadProblems))]
async fn list(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<ListQuery>,
    _fresh: Fresh,
) -> Result<Json<Page<MeetingSummary>>, Problem> {
    find_page(&state, &caller, &query).await.map(Json)
}

/// Returns a page of those meetings that the caller sees.
pub(crate) async fn find_page(
    state: &AppState,
    caller: &Caller,
    query: &ListQuery,
) -> Result<Page<MeetingSummary>, Problem> {
    if query.owner.is_some_and(|owner| !caller.sees(Some(owner))) {
        return Ok(Page { items: vec![], next_cursor: None });
    }
    let filter = MeetingFilter {
        status: query.status.map(MeetingStatus::name),
        owner: caller.only().map(|owner| owner.as_uuid()).or(query.owner),
        language: query.language.as_ref().map(Language::as_str),
    };
    let limit = query.limit.get();
    let after = query.cursor.map(|cursor| cursor.0);
    let meetings = queries::meetings(state.book.pool(), &filter, after, limit + 1).await?;
    Ok(Page::of(meetings, limit, |meeting| Cursor(meeting.id).to_string()))
}

/// An event of a meeting.
#[derive(Debug, Serialize, ToSchema)]
struct MeetingEventView {
    /// Its place in the log.
    #[schema(example = 42)]
    position: i64,
    /// Its place among the meeting's events.
    #[schema(example = 1)]
    sequence: i64,
    /// When it was recorded.
    #[schema(example = "2026-11-24T09:00:00Z")]
    recorded_at: DateTime<Utc>,
    /// What kind of event it is.
    #[serde(rename = "type")]
    #[schema(example = "MeetingRegistered")]
    event_type: String,
    /// The version of its shape.
    #[schema(example = "1")]
    version: String,
    /// What happened.
    #[schema(value_type = Object, example = json!({"LanguageDetected": {"attempt": 1, "language": "en-GB"}}))]
    payload: Box<RawValue>,
    /// Who did it, and on behalf of what.
    #[schema(value_type = Object, example = json!({"actor": "pipeline-1", "actor_kind": "service"}))]
    metadata: Box<RawValue>,
}

/// Which events to show.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    /// Only those recorded by then: up to a position of the log, or a time as RFC 3339 writes it, with its zone.
    #[param(value_type = Option<String>, example = "2026-11-24T09:00:00Z")]
    as_of: Option<AsOf>,
    /// The sequence after which the page begins: the `next_cursor` of the page before.
    #[serde(default)]
    cursor: u32,
    /// How many, 50 if not said.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500)]
    limit: Limit,
}

/// The bytes of payload after which a page takes no further event.
const EVENTS_BYTES: usize = 4 * 1024 * 1024;

/// Whom a voice merely resembles is in a machine's decisions, and not for everybody.
fn without_candidates(payload: String) -> serde_json::Result<String> {
    if !payload.contains("\"candidates\"") {
        return Ok(payload);
    }
    let mut shown: serde_json::Value = serde_json::from_str(&payload)?;
    for decision in ["/SpeakerIdentified", "/SpeakerNotIdentified"] {
        if let Some(candidates) = shown.pointer_mut(&format!("{decision}/evidence/candidates")) {
            *candidates = serde_json::Value::Array(vec![]);
        }
    }
    Ok(shown.to_string())
}

/// Voices are personal: a diarization is shown with the models, and without the vectors. What a stage cached may
/// have some too, and names: it is read at `/v1/cache`, by those who may.
fn without_voices(payload: String) -> serde_json::Result<String> {
    if !payload.contains("\"vector\"") && !payload.contains("\"StageResultCached\"") {
        return Ok(payload);
    }
    let mut shown: serde_json::Value = serde_json::from_str(&payload)?;
    if let Some(cached) = shown.pointer_mut("/StageResultCached/value") {
        *cached = serde_json::Value::Null;
    }
    let clusters =
        shown.pointer_mut("/SpeakersDiarized/clusters").and_then(|clusters| clusters.as_array_mut());
    for cluster in clusters.into_iter().flatten() {
        if let Some(voice) = cluster.get_mut("voice").and_then(|voice| voice.as_object_mut()) {
            voice.remove("vector");
        }
    }
    Ok(shown.to_string())
}

/// Show a meeting's history
///
/// Of one that was erased it begins with the erasure: what was before is shown to nobody. A member is told no
/// candidates: whom a speaker merely resembles. Voices' numbers and cached results are shown to nobody here.
#[utoipa::path(get, operation_id = "listMeetingEvents", path = "/v1/meetings/{id}/events", tag = "meetings",
    params(("id" = Uuid, Path), EventsQuery, ReadHeaders),
    responses((status = 200, body = Page<MeetingEventView>), PastReadProblems))]
async fn events(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id<MeetingId>,
    QueryOf(query): QueryOf<EventsQuery>,
    _fresh: Fresh,
) -> Result<Response, Problem> {
    let mut after = i64::from(query.cursor);
    let pool = state.book.pool();
    let until = match query.as_of {
        None => None,
        Some(as_of) => Some(as_of.position(pool).await?),
    };
    if let Some((erased, sequence)) = history::last_erasure(&state.book.store, id.as_uuid()).await? {
        if until.is_some_and(|until| until < erased) {
            return Err(HistoryError::Erased { erased }.into());
        }
        after = after.max(sequence - 1);
    }
    let last = match until {
        None => i64::MAX,
        Some(position) => history::version(&state.book.store, "meeting", id.as_uuid(), position).await?,
    };
    let limits = BatchLimits { events: usize::from(query.limit), bytes: EVENTS_BYTES };
    let (mut stored, more) =
        log::read_aggregate(pool, state.book.store.keyring(), "meeting", id.as_uuid(), after, limits).await?;
    stored.retain(|event| event.sequence <= last);
    if stored.is_empty() && log::version_at(pool, "meeting", id.as_uuid(), i64::MAX).await? == 0 {
        return Err(Problem::not_found("meeting_not_found", "there is no such meeting"));
    }
    let shown = |payload| {
        let shown = without_voices(payload)?;
        if caller.sees_candidates() { Ok(shown) } else { without_candidates(shown) }
    };
    let view = |event: log::StoredEvent| {
        Ok(MeetingEventView {
            position: event.position,
            sequence: event.sequence,
            recorded_at: event.recorded_at,
            event_type: event.event_type,
            version: event.event_version,
            payload: RawValue::from_string(shown(event.payload)?)?,
            metadata: RawValue::from_string(event.metadata)?,
        })
    };
    let events = stored.into_iter().map(view).collect::<Result<Vec<_>, serde_json::Error>>();
    let events = events.map_err(|error| Problem::internal(&error))?;
    let next = events.last().map(|event| event.sequence).filter(|sequence| more && *sequence < last);
    let page = Page { items: events, next_cursor: next.map(|sequence| sequence.to_string()) };
    Ok((until.map(position_header), Json(page)).into_response())
}
