//! `/v1/erasures`: what was forgotten, and how far that is; and the two routes that begin it.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use domain::ids::{MeetingId, ProfileId};
use domain::text::Reason;
use projections::access::{self, Access, What};
use projections::erasure::{self, Erasure, KeptElsewhere};
use serde::Deserialize;
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{
    CommandHeaders, CommandProblems, Nothing, NumberedPageQuery, Page, ReadHeaders, ReadProblems,
    position_header,
};
use crate::app::AppState;
use crate::auth::Caller;
use crate::clock::now;
use crate::error::Problem;
use crate::extract::{Command, Fresh, Id, Limit, NoQuery, Parser, QueryOf, read_body};

/// The bodies that are read here.
pub(super) const BODIES: &[Parser] = &[("body_erasing", read_body::<Erasing>)];

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(erase_profile))
        .routes(routes!(erase_meeting))
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(kept_elsewhere))
}

/// Forget a person
///
/// The name and the voice are gone at once and for good, with the keys under which the book has them. The rest
/// follows within moments: no speaker is the person any more, in any meeting, and the voices of all speakers who
/// ever were are gone. The answer is the receipt, 202 while something is still under way; asked again, it is the
/// same erasure. The id is not given out again.
#[utoipa::path(delete, operation_id = "eraseProfile", path = "/v1/profiles/{id}", tag = "profiles",
    params(("id" = Uuid, Path), CommandHeaders),
    responses((status = 200, body = Erasure), (status = 202, body = Erasure, description = "It is under way"),
        CommandProblems))]
async fn erase_profile(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id<ProfileId>,
    Command { context, body: Nothing {} }: Command<Nothing>,
) -> Result<Response, Problem> {
    let book = &state.book;
    note(&state, &caller, What::EraseProfile, id.as_uuid()).await?;
    erasure::erase_profile(&book.store, &book.bus, id, now(), &context).await?;
    receipt(&state, id.as_uuid()).await
}

/// Why a meeting is erased.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Erasing {
    /// Why. It is kept for good, so it names nobody.
    #[schema(value_type = String, min_length = 1, max_length = 1000, example = "uploaded by mistake")]
    reason: Reason,
}

/// Forget a meeting
///
/// It is gone with its speakers, artifacts, cached results and reasons, and with the keys under which the log has
/// what refers to people. What was kept elsewhere is listed under `/v1/erasures/{id}/kept-elsewhere`. The same file
/// registered again begins anew under the same id.
#[utoipa::path(delete, operation_id = "eraseMeeting", path = "/v1/meetings/{id}", tag = "meetings",
    params(("id" = Uuid, Path), CommandHeaders), request_body = Erasing,
    responses((status = 200, body = Erasure), (status = 202, body = Erasure, description = "It is under way"),
        CommandProblems))]
async fn erase_meeting(
    State(state): State<AppState>,
    caller: Caller,
    Id(id): Id<MeetingId>,
    Command { context, body: Erasing { reason } }: Command<Erasing>,
) -> Result<Response, Problem> {
    let book = &state.book;
    note(&state, &caller, What::EraseMeeting, id.as_uuid()).await?;
    erasure::erase_meeting(&book.store, &book.bus, id, reason, now(), &context).await?;
    receipt(&state, id.as_uuid()).await
}

/// Notes who asks, before it is done: also what then turns out not to be there.
async fn note(state: &AppState, caller: &Caller, what: What, id: Uuid) -> Result<(), Problem> {
    let access = Access::allowed(caller.who(), what, Some(id.to_string()));
    Ok(access::record(state.book.pool(), &access).await?)
}

/// Waits for the erasure for as long as reads wait for a position, and answers with its receipt.
async fn receipt(state: &AppState, subject: Uuid) -> Result<Response, Problem> {
    let deadline = Instant::now() + state.config.position_timeout;
    let erasure = erasure::wait(state.book.pool(), subject, deadline).await?.ok_or_else(not_found)?;
    let status = if erasure.completed_at.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, position_header(erasure.position), Json(erasure)).into_response())
}

fn not_found() -> Problem {
    Problem::not_found("erasure_not_found", "nothing with this id was erased")
}

/// List what was forgotten, the newest first
#[utoipa::path(get, operation_id = "listErasures", path = "/v1/erasures", tag = "operations",
    params(NumberedPageQuery, ReadHeaders), responses((status = 200, body = Page<Erasure>), ReadProblems))]
async fn list(
    State(state): State<AppState>,
    QueryOf(query): QueryOf<NumberedPageQuery>,
    _fresh: Fresh,
) -> Result<Json<Page<Erasure>>, Problem> {
    let limit = query.limit.get();
    let rows = erasure::latest(state.book.pool(), query.cursor, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.number.to_string())))
}

/// Show the receipt of an erasure: what was destroyed, when, by whom and at which position
///
/// Of a meeting that was erased more than once, the latest.
#[utoipa::path(get, operation_id = "showErasure", path = "/v1/erasures/{id}", tag = "operations",
    params(("id" = Uuid, Path, description = "The profile or the meeting that was erased"), ReadHeaders),
    responses((status = 200, body = Erasure), ReadProblems))]
async fn show(
    State(state): State<AppState>,
    Id(id): Id<Uuid>,
    _query: NoQuery,
    _fresh: Fresh,
) -> Result<Json<Erasure>, Problem> {
    erasure::of_subject(state.book.pool(), id).await?.map(Json).ok_or_else(not_found)
}

/// Which page to show.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct KeptQuery {
    /// The sequence after which the page begins: the `next_cursor` of the page before.
    #[serde(default)]
    cursor: u32,
    /// How many, 50 if not said.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500)]
    limit: Limit,
}

/// List what was kept elsewhere of an erased meeting
///
/// The recording, every artifact and every cached result that the meeting ever had, for the object store's own
/// deletion. Of a person nothing is listed: what has the name in it is stale, and is told of by
/// `meeting.artifacts_outdated`.
#[utoipa::path(get, operation_id = "listKeptElsewhere", path = "/v1/erasures/{id}/kept-elsewhere", tag = "operations",
    params(("id" = Uuid, Path), KeptQuery, ReadHeaders),
    responses((status = 200, body = Page<KeptElsewhere>), ReadProblems))]
async fn kept_elsewhere(
    State(state): State<AppState>,
    Id(id): Id<Uuid>,
    QueryOf(query): QueryOf<KeptQuery>,
    _fresh: Fresh,
) -> Result<Json<Page<KeptElsewhere>>, Problem> {
    let limit = query.limit.get();
    let pool = state.book.pool();
    let erasure = erasure::of_subject(pool, id).await?.ok_or_else(not_found)?;
    let rows = erasure::kept_elsewhere(pool, &erasure, query.cursor.into(), limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.sequence.to_string())))
}
