//! What a token says, and what makes it valid. The algorithm is the key's, whatever the token names: one that
//! names another, or none, is refused.

use std::collections::HashMap;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::ValueEnum;
use domain::ids::OwnerId;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Caller;
use super::keys::{ALGORITHMS, KeySet};
use crate::extract::is_opaque;

/// The longest token that is looked at.
pub const LONGEST: usize = 8 * 1024;
/// By how many seconds the clocks of issuer and server may differ.
pub(super) const LEEWAY: u64 = 30;

/// What a caller may do: see [`super::access`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Leads meetings through their life, and uses the cache.
    Pipeline,
    /// Reads its own meetings.
    Member,
    /// Says who speakers are.
    Reviewer,
    /// Reads the audit and the history.
    Auditor,
    /// Everything.
    Admin,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [Self::Pipeline, Self::Member, Self::Reviewer, Self::Auditor, Self::Admin];

    /// Returns its name in a token.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pipeline => "pipeline",
            Self::Member => "member",
            Self::Reviewer => "reviewer",
            Self::Auditor => "auditor",
            Self::Admin => "admin",
        }
    }

    /// Returns what kind of somebody has this role, where a token does not say.
    const fn usual_kind(self) -> Kind {
        match self {
            Self::Pipeline => Kind::Service,
            Self::Member | Self::Reviewer | Self::Auditor | Self::Admin => Kind::Person,
        }
    }
}

/// What kind of somebody acts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A person.
    Person,
    /// A program of somebody else.
    Service,
    /// Minutebook itself, and what its operators run.
    System,
}

impl Kind {
    /// Returns its name in a token, and with events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Person => "person",
            Self::Service => "service",
            Self::System => "system",
        }
    }
}

/// What a token says. What else it may say is the issuer's own business.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Claims {
    /// Who it stands for: an opaque id.
    pub sub: String,
    /// What that one may do.
    pub role: Role,
    /// What kind of somebody it is; the role's usual one if not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// Whose meetings a member sees; `sub` itself, if it is a UUID and nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Uuid>,
    /// From when on it is not valid any more. Others than us may write fractions of a second.
    pub exp: f64,
}

/// What a token says, and by whom: one issuer. The library would also take a list in which ours is one of many.
#[derive(Deserialize)]
struct Issued {
    #[serde(rename = "iss")]
    _issuer: String,
    #[serde(flatten)]
    claims: Claims,
}

impl Claims {
    /// Returns whom the claims stand for, signed by the key with this thumbprint.
    pub fn caller(self, key: &str) -> Result<Caller, Refusal> {
        let Self { sub, role, kind, owner, exp } = self;
        if !is_opaque(&sub, 100) {
            return Err(Refusal::Claims("sub must be an opaque id of 1 to 100 of A-Z a-z 0-9 . _ -"));
        }
        let owner = match role {
            Role::Member => {
                let owner = owner.or_else(|| sub.parse().ok());
                Some(owner.ok_or(Refusal::Claims("a member's token must name an owner, a UUID"))?)
            }
            Role::Pipeline | Role::Reviewer | Role::Auditor | Role::Admin => owner,
        };
        let kind = kind.unwrap_or_else(|| role.usual_kind());
        // As a number of whole seconds; what is negative or none is long past.
        let expires_at = (exp.max(0.0) as u64).saturating_add(LEEWAY);
        let owner = owner.map(OwnerId::from);
        Ok(Caller { subject: sub.into(), kind, role, owner, expires_at, key: key.into() })
    }
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// There is none.
    Missing,
    /// There are two.
    Twice,
    /// It is no token.
    Malformed,
    /// It is larger than any real one.
    TooLong,
    /// It is signed by a key that is not known.
    UnknownKey,
    /// Its algorithm is not the key's.
    Algorithm,
    /// It was not signed by the key, or changed since.
    Signature,
    /// It is too old.
    Expired,
    /// It is not valid yet.
    NotYet,
    /// It is from somebody else.
    Issuer,
    /// It is for somebody else.
    Audience,
    /// It does not say what it must.
    Claims(&'static str),
    /// No keys could be had yet.
    NoKeys,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => {
                "a token is needed: Authorization: Bearer …, as `minutebook token` or the issuer makes it"
            }
            Self::Twice => "Authorization must be given once",
            Self::Malformed => "Authorization must be Bearer and a JWT",
            Self::TooLong => "the token is longer than 8 KiB",
            Self::UnknownKey => "the token is signed by a key that is not known here",
            Self::Algorithm => {
                "the token must be signed with EdDSA, ES256 or RS256, whichever its key is for"
            }
            Self::Signature => "the token's signature is not its key's",
            Self::Expired => "the token has expired",
            Self::NotYet => "the token is not valid yet",
            Self::Issuer => "the token is from another issuer",
            Self::Audience => "the token is for another audience",
            Self::Claims(problem) => problem,
            Self::NoKeys => "the keys of tokens cannot be fetched; try again",
        })
    }
}

/// What valid tokens have in common.
pub struct Rules(HashMap<Algorithm, Validation>);

impl Rules {
    /// Returns the rules for tokens from `issuer` and for `audience`.
    pub fn new(issuer: &str, audience: &str) -> Self {
        let rules = ALGORITHMS.map(|algorithm| {
            let mut validation = Validation::new(algorithm);
            validation.leeway = LEEWAY;
            validation.validate_nbf = true;
            validation.set_issuer(&[issuer]);
            validation.set_audience(&[audience]);
            validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
            (algorithm, validation)
        });
        Self(HashMap::from(rules))
    }

    /// Returns whom a token stands for.
    pub fn verify(&self, token: &str, keys: &KeySet) -> Result<Caller, Refusal> {
        let header = decode_header(token).map_err(|_| header_refusal(token))?;
        // An extension that must be understood is not.
        if header.crit.is_some() {
            return Err(Refusal::Malformed);
        }
        let key = keys.find(header.kid.as_deref(), header.alg)?;
        let validation = self.0.get(&key.algorithm()).ok_or(Refusal::Algorithm)?;
        let decoded =
            decode::<Issued>(token, key.key(), validation).map_err(|error| refusal(error.kind()))?;
        let Issued { claims, .. } = decoded.claims;
        claims.caller(key.thumbprint())
    }
}

/// Tells a token that names no algorithm of ours from what is no token at all.
fn header_refusal(token: &str) -> Refusal {
    use base64::Engine as _;
    let first = token.split('.').next().unwrap_or_default();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(first).ok();
    let header = header.and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok());
    let named = header.is_some_and(|header| header["alg"].is_string());
    if named && token.split('.').count() == 3 { Refusal::Algorithm } else { Refusal::Malformed }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the library's own list, which grows: whatever is new is a refusal"
)]
fn refusal(kind: &ErrorKind) -> Refusal {
    match kind {
        ErrorKind::InvalidSignature => Refusal::Signature,
        ErrorKind::ExpiredSignature => Refusal::Expired,
        ErrorKind::ImmatureSignature => Refusal::NotYet,
        ErrorKind::InvalidIssuer => Refusal::Issuer,
        ErrorKind::InvalidAudience => Refusal::Audience,
        ErrorKind::InvalidAlgorithm | ErrorKind::InvalidAlgorithmName => Refusal::Algorithm,
        ErrorKind::MissingRequiredClaim(_) | ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => {
            Refusal::Claims(
                "the token must say iss, aud, exp, sub (an opaque id) and role (pipeline, member, reviewer, auditor or \
             admin); kind and owner, a UUID, if at all",
            )
        }
        _ => Refusal::Malformed,
    }
}

/// Returns the seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
