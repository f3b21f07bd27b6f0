//! The HTTP application: the routes, and what is around all of them. From the outside in: metrics, a
//! request's id and span, what browsers are told, panics, who asks ([`auth::identify`]), how much one asks, the
//! limits (requests at a time, time, size), whether one may ([`auth::authorize`]); then the route.

use std::ops::Deref;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{Instrument, debug, info_span};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::{Modify, OpenApi};
use utoipa_axum::router::OpenApiRouter;
use utoipa_swagger_ui::{Config, SwaggerUi};
use uuid::Uuid;

use crate::access::{Refusal, Refusals};
use crate::auth::{self, Auth, Caller};
use crate::book::SharedBook;
use crate::config::{Part, ServeConfig};
use crate::error::Problem;
use crate::extract::REQUEST_ID;
use crate::matching::Matching;
use crate::places::Places;
use crate::rate_limit::RateLimit;
use crate::{pages, routes, security_headers};

/// Where the document is that describes the routes.
const OPENAPI_PATH: &str = "/openapi.json";
/// How many requests of strangers have their body read at a time.
const STRANGERS: usize = 128;
/// The most bytes of such a body: the longest token there is, and the way back.
const STRANGERS_BODY: usize = 16 * 1024;
/// How long such a request may take.
const STRANGERS_TIME: Duration = Duration::from_secs(5);

/// What every handler can reach. It is cloned by every layer that a request goes through, and so costs next to nothing.
#[derive(Clone)]
pub struct AppState(Arc<Shared>);

impl Deref for AppState {
    type Target = Shared;
    fn deref(&self) -> &Shared {
        &self.0
    }
}

/// What all requests share.
pub struct Shared {
    /// The open book.
    pub book: SharedBook,
    /// What tells who asks.
    pub auth: Auth,
    /// How to serve.
    pub config: ServeConfig,
    /// What names speakers by voice.
    pub matching: Matching,
    /// What renders the metrics.
    pub metrics: PrometheusHandle,
    /// Places for requests under way.
    requests: Places,
    /// Places for requests of strangers whose body is read: they must not take those of whoever has a token.
    strangers: Places,
    /// How much one caller may ask.
    rate_limit: RateLimit,
    /// Places for clients that follow the changes, or take the whole audit.
    pub followers: Places,
    /// Where requests that were refused for want of a right are noted.
    pub refusals: Refusals,
    /// What browsers are told about TLS.
    pub hsts: Option<HeaderValue>,
    /// Cancelled when the server stops: answers that have no end of their own end then.
    pub stopping: CancellationToken,
}

impl AppState {
    /// Returns the state over an open book. Speakers are named once its voices follow the log.
    pub fn new(
        book: SharedBook,
        auth: Auth,
        config: ServeConfig,
        matching: Matching,
        metrics: PrometheusHandle,
        stopping: CancellationToken,
    ) -> Self {
        let requests = Places::new(config.max_requests, config.max_requests_of_one());
        let strangers = Places::new(STRANGERS, STRANGERS);
        let followers = Places::new(config.max_followers, config.max_followers_of_one);
        let (refusals, noting) = Refusals::new(book.pool().clone(), book.shutdown.clone());
        book.tasks.spawn(noting);
        let rate_limit = RateLimit::new(config.rate_limit);
        book.tasks.spawn(rate_limit.clone().forget(book.shutdown.clone()));
        let hsts = security_headers::hsts(config.hsts);
        Self(Arc::new(Shared {
            book,
            auth,
            config,
            matching,
            metrics,
            requests,
            strangers,
            rate_limit,
            followers,
            hsts,
            refusals,
            stopping,
        }))
    }
}

impl AppState {
    /// Says whether this process answers requests under `/v1`.
    pub fn answers(&self) -> bool {
        matches!(self.config.only, None | Some(Part::Api))
    }
}

/// The document at `/openapi.json`; its paths come from the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Minutebook",
        description = "The system of record of a meeting-processing pipeline. Commands append events; reads \
                       show tables derived from them. Every command answers with its `position`; a read sent \
                       with `Minutebook-Min-Position` shows at least that much. Errors are RFC 9457 problem \
                       details with a stable `code`. Every request but those for health needs a bearer token."
    ),
    modifiers(&Bearer),
    security(("bearer" = [])),
    tags(
        (name = "meetings", description = "A recording's way through the pipeline"),
        (name = "profiles", description = "People known by name"),
        (name = "files", description = "Uploaded recordings"),
        (name = "cache", description = "Results of earlier work"),
        (name = "audit", description = "Who said who a speaker is, and why"),
        (name = "changes", description = "What happens, as it happens"),
        (name = "operations", description = "Health, metrics and rebuilds"),
    )
)]
struct ApiDoc;

