//! `watch`: a line, an object or a command for each change.

use std::{
    ffi::{OsStr, OsString},
    os::unix::ffi::OsStrExt,
    pin::Pin,
    process::Stdio,
    time::Duration,
};

use bftd_client::{
    Entry, Event, Kinds, News, Refusal, Span, Watch as Watched, WatchError, Watcher, watch::DEFAULT_PATIENCE,
};
use clap::{Args, builder::ValueParser};
use serde::Serialize;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
};

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    render::{self, printable, text_or_base64},
    session::Session,
};

/// How often progress is printed while nothing changes.
const PROGRESS: Duration = Duration::from_secs(5);

/// Print every change of keys, or run a command for each.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl watch greeting\n  bftctl watch --prefix config/ -o json\n  bftctl watch --prefix config/ --from-rev 120\n  \
                        bftctl watch --prefix config/ -- sh -c 'echo \"$BFTCTL_EVENT $BFTCTL_KEY\"; cat'\n\nA line is the revision, put or \
                        delete, the key and the value, apart by tabs. No change is lost or comes twice, also where the daemon is restarted meanwhile. \
                        Ctrl-C ends it, and says the revision to go on from.\n\nThe command gets BFTCTL_EVENT (put or delete), BFTCTL_REVISION, BFTCTL_KEY_BASE64 and, but \
                        for keys with a zero byte, BFTCTL_KEY; the value comes on its stdin. Changes wait until it ends. If it fails, watch ends with exit code 1.\n\n\
                        Exit code 1, and the revision, where the changes asked for are compacted; 10 where no daemon answers any more."
)]
pub(crate) struct Watch {
    /// The key
    #[arg(required_unless_present_any = ["prefix", "from"], conflicts_with_all = ["prefix", "from"])]
    key: Option<String>,
    /// Every key that begins with it; with an empty one all
    #[arg(long, value_name = "PREFIX", conflicts_with = "from")]
    prefix: Option<String>,
    /// Every key from this one on
    #[arg(long, value_name = "KEY")]
    from: Option<String>,
    /// Only keys before this one
    #[arg(long, value_name = "KEY", requires = "from", conflicts_with_all = ["key", "prefix"])]
    end: Option<String>,
    /// Begin with the changes of this revision, which may be past [default: from now on]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    from_rev: Option<u64>,
    /// Also what keys were before
    #[arg(long)]
    prev: bool,
    /// Only deletions
    #[arg(long, conflicts_with = "no_deletes")]
    no_puts: bool,
    /// Only puts
    #[arg(long)]
    no_deletes: bool,
    /// While nothing changes, print every 5 s up to which revision all was told
    #[arg(long)]
    progress: bool,
    /// Go on after the command has failed
    #[arg(long, requires = "command")]
    keep_going: bool,
    /// How long to go without a daemon before giving up
    #[arg(long, value_name = "TIME", default_value_t = DEFAULT_PATIENCE.into(), value_parser = ValueParser::new(str::parse::<humantime::Duration>))]
    give_up_after: humantime::Duration,
    /// Run for each change, after `--`
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// How it goes on after a change.
enum Then {
    Next,
    Stop,
}

impl Watch {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let keys = self.keys();
        keys.check().map_err(|refusal| Failure::usage(refusal.to_string()))?;
        let kinds = match (self.no_puts, self.no_deletes) {
            (true, _) => Kinds::Deletions,
            (_, true) => Kinds::Puts,
            _ => Kinds::All,
        };
        let mut watch = Watched::new(keys).kinds(kinds).from_revision(self.from_rev.unwrap_or(0));
        watch = watch.with_interruptions().patience(self.give_up_after.into());
        if self.prev {
            watch = watch.with_previous();
        }
        if self.progress {
            watch = watch.with_progress(PROGRESS);
        }
        let no_signals = |error| Failure::other("can't wait for signals").cause(error);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        let client = session.client().await?;
        let mut watcher = client.watch(watch)?;
        loop {
            let news = tokio::select! {
                biased;
                _ = interrupt.recv() => {
                    go_on_from(session, watcher.revision());
                    return Ok(Code::Ok);
                }
                news = watcher.next() => news,
            };
            match news {
                Ok(News::Changes(changes)) => {
                    for event in &changes.events {
                        match self.tell(session, event, &mut interrupt).await? {
                            Then::Next => {}
                            Then::Stop => {
                                go_on_from(session, Some(event.revision));
                                return Ok(Code::Ok);
                            }
                        }
                    }
                }
                Ok(News::Progress(revision)) => print_progress(session, revision)?,
                Ok(News::Interrupted(why)) => {
                    let why = printable(why.as_bytes()).into_owned();
                    session.say(&format!("the daemon does not answer, waiting for it: {why}"));
                }
                Ok(News::Resumed) => session.say("the daemon answers again; nothing was missed"),
                Err(error) => return Err(failed(error, &watcher)),
            }
        }
    }

