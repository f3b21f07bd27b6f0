//! Logging in with a token, and out again: see [`crate::auth::session`].

use askama::Template;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::form::FormOf;
use super::visit::{Shell, Visit};
use super::{page, sentence};
use crate::access;
use crate::app::AppState;
use crate::auth::session;
use crate::error::Problem;
use crate::extract::QueryOf;

#[derive(Template)]
#[template(path = "login.html")]
struct Login {
    shell: Shell,
    back: String,
    problem: Option<String>,
}

/// Where to go back to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackQuery {
    #[serde(default)]
    back: String,
}

/// Asks for a token.
pub(super) async fn ask(visit: Visit, QueryOf(BackQuery { back }): QueryOf<BackQuery>) -> Response {
    let login = Login { shell: visit.shell("Log in", ""), back: local(&back), problem: None };
    page(StatusCode::OK, &login)
}

/// What somebody logs in with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoginForm {
    token: String,
    #[serde(default)]
    back: String,
}

/// Begins a session with a valid token.
pub(super) async fn begin(
    State(state): State<AppState>,
    headers: HeaderMap,
    visit: Visit,
    FormOf(LoginForm { token, back }): FormOf<LoginForm>,
) -> Result<Response, Problem> {
    let back = local(&back);
    match state.auth.verify(token.trim()).await {
        Ok(caller) => {
            let secret = state.book.store.keyring().secret();
            let cookie = session::begin(&caller, secret, secure(&state, &headers));
            Ok(([(header::SET_COOKIE, cookie)], Redirect::to(&back)).into_response())
        }
        Err(refusal) => {
            let problem = refusal.problem();
            if problem.status() == StatusCode::UNAUTHORIZED {
                let route = "POST /login".to_owned();
                state.refusals.put(access::Refusal { who: None, route, code: problem.code() });
            }
            let shown = Some(sentence(problem.detail()));
            let login = Login { shell: visit.shell("Log in", ""), back, problem: shown };
            Ok(page(problem.status(), &login))
        }
    }
}

/// Ends the session.
pub(super) async fn end(State(state): State<AppState>, headers: HeaderMap) -> Response {
    let cookie = session::end(secure(&state, &headers));
    ([(header::SET_COOKIE, cookie)], Redirect::to("/login")).into_response()
}

/// Says whether the browser reaches this server over TLS. Whoever forges the header keeps a cookie from
/// themselves.
fn secure(state: &AppState, headers: &HeaderMap) -> bool {
    let forwarded = headers.get("x-forwarded-proto").is_some_and(|proto| proto == "https");
    state.config.auth.tls_in_front || forwarded
}

/// Returns where somebody logs in to come to the page at `uri`.
pub(super) fn path(uri: &Uri) -> String {
    let back = uri.path_and_query().map_or("/", |path| path.as_str());
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte);
    let back = back
        .bytes()
        .map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") });
    format!("/login?back={}", back.collect::<String>())
}

/// Returns a path of this server, whatever was asked for: a link must not lead elsewhere through here.
fn local(back: &str) -> String {
    let here = back.starts_with('/') && !back.starts_with("//") && !back.contains(['\\', '\r', '\n', '\t']);
    let path = if here && back.parse::<Uri>().is_ok_and(|uri| uri.authority().is_none()) {
        back
    } else {
        "/meetings"
    };
    path.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_never_leads_to_another_server() {
        assert_eq!(local("/meetings?status=failed"), "/meetings?status=failed");
        for elsewhere in
            ["", "//evil.example", "/\\evil.example", "https://evil.example", "/a\r\nb", "meetings"]
        {
            assert_eq!(local(elsewhere), "/meetings", "{elsewhere:?}");
        }
    }

    #[test]
    fn the_way_back_is_kept_whole() {
        let uri = Uri::from_static("/meetings?status=failed&owner=a%20b");
        assert_eq!(path(&uri), "/login?back=/meetings%3Fstatus%3Dfailed%26owner%3Da%2520b");
    }
}
