//! A subscriber as a service of its own: writes a minutes file for each finished meeting, from the event
//! alone.
//!
//! `NATS_URL=nats://127.0.0.1:4222 cargo run -p projections --example minutes -- DIRECTORY`
//!
//! What it has had is kept beside the files, so a restart goes on where it was, and a repetition writes the
//! same file again.

use std::error::Error;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use projections::feed::cloud_event::CloudEvent;
use projections::feed::public_event::{EventType, MeetingCompleted};
use projections::feed::stream::StreamConfig;
use projections::feed::subscriber::{self, FileMemory, HandlerError, SubscriberConfig};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = PathBuf::from(std::env::args().nth(1).ok_or("usage: minutes DIRECTORY")?);
    let event_type = EventType::named("meeting.completed").ok_or("there is no such event")?;
    let config = SubscriberConfig {
        stream: StreamConfig::at(std::env::var("NATS_URL").map_err(|_| "NATS_URL names the broker")?),
        event_type,
        durable: Some("minutes".to_owned()),
        only_new: false,
        tries: 5,
    };
    let memory = FileMemory::open(directory.join(".had"), event_type)?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        let _ = tokio::signal::ctrl_c().await;
        stop.cancel();
    });
    let handler = async |event: CloudEvent| write_minutes(&directory, &event);
    let report = |report| tell(format_args!("{report:?}"));
    Ok(subscriber::run(&config, memory, handler, report, &shutdown).await?)
}

/// Writes the file whole or not at all: a crash in between leaves none that is half written.
fn write_minutes(directory: &Path, event: &CloudEvent) -> Result<(), HandlerError> {
    let meeting = event.data::<MeetingCompleted>()?;
    let path = directory.join(format!("{}.md", meeting.meeting_id));
    let new = path.with_extension("new");
    std::fs::write(&new, minutes(&meeting)?)?;
    std::fs::rename(new, &path)?;
    tell(format_args!("{}: {}", event.position, path.display()));
    Ok(())
}

fn minutes(meeting: &MeetingCompleted) -> Result<String, std::fmt::Error> {
    let mut text = String::new();
    writeln!(text, "# Meeting {}\n", meeting.meeting_id)?;
    writeln!(
        text,
        "Processed {}, attempt {}.\n",
        meeting.finished_at.format("%Y-%m-%d %H:%M UTC"),
        meeting.attempt
    )?;
    writeln!(text, "## Speakers\n")?;
    for speaker in &meeting.speakers {
        let who =
            speaker.profile_id.map_or("nobody known".to_owned(), |profile| format!("profile {profile}"));
        writeln!(text, "- {}: {who}", speaker.cluster_id)?;
    }
    writeln!(text, "\n## Documents\n")?;
    for artifact in &meeting.artifacts {
        writeln!(text, "- {}: `{}`", artifact.artifact_type, artifact.s3_key)?;
    }
    Ok(text)
}

#[expect(clippy::print_stderr, reason = "an example talks to whoever started it")]
fn tell(text: std::fmt::Arguments<'_>) {
    eprintln!("{text}");
}
