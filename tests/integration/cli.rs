//! The command line, through the built program: what it prints, to whom, and how it ends.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use event_store::command_bus::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sqlx::{Connection, Executor, PgConnection};
use tests::TestDatabase;
use tests::server::Server;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use crate::read_models::history::{append, created, language, registered, registered_with, started};
use crate::read_models::{assert_tables_equal_the_fold, eventually};

/// How long any command may take.
const PATIENCE: Duration = Duration::from_secs(60);
const MEETING: Uuid = Uuid::from_u128(0xa0);

/// A command that has ended.
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Returns a command that has nothing but its arguments and the tests' keys: no configuration, no terminal.
pub(crate) fn minutebook(arguments: &[&str]) -> Command {
    let mut command = Command::new(tests::minutebook());
    for (name, _) in std::env::vars() {
        if name.starts_with("MINUTEBOOK_") || name == "DATABASE_URL" {
            command.env_remove(name);
        }
    }
    command
        .env(tests::MASTER_KEY_FILE, tests::master_key_file())
        .args(arguments)
        .env(tests::tokens::SIGNING_KEY_FILE, tests::tokens::signing_key_file())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Runs a command to its end.
pub(crate) async fn run(command: &mut Command) -> Ran {
    let output = timeout(PATIENCE, command.output()).await.expect("the command does not end").unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let ran = Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) };
    tests::logs::keep(&ran.stderr);
    for text in [&ran.stdout, &ran.stderr] {
        assert!(!text.contains('\x1b'), "a pipe gets no terminal's codes: {text:?}");
    }
    ran
}

/// Runs a command on a database to its end.
pub(crate) async fn run_on(database: &TestDatabase, arguments: &[&str]) -> Ran {
    run(minutebook(arguments).env("DATABASE_URL", &database.url)).await
}

/// Runs a command with an embedded PostgreSQL to its end.
async fn run_in(data_dir: &Path, arguments: &[&str]) -> Ran {
    run(minutebook(arguments).env("MINUTEBOOK_DATA_DIR", data_dir)).await
}

fn done(ran: &Ran) -> &str {
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    &ran.stdout
}

#[tokio::test]
async fn the_demo_shows_all_six_tables_and_adds_nothing_the_second_time() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let first = run_on(&database, &["demo"]).await;
    assert_shows_the_tables(done(&first));
    let head = assert_tables_equal_the_fold(&pool).await;
    assert!(head > 30, "a few meetings through their life are more than {head} events");
    for table in ["files", "meetings", "speakers", "user_profiles", "artifacts", "cache"] {
        let count = format!("SELECT count(*) FROM {table}");
        let rows: i64 = sqlx::query_scalar(&count).fetch_one(&pool).await.unwrap();
        assert!(rows > 0 && first.stdout.contains(&format!("{table}: {rows} rows")), "{}", first.stdout);
    }

    let second = run_on(&database, &["demo"]).await;
    assert_shows_the_tables(done(&second));
    assert!(second.stdout.contains("0 new events"), "{}", second.stdout);
    assert_eq!(event_store::log::head(&pool).await.unwrap(), head);
}

fn assert_shows_the_tables(stdout: &str) {
    for shown in
        ["files:", "meetings:", "speakers:", "user_profiles:", "artifacts:", "cache:", "serve", "/docs"]
    {
        assert!(stdout.contains(shown), "{shown} is not in {stdout}");
    }
}

