//! The OpenAPI document, as the tests read it: which operations there are, a body that each takes, and
//! bodies that it must not take. A new route is tested because it is in the document.

use reqwest::Method;
use serde_json::{Map, Value, json};

use super::Scene;

/// The document at `/openapi.json`.
pub(crate) struct Document(pub(crate) Value);

/// One operation of it.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) method: Method,
    /// With its parameters in braces.
    pub(crate) path: String,
    pub(crate) details: Value,
}

impl Document {
    pub(crate) async fn of(scene: &Scene) -> Self {
        Self(scene.get("/openapi.json").await.expect(200))
    }

    pub(crate) fn operations(&self) -> Vec<Operation> {
        let mut operations = Vec::new();
        for (path, methods) in self.0["paths"].as_object().unwrap() {
            for (method, details) in methods.as_object().unwrap() {
                let method = method.to_uppercase().parse().unwrap();
                operations.push(Operation { method, path: path.clone(), details: details.clone() });
            }
        }
        operations
    }

    /// Follows a reference.
    pub(crate) fn resolve<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(reference) => self.0.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
            None => schema,
        }
    }

    /// Returns a body that `operation` takes, made of the document's examples.
    pub(crate) fn sample_body(&self, operation: &Operation) -> Value {
        operation.body_schema().map_or_else(|| json!({}), |schema| self.sample(schema))
    }

    fn sample(&self, schema: &Value) -> Value {
        let schema = self.resolve(schema);
        if let Some(example) = schema.get("example") {
            return example.clone();
        }
        match main_type(schema) {
            "object" => {
                let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
                let fields = properties(schema).into_iter().filter_map(|(name, property)| {
                    let wanted = required.contains(&json!(name)) || property.get("example").is_some();
                    wanted.then(|| (name.clone(), self.sample(property)))
                });
                Value::Object(fields.collect())
            }
            "array" => json!([self.sample(&schema["items"])]),
            "number" => json!(0.5),
            other => panic!("the document has no example of this {other}: {schema}"),
        }
    }

    /// Returns bodies that `operation` must refuse, each with one thing wrong.
    pub(super) fn spoilt_bodies(&self, operation: &Operation) -> Vec<Value> {
        match operation.body_schema() {
            Some(schema) => self.spoilt(schema),
            // Without a body of its own a command takes an empty object and nothing else.
            None => vec![json!(null), json!([]), json!("x"), json!(7), json!({"surprise": 1})],
        }
    }

    fn spoilt(&self, schema: &Value) -> Vec<Value> {
        // What may be left out may be null as well.
        if let Some(choices) = schema["oneOf"].as_array() {
            let choice = choices.iter().find(|choice| choice["type"] != "null").unwrap();
            return self.spoilt(choice).into_iter().filter(|value| !value.is_null()).collect();
        }
        let schema = self.resolve(schema);
        let mut bad = wrong_types(schema);
        match main_type(schema) {
            "object" => bad.extend(self.spoilt_objects(schema)),
            "array" => {
                let items = &schema["items"];
                bad.extend(self.spoilt(items).into_iter().map(|item| json!([item])));
                if let Some(most) = schema["maxItems"].as_u64() {
                    bad.push((0..=most).map(|_| self.sample(items)).collect());
                }
            }
            "string" => bad.extend(spoilt_texts(schema).into_iter().map(Value::String)),
            "integer" => bad.extend(spoilt_integers(schema)),
            // Of the right type it is one of two, and both are right.
            "boolean" | "number" => {}
            other => panic!("the tests cannot spoil a value of type {other} yet: {schema}"),
        }
        bad
    }

    fn spoilt_objects(&self, schema: &Value) -> Vec<Value> {
        // Free-form: nothing in it can be wrong.
        if properties(schema).is_empty() && schema.get("additionalProperties").is_none() {
            return vec![];
        }
        let Value::Object(sample) = self.sample(schema) else { panic!("not an object: {schema}") };
        let with = |name: &str, value: Value| {
            let mut fields = sample.clone();
            fields.insert(name.to_owned(), value);
            Value::Object(fields)
        };
        // What is named must not be taken by its place.
        let mut bad = vec![sample.values().cloned().collect(), with("surprise", json!(1))];
        for name in schema["required"].as_array().into_iter().flatten() {
            let mut fields = sample.clone();
            fields.remove(name.as_str().unwrap());
            bad.push(Value::Object(fields));
        }
        for (name, property) in properties(schema) {
            bad.extend(self.spoilt(property).into_iter().map(|value| with(name, value)));
        }
        bad
    }
}

