//! `subscribe`: follows one type of event, and hands each to a program.

mod follow;

use std::path::PathBuf;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use projections::feed::cloud_event::CloudEvent;
use projections::feed::public_event::EventType;
use projections::feed::subscriber::{
    self, FileMemory, HandlerError, Memory, NoMemory, Report, SubscriberConfig,
};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::cli::Done;
use crate::config::{DatabaseConfig, NatsConfig};
use crate::{serve, terminal};

/// What to follow, and what to do with it.
#[derive(Debug, Args)]
pub struct SubscribeArgs {
    /// The type of event: meeting.completed, profile.erased …
    #[arg(value_name = "TYPE", value_parser = known_type)]
    event_type: &'static EventType,
    /// Remember under this name what was had, so that the next start goes on from there
    #[arg(long, value_name = "NAME", value_parser = durable_name)]
    durable: Option<String>,
    /// Run this shell command for each event: the event is on its standard input, the ids are in MINUTEBOOK_*
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Print each event as one JSON line
    #[arg(long)]
    json: bool,
    /// Follow /v1/changes of this server instead of NATS
    #[arg(long, env = "MINUTEBOOK_SERVER", value_name = "URL")]
    server: Option<String>,
    /// Token for that server; MINUTEBOOK_TOKEN keeps it off the command line
    #[arg(long, env = "MINUTEBOOK_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<String>,
    /// Only events from now on, for a name that is not known yet
    #[arg(long)]
    only_new: bool,
    /// How often an event is tried before it is set aside
    #[arg(long, default_value_t = 5, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    /// The longest that the command may take for one event, in seconds
    #[arg(long, default_value_t = 600, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    exec_timeout: u64,
    /// Directory for what is remembered and set aside [default: subscribers/NAME in the data directory]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    #[command(flatten)]
    nats: NatsConfig,
}

fn known_type(name: &str) -> Result<&'static EventType, String> {
    EventType::named(name).ok_or_else(|| {
        let names = projections::feed::public_event::EVENT_TYPES.iter().map(EventType::short);
        format!("no event has this name; there are {}", names.collect::<Vec<_>>().join(", "))
    })
}

/// A name is a consumer's at the broker, and a directory's.
fn durable_name(name: &str) -> Result<String, String> {
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if (1..=64).contains(&name.len()) && name.chars().all(sound) {
        return Ok(name.to_owned());
    }
    Err("must be 1 to 64 letters, digits, _ or -".to_owned())
}

/// Follows until the signal to stop.
pub async fn run(database: &DatabaseConfig, args: SubscribeArgs) -> anyhow::Result<Done> {
    match state_dir(database, &args)? {
        Some(directory) => {
            let memory = FileMemory::open(directory.clone(), args.event_type);
            let memory = memory.with_context(|| format!("cannot use {}", directory.display()))?;
            follow(args, memory).await
        }
        None => follow(args, NoMemory).await,
    }
}

fn state_dir(database: &DatabaseConfig, args: &SubscribeArgs) -> anyhow::Result<Option<PathBuf>> {
    if args.state_dir.is_some() {
        return Ok(args.state_dir.clone());
    }
    let Some(name) = &args.durable else { return Ok(None) };
    Ok(Some(database.data_dir()?.join("subscribers").join(name)))
}

async fn follow(args: SubscribeArgs, memory: impl Memory) -> anyhow::Result<Done> {
    let mut stop = pin!(serve::stop_signal()?);
    let shutdown = CancellationToken::new();
    let (unread, mut unread_receiver) = mpsc::channel(1);
    // An event in hand when the signal comes is not acknowledged: it comes again at the next start.
    let following = async {
        let handler = async |event: CloudEvent| {
            execute_for(&args, &event).await?;
            if let Err(error) = show(&args, &event) {
                // Nobody reads any more: that is no fault of the event, which is not acknowledged.
                let _ = unread.send(error).await;
                std::future::pending::<()>().await;
            }
            Ok(())
        };
        let server = args.server.as_ref().filter(|server| !server.is_empty());
        match (server, args.nats.stream()) {
            (Some(server), _) => follow::run(server, &args, memory, handler, report, &shutdown).await,
            (None, Some(stream)) => {
                let config = SubscriberConfig {
                    stream,
                    event_type: args.event_type,
                    durable: args.durable.clone(),
                    only_new: args.only_new,
                    tries: args.tries,
                };
                Ok(subscriber::run(&config, memory, handler, report, &shutdown).await?)
            }
            (None, None) => anyhow::bail!(
                "nothing to follow: NATS_URL names a broker, or --server a Minutebook, as in --server http://127.0.0.1:8642"
            ),
        }
    };
    let mut following = pin!(following);
    tokio::select! {
        Some(error) = unread_receiver.recv() => Err(error.into()),
        result = &mut following => result.map(|()| Done::Whole),
        () = &mut stop => {
            shutdown.cancel();
            Ok(Done::Interrupted)
        }
    }
}

