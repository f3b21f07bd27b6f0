//! What in an event is about a person, and about which one. It is the one place that says so: whoever seals or
//! opens an event's personal data goes through [`visit`], field by field.
//!
//! What stays clear on purpose: ids, times, positions in a recording, labels of clusters, names of models. They
//! say nothing of a person once names and vectors are gone.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer, StringDeserializer};
use serde::de::{DeserializeOwned, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::artifact::{Artifact, Meta};
use crate::event::Event;
use crate::ids::{MeetingId, ProfileId, SpeakerId};
use crate::meeting::MeetingEvent;
use crate::profile::{DisplayName, ProfileEvent};
use crate::text::Reason;
use crate::voice::{SampleSource, Vector};

/// Whose data it is: what is forgotten as a whole, because it has one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// A meeting: reasons, further facts about artifacts, cached results.
    Meeting(MeetingId),
    /// A speaker of one diarization: the voice of its cluster.
    Speaker(SpeakerId),
    /// A person known by name: the name, and the samples of the voice.
    Profile(ProfileId),
}

impl Subject {
    /// Returns the name of its kind, as it is stored.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Meeting(_) => "meeting",
            Self::Speaker(_) => "speaker",
            Self::Profile(_) => "profile",
        }
    }

    /// Returns the subject of a kind, by its stored name, with this id; none if there is no such kind.
    pub fn from_kind(kind: &str, id: uuid::Uuid) -> Option<Self> {
        match kind {
            "meeting" => Some(Self::Meeting(id.into())),
            "speaker" => Some(Self::Speaker(id.into())),
            "profile" => Some(Self::Profile(id.into())),
            _ => None,
        }
    }

    /// Returns its id.
    pub const fn id(&self) -> uuid::Uuid {
        match self {
            Self::Meeting(id) => id.as_uuid(),
            Self::Speaker(id) => id.as_uuid(),
            Self::Profile(id) => id.as_uuid(),
        }
    }
}

/// A value that is about a person, as an event has it.
///
/// In JSON it is the plain value, `{"sealed": "…"}`, or `null`. The log has it sealed; it is opened when it is
/// read, or known for destroyed if its subject was forgotten.
#[derive(Clone, PartialEq, Eq)]
pub enum Personal<T> {
    /// What it is.
    Known(T),
    /// Encrypted with its subject's key.
    Sealed(SealedText),
    /// Forgotten: nobody can tell any more what it was.
    Destroyed,
}

/// What sealing made of a value: ciphertext in base64url.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SealedText(String);

impl SealedText {
    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for SealedText {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl<T> Personal<T> {
    /// Returns the value, if it is known.
    pub const fn known(&self) -> Option<&T> {
        match self {
            Self::Known(value) => Some(value),
            Self::Sealed(_) | Self::Destroyed => None,
        }
    }

    /// Says whether this is `value`.
    pub fn is(&self, value: &T) -> bool
    where
        T: PartialEq,
    {
        self.known() == Some(value)
    }
}

impl<T> From<T> for Personal<T> {
    fn from(value: T) -> Self {
        Self::Known(value)
    }
}

impl<T: FromStr> FromStr for Personal<T> {
    type Err = T::Err;
    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.parse().map(Self::Known)
    }
}

// It may end up in a log by way of `{:?}`.
impl<T> fmt::Debug for Personal<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Known(_) => "Known(…)",
            Self::Sealed(_) => "Sealed(…)",
            Self::Destroyed => "Destroyed",
        })
    }
}

/// The key under which JSON has a sealed value.
const SEALED: &str = "sealed";

impl<T: Serialize> Serialize for Personal<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Known(value) => value.serialize(serializer),
            Self::Sealed(text) => {
                let mut map = serializer.serialize_map(Some(1))?;
                map.serialize_entry(SEALED, text)?;
                map.end()
            }
            Self::Destroyed => serializer.serialize_unit(),
        }
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Personal<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PersonalVisitor(PhantomData))
    }
}

/// Reads it in one pass: most of what is read is sealed, and there is much of it.
struct PersonalVisitor<T>(PhantomData<T>);

