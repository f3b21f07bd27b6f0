//! What a subscriber keeps for itself: its ledger, and the events that were set aside.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::feed::cloud_event::CloudEvent;
use crate::feed::ledger::Ledger;
use crate::feed::public_event::EventType;

/// Where a subscriber keeps what it has had.
pub trait Memory: Send {
    /// Returns the ledger that was kept, if there is one.
    fn load(&mut self) -> io::Result<Option<Ledger>>;
    /// Keeps the ledger, so that it is there after a crash.
    fn keep(&mut self, ledger: &Ledger) -> io::Result<()>;
    /// Keeps an event that cannot be handled; returns where it can be looked at.
    fn set_aside(&mut self, event: &CloudEvent, error: &str) -> io::Result<String>;
}

/// Remembers nothing beyond the process; what is set aside is only reported.
#[derive(Debug, Default)]
pub struct NoMemory;

impl Memory for NoMemory {
    fn load(&mut self) -> io::Result<Option<Ledger>> {
        Ok(None)
    }
    fn keep(&mut self, _: &Ledger) -> io::Result<()> {
        Ok(())
    }
    fn set_aside(&mut self, _: &CloudEvent, _: &str) -> io::Result<String> {
        Ok("nowhere: the subscriber has no memory".to_owned())
    }
}

/// Keeps the ledger in `ledger.json` of a directory, and what is set aside in `set-aside/<position>.json`.
#[derive(Debug)]
pub struct FileMemory {
    directory: PathBuf,
    event_type: &'static EventType,
    /// Locked while the subscriber lives: two under one name would each skip what the other had.
    _lock: File,
}

/// What `ledger.json` has.
#[derive(Serialize, Deserialize)]
struct Kept {
    event_type: String,
    ledger: Ledger,
}

impl FileMemory {
    /// Opens the directory, and makes it where it is not there.
    pub fn open(directory: PathBuf, event_type: &'static EventType) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        let lock = File::create(directory.join("lock"))?;
        lock.try_lock().map_err(|_| {
            let text = format!("another subscriber uses {}", directory.display());
            io::Error::new(io::ErrorKind::WouldBlock, text)
        })?;
        let memory = Self { directory, event_type, _lock: lock };
        memory.read()?;
        Ok(memory)
    }

    fn read(&self) -> io::Result<Option<Ledger>> {
        let path = self.directory.join("ledger.json");
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(named(error)),
        };
        let kept: Kept = serde_json::from_str(&text).map_err(|error| named(error.into()))?;
        if kept.event_type != self.event_type.short() {
            // Its positions say nothing of another type.
            let text = format!("it is of a subscriber to {}", kept.event_type);
            return Err(named(io::Error::new(io::ErrorKind::InvalidData, text)));
        }
        Ok(Some(kept.ledger))
    }

    fn write(&self, name: &str, text: &str) -> io::Result<PathBuf> {
        let path = self.directory.join(name);
        let new = path.with_extension("new");
        let mut file = File::create(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
        fs::rename(new, &path)?;
        Ok(path)
    }
}

impl Memory for FileMemory {
    fn load(&mut self) -> io::Result<Option<Ledger>> {
        self.read()
    }

    fn keep(&mut self, ledger: &Ledger) -> io::Result<()> {
        let kept = Kept { event_type: self.event_type.short(), ledger: ledger.clone() };
        self.write("ledger.json", &serde_json::to_string(&kept)?)?;
        Ok(())
    }

    fn set_aside(&mut self, event: &CloudEvent, error: &str) -> io::Result<String> {
        fs::create_dir_all(self.directory.join("set-aside"))?;
        let event_json = serde_json::from_str::<serde_json::Value>(&event.to_json())?;
        let text = serde_json::to_string_pretty(&json!({"error": error, "event": event_json}))?;
        let path = self.write(&format!("set-aside/{}.json", event.position), &text)?;
        Ok(path.display().to_string())
    }
}
