//! Whatever dies, and whenever: no answered command is lost, none takes effect twice, and the tables show
//! the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use event_store::{locks, log};
use futures::{StreamExt, stream};
use nix::sys::signal::Signal;
use projections::fold::{Rows, fold};
use projections::tables::{checkpoint, files, meetings};
use serde_json::{Value, json};
use sqlx::{Connection, Executor, PgConnection, PgPool};
use tests::TestDatabase;
use tests::server::Server;
use tests::workload::Workload;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::read_models::history::{self, append};
use crate::read_models::{assert_tables_equal_the_fold, caught_up_and_equal, eventually};

const WRITERS: usize = 8;

/// `SOAK=1` goes on for longer.
pub(crate) fn rounds(few: usize) -> usize {
    if std::env::var_os("SOAK").is_some_and(|soak| soak == "1") { few * 8 + 1 } else { few }
}

#[tokio::test]
async fn a_server_killed_under_load_loses_and_repeats_nothing() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let mut server = Server::start(&database).await;
    let load = Load::start(&server);
    for _ in 0..rounds(3) {
        load.at(&[&server]);
        load.go_on(fastrand::usize(20..200)).await;
        server.kill_9().await;
        load.check_answers(&pool).await;
        assert_tables_equal_the_fold(&pool).await;
        server = Server::start(&database).await;
    }
    load.at(&[&server]);
    load.go_on(50).await;
    load.finish(&pool).await;
    caught_up_and_equal(&pool).await;
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn a_server_killed_while_it_catches_up_goes_on_where_it_was() {
    /// More than a projector reads at once, several times over.
    const EVENTS: usize = 25_000;
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    let mut workload = Workload::new(fastrand::u64(..), 1);
    let appends = (0..EVENTS).map(|_| workload.next_registration()).collect::<Vec<_>>();
    let appends = appends.into_iter().map(|append| book.store.appender().append(append));
    let mut appending = stream::iter(appends).buffer_unordered(1000);
    while let Some(outcome) = appending.next().await {
        outcome.unwrap();
    }
    drop(appending);
    book.close().await;

    let mut kills_in_the_middle = 0;
    let mut shown = 0;
    while shown < EVENTS as i64 {
        let server = Server::start_with(&database, &["--only", "projector"]).await;
        let position = eventually("the projector gets on", async || {
            let position = checkpoint::read(&pool).await.unwrap().position;
            (position > shown).then_some(position)
        })
        .await;
        // At any moment of the next batch.
        sleep(Duration::from_millis(fastrand::u64(..100))).await;
        server.kill_9().await;
        shown = assert_tables_equal_the_fold(&pool).await;
        assert!(shown >= position, "the tables went back from {position} to {shown}");
        kills_in_the_middle += usize::from(shown < EVENTS as i64);
    }
    assert!(kills_in_the_middle > 0, "it caught up before it could be killed");
}

#[tokio::test]
async fn a_server_whose_connections_are_cut_recovers_by_itself() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    let server = Server::start(&database).await;
    let load = Load::start(&server);
    load.at(&[&server]);
    for _ in 0..rounds(6) {
        load.go_on(fastrand::usize(10..100)).await;
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'minutebook'";
        other.execute(cut).await.unwrap();
    }
    load.go_on(50).await;
    load.finish(&pool).await;
    caught_up_and_equal(&pool).await;
    assert_eq!(server.get("/readyz").await.0, 200);
    assert!(server.stop().await.success());
}

#[tokio::test]
async fn of_two_servers_one_projects_and_the_other_takes_over_when_it_is_killed() {
    let database = TestDatabase::create().await;
    let servers = vec![Server::start(&database).await, Server::start(&database).await];
    takes_over(&database, servers, None).await;
}

#[tokio::test]
async fn of_two_projectors_one_projects_and_the_other_takes_over_when_it_is_killed() {
    let database = TestDatabase::create().await;
    let api = Server::start_with(&database, &["--only", "api"]).await;
    let projectors = vec![
        Server::start_with(&database, &["--only", "projector"]).await,
        Server::start_with(&database, &["--only", "projector"]).await,
    ];
    takes_over(&database, projectors, Some(api)).await;
}

