//! `/v1/audit`: who said who a speaker is, when and why, and who it had been.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use domain::speaker::LinkedBy;
use futures::stream;
use projections::access::{self, Access, What};
use projections::audit::{self, ReassignmentFilter};
use serde::Deserialize;
use tracing::error;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{Page, ReadHeaders, ReadProblems};
use crate::app::AppState;
use crate::audit::{ActorFilter, AuditRow, Moment, PreviousBy, Trail, csv_header, csv_rows};
use crate::auth::Caller;
use crate::error::Problem;
use crate::extract::{Fresh, Limit, PositionCursor, QueryOf};
use crate::places::Place;

/// Returns the routes.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(speaker_reassignments))
}

/// Which reassignments, and how they are given.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditQuery {
    /// From or to this person.
    pub(crate) profile: Option<Uuid>,
    /// Said by this one: `person:reviewer-7`, or the opaque id alone.
    #[param(value_type = Option<String>, pattern = "^((person|service|system):)?[A-Za-z0-9._-]{1,100}$")]
    actor: Option<ActorFilter>,
    /// In this meeting.
    meeting: Option<Uuid>,
    /// At this time or later: as RFC 3339 writes it, with its zone, or a day, which begins at midnight UTC.
    #[param(value_type = Option<String>, example = "2026-11-01")]
    from: Option<Moment>,
    /// Before this time.
    #[param(value_type = Option<String>, example = "2026-12-01")]
    to: Option<Moment>,
    /// Where a `machine` had made the link that was replaced, or a `person`.
    #[param(inline)]
    previous_by: Option<PreviousBy>,
    /// `json` or `csv`; if not said, what Accept asks for.
    #[param(inline)]
    format: Option<Format>,
    /// Where the page begins: the `next_cursor` of the page before. Not for CSV, which has all rows.
    #[param(value_type = Option<String>)]
    cursor: Option<PositionCursor>,
    /// How many, 50 if not said. Not for CSV.
    #[param(value_type = Option<u16>, minimum = 1, maximum = 500)]
    limit: Option<Limit>,
}

/// How the answer is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Format {
    Json,
    Csv,
}

impl From<&AuditQuery> for ReassignmentFilter {
    fn from(query: &AuditQuery) -> Self {
        Self {
            profile: query.profile,
            actor: query.actor.as_ref().map(|actor| actor.id.clone()),
            actor_kind: query.actor.as_ref().and_then(|actor| actor.kind.clone()),
            meeting: query.meeting,
            from: query.from.map(|moment| moment.0),
            to: query.to.map(|moment| moment.0),
            previous_by: query.previous_by.map(LinkedBy::from),
        }
    }
}

/// Show who said who a speaker is, when and why
///
/// The newest first. As CSV it is all rows, in one answer; without names, for the file outlives what is forgotten
/// here, and with an apostrophe before a cell that a spreadsheet would take for a formula.
#[utoipa::path(get, operation_id = "listSpeakerReassignments", path = "/v1/audit/speaker-reassignments", tag = "audit",
    params(AuditQuery, ReadHeaders),
    responses((status = 200, content((Page<AuditRow> = "application/json"), (String = "text/csv"))), ReadProblems))]
async fn speaker_reassignments(
    State(state): State<AppState>,
    caller: Caller,
    headers: HeaderMap,
    QueryOf(query): QueryOf<AuditQuery>,
    _fresh: Fresh,
) -> Result<Response, Problem> {
    let format =
        query.format.unwrap_or_else(|| if prefers_csv(&headers) { Format::Csv } else { Format::Json });
    match format {
        Format::Json => {
            Ok(([(header::VARY, "accept")], Json(find_page(&state, &query).await?)).into_response())
        }
        Format::Csv => {
            if query.cursor.is_some() || query.limit.is_some() {
                return Err(Problem::invalid(
                    "invalid_query",
                    "CSV has all rows: leave out cursor and limit",
                ));
            }
            let place = state.followers.enter(Some(&caller)).ok_or_else(Problem::too_many)?;
            // Before it is given: what cannot be noted is not taken out.
            let export = Access::allowed(caller.who(), What::ExportAudit, None);
            access::record(state.book.pool(), &export).await?;
            let filter = ReassignmentFilter::from(&query);
            Ok(csv_answer(Trail::new(state.book.pool().clone(), filter, None), place))
        }
    }
}

/// Returns a page of the audit.
pub(crate) async fn find_page(state: &AppState, query: &AuditQuery) -> Result<Page<AuditRow>, Problem> {
    let limit = query.limit.unwrap_or_default().get();
    let before = query.cursor.map(|cursor| cursor.0);
    let filter = ReassignmentFilter::from(query);
    let rows = audit::reassignments(state.book.pool(), &filter, before, limit + 1).await?;
    let rows = rows.into_iter().map(AuditRow::from).collect();
    Ok(Page::of(rows, limit, |row| PositionCursor(row.reassignment.position).to_string()))
}

/// Answers page after page, as the client takes them. Where it breaks off, so does the answer, without the end
/// that tells a client that it has everything.
fn csv_answer(trail: Trail, place: Place) -> Response {
    let body = stream::try_unfold((trail, place, true), async |(mut trail, place, first)| {
        let rows = trail.next().await.inspect_err(|error| {
            error!(error = error as &dyn std::error::Error, "the audit cannot be read on");
        })?;
        if rows.is_empty() && !first {
            return Ok(None);
        }
        let mut bytes = if first { csv_header()? } else { vec![] };
        bytes.extend(csv_rows(&rows)?);
        Ok::<_, axum::BoxError>(Some((Bytes::from(bytes), (trail, place, false))))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"speaker-reassignments.csv\""),
        (header::VARY, "accept"),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// Says whether Accept names CSV, and JSON not as much.
fn prefers_csv(headers: &HeaderMap) -> bool {
    let ranges = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let ranges =
        ranges.flat_map(|value| value.split(',')).filter_map(|range| range.trim().parse::<mime::Mime>().ok());
    let (mut csv, mut json) = (0.0_f32, 0.0_f32);
    for range in ranges {
        let quality = range.get_param("q").map_or(Some(1.0), |quality| quality.as_str().parse().ok());
        let quality = quality.unwrap_or(0.0);
        match range.essence_str() {
            "text/csv" => csv = csv.max(quality),
            "application/json" => json = json.max(quality),
            _ => {}
        }
    }
    csv > json
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_is_for_whoever_names_it_before_json() {
        let accept = |value: &str| HeaderMap::from_iter([(header::ACCEPT, value.parse().unwrap())]);
        for value in [
            "text/csv",
            "text/csv, */*;q=0.1",
            "application/json;q=0.5, Text/CSV",
            "text/csv;q=0.2, text/html",
        ] {
            assert!(prefers_csv(&accept(value)), "{value}");
        }
        for value in
            ["", "*/*", "text/*", "application/json, text/csv", "text/csv;q=0", "text/csv;q=x", "nonsense"]
        {
            assert!(!prefers_csv(&accept(value)), "{value}");
        }
        assert!(!prefers_csv(&HeaderMap::new()));
    }
}