#[tokio::test]
async fn commands_share_one_embedded_postgresql_which_stops_with_the_last() {
    let dir = tempfile::tempdir().unwrap();
    // The user who runs PostgreSQL for root must be able to pass.
    std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let running = || dir.path().join("embedded/cluster/postmaster.pid").exists();

    let demo = run_in(dir.path(), &["demo"]).await;
    assert_shows_the_tables(done(&demo));
    assert!(demo.stdout.contains(&dir.path().display().to_string()), "where the data is: {}", demo.stdout);

    let mut serving = minutebook(&["serve", "--listen", "127.0.0.1:0"]);
    let mut serving = serving.env("MINUTEBOOK_DATA_DIR", dir.path()).spawn().unwrap();
    let mut notes = BufReader::new(serving.stderr.take().unwrap()).lines();
    wait_for_line(&mut notes, |line| line.contains("/docs")).await;
    tokio::spawn(async move { while let Ok(Some(_)) = notes.next_line().await {} });
    let status = run_in(dir.path(), &["status", "--json"]).await;
    let status = serde_json::from_str::<Value>(done(&status)).unwrap();
    assert_eq!(status["database"]["embedded"]["data_dir"], dir.path().display().to_string());
    assert!(status["log"]["head"].as_i64().unwrap() > 30);
    let again = run_in(dir.path(), &["demo"]).await;
    assert!(done(&again).contains("0 new events"));
    let recording = dir.path().join("a.rttm");
    std::fs::write(&recording, "SPEAKER a 1 0.5 1.25 <NA> <NA> s1 <NA> <NA>\n").unwrap();
    let imported = run_in(dir.path(), &["import", "rttm", recording.to_str().unwrap()]).await;
    assert!(done(&imported).contains("1 imported"), "{}", imported.stdout);
    assert!(running(), "serve still uses it");

    assert_eq!(interrupt(serving).await, Some(0));
    eventually("the last to leave stops it", async || (!running()).then_some(())).await;
    let status = run_in(dir.path(), &["status"]).await;
    assert!(done(&status).contains("completed"));
    eventually("the last to leave stops it", async || (!running()).then_some(())).await;
}

#[tokio::test]
async fn status_tells_how_the_log_and_the_tables_stand_without_the_password() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    append(&book, &registered(MEETING)).await;
    append(&book, &registered_with("bb")).await;
    append(&book, &started(MEETING, 1)).await;

    let text = run_on(&database, &["status", "--json"]).await;
    let status = serde_json::from_str::<Value>(done(&text)).unwrap();
    let identity = book.store.identity();
    assert_eq!(status["log"]["head"], 3);
    assert_eq!(status["log"]["epoch"], identity.epoch.to_string());
    assert_eq!(status["read_models"]["position"], 0);
    assert_eq!(status["read_models"]["lag_events"], 3);
    assert!(status["read_models"]["lag_seconds"].as_f64().unwrap() > 0.0);
    let url = status["database"]["url"].as_str().unwrap();
    let (password, name) = password_and_name(&database);
    assert!(url.starts_with("postgres://") && url.contains(&name), "{url}");
    assert!(!text.stdout.contains(&password));
    let text = run_on(&database, &["status"]).await;
    for shown in ["head 3", "position 0", "3 events behind", &name] {
        assert!(done(&text).contains(shown), "{shown} is not in {}", text.stdout);
    }
    assert!(!text.stdout.contains(&password));

    let server = Server::start(&database).await;
    crate::read_models::caught_up_and_equal(book.pool()).await;
    let text = run_on(&database, &["status", "--json"]).await;
    let status = serde_json::from_str::<Value>(done(&text)).unwrap();
    assert_eq!(
        status["read_models"],
        serde_json::json!({"position": 3, "lag_events": 0, "lag_seconds": 0.0})
    );
    let counts = serde_json::json!({"pending": 1, "processing": 1, "completed": 0, "failed": 0});
    assert_eq!(status["meetings"], counts);
    assert!(done(&run_on(&database, &["status"]).await).contains("up to date"));
    let noisy = run_on(&database, &["status", "--json", "--log", "debug", "--log-format", "json"]).await;
    assert_eq!(done(&noisy), text.stdout, "the log of the process goes elsewhere");
    assert!(noisy.stderr.lines().all(|line| serde_json::from_str::<Value>(line).is_ok()), "{}", noisy.stderr);
    assert!(!noisy.stderr.is_empty() && !noisy.stderr.contains(&password));
    book.close().await;
    server.stop().await;
}

/// Returns the password and the name of the database in a test database's URL.
fn password_and_name(database: &TestDatabase) -> (String, String) {
    let (_, rest) = database.url.split_once("://").unwrap();
    let (user, place) = rest.split_once('@').unwrap();
    let name = place.split_once('/').unwrap().1.split('?').next().unwrap();
    (user.split_once(':').unwrap().1.to_owned(), name.to_owned())
}

