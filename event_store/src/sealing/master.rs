//! The master keys, which wrap the keys of subjects. They come from a file or from the environment, never from
//! the database: who has the database alone reads nothing personal.
//!
//! There may be several, one a line: while one takes another's place both are needed. Which of them wraps new keys
//! is said by the log (`keys.master`), so that all processes agree.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{Aad, LessSafeKey, NONCE_LEN, Nonce};
use ring::digest::{SHA256, digest};
use ring::hmac;
use uuid::Uuid;

use super::KeyError;
use super::cipher::{KEY, key, random_bytes, seal_in_place, secret_place};
use super::stored::Chosen;

/// Where the master keys come from.
#[derive(Clone)]
pub enum MasterSource {
    /// A file, with one key a line. Made when the log is new and the file is not there.
    File(PathBuf),
    /// The keys themselves, separated by commas or line ends.
    Text(String),
}

// A key must not end up in a log.
impl fmt::Debug for MasterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Text(_) => f.write_str("Text(…)"),
        }
    }
}

impl fmt::Display for MasterSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Text(_) => f.write_str("MINUTEBOOK_MASTER_KEY"),
        }
    }
}

/// Why there is no master key. It never shows a key.
#[derive(Debug, thiserror::Error)]
pub enum MasterError {
    /// The file cannot be read or written.
    #[error("cannot use the master key's file {path}")]
    File {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is there is no key.
    #[error("{0} does not hold master keys: each is 32 bytes in base64, one a line")]
    Malformed(String),
}

/// A key of 256 bits.
pub(super) struct Master {
    pub(super) id: Uuid,
    bytes: [u8; KEY],
    key: LessSafeKey,
}

/// The first byte of a wrapped key: how the rest is to be read.
const FORMAT: u8 = 1;
/// Format, id of the master key, nonce, key, tag.
const WRAPPED: usize = 1 + 16 + NONCE_LEN + KEY + 16;

impl Master {
    fn new(bytes: [u8; KEY]) -> Self {
        let mut id = b"minutebook master key".to_vec();
        id.extend(bytes);
        let mut first = [0; 16];
        first.copy_from_slice(&digest(&SHA256, &id).as_ref()[..16]);
        Self { id: uuid::Builder::from_custom_bytes(first).into_uuid(), bytes, key: key(&bytes) }
    }

    pub(super) fn random() -> Self {
        Self::new(random_bytes())
    }

    /// Returns what only this key gives for this log.
    pub(super) fn check_value(&self, log_id: Uuid) -> Vec<u8> {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.bytes);
        let message = [b"minutebook log ".as_slice(), log_id.as_bytes()].concat();
        hmac::sign(&key, &message).as_ref().to_vec()
    }

    pub(super) fn wrap(&self, place: &[u8], subject: &[u8; KEY]) -> Vec<u8> {
        let mut wrapped = Vec::with_capacity(WRAPPED);
        wrapped.push(FORMAT);
        wrapped.extend(self.id.as_bytes());
        seal_in_place(&self.key, place, subject, &mut wrapped);
        wrapped
    }

    /// Returns the key that is wrapped, unless it was not wrapped by this one or for another place.
    pub(super) fn unwrap(&self, place: &[u8], wrapped: &[u8]) -> Option<[u8; KEY]> {
        let sealed = wrapped.get(17..).filter(|_| wrapped.len() == WRAPPED && wrapped[0] == FORMAT)?;
        let (nonce, rest) = sealed.split_at(NONCE_LEN);
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut rest = rest.to_vec();
        let opened = self.key.open_in_place(nonce, Aad::from(place), &mut rest).ok()?;
        (&*opened).try_into().ok()
    }

    fn to_line(&self) -> String {
        STANDARD.encode(self.bytes) + "\n"
    }
}

/// Returns the id of the master key that wrapped this.
pub(super) fn wrapped_by(wrapped: &[u8]) -> Option<Uuid> {
    Uuid::from_slice(wrapped.get(1..17)?).ok()
}

/// The master keys that this process has.
pub(super) struct Masters {
    source: MasterSource,
    known: RwLock<Arc<BTreeMap<Uuid, Arc<Master>>>>,
}

impl Masters {
    /// Reads the keys. A file that is not there has none.
    pub(super) fn read(source: MasterSource) -> Result<Self, MasterError> {
        let known = RwLock::new(Arc::new(by_id(read(&source)?)));
        Ok(Self { source, known })
    }

    pub(super) const fn source(&self) -> &MasterSource {
        &self.source
    }