async fn takes_over(database: &TestDatabase, mut projectors: Vec<Server>, api: Option<Server>) {
    let pool = database.pool().await;
    remember_moves(&pool).await;
    let load = Load::start(&projectors[0]);
    match &api {
        Some(api) => load.at(&[api]),
        None => load.at(&projectors.iter().collect::<Vec<_>>()),
    }
    load.go_on(100).await;
    // Paused, it keeps its lock; but a database that takes its connection for dead lets another one in.
    let active = active(&projectors).await;
    if api.is_some() {
        projectors[active].signal(Signal::SIGSTOP);
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_locks JOIN pg_database d ON d.oid = database
                    WHERE locktype = 'advisory' AND granted AND datname = current_database()
                      AND (classid::bigint << 32) + objid::bigint = $1";
        sqlx::query(cut).bind(locks::PROJECTOR).execute(&pool).await.unwrap();
        becomes_active(&projectors[1 - active]).await;
        load.go_on(50).await;
        projectors[active].signal(Signal::SIGCONT);
        load.go_on(50).await;
        // It learns of it at its next word with the database.
        let slept = &projectors[active];
        let second = async || (readiness(slept).await == "standby").then_some(());
        eventually("the one that slept comes second", second).await;
    }
    let active = self::active(&projectors).await;
    assert_eq!(readiness(&projectors[1 - active]).await, "standby");

    let killed = projectors.remove(active);
    let survivor = projectors.remove(0);
    killed.kill_9().await;
    load.at(&[api.as_ref().unwrap_or(&survivor)]);
    let at = Instant::now();
    becomes_active(&survivor).await;
    assert!(at.elapsed() < Duration::from_secs(5), "it took {:?}", at.elapsed());
    load.go_on(100).await;
    load.finish(&pool).await;
    let position = caught_up_and_equal(&pool).await;
    assert_each_event_took_effect_once(&pool, position).await;
    assert!(survivor.stop().await.success());
    if let Some(api) = api {
        assert!(api.stop().await.success());
    }
}

async fn active(projectors: &[Server]) -> usize {
    eventually("one is active", async || {
        for (n, server) in projectors.iter().enumerate() {
            if readiness(server).await == "active" {
                return Some(n);
            }
        }
        None
    })
    .await
}

async fn becomes_active(server: &Server) {
    eventually("the other one is active", async || (readiness(server).await == "active").then_some(())).await;
}

async fn readiness(server: &Server) -> Value {
    server.get("/readyz").await.1["projector"].clone()
}

/// Keeps each move of the checkpoint: the rows change in the same transaction.
async fn remember_moves(pool: &PgPool) {
    let trigger = "
        CREATE TABLE public.moves (before bigint, after bigint);
        CREATE FUNCTION public.remember() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO public.moves VALUES (OLD.position, NEW.position);
            RETURN NULL;
        END $$;
        CREATE TRIGGER remember AFTER UPDATE ON read.checkpoint FOR EACH ROW EXECUTE FUNCTION public.remember();
        -- The projector's connection leaves others out.
        ALTER TABLE read.checkpoint ENABLE ALWAYS TRIGGER remember;";
    pool.execute(trigger).await.unwrap();
}

async fn assert_each_event_took_effect_once(pool: &PgPool, position: i64) {
    let moves: Vec<(i64, i64)> =
        sqlx::query_as("SELECT before, after FROM public.moves ORDER BY after, before")
            .fetch_all(pool)
            .await
            .unwrap();
    let mut shown = 0;
    for (before, after) in moves {
        assert!(before == shown && after > before, "from {shown} came a move from {before} to {after}");
        shown = after;
    }
    assert_eq!(shown, position);
}