#[tokio::test]
async fn events_prints_the_log_in_order_as_it_was_asked_for() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    let other = Uuid::from_u128(0xada);
    for event in [
        registered(MEETING),
        created(other, "Ada Lovelace"),
        started(MEETING, 1),
        registered_with("bb"),
        language(MEETING, 1, "en"),
    ] {
        append(&book, &event).await;
    }
    let meeting = MEETING.to_string();
    let positions = async |arguments: &[&str]| {
        let ran = run_on(&database, &[&["events", "--json"], arguments].concat()).await;
        let position =
            |line: &str| serde_json::from_str::<Value>(line).unwrap()["position"].as_i64().unwrap();
        done(&ran).lines().map(position).collect::<Vec<_>>()
    };
    assert_eq!(positions(&[]).await, [1, 2, 3, 4, 5]);
    assert_eq!(positions(&["--from", "4"]).await, [4, 5]);
    assert_eq!(positions(&["--from", "6"]).await, [0; 0]);
    assert_eq!(positions(&["--type", "MeetingRegistered"]).await, [1, 4]);
    assert_eq!(positions(&["--meeting", &meeting]).await, [1, 3, 5]);
    assert_eq!(
        positions(&["--meeting", &meeting, "--type", "MeetingRegistered", "--from", "2"]).await,
        [0; 0]
    );
    assert_eq!(positions(&["--type", "ProfileErased"]).await, [0; 0], "a name without events is no error");

    let line = run_on(&database, &["events", "--json", "--from", "3", "--type", "ProcessingStarted"]).await;
    let line = serde_json::from_str::<Value>(done(&line)).unwrap();
    assert_eq!(line["type"], "ProcessingStarted");
    assert_eq!(line["aggregate_id"], meeting);
    assert_eq!(line["payload"]["ProcessingStarted"]["worker"], "w");
    assert_eq!(line["metadata"]["actor_kind"], "system");
    let text = run_on(&database, &["events"]).await;
    let lines = done(&text).lines().collect::<Vec<_>>();
    assert_eq!(lines.len(), 5);
    assert!(lines[2].contains("ProcessingStarted") && lines[2].contains(&meeting), "{}", lines[2]);
    assert!(!text.stdout.contains("Ada"), "a name has no place in a line for a terminal");

    for wrong in
        ["--type=MeetingCompletd", "--type=meetingcompleted", "--meeting=abc", "--from=0", "--from=-1"]
    {
        let ran = run_on(&database, &["events", wrong]).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{wrong}");
        assert!(ran.stderr.contains(wrong.split('=').next().unwrap()), "{}", ran.stderr);
    }
    let wrong = run_on(&database, &["events", "--type", "MeetingCompletd"]).await;
    assert!(wrong.stderr.contains("MeetingCompleted"), "it says which there are: {}", wrong.stderr);
    book.close().await;
}

#[tokio::test]
async fn events_ends_quietly_when_nobody_reads_on() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    // More than a pipe holds.
    for byte in 1..=255 {
        append(&book, &registered_with(&format!("{byte:02x}"))).await;
    }
    book.close().await;
    let pipeline = r#"set -o pipefail; "$0" events --json | head -1"#;
    let mut shell = Command::new("bash");
    shell.args(["-c", pipeline]).arg(tests::minutebook()).env("DATABASE_URL", &database.url);
    let ran = run(&mut shell).await;
    assert_eq!((ran.code, ran.stdout.lines().count(), ran.stderr.as_str()), (Some(0), 1, ""));
}

