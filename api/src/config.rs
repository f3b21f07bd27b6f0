//! What can be configured: arguments and environment variables, read by clap in one place.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use domain::ValueError;
use domain::speaker::PolicyVersion;
use domain::speaker_matching::{Policy, Thresholds};
use domain::voice::{MAX_DIMENSION, ModelId, VoiceModels};
use event_store::sealing::MasterSource;
use projections::feed::stream::{StorageType, StreamConfig};
use serde::Deserialize;

use crate::auth::keys::{SigningKey, check_private};
use crate::embedded;
use crate::file_rules::FileRules;

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

    /// File of the master key, under which personal data is sealed; made at first start [default: keys/master.key in
    /// the data directory]
    #[arg(
        long,
        env = "MINUTEBOOK_MASTER_KEY_FILE",
        hide_env_values = true,
        global = true,
        value_name = "FILE",
        hide_short_help = true
    )]
    pub master_key_file: Option<PathBuf>,

    /// The master key itself instead of a file, in base64; while it changes the new one and the old, with a comma
    #[arg(
        long,
        env = "MINUTEBOOK_MASTER_KEY",
        hide_env_values = true,
        global = true,
        value_name = "KEY",
        hide = true
    )]
    pub master_key: Option<String>,

    /// The most connections to PostgreSQL, besides those of the appender and the projector
    #[arg(long, env = "MINUTEBOOK_MAX_CONNECTIONS", global = true, default_value_t = 16, value_name = "N",
          value_parser = clap::value_parser!(u32).range(2..=1000), hide = true)]
    pub max_connections: u32,
}

impl DatabaseConfig {
    /// Returns the data directory.
    pub fn data_dir(&self) -> anyhow::Result<PathBuf> {
        data_dir(self.data_dir.as_deref())
    }

    /// Returns where the master key is; fails if it is where others may read it.
    pub fn master(&self) -> anyhow::Result<MasterSource> {
        // A variable that is set to nothing is not set.
        if let Some(key) = self.master_key.as_ref().filter(|key| !key.trim().is_empty()) {
            return Ok(MasterSource::Text(key.clone()));
        }
        if let Some(path) = named(self.master_key_file.as_deref()) {
            check_private(path, true)?;
            return Ok(MasterSource::File(path.to_owned()));
        }
        let path = self.data_dir()?.join("keys/master.key");
        check_private(&path, false)?;
        Ok(MasterSource::File(path))
    }
}

/// Returns the data directory, `dir` if it is named.
fn data_dir(dir: Option<&Path>) -> anyhow::Result<PathBuf> {
    match dir {
        Some(dir) => std::path::absolute(dir).context("the data directory's path cannot be used"),
        None => Ok(embedded::default_data_dir()?),
    }
}

/// Returns the file of a key, if one is named: by a variable that is set to nothing none is.
fn named(file: Option<&Path>) -> Option<&Path> {
    file.filter(|file| !file.as_os_str().is_empty())
}

/// The broker of the change feed.
#[derive(Debug, Clone, Args)]
pub struct NatsConfig {
    /// NATS server with JetStream for the change feed; without it the feed is at /v1/changes alone
    #[arg(long, env = "NATS_URL", hide_env_values = true, value_name = "URL")]
    pub nats_url: Option<String>,

    /// File with credentials for it
    #[arg(long, env = "NATS_CREDENTIALS", value_name = "FILE")]
    pub nats_credentials: Option<PathBuf>,

