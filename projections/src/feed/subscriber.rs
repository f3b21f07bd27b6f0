//! The other end of the feed: a subscriber that gets every event of a type at least once, in order, and can
//! prove that it missed none.
//!
//! One event is in hand at a time. It is acknowledged after the handler has succeeded; a handler that fails
//! gets it again after a pause, and after a number of tries it is set aside, where somebody can look at it.
//! The [`Ledger`] skips what was had before and names what is missing; progress messages show a missing
//! last one. A handler that writes to a PostgreSQL of its own becomes idempotent with
//! [`IdempotentReceiver`].

mod memory;
mod receiver;

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::consumer::pull::{Config, Stream as Messages};
use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy};
use async_nats::jetstream::{self, AckKind, Message};
use event_store::retry::backoff;
use futures::StreamExt;
use tokio::time::{Instant, interval_at, sleep};
use tokio_util::sync::CancellationToken;

pub use self::memory::{FileMemory, Memory, NoMemory};
pub use self::receiver::IdempotentReceiver;
use super::cloud_event::CloudEvent;
use super::ledger::{Entry, Gap, Ledger};
use super::public_event::{EventType, Progress};
use super::stream::{PROGRESS_SUBJECT, StreamConfig, StreamError, connect};

/// How long the broker waits for an acknowledgement, or for the word that the handler is still at it.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// How long a subscriber without a name is remembered after it has gone.
const EPHEMERAL: Duration = Duration::from_secs(60);

/// Why a handler failed.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// What is subscribed to, and how.
#[derive(Debug, Clone)]
pub struct SubscriberConfig {
    /// The broker and the stream.
    pub stream: StreamConfig,
    /// The type of event.
    pub event_type: &'static EventType,
    /// The name under which the broker remembers the subscriber; without it nothing is remembered.
    pub durable: Option<String>,
    /// Whether only events from now on are wanted, for a subscriber that the broker does not know yet.
    pub only_new: bool,
    /// How often an event is tried before it is set aside.
    pub tries: u32,
}

/// What a subscriber has to say besides the events.
#[derive(Debug, Clone, PartialEq)]
pub enum Report {
    /// It listens.
    Listening,
    /// It waits for the broker, and tries again by itself.
    Waiting {
        /// Why.
        reason: String,
    },
    /// Events are missing.
    Gap(Gap),
    /// Events that were missing have come.
    GapClosed(Gap),
    /// The log was restored: positions have begun anew after some point in the past.
    NewEpoch,
    /// The handler failed, and gets the event again.
    Failed {
        /// The event's position.
        position: i64,
        /// How often it was tried.
        tries: u32,
        /// After how long it is tried again.
        again_in: Duration,
        /// What the handler said.
        error: String,
    },
    /// The handler failed too often.
    SetAside {
        /// The event's position.
        position: i64,
        /// What the handler said last.
        error: String,
        /// Where the event can be looked at.
        place: String,
    },
    /// The event at a position was skipped by an operator: there is nothing to handle.
    Skipped {
        /// The event's position.
        position: i64,
    },
    /// A message that is no event of this feed was passed over.
    Foreign {
        /// Its subject.
        subject: String,
    },
}

/// Why a subscriber gave up.
#[derive(Debug, thiserror::Error)]
pub enum SubscribeError {
    /// The subscriber's own memory cannot be used.
    #[error("the subscriber's memory cannot be used")]
    Memory(#[from] std::io::Error),
    /// The broker knows the name for something else.
    #[error("the broker knows {name} as a subscriber to {found}: take another name")]
    OtherSubscriber {
        /// The name.
        name: String,
        /// What it is subscribed to.
        found: String,
    },
}

/// How long after a failure an event is tried again.
pub fn pause_after(tries: u32) -> Duration {
    backoff(tries, Duration::from_millis(500), Duration::from_secs(60))
}

/// What a subscriber remembers, and what it makes of an event in the light of it.
pub struct Inbox<M> {
    memory: M,
    ledger: Ledger,
    told: Option<Gap>,
}

impl<M: Memory> Inbox<M> {
    /// Opens it.
    pub fn open(mut memory: M, only_new: bool) -> std::io::Result<Self> {
        let ledger = memory.load()?;
        let new = if only_new { Ledger::from_now() } else { Ledger::from_the_beginning() };
        Ok(Self { memory, ledger: ledger.unwrap_or(new), told: None })
    }