/// Runs the command with the event, if there is one.
async fn execute_for(args: &SubscribeArgs, event: &CloudEvent) -> Result<(), HandlerError> {
    if let Some(command) = &args.exec {
        let running = execute(command, event);
        timeout(Duration::from_secs(args.exec_timeout), running)
            .await
            .map_err(|_| format!("the command took longer than {} s", args.exec_timeout))??;
    }
    Ok(())
}

/// Prints the event.
fn show(args: &SubscribeArgs, event: &CloudEvent) -> std::io::Result<()> {
    if args.json {
        terminal::print(event.to_json())?;
    } else if args.exec.is_none() {
        let at = event.time.format("%Y-%m-%dT%H:%M:%S%.3fZ");
        terminal::print(format_args!(
            "{:>8}  {at}  {:<24}  {}",
            event.position,
            event.event_type.short(),
            event.aggregate_id
        ))?;
    }
    Ok(())
}

async fn execute(command: &str, event: &CloudEvent) -> Result<(), HandlerError> {
    let mut child = Command::new("sh")
        .args(["-c", command])
        .env("MINUTEBOOK_EVENT_ID", event.id())
        .env("MINUTEBOOK_EVENT_TYPE", event.event_type.full)
        .env("MINUTEBOOK_POSITION", event.position.to_string())
        .env("MINUTEBOOK_PREVIOUS", event.previous.to_string())
        .env("MINUTEBOOK_TIME", event.time.to_rfc3339())
        .env(id_variable(event.event_type), event.aggregate_id.to_string())
        .env("MINUTEBOOK_CORRELATION_ID", event.correlation_id.as_deref().unwrap_or_default())
        .stdin(Stdio::piped())
        // A group of its own: what the command starts goes with it.
        .process_group(0)
        .spawn()?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()));
    let mut stdin = child.stdin.take();
    let writing = async {
        if let Some(stdin) = &mut stdin {
            // A command need not read what it is given.
            let _ = stdin.write_all(event.to_json().as_bytes()).await;
        }
        drop(stdin);
    };
    let ((), status) = tokio::join!(writing, child.wait());
    let status = status?;
    group.0 = None;
    if status.success() { Ok(()) } else { Err(format!("the command ended with {status}").into()) }
}

/// The processes of a command that runs; they are killed when it is given up.
struct Group(Option<i32>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // An error says that none is left.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
    }
}

fn id_variable(event_type: &EventType) -> &'static str {
    if event_type.aggregate == "profile" { "MINUTEBOOK_PROFILE_ID" } else { "MINUTEBOOK_MEETING_ID" }
}

/// Tells a person what is the matter, besides the events.
fn report(report: Report) {
    match report {
        Report::Listening => terminal::note("listening"),
        Report::Waiting { reason } => terminal::note(format_args!("waiting: {reason}")),
        Report::Gap(gap) => terminal::note(format_args!(
            "events are missing after position {}, up to position {}: `{}` puts them back",
            gap.after,
            gap.up_to,
            gap.mending_command()
        )),
        Report::GapClosed(gap) => terminal::note(format_args!(
            "the missing events after position {}, up to position {}, have come",
            gap.after, gap.up_to
        )),
        Report::NewEpoch => {
            terminal::note("the log was restored: positions have been given out again, and are counted anew");
        }
        Report::Failed { position, tries, again_in, error } => terminal::note(format_args!(
            "event {position} failed at try {tries}, again in {:.1} s: {error}",
            again_in.as_secs_f64()
        )),
        Report::SetAside { position, error, place } => {
            terminal::note(format_args!("event {position} was set aside: {error}; it is in {place}"));
        }
        Report::Skipped { position } => {
            terminal::note(format_args!("the event at position {position} was skipped by an operator"));
        }
        Report::Foreign { subject } => {
            terminal::note(format_args!("a message on {subject} is no event of this feed: passed over"));
        }
    }
}