    /// Name of the stream
    #[arg(long, env = "MINUTEBOOK_NATS_STREAM", default_value = "MINUTEBOOK", value_name = "NAME",
          value_parser = stream_name)]
    pub nats_stream: String,

    /// On how many servers of a cluster the stream is kept, when it is created; 3 in production
    #[arg(long, env = "MINUTEBOOK_NATS_REPLICAS", default_value_t = 1, value_name = "N",
          value_parser = clap::value_parser!(u8).range(1..=5), hide_short_help = true)]
    pub nats_replicas: u8,

    /// Where the stream is kept, when it is created
    #[arg(
        long,
        env = "MINUTEBOOK_NATS_STORAGE",
        default_value = "file",
        value_name = "STORAGE",
        hide_short_help = true
    )]
    pub nats_storage: Storage,

    /// The age in seconds at which messages go, when the stream is created; 0 keeps them
    #[arg(
        long,
        env = "MINUTEBOOK_NATS_MAX_AGE",
        default_value_t = 0,
        value_name = "SECONDS",
        hide_short_help = true
    )]
    pub nats_max_age: u64,

    /// The size in bytes at which the oldest messages go, when the stream is created; -1 is none
    #[arg(long, env = "MINUTEBOOK_NATS_MAX_BYTES", default_value_t = -1, value_name = "BYTES",
          value_parser = clap::value_parser!(i64).range(-1..), allow_hyphen_values = true, hide_short_help = true)]
    pub nats_max_bytes: i64,

    /// How long the broker remembers message ids, in seconds, when the stream is created
    #[arg(long, env = "MINUTEBOOK_NATS_DUPLICATE_WINDOW", default_value = "120", value_parser = seconds,
          value_name = "SECONDS", hide_short_help = true)]
    pub nats_duplicate_window: Duration,
}

/// Where a stream is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Storage {
    /// In files: it is there after a restart.
    File,
    /// In memory.
    Memory,
}

impl NatsConfig {
    /// Returns how to reach the stream, if a broker is configured.
    pub fn stream(&self) -> Option<StreamConfig> {
        Some(StreamConfig {
            // A variable that is set to nothing is not set.
            url: self.nats_url.clone().filter(|url| !url.is_empty())?,
            credentials: self.nats_credentials.clone(),
            name: self.nats_stream.clone(),
            storage: match self.nats_storage {
                Storage::File => StorageType::File,
                Storage::Memory => StorageType::Memory,
            },
            replicas: self.nats_replicas.into(),
            max_age: Duration::from_secs(self.nats_max_age),
            max_bytes: self.nats_max_bytes,
            duplicate_window: self.nats_duplicate_window,
        })
    }
}

/// NATS takes no other names for a stream.
fn stream_name(name: &str) -> Result<String, String> {
    let sound = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if (1..=64).contains(&name.len()) && name.chars().all(sound) {
        return Ok(name.to_owned());
    }
    Err("must be 1 to 64 letters, digits, _ or -".to_owned())
}

/// The key that tokens are made with, and what they say of where they come from.
#[derive(Debug, Clone, Args)]
pub struct IssuerConfig {
    /// File of the key for tokens, made if it is missing [default: keys/signing.key in the data directory]
    #[arg(long, env = "MINUTEBOOK_SIGNING_KEY_FILE", value_name = "FILE")]
    pub signing_key_file: Option<PathBuf>,

    /// Who makes the tokens that are taken: their `iss`
    #[arg(long, env = "MINUTEBOOK_ISSUER", default_value = "minutebook", value_name = "ISSUER")]
    pub issuer: String,

    /// For whom they are made: their `aud`
    #[arg(long, env = "MINUTEBOOK_AUDIENCE", default_value = "minutebook", value_name = "AUDIENCE")]
    pub audience: String,
}

impl IssuerConfig {
    /// Returns the file of the key, if one is named.
    pub fn named_key(&self) -> Option<&Path> {
        named(self.signing_key_file.as_deref())
    }

    /// Returns where the key is.
    fn key_path(&self, dir: Option<&Path>) -> anyhow::Result<PathBuf> {
        match self.named_key() {
            Some(path) => Ok(path.to_owned()),
            None => Ok(data_dir(dir)?.join("keys/signing.key")),
        }
    }

