//! The stream on the broker: created or checked, its tail read, events put on it in order.

use std::collections::VecDeque;
use std::future::IntoFuture;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{
    Context, ContextBuilder, GetStreamErrorKind, PublishError, PublishErrorKind,
};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
pub use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::stream::{Config, RawMessageErrorKind, RetentionPolicy, Stream};
use async_nats::{Client, ConnectOptions, HeaderMap, HeaderValue, ServerAddr};
use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::timeout;
use uuid::Uuid;

use super::cloud_event::{AGAIN_SUFFIX, Message, parse_event_id};

/// The subjects of the stream.
const SUBJECTS: [&str; 2] = ["minutebook.meeting.*.*", "minutebook.profile.*.*"];
/// How many events are under way to the broker at once.
pub const WINDOW: usize = 256;
/// Of so many events in a chain one is acknowledged: the broker takes none whose predecessor it lacks.
const LINKS: usize = 32;
/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How often a message may have been lost while the broker remembers its id.
const AGAIN: usize = 5;
/// How far behind the end of the stream its last message of ours is looked for.
const FOREIGN: u64 = 1000;

/// Where the broker is, and how the stream is to be.
#[derive(Debug, Clone)]
pub struct StreamConfig {
    /// The broker: `nats://host:port`, with user and password or a token where it wants them; several servers of
    /// a cluster are separated by commas.
    pub url: String,
    /// A file with credentials, where the broker wants one.
    pub credentials: Option<std::path::PathBuf>,
    /// The stream's name.
    pub name: String,
    /// Whether the stream is kept in files or in memory.
    pub storage: StorageType,
    /// On how many servers of a cluster it is kept, 1 to 5.
    pub replicas: usize,
    /// How old messages may become; zero keeps them for ever.
    pub max_age: Duration,
    /// How large the stream may become in bytes; the oldest messages go. -1 is no limit.
    pub max_bytes: i64,
    /// How long the broker remembers message ids.
    pub duplicate_window: Duration,
}

impl StreamConfig {
    /// Returns the stream `MINUTEBOOK` at `url`, in files, on one server, with nothing ever going.
    pub fn at(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            credentials: None,
            name: "MINUTEBOOK".to_owned(),
            storage: StorageType::File,
            replicas: 1,
            max_age: Duration::ZERO,
            max_bytes: -1,
            duplicate_window: Duration::from_secs(120),
        }
    }
}

/// Why the stream cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The broker does not answer, or not as it should; later it may.
    #[error("the broker cannot be used: {phase}: {cause}")]
    Broker {
        /// What was tried.
        phase: &'static str,
        /// What came of it.
        cause: String,
    },
    /// The stream does not keep what it is given.
    #[error("the stream {name} is not fit for the feed: {why}; name another one, or remove it")]
    Unfit {
        /// Its name.
        name: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The stream is not one for this feed.
    #[error("the stream {name} does not take the subjects {}; name another one, or remove it", SUBJECTS.join(" and "))]
    Subjects {
        /// Its name.
        name: String,
    },
}

impl StreamError {
    /// Returns the error of a phase in which the broker failed.
    pub fn broker(phase: &'static str, cause: impl std::fmt::Display) -> Self {
        Self::Broker { phase, cause: cause.to_string() }
    }
}

/// The end of the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tail {
    /// The sequence of the newest message; 0 for a stream that never had one.
    pub sequence: u64,
    /// The epoch and the position of the newest message of ours, if there is one.
    pub event: Option<(Uuid, i64)>,
}

/// Connects to the broker. Once connected, the client reconnects by itself.
pub async fn connect(config: &StreamConfig, name: &str) -> Result<Client, StreamError> {
    let failed = |cause: String| StreamError::Broker { phase: "connecting", cause };
    let mut options =
        ConnectOptions::new().name(name).connection_timeout(ANSWER).request_timeout(Some(ANSWER));
    if let Some(path) = &config.credentials {
        options = options.credentials_file(path).await.map_err(|error| failed(error.to_string()))?;
    }
    let servers = config.url.split(',').map(|url| url.trim().parse::<ServerAddr>());
    let servers =
        servers.collect::<Result<Vec<_>, _>>().map_err(|_| failed("the URL cannot be read".to_owned()))?;
    // The client does not take them from the URL by itself.
    let user = servers.iter().find_map(|server| Some((server.username()?.to_owned(), server.password())));
    options = match user {
        Some((user, Some(password))) => options.user_and_password(user, password.to_owned()),
        Some((token, None)) => options.token(token),
        None => options,
    };
    let connecting = options.connect(servers);
    timeout(2 * ANSWER, connecting)
        .await
        .map_err(|_| failed("no answer".to_owned()))?
        .map_err(|error| failed(error.to_string()))
}

/// An open stream.
pub struct EventStream {
    context: Context,
    stream: Stream,
}