    pub(super) fn known(&self) -> Arc<BTreeMap<Uuid, Arc<Master>>> {
        Arc::clone(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns a key, reading the file once more if it has come since.
    pub(super) fn get(&self, id: Uuid) -> Option<Arc<Master>> {
        if let Some(known) = self.known().get(&id) {
            return Some(Arc::clone(known));
        }
        let mut again = by_id(read(&self.source).ok()?);
        let found = again.get(&id).cloned();
        if found.is_some() {
            // One that is no longer in the file may have wrapped what was read just before it was given up.
            again.extend(self.known().iter().map(|(id, known)| (*id, Arc::clone(known))));
            *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(again);
        }
        found
    }

    /// Returns a key, as [`Masters::get`] does, that nothing can be done without.
    pub(super) fn require(&self, id: Uuid) -> Result<Arc<Master>, KeyError> {
        self.get(id).ok_or_else(|| self.lacks(id))
    }

    /// Returns the log's secret; fails unless the key that was chosen for the log is here.
    pub(super) fn check(&self, chosen: &Chosen, log_id: Uuid) -> Result<[u8; KEY], KeyError> {
        match self.get(chosen.id) {
            Some(master) if master.check_value(log_id) == chosen.check_value => {
                master.unwrap(&secret_place(log_id), &chosen.secret).ok_or(KeyError::DamagedSecret)
            }
            Some(_) | None => Err(self.lacks(chosen.id)),
        }
    }

    fn lacks(&self, needed: Uuid) -> KeyError {
        KeyError::AnotherMaster { needed, source_name: self.source.to_string() }
    }

    /// Returns the first key that is not `current`, in the order in which they are written.
    pub(super) fn other_than(&self, current: Uuid) -> Result<Option<Arc<Master>>, MasterError> {
        Ok(read(&self.source)?.into_iter().find(|master| master.id != current).map(Arc::new))
    }

    /// Makes the first key of a new log, unless somebody has been quicker. Returns the first there is.
    pub(super) fn first(&self) -> Result<Option<Arc<Master>>, MasterError> {
        if let MasterSource::File(path) = &self.source
            && read(&self.source)?.is_empty()
        {
            let failed = |source| MasterError::File { path: path.clone(), source };
            write_new(path, &Master::random().to_line()).map_err(failed)?;
        }
        let keys = read(&self.source)?;
        let first = keys.first().map(|master| master.id);
        let keys = by_id(keys);
        let first = first.and_then(|id| keys.get(&id).cloned());
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(first)
    }

    /// Puts a new key before those in the file.
    pub(super) fn add(&self) -> Result<Option<Arc<Master>>, MasterError> {
        let MasterSource::File(path) = &self.source else { return Ok(None) };
        let new = Master::random();
        let lines = read(&self.source)?.iter().map(Master::to_line).collect::<String>();
        self.replace(path, &(new.to_line() + &lines))?;
        Ok(Some(Arc::new(new)))
    }

    /// Leaves but one key in the file.
    pub(super) fn leave_only(&self, only: &Master) -> Result<(), MasterError> {
        let MasterSource::File(path) = &self.source else { return Ok(()) };
        self.replace(path, &only.to_line())
    }

    fn replace(&self, path: &Path, text: &str) -> Result<(), MasterError> {
        let failed = |source| MasterError::File { path: path.to_owned(), source };
        let draft = draft(path, text).map_err(failed)?;
        fs::rename(draft, path).and_then(|()| sync_directory(path)).map_err(failed)?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(by_id(read(&self.source)?));
        Ok(())
    }
}

fn by_id(keys: Vec<Master>) -> BTreeMap<Uuid, Arc<Master>> {
    keys.into_iter().map(|master| (master.id, Arc::new(master))).collect()
}

fn read(source: &MasterSource) -> Result<Vec<Master>, MasterError> {
    let text = match source {
        MasterSource::Text(text) => text.clone(),
        MasterSource::File(path) => match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
            Err(source) => return Err(MasterError::File { path: path.clone(), source }),
        },
    };
    let lines = text.split([',', '\n']).map(str::trim).filter(|line| !line.is_empty());
    let key = |line: &str| Some(Master::new(STANDARD.decode(line).ok()?.try_into().ok()?));
    let keys = lines.map(key).collect::<Option<Vec<_>>>();
    keys.filter(|keys| !keys.is_empty()).ok_or_else(|| MasterError::Malformed(source.to_string()))
}

/// Writes a file that is not there yet. One that another process has written meanwhile stays.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    if let Some(directory) = path.parent()
        && !directory.exists()
    {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let draft = draft(path, text)?;
    // A link, unlike a renaming, takes nobody's place.
    let linked = fs::hard_link(&draft, path);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.and_then(|()| sync_directory(path)),
    }
}

/// Writes a file beside `path` that its owner alone can read, down to the disk.
fn draft(path: &Path, text: &str) -> io::Result<PathBuf> {
    let draft = path.with_extension(format!("{}.new", Uuid::now_v7().simple()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(draft)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrapped_key_opens_with_its_master_key_at_its_place_alone() {
        let (master, other) = (Master::random(), Master::random());
        let wrapped = master.wrap(b"here", &[7; KEY]);
        assert_eq!(wrapped_by(&wrapped), Some(master.id));
        assert_eq!(master.unwrap(b"here", &wrapped), Some([7; KEY]));
        assert_eq!(master.unwrap(b"there", &wrapped), None);
        assert_eq!(other.unwrap(b"here", &wrapped), None);
        for at in 0..wrapped.len() {
            let mut flawed = wrapped.clone();
            flawed[at] ^= 1;
            let opened = master.unwrap(b"here", &flawed);
            assert!(opened.is_none() || (1..17).contains(&at), "byte {at} is not looked at");
            assert_eq!(master.unwrap(b"here", &wrapped[..at]), None);
        }
    }

    #[test]
    fn what_is_no_key_is_refused_without_being_shown() {
        let short = STANDARD.encode([1; 31]);
        for text in ["", " \n", "secret", &short] {
            let error = read(&MasterSource::Text(text.to_owned())).err().unwrap().to_string();
            assert!(error.starts_with("MINUTEBOOK_MASTER_KEY does not hold"), "{error}");
            assert!(!error.contains("secret") && !error.contains(&short), "{error}");
        }
        let two = format!("{}, {}\n", STANDARD.encode([1; 32]), STANDARD.encode([2; 32]));
        assert_eq!(read(&MasterSource::Text(two)).unwrap().len(), 2);
    }
}
