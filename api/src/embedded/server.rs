//! The server process: who it is, how it is started and stopped. All of it is done under `start.lock`.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::{Connection, PgConnection};
use tokio::time::{Instant, sleep, timeout};

use super::binaries::Binaries;
use super::cluster::{self, DATABASE, Password, USER};
use super::error::EmbeddedError;
use super::place::{Place, remove_if_there};
use super::program::Program;
use super::socket;

/// The longest a start may take: after a crash up to `max_wal_size` is replayed.
const START_LIMIT: Duration = Duration::from_mins(5);

/// The longest a shutdown may take that ends every session and writes everything out.
const FAST_STOP_LIMIT: Duration = Duration::from_mins(1);

/// The longest a shutdown may take that leaves the rest to recovery.
const IMMEDIATE_STOP_LIMIT: Duration = Duration::from_secs(15);

/// The longest the children of a killed server may need to notice and end.
const ORPHANS_LIMIT: Duration = Duration::from_secs(30);

/// The longest a first conversation with a ready server may take.
const CONVERSATION_LIMIT: Duration = Duration::from_secs(30);

/// Log files older than this, or larger than [`LARGEST_LOG`], are removed at a start: a server that never sees two midnights does not empty them.
const OLDEST_LOG: Duration = Duration::from_hours(7 * 24);

/// In bytes.
const LARGEST_LOG: u64 = 10 * 1024 * 1024;

/// A process id that no system gives out.
const NO_PROCESS: i32 = i32::MAX;

const POLL: Duration = Duration::from_millis(20);

/// A server that accepts connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Postmaster {
    pub(super) socket_dir: PathBuf,
    pub(super) port: u16,
}

/// Returns the running server. One that is still starting, or stopping, is waited for.
pub(super) async fn find(place: &Place) -> Result<Option<Postmaster>, EmbeddedError> {
    let deadline = Instant::now() + START_LIMIT;
    while let Some(claim) = running(place)? {
        if claim.ready.is_some() {
            return Ok(claim.ready);
        }
        if Instant::now() >= deadline {
            return Err(EmbeddedError::TooSlow {
                doing: "waiting for a server that is neither ready nor gone",
                limit: START_LIMIT,
                log: place.logs(),
            });
        }
        sleep(POLL).await;
    }
    Ok(None)
}

/// Starts the server, which must not be running.
pub(super) async fn start(
    place: &Place,
    binaries: &Binaries,
    durable: bool,
) -> Result<Postmaster, EmbeddedError> {
    let socket_dir = socket::prepare(place)?;
    place.make_dir(&place.logs())?;
    prune_logs(&place.logs()).map_err(|source| EmbeddedError::io("prune", &place.logs(), source))?;
    cluster::configure(place, &socket_dir, durable)?;
    disown(place, &socket_dir)?;

    // `pg_ctl` detaches the server from our terminal and session: a Ctrl-C is for us, who may have work to finish with the database.
    let args = [
        "start".to_owned(),
        "--wait".to_owned(),
        "--silent".to_owned(),
        format!("--timeout={}", START_LIMIT.as_secs()),
        format!("--pgdata={}", place.cluster().display()),
        format!("--log={}", place.start_log().display()),
    ];
    let program =
        Program { path: binaries.dir.join("pg_ctl"), account: place.account(), current_dir: place.home() };
    let orphans_deadline = Instant::now() + ORPHANS_LIMIT;
    loop {
        place.write_file(&place.start_log(), "")?;
        let ended = program
            .run(&args, START_LIMIT + POLL)
            .await
            .map_err(|source| EmbeddedError::io("run", &program.path, source))?
            .ok_or_else(|| EmbeddedError::TooSlow {
                doing: "starting the server",
                limit: START_LIMIT,
                log: place.logs(),
            })?;
        if ended.success {
            break;
        }
        // The server of a command that was killed in the middle of this may have come up in between.
        if let Some(postmaster) = find(place).await? {
            return Ok(postmaster);
        }
        let said = fs::read_to_string(place.start_log()).unwrap_or_default();
        // A server that was killed may have left children that write yet. They end when they notice; until then PostgreSQL refuses to start.
        if said.contains("shared memory block") && Instant::now() < orphans_deadline {
            sleep(POLL).await;
            continue;
        }
        return Err(ended
            .failure("pg_ctl start", &format!("{}\n{said}\n{}", ended.stderr, newest_log(&place.logs()))));
    }
    find(place).await?.ok_or_else(|| EmbeddedError::Program {
        program: "postgres",
        status: "ended right after its start".to_owned(),
        output: newest_log(&place.logs()),
    })
}

