//! Everything that can go wrong with the private PostgreSQL. No message holds the password; most end in what to do.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::download::DownloadError;

/// Names the step that failed, where, and what can be done about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddedError {
    /// Neither `XDG_DATA_HOME` nor `HOME` is set.
    #[error("there is no home directory to keep data in: set HOME, or name a data directory")]
    NoHome,
    /// The path has a character that PostgreSQL's own tools cannot take.
    #[error("the data directory {} has a quote, `$`, a backtick, a backslash, a line break or a byte that is no UTF-8 in its path, which PostgreSQL's tools cannot take: name another one", path.display())]
    DataDirName {
        /// The data directory.
        path: PathBuf,
    },
    /// The directory belongs to somebody else.
    #[error("{} belongs to {owner}, not to {wanted}: run the command as {owner}, or name another data directory", path.display())]
    ForeignOwner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
        /// Whose it should be.
        wanted: String,
    },
    /// A directory on the way is closed to the user that runs the server.
    #[error("{} cannot be reached by {account}, the user that PostgreSQL runs as, because {} is closed to it: run `chmod o+x` on that directory, or name another data directory such as /var/lib/minutebook", path.display(), closed.display())]
    Unreachable {
        /// What should be reached.
        path: PathBuf,
        /// The directory that is closed.
        closed: PathBuf,
        /// The user.
        account: String,
    },
    /// PostgreSQL refuses to run as root, and there is no other user.
    #[error(
        "PostgreSQL refuses to run as root, and neither `postgres` nor `nobody` is a user here: add one, or run the command as an ordinary user"
    )]
    NoAccount,
    /// `initdb` refuses a user without a name.
    #[error(
        "user id {uid} has no name in the password database, which PostgreSQL needs: add an entry for it, or run the command as another user"
    )]
    NamelessUser {
        /// The user id.
        uid: u32,
    },
    /// A file operation failed.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The programs in a directory that was named, or downloaded, cannot be used.
    #[error("the PostgreSQL programs in {} cannot be used: {reason}", dir.display())]
    BinariesUnusable {
        /// The directory.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// The programs found are of another major version than the cluster.
    #[error("the cluster in {} was made by PostgreSQL {cluster}, but this machine has {found}: install PostgreSQL {cluster}, or name the directory of its programs", data_dir.display())]
    VersionMismatch {
        /// The cluster's major version.
        cluster: u32,
        /// The versions found, and where.
        found: String,
        /// The data directory.
        data_dir: PathBuf,
    },
    /// `PG_VERSION` holds no number.
    #[error("{} does not hold a version: the cluster is damaged, restore it from a backup", path.display())]
    UnreadableVersion {
        /// The file.
        path: PathBuf,
    },
    /// There are no programs here, and they could not be downloaded either.
    #[error(
        "PostgreSQL could not be downloaded: install PostgreSQL 14 or later, name the directory of its programs, or name a database"
    )]
    Download(#[from] DownloadError),
    /// Another command does not let go.
    #[error("another command has held {} for {} seconds: see which one runs, and end it", path.display(), waited.as_secs())]
    Held {
        /// The lock file.
        path: PathBuf,
        /// How long it was waited for.
        waited: Duration,
    },
    /// A program ended badly.
    #[error("{program} failed ({status}): {output}")]
    Program {
        /// Its name.
        program: &'static str,
        /// How it ended.
        status: String,
        /// The end of what it said.
        output: String,
    },
    /// A step took longer than it may.
    #[error("{doing} took longer than {} seconds; see {}", limit.as_secs(), log.display())]
    TooSlow {
        /// The step.
        doing: &'static str,
        /// Its bound.
        limit: Duration,
        /// Where to look.
        log: PathBuf,
    },
    /// The cluster's password is gone.
    #[error("the cluster's password cannot be read from {}: put the file back from a backup", path.display())]
    Passfile {
        /// The file.
        path: PathBuf,
    },
    /// The name of the fallback directory for the socket is taken.
    #[error("{} should be a directory of {account} that is closed to others, and is not: remove it, or name a data directory with a shorter path", path.display())]
    SocketDir {
        /// The directory.
        path: PathBuf,
        /// The user.
        account: String,
    },
    /// The server runs, but a conversation with it failed.
    #[error("the embedded PostgreSQL is running but could not be used while {doing}")]
    Sql {
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// Signalling the server failed.
    #[error("could not signal the PostgreSQL server, process {pid}")]
    Signal {
        /// The process.
        pid: i32,
        /// Why it failed.
        source: io::Error,
    },
}

impl EmbeddedError {
    /// Returns an [`EmbeddedError::Io`] for a step on a path.
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}