    /// Opens the key, which is made if it is missing; fails if others may read it.
    pub fn key(&self, data_dir: Option<&Path>) -> anyhow::Result<SigningKey> {
        let path = self.key_path(data_dir)?;
        check_private(&path, self.named_key().is_some())?;
        SigningKey::open_or_make(&path)
    }
}

/// Who is let in.
#[derive(Debug, Clone, Args)]
pub struct AuthConfig {
    /// Whose tokens are taken
    #[command(flatten)]
    pub issuer: IssuerConfig,

    /// Keys of the tokens' issuer, as a JSON Web Key Set: a file, or an https URL; the local key counts beside it
    /// only if --signing-key-file names it
    #[arg(long, env = "MINUTEBOOK_JWKS", value_name = "FILE|URL")]
    pub jwks: Option<String>,

    /// How often these keys are fetched anew, in seconds
    #[arg(long, env = "MINUTEBOOK_JWKS_REFRESH", default_value = "300", value_parser = seconds, value_name = "SECONDS",
          hide_short_help = true)]
    pub jwks_refresh: Duration,

    /// What answers without a token, besides health and the login page: `metrics`, `docs`, by commas
    #[arg(long, env = "MINUTEBOOK_OPEN", value_delimiter = ',', value_name = "WHAT")]
    pub open: Vec<Openable>,

    /// TLS ends in front of this server: cookies are for TLS alone, and listening for others is no cause to warn
    #[arg(long, env = "MINUTEBOOK_TLS_IN_FRONT")]
    pub tls_in_front: bool,
}

/// What may be opened to everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Openable {
    /// `/metrics`.
    Metrics,
    /// `/docs` and `/openapi.json`.
    Docs,
}

/// What `serve` is to do and how.
#[derive(Debug, Clone, Args)]
pub struct ServeConfig {
    /// Address to listen on
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

    /// The most requests at a time, three quarters of them of one caller; one more is answered 429
    #[arg(long, env = "MINUTEBOOK_MAX_REQUESTS", default_value_t = 1024, value_name = "N")]
    pub max_requests: usize,

    /// The longest that the head of a request may take, in seconds; also how long a connection may be idle
    #[arg(long, env = "MINUTEBOOK_HEAD_TIMEOUT", default_value = "20", value_parser = seconds, value_name = "SECONDS",
          hide_short_help = true)]
    pub head_timeout: Duration,

    /// The most connections of clients at a time; further clients wait
    #[arg(long, env = "MINUTEBOOK_MAX_CLIENTS", default_value_t = 4096, value_name = "N",
          value_parser = at_least_one, hide_short_help = true)]
    pub max_clients: usize,

    /// For how many seconds browsers are told to come by TLS only, where TLS ends in front; 0 tells them nothing
    #[arg(
        long,
        env = "MINUTEBOOK_HSTS",
        default_value_t = 0,
        value_name = "SECONDS",
        hide_short_help = true
    )]
    pub hsts: u64,

    /// The most requests of one caller a second; one more is answered 429. 0 is no limit
    #[arg(
        long,
        env = "MINUTEBOOK_RATE_LIMIT",
        default_value_t = 2000,
        value_name = "N",
        hide_short_help = true
    )]
    pub rate_limit: u32,

    /// How often expired rows are cleared away, in seconds
    #[arg(long, env = "MINUTEBOOK_SWEEP_INTERVAL", default_value = "300", value_parser = seconds, value_name = "SECONDS")]
    pub sweep_interval: Duration,

    /// Erase meetings of which nothing was heard for so many days; never if not said
    #[arg(long, env = "MINUTEBOOK_RETENTION_DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500),
          value_name = "DAYS")]
    pub retention_days: Option<u32>,

    /// For how many days the audit of access is kept, 30 at least
    #[arg(long, env = "MINUTEBOOK_ACCESS_KEPT_DAYS", default_value_t = 365, value_name = "DAYS",
          value_parser = clap::value_parser!(u32).range(30..=36_500), hide_short_help = true)]
    pub access_kept_days: u32,

    /// The most clients that follow /v1/changes or fetch the audit as CSV at a time; one more is answered 429
    #[arg(long, env = "MINUTEBOOK_MAX_FOLLOWERS", default_value_t = 256, value_name = "N")]
    pub max_followers: usize,

    /// The most of these that one caller has
    #[arg(
        long,
        env = "MINUTEBOOK_MAX_FOLLOWERS_OF_ONE",
        default_value_t = 16,
        value_name = "N",
        hide_short_help = true
    )]
    pub max_followers_of_one: usize,

    /// The voice models that are known, each with the dimension of its vectors: `NAME=DIMENSION`, by commas
    #[arg(long, env = "MINUTEBOOK_VOICE_MODELS", default_value = "resemblyzer-0.1.4=256", value_delimiter = ',',
          value_parser = voice_model, value_name = "MODELS")]
    pub voice_models: Vec<(ModelId, usize)>,

    /// How voices are matched, for each model: JSON, or a file with it; see docs/OPERATIONS.md
    #[arg(long, env = "MINUTEBOOK_MATCHING_POLICIES", default_value = "", hide_default_value = true,
          value_parser = policies, value_name = "POLICIES")]
    pub matching_policies: Policies,

    /// What may be said about files
    #[command(flatten)]
    pub files: FileRules,

    /// Who is let in
    #[command(flatten)]
    pub auth: AuthConfig,

    /// Where the change feed goes
    #[command(flatten)]
    pub nats: NatsConfig,
}

