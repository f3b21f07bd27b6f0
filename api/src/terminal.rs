//! What a person at a terminal sees: progress on standard error, results on standard output.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressState, ProgressStyle};

use crate::embedded::Progress;

/// Writes a result to standard output. A reader that has gone away (`| head`) ends the command quietly.
pub fn print(text: impl std::fmt::Display) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")
}

/// Says whether an error is only that nobody reads any more. One that has a broken pipe for its cause is another: a
/// database that has gone away is a failure.
pub fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Returns an error and its causes in one line. Some libraries repeat the cause in the error: it is said once.
pub fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Writes a note to standard error.
pub fn note(text: impl std::fmt::Display) {
    // Nothing can be done about a standard error that is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Returns a bar of `total` steps; it shows on a terminal only.
pub fn bar(total: u64, what: &'static str) -> ProgressBar {
    ProgressBar::new(total).with_message(what).with_style(measured_style())
}

/// Returns the style of work that can be measured.
pub fn measured_style() -> ProgressStyle {
    let style = ProgressStyle::with_template("{msg:<12} [{bar:30}] {pos}/{len} {rate}");
    style.expect("the template is valid").progress_chars("=> ").with_key("rate", rate)
}

/// Writes how many steps a second are done and how long the rest takes, once it is known.
fn rate(state: &ProgressState, to: &mut dyn std::fmt::Write) {
    if state.per_sec() >= 1.0 {
        // Nothing can be done about a line that cannot be written.
        let _ = write!(to, "{:.0}/s, {} left", state.per_sec(), HumanDuration(state.eta()));
    }
}

/// Returns the style of work without a measure.
pub fn timed_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {elapsed}").expect("the template is valid")
}

/// Returns a line that shows what the embedded PostgreSQL is doing, and the function that updates it.
pub fn starting() -> (ProgressBar, impl Fn(Progress) + Send + Sync) {
    let spinner = ProgressBar::new_spinner();
    if !io::stderr().is_terminal() {
        spinner.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    spinner.enable_steady_tick(Duration::from_millis(100));
    let update = {
        let spinner = spinner.clone();
        move |progress| spinner.set_message(words(progress))
    };
    (spinner, update)
}

fn words(progress: Progress) -> String {
    match progress {
        Progress::Waiting => "waiting for another minutebook that starts or stops PostgreSQL".to_owned(),
        Progress::Finding => "looking for PostgreSQL".to_owned(),
        Progress::Downloading { received, total } => {
            let mega = |bytes: u64| bytes / 1_000_000;
            let of = total.map(|total| format!(" of {}", mega(total))).unwrap_or_default();
            format!("downloading PostgreSQL: {}{of} MB", mega(received))
        }
        Progress::Creating => "creating the embedded PostgreSQL".to_owned(),
        Progress::Starting => "starting the embedded PostgreSQL".to_owned(),
        Progress::Started | Progress::Attached => "PostgreSQL is ready".to_owned(),
    }
}
