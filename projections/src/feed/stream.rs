//! The stream on the broker: created or checked, its tail read, events put on it in order.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::{Context, ContextBuilder, GetStreamErrorKind};
pub use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::stream::{Config, RawMessageErrorKind, RetentionPolicy, Stream};
use async_nats::{Client, ConnectOptions, HeaderValue, ServerAddr};
use tokio::time::timeout;
use uuid::Uuid;

use super::cloud_event::{AGAIN_SUFFIX, Message, parse_event_id};
use super::sending::{Published, Sending, WINDOW};

/// The subjects of the stream.
const SUBJECTS: [&str; 2] = ["minutebook.meeting.*.*", "minutebook.profile.*.*"];
/// How long the broker may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
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

    /// Publishes events in order, acknowledgements awaited; see [`Sending`]. Says how far it came, and what
    /// stopped it.
    pub async fn publish(
        &self,
        messages: impl IntoIterator<Item = Message>,
        expected: Option<u64>,
    ) -> Published {
        let mut sending = Sending::begin(self, expected);
        for message in messages {
            if !sending.send(message).await {
                break;
            }
        }
        sending.finish().await
    }

    /// Says whether a message that the stream once had has gone.
    pub(super) async fn lacks(&self, sequence: u64) -> bool {
        match self.stream.get_raw_message(sequence).await {
            Ok(_) => false,
            Err(error) => error.kind() == RawMessageErrorKind::NoMessageFound,
        }
    }

    /// Returns the way to publish.
    pub(super) const fn context(&self) -> &Context {
        &self.context
    }

    /// Says where the feed stands, to whoever listens.
    pub async fn tell_progress(&self, progress: &super::public_event::Progress) -> Result<(), StreamError> {
        let payload =
            serde_json::to_vec(progress).expect("a progress message has string keys and serializes");
        let telling = self.context.client().publish(PROGRESS_SUBJECT, payload.into()).await;
        telling.map_err(|error| StreamError::broker("telling the progress", error))
    }
}

/// Where progress is told: outside the stream.
pub const PROGRESS_SUBJECT: &str = "minutebook-progress";

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
