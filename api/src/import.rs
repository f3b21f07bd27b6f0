//! `import`: plays recordings through their life as a pipeline would, many at once.
//!
//! It works beside `serve` and without it: commands go through the same log, and one projector is active,
//! wherever it runs. Importing again changes nothing; an import that broke off goes on where it was.

pub mod rttm;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use domain::file::{DurationSeconds, File, MimeType, SizeBytes};
use domain::ids::{FileId, MeetingId};
use domain::meeting::{Meeting, MeetingCommand, MeetingError, RegisterMeeting, Status};
use domain::speaker::Diarization;
use domain::text::WorkerId;
use event_store::command_bus::{CommandBus, CommandError, Context};
use futures::{StreamExt, stream};
use projections::freshness;
use serde::Serialize;
use tokio::time::Instant;

use crate::book::Book;
use crate::cli::Done;
use crate::clock::now;
use crate::terminal;
use rttm::Recording;

/// How many recordings are under way at once.
const AT_ONCE: usize = 64;
/// How many files are in memory at once.
const FILES_AT_ONCE: usize = 8;
/// How often a recording is looked at anew that another import works on.
const TRIES: u32 = 5;
/// How long the tables may take to show what was imported.
const SHOWN_WITHIN: Duration = Duration::from_secs(120);

/// What an import did.
#[derive(Debug, Default, Serialize)]
struct Report {
    files: usize,
    recordings: usize,
    /// Recordings that were not completed before.
    imported: usize,
    /// Recordings that were there already.
    unchanged: usize,
    /// Events appended.
    events: usize,
    errors: Vec<String>,
}

/// Imports RTTM files.
pub async fn run(book: &Book, paths: &[PathBuf], json: bool) -> anyhow::Result<Done> {
    book.start_projector();
    let files = find_files(paths)?;
    let bar = terminal::bar(files.len() as u64, "importing");
    let mut report = Report { files: files.len(), ..Report::default() };
    let mut position = 0;

    let mut imports = stream::iter(files)
        .map(async |path| {
            let imported = import_file(book, &path).await;
            bar.inc(1);
            imported
        })
        .buffer_unordered(FILES_AT_ONCE);
    while let Some(file) = imports.next().await {
        for recording in file {
            match recording {
                Ok(recording) => {
                    position = position.max(recording.position);
                    report.add(&recording);
                }
                Err(error) => {
                    let error = terminal::causes(&error);
                    bar.suspend(|| terminal::note(format_args!("error: {error}")));
                    report.errors.push(error);
                }
            }
        }
    }
    bar.finish_and_clear();
    if json {
        terminal::print(serde_json::to_string_pretty(&report)?)?;
    } else {
        terminal::print(report.summary())?;
    }
    let deadline = Instant::now() + SHOWN_WITHIN;
    let shown = freshness::wait_for(book.pool(), &book.projection, position, deadline).await?;
    book.ensure_shown(shown)?;

    Ok(if report.errors.is_empty() { Done::Whole } else { Done::Partly })
}

impl Report {
    fn add(&mut self, recording: &Imported) {
        self.recordings += 1;
        self.events += recording.events;
        if recording.events > 0 {
            self.imported += 1;
        } else {
            self.unchanged += 1;
        }
    }

    fn summary(&self) -> String {
        let Self { files, recordings, imported, unchanged, events, errors } = self;
        let left_out = match errors.len() {
            0 => String::new(),
            n => format!("; {n} left out, see above"),
        };
        let plural = |n: usize, one: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") };
        format!(
            "{} of {}: {imported} imported, {unchanged} there already, {}{left_out}",
            plural(*recordings, "recording"),
            plural(*files, "file"),
            plural(*events, "event"),
        )
    }
}

/// Lists the files to import, in order of name. A directory stands for the .rttm files in it and below.
fn find_files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
        if !metadata.is_dir() {
            // Opening a pipe would wait for ever.
            anyhow::ensure!(metadata.is_file(), "{} is neither a file nor a directory", path.display());
        }
        if metadata.is_dir() {
            let before = files.len();
            find_in(path, &mut files)?;
            anyhow::ensure!(files.len() > before, "{} holds no .rttm file", path.display());
        } else {
            files.push(path.clone());
        }
    }
    files.sort();
    files.dedup();
    Ok(files)
}

fn find_in(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("cannot read {}", dir.display()))?;
        let path = entry.path();
        // A link is not followed into a directory: it might lead back here.
        if entry.file_type()?.is_dir() {
            find_in(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rttm") {
            files.push(path);
        }
    }
    Ok(())
}

/// A recording that is in the book now.
struct Imported {
    events: usize,
    position: i64,
}

