//! Whatever a client sends: the right status and code, and nothing in the log. The routes, their fields, and
//! their headers come from the OpenAPI document, so that a new one cannot be forgotten.

use std::sync::Mutex;

use reqwest::header::HeaderValue;
use reqwest::{Body, Method, RequestBuilder};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::contract::{Document, Operation, SECRET};
use super::{Answer, Scene, connect, read_all, send, sha256};

const JSON: &str = "application/json";
/// Texts that are no UUIDs, as they stand in a path.
const NO_UUIDS: [&str; 6] = ["nonsense", "0", "018f0000-0000-7000-8000-00000000000", "%00", "%ff", "..%2f.."];

/// The codes of bodies that are not what they must be.
const UNFIT: [&str; 4] = ["invalid_body", "invalid_value", "wrong_dimension", "invalid_vector"];

#[tokio::test]
async fn a_body_of_the_wrong_shape_is_refused_on_every_route() {
    let border = Border::new(&[]).await;
    for operation in border.commands() {
        for body in border.document.spoilt_bodies(operation) {
            let answer = send(border.to(operation).json(&body)).await;
            border.check(operation, &clip(&body), &answer, (422, &UNFIT));
        }
    }
    border.close().await;
}

#[tokio::test]
async fn a_body_that_is_not_json_or_not_utf_8_is_refused_on_every_route() {
    let border = Border::new(&[]).await;
    let nested = format!("{{\"surprise\":{}1{}}}", "[".repeat(200), "]".repeat(200));
    let objects = format!("{}1{}", "{\"a\":".repeat(200), "}".repeat(200));
    let malformed: [&[u8]; 16] = [
        b"{",
        b" ",
        b"nonsense",
        b"{}{}",
        b"{'a': 1}",
        b"{\"surprise\": NaN}",
        b"{\"surprise\": Infinity}",
        b"{\"surprise\": 1e400}",
        b"{\"surprise\": 01}",
        b"{\"surprise\": \"\\ud800\"}",
        b"{\"surprise\": \"\\udc00\\ud800\"}",
        b"{\"surprise\": \"\xff\"}",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
        nested.as_bytes(),
        objects.as_bytes(),
    ];
    for operation in border.commands() {
        for body in malformed {
            let request = border.to(operation).header("content-type", JSON).body(body.to_vec());
            let what = String::from_utf8_lossy(&body[..body.len().min(40)]).into_owned();
            border.check(operation, &what, &send(request).await, (400, &["malformed_json"]));
        }
    }
    border.close().await;
}

