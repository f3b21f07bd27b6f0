//! Errors as clients see them: RFC 9457 problem details with a stable `code`. Only this file knows which
//! error has which status. The client gets a code and what to do; the log gets the cause.

use std::error::Error as StdError;

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use domain::ValueError;
use domain::meeting::MeetingError;
use domain::profile::ProfileError;
use domain::voice::VoiceError;
use event_store::append::AppendError;
use event_store::command_bus::CommandError;
use projections::history::HistoryError;
use projections::rebuild::RebuildError;
use serde::Serialize;
use tracing::error;
use utoipa::ToSchema;

/// A problem, as RFC 9457 has it.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Problem {
    /// A URN made of the code.
    #[serde(rename = "type")]
    #[schema(example = "urn:minutebook:problem:illegal_transition")]
    kind: String,
    /// The status in words.
    #[schema(example = "Conflict")]
    title: &'static str,
    /// The HTTP status.
    #[schema(value_type = u16, example = 409)]
    #[serde(serialize_with = "as_number")]
    status: StatusCode,
    /// Stable: programs branch on it.
    #[schema(example = "illegal_transition")]
    code: &'static str,
    /// What is wrong and what to do, for a person. It may change.
    #[schema(example = "a completed meeting does not take the command start")]
    detail: String,
    /// Seconds after which the same may succeed.
    #[serde(skip)]
    retry_after: Option<u32>,
    /// What `WWW-Authenticate` says: RFC 6750.
    #[serde(skip)]
    challenge: Option<&'static str>,
}

/// The media type of a problem.
pub const PROBLEM_JSON: &str = "application/problem+json";

impl Problem {
    /// Returns a problem.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        let kind = format!("urn:minutebook:problem:{code}");
        Self { kind, title, status, code, detail: detail.into(), retry_after: None, challenge: None }
    }

    /// Returns the HTTP status.
    pub const fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the code.
    pub const fn code(&self) -> &'static str {
        self.code
    }

    /// Returns what is wrong and what to do.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Returns a 404.
    pub fn not_found(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, detail)
    }

    /// Returns a 401; `given` says that there was a token, and it is not taken.
    pub fn unauthorized(code: &'static str, detail: impl Into<String>, given: bool) -> Self {
        let challenge = if given {
            "Bearer realm=\"minutebook\", error=\"invalid_token\""
        } else {
            "Bearer realm=\"minutebook\""
        };
        Self { challenge: Some(challenge), ..Self::new(StatusCode::UNAUTHORIZED, code, detail) }
    }

    /// Returns a 422 about a value.
    pub fn invalid(code: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, code, detail)
    }

    /// Returns a 503: try again in a moment.
    pub fn unavailable(code: &'static str, detail: impl Into<String>) -> Self {
        Self { retry_after: Some(1), ..Self::new(StatusCode::SERVICE_UNAVAILABLE, code, detail) }
    }

    /// Returns a 429: too much at once.
    pub fn too_many() -> Self {
        let detail = "more requests are under way than this server takes, in all or from one caller; try again in a moment";
        Self { retry_after: Some(1), ..Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many_requests", detail) }
    }

    /// Returns a 413: the body has more bytes than are read.
    pub fn body_too_large() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", "the body is larger than allowed")
    }

    /// Returns a 429: one caller asks too much in too short a time.
    pub fn too_fast(seconds: u32) -> Self {
        let detail = "you ask more a second than this server takes from one caller; come back a little later";
        Self {
            retry_after: Some(seconds),
            ..Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
        }
    }

    /// Returns a 500, and logs its cause, which the client does not get to see.
    pub fn internal(cause: &(dyn StdError + 'static)) -> Self {
        error!(error = cause, "a request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "something went wrong here; the log has the cause",
        )
    }
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let (status, retry_after, challenge) = (self.status, self.retry_after, self.challenge);
        let mut response = (status, Json(&self)).into_response();
        // A page may say the same in other clothes: see `pages::dress`.
        response.extensions_mut().insert(self);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(challenge) = challenge {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }
}

impl From<ValueError> for Problem {
    fn from(error: ValueError) -> Self {
        Self::invalid("invalid_value", error.to_string())
    }
}

impl From<VoiceError> for Problem {
    fn from(error: VoiceError) -> Self {
        Self::invalid(error.code(), error.to_string())
    }
}

