//! The OpenAPI document, and the page that shows it.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::Command;
use tokio::time::timeout;

use crate::http::Scene;
use crate::http::contract::{Document, main_type, properties};

#[tokio::test]
async fn the_document_names_every_route_and_what_it_answers_with() {
    let scene = Scene::start().await;
    let document = Document::of(&scene).await;
    assert!(document.0["openapi"].as_str().unwrap().starts_with("3.1."));
    let lines = document.operations().into_iter().map(|operation| {
        let statuses = operation.statuses().iter().map(u16::to_string).collect::<Vec<_>>();
        format!("{} -> {}", operation.name(), statuses.join(" "))
    });
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"), @"
    GET /healthz -> 200
    GET /metrics -> 200 401 403 429
    GET /readyz -> 200 503
    GET /v1/audit/access -> 200 401 403 404 422 429 503
    GET /v1/audit/speaker-reassignments -> 200 401 403 404 422 429 503
    GET /v1/cache/{key} -> 200 401 403 404 422 429 503
    GET /v1/changes -> 200 401 403 404 409 422 429 503
    GET /v1/erasures -> 200 401 403 404 422 429 503
    GET /v1/erasures/{id} -> 200 401 403 404 422 429 503
    GET /v1/erasures/{id}/kept-elsewhere -> 200 401 403 404 422 429 503
    GET /v1/files -> 200 401 403 404 422 429 503
    GET /v1/files/{id} -> 200 401 403 404 422 429 503
    GET /v1/meetings -> 200 401 403 404 422 429 503
    POST /v1/meetings -> 200 201 400 401 403 404 409 412 413 415 422 429 503
    DELETE /v1/meetings/{id} -> 200 202 400 401 403 404 409 412 413 415 422 429 503
    GET /v1/meetings/{id} -> 200 401 403 404 422 429 503
    POST /v1/meetings/{id}/artifacts -> 200 400 401 403 404 409 412 413 415 422 429 503
    PUT /v1/meetings/{id}/cache/{stage} -> 200 400 401 403 404 409 412 413 415 422 429 503
    POST /v1/meetings/{id}/complete -> 200 400 401 403 404 409 412 413 415 422 429 503
    GET /v1/meetings/{id}/events -> 200 401 403 404 422 429 503
    POST /v1/meetings/{id}/fail -> 200 400 401 403 404 409 412 413 415 422 429 503
    POST /v1/meetings/{id}/fingerprint -> 200 400 401 403 404 409 412 413 415 422 429 503
    POST /v1/meetings/{id}/language -> 200 400 401 403 404 409 412 413 415 422 429 503
    GET /v1/meetings/{id}/pending-corrections -> 200 401 403 404 422 429 503
    POST /v1/meetings/{id}/pending-corrections/{speaker}/dismiss -> 200 400 401 403 404 409 412 413 415 422 429 503
    POST /v1/meetings/{id}/reprocess -> 200 400 401 403 404 409 412 413 415 422 429 503
    POST /v1/meetings/{id}/retry -> 200 400 401 403 404 409 412 413 415 422 429 503
    GET /v1/meetings/{id}/speakers -> 200 401 403 404 422 429 503
    POST /v1/meetings/{id}/speakers -> 200 400 401 403 404 409 412 413 415 422 429 503
    GET /v1/meetings/{id}/speakers/{speaker}/history -> 200 401 403 404 422 429 503
    POST /v1/meetings/{id}/speakers/{speaker}/reassign -> 200 400 401 403 404 409 412 413 415 422 429 503
    POST /v1/meetings/{id}/speakers/{speaker}/undo -> 200 400 401 403 404 409 412 413 415 422 429 503
    POST /v1/meetings/{id}/start -> 200 400 401 403 404 409 412 413 415 422 429 503
    GET /v1/operations/rebuilds -> 200 401 403 404 422 429 503
    POST /v1/operations/rebuilds -> 202 400 401 403 404 409 412 413 415 422 429 503
    GET /v1/operations/rebuilds/{id} -> 200 401 403 404 422 429 503
    GET /v1/profiles -> 200 401 403 404 422 429 503
    POST /v1/profiles -> 200 201 400 401 403 404 409 412 413 415 422 429 503
    DELETE /v1/profiles/{id} -> 200 202 400 401 403 404 409 412 413 415 422 429 503
    GET /v1/profiles/{id} -> 200 401 403 404 422 429 503
    POST /v1/profiles/{id}/find-past-meetings -> 200 400 401 403 404 409 412 413 415 422 429 503
    POST /v1/profiles/{id}/rename -> 200 400 401 403 404 409 412 413 415 422 429 503
    GET /v1/profiles/{id}/voice -> 200 401 403 404 422 429 503
    POST /v1/profiles/{id}/voice -> 200 201 400 401 403 404 409 412 413 415 422 429 503
    DELETE /v1/profiles/{id}/voice/{sample} -> 200 400 401 403 404 409 412 413 415 422 429 503
    GET /v1/profiles/{id}/voice/{sample} -> 200 401 403 404 422 429 503
    ");
}

#[tokio::test]
async fn the_document_is_the_one_that_the_command_line_prints() {
    let scene = Scene::start().await;
    let printed = Command::new(tests::minutebook()).arg("openapi").output().await.unwrap();
    assert!(printed.status.success());
    assert_eq!(serde_json::from_slice::<Value>(&printed.stdout).unwrap(), Document::of(&scene).await.0);
}

#[tokio::test]
async fn every_operation_has_an_id_of_its_own_and_a_summary() {
    let scene = Scene::start().await;
    let mut ids = BTreeSet::new();
    for operation in Document::of(&scene).await.operations() {
        let id = operation.details["operationId"].as_str().unwrap().to_owned();
        assert!(ids.insert(id.clone()), "{} has the id {id} of another operation", operation.name());
        assert!(!operation.details["summary"].as_str().unwrap().is_empty(), "{}", operation.name());
    }
}