impl EventStream {
    /// Finds the stream, or creates it. One that is there is taken as it is, if it takes our subjects.
    pub async fn open(client: Client, config: &StreamConfig) -> Result<Self, StreamError> {
        let context = ContextBuilder::new()
            .timeout(ANSWER)
            .ack_timeout(ANSWER)
            .max_ack_inflight(2 * WINDOW)
            .build(client);
        let stream = match context.get_stream(&config.name).await {
            Ok(stream) => stream,
            Err(error) if is_missing(error.kind()) => context
                .create_stream(Config {
                    name: config.name.clone(),
                    subjects: SUBJECTS.map(str::to_owned).to_vec(),
                    retention: RetentionPolicy::Limits,
                    storage: config.storage,
                    num_replicas: config.replicas,
                    max_age: config.max_age,
                    max_bytes: config.max_bytes,
                    duplicate_window: config.duplicate_window,
                    description: Some("Minutebook's change feed".to_owned()),
                    ..Config::default()
                })
                .await
                .map_err(|error| StreamError::broker("creating the stream", error))?,
            Err(error) => return Err(StreamError::broker("looking for the stream", error)),
        };
        let subjects = &stream.cached_info().config.subjects;
        if !SUBJECTS
            .iter()
            .all(|ours| subjects.iter().any(|subject| subject == ours || subject == "minutebook.>"))
        {
            return Err(StreamError::Subjects { name: config.name.clone() });
        }
        let found = &stream.cached_info().config;
        let why = if found.retention != RetentionPolicy::Limits {
            Some("its retention is not `limits`, so messages go when somebody has had them")
        } else if found.no_ack {
            Some("it does not acknowledge")
        } else if found.max_messages_per_subject > 0 {
            Some("it keeps only so many messages of a subject")
        } else {
            None
        };
        if let Some(why) = why {
            return Err(StreamError::Unfit { name: config.name.clone(), why });
        }
        Ok(Self { context, stream })
    }

    /// Returns the sequence of the newest message.
    pub async fn end(&self) -> Result<u64, StreamError> {
        let info = self.stream.get_info().await;
        let info = info.map_err(|e| StreamError::broker("asking for the stream's end", e))?;
        Ok(info.state.last_sequence)
    }

    /// Returns the end of the stream.
    pub async fn tail(&self) -> Result<Tail, StreamError> {
        let info = self
            .stream
            .get_info()
            .await
            .map_err(|e| StreamError::broker("asking for the stream's end", e))?;
        let state = info.state;
        let oldest = state.first_sequence.max(state.last_sequence.saturating_sub(FOREIGN)).max(1);
        // Somebody else's message, or a hole, hides the last one of ours.
        for sequence in (oldest..=state.last_sequence).rev() {
            match self.stream.get_raw_message(sequence).await {
                Ok(message) => {
                    let id = message.headers.get("Nats-Msg-Id").map(HeaderValue::as_str);
                    if let Some(event) = id.and_then(|id| parse_event_id(id.trim_end_matches(AGAIN_SUFFIX))) {
                        return Ok(Tail { sequence: state.last_sequence, event: Some(event) });
                    }
                }
                Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {}
                Err(error) => return Err(StreamError::broker("reading the stream's end", error)),
            }
        }
        Ok(Tail { sequence: state.last_sequence, event: None })
    }

    /// Publishes events in order, acknowledgements awaited, [`WINDOW`] at once. Says how far it came, and
    /// what stopped it.
    ///
    /// With `expected`, the sequence of the stream's newest message, each event is taken only as the next
    /// one; an event refused makes the broker refuse all after it. The sequence alone would not do: if the
    /// stream has three messages more than expected, the first three events are refused and the fourth one
    /// fits. So each also expects the one before it by its id. In such a chain an acknowledgement answers for
    /// all events before it, and most go without one of their own, which broker and publisher would have
    /// to make, send and read. The first has one, as it tells why the broker refuses.
    ///
    /// Without `expected`, an event that the broker remembers by its id is not taken again, and each is
    /// acknowledged.
    pub async fn publish(
        &self,
        messages: impl IntoIterator<Item = Message>,
        expected: Option<u64>,
    ) -> Published {
        let mut published = Published { events: 0, sequence: expected.unwrap_or(0), stopped: None };
        let mut window: VecDeque<UnderWay> = VecDeque::with_capacity(WINDOW);
        let (mut under_way, mut unanswered) = (0, 0);
        let mut next = expected;
        let mut before: Option<HeaderValue> = None;
        let mut messages = messages.into_iter().enumerate().peekable();
        while let Some((n, Message { subject, mut headers, data, .. })) = messages.next() {
            if let Some(sequence) = &mut next {
                headers.insert("Nats-Expected-Last-Sequence", sequence.to_string());
                *sequence += 1;
                let id = headers.get("Nats-Msg-Id").cloned();
                if let Some(before) = std::mem::replace(&mut before, id) {
                    headers.insert("Nats-Expected-Last-Msg-Id", before);
                }
            }
            if under_way == WINDOW
                && let Some(oldest) = window.pop_front()
            {
                under_way -= oldest.events;
                if !self.settle(oldest, expected.is_some(), &mut published).await {
                    return published;
                }
            }
            under_way += 1;
            unanswered += 1;
            if expected.is_some() && n % LINKS != 0 && messages.peek().is_some() {
                let sent = self.context.client().publish_with_headers(subject, headers, data).await;
                if let Err(error) = sent {
                    published.stopped = Some(Stop::Failed(StreamError::broker("publishing", error)));
                    break;
                }
                continue;
            }
            let again = expected.is_none().then(|| (subject.clone(), headers.clone(), data.clone()));
            let message = PublishMessage::build().headers(headers).payload(data);
            match self.context.send_publish(subject, message).await {
                Ok(sent) => {
                    let acknowledgement = sent.into_future();
                    window.push_back(UnderWay { acknowledgement, events: unanswered, again });
                    unanswered = 0;
                }
                Err(error) => {
                    published.stopped = Some(stop(&error));
                    break;
                }
            }
        }
        for oldest in window {
            let stopped = published.stopped.take();
            if !self.settle(oldest, expected.is_some(), &mut published).await {
                break;
            }
            published.stopped = stopped;
        }
        published
    }