impl ServeConfig {
    /// Returns how many of the requests at a time may be of one caller, three quarters rounded up: from four places on
    /// others find one all the same.
    pub const fn max_requests_of_one(&self) -> usize {
        self.max_requests - self.max_requests / 4
    }

    /// Returns the voice models that are known.
    pub fn voice_models(&self) -> VoiceModels {
        voice_models(&self.voice_models)
    }

    /// Returns how the voices of the known models are matched: as is configured, else by the default of the
    /// model. A model that has neither is never matched. Fails where the policy is for no known model.
    pub fn policies(&self) -> Result<Vec<Policy>, ValueError> {
        let mut policies = self.matching_policies.0.clone();
        let known = |model: &ModelId| self.voice_models.iter().any(|(name, _)| name == model);
        if !policies.iter().all(|policy| known(policy.model())) {
            return Err(ValueError::new("model", "must be one of --voice-models in each matching policy"));
        }
        let default = Policy::default();
        if known(default.model()) && !policies.iter().any(|policy| policy.model() == default.model()) {
            policies.push(default);
        }
        Ok(policies)
    }
}

/// Returns the voice models of a list.
pub fn voice_models(list: &[(ModelId, usize)]) -> VoiceModels {
    VoiceModels::new(list.iter().cloned().collect())
}

/// Reads a voice model and its dimension.
pub fn voice_model(text: &str) -> Result<(ModelId, usize), String> {
    let parsed = text.rsplit_once('=').and_then(|(name, dimension)| {
        let dimension = dimension.parse().ok().filter(|n| (1..=MAX_DIMENSION).contains(n))?;
        Some((name.parse().ok()?, dimension))
    });
    parsed.ok_or_else(|| format!("must be a model's name, =, and a dimension of 1 to {MAX_DIMENSION}"))
}

/// How voices are matched, no model twice.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Policies(Vec<Policy>);

/// A policy, as it is written down.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyText {
    model: ModelId,
    version: PolicyVersion,
    auto: f64,
    suggest: f64,
    margin: f64,
    minimum_speech_ms: u64,
}

