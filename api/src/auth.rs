//! Who asks. Nothing but what [`access`] leaves open is answered without a token; what a valid one says is the
//! [`Caller`], which handlers take from the request.
//!
//! A token that was verified is remembered until it expires, by its hash, so that it costs next to nothing from
//! the second request on. It is forgotten with the key that it was verified by.

pub mod access;
mod admit;
pub mod keys;
pub mod session;
pub mod token;

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::header;
use axum::http::request::Parts;
use domain::ids::OwnerId;
use event_store::command_bus::Context;
use lru::LruCache;
use projections::access::Who;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

pub(crate) use admit::owners_of;
pub use admit::{authorize, identify};
pub use token::{Kind, Role};

use crate::config::AuthConfig;
use crate::error::Problem;
use keys::{Jwks, KeySet, SigningKey};
use token::{Refusal, Rules};

/// How many verified tokens are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(10_000).expect("it is not zero");
/// How long after keys were fetched for the sake of an unknown one no more are fetched for another: whoever makes
/// up key ids must not make this server ask all the time.
const COOLDOWN: Duration = Duration::from_secs(5);
/// After how long keys that could not be had are asked for again.
const RETRY: Duration = Duration::from_secs(5);

/// Whoever a valid token stands for. Cloning it is cheap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// An opaque id; the actor of the events that follow.
    pub subject: Arc<str>,
    /// What kind of somebody it is.
    pub kind: Kind,
    /// What the caller may do.
    pub role: Role,
    /// Whose meetings a member sees; every member has one.
    pub owner: Option<OwnerId>,
    /// From when on the caller is nobody any more, in seconds since 1970.
    pub expires_at: u64,
    /// The thumbprint of the key that the token was signed by.
    pub key: Arc<str>,
}

impl Caller {
    /// Returns whose meetings alone the caller sees; none sees everybody's.
    pub fn only(&self) -> Option<OwnerId> {
        match self.role {
            Role::Member => self.owner,
            Role::Pipeline | Role::Reviewer | Role::Auditor | Role::Admin => None,
        }
    }

    /// Says whether the caller is told whom a voice merely resembles. Whoever sees its own meetings alone is told of
    /// nobody who is not in them.
    pub fn sees_candidates(&self) -> bool {
        self.only().is_none()
    }

    /// Says whether the caller may know of what belongs to `owner`. What belongs to nobody is no member's.
    pub fn sees(&self, owner: Option<Uuid>) -> bool {
        self.only().is_none_or(|only| owner == Some(only.as_uuid()))
    }

    /// Returns in whose name a command is.
    pub fn context(&self) -> Context {
        Context {
            actor: self.subject.to_string(),
            actor_kind: self.kind.name().to_owned(),
            ..Context::default()
        }
    }

    /// Returns who that is to the audit of access.
    pub fn who(&self) -> Who {
        Who {
            id: self.subject.to_string(),
            kind: self.kind.name().to_owned(),
            role: self.role.name().to_owned(),
        }
    }

    /// Returns for how long from now on the caller is somebody.
    pub fn remaining(&self) -> Duration {
        Duration::from_secs(self.expires_at.saturating_sub(token::now()))
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        // Whatever is let through without a caller has no handler that asks for one.
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Refusal::Missing.problem())
    }
}

/// What tells valid tokens from others. Cloning it is cheap.
#[derive(Clone)]
pub struct Auth(Arc<Inner>);

struct Inner {
    rules: Rules,
    local: Option<SigningKey>,
    jwks: Option<Jwks>,
    refresh: Duration,
    keys: RwLock<Arc<KeySet>>,
    verified: Mutex<LruCache<TokenHash, Verified>>,
    /// When keys were last fetched because one was unknown.
    learned: tokio::sync::Mutex<Option<Instant>>,
}

/// The SHA-256 of a token.
type TokenHash = [u8; SHA256_OUTPUT_LEN];

struct Verified {
    caller: Caller,
    /// By which set of keys: another one may not know the key any more.
    generation: u64,
}

impl Auth {
    /// Opens the keys: the local one, which is made if it is missing, and those of a file or URL. That a URL does
    /// not answer does not keep a server from starting.
    pub async fn open(config: &AuthConfig, data_dir: Option<&std::path::Path>) -> anyhow::Result<Self> {
        let jwks = config.jwks.clone().filter(|place| !place.is_empty()).map(Jwks::new).transpose()?;
        // Whoever names keys of others means those, and the local one only if it is named too.
        let local = match (&jwks, config.issuer.named_key()) {
            (Some(_), None) => None,
            (None, _) | (_, Some(_)) => Some(config.issuer.key(data_dir)?),
        };
        let local_keys = local.iter().map(SigningKey::verifying_key).collect::<Vec<_>>();
        let auth = Self(Arc::new(Inner {
            rules: Rules::new(&config.issuer.issuer, &config.issuer.audience),
            local,
            refresh: config.jwks_refresh,
            keys: RwLock::new(Arc::new(KeySet::new(local_keys, 0, jwks.is_none()))),
            jwks,
            verified: Mutex::new(LruCache::new(REMEMBERED)),
            learned: tokio::sync::Mutex::default(),
        }));
        if let Some(jwks) = &auth.0.jwks {
            match auth.fetch(jwks).await {
                Ok(()) => {}
                Err(error) if jwks.is_file() => return Err(error),
                Err(error) => warn!(error = format!("{error:#}"), "the keys of tokens cannot be fetched yet"),
            }
        }
        Ok(auth)
    }

