//! `demo`: plays a few small meetings through their whole life, then shows the six tables. The samples are
//! made by us; they come with the program.

use std::time::Duration;

use anyhow::Context as _;
use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use domain::artifact::{ArtifactType, Meta, S3Key};
use domain::file::{ContentFp, DurationSeconds, File, MimeType, Sha256, SizeBytes};
use domain::ids::{FileId, MeetingId, OwnerId, ProfileId};
use domain::meeting::{FailMeeting, Meeting, MeetingCommand, RegisterMeeting, Status};
use domain::profile::{DisplayName, ProfileCommand};
use domain::speaker::{Cluster, ClusterId, Segment};
use domain::text::{Language, Reason, Stage, WorkerId};
use event_store::command_bus::Context;
use indicatif::ProgressBar;
use projections::freshness;
use serde::Deserialize;
use sqlx::{PgPool, Row};
use tokio::time::Instant;

use crate::book::Book;
use crate::cli::Done;
use crate::clock::now;
use crate::terminal;

/// How long the tables may take to show everything.
const SHOWN_WITHIN: Duration = Duration::from_secs(30);

#[derive(Deserialize)]
struct Samples {
    profiles: Vec<SampleProfile>,
    meetings: Vec<SampleMeeting>,
}

#[derive(Deserialize)]
struct SampleProfile {
    id: ProfileId,
    display_name: DisplayName,
}

#[derive(Deserialize)]
struct SampleMeeting {
    title: String,
    sha256: Sha256,
    mime: MimeType,
    size: SizeBytes,
    duration: DurationSeconds,
    owner: Option<OwnerId>,
    /// What becomes of it.
    story: Story,
    content_fp: ContentFp,
    language: Language,
    clusters: Vec<SampleCluster>,
    artifacts: Vec<SampleArtifact>,
    /// What the transcription found, for the cache.
    transcribed: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Story {
    /// Nobody has taken it on yet.
    Waits,
    /// Everything goes well.
    Completes,
    /// The first attempt fails, the second completes.
    CompletesAtTheSecondAttempt,
    /// It fails, and waits for somebody to look.
    Fails,
    /// It completes, and is done anew with a better model.
    IsReprocessed,
}

#[derive(Deserialize)]
struct SampleCluster {
    cluster_id: ClusterId,
    segments: Vec<Segment>,
    /// Who a reviewer says it is.
    person: Option<ProfileId>,
}

#[derive(Deserialize)]
struct SampleArtifact {
    #[serde(rename = "type")]
    artifact_type: ArtifactType,
    s3_key: S3Key,
    meta: Option<Meta>,
}

/// Plays the samples and shows the tables.
pub async fn run(book: &Book) -> anyhow::Result<Done> {
    let samples: Samples =
        serde_json::from_str(include_str!("../samples/demo.json")).context("the samples cannot be read")?;
    book.start_projector();
    let bar = terminal::bar((samples.profiles.len() + samples.meetings.len()) as u64, "playing");
    let mut player = Player { book, bar, position: 0, events: 0 };
    for profile in samples.profiles {
        player.enter(profile).await?;
    }
    for meeting in samples.meetings {
        player.play(meeting).await?;
    }
    player.bar.finish_and_clear();

    let deadline = Instant::now() + SHOWN_WITHIN;
    let shown = freshness::wait_for(book.pool(), &book.projection, player.position, deadline).await?;
    book.ensure_shown(shown)?;
    terminal::print(format_args!("\n{} new events; the tables:", player.events))?;
    show_tables(book.pool()).await?;
    where_next(book)?;
    Ok(Done::Whole)
}

struct Player<'a> {
    book: &'a Book,
    bar: ProgressBar,
    position: i64,
    events: usize,
}

