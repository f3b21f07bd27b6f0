//! Sends anything to what parses foreign bytes: see `api::foreign`. On the stable toolchain, without
//! instrumentation: what a reader says guides instead, for each new kind of answer is worth building on.
//!
//! Each reader has a corpus in `tests/fuzz/corpus/<name>/`, which is replayed first; then inputs are made of it for a
//! share of `MINUTEBOOK_FUZZ_SECONDS` (20 if not said; minutes by hand). `MINUTEBOOK_FUZZ_SEED` repeats a run,
//! `MINUTEBOOK_FUZZ_KEEP=1` keeps what gave new kinds of answers. An input that broke something is kept always.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should fail at once")]

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use api::auth::keys::SigningKey;
use api::foreign::{self, Read, Reader};
use fastrand::Rng;

/// How long one input of at most [`LARGEST`] bytes may take: more is a way to keep a server busy.
const SLOW: Duration = Duration::from_secs(2);
/// The largest input that is made.
const LARGEST: usize = 64 * 1024;
/// How many inputs a corpus has at most.
const KEPT: usize = 200;
fn readers() -> Vec<Reader> {
    let directory = tempfile::tempdir().unwrap();
    foreign::readers(&SigningKey::open_or_make(&directory.path().join("signing.key")).unwrap())
}

/// What no answer may repeat: whatever was sent may be personal.
const SECRET: &str = "Lovelace";

/// Pieces that mean something to one reader or another.
const WORDS: &[&str] = &[
    "SPEAKER rec 1 0.5 1.25 <NA> <NA> s1 <NA> <NA>\n",
    "SPKR-INFO",
    ";; ",
    "\u{feff}",
    "\r\n",
    "\0",
    "\"",
    "\\",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "true",
    "1e308",
    "-0.0",
    "1e-400",
    "18446744073709551616",
    "0.1",
    "9223372036854775807",
    "NaN",
    "\\ud800",
    "\\u0000",
    "\\\"",
    "2026-11-24T09:00:00Z",
    "+01:30",
    "2026-11-24",
    "-0001-01-01T00:00:00Z",
    "+275760-09-13T00:00:00Z",
    "23:59:60",
    "018f0000-0000-7000-8000-000000000001",
    "person:",
    "service:",
    "system:",
    "a.b_c-d",
    "=",
    "&",
    "%00",
    "%ff",
    "%2B",
    "+",
    "cursor=",
    "limit=500",
    "as_of=",
    "AQAAAAAAAAAq",
    "AQGPAAAAAHAAgAAAAAAAAAE",
    "audio/mpeg",
    "de-CH-1996",
    "summary.json",
    "../",
    "resemblyzer-0.1.4",
    "\"vector\":[0.1,0.2]",
    "\"sha256\":",
    "\"display_name\":",
    "\"reason\":",
    "\"segments\":",
    "Ada \"Lovelace\" `Lovelace`",
    "Lovelace",
    "eyJhbGciOiJub25lIn0.",
    "eyJhbGciOiJFZERTQSJ9.",
    "Bearer ",
    "'; DROP TABLE x; --",
    "\u{202e}",
    "🎙",
    "ｆｕｌｌ",
    "\u{1f468}\u{200d}\u{1f469}",
];

#[test]
fn whatever_is_sent_is_taken_or_refused_and_nothing_breaks() {
    let seconds = setting("MINUTEBOOK_FUZZ_SECONDS").unwrap_or(20);
    let seed = setting("MINUTEBOOK_FUZZ_SEED").unwrap_or_else(|| Rng::new().u64(..));
    let readers = readers();
    let share = Duration::from_secs(seconds) / u32::try_from(readers.len()).unwrap();
    let names = readers.iter().map(|reader| reader.name).collect::<BTreeSet<_>>();
    assert_eq!(names.len(), readers.len(), "two readers share a corpus");
    // A panic is reported with its input, not by its backtrace.
    std::panic::set_hook(Box::new(|_| {}));
    let mut broken = vec![];
    let mut report = String::new();
    for reader in &readers {
        match try_out(reader, share, seed) {
            Ok(Tried { inputs, taken, kinds }) => {
                report +=
                    &format!("{:22} {inputs:>9} inputs, {taken:>7} taken, {kinds:>4} kinds\n", reader.name);
                // One that takes nothing is not tried beyond its first line.
                if taken == 0 {
                    broken.push(format!("{}: nothing was taken: its corpus lacks a good input", reader.name));
                }
            }
            Err(why) => broken.push(format!("{}: {why}", reader.name)),
        }
    }
    let _ = std::panic::take_hook();
    println!("seed {seed}\n{report}");
    assert!(broken.is_empty(), "with MINUTEBOOK_FUZZ_SEED={seed}:\n{}", broken.join("\n"));
}

#[test]
fn every_corpus_has_a_reader() {
    let readers = readers();
    let names = readers.iter().map(|reader| reader.name.to_owned()).collect::<BTreeSet<_>>();
    let corpora = std::fs::read_dir(corpus("")).unwrap();
    let corpora =
        corpora.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<BTreeSet<_>>();
    assert_eq!(corpora, names);
}

