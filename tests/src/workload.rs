//! Real-shaped events: meetings through their life, with as many speakers, segments, artifacts and cached
//! results as the meetings of the AMI corpus have, interleaved as a pipeline's workers interleave them.

use std::collections::{BTreeMap, VecDeque};

use chrono::TimeDelta;
use domain::file::{DurationSeconds, File, SizeBytes};
use domain::ids::{FileId, LogSecret, MeetingId};
use domain::meeting::{Meeting, MeetingCommand, MeetingEvent, RegisterMeeting, decide, evolve};
use domain::speaker::{Cluster, Segment};
use domain::voice::{KeptVoice, Voice};
use domain::{Event, Timestamp};
use event_store::append::{Append, Appender, NewEvent, Outcome};
use uuid::Uuid;

use domain::artifact::ArtifactType;

/// A source of appends, each the outcome of one command of one meeting.
pub struct Workload {
    random: fastrand::Rng,
    secret: LogSecret,
    at: Timestamp,
    /// Meetings under way, each with the commands to come.
    under_way: Vec<UnderWay>,
    at_once: usize,
    voices: bool,
}

struct UnderWay {
    id: MeetingId,
    state: Meeting,
    version: i64,
    commands: VecDeque<MeetingCommand>,
}

impl Workload {
    /// Returns a workload that has `at_once` meetings under way; the same seed gives the same one.
    pub fn new(seed: u64, at_once: usize) -> Self {
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&seed.to_le_bytes());
        Self {
            random: fastrand::Rng::with_seed(seed),
            secret: LogSecret::new(secret),
            at: "2026-01-01T09:00:00Z".parse().unwrap(),
            under_way: vec![],
            at_once,
            voices: false,
        }
    }

    /// Gives each cluster a voice.
    pub fn with_voices(self) -> Self {
        Self { voices: true, ..self }
    }

    /// Returns the next append.
    pub fn next_append(&mut self) -> Append {
        while self.under_way.len() < self.at_once {
            let new = self.new_meeting();
            self.under_way.push(new);
        }
        self.at += TimeDelta::milliseconds(self.random.i64(1..50));
        let chosen = self.random.usize(..self.under_way.len());
        let meeting = &mut self.under_way[chosen];
        let command = meeting.commands.pop_front().unwrap();
        let events = decide(&meeting.state, &command).unwrap();
        let command_id = Uuid::now_v7();
        let append = Append {
            command_id,
            request_hmac: vec![],
            aggregate_type: "meeting",
            aggregate_id: meeting.id.to_string(),
            expected_version: meeting.version,
            metadata: metadata(command_id),
            events: events.iter().map(|event| new_event(meeting.id, event)).collect(),
        };
        for event in &events {
            evolve(&mut meeting.state, event);
        }
        meeting.version += events.len() as i64;
        if meeting.commands.is_empty() {
            self.under_way.swap_remove(chosen);
        }
        append
    }

    /// Returns an append that registers a new meeting, and nothing more.
    pub fn next_registration(&mut self) -> Append {
        let (id, _, register) = self.new_registration();
        let event = decide(&Meeting::default(), &register).unwrap().remove(0);
        let command_id = Uuid::now_v7();
        Append {
            command_id,
            request_hmac: vec![],
            aggregate_type: "meeting",
            aggregate_id: id.to_string(),
            expected_version: 0,
            metadata: metadata(command_id),
            events: vec![new_event(id, &event)],
        }
    }

    fn new_registration(&mut self) -> (MeetingId, i64, MeetingCommand) {
        let sha256 = hex(&mut self.random, 64).parse().unwrap();
        let id = MeetingId::derive(&self.secret, None, &sha256);
        let duration = self.random.i64(600..3600);
        let file = File {
            id: FileId::derive(&self.secret, None, &sha256),
            sha256,
            mime: Some("audio/flac".parse().unwrap()),
            size: Some(SizeBytes::try_from(duration * 38_000).unwrap()),
            duration: Some(DurationSeconds::try_from(duration).unwrap()),
            owner: None,
        };
        let register = RegisterMeeting { meeting_id: id, file, at: self.at };
        (id, duration, MeetingCommand::Register(register))
    }

    fn new_meeting(&mut self) -> UnderWay {
        let at = self.at;
        let (id, duration, register) = self.new_registration();
        let artifact = |artifact_type: ArtifactType| MeetingCommand::StoreArtifact {
            artifact_type,
            s3_key: format!("meetings/{id}/{}", artifact_type.as_str()).parse().unwrap(),
            meta: Some(
                serde_json::json!({"words": duration * 2, "engine": "transcriber-3"}).try_into().unwrap(),
            ),
        };
        let fingerprint = format!("pcm16k:{}", hex(&mut self.random, 64));
        let clusters = self.clusters(duration);
        let worker = format!("gpu-{}", self.random.u8(..8)).parse().unwrap();
        let commands = VecDeque::from([
            register,
            MeetingCommand::Start { worker, at },
            MeetingCommand::RecordFingerprint { content_fp: fingerprint.parse().unwrap() },
            MeetingCommand::RecordLanguage { language: "en".parse().unwrap() },
            MeetingCommand::CacheStageResult {
                stage: "transcribe".parse().unwrap(),
                value: serde_json::json!({"engine": "transcriber-3", "s3_key": format!("cache/{fingerprint}.json")})
                    .to_string(),
                expires_at: Some(at + TimeDelta::days(3650)),
                at,
            },
            MeetingCommand::RecordSpeakers { clusters: clusters.try_into().unwrap(), decisions: vec![] },
            artifact(ArtifactType::TranscriptMd),
            artifact(ArtifactType::TranscriptVtt),
            artifact(ArtifactType::SummaryJson),
            MeetingCommand::Complete { at: at + TimeDelta::seconds(60) },
        ]);
        UnderWay { id, state: Meeting::default(), version: 0, commands }
    }

    /// AMI: four speakers, some 390 segments in a meeting of half an hour.
    fn clusters(&mut self, duration: i64) -> Vec<Cluster> {
        let speakers = self.random.usize(3..6);
        let mut clusters = (0..speakers)
            .map(|n| Cluster {
                cluster_id: format!("spk{n:02}").parse().unwrap(),
                segments: vec![],
                speech_ms: None,
                voice: self.voices.then(|| voice(&mut self.random)),
            })
            .collect::<Vec<_>>();
        let end = u32::try_from(duration * 1000).unwrap();
        let mut start_ms = 0;
        while start_ms < end {
            let duration_ms = self.random.u32(200..9000);
            let speaker = self.random.usize(..speakers);
            clusters[speaker].segments.push(Segment { start_ms, duration_ms });
            start_ms += duration_ms + self.random.u32(0..500);
        }
        clusters
    }
}

