//! What each role may do: every route, every role, a meeting of one's own and another's.

use api::auth::Role;
use api::auth::access::{TABLE, Who, Whose};
use reqwest::Method;
use serde_json::json;
use uuid::Uuid;

use super::owners::World;
use crate::http::contract::Document;
use crate::http::{Scene, send};

#[test]
fn the_table_is_the_one_that_was_agreed_on() {
    let lines = TABLE.iter().map(|access| {
        let who = match access.who {
            Who::Anybody => "anybody".to_owned(),
            Who::Roles(roles) => names(roles),
            Who::Openable(_, roles) => format!("{} (or anybody, if configured)", names(roles)),
        };
        let whose = match access.whose {
            Whose::Common => "",
            Whose::Meeting => " | the member's own meeting",
            Whose::Filtered => " | filtered for a member",
        };
        format!("{} {} | {who}{whose}", access.method, access.path)
    });
    insta::assert_snapshot!(lines.collect::<Vec<_>>().join("\n"));
}

fn names(roles: &[Role]) -> String {
    if roles.len() == Role::ALL.len() {
        return "every role".to_owned();
    }
    roles.iter().map(|role| role.name()).collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn every_documented_route_has_a_row() {
    let scene = Scene::start().await;
    for operation in Document::of(&scene).await.operations() {
        let found = TABLE
            .iter()
            .any(|access| access.method == operation.method.as_str() && access.path == operation.path);
        assert!(found, "{} {} is refused to everybody: it has no row", operation.method, operation.path);
    }
}

#[tokio::test]
async fn every_route_is_for_its_roles_alone_and_a_members_own_meetings() {
    let world = World::make().await;
    let mark = world.scene.log_mark().await;
    let mut wrong = vec![];
    for access in TABLE {
        let (Who::Roles(roles) | Who::Openable(_, roles)) = access.who else { continue };
        for role in Role::ALL {
            for own in [true, false] {
                let client = world.client(role);
                let path = world.path(access.path, own);
                let method = access.method.parse::<Method>().unwrap();
                let mut request = client.request(method, world.scene.server.at(&path));
                // What may be done is refused for its content: nothing must change here.
                if access.method != "GET" {
                    request = if access.path.starts_with("/v1/") {
                        request.json(&json!({"surprise": 1}))
                    } else {
                        request.header("content-type", "application/x-www-form-urlencoded").body("surprise=1")
                    };
                }
                let response = request.send().await.unwrap();
                let status = response.status().as_u16();
                let others = access.whose == Whose::Meeting && role == Role::Member && !own;
                let right = match (roles.contains(&role), access.method) {
                    (false, _) => status == 403,
                    (true, _) if others => status == 404,
                    // Another's file is not found either.
                    (true, "GET") if access.path == "/v1/files/{id}" && role == Role::Member && !own => {
                        status == 404
                    }
                    (true, "GET") if access.path.starts_with("/v1/erasures/") => status == 404,
                    (true, "GET") => {
                        matches!(status, 200 | 307) || (status == 404 && access.path.contains("{key}"))
                    }
                    (true, _) => status == 422,
                };
                if !right {
                    wrong
                        .push(format!("{} {} as {role:?}, own: {own}: {status}", access.method, access.path));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(world.scene.log_mark().await, mark, "nothing that was refused left an event");
}

#[tokio::test]
async fn who_may_not_is_told_so_and_what_there_is_not_is_told_by_method() {
    let scene = Scene::start().await;
    let auditor = scene.server.as_(Role::Auditor, "auditor-1");
    let register = auditor.post(scene.server.at("/v1/meetings")).json(&json!({"sha256": "a".repeat(64)}));
    send(register).await.is_problem(403, "forbidden");
    send(auditor.get(scene.server.at("/nowhere"))).await.is_problem(404, "route_not_found");
    send(auditor.delete(scene.server.at("/v1/meetings"))).await.is_problem(405, "method_not_allowed");
    assert_eq!(auditor.head(scene.server.at("/v1/meetings")).send().await.unwrap().status(), 200);
    assert_eq!(auditor.head(scene.server.at("/v1/operations/rebuilds")).send().await.unwrap().status(), 403);
    // Without a right to a thing one is not told whether it is there.
    let nothing = format!("/v1/operations/rebuilds/{}", 4711);
    send(auditor.get(scene.server.at(&nothing))).await.is_problem(403, "forbidden");
}

#[tokio::test]
async fn the_actor_of_an_event_is_the_tokens_subject_whatever_the_request_says() {
    let scene = Scene::start().await;
    let pipeline = scene.server.as_(Role::Pipeline, "pipeline-7");
    let register = pipeline.post(scene.server.at("/v1/meetings")).header("minutebook-actor", "person:boss");
    let registered = send(register.json(&json!({"sha256": "a".repeat(64)}))).await.expect(201);
    let path = format!("/v1/meetings/{}/events", registered["id"].as_str().unwrap());
    let event = &scene.get(&path).await.expect(200)["items"][0];
    assert_eq!(event["metadata"]["actor"], "pipeline-7");
    assert_eq!(event["metadata"]["actor_kind"], "service");
    for field in ["actor", "actor_kind", "subject"] {
        let mut body = json!({"sha256": "b".repeat(64)});
        body[field] = json!("boss");
        let register = pipeline.post(scene.server.at("/v1/meetings")).json(&body);
        send(register).await.is_problem(422, "invalid_body");
    }
}

#[tokio::test]
async fn vectors_are_for_pipelines_and_admins_alone() {
    let world = World::make().await;
    let path = format!("/v1/profiles/{}/voice/{}", world.profile, world.sample);
    for role in Role::ALL {
        let answer = send(world.client(role).get(world.scene.server.at(&path))).await;
        match role {
            Role::Pipeline | Role::Admin => {
                let vector = answer.expect(200)["vector"].as_array().unwrap().len();
                assert_eq!(vector, 256);
            }
            Role::Member | Role::Reviewer | Role::Auditor => answer.is_problem(403, "forbidden"),
        }
        // Nowhere else is there one.
        for path in [
            format!("/v1/profiles/{}", world.profile),
            format!("/v1/profiles/{}/voice", world.profile),
            "/v1/profiles".to_owned(),
            format!("/v1/meetings/{}/events?limit=500", world.own.meeting),
            format!("/v1/meetings/{}/speakers?segments=true", world.own.meeting),
            format!("/v1/meetings/{}", world.own.meeting),
        ] {
            let answer = send(world.client(role).get(world.scene.server.at(&path))).await;
            assert!(!answer.body.contains("\"vector\""), "{role:?} {path}: {}", answer.body);
            assert!(!answer.body.contains("\"embeddings\""), "{role:?} {path}: {}", answer.body);
        }
    }
    let nobody = format!("/v1/profiles/{}/voice/{}", world.profile, Uuid::nil());
    world.scene.get(&nobody).await.is_problem(404, "sample_not_found");
}
