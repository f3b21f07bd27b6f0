//! That nothing personal and no secret is logged is looked for at the end of the whole run, by `with_services`; that
//! it would be found is shown here.

use tests::TestDatabase;
use tests::logs::{LOGS, forms, leak, leaks};
use tests::server::Server;

use crate::cli::run_on;

#[test]
fn what_must_not_be_logged_is_found_and_what_may_be_is_not() {
    let key = b"0123456789abcdef0123456789abcdef".to_vec();
    let keys = forms(&key);
    for (line, what) in [
        ("token=eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbm5hIn0.c2lnbmF0dXJlc2lnbmF0dXJl refused", "a token"),
        ("key=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY", "a key"),
        ("key=3031323334353637383961626364656630313233343536373839616263646566", "a key"),
        ("-----BEGIN PRIVATE KEY-----", "a secret"),
        ("database=postgres://minutebook:secret@db/minutebook", "a password"),
        ("name=Ada profile.id=018f", "a name"),
        ("renamed to \"Ada Lovelace\"", "a name"),
        ("reason=\"I was there\"", "a reason"),
        ("voice=[0.0917, -0.0312, 0.1145, 0.0021]", "a vector"),
        ("voice: 0.0917,-0.0312,0.1145,0.0021", "a vector"),
    ] {
        assert_eq!(leak(line, &keys), Some(what), "{line}");
    }
    for line in [
        "INFO serving address=127.0.0.1:8642 database=postgres://root@localhost/t_1?host=/tmp/x&port=1",
        "meeting.id=6a1f4d43-6b8e-8b0c-9ada-1f6f3f0e6c11 position=42 completed",
        "elapsed_ms=0.125, other=0.250",
        "INFO access who=\"reviewer-7\" kind=\"person\" role=\"reviewer\" what=\"read_voices\"",
        "gracefully, kingly, Adamant",
    ] {
        assert_eq!(leak(line, &keys), None, "{line}");
    }
}

#[tokio::test]
async fn what_servers_and_commands_say_is_kept_to_be_looked_through() {
    let Some(path) = std::env::var_os(LOGS) else {
        return tests::left_out(
            "what_servers_and_commands_say_is_kept needs with_services, which names the file",
        );
    };
    let database = TestDatabase::create().await;
    let server = Server::start(&database).await;
    let (address, pid) = (server.address(), server.pid());
    let (status, _) = server.get("/v1/meetings").await;
    assert_eq!(status, 200);
    assert!(server.stop().await.success());
    let refused = run_on(&database, &["serve", "--listen", "nowhere-to-be-found"]).await;
    assert_eq!(refused.code, Some(2));
    let kept = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let ours = kept.lines().filter(|line| line.contains(&address)).collect::<Vec<_>>();
    assert!(ours.iter().any(|line| line.contains("serving")), "the lines before it was ready, of {pid}");
    assert!(kept.contains("answered"), "those after it too");
    assert!(kept.contains("nowhere-to-be-found"), "and those of commands");
}

#[test]
fn a_leak_in_the_file_is_reported_with_its_line() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), b"all is well\nname=Lovelace\nkey=\xff\n").unwrap();
    let found = leaks(file.path(), &[]).unwrap();
    assert_eq!(found, ["a name: name=Lovelace"]);
}