impl Player<'_> {
    fn context() -> Context {
        Context::system("demo")
    }

    fn say(&self, line: String) {
        // Without a terminal the bar swallows what it prints.
        self.bar.suspend(|| terminal::note(line));
    }

    async fn enter(&mut self, SampleProfile { id, display_name }: SampleProfile) -> anyhow::Result<()> {
        let create = ProfileCommand::Create { profile_id: id, display_name, at: now() };
        let accepted = self.book.bus.profile(id, create, &Self::context()).await?;
        self.events += accepted.events.len();
        self.position = self.position.max(accepted.position);
        self.bar.inc(1);
        Ok(())
    }

    async fn send(&mut self, id: MeetingId, command: MeetingCommand) -> anyhow::Result<usize> {
        let accepted = self.book.bus.meeting(id, command, &Self::context()).await?;
        self.events += accepted.events.len();
        self.position = self.position.max(accepted.position);
        for event in &accepted.events {
            self.say(format!("    {event}"));
        }
        Ok(accepted.events.len())
    }

    async fn play(&mut self, sample: SampleMeeting) -> anyhow::Result<()> {
        let secret = &self.book.store.identity().secret;
        let id = MeetingId::derive(secret, sample.owner, &sample.sha256);
        let file = File {
            id: FileId::derive(secret, sample.owner, &sample.sha256),
            sha256: sample.sha256.clone(),
            mime: Some(sample.mime.clone()),
            size: Some(sample.size),
            duration: Some(sample.duration),
            owner: sample.owner,
        };
        self.say(format!("  {}", sample.title));
        let register = RegisterMeeting { meeting_id: id, file, at: now() };
        self.send(id, MeetingCommand::Register(register)).await?;
        // A demo that was interrupted goes on where it was: a story once begun is not begun again.
        let pending = match self.book.bus.load_meeting(id).await?.0 {
            Meeting::Active(record) => record.status == Status::Pending,
            Meeting::Unregistered | Meeting::Erased { .. } => false,
        };
        if pending {
            self.tell(id, &sample).await?;
        } else {
            self.say("    is in the book already".to_owned());
        }
        self.bar.inc(1);
        Ok(())
    }

    async fn tell(&mut self, id: MeetingId, sample: &SampleMeeting) -> anyhow::Result<()> {
        let worker = worker();
        match sample.story {
            Story::Waits => {}
            Story::Fails => {
                self.send(id, MeetingCommand::Start { worker, at: now() }).await?;
                self.send(id, failure("decode", "the recording breaks off after 12 s")).await?;
            }
            Story::Completes => {
                self.send(id, MeetingCommand::Start { worker, at: now() }).await?;
                self.work(id, sample, 1).await?;
            }
            Story::CompletesAtTheSecondAttempt => {
                self.send(id, MeetingCommand::Start { worker: worker.clone(), at: now() }).await?;
                self.send(id, failure("transcribe", "out of memory")).await?;
                self.send(id, MeetingCommand::Retry { worker, at: now() }).await?;
                self.work(id, sample, 2).await?;
            }
            Story::IsReprocessed => {
                self.send(id, MeetingCommand::Start { worker: worker.clone(), at: now() }).await?;
                self.work(id, sample, 1).await?;
                self.send(id, MeetingCommand::Reprocess { worker, at: now() }).await?;
                self.work(id, sample, 2).await?;
            }
        }
        Ok(())
    }

    /// One attempt, from the fingerprint to completion, and a reviewer's word on who spoke.
    async fn work(&mut self, id: MeetingId, sample: &SampleMeeting, attempt: u32) -> anyhow::Result<()> {
        let content_fp = sample.content_fp.clone();
        self.send(id, MeetingCommand::RecordFingerprint { content_fp }).await?;
        let language = sample.language.clone();
        self.send(id, MeetingCommand::RecordLanguage { language }).await?;
        let at = now();
        let cache = MeetingCommand::CacheStageResult {
            stage: stage("transcribe"),
            value: sample.transcribed.clone(),
            expires_at: Some(at + chrono::TimeDelta::days(30)),
            at,
        };
        self.send(id, cache).await?;
        let cluster = |cluster: &SampleCluster| Cluster {
            cluster_id: cluster.cluster_id.clone(),
            segments: cluster.segments.clone(),
            speech_ms: None,
            voice: None,
        };
        let clusters = sample.clusters.iter().map(cluster).collect::<Vec<_>>().try_into()?;
        self.send(id, MeetingCommand::RecordSpeakers { clusters, decisions: vec![] }).await?;
        for SampleArtifact { artifact_type, s3_key, meta } in &sample.artifacts {
            let (artifact_type, s3_key, meta) = (*artifact_type, s3_key.clone(), meta.clone());
            self.send(id, MeetingCommand::StoreArtifact { artifact_type, s3_key, meta }).await?;
        }
        self.send(id, MeetingCommand::Complete { at: now() }).await?;
        for cluster in sample.clusters.iter().filter(|cluster| cluster.person.is_some()) {
            let reassign = MeetingCommand::ReassignSpeaker {
                speaker_id: id.speaker(attempt, &cluster.cluster_id),
                to: cluster.person,
                expected: None,
                reason: reason("introduced themselves at the start"),
            };
            self.send(id, reassign).await?;
        }
        Ok(())
    }
}

fn worker() -> WorkerId {
    "demo-worker".parse().expect("a short text without NUL")
}

fn stage(name: &str) -> Stage {
    name.parse().expect("a stage's name as the type takes it")
}

fn reason(text: &str) -> Reason {
    text.parse().expect("a short text without NUL")
}

fn failure(at_stage: &str, why: &str) -> MeetingCommand {
    MeetingCommand::Fail(FailMeeting { stage: stage(at_stage), reason: reason(why), at: now() })
}