/// Stops the server, if it runs: first so that it writes everything out, and if that takes too long, so that the next start recovers.
pub(super) async fn stop(place: &Place) -> Result<(), EmbeddedError> {
    for (signal, limit) in [(Signal::SIGINT, FAST_STOP_LIMIT), (Signal::SIGQUIT, IMMEDIATE_STOP_LIMIT)] {
        let deadline = Instant::now() + limit;
        let Some(claim) = running(place)? else {
            return Ok(());
        };
        match kill(Pid::from_raw(claim.pid), signal) {
            // It ended in between.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(EmbeddedError::Signal { pid: claim.pid, source: error.into() }),
        }
        while Instant::now() < deadline {
            if running(place)?.is_none() {
                return Ok(());
            }
            sleep(POLL).await;
        }
    }
    Err(EmbeddedError::TooSlow {
        doing: "stopping the server",
        limit: FAST_STOP_LIMIT + IMMEDIATE_STOP_LIMIT,
        log: place.logs(),
    })
}

/// Connects, makes the database if it is missing, and returns the server's version.
pub(super) async fn enter(postmaster: &Postmaster, password: &Password) -> Result<String, EmbeddedError> {
    let options = PgConnectOptions::new_without_pgpass()
        .socket(&postmaster.socket_dir)
        .port(postmaster.port)
        .username(USER)
        .password(password.reveal())
        .database("postgres")
        .ssl_mode(PgSslMode::Disable);
    match timeout(CONVERSATION_LIMIT, converse(&options)).await {
        Ok(version) => version,
        Err(_) => Err(EmbeddedError::Sql {
            doing: "waiting for its answer",
            source: sqlx::Error::Io(io::Error::from(ErrorKind::TimedOut)),
        }),
    }
}

/// Returns the URL that sqlx and libpq both understand: the socket's directory, percent-encoded, takes the host's place.
pub(super) fn url(postmaster: &Postmaster, password: &Password) -> String {
    let host: String = postmaster
        .socket_dir
        .as_os_str()
        .as_encoded_bytes()
        .iter()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => char::from(*byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect();
    format!("postgres://{USER}:{}@{host}:{}/{DATABASE}?sslmode=disable", password.reveal(), postmaster.port)
}

/// Returns the directory of the programs that the server was last started from.
pub(super) fn binaries_of(place: &Place) -> Result<PathBuf, EmbeddedError> {
    let path = place.cluster().join("postmaster.opts");
    let command = fs::read_to_string(&path).map_err(|source| EmbeddedError::io("read", &path, source))?;
    // `/usr/lib/postgresql/15/bin/postgres "-D" "/var/lib/…"`
    let program = command.split(" \"").next().unwrap_or_default();
    Ok(Path::new(program).parent().unwrap_or(Path::new("")).to_owned())
}

async fn converse(options: &PgConnectOptions) -> Result<String, EmbeddedError> {
    let failed = |doing| move |source| EmbeddedError::Sql { doing, source };
    let mut connection = PgConnection::connect_with(options).await.map_err(failed("connecting"))?;
    let (exists, version): (bool, String) = sqlx::query_as(
        "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1), current_setting('server_version')",
    )
    .bind(DATABASE)
    .fetch_one(&mut connection)
    .await
    .map_err(failed("looking for the database"))?;
    if !exists {
        sqlx::query("CREATE DATABASE minutebook")
            .execute(&mut connection)
            .await
            .map_err(failed("creating the database"))?;
    }
    connection.close().await.map_err(failed("disconnecting"))?;
    // Debian's is `15.14 (Debian 15.14-0+deb12u1)`.
    Ok(version.split_whitespace().next().unwrap_or_default().to_owned())
}

/// What `postmaster.pid` says of a server that lives.
struct Claim {
    pid: i32,
    ready: Option<Postmaster>,
}

/// Returns the server that `postmaster.pid` names, if that process is indeed the server of this cluster.
fn running(place: &Place) -> Result<Option<Claim>, EmbeddedError> {
    let claim = read_pid_file(place)?.and_then(|text| parse_claim(&text));
    Ok(claim.filter(|claim| is_server_of(claim.pid, &place.cluster())))
}

fn read_pid_file(place: &Place) -> Result<Option<String>, EmbeddedError> {
    let path = place.cluster().join("postmaster.pid");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(EmbeddedError::io("read", &path, source)),
    }
}

