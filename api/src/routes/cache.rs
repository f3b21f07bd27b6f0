//! `/v1/cache`: results of earlier work, for pipelines.

use axum::Json;
use axum::extract::State;
use projections::queries::{self, CacheView};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{ReadHeaders, ReadProblems};
use crate::app::AppState;
use crate::clock::now;
use crate::error::Problem;
use crate::extract::{Fresh, NoQuery, PathOf};

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(show))
}

/// Show a cached result
///
/// `<stage>:<content_fp>` for a stage's result, `meeting:<id>` for a completed meeting's. What has expired
/// is not found.
#[utoipa::path(get, operation_id = "showCachedResult", path = "/v1/cache/{key}", tag = "cache", params(("key" = String, Path), ReadHeaders),
    responses((status = 200, body = CacheView), ReadProblems))]
async fn show(
    State(state): State<AppState>,
    PathOf(key): PathOf<String>,
    _query: NoQuery,
    _fresh: Fresh,
) -> Result<Json<CacheView>, Problem> {
    // No key has a NUL, and PostgreSQL takes no text with one.
    let found =
        if key.contains('\0') { None } else { queries::cached(state.book.pool(), &key, now()).await? };
    found.map(Json).ok_or_else(|| Problem::not_found("cache_miss", "nothing is cached under this key"))
}