    /// Waits for an acknowledgement; says whether the event is in its place. The broker may remember the id
    /// of a message that it no longer has: that one is sent under another id.
    async fn settle(&self, sent: UnderWay, in_order: bool, published: &mut Published) -> bool {
        let mut acknowledged = sent.acknowledgement.await;
        if let Some((subject, mut headers, data)) = sent.again {
            for _ in 0..AGAIN {
                let Ok(PublishAck { duplicate: true, sequence, .. }) = &acknowledged else { break };
                let gone = match self.stream.get_raw_message(*sequence).await {
                    Ok(_) => false,
                    Err(error) => error.kind() == RawMessageErrorKind::NoMessageFound,
                };
                if !gone {
                    break;
                }
                let id = headers.get("Nats-Msg-Id").map(HeaderValue::to_string).unwrap_or_default();
                headers.insert("Nats-Msg-Id", format!("{id}{AGAIN_SUFFIX}"));
                let message = PublishMessage::build().headers(headers.clone()).payload(data.clone());
                acknowledged = match self.context.send_publish(subject.clone(), message).await {
                    Ok(sent) => sent.await,
                    Err(error) => Err(error),
                };
            }
        }
        published.settle(acknowledged, sent.events, in_order)
    }

    /// Says where the feed stands, to whoever listens.
    pub async fn tell_progress(&self, progress: &super::public_event::Progress) -> Result<(), StreamError> {
        let payload =
            serde_json::to_vec(progress).expect("a progress message has string keys and serializes");
        let telling = self.context.client().publish(PROGRESS_SUBJECT, payload.into()).await;
        telling.map_err(|error| StreamError::broker("telling the progress", error))
    }
}

/// A message whose acknowledgement has not come yet; in a refill with what it takes to send it again.
struct UnderWay {
    acknowledgement: BoxFuture<'static, Result<PublishAck, PublishError>>,
    /// For how many events it answers.
    events: usize,
    again: Option<(String, HeaderMap, Bytes)>,
}

/// Where progress is told: outside the stream.
pub const PROGRESS_SUBJECT: &str = "minutebook-progress";

/// How far publishing came.
#[derive(Debug)]
pub struct Published {
    /// How many events the stream has, from the first one given on.
    pub events: usize,
    /// The sequence of the newest of them.
    pub sequence: u64,
    /// What stopped it before the last.
    pub stopped: Option<Stop>,
}

/// What stops publishing.
#[derive(Debug)]
pub enum Stop {
    /// Somebody else has published: the stream's end is not where it was expected.
    Overtaken,
    /// The broker failed.
    Failed(StreamError),
}

impl Published {
    /// Takes the acknowledgement that answers for so many `events`; says whether they are in their places.
    fn settle(
        &mut self,
        acknowledgement: Result<PublishAck, PublishError>,
        events: usize,
        in_order: bool,
    ) -> bool {
        match acknowledgement {
            Ok(ack) if in_order && (ack.duplicate || ack.sequence != self.sequence + events as u64) => {
                self.stopped = Some(Stop::Overtaken);
                false
            }
            Ok(ack) => {
                self.events += events;
                self.sequence = self.sequence.max(ack.sequence);
                true
            }
            Err(error) => {
                self.stopped = Some(stop(&error));
                false
            }
        }
    }
}

fn stop(error: &PublishError) -> Stop {
    match error.kind() {
        PublishErrorKind::WrongLastSequence | PublishErrorKind::WrongLastMessageId => Stop::Overtaken,
        PublishErrorKind::StreamNotFound
        | PublishErrorKind::TimedOut
        | PublishErrorKind::BrokenPipe
        | PublishErrorKind::MaxAckPending
        | PublishErrorKind::MaxPayloadExceeded
        | PublishErrorKind::Other => Stop::Failed(StreamError::broker("publishing", error)),
    }
}

fn is_missing(kind: GetStreamErrorKind) -> bool {
    match kind {
        GetStreamErrorKind::JetStream(error) => is_stream_not_found(&error),
        GetStreamErrorKind::EmptyName
        | GetStreamErrorKind::Request
        | GetStreamErrorKind::InvalidStreamName => false,
    }
}

fn is_stream_not_found(error: &async_nats::jetstream::Error) -> bool {
    error.error_code() == ErrorCode::STREAM_NOT_FOUND
}