/// Tells that tokens are needed.
struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let jwt = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("bearer", SecurityScheme::Http(jwt));
    }
}

/// Returns the whole application.
pub fn app(state: AppState) -> Router {
    let authorize = |routes: Router<AppState>| {
        routes.layer(middleware::from_fn_with_state(state.clone(), auth::authorize))
    };
    let guarded = inside(&state, authorize);
    let guarded = guarded.layer(middleware::from_fn_with_state(state.clone(), auth::identify));
    around(guarded, &state).with_state(state)
}

/// Returns the application without anybody at its door: each request is taken for `caller`'s. It is what the
/// benchmark compares with, to tell what authentication costs; nothing serves it.
#[doc(hidden)]
pub fn unguarded(state: AppState, caller: Caller) -> Router {
    let admit = async |State(caller): State<Caller>, mut request: Request, next: Next| {
        request.extensions_mut().insert(caller);
        next.run(request).await
    };
    let unguarded = inside(&state, |routes| routes).layer(middleware::from_fn_with_state(caller, admit));
    around(unguarded, &state).with_state(state)
}

/// Returns the routes with what is inside of knowing who asks. `guard` puts in front of routes what lets nobody
/// through who may not: inside of the limits, for it asks the database.
fn inside(state: &AppState, guard: impl Fn(Router<AppState>) -> Router<AppState>) -> Router<AppState> {
    let (limited, operations, document) = api();
    let limited = limited.merge(pages::router()).merge(described_by(document));
    guard(limited)
        .layer(middleware::from_fn_with_state(state.clone(), limit))
        // Outside the limits: a busy server is alive, and its metrics say how busy it is.
        .merge(guard(operations))
        .fallback(async || Problem::not_found("route_not_found", "there is no such route; see /docs"))
        .method_not_allowed_fallback(async || {
            Problem::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method_not_allowed",
                "the route has other methods; see /docs",
            )
        })
        .layer(middleware::from_fn_with_state(state.clone(), limit_rate))
}

/// Returns the document, which is written once and not for each request, and the page that shows it.
fn described_by(document: utoipa::openapi::OpenApi) -> Router<AppState> {
    let json = Bytes::from(document.to_json().expect("it is made of strings, numbers and lists"));
    let shown = async move || ([(header::CONTENT_TYPE, mime::APPLICATION_JSON.as_ref())], json.clone());
    let page = SwaggerUi::new("/docs").config(Config::from(OPENAPI_PATH));
    Router::from(page).route(OPENAPI_PATH, get(shown))
}

/// Adds what is outside of authentication.
fn around(routes: Router<AppState>, state: &AppState) -> Router<AppState> {
    routes
        .layer(CatchPanicLayer::custom(|_| {
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "something went wrong here")
                .into_response()
        }))
        .layer(middleware::from_fn(pages::dress))
        .layer(middleware::from_fn_with_state(state.clone(), security_headers::add))
        .layer(middleware::from_fn_with_state(state.clone(), observe))
}

/// Returns the application of a process that does no API work: health and metrics.
pub fn operations_app(state: AppState) -> Router {
    let (_, operations, _) = api();
    operations
        .fallback(async || {
            Problem::not_found("route_not_found", "this process serves health and metrics only")
        })
        .layer(middleware::from_fn_with_state(state.clone(), auth::authorize))
        .layer(middleware::from_fn_with_state(state.clone(), auth::identify))
        .layer(middleware::from_fn_with_state(state.clone(), security_headers::add))
        .layer(middleware::from_fn_with_state(state.clone(), observe))
        .with_state(state)
}

/// Returns the routes under `/v1`, those of operations, and the document that describes both.
fn api() -> (Router<AppState>, Router<AppState>, utoipa::openapi::OpenApi) {
    let (v1, mut document) = OpenApiRouter::with_openapi(ApiDoc::openapi())
        .merge(routes::meeting_commands::router())
        .merge(routes::meetings::router())
        .merge(routes::speakers::router())
        .merge(routes::pending_corrections::router())
        .merge(routes::profiles::router())
        .merge(routes::files::router())
        .merge(routes::cache::router())
        .merge(routes::erasures::router())
        .merge(routes::audit::router())
        .merge(routes::access::router())
        .merge(routes::changes::router())
        .merge(routes::rebuilds::router())
        .split_for_parts();
    let (operations, of_operations) = routes::operations::router().split_for_parts();
    // An OpenApi that names no title of its own would be given this crate's: only its paths are taken.
    document.paths.paths.extend(of_operations.paths.paths);
    if let (Some(all), Some(more)) = (&mut document.components, of_operations.components) {
        all.schemas.extend(more.schemas);
    }
    (v1, operations, document)
}