impl<'de, T: DeserializeOwned> Visitor<'de> for PersonalVisitor<T> {
    type Value = Personal<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, a sealed one, or null")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(Personal::Destroyed)
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Self::Value, E> {
        self.visit_string(text.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, text: String) -> Result<Self::Value, E> {
        T::deserialize(StringDeserializer::new(text)).map(Personal::Known)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, numbers: A) -> Result<Self::Value, A::Error> {
        T::deserialize(SeqAccessDeserializer::new(numbers)).map(Personal::Known)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let Some(key) = fields.next_key::<Cow<'_, str>>()? else {
            return T::deserialize(MapAccessDeserializer::new(fields)).map(Personal::Known);
        };
        if key == SEALED {
            let text = fields.next_value::<SealedText>()?;
            return match fields.next_key::<IgnoredAny>()? {
                None => Ok(Personal::Sealed(text)),
                Some(_) => Err(A::Error::custom("a sealed value is nothing but sealed")),
            };
        }
        // Only of an artifact are facts kept in a map, and only before they were sealed.
        let mut map = Map::from_iter([(key.into_owned(), fields.next_value::<Value>()?)]);
        while let Some((key, value)) = fields.next_entry()? {
            map.insert(key, value);
        }
        T::deserialize(Value::Object(map)).map(Personal::Known).map_err(A::Error::custom)
    }
}

/// For a field that may be absent: `null` is a destroyed value, not an absent one.
pub(crate) fn present<'de, D: Deserializer<'de>, T: DeserializeOwned>(
    deserializer: D,
) -> Result<Option<Personal<T>>, D::Error> {
    Personal::deserialize(deserializer).map(Some)
}

/// A value that can be sealed: as bytes, and back.
pub trait Plain: Sized {
    /// Returns its bytes.
    fn to_bytes(&self) -> Cow<'_, [u8]>;
    /// Returns the value that has these bytes, if there is one.
    fn from_bytes(bytes: &[u8]) -> Option<Self>;
}

macro_rules! plain_text {
    ($($text:ty),*) => {
        $(impl Plain for $text {
            fn to_bytes(&self) -> Cow<'_, [u8]> {
                self.as_str().as_bytes().into()
            }

            fn from_bytes(bytes: &[u8]) -> Option<Self> {
                std::str::from_utf8(bytes).ok()?.to_owned().try_into().ok()
            }
        })*
    };
}
plain_text!(DisplayName, SampleSource, Reason, String);

impl Plain for Meta {
    fn to_bytes(&self) -> Cow<'_, [u8]> {
        self.as_value().to_string().into_bytes().into()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}

/// A third of what the numbers take as text.
impl Plain for Vector {
    fn to_bytes(&self) -> Cow<'_, [u8]> {
        self.as_slice().iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<_>>().into()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, []) = bytes.as_chunks::<4>() else { return None };
        numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>().try_into().ok()
    }
}

/// Comes by each personal field of an event.
pub trait FieldVisitor {
    /// Why it goes no further.
    type Error;

    /// Takes a field. `name` is the same for ever: sealed values are bound to it.
    fn field<T: Plain>(
        &mut self,
        subject: Subject,
        name: &'static str,
        value: &mut Personal<T>,
    ) -> Result<(), Self::Error>;

    /// Says whether the voices of clusters are passed over: they are large, and few need them.
    fn passes_over_clusters(&self) -> bool {
        false
    }
}

/// Leads `visitor` to each personal field of `event`, in order.
pub fn visit<V: FieldVisitor>(event: &mut Event, visitor: &mut V) -> Result<(), V::Error> {
    match event {
        Event::Meeting(id, event) => visit_meeting(*id, event, visitor),
        Event::Profile(id, event) => visit_profile(*id, event, visitor),
    }
}

fn visit_meeting<V: FieldVisitor>(
    id: MeetingId,
    event: &mut MeetingEvent,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let subject = Subject::Meeting(id);
    match event {
        MeetingEvent::MeetingRegistered(_)
        | MeetingEvent::ProcessingStarted { .. }
        | MeetingEvent::ContentFingerprinted { .. }
        | MeetingEvent::LanguageDetected { .. }
        | MeetingEvent::SpeakerIdentified { .. }
        | MeetingEvent::SpeakerNotIdentified { .. }
        | MeetingEvent::CorrectionNotCarried { .. }
        | MeetingEvent::ArtifactsOutdated { .. }
        | MeetingEvent::StageResultsDropped { .. }
        // Its reason outlives the key, and names nobody.
        | MeetingEvent::MeetingErased { .. } => Ok(()),
        MeetingEvent::SpeakersDiarized { attempt, clusters } => {
            if visitor.passes_over_clusters() {
                return Ok(());
            }
            for cluster in clusters.clusters_mut() {
                if let Some(voice) = &mut cluster.voice {
                    let speaker = id.speaker(*attempt, &cluster.cluster_id);
                    visitor.field(Subject::Speaker(speaker), "vector", &mut voice.vector)?;
                }
            }
            Ok(())
        }
        MeetingEvent::SpeakerReassigned { reason, .. }
        | MeetingEvent::CorrectionDismissed { reason, .. }
        | MeetingEvent::MeetingFailed { reason, .. } => visitor.field(subject, "reason", reason),
        MeetingEvent::ArtifactStored { artifact } => visit_artifact(subject, artifact, visitor),
        MeetingEvent::StageResultCached { value, .. } => visitor.field(subject, "value", value),
        MeetingEvent::MeetingCompleted(completed) => {
            completed.artifacts.iter_mut().try_for_each(|artifact| visit_artifact(subject, artifact, visitor))
        }
    }
}

