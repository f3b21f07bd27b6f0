//! `/v1/operations/rebuilds`: rebuilds and verifications, begun over HTTP, and how each of them went.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use event_store::command_bus::{CommandError, IdempotencyKey};
use projections::rebuild::pace::Speed;
use projections::rebuild::run::{Ended, Job, Options, Rebuild};
use projections::rebuild::running::{self, Asked, RebuildRow};
use projections::rebuild::{Progress, RebuildError};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{CommandProblems, NumberedPageQuery, Page, ReadHeaders, ReadProblems};
use crate::app::AppState;
use crate::error::Problem;
use crate::extract::{Command, Fresh, NoQuery, Parser, PathOf, QueryOf, read_body};
use crate::rebuild::process;

/// The bodies that are read here.
pub(super) const BODIES: &[Parser] = &[("body_start", read_body::<Start>)];

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(start, list)).routes(routes!(show))
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
#[schema(example = "verify")]
enum Kind {
    /// Build the tables from history beside the live ones, compare, and swap if nothing differs.
    Rebuild,
    /// Build and compare, and leave everything as it was.
    DryRun,
    /// Go back to the generation that was live before.
    Rollback,
    /// Prove that the live tables are what the log says.
    Verify,
}

/// A rebuild to begin.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Start {
    /// What is to be done.
    kind: Kind,
    /// Swap although rows differ; with `rebuild` only.
    #[serde(default)]
    accept_differences: bool,
    /// Do not make way for those who append meanwhile: it takes less time, and their commands take longer; not with
    /// `rollback`, which builds nothing.
    #[serde(default)]
    full_speed: bool,
}

/// The headers that beginning a rebuild takes.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "describes headers that `extract::Command` reads")]
struct StartHeaders {
    /// Marks the request: sent again it begins nothing more, and is answered with what it began.
    #[param(rename = "Idempotency-Key", required = false, max_length = 255)]
    idempotency_key: Option<String>,
}

/// Begin a rebuild, a verification or a rollback
///
/// One runs at a time. It runs in this server: if that is stopped, the live tables stay as they are, and the
/// outcome is `interrupted`. Ask for it under its `Location` until it is not `running` any more.
#[utoipa::path(post, operation_id = "startRebuild", path = "/v1/operations/rebuilds", tag = "operations",
    params(StartHeaders), request_body = Start,
    responses((status = 202, body = RebuildRow, description = "It runs"), CommandProblems))]
async fn start(State(state): State<AppState>, command: Command<Start>) -> Result<Response, Problem> {
    let Command { body, context } = command;
    let (job, options) = plan(&body)?;
    let who = format!("{} for {}:{}", process(), context.actor_kind, context.actor);
    let asked = Asked { who, key: context.key };
    let id = match begun_before(&state, asked.key.as_ref()).await? {
        Some(id) => id,
        None => match Rebuild::begin(&state.book.store, &asked, job, options).await {
            Ok(rebuild) => {
                let id = rebuild.id();
                state.book.tasks.spawn(carry_out(rebuild, state.stopping.clone()));
                id
            }
            // It may be the one that the same request has just begun.
            Err(error @ RebuildError::Running { .. }) => {
                begun_before(&state, asked.key.as_ref()).await?.ok_or(error)?
            }
            Err(error) => return Err(error.into()),
        },
    };
    let location = [(header::LOCATION, format!("/v1/operations/rebuilds/{id}"))];
    Ok((StatusCode::ACCEPTED, location, Json(find(&state, id).await?)).into_response())
}

fn plan(body: &Start) -> Result<(Job, Options), Problem> {
    let Start { kind, accept_differences, full_speed } = *body;
    let unfit = |detail: &str| Err(Problem::invalid("invalid_body", detail));
    let job = match (kind, accept_differences) {
        (Kind::Rebuild, accept_differences) => Job::Rebuild { accept_differences },
        (Kind::DryRun, false) => Job::DryRun,
        (Kind::Rollback, false) if full_speed => {
            return unfit("full_speed does not go with the kind rollback");
        }
        (Kind::Rollback, false) => Job::Rollback,
        (Kind::Verify, false) => Job::Verify,
        (Kind::DryRun | Kind::Rollback | Kind::Verify, true) => {
            return unfit("accept_differences goes with the kind rebuild alone");
        }
    };
    Ok((job, Options { speed: Speed::full_if(full_speed), ..Options::default() }))
}