/// Reads the lines that `miscadmin.h` describes: process, directory, start time, port, socket directory, address, shared memory, status.
fn parse_claim(text: &str) -> Option<Claim> {
    let lines: Vec<&str> = text.lines().collect();
    let pid = lines.first()?.trim().parse().ok().filter(|pid| *pid > 0)?;
    let ready = match lines.as_slice() {
        [_, _, _, port, socket_dir, _, _, status] if status.trim() == "ready" => {
            port.parse().ok().map(|port| Postmaster { socket_dir: PathBuf::from(socket_dir), port })
        }
        // Not all of it is written yet, or the server is starting or stopping.
        _ => None,
    };
    Some(Claim { pid, ready })
}

/// Tells whether a process is the server of this cluster, and not another program that was given the number of one long dead.
#[cfg(target_os = "linux")]
fn is_server_of(pid: i32, cluster: &Path) -> bool {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = arguments.split(|byte| *byte == 0);
    // The server's children and the dead that nobody has collected have other command lines, or none.
    let program = arguments.next().unwrap_or_default();
    program.ends_with(b"/postgres")
        && arguments.any(|argument| argument == cluster.as_os_str().as_encoded_bytes())
}

/// Tells whether a process is the server of this cluster, and not another program that was given the number of one long dead.
#[cfg(not(target_os = "linux"))]
fn is_server_of(pid: i32, cluster: &Path) -> bool {
    let shown =
        std::process::Command::new("ps").args(["-ww", "-o", "args=", "-p", &pid.to_string()]).output();
    shown.is_ok_and(|shown| {
        let arguments = String::from_utf8_lossy(&shown.stdout);
        arguments.contains("/postgres ") && arguments.contains(&*cluster.to_string_lossy())
    })
}

/// Clears the claims of a server that is dead: PostgreSQL would believe them if another program of the same user has its number today.
///
/// `postmaster.pid` is not removed, only given a number of nobody: it also names the shared memory, by which PostgreSQL makes sure that no orphaned
/// child of that server still writes.
fn disown(place: &Place, socket_dir: &Path) -> Result<(), EmbeddedError> {
    let path = place.cluster().join("postmaster.pid");
    if let Some(text) = read_pid_file(place)? {
        // Asked once more, of what is to be overwritten: a server may be coming up whose command was killed.
        if parse_claim(&text).is_some_and(|claim| is_server_of(claim.pid, &place.cluster())) {
            return Ok(());
        }
        let rest = text.split_once('\n').map_or("", |(_, rest)| rest);
        place.write_file(&path, &format!("{NO_PROCESS}\n{rest}"))?;
        tracing::warn!("the embedded PostgreSQL did not end in order; it will recover");
    }
    for name in [format!(".s.PGSQL.{}.lock", socket::PORT), format!(".s.PGSQL.{}", socket::PORT)] {
        let path = socket_dir.join(name);
        remove_if_there(&path).map_err(|source| EmbeddedError::io("remove", &path, source))?;
    }
    Ok(())
}

fn prune_logs(dir: &Path) -> io::Result<()> {
    let now = SystemTime::now();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        let age = now.duration_since(metadata.modified()?).unwrap_or_default();
        if metadata.len() > LARGEST_LOG || age > OLDEST_LOG {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

/// Returns what the log file says that was written last, or nothing: it only adds to an error.
fn newest_log(dir: &Path) -> String {
    let newest = fs::read_dir(dir)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .max();
    newest.and_then(|(_, path)| fs::read_to_string(path).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn a_server_counts_as_ready_only_once_it_says_so() {
        let ready = "42\n/data/cluster\n1700000000\n5432\n/data/socket\n\n  12345  6\nready   \n";
        let claim = parse_claim(ready).unwrap();
        assert_eq!(claim.pid, 42);
        assert_eq!(claim.ready, Some(Postmaster { socket_dir: PathBuf::from("/data/socket"), port: 5432 }));

        assert_eq!(parse_claim(&ready.replace("ready", "stopping")).unwrap().ready, None);
        assert_eq!(parse_claim("42\n/data/cluster\n1700000000\n").unwrap().ready, None);
        assert!(parse_claim("").is_none());
        assert!(parse_claim("-42\n").is_none());
    }

    #[test]
    fn another_program_with_the_number_of_a_dead_server_is_not_the_server() {
        let ourselves = i32::try_from(std::process::id()).unwrap();

        assert!(!is_server_of(ourselves, Path::new("/data/cluster")));
        assert!(!is_server_of(NO_PROCESS, Path::new("/data/cluster")));
    }

    #[test]
    fn logs_that_are_old_or_large_are_removed_at_a_start() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| File::create(dir.path().join(name)).unwrap();
        make("recent.log");
        make("large.log").set_len(LARGEST_LOG + 1).unwrap();
        make("old.log").set_modified(SystemTime::now() - OLDEST_LOG - Duration::from_mins(1)).unwrap();

        prune_logs(dir.path()).unwrap();

        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["recent.log"]);
    }
}
