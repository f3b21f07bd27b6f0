//! Who runs PostgreSQL's programs. PostgreSQL refuses root, so a command of root's runs them as another user.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::error::EmbeddedError;

/// The users that root may run PostgreSQL as, best first. Both have an entry in the password database, which `initdb` insists on.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

/// The user that runs PostgreSQL's programs and owns its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    /// The name, for messages.
    pub(super) name: String,
    /// The user id.
    pub(super) uid: u32,
    /// The primary group id; a program run as this user has no other group.
    pub(super) gid: u32,
    /// Whether programs must change to this user, which only root can and must.
    pub(super) switched: bool,
}

impl Account {
    /// Returns the user for a new cluster: ourselves, or for root the first candidate that exists.
    pub(super) fn choose() -> Result<Self, EmbeddedError> {
        let uid = Uid::effective();
        if !uid.is_root() {
            return Self::by_uid(uid.as_raw()).ok_or(EmbeddedError::NamelessUser { uid: uid.as_raw() });
        }
        CANDIDATES.iter().find_map(|name| Self::by_name(name)).ok_or(EmbeddedError::NoAccount)
    }

    /// Returns the user for the cluster that `owner` has: it stays with its user, even where root would choose another one today.
    ///
    /// Root takes on nobody but the candidates: a person's own directory could hold links that lead root's writing astray.
    pub(super) fn of_owner(owner: u32) -> Result<Option<Self>, EmbeddedError> {
        let chosen = Self::choose()?;
        if chosen.uid == owner {
            return Ok(Some(chosen));
        }
        let candidates = CANDIDATES.iter().filter_map(|name| Self::by_name(name));
        Ok(candidates.filter(|_| chosen.switched).find(|candidate| candidate.uid == owner))
    }

    fn by_name(name: &str) -> Option<Self> {
        User::from_name(name)
            .ok()
            .flatten()
            .filter(|user| !user.uid.is_root())
            .map(|user| Self::from_entry(user, true))
    }

    fn by_uid(uid: u32) -> Option<Self> {
        User::from_uid(Uid::from_raw(uid)).ok().flatten().map(|user| Self::from_entry(user, false))
    }

    fn from_entry(user: User, switched: bool) -> Self {
        Self { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), switched }
    }

    /// Returns the first directory on the way to `path`, itself included, that this user cannot pass. Access lists beyond the mode are not considered.
    pub(super) fn closed_directory(&self, path: &Path) -> Option<PathBuf> {
        // We are this user, may have further groups, and find out by going there.
        if !self.switched {
            return None;
        }
        let mut ancestors: Vec<&Path> =
            path.ancestors().filter(|ancestor| !ancestor.as_os_str().is_empty()).collect();
        ancestors.reverse();
        ancestors
            .into_iter()
            .find(|ancestor| {
                ancestor.metadata().is_ok_and(|metadata| metadata.is_dir() && !self.may_execute(&metadata))
            })
            .map(Path::to_owned)
    }

    /// Tells whether this user may run a file, or pass a directory. The first class that fits decides, as in the kernel.
    pub(super) fn may_execute(&self, metadata: &Metadata) -> bool {
        if !self.switched {
            return metadata.mode() & 0o111 != 0;
        }
        let bit = if metadata.uid() == self.uid {
            0o100
        } else if metadata.gid() == self.gid {
            0o010
        } else {
            0o001
        };
        metadata.mode() & bit != 0
    }
}

/// Returns a user's name, or the number where there is none.
pub(super) fn name_of(uid: u32) -> String {
    User::from_uid(Uid::from_raw(uid))
        .ok()
        .flatten()
        .map_or_else(|| format!("user id {uid}"), |user| user.name)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_closed_directory_is_the_one_that_bars_the_way_not_the_one_asked_for() {
        let root = tempfile::tempdir().unwrap();
        let barred = root.path().join("barred");
        let inside = barred.join("inside");
        fs::create_dir_all(&inside).unwrap();
        fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&barred, Permissions::from_mode(0o700)).unwrap();
        let stranger =
            Account { name: "stranger".to_owned(), uid: 4_000_000, gid: 4_000_000, switched: true };

        assert_eq!(stranger.closed_directory(&inside), Some(barred.clone()));

        fs::set_permissions(&barred, Permissions::from_mode(0o711)).unwrap();
        assert_eq!(stranger.closed_directory(&inside), None);
    }

    #[test]
    fn programs_never_run_as_root() {
        let account = Account::choose().unwrap();

        assert_ne!(account.uid, 0);
        assert_eq!(account.switched, Uid::effective().is_root());
    }
}
