//! Lets a request through to its handler, or not: whoever asks must be known ([`identify`]), have the role for the
//! route, and not ask for what belongs to another ([`authorize`]). Between the two is how much one caller may ask,
//! and what may be under way at a time: the second asks the database.

use std::collections::HashMap;

use axum::RequestExt as _;
use axum::extract::{MatchedPath, RawPathParams, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use domain::Event;
use domain::ids::MeetingId;
use domain::meeting::MeetingEvent;
use event_store::EventStore;
use event_store::log::{self, StoredEvent};
use uuid::Uuid;

use super::access::{self, Access, Who, Whose};
use super::token::Refusal;
use super::{Caller, bearer, session};
use crate::app::AppState;
use crate::error::Problem;
use crate::pages;

/// Lets through whoever is known, and everybody to what is open. What no route matches is not found, and only
/// whoever has a token is told so.
pub async fn identify(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    if row(&request).is_some_and(|access| open(&state, access)) {
        return next.run(request).await;
    }
    let caller = match caller_of(&state, request.headers(), request.uri().path()).await {
        Ok(caller) => caller,
        Err(Refusal::Missing) if wants_login(&request) => {
            return Redirect::to(&pages::login_path(request.uri())).into_response();
        }
        Err(refusal) => return refusal.problem().into_response(),
    };
    request.extensions_mut().insert(caller.clone());
    let mut response = next.run(request).await;
    // For what is around the route: a page's head names who looks.
    response.extensions_mut().insert(caller);
    response
}

/// Lets through whoever may use the route, and everybody to what is open.
pub async fn authorize(State(state): State<AppState>, mut request: Request, next: Next) -> Response {
    let access = row(&request);
    if access.is_some_and(|access| open(&state, access)) {
        return next.run(request).await;
    }
    let Some(caller) = request.extensions().get::<Caller>().cloned() else {
        return Refusal::Missing.problem().into_response();
    };
    let path = request.extensions().get::<MatchedPath>().cloned();
    let admitted = match (path, access) {
        (None, _) => Ok(()),
        (Some(_), Some(access)) => check(&state, &caller, access, &mut request).await,
        (Some(path), None) if access::knows(path.as_str()) => Err(Problem::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "method_not_allowed",
            "the route has other methods; see /docs",
        )),
        (Some(_), None) => Err(forbidden(&caller)),
    };
    match admitted {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

fn row(request: &Request) -> Option<&'static Access> {
    let path = request.extensions().get::<MatchedPath>()?;
    access::of(request.method(), path.as_str())
}

fn open(state: &AppState, access: &Access) -> bool {
    match access.who {
        Who::Anybody => true,
        Who::Openable(what, _) => state.config.auth.open.contains(&what),
        Who::Roles(_) => false,
    }
}

/// Returns who asks: by the token, or, at what a browser shows, by the session that a token began.
async fn caller_of(state: &AppState, headers: &HeaderMap, path: &str) -> Result<Caller, Refusal> {
    if let Some(token) = bearer(headers)? {
        return state.auth.verify(token).await;
    }
    // A cookie is sent by a browser whoever makes it send it: at the API it counts for nothing.
    if path.starts_with("/v1/") {
        return Err(Refusal::Missing);
    }
    let secret = state.book.store.keyring().secret();
    let session = session::of(headers, secret, state.config.auth.tls_in_front);
    session.filter(|caller| state.auth.accepts(caller)).ok_or(Refusal::Missing)
}

/// Whoever opens a page in a browser is shown where to log in.
fn wants_login(request: &Request) -> bool {
    let accept = request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok());
    request.method() == Method::GET
        && accept.is_some_and(|accept| accept.contains("text/html"))
        && !request.uri().path().starts_with("/v1/")
}

async fn check(
    state: &AppState,
    caller: &Caller,
    access: &Access,
    request: &mut Request,
) -> Result<(), Problem> {
    let allowed = match access.who {
        Who::Anybody => true,
        Who::Roles(roles) | Who::Openable(_, roles) => roles.contains(&caller.role),
    };
    if !allowed {
        return Err(forbidden(caller));
    }
    if access.whose != Whose::Meeting || caller.only().is_none() {
        return Ok(());
    }
    // What is no id is refused as such.
    let Some(id) = meeting_in_path(request).await else { return Ok(()) };
    let owners = owners_of(&state.book.store, &[id.as_uuid()]).await?;
    if caller.sees(owners.get(&id.as_uuid()).copied()) {
        return Ok(());
    }
    Err(Problem::not_found("meeting_not_found", "there is no such meeting"))
}

async fn meeting_in_path(request: &mut Request) -> Option<MeetingId> {
    let parameters = request.extract_parts::<RawPathParams>().await.ok()?;
    let id = parameters.iter().find(|(name, _)| *name == "id").map(|(_, id)| id.to_owned())?;
    id.parse::<Uuid>().ok().map(MeetingId::from)
}

/// Returns whose meetings are, from the log: the tables may not show them yet. An id is made of owner and file, so
/// a meeting is whose the first event says, for ever. Of what cannot be read nobody knows whose it is.
pub(crate) async fn owners_of(store: &EventStore, ids: &[Uuid]) -> Result<HashMap<Uuid, Uuid>, sqlx::Error> {
    let first = log::first_events(store.pool(), "meeting", ids).await?;
    let owner = |stored: &StoredEvent| match stored.decode().ok()?.event {
        Event::Meeting(id, MeetingEvent::MeetingRegistered(registered)) => {
            Some((id.as_uuid(), registered.file.owner?.as_uuid()))
        }
        Event::Meeting(..) | Event::Profile(..) => None,
    };
    Ok(first.iter().filter_map(owner).collect())
}

fn forbidden(caller: &Caller) -> Problem {
    let detail = format!("the role {} may not do this", caller.role.name());
    Problem::new(StatusCode::FORBIDDEN, "forbidden", detail)
}

impl Refusal {
    /// Returns what a client is told.
    pub(crate) fn problem(self) -> Problem {
        let detail = self.to_string();
        match self {
            Self::NoKeys => Problem::unavailable("keys_unavailable", detail),
            Self::Missing => Problem::unauthorized("token_required", detail, false),
            Self::Expired => Problem::unauthorized("token_expired", detail, true),
            Self::Twice
            | Self::Malformed
            | Self::TooLong
            | Self::UnknownKey
            | Self::Algorithm
            | Self::Signature
            | Self::NotYet
            | Self::Issuer
            | Self::Audience
            | Self::Claims(_) => Problem::unauthorized("invalid_token", detail, true),
        }
    }
}
