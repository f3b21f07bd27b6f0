//! The routes: each extracts, makes a command or asks a table, and responds. They decide nothing.

pub mod access;
pub mod audit;
pub mod cache;
pub mod changes;
pub mod erasures;
pub mod files;
pub mod meeting_commands;
pub mod meetings;
pub mod operations;
pub mod pending_corrections;
pub mod profiles;
pub mod rebuilds;
pub mod speakers;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use event_store::command_bus::Accepted;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::as_of::AsOfQuery;
use crate::error::Problem;
use crate::extract::{Cursor, Limit, Parser, etag, read_query};

/// Returns all that parses bodies and query strings under `/v1`.
pub fn parsers() -> Vec<Parser> {
    let bodies = [
        meeting_commands::BODIES,
        speakers::BODIES,
        pending_corrections::BODIES,
        profiles::BODIES,
        rebuilds::BODIES,
        erasures::BODIES,
    ];
    let queries: &[Parser] = &[
        ("query_meetings", read_query::<meetings::ListQuery>),
        ("query_audit", read_query::<audit::AuditQuery>),
        ("query_access", read_query::<access::AccessQuery>),
        ("query_as_of", read_query::<AsOfQuery>),
        ("query_events", read_query::<meetings::EventsQuery>),
        ("query_speakers", read_query::<speakers::ListQuery>),
        ("query_files", read_query::<files::FindQuery>),
        ("query_changes", read_query::<changes::Wanted>),
        ("query_kept_elsewhere", read_query::<erasures::KeptQuery>),
        ("query_id_page", read_query::<IdPageQuery>),
        ("query_numbered_page", read_query::<NumberedPageQuery>),
    ];
    [bodies.concat(), queries.to_vec()].concat()
}

/// What an accepted command answers with.
#[derive(Debug, Serialize, ToSchema)]
pub struct CommandAnswer {
    /// What the command changed.
    #[schema(example = "6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    id: Uuid,
    /// Its version afterwards; also the ETag.
    #[schema(example = 1)]
    version: i64,
    /// A read with this position in `Minutebook-Min-Position` shows the command's effect.
    #[schema(example = 42)]
    position: i64,
    /// The events that followed; none if the command had already had its effect.
    #[schema(example = json!(["MeetingRegistered"]))]
    events: Vec<String>,
}

/// The header in which a command's answer, and a read, name a position.
const POSITION: HeaderName = HeaderName::from_static("minutebook-position");

impl CommandAnswer {
    fn new(accepted: Accepted) -> Result<Self, Problem> {
        let id = accepted.aggregate_id.parse::<Uuid>().map_err(|error| Problem::internal(&error))?;
        let Accepted { version, position, events, .. } = accepted;
        Ok(Self { id, version, position, events })
    }

    /// Returns the answer to a command that may have created what lies at `collection`/id.
    fn created(accepted: Accepted, collection: &str) -> Result<Response, Problem> {
        let answer = Self::new(accepted)?;
        if answer.events.is_empty() {
            return Ok(answer.into_response());
        }
        let location = format!("{collection}/{}", answer.id);
        Ok((StatusCode::CREATED, [(header::LOCATION, location)], answer).into_response())
    }
}

impl IntoResponse for CommandAnswer {
    fn into_response(self) -> Response {
        let headers = [(header::ETAG, etag(self.version)), (POSITION, self.position.to_string())];
        (headers, Json(self)).into_response()
    }
}

/// Nothing more than the command itself.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

/// A page of rows.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    /// The rows.
    pub items: Vec<T>,
    /// Where the next page begins; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    /// Returns a page of at most `limit` of `rows`, of which there is one more if a page follows.
    fn of(mut items: Vec<T>, limit: i64, cursor: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = items.last().filter(|_| more).map(cursor);
        Self { items, next_cursor }
    }
}

/// Which page of numbered things to show, the newest first.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct NumberedPageQuery {
    /// Where the page begins: the `next_cursor` of the page before.
    cursor: Option<i64>,
    /// How many, 50 if not said.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500)]
    limit: Limit,
}

