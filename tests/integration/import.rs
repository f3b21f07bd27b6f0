//! `import rttm`: real diarizations and broken ones, beside a server and without, interrupted and again.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use domain::ids::{FileId, MeetingId};
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::PgPool;
use tempfile::TempDir;
use tests::TestDatabase;
use tests::server::Server;
use uuid::Uuid;

use crate::cli::{Ran, interrupt, minutebook, run_on};
use crate::read_models::{caught_up_and_equal, eventually};

#[tokio::test]
async fn real_diarizations_become_meetings_with_one_speaker_per_label() {
    let Some(data) = tests::real_data("real_diarizations_become_meetings_with_one_speaker_per_label") else {
        return;
    };
    let dirs = [data.join("ami/rttm"), data.join("voxconverse/rttm")];
    let recordings =
        dirs.iter().flat_map(|dir| rttm_files(dir)).flat_map(|path| read(&path)).collect::<Vec<_>>();
    assert_eq!(recordings.len(), 60 + 216);
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let dirs = dirs.map(|dir| dir.display().to_string());

    let ran = run_on(&database, &["import", "rttm", "--json", &dirs[0], &dirs[1]]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let report = report(&ran);
    let head = recordings.len() as i64 * 4;
    for (name, count) in
        [("files", 276), ("recordings", 276), ("imported", 276), ("unchanged", 0), ("events", head)]
    {
        assert_eq!(report[name], count, "{name}: {report}");
    }
    assert_book_has(&pool, &recordings).await;
    assert_eq!(caught_up_and_equal(&pool).await, head);

    let again = run_on(&database, &["import", "rttm", &dirs[0], &dirs[1]]).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stdout.contains("276 there already"), "{}", again.stdout);
    assert_eq!(caught_up_and_equal(&pool).await, head, "importing again adds no event");
}

