//! On real voices: who is named in sixty meetings, and who is not.

use std::collections::BTreeMap;
use std::fs::{self, read_to_string};
use std::path::Path;

use domain::ids::ProfileId;
use domain::speaker::Decision;
use domain::speaker_matching::{ClusterVoice, Policy, VoiceIndex, match_clusters};
use domain::voice::Voice;
use serde::Deserialize;
use tests::TestDatabase;
use tests::real_voices::{Cast, ENROLLED, Score, audit};
use tests::server::Server;
use uuid::Uuid;

/// Who lends which voice to a speaker of the meetings.
#[derive(Deserialize)]
struct Speaker {
    voice: String,
    enrolled: bool,
}

#[derive(Deserialize)]
struct Utterance {
    voice: String,
    embedding: Vec<f32>,
}

#[test]
fn enrolled_speakers_are_named_right_and_strangers_are_not_named() {
    let Some(data) = tests::real_data("enrolled_speakers_are_named_right_and_strangers_are_not_named") else {
        return;
    };
    let voices = voices(&data);
    let speakers: BTreeMap<String, Speaker> =
        serde_json::from_str(&read_to_string(data.join("voices/ami_speaker_voices.json")).unwrap()).unwrap();
    let profiles: BTreeMap<&str, ProfileId> =
        speakers.keys().map(String::as_str).zip((1..).map(|n| Uuid::from_u128(n).into())).collect();
    let mut index = VoiceIndex::default();
    for (id, speaker) in speakers.iter().filter(|(_, speaker)| speaker.enrolled) {
        for (n, voice) in voices[&speaker.voice].iter().take(3).enumerate() {
            index.add(profiles[id.as_str()], Uuid::from_u128(n as u128).into(), voice).unwrap();
        }
    }

    let (mut enrolled, mut right, mut wrong, mut strangers, mut strangers_named) = (0, 0, 0, 0, 0);
    let mut meetings = 0;
    for file in fs::read_dir(data.join("ami/rttm")).unwrap() {
        meetings += 1;
        let speech: Vec<_> = speech(&file.unwrap().path())
            .into_iter()
            .filter(|(label, _)| speakers.contains_key(label))
            .map(|(label, speech_ms)| (label.parse().unwrap(), speech_ms))
            .collect();
        let speaker = |label: &domain::speaker::ClusterId| &speakers[label.as_str()];
        let clusters: Vec<_> = speech
            .iter()
            .map(|(cluster_id, speech_ms)| {
                let voice = &voices[&speaker(cluster_id).voice][3];
                ClusterVoice { cluster_id, voice, speech_ms: *speech_ms }
            })
            .collect();
        let decisions = match_clusters(&index, &Policy::default(), &clusters);
        assert_eq!(decisions.len(), clusters.len());
        for (label, decision) in decisions {
            let named = match decision {
                Decision::Identified { profile_id, .. } => Some(profile_id),
                Decision::NotIdentified { .. } => None,
            };
            if speaker(&label).enrolled {
                enrolled += 1;
                right += u32::from(named == Some(profiles[label.as_str()]));
                wrong += u32::from(named.is_some_and(|id| id != profiles[label.as_str()]));
            } else {
                strangers += 1;
                strangers_named += u32::from(named.is_some());
            }
        }
    }
    println!("{right} of {enrolled} enrolled speakers named right, {wrong} wrong");
    println!("{strangers_named} of {strangers} strangers named, in {meetings} meetings");
    assert_eq!((meetings, enrolled, strangers), (60, 120, 40));
    assert_eq!((wrong, strangers_named), (0, 0));
    assert!(f64::from(right) >= 0.97 * f64::from(enrolled), "{right} of {enrolled}");
}

#[tokio::test]
async fn over_http_enrolled_speakers_are_named_right_and_strangers_are_not_named() {
    let Some(data) =
        tests::real_data("over_http_enrolled_speakers_are_named_right_and_strangers_are_not_named")
    else {
        return;
    };
    let database = TestDatabase::create().await;
    let server = Server::start(&database).await;
    let mut cast = Cast::read(&data);
    cast.enrol(&server).await;
    assert_eq!((cast.profiles.len(), cast.meetings()), (30, 60));

    let heard = cast.hold_meetings(&server, ENROLLED).await;
    let fourth = Score::of(&heard);
    println!("fourth utterance: {fourth}");
    assert_eq!((fourth.enrolled, fourth.strangers), (120, 40));
    assert_eq!((fourth.wrong, fourth.strangers_named), (0, 0));
    assert!(100 * fourth.right >= 97 * fourth.enrolled, "{fourth}");

    // Corrected, undone and exported, the audit is what was said.
    let said = cast.correct_some(&server, &heard).await;
    assert_eq!(said.len(), 60);
    assert_eq!(audit(&server).await, said);

    let mut others = cast.hold_meetings(&server, ENROLLED + 1).await;
    others.extend(cast.hold_meetings(&server, ENROLLED + 2).await);
    let others = Score::of(&others);
    println!("fifth and sixth utterance: {others}");
    assert_eq!((others.enrolled, others.wrong), (240, 0));
    assert!(100 * others.right >= 90 * others.enrolled, "{others}");
    assert!(server.stop().await.success());
}

/// Returns the utterances of each voice, in order of the file.
fn voices(data: &Path) -> BTreeMap<String, Vec<Voice>> {
    let mut voices = BTreeMap::<String, Vec<Voice>>::new();
    for line in read_to_string(data.join("voices/embeddings.jsonl")).unwrap().lines() {
        let Utterance { voice, embedding } = serde_json::from_str(line).unwrap();
        let vector = embedding.try_into().unwrap();
        voices.entry(voice).or_default().push(Voice { model: Policy::default().model().clone(), vector });
    }
    voices
}

/// Returns how long each speaker of a recording speaks, in milliseconds.
fn speech(rttm: &Path) -> BTreeMap<String, u64> {
    let mut speech = BTreeMap::new();
    for line in read_to_string(rttm).unwrap().lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let seconds: f64 = fields[4].parse().unwrap();
        *speech.entry(fields[7].to_owned()).or_default() += (seconds * 1000.0).round() as u64;
    }
    speech
}