    fn keys(&self) -> Span {
        let bytes = |text: &Option<String>| text.clone().unwrap_or_default().into();
        match (&self.key, &self.prefix, &self.end) {
            (Some(key), ..) => Span::Key(key.clone().into()),
            (_, Some(prefix), _) => Span::Prefix(prefix.clone().into()),
            (_, _, Some(_)) => Span::Range { from: bytes(&self.from), end: bytes(&self.end) },
            _ => Span::From(bytes(&self.from)),
        }
    }

    async fn tell(&self, session: &Session, event: &Event, interrupt: &mut Signal) -> Result<Then, Ended> {
        if self.command.is_empty() {
            print(session, event)?;
            return Ok(Then::Next);
        }
        let name =
            self.command.first().map(|name| printable(name.as_bytes()).into_owned()).unwrap_or_default();
        let failed = |why: String| {
            Failure::other(format!("the command {name} failed for revision {}", event.revision))
                .cause(why)
                .next(format!(
                    "watch with --from-rev {} tries it again; --keep-going goes on all the same",
                    event.revision
                ))
                .detail("revision", event.revision)
        };
        let mut child = self.start(event).map_err(|error| failed(error.to_string()))?;
        let mut fed = feed(&mut child, event);
        let mut is_fed = false;
        let mut stops = false;
        let status = loop {
            tokio::select! {
                // Once it has its value: one that wants none of it leaves it, and that is well.
                () = &mut fed, if !is_fed => is_fed = true,
                status = child.wait() => break status,
                // It got the signal as well, from the same terminal: how it ends is its own matter.
                _ = interrupt.recv() => {
                    if std::mem::replace(&mut stops, true) {
                        child.start_kill().map_err(|error| failed(error.to_string()))?;
                    }
                }
            }
        };
        let status = status.map_err(|error| failed(error.to_string()))?;
        match (stops, status.success()) {
            (true, _) => Ok(Then::Stop),
            (false, true) => Ok(Then::Next),
            (false, false) if self.keep_going => {
                session.say(&format!("the command {name} failed for revision {}: {status}", event.revision));
                Ok(Then::Next)
            }
            (false, false) => Err(failed(status.to_string()).into()),
        }
    }

    fn start(&self, event: &Event) -> std::io::Result<Child> {
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().map_or(OsStr::new(""), OsString::as_os_str));
        command.args(words).stdin(Stdio::piped()).kill_on_drop(true);
        command.env("BFTCTL_EVENT", kind(event)).env("BFTCTL_REVISION", event.revision.to_string());
        command.env("BFTCTL_KEY_BASE64", data_encoding::BASE64.encode(&event.key));
        if event.key.contains(&0) {
            command.env_remove("BFTCTL_KEY");
        } else {
            command.env("BFTCTL_KEY", OsStr::from_bytes(&event.key));
        }
        command.spawn()
    }
}

/// Writes the value, and closes the pipe. Whether the command reads it is its own matter.
fn feed(child: &mut Child, event: &Event) -> Pin<Box<dyn Future<Output = ()>>> {
    let value = event.entry.as_ref().map(|entry| entry.value.clone()).unwrap_or_default();
    let stdin = child.stdin.take();
    Box::pin(async move {
        if let Some(mut stdin) = stdin {
            let _ = stdin.write_all(&value).await;
        }
    })
}

fn go_on_from(session: &Session, revision: Option<u64>) {
    if let Some(revision) = revision {
        session.say(&format!("go on with --from-rev {revision}"));
    }
}

fn failed(error: WatchError, watcher: &Watcher) -> Ended {
    let go_on = watcher.revision();
    match error {
        WatchError::Compacted { from, compacted } => {
            let first = compacted.saturating_add(1);
            Failure::other(format!(
                "the changes of revision {from} are compacted: those up to {compacted} are gone"
            ))
            .cause("a compaction has forgotten what keys were before")
            .next(format!(
                "read how the keys are now (bftctl ls --values), then watch with --from-rev {first}"
            ))
            .detail("compacted", compacted)
            .into()
        }
        WatchError::Lost { seconds, last } => {
            let failure = Failure::from(last);
            let code = failure.code;
            let failure = Failure::new(code, format!("no daemon has answered for {seconds} s"))
                .cause(failure.cause.unwrap_or(failure.message));
            match go_on {
                Some(revision) => failure
                    .next(format!("watch with --from-rev {revision} goes on, here or at another daemon"))
                    .detail("revision", revision)
                    .into(),
                None => failure.into(),
            }
        }
        WatchError::Failed(error) => match &error {
            bftd_client::Error::Failed(bftd_client::Failure::Refused(Refusal::Compacted { compacted })) => {
                Failure::other(error.to_string()).detail("compacted", *compacted).into()
            }
            _ => error.into(),
        },
    }
}

