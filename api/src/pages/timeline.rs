//! Who spoke when, as a drawing: one lane for each speaker over a common axis. It is as wide as the page, so
//! places along the axis are shares of it; only heights are pixels.

use std::fmt::Write as _;

use super::show::clock;
use crate::speakers::{SpeakerDetails, SpokenSegment};

/// How many colours there are for speakers.
const VOICES: usize = 8;
/// The height of a lane with its label.
const LANE: usize = 40;
/// The most columns of all lanes: what is finer is not seen.
const COLUMNS: usize = 200_000;
/// The most marks of the axis: more would overlap on a phone.
const MARKS: u64 = 5;

/// The drawing.
pub(super) struct Timeline {
    /// The lanes.
    pub(super) lanes: Vec<Lane>,
    /// The marks of the axis.
    pub(super) marks: Vec<Mark>,
    /// How many columns a lane has.
    pub(super) columns: u64,
    /// Where the lanes end.
    pub(super) bottom: usize,
    /// The whole height.
    pub(super) height: usize,
}

/// One speaker's lane.
pub(super) struct Lane {
    /// The name of its colour.
    pub(super) voice: String,
    /// Who.
    pub(super) label: String,
    /// The label's baseline.
    pub(super) label_y: usize,
    /// Where the bar begins.
    pub(super) y: usize,
    /// The speech.
    pub(super) path: String,
}

/// A mark of the axis.
pub(super) struct Mark {
    /// Where, in percent.
    pub(super) x: String,
    /// On which side of it the text is.
    pub(super) anchor: &'static str,
    /// The time.
    pub(super) text: String,
}

impl Timeline {
    /// Draws speakers, each with its number among the meeting's; nothing if no speech is known.
    pub(super) fn of(speakers: &[(usize, &SpeakerDetails)]) -> Option<Self> {
        let end = |segment: &SpokenSegment| u64::from(segment.start_ms) + u64::from(segment.duration_ms);
        let segments = |speaker: &SpeakerDetails| speaker.segments.clone().unwrap_or_default();
        let last = speakers.iter().flat_map(|(_, speaker)| segments(speaker)).map(|s| end(&s)).max()?;
        let length = last.max(1);
        let columns = (COLUMNS / speakers.len()).clamp(300, 1500) as u64;
        let lane = |(n, (number, speaker)): (usize, &(usize, &SpeakerDetails))| Lane {
            voice: voice(*number),
            label: label(speaker),
            label_y: n * LANE + 13,
            y: n * LANE + 19,
            path: path(&segments(speaker), length, columns),
        };
        let bottom = speakers.len() * LANE;
        Some(Self {
            lanes: speakers.iter().enumerate().map(lane).collect(),
            marks: marks(length / 1000),
            columns,
            bottom,
            height: bottom + 20,
        })
    }
}

/// Returns the name of the colour of a meeting's speaker number `number`.
pub(super) fn voice(number: usize) -> String {
    format!("voice-{}", number % VOICES)
}

fn label(speaker: &SpeakerDetails) -> String {
    let name = speaker
        .profile
        .as_ref()
        .map(|profile| profile.display_name.clone().unwrap_or_else(|| "somebody forgotten since".to_owned()));
    match name {
        Some(name) => name,
        None => format!("{} · nobody known", speaker.cluster_id),
    }
}

/// Draws speech as bars of whole columns; what touches becomes one.
fn path(segments: &[SpokenSegment], length_ms: u64, columns: u64) -> String {
    let mut bars: Vec<(u64, u64)> = vec![];
    for segment in segments {
        let (start, end) =
            (u64::from(segment.start_ms), u64::from(segment.start_ms) + u64::from(segment.duration_ms));
        let first = (start * columns / length_ms).min(columns - 1);
        let end = (end * columns).div_ceil(length_ms).clamp(first + 1, columns);
        match bars.last_mut() {
            Some((_, last)) if first <= *last => *last = end.max(*last),
            Some(_) | None => bars.push((first, end)),
        }
    }
    let mut path = String::with_capacity(bars.len() * 16);
    for (first, end) in bars {
        let width = end - first;
        write!(path, "M{first} 0h{width}v1h-{width}z").expect("a String takes all");
    }
    path
}

/// Marks the axis at round times.
fn marks(seconds: u64) -> Vec<Mark> {
    const STEPS: [u64; 14] = [1, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600];
    let step =
        STEPS.into_iter().find(|step| seconds / step <= MARKS).unwrap_or_else(|| (seconds / MARKS).max(1));
    let mark = |at: u64| {
        let share = at as f64 * 100.0 / seconds.max(1) as f64;
        let anchor = match share {
            ..4.0 => "start",
            96.0.. => "end",
            _ => "middle",
        };
        Mark { x: format!("{share:.2}%"), anchor, text: clock(at) }
    };
    (0..=seconds / step).map(|n| mark(n * step)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(pairs: &[(u32, u32)]) -> Vec<SpokenSegment> {
        pairs.iter().map(|&(start_ms, duration_ms)| SpokenSegment { start_ms, duration_ms }).collect()
    }

    #[test]
    fn bars_are_whole_columns_within_the_axis_and_what_touches_is_one() {
        assert_eq!(path(&segments(&[(0, 100), (500, 500)]), 1000, 10), "M0 0h1v1h-1zM5 0h5v1h-5z");
        assert_eq!(path(&segments(&[(0, 100), (100, 100), (150, 10)]), 1000, 10), "M0 0h2v1h-2z");
        assert_eq!(path(&segments(&[(999, 1), (1000, 0)]), 1000, 10), "M9 0h1v1h-1z");
        assert_eq!(path(&segments(&[(3, 0)]), 1000, 10), "M0 0h1v1h-1z", "even the shortest is seen");
    }

    #[test]
    fn many_segments_make_no_more_bars_than_there_are_columns() {
        let many = (0..50_000).map(|n| (n * 20, 10)).collect::<Vec<_>>();
        let path = path(&segments(&many), 1_000_000, 1500);
        assert_eq!(path.matches('M').count(), 1);
    }

    #[test]
    fn an_axis_of_any_length_has_a_few_marks_that_begin_at_0() {
        for seconds in [0, 1, 7, 59, 61, 1800, 5_432, 86_400, 4_294_967] {
            let marks = marks(seconds);
            assert!((1..=6).contains(&marks.len()), "{seconds}: {}", marks.len());
            assert_eq!((marks[0].x.as_str(), marks[0].anchor), ("0.00%", "start"));
        }
    }
}