/// Returns the number of the rebuild that a request with this key has begun, if it has.
async fn begun_before(state: &AppState, key: Option<&IdempotencyKey>) -> Result<Option<i64>, Problem> {
    let Some(key) = key else { return Ok(None) };
    match running::of_key(&state.book.store, key).await? {
        Some((_, request)) if request != key.request_hmac => {
            Err(CommandError::<RebuildError>::KeyReused.into())
        }
        begun => Ok(begun.map(|(id, _)| id)),
    }
}

/// Carries a rebuild out to its end, which comes soon once the server is told to stop.
async fn carry_out(rebuild: Rebuild, stopping: CancellationToken) {
    let id = rebuild.id();
    let Ended { result, .. } = rebuild.carry_out(Arc::new(Logged { id }), &stopping).await;
    match result {
        Ok(()) => info!(rebuild.id = id, "the rebuild is done"),
        Err(RebuildError::Interrupted) => info!(rebuild.id = id, "the rebuild was interrupted"),
        Err(failure) => {
            error!(rebuild.id = id, error = &failure as &dyn std::error::Error, "the rebuild failed");
        }
    }
}

/// Tells the log of the process how a rebuild goes.
struct Logged {
    id: i64,
}

impl Progress for Logged {
    fn phase(&self, name: &'static str, total: i64) {
        info!(rebuild.id = self.id, phase = name, total, "rebuilding");
    }

    fn done(&self, _events: i64) {}

    fn waiting(&self, who: &str) {
        warn!(rebuild.id = self.id, who, "the swap waits for those who hold the tables");
    }
}

/// List rebuilds, the newest first
#[utoipa::path(get, operation_id = "listRebuilds", path = "/v1/operations/rebuilds", tag = "operations",
    params(NumberedPageQuery, ReadHeaders), responses((status = 200, body = Page<RebuildRow>), ReadProblems))]
async fn list(
    State(state): State<AppState>,
    QueryOf(query): QueryOf<NumberedPageQuery>,
    _fresh: Fresh,
) -> Result<Json<Page<RebuildRow>>, Problem> {
    let limit = query.limit.get();
    let rows = running::latest(&state.book.store, query.cursor, limit + 1).await?;
    Ok(Json(Page::of(rows, limit, |row| row.id.to_string())))
}

/// Show a rebuild: how far it is, what became of it, what it found
#[utoipa::path(get, operation_id = "showRebuild", path = "/v1/operations/rebuilds/{id}", tag = "operations",
    params(("id" = i64, Path), ReadHeaders), responses((status = 200, body = RebuildRow), ReadProblems))]
async fn show(
    State(state): State<AppState>,
    PathOf(id): PathOf<i64>,
    _query: NoQuery,
    _fresh: Fresh,
) -> Result<Json<RebuildRow>, Problem> {
    Ok(Json(find(&state, id).await?))
}

async fn find(state: &AppState, id: i64) -> Result<RebuildRow, Problem> {
    let row = running::one(&state.book.store, id).await?;
    row.ok_or_else(|| Problem::not_found("rebuild_not_found", "there is no such rebuild"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn full_speed_is_for_what_builds_and_only_if_it_is_asked_for() {
        for kind in [Kind::Rebuild, Kind::DryRun, Kind::Verify] {
            for (full_speed, speed) in [(false, Speed::Throttled), (true, Speed::Full)] {
                let body = Start { kind, accept_differences: false, full_speed };
                assert_eq!(plan(&body).unwrap().1.speed, speed, "{kind:?}");
            }
        }
        assert!(plan(&Start { kind: Kind::Rollback, accept_differences: false, full_speed: true }).is_err());
    }
}
