//! The pages, in a browser that runs no script, against the built program; and what no browser sends.

use std::time::Duration;

use api::auth::Role;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fantoccini::Locator;
use fantoccini::key::Key;
use reqwest::header::HeaderMap;
use reqwest::redirect::Policy;
use reqwest::{RequestBuilder, Url};
use serde_json::{Value, json};
use tests::server::{Server, answer};

use crate::browser::{Browser, Screen};
use crate::http::Scene;

const REVIEWER: &str = "reviewer-7";
/// What a reader of the pages must never be made to run.
const MARKUP: &str =
    "<script>document.title='run'</script><img src=x onerror=\"document.title='run'\">\"'&amp;";

/// A server with people, and a completed meeting of two speakers.
struct Stage {
    scene: Scene,
    /// The meeting's path.
    meeting: String,
    /// The paths of its speakers, in order of cluster.
    speakers: Vec<String>,
    /// The position of the last command.
    position: i64,
}

impl Stage {
    async fn set(names: &[&str]) -> Self {
        let scene = Scene::start().await;
        for name in names {
            scene.command("/v1/profiles", json!({"display_name": name})).await;
        }
        let (meeting, position) = hold_meeting(&scene, 1, "<b>a</b>").await;
        let read = scene.server.client.get(scene.server.at(&format!("/v1{meeting}/speakers")));
        let (_, shown) = answer(read.header("minutebook-min-position", position)).await;
        let path = |speaker: &Value| format!("{meeting}/speakers/{}", speaker["id"].as_str().unwrap());
        let speakers = shown["speakers"].as_array().unwrap().iter().map(path).collect();
        Self { scene, meeting, speakers, position }
    }

    fn at(&self, path: &str) -> String {
        self.scene.server.at(path)
    }

    /// Reads a page as text.
    async fn page(&self, path: &str) -> String {
        let request = self.scene.server.client.get(self.at(path));
        request.send().await.unwrap().text().await.unwrap()
    }
}

/// Takes a meeting through its life; returns its path and the last position.
async fn hold_meeting(scene: &Scene, n: usize, cluster: &str) -> (String, i64) {
    let file = json!({"sha256": format!("{n:064x}"), "mime": "audio/flac", "duration": 90});
    let meeting = scene.command("/v1/meetings", file).await.meeting();
    scene.command(&format!("{meeting}/start"), json!({"worker": "w"})).await;
    scene.command(&format!("{meeting}/language"), json!({"language": "en-GB"})).await;
    let segments =
        json!([{"start_ms": 0, "duration_ms": 30_000}, {"start_ms": 45_000, "duration_ms": 15_000}]);
    let clusters = json!({"clusters": [
        {"cluster_id": cluster, "segments": segments},
        {"cluster_id": "b", "segments": [{"start_ms": 30_000, "duration_ms": 15_000}]},
    ]});
    scene.command(&format!("{meeting}/speakers"), clusters).await;
    let artifact = json!({"type": "transcript.vtt", "s3_key": "m/transcript.vtt"});
    scene.command(&format!("{meeting}/artifacts"), artifact).await;
    let completed = scene.command(&format!("{meeting}/complete"), json!({})).await;
    (meeting.trim_start_matches("/v1").to_owned(), completed.position)
}

/// Opens a page, which asks to log in first, and logs in with a token of this role.
async fn log_in(browser: &Browser, scene: &Scene, path: &str, role: Role, id: &str) {
    browser.open(&scene.server.at(path)).await;
    browser.wait_for("#token").await;
    browser.write("#token", &tests::tokens::token(role, id)).await;
    browser.click("form button.main", "form.who").await;
    assert_eq!(browser.text("form.who span").await, format!("Acting as {id}"));
    let here = browser.client.current_url().await.unwrap();
    let here = here.as_str().trim_start_matches(&scene.server.url);
    assert_eq!(here, if path == "/" { "/meetings" } else { path }, "it leads to the page that was asked for");
}

/// Logs in as a browser does; returns the cookie.
async fn session(scene: &Scene, role: Role, id: &str) -> String {
    let form = [("token", &*tests::tokens::token(role, id)), ("back", "/meetings")];
    let response = filled(browserlike().post(scene.server.at("/login")), &form).send().await.unwrap();
    assert_eq!(response.status(), 303);
    let cookie = response.headers()["set-cookie"].to_str().unwrap();
    cookie.split(';').next().unwrap().to_owned()
}

/// Returns a client that has no token, and is led nowhere.
fn browserlike() -> reqwest::Client {
    reqwest::Client::builder().redirect(Policy::none()).build().unwrap()
}

/// Chooses the person with this name, gives a reason, and saves.
async fn save(browser: &Browser, name: &str, reason: &str, then: &str) {
    let choice = format!("//label[contains(@class, 'choice')][span[text()='{name}']]/input");
    browser.client.find(Locator::XPath(&choice)).await.unwrap().click().await.unwrap();
    browser.write("#reason", reason).await;
    browser.click("button.main", then).await;
}

