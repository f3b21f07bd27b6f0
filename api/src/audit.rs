//! `audit`: who said who a speaker is, as a table, CSV or JSON; and the CSV that HTTP gives too.
//!
//! However many rows there are, a page of them is kept at a time. Each page is read by itself: what is said
//! meanwhile is newer than what is still to come, so that no row is missed and none comes twice.

use std::io::Write as _;
use std::time::Duration;

use chrono::{DateTime, Datelike as _, NaiveDate, NaiveTime, Utc};
use clap::{Args, Subcommand, ValueEnum};
use comfy_table::Table;
use comfy_table::presets::NOTHING;
use domain::ids::{MeetingId, ProfileId};
use domain::speaker::LinkedBy;
use event_store::log;
use projections::access::{Access, What, Who, record};
use projections::audit::{self, Reassignment, ReassignmentFilter};
use projections::freshness;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::access::{self, AccessArgs};
use crate::book::Book;
use crate::cli::Done;
use crate::extract::is_opaque;
use crate::terminal;

/// How many rows are read, and kept, at once.
const PAGE: i64 = 500;
/// How long the tables may take to show what is in the log.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// Which reassignments to print, and how; or what else there is.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct AuditArgs {
    #[command(subcommand)]
    other: Option<Other>,
    /// Only those from or to this person
    #[arg(long, value_name = "ID")]
    profile: Option<ProfileId>,
    /// Only those by this one: `person:reviewer-7`, or the id alone
    #[arg(long, value_name = "ACTOR")]
    actor: Option<ActorFilter>,
    /// Only those in this meeting
    #[arg(long, value_name = "ID")]
    meeting: Option<MeetingId>,
    /// Only those at this time or later: `2026-11-01`, or `2026-11-01T09:00:00Z`
    #[arg(long, value_name = "TIME")]
    from: Option<Moment>,
    /// Only those before this time
    #[arg(long, value_name = "TIME")]
    to: Option<Moment>,
    /// Only those of what this one had said before
    #[arg(long, value_name = "WHO")]
    previous_by: Option<PreviousBy>,
    /// At most so many, the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    limit: Option<i64>,
    /// As a table for people, as CSV, or as one JSON object a line
    #[arg(long, default_value = "table")]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum Other {
    /// Print who had access to what few may see, and who was turned away, the newest first
    Access(AccessArgs),
}

/// How rows are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// As RFC 4180 has it.
    Csv,
    /// One object a line.
    Json,
}

/// Whose word was replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PreviousBy {
    /// The matching of voices.
    Machine,
    /// A person.
    Person,
}

impl From<PreviousBy> for LinkedBy {
    fn from(by: PreviousBy) -> Self {
        match by {
            PreviousBy::Machine => Self::Machine,
            PreviousBy::Person => Self::Person,
        }
    }
}

/// Somebody who acts: by kind and opaque id, or by id alone.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct ActorFilter {
    /// `person`, `service` or `system`.
    pub kind: Option<String>,
    /// The opaque id.
    pub id: String,
}

impl TryFrom<String> for ActorFilter {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        let (kind, id) = match text.split_once(':') {
            Some((kind @ ("person" | "service" | "system"), id)) => (Some(kind.to_owned()), id),
            Some(_) | None => (None, text.as_str()),
        };
        if !is_opaque(id, 100) {
            return Err(
                "actor must be an opaque id of 1 to 100 of A-Z a-z 0-9 . _ -, perhaps after person, service or system and a colon",
            );
        }
        Ok(Self { kind, id: id.to_owned() })
    }
}

impl std::str::FromStr for ActorFilter {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.to_owned().try_into()
    }
}

/// A time with its zone, or a day: its first moment in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Moment(pub DateTime<Utc>);

impl TryFrom<String> for Moment {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        let time = DateTime::parse_from_rfc3339(&text).map(|time| time.to_utc());
        // chrono alone would also take a day without its zeros, and a year with a sign.
        let plain = |text: &&String| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
        let day = Some(&text).filter(|text| text.len() == "2026-11-24".len()).filter(plain);
        let day = day.and_then(|text| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok());
        let time = time.ok().or_else(|| day.map(|day| day.and_time(NaiveTime::MIN).and_utc()));
        // A zone may lead out of the years that can be written.
        time.filter(|time| (0..=9999).contains(&time.year())).map(Self).ok_or(
            "a time must be a day, as 2026-11-24, or have its zone, as 2026-11-24T09:00:00Z; in a URL a plus is %2B",
        )
    }
}

impl std::str::FromStr for Moment {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        text.to_owned().try_into()
    }
}

