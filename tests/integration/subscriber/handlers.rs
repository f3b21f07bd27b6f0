//! The program that is run for each event: again when it fails, and not for ever.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use serde_json::Value;

use super::{Scene, lines_of};

#[tokio::test]
async fn a_command_that_fails_twice_is_run_again_after_pauses_and_order_is_kept() {
    let scene = Scene::start().await;
    let (tried, done) = (scene.path("tried"), scene.path("done"));
    std::fs::create_dir(&tried).unwrap();
    // A file for each try: <position>.<n>.
    let command = format!(
        r#"cd '{}'; n=$(ls | grep -c "^$MINUTEBOOK_POSITION[.]"); : > "$MINUTEBOOK_POSITION.$n"
           if [ "$MINUTEBOOK_POSITION.$n" = 2.0 ] || [ "$MINUTEBOOK_POSITION.$n" = 2.1 ]; then exit 7; fi
           echo "$MINUTEBOOK_POSITION" >> '{}'"#,
        tried.display(),
        done.display()
    );
    let subscriber = scene.subscribe("minutes", &["--exec", &command]);
    for n in 1..=4 {
        scene.enter(n).await;
    }
    assert_eq!(lines_of(&done, 4).await, ["1", "2", "3", "4"]);
    scene.settled("minutes").await;
    let mut tries = Vec::new();
    for entry in std::fs::read_dir(&tried).unwrap() {
        let entry = entry.unwrap();
        let at = entry.metadata().unwrap().modified().unwrap();
        tries.push((at, entry.file_name().into_string().unwrap()));
    }
    tries.sort_by(|(_, one), (_, other)| one.cmp(other));
    assert!(tries.iter().map(|(_, name)| name.as_str()).eq(["1.0", "2.0", "2.1", "2.2", "3.0", "4.0"]));
    assert!(tries.is_sorted(), "no later event comes between: {tries:?}");

    for (n, least) in [(1, 0.25), (2, 0.5)] {
        let failed = subscriber.says(&format!("event 2 failed at try {n}, again in ")).await;
        assert!(failed.ends_with("exit status: 7"), "{failed}");
        let (_, told) = failed.split_once("again in ").unwrap();
        let told: f64 = told.split(' ').next().unwrap().parse().unwrap();
        // It is told to a tenth of a second.
        assert!(told >= least - 0.05 && told <= 2.0 * least + 0.05, "{failed}");
        let pause = tries[n + 1].0.duration_since(tries[n].0).unwrap();
        assert!(pause >= Duration::from_secs_f64(least - 0.05), "{pause:?} before try {}", n + 1);
    }
    let (_, said) = subscriber.stop().await;
    assert_eq!(said.lines().count(), 3, "{said}");
    scene.close().await;
}

#[tokio::test]
async fn an_event_that_fails_too_often_is_set_aside_and_told_and_later_ones_go_on() {
    let scene = Scene::start().await;
    let (tried, done) = (scene.path("tried"), scene.path("done"));
    let command = format!(
        r#"echo "$MINUTEBOOK_POSITION" >> '{}'; [ "$MINUTEBOOK_POSITION" != 2 ] || exit 1
           echo "$MINUTEBOOK_POSITION" >> '{}'"#,
        tried.display(),
        done.display()
    );
    let subscriber = scene.subscribe("minutes", &["--tries", "2", "--exec", &command]);
    for n in 1..=3 {
        scene.enter(n).await;
    }
    assert_eq!(lines_of(&done, 2).await, ["1", "3"]);
    assert_eq!(lines_of(&tried, 4).await, ["1", "2", "2", "3"]);
    let told = subscriber.says("event 2 was set aside").await;
    let place = scene.path("minutes/set-aside/2.json");
    assert!(told.contains("exit status: 1") && told.contains(&place.display().to_string()), "{told}");
    let text = std::fs::read_to_string(&place).unwrap();
    let set_aside: Value = serde_json::from_str(&text).unwrap();
    assert!(text.lines().count() > 10, "a person can read it: {text}");
    assert!(set_aside["error"].as_str().unwrap().contains("exit status: 1"), "{text}");
    let event = &set_aside["event"];
    assert_eq!((&event["position"], &event["previous"]), (&2.into(), &1.into()));
    assert_eq!(event["type"], "minutebook.profile.created.v1");
    assert!(event["data"]["profile_id"].is_string(), "{text}");
    scene.settled("minutes").await;
    subscriber.stop().await;

    // It was had: it is no gap, and does not come again.
    let subscriber = scene.subscribe("minutes", &["--tries", "2", "--exec", &command]);
    scene.enter(4).await;
    assert_eq!(lines_of(&done, 3).await, ["1", "3", "4"]);
    assert_eq!(lines_of(&tried, 5).await, ["1", "2", "2", "3", "4"]);
    scene.settled("minutes").await;
    assert_eq!(subscriber.stop().await.1, "listening");
    scene.close().await;
}

#[tokio::test]
async fn a_command_that_hangs_is_stopped_and_counts_as_failed() {
    let scene = Scene::start().await;
    let command = r#"[ "$MINUTEBOOK_POSITION" != 1 ] || exec sleep 600"#;
    let arguments = ["--json", "--tries", "1", "--exec-timeout", "1", "--exec", command];
    let subscriber = scene.subscribe("minutes", &arguments);
    for n in 1..=2 {
        scene.enter(n).await;
    }
    let told = subscriber.says("event 1 was set aside").await;
    assert!(told.contains("the command took longer than 1 s"), "{told}");
    assert_eq!(subscriber.positions(1).await, [2], "what was set aside is not printed");
    scene.settled("minutes").await;
    subscriber.stop().await;
    scene.close().await;
}

#[tokio::test]
async fn a_command_need_not_read_its_event_and_may_not_exist() {
    let scene = Scene::start().await;
    let ignores = scene.subscribe("ignores", &["--json", "--exec", "true"]);
    let misspelt = scene.subscribe("misspelt", &["--tries", "1", "--exec", "no-such-program-here"]);
    for n in 1..=20 {
        scene.enter(n).await;
    }
    assert_eq!(ignores.positions(20).await, (1..=20).collect::<Vec<_>>());
    let told = misspelt.says("event 1 was set aside").await;
    assert!(told.contains("exit status: 127"), "{told}");
    misspelt.says("no-such-program-here").await;
    scene.close().await;
}

/// The broker waits for 12 s; every 10 s it hears that the handler is still at it.
#[tokio::test]
async fn a_command_that_takes_longer_than_the_broker_waits_gets_its_event_once() {
    let scene = Scene::start().await;
    scene.enter(1).await;
    let waits = pull::Config {
        durable_name: Some("minutes".to_owned()),
        filter_subject: "minutebook.profile.*.created".to_owned(),
        ack_policy: AckPolicy::Explicit,
        ack_wait: Duration::from_secs(12),
        max_ack_pending: 1,
        ..pull::Config::default()
    };
    let consumer: Consumer<pull::Config> = scene.stream().await.create_consumer(waits).await.unwrap();
    let subscriber = scene.subscribe("minutes", &["--json", "--exec", "sleep 14"]);
    assert_eq!(subscriber.positions(1).await, [1]);
    scene.settled("minutes").await;
    let info = consumer.get_info().await.unwrap();
    assert_eq!((info.delivered.consumer_sequence, info.num_redelivered), (1, 0));
    subscriber.stop().await;
    scene.close().await;
}
