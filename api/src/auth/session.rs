//! A browser's session: what a token said when somebody logged in with it, in a cookie that nobody makes who does not
//! have the log's sealed secret, and so the master key. It ends with the token, with the key that the token was signed
//! by, and after eight hours at the latest. Whoever logs out is asked to forget the cookie: nothing is kept of sessions
//! here, so a copy of it lasts as long as it would have.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, header};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use domain::ids::LogSecret;
use serde::{Deserialize, Serialize};

use super::Caller;
use super::token::{self, Claims};

/// The longest that a session lasts.
const LONGEST: Duration = Duration::from_secs(8 * 60 * 60);
/// The cookie's name where a browser may send it without TLS.
const PLAIN: &str = "minutebook_session";
/// Its name where it may not: a browser takes it over TLS alone, for this host and all of its paths.
const SECURE: &str = "__Host-minutebook_session";

/// What a session says.
#[derive(Serialize, Deserialize)]
struct Session {
    #[serde(flatten)]
    claims: Claims,
    /// The thumbprint of the key that the token was signed by.
    key: String,
}

/// Returns the cookie that begins a session.
pub fn begin(caller: &Caller, secret: &LogSecret, secure: bool) -> HeaderValue {
    let longest = token::now() + LONGEST.as_secs();
    let claims = Claims {
        sub: caller.subject.to_string(),
        role: caller.role,
        kind: Some(caller.kind),
        owner: caller.owner.map(|owner| owner.as_uuid()),
        exp: caller.expires_at.min(longest) as f64,
    };
    let seconds = claims.exp as u64 - token::now().min(claims.exp as u64);
    let session = Session { claims, key: caller.key.to_string() };
    let said = serde_json::to_vec(&session).expect("a session can be written as JSON");
    let seal = URL_SAFE_NO_PAD.encode(seal(&said, secret));
    cookie(&format!("{}.{seal}", URL_SAFE_NO_PAD.encode(said)), seconds, secure)
}

/// Returns the cookie that ends a session.
pub fn end(secure: bool) -> HeaderValue {
    cookie("", 0, secure)
}

/// `Lax`: a link from elsewhere leads to a page, a form from elsewhere does nothing.
fn cookie(value: &str, seconds: u64, secure: bool) -> HeaderValue {
    let (name, only) = if secure { (SECURE, "; Secure") } else { (PLAIN, "") };
    let cookie = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={seconds}{only}");
    HeaderValue::from_str(&cookie).expect("a cookie is printable ASCII")
}

/// Returns whose session a request is in; whether the key of its token still counts is for others to say. Where TLS
/// is certain, the cookie of a neighbouring host is not taken for ours.
pub fn of(headers: &HeaderMap, secret: &LogSecret, only_secure: bool) -> Option<Caller> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut sessions = cookies
        .flat_map(|line| line.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, _)| *name == SECURE || (*name == PLAIN && !only_secure));
    let (_, value) = sessions.next()?;
    if value.len() > token::LONGEST {
        return None;
    }
    let (said, given) = value.split_once('.')?;
    let said = URL_SAFE_NO_PAD.decode(said).ok()?;
    let given = URL_SAFE_NO_PAD.decode(given).ok()?;
    // Hashed once more, so that the time that comparing takes says nothing of the seal.
    let hash = |seal: &[u8]| secret.hmac(&[b"comparing sessions", seal]);
    if hash(&given) != hash(&seal(&said, secret)) {
        return None;
    }
    let Session { claims, key } = serde_json::from_slice(&said).ok()?;
    let mut caller = claims.caller(&key).ok()?;
    // A session has no other clock than ours.
    caller.expires_at -= token::LEEWAY;
    (caller.expires_at > token::now()).then_some(caller)
}

fn seal(said: &[u8], secret: &LogSecret) -> [u8; 32] {
    secret.hmac(&[b"session", said])
}

#[cfg(test)]
mod tests {
    use domain::ids::OwnerId;
    use uuid::Uuid;

    use super::super::{Kind, Role};
    use super::*;

    fn caller(expires_at: u64) -> Caller {
        let owner = Some(OwnerId::from(Uuid::from_u128(7)));
        let (subject, key) = ("m-1".into(), "thumbprint".into());
        Caller { subject, kind: Kind::Person, role: Role::Member, owner, expires_at, key }
    }

    fn sent(cookie: &HeaderValue) -> HeaderMap {
        let pair = cookie.to_str().unwrap().split(';').next().unwrap().to_owned();
        HeaderMap::from_iter([(header::COOKIE, format!("a=b; {pair}").parse().unwrap())])
    }

    #[test]
    fn a_session_is_whoever_logged_in_until_the_token_ends_or_eight_hours_have_passed() {
        let secret = LogSecret::new([1; 32]);
        let soon = token::now() + 60;
        for secure in [false, true] {
            assert_eq!(
                of(&sent(&begin(&caller(soon), &secret, secure)), &secret, secure),
                Some(caller(soon))
            );
        }
        let long = of(&sent(&begin(&caller(u64::MAX / 2), &secret, false)), &secret, false).unwrap();
        assert!(long.expires_at <= token::now() + 8 * 60 * 60);
        assert_eq!(
            of(&sent(&begin(&caller(token::now()), &secret, false)), &secret, false),
            None,
            "it has ended"
        );
        assert_eq!(of(&sent(&end(false)), &secret, false), None);
    }

    #[test]
    fn a_session_that_this_server_did_not_make_is_none() {
        let secret = LogSecret::new([1; 32]);
        let cookie = begin(&caller(token::now() + 60), &secret, false);
        assert_eq!(of(&sent(&cookie), &secret, true), None, "where only a secure one counts");
        assert_eq!(of(&sent(&cookie), &LogSecret::new([2; 32]), false), None, "of another log");
        let text = cookie.to_str().unwrap();
        let value = text.split(['=', ';']).nth(1).unwrap();
        let (said, seal) = value.split_once('.').unwrap();
        let admin = URL_SAFE_NO_PAD.decode(said).unwrap();
        let admin = String::from_utf8(admin).unwrap().replace("member", "admin");
        let admin = URL_SAFE_NO_PAD.encode(admin);
        for value in
            [format!("{admin}.{seal}"), said.to_owned(), format!("{said}."), String::new(), ".".into()]
        {
            let cookie = format!("minutebook_session={value}").parse().unwrap();
            assert_eq!(
                of(&HeaderMap::from_iter([(header::COOKIE, cookie)]), &secret, false),
                None,
                "{value}"
            );
        }
    }

    #[test]
    fn no_script_reads_the_cookie_and_no_other_site_sends_it_with_a_form() {
        let secret = LogSecret::new([1; 32]);
        let text = |secure| begin(&caller(token::now() + 60), &secret, secure).to_str().unwrap().to_owned();
        for attribute in ["HttpOnly", "SameSite=Lax", "Path=/", "Max-Age="] {
            assert!(text(false).contains(attribute), "{attribute}");
        }
        assert!(!text(false).contains("Secure"));
        assert!(text(true).starts_with("__Host-") && text(true).ends_with("; Secure"));
    }
}
