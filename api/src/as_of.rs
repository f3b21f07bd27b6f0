//! `as_of`: how something stood at a position of the log, or at a time.

use chrono::{DateTime, Utc};
use event_store::log;
use serde::Deserialize;
use sqlx::PgPool;
use utoipa::IntoParams;

use crate::error::Problem;
use crate::extract::number;

/// When to show it.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct AsOfQuery {
    /// Shows how it stood then: at a position of the log, or at a time as RFC 3339 writes it, with its zone.
    /// A time is the last position recorded by then. The answer has no ETag.
    #[param(value_type = Option<String>, example = "2026-11-24T09:00:00Z")]
    pub as_of: Option<AsOf>,
}

/// A position, or a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum AsOf {
    /// After the event at this position; 0 is before the first.
    Position(i64),
    /// After all events recorded at this time or before it.
    Time(DateTime<Utc>),
}

impl AsOf {
    /// Returns the position that is meant.
    pub async fn position(self, pool: &PgPool) -> Result<i64, Problem> {
        let head = log::head(pool).await?;
        let position = match self {
            Self::Position(position) => Some(position).filter(|position| *position <= head),
            Self::Time(time) => log::position_at(pool, time).await?,
        };
        position.ok_or_else(|| {
            let detail = format!("as_of is still to come: the log ends at position {head}");
            Problem::invalid("as_of_in_the_future", detail)
        })
    }
}

impl TryFrom<String> for AsOf {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        if let Some(position) = number(&text) {
            return Ok(Self::Position(position));
        }
        let time = DateTime::parse_from_rfc3339(&text).map(|time| Self::Time(time.to_utc()));
        time.map_err(|_| {
            "neither a position from 0 nor a time with its zone, as 2026-11-24T09:00:00Z; in a URL a plus is %2B"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_of_is_a_position_or_a_time_with_its_zone() {
        let at = |text: &str| AsOf::try_from(text.to_owned());
        assert_eq!(at("0"), Ok(AsOf::Position(0)));
        assert_eq!(at("9223372036854775807"), Ok(AsOf::Position(i64::MAX)));
        let nine = AsOf::Time("2026-11-24T09:00:00Z".parse().unwrap());
        assert_eq!(at("2026-11-24T09:00:00Z"), Ok(nine));
        assert_eq!(at("2026-11-24T10:30:00.000000+01:30"), Ok(nine));
        for text in [
            "",
            "-1",
            "+1",
            "1.5",
            "1e3",
            "NaN",
            "9223372036854775808",
            "now",
            "2026-11-24",
            "09:00:00Z",
            "2026-11-24T09:00:00",
            "2026-11-24T10:00:00 01:00",
            "2026-02-30T09:00:00Z",
            "2026-11-24T25:00:00Z",
            "300000-01-01T00:00:00Z",
            "+300000-01-01T00:00:00Z",
            "-0001-01-01T00:00:00Z",
            " 1",
            "١",
        ] {
            assert!(at(text).is_err(), "{text:?}");
        }
    }
}
