//! The one binary, `minutebook`.

use std::process::ExitCode;

use api::cli::{Cli, run};
use clap::Parser;

fn main() -> ExitCode {
    run(Cli::parse())
}