    /// Fetches the keys again and again until `shutdown`.
    pub async fn follow(self, shutdown: CancellationToken) {
        let Some(jwks) = &self.0.jwks else { return };
        let mut pause = if self.keys().complete() { self.0.refresh } else { RETRY.min(self.0.refresh) };
        while shutdown.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
            pause = match self.fetch(jwks).await {
                Ok(()) => self.0.refresh,
                Err(error) => {
                    warn!(
                        error = format!("{error:#}"),
                        "the keys of tokens cannot be fetched: the old ones stay"
                    );
                    RETRY.min(self.0.refresh)
                }
            };
        }
    }

    /// Returns what the keys, as they are known now, make of a token.
    pub async fn verify(&self, token: &str) -> Result<Caller, Refusal> {
        if token.len() > token::LONGEST {
            return Err(Refusal::TooLong);
        }
        let hash = hash_of(token);
        let keys = self.keys();
        if let Some(caller) = self.remembered(&hash, keys.generation()) {
            return Ok(caller);
        }
        let verified = match self.0.rules.verify(token, &keys) {
            Err(Refusal::UnknownKey) if self.0.jwks.is_some() => {
                self.learn().await;
                let keys = self.keys();
                self.0.rules.verify(token, &keys).map(|caller| (caller, keys.generation()))
            }
            verified => verified.map(|caller| (caller, keys.generation())),
        };
        let (caller, generation) = verified?;
        let mut remembered = self.0.verified.lock().unwrap_or_else(PoisonError::into_inner);
        remembered.put(hash, Verified { caller: caller.clone(), generation });
        Ok(caller)
    }

    /// Says whether tokens are still taken that are signed by the key of the caller's.
    pub fn accepts(&self, caller: &Caller) -> bool {
        self.keys().accepts(&caller.key)
    }

    /// Returns the caller of a token that was verified by the same keys, and has not expired since.
    fn remembered(&self, hash: &TokenHash, generation: u64) -> Option<Caller> {
        let mut remembered = self.0.verified.lock().unwrap_or_else(PoisonError::into_inner);
        let verified = remembered.get(hash)?;
        if verified.generation == generation && verified.caller.expires_at > token::now() {
            return Some(verified.caller.clone());
        }
        remembered.pop(hash);
        None
    }

    fn keys(&self) -> Arc<KeySet> {
        Arc::clone(&self.0.keys.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Fetches the keys because one is unknown, unless that was just done.
    async fn learn(&self) {
        let Some(jwks) = &self.0.jwks else { return };
        let asked = Instant::now();
        let mut learned = self.0.learned.lock().await;
        if learned.is_some_and(|last| last >= asked || last.elapsed() < COOLDOWN) {
            return;
        }
        if let Err(error) = self.fetch(jwks).await {
            warn!(error = format!("{error:#}"), "the keys of tokens cannot be fetched: the old ones stay");
        }
        *learned = Some(Instant::now());
    }

    async fn fetch(&self, jwks: &Jwks) -> anyhow::Result<()> {
        let mut keys = self.0.local.iter().map(SigningKey::verifying_key).collect::<Vec<_>>();
        keys.extend(jwks.fetch().await?);
        let mut current = self.0.keys.write().unwrap_or_else(PoisonError::into_inner);
        if !current.complete() || !current.has_the_keys(&keys) {
            info!(keys = keys.len(), "the keys of tokens are others now");
            *current = Arc::new(KeySet::new(keys, current.generation() + 1, true));
        }
        Ok(())
    }
}

/// By ring, in assembly: it is done for each request, and not every processor has instructions for it.
fn hash_of(token: &str) -> TokenHash {
    let hash = digest(&SHA256, token.as_bytes());
    hash.as_ref().try_into().expect("a SHA-256 hash has 32 bytes")
}

/// Returns the token that a request has in its `Authorization`.
pub(crate) fn bearer(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(Refusal::Twice);
    }
    let text = value.to_str().map_err(|_| Refusal::Malformed)?;
    let (scheme, token) = text.trim().split_once(' ').ok_or(Refusal::Malformed)?;
    let token = token.trim_start();
    if scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        Ok(Some(token))
    } else {
        Err(Refusal::Malformed)
    }
}
