//! Who a newly enrolled person may have been in past meetings: speakers who are nobody known, matched anew.
//! Nothing is decided here: what is found is proposed to people.
//!
//! Each meeting is matched as a whole, with the clusters that are somebody already, as it would be today: so a
//! proposal that says `identified` is what a diarization of today would be told.

use std::collections::{BTreeSet, HashMap};

use domain::Event;
use domain::ids::{MeetingId, ProfileId, SpeakerId};
use domain::meeting::MeetingEvent;
use domain::speaker::{Cluster, ClusterId, Decision};
use domain::speaker_matching::{ClusterVoice, Policy, VoiceIndex, match_meeting};
use domain::voice::{Voice, VoiceModels};
use event_store::log::{self, Entry, Recorded};
use projections::queries;
use serde::Serialize;
use tokio::time::Instant;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::app::AppState;
use crate::error::Problem;

/// In how many meetings at once a person is looked for.
const MEETINGS: usize = 50;
/// The bytes of diarizations after which no further one is read at once.
const BYTES: usize = 8 * 1024 * 1024;

/// A past speaker who may be the person.
#[derive(Debug, Serialize, ToSchema)]
pub struct Proposal {
    /// The meeting.
    #[schema(example = "6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11")]
    pub meeting_id: Uuid,
    /// The speaker.
    #[schema(example = "6a1f4d43-6b8e-5b0c-9a3c-1f6f3f0e6c11")]
    pub speaker_id: Uuid,
    /// The label in the diarization.
    #[schema(example = "spk00")]
    pub cluster_id: String,
    /// How long the speaker speaks in all, in milliseconds.
    #[schema(example = 412_500)]
    pub speech_ms: u64,
    /// `identified` if a diarization of today would be told that it is this person, `suggested` if the person would
    /// be one of the candidates.
    #[schema(example = "identified")]
    pub outcome: &'static str,
    /// How much the voices resemble each other: a cosine similarity, 0 to 1.
    #[schema(example = 0.87)]
    pub score: f64,
    /// How far the best other person is behind; null where the person is not the first candidate.
    #[schema(example = 0.21)]
    pub margin: Option<f64>,
    /// The model whose vectors were compared.
    #[schema(example = "resemblyzer-0.1.4")]
    pub model: String,
    /// The version of the policy that was followed.
    #[schema(example = "default-1")]
    pub policy_version: String,
    /// What a person sends, with a reason, to make it so.
    pub reassign: ProposedReassignment,
}

/// The command that makes a proposal so, but for the reason.
#[derive(Debug, Serialize, ToSchema)]
pub struct ProposedReassignment {
    /// Where it is posted.
    #[schema(
        example = "/v1/meetings/6a1f4d43-6b8e-8b0c-9a3c-1f6f3f0e6c11/speakers/6a1f4d43-6b8e-5b0c-9a3c-1f6f3f0e6c11/reassign"
    )]
    pub path: String,
    /// The person.
    #[schema(example = "018f0000-0000-7000-8000-000000000001")]
    pub profile_id: Uuid,
    /// Always null: the command is refused if the speaker has become somebody meanwhile.
    #[schema(value_type = Option<Uuid>)]
    pub expected_profile_id: (),
}

/// What was found, and where to go on.
pub struct Found {
    /// In order of meeting.
    pub proposals: Vec<Proposal>,
    /// The last meeting that was looked at, if others follow.
    pub next: Option<Uuid>,
}

/// Looks for a person in at most `meetings` meetings after `after` that have speakers who are nobody known.
pub async fn of_profile(
    state: &AppState,
    profile: ProfileId,
    after: Option<Uuid>,
    meetings: i64,
) -> Result<Found, Problem> {
    // One more tells whether others follow.
    let unnamed = queries::unnamed_speakers(state.book.pool(), after, meetings + 1).await?;
    let mut speakers = HashMap::<Uuid, BTreeSet<Uuid>>::new();
    let mut ids = Vec::new();
    for speaker in unnamed {
        if ids.last() != Some(&speaker.meeting_id) {
            ids.push(speaker.meeting_id);
        }
        speakers.entry(speaker.meeting_id).or_default().insert(speaker.id);
    }
    let meetings = usize::try_from(meetings).unwrap_or(usize::MAX);
    let more = ids.len() > meetings;
    ids.truncate(meetings);
    let mut proposals = Vec::new();
    let mut rest = ids.iter().map(Uuid::to_string).collect::<Vec<_>>();
    while !rest.is_empty() {
        let at_once = rest.iter().take(MEETINGS).cloned().collect::<Vec<_>>();
        let diarizations = diarizations(state, &at_once, &speakers).await?;
        let done = match &diarizations.up_to {
            Some(up_to) => rest.partition_point(|id| id <= up_to),
            None => at_once.len(),
        };
        rest.drain(..done);
        if diarizations.read.iter().any(|meeting| !meeting.unnamed.is_empty()) {
            let find = move |index: &VoiceIndex, policies: &[Policy]| {
                // Most meetings have nobody who sounds like this person, which costs little to find out.
                let alone = index.of_profile(profile);
                let meetings = diarizations.read.iter().filter(|meeting| meeting.may_have(&alone, policies));
                meetings.flat_map(|meeting| meeting.find(profile, index, policies)).collect::<Vec<_>>()
            };
            let deadline = Instant::now() + state.config.position_timeout;
            proposals.extend(state.matching.compare(state.book.pool(), deadline, find).await?);
        }
    }
    Ok(Found { proposals, next: ids.last().copied().filter(|_| more) })
}

