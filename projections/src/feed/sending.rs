//! Events on their way to the stream: in order, so many at once, and how far they came.

use std::collections::VecDeque;
use std::future::IntoFuture;

use async_nats::jetstream::context::{PublishError, PublishErrorKind};
use async_nats::jetstream::message::PublishMessage;
use async_nats::jetstream::publish::PublishAck;
use async_nats::{HeaderMap, HeaderValue};
use bytes::Bytes;
use futures::future::BoxFuture;

use super::cloud_event::{AGAIN_SUFFIX, Message};
use super::stream::{EventStream, StreamError};

/// How many events are under way to the broker at once.
pub const WINDOW: usize = 256;
/// Of so many events in a chain one is acknowledged: the broker takes none whose predecessor it lacks.
const LINKS: usize = 64;
/// How often a message may have been lost while the broker remembers its id.
const AGAIN: usize = 5;

/// Puts events on the stream, one after the other, acknowledgements awaited, [`WINDOW`] at once.
///
/// With `expected`, the sequence of the stream's newest message, each event is taken only as the next one; an
/// event refused makes the broker refuse all after it. The sequence alone would not do: if the stream has three
/// messages more than expected, the first three events are refused and the fourth one fits. So each also expects
/// the one before it by its id. In such a chain an acknowledgement answers for all events before it, and most go
/// without one of their own, which broker and publisher would have to make, send and read. The first has one, as
/// it tells why the broker refuses, and so has the last.
///
/// Without `expected`, an event that the broker remembers by its id is not taken again, and each is acknowledged.
pub struct Sending<'a> {
    stream: &'a EventStream,
    /// The sequence that the next event expects.
    next: Option<u64>,
    /// The id that it expects.
    before: Option<HeaderValue>,
    /// The newest event: whether it is the last is not known before the next one, or the end.
    held: Option<Message>,
    window: VecDeque<UnderWay>,
    sent: usize,
    /// How many events are under way.
    under_way: usize,
    /// For how many of them the next acknowledgement answers.
    unanswered: usize,
    published: Published,
}

/// A message whose acknowledgement has not come yet; in a refill with what it takes to send it again.
struct UnderWay {
    acknowledgement: BoxFuture<'static, Result<PublishAck, PublishError>>,
    /// For how many events it answers.
    events: usize,
    again: Option<(String, HeaderMap, Bytes)>,
}

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

impl<'a> Sending<'a> {
    /// Begins at the stream's end, where it is expected to be.
    pub fn begin(stream: &'a EventStream, expected: Option<u64>) -> Self {
        Self {
            stream,
            next: expected,
            before: None,
            held: None,
            window: VecDeque::with_capacity(WINDOW),
            sent: 0,
            under_way: 0,
            unanswered: 0,
            published: Published { events: 0, sequence: expected.unwrap_or(0), stopped: None },
        }
    }

    /// Sends an event, and waits while too many are under way. Says whether it goes on: once stopped, it takes
    /// no further one.
    pub async fn send(&mut self, message: Message) -> bool {
        match self.held.replace(message) {
            Some(before) => {
                let acknowledged = self.next.is_none() || self.sent.is_multiple_of(LINKS);
                self.put(before, acknowledged).await
            }
            None => true,
        }
    }

    /// Waits for what is under way; says how far it came.
    pub async fn finish(mut self) -> Published {
        if self.published.stopped.is_none()
            && let Some(last) = self.held.take()
        {
            self.put(last, true).await;
        }
        while let Some(oldest) = self.window.pop_front() {
            let stopped = self.published.stopped.take();
            if !self.settle(oldest).await {
                break;
            }
            self.published.stopped = stopped;
        }
        self.published
    }

    async fn put(&mut self, message: Message, acknowledged: bool) -> bool {
        if self.under_way == WINDOW
            && let Some(oldest) = self.window.pop_front()
        {
            self.under_way -= oldest.events;
            if !self.settle(oldest).await {
                // What is under way after a refusal is refused as well.
                self.window.clear();
                return false;
            }
        }
        let Message { subject, mut headers, data, .. } = message;
        if let Some(sequence) = &mut self.next {
            headers.insert("Nats-Expected-Last-Sequence", sequence.to_string());
            *sequence += 1;
            let id = headers.get("Nats-Msg-Id").cloned();
            if let Some(before) = std::mem::replace(&mut self.before, id) {
                headers.insert("Nats-Expected-Last-Msg-Id", before);
            }
        }
        self.sent += 1;
        self.under_way += 1;
        self.unanswered += 1;
        let context = self.stream.context();
        if !acknowledged {
            let sent = context.client().publish_with_headers(subject, headers, data).await;
            return match sent {
                Ok(()) => true,
                Err(error) => self.stop(Stop::Failed(StreamError::broker("publishing", error))),
            };
        }
        let again = self.next.is_none().then(|| (subject.clone(), headers.clone(), data.clone()));
        let message = PublishMessage::build().headers(headers).payload(data);
        match context.send_publish(subject, message).await {
            Ok(sent) => {
                let acknowledgement = sent.into_future();
                self.window.push_back(UnderWay { acknowledgement, events: self.unanswered, again });
                self.unanswered = 0;
                true
            }
            Err(error) => self.stop(stop(&error)),
        }
    }

    fn stop(&mut self, why: Stop) -> bool {
        self.published.stopped = Some(why);
        false
    }

    /// Waits for an acknowledgement; says whether the event is in its place. The broker may remember the id
    /// of a message that it no longer has: that one is sent under another id.
    async fn settle(&mut self, sent: UnderWay) -> bool {
        let mut acknowledged = sent.acknowledgement.await;
        if let Some((subject, mut headers, data)) = sent.again {
            for _ in 0..AGAIN {
                let Ok(PublishAck { duplicate: true, sequence, .. }) = &acknowledged else { break };
                if !self.stream.lacks(*sequence).await {
                    break;
                }
                let id = headers.get("Nats-Msg-Id").map(HeaderValue::to_string).unwrap_or_default();
                headers.insert("Nats-Msg-Id", format!("{id}{AGAIN_SUFFIX}"));
                let message = PublishMessage::build().headers(headers.clone()).payload(data.clone());
                acknowledged = match self.stream.context().send_publish(subject.clone(), message).await {
                    Ok(sent) => sent.await,
                    Err(error) => Err(error),
                };
            }
        }
        let in_order = self.next.is_some();
        let published = &mut self.published;
        match acknowledged {
            Ok(ack)
                if in_order && (ack.duplicate || ack.sequence != published.sequence + sent.events as u64) =>
            {
                self.stop(Stop::Overtaken)
            }
            Ok(ack) => {
                published.events += sent.events;
                published.sequence = published.sequence.max(ack.sequence);
                true
            }
            Err(error) => self.stop(stop(&error)),
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
