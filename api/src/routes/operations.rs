//! Health and metrics.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use chrono::Utc;
use event_store::EventStore;
use projections::erasure;
use projections::feed::publication;
use projections::feed::publisher::Publishing;
use projections::freshness::{self, Lag};
use projections::projector::Projection;
use projections::rebuild::running;
use projections::tables::parked_events::{self, Waiting};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::AppState;
use crate::config::Part;
use crate::error::Problem;

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(healthz)).routes(routes!(readyz)).routes(routes!(metrics))
}

/// Whether the process lives.
#[derive(Serialize, ToSchema)]
pub struct Health {
    /// Always `ok`: a process that does not live does not answer.
    #[schema(example = "ok")]
    status: &'static str,
}

/// Does the process live?
#[utoipa::path(get, path = "/healthz", tag = "operations", security(()),
    responses((status = 200, body = Health)))]
pub async fn healthz() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether the process can do its work.
#[derive(Serialize, ToSchema)]
pub struct Readiness {
    /// `ready`, `degraded` (it works, but events are parked), or what is the matter: `database_unavailable`,
    /// `projector_stopped`, `voices_loading`, `publisher_waiting` or `publisher_refused` (the last two where publishing is all
    /// that the process does).
    #[schema(example = "ready")]
    pub(crate) status: &'static str,
    /// What the projector of this process does: `active`, `standby` or `stopped`.
    #[schema(example = "active")]
    pub(crate) projector: &'static str,
    /// The position from which on the projector cannot go on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) stopped_at: Option<i64>,
    /// Why it cannot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// What the publisher of this process does: `off`, `active`, `standby`, `waiting` or `refused`.
    #[schema(example = "active")]
    pub(crate) publisher: &'static str,
    /// What is the matter with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) publisher_reason: Option<String>,
    /// Up to which position of the log this process knows the voices by which it names speakers; absent before
    /// it has caught up once, and where it names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) voices_position: Option<i64>,
    /// Events of the log that the voices may not have followed yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) voices_lag_events: Option<i64>,
    /// Events that cannot be applied, and those of the same meeting or profile that wait behind them.
    #[serde(skip_serializing_if = "Option::is_none")]
    parked_events: Option<i64>,
    /// For how long the oldest of them has been parked.
    #[serde(skip_serializing_if = "Option::is_none")]
    parked_seconds: Option<f64>,
    /// The newest position of the log.
    #[serde(skip_serializing_if = "Option::is_none")]
    log_head: Option<i64>,
    /// The last position that the tables show.
    #[serde(skip_serializing_if = "Option::is_none")]
    read_models_position: Option<i64>,
    /// Events that the tables do not show yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_events: Option<i64>,
    /// The age of the oldest of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    lag_seconds: Option<f64>,
}

/// Can the process do its work?
#[utoipa::path(get, path = "/readyz", tag = "operations", security(()),
    responses((status = 200, body = Readiness), (status = 503, body = Readiness)))]
pub async fn readyz(State(state): State<AppState>) -> Response {
    let readiness = of_process(&state).await;
    let works = matches!(readiness.status, "ready" | "degraded");
    let status = if works { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(readiness)).into_response()
}

/// Returns whether this process can do its work.
pub(crate) async fn of_process(state: &AppState) -> Readiness {
    let projection = state.book.projection.borrow().clone();
    let lag = freshness::lag(state.book.pool(), Utc::now()).await;
    let publishing = state.book.publishing.borrow().clone();
    let only_publishes = state.config.only == Some(Part::Publisher);
    let waiting = parked_events::waiting(state.book.pool()).await.ok();
    let readiness = readiness(&projection, &publishing, only_publishes, lag.as_ref().ok(), waiting);
    with_voices(readiness, state.matching.voices.position(), state.answers())
}

/// Who is asked to name speakers must know their voices.
fn with_voices(readiness: Readiness, position: Option<i64>, answers: bool) -> Readiness {
    let loading = answers && position.is_none() && matches!(readiness.status, "ready" | "degraded");
    let lag = readiness.log_head.zip(position).map(|(head, position)| (head - position).max(0));
    Readiness {
        status: if loading { "voices_loading" } else { readiness.status },
        voices_position: position,
        voices_lag_events: lag,
        ..readiness
    }
}