fn kind(event: &Event) -> &'static str {
    if event.entry.is_some() { "put" } else { "delete" }
}

fn print(session: &Session, event: &Event) -> Result<(), Ended> {
    match session.options.output() {
        Output::Json => render::json(&Row::new(event)),
        Output::Table => render::line(&line(event)),
        Output::Value => {
            let mut value = event.entry.as_ref().map(|entry| entry.value.to_vec()).unwrap_or_default();
            value.push(b'\n');
            render::bytes(&value)
        }
    }
}

fn line(event: &Event) -> String {
    let value = |entry: &Option<Entry>| {
        entry.as_ref().map(|entry| printable(&entry.value).into_owned()).unwrap_or_default()
    };
    let mut line = format!("{}\t{}\t{}", event.revision, kind(event), printable(&event.key));
    if event.entry.is_some() || event.previous.is_some() {
        line = format!("{line}\t{}", value(&event.entry));
    }
    if event.previous.is_some() {
        line = format!("{line}\t{}", value(&event.previous));
    }
    line
}

fn print_progress(session: &Session, revision: u64) -> Result<(), Ended> {
    #[derive(Serialize)]
    struct Progress {
        event: &'static str,
        revision: u64,
    }
    match session.options.output() {
        Output::Json => render::json(&Progress { event: "progress", revision }),
        Output::Table => render::line(&format!("{revision}\tprogress")),
        Output::Value => Ok(()),
    }
}

/// A change as a JSON object.
#[derive(Serialize)]
struct Row<'a> {
    event: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    revision: u64,
    #[serde(flatten)]
    value: Option<Value<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    previous: Option<Previous<'a>>,
}

#[derive(Serialize)]
struct Value<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    create_revision: u64,
    version: u64,
}

#[derive(Serialize)]
struct Previous<'a> {
    revision: u64,
    #[serde(flatten)]
    value: Value<'a>,
}

impl<'a> Row<'a> {
    fn new(event: &'a Event) -> Self {
        let (key, key_base64) = text_or_base64(&event.key);
        let previous = |entry: &'a Entry| Previous { revision: entry.mod_revision, value: Value::new(entry) };
        Self {
            event: kind(event),
            key,
            key_base64,
            revision: event.revision,
            value: event.entry.as_ref().map(Value::new),
            previous: event.previous.as_ref().map(previous),
        }
    }
}

impl<'a> Value<'a> {
    fn new(entry: &'a Entry) -> Self {
        let (value, value_base64) = text_or_base64(&entry.value);
        Self { value, value_base64, create_revision: entry.create_revision, version: entry.version }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn entry(value: &[u8], revision: u64, version: u64) -> Entry {
        let value = value.to_vec().into();
        Entry { value, create_revision: 2, mod_revision: revision, version, lease: 0 }
    }

    #[test]
    fn a_change_is_one_line_or_one_object() {
        let put = Event {
            revision: 7,
            key: "a\tb".into(),
            entry: Some(entry(b"x\n", 7, 3)),
            previous: Some(entry(b"\xff", 5, 2)),
        };
        assert_eq!(line(&put), "7\tput\ta\\tb\tx\\n\t\\xff");
        let text = serde_json::to_string(&Row::new(&put)).unwrap();
        let expected = r#"{"event":"put","key":"a\tb","revision":7,"value":"x\n","create_revision":2,"version":3,"previous":{"revision":5,"value_base64":"/w==","create_revision":2,"version":2}}"#;
        assert_eq!(text, expected);
        let delete = Event { revision: 8, key: vec![0xfe].into(), entry: None, previous: None };
        assert_eq!(line(&delete), "8\tdelete\t\\xfe");
        let text = serde_json::to_string(&Row::new(&delete)).unwrap();
        assert_eq!(text, r#"{"event":"delete","key_base64":"/g==","revision":8}"#);
        let delete = Event { previous: Some(entry(b"x", 5, 2)), ..delete };
        assert_eq!(line(&delete), "8\tdelete\t\\xfe\t\tx");
    }
}
