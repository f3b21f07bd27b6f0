//! The list of meetings.

use askama::Template;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use projections::queries::MeetingSummary;
use serde::Deserialize;

use super::form::{filter, kept, written};
use super::show::{self, Moment};
use super::visit::{Shell, Visit};
use super::{page, sentence};
use crate::app::AppState;
use crate::auth::Caller;
use crate::error::Problem;
use crate::routes::meetings::find_page;

/// The filter as it was written.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Filter {
    status: String,
    language: String,
    owner: String,
    cursor: String,
}

#[derive(Template)]
#[template(path = "meetings.html")]
struct Meetings {
    shell: Shell,
    filter: Filter,
    rows: Vec<Row>,
    next_cursor: Option<String>,
    problem: Option<String>,
    /// The filter, for the links to the other pages.
    kept: String,
}

impl Meetings {
    const STATUSES: [&'static str; 4] = ["pending", "processing", "completed", "failed"];

    fn filtered(&self) -> bool {
        let Filter { status, language, owner, .. } = &self.filter;
        [status, language, owner].into_iter().any(|field| !field.is_empty())
    }
}

struct Row {
    id: String,
    short: String,
    status: String,
    language: String,
    started: Option<Moment>,
    took: Option<String>,
    owner: Option<(String, String)>,
}

impl From<MeetingSummary> for Row {
    fn from(meeting: MeetingSummary) -> Self {
        let MeetingSummary { id, owner, status, language, started_at, finished_at, .. } = meeting;
        Self {
            id: id.to_string(),
            short: show::short(id),
            status,
            language: language.unwrap_or_default(),
            started: started_at.map(show::moment),
            took: started_at.zip(finished_at).map(|(started, finished)| show::took(finished - started)),
            owner: owner.map(|owner| (owner.to_string(), show::short(owner))),
        }
    }
}

/// Lists meetings. What the filter must not say is shown beside it, and the filter stays as it was written.
pub(super) async fn list(
    State(state): State<AppState>,
    caller: Caller,
    visit: Visit,
    uri: Uri,
) -> Result<Response, Problem> {
    let (status, page_of_meetings, problem) = match filter(&uri) {
        Ok(query) => (StatusCode::OK, Some(find_page(&state, &caller, &query).await?), None),
        Err(problem) => (problem.status(), None, Some(sentence(problem.detail()))),
    };
    let (items, next_cursor) = page_of_meetings.map_or((vec![], None), |page| (page.items, page.next_cursor));
    let meetings = Meetings {
        shell: visit.shell("Meetings", "meetings"),
        filter: written(&uri),
        rows: items.into_iter().map(Row::from).collect(),
        next_cursor,
        problem,
        kept: kept(&uri),
    };
    Ok(page(status, &meetings))
}
