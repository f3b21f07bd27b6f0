//! The private PostgreSQL: what users were promised of it, against real servers.
//!
//! Every test has a data directory of its own, and runs as root and as an ordinary user alike. Where a command has to be killed, the command is this
//! test binary, started again to run `a_command_of_its_own` or `a_reaper_of_its_own` only.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};
use std::{env, fs};

use api::embedded::{self, Embedded, EmbeddedError, Left, Origin, Programs, Progress, Reaper, Settings};
use sha2::{Digest, Sha512};
use sqlx::{Connection, PgConnection};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

#[tokio::test]
async fn a_new_cluster_is_durable_checked_in_utf8_and_in_the_c_locale() {
    let data = Data::new();
    let embedded = start(&Settings { durable: true, ..data.settings() }).await;

    for setting in ["fsync", "synchronous_commit", "full_page_writes", "data_checksums", "logging_collector"]
    {
        assert_eq!(show(&embedded, setting).await, "on", "{setting}");
    }
    assert_eq!(show(&embedded, "server_encoding").await, "UTF8");
    assert_eq!(show(&embedded, "max_connections").await, "200");
    assert_eq!(show(&embedded, "max_wal_size").await, "2GB");
    let locale: (String, String) =
        sqlx::query_as("SELECT datcollate, datctype FROM pg_database WHERE datname = current_database()")
            .fetch_one(&mut connect(&embedded).await)
            .await
            .unwrap();
    assert_eq!(locale, ("C".to_owned(), "C".to_owned()));

    leave(embedded).await;
}

#[tokio::test]
async fn a_cluster_is_closed_to_all_who_lack_its_password() {
    let data = Data::new();
    let embedded = start(&data.settings()).await;

    assert_eq!(show(&embedded, "listen_addresses").await, "");
    let other_methods: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM pg_hba_file_rules WHERE auth_method IS DISTINCT FROM 'scram-sha-256'",
    )
    .fetch_one(&mut connect(&embedded).await)
    .await
    .unwrap();
    assert_eq!(other_methods, 0);
    let description = embedded.describe();
    assert_eq!(mode(&description.socket_dir), 0o700);
    assert_eq!(mode(&description.passfile), 0o600);
    let password = password(&embedded);
    let refused = PgConnection::connect(&embedded.url().replace(&password, "guessed")).await.unwrap_err();
    let code = refused.as_database_error().and_then(|error| error.code().map(|code| code.into_owned()));
    assert_eq!(code.as_deref(), Some("28P01"), "{refused}");

    leave(embedded).await;
}

#[tokio::test]
async fn the_server_never_runs_as_root_and_owns_its_files() {
    let data = Data::new();
    let embedded = start(&data.settings()).await;

    let owner = fs::metadata(data.cluster()).unwrap().uid();
    assert_ne!(owner, 0);
    assert_eq!(
        fs::metadata(format!("/proc/{}", data.server_pid())).map_or(owner, |process| process.uid()),
        owner
    );

    leave(embedded).await;
}

#[tokio::test]
async fn the_password_is_shown_neither_by_debug_nor_by_the_psql_line_which_works() {
    let data = Data::new();
    let embedded = start(&data.settings()).await;
    let description = embedded.describe().clone();
    let password = password(&embedded);

    let line = description.psql_command();
    assert!(!line.contains(&password));
    assert!(!format!("{embedded:?} {description:?}").contains(&password));
    // A downloaded PostgreSQL has no psql.
    if description.binaries.join("psql").exists() {
        let path = format!("{}:{}", description.binaries.display(), env::var("PATH").unwrap());
        let query = format!("{line} -XAtc 'SELECT current_database()'");
        let said = Command::new("sh").arg("-c").arg(query).env("PATH", path).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&said.stdout),
            "minutebook\n",
            "{}",
            String::from_utf8_lossy(&said.stderr)
        );
    }

    leave(embedded).await;
}