impl Operation {
    pub(crate) fn name(&self) -> String {
        format!("{} {}", self.method, self.path)
    }

    /// Says whether the operation is one of `/v1`; the others are for operators.
    pub(crate) fn is_v1(&self) -> bool {
        self.path.starts_with("/v1/")
    }

    pub(crate) fn is_command(&self) -> bool {
        self.method != Method::GET
    }

    pub(crate) fn body_schema(&self) -> Option<&Value> {
        self.details.pointer("/requestBody/content/application~1json/schema")
    }

    pub(crate) fn statuses(&self) -> Vec<u16> {
        let statuses = self.details["responses"].as_object().unwrap();
        statuses.keys().map(|status| status.parse().unwrap()).collect()
    }

    pub(crate) fn parameters(&self, place: &str) -> Vec<&Value> {
        let all = self.details["parameters"].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().filter(|parameter| parameter["in"] == place).collect()
    }
}

pub(crate) fn properties(schema: &Value) -> Vec<(&String, &Value)> {
    schema["properties"].as_object().into_iter().flat_map(Map::iter).collect()
}

/// Returns a schema's type; of two the one that is not null.
pub(crate) fn main_type(schema: &Value) -> &str {
    let types =
        schema["type"].as_array().map_or_else(|| std::slice::from_ref(&schema["type"]), Vec::as_slice);
    types.iter().filter_map(Value::as_str).find(|name| *name != "null").unwrap_or_default()
}

/// The name that no answer may repeat: what is refused may be personal.
pub(super) const SECRET: &str = "Lovelace";

/// Returns a value of each type that `schema` does not have.
fn wrong_types(schema: &Value) -> Vec<Value> {
    // Quotes and backticks: serde's messages put values between them.
    let text = format!("Ada \"{SECRET}\" `{SECRET}` King");
    let of_each = [
        ("null", json!(null)),
        ("boolean", json!(true)),
        ("integer", json!(7)),
        ("number", json!(1.5)),
        ("string", json!(text)),
        ("array", json!([])),
        ("object", json!({})),
    ];
    let nullable = schema["type"].as_array().is_some_and(|types| types.contains(&json!("null")));
    let fits = |name: &str| name == main_type(schema) || (name == "null" && nullable);
    // An empty object is of the right type, but lacks what is required.
    of_each.into_iter().filter(|(name, _)| !fits(name)).map(|(_, value)| value).collect()
}

fn spoilt_texts(schema: &Value) -> Vec<String> {
    let mut bad = vec!["a\0b".to_owned()];
    if let Some(most) = schema["maxLength"].as_u64() {
        bad.push("x".repeat(usize::try_from(most).unwrap() + 1));
    }
    if schema["minLength"].as_u64().is_some_and(|least| least > 0) {
        bad.extend([String::new(), " \t\n".to_owned()]);
    }
    if schema.get("pattern").is_some() || schema.get("format").is_some() {
        bad.extend([String::new(), format!("Ada `{SECRET}`, \"{SECRET}\" expected")]);
    }
    bad
}

fn spoilt_integers(schema: &Value) -> Vec<Value> {
    // 2^32 and 2^64: one more than the largest of either width, signed or not.
    let too_large =
        if schema["format"] == "int32" { json!(1_u64 << 32) } else { json!(18_446_744_073_709_551_616.0) };
    let mut bad = vec![too_large, json!(1e300), json!(-1e300), json!(i64::MIN)];
    bad.extend(schema["minimum"].as_i64().map(|least| json!(least - 1)));
    bad.extend(schema["maximum"].as_i64().map(|most| json!(most + 1)));
    bad
}
