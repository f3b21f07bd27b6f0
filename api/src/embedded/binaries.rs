//! Finds PostgreSQL's programs on this machine. **Invariant**: a cluster is only ever touched by programs of the major version that made it.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Programs;
use super::account::Account;
use super::error::EmbeddedError;
use super::place::Place;
use super::program::Program;

/// The oldest major version that our migrations are tested with.
pub(super) const OLDEST: u32 = 14;

/// The programs that must lie beside each other.
pub(super) const PROGRAMS: [&str; 3] = ["initdb", "postgres", "pg_ctl"];

/// The longest `postgres --version` may take.
const VERSION_LIMIT: Duration = Duration::from_secs(20);

/// A directory of programs that were found fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Binaries {
    pub(super) dir: PathBuf,
    pub(super) major: u32,
}

/// Returns the programs to use, or `None` where this machine has none and they are to be downloaded.
///
/// `cluster` is the major version of an existing cluster.
pub(super) async fn find(
    programs: &Programs,
    place: &Place,
    cluster: Option<u32>,
) -> Result<Option<Binaries>, EmbeddedError> {
    let found = match programs {
        // Whoever names a directory wants that one, and is told what is wrong with it.
        Programs::In(dir) => {
            let inspected = inspect(dir, place.account()).await;
            vec![
                inspected
                    .map_err(|reason| EmbeddedError::BinariesUnusable { dir: dir.to_owned(), reason })?,
            ]
        }
        Programs::Find => fit(on_this_machine().into_iter().chain(downloaded(place)), place.account()).await,
        Programs::Downloaded => fit(downloaded(place).into_iter(), place.account()).await,
    };
    match choose(&found, cluster) {
        Choice::Use(binaries) => Ok(Some(binaries.clone())),
        Choice::Nothing => Ok(None),
        Choice::OtherVersions { cluster } => Err(EmbeddedError::VersionMismatch {
            cluster,
            found: list(&found),
            data_dir: place.data_dir().to_owned(),
        }),
    }
}

/// Returns the programs in a directory, or why they cannot be used.
pub(super) async fn inspect(dir: &Path, account: &Account) -> Result<Binaries, String> {
    // Links such as /usr/local/bin/postgres lead to where the three lie together.
    let postgres = dir.join("postgres").canonicalize().map_err(|error| format!("postgres: {error}"))?;
    let dir = postgres.parent().ok_or("postgres is not in a directory")?.to_owned();
    if let Some(closed) = account.closed_directory(&dir) {
        return Err(format!("{} is closed to {}, who runs them", closed.display(), account.name));
    }
    for program in PROGRAMS {
        let metadata = dir.join(program).metadata().map_err(|error| format!("{program}: {error}"))?;
        if !metadata.is_file() || !account.may_execute(&metadata) {
            return Err(format!("{program} may not be run by {}", account.name));
        }
    }
    let program = Program { path: postgres, account, current_dir: &dir };
    let ended = program
        .run(["--version"], VERSION_LIMIT)
        .await
        .map_err(|error| format!("postgres: {error}"))?
        .ok_or("postgres --version does not end")?;
    if !ended.success {
        return Err(format!("postgres --version: {}: {}", ended.status, ended.stderr.trim()));
    }
    let major = parse_major(&ended.stdout)
        .ok_or_else(|| format!("postgres --version says `{}`", ended.stdout.trim()))?;
    if major < OLDEST {
        return Err(format!("they are PostgreSQL {major}, and {OLDEST} or later is needed"));
    }
    Ok(Binaries { dir, major })
}

/// Returns the usual places, best first.
fn on_this_machine() -> Vec<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(installed(Path::new("/usr/lib/postgresql"), ""))
        .chain(installed(Path::new("/opt/homebrew/opt"), "postgresql@"))
        .chain(installed(Path::new("/usr/local/opt"), "postgresql@"))
        .collect()
}

/// Returns what was downloaded earlier, newest first.
fn downloaded(place: &Place) -> Vec<PathBuf> {
    installed(&place.binaries(), "")
}

