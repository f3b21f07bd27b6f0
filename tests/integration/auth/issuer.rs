//! Tokens of an issuer, whose keys come from a file or a URL, and change.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{ask, claims, refused};
use crate::http::Scene;
use crate::read_models::eventually;

const P256: &str = include_str!("../../fixtures/tokens/p256.pkcs8.base64");
const RSA_2048: &str = include_str!("../../fixtures/tokens/rsa2048.pkcs1.base64");
const RSA_1024: &str = include_str!("../../fixtures/tokens/rsa1024.pkcs1.base64");

/// A key of an issuer.
struct Key {
    kid: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Key {
    fn ed25519(kid: &'static str, seed: u8) -> Self {
        let prefix =
            [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
        let der = [&prefix[..], &[seed; 32]].concat();
        Self { kid, algorithm: Algorithm::EdDSA, key: EncodingKey::from_ed_der(&der) }
    }

    fn p256(kid: &'static str) -> Self {
        Self { kid, algorithm: Algorithm::ES256, key: EncodingKey::from_ec_der(&der(P256)) }
    }

    fn rsa(kid: &'static str, text: &str) -> Self {
        Self { kid, algorithm: Algorithm::RS256, key: EncodingKey::from_rsa_der(&der(text)) }
    }

    fn jwk(&self) -> Value {
        let mut jwk = Jwk::from_encoding_key(&self.key, self.algorithm).unwrap();
        jwk.common.key_id = Some(self.kid.to_owned());
        serde_json::to_value(jwk).unwrap()
    }

    fn token(&self) -> String {
        self.token_naming(Some(self.kid))
    }

    fn token_naming(&self, kid: Option<&str>) -> String {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(self.algorithm) };
        let mut claims = claims();
        claims["iss"] = json!("https://issuer.example");
        format!("Bearer {}", encode(&header, &claims, &self.key).unwrap())
    }
}

fn der(base64: &str) -> Vec<u8> {
    STANDARD.decode(base64.split_whitespace().collect::<String>()).unwrap()
}

/// A little server that has the keys of an issuer.
struct Issuer {
    url: String,
    keys: Arc<Mutex<(StatusCode, String)>>,
    asked: Arc<AtomicUsize>,
    serving: JoinHandle<()>,
}

type Shared = (Arc<Mutex<(StatusCode, String)>>, Arc<AtomicUsize>);

impl Issuer {
    async fn start(keys: &[&Key]) -> Self {
        let shared: Shared = (Arc::new(Mutex::new((StatusCode::OK, set(keys)))), Arc::default());
        let answer = async |State((keys, asked)): State<Shared>| {
            asked.fetch_add(1, Ordering::SeqCst);
            keys.lock().unwrap().clone()
        };
        let router = Router::new().route("/keys", get(answer)).with_state(shared.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let (keys, asked) = shared;
        Self { url, keys, asked, serving }
    }

    fn has(&self, keys: &[&Key]) {
        *self.keys.lock().unwrap() = (StatusCode::OK, set(keys));
    }

    fn answers(&self, status: StatusCode, text: &str) {
        *self.keys.lock().unwrap() = (status, text.to_owned());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn set(keys: &[&Key]) -> String {
    json!({"keys": keys.iter().map(|key| key.jwk()).collect::<Vec<_>>()}).to_string()
}

async fn serve(jwks: &str, refresh: &str) -> Scene {
    let arguments = ["--jwks", jwks, "--issuer", "https://issuer.example", "--jwks-refresh", refresh];
    Scene::start_with(&arguments).await
}

#[tokio::test]
async fn a_new_key_is_fetched_when_it_is_met_and_made_up_ones_do_not_make_the_server_ask_all_the_time() {
    let (old, new) = (Key::ed25519("old", 1), Key::ed25519("new", 2));
    let issuer = Issuer::start(&[&old]).await;
    let scene = serve(&issuer.url, "3600").await;
    assert_eq!(ask(&scene, &old.token()).await.status, 200);
    assert_eq!(issuer.asked(), 1, "at the start, and not for each token");
    issuer.has(&[&old, &new]);
    assert_eq!(ask(&scene, &new.token()).await.status, 200, "the unknown key is asked for at once");
    assert_eq!(ask(&scene, &old.token()).await.status, 200, "the old one counts as long as it is in the set");
    assert_eq!(issuer.asked(), 2);
    for n in 3..13 {
        refused(&ask(&scene, &Key::ed25519("made-up", n).token()).await, "invalid_token", "made up");
    }
    assert_eq!(issuer.asked(), 2, "it has just been asked");
    // A key of a known name, but another one.
    refused(&ask(&scene, &Key::ed25519("new", 9).token()).await, "invalid_token", "another key");
}

#[tokio::test]
async fn a_key_that_is_taken_out_counts_no_more_and_keys_stay_while_the_issuer_is_away() {
    let (old, new) = (Key::ed25519("old", 1), Key::ed25519("new", 2));
    let issuer = Issuer::start(&[&old, &new]).await;
    let scene = serve(&issuer.url, "0.2").await;
    for key in [&old, &new] {
        assert_eq!(ask(&scene, &key.token()).await.status, 200);
    }
    let token = old.token();
    issuer.has(&[&new]);
    let answer = eventually("the old key is forgotten", async || {
        let answer = ask(&scene, &token).await;
        (answer.status != 200).then_some(answer)
    })
    .await;
    refused(&answer, "invalid_token", "also a token that was remembered");
    // What is no set of keys takes none away.
    for (status, text) in [
        (StatusCode::INTERNAL_SERVER_ERROR, "broken"),
        (StatusCode::OK, "nonsense"),
        (StatusCode::OK, r#"{"keys": []}"#),
        (StatusCode::FOUND, ""),
    ] {
        issuer.answers(status, text);
        let asked = issuer.asked();
        eventually("it is asked again", async || (issuer.asked() > asked).then_some(())).await;
        assert_eq!(ask(&scene, &new.token()).await.status, 200, "{status} {text}");
    }
    drop(issuer);
    assert_eq!(ask(&scene, &new.token()).await.status, 200);
    assert_eq!(scene.get("/readyz").await.status, 200);
}

#[tokio::test]
async fn a_server_starts_while_the_issuer_is_away_and_lets_in_whoever_it_can_tell_later() {
    let key = Key::ed25519("a", 1);
    let issuer = Issuer::start(&[&key]).await;
    issuer.answers(StatusCode::SERVICE_UNAVAILABLE, "");
    let scene = serve(&issuer.url, "0.2").await;
    let answer = ask(&scene, &key.token()).await;
    answer.is_problem(503, "keys_unavailable");
    issuer.has(&[&key]);
    eventually("the keys come", async || (ask(&scene, &key.token()).await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn each_kind_of_key_is_for_its_own_algorithm_from_a_file_too() {
    let (ed, ec, rsa) = (Key::ed25519("ed", 1), Key::p256("ec"), Key::rsa("rsa", RSA_2048));
    let weak = Key::rsa("weak", RSA_1024);
    let mut keys = serde_json::from_str::<Value>(&set(&[&ed, &ec, &rsa, &weak])).unwrap();
    let list = keys["keys"].as_array_mut().unwrap();
    // Of other kinds and for other purposes: passed over.
    list.push(json!({"kty": "oct", "kid": "secret", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA"}));
    list.push(json!({"kty": "OKP", "crv": "X25519", "kid": "x", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}));
    list.push(json!({"kty": "new", "kid": "n"}));
    list.push(json!("nonsense"));
    let mut encryption = Key::ed25519("enc", 5).jwk();
    encryption["use"] = json!("enc");
    list.push(encryption);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.json");
    std::fs::write(&path, keys.to_string()).unwrap();
    let scene = serve(path.to_str().unwrap(), "0.2").await;
    for key in [&ed, &ec, &rsa] {
        assert_eq!(ask(&scene, &key.token()).await.status, 200, "{}", key.kid);
    }
    // A key that is not named is the only one of its kind, or none: the local one is of the first one's kind.
    for key in [&ec, &rsa] {
        assert_eq!(ask(&scene, &key.token_naming(None)).await.status, 200, "{}", key.kid);
    }
    refused(&ask(&scene, &ed.token_naming(None)).await, "invalid_token", "one of two");
    refused(&ask(&scene, &weak.token()).await, "invalid_token", "1024 bits");
    refused(
        &ask(&scene, &Key::ed25519("enc", 5).token()).await,
        "invalid_token",
        "a key for another purpose",
    );
    for (key, kid) in [(&ed, "ec"), (&ec, "rsa"), (&rsa, "ed")] {
        refused(&ask(&scene, &key.token_naming(Some(kid))).await, "invalid_token", "another's name");
    }
    let secret = EncodingKey::from_secret(b"secret-secret-secret-secret-secret");
    let symmetric = Key { kid: "secret", algorithm: Algorithm::HS256, key: secret };
    refused(&ask(&scene, &symmetric.token()).await, "invalid_token", "a symmetric key");
    // The local key counts, because the harness names its file; the issuer is the configured one.
    let local = format!("Bearer {}", super::signed(json!({"iss": "https://issuer.example"})));
    assert_eq!(ask(&scene, &local).await.status, 200);

    let next = Key::ed25519("next", 6);
    std::fs::write(&path, set(&[&next])).unwrap();
    eventually("the file is read anew", async || {
        (ask(&scene, &next.token()).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn keys_that_cannot_be_trusted_or_read_keep_the_server_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let nonsense = directory.path().join("nonsense.json");
    std::fs::write(&nonsense, "nonsense").unwrap();
    let database = tests::TestDatabase::create().await;
    for (jwks, said) in [
        ("http://issuer.example/keys", "must be https"),
        (directory.path().join("missing.json").to_str().unwrap(), "cannot read the keys"),
        (nonsense.to_str().unwrap(), "no JSON Web Key Set"),
    ] {
        let ran = crate::cli::run_on(&database, &["serve", "--listen", "127.0.0.1:0", "--jwks", jwks]).await;
        assert_eq!(ran.code, Some(1), "{jwks}");
        assert!(ran.stderr.contains(said), "{jwks}: {}", ran.stderr);
    }
}