#[tokio::test]
async fn events_follows_what_another_process_appends_until_it_is_interrupted() {
    let database = TestDatabase::create().await;
    let book = database.open().await;
    append(&book, &registered(MEETING)).await;
    let arguments = ["events", "--follow", "--json", "--type", "MeetingRegistered"];
    let mut following = minutebook(&arguments).env("DATABASE_URL", &database.url).spawn().unwrap();
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    assert_eq!(position(&mut lines).await, 1);

    let server = Server::start(&database).await;
    append(&book, &started(MEETING, 1)).await;
    let register = serde_json::json!({"sha256": "ab".repeat(32)});
    let (_, accepted) = server.post("/v1/meetings", &register).await;
    assert_eq!(position(&mut lines).await, accepted["position"].as_i64().unwrap());
    // Also when its connections are cut, whatever it is doing just then.
    let mut other = PgConnection::connect(&database.url).await.unwrap();
    for byte in 1..10 {
        let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                    WHERE datname = current_database() AND pid <> pg_backend_pid()";
        other.execute(cut).await.unwrap();
        let register = serde_json::json!({"sha256": format!("{byte:02x}").repeat(32)});
        let appended = eventually("the database is back", async || {
            let (status, accepted) = server.post("/v1/meetings", &register).await;
            (status < 300).then(|| accepted["position"].as_i64().unwrap())
        })
        .await;
        other.execute(cut).await.unwrap();
        assert_eq!(position(&mut lines).await, appended);
    }

    assert_eq!(interrupt(following).await, Some(130));
    server.stop().await;
    book.close().await;
}

async fn position(lines: &mut Lines<BufReader<ChildStdout>>) -> i64 {
    let line = timeout(PATIENCE, lines.next_line()).await.expect("no line comes").unwrap();
    serde_json::from_str::<Value>(&line.expect("it ended")).unwrap()["position"].as_i64().unwrap()
}

/// Sends what Ctrl-C sends; returns the exit code.
pub(crate) async fn interrupt(mut child: Child) -> Option<i32> {
    kill(Pid::from_raw(child.id().unwrap().try_into().unwrap()), Signal::SIGINT).unwrap();
    timeout(PATIENCE, child.wait()).await.expect("the command does not end").unwrap().code()
}

async fn wait_for_line<R: tokio::io::AsyncBufRead + Unpin>(
    lines: &mut Lines<R>,
    wanted: impl Fn(&str) -> bool,
) {
    let mut seen = vec![];
    let found = timeout(PATIENCE, async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if wanted(&line) {
                return true;
            }
            seen.push(line);
        }
        false
    });
    assert!(found.await.is_ok_and(|found| found), "{}", seen.join("\n"));
}

#[tokio::test]
async fn ctrl_c_ends_serve_with_0() {
    let database = TestDatabase::create().await;
    let mut serving = minutebook(&["serve", "--listen", "127.0.0.1:0"]);
    let mut serving = serving.env("DATABASE_URL", &database.url).spawn().unwrap();
    let mut notes = BufReader::new(serving.stderr.take().unwrap()).lines();
    wait_for_line(&mut notes, |line| line.contains("/docs")).await;
    assert_eq!(interrupt(serving).await, Some(0));
}

