//! The rooms: arrows between the crates run one way, and the domain knows no I/O.

use std::collections::BTreeSet;
use std::path::Path;

/// Returns the names under `[dependencies]` of a member.
fn dependencies(member: &str) -> BTreeSet<String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join(member).join("Cargo.toml");
    let text = std::fs::read_to_string(manifest).unwrap();
    let section = text.split("\n[").find_map(|section| section.strip_prefix("dependencies]\n")).unwrap();
    section.lines().filter_map(|line| line.split(['.', ' ', '=']).next()).map(str::to_owned).collect()
}

#[test]
fn the_domain_names_no_database_no_runtime_and_no_server() {
    let named = dependencies("domain");
    assert!(named.contains("serde"), "the manifest is read: {named:?}");
    for forbidden in ["sqlx", "tokio", "axum", "postgres-es", "reqwest", "event_store", "projections", "api"]
    {
        assert!(!named.contains(forbidden), "domain must not name {forbidden}");
    }
}

#[test]
fn arrows_run_from_api_to_projections_to_event_store_to_domain() {
    for (member, above) in [("event_store", vec!["projections", "api"]), ("projections", vec!["api"])] {
        let named = dependencies(member);
        for forbidden in above.into_iter().chain(["axum", "tower-http"]) {
            assert!(!named.contains(forbidden), "{member} must not name {forbidden}");
        }
    }
}