    /// Returns what was had.
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Tells what is missing since an earlier life.
    pub fn recall(&self, report: &mut impl FnMut(Report)) {
        self.ledger.gaps().iter().for_each(|gap| report(Report::Gap(*gap)));
    }

    /// Looks at an event before it is handled; says whether it has to be, and what it shows.
    pub fn look(&mut self, event: &CloudEvent, report: &mut impl FnMut(Report)) -> bool {
        let Entry { repeated, opened, new_epoch, .. } =
            self.ledger.clone().enter(event.epoch, event.position, event.previous);
        if new_epoch {
            report(Report::NewEpoch);
        }
        if let Some(gap) = opened
            && self.told != opened
        {
            // Told before it is handled, and not again with each try.
            report(Report::Gap(gap));
            self.told = opened;
        }
        !repeated
    }

    /// Enters an event that was handled, or set aside.
    pub fn enter(&mut self, event: &CloudEvent, report: &mut impl FnMut(Report)) -> std::io::Result<()> {
        let entry = self.ledger.enter(event.epoch, event.position, event.previous);
        self.memory.keep(&self.ledger)?;
        if let Some(gap) = entry.closed {
            report(Report::GapClosed(gap));
        }
        Ok(())
    }

    /// Enters an event that was skipped.
    pub fn pass(&mut self, event: &CloudEvent, report: &mut impl FnMut(Report)) -> std::io::Result<()> {
        report(Report::Skipped { position: event.position });
        self.enter(event, report)
    }

    /// Sets an event aside that was tried too often.
    pub fn set_aside(
        &mut self,
        event: &CloudEvent,
        error: &str,
        report: &mut impl FnMut(Report),
    ) -> std::io::Result<()> {
        let place = self.memory.set_aside(event, error)?;
        report(Report::SetAside { position: event.position, error: error.to_owned(), place });
        self.enter(event, report)
    }

    fn begin(&mut self, progress: &Progress, newest: i64) -> std::io::Result<()> {
        self.ledger.begin(progress.epoch, newest);
        self.memory.keep(&self.ledger)
    }

