//! Who uses the server: three files whose locks the kernel takes back from a process that dies.
//!
//! | file | held | by |
//! |---|---|---|
//! | `start.lock` | exclusively | whoever starts or stops the server, while doing it |
//! | `users.lock` | shared | every command that uses the server, as long as it does |
//! | `reaper.lock` | exclusively | the one reaper |

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::EmbeddedError;
use super::place::Place;

/// The longest another command may keep `start.lock`: a download, `initdb` and the recovery after a crash, each of which has its own bound.
const START_LOCK_LIMIT: Duration = Duration::from_mins(20);

/// The longest the reaper may keep `users.lock` when it finds it free: it lets go of it at once.
const GLANCE_LIMIT: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(20);

/// A lock held, until this is dropped.
#[derive(Debug)]
pub(super) struct Lease(File);

impl Drop for Lease {
    /// Unlocks, which closing alone does not do at once: a program that is being launched on another thread has a copy of the open file until its `exec`.
    fn drop(&mut self) {
        // Closing follows, and is enough if nothing is being launched.
        let _ = self.0.unlock();
    }
}

/// Waits for the right to start or stop the server; calls `waiting` once if it has to wait.
pub(super) async fn start_lock(
    place: &Place,
    waiting: &(dyn Fn() + Send + Sync),
) -> Result<Lease, EmbeddedError> {
    let path = place.home().join("start.lock");
    let file = place.open_file(&path)?;
    if try_lock(&path, || file.try_lock())? {
        return Ok(Lease(file));
    }
    waiting();
    within(START_LOCK_LIMIT, &path, || file.try_lock()).await?;
    Ok(Lease(file))
}

/// Takes a share in the server. Only the reaper's glance can be in the way.
pub(super) async fn share(place: &Place) -> Result<Lease, EmbeddedError> {
    let path = users(place);
    let file = place.open_file(&path)?;
    within(GLANCE_LIMIT, &path, || file.try_lock_shared()).await?;
    Ok(Lease(file))
}

/// Returns a lease that keeps users out if there are none; asked under `start.lock`, by whoever has given up its own share.
pub(super) async fn sole(place: &Place) -> Result<Option<Lease>, EmbeddedError> {
    let path = users(place);
    let file = place.open_file(&path)?;
    if try_lock(&path, || file.try_lock())? {
        return Ok(Some(Lease(file)));
    }
    // A user may be in the way, or only the reaper: it is woken by the very share that was just given up, and lets go before it waits for
    // `start.lock`, which is ours. A share can be had as soon as it has, so the second answer is about users alone.
    within(GLANCE_LIMIT, &path, || file.try_lock_shared()).await?;
    file.unlock().map_err(|source| EmbeddedError::io("unlock", &path, source))?;
    Ok(try_lock(&path, || file.try_lock())?.then_some(Lease(file)))
}

/// Takes the reaper's duty, unless a reaper is on duty.
pub(super) fn reaper(place: &Place) -> Result<Option<Lease>, EmbeddedError> {
    let path = place.home().join("reaper.lock");
    let file = place.open_file(&path)?;
    Ok(try_lock(&path, || file.try_lock())?.then_some(Lease(file)))
}

/// Waits, without a bound, until nobody has a share. It may have changed by the time this returns.
pub(super) async fn wait_until_unused(place: &Place) -> Result<(), EmbeddedError> {
    let path = users(place);
    let file = place.open_file(&path)?;
    let waited = tokio::task::spawn_blocking(move || file.lock().map(|()| drop(Lease(file)))).await;
    waited
        .unwrap_or_else(|stopped| Err(stopped.into()))
        .map_err(|source| EmbeddedError::io("lock", &path, source))
}

fn users(place: &Place) -> PathBuf {
    place.home().join("users.lock")
}

/// Asks again and again: the kernel can wait for a lock, but not with a bound.
async fn within(
    limit: Duration,
    path: &Path,
    attempt: impl Fn() -> Result<(), TryLockError>,
) -> Result<(), EmbeddedError> {
    let deadline = Instant::now() + limit;
    while !try_lock(path, &attempt)? {
        if Instant::now() >= deadline {
            return Err(EmbeddedError::Held { path: path.to_owned(), waited: limit });
        }
        sleep(POLL).await;
    }
    Ok(())
}

fn try_lock(path: &Path, attempt: impl Fn() -> Result<(), TryLockError>) -> Result<bool, EmbeddedError> {
    match attempt() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(source)) => Err(EmbeddedError::io("lock", path, source)),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use tempfile::TempDir;

    use super::*;

    fn place() -> (TempDir, Place) {
        let dir = tempfile::tempdir().unwrap();
        // Root's PostgreSQL runs as a user who must be able to pass.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o711)).unwrap();
        let place = Place::prepare(dir.path()).unwrap();
        (dir, place)
    }

    #[tokio::test]
    async fn a_user_is_counted_until_it_gives_up_its_share() {
        let (_dir, place) = place();
        let one = share(&place).await.unwrap();
        let other = share(&place).await.unwrap();

        assert!(sole(&place).await.unwrap().is_none());
        drop(one);
        assert!(sole(&place).await.unwrap().is_none());
        drop(other);
        assert!(sole(&place).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn the_reapers_glance_is_not_counted_as_a_user() {
        let (_dir, place) = place();
        let glance = sole(&place).await.unwrap().unwrap();
        let asked = place.clone();
        let answer = tokio::spawn(async move { sole(&asked).await });
        // One thread runs both: now the question has been asked, and waits.
        tokio::task::yield_now().await;
        drop(glance);

        assert!(answer.await.unwrap().unwrap().is_some());
    }

    #[tokio::test]
    async fn a_lease_ends_though_a_program_in_the_making_has_a_copy_of_its_file() {
        let (_dir, place) = place();
        let lease = share(&place).await.unwrap();
        let copy = lease.0.try_clone().unwrap();
        drop(lease);

        assert!(sole(&place).await.unwrap().is_some());
        drop(copy);
    }

    #[tokio::test]
    async fn waiting_for_a_lock_has_an_end_and_says_which_lock_it_was() {
        let (_dir, place) = place();
        let _held = start_lock(&place, &|| ()).await.unwrap();
        let path = place.home().join("start.lock");
        let file = place.open_file(&path).unwrap();

        let error = within(Duration::ZERO, &path, || file.try_lock()).await.unwrap_err();

        assert!(error.to_string().contains("start.lock"), "{error}");
    }
}
