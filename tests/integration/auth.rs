//! Who is let in: tokens, forged ones above all, and what each role may do.

mod access;
mod issuer;
mod owners;

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;

use api::auth::Role;
use api::auth::access::{TABLE, Who};
use api::auth::keys::SigningKey;
use api::auth::token::now;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use reqwest::Method;
use serde_json::{Value, json};
use tests::server::client;

use crate::cli::{minutebook, run};
use crate::http::contract::Document;
use crate::http::{Answer, Scene, send};

/// Claims that are taken, as far as they go.
fn claims() -> Value {
    json!({"sub": "a", "role": "admin", "iss": "minutebook", "aud": "minutebook", "exp": now() + 600})
}

/// Returns the claims with some of them changed; null takes one out.
fn with(changes: Value) -> Value {
    let mut claims = claims();
    let map = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        map.insert(name.clone(), value.clone());
        if value.is_null() {
            map.remove(name);
        }
    }
    claims
}

fn key() -> SigningKey {
    SigningKey::open_or_make(&tests::tokens::signing_key_file()).unwrap()
}

fn signed(changes: Value) -> String {
    key().sign(&with(changes)).unwrap()
}

/// Puts a token together of parts that nobody checks.
fn forged(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

async fn ask(scene: &Scene, authorization: &str) -> Answer {
    send(client(authorization).get(scene.server.at("/v1/meetings"))).await
}

#[track_caller]
fn refused(answer: &Answer, code: &str, what: &str) {
    assert_eq!(answer.status, 401, "{what}: {answer:?}");
    answer.is_problem(401, code);
    let challenge = answer.header("www-authenticate").unwrap_or_default();
    assert!(challenge.starts_with("Bearer realm="), "{what}: {challenge}");
    assert_eq!(challenge.contains("invalid_token"), code != "token_required", "{what}: {challenge}");
}

#[tokio::test]
async fn a_forged_stale_or_foreign_token_is_refused() {
    let scene = Scene::start().await;
    assert_eq!(
        ask(&scene, &format!("Bearer {}", signed(json!({})))).await.status,
        200,
        "the claims are fine"
    );
    let other = SigningKey::open_or_make(&tempfile::tempdir().unwrap().path().join("k")).unwrap();
    let jwk = serde_json::to_value(key().verifying_key().jwk()).unwrap();
    let kid = jwk["kid"].as_str().unwrap();
    let public = URL_SAFE_NO_PAD.decode(jwk["x"].as_str().unwrap()).unwrap();
    // With the public key for a secret, in each form that somebody may take for it.
    let symmetric = [public, jwk.to_string().into_bytes(), jwk["x"].as_str().unwrap().as_bytes().to_vec()];
    let symmetric = symmetric.map(|secret| {
        let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::HS256) };
        encode(&header, &claims(), &EncodingKey::from_secret(&secret)).unwrap()
    });
    let good = signed(json!({}));
    let parts = good.split('.').collect::<Vec<_>>();
    let admin = URL_SAFE_NO_PAD.encode(with(json!({"sub": "b"})).to_string());
    let header = json!({"alg": "EdDSA", "kid": kid});
    let none = |alg: &str| forged(&json!({"alg": alg, "kid": kid}), &claims(), "");
    let mut cases = vec![
        (none("none"), "invalid_token", "no algorithm"),
        (none("None"), "invalid_token", "no algorithm"),
        (none("EdDSA"), "invalid_token", "no signature"),
        (none(""), "invalid_token", "an empty algorithm"),
        (
            forged(&json!({"alg": "RS256", "kid": kid}), &claims(), parts[2]),
            "invalid_token",
            "another algorithm",
        ),
        (
            forged(&json!({"alg": "ES256", "kid": kid}), &claims(), parts[2]),
            "invalid_token",
            "another algorithm",
        ),
        (forged(&header, &claims(), parts[2]), "invalid_token", "another's signature"),
        (forged(&json!({"kid": kid}), &claims(), parts[2]), "invalid_token", "an algorithm left out"),
        (
            forged(&json!({"alg": "EdDSA", "kid": kid, "crit": ["exp"]}), &claims(), parts[2]),
            "invalid_token",
            "crit",
        ),
        (format!("{}.{admin}.{}", parts[0], parts[2]), "invalid_token", "changed claims"),
        (format!("{}.{}", parts[0], parts[1]), "invalid_token", "two parts"),
        (format!("{good}.x"), "invalid_token", "four parts"),
        (format!("{good}x"), "invalid_token", "a longer signature"),
        ("x".repeat(100), "invalid_token", "one part"),
        ("..".to_owned(), "invalid_token", "three empty parts"),
        ("a.b.c".to_owned(), "invalid_token", "three parts of nothing"),
        (other.sign(&claims()).unwrap(), "invalid_token", "an unknown key"),
        (format!("{good}{}", "x".repeat(20_000)), "invalid_token", "a huge token"),
        (signed(json!({"pad": "x".repeat(9_000)})), "invalid_token", "a huge token that is signed"),
    ];
    for (changes, code, what) in [
        (json!({"exp": now() - 60}), "token_expired", "expired"),
        (json!({"exp": 0}), "token_expired", "long expired"),
        (json!({"exp": -1}), "invalid_token", "a time before all times"),
        (json!({"exp": "soon"}), "invalid_token", "an end that is no time"),
        (json!({"exp": null}), "invalid_token", "no end"),
        (json!({"nbf": now() + 60}), "invalid_token", "not valid yet"),
        (json!({"nbf": "soon"}), "invalid_token", "a beginning that is no time"),
        (json!({"iss": "somebody"}), "invalid_token", "another issuer"),
        (json!({"iss": ["somebody", "minutebook"]}), "invalid_token", "two issuers"),
        (json!({"iss": null}), "invalid_token", "no issuer"),
        (json!({"aud": "somebody"}), "invalid_token", "another audience"),
        (json!({"aud": ["somebody", "else"]}), "invalid_token", "other audiences"),
        (json!({"aud": null}), "invalid_token", "no audience"),
        (json!({"sub": null}), "invalid_token", "nobody"),
        (json!({"sub": ""}), "invalid_token", "nobody"),
        (json!({"sub": "ada@example.org"}), "invalid_token", "a mail address"),
        (json!({"sub": "x".repeat(101)}), "invalid_token", "a long subject"),
        (json!({"role": null}), "invalid_token", "no role"),
        (json!({"role": "root"}), "invalid_token", "an unknown role"),
        (json!({"role": ["admin"]}), "invalid_token", "a list of roles"),
        (json!({"kind": "robot"}), "invalid_token", "an unknown kind"),
        (json!({"role": "member"}), "invalid_token", "a member of nothing"),
        (json!({"role": "member", "owner": "x"}), "invalid_token", "an owner that is none"),
    ] {
        cases.push((signed(changes), code, what));
    }
    cases.extend(symmetric.map(|token| (token, "invalid_token", "the public key for a secret")));
    let mark = scene.log_mark().await;
    for (token, code, what) in &cases {
        let answer = ask(&scene, &format!("Bearer {token}")).await;
        refused(&answer, code, what);
        assert!(
            !answer.body.contains(&token[..token.len().min(30)]) || token.len() < 10,
            "{what}: {}",
            answer.body
        );
        let register = client(&format!("Bearer {token}")).post(scene.server.at("/v1/meetings"));
        refused(&send(register.json(&json!({"sha256": "a".repeat(64)}))).await, code, what);
    }
    assert_eq!(scene.log_mark().await, mark);
}