#[tokio::test]
async fn a_projector_overtaken_behind_its_back_writes_nothing_and_recovers() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let book = database.open().await;
    book.start_projector();
    let meeting = Uuid::from_u128(0xa0);
    append(&book, &history::registered(meeting)).await;
    assert_eq!(caught_up_and_equal(&pool).await, 1);

    // Another writer holds the checkpoint while the projector, which has the meeting's rows in its cache
    // as pending, comes with the next event; then moves it on itself.
    let mut connection = pool.acquire().await.unwrap();
    let mut other = connection.begin().await.unwrap();
    let held = checkpoint::lock(&mut other).await.unwrap();
    append(&book, &history::started(meeting, 1)).await;
    eventually("the projector waits for the checkpoint", async || {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND wait_event_type = 'Lock'";
        (sqlx::query_scalar::<_, i64>(waiting).fetch_one(&pool).await.unwrap() > 0).then_some(())
    })
    .await;
    let id = meeting;
    let limits = log::BatchLimits { events: 10, bytes: usize::MAX };
    let (recorded, _) =
        log::read_aggregate(&pool, book.store.keyring(), "meeting", id, 0, limits).await.unwrap();
    let recorded = recorded.iter().map(|event| event.decode().unwrap()).collect::<Vec<_>>();
    let mut rows = Rows::empty_for(&recorded[0].event);
    recorded.iter().for_each(|event| fold(&mut rows, event));
    let Rows::Meeting(rows) = rows else { panic!("it is a meeting") };
    // What the other wrote can be told from what the projector would have written.
    let file = files::FileRow { mime: Some("audio/other".to_owned()), ..rows.file.unwrap() };
    files::update(&[&file]).unwrap().execute(&mut other).await.unwrap();
    let updated = meetings::update(&[rows.meeting.as_ref().unwrap()]);
    updated.unwrap().execute(&mut other).await.unwrap();
    assert!(checkpoint::advance(&mut other, held, 2).await.unwrap());
    other.commit().await.unwrap();

    append(&book, &history::language(meeting, 1, "en")).await;
    let (status, language, mime) = eventually("the projector goes on", async || {
        let shown = checkpoint::read(&pool).await.unwrap().position;
        let query =
            "SELECT status, language, mime FROM meetings m JOIN files f ON f.id = file_id WHERE $1 = 3";
        sqlx::query_as::<_, (String, String, String)>(query).bind(shown).fetch_optional(&pool).await.unwrap()
    })
    .await;
    assert_eq!((status.as_str(), language.as_str(), mime.as_str()), ("processing", "en", "audio/other"));
    book.close().await;
}

/// Writers that lead meetings through their life over HTTP. Each command has a key and is sent until it is
/// answered, over the deaths of servers.
struct Load {
    urls: watch::Sender<Vec<String>>,
    answers: Arc<Mutex<Vec<Answer>>>,
    finish: CancellationToken,
    writers: Mutex<JoinSet<()>>,
}

#[derive(Clone)]
struct Answer {
    id: Uuid,
    version: i64,
    position: i64,
    events: Vec<String>,
}

impl Load {
    fn start(server: &Server) -> Self {
        let urls = watch::Sender::new(vec![]);
        let (answers, finish) = (Arc::<Mutex<Vec<Answer>>>::default(), CancellationToken::new());
        let mut writers = JoinSet::new();
        for n in 0..WRITERS {
            let writer = Writer {
                client: server.client.clone(),
                urls: urls.subscribe(),
                answers: Arc::clone(&answers),
                random: fastrand::Rng::with_seed(fastrand::u64(..) + n as u64),
            };
            writers.spawn(writer.run(finish.clone()));
        }
        Self { urls, answers, finish, writers: Mutex::new(writers) }
    }

    /// Names the servers to go to.
    fn at(&self, servers: &[&Server]) {
        self.urls.send_replace(servers.iter().map(|server| server.url.clone()).collect());
    }

    /// Waits for so many more answers.
    async fn go_on(&self, answers: usize) {
        let until = self.answers.lock().unwrap().len() + answers;
        eventually("more commands are answered", async || {
            (self.answers.lock().unwrap().len() >= until).then_some(())
        })
        .await;
    }

    /// Checks that what was answered is in the log, at its position, and that the log has no hole.
    async fn check_answers(&self, pool: &PgPool) {
        let answers = self.answers.lock().unwrap().clone();
        let query =
            "SELECT count(*) FROM UNNEST ($1::text[], $2::bigint[], $3::bigint[]) a (id, version, position)
                       JOIN log.events e ON e.position = a.position AND e.aggregate_id = a.id
                        AND e.sequence = a.version AND e.aggregate_type = 'meeting'";
        let found: i64 = sqlx::query_scalar(query)
            .bind(answers.iter().map(|answer| answer.id.to_string()).collect::<Vec<_>>())
            .bind(answers.iter().map(|answer| answer.version).collect::<Vec<_>>())
            .bind(answers.iter().map(|answer| answer.position).collect::<Vec<_>>())
            .fetch_one(pool)
            .await
            .unwrap();
        assert_eq!(found, answers.len() as i64, "answered commands in the log, of all that were answered");
        let (events, head): (i64, i64) =
            sqlx::query_as("SELECT count(*), coalesce(max(position), 0) FROM log.events")
                .fetch_one(pool)
                .await
                .unwrap();
        assert_eq!(events, head, "positions are dense");
    }