/// Reads policies from JSON, or from the file that is named. Nothing at all is none.
pub fn policies(text: &str) -> Result<Policies, String> {
    let text = text.trim();
    if text.is_empty() {
        return Ok(Policies::default());
    }
    let json = if text.starts_with(['[', '{']) {
        text.to_owned()
    } else {
        std::fs::read_to_string(text).map_err(|error| format!("the file cannot be read: {error}"))?
    };
    let deserializer = &mut serde_json::Deserializer::from_str(&json);
    let texts: Vec<PolicyText> = serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let problem = format!("at {}: {}", error.path(), error.inner());
        format!("a list of policies is expected, {}", problem.chars().take(300).collect::<String>())
    })?;
    let mut policies = Vec::<Policy>::new();
    for text in texts {
        let PolicyText { model, version, auto, suggest, margin, minimum_speech_ms } = text;
        if policies.iter().any(|policy| policy.model() == &model) {
            return Err(format!("model: {model} has two policies"));
        }
        let thresholds = Thresholds { auto, suggest, margin, minimum_speech_ms };
        let policy = Policy::new(model.clone(), version, thresholds);
        policies.push(policy.map_err(|error| format!("in the policy for {model}: {error}"))?);
    }
    Ok(Policies(policies))
}

/// A part of the work of `serve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Answer HTTP, and append.
    Api,
    /// Keep the tables up to date. Health and metrics are still served.
    Projector,
    /// Put the change feed on NATS. Health and metrics are still served.
    Publisher,
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

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|n| *n > 0).ok_or_else(|| "must be a number from 1 on".to_owned())
}

pub(crate) fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(Duration::from_secs_f64(seconds)),
        Ok(_) | Err(_) => Err("must be a number of seconds, more than 0 and at most 86400".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_that_is_set_to_nothing_names_no_key() {
        let database = DatabaseConfig {
            database_url: None,
            data_dir: Some("here".into()),
            postgres_bin: None,
            postgres_releases_url: None,
            master_key_file: Some(PathBuf::new()),
            master_key: Some(" ".to_owned()),
            max_connections: 2,
        };
        let issuer = IssuerConfig {
            signing_key_file: Some(PathBuf::new()),
            issuer: String::new(),
            audience: String::new(),
        };
        let keys = std::path::absolute("here/keys").unwrap();
        let MasterSource::File(master) = database.master().unwrap() else { panic!("no text was given") };
        assert_eq!(master, keys.join("master.key"));
        assert_eq!(issuer.key_path(database.data_dir.as_deref()).unwrap(), keys.join("signing.key"));
        assert_eq!(issuer.named_key(), None);
    }

    #[test]
    fn a_policy_that_makes_no_sense_is_refused_with_its_field() {
        let with = |change: &str| {
            let good = r#"{"model": "m", "version": "1", "auto": 0.9, "suggest": 0.8, "margin": 0.1, "minimum_speech_ms": 1}"#;
            let (field, _) = change.split_once(':').unwrap();
            let start = good.find(field).unwrap();
            let end = start + good[start..].find([',', '}']).unwrap();
            policies(&format!("[{}{change}{}]", &good[..start], &good[end..]))
        };
        assert!(with(r#""auto": 0.95"#).is_ok());
        for (change, field) in [
            (r#""auto": 1.5"#, "auto"),
            (r#""auto": -1"#, "auto"),
            (r#""auto": "high""#, "auto"),
            (r#""suggest": 0.95"#, "suggest"),
            (r#""margin": 2"#, "margin"),
            (r#""margin": null"#, "margin"),
            (r#""minimum_speech_ms": -1"#, "minimum_speech_ms"),
            (r#""minimum_speech_ms": 0.5"#, "minimum_speech_ms"),
            (r#""version": """#, "version"),
            (r#""model": " ""#, "model"),
            (r#""margin": 0.1, "surprise": 1"#, "surprise"),
        ] {
            let refused = with(change).unwrap_err();
            assert!(refused.contains(field), "{change}: {refused}");
        }
        assert_eq!(policies(" "), Ok(Policies::default()));
        assert!(policies("{}").is_err() && policies("/nowhere/at/all").unwrap_err().contains("file"));
    }
}
