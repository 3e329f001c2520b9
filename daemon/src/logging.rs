//! Logs: to the journal with structured fields when systemd has connected us to it, else to standard error.
//!
//! - A field of an event is a field of the journal under its name in capitals: `TERM`, `INDEX`, `PEER`, `LEADER`. There is no
//!   prefix, or `MESSAGE_ID` would not be what `journalctl MESSAGE_ID=…` looks for.
//! - Events that somebody may want to be woken by have an id, which stays when their words change.
//! - What peers can cause is rate-limited where it is logged.
//! - The level can be changed while the daemon runs.

use std::{fmt, fs, io::IsTerminal, os::unix::fs::MetadataExt};

use tracing_subscriber::{
    EnvFilter, Registry,
    field::RecordFields,
    fmt::{FormatFields, format::Writer},
    layer::SubscriberExt,
    reload,
    util::SubscriberInitExt,
};

/// The daemon serves its clients, as a member of a cluster.
pub const STARTED: &str = "6dcfb3e1c9b84ed9a5ab1fd2d1b5a001";
/// The daemon was told to stop.
pub const STOPPING: &str = "6dcfb3e1c9b84ed9a5ab1fd2d1b5a002";
/// The daemon ends because of an error.
pub const FAILED: &str = "6dcfb3e1c9b84ed9a5ab1fd2d1b5a003";
/// The configuration was read again.
pub const RELOADED: &str = "6dcfb3e1c9b84ed9a5ab1fd2d1b5a004";
/// This member left its term for another.
pub const ENTERED_TERM: &str = "6dcfb3e1c9b84ed9a5ab1fd2d1b5a005";
/// The term has begun.
pub const OPENED_TERM: &str = "6dcfb3e1c9b84ed9a5ab1fd2d1b5a006";
/// This member suspects the leader.
pub const SUSPECTING: &str = "6dcfb3e1c9b84ed9a5ab1fd2d1b5a007";
/// A member is proved to have lied.
pub const PROVED: &str = "6dcfb3e1c9b84ed9a5ab1fd2d1b5a008";
/// A message of a member did not stand up to verification.
pub const CORRUPT: &str = "6dcfb3e1c9b84ed9a5ab1fd2d1b5a009";
/// This member's state is another one than the leader's.
pub const STATE_DIFFERS: &str = "6dcfb3e1c9b84ed9a5ab1fd2d1b5a00a";

/// The field that carries the ids above.
const MESSAGE_ID: &str = "message_id";

/// Changes what is logged.
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// From now on this is logged.
    pub fn set(&self, filter: EnvFilter) {
        // The subscriber is there as long as the process.
        let _ = self.0.reload(filter);
    }
}

/// Begins to log at level `info`. To be called once.
pub fn start() -> Level {
    let (filter, handle) = reload::Layer::new(EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let journal = if is_journal() { tracing_journald::layer().ok() } else { None };
    match journal {
        Some(journal) => registry.with(journal.with_field_prefix(None)).init(),
        None => {
            let stderr = tracing_subscriber::fmt::layer()
                .with_writer(std::io::stderr)
                .with_ansi(std::io::stderr().is_terminal())
                .with_target(false)
                .fmt_fields(ForPeople);
            registry.with(stderr).init();
        }
    }
    Level(handle)
}

/// Whether standard error goes to the journal: the variable names the stream that systemd made, and is inherited by
/// processes that have another one.
fn is_journal() -> bool {
    let Ok(named) = std::env::var("JOURNAL_STREAM") else { return false };
    fs::metadata("/proc/self/fd/2").is_ok_and(|stderr| named == format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// Fields as `name=value` after the message, without ids that only the journal can look up.
struct ForPeople;

impl<'writer> FormatFields<'writer> for ForPeople {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut visitor = Fields { writer, is_first: true, result: Ok(()) };
        fields.record(&mut visitor);
        visitor.result
    }
}

struct Fields<'writer> {
    writer: Writer<'writer>,
    is_first: bool,
    result: fmt::Result,
}

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        if field.name() == MESSAGE_ID || self.result.is_err() {
            return;
        }
        let space = if std::mem::take(&mut self.is_first) { "" } else { " " };
        self.result = match field.name() {
            "message" => write!(self.writer, "{space}{value:?}"),
            name => write!(self.writer, "{space}{name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn people_see_fields_and_no_ids() {
        let lines = Lines::default();
        let writer = lines.clone();
        let layer = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .fmt_fields(ForPeople);
        let subscriber = tracing_subscriber::registry().with(layer);
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(message_id = SUSPECTING, term = 3, reason = "silence", "suspecting {}", "them");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.trim(), "WARN suspecting them term=3 reason=\"silence\"");
    }

    #[test]
    fn ids_are_ids_and_no_two_alike() {
        let ids = [
            STARTED,
            STOPPING,
            FAILED,
            RELOADED,
            ENTERED_TERM,
            OPENED_TERM,
            SUSPECTING,
            PROVED,
            CORRUPT,
            STATE_DIFFERS,
        ];
        assert!(ids.iter().all(|id| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())));
        assert_eq!(ids.iter().collect::<std::collections::BTreeSet<_>>().len(), ids.len());
    }
}
