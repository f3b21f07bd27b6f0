//! Runs one of PostgreSQL's programs, with a bound and without the caller's surroundings.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use std::{env, io};

use tokio::process::Command;
use tokio::time::timeout;

use super::account::Account;
use super::error::EmbeddedError;

/// A program that has ended.
pub(super) struct Ended {
    /// Whether it succeeded.
    pub(super) success: bool,
    /// How it ended, for a message.
    pub(super) status: String,
    /// What it wrote to its standard output.
    pub(super) stdout: String,
    /// What it wrote to its standard error.
    pub(super) stderr: String,
}

/// Says which program is to be run, as whom.
pub(super) struct Program<'a> {
    /// Where it is.
    pub(super) path: PathBuf,
    /// The user to run it as.
    pub(super) account: &'a Account,
    /// A directory that this user can enter; ours may be closed to it.
    pub(super) current_dir: &'a Path,
}

impl Program<'_> {
    /// Runs it to its end; `None` if it took longer than `limit`, and then it is killed.
    pub(super) async fn run<I, S>(&self, args: I, limit: Duration) -> io::Result<Option<Ended>>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let mut command = Command::new(&self.path);
        // Not the caller's environment: PGDATA, PGPORT and their kin would change what the programs do, and the locale what they say.
        command
            .args(args)
            .current_dir(self.current_dir)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .env_clear()
            .env("LC_ALL", "C");
        for name in ["PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH"] {
            if let Some(value) = env::var_os(name) {
                command.env(name, value);
            }
        }
        if self.account.switched {
            // This drops root's other groups as well.
            command.uid(self.account.uid).gid(self.account.gid);
        }
        let Ok(output) = timeout(limit, command.output()).await else {
            return Ok(None);
        };
        let output = output?;
        Ok(Some(Ended {
            success: output.status.success(),
            status: output.status.to_string(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }))
    }
}

impl Ended {
    /// Returns an error that ends in the last lines of `said`.
    pub(super) fn failure(&self, program: &'static str, said: &str) -> EmbeddedError {
        EmbeddedError::Program { program, status: self.status.clone(), output: last_lines(said) }
    }
}

/// Returns the end of a text, on one line.
fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(8)..].join("; ")
}
