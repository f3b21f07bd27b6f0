//! A table's file: written and read by a thread of its own, for compressing and the disk would hold up others.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::{Backup, BackupError, TableFile};
use crate::rebuild::Progress;

/// How many pieces wait between COPY and the file.
const AHEAD: usize = 64;
/// How much is read at once.
const PIECE: usize = 256 * 1024;

/// A file that is being written.
pub(super) struct Writing {
    pieces: mpsc::Sender<Bytes>,
    task: JoinHandle<io::Result<(u64, u64, String)>>,
    path: PathBuf,
}

impl Writing {
    /// Begins a file.
    pub(super) fn begin(path: PathBuf) -> Self {
        let (pieces, mut waiting) = mpsc::channel::<Bytes>(AHEAD);
        let create = path.clone();
        let task = spawn_blocking(move || {
            let file = BufWriter::with_capacity(PIECE, super::write::private(&create)?);
            let hashing = Hashing { inner: file, hash: Sha256::new(), bytes: 0 };
            // A log compresses well at once; another pass over it would only cost time.
            let mut encoder = GzEncoder::new(hashing, Compression::fast());
            let mut rows = 0;
            while let Some(piece) = waiting.blocking_recv() {
                // A line is a row: COPY writes a line's end within a value as two other characters.
                rows += piece.iter().filter(|byte| **byte == b'\n').count() as u64;
                encoder.write_all(&piece)?;
            }
            let Hashing { inner, hash, bytes } = encoder.finish()?;
            inner.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
            Ok((rows, bytes, hexadecimal(&hash.finalize())))
        });
        Self { pieces, task, path }
    }

    /// Adds a piece.
    pub(super) async fn add(&self, piece: Bytes) {
        // One that broke off says why when it is finished.
        let _ = self.pieces.send(piece).await;
    }

    /// Says whether the thread broke off.
    pub(super) fn is_gone(&self) -> bool {
        self.pieces.is_closed()
    }

    /// Ends the file on disk; returns rows, bytes and hash.
    pub(super) async fn finish(self) -> Result<(u64, u64, String), BackupError> {
        drop(self.pieces);
        let written = self.task.await.map_err(|_| BackupError::TaskGone)?;
        written.map_err(|source| BackupError::File { phase: "writing", path: self.path, source })
    }
}

struct Hashing<W> {
    inner: W,
    hash: Sha256,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(piece)?;
        self.hash.update(&piece[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Backup {
    /// Looks whether every file is there, as long as it was, and the same to the last bit.
    pub async fn check(&self, progress: &impl Progress) -> Result<(), BackupError> {
        progress.phase("checking", 0);
        for file in &self.manifest.tables {
            let (path, expected) = (self.path(file), file.clone());
            let checking = spawn_blocking(move || check(&path, &expected));
            checking.await.map_err(|_| BackupError::TaskGone)??;
        }
        Ok(())
    }

    /// Reads a table's file piece by piece, uncompressed.
    pub(super) fn read(&self, file: &TableFile) -> mpsc::Receiver<io::Result<Vec<u8>>> {
        let (sender, pieces) = mpsc::channel(AHEAD);
        let path = self.path(file);
        spawn_blocking(move || {
            let read = || -> io::Result<()> {
                let mut decoder = GzDecoder::new(BufReader::with_capacity(PIECE, File::open(path)?));
                loop {
                    let mut piece = Vec::with_capacity(PIECE);
                    decoder.by_ref().take(PIECE as u64).read_to_end(&mut piece)?;
                    // Nobody takes it any longer: what broke off there is told there.
                    if piece.is_empty() || sender.blocking_send(Ok(piece)).is_err() {
                        return Ok(());
                    }
                }
            };
            if let Err(error) = read() {
                let _ = sender.blocking_send(Err(error));
            }
        });
        pieces
    }
}

fn check(path: &Path, expected: &TableFile) -> Result<(), BackupError> {
    let damaged = |problem: String| BackupError::Damaged { path: path.to_owned(), problem };
    let failed = |source: io::Error| {
        if source.kind() == io::ErrorKind::NotFound {
            return damaged("it is missing".to_owned());
        }
        BackupError::File { phase: "reading", path: path.to_owned(), source }
    };
    let mut file = File::open(path).map_err(failed)?;
    let (mut hash, mut bytes, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        let read = file.read(&mut piece).map_err(failed)?;
        if read == 0 {
            break;
        }
        hash.update(&piece[..read]);
        bytes += read as u64;
    }
    if bytes != expected.bytes {
        return Err(damaged(format!("it has {bytes} bytes, and had {}", expected.bytes)));
    }
    if hexadecimal(&hash.finalize()) != expected.sha256 {
        return Err(damaged("its checksum is another".to_owned()));
    }
    Ok(())
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
