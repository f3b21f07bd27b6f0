//! What is published, for machines: the JSON Schema of each type's data, and the feed as an AsyncAPI 3
//! document. Both come from the types themselves.

use std::collections::BTreeSet;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::public_event::{EVENT_TYPES, EventSkipped, EventType, Progress};

/// Returns the JSON Schema (2020-12) of a type's data.
pub fn data_schema(event_type: &EventType) -> Value {
    let mut generator = SchemaGenerator::new(SchemaSettings::draft2020_12().with(|settings| {
        // Each schema stands alone.
        settings.inline_subschemas = true;
    }));
    let mut schema = Value::from((event_type.schema)(&mut generator));
    if let Value::Object(schema) = &mut schema {
        schema.insert("$id".to_owned(), event_type.schema_uri().into());
    }
    schema
}

/// Returns the feed as an AsyncAPI 3.0 document.
pub fn asyncapi() -> Value {
    let mut channels = Map::new();
    let mut operations = Map::new();
    let mut messages = Map::new();
    for known in EVENT_TYPES {
        let key = format!("{}_{}", known.aggregate, known.name);
        channels.insert(key.clone(), channel(known, &key));
        operations.insert(
            format!("publish_{key}"),
            json!({"action": "send", "channel": {"$ref": format!("#/channels/{key}")}}),
        );
        messages.insert(key, message(known));
    }
    channels.insert(
        "progress".to_owned(),
        json!({
            "address": super::stream::PROGRESS_SUBJECT,
            "description": "Where the feed stands, every two seconds: plain NATS, outside the stream. A subscriber \
                            whose newest event of a type is older than told here has missed the last one.",
            "messages": {"progress": {"$ref": "#/components/messages/progress"}},
        }),
    );
    operations.insert(
        "tell_progress".to_owned(),
        json!({"action": "send", "channel": {"$ref": "#/channels/progress"}}),
    );
    messages.insert("skipped".to_owned(), skipped());
    messages.insert("progress".to_owned(), progress());
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Minutebook's change feed",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What happened to meetings and profiles, on NATS JetStream, in order of position, once the \
                            tables show it. CloudEvents 1.0 in binary mode. The same events are at GET /v1/changes \
                            as server-sent events.",
            "license": {"name": "MIT OR Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {
            "messages": messages,
            "schemas": {"attributes": attributes()},
        },
    })
}

fn channel(known: &EventType, key: &str) -> Value {
    let mut messages = Map::new();
    for name in [key, "skipped"] {
        messages.insert(name.to_owned(), json!({"$ref": format!("#/components/messages/{name}")}));
    }
    json!({
        "address": format!("minutebook.{}.{{id}}.{}", known.aggregate, known.name),
        "parameters": {"id": {"description": format!("The {}'s id, a UUID.", known.aggregate)}},
        "messages": messages,
    })
}

fn message(known: &EventType) -> Value {
    let schema = data_schema(known);
    json!({
        "name": known.full,
        "title": known.short(),
        "summary": schema.get("description").cloned().unwrap_or_default(),
        "contentType": "application/json",
        "headers": {"$ref": "#/components/schemas/attributes"},
        "payload": {"schemaFormat": "application/schema+json;version=draft-2020-12", "schema": schema},
    })
}

/// What comes in the place of an event that an operator took out.
fn skipped() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let schema = Value::from(generator.root_schema_for::<EventSkipped>());
    json!({
        "name": "skipped",
        "title": "skipped",
        "summary": schema.get("description").cloned().unwrap_or_default(),
        "contentType": "application/json",
        "headers": {
            "allOf": [{"$ref": "#/components/schemas/attributes"}],
            "required": ["ce-skippedtype"],
            "properties": {"ce-type": {"enum": skipped_types()}},
        },
        "payload": {"schemaFormat": "application/schema+json;version=draft-2020-12", "schema": schema},
    })
}

/// Returns the CloudEvents types of skipped events.
fn skipped_types() -> BTreeSet<String> {
    EVENT_TYPES.iter().map(EventType::skipped).collect()
}

fn progress() -> Value {
    let mut generator = SchemaSettings::draft2020_12().into_generator();
    let schema = generator.root_schema_for::<Progress>();
    json!({
        "name": "progress",
        "contentType": "application/json",
        "payload": {"schemaFormat": "application/schema+json;version=draft-2020-12", "schema": schema},
    })
}

/// The headers of every event.
fn attributes() -> Value {
    let text = |description: &str| json!({"type": "string", "description": description});
    let number =
        |description: &str| json!({"type": "string", "pattern": "^[0-9]+$", "description": description});
    let id = "Epoch and position: `<uuid>:<number>`. Also the message's id.";
    let full = EVENT_TYPES.iter().map(|known| known.full.to_owned()).collect::<Vec<_>>();
    let types = full.iter().cloned().chain(skipped_types()).collect::<Vec<_>>();
    json!({
        "type": "object",
        "required": ["Nats-Msg-Id", "ce-specversion", "ce-id", "ce-source", "ce-type", "ce-subject", "ce-time",
                     "ce-dataschema", "ce-position", "ce-previous", "content-type"],
        "properties": {
            "Nats-Msg-Id": text(id),
            "ce-specversion": {"const": "1.0"},
            "ce-id": text(id),
            "ce-source": text("`urn:minutebook:log:<uuid>`: which log."),
            "ce-type": {"enum": types},
            "ce-subject": {"type": "string", "format": "uuid", "description": "The meeting or the profile."},
            "ce-time": {"type": "string", "format": "date-time", "description": "When it was recorded."},
            "ce-dataschema": text("The URN of the schema of the data."),
            "ce-position": number("The place in the log."),
            "ce-previous": number("The position before it of the same type; 0 for the first."),
            "ce-correlationid": text("What the event belongs to, as the command said."),
            "ce-skippedtype": {"enum": full, "description": "Of a skipped event alone: the type that it had."},
            "content-type": {"const": "application/json"},
        },
    })
}
