//! Pages for people: rendered here, without a script, from the same reads and commands as the API.
//!
//! A browser sends no token: it logs in with one, and a session's cookie says who acts. Whatever is refused, a page
//! shows too: see [`dress`].

mod audit;
mod form;
mod login;
mod meeting;
mod meetings;
mod operations;
mod pending;
mod show;
mod speaker;
mod timeline;
mod visit;

use std::sync::LazyLock;

use askama::Template;
use axum::Router;
use axum::extract::{Path, Request};
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use sha2::{Digest as _, Sha256};
use tower_http::csrf::CsrfLayer;

use crate::app::AppState;
use crate::auth::Caller;
use crate::error::Problem;
use visit::{Shell, Visit};

const STYLE: &str = include_str!("../templates/style.css");
const ICON: &str = include_str!("../templates/icon.svg");

/// The style sheet's path holds its content's hash, so that a browser may keep it for ever.
static STYLE_PATH: LazyLock<String> = LazyLock::new(|| {
    let hash = Sha256::digest(STYLE);
    let hash = hash.iter().take(6).map(|byte| format!("{byte:02x}")).collect::<String>();
    format!("/assets/style-{hash}.css")
});

/// What a page may load: the style sheet and the icon, from here. No script, no frame around it.
const POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; \
                      base-uri 'none'; frame-ancestors 'none'";

/// Returns the pages' routes.
pub fn router() -> Router<AppState> {
    let foreign = |_| {
        let detail = "the form was sent from a page of another site; open the page here and send it again";
        Problem::new(StatusCode::FORBIDDEN, "foreign_form", detail).into_response()
    };
    Router::new()
        .route("/", get(async || Redirect::temporary("/meetings")))
        .route("/meetings", get(meetings::list))
        .route("/meetings/{id}", get(meeting::show))
        .route("/meetings/{id}/speakers/{speaker}", get(speaker::show))
        .route("/meetings/{id}/speakers/{speaker}/reassign", post(speaker::reassign))
        .route("/meetings/{id}/speakers/{speaker}/undo", post(speaker::undo))
        .route("/meetings/{id}/pending-corrections/{speaker}/dismiss", post(pending::dismiss))
        .route("/audit", get(audit::list))
        .route("/operations", get(operations::show))
        .route("/login", get(login::ask).post(login::begin))
        .route("/logout", post(login::end))
        // A form that another site sends must not act for whoever has logged in here; nor log anybody in.
        .layer(CsrfLayer::new().with_rejection_response(foreign))
        .route("/assets/{name}", get(asset_named))
}

/// Returns where somebody logs in to come to the page at `uri`.
pub(crate) fn login_path(uri: &Uri) -> String {
    login::path(uri)
}

async fn asset_named(Path(name): Path<String>) -> Response {
    match name.as_str() {
        "icon.svg" => asset("image/svg+xml", ICON),
        name if STYLE_PATH.ends_with(&format!("/{name}")) => asset("text/css; charset=utf-8", STYLE),
        _ => Problem::not_found("route_not_found", "there is no such file").into_response(),
    }
}

fn asset(media_type: &'static str, content: &'static str) -> Response {
    let keep =
        if media_type.starts_with("text/css") { "max-age=31536000, immutable" } else { "max-age=3600" };
    let headers = [
        (header::CONTENT_TYPE, media_type),
        (header::CACHE_CONTROL, keep),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, content).into_response()
}

/// Renders a page.
fn page(status: StatusCode, template: &impl Template) -> Response {
    let html = match template.render() {
        Ok(html) => html,
        Err(error) => return Problem::internal(&error).into_response(),
    };
    // Same-origin, not none: without a referrer a browser calls a form's origin null.
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (status, headers, html).into_response()
}

#[derive(Template)]
#[template(path = "refusal.html")]
struct Refusal {
    shell: Shell,
    heading: String,
    detail: String,
    code: &'static str,
    again: bool,
}

/// Shows a problem as a page to whoever asks for pages: outside `/v1`, and as browsers ask.
pub async fn dress(request: Request, next: Next) -> Response {
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    let wants_page = accept.is_some_and(|accept| accept.contains("text/html"));
    if !wants_page || request.uri().path().starts_with("/v1/") {
        return next.run(request).await;
    }
    let mut visit = Visit::of(request.headers(), request.uri(), None);
    let read = request.method() == Method::GET;
    let response = next.run(request).await;
    let Some(problem) = response.extensions().get::<Problem>().cloned() else { return response };
    visit.caller = response.extensions().get::<Caller>().cloned();
    let (retry_after, challenge) = [header::RETRY_AFTER, header::WWW_AUTHENTICATE]
        .map(|name| response.headers().get(name).cloned())
        .into();
    let refusal = Refusal {
        shell: visit.shell("Not possible", ""),
        heading: heading(problem.status()).to_owned(),
        detail: sentence(problem.detail()),
        code: problem.code(),
        again: read && retry_after.is_some(),
    };
    let mut dressed = page(problem.status(), &refusal);
    if let Some(seconds) = retry_after {
        dressed.headers_mut().insert(header::RETRY_AFTER, seconds);
    }
    if let Some(challenge) = challenge {
        dressed.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    // What is around it still notes who was refused what.
    if let Some(caller) = response.extensions().get::<Caller>() {
        dressed.extensions_mut().insert(caller.clone());
    }
    dressed.extensions_mut().insert(problem);
    dressed.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    dressed
}

fn heading(status: StatusCode) -> &'static str {
    match status {
        StatusCode::NOT_FOUND => "There is no such page",
        StatusCode::UNAUTHORIZED => "Log in first",
        StatusCode::FORBIDDEN => "That is not allowed",
        StatusCode::CONFLICT => "That is not possible as it stands",
        StatusCode::PRECONDITION_FAILED => "Somebody was quicker",
        StatusCode::UNPROCESSABLE_ENTITY | StatusCode::BAD_REQUEST => "Something is not as it must be",
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => "Not now",
        StatusCode::INTERNAL_SERVER_ERROR => "Something went wrong",
        _ => "That is not possible",
    }
}

/// Makes a sentence of a problem's detail, which is written as a clause.
fn sentence(clause: &str) -> String {
    let end = if clause.ends_with(['.', '!', '?']) { "" } else { "." };
    format!("{}{end}", capitalized(clause))
}

/// Returns a text with a capital at its beginning.
fn capitalized(text: &str) -> String {
    let mut rest = text.chars();
    let first = rest.next().map(|first| first.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}", rest.as_str())
}
