//! Tokens for the servers of the tests: all of them know one key.

use std::path::PathBuf;
use std::sync::LazyLock;

use api::auth::keys::SigningKey;
use api::auth::token::{Claims, now};
use api::auth::{Kind, Role};
use api::config::IssuerConfig;
use uuid::Uuid;

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::open_or_make(&signing_key_file()).unwrap());

/// Where the key for tokens is; set by `with_services`, also for the programs that tests start.
pub const SIGNING_KEY_FILE: &str = "MINUTEBOOK_SIGNING_KEY_FILE";

/// Returns the file of the key for tokens.
pub fn signing_key_file() -> PathBuf {
    let path = std::env::var_os(SIGNING_KEY_FILE).map(PathBuf::from);
    // Benchmarks run by themselves.
    path.unwrap_or_else(|| {
        std::env::temp_dir().join(format!("minutebook-{}/signing.key", std::process::id()))
    })
}

/// Returns a token for somebody with this role. A member's meetings are those of `subject`, a UUID.
pub fn token(role: Role, subject: &str) -> String {
    claimed(Claims { sub: subject.to_owned(), role, kind: None, owner: None, exp: in_an_hour() })
}

/// Returns a token that says this.
pub fn claimed(claims: Claims) -> String {
    let issuer = IssuerConfig {
        signing_key_file: None,
        issuer: "minutebook".to_owned(),
        audience: "minutebook".to_owned(),
    };
    api::token::make(&KEY, claims, &issuer).unwrap()
}

/// Returns the token of a member whose meetings are those of `owner`.
pub fn member(owner: Uuid) -> String {
    token(Role::Member, &owner.to_string())
}

/// Returns what `Authorization` says for somebody who may do everything: `person:reviewer-7`.
pub fn acting(who: &str) -> String {
    let (kind, id) = who.split_once(':').unwrap();
    let kind = match kind {
        "person" => Kind::Person,
        "service" => Kind::Service,
        "system" => Kind::System,
        other => panic!("nobody is a {other}"),
    };
    let claims =
        Claims { sub: id.to_owned(), role: Role::Admin, kind: Some(kind), owner: None, exp: in_an_hour() };
    format!("Bearer {}", claimed(claims))
}

/// Returns what `Authorization` says where a test does not care.
pub fn usual() -> String {
    acting("system:local")
}

fn in_an_hour() -> f64 {
    (now() + 3600) as f64
}
