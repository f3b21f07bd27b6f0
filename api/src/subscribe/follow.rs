//! Follows `/v1/changes` of a server: the same events, without a broker.

use std::time::Duration;

use anyhow::bail;
use event_store::retry::backoff;
use projections::feed::cloud_event::{CloudEvent, event_id};
use projections::feed::subscriber::{HandlerError, Inbox, Memory, Report, pause_after};
use reqwest::{Client, Response, StatusCode, Url};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::SubscribeArgs;

/// After how long without a heartbeat the server counts as gone: three of them.
const SILENCE: Duration = Duration::from_secs(45);
/// The most bytes of one line: far above any event.
const LONGEST_LINE: usize = 4 * 1024 * 1024;

/// Hands each event to `handler` until `shutdown`.
pub(super) async fn run(
    server: &str,
    args: &SubscribeArgs,
    memory: impl Memory,
    handler: impl AsyncFn(CloudEvent) -> Result<(), HandlerError>,
    mut report: impl FnMut(Report),
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let url = changes_url(server, args)?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = Client::builder().connect_timeout(Duration::from_secs(10)).build()?;
    let mut inbox = Inbox::open(memory, args.only_new)?;
    inbox.recall(&mut report);
    let following = async {
        let mut failures = 0;
        loop {
            let Lost(reason) =
                listen(&client, &url, args, &mut inbox, &handler, &mut report, &mut failures).await?;
            failures += 1;
            if failures == 1 {
                report(Report::Waiting { reason });
            }
            sleep(backoff(failures, Duration::from_millis(100), Duration::from_secs(5))).await;
        }
    };
    shutdown.run_until_cancelled(following).await.unwrap_or(Ok(()))
}

/// Why one connection ended, where another one may go on.
struct Lost(String);

fn changes_url(server: &str, args: &SubscribeArgs) -> anyhow::Result<Url> {
    let url = Url::parse(server).ok().filter(|url| ["http", "https"].contains(&url.scheme()));
    let Some(mut url) = url else { bail!("--server must be a URL such as http://127.0.0.1:8642") };
    let path = format!("{}/v1/changes", url.path().trim_end_matches('/'));
    url.set_path(&path);
    url.set_query(Some(&format!("type={}", args.event_type.short())));
    Ok(url)
}

async fn listen(
    client: &Client,
    url: &Url,
    args: &SubscribeArgs,
    inbox: &mut Inbox<impl Memory>,
    handler: &impl AsyncFn(CloudEvent) -> Result<(), HandlerError>,
    report: &mut impl FnMut(Report),
    failures: &mut u32,
) -> anyhow::Result<Lost> {
    let mut request = client.get(url.clone());
    if let Some(token) = args.token.as_ref().filter(|token| !token.is_empty()) {
        request = request.bearer_auth(token.trim());
    }
    if inbox.ledger().epoch().is_none() && args.only_new {
        request = request.query(&[("from", "new")]);
    }
    if let Some(epoch) = inbox.ledger().epoch() {
        // What is missing is in the log: from there on; what was had is passed over.
        let from = inbox.ledger().gaps().first().map_or(inbox.ledger().position(), |gap| gap.after);
        request = request.header("last-event-id", event_id(epoch, from));
    }
    let mut response = match timeout(SILENCE, request.send()).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Ok(Lost(without_url(error))),
        Err(_) => return Ok(Lost("the server does not answer".to_owned())),
    };
    match response.status() {
        StatusCode::OK => {
            let kind = response.headers().get("content-type").and_then(|kind| kind.to_str().ok());
            if !kind.is_some_and(|kind| kind.starts_with("text/event-stream")) {
                bail!("the server's answer is not a feed: is --server a Minutebook?");
            }
            report(Report::Listening);
        }
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            return Ok(Lost(format!("the server answers {status}")));
        }
        status => {
            let text = response.text().await.unwrap_or_default();
            bail!("the server answers {status}: {}", text.chars().take(300).collect::<String>());
        }
    }
    let mut lines = Lines::default();
    loop {
        let event = match next_event(&mut response, &mut lines).await? {
            Ok(event) => event,
            Err(lost) => return Ok(lost),
        };
        *failures = 0;
        if inbox.look(&event, report) {
            if event.skipped {
                inbox.pass(&event, report)?;
                continue;
            }
            handle(&event, args.tries, inbox, handler, report).await?;
        }
    }
}

/// Handles one event, again and again until it succeeds or is set aside.
async fn handle(
    event: &CloudEvent,
    most: u32,
    inbox: &mut Inbox<impl Memory>,
    handler: &impl AsyncFn(CloudEvent) -> Result<(), HandlerError>,
    report: &mut impl FnMut(Report),
) -> anyhow::Result<()> {
    for tries in 1..=most {
        match handler(event.clone()).await {
            Ok(()) => return Ok(inbox.enter(event, report)?),
            Err(error) if tries == most => inbox.set_aside(event, &error.to_string(), report)?,
            Err(error) => {
                let again_in = pause_after(tries);
                let error = error.to_string();
                report(Report::Failed { position: event.position, tries, again_in, error });
                sleep(again_in).await;
            }
        }
    }
    Ok(())
}

/// Reads on to the next event.
async fn next_event(response: &mut Response, lines: &mut Lines) -> anyhow::Result<Result<CloudEvent, Lost>> {
    loop {
        while let Some(line) = lines.next() {
            // One `data` line is a whole event: JSON has no line breaks.
            if let Some(data) = line.strip_prefix("data:")
                && let Some(event) = CloudEvent::from_json(data.trim_start())
            {
                return Ok(Ok(event));
            }
        }
        let lost = |reason: String| Ok(Err(Lost(reason)));
        match timeout(SILENCE, response.chunk()).await {
            Ok(Ok(Some(chunk))) => lines.push(&chunk),
            Ok(Ok(None)) => return lost("the server ended the answer".to_owned()),
            Ok(Err(error)) => return lost(without_url(error)),
            Err(_) => return lost("the server has gone silent".to_owned()),
        }
        anyhow::ensure!(lines.0.len() <= LONGEST_LINE, "the server's answer is not a feed");
    }
}

/// Bytes in, lines out.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, chunk: &[u8]) {
        self.0.extend_from_slice(chunk);
    }

    fn next(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = self.0.drain(..=end).collect::<Vec<_>>();
        Some(String::from_utf8_lossy(&line).trim_end().to_owned())
    }
}

/// A URL may have a password in it.
fn without_url(error: reqwest::Error) -> String {
    let error = anyhow::Error::from(error.without_url());
    crate::terminal::causes(&error)
}
