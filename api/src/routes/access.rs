//! `/v1/audit/access`: who looked at what few may see, who erased, who was turned away.

use axum::Json;
use axum::extract::State;
use projections::access::{self, Noted, Outcome};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Page, ReadHeaders, ReadProblems};
use crate::access::{Word, filter};
use crate::app::AppState;
use crate::audit::{ActorFilter, Moment};
use crate::error::Problem;
use crate::extract::{Fresh, Limit, PositionCursor, QueryOf};

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list))
}

/// Which accesses.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct AccessQuery {
    /// By this one: `person:reviewer-7`, or the opaque id alone.
    #[param(value_type = Option<String>, pattern = "^((person|service|system):)?[A-Za-z0-9._-]{1,100}$")]
    who: Option<ActorFilter>,
    /// In this role.
    #[param(value_type = Option<String>, pattern = "^[ -~]{1,200}$", example = "admin")]
    role: Option<Word>,
    /// For this: an action, or the method and the route of a request that was refused.
    #[param(value_type = Option<String>, pattern = "^[ -~]{1,200}$", example = "read_voices")]
    what: Option<Word>,
    /// About what has this id.
    #[param(value_type = Option<String>, pattern = "^[ -~]{1,200}$")]
    target: Option<Word>,
    /// With this end.
    #[param(inline)]
    outcome: Option<Outcome>,
    /// At this time or later: as RFC 3339 writes it, with its zone, or a day, which begins at midnight UTC.
    #[param(value_type = Option<String>, example = "2026-11-01")]
    from: Option<Moment>,
    /// Before this time.
    #[param(value_type = Option<String>, example = "2026-12-01")]
    to: Option<Moment>,
    /// Where the page begins: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<PositionCursor>,
    /// How many, 50 if not said.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500)]
    limit: Limit,
}

/// Show who had access to what few may see, and who was turned away
///
/// The newest first: reads of voices, erasures, exports, backups, and requests refused for want of a right. Of
/// refusals that are alike the first of a minute is a row, and the number of the others is another.
#[utoipa::path(get, operation_id = "listAccess", path = "/v1/audit/access", tag = "audit",
    params(AccessQuery, ReadHeaders), responses((status = 200, body = Page<Noted>), ReadProblems))]
async fn list(
    State(state): State<AppState>,
    QueryOf(query): QueryOf<AccessQuery>,
    _fresh: Fresh,
) -> Result<Json<Page<Noted>>, Problem> {
    let AccessQuery { who, role, what, target, outcome, from, to, cursor, limit } = query;
    let filter = filter(who, role, what, target, outcome, from, to);
    let before = cursor.map(|cursor| cursor.0);
    let rows = access::noted(state.book.pool(), &filter, before, limit.get() + 1).await?;
    Ok(Json(Page::of(rows, limit.get(), |row| PositionCursor(row.id).to_string())))
}
