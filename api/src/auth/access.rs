//! Who may do what: one row for each route. What has no row is refused to everybody, and a test finds it.
//!
//! A row says which roles may use the route, and what of it a member, who sees its own meetings alone, is shown:
//! nothing of a meeting that is somebody else's ([`Whose::Meeting`]: told apart before the handler is called), or
//! what the handler filters ([`Whose::Filtered`]).

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::http::Method;

use self::Whose::{Common, Filtered, Meeting};
use super::Role::{self, Admin, Auditor, Member, Pipeline, Reviewer};
use crate::config::Openable;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Everybody, without a token: health, and what is needed to log in.
    Anybody,
    /// Whoever has one of these roles.
    Roles(&'static [Role]),
    /// The same, unless the configuration opens it to everybody.
    Openable(Openable, &'static [Role]),
}

/// Whose things a route shows or changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Nobody's, or everybody's: not for members, or without anything of a meeting.
    Common,
    /// Those of the meeting in the path: to a member another's is as if it were not there.
    Meeting,
    /// The handler shows a member its own.
    Filtered,
}

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// The method; HEAD is GET.
    pub method: &'static str,
    /// The path as the router has it.
    pub path: &'static str,
    /// Who.
    pub who: Who,
    /// Whose.
    pub whose: Whose,
}

const ALL: Who = Who::Roles(&Role::ALL);
const WORK: Who = Who::Roles(&[Pipeline, Admin]);
const REVIEW: Who = Who::Roles(&[Reviewer, Admin]);
const AUDIT: Who = Who::Roles(&[Auditor, Admin]);
const ADMIN: Who = Who::Roles(&[Admin]);
const PEOPLE: Who = Who::Roles(&[Pipeline, Reviewer, Auditor, Admin]);
const ENTER_PEOPLE: Who = Who::Roles(&[Pipeline, Reviewer, Admin]);
const FOLLOW: Who = Who::Roles(&[Pipeline, Member, Auditor, Admin]);
const DOCS: Who = Who::Openable(Openable::Docs, &Role::ALL);
const METRICS: Who = Who::Openable(Openable::Metrics, &Role::ALL);

const fn row(method: &'static str, path: &'static str, who: Who, whose: Whose) -> Access {
    Access { method, path, who, whose }
}

