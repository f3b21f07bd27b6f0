//! Real voices played through the HTTP API: everybody known is enrolled, then meetings are held, and each cluster
//! is named by its voice or is not.

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::server::{Server, answer};

/// The model of the voices.
const MODEL: &str = "resemblyzer-0.1.4";
/// How many utterances of each person are enrolled; those after them are heard in meetings.
pub const ENROLLED: usize = 3;

/// The people of the meetings and their voices.
pub struct Cast {
    people: BTreeMap<String, Person>,
    voices: BTreeMap<String, Vec<Vec<f32>>>,
    /// In order of their names.
    meetings: Vec<BTreeMap<String, Vec<Segment>>>,
    /// The profile of each person who was enrolled, by the name in the meetings.
    pub profiles: BTreeMap<String, Uuid>,
}

/// Start and duration, in milliseconds.
type Segment = (u32, u32);

/// Which voice is lent to whom.
#[derive(Deserialize)]
struct Person {
    voice: String,
    enrolled: bool,
}

#[derive(Deserialize)]
struct Utterance {
    voice: String,
    embedding: Vec<f32>,
}

/// A cluster that has a voice, and what became of it.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The meeting.
    pub meeting: Uuid,
    /// The speaker.
    pub speaker: Uuid,
    /// Who speaks, by the name in the meetings.
    pub who: String,
    /// Who speaks; nobody for a stranger.
    pub profile: Option<Uuid>,
    /// Who was said to speak.
    pub named: Option<Uuid>,
}

/// What a reviewer said of a speaker, as the audit should have it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The meeting.
    pub meeting: Uuid,
    /// The speaker.
    pub speaker: Uuid,
    /// Who it was until then.
    pub from: Option<Uuid>,
    /// Who it is from then on.
    pub to: Option<Uuid>,
    /// Why.
    pub reason: String,
    /// Whose word was replaced: `machine`, `person`, or nobody's.
    pub previous_by: Option<String>,
}

/// How many were named right, and how many were not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Score {
    /// Clusters of people who are enrolled.
    pub enrolled: usize,
    /// Of those, the ones named right.
    pub right: usize,
    /// Of those, the ones named wrong.
    pub wrong: usize,
    /// Clusters of people who are not.
    pub strangers: usize,
    /// Of those, the ones named.
    pub strangers_named: usize,
}

impl Score {
    /// Counts.
    pub fn of(heard: &[Heard]) -> Self {
        let mut score = Self::default();
        for Heard { profile, named, .. } in heard {
            if profile.is_some() {
                score.enrolled += 1;
                score.right += usize::from(named == profile);
                score.wrong += usize::from(named.is_some() && named != profile);
            } else {
                score.strangers += 1;
                score.strangers_named += usize::from(named.is_some());
            }
        }
        score
    }
}

impl std::fmt::Display for Score {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { enrolled, right, wrong, strangers, strangers_named } = self;
        let percent = 100.0 * *right as f64 / (*enrolled).max(1) as f64;
        write!(
            f,
            "{right} of {enrolled} enrolled speakers named right ({percent:.1} %), {wrong} wrong; {strangers_named} of {strangers} strangers named"
        )
    }
}

impl Cast {
    /// Reads who speaks when, and with which voice.
    pub fn read(data: &Path) -> Self {
        let people = read_to_string(data.join("voices/ami_speaker_voices.json")).unwrap();
        let mut voices = BTreeMap::<String, Vec<Vec<f32>>>::new();
        for line in read_to_string(data.join("voices/embeddings.jsonl")).unwrap().lines() {
            let Utterance { voice, embedding } = serde_json::from_str(line).unwrap();
            voices.entry(voice).or_default().push(embedding);
        }
        let files = read_dir(data.join("ami/rttm")).unwrap().map(|file| file.unwrap().path());
        let mut files = files.collect::<Vec<_>>();
        files.sort();
        let meetings = files.iter().map(|file| segments(file)).collect();
        Self { people: serde_json::from_str(&people).unwrap(), voices, meetings, profiles: BTreeMap::new() }
    }

    /// Returns how many meetings there are.
    pub fn meetings(&self) -> usize {
        self.meetings.len()
    }

    /// Enters everybody who is known, each with the first utterances.
    pub async fn enrol(&mut self, server: &Server) {
        for (who, person) in self.people.iter().filter(|(_, person)| person.enrolled) {
            let created = accepted(server, "/v1/profiles", &json!({"display_name": who})).await;
            let id = created["id"].as_str().unwrap().parse().unwrap();
            for vector in &self.voices[&person.voice][..ENROLLED] {
                let sample = json!({"model": MODEL, "vector": vector});
                accepted(server, &format!("/v1/profiles/{id}/voice"), &sample).await;
            }
            self.profiles.insert(who.clone(), id);
        }
    }