#[tokio::test]
async fn a_value_in_a_failing_statement_does_not_reach_the_log() {
    let data = Data::new();
    let embedded = start(&data.settings()).await;
    let mut connection = connect(&embedded).await;

    sqlx::raw_sql("CREATE TABLE person (name text PRIMARY KEY); INSERT INTO person VALUES ('Ada Lovelace')")
        .execute(&mut connection)
        .await
        .unwrap();
    for statement in
        ["INSERT INTO person VALUES ('Ada Lovelace')", "SELECT 'Ada Lovelace'::int", "SELECT Ada.Lovelace"]
    {
        sqlx::raw_sql(statement).execute(&mut connection).await.unwrap_err();
    }
    drop(connection);
    leave(embedded).await;

    let written: String = fs::read_dir(data.home().join("log"))
        .unwrap()
        .map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert!(written.contains("ready to accept connections"), "the log is not where it is looked for");
    assert!(!written.contains("Lovelace"), "{written}");
}

#[tokio::test]
async fn what_was_committed_is_there_after_a_stop_and_a_start() {
    let data = Data::new();
    let first = start(&data.settings()).await;
    assert!(first.describe().created);
    assert_eq!(first.describe().origin, Origin::Started);
    remember(&first).await;
    assert_eq!(first.leave().await.unwrap(), Left::Stopped);
    assert!(!data.is_served());

    let second = start(&data.settings()).await;
    assert!(!second.describe().created);
    assert_eq!(second.describe().origin, Origin::Started);
    assert_remembered(&second).await;
    leave(second).await;
}

#[tokio::test]
async fn the_last_to_leave_stops_the_server_and_nobody_before() {
    let data = Data::new();
    let first = start(&data.settings()).await;
    let second = start(&data.settings()).await;
    assert_eq!(second.describe().origin, Origin::Attached);
    assert_eq!(second.describe().binaries, first.describe().binaries);

    assert_eq!(first.leave().await.unwrap(), Left::StillInUse);
    remember(&second).await;
    assert_eq!(second.leave().await.unwrap(), Left::Stopped);
    assert!(!data.is_served());
}

#[tokio::test]
async fn commands_started_at_the_same_instant_share_one_server() {
    let data = Data::new();
    let mut commands: Vec<Owner> = (0..4).map(|_| Owner::launch(&data, Reaping::Nobody)).collect();

    let origins: Vec<String> = commands.iter_mut().map(Owner::origin).collect();
    assert_eq!(origins.iter().filter(|origin| *origin == "Started").count(), 1, "{origins:?}");
    let left: Vec<String> = commands.into_iter().map(Owner::leave).collect();
    assert_eq!(left.iter().filter(|left| *left == "Stopped").count(), 1, "{left:?}");
    assert_eq!(left.last().unwrap(), "Stopped");
    assert!(!data.is_served());
}

#[tokio::test]
async fn a_server_whose_owner_was_killed_serves_the_next_command_and_stops_with_it() {
    let data = Data::new();
    let mut owner = Owner::launch(&data, Reaping::Nobody);
    owner.origin();
    owner.kill();

    let next = start(&data.settings()).await;
    assert_eq!(next.describe().origin, Origin::Attached);
    assert_eq!(next.leave().await.unwrap(), Left::Stopped);
    assert!(!data.is_served());
}

#[tokio::test]
async fn the_reaper_stops_a_server_whose_users_were_all_killed_and_not_before() {
    let data = Data::new();
    let mut first = Owner::launch(&data, Reaping::Process);
    first.origin();
    let mut second = Owner::launch(&data, Reaping::Process);
    assert_eq!(second.origin(), "Attached");

    first.kill();
    // The one that lives can still be joined and left without a stop, which would fail had the reaper acted.
    let visitor = start(&data.settings()).await;
    assert_eq!(visitor.describe().origin, Origin::Attached);
    assert_eq!(visitor.leave().await.unwrap(), Left::StillInUse);

    second.kill();
    eventually("the reaper stops the server", || !data.is_served());
}