/// The table.
pub const TABLE: &[Access] = &[
    row("POST", "/v1/meetings", WORK, Common),
    row("GET", "/v1/meetings", ALL, Filtered),
    row("GET", "/v1/meetings/{id}", ALL, Meeting),
    row("DELETE", "/v1/meetings/{id}", ADMIN, Meeting),
    row("GET", "/v1/meetings/{id}/events", ALL, Meeting),
    row("POST", "/v1/meetings/{id}/start", WORK, Meeting),
    row("POST", "/v1/meetings/{id}/retry", WORK, Meeting),
    row("POST", "/v1/meetings/{id}/reprocess", WORK, Meeting),
    row("POST", "/v1/meetings/{id}/fingerprint", WORK, Meeting),
    row("POST", "/v1/meetings/{id}/language", WORK, Meeting),
    row("POST", "/v1/meetings/{id}/speakers", WORK, Meeting),
    row("POST", "/v1/meetings/{id}/artifacts", WORK, Meeting),
    row("PUT", "/v1/meetings/{id}/cache/{stage}", WORK, Meeting),
    row("POST", "/v1/meetings/{id}/complete", WORK, Meeting),
    row("POST", "/v1/meetings/{id}/fail", WORK, Meeting),
    row("GET", "/v1/meetings/{id}/speakers", ALL, Meeting),
    row("POST", "/v1/meetings/{id}/speakers/{speaker}/reassign", REVIEW, Meeting),
    row("POST", "/v1/meetings/{id}/speakers/{speaker}/undo", REVIEW, Meeting),
    row("GET", "/v1/meetings/{id}/speakers/{speaker}/history", ALL, Meeting),
    row("GET", "/v1/meetings/{id}/pending-corrections", ALL, Meeting),
    row("POST", "/v1/meetings/{id}/pending-corrections/{speaker}/dismiss", REVIEW, Meeting),
    row("GET", "/v1/files", ALL, Filtered),
    row("GET", "/v1/files/{id}", ALL, Filtered),
    // Its keys are shared between owners.
    row("GET", "/v1/cache/{key}", WORK, Common),
    row("POST", "/v1/profiles", ENTER_PEOPLE, Common),
    row("GET", "/v1/profiles", PEOPLE, Common),
    row("GET", "/v1/profiles/{id}", PEOPLE, Common),
    row("DELETE", "/v1/profiles/{id}", ADMIN, Common),
    row("POST", "/v1/profiles/{id}/rename", ENTER_PEOPLE, Common),
    row("POST", "/v1/profiles/{id}/voice", WORK, Common),
    row("GET", "/v1/profiles/{id}/voice", PEOPLE, Common),
    // Vectors are biometric data.
    row("GET", "/v1/profiles/{id}/voice/{sample}", WORK, Common),
    row("DELETE", "/v1/profiles/{id}/voice/{sample}", WORK, Common),
    row("POST", "/v1/profiles/{id}/find-past-meetings", REVIEW, Common),
    row("GET", "/v1/audit/speaker-reassignments", AUDIT, Common),
    row("GET", "/v1/audit/access", AUDIT, Common),
    row("GET", "/v1/erasures", AUDIT, Common),
    row("GET", "/v1/erasures/{id}", AUDIT, Common),
    row("GET", "/v1/erasures/{id}/kept-elsewhere", AUDIT, Common),
    row("GET", "/v1/changes", FOLLOW, Filtered),
    row("POST", "/v1/operations/rebuilds", ADMIN, Common),
    row("GET", "/v1/operations/rebuilds", ADMIN, Common),
    row("GET", "/v1/operations/rebuilds/{id}", ADMIN, Common),
    row("GET", "/healthz", Who::Anybody, Common),
    row("GET", "/readyz", Who::Anybody, Common),
    row("GET", "/metrics", METRICS, Common),
    row("GET", "/openapi.json", DOCS, Common),
    row("GET", "/docs", DOCS, Common),
    row("GET", "/docs/", DOCS, Common),
    row("GET", "/docs/{*rest}", DOCS, Common),
    row("GET", "/login", Who::Anybody, Common),
    row("POST", "/login", Who::Anybody, Common),
    row("POST", "/logout", Who::Anybody, Common),
    row("GET", "/assets/{name}", Who::Anybody, Common),
    row("GET", "/", ALL, Common),
    row("GET", "/meetings", ALL, Filtered),
    row("GET", "/meetings/{id}", ALL, Meeting),
    row("GET", "/meetings/{id}/speakers/{speaker}", ALL, Meeting),
    row("POST", "/meetings/{id}/speakers/{speaker}/reassign", REVIEW, Meeting),
    row("POST", "/meetings/{id}/speakers/{speaker}/undo", REVIEW, Meeting),
    row("POST", "/meetings/{id}/pending-corrections/{speaker}/dismiss", REVIEW, Meeting),
    row("GET", "/audit", AUDIT, Common),
    row("GET", "/operations", ADMIN, Common),
];

static BY_ROUTE: LazyLock<HashMap<(&str, &str), &Access>> =
    LazyLock::new(|| TABLE.iter().map(|access| ((access.method, access.path), access)).collect());

/// Returns the row of a route.
pub(crate) fn of(method: &Method, path: &str) -> Option<&'static Access> {
    let method = if *method == Method::HEAD { "GET" } else { method.as_str() };
    BY_ROUTE.get(&(method, path)).copied()
}

/// Says whether a path is in the table under any method.
pub(super) fn knows(path: &str) -> bool {
    TABLE.iter().any(|access| access.path == path)
}

/// Says whether a route reads what anybody sends.
pub(crate) fn takes_from_anybody(method: &Method, path: &str) -> bool {
    of(method, path).is_some_and(|access| access.who == Who::Anybody && access.method != "GET")
}

/// Says whether a role may use the pages of this path, so that no link leads where it must not go.
pub fn may_get(role: Role, path: &str) -> bool {
    match of(&Method::GET, path).map(|access| access.who) {
        Some(Who::Anybody) => true,
        Some(Who::Roles(roles) | Who::Openable(_, roles)) => roles.contains(&role),
        None => false,
    }
}

/// Says whether a role may say who speakers are.
pub fn may_review(role: Role) -> bool {
    matches!(REVIEW, Who::Roles(roles) if roles.contains(&role))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_route_has_two_rows() {
        assert_eq!(BY_ROUTE.len(), TABLE.len());
    }

    #[test]
    fn what_a_member_may_use_is_told_apart_by_owner_and_what_names_a_meeting_says_so() {
        let without_meetings = ["/", "/metrics", "/openapi.json", "/docs", "/docs/", "/docs/{*rest}"];
        for access in TABLE {
            let (Who::Roles(roles) | Who::Openable(_, roles)) = access.who else { continue };
            if roles.contains(&Member) && access.whose == Common {
                assert!(without_meetings.contains(&access.path), "{access:?}");
            }
            let names_a_meeting = access.path.contains("/meetings/{id}");
            assert_eq!(names_a_meeting, access.whose == Meeting, "{access:?}");
        }
    }
}
