//! What the servers of a whole run of the tests log, and what must never be among it: tokens, keys, names, reasons,
//! vectors. `with_services` names the file, every server's lines go there, and at the end it is looked through.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// The file that the lines go to; set by `with_services`.
pub const LOGS: &str = "MINUTEBOOK_TEST_LOGS";
/// What is logged by the servers under test: more than in production, for more could be said by mistake.
pub const FILTER: &str = "info,api=debug,event_store=debug,projections=debug,sqlx=warn,async_nats=warn";

/// Names of people, as the tests have them; each a word of its own.
const NAMES: [&str; 11] =
    ["Ada", "Lovelace", "King", "Grace", "Hopper", "Mira", "Sandoz", "Annik", "Övergård", "Hedy", "Lamarr"];

/// Reasons that people give in the tests.
const REASONS: [&str; 10] = [
    "I was there",
    "heard it",
    "by the voice",
    "her accent",
    "no words",
    "that was noise",
    "that was the other one",
    "it was Ada",
    "HYPERLINK",
    "she said",
];

/// How many numbers in a row are a vector.
const VECTOR: usize = 4;

/// Keeps lines of a log to be looked through at the end.
pub fn keep(lines: &str) {
    let Some(path) = std::env::var_os(LOGS) else { return };
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    // In one piece: many tests write at once.
    file.write_all(format!("{}\n", lines.trim_end()).as_bytes()).unwrap();
}

/// Returns what was logged that must not be: the lines, each after what is wrong with it. `keys` are secrets of this
/// run.
pub fn leaks(path: &Path, keys: &[Vec<u8>]) -> std::io::Result<Vec<String>> {
    let keys = keys.iter().flat_map(|key| forms(key)).collect::<Vec<_>>();
    let mut found = vec![];
    for line in BufReader::new(std::fs::File::open(path)?).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if let Some(what) = leak(&line, &keys) {
            found.push(format!("{what}: {line}"));
        }
    }
    Ok(found)
}

/// Returns how a secret could be written.
pub fn forms(secret: &[u8]) -> Vec<String> {
    let hex = secret.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut forms =
        vec![hex.to_uppercase(), hex, STANDARD_NO_PAD.encode(secret), URL_SAFE_NO_PAD.encode(secret)];
    // As a file has it.
    if let Ok(text) = std::str::from_utf8(secret) {
        forms.extend(text.lines().map(str::trim).filter(|line| line.len() >= 20).map(str::to_owned));
    }
    forms.push(format!("{secret:?}"));
    forms
}

/// Returns what a line says that it must not say.
pub fn leak(line: &str, keys: &[String]) -> Option<&'static str> {
    // Whoever typed an argument is told which one: in a terminal, before there is a log.
    if line.starts_with("error: invalid value '") {
        return None;
    }
    if keys.iter().any(|key| line.contains(key.as_str())) {
        return Some("a key");
    }
    if has_token(line) {
        return Some("a token");
    }
    if ["PRIVATE KEY", "Bearer ey", "Authorization", "\"d\":"].iter().any(|sign| line.contains(sign)) {
        return Some("a secret");
    }
    if has_password(line) {
        return Some("a password");
    }
    if NAMES.iter().any(|name| has_word(line, name)) {
        return Some("a name");
    }
    if REASONS.iter().any(|reason| line.contains(reason)) {
        return Some("a reason");
    }
    has_vector(line).then_some("a vector")
}

/// A JWT: three parts in base64, the first an object.
fn has_token(line: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    line.match_indices("eyJ").any(|(at, _)| {
        let mut parts = line[at..].splitn(3, '.');
        let whole = |text: Option<&str>| text.is_some_and(|text| text.len() >= 10 && text.chars().all(part));
        whole(parts.next()) && parts.next().is_some_and(|text| text.len() >= 10 && text.chars().all(part))
    })
}

fn has_password(line: &str) -> bool {
    line.match_indices("://").any(|(at, _)| {
        let authority = line[at + 3..].split(['/', ' ', '"', '?']).next().unwrap_or_default();
        authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
    })
}

fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    })
}

fn has_vector(line: &str) -> bool {
    let mut run = 0;
    line.split(',').any(|piece| {
        let number = piece.trim_matches(|c: char| c != '-' && c != '.' && !c.is_ascii_digit());
        let fraction = number.split_once('.').is_some_and(|(_, after)| after.len() >= 3);
        run = if fraction && number.parse::<f64>().is_ok() { run + 1 } else { 0 };
        run >= VECTOR
    })
}