#[tokio::test]
async fn a_body_that_does_not_say_that_it_is_json_is_refused_on_every_route() {
    let border = Border::new(&[]).await;
    for operation in border.commands() {
        let body = border.document.sample_body(operation).to_string();
        for media_type in [
            None,
            Some(""),
            Some("json"),
            Some("text/plain"),
            Some("text/json"),
            Some("application/x-www-form-urlencoded"),
        ] {
            let mut request = border.to(operation).body(body.clone());
            if let Some(media_type) = media_type {
                request = request.header("content-type", media_type);
            }
            let what = format!("content-type {media_type:?}");
            border.check(operation, &what, &send(request).await, (415, &["unsupported_media_type"]));
        }
    }
    border.close().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_on_every_route() {
    let border = Border::new(&["--body-limit", "1000"]).await;
    let too_large = json!({"surprise": "x".repeat(1000)}).to_string();
    for operation in border.commands() {
        let request = border.to(operation).header("content-type", JSON).body(too_large.clone());
        border.check(operation, "a large body", &send(request).await, (413, &["body_too_large"]));

        // Without a length it is found out on the way.
        let head = format!(
            "{} {} HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nContent-Type: application/json\r\nConnection: close\r\n\
             Transfer-Encoding: chunked\r\n\r\n",
            operation.method,
            border.path(operation),
            tests::tokens::usual()
        );
        let chunked = format!("{head}{:x}\r\n{too_large}\r\n0\r\n\r\n", too_large.len());
        let answer = raw(&border.scene, chunked.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body_too_large"), "{answer}");
    }
    border.close().await;
}

#[tokio::test]
async fn a_value_that_only_the_domain_can_judge_is_refused() {
    let border = Border::new(&[]).await;
    let segments = |n: usize| vec![json!({"start_ms": 0, "duration_ms": 1}); n];
    let one = |segments: Value| json!({"clusters": [{"cluster_id": "a", "segments": segments}]});
    let register = |field: &str, value: Value| json!({"sha256": sha256(9), field: value});
    let artifact = |field: &str, value: Value| {
        let mut body = json!({"type": "summary.json", "s3_key": "a/b"});
        body[field] = value;
        body
    };
    let twice = json!({"clusters": [{"cluster_id": "a"}, {"cluster_id": "a"}]});
    let cases = [
        (
            "POST /v1/meetings",
            vec![
                register("mime", json!("audio")),
                register("mime", json!("")),
                register("mime", json!("*/*")),
                register("duration", json!(2_147_483_648_u32)),
                register("size", json!(9_223_372_036_854_775_808_u64)),
                register("sha256", json!(format!("{}é", "a".repeat(62)))),
            ],
        ),
        (
            "POST /v1/meetings/{id}/artifacts",
            vec![
                artifact("s3_key", json!("/a")),
                artifact("s3_key", json!("../a")),
                artifact("s3_key", json!("a//b")),
                artifact("s3_key", json!("a\nb")),
                artifact("type", json!("video.mp4")),
                artifact("meta", json!({"deep": [{"text": "a\0"}]})),
                artifact("meta", json!({"a\0": 1})),
                artifact("meta", json!({"text": "x".repeat(16 * 1024)})),
            ],
        ),
        (
            "POST /v1/meetings/{id}/fail",
            vec![
                json!({"stage": "meeting", "reason": "because"}),
                json!({"stage": "A b", "reason": "because"}),
            ],
        ),
        (
            "POST /v1/meetings/{id}/fingerprint",
            vec![json!({"content_fp": "a b"}), json!({"content_fp": "ü"})],
        ),
        (
            "POST /v1/meetings/{id}/language",
            vec![json!({"language": "english!"}), json!({"language": "de-1901-CH"})],
        ),
        (
            "POST /v1/meetings/{id}/speakers",
            vec![twice, one(json!(segments(50_001))), one(json!([{"start_ms": u32::MAX, "duration_ms": 1}]))],
        ),
        // Its length counts in bytes.
        ("PUT /v1/meetings/{id}/cache/{stage}", vec![json!({"value": "ü".repeat(1024 * 1024 / 2 + 1)})]),
        (
            "POST /v1/profiles",
            vec![json!({"display_name": "Ada\nLovelace"}), json!({"display_name": "ü".repeat(256)})],
        ),
        ("POST /v1/profiles/{id}/rename", vec![json!({"display_name": "Ada\u{7f}"})]),
        (
            "POST /v1/operations/rebuilds",
            ["dry-run", "rollback", "verify"]
                .map(|kind| json!({"kind": kind, "accept_differences": true}))
                .into_iter()
                .chain([json!({"kind": "rollback", "full_speed": true})])
                .collect(),
        ),
    ];
    for (name, bodies) in cases {
        let operation = border.operations.iter().find(|operation| operation.name() == name).unwrap();
        for body in bodies {
            let answer = send(border.to(operation).json(&body)).await;
            border.check(operation, &clip(&body), &answer, (422, &UNFIT));
        }
    }
    border.close().await;
}

#[tokio::test]
async fn a_header_that_makes_no_sense_is_refused_on_every_route_that_reads_it() {
    let border = Border::new(&["--position-timeout", "0.2"]).await;
    for operation in border.operations.iter().filter(|operation| operation.is_v1()) {
        let headers = operation.parameters("header");
        assert!(!headers.is_empty(), "{}", operation.name());
        for header in headers {
            let name = header["name"].as_str().unwrap();
            for value in bad_header_values(name) {
                let request = border.good(operation).header(name, HeaderValue::from_bytes(&value).unwrap());
                let what = format!("{name}: {:?}", String::from_utf8_lossy(&value));
                border.check(operation, &what, &send(request).await, (422, &["invalid_header"]));
            }
            let twice = border.good(operation).header(name, "\"1\"").header(name, "\"1\"");
            border.check(operation, &format!("{name} twice"), &send(twice).await, (422, &["invalid_header"]));
        }
        if !operation.is_command() {
            let beyond = border.good(operation).header("minutebook-min-position", i64::MAX);
            border.check(operation, "beyond the head", &send(beyond).await, (503, &["position_not_reached"]));
        }
    }
    border.close().await;
}

fn bad_header_values(name: &str) -> Vec<Vec<u8>> {
    let no_ids = ["", "a b", "ada@example.org", &"x".repeat(101), "ü"];
    let texts = match name {
        "Idempotency-Key" => vec!["", "ü", &"x".repeat(256)].into_iter().map(str::to_owned).collect(),
        "If-Match" => {
            ["", "*", "1", "\"x\"", "W/\"1\"", "\"-1\"", "\"1\", \"2\"", "\"4294967296\"", "\"1", "\"+1\""]
                .map(str::to_owned)
                .to_vec()
        }
        "Last-Event-ID" => {
            let epoch = uuid::Uuid::nil();
            ["", "1", "x:1", "ü", &format!("{epoch}:-1"), &format!("{epoch}:x")].map(str::to_owned).to_vec()
        }
        "Minutebook-Correlation-Id" | "Minutebook-Causation-Id" => no_ids.map(str::to_owned).to_vec(),
        "Minutebook-Min-Position" => ["", "-1", "+1", "x", "1.5", "0x1", "1, 2", "9223372036854775808", "ü"]
            .map(str::to_owned)
            .to_vec(),
        other => panic!("the document has a header {other} that the tests do not know yet"),
    };
    let mut bad = texts.into_iter().map(String::into_bytes).collect::<Vec<_>>();
    bad.push(b"\xff".to_vec());
    bad
}

#[tokio::test]
async fn a_path_that_names_nothing_is_not_found_and_one_that_cannot_name_anything_is_refused() {
    let border = Border::new(&[]).await;
    for operation in border.operations.iter().filter(|operation| operation.is_v1()) {
        for parameter in operation.parameters("path") {
            let name = parameter["name"].as_str().unwrap();
            let long = "x".repeat(101);
            let (unknown, impossible) = match name {
                "id" if operation.path.starts_with("/v1/operations/rebuilds") => (
                    vec!["0", "4711", "-1", "9223372036854775807"],
                    vec!["nonsense", "1.5", "9223372036854775808", "%00", "%ff", "..%2f.."],
                ),
                "id" => (
                    vec!["018f0000-0000-7000-8000-0000000000ff", "00000000-0000-0000-0000-000000000000"],
                    NO_UUIDS.to_vec(),
                ),
                "speaker" | "sample" => (vec!["018f0000-0000-7000-8000-0000000000ff"], NO_UUIDS.to_vec()),
                "stage" => (vec![], vec!["meeting", "A", "a%20b", "a:b", "%00", "%ff", long.as_str()]),
                "key" => (vec!["nobody:knows", "meeting", "%00", "a%2fb", long.as_str()], vec!["%ff"]),
                other => panic!("the document has a parameter {other} that the tests do not know yet"),
            };
            let not_found = if operation.path.ends_with("/dismiss") && name == "speaker" {
                "correction_not_found"
            } else if name == "speaker" {
                "speaker_not_found"
            } else if name == "sample" {
                "sample_not_found"
            } else if operation.path.starts_with("/v1/meetings") {
                "meeting_not_found"
            } else if operation.path.starts_with("/v1/profiles") {
                "profile_not_found"
            } else if operation.path.starts_with("/v1/files") {
                "file_not_found"
            } else if operation.path.starts_with("/v1/erasures") {
                "erasure_not_found"
            } else if operation.path.starts_with("/v1/operations") {
                "rebuild_not_found"
            } else {
                "cache_miss"
            };
            for (value, expected) in unknown
                .into_iter()
                .map(|value| (value, (404, [not_found])))
                .chain(impossible.into_iter().map(|value| (value, (422, ["invalid_path"]))))
            {
                let template = operation.path.replace(&format!("{{{name}}}"), value);
                let path = border.fill(&operation.path, &template);
                let answer = send(border.good_at(operation, &path)).await;
                border.check(operation, &path, &answer, (expected.0, &expected.1));
            }
        }
    }
    // Also where a cursor says that the first page is behind us.
    let events = border.operations.iter().find(|operation| operation.path.ends_with("/events")).unwrap();
    let path = "/v1/meetings/018f0000-0000-7000-8000-0000000000ff/events?cursor=5";
    border.check(events, path, &border.scene.get(path).await, (404, &["meeting_not_found"]));
    border.close().await;
}

#[tokio::test]
async fn a_query_that_makes_no_sense_is_refused_on_every_route() {
    let border = Border::new(&[]).await;
    for operation in border.operations.iter().filter(|operation| operation.is_v1()) {
        // What a route does not know is a slip of the pen: it would list too much, or do what was not meant.
        let mut bad = vec!["surprise=1".to_owned(), "Limit=1".to_owned()];
        for parameter in operation.parameters("query") {
            let name = parameter["name"].as_str().unwrap();
            bad.extend(["", "%00%20%C3%BC", "%ff", &"x".repeat(1000)].map(|value| format!("{name}={value}")));
            bad.push(format!("{name}=1&{name}=1"));
            if name == "limit" {
                bad.extend(
                    ["0", "501", "-1", "1.5", "1e1", "65536", "0x1"].map(|value| format!("limit={value}")),
                );
            }
        }
        if operation.path == "/v1/files" {
            bad.extend([String::new(), format!("sha256={}&content_fp=a", sha256(1)), "limit=3".to_owned()]);
        }
        for query in bad {
            let request = border.good_at(operation, &format!("{}?{query}", border.path(operation)));
            border.check(operation, &query, &send(request).await, (422, &["invalid_query"]));
        }
    }
    border.close().await;
}

#[tokio::test]
async fn a_command_that_the_status_does_not_allow_is_refused() {
    let border = Border::new(&[]).await;
    let scene = &border.scene;
    let (work, why) = (json!({"worker": "gpu-1"}), json!({"stage": "decode", "reason": "broken"}));
    // Each status, and the steps that lead there.
    let roads: [(&str, &[(&str, &Value)]); 4] = [
        ("pending", &[]),
        ("processing", &[("start", &work)]),
        ("completed", &[("start", &work), ("complete", &json!({}))]),
        ("failed", &[("start", &work), ("fail", &why)]),
    ];
    for (n, (status, road)) in roads.into_iter().enumerate() {
        let meeting = scene.register(n + 100).await;
        for (command, body) in road {
            scene.command(&format!("{}/{command}", meeting.meeting()), (*body).clone()).await;
        }
        let mark = scene.log_mark().await;
        for operation in
            border.commands().filter(|operation| operation.path.starts_with("/v1/meetings/{id}/"))
        {
            let command = operation.path.strip_prefix("/v1/meetings/{id}/").unwrap();
            if let Some(code) = refusal(status, command) {
                let path = operation.path.replace("{id}", &meeting.id).replace("{stage}", "transcribe");
                let answer = send(border.good_at(operation, &path)).await;
                border.check(operation, status, &answer, (409, &[code]));
            }
        }
        assert_eq!(scene.log_mark().await, mark, "{status}");
    }
    border.complaints();
}

/// Returns the code with which a meeting of this status refuses a command, none if it takes it.
fn refusal(status: &str, command: &str) -> Option<&'static str> {
    const ILLEGAL: Option<&str> = Some("illegal_transition");
    match (command, status) {
        ("start", "processing") => Some("taken_by_another_worker"),
        ("start", "pending") | ("retry", "failed") | ("reprocess", "completed") => None,
        ("start" | "retry" | "reprocess", _) => ILLEGAL,
        ("cache/{stage}", "processing" | "completed") => Some("fingerprint_missing"),
        ("artifacts" | "complete", "processing" | "completed") => None,
        ("fingerprint" | "language" | "speakers" | "fail", "processing") => None,
        (
            "fingerprint" | "language" | "speakers" | "artifacts" | "complete" | "fail" | "cache/{stage}",
            _,
        ) => ILLEGAL,
        // A speaker is of one meeting, whatever its status.
        ("speakers/{speaker}/reassign" | "speakers/{speaker}/undo", _) => None,
        ("pending-corrections/{speaker}/dismiss", _) => None,
        (other, _) => panic!("the document has a command {other} that the tests do not know yet"),
    }
}

#[tokio::test]
async fn a_method_that_a_route_lacks_is_refused_and_the_others_are_named() {
    let border = Border::new(&[]).await;
    let others = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE, Method::OPTIONS];
    for path in border.document.0["paths"].as_object().unwrap().keys() {
        let known = border.operations.iter().filter(|operation| operation.path == *path);
        let known = known.map(|operation| operation.method.clone()).collect::<Vec<_>>();
        for method in others.iter().filter(|method| !known.contains(method)) {
            let answer = send(border.scene.request(method, &border.fill(path, path)).json(&json!({}))).await;
            answer.is_problem(405, "method_not_allowed");
            let allowed =
                answer.header("allow").unwrap_or_default().split(',').map(str::trim).collect::<Vec<_>>();
            assert!(
                known.iter().all(|method| allowed.contains(&method.as_str())),
                "{method} {path}: {answer:?}"
            );
        }
    }
    border.close().await;
}