/// A table's name, its columns, and the statement that shows a few rows of it.
struct Shown {
    table: &'static str,
    columns: &'static [&'static str],
    rows: &'static str,
    count: &'static str,
}

const TABLES: [Shown; 6] = [
    Shown {
        table: "files",
        columns: &["id", "sha256", "content_fp", "mime", "duration", "size", "owner", "created_at"],
        rows: "SELECT left(id::text, 8) || '…', left(sha256, 8) || '…', content_fp, mime, duration::text,
                      size::text, left(owner::text, 8) || '…', to_char(created_at, 'YYYY-MM-DD HH24:MI:SS')
                 FROM files ORDER BY created_at, id LIMIT 10",
        count: "SELECT count(*) FROM files",
    },
    Shown {
        table: "meetings",
        columns: &["id", "file_id", "status", "language", "started_at", "finished_at"],
        rows: "SELECT id::text, left(file_id::text, 8) || '…', status, language,
                      to_char(started_at, 'YYYY-MM-DD HH24:MI:SS'), to_char(finished_at, 'HH24:MI:SS')
                 FROM meetings ORDER BY started_at, id LIMIT 10",
        count: "SELECT count(*) FROM meetings",
    },
    Shown {
        table: "speakers",
        columns: &["id", "meeting_id", "cluster_id", "user_profile_id", "confidence"],
        rows: "SELECT left(id::text, 8) || '…', left(meeting_id::text, 8) || '…', cluster_id,
                      left(user_profile_id::text, 8) || '…', confidence::text
                 FROM speakers ORDER BY meeting_id, cluster_id LIMIT 12",
        count: "SELECT count(*) FROM speakers",
    },
    Shown {
        table: "user_profiles",
        columns: &["id", "display_name", "embeddings", "created_at"],
        rows: "SELECT left(id::text, 8) || '…', display_name,
                      coalesce(jsonb_array_length(embeddings), 0)::text || ' samples',
                      to_char(created_at, 'YYYY-MM-DD HH24:MI:SS')
                 FROM user_profiles ORDER BY display_name, id LIMIT 10",
        count: "SELECT count(*) FROM user_profiles",
    },
    Shown {
        table: "artifacts",
        columns: &["id", "meeting_id", "type", "s3_key", "meta"],
        rows: "SELECT left(id::text, 8) || '…', left(meeting_id::text, 8) || '…', type, s3_key, meta::text
                 FROM artifacts ORDER BY meeting_id, type LIMIT 12",
        count: "SELECT count(*) FROM artifacts",
    },
    Shown {
        table: "cache",
        columns: &["key", "value", "ttl"],
        rows: "SELECT key, left(value, 40) || '…', to_char(ttl, 'YYYY-MM-DD') FROM cache
                WHERE ttl IS NULL OR ttl > now() ORDER BY key LIMIT 10",
        count: "SELECT count(*) FROM cache WHERE ttl IS NULL OR ttl > now()",
    },
];

async fn show_tables(pool: &PgPool) -> anyhow::Result<()> {
    for Shown { table: name, columns, rows, count } in TABLES {
        let rows = sqlx::query(rows).fetch_all(pool).await?;
        let count: i64 = sqlx::query_scalar(count).fetch_one(pool).await?;
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED).set_header(columns.iter().copied());
        for row in &rows {
            let cell = |column| Ok(row.try_get::<Option<String>, _>(column)?.unwrap_or_default());
            let cells = (0..columns.len()).map(cell).collect::<Result<Vec<_>, sqlx::Error>>()?;
            table.add_row(cells);
        }
        let more = count - rows.len() as i64;
        let more = if more > 0 { format!(", {more} more not shown") } else { String::new() };
        terminal::print(format_args!("\n{name}: {count} rows{more}\n{table}"))?;
    }
    Ok(())
}

fn where_next(book: &Book) -> anyhow::Result<()> {
    terminal::print("\nWhere to go from here:")?;
    terminal::print("  minutebook serve              pages at http://127.0.0.1:8642/, the API at …/docs")?;
    terminal::print("  minutebook events --follow    watch the log")?;
    terminal::print("  minutebook status             how the log and the tables stand")?;
    terminal::print("  (with cargo: `cargo run --release -- serve`, and so on; Ctrl-C stops what runs)")?;
    match book.embedded() {
        Some(embedded) => {
            terminal::print(format_args!("The data is in {}.", embedded.data_dir.display()))?;
            terminal::print("Its PostgreSQL stops when the last command that uses it ends.")?;
            terminal::print(format_args!("While one runs: {}", embedded.psql_command()))?;
        }
        None => terminal::print(format_args!("The data is in {}.", book.shown_url()))?,
    }
    Ok(())
}