#[tokio::test]
async fn what_is_unusual_but_right_is_taken() {
    let scene = Scene::start().await;
    for (changes, what) in [
        (json!({"exp": now() - 10}), "the clocks differ"),
        (json!({"nbf": now() + 10}), "the clocks differ"),
        (json!({"exp": now() as f64 + 60.5}), "a fraction of a second"),
        (json!({"aud": ["somebody", "minutebook"]}), "one audience of two"),
        (json!({"scope": "x", "roles": [], "name": {"first": "A"}}), "claims of the issuer's own"),
    ] {
        assert_eq!(ask(&scene, &format!("Bearer {}", signed(changes))).await.status, 200, "{what}");
    }
    let token = signed(json!({}));
    for authorization in [format!("bearer {token}"), format!("BEARER  {token}"), format!("Bearer {token} ")] {
        assert_eq!(ask(&scene, &authorization).await.status, 200, "{authorization}");
    }
}

#[tokio::test]
async fn an_authorization_that_is_none_is_refused() {
    let scene = Scene::start().await;
    refused(&ask(&scene, "").await, "token_required", "none");
    let token = signed(json!({}));
    for authorization in ["Bearer", "Bearer ", "Basic YTpi", &token, &format!("Token {token}"), "Bearer é"] {
        refused(&ask(&scene, authorization).await, "invalid_token", authorization);
    }
    let path = scene.server.at("/v1/meetings");
    let get = || client("").get(&path);
    let one = format!("Bearer {token}");
    let twice = get().header("authorization", &one).header("authorization", &one);
    refused(&send(twice).await, "invalid_token", "twice");
    let both = get().header("authorization", "Bearer x").header("authorization", &one);
    refused(&send(both).await, "invalid_token", "a wrong one first");
    // Nowhere else does a token count.
    refused(
        &send(client("").get(format!("{path}?access_token={token}"))).await,
        "token_required",
        "in the URL",
    );
    refused(
        &send(get().header("cookie", format!("minutebook_session={token}"))).await,
        "token_required",
        "a cookie",
    );
    refused(
        &send(get().header("minutebook-actor", "person:admin")).await,
        "token_required",
        "the old header",
    );
}

