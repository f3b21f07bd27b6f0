//! How pages write times, lengths, sizes and ids.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use uuid::Uuid;

/// A moment, for people and for machines.
pub(super) struct Moment {
    /// For people: `24 Nov 2026, 09:13`, in UTC.
    pub(super) text: String,
    /// For machines.
    pub(super) iso: String,
}

/// Returns a moment to the minute.
pub(super) fn moment(at: DateTime<Utc>) -> Moment {
    Moment {
        text: at.format("%-d %b %Y, %H:%M").to_string(),
        iso: at.to_rfc3339_opts(SecondsFormat::Secs, true),
    }
}

/// Returns a moment to the second.
pub(super) fn precise(at: DateTime<Utc>) -> Moment {
    Moment { text: at.format("%-d %b %Y, %H:%M:%S").to_string(), ..moment(at) }
}

/// Returns a place in a recording, or a length, as a clock shows it: `4:05`, `1:04:05`.
pub(super) fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{seconds:02}") } else { format!("{minutes}:{seconds:02}") }
}

/// Returns a length in words: `40 s`, `4 min 5 s`, `1 h 4 min`.
pub(super) fn length(seconds: u64) -> String {
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, 0) => format!("{minutes} min"),
        (0, minutes, seconds) => format!("{minutes} min {seconds} s"),
        (hours, 0, _) => format!("{hours} h"),
        (hours, minutes, _) => format!("{hours} h {minutes} min"),
    }
}

/// Returns a length of speech; the shortest is not nothing.
pub(super) fn speech(ms: u32) -> String {
    length(u64::from(ms).div_ceil(1000))
}

/// Returns how long something took, to the tenth of a second where it was quick.
pub(super) fn took(delta: TimeDelta) -> String {
    let seconds = delta.as_seconds_f64().max(0.0);
    if seconds < 0.1 {
        "less than 0.1 s".to_owned()
    } else if seconds < 10.0 {
        format!("{seconds:.1} s")
    } else {
        length(seconds as u64)
    }
}

/// Returns a size in the unit that suits it.
pub(super) fn size(bytes: i64) -> String {
    let bytes = bytes.max(0);
    match bytes {
        0..1_000 => format!("{bytes} bytes"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    }
}

/// Returns a number with its thousands set apart.
pub(super) fn number(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push('\u{202f}');
        }
        text.push(digit);
    }
    if number < 0 { format!("-{text}") } else { text }
}

/// Returns the beginning of an id, enough to tell it from its neighbours on a page.
pub(super) fn short(id: Uuid) -> String {
    let mut text = id.to_string();
    // Ids of profiles begin with a time: their end tells them apart.
    if id.get_version_num() == 7 { text.split_off(24) } else { text[..8].to_owned() }
}

/// Returns a share as a percentage without decimals.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_sizes_are_written_in_the_unit_that_suits() {
        assert_eq!(
            [0, 59, 60, 245, 3600, 3845].map(length),
            ["0 s", "59 s", "1 min", "4 min 5 s", "1 h", "1 h 4 min"]
        );
        assert_eq!([0, 65, 3845].map(clock), ["0:00", "1:05", "1:04:05"]);
        assert_eq!([0, 999, 31_457_280].map(size), ["0 bytes", "999 bytes", "31.5 MB"]);
        assert_eq!(
            [7, 1_000, 1_234_567, -1_000].map(number),
            ["7", "1\u{202f}000", "1\u{202f}234\u{202f}567", "-1\u{202f}000"]
        );
    }
}