    fn miss(
        &mut self,
        progress: &Progress,
        newest: i64,
        report: &mut impl FnMut(Report),
    ) -> std::io::Result<()> {
        if let Some(gap) = self.ledger.miss(progress.epoch, newest) {
            self.memory.keep(&self.ledger)?;
            report(Report::Gap(gap));
        }
        Ok(())
    }
}

/// Hands each event to `handler` until `shutdown`, and what else there is to `report`.
pub async fn run<M, H, F>(
    config: &SubscriberConfig,
    memory: M,
    handler: H,
    mut report: impl FnMut(Report) + Send,
    shutdown: &CancellationToken,
) -> Result<(), SubscribeError>
where
    M: Memory,
    H: Fn(CloudEvent) -> F,
    F: Future<Output = Result<(), HandlerError>>,
{
    let mut inbox = Inbox::open(memory, config.only_new)?;
    inbox.recall(&mut report);
    let listening = async {
        let mut failures = 0;
        let mut said = None;
        loop {
            let reason = match listen(config, &mut inbox, &handler, &mut report, &mut failures).await {
                Ok(never) => match never {},
                Err(ListenError::Broker(error)) => error.to_string(),
                Err(ListenError::Subscribe(error)) => return Err(error),
            };
            failures += 1;
            if failures == 1 || said.as_ref() != Some(&reason) {
                report(Report::Waiting { reason: reason.clone() });
                said = Some(reason);
            }
            sleep(backoff(failures, Duration::from_millis(100), Duration::from_secs(5))).await;
        }
    };
    shutdown.run_until_cancelled(listening).await.unwrap_or(Ok(()))
}

enum ListenError {
    Broker(StreamError),
    Subscribe(SubscribeError),
}

impl From<StreamError> for ListenError {
    fn from(error: StreamError) -> Self {
        Self::Broker(error)
    }
}

impl From<std::io::Error> for ListenError {
    fn from(error: std::io::Error) -> Self {
        Self::Subscribe(error.into())
    }
}

async fn listen<M, H, F>(
    config: &SubscriberConfig,
    inbox: &mut Inbox<M>,
    handler: &H,
    report: &mut (impl FnMut(Report) + Send),
    failures: &mut u32,
) -> Result<std::convert::Infallible, ListenError>
where
    M: Memory,
    H: Fn(CloudEvent) -> F,
    F: Future<Output = Result<(), HandlerError>>,
{
    let client = connect(&config.stream, "minutebook subscriber").await?;
    let broker = |phase| move |error: async_nats::Error| StreamError::broker(phase, error);
    let consumer = consumer(client.clone(), config).await?;
    // The consumer first: what is told after it counts whatever was published before it.
    let subscribing = client.subscribe(PROGRESS_SUBJECT).await;
    let mut progress = subscribing.map_err(|e| StreamError::broker("listening for progress", e))?;
    let mut messages = messages(&consumer).await?;
    report(Report::Listening);
    let mut suspicion: Option<i64> = None;
    loop {
        tokio::select! {
            message = messages.next() => {
                let message = message.ok_or_else(|| StreamError::broker("receiving", "the subscription ended"))?;
                let message = message.map_err(|e| StreamError::broker("receiving", e))?;
                handle(&message, config.tries, inbox, handler, report).await.map_err(|error| match error {
                    HandleError::Acknowledge(error) => ListenError::from(broker("acknowledging")(error)),
                    HandleError::Memory(error) => error.into(),
                })?;
                *failures = 0;
            }
            told = progress.next() => {
                let told = told.ok_or_else(|| StreamError::broker("listening for progress", "the subscription ended"))?;
                let Ok(told) = serde_json::from_slice::<Progress>(&told.payload) else { continue };
                *failures = 0;
                let newest = told.newest.get(config.event_type.full).copied().unwrap_or(0);
                if inbox.ledger().is_open() {
                    // From here on nothing may be missing, also not the very next one.
                    if nothing_pending(&consumer).await {
                        inbox.begin(&told, newest)?;
                    }
                    continue;
                }
                let behind = newest > inbox.ledger().position();
                // One that is only under way has come when it is told again.
                if behind && suspicion == Some(newest) && nothing_pending(&consumer).await {
                    inbox.miss(&told, newest, report)?;
                }
                suspicion = behind.then_some(newest);
            }
        }
    }
}

/// Finds the subscriber's consumer on the broker, or makes it.
async fn consumer(client: Client, config: &SubscriberConfig) -> Result<Consumer<Config>, ListenError> {
    let EventType { aggregate, name, .. } = config.event_type;
    let filter = format!("minutebook.{aggregate}.*.{name}");
    let stream = jetstream::new(client)
        .get_stream(&config.stream.name)
        .await
        .map_err(|error| StreamError::broker("looking for the stream", error))?;
    let wanted = Config {
        durable_name: config.durable.clone(),
        deliver_policy: if config.only_new { DeliverPolicy::New } else { DeliverPolicy::All },
        ack_policy: AckPolicy::Explicit,
        ack_wait: ACK_WAIT,
        filter_subject: filter.clone(),
        // In order: the next one comes when this one is settled.
        max_ack_pending: 1,
        inactive_threshold: if config.durable.is_some() { Duration::ZERO } else { EPHEMERAL },
        ..Config::default()
    };
    let broker = |error: &dyn std::fmt::Display| StreamError::broker("subscribing", error);
    let consumer: Consumer<Config> = match &config.durable {
        Some(durable) => stream.get_or_create_consumer(durable, wanted).await.map_err(|e| broker(&e))?,
        None => stream.create_consumer(wanted).await.map_err(|e| broker(&e))?,
    };
    let found = &consumer.cached_info().config.filter_subject;
    if *found != filter {
        let name = config.durable.clone().unwrap_or_default();
        return Err(ListenError::Subscribe(SubscribeError::OtherSubscriber { name, found: found.clone() }));
    }
    Ok(consumer)
}

async fn messages(consumer: &Consumer<Config>) -> Result<Messages, StreamError> {
    let messages = consumer
        .stream()
        .max_messages_per_batch(16)
        .expires(Duration::from_secs(30))
        .heartbeat(Duration::from_secs(5))
        .messages();
    messages.await.map_err(|error| StreamError::broker("subscribing", error))
}

async fn nothing_pending(consumer: &Consumer<Config>) -> bool {
    let info = consumer.get_info().await;
    info.is_ok_and(|info| info.num_pending == 0 && info.num_ack_pending == 0)
}

enum HandleError {
    Acknowledge(async_nats::Error),
    Memory(std::io::Error),
}

/// Handles one message, and settles it with the broker.
async fn handle<M, H, F>(
    message: &Message,
    tries: u32,
    inbox: &mut Inbox<M>,
    handler: &H,
    report: &mut (impl FnMut(Report) + Send),
) -> Result<(), HandleError>
where
    M: Memory,
    H: Fn(CloudEvent) -> F,
    F: Future<Output = Result<(), HandlerError>>,
{
    let settle = async |kind| message.ack_with(kind).await.map_err(HandleError::Acknowledge);
    let headers = message.headers.as_ref();
    let Some(event) = headers.and_then(|headers| CloudEvent::from_message(headers, message.payload.clone()))
    else {
        report(Report::Foreign { subject: message.subject.to_string() });
        return settle(AckKind::Term).await;
    };
    if !inbox.look(&event, report) {
        return settle(AckKind::Ack).await;
    }
    if event.skipped {
        inbox.pass(&event, report).map_err(HandleError::Memory)?;
        return settle(AckKind::Ack).await;
    }
    let delivered = message.info().map_or(1, |info| u32::try_from(info.delivered).unwrap_or(u32::MAX));
    match while_in_progress(message, handler(event.clone())).await {
        Ok(()) => {
            inbox.enter(&event, report).map_err(HandleError::Memory)?;
            // Confirmed: a lost acknowledgement would bring the event once more.
            message.double_ack().await.map_err(HandleError::Acknowledge)
        }
        Err(error) if delivered >= tries => {
            inbox.set_aside(&event, &error.to_string(), report).map_err(HandleError::Memory)?;
            settle(AckKind::Term).await
        }
        Err(error) => {
            let again_in = pause_after(delivered);
            let error = error.to_string();
            report(Report::Failed { position: event.position, tries: delivered, again_in, error });
            settle(AckKind::Nak(Some(again_in))).await
        }
    }
}

/// Waits for a handler, and tells the broker now and then that it is still at it.
async fn while_in_progress(
    message: &Message,
    handling: impl Future<Output = Result<(), HandlerError>>,
) -> Result<(), HandlerError> {
    let mut handling = std::pin::pin!(handling);
    let every = ACK_WAIT / 3;
    let mut still = interval_at(Instant::now() + every, every);
    loop {
        tokio::select! {
            handled = &mut handling => return handled,
            _ = still.tick() => {
                // A broker that is away gives the event to us again; the ledger knows it then.
                let _ = message.ack_with(AckKind::Progress).await;
            }
        }
    }
}