/// Returns the OpenAPI document.
pub fn openapi() -> utoipa::openapi::OpenApi {
    api().2
}

/// Bounds how much one caller asks. Whoever needs no token is nobody known, and not counted.
async fn limit_rate(State(state): State<AppState>, request: Request, next: Next) -> Response {
    if let Some(caller) = request.extensions().get::<Caller>()
        && let Err(seconds) = state.rate_limit.check(caller.kind.name(), &caller.subject)
    {
        metrics::counter!("minutebook_rate_limited_total").increment(1);
        return Problem::too_fast(seconds).into_response();
    }
    next.run(request).await
}

/// Bounds how many requests are under way, how long each takes, and how large its body is. A command that was cut
/// off may have taken effect: an append once handed over is carried out.
async fn limit(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let Limits { places, time, body } = limits(&state, &request);
    // Before any of it is read.
    if content_length(&request).is_some_and(|length| length > body as u64) {
        return Problem::body_too_large().into_response();
    }
    let Some(_place) = places.enter(request.extensions().get::<Caller>()) else {
        return Problem::too_many().into_response();
    };
    DefaultBodyLimit::max(body).apply(&mut request);
    match tokio::time::timeout(time, next.run(request)).await {
        Ok(response) => response,
        Err(_) => Problem::unavailable(
            "timeout",
            "the request took too long; repeat a command with the same Idempotency-Key",
        )
        .into_response(),
    }
}

/// What a request may take.
struct Limits<'a> {
    places: &'a Places,
    time: Duration,
    body: usize,
}

fn limits<'a>(state: &'a AppState, request: &Request) -> Limits<'a> {
    let (config, path) = (&state.config, request.extensions().get::<MatchedPath>());
    if path.is_some_and(|path| auth::access::takes_from_anybody(request.method(), path.as_str())) {
        let time = config.request_timeout.min(STRANGERS_TIME);
        return Limits { places: &state.strangers, time, body: config.body_limit.min(STRANGERS_BODY) };
    }
    Limits { places: &state.requests, time: config.request_timeout, body: config.body_limit }
}

fn content_length(request: &Request) -> Option<u64> {
    request.headers().get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Gives each request an id and a span, and measures it. The span has the route, not the path: a path may
/// hold a cache key.
async fn observe(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(&request);
    request.headers_mut().insert(REQUEST_ID, id.clone());
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned());
    let route = route.unwrap_or_else(|| "unmatched".to_owned());
    // Methods that no route has would each make a time series, and a kind of refusal, of their own.
    let known = auth::access::of(request.method(), &route).is_some();
    let method = if known { request.method().to_string() } else { "any".to_owned() };
    let span = info_span!("request", method, route, request_id = id.to_str().unwrap_or_default());

    let mut response = next.run(request).instrument(span.clone()).await;

    if matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        && let Some(problem) = response.extensions().get::<Problem>()
    {
        let who = response.extensions().get::<Caller>().map(Caller::who);
        state.refusals.put(Refusal { who, route: format!("{method} {route}"), code: problem.code() });
    }
    let status = response.status().as_u16().to_string();
    let elapsed = started.elapsed();
    span.in_scope(|| debug!(status, elapsed_ms = elapsed.as_secs_f64() * 1000.0, "answered"));
    let labels = [("route", route), ("method", method), ("status", status)];
    metrics::histogram!("minutebook_http_request_seconds", &labels).record(elapsed.as_secs_f64());
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// Takes the caller's own id if it is one that may stand in a log.
fn request_id(request: &Request) -> HeaderValue {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    let given = request.headers().get(REQUEST_ID);
    let given = given.filter(|id| (1..=100).contains(&id.len()) && id.as_bytes().iter().copied().all(plain));
    given.cloned().unwrap_or_else(|| {
        HeaderValue::from_str(&Uuid::now_v7().to_string()).expect("a UUID is printable ASCII")
    })
}
