//! A private PostgreSQL, for the command that was given no `DATABASE_URL`.
//!
//! Everything lives in `embedded/` under the data directory: the cluster, its password, its log, and three lock files. Several commands share one
//! server. **Invariant**: the server is started and stopped only by the holder of `start.lock`, and stopped only when nobody holds a share of
//! `users.lock`. A lock belongs to an open file, so a command that is killed gives its share back without having to say so.
//!
//! The server listens on a Unix socket in a directory closed to other users, on no network address, and asks for a password even there.

mod account;
mod binaries;
mod cluster;
mod download;
mod error;
mod lease;
mod place;
mod program;
mod server;
mod socket;

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tracing::{info, warn};

pub use download::DownloadError;
pub use error::EmbeddedError;
pub use place::default_data_dir;

use binaries::Binaries;
use cluster::Password;
use lease::Lease;
use place::Place;
use server::Postmaster;

/// Says where the private cluster lives and how it is to be run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The data directory; `embedded/` is made under it.
    pub data_dir: PathBuf,
    /// Whose `initdb`, `postgres` and `pg_ctl` to use.
    pub programs: Programs,
    /// A Maven repository to download from instead of the public one, such as a company's mirror.
    pub releases_url: Option<String>,
    /// What to run so that [`reap`] watches over the cluster; without it a server whose users were all killed stays until the next command leaves.
    pub reaper: Option<Reaper>,
    /// Whether a commit survives a power failure; `false` is for the throw-away clusters of tests only.
    pub durable: bool,
}

/// Where PostgreSQL's programs come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Programs {
    /// From this machine, and where it has none, downloaded.
    #[default]
    Find,
    /// From this directory and no other.
    In(PathBuf),
    /// Downloaded, whatever this machine has.
    Downloaded,
}

/// A command line that ends in a call of [`reap`] for the same data directory.
#[derive(Clone, Debug)]
pub struct Reaper {
    /// The program, usually our own.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// What [`start`] is doing, for a person who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Another command is starting or stopping the server.
    Waiting,
    /// PostgreSQL's programs are being looked for.
    Finding,
    /// PostgreSQL is being downloaded; in bytes, `total` only if the server told it.
    Downloading {
        /// Bytes so far.
        received: u64,
        /// Bytes in all.
        total: Option<u64>,
    },
    /// The cluster is being made, which happens once.
    Creating,
    /// The server is being started; after a crash this includes its recovery.
    Starting,
    /// A server started by this command is ready.
    Started,
    /// A server that was running already is ready.
    Attached,
}

/// What a command uses, for its log and for `minutebook status`.
#[derive(Clone, Debug)]
pub struct Description {
    /// The server's version, such as `15.14`.
    pub version: String,
    /// Where its programs are.
    pub binaries: PathBuf,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The directory of its socket.
    pub socket_dir: PathBuf,
    /// The number in the socket's name; no network port is opened.
    pub port: u16,
    /// The user that its processes run as.
    pub account: String,
    /// The file that holds the password, in the form libpq reads.
    pub passfile: PathBuf,
    /// Whether this command started the server or found it running.
    pub origin: Origin,
    /// Whether this command made the cluster.
    pub created: bool,
}

/// Where a command's server came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This command started it.
    Started,
    /// Another command had started it.
    Attached,
}

/// What became of the server when a command left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nobody else used it, and it was stopped.
    Stopped,
    /// Another command uses it, and it runs on.
    StillInUse,
}

/// A share in the running server.
///
/// Dropping it without [`Embedded::leave`] gives the share back but stops nothing: that is then left to the reaper or to the next command.
pub struct Embedded {
    place: Place,
    share: Lease,
    url: String,
    description: Description,
}

