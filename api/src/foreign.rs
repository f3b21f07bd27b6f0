//! What parses bytes from elsewhere, by name: `tests/fuzz` sends each of them anything. Here are tokens and sessions,
//! every query and every body under `/v1`, and what the command line reads of recordings, people and matching policies.
//! Not here are the forms of pages, which are made of the same values, and what an operator trusts: key sets, backups,
//! the broker.

use axum::http::{HeaderMap, HeaderValue, header};
use domain::ids::LogSecret;
use uuid::Uuid;

use crate::as_of::AsOf;
use crate::audit::{ActorFilter, Moment};
use crate::auth::keys::{KeySet, SigningKey};
use crate::auth::token::{self, Rules};
use crate::auth::{Caller, Kind, Role, bearer, session};
use crate::config;
use crate::extract::{Cursor, PositionCursor};
use crate::import::rttm;
use crate::{profile, routes};

/// From whom and for whom tokens are.
const ISSUER: &str = "minutebook";

/// What became of bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Read {
    /// They were taken; read again, what is in here gives the same.
    Taken(Option<String>),
    /// They were refused, and this is what whoever sent them is told.
    Refused(String),
}

/// Reads bytes.
type Reading = Box<dyn Fn(&[u8]) -> Read>;

/// Something that reads bytes.
pub struct Reader {
    /// Names it, and its corpus.
    pub name: &'static str,
    /// Whether a refusal may repeat what was sent: what an operator writes, and is told in a terminal.
    pub quotes: bool,
    /// Inputs to begin with that no file can keep: they expire.
    pub seeds: Vec<Vec<u8>>,
    /// Reads them.
    pub read: Reading,
}

/// Returns all of them. `key` signs a token to begin with, and is the only one known.
pub fn readers(key: &SigningKey) -> Vec<Reader> {
    let mut readers = vec![
        tokens(key),
        sessions(),
        reader("rttm", |bytes| match rttm::parse(bytes, "fuzz.rttm") {
            Ok(_) => Read::Taken(None),
            Err(error) => Read::Refused(error.to_string()),
        }),
        text("cursor", |text| Cursor::try_from(text).map(|cursor| cursor.to_string())),
        text("position_cursor", |text| PositionCursor::try_from(text).map(|cursor| cursor.to_string())),
        text("as_of", |text| {
            AsOf::try_from(text).map(|as_of| match as_of {
                AsOf::Position(position) => position.to_string(),
                AsOf::Time(time) => time.to_rfc3339(),
            })
        }),
        text("moment", |text| Moment::try_from(text).map(|moment| moment.0.to_rfc3339())),
        text("actor", |text| {
            let written = |actor: ActorFilter| match actor.kind {
                Some(kind) => format!("{kind}:{}", actor.id),
                None => actor.id,
            };
            ActorFilter::try_from(text).map(written)
        }),
        reader("policies", |bytes| match std::str::from_utf8(bytes).map(str::trim) {
            // Anything else is the name of a file.
            Ok(text) if text.starts_with(['[', '{']) => match config::policies(text) {
                Ok(_) => Read::Taken(None),
                Err(error) => Read::Refused(error),
            },
            Ok(_) | Err(_) => Read::Refused(String::new()),
        }),
        reader("profile_line", |bytes| match profile::parse_line(bytes) {
            Ok(_) => Read::Taken(None),
            Err(error) => Read::Refused(error.to_string()),
        }),
    ];
    for (name, read) in routes::parsers() {
        readers.push(reader(name, move |bytes| match read(bytes) {
            Ok(()) => Read::Taken(None),
            Err(problem) => Read::Refused(format!("{} {}", problem.code(), problem.detail())),
        }));
    }
    readers
}

/// What stands in `Authorization`.
fn tokens(key: &SigningKey) -> Reader {
    let keys = KeySet::new(vec![key.verifying_key()], 0, true);
    let rules = Rules::new(ISSUER, ISSUER);
    let exp = token::now() + 3600;
    let said = serde_json::json!({"sub": "a", "role": "admin", "iss": ISSUER, "aud": ISSUER, "exp": exp});
    let seed = key.sign(&said).map(|token| format!("Bearer {token}").into_bytes());
    let read = move |bytes: &[u8]| {
        let Ok(value) = HeaderValue::from_bytes(bytes) else { return Read::Refused("no header".to_owned()) };
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
        match bearer(&headers).map(|token| token.map(|token| rules.verify(token, &keys))) {
            Ok(Some(Ok(_))) => Read::Taken(None),
            Ok(None) => Read::Refused(String::new()),
            Ok(Some(Err(refusal))) | Err(refusal) => Read::Refused(refusal.to_string()),
        }
    };
    Reader { seeds: seed.into_iter().collect(), ..reader("token", read) }
}

/// What stands in `Cookie`.
fn sessions() -> Reader {
    let secret = LogSecret::new([7; 32]);
    let caller = Caller {
        subject: "a".into(),
        kind: Kind::Person,
        role: Role::Member,
        owner: Some(Uuid::from_u128(7).into()),
        expires_at: token::now() + 3600,
        key: "".into(),
    };
    let cookie = session::begin(&caller, &secret, false);
    let seed = cookie.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().to_vec();
    let read = move |bytes: &[u8]| {
        let Ok(value) = HeaderValue::from_bytes(bytes) else { return Read::Refused("no header".to_owned()) };
        match session::of(&HeaderMap::from_iter([(header::COOKIE, value)]), &secret, false) {
            Some(_) => Read::Taken(None),
            None => Read::Refused("no session".to_owned()),
        }
    };
    Reader { seeds: vec![seed], ..reader("session", read) }
}

fn reader(name: &'static str, read: impl Fn(&[u8]) -> Read + 'static) -> Reader {
    let quotes = ["rttm", "policies"].contains(&name);
    Reader { name, quotes, seeds: vec![], read: Box::new(read) }
}

/// Returns a reader of texts; what is no text never reaches it.
fn text<E: ToString>(name: &'static str, read: impl Fn(String) -> Result<String, E> + 'static) -> Reader {
    reader(name, move |bytes| match String::from_utf8(bytes.to_vec()) {
        Ok(text) => match read(text) {
            Ok(written) => Read::Taken(Some(written)),
            Err(error) => Read::Refused(error.to_string()),
        },
        Err(_) => Read::Refused("not UTF-8".to_owned()),
    })
}
