//! What the AsyncAPI document promises is what is published: every type, by its headers and its data.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use async_nats::HeaderMap;
use event_store::append::{Append, NewEvent, Outcome};
use futures::StreamExt;
use projections::feed::public_event::EVENT_TYPES;
use projections::feed::publisher::Publishing;
use projections::feed::stream::StreamConfig;
use serde_json::{Value, json};
use tests::TestDatabase;
use tests::nats::NatsServer;
use uuid::Uuid;

use crate::read_models::caught_up_and_equal;
use crate::read_models::parked::append_raw;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn document() -> Value {
    let text = std::fs::read_to_string(root().join("docs/asyncapi.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

#[test]
fn the_document_is_the_one_that_the_types_give() {
    assert_eq!(
        document(),
        projections::feed::schemas::asyncapi(),
        "`minutebook asyncapi > docs/asyncapi.json` renews it"
    );
}

#[tokio::test]
async fn every_event_is_published_as_the_document_says_and_gives_nothing_away() {
    let database = TestDatabase::create().await;
    let nats = NatsServer::start().await;
    let book = database.open().await;
    append_a_fixture_of_each_type(&book).await;
    book.start_projector();
    book.start_publisher(StreamConfig::at(nats.url()));
    let head = all_is_published(&book).await;

    let document = document();
    let headers = jsonschema::validator_for(&document["components"]["schemas"]["attributes"]).unwrap();
    let mut seen = BTreeSet::new();
    for message in messages(&nats, usize::try_from(head).unwrap()).await {
        let attributes = attributes(message.headers.as_ref().unwrap());
        headers.validate(&attributes).unwrap_or_else(|error| panic!("{error} in {attributes}"));
        let full = attributes["ce-type"].as_str().unwrap();
        let described = described(&document, full);
        let data = serde_json::from_slice::<Value>(&message.payload).unwrap();
        let schema = &described["payload"]["schema"];
        assert_eq!(schema["$id"], attributes["ce-dataschema"]);
        let validator = jsonschema::options().should_validate_formats(true).build(schema).unwrap();
        validator.validate(&data).unwrap_or_else(|error| panic!("{error} in {full} {data}"));
        // Nothing beyond what is described leaves.
        let known = schema["properties"].as_object().unwrap();
        assert!(data.as_object().unwrap().keys().all(|field| known.contains_key(field)), "{full} {data}");
        assert_eq!(message.subject.as_str(), subject(&document, full, &attributes));
        let text = String::from_utf8_lossy(&message.payload).into_owned() + &attributes.to_string();
        for secret in ["display_name", "vector", "reason", "Ada", "0.875"] {
            assert!(!text.contains(secret), "{secret} leaves with {full}: {text}");
        }
        seen.insert(full.to_owned());
    }
    let all = EVENT_TYPES.iter().map(|known| known.full.to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(seen, all);
    book.close().await;
}

#[tokio::test]
async fn a_skipped_event_is_published_as_the_document_says_whatever_its_type_was() {
    let database = TestDatabase::create().await;
    let nats = NatsServer::start().await;
    let pool = database.pool().await;
    let book = database.open().await;
    for (n, known) in EVENT_TYPES.iter().enumerate() {
        let id = Uuid::from_u128(n as u128 + 1).to_string();
        append_raw(&pool, [known.aggregate, &id, known.stored, "1", r#"{"Ada": 1}"#], 0).await;
    }
    book.start_projector();
    let head = caught_up_and_equal(&pool).await;
    for position in 1..=head {
        let retried = projections::parked::skip(&book.store, position, "Ada", "person:operator-7").await;
        assert_eq!(retried.unwrap().waiting, 0);
    }
    book.start_publisher(StreamConfig::at(nats.url()));
    all_is_published(&book).await;

    let document = document();
    let skipped = &document["components"]["messages"]["skipped"];
    let mut headers = skipped["headers"].clone();
    headers["components"] = document["components"].clone();
    let headers = jsonschema::validator_for(&headers).unwrap();
    let data = jsonschema::options().should_validate_formats(true);
    let data = data.build(&skipped["payload"]["schema"]).unwrap();
    for (message, known) in messages(&nats, EVENT_TYPES.len()).await.iter().zip(EVENT_TYPES) {
        let attributes = attributes(message.headers.as_ref().unwrap());
        headers.validate(&attributes).unwrap_or_else(|error| panic!("{error} in {attributes}"));
        let told = serde_json::from_slice::<Value>(&message.payload).unwrap();
        data.validate(&told).unwrap_or_else(|error| panic!("{error} in {told}"));
        assert_eq!(attributes["ce-skippedtype"], known.full);
        assert_eq!(attributes["ce-type"], known.skipped());
        assert_eq!(told, json!({"id": attributes["ce-subject"], "event_type": known.full}));
        assert_eq!(message.subject.as_str(), subject(&document, known.full, &attributes));
        let channel = known.short().replace('.', "_");
        let listed = &document["channels"][channel]["messages"]["skipped"];
        assert_eq!(listed["$ref"], "#/components/messages/skipped");
        assert!(!attributes.to_string().contains("Ada"));
    }
    book.close().await;
}

/// Appends the newest fixture of every type, meetings' to one meeting and profiles' to one profile.
async fn append_a_fixture_of_each_type(book: &api::book::Book) {
    let mut versions = std::collections::BTreeMap::new();
    for known in EVENT_TYPES {
        let version = domain::upcast::newest_version(known.stored);
        let file = format!("domain/fixtures/events/{}.v{version}.json", known.stored);
        let fixture: Value =
            serde_json::from_str(&std::fs::read_to_string(root().join(file)).unwrap()).unwrap();
        let expected_version: &mut i64 = versions.entry(known.aggregate).or_default();
        let id = if known.aggregate == "meeting" { Uuid::from_u128(1) } else { Uuid::from_u128(2) };
        let append = Append {
            command_id: Uuid::now_v7(),
            request_hmac: vec![],
            aggregate_type: known.aggregate,
            aggregate_id: id.to_string(),
            expected_version: *expected_version,
            metadata: json!({"actor": "test", "actor_kind": "system", "correlation_id": "c-1"}).to_string(),
            events: vec![NewEvent {
                event_type: known.stored.to_owned(),
                event_version: version.to_owned(),
                payload: fixture["payload"].to_string().into(),
            }],
        };
        *expected_version += 1;
        let outcome = book.store.appender().append(append).await.unwrap();
        assert!(matches!(outcome, Outcome::Appended(_)));
    }
}

/// Waits until the stream has the whole log; returns its end.
async fn all_is_published(book: &api::book::Book) -> i64 {
    let head = event_store::log::head(book.pool()).await.unwrap();
    let published = Publishing::Active { position: head };
    book.publishing.clone().wait_for(|publishing| *publishing == published).await.unwrap();
    head
}

async fn messages(nats: &NatsServer, count: usize) -> Vec<async_nats::jetstream::Message> {
    let client = async_nats::connect(nats.url()).await.unwrap();
    let stream = async_nats::jetstream::new(client).get_stream("MINUTEBOOK").await.unwrap();
    let config = async_nats::jetstream::consumer::pull::Config::default();
    let consumer = stream.create_consumer(config).await.unwrap();
    let batch = consumer.fetch().max_messages(count).messages().await.unwrap();
    let messages = batch.map(|message| message.unwrap()).collect::<Vec<_>>().await;
    assert_eq!(messages.len(), count);
    messages
}

fn attributes(headers: &HeaderMap) -> Value {
    let pairs = headers.iter().filter(|(name, _)| *name != &async_nats::header::NATS_EXPECTED_LAST_SEQUENCE);
    pairs
        .map(|(name, values)| (name.to_string(), values[0].as_str().into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// Returns the message that describes a type.
fn described<'a>(document: &'a Value, full: &str) -> &'a Value {
    let messages = document["components"]["messages"].as_object().unwrap();
    messages
        .values()
        .find(|message| message["name"] == full)
        .unwrap_or_else(|| panic!("{full} is not described"))
}

/// Returns the subject that the type's channel gives.
fn subject(document: &Value, full: &str, attributes: &Value) -> String {
    let (key, _) = full.trim_start_matches("minutebook.").rsplit_once(".v").unwrap();
    let address = &document["channels"][key.replace('.', "_")]["address"];
    address.as_str().unwrap().replace("{id}", attributes["ce-subject"].as_str().unwrap())
}
