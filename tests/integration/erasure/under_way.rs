//! What a pipeline or a reviewer had under way when somebody was forgotten: it ends without that person, or is
//! refused; the link never comes back.

use api::book::Book;
use api::clock::now;
use domain::ids::{MeetingId, ProfileId};
use domain::meeting::{Meeting, MeetingCommand};
use domain::profile::ProfileCommand;
use domain::speaker::{Cluster, Decision, Evidence};
use domain::voice::{Vector, Voice};
use event_store::command_bus::{CommandError, Context};
use projections::erasure;
use serde_json::Value;
use tests::TestDatabase;
use tests::bench::register;
use uuid::Uuid;

/// Diarizes into one speaker, whom a machine knew or not.
fn speakers(label: &str, known: Option<ProfileId>) -> MeetingCommand {
    let evidence = Evidence {
        model: "m".parse().unwrap(),
        policy_version: "1".parse().unwrap(),
        margin: None,
        candidates: vec![],
    };
    let vector = Vector::try_from(vec![0.5, 0.25]).unwrap();
    let voice = Voice { model: "m".parse().unwrap(), vector };
    let cluster = Cluster {
        cluster_id: label.parse().unwrap(),
        segments: vec![(0, 40_000).into()],
        speech_ms: None,
        voice: Some(voice.into()),
    };
    let decision = |profile_id| {
        let confidence = 0.9.try_into().unwrap();
        (label.parse().unwrap(), Decision::Identified { profile_id, confidence, evidence: evidence.clone() })
    };
    MeetingCommand::RecordSpeakers {
        clusters: vec![cluster].try_into().unwrap(),
        decisions: known.map(decision).into_iter().collect(),
    }
}

struct Told {
    book: Book,
    database: TestDatabase,
    ada: ProfileId,
}

impl Told {
    async fn begun() -> Self {
        let database = TestDatabase::create().await;
        let book = database.open().await;
        let ada = ProfileId::from(Uuid::from_u128(0xada));
        let create =
            ProfileCommand::Create { profile_id: ada, display_name: "Ada".parse().unwrap(), at: now() };
        book.bus.profile(ada, create, &Context::default()).await.unwrap();
        Self { book, database, ada }
    }

    async fn meeting(&self, n: u128) -> MeetingId {
        let id = register(&self.book, n).await.aggregate_id.parse().unwrap();
        self.command(id, MeetingCommand::Start { worker: "w".parse().unwrap(), at: now() }).await;
        id
    }

    async fn command(&self, id: MeetingId, command: MeetingCommand) -> Vec<String> {
        self.book.bus.meeting(id, command, &Context::default()).await.unwrap().events
    }

    /// Forgets Ada; nobody carries it out yet.
    async fn forget(&self) {
        let erase = ProfileCommand::Erase { at: now(), lost: false };
        self.book.bus.profile(self.ada, erase, &Context::default()).await.unwrap();
    }

    /// Returns the position of the latest event that names Ada as somebody who speaks.
    async fn last_link(&self) -> Option<i64> {
        sqlx::query_scalar(
            "SELECT max(position) FROM log.events
              WHERE event_type IN ('SpeakerIdentified', 'MeetingCompleted', 'SpeakerReassigned')
                AND (payload #>> '{SpeakerReassigned,to}' = $1
                     OR event_type <> 'SpeakerReassigned' AND payload::text LIKE '%' || $1 || '%')",
        )
        .bind(self.ada.to_string())
        .fetch_one(self.book.pool())
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn a_decision_that_names_somebody_who_was_forgotten_is_refused() {
    let told = Told::begun().await;
    let meeting = told.meeting(1).await;
    told.forget().await;
    for command in [speakers("a", Some(told.ada)), speakers("b", Some(told.ada))] {
        let refused = told.book.bus.meeting(meeting, command, &Context::default()).await;
        assert!(matches!(refused, Err(CommandError::Forgotten)), "{refused:?}");
    }
    assert_eq!(told.command(meeting, speakers("a", None)).await, ["SpeakersDiarized"]);
    let reassign = MeetingCommand::ReassignSpeaker {
        speaker_id: meeting.speaker(1, &"a".parse().unwrap()),
        to: Some(told.ada),
        expected: None,
        reason: "I heard her".parse().unwrap(),
    };
    let refused = told.book.bus.meeting(meeting, reassign, &Context::default()).await;
    assert!(matches!(refused, Err(CommandError::Forgotten)), "{refused:?}");
    assert_eq!(told.last_link().await, None);
}

#[tokio::test]
async fn what_would_link_somebody_once_more_is_decided_anew_without_them() {
    let told = Told::begun().await;
    // One is about to complete, in another one a correction is about to be carried over.
    let (completing, reprocessed) = (told.meeting(1).await, told.meeting(2).await);
    told.command(completing, speakers("a", Some(told.ada))).await;
    told.command(reprocessed, speakers("a", None)).await;
    let reassign = MeetingCommand::ReassignSpeaker {
        speaker_id: reprocessed.speaker(1, &"a".parse().unwrap()),
        to: Some(told.ada),
        expected: None,
        reason: "I heard her".parse().unwrap(),
    };
    told.command(reprocessed, reassign).await;
    told.command(reprocessed, MeetingCommand::Complete { at: now() }).await;
    told.command(reprocessed, MeetingCommand::Reprocess { worker: "w".parse().unwrap(), at: now() }).await;
    let before = told.last_link().await;
    // This process remembers how it was, another one forgets her.
    let forgetting = told.database.open().await;
    let erase = ProfileCommand::Erase { at: now(), lost: false };
    let erased = forgetting.bus.profile(told.ada, erase, &Context::default()).await.unwrap();
    assert!(before < Some(erased.position));
    forgetting.close().await;

    assert_eq!(told.command(completing, MeetingCommand::Complete { at: now() }).await, ["MeetingCompleted"]);
    assert_eq!(told.command(reprocessed, speakers("x", None)).await, ["SpeakersDiarized"]);
    for meeting in [completing, reprocessed] {
        let Meeting::Active(record) = told.book.bus.load_meeting(meeting).await.unwrap().0 else { panic!() };
        assert_eq!(record.people().len(), 0, "{meeting}");
    }
    assert_eq!(told.last_link().await, before, "nothing links her from then on");
    told.book.close().await;
}

#[tokio::test]
async fn a_voice_that_would_be_sealed_for_a_speaker_whose_key_is_gone_is_not_kept() {
    let told = Told::begun().await;
    let meeting = told.meeting(1).await;
    told.command(meeting, speakers("a", Some(told.ada))).await;
    told.forget().await;
    told.book.start_projector();
    assert!(erasure::carry_out(&told.book.store, &told.book.bus).await.unwrap());
    // The same attempt is diarized anew, with the same label.
    let mut anew = speakers("a", None);
    if let MeetingCommand::RecordSpeakers { clusters, .. } = &mut anew {
        let mut changed = Vec::from(clusters.clone());
        changed[0].segments = vec![(0, 30_000).into()];
        *clusters = changed.try_into().unwrap();
    }
    assert_eq!(told.command(meeting, anew).await, ["SpeakersDiarized"]);
    let voice: Value = sqlx::query_scalar(
        "SELECT payload #> '{SpeakersDiarized,clusters,0,voice,vector}' FROM log.events
          WHERE event_type = 'SpeakersDiarized' ORDER BY position DESC LIMIT 1",
    )
    .fetch_one(told.book.pool())
    .await
    .unwrap();
    assert_eq!(voice, Value::Null);
    told.book.close().await;
}
