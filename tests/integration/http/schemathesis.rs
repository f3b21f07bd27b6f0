//! schemathesis reads the served OpenAPI document, and sends what it allows and what it does not, with a token of each
//! role: no answer is a 500 or one that the document does not know, and no role gets further than its own.
//!
//! It is a program in Python: `./test` installs it into a cache, and says where by `MINUTEBOOK_SCHEMATHESIS`.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use api::auth::Role;
use serde_json::json;
use tests::tokens;
use tokio::process::Command;
use tokio::time::timeout;

use super::Scene;

/// What each role may record: the events that may have its token's subject as actor. `None` is anything.
const ROLES: [(Role, Option<&[&str]>); 5] = [
    (Role::Auditor, Some(&[])),
    (Role::Member, Some(&[])),
    (
        Role::Reviewer,
        Some(&[
            "ProfileCreated",
            "ProfileRenamed",
            "SpeakerReassigned",
            "CorrectionDismissed",
            "ArtifactsOutdated",
        ]),
    ),
    (Role::Pipeline, None),
    (Role::Admin, None),
];

/// What is looked at in each answer.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance,unsupported_method,ignored_auth";

#[tokio::test]
async fn no_role_meets_an_answer_that_the_document_does_not_know_nor_gets_further_than_its_own() {
    let Some(program) = program() else {
        return tests::left_out(
            "schemathesis against the OpenAPI document needs MINUTEBOOK_SCHEMATHESIS, and a Python to install it with",
        );
    };
    let seconds =
        std::env::var("MINUTEBOOK_SCHEMATHESIS_SECONDS").ok().map_or(100, |text| text.parse().unwrap());
    let scene = Scene::start().await;
    scene.register(1).await;
    scene.command("/v1/profiles", json!({"display_name": "Somebody"})).await;
    let mut failures = vec![];
    for (role, _) in ROLES {
        if let Err(said) = run(&program, &scene, role, seconds / ROLES.len() as u64).await {
            failures.push(format!("as {}:\n{said}", role.name()));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    for (role, allowed) in ROLES {
        let events = sqlx::query_scalar::<_, String>(
            "SELECT DISTINCT event_type FROM log.events WHERE metadata ->> 'actor' = $1 ORDER BY 1",
        );
        let events = events.bind(subject(role)).fetch_all(&scene.pool).await.unwrap();
        if let Some(allowed) = allowed {
            assert!(
                events.iter().all(|event| allowed.contains(&event.as_str())),
                "{} recorded {events:?}",
                role.name()
            );
        }
    }
}

/// A member is known by the owner of the meetings: here of none.
fn subject(role: Role) -> String {
    match role {
        Role::Member => "018f0000-0000-7000-8000-00000000000a".to_owned(),
        Role::Pipeline | Role::Reviewer | Role::Auditor | Role::Admin => {
            format!("schemathesis-{}", role.name())
        }
    }
}

/// Runs it as a role; returns what it says where it found something.
async fn run(program: &PathBuf, scene: &Scene, role: Role, seconds: u64) -> Result<(), String> {
    let directory = tempfile::tempdir().unwrap();
    // A position that has not come yet is told as one that may come: try again.
    let statuses = r#"checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", 503]"#;
    std::fs::write(directory.path().join("schemathesis.toml"), statuses).unwrap();
    let run = Command::new(program)
        .arg("run")
        .arg(scene.server.at("/openapi.json"))
        .args(["--header", &format!("Authorization: Bearer {}", tokens::token(role, &subject(role)))])
        .args(["--checks", CHECKS, "--max-time", &seconds.max(10).to_string(), "--max-failures", "5"])
        // One worker: Python up to 3.11 does not parse its own sources in two threads at once.
        .args(["--workers", "1", "--request-timeout", "20", "--no-color", "--generation-database", "none"])
        .args(["--suppress-health-check", "all", "--warnings", "off", "--seed", "6"])
        // An answer without an end; its own tests follow it.
        .args(["--exclude-path", "/v1/changes"])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output =
        timeout(Duration::from_secs(seconds * 3 + 120), run).await.expect("it does not end").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        // One that tried nothing has shown nothing.
        assert!(said.contains("passed"), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        return Ok(());
    }
    Err(format!("{said}\n{}", String::from_utf8_lossy(&output.stderr)))
}

fn program() -> Option<PathBuf> {
    let named = std::env::var_os("MINUTEBOOK_SCHEMATHESIS").map(PathBuf::from);
    named.filter(|program| program.is_file())
}