/// Imports a file's recordings. A file that cannot be read, or has a broken line, is left out whole.
async fn import_file(book: &Book, path: &Path) -> Vec<anyhow::Result<Imported>> {
    let file = path.to_owned();
    let recordings = match tokio::task::spawn_blocking(move || rttm::read(&file)).await {
        Ok(Ok(recordings)) => recordings,
        Ok(Err(error)) => return vec![Err(error.into())],
        Err(error) => return vec![Err(error.into())],
    };
    let imports = recordings.into_iter().map(|recording| async move {
        let context = format!("{}: recording {} could not be imported", path.display(), recording.name);
        import_recording(book, recording).await.context(context)
    });
    stream::iter(imports).buffer_unordered(AT_ONCE / FILES_AT_ONCE).collect().await
}

/// Plays what is missing of a recording's life.
async fn import_recording(book: &Book, recording: Recording) -> Result<Imported, CommandError<MeetingError>> {
    let secret = &book.store.identity().secret;
    let id = MeetingId::derive(secret, None, &recording.sha256);
    let file = File {
        id: FileId::derive(secret, None, &recording.sha256),
        sha256: recording.sha256,
        mime: Some(mime()),
        size: Some(recording.size),
        duration: Some(recording.duration),
        owner: None,
    };
    let mut player = Player { bus: &book.bus, id, events: 0, position: 0 };
    let register = MeetingCommand::Register(RegisterMeeting { meeting_id: id, file, at: now() });
    let is_new = player.send(register, true).await?;

    let mut status = if is_new { Status::Pending } else { player.status(book).await? };
    for attempt in 1.. {
        match player.finish(&status, &recording.clusters).await {
            // Another import of the same recording was faster: what it left to do is looked at anew.
            Err(CommandError::Refused(MeetingError::IllegalTransition { .. })) if attempt < TRIES => {
                status = player.status(book).await?;
            }
            finished => return finished.map(|()| player.done()),
        }
    }
    Ok(player.done())
}

/// Sends one meeting's commands, and counts what they did.
struct Player<'a> {
    bus: &'a CommandBus,
    id: MeetingId,
    events: usize,
    position: i64,
}

impl Player<'_> {
    /// Sends a command; says whether it had an effect.
    async fn send(
        &mut self,
        command: MeetingCommand,
        probably_new: bool,
    ) -> Result<bool, CommandError<MeetingError>> {
        let context = Context {
            probably_new,
            actor: "import-rttm".to_owned(),
            actor_kind: "service".to_owned(),
            correlation_id: Some(self.id.to_string()),
            ..Context::default()
        };
        let accepted = self.bus.meeting(self.id, command, &context).await?;
        self.events += accepted.events.len();
        self.position = self.position.max(accepted.position);
        Ok(!accepted.events.is_empty())
    }

    /// Loads where the meeting stands.
    async fn status(&self, book: &Book) -> Result<Status, CommandError<MeetingError>> {
        match book.bus.load_meeting(self.id).await?.0 {
            Meeting::Active(record) => Ok(record.status),
            Meeting::Unregistered => Err(CommandError::Refused(MeetingError::NotFound)),
            Meeting::Erased { .. } => Err(CommandError::Refused(MeetingError::Erased)),
        }
    }

    /// Leads a meeting from `status` to completion.
    async fn finish(
        &mut self,
        status: &Status,
        clusters: &Diarization,
    ) -> Result<(), CommandError<MeetingError>> {
        let (worker, at) = (worker(), now());
        match status {
            Status::Completed => return Ok(()),
            Status::Pending => self.send(MeetingCommand::Start { worker, at }, false).await?,
            Status::Failed { .. } => self.send(MeetingCommand::Retry { worker, at }, false).await?,
            Status::Processing { .. } => false,
        };
        let clusters = clusters.clone();
        self.send(MeetingCommand::RecordSpeakers { clusters, decisions: vec![] }, false).await?;
        self.send(MeetingCommand::Complete { at: now() }, false).await?;
        Ok(())
    }

    const fn done(&self) -> Imported {
        Imported { events: self.events, position: self.position }
    }
}

fn worker() -> WorkerId {
    "import-rttm".parse().expect("a short text without NUL")
}

fn mime() -> MimeType {
    "application/x-rttm".parse().expect("a well-formed media type")
}

/// Makes the sizes of a recording out of counted bytes and milliseconds.
fn size_and_duration(bytes: u64, end_ms: u64) -> Option<(SizeBytes, DurationSeconds)> {
    let size = SizeBytes::try_from(i64::try_from(bytes).ok()?).ok()?;
    let duration = DurationSeconds::try_from(i64::try_from(end_ms.div_ceil(1000)).ok()?).ok()?;
    Some((size, duration))
}
