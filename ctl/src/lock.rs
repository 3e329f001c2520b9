//! `lock`: a command that runs while a lock is held.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::Duration,
};

use bftd_client::{Lock as Held, LockError};
use clap::Args;
use rustix::process::{Pid, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{Signal, SignalKind, signal},
    time::{sleep, timeout},
};

use crate::{
    failure::{Code, Ended, Failure},
    render::{self, printable},
    session::Session,
};

/// How long a command has to end once the lock is lost.
const GRACE: Duration = Duration::from_secs(5);

/// Run a command while holding a lock.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl lock backups -- ./backup.sh\n  bftctl lock leader --ttl 5s --wait 1m -- ./serve\n  bftctl lock leader -- sh -c \
                        'bftctl put current \"$(hostname)\"'\n\nThe command finds in its environment BFTCTL_LOCK_KEY, BFTCTL_LOCK_TOKEN, a number that rises from \
                        holder to holder, and BFTCTL_FENCE, by which each `bftctl put` and `bftctl del` of it fails (exit 4) once the lock is not its \
                        own any more. When the lock is lost, because the cluster could not be reached or this process was stopped for too long, the \
                        command is ended: SIGTERM, and SIGKILL after 5 s.\n\nExit codes: that of the command · 1 the lock was lost, or not to be had in time · 128 and \
                        the number of the signal that ended the command"
)]
pub(crate) struct Lock {
    /// The lock's name: its holders' keys are NAME/ID, and no other keys may be below NAME/
    name: String,
    /// How long the lock stays held after its holder was heard last
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    ttl: Duration,
    /// How long to wait for it; without, as long as it takes
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    wait: Option<Duration>,
    /// Run while it is held, after `--`; without a command the lock is held until Ctrl-C
    #[arg(last = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Lock {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let mut signals = Signals::new()?;
        let (client, changes) = (session.client().await?, session.changes().await?);
        let mut told = None;
        let give_up = async {
            told = timeout(self.wait.unwrap_or(Duration::MAX), signals.next()).await.ok();
        };
        let acquired = Held::acquire(&client, &changes, self.name.as_bytes(), self.ttl, give_up).await;
        let lock = match acquired {
            Ok(lock) => lock,
            Err(LockError::GaveUp) => {
                return told.map_or_else(
                    || Err(self.was_not_to_be_had()),
                    |signal| Ok(Code::OfCommand(128 + signal)),
                );
            }
            Err(error) => return Err(failed(error)),
        };
        session.debug(|| format!("the lock is held: {} with token {}", printable(lock.key()), lock.token()));
        let ended = if self.command.is_empty() {
            render::line(&format!("{}\t{}", printable(lock.key()), lock.token()))?;
            tokio::select! {
                _ = signals.next() => Ok(Code::Ok),
                () = lock.lost() => Err(lost(&self.name)),
            }
        } else {
            self.run_command(&lock, session, &mut signals).await
        };
        if let Err(error) = lock.release().await {
            let why = printable(error.to_string().as_bytes()).into_owned();
            session.say(&format!("the lock is not given back, and free when its lease ends: {why}"));
        }
        ended
    }

    fn was_not_to_be_had(&self) -> Ended {
        let name = printable(self.name.as_bytes());
        let waited = humantime::format_duration(self.wait.unwrap_or_default());
        Failure::other(format!("the lock {name} was not to be had in {waited}"))
            .next(format!("bftctl ls {name}/ --sort created shows who holds it and who waits"))
            .into()
    }

    async fn run_command(
        &self,
        lock: &Held,
        session: &Session,
        signals: &mut Signals,
    ) -> Result<Code, Ended> {
        let mut child = self.start(lock).map_err(|error| {
            let name = self.command.first().map(|name| printable(name.as_encoded_bytes()).into_owned());
            Failure::other(format!("can't run {}", name.unwrap_or_default())).cause(error)
        })?;
        tokio::select! {
            status = child.wait() => Ok(code_of(status.map_err(|error| Failure::other("can't wait for the command").cause(error))?)),
            () = lock.lost() => {
                session.say("the lock is lost: the command is ended");
                end(&mut child).await;
                Err(lost(&self.name))
            }
            signal = signals.next() => {
                end(&mut child).await;
                Ok(Code::OfCommand(128 + signal))
            }
        }
    }

    fn start(&self, lock: &Held) -> std::io::Result<Child> {
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().map_or(OsStr::new(""), OsString::as_os_str));
        let key = String::from_utf8_lossy(lock.key()).into_owned();
        command
            .args(words)
            .env("BFTCTL_FENCE", format!("{key}@{}", lock.token()))
            .env("BFTCTL_LOCK_KEY", key)
            .env("BFTCTL_LOCK_TOKEN", lock.token().to_string())
            .kill_on_drop(true);
        command.spawn()
    }
}

/// What tells this process to end.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let wait = |kind| signal(kind).map_err(|error| Failure::other("can't wait for signals").cause(error));
        Ok(Self {
            interrupt: wait(SignalKind::interrupt())?,
            terminate: wait(SignalKind::terminate())?,
            hangup: wait(SignalKind::hangup())?,
        })
    }

    /// The number of the next one.
    async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
        }
    }
}

/// Ends a command that must not go on.
async fn end(child: &mut Child) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid {
        // One that has ended meanwhile needs no signal.
        let _ = kill_process(pid, rustix::process::Signal::TERM);
    }
    tokio::select! {
        _ = child.wait() => {}
        () = sleep(GRACE) => {
            let _ = child.kill().await;
        }
    }
}

fn code_of(status: ExitStatus) -> Code {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    match u8::try_from(number) {
        Ok(0) => Code::Ok,
        Ok(number) => Code::OfCommand(number),
        Err(_) => Code::Other,
    }
}

fn lost(name: &str) -> Ended {
    Failure::other(format!("the lock {} was lost", printable(name.as_bytes())))
        .cause("its lease has ended, or could not be kept for as long as it lives")
        .next("what was written with BFTCTL_FENCE was written in time, or not at all")
        .into()
}

fn failed(error: LockError) -> Ended {
    match error {
        LockError::Failed(error) => error.into(),
        LockError::Watch(error) => Failure::other("the holder of the lock can't be watched")
            .cause(error)
            .next("bftctl status")
            .into(),
        LockError::Ended { .. } => Failure::other(error.to_string()).next("bftctl status").into(),
        LockError::GaveUp | LockError::Deleted => Failure::other(error.to_string())
            .next("no other keys may be below the lock's name; try again")
            .into(),
    }
}
