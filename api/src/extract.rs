//! What a request says, parsed at the border: a handler gets valid values or is not called.

use std::fmt::Write as _;
use std::marker::PhantomData;

use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::{RequestExt, body::Bytes};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use event_store::command_bus::{Context, IdempotencyKey};
use event_store::log;
use projections::freshness;
use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use tokio::time::Instant;
use uuid::Uuid;

use crate::app::AppState;
use crate::auth::Caller;
use crate::error::Problem;

/// The header that marks a command, so that repeating it has one effect and one answer.
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// The header that names what a command belongs to.
pub const CORRELATION_ID: HeaderName = HeaderName::from_static("minutebook-correlation-id");
/// The header that names what caused a command.
pub const CAUSATION_ID: HeaderName = HeaderName::from_static("minutebook-causation-id");
/// The header that asks a read to show at least this position.
pub const MIN_POSITION: HeaderName = HeaderName::from_static("minutebook-min-position");
/// The header of a request's own id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A command: its body, and what its headers say.
pub struct Command<T> {
    /// What is asked.
    pub body: T,
    /// Who asks, and how.
    pub context: Context,
}

impl<T: DeserializeOwned> FromRequest<AppState> for Command<T> {
    type Rejection = Problem;

    async fn from_request(mut request: Request, state: &AppState) -> Result<Self, Problem> {
        request.extract_parts::<NoQuery>().await?;
        let caller = request.extract_parts::<Caller>().await?;
        let mut context = context(request.headers(), &caller)?;
        let key = command_key(&request, &context, state)?;
        let json = check_json(request.headers());
        let bytes = Bytes::from_request(request, state).await.map_err(body_problem)?;
        // A command that asks for nothing more than itself needs no body.
        let bytes = if bytes.is_empty() { b"{}" } else { json.map(|()| &bytes[..])? };
        let body = parse_body(bytes)?;
        if let Some(command_id) = key {
            let secret = state.book.store.keyring().secret();
            let request_hmac = secret.hmac(&[b"request", canonical(bytes)?.as_bytes()]).to_vec();
            context.key = Some(IdempotencyKey { command_id, request_hmac });
        }
        Ok(Self { body, context })
    }
}

/// Derives a command's id from its key, bound to caller and route: the same key elsewhere is another one.
fn command_key(request: &Request, context: &Context, state: &AppState) -> Result<Option<Uuid>, Problem> {
    let Some(key) = header_text(request.headers(), &IDEMPOTENCY_KEY)? else { return Ok(None) };
    check_key(key)?;
    Ok(Some(command_id(state, context, request.method().as_str(), request.uri().path(), key)))
}

fn command_id(state: &AppState, context: &Context, method: &str, path: &str, key: &str) -> Uuid {
    let caller = [context.actor_kind.as_bytes(), context.actor.as_bytes()];
    let scope = [b"command", caller[0], caller[1], method.as_bytes(), path.as_bytes(), key.as_bytes()];
    state.book.store.identity().secret.uuid(&scope)
}

/// Returns the key of a form that was sent to `path`: sent twice, it has one effect. `said` is all that it
/// says.
pub fn form_key(state: &AppState, context: &Context, path: &str, key: Uuid, said: &[&str]) -> IdempotencyKey {
    let command_id = command_id(state, context, "POST", path, &key.to_string());
    let parts = [&b"form"[..]].into_iter().chain(said.iter().map(|text| text.as_bytes()));
    let request_hmac = state.book.store.keyring().secret().hmac(&parts.collect::<Vec<_>>()).to_vec();
    IdempotencyKey { command_id, request_hmac }
}

/// Something that parses what a client sent; by name, for the tests that send it anything.
pub type Parser = (&'static str, fn(&[u8]) -> Result<(), Problem>);

/// Reads a command's body.
pub fn read_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<(), Problem> {
    parse_body::<T>(bytes)?;
    canonical(bytes).map(drop)
}

/// Reads a query string.
pub fn read_query<T: DeserializeOwned>(bytes: &[u8]) -> Result<(), Problem> {
    let uri = Uri::try_from([b"/?", bytes].concat());
    let uri = uri.map_err(|_| Problem::invalid("invalid_query", "it cannot stand in an address"))?;
    QueryOf::<T>::of(&uri).map(drop)
}

fn parse_body<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let parsed = serde_path_to_error::deserialize::<_, Object<T>>(&mut deserializer);
    let body = parsed.map_err(|error| {
        let path = error.path().to_string();
        body_error(&path, error.inner(), bytes)
    })?;
    deserializer.end().map_err(|error| malformed(&error))?;
    Ok(body.0)
}