/// Starts the private server, or attaches to it where another command has.
///
/// # Errors
///
/// Names what failed, where, and what can be done. Every wait has a bound. A server that was started for a command which then failed is stopped.
pub async fn start(
    settings: &Settings,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Embedded, EmbeddedError> {
    let place = Place::prepare(&settings.data_dir)?;
    let starting = lease::start_lock(&place, &|| progress(Progress::Waiting)).await?;
    // Taken before the server is looked at, so that nobody who counts users from here on can miss this one.
    let share = lease::share(&place).await?;
    let embedded = match serve(settings, &place, share, progress).await {
        Ok(embedded) => embedded,
        Err(error) => {
            // Our share is gone with the failure, and the server must not stay for nobody.
            if let Err(unstopped) = stop_if_unused(&place).await {
                warn!(error = %unstopped, "could not stop the embedded PostgreSQL after a failed start");
            }
            return Err(error);
        }
    };
    drop(starting);

    let description = &embedded.description;
    progress(match description.origin {
        Origin::Started => Progress::Started,
        Origin::Attached => Progress::Attached,
    });
    info!(
        version = description.version,
        binaries = %description.binaries.display(),
        data_dir = %description.data_dir.display(),
        account = description.account,
        origin = ?description.origin,
        created = description.created,
        "using the embedded PostgreSQL"
    );
    Ok(embedded)
}

impl Embedded {
    /// Returns the `postgres://` URL of the database `minutebook`. It holds the password: it is for a connection, not for a log.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// Returns what this command uses; the password is not in it.
    #[must_use]
    pub fn describe(&self) -> &Description {
        &self.description
    }

    /// Gives the share back, and stops the server if it was the last one.
    ///
    /// # Errors
    ///
    /// If another command keeps `start.lock`, or the server does not stop, in time.
    pub async fn leave(self) -> Result<Left, EmbeddedError> {
        let starting = lease::start_lock(&self.place, &|| ()).await?;
        drop(self.share);
        let left = stop_if_unused(&self.place).await?;
        drop(starting);
        info!(?left, "left the embedded PostgreSQL");
        Ok(left)
    }
}

impl fmt::Debug for Embedded {
    /// Shows what is used; the URL holds the password and stays out.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Embedded").field("description", &self.description).finish_non_exhaustive()
    }
}

impl Description {
    /// Returns a line for a POSIX shell that opens `psql` on the database. The password is in the file that the line names, not in the line.
    #[must_use]
    pub fn psql_command(&self) -> String {
        format!(
            "PGPASSFILE={} psql -h {} -p {} -U {user} {database}",
            quote(&self.passfile),
            quote(&self.socket_dir),
            self.port,
            user = cluster::USER,
            database = cluster::DATABASE,
        )
    }
}

/// Waits until nobody uses the cluster any more, even if its users were killed, and stops the server.
///
/// Runs for as long as the cluster is used: it is the whole work of a process of its own, which [`start`] launches as [`Settings::reaper`]. Returns at
/// once if another reaper watches the cluster already.
///
/// # Errors
///
/// If the data directory cannot be used, or the server does not stop in time.
pub async fn reap(data_dir: &Path) -> Result<(), EmbeddedError> {
    // Out of the terminal's reach: a Ctrl-C is meant for the command, which then leaves by itself. It fails only for the leader of a process group,
    // whom the terminal does not signal either.
    let _ = nix::unistd::setsid();

    let place = Place::open(data_dir)?;
    let Some(duty) = lease::reaper(&place)? else {
        return Ok(());
    };
    loop {
        lease::wait_until_unused(&place).await?;
        let starting = lease::start_lock(&place, &|| ()).await?;
        // Asked again under the lock: a command may have come while we waited for it.
        match stop_if_unused(&place).await? {
            Left::Stopped => {
                // In this order: whoever holds `start.lock` next finds no reaper on duty, and launches one.
                drop(duty);
                drop(starting);
                return Ok(());
            }
            Left::StillInUse => {}
        }
    }
}

/// Stops the server if nobody has a share in it; asked under `start.lock`, by whoever has given up its own.
async fn stop_if_unused(place: &Place) -> Result<Left, EmbeddedError> {
    match lease::sole(place).await? {
        Some(sole) => {
            server::stop(place).await?;
            drop(sole);
            Ok(Left::Stopped)
        }
        None => Ok(Left::StillInUse),
    }
}

