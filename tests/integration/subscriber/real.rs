//! On real input: meetings that are imported while somebody subscribes.

use std::collections::BTreeSet;

use serde_json::Value;
use uuid::Uuid;

use super::{Scene, lines_of};
use crate::cli::run_on;
use crate::read_models::history::{append, completed, registered, started};

#[tokio::test]
async fn sixty_real_meetings_make_sixty_invocations_each_with_its_event_and_its_ids() {
    let Some(data) =
        tests::real_data("sixty_real_meetings_make_sixty_invocations_each_with_its_event_and_its_ids")
    else {
        return;
    };
    let scene = Scene::start().await;
    let invocations = scene.path("invocations");
    // One line each; the event is one line, too.
    let command = format!(
        r#"{{ printf '%s\t%s\t%s\t' "$MINUTEBOOK_POSITION" "$MINUTEBOOK_MEETING_ID" "$MINUTEBOOK_EVENT_ID"
              cat; echo; }} >> '{}'"#,
        invocations.display()
    );
    let subscriber = scene.subscribe_to("meeting.completed", "minutes", &["--exec", &command]);
    subscriber.says("listening").await;
    let files = data.join("ami/rttm").display().to_string();
    let imported = run_on(&scene.database, &["import", "rttm", &files]).await;
    assert_eq!(imported.code, Some(0), "{}", imported.stderr);
    lines_of(&invocations, 60).await;
    // One more after them: whatever was to come twice has come by then.
    let last = Uuid::from_u128(0xa0);
    for given in [registered(last), started(last, 1), completed(last, 1, &[], &[])] {
        append(&scene.book, &given).await;
    }
    let mut lines = lines_of(&invocations, 61).await;
    scene.settled("minutes").await;
    let (_, said) = subscriber.stop().await;
    assert_eq!(said, "listening");
    assert_eq!(lines_of(&invocations, 61).await.len(), 61);
    assert!(lines.pop().unwrap().contains(&last.to_string()));

    let pool = scene.database.pool().await;
    let query = "SELECT position, aggregate_id FROM log.events
                  WHERE event_type = 'MeetingCompleted' AND aggregate_id <> $1 ORDER BY position";
    let in_log: Vec<(i64, String)> =
        sqlx::query_as(query).bind(last.to_string()).fetch_all(&pool).await.unwrap();
    assert_eq!((in_log.len(), lines.len()), (60, 60));
    let epoch = scene.book.store.identity().epoch;
    let mut meetings = BTreeSet::new();
    for (line, (position, meeting)) in lines.iter().zip(&in_log) {
        let fields = line.splitn(4, '\t').collect::<Vec<_>>();
        assert_eq!(fields[..2], [&position.to_string(), meeting], "in order of position, each once");
        assert_eq!(fields[2], format!("{epoch}:{position}"));
        let event: Value = serde_json::from_str(fields[3]).unwrap();
        assert_eq!((&event["id"], &event["position"]), (&fields[2].into(), &(*position).into()));
        assert_eq!(event["type"], "minutebook.meeting.completed.v1");
        assert_eq!(event["data"]["meeting_id"], *meeting);
        let told = event["data"]["speakers"].as_array().unwrap().iter();
        let told = told.map(|speaker| speaker["speaker_id"].as_str().unwrap().parse().unwrap());
        let shown: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM speakers WHERE meeting_id = $1")
            .bind(meeting.parse::<Uuid>().unwrap())
            .fetch_all(&pool)
            .await
            .unwrap();
        assert!(!shown.is_empty());
        assert_eq!(told.collect::<BTreeSet<Uuid>>(), shown.into_iter().collect());
        meetings.insert(meeting);
    }
    assert_eq!(meetings.len(), 60);
    scene.close().await;
}