#[tokio::test]
async fn a_reaper_on_duty_does_not_take_the_stop_from_the_last_to_leave() {
    let data = Data::new();
    for _ in 0..5 {
        let embedded = start(&data.settings_with_reaper()).await;
        assert_eq!(embedded.leave().await.unwrap(), Left::Stopped);
        assert!(!data.is_served());
    }
    let reaper = fs::File::open(data.home().join("reaper.lock")).unwrap();
    eventually("the reaper ends with the server", || reaper.try_lock().is_ok());
}

#[tokio::test]
async fn a_server_that_was_killed_is_recovered_with_all_that_was_committed() {
    let data = Data::new();
    let embedded = start(&Settings { durable: true, ..data.settings() }).await;
    remember(&embedded).await;
    signal("KILL", &data.server_pid().to_string());
    eventually("the server is dead", || !is_alive(data.server_pid()));
    assert_eq!(embedded.leave().await.unwrap(), Left::Stopped);

    let next = start(&Settings { durable: true, ..data.settings() }).await;
    assert_eq!(next.describe().origin, Origin::Started);
    assert_remembered(&next).await;
    leave(next).await;
}

#[tokio::test]
async fn a_server_that_died_under_one_command_is_started_anew_by_the_next() {
    let data = Data::new();
    // Else a commit may still be on its way to the disk when the server dies.
    let settings = Settings { durable: true, ..data.settings() };
    let bereft = start(&settings).await;
    remember(&bereft).await;
    signal("KILL", &data.server_pid().to_string());
    eventually("the server is dead", || !is_alive(data.server_pid()));

    let next = start(&settings).await;
    assert_eq!(next.describe().origin, Origin::Started);
    // The socket is where it was: the first command's pool connects again.
    assert_remembered(&bereft).await;

    assert_eq!(bereft.leave().await.unwrap(), Left::StillInUse);
    assert_eq!(next.leave().await.unwrap(), Left::Stopped);
}

#[tokio::test]
async fn a_dead_servers_number_that_another_program_has_now_is_not_believed() {
    let data = Data::new();
    let embedded = start(&data.settings()).await;
    remember(&embedded).await;
    let pid_file = data.cluster().join("postmaster.pid");
    let left_behind = fs::read_to_string(&pid_file).unwrap();
    leave(embedded).await;

    // PostgreSQL itself is taken in only by a program of the same user.
    let owner = fs::metadata(data.cluster()).unwrap();
    let mut other = Command::new("sleep");
    other.arg("600");
    if running_as_root() {
        other.uid(owner.uid()).gid(owner.gid());
    }
    let mut other = other.spawn().unwrap();
    let (_, rest) = left_behind.split_once('\n').unwrap();
    fs::write(&pid_file, format!("{}\n{rest}", other.id())).unwrap();
    chown(&pid_file, Some(owner.uid()), Some(owner.gid())).unwrap();

    let next = start(&data.settings()).await;
    assert_eq!(next.describe().origin, Origin::Started);
    assert_remembered(&next).await;
    assert!(other.try_wait().unwrap().is_none(), "the other program was signalled");
    leave(next).await;
    assert!(other.try_wait().unwrap().is_none(), "the other program was signalled");
    other.kill().unwrap();
    other.wait().unwrap();
}

#[tokio::test]
async fn a_command_killed_while_it_makes_the_cluster_leaves_no_half_of_one() {
    let data = Data::new();
    let owner = Owner::launch(&data, Reaping::Nobody);
    let unfinished = data.home().join(format!("cluster.unfinished-{}", owner.child.id()));
    eventually("initdb is at work", || unfinished.exists());
    assert!(!data.cluster().exists());
    owner.kill();

    let next = start(&data.settings()).await;
    assert!(next.describe().created);
    remember(&next).await;
    leave(next).await;
}