#[tokio::test]
async fn a_token_is_taken_again_and_again_and_no_more_once_it_has_expired() {
    let scene = Scene::start().await;
    // Its end, with what clocks may differ, is a second or two away.
    let end = now() - 28;
    let authorization = format!("Bearer {}", signed(json!({"exp": end})));
    let mut taken = 0;
    let answer = crate::read_models::eventually("it expires", async || {
        let answer = ask(&scene, &authorization).await;
        taken += usize::from(answer.status == 200);
        (answer.status != 200).then_some(answer)
    })
    .await;
    assert!(taken > 1, "it was remembered");
    refused(&answer, "token_expired", "in the end");
    assert!(now() > end + 30, "not before its time");
}

#[tokio::test]
async fn nothing_but_health_and_the_login_page_answers_without_a_token() {
    let scene = Scene::start().await;
    let document = Document::of(&scene).await;
    let stranger = client("");
    let open = ["/healthz", "/readyz", "/login", "/logout", "/assets/{name}"];
    let routes =
        document.operations().into_iter().map(|operation| (operation.method.to_string(), operation.path));
    let routes = routes.chain(TABLE.iter().map(|access| (access.method.to_owned(), access.path.to_owned())));
    let mut asked = 0;
    for (method, path) in routes {
        let filled =
            fill(&path, "018f0000-0000-7000-8000-000000000001", "018f0000-0000-7000-8000-000000000002");
        let method = method.parse::<Method>().unwrap();
        let answer = send(stranger.request(method.clone(), scene.server.at(&filled))).await;
        assert_eq!(answer.status != 401, open.contains(&path.as_str()), "{method} {path}: {answer:?}");
        asked += 1;
    }
    assert!(asked > 80, "{asked}");
    for path in ["/nowhere", "/v1", "/v1/nowhere", "/docs/nowhere.js", "/who"] {
        refused(&send(stranger.get(scene.server.at(path))).await, "token_required", path);
    }
    // A stranger is not told what there is.
    for method in ["PUT", "DELETE", "OPTIONS", "TRACE", "BREW"] {
        let request = stranger.request(method.parse().unwrap(), scene.server.at("/v1/meetings"));
        assert_eq!(send(request).await.status, 401, "{method}");
    }
    assert_eq!(stranger.head(scene.server.at("/v1/meetings")).send().await.unwrap().status(), 401);
}

/// Fills a route's parameters in.
fn fill(path: &str, id: &str, other: &str) -> String {
    path.replace("{id}", id)
        .replace("{speaker}", other)
        .replace("{sample}", other)
        .replace("{stage}", "asr")
        .replace("{key}", "asr:x")
        .replace("{name}", "icon.svg")
        .replace("{*rest}", "index.html")
}

