//! What the forms and filters of pages send, parsed by the rules of the API.

use axum::RequestExt;
use axum::extract::rejection::FormRejection;
use axum::extract::{Form, FromRequest, Query, Request};
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use domain::text::Reason;
use serde::de::DeserializeOwned;

use crate::error::Problem;
use crate::extract::{NoQuery, QueryOf};

/// A form that was sent. Nothing but a form's content is taken.
pub(super) struct FormOf<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequest<S> for FormOf<T> {
    type Rejection = Problem;

    async fn from_request(mut request: Request, state: &S) -> Result<Self, Problem> {
        request.extract_parts::<NoQuery>().await?;
        match Form::<T>::from_request(request, state).await {
            Ok(Form(form)) => Ok(Self(form)),
            Err(rejection) => Err(form_problem(rejection)),
        }
    }
}

/// The rejection's own words may repeat what was written.
fn form_problem(rejection: FormRejection) -> Problem {
    let status = rejection.into_response().status();
    match status {
        StatusCode::UNSUPPORTED_MEDIA_TYPE => {
            Problem::new(status, "unsupported_media_type", "only a form's content is taken here")
        }
        StatusCode::PAYLOAD_TOO_LARGE => {
            Problem::new(status, "body_too_large", "the form is larger than allowed")
        }
        _ => Problem::invalid(
            "invalid_body",
            "the form lacks a field or has one too many; open the page again",
        ),
    }
}

/// Parses why somebody decided.
pub(super) fn parse_reason(text: &str) -> Result<Reason, Problem> {
    // A browser ends each line with two characters.
    let text = text.replace("\r\n", "\n");
    Ok(Reason::try_from(text.trim().to_owned())?)
}

/// Keeps those problems that are about what was said; they are shown with it.
pub(super) fn on_page(problem: Problem) -> Result<Problem, Problem> {
    match problem.status() {
        StatusCode::CONFLICT | StatusCode::PRECONDITION_FAILED | StatusCode::UNPROCESSABLE_ENTITY => {
            Ok(problem)
        }
        _ => Err(problem),
    }
}

/// Parses a page's filter as the API parses its query. A field of a form that was left empty says nothing.
pub(super) fn filter<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    let query = filled(uri, |_| true);
    let uri = Uri::try_from(format!("/?{query}")).map_err(|error| Problem::internal(&error))?;
    QueryOf::of(&uri).map(|QueryOf(query)| query)
}

/// Returns the filter of a page as the query of its other pages, each but for its cursor.
pub(super) fn kept(uri: &Uri) -> String {
    filled(uri, |name| name != "cursor")
}

fn filled(uri: &Uri, keep: impl Fn(&str) -> bool) -> String {
    let pairs = uri.query().unwrap_or_default().split('&');
    let keep =
        |pair: &&str| pair.split_once('=').is_some_and(|(name, value)| !value.is_empty() && keep(name));
    pairs.filter(keep).collect::<Vec<_>>().join("&")
}

/// Returns what a filter's fields say, to show it again as it was written.
pub(super) fn written<T: DeserializeOwned + Default>(uri: &Uri) -> T {
    Query::try_from_uri(uri).map(|Query(fields)| fields).unwrap_or_default()
}
