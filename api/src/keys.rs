//! `keys`: the keys that personal data is sealed with.

use clap::Subcommand;
use event_store::sealing::Rotated;
use indicatif::{ProgressBar, ProgressStyle};

use crate::book::Book;
use crate::cli::Done;
use crate::terminal;

/// What to do with the keys.
#[derive(Debug, Subcommand)]
pub enum Keys {
    /// Show which master key is in use, and how many subjects have a key
    Status {
        /// As one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Put another master key in the place of the present one, while others go on
    ///
    /// Every subject's key is wrapped anew; no event is touched. The new key is written to the file of master keys
    /// before anything else, and the old one taken out of it in the end. Where the keys come from
    /// MINUTEBOOK_MASTER_KEY, put the new one before the present one there, with a comma, and restart every process
    /// first. Interrupted, call it again: it goes on where it was.
    Rotate,
}

fn counting_style() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {pos} {per_sec}").expect("the template is valid")
}

/// Carries it out.
pub async fn run(book: &Book, what: &Keys) -> anyhow::Result<Done> {
    let keyring = book.store.keyring();
    match what {
        Keys::Status { json } => {
            let status = keyring.status().await?;
            if *json {
                terminal::print(serde_json::to_string(&status)?)?;
                return Ok(Done::Whole);
            }
            terminal::print(format_args!(
                "master key  {} since {}\nfrom        {}\nsubjects    {} with a key, {} forgotten",
                status.master_key,
                status.since.format("%Y-%m-%d %H:%M:%S UTC"),
                status.source,
                status.living,
                status.destroyed,
            ))?;
            if status.under_another > 0 {
                terminal::print(format_args!(
                    "rotation    interrupted: another master key still wraps {} keys; `minutebook keys rotate` goes on",
                    status.under_another
                ))?;
            }
            if status.elsewhere > 0 {
                terminal::print(format_args!(
                    "damaged     {} keys are wrapped by no master key that is here: what they seal cannot be read",
                    status.elsewhere
                ))?;
            }
        }
        Keys::Rotate => {
            let bar = ProgressBar::new_spinner().with_style(counting_style()).with_message("wrapping keys");
            let rotated = keyring.rotate(|wrapped| bar.set_position(wrapped)).await;
            bar.finish_and_clear();
            let Rotated { wrapped, damaged } = rotated?;
            if damaged > 0 {
                terminal::note(format_args!(
                    "warning: {damaged} keys open under no master key that is here, and stay as they are: they are \
                     damaged, or a master key is missing; what they seal cannot be read"
                ));
            }
            let status = keyring.status().await?;
            terminal::print(format_args!(
                "{wrapped} keys are wrapped by master key {}; back it up ({}): what it wraps cannot be read without it",
                status.master_key, status.source
            ))?;
        }
    }
    Ok(Done::Whole)
}