impl From<MeetingError> for Problem {
    fn from(error: MeetingError) -> Self {
        let status = match error {
            MeetingError::NotFound
            | MeetingError::Erased
            | MeetingError::UnknownSpeaker
            | MeetingError::NothingPending => StatusCode::NOT_FOUND,
            MeetingError::IllegalTransition { .. }
            | MeetingError::TakenByAnotherWorker
            | MeetingError::AnotherFile
            | MeetingError::FingerprintMissing
            | MeetingError::TooManyStages
            | MeetingError::NothingToUndo
            | MeetingError::SpeakersCorrected => StatusCode::CONFLICT,
            MeetingError::SpeakerChanged => StatusCode::PRECONDITION_FAILED,
            MeetingError::UnfitValue | MeetingError::UnknownCluster | MeetingError::UnfitDecision => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
        };
        Self::new(status, error.code(), error.to_string())
    }
}

impl From<ProfileError> for Problem {
    fn from(error: ProfileError) -> Self {
        let status = match error {
            ProfileError::NotFound | ProfileError::UnknownSample => StatusCode::NOT_FOUND,
            ProfileError::Erased
            | ProfileError::AlreadyExists
            | ProfileError::SampleExists
            | ProfileError::TooManySamples => StatusCode::CONFLICT,
        };
        Self::new(status, error.code(), error.to_string())
    }
}

impl<E: StdError + 'static> From<CommandError<E>> for Problem
where
    Self: From<E>,
{
    fn from(error: CommandError<E>) -> Self {
        match error {
            CommandError::Refused(error) => error.into(),
            CommandError::StaleVersion { expected, actual } => Self::new(
                StatusCode::PRECONDITION_FAILED,
                "stale_version",
                format!("If-Match asks for version {expected}, it is {actual}; read again and decide anew"),
            ),
            CommandError::KeyReused => Self::invalid(
                "idempotency_key_reused",
                "this Idempotency-Key was used for another request; a new request takes a new key",
            ),
            CommandError::Forgotten => Self::new(
                StatusCode::CONFLICT,
                "profile_erased",
                "somebody whom the command names was forgotten; read again and decide anew",
            ),
            CommandError::Contended => Self::unavailable("contended", "others kept changing it; try again"),
            CommandError::Append(AppendError::Busy) => Self::too_many(),
            CommandError::Append(AppendError::Closed) => {
                Self::unavailable("shutting_down", "the server is shutting down; nothing was changed")
            }
            CommandError::Append(error @ AppendError::Unavailable(_)) => {
                error!(error = &error as &dyn StdError, "an append could not be settled");
                Self::unavailable(
                    "outcome_unknown",
                    "the database could not be reached; repeat the request with the same Idempotency-Key",
                )
            }
            CommandError::Append(ref refused @ (AppendError::Refused(_) | AppendError::Unsealed(_))) => {
                Self::internal(refused)
            }
            CommandError::Database { source, .. } => source.into(),
            // Logged where it was parked.
            CommandError::Unreadable { position, .. } => Self::new(
                StatusCode::CONFLICT,
                "history_unreadable",
                format!(
                    "the event at position {position} of its history cannot be read, so nothing can be decided; \
                     `minutebook parked show {position}` tells an operator more"
                ),
            ),
            ref error @ CommandError::Load(_) => Self::internal(error),
        }
    }
}

impl From<HistoryError> for Problem {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::NotYet { .. } => Self::not_found("not_yet_recorded", error.to_string()),
            HistoryError::Erased { .. } => Self::not_found(MeetingError::Erased.code(), error.to_string()),
            HistoryError::Database(source) => source.into(),
        }
    }
}

impl From<RebuildError> for Problem {
    fn from(error: RebuildError) -> Self {
        match error {
            RebuildError::Running { .. } => {
                Self::new(StatusCode::CONFLICT, "rebuild_running", error.to_string())
            }
            RebuildError::Database { source, .. } => source.into(),
            ref other @ (RebuildError::Log(_)
            | RebuildError::Parked(_)
            | RebuildError::CatchUp(_)
            | RebuildError::NoPrevious
            | RebuildError::NotEmpty
            | RebuildError::TooManyParked
            | RebuildError::Contradiction { .. }
            | RebuildError::OtherShape { .. }
            | RebuildError::Busy { .. }
            | RebuildError::Worker
            | RebuildError::Interrupted
            | RebuildError::Differences
            | RebuildError::Unproven
            | RebuildError::Damaged
            | RebuildError::NotYet { .. }
            | RebuildError::SchemaExists { .. }) => Self::internal(other),
        }
    }
}

impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        if event_store::retry::is_transient(&error) {
            error!(error = &error as &dyn StdError, "the database did not answer");
            return Self::unavailable("database_unavailable", "the database does not answer; try again");
        }
        Self::internal(&error)
    }
}
