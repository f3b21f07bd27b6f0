//! The audit: who said who a speaker is, when and why, and who it had been.

use askama::Template;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::Response;
use projections::audit::Reassignment;
use projections::queries;
use serde::Deserialize;
use uuid::Uuid;

use super::form::{filter, kept, written};
use super::show::{self, Moment};
use super::visit::{Shell, Visit};
use super::{page, sentence};
use crate::app::AppState;
use crate::audit::AuditRow;
use crate::error::Problem;
use crate::routes::audit::{AuditQuery, find_page};

/// The filter as it was written.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Filter {
    profile: String,
    actor: String,
    meeting: String,
    from: String,
    to: String,
    previous_by: String,
    cursor: String,
}

#[derive(Template)]
#[template(path = "audit.html")]
struct Audit {
    shell: Shell,
    filter: Filter,
    /// How the person filtered by is called.
    about: Option<String>,
    rows: Vec<Row>,
    next_cursor: Option<String>,
    problem: Option<String>,
    /// The filter, for the links to the other pages.
    kept: String,
}

impl Audit {
    fn filtered(&self) -> bool {
        let Filter { profile, actor, meeting, from, to, previous_by, .. } = &self.filter;
        [profile, actor, meeting, from, to, previous_by].into_iter().any(|field| !field.is_empty())
    }
}

struct Row {
    position: String,
    before: i64,
    event: String,
    at: Moment,
    meeting: String,
    meeting_short: String,
    speaker: String,
    cluster_id: String,
    from: Who,
    to: Who,
    /// Who had said what was replaced, and how sure a machine had been.
    replaced: Option<String>,
    reason: Option<String>,
    actor: String,
}

/// Who a speaker is said to be.
struct Who {
    id: Option<String>,
    name: String,
}

impl Who {
    fn of(id: Option<Uuid>, name: Option<String>) -> Self {
        let unnamed = if id.is_some() { "somebody forgotten since" } else { "nobody known" };
        Self { id: id.map(|id| id.to_string()), name: name.unwrap_or_else(|| unnamed.to_owned()) }
    }
}

impl From<AuditRow> for Row {
    fn from(row: AuditRow) -> Self {
        let Reassignment {
            position,
            recorded_at,
            meeting_id,
            speaker_id,
            cluster_id,
            from_profile_id,
            from_name,
            to_profile_id,
            to_name,
            reason,
            actor,
            previous_by,
            previous_confidence,
            ..
        } = row.reassignment;
        let sure =
            previous_confidence.map(|sure| format!(", {} sure", show::percent(sure))).unwrap_or_default();
        Self {
            position: show::number(position),
            before: position - 1,
            event: row.event,
            at: show::precise(recorded_at),
            meeting: meeting_id.to_string(),
            meeting_short: show::short(meeting_id),
            speaker: speaker_id.to_string(),
            cluster_id: cluster_id.unwrap_or_else(|| show::short(speaker_id)),
            from: Who::of(from_profile_id, from_name),
            to: Who::of(to_profile_id, to_name),
            replaced: previous_by.map(|by| format!("by a {by}{sure}")),
            reason,
            actor: actor.unwrap_or_default(),
        }
    }
}

/// Shows the audit. What the filter must not say is shown beside it, and the filter stays as it was written.
pub(super) async fn list(State(state): State<AppState>, visit: Visit, uri: Uri) -> Result<Response, Problem> {
    let query = filter::<AuditQuery>(&uri);
    let about = match query.as_ref().ok().and_then(|query| query.profile) {
        None => None,
        Some(id) => {
            Some(Who::of(Some(id), queries::display_names(state.book.pool(), &[id]).await?.remove(&id)).name)
        }
    };
    let (status, found, problem) = match query {
        Ok(query) => (StatusCode::OK, Some(find_page(&state, &query).await?), None),
        Err(problem) => (problem.status(), None, Some(sentence(problem.detail()))),
    };
    let (items, next_cursor) = found.map_or((vec![], None), |page| (page.items, page.next_cursor));
    let audit = Audit {
        shell: visit.shell("Audit", "audit"),
        filter: written(&uri),
        about,
        rows: items.into_iter().map(Row::from).collect(),
        next_cursor,
        problem,
        kept: kept(&uri),
    };
    Ok(page(status, &audit))
}