#[test]
fn what_breaks_is_noticed() {
    let reader = |read: fn(&[u8]) -> Read| Reader {
        name: "nobody",
        quotes: false,
        seeds: vec![],
        read: Box::new(read),
    };
    std::panic::set_hook(Box::new(|_| {}));
    let panics =
        check(&reader(|bytes| if bytes.len() > 3 { panic!("too long") } else { Read::Taken(None) }), b"abcd");
    let _ = std::panic::take_hook();
    assert!(panics.unwrap_err().contains("panicked"));
    let repeats = reader(|bytes| Read::Refused(format!("bad value {}", String::from_utf8_lossy(bytes))));
    assert!(check(&repeats, b"Ada Lovelace").unwrap_err().contains("repeats"));
    let grows = reader(|bytes| Read::Taken(Some(format!("{}x", String::from_utf8_lossy(bytes)))));
    assert!(check(&grows, b"a").unwrap_err().contains("again"));
}

struct Tried {
    inputs: u64,
    taken: u64,
    kinds: usize,
}

fn try_out(reader: &Reader, share: Duration, seed: u64) -> Result<Tried, String> {
    let mut random = Rng::with_seed(seed);
    let started = Instant::now();
    let mut pool = stored(reader.name);
    pool.extend(reader.seeds.iter().cloned());
    let mut kinds = BTreeMap::<String, usize>::new();
    let mut tried = Tried { inputs: 0, taken: 0, kinds: 0 };
    let keep = std::env::var_os("MINUTEBOOK_FUZZ_KEEP").is_some();
    let mut one = |input: &[u8], tried: &mut Tried| -> Result<bool, String> {
        tried.inputs += 1;
        let said = check(reader, input).map_err(|why| {
            let path = store(reader.name, "broke-", input);
            format!("{why}; the input is {}", path.display())
        })?;
        tried.taken += u64::from(matches!(said, Read::Taken(_)));
        let seen = kinds.entry(kind(&said, input)).or_default();
        *seen += 1;
        Ok(*seen == 1)
    };
    for input in pool.clone() {
        one(&input, &mut tried)?;
    }
    let stored = pool.len();
    while started.elapsed() < share {
        let input = mutated(&pool, &mut random);
        if one(&input, &mut tried)? && pool.len() < 10_000 {
            if keep && stored + pool.len() < KEPT + stored && input.len() < 4096 {
                store(reader.name, "", &input);
            }
            pool.push(input);
        }
    }
    tried.kinds = kinds.len();
    Ok(tried)
}

/// Reads an input; says what must not have happened.
fn check(reader: &Reader, input: &[u8]) -> Result<Read, String> {
    let started = Instant::now();
    let said =
        catch_unwind(AssertUnwindSafe(|| (reader.read)(input))).map_err(|_| "it panicked".to_owned())?;
    if started.elapsed() > SLOW {
        return Err(format!("it took {:?}", started.elapsed()));
    }
    match &said {
        Read::Taken(Some(written)) => {
            let again = (reader.read)(written.as_bytes());
            if again != Read::Taken(Some(written.clone())) {
                return Err(format!("read again, {written:?} gives {again:?}"));
            }
        }
        Read::Taken(None) => {}
        Read::Refused(told) => {
            let sent = String::from_utf8_lossy(input);
            if !reader.quotes && sent.contains(SECRET) && told.contains(SECRET) {
                return Err(format!("the refusal repeats what was sent: {told}"));
            }
            if told.len() > 2000 {
                return Err(format!("the refusal has {} bytes", told.len()));
            }
        }
    }
    Ok(said)
}

/// Tells answers apart: a refusal by its words, without what counts; what was taken by its size, about.
fn kind(said: &Read, input: &[u8]) -> String {
    match said {
        Read::Taken(_) => format!("taken {}", input.len().checked_ilog2().unwrap_or(0)),
        Read::Refused(told) => told.chars().filter(|c| !c.is_ascii_digit()).collect(),
    }
}

/// Makes an input of others.
fn mutated(pool: &[Vec<u8>], random: &mut Rng) -> Vec<u8> {
    let mut input = random.choice(pool).cloned().unwrap_or_default();
    for _ in 0..random.usize(1..=4) {
        let at = random.usize(0..=input.len());
        let upto = random.usize(at..=input.len().min(at + 64));
        match random.u8(0..10) {
            0 => input.insert(at, random.u8(..)),
            1 if at < input.len() => input[at] ^= 1 << random.u8(0..8),
            2 => drop(input.drain(at..upto)),
            3 | 4 => drop(input.splice(at..at, random.choice(WORDS).unwrap().bytes())),
            5 => drop(input.splice(at..upto, random.choice(WORDS).unwrap().bytes())),
            6 => {
                let piece = input[at..upto].to_vec();
                let piece = piece.repeat(1 << random.u8(0..10));
                drop(input.splice(at..at, piece));
            }
            7 => {
                let other = random.choice(pool).cloned().unwrap_or_default();
                let from = random.usize(0..=other.len());
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            8 => input.truncate(at),
            _ => {
                let digits = random.u64(..).to_string();
                drop(input.splice(at..upto.min(at + 4), digits.bytes()));
            }
        }
        input.truncate(LARGEST);
    }
    input
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

fn corpus(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name)
}

fn stored(name: &str) -> Vec<Vec<u8>> {
    let Ok(files) = std::fs::read_dir(corpus(name)) else { return vec![] };
    let mut paths = files.map(|file| file.unwrap().path()).collect::<Vec<_>>();
    paths.sort();
    paths.iter().map(|path| std::fs::read(path).unwrap()).collect()
}

fn store(name: &str, prefix: &str, input: &[u8]) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    input.hash(&mut hasher);
    std::fs::create_dir_all(corpus(name)).unwrap();
    let path = corpus(name).join(format!("{prefix}{:016x}", hasher.finish()));
    std::fs::write(&path, input).unwrap();
    path
}