#[tokio::test]
async fn every_body_that_is_sent_or_answered_has_an_example_of_each_field_it_must_have() {
    let scene = Scene::start().await;
    let document = Document::of(&scene).await;
    let mut lacking = BTreeSet::new();
    for operation in document.operations() {
        let contents =
            [operation.details["requestBody"].clone(), operation.details["responses"]["200"].clone()];
        for schema in
            contents.iter().filter_map(|content| content.pointer("/content/application~1json/schema"))
        {
            lack_examples(&document, schema, "", &mut lacking);
        }
    }
    assert!(lacking.is_empty(), "without an example: {lacking:#?}");
}

/// Collects the required fields below `schema` that have no example.
fn lack_examples(document: &Document, schema: &Value, name: &str, lacking: &mut BTreeSet<String>) {
    let name = schema["$ref"].as_str().and_then(|reference| reference.rsplit('/').next()).unwrap_or(name);
    let schema = document.resolve(schema);
    if schema.get("example").is_some() {
        return;
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        lack_examples(document, part, name, lacking);
    }
    match main_type(schema) {
        _ if schema.get("allOf").is_some() => {}
        "object" => {
            let required = schema["required"].as_array().into_iter().flatten();
            let required = required.map(|field| field.as_str().unwrap()).collect::<Vec<_>>();
            for (field, property) in properties(schema) {
                if required.contains(&field.as_str()) {
                    lack_examples(document, property, &format!("{name}.{field}"), lacking);
                }
            }
        }
        "array" => lack_examples(document, &schema["items"], name, lacking),
        _ => {
            lacking.insert(name.to_owned());
        }
    }
}

#[tokio::test]
async fn every_reference_in_the_document_leads_somewhere() {
    let scene = Scene::start().await;
    let document = Document::of(&scene).await;
    let text = document.0.to_string();
    let references = text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap());
    let references = references.collect::<BTreeSet<_>>();
    assert!(!references.is_empty());
    for reference in references {
        assert!(document.0.pointer(reference).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn the_page_and_all_that_it_loads_come_from_the_server() {
    let scene = Scene::start().await;
    // Leads on to `/docs/`.
    let page = scene.get("/docs").await;
    assert_eq!(page.status, 200, "{page:?}");
    let loaded = loads(&page.body);
    assert!(loaded.iter().any(|url| url.ends_with(".js")) && loaded.iter().any(|url| url.ends_with(".css")));
    for url in &loaded {
        assert!(!url.contains("//"), "the page loads {url}");
        let asset = scene.get(&format!("/docs/{}", url.trim_start_matches("./"))).await;
        assert_eq!(asset.status, 200, "{url}");
        if url.ends_with(".css") {
            for address in asset.body.split("url(").skip(1) {
                assert!(
                    address.trim_start_matches(['"', '\'']).starts_with("data:"),
                    "{url} loads {address:.80}"
                );
            }
            assert!(!asset.body.contains("@import"), "{url}");
        }
        if url.ends_with("swagger-initializer.js") {
            assert!(asset.body.contains("/openapi.json"), "{}", asset.body);
            assert!(!asset.body.contains("://"), "{}", asset.body);
        }
    }
}

#[tokio::test]
async fn the_page_lists_the_operations_in_a_browser_that_reaches_nothing_else() {
    let Some(browser) = browser("the_page_lists_the_operations_in_a_browser_that_reaches_nothing_else")
    else {
        return;
    };
    // It sends no token.
    let scene = Scene::start_with(&["--open", "docs"]).await;
    let profile = tempfile::tempdir().unwrap();
    let render = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"])
        .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
        .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .args(["--virtual-time-budget=10000", "--dump-dom"])
        .arg(scene.server.at("/docs/"))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(Duration::from_secs(120), render).await.unwrap().unwrap();
    let dom = String::from_utf8(output.stdout).unwrap();
    for operation in Document::of(&scene).await.operations() {
        let shown = format!("data-path=\"{}\"", operation.path);
        assert!(dom.contains(&shown), "{} is not on the page", operation.name());
    }
    for url in loads(&dom) {
        assert!(!url.contains("//") || url.starts_with(&scene.server.url), "the page loads {url}");
    }
}

/// Returns the URLs that a browser loads with this HTML: scripts, style sheets, images, frames.
fn loads(html: &str) -> Vec<String> {
    let mut urls = Vec::new();
    for tag in html.split('<').skip(1).map(|tag| tag.split('>').next().unwrap()) {
        let attribute = match tag.split_whitespace().next() {
            Some("script" | "img" | "iframe" | "source" | "object" | "embed") => " src=\"",
            Some("link") => " href=\"",
            Some(_) | None => continue,
        };
        let value = tag.split(attribute).nth(1).and_then(|rest| rest.split('"').next());
        urls.extend(value.filter(|url| !url.starts_with("data:")).map(str::to_owned));
    }
    urls
}

/// Returns a browser, or says loudly that `test` was left out.
fn browser(test: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let names = ["chromium", "chromium-browser"];
    let found = std::env::split_paths(&path)
        .flat_map(|dir| names.map(|name| dir.join(name)))
        .find(|file| file.is_file());
    if found.is_none() {
        let line = format!("LEFT OUT: {test} needs a browser, and PATH has no chromium\n");
        // Not by way of `eprintln!`: the test runner would swallow it.
        std::io::stderr().write_all(line.as_bytes()).unwrap();
        if let Some(path) = std::env::var_os(tests::LEFT_OUT) {
            let mut list = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
            list.write_all(line.as_bytes()).unwrap();
        }
    }
    found
}