#[tokio::test]
async fn a_file_may_hold_several_recordings_in_any_order_and_with_any_line_ends() {
    let files = Files::new();
    files.write(
        "several.rttm",
        format!("{}{}{}", line("b", 0.0, "x"), line("a", 1.5, "x"), line("b", 2.25, "y")),
    );
    // The same recording as `a` above, as Windows writes it, and with what says nothing of who spoke when.
    let windows = line("a", 1.5, "x").replace('\n', "\r\n");
    let around = "SPKR-INFO a 1 <NA> <NA> <NA> unknown x <NA> <NA>\r\n\r\n";
    files.write("below/windows.rttm", format!("\u{feff};; comment\r\n{around}{windows}"));
    files.write("no_line_end.rttm", line("ü", 0.0, "é").trim());
    files.write("notes.txt", "not imported");
    let database = TestDatabase::create().await;
    let pool = database.pool().await;

    let ran = files.import(&database, &["--json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let report = report(&ran);
    assert_eq!((&report["files"], &report["recordings"]), (&3.into(), &4.into()));
    assert_eq!((&report["imported"], &report["unchanged"]), (&3.into(), &1.into()), "two are the same");
    let mut recordings = read(&files.path("several.rttm"));
    recordings.extend(read(&files.path("no_line_end.rttm")));
    assert_book_has(&pool, &recordings).await;
    assert_eq!(caught_up_and_equal(&pool).await, 12);
}

#[tokio::test]
async fn a_broken_file_is_named_by_line_and_left_out_whole_and_the_others_go_in() {
    let files = Files::new();
    files.write("good.rttm", line("good", 0.0, "x"));
    let first = line("bad", 0.0, "x");
    files.write("broken.rttm", format!("{first}{first}SPEAKER bad 1 here 1 <NA> <NA> x <NA> <NA>\n{first}"));
    files.write("short.rttm", format!("{first}SPEAKER bad 1 0\n"));
    files.write("negative.rttm", "SPEAKER bad 1 -1 1 <NA> <NA> x <NA> <NA>\n");
    files.write("nan.rttm", "SPEAKER bad 1 nan 1 <NA> <NA> x <NA> <NA>\n");
    files.write("type.rttm", "SPEKAER bad 1 0 1 <NA> <NA> x <NA> <NA>\n");
    files.write(
        "latin1.rttm",
        [first.as_bytes(), b"SPEAKER bad 1 0 1 <NA> <NA> M\xfcller <NA> <NA>\n"].concat(),
    );
    files.write("nul.rttm", "SPEAKER bad 1 0 1 <NA> <NA> a\0b <NA> <NA>\n");
    files.write("long.rttm", format!("{first}{}", "x".repeat(10_000)));
    files.write("empty.rttm", "");
    fs::create_dir(files.path("unreadable.rttm")).unwrap();
    std::os::unix::fs::symlink("nowhere", files.path("dangling.rttm")).unwrap();
    let database = TestDatabase::create().await;
    let pool = database.pool().await;

    let ran = files.import(&database, &[]).await;
    assert_eq!(ran.code, Some(3), "done in part: {}", ran.stderr);
    for place in [
        "broken.rttm:3: the start",
        "short.rttm:2: ",
        "negative.rttm:1: the start",
        "nan.rttm:1: the start",
        "type.rttm:1: ",
        "latin1.rttm:2: the line is not UTF-8",
        "nul.rttm:1: ",
        "long.rttm:2: ",
        "empty.rttm: no SPEAKER line",
        "dangling.rttm: No such file",
    ] {
        assert!(ran.stderr.contains(place), "{place} is not in {}", ran.stderr);
    }
    assert_eq!(ran.stderr.lines().count(), 10, "one line each: {}", ran.stderr);
    assert!(ran.stdout.contains("10 left out"), "{}", ran.stdout);
    assert_book_has(&pool, &read(&files.path("good.rttm"))).await;
    assert_eq!(caught_up_and_equal(&pool).await, 4, "nothing of the others is in the log");

    let ran = files.import(&database, &["--json"]).await;
    assert_eq!(ran.code, Some(3));
    assert_eq!(report(&ran)["errors"].as_array().unwrap().len(), 10);
    assert_eq!(report(&ran)["events"], 0);
}

#[tokio::test]
async fn a_path_that_leads_nowhere_fails_before_anything_is_imported() {
    let files = Files::new();
    files.write("good.rttm", line("good", 0.0, "x"));
    fs::create_dir(files.path("no_rttm_here")).unwrap();
    let database = TestDatabase::create().await;
    for wrong in ["missing.rttm", "no_rttm_here"] {
        let wrong = files.path(wrong).display().to_string();
        let ran =
            run_on(&database, &["import", "rttm", &files.path("good.rttm").display().to_string(), &wrong])
                .await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{}", ran.stderr);
        assert!(ran.stderr.contains(&wrong), "{}", ran.stderr);
    }
    assert_eq!(caught_up_and_equal(&database.pool().await).await, 0);
}

#[tokio::test]
async fn an_import_killed_in_the_middle_is_completed_by_the_next_one() {
    let files = Files::new();
    for file in 0..40 {
        let lines = (0..10).map(|n| {
            line(&format!("r{file}-{n}"), f64::from(n), "x") + &line(&format!("r{file}-{n}"), 3.0, "y")
        });
        files.write(&format!("{file}.rttm"), lines.collect::<String>());
    }
    let recordings = rttm_files(&files.path("")).iter().flat_map(|path| read(path)).collect::<Vec<_>>();
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let path = files.path("").display().to_string();
    for part in 1..=3 {
        let mut importing = minutebook(&["import", "rttm", &path]);
        let mut importing = importing.env("DATABASE_URL", &database.url).spawn().unwrap();
        let enough = event_store::log::head(&pool).await.unwrap() + fastrand::i64(50..300);
        eventually("a part is imported", async || {
            (event_store::log::head(&pool).await.unwrap() >= enough).then_some(())
        })
        .await;
        if part == 3 {
            // Ctrl-C, rather than a sudden death.
            assert_eq!(interrupt(importing).await, Some(130));
        } else {
            importing.kill().await.unwrap();
        }
    }
    let head = event_store::log::head(&pool).await.unwrap();
    assert!(head < 1600, "it was done before it could be killed");

    let ran = files.import(&database, &["--json"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    // What the killed command had handed in may have arrived after its death.
    let events = report(&ran)["events"].as_i64().unwrap();
    assert!((1600 - head - 64..=1600 - head).contains(&events), "{events} events after {head}");
    assert_eq!(caught_up_and_equal(&pool).await, 1600, "each meeting has each of its four events once");
    assert_book_has(&pool, &recordings).await;
}

#[tokio::test]
async fn importing_works_beside_a_server_and_twice_at_once() {
    let files = Files::new();
    for n in 0..100 {
        files.write(&format!("{n}.rttm"), line(&format!("r{n}"), f64::from(n), "x"));
    }
    let database = TestDatabase::create().await;
    let server = Server::start(&database).await;
    let (one, two) = tokio::join!(files.import(&database, &["--json"]), files.import(&database, &["--json"]));
    for ran in [&one, &two] {
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    }
    let events = [&one, &two].map(|ran| report(ran)["events"].as_i64().unwrap());
    assert_eq!(events[0] + events[1], 400, "each event was appended by one of them");
    let pool = database.pool().await;
    assert_eq!(caught_up_and_equal(&pool).await, 400);
    let (status, page) = server.get("/v1/meetings?status=completed&limit=500").await;
    assert_eq!((status, page["items"].as_array().unwrap().len()), (200, 100));
    assert_eq!(server.get("/readyz").await.1["projector"], "active", "the server kept its projector");
    server.stop().await;
}

/// A directory of files to import.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        fs::write(self.path(name), content).unwrap();
    }

    async fn import(&self, database: &TestDatabase, arguments: &[&str]) -> Ran {
        let path = self.0.path().display().to_string();
        run_on(database, &[&["import", "rttm", &path], arguments].concat()).await
    }
}

/// Returns a line of a recording: a second and a half of speech.
fn line(recording: &str, start: f64, label: &str) -> String {
    format!("SPEAKER {recording} 1 {start:.3} 1.500 <NA> <NA> {label} <NA> <NA>\n")
}

fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap()
}

/// A recording as these tests read it.
pub(crate) struct Recording {
    sha256: String,
    /// In seconds, rounded up.
    duration: i32,
    labels: BTreeSet<String>,
}

pub(crate) fn rttm_files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

/// Reads a file's recordings, in another way than the program: fields by blanks, times as decimals.
pub(crate) fn read(path: &Path) -> Vec<Recording> {
    let text = fs::read_to_string(path).unwrap();
    let mut lines_of = BTreeMap::<&str, Vec<&str>>::new();
    for line in text.lines() {
        lines_of.entry(line.split(' ').nth(1).unwrap()).or_default().push(line);
    }
    let recording = |lines: Vec<&str>| {
        let field = |line: &str, n: usize| line.split(' ').nth(n).unwrap().to_owned();
        let end =
            lines.iter().map(|line| milliseconds(&field(line, 3)) + milliseconds(&field(line, 4))).max();
        let own = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        Recording {
            sha256: Sha256::digest(own).iter().map(|byte| format!("{byte:02x}")).collect(),
            duration: i32::try_from(end.unwrap().div_ceil(1000)).unwrap(),
            labels: lines.iter().map(|line| field(line, 7)).collect(),
        }
    };
    lines_of.into_values().map(recording).collect()
}

/// Parses a decimal number of seconds of at most three places.
fn milliseconds(decimal: &str) -> u64 {
    let (whole, part) = decimal.split_once('.').unwrap_or((decimal, ""));
    let part = part.trim_end_matches('0');
    assert!(part.len() <= 3, "{decimal} has more than three places");
    format!("{whole}{part:0<3}").parse().unwrap()
}

/// Checks that the tables have these recordings, completed, and nothing else.
pub(crate) async fn assert_book_has(pool: &PgPool, recordings: &[Recording]) {
    let identity = event_store::log::identity(pool).await.unwrap();
    type Shown = (Uuid, Uuid, String, Option<i32>, Option<Uuid>, Option<String>, String, Vec<String>);
    let query = "SELECT m.id, f.id, f.sha256, f.duration, f.owner, f.mime, m.status,
                        array_remove(array_agg(s.cluster_id ORDER BY s.cluster_id COLLATE \"C\"), NULL)
                   FROM meetings m FULL JOIN files f ON f.id = m.file_id LEFT JOIN speakers s ON s.meeting_id = m.id
                  GROUP BY m.id, f.id ORDER BY f.sha256";
    let shown: Vec<Shown> = sqlx::query_as(query).fetch_all(pool).await.unwrap();
    let mut expected = recordings
        .iter()
        .map(|recording| {
            let sha256 = recording.sha256.parse().unwrap();
            let meeting = MeetingId::derive(&identity.secret, None, &sha256).as_uuid();
            let file = FileId::derive(&identity.secret, None, &sha256).as_uuid();
            let labels = recording.labels.iter().cloned().collect::<Vec<_>>();
            let (sha256, duration) = (recording.sha256.clone(), Some(recording.duration));
            let (mime, status) = (Some("application/x-rttm".to_owned()), "completed".to_owned());
            (meeting, file, sha256, duration, None, mime, status, labels)
        })
        .collect::<Vec<Shown>>();
    expected.sort_by(|a, b| a.2.cmp(&b.2));
    assert_eq!(shown.len(), expected.len());
    for (shown, expected) in shown.iter().zip(&expected) {
        assert_eq!(shown, expected);
    }
    let confirmed: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM speakers WHERE user_profile_id IS NOT NULL OR confidence IS NOT NULL",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(confirmed, 0, "nobody is known yet");
}