/// Tells a body that is no JSON at all from one that says something else than it should.
fn body_error(path: &str, error: &serde_json::Error, bytes: &[u8]) -> Problem {
    if let Err(error) = serde_json::from_slice::<serde_json::Value>(bytes) {
        return malformed(&error);
    }
    // The place is a path here; serde_json adds line and column.
    let message = error.to_string();
    let message = message.rsplit_once(" at line ").map_or(&*message, |(message, _)| message);
    // What a client calls a field may be as personal as a value, and of any length.
    let path = match unknown_field(message) {
        Some(name) => path.strip_suffix(name).unwrap_or_default().trim_end_matches('.'),
        None => path,
    };
    let path = if path.is_empty() { "." } else { path };
    let message = without_values(message);
    // Our own messages begin with the field's name.
    let named = path.rsplit('.').next().is_some_and(|field| message.starts_with(field));
    let place = match path {
        "." => String::new(),
        _ if named => path.rsplit_once('.').map(|(above, _)| format!("{above}: ")).unwrap_or_default(),
        path => format!("{path}: "),
    };
    Problem::invalid("invalid_body", format!("{place}{message}"))
}

fn malformed(error: &serde_json::Error) -> Problem {
    let place = format!("line {} column {}", error.line(), error.column());
    Problem::new(
        StatusCode::BAD_REQUEST,
        "malformed_json",
        format!("the body cannot be read as JSON, at {place}"),
    )
}

/// Returns a body's canonical form: the same request written with other blanks or in another order is the
/// same request.
fn canonical(bytes: &[u8]) -> Result<String, Problem> {
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
    Ok(value.to_string())
}

/// serde quotes the values that it did not expect; they may be personal.
fn without_values(message: &str) -> String {
    // A value may itself hold a quote: everything from the first to the last one goes.
    let shown = match (message.find('"'), message.rfind('"')) {
        (Some(first), Some(last)) if first < last => {
            format!("{}…{}", &message[..first], &message[last + 1..])
        }
        (_, _) => message.to_owned(),
    };
    if let Some(name) = unknown_field(&shown) {
        return shown.replacen(&format!("field `{name}`"), "field", 1);
    }
    match (shown.find("unknown variant `"), shown.rfind("`, expected ")) {
        (Some(start), Some(end)) if start < end => {
            format!("{}unknown value{}", &shown[..start], &shown[end + 1..])
        }
        (_, _) => shown,
    }
}

/// Returns the name of a field that serde did not know.
fn unknown_field(message: &str) -> Option<&str> {
    let start = message.find("unknown field `")? + "unknown field `".len();
    let end = message.rfind("`, expected ").or_else(|| message.rfind("`, there are no fields"))?;
    // What is expected is listed between backticks too, and follows the first end.
    message.get(start..end).map(|name| name.split_once("`, expected ").map_or(name, |(name, _)| name))
}

fn check_json(headers: &HeaderMap) -> Result<(), Problem> {
    let media_type = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<mime::Mime>().ok());
    let json = |mime: &mime::Mime| {
        mime.type_() == mime::APPLICATION
            && (mime.subtype() == mime::JSON || mime.suffix() == Some(mime::JSON))
    };
    let utf_8 =
        |mime: &mime::Mime| mime.get_param(mime::CHARSET).is_none_or(|charset| charset == mime::UTF_8);
    let encoded = headers.contains_key(header::CONTENT_ENCODING);
    if !encoded && media_type.as_ref().is_some_and(|mime| json(mime) && utf_8(mime)) {
        return Ok(());
    }
    let detail = "the body must be JSON in UTF-8, not compressed, and say so: Content-Type: application/json";
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail))
}

fn body_problem(rejection: BytesRejection) -> Problem {
    let response = rejection.into_response();
    if response.status() == StatusCode::PAYLOAD_TOO_LARGE {
        return Problem::body_too_large();
    }
    Problem::new(StatusCode::BAD_REQUEST, "incomplete_body", "the body could not be read to its end")
}

/// The actor is whoever the token stands for: nothing that a request says otherwise counts.
fn context(headers: &HeaderMap, caller: &Caller) -> Result<Context, Problem> {
    let correlation_id = match header_id(headers, &CORRELATION_ID)? {
        Some(id) => Some(id),
        None => header_id(headers, &REQUEST_ID)?,
    };
    Ok(Context {
        if_match: if_match(headers)?,
        correlation_id,
        causation_id: header_id(headers, &CAUSATION_ID)?,
        ..caller.context()
    })
}

/// Says whether a text names somebody who acts: `person:4f2a`.
pub fn is_actor(text: &str) -> bool {
    matches!(text.split_once(':'), Some(("person" | "service" | "system", id)) if is_opaque(id, 100))
}

/// Says whether a text is an opaque id of at most so many characters.
pub fn is_opaque(id: &str, most: usize) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=most).contains(&id.len()) && id.bytes().all(plain)
}

