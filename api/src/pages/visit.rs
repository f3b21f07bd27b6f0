//! Who looks at a page, and what is around it. Until there is authentication, a cookie holds the opaque id by
//! which a person acts; never a name, never a mail address.

use std::convert::Infallible;

use askama::Template;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Redirect, Response};
use event_store::command_bus::Context;
use serde::Deserialize;

use super::form::FormOf;
use super::{STYLE_PATH, page, sentence};
use crate::error::Problem;
use crate::extract::{QueryOf, REQUEST_ID, is_actor};

/// The cookie's name.
const COOKIE: &str = "minutebook_person";
/// How long a browser keeps it: half a year.
const KEPT_SECONDS: u32 = 15_552_000;

/// The id by which a person acts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Person(String);

impl Person {
    fn parse(id: &str) -> Option<Self> {
        is_actor(&format!("person:{id}")).then(|| Self(id.to_owned()))
    }
}

impl std::fmt::Display for Person {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A request for a page: who asks, and for what.
pub(super) struct Visit {
    /// Who asks, if that is known.
    pub(super) person: Option<Person>,
    /// The path and query asked for.
    pub(super) here: String,
    request_id: Option<String>,
}

impl Visit {
    /// Reads what a request says.
    pub(super) fn of(headers: &HeaderMap, uri: &Uri) -> Self {
        let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let person = cookies
            .flat_map(|line| line.split(';'))
            .filter_map(|pair| pair.trim().split_once('='))
            .find_map(|(name, value)| if name == COOKIE { Person::parse(value) } else { None });
        let here = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let request_id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        Self { person, here, request_id }
    }

    /// Returns in whose name a form acts; pages only read for those who have not said who they are.
    pub(super) fn context(&self) -> Result<Context, Problem> {
        let Some(person) = &self.person else {
            let detail = "pages can only be read until you say who you are: follow the link at the top";
            return Err(Problem::new(StatusCode::FORBIDDEN, "person_required", detail));
        };
        Ok(Context {
            actor: person.to_string(),
            actor_kind: "person".to_owned(),
            correlation_id: self.request_id.clone(),
            ..Context::default()
        })
    }

    /// Takes another page to be where somebody comes back to: an address that takes forms shows nothing by itself.
    pub(super) fn returning_to(self, here: String) -> Self {
        Self { here, ..self }
    }

    /// Returns what is around a page.
    pub(super) fn shell(self, title: impl Into<String>, section: &'static str) -> Shell {
        let back = if self.here.starts_with("/who") { "/meetings".to_owned() } else { self.here };
        Shell { title: title.into(), section, person: self.person, back, refresh: None }
    }
}

impl<S: Sync> FromRequestParts<S> for Visit {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers, &parts.uri))
    }
}

/// What is around every page.
pub(super) struct Shell {
    /// The page's name.
    pub(super) title: String,
    /// Which entry of the navigation it belongs to.
    pub(super) section: &'static str,
    /// Who looks, if that is known.
    pub(super) person: Option<Person>,
    /// Where somebody who says who they are comes back to.
    pub(super) back: String,
    /// After how many seconds the page is asked for again.
    pub(super) refresh: Option<u32>,
}

impl Shell {
    /// Says whether whoever looks may change something.
    pub(super) const fn known(&self) -> bool {
        self.person.is_some()
    }

    /// Returns the path of the style sheet.
    pub(super) fn style(&self) -> &str {
        &STYLE_PATH
    }
}

#[derive(Template)]
#[template(path = "who.html")]
struct Who {
    shell: Shell,
    back: String,
    id: String,
    problem: Option<String>,
}

/// Where to go back to.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BackQuery {
    #[serde(default)]
    back: String,
}

/// Asks who looks.
pub(super) async fn ask(visit: Visit, QueryOf(BackQuery { back }): QueryOf<BackQuery>) -> Response {
    let id = visit.person.as_ref().map(Person::to_string).unwrap_or_default();
    let who = Who { shell: visit.shell("Who are you?", ""), back: local(&back), id, problem: None };
    page(StatusCode::OK, &who)
}

/// Who somebody says they are.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WhoForm {
    person: String,
    #[serde(default)]
    back: String,
    /// To be forgotten by this browser.
    forget: Option<String>,
}

/// Keeps who looks in a cookie, or forgets it.
pub(super) async fn answer(visit: Visit, FormOf(form): FormOf<WhoForm>) -> Response {
    let WhoForm { person, back, forget } = form;
    let back = local(&back);
    let person = person.trim();
    let cookie = match (forget, Person::parse(person)) {
        (Some(_), _) => format!("{COOKIE}=; Path=/; HttpOnly; SameSite=Strict; Max-Age=0"),
        (None, Some(id)) => {
            format!("{COOKIE}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={KEPT_SECONDS}")
        }
        (None, None) => {
            let problem =
                sentence("an id is 1 to 100 of A-Z a-z 0-9 . _ - and no mail address: the log keeps it");
            let shell = visit.shell("Who are you?", "");
            let who = Who { shell, back, id: person.to_owned(), problem: Some(problem) };
            return page(StatusCode::UNPROCESSABLE_ENTITY, &who);
        }
    };
    ([(header::SET_COOKIE, cookie)], Redirect::to(&back)).into_response()
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
    fn a_person_is_an_opaque_id_in_the_cookie() {
        let visit = |cookie: &str| {
            let headers = HeaderMap::from_iter([(header::COOKIE, cookie.parse().unwrap())]);
            Visit::of(&headers, &Uri::from_static("/meetings")).person
        };
        assert_eq!(visit("a=b; minutebook_person=rev-7"), Some(Person("rev-7".to_owned())));
        for cookie in ["minutebook_person=", "minutebook_person=a@b.org", "other=rev-7", "minutebook_person"]
        {
            assert_eq!(visit(cookie), None, "{cookie}");
        }
    }
}
