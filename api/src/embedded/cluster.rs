//! Makes a cluster, and writes its configuration and its password.

use std::fmt;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::time::Duration;

use super::binaries::Binaries;
use super::error::EmbeddedError;
use super::place::{Place, remove_if_there, sync_dir};
use super::program::Program;
use super::socket;

/// The role that owns the cluster.
pub(super) const USER: &str = "minutebook";

/// The database that the URL names.
pub(super) const DATABASE: &str = "minutebook";

/// The longest `initdb` may take; a slow disk needs most of a minute.
const INITDB_LIMIT: Duration = Duration::from_mins(5);

/// Returns the major version of the cluster, if there is one.
pub(super) fn major(place: &Place) -> Result<Option<u32>, EmbeddedError> {
    let path = place.cluster().join("PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map(Some).map_err(|_| EmbeddedError::UnreadableVersion { path }),
        Err(error) if error.kind() == ErrorKind::NotFound && !place.cluster().exists() => Ok(None),
        Err(error) if error.kind() == ErrorKind::NotFound => Err(EmbeddedError::UnreadableVersion { path }),
        Err(source) => Err(EmbeddedError::io("read", &path, source)),
    }
}

/// Makes the cluster beside its place and renames it: a cluster that exists is whole, whatever was killed and when.
pub(super) async fn create(place: &Place, binaries: &Binaries, durable: bool) -> Result<(), EmbeddedError> {
    let unfinished = place.unfinished_cluster();
    // Kept before the cluster exists: one without its password would be lost.
    let password = Password::generate()?;
    password.write(place)?;
    let for_initdb = place.home().join("initdb.password");
    place.write_file(&for_initdb, &password.0)?;

    let mut args = vec![
        format!("--pgdata={}", unfinished.display()),
        format!("--username={USER}"),
        format!("--pwfile={}", for_initdb.display()),
        "--auth=scram-sha-256".to_owned(),
        "--encoding=UTF8".to_owned(),
        "--locale=C".to_owned(),
        "--data-checksums".to_owned(),
    ];
    if !durable {
        args.push("--no-sync".to_owned());
    }
    let program =
        Program { path: binaries.dir.join("initdb"), account: place.account(), current_dir: place.home() };
    let ended = program
        .run(args, INITDB_LIMIT)
        .await
        .map_err(|source| EmbeddedError::io("run", &program.path, source))?
        .ok_or_else(|| EmbeddedError::TooSlow {
            doing: "initdb",
            limit: INITDB_LIMIT,
            log: place.home().to_owned(),
        })?;
    remove_if_there(&for_initdb).map_err(|source| EmbeddedError::io("remove", &for_initdb, source))?;
    if !ended.success {
        return Err(ended.failure("initdb", &ended.stderr));
    }

    let cluster = place.cluster();
    fs::rename(&unfinished, &cluster)
        .map_err(|source| EmbeddedError::io("rename into place", &cluster, source))?;
    sync_dir(place.home())
}

/// Removes what killed commands left of clusters in the making; called under `start.lock`.
///
/// An `initdb` may have outlived its command and still be writing. Each writes to a directory of its own, so it harms nobody, and what cannot be removed
/// now is removed at a later start.
pub(super) fn clear_abandoned(place: &Place) {
    for abandoned in place.abandoned_clusters() {
        if let Err(error) = fs::remove_dir_all(&abandoned) {
            tracing::debug!(dir = %abandoned.display(), %error, "could not remove an abandoned cluster yet");
        }
    }
}

/// Writes the server's configuration, which is ours; `ALTER SYSTEM` is kept apart from it and wins.
pub(super) fn configure(place: &Place, socket_dir: &Path, durable: bool) -> Result<(), EmbeddedError> {
    let path = place.cluster().join("postgresql.conf");
    place.write_file(&path, &configuration(socket_dir, &place.logs(), durable))
}