fn header_id(headers: &HeaderMap, name: &HeaderName) -> Result<Option<String>, Problem> {
    match header_text(headers, name)? {
        None => Ok(None),
        Some(id) if is_opaque(id, 100) => Ok(Some(id.to_owned())),
        Some(_) => {
            let detail = format!("{name} must be 1 to 100 of A-Z a-z 0-9 . _ -");
            Err(Problem::invalid("invalid_header", detail))
        }
    }
}

/// Returns a header's text, if it is given; it must be given once, and printable.
pub fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    match value.to_str() {
        Ok(text) if values.next().is_none() => Ok(Some(text.trim())),
        Ok(_) => Err(Problem::invalid("invalid_header", format!("{name} must be given once"))),
        Err(_) => Err(Problem::invalid("invalid_header", format!("{name} must be printable ASCII"))),
    }
}

fn check_key(key: &str) -> Result<(), Problem> {
    if (1..=255).contains(&key.len()) {
        return Ok(());
    }
    Err(Problem::invalid("invalid_header", "Idempotency-Key must be 1 to 255 characters"))
}

fn if_match(headers: &HeaderMap) -> Result<Option<i64>, Problem> {
    let Some(text) = header_text(headers, &header::IF_MATCH)? else { return Ok(None) };
    let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"'));
    match version.and_then(number).and_then(|version| u32::try_from(version).ok()) {
        Some(version) => Ok(Some(version.into())),
        None => Err(Problem::invalid("invalid_header", "If-Match must be an ETag of this server, as \"3\"")),
    }
}

/// Parses digits, and nothing but digits.
pub fn number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|_| digits)
}

/// A read that is fresh enough: when the handler is called, the tables show the position asked for.
pub struct Fresh;

impl FromRequestParts<AppState> for Fresh {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let Some(text) = header_text(&parts.headers, &MIN_POSITION)? else { return Ok(Self) };
        let position = number(text).ok_or_else(|| {
            Problem::invalid("invalid_header", "Minutebook-Min-Position must be a position: a number from 0")
        })?;
        wait_until_shown(state, position).await.map(|()| Self)
    }
}

/// Waits until the tables show `position`, within bounds. One that the log does not have is not waited for: nobody
/// was told of it.
pub async fn wait_until_shown(state: &AppState, position: i64) -> Result<(), Problem> {
    // Another process may have appended what this one has not heard of yet.
    let head = state.book.store.head().position();
    if position > head && position > log::head(state.book.pool()).await? {
        let detail = format!("the log has no position {position} yet: is this the right server?");
        return Err(Problem::unavailable("position_not_reached", detail));
    }
    let deadline = Instant::now() + state.config.position_timeout;
    if freshness::wait_for(state.book.pool(), &state.book.projection, position, deadline).await? {
        return Ok(());
    }
    let detail = format!("the tables do not show position {position} yet; try again");
    Err(Problem::unavailable("position_not_reached", detail))
}

/// The id in a path.
pub struct Id<T>(pub T);

impl<S: Sync + Send, T: From<Uuid>> FromRequestParts<S> for Id<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(id) = Path::<Uuid>::from_request_parts(parts, state).await.map_err(path_problem)?;
        Ok(Self(id.into()))
    }
}

/// The parts of a path that has more than an id.
pub struct PathOf<T>(pub T);

impl<S: Sync + Send, T: DeserializeOwned + Send> FromRequestParts<S> for PathOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(path) = Path::<T>::from_request_parts(parts, state).await.map_err(path_problem)?;
        Ok(Self(path))
    }
}

fn path_problem(rejection: PathRejection) -> Problem {
    // The rejection's own words repeat the value.
    let detail = if let PathRejection::FailedToDeserializePathParams(_) = rejection {
        "the path holds a value of another kind than the route expects: an id is a UUID, a rebuild's a number"
    } else {
        "the path cannot be read"
    };
    Problem::invalid("invalid_path", detail)
}

/// A query string. What it names and the route does not know is refused: it is a slip of the pen.
pub struct QueryOf<T>(pub T);

impl<S: Sync + Send, T: DeserializeOwned> FromRequestParts<S> for QueryOf<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        Self::of(&parts.uri)
    }
}

impl<T: DeserializeOwned> QueryOf<T> {
    /// Parses an address's query string.
    pub fn of(uri: &Uri) -> Result<Self, Problem> {
        let problem = |rejection: QueryRejection| {
            let text = rejection.body_text();
            // Of an unknown parameter nothing is repeated: its name may be anything, and stands there twice.
            if text.contains("unknown field `") {
                let expected = text.rfind("`, expected ").map_or("", |end| &text[end + 1..]);
                return Problem::invalid("invalid_query", format!("unknown field{expected}"));
            }
            let message = without_values(&text);
            let message = message.strip_prefix("Failed to deserialize query string: ").unwrap_or(&message);
            Problem::invalid("invalid_query", message)
        };
        let Query(query) = Query::<T>::try_from_uri(uri).map_err(problem)?;
        Ok(Self(query))
    }
}

