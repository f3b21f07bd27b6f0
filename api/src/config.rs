//! What can be configured: arguments and environment variables, read by clap in one place.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

/// Where the log and the tables are.
#[derive(Debug, Clone, Args)]
pub struct DatabaseConfig {
    /// PostgreSQL to use; without it an embedded one is started under the data directory
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, global = true, value_name = "URL")]
    pub database_url: Option<String>,

    /// Directory of the embedded PostgreSQL [default: /var/lib/minutebook as root, else ~/.local/share/minutebook]
    #[arg(long, env = "MINUTEBOOK_DATA_DIR", global = true, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Directory of PostgreSQL's own programs, for the embedded one; without it they are looked for
    #[arg(long, env = "MINUTEBOOK_POSTGRES_BIN", global = true, value_name = "DIR")]
    pub postgres_bin: Option<PathBuf>,

    /// Repository from which PostgreSQL is downloaded where the machine has none
    #[arg(long, env = "MINUTEBOOK_POSTGRES_RELEASES_URL", global = true, value_name = "URL")]
    pub postgres_releases_url: Option<String>,

    /// The most connections to PostgreSQL, besides those of the appender and the projector
    #[arg(long, env = "MINUTEBOOK_MAX_CONNECTIONS", global = true, default_value_t = 16, value_name = "N",
          value_parser = clap::value_parser!(u32).range(2..=1000), hide = true)]
    pub max_connections: u32,
}

/// What `serve` is to do and how.
#[derive(Debug, Clone, Args)]
pub struct ServeConfig {
    /// Address to listen on; loopback only, until there is authentication
    #[arg(long, env = "MINUTEBOOK_LISTEN", default_value = "127.0.0.1:8642", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Do only this part of the work; the others are done by other processes on the same database
    #[arg(long, env = "MINUTEBOOK_ONLY", value_name = "PART")]
    pub only: Option<Part>,

    /// The longest that a request may take, in seconds
    #[arg(long, env = "MINUTEBOOK_REQUEST_TIMEOUT", default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub request_timeout: Duration,

    /// The longest that a read waits for the position it asks for, in seconds
    #[arg(long, env = "MINUTEBOOK_POSITION_TIMEOUT", default_value = "5", value_parser = seconds, value_name = "SECONDS")]
    pub position_timeout: Duration,

    /// The largest request body, in bytes
    #[arg(long, env = "MINUTEBOOK_BODY_LIMIT", default_value_t = 4 * 1024 * 1024, value_name = "BYTES")]
    pub body_limit: usize,

    /// The most requests at a time; one more is answered 429
    #[arg(long, env = "MINUTEBOOK_MAX_REQUESTS", default_value_t = 1024, value_name = "N")]
    pub max_requests: usize,

    /// How often expired rows are cleared away, in seconds
    #[arg(long, env = "MINUTEBOOK_SWEEP_INTERVAL", default_value = "300", value_parser = seconds, value_name = "SECONDS")]
    pub sweep_interval: Duration,
}

/// A part of the work of `serve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Answer HTTP, and append.
    Api,
    /// Keep the tables up to date. Health and metrics are still served.
    Projector,
}

/// How the log of the process itself looks.
#[derive(Debug, Clone, Args)]
pub struct TelemetryConfig {
    /// What is logged, as a tracing filter: `info`, `debug`, `api=debug,info`
    #[arg(long, env = "MINUTEBOOK_LOG", global = true, value_name = "FILTER")]
    pub log: Option<String>,

    /// How it is written to standard error
    #[arg(long, env = "MINUTEBOOK_LOG_FORMAT", global = true, default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
}

/// The shape of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) | Err(_) => Err("must be a number of seconds, more than 0 and at most 86400".to_owned()),
    }
}
