//! What the pipeline wrote about a meeting: transcripts and a summary, kept in an object store.

use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};

use crate::ValueError;
use crate::ids::ArtifactId;
use crate::personal_data::{self, Personal};
use crate::text::{check, text_type};

/// The most bytes that an artifact's `meta` has as JSON.
pub const MAX_META_BYTES: usize = 16 * 1024;

/// The most levels that an artifact's `meta` has. Far below the 128 at which serde_json stops reading: an
/// event wraps the meta in levels of its own, and must always decode.
pub const MAX_META_DEPTH: usize = 32;

/// What kind of document an artifact is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ArtifactType {
    /// A transcript in Markdown.
    #[serde(rename = "transcript.md")]
    TranscriptMd,
    /// A transcript in WebVTT.
    #[serde(rename = "transcript.vtt")]
    TranscriptVtt,
    /// A transcript in SubRip.
    #[serde(rename = "transcript.srt")]
    TranscriptSrt,
    /// A summary in JSON.
    #[serde(rename = "summary.json")]
    SummaryJson,
}

impl ArtifactType {
    /// Every type there is.
    pub const ALL: [Self; 4] =
        [Self::TranscriptMd, Self::TranscriptVtt, Self::TranscriptSrt, Self::SummaryJson];

    /// Returns the type's name, as it is stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TranscriptMd => "transcript.md",
            Self::TranscriptVtt => "transcript.vtt",
            Self::TranscriptSrt => "transcript.srt",
            Self::SummaryJson => "summary.json",
        }
    }
}

text_type!(
    /// A key in the object store: 1 to 500 characters, relative, without `..`, empty parts or control
    /// characters.
    S3Key,
    |text| {
        const PROBLEM: &str = "must be a relative path of 1 to 500 characters without . or .. or empty parts";
        check(&text, "s3_key", 500, PROBLEM)?;
        let sound = !text.chars().any(|c| c.is_control() || c == '\\')
            && text.split('/').all(|part| !matches!(part, "" | "." | ".."));
        if sound { Ok(text) } else { Err(ValueError::new("s3_key", PROBLEM)) }
    }
);

/// Further facts about an artifact: a JSON object of at most [`MAX_META_BYTES`], without NUL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub struct Meta(Value);

impl Meta {
    /// Returns the object.
    pub const fn as_value(&self) -> &Value {
        &self.0
    }
}

impl TryFrom<Value> for Meta {
    type Error = ValueError;
    fn try_from(value: Value) -> Result<Self, ValueError> {
        if !value.is_object() {
            return Err(ValueError::new("meta", "must be a JSON object"));
        }
        if value.to_string().len() > MAX_META_BYTES {
            return Err(ValueError::new("meta", "must be at most 16 KiB of JSON"));
        }
        if depth(&value) > MAX_META_DEPTH {
            return Err(ValueError::new("meta", "must be nested at most 32 levels deep"));
        }
        if has_nul(&value) {
            return Err(ValueError::new("meta", "must not hold a NUL character"));
        }
        // What an event has under this name is sealed.
        if value.get("sealed").is_some() {
            return Err(ValueError::new("meta", "must not have a field named sealed"));
        }
        Ok(Self(as_jsonb_has_it(value)))
    }
}

impl From<Meta> for Value {
    fn from(meta: Meta) -> Self {
        meta.0
    }
}

/// Recursion is bounded: serde_json parses no deeper than 128 levels.
fn depth(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
        Value::Array(values) => 1 + values.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
    }
}

/// jsonb gives a whole number back as an integer, however it was written: `1e16` as
/// `10000000000000000`. Written so from the start, the same meta twice is the same value.
fn as_jsonb_has_it(value: Value) -> Value {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => value,
        Value::Number(number) => Value::Number(whole(&number).unwrap_or(number)),
        Value::Array(values) => Value::Array(values.into_iter().map(as_jsonb_has_it).collect()),
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(key, value)| (key, as_jsonb_has_it(value))).collect())
        }
    }
}

fn whole(number: &Number) -> Option<Number> {
    /// From here on a float is whole, but no longer every integer is a float.
    const LIMIT: f64 = 9_007_199_254_740_992.0 * 1024.0;
    let float = number.as_f64().filter(|float| number.is_f64() && float.fract() == 0.0)?;
    // The bound makes the conversion exact.
    (float.abs() < LIMIT).then(|| Number::from(float as i64))
}

/// Recursion is bounded: serde_json parses no deeper than 128 levels.
fn has_nul(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => text.contains('\0'),
        Value::Array(values) => values.iter().any(has_nul),
        Value::Object(fields) => fields.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
    }
}

/// An artifact of one attempt. The newer one of a type takes the older one's place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// Derived from meeting, attempt and type.
    pub id: ArtifactId,
    /// The attempt that wrote it.
    pub attempt: u32,
    /// What it is.
    #[serde(rename = "type")]
    pub artifact_type: ArtifactType,
    /// Where it is.
    pub s3_key: S3Key,
    /// What else is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "personal_data::present")]
    pub meta: Option<Personal<Meta>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_s3_key_stays_below_its_root() {
        assert!("m/1/transcript.md".parse::<S3Key>().is_ok());
        assert!("a..b/c".parse::<S3Key>().is_ok());
        for text in
            ["", "/a", "../a", "a/../b", "a/..", "a//b", "./a", "a\nb", "a\\b", "a\0", &"x".repeat(501)]
        {
            assert!(text.parse::<S3Key>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn meta_is_nested_no_deeper_than_its_events_can_be_read() {
        let nested =
            |levels| (1..levels).fold(serde_json::json!({}), |inner, _| serde_json::json!({"a": inner}));
        assert!(Meta::try_from(nested(MAX_META_DEPTH)).is_ok());
        assert!(Meta::try_from(nested(MAX_META_DEPTH + 1)).is_err());
    }

    #[test]
    fn meta_is_a_bounded_object_without_nul() {
        assert!(Meta::try_from(serde_json::json!({"words": 12})).is_ok());
        for value in [
            serde_json::json!([]),
            serde_json::json!({"a": {"b": ["x\0"]}}),
            serde_json::json!({"a\0": 1}),
            serde_json::json!({"a": "x".repeat(MAX_META_BYTES)}),
        ] {
            assert!(Meta::try_from(value).is_err());
        }
    }
}
