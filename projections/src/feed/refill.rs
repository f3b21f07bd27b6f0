//! Puts events on the stream again, where the broker lost them or never had them.

use event_store::EventStore;
use event_store::log::feed::Filter;
use sqlx::{Connection, Executor};

use super::cloud_event::CloudEvent;
use super::publication;
use super::publisher::{BATCH, PublishError, connect, synchronize};
use super::sending::Stop;
use super::source::{Batch, Source};
use super::stream::{self, EventStream, StreamConfig, StreamError};
use super::withheld;

/// Publishes the events from position `from` to position `to` again, batch by batch, each as the only one
/// who publishes. What the broker still remembers by its id is not doubled. Tells `progress` each position
/// reached; returns how many events were sent.
pub async fn refill(
    store: &EventStore,
    config: &StreamConfig,
    from: i64,
    to: i64,
    mut progress: impl FnMut(i64),
) -> Result<u64, PublishError> {
    let database = |phase| move |source| PublishError::Database { phase, source };
    let mut connection = connect(store).await?;
    let client = stream::connect(config, "minutebook publish").await?;
    let stream = EventStream::open(client, config).await?;
    // Before the first old event becomes the stream's tail, how far the publisher came is noted.
    let mut known = synchronize(&mut connection, &stream, store, config).await?;

    // What the stream never had comes in order and without a hole: its tail says how far it is.
    let from = from.min(known.position + 1);
    let mut source = Source::after(store.clone(), from - 1, Filter::default())
        .await
        .map_err(database("preparing to read"))?;
    let mut sent = 0;
    while source.position() < to {
        let again = source.position() < known.position;
        let until = if again { to.min(known.position) } else { to };
        let Batch { events, withheld, .. } = source.next(until, BATCH).await?;
        // What is parked is not for others yet: the publisher sends it when it is.
        withheld::note(&mut connection, &config.name, &withheld)
            .await
            .map_err(database("noting what is withheld"))?;
        let mut turn = connection.begin().await.map_err(database("taking the turn"))?;
        if again {
            // Old events become the stream's tail: how far it was has to be on the disk before.
            turn.execute("SET LOCAL synchronous_commit = on").await.map_err(database("taking the turn"))?;
            let at = publication::hold(&mut turn, &config.name, store.identity().epoch)
                .await
                .map_err(database("taking the turn"))?;
            publication::note(&mut turn, &config.name, at).await.map_err(database("noting the position"))?;
            turn.commit().await.map_err(database("noting the position"))?;
            turn = connection.begin().await.map_err(database("taking the turn"))?;
        }
        let mut at = publication::hold(&mut turn, &config.name, store.identity().epoch)
            .await
            .map_err(database("taking the turn"))?;
        // What is new is published as the publisher does it, which may have come further meanwhile.
        let published_by_others =
            if again { 0 } else { events.partition_point(|event| event.position <= at.position) };
        let expected = (!again).then(|| u64::try_from(at.sequence).unwrap_or(0));
        let positions =
            events.iter().skip(published_by_others).map(|event| event.position).collect::<Vec<_>>();
        let messages = events.into_iter().skip(published_by_others).map(CloudEvent::into_message);
        let published = stream.publish(messages, expected).await;
        let done = positions.get(..published.events).unwrap_or_default();
        if let Some(last) = done.last() {
            at.position = at.position.max(*last);
            let sequence = i64::try_from(published.sequence).unwrap_or(i64::MAX);
            at.sequence = at.sequence.max(sequence);
            publication::note(&mut turn, &config.name, at).await.map_err(database("noting the position"))?;
            progress(*last);
        }
        turn.commit().await.map_err(database("noting the position"))?;
        known = at;
        sent += done.len() as u64;
        match published.stopped {
            None => {}
            Some(Stop::Failed(error)) => return Err(error.into()),
            Some(Stop::Overtaken) => {
                return Err(StreamError::broker("publishing", "somebody else publishes").into());
            }
        }
    }
    Ok(sent)
}
