//! The audit of access: who looked at what few may see, who erased, who took something out, who was turned away.
//!
//! Each is a row and a line of the process's log, with ids alone. What is allowed is noted before it is answered,
//! so that what cannot be noted is not given.

use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use sqlx::{FromRow, PgConnection, PgExecutor, PgPool};
use tracing::info;

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Who {
    /// An opaque id.
    pub id: String,
    /// `person`, `service` or `system`.
    pub kind: String,
    /// What a token says that one may do; `operator` for whoever has the command line.
    pub role: String,
}

impl Who {
    /// Returns whoever has the command line: who that is, the machine knows.
    pub fn operator() -> Self {
        Self { id: "local".to_owned(), kind: "system".to_owned(), role: "operator".to_owned() }
    }
}

/// What was done, or was not to be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum What {
    /// The vectors of a person's voice were read.
    ReadVoices,
    /// A person was forgotten.
    EraseProfile,
    /// A meeting was forgotten.
    EraseMeeting,
    /// The audit was taken out as a file.
    ExportAudit,
    /// The log was printed, with what is personal in it.
    ExportEvents,
    /// Everything was copied.
    Backup,
    /// Everything was put back.
    Restore,
    /// Keys were destroyed that a recovery had brought back.
    ApplyErasures,
    /// A request: its method and its route, without what stood in the path.
    Request(String),
}

impl What {
    /// Returns the stored name.
    pub fn as_str(&self) -> &str {
        match self {
            Self::ReadVoices => "read_voices",
            Self::EraseProfile => "erase_profile",
            Self::EraseMeeting => "erase_meeting",
            Self::ExportAudit => "export_audit",
            Self::ExportEvents => "export_events",
            Self::Backup => "backup",
            Self::Restore => "restore",
            Self::ApplyErasures => "apply_erasures",
            Self::Request(route) => route,
        }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was done, or begun.
    Allowed,
    /// The right to it was missing.
    Refused,
}

impl Outcome {
    /// Returns the stored name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Refused => "refused",
        }
    }
}

impl FromStr for Outcome {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, &'static str> {
        let mut all = [Self::Allowed, Self::Refused].into_iter();
        all.find(|outcome| outcome.as_str() == text).ok_or("must be allowed or refused")
    }
}

/// An access.
#[derive(Debug, Clone)]
pub struct Access {
    /// Who asked; `None` for whoever had no valid token.
    pub who: Option<Who>,
    /// What for.
    pub what: What,
    /// The id of what it is about.
    pub target: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// Of a refusal, the problem's code.
    pub code: Option<&'static str>,
    /// How often, where alike ones are noted together.
    pub times: i32,
}

impl Access {
    /// Returns one access that was allowed.
    pub const fn allowed(who: Who, what: What, target: Option<String>) -> Self {
        Self { who: Some(who), what, target, outcome: Outcome::Allowed, code: None, times: 1 }
    }
}