/// Finds the server or starts it, connects once, which proves the password, and has it watched over.
async fn serve(
    settings: &Settings,
    place: &Place,
    share: Lease,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Embedded, EmbeddedError> {
    let (postmaster, origin, created) = match server::find(place).await? {
        Some(postmaster) => (postmaster, Origin::Attached, false),
        None => {
            let (postmaster, created) = start_server(settings, place, progress).await?;
            (postmaster, Origin::Started, created)
        }
    };
    let password = Password::read(place)?;
    let version = server::enter(&postmaster, &password).await?;
    if let Some(reaper) = &settings.reaper {
        watch_over(place, reaper)?;
    }
    let url = server::url(&postmaster, &password);
    let description = Description {
        version,
        binaries: server::binaries_of(place)?,
        data_dir: place.data_dir().to_owned(),
        socket_dir: postmaster.socket_dir,
        port: postmaster.port,
        account: place.account().name.clone(),
        passfile: place.passfile(),
        origin,
        created,
    };
    Ok(Embedded { place: place.clone(), share, url, description })
}

/// Makes the cluster if there is none, and starts its server; tells whether it was made.
async fn start_server(
    settings: &Settings,
    place: &Place,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<(Postmaster, bool), EmbeddedError> {
    progress(Progress::Finding);
    cluster::clear_abandoned(place);
    let existing = cluster::major(place)?;
    let binaries = match binaries::find(&settings.programs, place, existing).await? {
        Some(binaries) => binaries,
        None => download_binaries(settings, place, existing, progress).await?,
    };
    if existing.is_none() {
        progress(Progress::Creating);
        cluster::create(place, &binaries, settings.durable).await?;
    }
    progress(Progress::Starting);
    let postmaster = server::start(place, &binaries, settings.durable).await?;
    Ok((postmaster, existing.is_none()))
}

async fn download_binaries(
    settings: &Settings,
    place: &Place,
    existing: Option<u32>,
    progress: &(dyn Fn(Progress) + Send + Sync),
) -> Result<Binaries, EmbeddedError> {
    place.make_dir(&place.binaries())?;
    let source = download::Source::new(settings.releases_url.as_deref());
    let dir = download::fetch(&source, &place.binaries(), existing, &|received, total| {
        progress(Progress::Downloading { received, total });
    })
    .await?;
    binaries::inspect(&dir, place.account())
        .await
        .map_err(|reason| EmbeddedError::BinariesUnusable { dir, reason })
}

/// Launches the reaper unless one is on duty. Called with `start.lock` held, so that a reaper that is about to end cannot be taken for one on duty.
///
/// Asked at every start, not only by the command that starts the server: that command may have been killed before it came to this.
fn watch_over(place: &Place, reaper: &Reaper) -> Result<(), EmbeddedError> {
    match lease::reaper(place)? {
        // Only a look; the reaper takes it for itself.
        Some(vacant) => drop(vacant),
        None => return Ok(()),
    }
    // Tokio collects it if it ends before us; it is never waited for.
    tokio::process::Command::new(&reaper.program)
        .args(&reaper.args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map(drop)
        .map_err(|source| EmbeddedError::io("start the reaper", &reaper.program, source))
}

/// Quotes a path for a POSIX shell.
fn quote(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_psql_line_survives_a_path_with_a_quote_and_holds_no_password() {
        let description = Description {
            version: "15.14".to_owned(),
            binaries: PathBuf::from("/usr/lib/postgresql/15/bin"),
            data_dir: PathBuf::from("/srv/it's here"),
            socket_dir: PathBuf::from("/srv/it's here/embedded/socket"),
            port: 5432,
            account: "postgres".to_owned(),
            passfile: PathBuf::from("/srv/it's here/embedded/pgpass"),
            origin: Origin::Started,
            created: true,
        };

        assert_eq!(
            description.psql_command(),
            r"PGPASSFILE='/srv/it'\''s here/embedded/pgpass' psql -h '/srv/it'\''s here/embedded/socket' -p 5432 -U minutebook minutebook"
        );
    }
}