#[tokio::test]
async fn metrics_and_the_docs_answer_everybody_only_if_the_configuration_says_so() {
    for (arguments, open) in [
        (&[][..], &[][..]),
        (&["--open", "metrics"], &["/metrics"]),
        (&["--open", "metrics,docs"], &["/metrics", "/docs/", "/openapi.json"]),
    ] {
        let scene = Scene::start_with(arguments).await;
        for path in ["/metrics", "/docs/", "/openapi.json", "/v1/meetings", "/meetings"] {
            let status = send(client("").get(scene.server.at(path))).await.status;
            assert_eq!(status, if open.contains(&path) { 200 } else { 401 }, "{arguments:?} {path}");
        }
    }
}

#[tokio::test]
async fn the_command_line_makes_tokens_with_a_key_that_only_its_owner_reads() {
    let directory = tempfile::tempdir().unwrap();
    let data_dir = directory.path().join("data");
    let token = async |arguments: &[&str]| {
        let mut command = minutebook(&[&["token"], arguments].concat());
        command.env_remove("MINUTEBOOK_SIGNING_KEY_FILE").env("MINUTEBOOK_DATA_DIR", &data_dir);
        run(&mut command).await
    };
    let first = token(&["--role", "reviewer", "--subject", "rev-7", "--expires", "30m"]).await;
    assert_eq!(first.code, Some(0), "{}", first.stderr);
    let path = data_dir.join("keys/signing.key");
    assert!(first.stderr.contains(&path.display().to_string()) && first.stderr.contains("back it up"));
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let said = |token: &str| {
        let claims = URL_SAFE_NO_PAD.decode(token.trim().split('.').nth(1).unwrap()).unwrap();
        serde_json::from_slice::<Value>(&claims).unwrap()
    };
    let claims = said(&first.stdout);
    for (name, value) in
        [("sub", "rev-7"), ("role", "reviewer"), ("iss", "minutebook"), ("aud", "minutebook")]
    {
        assert_eq!(claims[name], value, "{claims}");
    }
    let left = claims["exp"].as_f64().unwrap() - now() as f64;
    assert!((1790.0..=1800.0).contains(&left), "{left}");

    let mut key = String::new();
    std::fs::File::open(&path).unwrap().read_to_string(&mut key).unwrap();
    assert!(!format!("{}{}", first.stdout, first.stderr).contains(key.lines().nth(1).unwrap()));
    let second = token(&["--role", "admin"]).await;
    assert_eq!((second.code, second.stderr.as_str()), (Some(0), ""), "the key is there");
    assert_eq!(second.stdout.lines().count(), 1, "a token and nothing else");
    for (arguments, code) in [
        (&["--role", "root"][..], 2),
        (&[], 2),
        (&["--role", "admin", "--subject", "ada@example.org"], 1),
        (&["--role", "member"], 1),
        (&["--role", "admin", "--expires", "never"], 2),
    ] {
        let ran = token(arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{arguments:?}: {}", ran.stderr);
    }

    // The key of others to read is no secret; a container's secret has the mode that it was given.
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let open = token(&["--role", "admin"]).await;
    assert_eq!((open.code, open.stdout.as_str()), (Some(1), ""), "{}", open.stderr);
    assert!(open.stderr.contains(&format!("chmod 600 {}", path.display())), "{}", open.stderr);
    let mut named = minutebook(&["token", "--role", "admin"]);
    let named = run(named.env("MINUTEBOOK_SIGNING_KEY_FILE", &path)).await;
    assert_eq!((named.code, named.stdout.lines().count()), (Some(0), 1), "{}", named.stderr);
    assert!(named.stderr.contains("may read this key"), "{}", named.stderr);
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();

    // A server that knows this key takes them; another one does not.
    let scene = Scene::start().await;
    refused(&ask(&scene, &format!("Bearer {}", second.stdout.trim())).await, "invalid_token", "another key");
    let scene = Scene::start_with(&["--signing-key-file", path.to_str().unwrap()]).await;
    assert_eq!(ask(&scene, &format!("Bearer {}", second.stdout.trim())).await.status, 200);
}

#[test]
fn every_role_has_something_to_do() {
    for role in Role::ALL {
        let own =
            TABLE.iter().filter(|access| matches!(access.who, Who::Roles(roles) if roles.contains(&role)));
        assert!(own.count() > 5, "{role:?}");
    }
}