#[tokio::test]
async fn a_route_that_there_is_not_is_not_found() {
    let border = Border::new(&[]).await;
    let meeting = &border.meeting;
    for path in [
        "/nowhere",
        "/v1",
        "/v2/meetings",
        "/v1/meetings/",
        "//v1/meetings",
        "/v1/Meetings",
        "/v1/cache/",
        "/%00",
        "/%ff",
        &format!("/v1/meetings/{meeting}/start/now"),
        &format!("/v1/meetings/{meeting}/cache/"),
    ] {
        for method in [Method::GET, Method::POST, Method::DELETE] {
            send(border.scene.request(&method, path)).await.is_problem(404, "route_not_found");
        }
    }
    border.close().await;
}

#[tokio::test]
async fn what_is_hardly_http_is_turned_away_and_the_server_lives_on() {
    let border = Border::new(&[]).await;
    let post = format!(
        "POST /v1/meetings HTTP/1.1\r\nHost: localhost\r\nAuthorization: {}\r\nConnection: close\r\n\
         Content-Type: application/json\r\n",
        tests::tokens::usual()
    );
    let many = (0..200).map(|n| format!("x-{n}: 1\r\n")).collect::<String>();
    // What is sent, and which status comes back.
    let cases = [
        ("NONSENSE\r\n\r\n".to_owned(), "400"),
        (format!("GET /{} HTTP/1.1\r\nHost: localhost\r\n\r\n", "x".repeat(70_000)), "431"),
        (format!("GET / HTTP/1.1\r\nHost: localhost\r\n{many}\r\n"), "431"),
        (format!("{post}Idempotency-Key: a\0\r\n\r\n"), "400"),
        (format!("{post}Content-Length: many\r\n\r\n"), "400"),
        (format!("{post}Transfer-Encoding: chunked\r\n\r\nnonsense\r\n"), "400"),
        (format!("{post}Content-Length: 100\r\n\r\n{{\"sha256\": \"{}\"}}", sha256(7)), "400"),
    ];
    for (request, status) in cases {
        let answer = raw(&border.scene, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{:?}: {answer}", clip(&json!(request)));
    }
    border.scene.get("/healthz").await.expect(200);
    border.close().await;
}

/// Sends bytes and no more; returns what comes back.
async fn raw(scene: &Scene, bytes: &[u8]) -> String {
    let mut stream = connect(&scene.server).await;
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    read_all(&mut stream).await
}

/// A server with something of everything in it: a meeting under way, its file, its speaker, a cached result, a
/// person, a voice.
struct Border {
    scene: Scene,
    document: Document,
    operations: Vec<Operation>,
    meeting: String,
    file: String,
    profile: String,
    speaker: String,
    sample: String,
    mark: (i64, i64),
    complaints: Mutex<Vec<String>>,
}

impl Border {
    async fn new(arguments: &[&str]) -> Self {
        // As many numbers as the document's example has.
        let arguments = [arguments, &["--voice-models", "resemblyzer-0.1.4=2"]].concat();
        let scene = Scene::start_with(&arguments).await;
        let document = Document::of(&scene).await;
        let registered = scene.register(1).await;
        let meeting = registered.meeting();
        scene.command(&format!("{meeting}/start"), json!({"worker": "gpu-1"})).await;
        let fp = json!({"content_fp": "pcm16k:1"});
        scene.command(&format!("{meeting}/fingerprint"), fp).await;
        let clusters = json!({"clusters": [{"cluster_id": "a"}]});
        scene.command(&format!("{meeting}/speakers"), clusters).await;
        let profile = scene.command("/v1/profiles", json!({"display_name": "Ada"})).await;
        let voice = json!({"model": "resemblyzer-0.1.4", "vector": [1, 0]});
        let voices = format!("/v1/profiles/{}/voice", profile.id);
        let enrolled = scene.command(&voices, voice).await;
        let sample = scene.read(&voices, enrolled.position).await["samples"][0]["sample_id"].clone();
        let sample = sample.as_str().unwrap().to_owned();
        let shown = scene.read(&meeting, enrolled.position).await;
        let speaker = shown["speakers"][0]["id"].as_str().unwrap().to_owned();
        let file = shown["file"]["id"].as_str().unwrap().to_owned();
        let operations = document.operations();
        let mark = scene.log_mark().await;
        let (meeting, profile) = (registered.id, profile.id);
        Self {
            scene,
            document,
            operations,
            meeting,
            file,
            profile,
            speaker,
            sample,
            mark,
            complaints: Mutex::default(),
        }
    }

    fn commands(&self) -> impl Iterator<Item = &Operation> {
        self.operations.iter().filter(|operation| operation.is_v1() && operation.is_command())
    }

    /// Fills what is left of a path's parameters with things that there are.
    fn fill(&self, template: &str, path: &str) -> String {
        let id = match template.split('/').nth(2) {
            Some("meetings") => &self.meeting,
            Some("files") => &self.file,
            Some("operations") => "1",
            _ => &self.profile,
        };
        let path = path.replace("{speaker}", &self.speaker).replace("{sample}", &self.sample);
        path.replace("{id}", id).replace("{stage}", "transcribe").replace("{key}", "transcribe:pcm16k:1")
    }

    fn path(&self, operation: &Operation) -> String {
        self.fill(&operation.path, &operation.path)
    }

    /// Returns a request without a body.
    fn to(&self, operation: &Operation) -> RequestBuilder {
        self.scene.request(&operation.method, &self.path(operation))
    }

    /// Returns a request with nothing wrong yet.
    fn good(&self, operation: &Operation) -> RequestBuilder {
        let query = if operation.path == "/v1/files" { "?content_fp=pcm16k:1" } else { "" };
        self.good_at(operation, &format!("{}{query}", self.path(operation)))
    }

    fn good_at(&self, operation: &Operation, path: &str) -> RequestBuilder {
        let mut request = self.scene.request(&operation.method, path);
        if operation.path.contains("{speaker}") {
            request = request.header("authorization", tests::tokens::acting("person:reviewer-7"));
        }
        if operation.is_command() {
            let body = self.document.sample_body(operation).to_string();
            return request.header("content-type", JSON).body(Body::from(body));
        }
        request
    }

    /// Notes a complaint if an answer is not the problem that it should be, or the document does not have it.
    fn check(&self, operation: &Operation, sent: &str, answer: &Answer, (status, codes): (u16, &[&str])) {
        let code = if answer.status >= 400 { answer.problem() } else { String::new() };
        let right = answer.status == status && codes.contains(&code.as_str());
        let documented = operation.statuses().contains(&answer.status);
        let discreet = !answer.body.contains(SECRET);
        if !(right && documented && discreet) {
            let complaint = format!(
                "{} {sent}: {} {}{}{}",
                operation.name(),
                answer.status,
                answer.body,
                if documented { "" } else { " (undocumented)" },
                if discreet { "" } else { " (repeats what was sent)" }
            );
            self.complaints.lock().unwrap().push(complaint);
        }
    }

    fn complaints(&self) {
        let complaints = self.complaints.lock().unwrap();
        assert!(complaints.is_empty(), "{} answers are wrong:\n{}", complaints.len(), complaints.join("\n"));
    }

    /// Checks that every answer was right and that nothing was written.
    async fn close(self) {
        self.complaints();
        assert_eq!(self.scene.log_mark().await, self.mark, "something was written");
        self.scene.get("/readyz").await.expect(200);
    }
}

fn clip(body: &Value) -> String {
    body.to_string().chars().take(120).collect()
}