/// Diarizations with voices in them.
struct Diarizations {
    read: Vec<Diarized>,
    /// The last meeting whose diarization was read, if others are left.
    up_to: Option<String>,
}

/// A meeting's latest diarization, as far as it has voices.
struct Diarized {
    id: MeetingId,
    attempt: u32,
    clusters: Vec<SpokenCluster>,
    /// Those of its speakers who are nobody known, and about whom no person has decided.
    unnamed: BTreeSet<SpeakerId>,
}

struct SpokenCluster {
    cluster_id: ClusterId,
    voice: Voice,
    speech_ms: u64,
}

async fn diarizations(
    state: &AppState,
    meetings: &[String],
    speakers: &HashMap<Uuid, BTreeSet<Uuid>>,
) -> Result<Diarizations, Problem> {
    let pool = state.book.pool();
    let (entries, whole) =
        log::latest_of_type(pool, state.book.store.keyring(), "meeting", meetings, "SpeakersDiarized", BYTES)
            .await?;
    let reassigned = log::reassigned_speakers(pool, meetings).await?;
    let reassigned = reassigned.into_iter().collect::<HashMap<_, _>>();
    let up_to = entries.last().filter(|_| !whole).map(|last| last.aggregate().1.into_owned());
    let models = state.config.voice_models();
    let diarized = |entry| {
        let Entry::Event(Recorded { sequence, event: Event::Meeting(id, event), .. }) = entry else {
            return None;
        };
        let MeetingEvent::SpeakersDiarized { attempt, clusters } = event else { return None };
        let unnamed = speakers.get(&id.as_uuid())?.iter();
        // What was decided before the diarization was about other clusters.
        let unnamed = unnamed.filter(|speaker| reassigned.get(speaker).is_none_or(|at| *at < sequence));
        let clusters = Vec::from(clusters).into_iter().filter_map(|cluster| spoken(cluster, &models));
        let unnamed = unnamed.map(|speaker| SpeakerId::from(*speaker)).collect();
        Some(Diarized { id, attempt, clusters: clusters.collect(), unnamed })
    };
    Ok(Diarizations { read: entries.into_iter().filter_map(diarized).collect(), up_to })
}

fn spoken(cluster: Cluster, models: &VoiceModels) -> Option<SpokenCluster> {
    let speech_ms = cluster.total_speech_ms();
    let voice = cluster.voice?.known().filter(|voice| models.check(voice).is_ok())?;
    Some(SpokenCluster { cluster_id: cluster.cluster_id, voice, speech_ms })
}

impl SpokenCluster {
    const fn as_voice(&self) -> ClusterVoice<'_> {
        ClusterVoice { cluster_id: &self.cluster_id, voice: &self.voice, speech_ms: self.speech_ms }
    }
}

impl Diarized {
    /// Says whether somebody who is nobody known sounds like whoever is in `alone`.
    fn may_have(&self, alone: &VoiceIndex, policies: &[Policy]) -> bool {
        let voices = self.clusters.iter().map(SpokenCluster::as_voice).collect::<Vec<_>>();
        match_meeting(alone, policies, &voices).iter().any(|(cluster_id, decision)| {
            let is_candidate = !decision.evidence().candidates.is_empty();
            is_candidate && self.unnamed.contains(&self.id.speaker(self.attempt, cluster_id))
        })
    }

    fn find(&self, profile: ProfileId, index: &VoiceIndex, policies: &[Policy]) -> Vec<Proposal> {
        let voices = self.clusters.iter().map(SpokenCluster::as_voice).collect::<Vec<_>>();
        let decisions = match_meeting(index, policies, &voices);
        decisions
            .iter()
            .filter_map(|(cluster_id, decision)| self.proposal(profile, cluster_id, decision))
            .collect()
    }

    fn proposal(&self, profile: ProfileId, cluster_id: &ClusterId, decision: &Decision) -> Option<Proposal> {
        let speaker = self.id.speaker(self.attempt, cluster_id);
        if !self.unnamed.contains(&speaker) {
            return None;
        }
        let evidence = decision.evidence();
        let place = evidence.candidates.iter().position(|candidate| candidate.profile_id == profile);
        let (outcome, score, margin) = match decision {
            Decision::Identified { profile_id, confidence, .. } if *profile_id == profile => {
                ("identified", confidence.get(), evidence.margin)
            }
            Decision::Identified { .. } => ("suggested", evidence.candidates[place?].score.get(), None),
            Decision::NotIdentified { .. } => {
                let margin = evidence.margin.filter(|_| place == Some(0));
                ("suggested", evidence.candidates[place?].score.get(), margin)
            }
        };
        let cluster = self.clusters.iter().find(|cluster| cluster.cluster_id == *cluster_id)?;
        Some(Proposal {
            meeting_id: self.id.as_uuid(),
            speaker_id: speaker.as_uuid(),
            cluster_id: cluster_id.as_str().to_owned(),
            speech_ms: cluster.speech_ms,
            outcome,
            score,
            margin: margin.map(f64::from),
            model: evidence.model.as_str().to_owned(),
            policy_version: evidence.policy_version.as_str().to_owned(),
            reassign: ProposedReassignment {
                path: format!("/v1/meetings/{}/speakers/{speaker}/reassign", self.id),
                profile_id: profile.as_uuid(),
                expected_profile_id: (),
            },
        })
    }
}
