//! Where the private cluster's files are, and whose they are.
//!
//! They are kept in a directory of their own, `embedded/`, closed to everyone but the user that runs PostgreSQL. The data directory above it stays the
//! command's: root's keys do not become readable to `nobody` because PostgreSQL has to run as somebody.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{self, Path, PathBuf};
use std::{env, process};

use nix::unistd::Uid;

use super::account::{Account, name_of};
use super::error::EmbeddedError;

const UNFINISHED_CLUSTER: &str = "cluster.unfinished-";

/// Returns the data directory for a command that was told none: `/var/lib/minutebook` for root, else the user's own.
///
/// # Errors
///
/// If the user has no home.
pub fn default_data_dir() -> Result<PathBuf, EmbeddedError> {
    // Root's home is closed to the user that runs PostgreSQL.
    if Uid::effective().is_root() {
        return Ok(PathBuf::from("/var/lib/minutebook"));
    }
    let absolute = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|share| share.join("minutebook"))
        .ok_or(EmbeddedError::NoHome)
}

/// A data directory that was found fit.
#[derive(Clone, Debug)]
pub(super) struct Place {
    data_dir: PathBuf,
    home: PathBuf,
    account: Account,
}

impl Place {
    /// Makes the directories that are missing.
    pub(super) fn prepare(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let root = Uid::effective().is_root();
        if !data_dir.exists() {
            // Asked first, so as not to leave a directory behind that is of no use. What is missing is open, once made.
            check_way(&path::absolute(data_dir).unwrap_or_default(), &Account::choose()?)?;
        }
        // Root's is open for passing through, which is all that the user who runs PostgreSQL needs; its entries cannot be listed.
        DirBuilder::new()
            .recursive(true)
            .mode(if root { 0o711 } else { 0o700 })
            .create(data_dir)
            .map_err(|source| EmbeddedError::io("create the data directory", data_dir, source))?;
        let data_dir = resolve(data_dir)?;
        let home = data_dir.join("embedded");
        if !home.exists() {
            let account = Account::choose()?;
            check_data_dir(&data_dir, &account)?;
            make_home(&home, &account)?;
        }
        Self::at(data_dir, home)
    }

    /// Opens a data directory that a command has prepared.
    pub(super) fn open(data_dir: &Path) -> Result<Self, EmbeddedError> {
        let data_dir = resolve(data_dir)?;
        let home = data_dir.join("embedded");
        Self::at(data_dir, home)
    }

    fn at(data_dir: PathBuf, home: PathBuf) -> Result<Self, EmbeddedError> {
        // Not followed if it is a link: root must not be led elsewhere.
        let metadata =
            fs::symlink_metadata(&home).map_err(|source| EmbeddedError::io("look at", &home, source))?;
        let account = Account::of_owner(metadata.uid())?
            .filter(|_| metadata.is_dir())
            .ok_or_else(|| foreign(&home, metadata.uid()))?;
        check_data_dir(&data_dir, &account)?;
        Ok(Self { data_dir, home, account })
    }

    pub(super) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// Returns the directory that holds everything else.
    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    pub(super) fn account(&self) -> &Account {
        &self.account
    }

    /// Returns PostgreSQL's own data directory.
    pub(super) fn cluster(&self) -> PathBuf {
        self.home.join("cluster")
    }

    /// Returns where this process makes a cluster before it is renamed into place.
    pub(super) fn unfinished_cluster(&self) -> PathBuf {
        self.home.join(format!("{UNFINISHED_CLUSTER}{}", process::id()))
    }

