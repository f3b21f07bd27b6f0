//! `/v1/files`: uploaded recordings, found by id, by content or by sound.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use domain::file::{ContentFp, Sha256};
use domain::ids::FileId;
use projections::history;
use projections::queries::{self, FileView, WhichFiles};
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Page, PastReadProblems, ReadHeaders, ReadProblems, position_header};
use crate::app::AppState;
use crate::as_of::AsOfQuery;
use crate::auth::Caller;
use crate::error::Problem;
use crate::extract::{Cursor, Fresh, Id, Limit, QueryOf, wait_until_shown};

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(find)).routes(routes!(show))
}

/// Show a file
///
/// With `as_of`, a file whose meeting has been erased since is not found, as its meeting is not.
#[utoipa::path(get, operation_id = "showFile", path = "/v1/files/{id}", tag = "files", params(("id" = Uuid, Path), AsOfQuery, ReadHeaders),
    responses((status = 200, body = FileView), PastReadProblems))]
async fn show(
    State(state): State<AppState>,
    Id(id): Id<FileId>,
    caller: Caller,
    QueryOf(AsOfQuery { as_of }): QueryOf<AsOfQuery>,
    _fresh: Fresh,
) -> Result<Response, Problem> {
    let pool = state.book.pool();
    let (found, position) = match as_of {
        None => (queries::file(pool, id.as_uuid()).await?, None),
        Some(as_of) => {
            let position = as_of.position(pool).await?;
            // The tables know which meeting the file belongs to.
            wait_until_shown(&state, position).await?;
            (history::file(&state.book.store, id.as_uuid(), position).await?, Some(position))
        }
    };
    let Some(file) = found.filter(|file| caller.sees(file.owner)) else {
        return Err(Problem::not_found("file_not_found", "there is no such file"));
    };
    Ok((position.map(position_header), Json(file)).into_response())
}

/// What to look for: one of the two.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct FindQuery {
    /// Files of these very bytes.
    #[param(value_type = Option<String>, pattern = "^[0-9a-fA-F]{64}$")]
    sha256: Option<Sha256>,
    /// Files of this very sound.
    #[param(value_type = Option<String>, max_length = 128)]
    content_fp: Option<ContentFp>,
    /// Where the page begins: the `next_cursor` of the page before.
    #[param(value_type = Option<String>)]
    cursor: Option<Cursor>,
    /// How many, 50 if not said.
    #[serde(default)]
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500)]
    limit: Limit,
}

/// Find files by content or by sound
///
/// A member finds its own.
#[utoipa::path(get, operation_id = "findFiles", path = "/v1/files", tag = "files", params(FindQuery, ReadHeaders),
    responses((status = 200, body = Page<FileView>), ReadProblems))]
async fn find(
    State(state): State<AppState>,
    caller: Caller,
    QueryOf(query): QueryOf<FindQuery>,
    _fresh: Fresh,
) -> Result<Json<Page<FileView>>, Problem> {
    let which = match (&query.sha256, &query.content_fp) {
        (Some(sha256), None) => WhichFiles::Content(sha256.as_str()),
        (None, Some(content_fp)) => WhichFiles::Sound(content_fp.as_str()),
        (None, None) | (Some(_), Some(_)) => {
            return Err(Problem::invalid("invalid_query", "ask for either sha256 or content_fp"));
        }
    };
    let limit = query.limit.get();
    let after = query.cursor.map(|cursor| cursor.0);
    let only = caller.only().map(|owner| owner.as_uuid());
    let files = queries::files(state.book.pool(), which, only, after, limit + 1).await?;
    Ok(Json(Page::of(files, limit, |file| Cursor(file.id).to_string())))
}