/// A reassignment, and where to look further.
#[derive(Clone, Serialize, ToSchema)]
pub struct AuditRow {
    /// What was said.
    #[serde(flatten)]
    pub reassignment: Reassignment,
    /// The event itself.
    #[schema(example = "/v1/meetings/6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11/events?cursor=8&limit=1")]
    pub event: String,
    /// The meeting as it stood just before.
    #[schema(example = "/v1/meetings/6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11?as_of=41")]
    pub meeting_before: String,
}

impl From<Reassignment> for AuditRow {
    fn from(reassignment: Reassignment) -> Self {
        let Reassignment { position, meeting_id, sequence, .. } = reassignment;
        Self {
            event: format!("/v1/meetings/{meeting_id}/events?cursor={}&limit=1", sequence - 1),
            meeting_before: format!("/v1/meetings/{meeting_id}?as_of={}", position - 1),
            reassignment,
        }
    }
}

/// Reads all that a filter lets through, the newest first, a page at a time.
pub struct Trail {
    pool: PgPool,
    filter: ReassignmentFilter,
    before: Option<i64>,
    /// How many are still wanted at most.
    left: i64,
}

impl Trail {
    /// Returns the trail from its newest row on.
    pub const fn new(pool: PgPool, filter: ReassignmentFilter, limit: Option<i64>) -> Self {
        let left = match limit {
            Some(limit) => limit,
            None => i64::MAX,
        };
        Self { pool, filter, before: None, left }
    }

    /// Returns the next rows; none at the end.
    pub async fn next(&mut self) -> Result<Vec<AuditRow>, sqlx::Error> {
        let limit = self.left.min(PAGE);
        if limit == 0 {
            return Ok(vec![]);
        }
        let rows = audit::reassignments(&self.pool, &self.filter, self.before, limit).await?;
        let read = i64::try_from(rows.len()).unwrap_or(i64::MAX);
        // A page that is not full is the last one.
        self.left = if read < limit { 0 } else { self.left - read };
        self.before = rows.last().map(|row| row.position);
        Ok(rows.into_iter().map(AuditRow::from).collect())
    }
}

/// The columns of the CSV. Names are not among them: a file outlives what is forgotten here.
const COLUMNS: [&str; 17] = [
    "position",
    "recorded_at",
    "meeting_id",
    "sequence",
    "speaker_id",
    "cluster_id",
    "from_profile_id",
    "to_profile_id",
    "reason",
    "actor",
    "actor_kind",
    "previous_by",
    "previous_confidence",
    "correlation_id",
    "carried_from",
    "event",
    "meeting_before",
];

/// Returns the header of the CSV.
pub fn csv_header() -> Result<Vec<u8>, csv::Error> {
    records([COLUMNS.map(str::to_owned)])
}

/// Returns rows as CSV, as RFC 4180 has it.
pub fn csv_rows(rows: &[AuditRow]) -> Result<Vec<u8>, csv::Error> {
    records(rows.iter().map(cells))
}

fn records(records: impl IntoIterator<Item = [String; COLUMNS.len()]>) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::WriterBuilder::new().terminator(csv::Terminator::CRLF).from_writer(vec![]);
    for record in records {
        writer.write_record(&record)?;
    }
    writer.into_inner().map_err(|error| error.into_error().into())
}

fn cells(AuditRow { reassignment: row, event, meeting_before }: &AuditRow) -> [String; COLUMNS.len()] {
    let id = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
    let text = |text: &Option<String>| text.as_deref().map(inert).unwrap_or_default();
    // As JSON has it.
    let number = |number: f64| serde_json::Value::from(number).to_string();
    [
        row.position.to_string(),
        row.recorded_at.to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        row.meeting_id.to_string(),
        row.sequence.to_string(),
        row.speaker_id.to_string(),
        text(&row.cluster_id),
        id(row.from_profile_id),
        id(row.to_profile_id),
        text(&row.reason),
        text(&row.actor),
        text(&row.actor_kind),
        text(&row.previous_by),
        row.previous_confidence.map(number).unwrap_or_default(),
        text(&row.correlation_id),
        id(row.carried_from),
        event.clone(),
        meeting_before.clone(),
    ]
}

/// Takes the power from a cell that a spreadsheet would carry out as a formula, as OWASP advises: an apostrophe
/// before it says that it is text.
fn inert(cell: &str) -> String {
    if cell.starts_with(['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠']) {
        format!("'{cell}")
    } else {
        cell.to_owned()
    }
}