/// Which page to show of what is in the order of its ids.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct IdPageQuery {
    /// Where the page begins: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor>,
    /// How many, 50 if not said.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500)]
    limit: Limit,
}

/// Returns a header that names `position`.
fn position_header(position: i64) -> [(HeaderName, HeaderValue); 1] {
    [(POSITION, HeaderValue::from(position))]
}

/// Returns a header that has `version` as ETag. What is shown as of an earlier position has none: a later
/// `If-Match` is about how it stands now.
fn etag_header(version: i64) -> [(HeaderName, String); 1] {
    [(header::ETAG, etag(version))]
}

/// The headers that every command takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes headers that `extract::Command` reads")]
pub struct CommandHeaders {
    /// Marks the command: sent again it has one effect and one answer, for 30 days.
    #[param(rename = "Idempotency-Key", required = false, max_length = 255)]
    idempotency_key: Option<String>,
    /// The version, as an ETag, that must not have changed.
    #[param(rename = "If-Match", required = false, example = "\"3\"")]
    if_match: Option<String>,
    /// What the command belongs to; kept with its events.
    #[param(rename = "Minutebook-Correlation-Id", required = false, max_length = 100)]
    correlation_id: Option<String>,
    /// What caused the command; kept with its events.
    #[param(rename = "Minutebook-Causation-Id", required = false, max_length = 100)]
    causation_id: Option<String>,
}

/// The header that every read takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes a header that `extract::Fresh` reads")]
pub struct ReadHeaders {
    /// The position that the answer must show at least; waited for, within bounds.
    #[param(rename = "Minutebook-Min-Position", required = false, minimum = 0)]
    min_position: Option<i64>,
}

/// The problems that a command can meet.
#[derive(utoipa::IntoResponses)]
pub enum CommandProblems {
    /// The body is not JSON or not UTF-8.
    #[response(status = 400, content_type = "application/problem+json")]
    Malformed(#[to_schema] Problem),
    /// There is no valid token.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// The role may not do this, or `person_required`.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// There is no such thing.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(#[to_schema] Problem),
    /// Its status does not allow the command.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(#[to_schema] Problem),
    /// It has another version than If-Match says.
    #[response(status = 412, content_type = "application/problem+json")]
    Stale(#[to_schema] Problem),
    /// The body is larger than allowed.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(#[to_schema] Problem),
    /// The body is not said to be JSON.
    #[response(status = 415, content_type = "application/problem+json")]
    MediaType(#[to_schema] Problem),
    /// A value is not what it must be.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(#[to_schema] Problem),
    /// More requests are under way than the server takes.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
    /// Not now; try again.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// The problems that a read can meet.
#[derive(utoipa::IntoResponses)]
pub enum ReadProblems {
    /// There is no valid token.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// The role may not do this.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// There is no such thing.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(#[to_schema] Problem),
    /// A value is not what it must be.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(#[to_schema] Problem),
    /// More requests are under way than the server takes.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
    /// The tables do not show the position asked for yet; try again.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}

/// The problems that a read with `as_of` can meet.
#[derive(utoipa::IntoResponses)]
pub enum PastReadProblems {
    /// There is no valid token.
    #[response(status = 401, content_type = "application/problem+json")]
    Unauthorized(#[to_schema] Problem),
    /// The role may not do this.
    #[response(status = 403, content_type = "application/problem+json")]
    Forbidden(#[to_schema] Problem),
    /// There is no such thing, or there was none: `not_yet_recorded` says since when there is.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(#[to_schema] Problem),
    /// A value is not what it must be; `as_of_in_the_future` says where the log ends.
    #[response(status = 422, content_type = "application/problem+json")]
    Invalid(#[to_schema] Problem),
    /// More requests are under way than the server takes.
    #[response(status = 429, content_type = "application/problem+json")]
    TooMany(#[to_schema] Problem),
    /// The tables do not show the position asked for yet; try again.
    #[response(status = 503, content_type = "application/problem+json")]
    Unavailable(#[to_schema] Problem),
}
