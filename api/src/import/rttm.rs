//! NIST RTTM: one line per stretch of speech, `SPEAKER <recording> <channel> <start s> <duration s> <NA>
//! <NA> <speaker> <NA> [<NA>]` (NIST Rich Transcription 2009 evaluation plan, appendix A).
//!
//! A file is taken whole or not at all: its first broken line is reported by number.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use domain::file::{DurationSeconds, Sha256, SizeBytes};
use domain::speaker::{Cluster, ClusterId, Diarization, Segment};
use sha2::{Digest, Sha256 as HashSha256};

use super::size_and_duration;

/// The longest line that is read.
const MAX_LINE: u64 = 4096;

/// A recording's diarization.
#[derive(Debug, PartialEq)]
pub struct Recording {
    /// What the file calls it.
    pub name: String,
    /// The hash of its own lines, each ended by one line feed.
    pub sha256: Sha256,
    /// The bytes of these lines.
    pub size: SizeBytes,
    /// The end of its last segment, rounded up to a second.
    pub duration: DurationSeconds,
    /// One cluster per speaker.
    pub clusters: Diarization,
}

/// Why a file was left out.
#[derive(Debug, thiserror::Error)]
pub enum RttmError {
    /// It cannot be read.
    #[error("cannot read {file}")]
    Io {
        /// Which file.
        file: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A line is not what RTTM says.
    #[error("{file}:{line}: {problem}; the file was left out")]
    Line {
        /// Which file.
        file: String,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
    /// A recording is larger than a meeting may be, or the file holds none.
    #[error("{file}: {problem}; the file was left out")]
    File {
        /// Which file.
        file: String,
        /// What is wrong.
        problem: String,
    },
}

/// Reads a file's recordings, in order of name.
pub fn read(path: &Path) -> Result<Vec<Recording>, RttmError> {
    let file = path.display().to_string();
    let io = |source| RttmError::Io { file: file.clone(), source };
    // Opening a pipe would wait for ever.
    if !fs::metadata(path).map_err(io)?.is_file() {
        return Err(RttmError::File { file, problem: "it is no regular file".to_owned() });
    }
    let reader = BufReader::new(fs::File::open(path).map_err(io)?);
    parse(reader, &file)
}

/// Reads the recordings of a file that is open already.
pub fn parse(mut reader: impl BufRead, file: &str) -> Result<Vec<Recording>, RttmError> {
    let mut drafts = BTreeMap::<String, Draft>::new();
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE + 1).read_until(b'\n', &mut line);
        if read.map_err(|source| RttmError::Io { file: file.to_owned(), source })? == 0 {
            break;
        }
        let broken = |problem: &str| RttmError::Line {
            file: file.to_owned(),
            line: number,
            problem: problem.to_owned(),
        };
        if line.len() as u64 > MAX_LINE {
            return Err(broken("the line is longer than 4096 bytes"));
        }
        let text = std::str::from_utf8(&line).map_err(|_| broken("the line is not UTF-8"))?;
        let text = text.trim_end_matches(['\n', '\r']).trim_start_matches('\u{feff}');
        if let Some(speech) = parse_line(text).map_err(|problem| broken(&problem))? {
            drafts.entry(speech.recording.to_owned()).or_default().add(&speech, text);
        }
    }
    if drafts.is_empty() {
        return Err(RttmError::File { file: file.to_owned(), problem: "no SPEAKER line".to_owned() });
    }
    let finish = |(name, draft): (String, Draft)| {
        draft.finish(&name).map_err(|problem| RttmError::File {
            file: file.to_owned(),
            problem: format!("recording {name}: {problem}"),
        })
    };
    drafts.into_iter().map(finish).collect()
}

/// A stretch of speech in a line.
struct Speech<'a> {
    recording: &'a str,
    cluster: ClusterId,
    segment: Segment,
}

/// Parses a line. Blank lines, comments and the other types of RTTM say nothing about who spoke when.
fn parse_line(text: &str) -> Result<Option<Speech<'_>>, String> {
    /// The types of the 2009 evaluation plan.
    const TYPES: [&str; 12] = [
        "SEGMENT",
        "NOSCORE",
        "NO_RT_METADATA",
        "LEXEME",
        "NON-LEX",
        "NON-SPEECH",
        "FILLER",
        "EDIT",
        "SU",
        "IP",
        "CB",
        "A/P",
    ];
    if text.trim().is_empty() || text.starts_with(";;") {
        return Ok(None);
    }
    let fields = text.split_whitespace().collect::<Vec<_>>();
    match fields[0] {
        "SPEAKER" => {}
        "SPKR-INFO" => return Ok(None),
        other if TYPES.contains(&other) => return Ok(None),
        _ => return Err("the line's type is none that RTTM knows".to_owned()),
    }
    if !(9..=10).contains(&fields.len()) {
        return Err(format!("a SPEAKER line has 9 or 10 fields, this one has {}", fields.len()));
    }
    let recording = fields[1];
    if recording.len() > 255 {
        return Err("the recording's name is longer than 255 bytes".to_owned());
    }
    let start_ms = milliseconds(fields[3]).ok_or("the start is not a number of seconds from 0")?;
    let duration_ms = milliseconds(fields[4]).ok_or("the duration is not a number of seconds from 0")?;
    if start_ms.checked_add(duration_ms).is_none() {
        return Err("the segment ends after 2^32 milliseconds".to_owned());
    }
    let cluster = fields[7].parse::<ClusterId>().map_err(|error| error.to_string())?;
    Ok(Some(Speech { recording, cluster, segment: Segment { start_ms, duration_ms } }))
}