/// Returns those that can be used, in their order.
async fn fit(candidates: impl Iterator<Item = PathBuf>, account: &Account) -> Vec<Binaries> {
    let mut found: Vec<Binaries> = Vec::new();
    for dir in candidates.filter(|dir| dir.join("postgres").exists()) {
        match inspect(&dir, account).await {
            // Reached over a link before.
            Ok(binaries) if found.contains(&binaries) => {}
            Ok(binaries) => found.push(binaries),
            Err(reason) => {
                tracing::debug!(dir = %dir.display(), reason, "passed over PostgreSQL programs");
            }
        }
    }
    found
}

/// Returns `<root>/<prefix><version>/bin` for each version there, newest first.
fn installed(root: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(root).into_iter().flatten().filter_map(Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    newest_first(names, prefix).into_iter().map(|name| root.join(name).join("bin")).collect()
}

/// Sorts versions as numbers, so that 9.6 comes after 10; what has no version is left out.
fn newest_first(names: Vec<String>, prefix: &str) -> Vec<String> {
    let mut versions: Vec<(Vec<u32>, String)> = names
        .into_iter()
        .filter_map(|name| {
            let numbers: Result<Vec<u32>, _> =
                name.strip_prefix(prefix)?.split('.').map(str::parse).collect();
            Some((numbers.ok()?, name))
        })
        .collect();
    versions.sort_by(|(one, _), (other, _)| other.cmp(one));
    versions.into_iter().map(|(_, name)| name).collect()
}

/// What is to be made of the programs found.
#[derive(Debug, PartialEq, Eq)]
enum Choice<'a> {
    Use(&'a Binaries),
    Nothing,
    OtherVersions { cluster: u32 },
}

fn choose(found: &[Binaries], cluster: Option<u32>) -> Choice<'_> {
    let chosen = found.iter().find(|binaries| cluster.is_none_or(|cluster| binaries.major == cluster));
    match (chosen, cluster) {
        (Some(binaries), _) => Choice::Use(binaries),
        (None, Some(cluster)) if !found.is_empty() => Choice::OtherVersions { cluster },
        (None, _) => Choice::Nothing,
    }
}

fn list(found: &[Binaries]) -> String {
    let each: Vec<String> = found
        .iter()
        .map(|binaries| format!("PostgreSQL {} in {}", binaries.major, binaries.dir.display()))
        .collect();
    each.join(" and ")
}

/// Reads the major version from `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`, or from `18beta1` in its place.
fn parse_major(said: &str) -> Option<u32> {
    let version = said.split_whitespace().nth(2)?;
    let digits = version.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(version.len());
    version[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binaries(major: u32) -> Binaries {
        Binaries { dir: PathBuf::from(format!("/usr/lib/postgresql/{major}/bin")), major }
    }

    #[test]
    fn versions_are_ordered_as_numbers() {
        let names = ["9.6", "15", "common", "10", "17.5.0", "17.10.0"].map(str::to_owned).to_vec();
        assert_eq!(newest_first(names, ""), ["17.10.0", "17.5.0", "15", "10", "9.6"]);

        let names = ["postgresql@9", "postgresql@17", "postgresql", "redis@7"].map(str::to_owned).to_vec();
        assert_eq!(newest_first(names, "postgresql@"), ["postgresql@17", "postgresql@9"]);
    }

    #[test]
    fn a_new_cluster_takes_the_first_found_and_an_old_one_its_own_version() {
        let found = [binaries(17), binaries(15)];

        assert_eq!(choose(&found, None), Choice::Use(&found[0]));
        assert_eq!(choose(&found, Some(15)), Choice::Use(&found[1]));
    }

    #[test]
    fn another_major_version_is_refused_and_none_at_all_is_downloaded() {
        assert_eq!(choose(&[binaries(17)], Some(15)), Choice::OtherVersions { cluster: 15 });
        assert_eq!(choose(&[], Some(15)), Choice::Nothing);
        assert_eq!(choose(&[], None), Choice::Nothing);
    }

    #[test]
    fn the_major_version_is_read_from_what_distributions_say() {
        assert_eq!(parse_major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(parse_major("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_major("postgres (PostgreSQL) 9.6.24"), Some(9));
        assert_eq!(parse_major("sh: not found"), None);
    }
}