#[tokio::test]
async fn ctrl_c_reaches_the_command_and_not_the_server() {
    // A shell starts what runs in its background deaf to Ctrl-C, and so are that one's children.
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t"));
    if ignored.is_some_and(|mask| u64::from_str_radix(mask, 16).is_ok_and(|mask| mask & 0b10 != 0)) {
        tests::left_out(
            "ctrl_c_reaches_the_command_and_not_the_server cannot be tried: SIGINT is ignored here",
        );
        return;
    }
    let data = Data::new();
    let mut owner = Owner::launch(&data, Reaping::Nobody);
    owner.origin();

    // As a terminal does it: to every process of the group. The command here has no handler and dies of it.
    signal("INT", &format!("-{}", owner.child.id()));
    owner.child.wait().unwrap();

    let next = start(&data.settings()).await;
    assert_eq!(next.describe().origin, Origin::Attached);
    leave(next).await;
}

#[tokio::test]
async fn a_long_data_directory_has_its_socket_elsewhere() {
    let data = Data::new();
    let settings = Settings { data_dir: data.path().join("d".repeat(120)), ..data.settings() };
    let embedded = start(&settings).await;
    let socket_dir = embedded.describe().socket_dir.clone();

    assert!(!socket_dir.starts_with(data.path()));
    assert!(socket_dir.join(".s.PGSQL.5432").as_os_str().len() <= 107);
    assert_eq!(mode(&socket_dir), 0o700);
    remember(&embedded).await;

    leave(embedded).await;
    fs::remove_dir_all(socket_dir).unwrap();
}

#[tokio::test]
async fn a_path_with_spaces_quotes_and_commas_is_fine_and_one_for_the_shell_is_refused() {
    let data = Data::new();
    let embedded = start(&Settings { data_dir: data.path().join("it's, fine"), ..data.settings() }).await;
    remember(&embedded).await;
    leave(embedded).await;

    let refused = refusal(&Settings { data_dir: data.path().join("$(id)"), ..data.settings() }).await;
    assert!(matches!(refused, EmbeddedError::DataDirName { .. }), "{refused:?}");
}

#[tokio::test]
async fn a_cluster_of_another_major_version_is_refused_and_both_are_named() {
    let data = Data::new();
    let embedded = start(&data.settings()).await;
    let version = embedded.describe().version.clone();
    let programs = Programs::In(embedded.describe().binaries.clone());
    leave(embedded).await;
    let pg_version = data.cluster().join("PG_VERSION");
    let genuine = fs::read_to_string(&pg_version).unwrap();
    fs::write(&pg_version, "13\n").unwrap();

    let refused = refusal(&Settings { programs, ..data.settings() }).await;

    assert!(matches!(refused, EmbeddedError::VersionMismatch { cluster: 13, .. }), "{refused:?}");
    let major = version.split('.').next().unwrap();
    assert!(refused.to_string().contains(&format!("PostgreSQL {major} in /")), "{refused}");
    assert!(refused.to_string().contains("install PostgreSQL 13"), "{refused}");
    fs::write(&pg_version, genuine).unwrap();
    leave(start(&data.settings()).await).await;
}

