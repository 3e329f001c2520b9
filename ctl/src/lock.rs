//! `lock`: a command that runs while a lock is held.

use std::{
    ffi::{OsStr, OsString},
    os::unix::process::ExitStatusExt,
    process::ExitStatus,
    time::Duration,
};

use bftd_client::{Lock as Held, LockError};
use clap::Args;
use rustix::process::{Pid, Signal as Number, kill_process};
use tokio::{
    process::{Child, Command},
    signal::unix::{SignalKind, signal},
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
    /// The lock's name: its holders' keys are NAME/ID
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
        let no_signals = |error| Failure::other("can't wait for signals").cause(error);
        let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
        let (client, changes) = (session.client().await?, session.changes().await?);
        let acquiring = Held::acquire(&client, &changes, self.name.as_bytes(), self.ttl);
        let wait = self.wait.unwrap_or(Duration::MAX);
        let lock = tokio::select! {
            acquired = timeout(wait, acquiring) => match acquired {
                Ok(acquired) => acquired.map_err(failed)?,
                Err(_) => {
                    let name = printable(self.name.as_bytes());
                    let waited = humantime::format_duration(wait);
                    return Err(Failure::other(format!("the lock {name} was not to be had in {waited}"))
                        .next(format!("bftctl ls {name}/ shows who holds it and who waits, in the order of their revisions"))
                        .into());
                }
            },
            _ = interrupt.recv() => return Ok(Code::Ok),
        };
        session.debug(|| format!("the lock is held: {} with token {}", printable(lock.key()), lock.token()));
        let ended = if self.command.is_empty() {
            render::line(&format!("{}\t{}", printable(lock.key()), lock.token()))?;
            tokio::select! {
                _ = interrupt.recv() => Ok(Code::Ok),
                () = lock.lost() => Err(lost(&self.name)),
            }
        } else {
            self.run_command(&lock, session).await
        };
        let released = lock.release().await;
        let code = ended?;
        released?;
        Ok(code)
    }

    async fn run_command(&self, lock: &Held, session: &Session) -> Result<Code, Ended> {
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
        }
    }

    fn start(&self, lock: &Held) -> std::io::Result<Child> {
        let mut words = self.command.iter();
        let mut command = Command::new(words.next().map_or(OsStr::new(""), OsString::as_os_str));
        let key = printable(lock.key()).into_owned();
        command
            .args(words)
            .env("BFTCTL_FENCE", format!("{key}@{}", lock.token()))
            .env("BFTCTL_LOCK_KEY", key)
            .env("BFTCTL_LOCK_TOKEN", lock.token().to_string())
            .kill_on_drop(true);
        command.spawn()
    }
}

/// Ends a command that must not go on.
async fn end(child: &mut Child) {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    if let Some(pid) = pid {
        // One that has ended meanwhile needs no signal.
        let _ = kill_process(pid, Number::TERM);
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
    }
}
