//! A headless Chromium of its own for each test, driven through ChromeDriver. It reaches nothing but this
//! machine, and at a desk it runs no script of a page.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Duration;

use fantoccini::wd::Capabilities;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// How long the browser may take to start, and a page to come.
const PATIENCE: Duration = Duration::from_secs(60);
/// The directory into which pictures of pages are written, if it is named.
pub(crate) const PICTURES: &str = "MINUTEBOOK_PICTURES";

/// How wide the window is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Screen {
    /// 1200 pixels.
    Desk,
    /// 390 pixels, as a phone has.
    Phone,
}

/// A browser, closed when it is dropped.
pub(crate) struct Browser {
    /// What drives it.
    pub(crate) client: Client,
    screen: Screen,
    driver: Child,
    port: u16,
    session: String,
}

impl Browser {
    /// Starts a browser; says loudly that `test` was left out where there is none.
    pub(crate) async fn start(test: &str, screen: Screen) -> Option<Self> {
        if [find("chromedriver"), find("chromium").or(find("chromium-browser"))].contains(&None) {
            tests::left_out(&format!("{test} needs a browser, and PATH has no chromium with chromedriver"));
            return None;
        }
        let mut driver = Command::new(find("chromedriver")?)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let find_port = async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, port)) = line.split_once("started successfully on port ") {
                    return port.trim_end_matches('.').parse::<u16>().unwrap();
                }
            }
            panic!("ChromeDriver ended before it was ready");
        };
        let port = timeout(PATIENCE, find_port).await.unwrap();
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });

        let mut builder = ClientBuilder::new(HttpConnector::new());
        builder.capabilities(capabilities(screen));
        let address = format!("http://127.0.0.1:{port}");
        let client = timeout(PATIENCE, builder.connect(&address)).await.unwrap().unwrap();
        let session = client.session_id().await.unwrap().unwrap();
        Some(Self { client, screen, driver, port, session })
    }

    /// Opens an address.
    pub(crate) async fn open(&self, url: &str) {
        timeout(PATIENCE, self.client.goto(url)).await.unwrap().unwrap();
    }

    /// Clicks on what the CSS selector finds, and waits for what `then` finds.
    pub(crate) async fn click(&self, selector: &str, then: &str) {
        self.client.find(Locator::Css(selector)).await.unwrap().click().await.unwrap();
        self.wait_for(then).await;
    }

    /// Follows the link with this text, and waits for what `then` finds.
    pub(crate) async fn follow(&self, text: &str, then: &str) {
        self.client.find(Locator::LinkText(text)).await.unwrap().click().await.unwrap();
        self.wait_for(then).await;
    }

    /// Waits for what the CSS selector finds.
    pub(crate) async fn wait_for(&self, selector: &str) {
        let found = self.client.wait().at_most(PATIENCE).for_element(Locator::Css(selector)).await;
        if let Err(error) = found {
            panic!("{selector} does not come: {error}\n{}", self.text("body").await);
        }
    }

    /// Writes into the field that the CSS selector finds.
    pub(crate) async fn write(&self, selector: &str, text: &str) {
        let field = self.client.find(Locator::Css(selector)).await.unwrap();
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Returns the text that is seen of what the CSS selector finds.
    pub(crate) async fn text(&self, selector: &str) -> String {
        self.client.find(Locator::Css(selector)).await.unwrap().text().await.unwrap()
    }

    /// Returns how many elements the CSS selector finds.
    pub(crate) async fn count(&self, selector: &str) -> usize {
        self.client.find_all(Locator::Css(selector)).await.unwrap().len()
    }

    /// Returns what a function's body returns in the page; it is the driver's script, not the page's.
    pub(crate) async fn ask(&self, body: &str) -> Value {
        self.client.execute(body, vec![]).await.unwrap()
    }

    /// Writes a picture of the page, if a directory for pictures is named.
    pub(crate) async fn picture(&self, name: &str) {
        let Some(directory) = std::env::var_os(PICTURES) else { return };
        let picture = self.client.screenshot().await.unwrap();
        let suffix = if self.screen == Screen::Phone { "-phone" } else { "" };
        std::fs::write(std::path::Path::new(&directory).join(format!("{name}{suffix}.png")), picture)
            .unwrap();
    }
}

impl Drop for Browser {
    /// Closes the browser before its driver goes, which would leave it behind; also after a test has failed.
    fn drop(&mut self) {
        let close = || -> std::io::Result<()> {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let Self { session, port, .. } = &*self;
            write!(
                stream,
                "DELETE /session/{session} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
            )?;
            // It answers when the browser is gone, and leaves the connection open.
            stream.read(&mut [0; 1024]).map(|_| ())
        };
        let _ = close();
        let _ = self.driver.start_kill();
    }
}

fn capabilities(screen: Screen) -> Capabilities {
    let arguments = [
        "--headless=new",
        // Root has no sandbox; the pages are our own.
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--force-prefers-reduced-motion",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        "--window-size=1200,900",
    ];
    let mut options = json!({"args": arguments});
    match screen {
        Screen::Desk => options["prefs"] = json!({"profile.managed_default_content_settings.javascript": 2}),
        // Without scripts ChromeDriver waits for ever for a tap; the pages' policy allows none here either.
        Screen::Phone => {
            let metrics = json!({"width": 390, "height": 844, "pixelRatio": 1, "mobile": true});
            options["mobileEmulation"] = json!({"deviceMetrics": metrics});
        }
    }
    let Value::Object(capabilities) = json!({"browserName": "chrome", "goog:chromeOptions": options}) else {
        unreachable!("it is written as an object")
    };
    capabilities
}

fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file())
}