#[tokio::test]
async fn programs_that_are_too_old_or_missing_are_refused_by_name() {
    let data = Data::new();
    let dir = data.path().join("old");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    let script = |name: &str| {
        let path = dir.join(name);
        fs::write(&path, "#!/bin/sh\necho 'postgres (PostgreSQL) 13.22'\n").unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    script("postgres");
    script("initdb");
    let settings = Settings { programs: Programs::In(dir.clone()), ..data.settings() };

    let missing = refusal(&settings).await.to_string();
    assert!(missing.contains("pg_ctl"), "{missing}");
    script("pg_ctl");
    let old = refusal(&settings).await.to_string();
    assert!(old.contains("PostgreSQL 13") && old.contains("14 or later"), "{old}");
}

#[tokio::test]
async fn a_data_directory_of_somebody_else_is_refused() {
    let data = Data::new();
    let foreign = if running_as_root() {
        chown(data.path(), Some(4_000_000), None).unwrap();
        data.path().to_owned()
    } else {
        PathBuf::from("/usr")
    };

    let refused = refusal(&Settings { data_dir: foreign, ..data.settings() }).await;

    assert!(matches!(refused, EmbeddedError::ForeignOwner { .. }), "{refused:?}");
    assert!(refused.to_string().contains("name another data directory"), "{refused}");
}

#[tokio::test]
async fn a_directory_on_the_way_that_is_closed_to_the_server_is_named() {
    // An ordinary user's server is that user, who has come this far already.
    if !running_as_root() {
        return;
    }
    let data = Data::new();
    let closed = data.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();

    let refused = refusal(&Settings { data_dir: closed.join("data"), ..data.settings() }).await;

    assert!(
        matches!(&refused, EmbeddedError::Unreachable { closed: named, .. } if *named == closed),
        "{refused:?}"
    );
    assert!(!closed.join("data").exists(), "a directory of no use was left behind");
}

#[tokio::test]
async fn a_lost_password_is_reported_and_leaves_no_server_behind() {
    let data = Data::new();
    let embedded = start(&data.settings()).await;
    let passfile = embedded.describe().passfile.clone();
    leave(embedded).await;
    let kept = fs::read(&passfile).unwrap();
    fs::remove_file(&passfile).unwrap();

    let refused = refusal(&data.settings()).await;

    assert!(matches!(refused, EmbeddedError::Passfile { .. }), "{refused:?}");
    assert!(!data.is_served());
    fs::write(&passfile, kept).unwrap();
    leave(start(&data.settings()).await).await;
}

#[tokio::test]
async fn a_throw_away_cluster_may_lose_its_commits() {
    let data = Data::new();
    let embedded = start(&Settings { durable: false, ..data.settings() }).await;
    assert_eq!(show(&embedded, "fsync").await, "off");
    leave(embedded).await;
}

#[tokio::test]
async fn programs_are_downloaded_checked_and_used_and_not_downloaded_twice() {
    let data = Data::new();
    // The programs of this machine, packed as the mirror would have them.
    let embedded = start(&data.settings()).await;
    let jar = pack(&embedded.describe().binaries);
    leave(embedded).await;
    let mirror = Mirror::serve(jar).await;
    let settings = Settings {
        data_dir: data.path().join("downloaded"),
        programs: Programs::Downloaded,
        releases_url: Some(mirror.url.clone()),
        ..data.settings()
    };
    let reported = Mutex::new(Vec::new());

    let embedded =
        embedded::start(&settings, &|progress| reported.lock().unwrap().push(progress)).await.unwrap();

    let place = settings.data_dir.join("embedded/binaries");
    assert_eq!(embedded.describe().binaries, place.join("17.10.0/bin").canonicalize().unwrap());
    remember(&embedded).await;
    leave(embedded).await;
    let reported = reported.into_inner().unwrap();
    let size = mirror.size;
    assert!(reported.contains(&Progress::Downloading { received: size, total: Some(size) }), "{reported:?}");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 1, "something unfinished was left");

    // With the mirror gone, what was downloaded serves.
    drop(mirror);
    let again = start(&settings).await;
    assert_remembered(&again).await;
    leave(again).await;
}

/// The whole of a command: uses the cluster until its input ends. Does nothing in an ordinary run of the tests.
#[tokio::test]
async fn a_command_of_its_own() {
    let Some(data_dir) = env::var_os(OWNER) else {
        return;
    };
    let data_dir = PathBuf::from(data_dir);
    let reaper = env::var_os(WITH_REAPER).map(|_| reaper(&data_dir));
    let embedded = start(&Settings { reaper, ..settings(&data_dir) }).await;
    println!("{MARK}{:?}", embedded.describe().origin);
    let until_closed = tokio::task::spawn_blocking(|| std::io::stdin().lines().count());
    until_closed.await.unwrap();
    println!("{MARK}{:?}", embedded.leave().await.unwrap());
}

/// The whole of a reaper. Does nothing in an ordinary run of the tests.
#[tokio::test]
async fn a_reaper_of_its_own() {
    if let Some(data_dir) = env::var_os(REAPED) {
        embedded::reap(Path::new(&data_dir)).await.unwrap();
    }
}

