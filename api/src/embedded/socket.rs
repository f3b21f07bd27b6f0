//! Where the server's socket goes: its path has a bound that a data directory's path may be too long for.

use std::env;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::EmbeddedError;
use super::place::{Place, make_private_dir};

/// The number in the socket's name. It is no network port, and nothing else is in the socket's directory, so it is never taken.
pub(super) const PORT: u16 = 5432;

/// The longest path of a socket in bytes: the size of `sun_path`, less the zero at its end.
const LONGEST: usize = if cfg!(target_os = "linux") { 107 } else { 103 };

/// Returns a directory for the socket, made if it is missing, closed to all but the user that runs the server.
pub(super) fn prepare(place: &Place) -> Result<PathBuf, EmbeddedError> {
    let beside = place.home().join("socket");
    if fits(&beside) {
        place.make_dir(&beside)?;
        return Ok(beside);
    }
    let account = place.account();
    let named = env::temp_dir().join(short_name(place));
    let short = if fits(&named) && account.closed_directory(named.parent().unwrap_or(&named)).is_none() {
        named
    } else {
        Path::new("/tmp").join(short_name(place))
    };
    match make_private_dir(&short, account) {
        Ok(()) => return Ok(short),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(source) => return Err(EmbeddedError::io("create", &short, source)),
    }
    // Anyone may have made it, the directory above being open to all: it will do only if it is what we would have made.
    let metadata =
        fs::symlink_metadata(&short).map_err(|source| EmbeddedError::io("look at", &short, source))?;
    if metadata.is_dir() && metadata.uid() == account.uid && metadata.permissions().mode() & 0o077 == 0 {
        Ok(short)
    } else {
        Err(EmbeddedError::SocketDir { path: short, account: account.name.clone() })
    }
}

fn fits(dir: &Path) -> bool {
    dir.join(format!(".s.PGSQL.{PORT}")).as_os_str().len() <= LONGEST
}

/// Returns a name that is the same at every start, so that the connections of a running command find a server that was started anew.
fn short_name(place: &Place) -> String {
    // FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv; the standard library's hash may change with its version.
    let hash =
        place.data_dir().as_os_str().as_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("minutebook-{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_path_fits_up_to_the_last_byte_that_the_kernel_takes() {
        let file = "/.s.PGSQL.5432".len();
        let dir = |length: usize| PathBuf::from(format!("/{}", "d".repeat(length - 1)));

        assert!(fits(&dir(LONGEST - file)));
        assert!(!fits(&dir(LONGEST - file + 1)));
    }
}
