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
use rttm::{Recording, RttmError};

/// How many recordings are under way at once.
const AT_ONCE: usize = 64;
/// How many files are in memory at once.
const FILES_AT_ONCE: usize = 8;
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
            imported.map_err(|error| format!("{error:#}"))
        })
        .buffer_unordered(FILES_AT_ONCE);
    while let Some(file) = imports.next().await {
        match file {
            Ok(recordings) => {
                for recording in recordings {
                    position = position.max(recording.position);
                    report.add(&recording);
                }
            }
            Err(error) => {
                bar.suspend(|| terminal::note(format_args!("error: {error}")));
                report.errors.push(error);
            }
        }
    }
    bar.finish_and_clear();
    let deadline = Instant::now() + SHOWN_WITHIN;
    let shown = freshness::wait_for(book.pool(), &book.projection, position, deadline).await?;
    anyhow::ensure!(shown, "the recordings are in the log, but the tables do not show them yet");

    if json {
        terminal::print(serde_json::to_string_pretty(&report)?)?;
    } else {
        terminal::print(report.summary())?;
    }
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
        format!(
            "{recordings} recordings of {files} files: {imported} imported, {unchanged} were there already, \
             {events} events{left_out}"
        )
    }
}

/// Lists the files to import, in order of name. A directory stands for the .rttm files in it and below.
fn find_files(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        let metadata = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
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

/// Why a file was not imported.
#[derive(Debug, thiserror::Error)]
enum ImportError {
    #[error(transparent)]
    Rttm(#[from] RttmError),
    #[error("{file}: recording {recording} could not be imported")]
    Command {
        file: String,
        recording: String,
        #[source]
        source: Box<CommandError<MeetingError>>,
    },
}

async fn import_file(book: &Book, path: &Path) -> anyhow::Result<Vec<Imported>> {
    let path_owned = path.to_owned();
    let recordings = tokio::task::spawn_blocking(move || rttm::read(&path_owned)).await??;
    let imports = recordings.into_iter().map(|recording| async move {
        let name = recording.name.clone();
        let imported = import_recording(book, recording).await;
        imported.map_err(|source| ImportError::Command {
            file: path.display().to_string(),
            recording: name,
            source: Box::new(source),
        })
    });
    let at_once = AT_ONCE / FILES_AT_ONCE;
    let imported = stream::iter(imports).buffer_unordered(at_once).collect::<Vec<_>>().await;
    Ok(imported.into_iter().collect::<Result<_, _>>()?)
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

    let pending = Status::Pending;
    let loaded = if is_new { None } else { Some(book.bus.load_meeting(id).await?.0) };
    let status = match &loaded {
        None => &pending,
        Some(Meeting::Active(record)) => &record.status,
        Some(Meeting::Unregistered | Meeting::Erased { .. }) => {
            return Err(CommandError::Refused(MeetingError::Erased));
        }
    };
    match status {
        Status::Completed => return Ok(player.done()),
        Status::Pending => player.send(MeetingCommand::Start { worker: worker(), at: now() }, false).await?,
        Status::Failed { .. } => {
            player.send(MeetingCommand::Retry { worker: worker(), at: now() }, false).await?
        }
        Status::Processing { .. } => false,
    };
    let speakers = MeetingCommand::RecordSpeakers { clusters: recording.clusters, decisions: vec![] };
    player.send(speakers, false).await?;
    player.send(MeetingCommand::Complete { at: now() }, false).await?;
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