/// Names the data directory for [`a_command_of_its_own`].
const OWNER: &str = "MINUTEBOOK_TEST_OWNER";

/// Says that the command is to have a reaper.
const WITH_REAPER: &str = "MINUTEBOOK_TEST_WITH_REAPER";

/// Names the data directory for [`a_reaper_of_its_own`].
const REAPED: &str = "MINUTEBOOK_TEST_REAPED";

/// Begins the lines that are for us, among those of the test framework.
const MARK: &str = "minutebook-test: ";

/// The bound of every wait; far above what any of them needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A data directory, whose server is ended if a test failed before it came to that.
struct Data(TempDir);

impl Data {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The user who runs PostgreSQL for root must be able to pass.
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn home(&self) -> PathBuf {
        self.path().join("embedded")
    }

    fn cluster(&self) -> PathBuf {
        self.home().join("cluster")
    }

    fn settings(&self) -> Settings {
        settings(self.path())
    }

    fn settings_with_reaper(&self) -> Settings {
        Settings { reaper: Some(reaper(self.path())), ..self.settings() }
    }

    fn is_served(&self) -> bool {
        self.cluster().join("postmaster.pid").exists()
    }

    fn server_pid(&self) -> u32 {
        let text = fs::read_to_string(self.cluster().join("postmaster.pid")).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        if std::thread::panicking() && self.is_served() {
            signal("QUIT", &self.server_pid().to_string());
        }
    }
}

fn settings(data_dir: &Path) -> Settings {
    Settings {
        data_dir: data_dir.to_owned(),
        programs: Programs::Find,
        releases_url: None,
        reaper: None,
        durable: false,
    }
}

fn reaper(data_dir: &Path) -> Reaper {
    let mut variable = std::ffi::OsString::from(format!("{REAPED}="));
    variable.push(data_dir);
    let args = vec![
        variable,
        env::current_exe().unwrap().into(),
        "--exact".into(),
        here("a_reaper_of_its_own").into(),
    ];
    Reaper { program: PathBuf::from("env"), args }
}

/// Returns the full name of a test in this file, as the test framework knows it.
fn here(test: &str) -> String {
    let (_, module) = module_path!().split_once("::").unwrap();
    format!("{module}::{test}")
}

enum Reaping {
    Nobody,
    Process,
}

/// A command in a process, and a process group, of its own.
struct Owner {
    child: Child,
    said: Box<dyn Iterator<Item = String> + Send>,
}

impl Owner {
    fn launch(data: &Data, reaping: Reaping) -> Self {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", "--nocapture", &here("a_command_of_its_own")]).env(OWNER, data.path());
        match reaping {
            Reaping::Process => command.env(WITH_REAPER, "yes"),
            Reaping::Nobody => &mut command,
        };
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // The framework puts its own words at the beginning of the line.
        let said = lines.filter_map(|line| Some(line.ok()?.split_once(MARK)?.1.to_owned()));
        Self { child, said: Box::new(said) }
    }

    /// Waits until the command uses the server.
    fn origin(&mut self) -> String {
        self.said.next().expect("the command failed")
    }