/// One event has several: the type tells one's facts from another's.
fn visit_artifact<V: FieldVisitor>(
    subject: Subject,
    artifact: &mut Artifact,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let name = match artifact.artifact_type {
        crate::artifact::ArtifactType::TranscriptMd => "meta of transcript.md",
        crate::artifact::ArtifactType::TranscriptVtt => "meta of transcript.vtt",
        crate::artifact::ArtifactType::TranscriptSrt => "meta of transcript.srt",
        crate::artifact::ArtifactType::SummaryJson => "meta of summary.json",
    };
    artifact.meta.as_mut().map_or(Ok(()), |meta| visitor.field(subject, name, meta))
}

fn visit_profile<V: FieldVisitor>(
    id: ProfileId,
    event: &mut ProfileEvent,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let subject = Subject::Profile(id);
    match event {
        ProfileEvent::ProfileCreated { display_name, .. } | ProfileEvent::ProfileRenamed { display_name } => {
            visitor.field(subject, "display_name", display_name)
        }
        ProfileEvent::VoiceEnrolled { voice, source, .. } => {
            visitor.field(subject, "vector", &mut voice.vector)?;
            source.as_mut().map_or(Ok(()), |source| visitor.field(subject, "source", source))
        }
        ProfileEvent::VoiceRemoved { .. } | ProfileEvent::ProfileErased { .. } => Ok(()),
    }
}

/// Returns the people to whom `event` links speakers: none of them must have been forgotten.
pub fn linked(event: &Event) -> Vec<ProfileId> {
    match event {
        Event::Meeting(_, MeetingEvent::SpeakerIdentified { profile_id, .. }) => vec![*profile_id],
        Event::Meeting(_, MeetingEvent::SpeakerReassigned { to, .. }) => to.iter().copied().collect(),
        // It repeats what was linked before, and tells it to whoever acts on it.
        Event::Meeting(_, MeetingEvent::MeetingCompleted(completed)) => {
            let links = completed.speakers.iter().filter_map(|speaker| speaker.link);
            links.map(|link| link.profile_id).collect()
        }
        Event::Meeting(
            _,
            MeetingEvent::MeetingRegistered(_)
            | MeetingEvent::ProcessingStarted { .. }
            | MeetingEvent::ContentFingerprinted { .. }
            | MeetingEvent::LanguageDetected { .. }
            | MeetingEvent::SpeakersDiarized { .. }
            | MeetingEvent::SpeakerNotIdentified { .. }
            | MeetingEvent::CorrectionNotCarried { .. }
            | MeetingEvent::CorrectionDismissed { .. }
            | MeetingEvent::ArtifactStored { .. }
            | MeetingEvent::ArtifactsOutdated { .. }
            | MeetingEvent::StageResultCached { .. }
            | MeetingEvent::StageResultsDropped { .. }
            | MeetingEvent::MeetingFailed { .. }
            | MeetingEvent::MeetingErased { .. },
        )
        | Event::Profile(..) => vec![],
    }
}

/// Takes from `event` everything personal that is known: what its subjects' destruction leaves.
pub fn destroy(event: &mut Event) {
    struct Destroy;
    impl FieldVisitor for Destroy {
        type Error = Infallible;
        fn field<T: Plain>(
            &mut self,
            _: Subject,
            _: &'static str,
            value: &mut Personal<T>,
        ) -> Result<(), Infallible> {
            *value = Personal::Destroyed;
            Ok(())
        }
    }
    let Ok(()) = visit(event, &mut Destroy);
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_kind_and_an_id_are_the_subject_that_they_were_made_of() {
        let id = Uuid::from_u128(7);
        for subject in [Subject::Meeting(id.into()), Subject::Speaker(id.into()), Subject::Profile(id.into())]
        {
            assert_eq!(Subject::from_kind(subject.kind(), subject.id()), Some(subject));
        }
        assert_eq!(Subject::from_kind("recording", id), None);
    }
}
