//! Starts a PostgreSQL of its own, runs a command that finds it through the environment, and stops it. In the end it
//! looks through all that servers have logged meanwhile: see `tests::logs`.
//!
//! `with_services [--durable] COMMAND [ARGUMENT…]`. Without `--durable` the PostgreSQL does not wait for the
//! disk: the tests kill processes, never the machine.

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use api::embedded::{self, Programs, Reaper, Settings};
use tests::logs;
use tokio::process::Command;

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = std::env::args_os().skip(1).peekable();
    let durable = arguments.next_if(|argument| argument == "--durable").is_some();
    let Some(program) = arguments.next() else {
        bail!("usage: with_services [--durable] COMMAND [ARGUMENT…]")
    };

    let directory = tempfile::tempdir().context("cannot make a directory for PostgreSQL")?;
    // Whoever names the file can read it afterwards.
    let log = std::env::var_os(logs::LOGS).map_or_else(|| directory.path().join("log"), Into::into);
    std::fs::write(&log, "").context("cannot write the file for what is logged")?;
    let settings = Settings {
        data_dir: directory.path().join("data"),
        programs: Programs::Find,
        releases_url: None,
        // Should this process be killed, the server goes too.
        reaper: reaper(directory.path().join("data").into()),
        durable,
    };
    let services = embedded::start(&settings, &|_| {}).await.context("cannot start PostgreSQL")?;
    let mut child = Command::new(&program)
        .args(arguments)
        .env(tests::DATABASE_URL, services.url())
        // Made by the first who needs it.
        .env(tests::MASTER_KEY_FILE, directory.path().join("keys/master.key"))
        .env(tests::tokens::SIGNING_KEY_FILE, directory.path().join("keys/signing.key"))
        .env(logs::LOGS, &log)
        .spawn()
        .with_context(|| format!("cannot run {}", program.display()))?;
    // Ctrl-C reaches the command by itself; we stay to clean up after it.
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    services.leave().await.context("cannot stop PostgreSQL")?;
    let keys = ["keys/master.key", "keys/signing.key"].map(|name| directory.path().join(name));
    let keys = keys.iter().filter_map(|key| std::fs::read(key).ok()).collect::<Vec<_>>();
    let leaks = logs::leaks(&log, &keys).context("cannot read what was logged")?;
    if !leaks.is_empty() {
        bail!("personal data or secrets were logged:\n{}", leaks.join("\n"));
    }
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn reaper(data_dir: std::ffi::OsString) -> Option<Reaper> {
    // `target/<profile>/examples/with_services`: the program is one directory up.
    let program = std::env::current_exe().ok()?.parent()?.parent()?.join("minutebook");
    let args = vec!["embedded-reaper".into(), "--data-dir".into(), data_dir];
    program.exists().then_some(Reaper { program, args })
}