/// Notes an access, in the table and in the process's log.
pub async fn record(executor: impl PgExecutor<'_>, access: &Access) -> Result<(), sqlx::Error> {
    let Access { who, what, target, outcome, code, times } = access;
    let (id, kind, role) = match who {
        Some(Who { id, kind, role }) => (Some(id.as_str()), Some(kind.as_str()), Some(role.as_str())),
        None => (None, None, None),
    };
    info!(
        who = id,
        kind,
        role,
        what = what.as_str(),
        target,
        outcome = outcome.as_str(),
        code,
        times,
        "access"
    );
    sqlx::query(
        "INSERT INTO ops.access_log (who, kind, role, what, target, outcome, code, times)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(id)
    .bind(kind)
    .bind(role)
    .bind(what.as_str())
    .bind(target)
    .bind(outcome.as_str())
    .bind(code)
    .bind(times)
    .execute(executor)
    .await
    .map(|_| ())
}

/// A noted access.
#[derive(Debug, Clone, PartialEq, Serialize, FromRow, utoipa::ToSchema)]
pub struct Noted {
    /// Its place among all that were noted.
    #[schema(example = 42)]
    pub id: i64,
    /// When.
    #[schema(example = "2026-11-24T09:00:00Z")]
    pub at: DateTime<Utc>,
    /// Who asked, as an opaque id; null for whoever had no valid token.
    #[schema(example = "reviewer-7")]
    pub who: Option<String>,
    /// `person`, `service` or `system`.
    #[schema(example = "person")]
    pub kind: Option<String>,
    /// The role, as the token said; `operator` on the command line.
    #[schema(example = "reviewer")]
    pub role: Option<String>,
    /// What was done: `read_voices`, `erase_profile`, `erase_meeting`, `export_audit`, `export_events`, `backup`,
    /// `restore`, `apply_erasures`; of a request that was refused its method and route.
    #[schema(example = "read_voices")]
    pub what: String,
    /// The id of what it is about.
    #[schema(example = "018f0000-0000-7000-8000-000000000001")]
    pub target: Option<String>,
    /// `allowed` or `refused`.
    #[schema(example = "allowed")]
    pub outcome: String,
    /// Of a refusal, the problem's code.
    #[schema(example = "forbidden")]
    pub code: Option<String>,
    /// How often, where alike refusals of a minute are noted together.
    #[schema(example = 1)]
    pub times: i32,
}

/// Which of them are asked for; what is absent does not matter.
#[derive(Debug, Clone, Default)]
pub struct AccessFilter {
    /// By whoever has this opaque id.
    pub who: Option<String>,
    /// `person`, `service` or `system`.
    pub kind: Option<String>,
    /// In this role.
    pub role: Option<String>,
    /// For this.
    pub what: Option<String>,
    /// About what has this id.
    pub target: Option<String>,
    /// With this end.
    pub outcome: Option<Outcome>,
    /// At this time or later.
    pub from: Option<DateTime<Utc>>,
    /// Before this time.
    pub to: Option<DateTime<Utc>>,
}

/// Returns noted accesses, the newest first, before the one with id `before`, at most `limit`.
pub async fn noted(
    pool: &PgPool,
    filter: &AccessFilter,
    before: Option<i64>,
    limit: i64,
) -> Result<Vec<Noted>, sqlx::Error> {
    // Planned for these very values, so that an absent filter costs nothing and a rare one uses its index.
    sqlx::query_as(
        "SELECT id, at, who, kind, role, what, target, outcome, code, times
           FROM ops.access_log
          WHERE id < $1 AND ($2::text IS NULL OR who = $2) AND ($3::text IS NULL OR kind = $3)
            AND ($4::text IS NULL OR role = $4) AND ($5::text IS NULL OR what = $5)
            AND ($6::text IS NULL OR target = $6) AND ($7::text IS NULL OR outcome = $7)
            AND ($8::timestamptz IS NULL OR at >= $8) AND ($9::timestamptz IS NULL OR at < $9)
          ORDER BY id DESC LIMIT $10",
    )
    .persistent(false)
    .bind(before.unwrap_or(i64::MAX))
    .bind(filter.who.as_deref())
    .bind(filter.kind.as_deref())
    .bind(filter.role.as_deref())
    .bind(filter.what.as_deref())
    .bind(filter.target.as_deref())
    .bind(filter.outcome.map(Outcome::as_str))
    .bind(filter.from)
    .bind(filter.to)
    .bind(limit)
    .fetch_all(pool)
    .await
}

/// Removes up to `limit` of the oldest rows if they are from before `before`; returns how many.
pub async fn sweep(
    connection: &mut PgConnection,
    before: DateTime<Utc>,
    limit: i64,
) -> Result<u64, sqlx::Error> {
    // Only the oldest are looked at: they are in the order of time but for what was noted at once.
    let swept = sqlx::query(
        "DELETE FROM ops.access_log
          WHERE id IN (SELECT id FROM (SELECT id, at FROM ops.access_log ORDER BY id LIMIT $2) oldest WHERE at < $1)",
    );
    Ok(swept.bind(before).bind(limit).execute(connection).await?.rows_affected())
}