fn readiness(
    projection: &Projection,
    publishing: &Publishing,
    only_publishes: bool,
    lag: Option<&Lag>,
    waiting: Option<Waiting>,
) -> Readiness {
    let (projector, stopped_at, reason) = match projection {
        Projection::Active { .. } => ("active", None, None),
        Projection::Standby => ("standby", None, None),
        Projection::Stopped { position, reason } => ("stopped", Some(*position), Some(reason.clone())),
    };
    let status = match (lag, stopped_at) {
        (None, _) => "database_unavailable",
        (Some(_), Some(_)) => "projector_stopped",
        (Some(_), None) => match publishing {
            // Commands and tables do without the broker.
            Publishing::Waiting { .. } if only_publishes => "publisher_waiting",
            Publishing::Refused { .. } if only_publishes => "publisher_refused",
            Publishing::Off
            | Publishing::Standby
            | Publishing::Active { .. }
            | Publishing::Waiting { .. }
            | Publishing::Refused { .. } => {
                if waiting.is_some_and(|waiting| waiting.events > 0) {
                    "degraded"
                } else {
                    "ready"
                }
            }
        },
    };
    Readiness {
        status,
        projector,
        stopped_at,
        reason,
        voices_position: None,
        voices_lag_events: None,
        parked_events: waiting.map(|waiting| waiting.events),
        parked_seconds: waiting.map(|waiting| waiting.seconds),
        publisher: publishing.name(),
        publisher_reason: publishing.reason().map(str::to_owned),
        log_head: lag.map(|lag| lag.head),
        read_models_position: lag.map(|lag| lag.position),
        lag_events: lag.map(|lag| lag.events),
        lag_seconds: lag.map(|lag| lag.seconds),
    }
}

/// Metrics for Prometheus
#[utoipa::path(get, path = "/metrics", tag = "operations",
    responses((status = 200, body = String, content_type = "text/plain"),
        (status = 401, content_type = "application/problem+json", body = Problem),
        (status = 403, content_type = "application/problem+json", body = Problem),
        (status = 429, content_type = "application/problem+json", body = Problem)))]
pub async fn metrics(State(state): State<AppState>) -> Response {
    if let Ok(lag) = freshness::lag(state.book.pool(), Utc::now()).await {
        metrics::gauge!("minutebook_log_head").set(lag.head as f64);
        metrics::gauge!("minutebook_projection_position").set(lag.position as f64);
        metrics::gauge!("minutebook_projection_lag_events").set(lag.events as f64);
        metrics::gauge!("minutebook_projection_lag_seconds").set(lag.seconds);
        if let Some(position) = state.matching.voices.position() {
            metrics::gauge!("minutebook_voices_position").set(position as f64);
            metrics::gauge!("minutebook_voices_lag_events").set((lag.head - position).max(0) as f64);
        }
        if let Ok(waiting) = parked_events::waiting(state.book.pool()).await {
            metrics::gauge!("minutebook_parked_events").set(waiting.events as f64);
            metrics::gauge!("minutebook_parked_aggregates").set(waiting.aggregates as f64);
            metrics::gauge!("minutebook_parked_seconds").set(waiting.seconds);
        }
        if let Ok(unfinished) = erasure::unfinished(state.book.pool()).await {
            metrics::gauge!("minutebook_erasures_under_way").set(unfinished.erasures as f64);
            metrics::gauge!("minutebook_erasures_seconds").set(unfinished.seconds);
        }
        let publishing = state.book.publishing.borrow().clone();
        if publishing != Publishing::Off
            && let Some(stream) = state.config.nats.stream()
            && let Ok(publications) = publication::all(state.book.pool()).await
            && let Some(said) = publications.iter().find(|said| said.stream == stream.name)
        {
            let position = said.publication.position;
            metrics::gauge!("minutebook_publish_position").set(position as f64);
            metrics::gauge!("minutebook_publish_lost_up_to").set(said.lost_up_to as f64);
            metrics::gauge!("minutebook_publish_lag_events").set((lag.head - position).max(0) as f64);
        }
        metrics::gauge!("minutebook_publish_healthy").set(f64::from(publishing.reason().is_none()));
    }
    measure_rebuilds(&state.book.store).await;
    state.metrics.run_upkeep();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], state.metrics.render()).into_response()
}

async fn measure_rebuilds(store: &EventStore) {
    if let Ok(current) = running::current(store).await {
        let (done, total) = current.as_ref().map_or((0, 0), |row| (row.done, row.total));
        metrics::gauge!("minutebook_rebuild_running").set(f64::from(current.is_some()));
        metrics::gauge!("minutebook_rebuild_events_done").set(done as f64);
        metrics::gauge!("minutebook_rebuild_events_total").set(total as f64);
    }
    if let Ok(ages) = running::ages(store).await {
        if let Some(age) = ages.rebuild {
            metrics::gauge!("minutebook_rebuild_age_seconds").set(age);
        }
        if let Some(age) = ages.verification {
            metrics::gauge!("minutebook_verification_age_seconds").set(age);
        }
    }
}