    /// Holds each meeting, in which everybody who has a voice is heard with the `n`th utterance, counted from 0;
    /// returns who was named.
    pub async fn hold_meetings(&self, server: &Server, n: usize) -> Vec<Heard> {
        let mut heard = vec![];
        for (number, speakers) in self.meetings.iter().enumerate() {
            // Each utterance is another recording.
            let sha256 = format!("{:064x}", n * 1_000_000 + number + 1);
            let registered = accepted(server, "/v1/meetings", &json!({"sha256": sha256})).await;
            let id: Uuid = registered["id"].as_str().unwrap().parse().unwrap();
            let meeting = format!("/v1/meetings/{id}");
            accepted(server, &format!("{meeting}/start"), &json!({"worker": "player"})).await;
            let clusters = speakers.iter().map(|(who, segments)| self.cluster(who, segments, n));
            let body = json!({"clusters": clusters.collect::<Vec<_>>()});
            accepted(server, &format!("{meeting}/speakers"), &body).await;
            accepted(server, &format!("{meeting}/complete"), &json!({})).await;
            let (status, shown) = answer(server.client.get(server.at(&format!("{meeting}/speakers")))).await;
            assert_eq!(status, 200, "{shown}");
            for speaker in shown["speakers"].as_array().unwrap() {
                let who = speaker["cluster_id"].as_str().unwrap();
                if self.people.contains_key(who) {
                    heard.push(Heard {
                        meeting: id,
                        speaker: speaker["id"].as_str().unwrap().parse().unwrap(),
                        who: who.to_owned(),
                        profile: self.profiles.get(who).copied(),
                        named: speaker["profile"]["id"].as_str().map(|id| id.parse().unwrap()),
                    });
                }
            }
        }
        heard
    }

    /// Corrects every fourth speaker as a reviewer does, and undoes every second correction; returns what was
    /// said, in order.
    pub async fn correct_some(&self, server: &Server, heard: &[Heard]) -> Vec<Said> {
        let known = self.profiles.values().copied().collect::<Vec<_>>();
        let mut said = vec![];
        for (n, heard) in heard.iter().step_by(4).enumerate() {
            let another = known.iter().copied().find(|id| Some(*id) != heard.named);
            // Whoever was named is nobody known, or somebody else.
            let to = if heard.named.is_some() && n % 3 == 0 { None } else { another };
            let first = Said {
                meeting: heard.meeting,
                speaker: heard.speaker,
                from: heard.named,
                to,
                reason: format!("heard, and it is another voice ({n})"),
                previous_by: heard.named.map(|_| "machine".to_owned()),
            };
            let body = json!({"profile_id": to, "expected_profile_id": heard.named, "reason": first.reason});
            say(server, heard, "reassign", &body).await;
            said.push(first);
            if n % 2 == 0 {
                let reason = format!("heard once more, and it is not ({n})");
                say(server, heard, "undo", &json!({"reason": reason})).await;
                said.push(Said {
                    meeting: heard.meeting,
                    speaker: heard.speaker,
                    from: to,
                    to: heard.named,
                    reason,
                    previous_by: Some("person".to_owned()),
                });
            }
        }
        said
    }

    fn cluster(&self, who: &str, segments: &[Segment], n: usize) -> Value {
        let segments = segments
            .iter()
            .map(|(start_ms, duration_ms)| json!({"start_ms": start_ms, "duration_ms": duration_ms}))
            .collect::<Vec<_>>();
        let mut cluster = json!({"cluster_id": who, "segments": segments});
        if let Some(person) = self.people.get(who) {
            cluster["voice"] = json!({"model": MODEL, "vector": self.voices[&person.voice][n]});
        }
        cluster
    }
}

/// Returns what the audit has of the reviewer as CSV, in the order in which it was said.
pub async fn audit(server: &Server) -> Vec<Said> {
    let url = server.at("/v1/audit/speaker-reassignments?format=csv&actor=reviewer-1");
    let answered = server.client.get(url).header("minutebook-min-position", head(server).await).send();
    let text = answered.await.unwrap().error_for_status().unwrap().text().await.unwrap();
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let mut said = reader.deserialize::<Row>().map(|row| row.unwrap().into()).collect::<Vec<Said>>();
    // The newest comes first.
    said.reverse();
    said
}

/// A row of the audit's CSV.
#[derive(Deserialize)]
struct Row {
    meeting_id: Uuid,
    speaker_id: Uuid,
    from_profile_id: Option<Uuid>,
    to_profile_id: Option<Uuid>,
    reason: String,
    previous_by: Option<String>,
}

impl From<Row> for Said {
    fn from(row: Row) -> Self {
        Self {
            meeting: row.meeting_id,
            speaker: row.speaker_id,
            from: row.from_profile_id,
            to: row.to_profile_id,
            reason: row.reason,
            previous_by: row.previous_by,
        }
    }
}

async fn head(server: &Server) -> i64 {
    let (status, shown) = server.get("/readyz").await;
    assert_eq!(status, 200, "{shown}");
    shown["log_head"].as_i64().unwrap()
}

async fn say(server: &Server, heard: &Heard, what: &str, body: &Value) {
    let path = format!("/v1/meetings/{}/speakers/{}/{what}", heard.meeting, heard.speaker);
    let (status, answered) = server.post_as("person:reviewer-1", &path, body).await;
    assert_eq!(status, 200, "{answered}");
}

/// Returns when each speaker of a recording speaks.
fn segments(rttm: &Path) -> BTreeMap<String, Vec<Segment>> {
    let mut speakers = BTreeMap::<String, Vec<Segment>>::new();
    for line in read_to_string(rttm).unwrap().lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let ms = |field: &str| (field.parse::<f64>().unwrap() * 1000.0).round() as u32;
        speakers.entry(fields[7].to_owned()).or_default().push((ms(fields[3]), ms(fields[4])));
    }
    speakers
}

async fn accepted(server: &Server, path: &str, body: &Value) -> Value {
    let (status, answered) = server.post(path, body).await;
    assert!(matches!(status, 200 | 201), "{status} {answered}");
    answered
}
