//! `profile import`: people and their voices from a file of JSON lines. The same file again changes nothing.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use domain::ids::{ProfileId, SampleId};
use domain::profile::{DisplayName, MAX_SAMPLES, ProfileCommand};
use domain::voice::{ModelId, SampleSource, VoiceError, VoiceModels};
use event_store::command_bus::Context;
use event_store::log;
use serde::{Deserialize, Serialize};
use tokio::fs::File;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, BufReader};

use crate::book::Book;
use crate::cli::Done;
use crate::clock::now;
use crate::config::voice_models;
use crate::erase::EraseProfile;
use crate::{erase, terminal};

/// The most bytes of one line: a hundred voices of the largest dimension.
const LONGEST_LINE: u64 = 8 * 1024 * 1024;

/// What to do with profiles.
#[derive(Debug, Subcommand)]
pub enum Profile {
    /// Enter people and their voices, from JSON lines: {"name": …, "samples": [{"model": …, "vector": […]}]}
    Import(ImportArgs),
    /// Forget a person: name, voice, and whoever was ever said to be that person in a meeting
    Erase(EraseProfile),
}

/// What to import.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The file, a JSON object a line
    file: PathBuf,
    /// The voice models that are known, each with the dimension of its vectors: `NAME=DIMENSION`, by commas
    #[arg(long, env = "MINUTEBOOK_VOICE_MODELS", default_value = "resemblyzer-0.1.4=256", value_delimiter = ',',
          value_parser = crate::config::voice_model, value_name = "MODELS")]
    voice_models: Vec<(ModelId, usize)>,
    /// Report as one JSON object
    #[arg(long)]
    json: bool,
}

/// One person.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Line {
    /// Without one it comes from the name, so that the same line again is the same person.
    id: Option<ProfileId>,
    name: DisplayName,
    #[serde(default)]
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sample {
    model: ModelId,
    vector: Vec<f64>,
    source: Option<SampleSource>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    people: usize,
    /// Events appended.
    events: usize,
    errors: Vec<String>,
}

/// Carries it out.
pub async fn run(book: &Book, what: &Profile) -> anyhow::Result<Done> {
    let args = match what {
        Profile::Import(args) => args,
        Profile::Erase(args) => return erase::profile(book, args).await,
    };
    let mut import = Import {
        book,
        models: voice_models(&args.voice_models),
        seen: HashSet::new(),
        report: Report::default(),
    };
    import.file(&args.file).await?;
    let Report { people, events, errors } = &import.report;
    if args.json {
        terminal::print(serde_json::to_string_pretty(&import.report)?)?;
    } else {
        let left_out = if errors.is_empty() { String::new() } else { format!(", {} left out", errors.len()) };
        terminal::print(format_args!("{people} people, {events} events{left_out}"))?;
    }
    Ok(if errors.is_empty() { Done::Whole } else { Done::Partly })
}

struct Import<'a> {
    book: &'a Book,
    models: VoiceModels,
    /// Who came in an earlier line.
    seen: HashSet<ProfileId>,
    report: Report,
}

impl Import<'_> {
    async fn file(&mut self, path: &Path) -> anyhow::Result<()> {
        let named = || format!("cannot read {}", path.display());
        // Neither a directory nor a pipe that never ends.
        if !tokio::fs::metadata(path).await.with_context(named)?.is_file() {
            bail!("{} is no regular file", path.display());
        }
        let mut reader = BufReader::new(File::open(path).await.with_context(named)?);
        let mut number = 0;
        while let Some(line) = next_line(&mut reader).await.with_context(named)? {
            number += 1;
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match self.line(&line).await {
                Ok(events) => {
                    self.report.people += 1;
                    self.report.events += events;
                }
                Err(error) => {
                    let error = format!("{}:{number}: {}", path.display(), terminal::causes(&error));
                    terminal::note(format_args!("error: {error}"));
                    self.report.errors.push(error);
                }
            }
        }
        Ok(())
    }

    /// Enters one person; returns how many events that took.
    async fn line(&mut self, line: &[u8]) -> anyhow::Result<usize> {
        let Line { id, name, samples } = parse_line(line)?;
        let store = &self.book.store;
        // By the sealed secret: whoever has the database alone cannot find out who is in it by trying names.
        let derived = || store.keyring().secret().uuid(&[b"profile", name.as_str().as_bytes()]).into();
        let id = id.unwrap_or_else(derived);
        if !self.seen.insert(id) {
            bail!("an earlier line is of the same person; people of one name are told apart by id");
        }
        let voices = samples.into_iter().map(|Sample { model, vector, source }| {
            let voice = self.models.voice(model, &vector)?;
            Ok((SampleId::derive(&store.identity().secret, id, &voice), voice, source))
        });
        // All of them are good before the first one is enrolled.
        let voices = voices.collect::<Result<Vec<_>, VoiceError>>()?;
        let mut commands = vec![ProfileCommand::Create { profile_id: id, display_name: name, at: now() }];
        // Whoever has taken a sample away did so for a reason that this file does not know.
        let pool = self.book.pool();
        let curated = log::has_event(pool, "profile", id.as_uuid(), "VoiceRemoved").await?;
        let voices = if curated { vec![] } else { voices };
        commands.extend(voices.into_iter().map(|(sample_id, voice, source)| ProfileCommand::EnrolVoice {
            sample_id,
            voice,
            source,
            at: now(),
        }));
        let mut events = 0;
        for command in commands {
            let accepted = self.book.bus.profile(id, command, &context()).await?;
            events += accepted.events.len();
        }
        Ok(events)
    }
}

/// Reads one person. What is refused is not repeated: it may be a name.
pub fn parse_line(line: &[u8]) -> anyhow::Result<Line> {
    if line.len() as u64 > LONGEST_LINE {
        bail!("the line is longer than {LONGEST_LINE} bytes");
    }
    // serde quotes what it did not expect.
    let Ok(line) = serde_json::from_slice::<Line>(line) else {
        bail!(
            "must be an object with name, and perhaps id and samples (each with model, vector, and perhaps \
             source), all of them valid"
        )
    };
    if line.samples.len() > MAX_SAMPLES {
        bail!("a profile has at most {MAX_SAMPLES} voice samples");
    }
    Ok(line)
}

fn context() -> Context {
    Context::system("import")
}

/// Reads the next line, of a bounded length; the rest of a longer one is passed over.
async fn next_line(reader: &mut (impl AsyncBufRead + Unpin)) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = vec![];
    if (&mut *reader).take(LONGEST_LINE + 1).read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    let mut rest = vec![];
    while line.len() as u64 > LONGEST_LINE && line.last() != Some(&b'\n') && rest.last() != Some(&b'\n') {
        rest.clear();
        if (&mut *reader).take(LONGEST_LINE).read_until(b'\n', &mut rest).await? == 0 {
            break;
        }
    }
    Ok(Some(line))
}
