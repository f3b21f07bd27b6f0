//! Who looks at a page, and what is around it.

use std::convert::Infallible;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Uri};
use event_store::command_bus::Context;

use super::STYLE_PATH;
use crate::auth::access::{may_get, may_review};
use crate::auth::{Caller, Kind};
use crate::error::Problem;
use crate::extract::REQUEST_ID;

/// A request for a page: who asks, and for what.
pub(super) struct Visit {
    /// Who asks; nobody at the login page alone.
    pub(super) caller: Option<Caller>,
    /// The path and query asked for.
    pub(super) here: String,
    request_id: Option<String>,
}

impl Visit {
    /// Reads what a request says.
    pub(super) fn of(headers: &HeaderMap, uri: &Uri, caller: Option<Caller>) -> Self {
        let here = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let request_id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).map(str::to_owned);
        Self { caller, here, request_id }
    }

    /// Says whether whoever looks is told whom a voice merely resembles.
    pub(super) fn sees_candidates(&self) -> bool {
        self.caller.as_ref().is_some_and(Caller::sees_candidates)
    }

    /// Returns in whose name a form acts.
    pub(super) fn context(&self) -> Result<Context, Problem> {
        // Without a caller no form comes here.
        let caller = self.caller.as_ref().ok_or_else(|| crate::auth::token::Refusal::Missing.problem())?;
        Ok(Context { correlation_id: self.request_id.clone(), ..caller.context() })
    }

    /// Takes another page to be where somebody comes back to: an address that takes forms shows nothing by itself.
    pub(super) fn returning_to(self, here: String) -> Self {
        Self { here, ..self }
    }

    /// Returns what is around a page.
    pub(super) fn shell(self, title: impl Into<String>, section: &'static str) -> Shell {
        Shell { title: title.into(), section, caller: self.caller, back: self.here, refresh: None }
    }
}

impl<S: Sync> FromRequestParts<S> for Visit {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.headers, &parts.uri, parts.extensions.get::<Caller>().cloned()))
    }
}

/// What is around every page.
pub(super) struct Shell {
    /// The page's name.
    pub(super) title: String,
    /// Which entry of the navigation it belongs to.
    pub(super) section: &'static str,
    /// Who looks.
    pub(super) caller: Option<Caller>,
    /// Where somebody who was refused tries again.
    pub(super) back: String,
    /// After how many seconds the page is asked for again.
    pub(super) refresh: Option<u32>,
}

impl Shell {
    /// Says whether whoever looks may say who speakers are.
    pub(super) fn reviews(&self) -> bool {
        self.caller.as_ref().is_some_and(|caller| may_review(caller.role) && caller.kind == Kind::Person)
    }

    /// Says whether whoever looks is told whom a voice merely resembles.
    pub(super) fn sees_candidates(&self) -> bool {
        self.caller.as_ref().is_some_and(Caller::sees_candidates)
    }

    /// Says whether whoever looks may open the page at `path`.
    pub(super) fn may_get(&self, path: &str) -> bool {
        self.caller.as_ref().is_some_and(|caller| may_get(caller.role, path))
    }

    /// Returns the path of the style sheet.
    pub(super) fn style(&self) -> &str {
        &STYLE_PATH
    }
}