    fn leave(mut self) -> String {
        drop(self.child.stdin.take());
        let left = self.said.next().expect("the command failed");
        assert!(self.child.wait().unwrap().success());
        left
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

async fn start(settings: &Settings) -> Embedded {
    embedded::start(settings, &|_| ()).await.unwrap_or_else(|error| panic!("{error}: {error:?}"))
}

async fn refusal(settings: &Settings) -> EmbeddedError {
    match embedded::start(settings, &|_| ()).await {
        Ok(embedded) => panic!("started: {embedded:?}"),
        Err(error) => error,
    }
}

async fn leave(embedded: Embedded) {
    assert_eq!(embedded.leave().await.unwrap(), Left::Stopped);
}

async fn connect(embedded: &Embedded) -> PgConnection {
    PgConnection::connect(&embedded.url()).await.unwrap()
}

async fn show(embedded: &Embedded, setting: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)")
        .bind(setting)
        .fetch_one(&mut connect(embedded).await)
        .await
        .unwrap()
}

async fn remember(embedded: &Embedded) {
    sqlx::raw_sql("CREATE TABLE remembered (what text); INSERT INTO remembered VALUES ('this')")
        .execute(&mut connect(embedded).await)
        .await
        .unwrap();
}

async fn assert_remembered(embedded: &Embedded) {
    let what: String = sqlx::query_scalar("SELECT what FROM remembered")
        .fetch_one(&mut connect(embedded).await)
        .await
        .unwrap();
    assert_eq!(what, "this");
}

fn password(embedded: &Embedded) -> String {
    let passfile = fs::read_to_string(&embedded.describe().passfile).unwrap();
    passfile.trim().rsplit(':').next().unwrap().to_owned()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

fn running_as_root() -> bool {
    fs::metadata(env::current_exe().unwrap()).is_ok()
        && tempfile::tempfile().unwrap().metadata().unwrap().uid() == 0
}

fn signal(name: &str, target: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), "--", target]).status().unwrap().success());
}

/// Tells whether a process is there and not only waits to be collected.
fn is_alive(pid: u32) -> bool {
    let shown = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
    let state = String::from_utf8_lossy(&shown.stdout);
    !state.trim().is_empty() && !state.trim().starts_with('Z')
}

/// Waits for a condition that nothing announces.
fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Packs programs as zonky.io does, a jar that holds a compressed tar, with the libraries that they look for beside themselves.
fn pack(binaries: &Path) -> Vec<u8> {
    let mut tar = tar::Builder::new(liblzma::write::XzEncoder::new(Vec::new(), 0));
    for program in ["initdb", "postgres", "pg_ctl"] {
        tar.append_path_with_name(binaries.join(program), Path::new("bin").join(program)).unwrap();
    }
    for library in ["dict_snowball", "plpgsql"].map(|name| format!("{name}{}", env::consts::DLL_SUFFIX)) {
        let path = binaries.join("../lib").join(&library);
        // Where they are not beside the programs, they are looked for at their absolute path.
        if path.exists() {
            tar.append_path_with_name(path, Path::new("lib").join(library)).unwrap();
        }
    }
    let packed = tar.into_inner().unwrap().finish().unwrap();
    let mut jar = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    jar.start_file(
        "postgres.txz",
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored),
    )
    .unwrap();
    jar.write_all(&packed).unwrap();
    jar.finish().unwrap().into_inner()
}

/// A repository in Maven's layout that has one version, until it is dropped.
struct Mirror {
    url: String,
    size: u64,
    serving: tokio::task::JoinHandle<()>,
}

impl Mirror {
    async fn serve(jar: Vec<u8>) -> Self {
        const INDEX: &str = "<metadata><groupId>io.zonky.test.postgres</groupId><artifactId>embedded</artifactId><versioning>\
            <latest>17.10.0</latest><release>17.10.0</release><versions><version>17.9.0</version><version>17.10.0</version>\
            </versions><lastUpdated>20250101000000</lastUpdated></versioning></metadata>";
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let size = jar.len() as u64;
        let sum: String = Sha512::digest(&jar).iter().map(|byte| format!("{byte:02x}")).collect();
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    request.push(stream.read_u8().await.unwrap());
                }
                let request = String::from_utf8(request).unwrap();
                let path = request.split(' ').nth(1).unwrap();
                let body = match path.rsplit_once('.').map(|(_, extension)| extension) {
                    Some("xml") => INDEX.as_bytes(),
                    Some("sha512") if path.contains("-17.10.0.jar") => sum.as_bytes(),
                    Some("jar") if path.contains("/17.10.0/") => &jar,
                    _ => panic!("asked for {path}"),
                };
                let length = body.len();
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                stream.write_all(body).await.unwrap();
                stream.shutdown().await.unwrap();
            }
        });
        Self { url, size, serving }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.serving.abort();
    }
}