#[tokio::test]
async fn a_reviewer_corrects_a_speaker_sees_it_in_the_audit_and_undoes_it() {
    let test = "a_reviewer_corrects_a_speaker_sees_it_in_the_audit_and_undoes_it";
    let Some(browser) = Browser::start(test, Screen::Desk).await else { return };
    let stage = Stage::set(&["Ada Lovelace", "Bo Diddley"]).await;
    log_in(&browser, &stage.scene, "/", Role::Admin, REVIEWER).await;
    assert_eq!(browser.text("h1").await, "Meetings");
    browser.click("table.rows tbody a", "svg.timeline").await;
    assert_eq!(browser.count("svg.timeline path").await, 2, "a lane for each speaker");
    assert!(browser.text("#speakers").await.contains("45 s 75 %"), "{}", browser.text("#speakers").await);
    browser.click("#speakers tbody a", "#reason").await;

    save(&browser, "Ada Lovelace", "I was there", ".notice.good").await;
    assert_eq!(browser.text(".notice").await, "Saved: it is Ada Lovelace from now on.");
    assert!(browser.text("h1").await.starts_with("Ada Lovelace"));
    browser.follow("Audit", "table.audit").await;
    let row = browser.text("table.audit tbody tr").await;
    for told in ["nobody known", "Ada Lovelace", REVIEWER, "I was there", "just before"] {
        assert!(row.contains(told), "{told} is not in {row}");
    }
    browser.follow("just before", ".notice").await;
    assert!(browser.text("#speakers").await.contains("Nobody known"), "as it stood before");
    assert_eq!(browser.count("main form").await, 0, "the past is read only");
    browser.client.back().await.unwrap();
    browser.click("table.audit tbody td a", "#undo-reason").await;
    browser.write("#undo-reason", "it was Bo").await;
    browser.click("section[aria-labelledby=undo] button", ".notice.good").await;
    assert_eq!(browser.text(".notice").await, "Saved: it is nobody known from now on.");

    let history = browser.text(".history").await;
    let (undone, said) = (history.find("it was Bo").unwrap(), history.find("I was there").unwrap());
    assert!(undone < said, "newest first: {history}");
    browser.open(&stage.at("/audit?actor=reviewer-7")).await;
    assert_eq!(browser.count("table.audit tbody tr").await, 2);
    browser.open(&stage.at("/audit?actor=nobody-else")).await;
    assert!(browser.text("main").await.contains("Nothing is like that"));
    let (_, events) = stage.scene.server.get(&format!("/v1{}/history", stage.speakers[0])).await;
    let decisions = events["decisions"].as_array().unwrap();
    let actors = decisions.iter().map(|decision| decision["actor"].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(actors, [REVIEWER, REVIEWER], "the pages act as whoever logged in");
}

#[tokio::test]
async fn of_two_reviewers_the_slower_one_is_told_and_loses_nothing_written() {
    let test = "of_two_reviewers_the_slower_one_is_told_and_loses_nothing_written";
    let Some(browser) = Browser::start(test, Screen::Desk).await else { return };
    let stage = Stage::set(&["Ada", "Bo"]).await;
    log_in(&browser, &stage.scene, &stage.speakers[0], Role::Reviewer, REVIEWER).await;
    // Meanwhile another one is quicker.
    let (_, people) = stage.scene.server.get("/v1/profiles").await;
    let bo =
        people["items"].as_array().unwrap().iter().find(|person| person["display_name"] == "Bo").unwrap();
    let said = json!({"profile_id": bo["id"], "reason": "her accent"});
    let path = format!("/v1{}/reassign", stage.speakers[0]);
    assert_eq!(stage.scene.server.post_as("person:reviewer-8", &path, &said).await.0, 200);

    save(&browser, "Ada", "She says her name", ".alert").await;
    let told = browser.text(".alert").await;
    for words in ["Somebody was quicker", "reviewer-8 said that it is Bo", "her accent"] {
        assert!(told.contains(words), "{words} is not in {told}");
    }
    assert!(browser.text("h1").await.starts_with("Bo"), "the page shows how it stands");
    let reason = browser.client.find(Locator::Css("#reason")).await.unwrap();
    assert_eq!(reason.prop("value").await.unwrap().unwrap(), "She says her name");
    assert_eq!(browser.text("label.choice:has(input:checked) span").await, "Ada", "the choice is kept");
    browser.picture("two-reviewers").await;
    // Having read it, the reviewer insists.
    browser.click("button.main", ".notice.good").await;
    assert_eq!(browser.text(".notice").await, "Saved: it is Ada from now on.");
    let history = browser.text(".history").await;
    assert!(history.contains("Ada instead of Bo"), "{history}");
}

#[tokio::test]
async fn a_person_is_found_by_part_of_the_name_among_hundreds_and_what_was_written_stays() {
    let test = "a_person_is_found_by_part_of_the_name_among_hundreds_and_what_was_written_stays";
    let Some(browser) = Browser::start(test, Screen::Phone).await else { return };
    let names =
        (0..120).map(|n| format!("Person {n:03}")).chain(["Zoë Quill".to_owned()]).collect::<Vec<_>>();
    let stage = Stage::set(&names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    log_in(&browser, &stage.scene, &stage.speakers[1], Role::Reviewer, REVIEWER).await;
    assert_eq!(browser.count("input[type=radio]").await, 20, "no more than fit");
    assert!(browser.text(".choices").await.contains("There are more people"));
    browser.write("#reason", "by her voice").await;
    browser.write("#name", "quil").await;
    browser.click("button[name=find]", "input[type=radio]").await;
    assert_eq!(browser.count("input[type=radio]").await, 1);
    let reason = browser.client.find(Locator::Css("#reason")).await.unwrap();
    assert_eq!(reason.prop("value").await.unwrap().unwrap(), "by her voice");
    save(&browser, "Zoë Quill", "by her voice", ".notice.good").await;
    assert!(browser.text("h1").await.starts_with("Zoë Quill"));
}

#[tokio::test]
async fn the_list_is_filtered_and_read_page_by_page() {
    let test = "the_list_is_filtered_and_read_page_by_page";
    let Some(browser) = Browser::start(test, Screen::Desk).await else { return };
    let scene = Scene::start().await;
    let owner = "018f0000-0000-7000-8000-00000000000a";
    let mut last = 0;
    for n in 1..=53 {
        let owner = (n == 53).then_some(owner);
        let file = json!({"sha256": format!("{n:064x}"), "owner": owner});
        last = scene.command("/v1/meetings", file).await.position;
    }
    let seen =
        scene.server.client.get(scene.server.at("/v1/meetings")).header("minutebook-min-position", last);
    assert_eq!(answer(seen).await.0, 200);
    log_in(&browser, &scene, "/meetings", Role::Auditor, "auditor-1").await;
    let select = browser.client.find(Locator::Css("#status")).await.unwrap();
    select.select_by_label("pending").await.unwrap();
    browser.click("form.filter button", "option[selected][value], option[selected]").await;
    assert_eq!(browser.count("table.rows tbody tr").await, 50);
    browser.follow("Next page", "a[href^='/meetings?'][href*=status]").await;
    assert_eq!(browser.count("table.rows tbody tr").await, 3);
    assert_eq!(browser.count(".pager a[rel=next]").await, 0);
    browser.follow("First page", ".pager a[rel=next]").await;
    assert_eq!(browser.count("table.rows tbody tr").await, 50);
    browser.write("#owner", owner).await;
    browser.click("form.filter button", "table.rows").await;
    assert_eq!(browser.count("table.rows tbody tr").await, 1);
    browser.write("#owner", "nobody's id").await;
    browser.click("form.filter button", ".alert").await;
    let owner = browser.client.find(Locator::Css("#owner")).await.unwrap();
    assert_eq!(owner.prop("value").await.unwrap().unwrap(), "nobody's id", "it stays as it was written");
    browser.open(&scene.server.at("/meetings?status=failed")).await;
    assert!(browser.text(".empty").await.contains("No meeting is like that"));
}

#[tokio::test]
async fn what_people_write_is_shown_as_text() {
    let test = "what_people_write_is_shown_as_text";
    let Some(browser) = Browser::start(test, Screen::Desk).await else { return };
    let stage = Stage::set(&[MARKUP]).await;
    let (_, people) = stage.scene.server.get("/v1/profiles").await;
    let said = json!({"profile_id": people["items"][0]["id"], "reason": MARKUP});
    let path = format!("/v1{}/reassign", stage.speakers[0]);
    let (_, accepted) = stage.scene.server.post_as("person:reviewer-8", &path, &said).await;
    let position = accepted["position"].as_i64().unwrap();
    log_in(&browser, &stage.scene, "/meetings", Role::Admin, REVIEWER).await;
    browser.open(&stage.at(&format!("{}?shown={position}", stage.meeting))).await;
    let shown = browser.text("#speakers").await;
    assert_eq!(shown.matches(MARKUP).count(), 2, "the name and the reason: {shown}");
    assert!(shown.contains("<b>a</b>"), "a cluster's label: {shown}");
    for (path, place) in [(&*stage.speakers[0], "main"), ("/audit", "table.audit")] {
        browser.open(&stage.at(path)).await;
        assert!(browser.text(place).await.contains(MARKUP), "{path}: {}", browser.text(place).await);
        assert_eq!(browser.count("script, img, main b b, td b").await, 0, "{path}");
        assert!(browser.client.title().await.unwrap().ends_with(" · Minutebook"), "{path}");
    }
    for path in [
        "/meetings?language=%22%3E%3Cscript%3E",
        "/audit?actor=%22%3E%3Cscript%3E",
        "/login?back=%22%3E%3Cscript%3E",
    ] {
        browser.open(&stage.at(path)).await;
        assert_eq!(browser.count("script").await, 0, "{path}");
    }
}

/// What is wrong with a page for somebody who cannot see it, or sees little of it at once.
const FAULTS: &str = r"
    const faults = [], all = selector => [...document.querySelectorAll(selector)];
    const fault = (say, element) => faults.push(say + ': ' + (element ? element.outerHTML.slice(0, 120) : ''));
    const ids = all('[id]').map(element => element.id);
    ids.filter((id, n) => ids.indexOf(id) !== n).forEach(id => fault('the id comes twice: ' + id));
    all('input:not([type=hidden]), select, textarea').filter(e => !e.labels.length).forEach(e => fault('no label', e));
    all('[aria-labelledby], [aria-describedby]').forEach(e => ['aria-labelledby', 'aria-describedby'].forEach(name =>
        (e.getAttribute(name) || '').split(/\s+/).filter(id => id && !ids.includes(id)).forEach(() => fault(name, e))));
    all('th').filter(e => !e.scope).forEach(e => fault('a header without a scope', e));
    all('table').filter(e => !e.caption || !e.tHead).forEach(e => fault('a table without a caption or head', e));
    all('a, button').filter(e => !e.textContent.trim()).forEach(e => fault('no name', e));
    all('svg:not([aria-hidden]):not([role]):not(svg svg)').forEach(e => fault('a drawing without a name', e));
    all('script, [style], [onclick], [onload]').forEach(e => fault('not by the policy', e));
    if (all('h1').length !== 1 || all('main').length !== 1) fault('not one heading and one main part');
    let level = 1;
    all('h1, h2, h3').forEach(e => { if (+e.tagName[1] > level + 1) fault('a level is left out', e); level = +e.tagName[1]; });
    if (!document.documentElement.lang || !document.title || document.compatMode !== 'CSS1Compat') fault('no language, title or type');
    if (document.documentElement.scrollWidth > innerWidth) fault('wider than the window: ' + document.documentElement.scrollWidth);
    return faults;
";

#[tokio::test]
async fn every_page_is_sound_and_fits_a_phone() {
    let test = "every_page_is_sound_and_fits_a_phone";
    for screen in [Screen::Phone, Screen::Desk] {
        let Some(browser) = Browser::start(test, screen).await else { return };
        let long = "Wolfeschlegelsteinhausenbergerdorff".repeat(5);
        let stage = Stage::set(&["Ada Lovelace", &long]).await;
        let (_, people) = stage.scene.server.get("/v1/profiles").await;
        for person in people["items"].as_array().unwrap() {
            let said = json!({"profile_id": person["id"], "reason": "x".repeat(300)});
            let path = format!("/v1{}/reassign", stage.speakers[0]);
            assert_eq!(stage.scene.server.post_as("person:reviewer-8", &path, &said).await.0, 200);
        }
        stage.scene.server.post("/v1/operations/rebuilds", &json!({"kind": "verify"})).await;
        browser.open(&stage.at("/login")).await;
        assert_eq!(browser.ask("return innerWidth").await, if screen == Screen::Phone { 390 } else { 1200 });
        assert_eq!(browser.ask(FAULTS).await, json!([]), "login {screen:?}");
        browser.picture("login").await;
        let past = format!("{}?as_of={}", stage.meeting, stage.position);
        let shown = format!("{}?shown={}", stage.meeting, stage.position + 2);
        for role in [Role::Auditor, Role::Admin] {
            // Another session takes the place of the one before.
            browser.client.delete_all_cookies().await.unwrap();
            log_in(&browser, &stage.scene, &shown, role, REVIEWER).await;
            for (name, path) in [
                ("meetings", "/meetings"),
                ("meeting", &stage.meeting),
                ("meeting-past", &past),
                ("speaker", &stage.speakers[0]),
                ("audit", "/audit"),
                ("operations", "/operations?still=true"),
                ("login", "/login"),
                ("wrong-filter", "/meetings?owner=x"),
                ("not-found", "/meetings/018f0000-0000-7000-8000-000000000001"),
            ] {
                browser.open(&stage.at(path)).await;
                let faults = browser.ask(FAULTS).await;
                assert_eq!(faults, json!([]), "{name} {screen:?}");
                browser.picture(name).await;
            }
        }
    }
}

#[tokio::test]
async fn a_speaker_can_be_corrected_by_keyboard_alone() {
    let test = "a_speaker_can_be_corrected_by_keyboard_alone";
    let Some(browser) = Browser::start(test, Screen::Desk).await else { return };
    let stage = Stage::set(&["Ada"]).await;
    log_in(&browser, &stage.scene, &stage.speakers[0], Role::Reviewer, REVIEWER).await;
    browser.open(&stage.at(&stage.speakers[0])).await;
    let press = async |keys: &str| {
        browser.client.active_element().await.unwrap().send_keys(keys).await.unwrap();
        let focused =
            "const e = document.activeElement; return e.id || e.name || e.className || e.textContent.trim()";
        browser.ask(focused).await.as_str().unwrap_or_default().to_owned()
    };
    let tab = char::from(Key::Tab).to_string();
    assert_eq!(press(&tab).await, "skip", "first of all, a way past the navigation");
    let outline = browser.ask("return getComputedStyle(document.activeElement).outlineStyle").await;
    assert_eq!(outline, "solid", "where the focus is can be seen");
    let mut order = vec![];
    while order.last().is_none_or(|last| last != "profile") && order.len() < 20 {
        order.push(press(&tab).await);
    }
    let end = order.iter().rev().take(3).rev().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(end, ["name", "find", "profile"], "{order:?}");
    press(" ").await;
    assert_eq!(press(&tab).await, "reason");
    press("by keyboard").await;
    assert_eq!(press(&tab).await, "main");
    browser
        .client
        .active_element()
        .await
        .unwrap()
        .send_keys(&char::from(Key::Enter).to_string())
        .await
        .unwrap();
    browser.wait_for(".notice.good").await;
    assert_eq!(browser.text(".notice").await, "Saved: it is Ada from now on.");
}

#[tokio::test]
async fn operations_shows_a_verification_and_asks_anew_without_a_script() {
    let stage = Stage::set(&[]).await;
    let (status, begun) =
        stage.scene.server.post("/v1/operations/rebuilds", &json!({"kind": "verify"})).await;
    assert_eq!(status, 202, "{begun}");
    let path = format!("/v1/operations/rebuilds/{}", begun["id"]);
    let ended = async {
        while stage.scene.server.get(&path).await.1["running"] == true {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), ended).await.unwrap();
    let page = stage.page("/operations").await;
    for told in ["verify", ">done<", "Up to date", "Every event could be applied", "http-equiv=\"refresh\""] {
        assert!(page.contains(told), "{told} is not in {page}");
    }
    assert!(!stage.page("/operations?still=true").await.contains("http-equiv"));
}

#[tokio::test]
async fn whatever_is_refused_is_a_page_with_its_status_and_says_nothing_raw() {
    let scene = Scene::start_with(&["--position-timeout", "0.2"]).await;
    let (meeting, _) = hold_meeting(&scene, 1, "a").await;
    let beyond = format!("{meeting}?shown=4000000000");
    for (path, status, words) in [
        ("/meetings/018f0000-0000-7000-8000-000000000001", 404, "There is no such meeting"),
        ("/meetings/7", 422, "an id is a UUID"),
        ("/nowhere", 404, "There is no such route"),
        (&*beyond, 503, "Try again"),
        (&format!("{meeting}?as_of=4000000000"), 422, "still to come"),
        (&format!("{meeting}?surprise=1"), 422, "Unknown"),
        (&format!("{meeting}/speakers/018f0000-0000-7000-8000-000000000001"), 404, "speaker"),
        ("/meetings?cursor=x", 422, "next_cursor"),
        ("/audit?from=yesterday", 422, "a time must be a day"),
    ] {
        let request = scene.server.client.get(scene.server.at(path)).header("accept", "text/html,*/*;q=0.8");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        check_headers(response.headers());
        let page = response.text().await.unwrap();
        assert!(page.starts_with("<!doctype html>") && page.contains(words), "{path}: {page}");
    }
    let problem = scene.get("/meetings/7").await;
    assert_eq!(problem.headers["content-type"], "application/problem+json", "for whoever asks for no page");
}

/// Checks what every page tells the browser not to do.
fn check_headers(headers: &HeaderMap) {
    let policy = headers["content-security-policy"].to_str().unwrap();
    for rule in ["default-src 'none'", "style-src 'self'", "form-action 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(rule), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("script-src"), "{policy}");
    assert_eq!(headers["x-content-type-options"], "nosniff");
    assert_eq!(headers["referrer-policy"], "same-origin");
    assert_eq!(headers["cache-control"], "no-store");
    assert!(headers["content-type"].to_str().unwrap().starts_with("text/html"));
}

/// Fills a form in, as a browser sends it.
fn filled(request: RequestBuilder, fields: &[(&str, &str)]) -> RequestBuilder {
    let mut url = Url::parse("http://localhost/").unwrap();
    url.query_pairs_mut().extend_pairs(fields);
    let body = url.query().unwrap_or_default().to_owned();
    request.header("content-type", "application/x-www-form-urlencoded").body(body)
}

#[tokio::test]
async fn a_form_acts_once_for_whoever_logged_in_and_never_for_another_site() {
    let stage = Stage::set(&["Ada"]).await;
    let (_, people) = stage.scene.server.get("/v1/profiles").await;
    let ada = people["items"][0]["id"].as_str().unwrap();
    let client = browserlike();
    let cookie = session(&stage.scene, Role::Reviewer, REVIEWER).await;
    let key = "018f0000-0000-7000-8000-0000000000aa";
    let form =
        [("profile", ada), ("reason", "I was there"), ("expected", "nobody"), ("key", key), ("name", "")];
    let reassign = stage.at(&format!("{}/reassign", stage.speakers[0]));
    let post = || client.post(&reassign).header("accept", "text/html");
    let known = || post().header("cookie", &cookie);
    let mark = stage.scene.log_mark().await;
    for (request, status) in [
        (filled(post(), &form), 401),
        (filled(known().header("sec-fetch-site", "cross-site"), &form), 403),
        (filled(known().header("sec-fetch-site", "same-site"), &form), 403),
        (filled(known().header("origin", "http://evil.example"), &form), 403),
        (filled(known().header("origin", "http://127.0.0.1:1"), &form), 403),
        (filled(known().header("origin", "null"), &form), 403),
        (known().json(&json!({"profile": ada})), 415),
        (known().header("content-type", "text/plain").body("profile=nobody"), 415),
        (filled(known(), &[("reason", "no key")]), 422),
        (filled(known(), &[&form[..], &[("surprise", "1")]].concat()), 422),
        (filled(known(), &[("profile", ""), form[1], form[2], form[3]]), 422),
        (filled(known(), &[("profile", key), form[1], form[2], form[3]]), 422),
        (filled(known(), &[form[0], ("reason", "  \r\n "), form[2], form[3]]), 422),
        (filled(known(), &[form[0], ("reason", "a\0b"), form[2], form[3]]), 422),
        (filled(known(), &[form[0], form[1], ("expected", ada), ("key", ada)]), 412),
    ] {
        let response = request.send().await.unwrap();
        let found = response.status().as_u16();
        let page = response.text().await.unwrap();
        assert_eq!(found, status, "{page}");
        assert!(page.starts_with("<!doctype html>"), "{page}");
    }
    assert_eq!(stage.scene.log_mark().await, mark, "nothing refused left an event");

    // Sent twice, as by a second click, it has one effect and one answer.
    let mut places = vec![];
    for _ in 0..2 {
        let response = filled(known().header("sec-fetch-site", "same-origin"), &form).send().await.unwrap();
        assert_eq!(response.status(), 303);
        places.push(response.headers()["location"].to_str().unwrap().to_owned());
    }
    assert_eq!(places[0], places[1]);
    assert_eq!(stage.scene.log_mark().await.0, mark.0 + 2, "who it is, and that the artifact is older");
    assert!(stage.page(&places[0]).await.contains("Saved: it is Ada"), "the page waits for the position");
}

/// Diarizes a meeting of [`hold_meeting`] anew: the first speaker's speech is half of one, half of another's.
async fn diarize_anew(stage: &Stage) -> (i64, Vec<String>) {
    let meeting = format!("/v1{}", stage.meeting);
    stage.scene.command(&format!("{meeting}/reprocess"), json!({"worker": "w"})).await;
    let clusters = json!({"clusters": [
        {"cluster_id": "x", "segments": [{"start_ms": 0, "duration_ms": 24_000}]},
        {"cluster_id": "y", "segments": [
            {"start_ms": 24_000, "duration_ms": 6_000}, {"start_ms": 45_000, "duration_ms": 15_000},
        ]},
        {"cluster_id": "z", "segments": [{"start_ms": 30_000, "duration_ms": 15_000}]},
    ]});
    let position = stage.scene.command(&format!("{meeting}/speakers"), clusters).await.position;
    let read = stage.scene.server.client.get(stage.at(&format!("{meeting}/speakers")));
    let (_, shown) = answer(read.header("minutebook-min-position", position)).await;
    let path = |speaker: &Value| format!("{}/speakers/{}", stage.meeting, speaker["id"].as_str().unwrap());
    (position, shown["speakers"].as_array().unwrap().iter().map(path).collect())
}

#[tokio::test]
async fn what_is_older_than_a_name_says_so_until_it_is_stored_again_and_as_it_stood() {
    let test = "what_is_older_than_a_name_says_so_until_it_is_stored_again_and_as_it_stood";
    let Some(browser) = Browser::start(test, Screen::Desk).await else { return };
    let stage = Stage::set(&["Ada"]).await;
    log_in(&browser, &stage.scene, &stage.speakers[0], Role::Reviewer, REVIEWER).await;
    save(&browser, "Ada", "I was there", ".notice.good").await;
    browser.open(&stage.at(&stage.meeting)).await;
    assert_eq!(browser.text("section[aria-labelledby=artifacts] .stale").await, "older than the names");

    let artifact = json!({"type": "transcript.vtt", "s3_key": "m/transcript.vtt"});
    let stored = stage.scene.command(&format!("/v1{}/artifacts", stage.meeting), artifact).await.position;
    browser.open(&stage.at(&format!("{}?shown={stored}", stage.meeting))).await;
    assert_eq!(browser.count(".stale").await, 0, "it has today's names");
    for (position, stale) in [(stored - 1, 1), (stage.position, 0)] {
        browser.open(&stage.at(&format!("{}?as_of={position}", stage.meeting))).await;
        assert_eq!(browser.count(".stale").await, stale, "as it stood at {position}");
    }
}

#[tokio::test]
async fn what_a_new_diarization_leaves_open_is_settled_or_dismissed_and_its_past_can_be_read() {
    let test = "what_a_new_diarization_leaves_open_is_settled_or_dismissed_and_its_past_can_be_read";
    for screen in [Screen::Phone, Screen::Desk] {
        let Some(browser) = Browser::start(test, screen).await else { return };
        let stage = Stage::set(&["Ada", "Bo"]).await;
        let (_, people) = stage.scene.server.get("/v1/profiles").await;
        for (speaker, person) in stage.speakers.iter().zip(people["items"].as_array().unwrap()) {
            let said = json!({"profile_id": person["id"], "reason": "by the voice"});
            let path = format!("/v1{speaker}/reassign");
            assert_eq!(stage.scene.server.post_as("person:reviewer-8", &path, &said).await.0, 200);
        }
        let (position, speakers) = diarize_anew(&stage).await;
        let shown = format!("{}?shown={position}", stage.meeting);
        log_in(&browser, &stage.scene, &shown, Role::Reviewer, REVIEWER).await;
        browser.wait_for(".pending").await;
        let pending = browser.text(".pending").await;
        for told in ["Ada", "by the voice", "reviewer-8", "a speaker of attempt 1", "nobody known"] {
            assert!(pending.contains(told), "{told} is not in {pending}");
        }
        assert!(pending.contains("24 s") && pending.contains("21 s"), "{pending}");
        assert!(!pending.contains("Bo"), "{pending}");
        assert_eq!(browser.ask(FAULTS).await, json!([]), "{screen:?}");
        browser.picture("pending").await;

        // A candidate's page offers what is waited for; the earlier speaker's shows what was decided.
        browser.follow("y", "#reason").await;
        assert!(browser.text(".choices").await.contains("settles a decision that waits"));
        browser.client.back().await.unwrap();
        browser.follow("a speaker of attempt 1", ".history").await;
        assert!(browser.text(".notice").await.contains("waits for a person"));
        let history = browser.text(".history").await;
        assert!(history.contains("Left open which speaker of a new diarization is Ada"), "{history}");
        assert_eq!(browser.count("textarea").await, 0, "it is read only");
        assert_eq!(browser.ask(FAULTS).await, json!([]), "{screen:?}");
        browser.picture("earlier-speaker").await;
        browser.open(&stage.at(&speakers[2])).await;
        let history = browser.text(".history").await;
        for told in ["Bo instead of nobody known", "carried over for", "15 s of speech in common"] {
            assert!(history.contains(told), "{told} is not in {history}");
        }
        browser.follow("a speaker of attempt 1", ".history").await;
        assert!(browser.text(".notice").await.contains("it holds for z now"));

        browser.open(&stage.at(&stage.meeting)).await;
        if screen == Screen::Desk {
            browser.follow("y", "#reason").await;
            save(&browser, "Ada", "most of it", ".notice.good").await;
            browser.open(&stage.at(&stage.meeting)).await;
            assert_eq!(browser.count(".pending").await, 0, "it is settled");
            continue;
        }
        browser.client.find(Locator::Css(".pending summary")).await.unwrap().click().await.unwrap();
        browser.write(".pending textarea", "that was noise").await;
        browser.picture("dismiss").await;
        browser.click(".pending button", ".notice.good").await;
        assert_eq!(browser.count(".pending").await, 0, "it is dismissed");
        browser.open(&stage.at(&stage.speakers[0])).await;
        let history = browser.text(".history").await;
        for told in ["Dismissed", "said by reviewer-7", "that was noise"] {
            assert!(history.contains(told), "{told} is not in {history}");
        }
    }
}

#[tokio::test]
async fn a_decision_that_waits_is_dismissed_once_by_a_person_with_a_reason() {
    let stage = Stage::set(&["Ada"]).await;
    let (_, people) = stage.scene.server.get("/v1/profiles").await;
    let said = json!({"profile_id": people["items"][0]["id"], "reason": "by the voice"});
    let path = format!("/v1{}/reassign", stage.speakers[0]);
    assert_eq!(stage.scene.server.post_as("person:reviewer-8", &path, &said).await.0, 200);
    diarize_anew(&stage).await;

    let client = browserlike();
    let cookie = session(&stage.scene, Role::Reviewer, REVIEWER).await;
    let path = stage.speakers[0].replace("/speakers/", "/pending-corrections/");
    let path = stage.at(&format!("{path}/dismiss"));
    let post = || client.post(&path).header("accept", "text/html");
    let known = || post().header("cookie", &cookie);
    let key = "018f0000-0000-7000-8000-0000000000aa";
    let form = [("reason", "that was noise"), ("key", key)];
    let mark = stage.scene.log_mark().await;
    for (request, status, words) in [
        (filled(post(), &form), 401, "A token is needed"),
        (filled(known().header("sec-fetch-site", "cross-site"), &form), 403, "another site"),
        (filled(known(), &form[..1]), 422, "lacks a field"),
        (filled(known(), &[("reason", " \r\n "), form[1]]), 422, "Dismiss it"),
    ] {
        let response = request.send().await.unwrap();
        let found = response.status().as_u16();
        let page = response.text().await.unwrap();
        assert_eq!(found, status, "{page}");
        assert!(page.contains(words), "{words} is not in {page}");
    }
    assert_eq!(stage.scene.log_mark().await, mark, "nothing refused left an event");
    for _ in 0..2 {
        let response = filled(known(), &form).send().await.unwrap();
        assert_eq!(response.status(), 303, "a second click has the first one's answer");
        let place = response.headers()["location"].to_str().unwrap().to_owned();
        assert!(stage.page(&place).await.contains("Dismissed: "), "{place}");
    }
    assert_eq!(stage.scene.log_mark().await.0, mark.0 + 1);
    let other = [("reason", "noise"), ("key", "018f0000-0000-7000-8000-0000000000ab")];
    let late = filled(known(), &other).send().await.unwrap();
    assert_eq!(late.status(), 404);
    let page = late.text().await.unwrap();
    assert!(page.contains("does not wait any more") && page.contains("Who spoke when"), "{page}");
}

#[tokio::test]
async fn the_style_sheet_is_kept_by_its_hash_and_every_page_names_it() {
    let scene = Scene::start().await;
    let page = scene.get("/meetings").await;
    let path = page.body.split("rel=\"stylesheet\" href=\"").nth(1).unwrap().split('"').next().unwrap();
    let style = scene.get(path).await;
    assert_eq!(
        (style.status, &style.headers["content-type"]),
        (200, &"text/css; charset=utf-8".parse().unwrap())
    );
    assert!(style.headers["cache-control"].to_str().unwrap().contains("immutable"));
    assert!(!style.body.contains("url(") && !style.body.contains("@import"), "it loads nothing else");
    assert_eq!(scene.get("/assets/icon.svg").await.headers["content-type"], "image/svg+xml");
}

#[tokio::test]
async fn whoever_opens_a_page_logs_in_first_comes_back_to_it_and_logs_out_again() {
    let test = "whoever_opens_a_page_logs_in_first_comes_back_to_it_and_logs_out_again";
    let Some(browser) = Browser::start(test, Screen::Desk).await else { return };
    let scene = Scene::start().await;
    let (meeting, _) = hold_meeting(&scene, 1, "a").await;
    browser.open(&scene.server.at(&meeting)).await;
    assert_eq!(browser.text("h1").await, "Log in");
    assert_eq!(browser.count("nav a, form.who").await, 0, "there is nowhere to go yet");
    browser.write("#token", "nonsense").await;
    browser.click("form button.main", ".alert").await;
    assert!(browser.text(".alert").await.contains("must be Bearer and a JWT"));
    let token = browser.client.find(Locator::Css("#token")).await.unwrap();
    assert_eq!(token.prop("value").await.unwrap().unwrap(), "", "what was written is not sent back");
    log_in(&browser, &scene, &meeting, Role::Auditor, "auditor-1").await;
    assert_eq!(browser.text("nav").await, "Meetings\nAudit", "an auditor has no use for operations");
    assert_eq!(browser.ask("return document.cookie").await, "", "no script reads the cookie");
    browser.click("form.who button", "#token").await;
    browser.open(&scene.server.at(&meeting)).await;
    assert_eq!(browser.text("h1").await, "Log in", "the session has ended");
}

#[tokio::test]
async fn a_session_is_begun_by_a_valid_token_alone_and_counts_for_pages_alone() {
    let scene = Scene::start().await;
    let client = browserlike();
    let log_in = |token: &str, back: &str| {
        filled(client.post(scene.server.at("/login")), &[("token", token), ("back", back)])
    };
    let token = tests::tokens::token(Role::Reviewer, REVIEWER);
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let first = if signature.starts_with('A') { 'B' } else { 'A' };
    let tampered = format!("{signed}.{first}{}", &signature[1..]);
    for (token, words) in [("", "must be Bearer"), ("a.b.c", "must be Bearer"), (&*tampered, "signature")] {
        let refused = log_in(token, "/meetings").send().await.unwrap();
        assert_eq!((refused.status().as_u16(), refused.headers().get("set-cookie")), (401, None), "{token}");
        let page = refused.text().await.unwrap();
        assert!(page.contains(words) && !page.contains(&tampered), "{page}");
    }
    let foreign = log_in(&token, "/meetings").header("origin", "http://evil.example").send().await.unwrap();
    assert_eq!((foreign.status().as_u16(), foreign.headers().get("set-cookie")), (403, None));
    for (back, place) in [
        ("/audit?actor=x", "/audit?actor=x"),
        ("//evil.example/", "/meetings"),
        ("https://evil.example/", "/meetings"),
        ("/\\evil.example", "/meetings"),
    ] {
        let response = log_in(&token, back).send().await.unwrap();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["location"]),
            (303, &place.parse().unwrap())
        );
    }
    let begun = log_in(&token, "/").send().await.unwrap();
    let cookie = begun.headers()["set-cookie"].to_str().unwrap().to_owned();
    for attribute in ["minutebook_session=", "; Path=/", "; HttpOnly", "; SameSite=Lax", "; Max-Age="] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    assert!(!cookie.contains(&token) && !cookie.contains("Secure"), "{cookie}");
    let over_tls = log_in(&token, "/").header("x-forwarded-proto", "https").send().await.unwrap();
    let secure = over_tls.headers()["set-cookie"].to_str().unwrap();
    assert!(secure.starts_with("__Host-minutebook_session=") && secure.ends_with("; Secure"), "{secure}");

    let pair = cookie.split(';').next().unwrap();
    let get = async |path: &str, cookie: &str| {
        let request = client.get(scene.server.at(path)).header("cookie", cookie);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(get("/meetings", pair).await, 200);
    assert_eq!(get("/docs/", pair).await, 200);
    assert_eq!(get("/audit", pair).await, 403, "the role counts here too");
    assert_eq!(get("/v1/meetings", pair).await, 401, "a cookie is nothing to the API");
    assert_eq!(get("/meetings", &format!("{pair}x")).await, 401);
    assert_eq!(get("/meetings", &format!("minutebook_session={token}")).await, 401, "a token is no session");
    let page = client.get(scene.server.at("/meetings?status=failed")).header("accept", "text/html");
    let led = page.send().await.unwrap();
    assert_eq!(led.status(), 303);
    assert_eq!(led.headers()["location"], "/login?back=/meetings%3Fstatus%3Dfailed");
    // Whoever has the database alone makes no session: its own secret is not what seals them.
    let (said, _) = pair.split_once('=').unwrap().1.split_once('.').unwrap();
    let bytes = URL_SAFE_NO_PAD.decode(said).unwrap();
    let secret = event_store::log::identity(&scene.pool).await.unwrap().secret;
    let forged = URL_SAFE_NO_PAD.encode(secret.hmac(&[b"session", &bytes]));
    assert_eq!(get("/meetings", &format!("minutebook_session={said}.{forged}")).await, 401);
    let out = client.post(scene.server.at("/logout")).header("cookie", pair).send().await.unwrap();
    assert!(out.headers()["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(out.headers()["location"], "/login");
    let foreign = client.post(scene.server.at("/logout")).header("sec-fetch-site", "cross-site");
    assert_eq!(foreign.send().await.unwrap().status(), 403, "nobody else logs one out");
}

#[tokio::test]
async fn where_tls_is_certain_only_its_own_cookie_counts() {
    let scene = Scene::start_with(&["--tls-in-front"]).await;
    let cookie = session(&scene, Role::Admin, "admin-1").await;
    assert!(cookie.starts_with("__Host-minutebook_session="), "{cookie}");
    let plain = cookie.trim_start_matches("__Host-");
    for (cookie, status) in [(&*cookie, 200), (plain, 401)] {
        let request = browserlike().get(scene.server.at("/meetings")).header("cookie", cookie);
        assert_eq!(request.send().await.unwrap().status(), status, "{cookie}");
    }
}

#[tokio::test]
async fn a_session_ends_with_the_key_that_its_token_was_signed_by() {
    let scene = Scene::start().await;
    let cookie = session(&scene, Role::Reviewer, REVIEWER).await;
    let get = async |server: &Server| {
        let request = browserlike().get(server.at("/meetings")).header("cookie", &cookie);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(get(&scene.server).await, 200);
    let again = Server::start(&scene.database).await;
    assert_eq!(get(&again).await, 200, "another process of the same log takes it");
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("signing.key");
    let other = Server::start_with(&scene.database, &["--signing-key-file", other.to_str().unwrap()]).await;
    assert_eq!(get(&other).await, 401, "one with another key does not");
}