fn voice(random: &mut fastrand::Rng) -> KeptVoice {
    let numbers = (0..256).map(|_| random.f32() - 0.5).collect::<Vec<_>>();
    Voice { model: "resemblyzer-0.1.4".parse().unwrap(), vector: numbers.try_into().unwrap() }.into()
}

fn new_event(id: MeetingId, event: &MeetingEvent) -> NewEvent {
    Event::Meeting(id, event.clone()).into()
}

fn hex(random: &mut fastrand::Rng, digits: usize) -> String {
    (0..digits).map(|_| random.digit(16)).collect()
}

fn metadata(command_id: Uuid) -> String {
    serde_json::json!({
        "actor": "pipeline-1",
        "actor_kind": "service",
        "causation_id": command_id,
        "command_id": command_id,
        "correlation_id": command_id,
    })
    .to_string()
}

/// Appends all of these, many at once, but of each meeting one after the other: of two at once the second may be
/// overtaken by a third, when it has to be sealed again.
pub async fn append_all(appender: &Appender, appends: Vec<Append>) {
    let mut by_aggregate = BTreeMap::<String, Vec<Append>>::new();
    for append in appends {
        by_aggregate.entry(append.aggregate_id.clone()).or_default().push(append);
    }
    let in_order = by_aggregate.into_values().map(async |appends| {
        for append in appends {
            let outcome = appender.append(append).await.expect("an append succeeds");
            assert!(matches!(outcome, Outcome::Appended(_)), "{outcome:?}");
        }
    });
    futures::future::join_all(in_order).await;
}
