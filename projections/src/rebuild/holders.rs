//! Who keeps a swap waiting, for those who wait for it.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use event_store::EventStore;
use tokio::time::{sleep, timeout};

/// How often it is looked who that is, during a try.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// How long a look may take.
const LOOK: Duration = Duration::from_secs(2);
/// How many of them are named.
const NAMED: usize = 3;

/// Who keeps the swap waiting, as the database knows them: each backend with its number.
#[derive(Default)]
pub(super) struct Holders {
    /// In this try.
    now: BTreeMap<i32, String>,
    /// In the one before.
    before: BTreeMap<i32, String>,
}

impl Holders {
    /// Looks again and again whom `backend` waits for, as well as it can: it is for those who wait, and fails nothing.
    pub(super) async fn watch(&mut self, store: &EventStore, backend: i32) -> Infallible {
        loop {
            sleep(LOOK_EVERY).await;
            // Of other logins a login that may not read all sees no more than this.
            let blocking = sqlx::query_as(
                "SELECT a.pid, concat_ws(' ', 'backend', a.pid,
                            '(' || coalesce(nullif(a.application_name, ''), a.backend_type) || ')', 'since ' ||
                            to_char(a.xact_start AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'))
                   FROM pg_stat_activity a WHERE a.pid = ANY (pg_blocking_pids($1))",
            );
            let blocking = blocking.bind(backend).fetch_all(store.pool());
            if let Ok(Ok(blocking)) = timeout(LOOK, blocking).await {
                let blocking: Vec<(i32, String)> = blocking;
                self.now.extend(blocking);
            }
        }
    }

    /// Takes note that another try begins.
    pub(super) fn begin_anew(&mut self) {
        self.before = std::mem::take(&mut self.now);
    }
}

impl fmt::Display for Holders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Whoever was in the way once only is a passer-by.
        let stay = self.now.iter().filter(|(backend, _)| self.before.contains_key(backend));
        let stay: Vec<&str> = stay.map(|(_, who)| who.as_str()).collect();
        match stay.len() {
            0 => f.write_str("some who come and go"),
            1..=NAMED => f.write_str(&stay.join(", ")),
            n => write!(f, "{} and {} more", stay[..NAMED].join(", "), n - NAMED),
        }
    }
}