/// No query string: the route has no parameters there, and what it does not know it does not ignore.
pub struct NoQuery;

impl<S: Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Problem> {
        match parts.uri.query() {
            None | Some("") => Ok(Self),
            Some(_) => Err(Problem::invalid("invalid_query", "this route takes no query parameters")),
        }
    }
}

/// A JSON object inside a body. Serde alone would take an array of the fields' values for it too.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = Object<T>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(Object)
    }
}

/// The most rows of a page.
pub const MAX_LIMIT: u16 = 500;

/// How many rows a page has: 1 to [`MAX_LIMIT`], 50 if not said.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "u16")]
pub struct Limit(u16);

impl Limit {
    /// Returns the number of rows.
    pub fn get(self) -> i64 {
        self.0.into()
    }
}

impl From<Limit> for usize {
    fn from(limit: Limit) -> Self {
        limit.0.into()
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self(50)
    }
}

impl TryFrom<u16> for Limit {
    type Error = &'static str;
    fn try_from(limit: u16) -> Result<Self, &'static str> {
        if (1..=MAX_LIMIT).contains(&limit) { Ok(Self(limit)) } else { Err("limit must be 1 to 500") }
    }
}

/// Where a page begins: after the row with this id. Opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Cursor(pub Uuid);

impl TryFrom<String> for Cursor {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let id = bytes.and_then(|bytes| bytes.strip_prefix(&[1]).and_then(|id| Uuid::from_slice(id).ok()));
        id.map(Self).ok_or("cursor must be the next_cursor of an earlier page")
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The first byte is the cursor's version.
        let mut bytes = vec![1];
        bytes.extend_from_slice(self.0.as_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// Where a page begins in a list of the log's positions, the newest first: before this one. Opaque to clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct PositionCursor(pub i64);

impl TryFrom<String> for PositionCursor {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, &'static str> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok();
        let position =
            bytes.and_then(|bytes| Some(i64::from_be_bytes(bytes.strip_prefix(&[1])?.try_into().ok()?)));
        position.map(Self).ok_or("cursor must be the next_cursor of an earlier page")
    }
}

impl std::fmt::Display for PositionCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut bytes = vec![1];
        bytes.extend_from_slice(&self.0.to_be_bytes());
        f.write_str(&URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// Returns a version as an ETag.
pub fn etag(version: i64) -> String {
    let mut etag = String::new();
    write!(etag, "\"{version}\"").expect("writing to a string does not fail");
    etag
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_the_one_that_was_given_or_none() {
        let cursor = Cursor(Uuid::from_u128(42));
        assert_eq!(Cursor::try_from(cursor.to_string()), Ok(cursor));
        let position = PositionCursor(42);
        assert_eq!(PositionCursor::try_from(position.to_string()), Ok(position));
        for text in ["", "abc", "AAAA", "é", &URL_SAFE_NO_PAD.encode([2; 17])] {
            assert!(Cursor::try_from(text.to_owned()).is_err(), "{text:?}");
            assert!(PositionCursor::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn an_actor_is_an_opaque_id() {
        assert!(is_actor("person:4f2a"));
        for text in ["", "person", "person:", "robot:1", "person:a@b.org", "person:a b", "service:ü"] {
            assert!(!is_actor(text), "{text:?}");
        }
    }

    #[test]
    fn serde_s_messages_lose_the_values_that_they_quote() {
        let message = without_values("invalid type: string \"Ada Lovelace\", expected u32");
        assert_eq!(message, "invalid type: string …, expected u32");
        let message = without_values("invalid type: string \"Ada \\\"Lovelace\\\"\", expected u32");
        assert_eq!(message, "invalid type: string …, expected u32");
        let message = without_values("unknown variant `Ada`, expected one of `a`, `b`");
        assert_eq!(message, "unknown value, expected one of `a`, `b`");
        let message = without_values("unknown field `Ada`, expected one of `a`, `b`");
        assert_eq!(message, "unknown field, expected one of `a`, `b`");
        assert_eq!(
            without_values("unknown field `Ada`, there are no fields"),
            "unknown field, there are no fields"
        );
    }

    #[test]
    fn blanks_and_order_do_not_make_another_request() {
        let canonical = |text: &str| canonical(text.as_bytes()).ok().unwrap();
        assert_eq!(canonical(r#"{"a":1,"b":2}"#), canonical("{ \"b\": 2,\n \"a\": 1 }"));
        assert_ne!(canonical(r#"{"a":1}"#), canonical(r#"{"a":2}"#));
    }
}