/// Prints what was asked for.
pub async fn run(book: &Book, args: AuditArgs) -> anyhow::Result<Done> {
    let AuditArgs { other, profile, actor, meeting, from, to, previous_by, limit, format } = args;
    if let Some(Other::Access(args)) = other {
        return access::run(book, args).await;
    }
    show_all(book).await?;
    if format == Format::Csv {
        let export = Access::allowed(Who::operator(), What::ExportAudit, None);
        record(book.pool(), &export).await?;
    }
    let (actor_kind, actor) = actor.map_or((None, None), |actor| (actor.kind, Some(actor.id)));
    let filter = ReassignmentFilter {
        profile: profile.map(|id| id.as_uuid()),
        actor,
        actor_kind,
        meeting: meeting.map(|id| id.as_uuid()),
        from: from.map(|moment| moment.0),
        to: to.map(|moment| moment.0),
        previous_by: previous_by.map(LinkedBy::from),
    };
    let mut trail = Trail::new(book.pool().clone(), filter, limit);
    if format == Format::Csv {
        write(&csv_header()?)?;
    }
    loop {
        let rows = trail.next().await?;
        if rows.is_empty() {
            return Ok(Done::Whole);
        }
        match format {
            Format::Table => terminal::print(table(&rows).trim_fmt())?,
            Format::Csv => write(&csv_rows(&rows)?)?,
            Format::Json => {
                for row in &rows {
                    terminal::print(serde_json::to_string(row)?)?;
                }
            }
        }
    }
}

/// Brings the tables to where the log ends, if nobody else has: an auditor is told everything.
async fn show_all(book: &Book) -> anyhow::Result<()> {
    let head = log::head(book.pool()).await?;
    if freshness::wait_for(book.pool(), &book.projection, head, Instant::now()).await? {
        return Ok(());
    }
    book.start_projector();
    let deadline = Instant::now() + SHOWN_WITHIN;
    let shown = freshness::wait_for(book.pool(), &book.projection, head, deadline).await?;
    book.ensure_shown(shown)
}

fn write(bytes: &[u8]) -> std::io::Result<()> {
    std::io::stdout().lock().write_all(bytes)
}

fn table(rows: &[AuditRow]) -> Table {
    let mut table = Table::new();
    table.load_preset(NOTHING);
    table.set_header([
        "position",
        "recorded at",
        "meeting",
        "cluster",
        "from",
        "to",
        "by",
        "replaces",
        "reason",
    ]);
    for AuditRow { reassignment: row, .. } in rows {
        let person = |id: Option<Uuid>, name: &Option<String>| match (id, name) {
            (_, Some(name)) => plain(name),
            (Some(id), None) => id.to_string(),
            (None, None) => "nobody".to_owned(),
        };
        let sure = row.previous_confidence.map(|sure| format!(" {sure:.3}")).unwrap_or_default();
        let (kind, actor) = (row.actor_kind.as_deref(), row.actor.as_deref());
        table.add_row([
            row.position.to_string(),
            row.recorded_at.format("%Y-%m-%d %H:%M:%S UTC").to_string(),
            row.meeting_id.to_string(),
            row.cluster_id.as_deref().map(plain).unwrap_or_default(),
            person(row.from_profile_id, &row.from_name),
            person(row.to_profile_id, &row.to_name),
            plain(&format!("{}:{}", kind.unwrap_or("?"), actor.unwrap_or("?"))),
            format!("{}{sure}", row.previous_by.as_deref().unwrap_or("nothing")),
            row.reason.as_deref().map(plain).unwrap_or_default(),
        ]);
    }
    table
}

/// What somebody wrote must not move the cursor of who reads it.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_that_begins_like_a_formula_is_text() {
        for cell in ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1"] {
            assert_eq!(inert(cell), format!("'{cell}"));
        }
        for cell in ["", "heard it", "1-1", " =1", "'=1", "a@b"] {
            assert_eq!(inert(cell), cell);
        }
    }

    #[test]
    fn a_moment_is_a_day_or_a_time_with_its_zone() {
        let at = |text: &str| text.parse::<Moment>().map(|moment| moment.0.to_rfc3339());
        assert_eq!(at("2026-11-24").unwrap(), "2026-11-24T00:00:00+00:00");
        assert_eq!(at("2026-11-24T10:30:00+01:30").unwrap(), "2026-11-24T09:00:00+00:00");
        for text in
            ["", "1", "2026-11", "2026-11-3", "2026-02-30", "2026-11-24T09:00:00", "now", "+2026-11-4"]
        {
            assert!(at(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_actor_is_known_by_id_with_its_kind_or_without() {
        let actor = |text: &str| text.parse::<ActorFilter>();
        let with =
            |kind: Option<&str>, id: &str| ActorFilter { kind: kind.map(str::to_owned), id: id.to_owned() };
        assert_eq!(actor("reviewer-7"), Ok(with(None, "reviewer-7")));
        assert_eq!(actor("person:7"), Ok(with(Some("person"), "7")));
        for text in ["", "person:", "robot:1", "person:a@b.org", "a b", "ü"] {
            assert!(actor(text).is_err(), "{text:?}");
        }
    }
}
