//! What cannot be understood is said at once, and clearly.

use crate::cli::{minutebook, run};

#[tokio::test]
async fn an_unknown_type_or_a_bad_name_is_wrong_usage() {
    let nats = ["--nats-url", "nats://127.0.0.1:1"];
    for (arguments, told) in [
        (&["meeting.exploded"][..], "meeting.completed"),
        (&["meeting"], "meeting.completed"),
        (&["meeting.completed", "--durable", ""], "1 to 64 letters, digits, _ or -"),
        (&["meeting.completed", "--durable", "a b"], "1 to 64 letters, digits, _ or -"),
        (&["meeting.completed", "--durable", "a.b"], "1 to 64 letters, digits, _ or -"),
        (&["meeting.completed", "--durable", "../up"], "1 to 64 letters, digits, _ or -"),
        (&["meeting.completed", "--durable", &"x".repeat(65)], "1 to 64 letters, digits, _ or -"),
        (&["meeting.completed", "--tries", "0"], "--tries"),
        (&["meeting.completed", "--exec-timeout", "0"], "--exec-timeout"),
        (&[], "<TYPE>"),
    ] {
        let arguments = [&["subscribe"], arguments, &nats].concat();
        let ran = run(&mut minutebook(&arguments)).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(told), "{arguments:?}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn nothing_to_follow_and_what_is_no_url_is_said_and_ends_it() {
    for (arguments, told) in [
        (&[][..], ["NATS_URL", "--server"]),
        (&["--server", "here"], ["--server", "http://127.0.0.1:8642"]),
        (&["--server", "127.0.0.1:8642"], ["--server", "http://127.0.0.1:8642"]),
        (&["--server", "ftp://127.0.0.1"], ["--server", "http://127.0.0.1:8642"]),
        (&["--server", ""], ["--server", "http://127.0.0.1:8642"]),
    ] {
        let arguments = [&["subscribe", "meeting.completed"], arguments].concat();
        let ran = run(minutebook(&arguments).env_remove("NATS_URL")).await;
        assert!(matches!(ran.code, Some(1 | 2)), "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "");
        assert!(told.iter().all(|told| ran.stderr.contains(told)), "{arguments:?}: {}", ran.stderr);
    }
}

#[tokio::test]
async fn a_directory_that_cannot_be_used_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let below = file.join("below").display().to_string();
    let broken = directory.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    std::fs::write(broken.join("ledger.json"), "{").unwrap();
    let broken = broken.display().to_string();
    for state_dir in [&below, &broken] {
        let arguments =
            ["subscribe", "meeting.completed", "--nats-url", "nats://127.0.0.1:1", "--state-dir", state_dir];
        let ran = run(&mut minutebook(&arguments)).await;
        assert_eq!(ran.code, Some(1), "{}", ran.stderr);
        assert!(ran.stderr.contains(state_dir.as_str()), "{state_dir} is not in {}", ran.stderr);
    }
}