/// Parses seconds, rounded to a millisecond.
fn milliseconds(text: &str) -> Option<u32> {
    // Rust would take "inf" and "nan" for numbers; RTTM has digits.
    let plain = text.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
    let seconds = text.parse::<f64>().ok().filter(|_| plain)?;
    let milliseconds = (seconds * 1000.0).round();
    // The range check makes the conversion exact.
    (0.0..=f64::from(u32::MAX)).contains(&milliseconds).then_some(milliseconds as u32)
}

/// A recording that is being read.
#[derive(Default)]
struct Draft {
    hash: HashSha256,
    bytes: u64,
    end_ms: u64,
    clusters: BTreeMap<ClusterId, Vec<Segment>>,
}

impl Draft {
    fn add(&mut self, speech: &Speech<'_>, line: &str) {
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        self.bytes += line.len() as u64 + 1;
        let end = u64::from(speech.segment.start_ms) + u64::from(speech.segment.duration_ms);
        self.end_ms = self.end_ms.max(end);
        self.clusters.entry(speech.cluster.clone()).or_default().push(speech.segment);
    }

    fn finish(self, name: &str) -> Result<Recording, String> {
        let hex = self.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let (size, duration) =
            size_and_duration(self.bytes, self.end_ms).ok_or("it is too long for its columns")?;
        let cluster = |(cluster_id, segments)| Cluster { cluster_id, segments, speech_ms: None, voice: None };
        let clusters = self.clusters.into_iter().map(cluster).collect::<Vec<_>>();
        Ok(Recording {
            name: name.to_owned(),
            sha256: hex.parse().map_err(|error: domain::ValueError| error.to_string())?,
            size,
            duration,
            clusters: clusters.try_into().map_err(|error: domain::ValueError| error.to_string())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Vec<Recording>, String> {
        parse(text.as_bytes(), "test.rttm").map_err(|error| error.to_string())
    }

    const GOOD: &str = "SPEAKER a 1 0.50 1.25 <NA> <NA> s1 <NA> <NA>\n";

    #[test]
    fn several_recordings_of_one_file_are_told_apart() {
        let text = format!(
            "{GOOD}SPEAKER b 1 3 0.001 <NA> <NA> s1 <NA> <NA>\nSPEAKER a 1 9.0 1 <NA> <NA> s2 <NA>\n"
        );
        let recordings = parse_text(&text).unwrap();
        let names = recordings.iter().map(|recording| recording.name.as_str()).collect::<Vec<_>>();
        assert_eq!(names, ["a", "b"]);
        let a = &recordings[0];
        assert_eq!(a.clusters.clusters().len(), 2);
        assert_eq!(a.duration.get(), 10);
        assert_eq!(a.clusters.clusters()[0].segments, [Segment { start_ms: 500, duration_ms: 1250 }]);
        assert_eq!(recordings[1].duration.get(), 4, "3.001 s is rounded up");
    }

    #[test]
    fn a_recording_s_hash_is_that_of_its_own_lines() {
        let alone = parse_text(GOOD).unwrap();
        let other = "SPEAKER b 1 3 1 <NA> <NA> s1 <NA> <NA>\r\n";
        let beside = parse_text(&format!(";; comment\n{other}\n{}\r\n", GOOD.trim())).unwrap();
        assert_eq!(alone[0], beside[0]);
    }

    #[test]
    fn a_broken_line_is_named_and_the_file_left_out() {
        for (line, problem) in [
            ("SPEAKER a 1 0.5", "9 or 10 fields"),
            ("SPEAKER a 1 x 1 <NA> <NA> s1 <NA> <NA>", "the start"),
            ("SPEAKER a 1 -1 1 <NA> <NA> s1 <NA> <NA>", "the start"),
            ("SPEAKER a 1 0 nan <NA> <NA> s1 <NA> <NA>", "the duration"),
            ("SPEAKER a 1 0 inf <NA> <NA> s1 <NA> <NA>", "the duration"),
            ("SPEAKER a 1 4294967 1 <NA> <NA> s1 <NA> <NA>", "ends after"),
            ("SPEAKR a 1 0 1 <NA> <NA> s1 <NA> <NA>", "type"),
            (&format!("SPEAKER a 1 0 1 <NA> <NA> {} <NA> <NA>", "s".repeat(51)), "cluster_id"),
            (&"x".repeat(5000), "longer"),
        ] {
            let error = parse_text(&format!("{GOOD}{line}\n{GOOD}")).unwrap_err();
            assert!(error.contains("test.rttm:2") && error.contains(problem), "{error}");
        }
        assert!(parse(&b"SPEAKER \xff"[..], "x").unwrap_err().to_string().contains("x:1"));
        assert!(parse_text("").unwrap_err().contains("no SPEAKER line"));
    }
}