fn configuration(socket_dir: &Path, logs: &Path, durable: bool) -> String {
    let port = socket::PORT;
    // A list: the inner quotes keep a comma in the path from ending an entry.
    let socket_dir = literal(&format!("\"{}\"", socket_dir.display()));
    let logs = literal(&logs.display().to_string());
    let durable = if durable { "on" } else { "off" };
    format!(
        "\
# Written by minutebook at every start. To change something, use ALTER SYSTEM.
listen_addresses = ''
port = {port}
unix_socket_directories = {socket_dir}
unix_socket_permissions = 0700
password_encryption = 'scram-sha-256'
max_connections = 200

fsync = {durable}
synchronous_commit = {durable}
full_page_writes = {durable}

# As for Minutebook's own connections: it takes longer to compile most statements than to carry them out.
jit = off
shared_buffers = '128MB'
wal_compression = off
min_wal_size = '256MB'
max_wal_size = '2GB'
# What was forgotten does not live on under another segment's name.
wal_recycle = off
checkpoint_timeout = '15min'

# One file for each day of the week, emptied when the day comes round again.
logging_collector = on
log_directory = {logs}
log_filename = 'server-%a.log'
log_file_mode = 0600
log_rotation_age = '1d'
log_rotation_size = 0
log_truncate_on_rotation = on
log_line_prefix = '%m [%p] '

# Statements, their parameters and the values in error messages are personal data. A client is told its errors; the log has the server's own.
log_min_messages = log
log_min_error_statement = panic
log_error_verbosity = terse
log_statement = 'none'
log_duration = off
log_min_duration_statement = -1
log_parameter_max_length = 0
log_parameter_max_length_on_error = 0
log_autovacuum_min_duration = -1
log_checkpoints = off
"
    )
}

/// Quotes a value for the configuration file.
fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\'', "''"))
}

/// The password of the cluster's owner. It is shown to nobody, not even to `Debug`.
pub(super) struct Password(String);

impl Password {
    fn generate() -> Result<Self, EmbeddedError> {
        let source = Path::new("/dev/urandom");
        let mut bytes = [0_u8; 24];
        File::open(source)
            .and_then(|mut random| random.read_exact(&mut bytes))
            .map_err(|error| EmbeddedError::io("read", source, error))?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// Reads the password of an existing cluster.
    pub(super) fn read(place: &Place) -> Result<Self, EmbeddedError> {
        let path = place.passfile();
        fs::read_to_string(&path)
            .ok()
            .and_then(|text| Self::parse(&text))
            .ok_or(EmbeddedError::Passfile { path })
    }

    /// Returns the password itself, for a connection.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }

    fn write(&self, place: &Place) -> Result<(), EmbeddedError> {
        // The form that libpq reads, for `psql`: host, port, database, user, password.
        place.write_file(&place.passfile(), &format!("*:*:*:{USER}:{}\n", self.0))
    }

    fn parse(passfile: &str) -> Option<Self> {
        let (_, password) = passfile.lines().next()?.rsplit_once(':')?;
        let hexadecimal = !password.is_empty() && password.bytes().all(|byte| byte.is_ascii_hexdigit());
        hexadecimal.then(|| Self(password.to_owned()))
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_differ_and_are_not_shown() {
        let one = Password::generate().unwrap();
        let other = Password::generate().unwrap();

        assert_ne!(one.reveal(), other.reveal());
        assert_eq!(one.reveal().len(), 48);
        assert!(!format!("{one:?}").contains(one.reveal()));
    }

    #[test]
    fn a_damaged_passfile_is_not_taken_for_a_password() {
        assert_eq!(Password::parse("*:*:*:minutebook:00ff\n").unwrap().reveal(), "00ff");
        assert!(Password::parse("").is_none());
        assert!(Password::parse("*:*:*:minutebook:\n").is_none());
        assert!(Password::parse("no colon").is_none());
    }

    #[test]
    fn a_quote_in_a_path_does_not_end_the_configured_value() {
        let written =
            configuration(Path::new("/srv/it's, here/socket"), Path::new("/srv/it's here/log"), true);

        assert!(written.contains(r#"unix_socket_directories = '"/srv/it''s, here/socket"'"#));
        assert!(written.contains("log_directory = '/srv/it''s here/log'"));
    }
}