#[tokio::test]
async fn a_database_that_cannot_be_reached_is_said_clearly_soon_and_without_the_password() {
    let database = TestDatabase::create().await;
    let (password, _) = password_and_name(&database);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent_url = format!("postgres://u:hunter2@{}/x", silent.local_addr().unwrap());
    let cases = [
        (format!("postgres://u:hunter2@{closed}/x"), "refused"),
        (silent_url, "no answer within"),
        ("postgres://u:hunter2@no-such-host.invalid/x".to_owned(), "cannot connect"),
        ("mysql://u:hunter2@127.0.0.1/x".to_owned(), "DATABASE_URL"),
        ("hunter2".to_owned(), "DATABASE_URL"),
        (database.url.replace(&password, "hunter2"), "password authentication failed"),
        (database.url.replace("/t_", "/no_"), "does not exist"),
    ];
    let tries = cases.map(async |(url, said)| {
        let at = Instant::now();
        let ran = run(minutebook(&["status"]).env("DATABASE_URL", &url)).await;
        let clear = ran.code == Some(1) && ran.stdout.is_empty() && ran.stderr.contains(said);
        let discreet = !ran.stderr.contains("hunter2") && !ran.stderr.contains(&password);
        let soon = at.elapsed() < Duration::from_secs(25);
        (!(clear && discreet && soon))
            .then(|| format!("{url}, not {said}: {} {:?}", ran.stderr, at.elapsed()))
    });
    let wrong = futures::future::join_all(tries).await;
    let wrong = wrong.into_iter().flatten().collect::<Vec<_>>();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_database_of_a_newer_minutebook_is_refused_and_left_alone() {
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    let newer =
        "INSERT INTO public._sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9999, 'from the future', true, '', 0)";
    pool.execute(newer).await.unwrap();
    for arguments in [["status"], ["migrate"], ["demo"]] {
        let ran = run_on(&database, &arguments).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{}", ran.stderr);
        assert!(ran.stderr.contains("newer") && ran.stderr.contains("9999"), "{}", ran.stderr);
    }
    assert_eq!(event_store::log::head(&pool).await.unwrap(), 0);
}

#[tokio::test]
async fn help_names_every_command_and_shows_no_password() {
    let help = run(minutebook(&["-h"]).env("DATABASE_URL", "postgres://u:hunter2@h/x")).await;
    insta::assert_snapshot!(done(&help), @r"
    The system of record of a meeting-processing pipeline

    Usage: minutebook [OPTIONS] <COMMAND>

    Commands:
      serve      Answer HTTP and keep the tables up to date
      demo       Play a few small meetings through their whole life, and show the tables
      import     Bring recordings in from files
      status     Show how the log and the tables stand
      events     Print the log, one line an event
      audit      Print who said who a speaker is, when and why, the newest first
      rebuild    Build the tables from history beside the live ones, compare, and swap
      verify     Prove that the live tables are what the log says
      backup     Copy everything that is not derived into a directory, while others serve
      restore    Copy a backup into an empty database, build the tables, and verify them
      epoch      Tell the positions of one run of the log from those of another
      erasures   Keep whoever was forgotten forgotten, after a recovery to before
      parked     Look at events that cannot be applied, and decide what becomes of them
      profile    Enter people and their voices, or forget a person
      meeting    Forget a meeting
      keys       Look at the keys that personal data is sealed with, or change the master key
      publish    Put events on the broker's stream again, where it lost them or never had them
      subscribe  Follow the change feed, and hand each event to a program
      token      Make a token, by which the server knows who asks and what that one may do
      migrate    Bring the database's schema up to date, and do nothing else
      help       Print this message or the help of the given subcommand(s)

    Options:
          --database-url <URL>           PostgreSQL to use; without it an embedded one is started under
                                         the data directory [env: DATABASE_URL]
          --data-dir <DIR>               Directory of the embedded PostgreSQL [default:
                                         /var/lib/minutebook as root, else ~/.local/share/minutebook]
                                         [env: MINUTEBOOK_DATA_DIR=]
          --postgres-bin <DIR>           Directory of PostgreSQL's own programs, for the embedded one;
                                         without it they are looked for [env: MINUTEBOOK_POSTGRES_BIN=]
          --postgres-releases-url <URL>  Repository from which PostgreSQL is downloaded where the
                                         machine has none [env: MINUTEBOOK_POSTGRES_RELEASES_URL=]
          --log <FILTER>                 What is logged, as a tracing filter: `info`, `debug`,
                                         `api=debug,info` [env: MINUTEBOOK_LOG=]
          --log-format <FORMAT>          How it is written to standard error [env:
                                         MINUTEBOOK_LOG_FORMAT=] [default: text] [possible values: text,
                                         json]
      -h, --help                         Print help (see more with '--help')
      -V, --version                      Print version

    Exit codes: 0 done, 1 failed, 2 wrong usage, 3 done in part, 130 interrupted
    ");
    for (arguments, options) in [
        (&["serve"][..], &["--listen", "--only", "--sweep-interval", "--retention-days"][..]),
        (&["demo"], &[]),
        (&["import", "rttm"], &["--json", "<PATHS>..."]),
        (&["status"], &["--json"]),
        (&["events"], &["--follow", "--from", "--type", "--meeting", "--json"]),
        (
            &["audit"],
            &["--profile", "--actor", "--meeting", "--from", "--to", "--previous-by", "--limit", "--format"],
        ),
        (
            &["rebuild"],
            &[
                "--dry-run",
                "--accept-differences",
                "--rollback",
                "--until",
                "--schema",
                "--full-speed",
                "--swap-timeout",
                "--json",
            ],
        ),
        (&["verify"], &["--full-speed", "--json"]),
        (&["backup"], &["--erasures", "--json", "[DIR]"]),
        (&["restore"], &["--erasures", "--json", "<DIR>"]),
        (&["epoch", "renew"], &["--json"]),
        (&["erasures", "apply"], &["<FILE>", "--json"]),
        (&["profile", "erase"], &["<ID>", "--json"]),
        (&["meeting", "erase"], &["<ID>", "--reason", "--json"]),
        (&["token"], &["--role", "--subject", "--kind", "--owner", "--expires", "--signing-key-file"]),
        (&["migrate"], &[]),
    ] {
        let mut command = minutebook(&[arguments, &["--help"]].concat());
        let help = run(command.env("DATABASE_URL", "postgres://u:hunter2@h/x")).await;
        for shown in options.iter().chain(&["Usage: minutebook", "--database-url", "--data-dir"]) {
            assert!(done(&help).contains(shown), "{arguments:?} does not show {shown}: {}", help.stdout);
        }
        assert!(!help.stdout.contains("hunter2"));
    }
    let version = run(&mut minutebook(&["--version"])).await;
    assert!(done(&version).starts_with("minutebook "));
    for wrong in [&[][..], &["serv"], &["status", "--jsn"], &["import"], &["import", "rttm"]] {
        assert_eq!(run(&mut minutebook(wrong)).await.code, Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn serve_refuses_an_address_that_is_taken() {
    let database = TestDatabase::create().await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let ran = run_on(&database, &["serve", "--listen", &taken.local_addr().unwrap().to_string()]).await;
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("--listen"), "{}", ran.stderr);
}

#[tokio::test]
async fn migrating_at_once_and_again_changes_nothing() {
    // The template is migrated; a database of its own is not.
    let database = TestDatabase::create().await;
    let pool = database.pool().await;
    pool.execute("DROP SCHEMA keys, log, ops, read CASCADE; DROP TABLE public._sqlx_migrations")
        .await
        .unwrap();
    let arguments = ["migrate"];
    let all = (0..4).map(|_| run_on(&database, &arguments));
    for ran in futures::future::join_all(all).await {
        done(&ran);
    }
    let identity: Uuid =
        sqlx::query_scalar("SELECT log_id FROM log.identity").fetch_one(&pool).await.unwrap();
    done(&run_on(&database, &["migrate"]).await);
    let book = database.open().await;
    assert_eq!(book.store.identity().log_id, identity);
    let context = Context::system("test");
    let create = domain::profile::ProfileCommand::Create {
        profile_id: Uuid::from_u128(1).into(),
        display_name: "Ada".parse().unwrap(),
        at: tests::clock::now(),
    };
    assert_eq!(book.bus.profile(Uuid::from_u128(1).into(), create, &context).await.unwrap().position, 1);
    book.close().await;
}

#[tokio::test]
async fn a_master_key_that_others_may_read_is_refused_where_minutebook_keeps_it() {
    let database = TestDatabase::create().await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys/master.key");
    // As a log that is new.
    database.pool().await.execute("DELETE FROM keys.master").await.unwrap();
    let status = async |given: bool| {
        let mut command = minutebook(&["keys", "status"]);
        command.env("DATABASE_URL", &database.url).env("MINUTEBOOK_DATA_DIR", directory.path());
        if given {
            command.env(tests::MASTER_KEY_FILE, &path);
        } else {
            command.env_remove(tests::MASTER_KEY_FILE);
        }
        run(&mut command).await
    };
    done(&status(false).await);
    let set_mode = |mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(&path, permissions).unwrap();
    };
    set_mode(0o644);
    let refused = status(false).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains(&format!("chmod 600 {}", path.display())), "{}", refused.stderr);
    // A container's secret has the mode that it was given.
    let told = status(true).await;
    assert!(
        done(&told).contains("master key") && told.stderr.contains("may read this key"),
        "{}",
        told.stderr
    );
    set_mode(0o600);
    done(&status(false).await);
}
