//! The process's own log and metrics.

use std::io;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, TelemetryConfig};

/// Durations in seconds, from a tenth of a flush to a time-out.
const SECONDS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
const GROUP_SIZES: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Starts logging to standard error: standard output is for results.
pub fn init_logging(config: &TelemetryConfig, default_filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(config.log.as_deref().unwrap_or(default_filter))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    match config.log_format {
        LogFormat::Text => {
            let ansi = io::IsTerminal::is_terminal(&io::stderr());
            subscriber.with_ansi(ansi).with_target(false).try_init()
        }
        LogFormat::Json => subscriber.json().flatten_event(true).try_init(),
    }
    .map_err(|error| anyhow::anyhow!(error))
}

/// Starts collecting metrics; what comes back renders them for Prometheus.
pub fn init_metrics() -> anyhow::Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_size".to_owned()), GROUP_SIZES)?
        .install_recorder()?;
    describe();
    Ok(handle)
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!("minutebook_appends_total", "Appends by outcome: appended, duplicate, conflict");
    describe_counter!("minutebook_append_retries_total", "Groups sent again after a lost connection");
    describe_histogram!("minutebook_append_group_size", "Appends that went to disk together");
    describe_counter!(
        "minutebook_command_conflicts_total",
        "Appends that met a conflict and were decided anew"
    );
    describe_histogram!(
        "minutebook_command_seconds",
        Unit::Seconds,
        "Commands by aggregate, name and outcome"
    );
    describe_counter!("minutebook_projected_events_total", "Events that the projector took into the tables");
    describe_counter!("minutebook_published_events_total", "Events that this process put on the stream");
    describe_counter!("minutebook_publish_failures_total", "Times that publishing was interrupted");
    describe_gauge!("minutebook_publish_position", "The last position that the stream has");
    describe_gauge!("minutebook_publish_lag_events", "Events that the stream does not have yet");
    describe_gauge!(
        "minutebook_publish_lost_up_to",
        "Up to which position the broker has lost events; 0 if it has not"
    );
    describe_gauge!("minutebook_publish_healthy", "1 unless the publisher waits or refuses to go on");
    describe_counter!("minutebook_rate_limited_total", "Requests refused because one caller asked too fast");
    describe_counter!(
        "minutebook_refusals_not_noted_total",
        "Refused requests that came too fast for the audit of access"
    );
    describe_gauge!("minutebook_log_head", "The newest position of the log");
    describe_gauge!("minutebook_projection_position", "The last position that the tables show");
    describe_gauge!("minutebook_projection_lag_events", "Events that the tables do not show yet");
    describe_gauge!("minutebook_projection_lag_seconds", Unit::Seconds, "Age of the oldest of them");
    describe_gauge!("minutebook_voices_position", "Up to which position the voices are known here");
    describe_gauge!("minutebook_voices_lag_events", "Events that the voices may not have followed yet");
    describe_gauge!("minutebook_rebuild_running", "1 while a rebuild, a verification or a rollback runs");
    describe_gauge!("minutebook_rebuild_events_done", "Events that it has done in its phase");
    describe_gauge!("minutebook_rebuild_events_total", "Events of that phase, 0 where it has no measure");
    describe_gauge!(
        "minutebook_rebuild_age_seconds",
        Unit::Seconds,
        "Time since the tables were last rebuilt; absent if they never were"
    );
    describe_gauge!(
        "minutebook_verification_age_seconds",
        Unit::Seconds,
        "Time since the tables were last proved; absent if they never were"
    );
    describe_gauge!(
        "minutebook_parked_events",
        "Events that cannot be applied, and those that wait behind them"
    );
    describe_gauge!("minutebook_parked_aggregates", "Meetings and profiles to which they belong");
    describe_gauge!(
        "minutebook_parked_seconds",
        Unit::Seconds,
        "How long the oldest of them has been parked"
    );
    describe_gauge!("minutebook_erasures_under_way", "Erasures that are not carried out everywhere yet");
    describe_gauge!("minutebook_erasures_seconds", Unit::Seconds, "How long ago the oldest of them began");
    describe_histogram!(
        "minutebook_http_request_seconds",
        Unit::Seconds,
        "Requests by route, method and status"
    );
}