    /// Returns the clusters that were being made when their makers were killed.
    pub(super) fn abandoned_clusters(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.home).into_iter().flatten().filter_map(Result::ok);
        entries
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED_CLUSTER))
            .map(|entry| entry.path())
            .collect()
    }

    pub(super) fn passfile(&self) -> PathBuf {
        self.home.join("pgpass")
    }

    /// Returns the directory for programs that were downloaded.
    pub(super) fn binaries(&self) -> PathBuf {
        self.home.join("binaries")
    }

    /// Returns the directory of the server's log files.
    pub(super) fn logs(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Returns the file for what the server says before its log is open.
    pub(super) fn start_log(&self) -> PathBuf {
        self.home.join("start.log")
    }

    /// Makes a directory that is closed to others, unless it exists.
    pub(super) fn make_dir(&self, path: &Path) -> Result<(), EmbeddedError> {
        match make_private_dir(path, &self.account) {
            Err(source) if source.kind() == ErrorKind::AlreadyExists => Ok(()),
            made => made.map_err(|source| EmbeddedError::io("create", path, source)),
        }
    }

    /// Opens a file closed to others, made if it is missing. One that exists is not given away: it might be a link to something else.
    pub(super) fn open_file(&self, path: &Path) -> Result<File, EmbeddedError> {
        let opened = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => self.give_away(&file).map(|()| file),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                OpenOptions::new().write(true).open(path)
            }
            Err(error) => Err(error),
        };
        opened.map_err(|source| EmbeddedError::io("open", path, source))
    }

    /// Writes a file that is closed to others, wholly or not at all.
    pub(super) fn write_file(&self, path: &Path, contents: &str) -> Result<(), EmbeddedError> {
        self.replace_file(path, contents).map_err(|source| EmbeddedError::io("write", path, source))
    }

    fn replace_file(&self, path: &Path, contents: &str) -> io::Result<()> {
        let unfinished = path.with_extension("unfinished");
        remove_if_there(&unfinished)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&unfinished)?;
        self.give_away(&file)?;
        file.write_all(contents.as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    }

    fn give_away(&self, file: &File) -> io::Result<()> {
        if self.account.switched {
            fchown(file, Some(self.account.uid), Some(self.account.gid))?;
        }
        Ok(())
    }
}

/// Makes a directory with mode 0700 that belongs to `account`.
pub(super) fn make_private_dir(path: &Path, account: &Account) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    // The umask may have taken from the mode.
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    if account.switched {
        chown(path, Some(account.uid), Some(account.gid))?;
    }
    Ok(())
}

/// Removes a file that may be missing.
pub(super) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Removes a directory that may be missing, with all that is in it.
pub(super) fn remove_dir_if_there(path: &Path) -> Result<(), EmbeddedError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.map_err(|source| EmbeddedError::io("remove", path, source)),
    }
}

/// Makes a directory's entries outlive a power failure.
pub(super) fn sync_dir(path: &Path) -> Result<(), EmbeddedError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|source| EmbeddedError::io("sync", path, source))
}

/// Makes `embedded/` elsewhere and renames it into place: one that exists belongs to the right user from its first moment.
fn make_home(home: &Path, account: &Account) -> Result<(), EmbeddedError> {
    let unfinished = home.with_extension(format!("unfinished-{}", process::id()));
    make_private_dir(&unfinished, account)
        .map_err(|source| EmbeddedError::io("create", &unfinished, source))?;
    match fs::rename(&unfinished, home) {
        Ok(()) => Ok(()),
        // Another command was faster, and has put something into it already.
        Err(_) if home.is_dir() => remove_dir_if_there(&unfinished),
        Err(source) => Err(EmbeddedError::io("create", home, source)),
    }
}

/// Returns the path without links, so that it is the same to every command, once it is known to be one that PostgreSQL's tools can take.
fn resolve(data_dir: &Path) -> Result<PathBuf, EmbeddedError> {
    let path = data_dir
        .canonicalize()
        .map_err(|source| EmbeddedError::io("find the data directory", data_dir, source))?;
    // `pg_ctl` puts the path between double quotes into a shell's command line, and it stands in the configuration.
    let harmless = path.to_str().is_some_and(|text| !text.contains(['"', '$', '`', '\\', '\n', '\r']));
    if harmless { Ok(path) } else { Err(EmbeddedError::DataDirName { path }) }
}

fn check_data_dir(data_dir: &Path, account: &Account) -> Result<(), EmbeddedError> {
    let owner = data_dir.metadata().map_err(|source| EmbeddedError::io("look at", data_dir, source))?.uid();
    let ours = owner == account.uid || owner == Uid::effective().as_raw();
    if !ours {
        return Err(foreign(data_dir, owner));
    }
    check_way(data_dir, account)
}

fn check_way(path: &Path, account: &Account) -> Result<(), EmbeddedError> {
    match account.closed_directory(path) {
        Some(closed) => {
            Err(EmbeddedError::Unreachable { path: path.to_owned(), closed, account: account.name.clone() })
        }
        None => Ok(()),
    }
}

fn foreign(path: &Path, owner: u32) -> EmbeddedError {
    EmbeddedError::ForeignOwner {
        path: path.to_owned(),
        owner: name_of(owner),
        wanted: name_of(Uid::effective().as_raw()),
    }
}
