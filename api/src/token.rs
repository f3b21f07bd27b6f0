//! `token`: makes a token with the local key.

use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use uuid::Uuid;

use crate::auth::keys::SigningKey;
use crate::auth::token::{Claims, now};
use crate::auth::{Kind, Role};
use crate::cli::Done;
use crate::config::{DatabaseConfig, IssuerConfig};
use crate::terminal;

/// Whom the token stands for.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What may be done with it
    #[arg(long, value_name = "ROLE")]
    role: Role,
    /// Who it stands for, as an opaque id: the log keeps it with whatever is done
    #[arg(long, value_name = "ID", default_value = "local")]
    subject: String,
    /// What kind of somebody that is [default: service for a pipeline, else person]
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Whose meetings a member sees [default: the subject, if it is a UUID]
    #[arg(long, value_name = "UUID")]
    owner: Option<Uuid>,
    /// For how long it is valid: 30m, 12h, 90d
    #[arg(long, value_name = "TIME", default_value = "12h", value_parser = duration)]
    expires: Duration,
    #[command(flatten)]
    issuer: IssuerConfig,
}

/// What a token made here says besides its claims.
#[derive(Serialize)]
struct Made<'a> {
    #[serde(flatten)]
    claims: Claims,
    iss: &'a str,
    aud: &'a str,
    iat: u64,
    nbf: u64,
    jti: Uuid,
}

/// Prints a token.
pub fn run(database: &DatabaseConfig, args: TokenArgs) -> anyhow::Result<Done> {
    let TokenArgs { role, subject, kind, owner, expires, issuer } = args;
    let key = issuer.key(database.data_dir.as_deref())?;
    let claims = Claims { sub: subject, role, kind, owner, exp: (now() + expires.as_secs()) as f64 };
    terminal::print(make(&key, claims, &issuer)?)?;
    Ok(Done::Whole)
}

/// Makes a token that this server takes.
///
/// # Errors
///
/// If the claims stand for nobody.
pub fn make(key: &SigningKey, claims: Claims, issuer: &IssuerConfig) -> anyhow::Result<String> {
    claims.clone().caller("").map_err(|refusal| anyhow!("{refusal}"))?;
    let now = now();
    let IssuerConfig { issuer, audience, .. } = issuer;
    key.sign(&Made { claims, iss: issuer, aud: audience, iat: now, nbf: now, jti: Uuid::now_v7() })
}

fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "must be a number of s, m, h or d, as 12h, and at most 10 years".to_owned();
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds: u64 = match &text[number.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let all = number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds));
    all.filter(|all| (1..=3_650 * 86_400).contains(all)).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_and_its_unit() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("30m"), Ok(Duration::from_secs(1800)));
        assert_eq!(duration("12h"), Ok(Duration::from_secs(43_200)));
        assert_eq!(duration("90d"), Ok(Duration::from_secs(7_776_000)));
        for text in ["", "12", "h", "-1h", "1.5h", "12 h", "1w", "0s", "99999999999999999d", "é"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }
}