    /// Lets each writer finish its command, and checks that the log has the answered events and no others.
    async fn finish(self, pool: &PgPool) {
        self.finish.cancel();
        let writers = std::mem::take(&mut *self.writers.lock().unwrap());
        writers.join_all().await;
        self.check_answers(pool).await;
        let mut answered = BTreeMap::<Uuid, Vec<String>>::new();
        for answer in self.answers.lock().unwrap().drain(..) {
            answered.entry(answer.id).or_default().extend(answer.events);
        }
        let query =
            "SELECT aggregate_id::uuid, array_agg(event_type ORDER BY sequence) FROM log.events GROUP BY 1";
        let logged: Vec<(Uuid, Vec<String>)> = sqlx::query_as(query).fetch_all(pool).await.unwrap();
        assert_eq!(logged.into_iter().collect::<BTreeMap<_, _>>(), answered);
    }
}

struct Writer {
    client: reqwest::Client,
    urls: watch::Receiver<Vec<String>>,
    answers: Arc<Mutex<Vec<Answer>>>,
    random: fastrand::Rng,
}

impl Writer {
    async fn run(mut self, finish: CancellationToken) {
        loop {
            let sha256 = (0..64).map(|_| self.random.digit(16)).collect::<String>();
            let register = json!({"sha256": sha256, "mime": "audio/flac", "duration": 60});
            let id = self.send(reqwest::Method::POST, "/v1/meetings".to_owned(), &register).await;
            for (command, body) in self.life() {
                if finish.is_cancelled() {
                    return;
                }
                let method =
                    if command == "cache/asr" { reqwest::Method::PUT } else { reqwest::Method::POST };
                self.send(method, format!("/v1/meetings/{id}/{command}"), &body).await;
            }
            if finish.is_cancelled() {
                return;
            }
        }
    }

    fn life(&mut self) -> Vec<(&'static str, Value)> {
        let clusters = |n: u32| (0..n).map(|n| json!({"cluster_id": format!("spk{n}"), "segments": []}));
        let begin = json!({"worker": "w"});
        let mut life = vec![("start", begin.clone())];
        if self.random.bool() {
            life.extend([("fail", json!({"stage": "decode", "reason": "noise"})), ("retry", begin.clone())]);
        }
        life.extend([
            // Shared by many, so that cache rows are fought over.
            ("fingerprint", json!({"content_fp": format!("pcm:{}", self.random.u8(..4))})),
            ("language", json!({"language": "en"})),
            ("speakers", json!({"clusters": clusters(self.random.u32(1..5)).collect::<Vec<_>>()})),
            (
                "cache/asr",
                json!({"value": self.random.u64(..).to_string(), "ttl_seconds": 1 + self.random.u8(..3)}),
            ),
            ("artifacts", json!({"type": "transcript.md", "s3_key": "1/t.md"})),
            ("artifacts", json!({"type": "transcript.vtt", "s3_key": "1/t.vtt"})),
            ("complete", json!({})),
        ]);
        if self.random.bool() {
            life.extend([
                ("reprocess", begin),
                ("speakers", json!({"clusters": clusters(2).collect::<Vec<_>>()})),
                ("artifacts", json!({"type": "transcript.md", "s3_key": "2/t.md"})),
                ("complete", json!({})),
            ]);
        }
        life
    }

    /// Sends a command until it is answered; returns whom it was sent to.
    async fn send(&mut self, method: reqwest::Method, path: String, body: &Value) -> Uuid {
        let key = Uuid::from_u128(self.random.u128(..)).to_string();
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            assert!(Instant::now() < deadline, "{path} was not answered");
            let urls = self.urls.borrow_and_update().clone();
            if let Some(url) = self.random.choice(urls) {
                let request = self.client.request(method.clone(), format!("{url}{path}"));
                let request = request.header("idempotency-key", &key).timeout(Duration::from_secs(20));
                match request.json(body).send().await {
                    Ok(response) if matches!(response.status().as_u16(), 503 | 429) => {}
                    Ok(response) => {
                        let status = response.status();
                        // A server may die with half of its answer said.
                        if let Ok(text) = response.text().await {
                            assert!(status.is_success(), "{path}: {status} {text}");
                            return self.answered(&serde_json::from_str(&text).unwrap());
                        }
                    }
                    Err(_) => {}
                }
            }
            // Nobody says when there will be a server again.
            sleep(Duration::from_millis(10)).await;
        }
    }

    fn answered(&self, answer: &Value) -> Uuid {
        let id = answer["id"].as_str().unwrap().parse().unwrap();
        let events = answer["events"].as_array().unwrap();
        let events = events.iter().map(|event| event.as_str().unwrap().to_owned()).collect();
        let (version, position) = (&answer["version"], &answer["position"]);
        let (version, position) = (version.as_i64().unwrap(), position.as_i64().unwrap());
        self.answers.lock().unwrap().push(Answer { id, version, position, events });
        id
    }
}
