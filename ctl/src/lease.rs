//! `lease`: keys that go when nobody keeps them.

use std::time::Duration;

use bftd_client::{
    Changed, Consistency, Error, Failure as Refused, LeaseStatus, Operation, Outcome, Refusal,
};
use clap::{Args, Subcommand};
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    render::{self, printable, text_or_base64},
    session::Session,
};

/// Make, keep and end leases: keys that hang on one are deleted when it ends.
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl lease grant 30s\n  bftctl put service/a 10.0.0.1 --lease 5f3a\n  bftctl lease keepalive 5f3a\n  bftctl \
                        lease revoke 5f3a\n\nA lease lives for its time after it was granted or kept last, by the times of blocks. While the cluster has no \
                        leader no time passes."
)]
pub(crate) struct Lease {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a lease, and print its id
    #[command(after_help = "Examples:\n  bftctl lease grant 30s\n  bftctl lease grant 1h --id 5f3a")]
    Grant {
        /// How long it lives unless it is kept, as in 30s, 5m: at least 1s
        #[arg(value_name = "TIME", value_parser = humantime::parse_duration)]
        ttl: Duration,
        /// Its id, in hexadecimal; without it the cluster chooses one
        #[arg(long, value_parser = lease_id)]
        id: Option<u64>,
    },
    /// Keep a lease until Ctrl-C
    #[command(
        after_help = "Examples:\n  bftctl lease keepalive 5f3a\n  bftctl lease keepalive 5f3a --once\n\nExit code 1: there is no such lease."
    )]
    Keepalive {
        /// Its id
        #[arg(value_parser = lease_id)]
        id: u64,
        /// Once, not until Ctrl-C
        #[arg(long)]
        once: bool,
    },
    /// End a lease, and delete the keys that hang on it
    #[command(after_help = "Example:\n  bftctl lease revoke 5f3a\n\nExit code 1: there is no such lease.")]
    Revoke {
        /// Its id
        #[arg(value_parser = lease_id)]
        id: u64,
    },
    /// List all leases, or one with the keys that hang on it
    #[command(after_help = "Examples:\n  bftctl lease ls\n  bftctl lease ls 5f3a")]
    Ls {
        /// Its id
        #[arg(value_parser = lease_id)]
        id: Option<u64>,
    },
}

/// An id as it is printed: in hexadecimal.
pub(crate) fn lease_id(text: &str) -> Result<u64, String> {
    match u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16) {
        Ok(id) if id != 0 && id < 1 << 63 => Ok(id),
        _ => Err("the id of a lease is a hexadecimal number from 1 to 7fffffffffffffff".to_owned()),
    }
}

/// Makes a lease, with this id or one that the cluster chooses.
pub(crate) async fn grant(
    session: &mut Session,
    id: Option<u64>,
    ttl: Duration,
) -> Result<(u64, Changed), Ended> {
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let operation = Operation::GrantLease { lease: id.unwrap_or(0), ttl_ms };
    operation.check().map_err(|refusal| Failure::usage(refusal.to_string()))?;
    let changed = session.changes().await?.execute(operation).await?;
    match changed.outcome {
        Outcome::LeaseGranted { lease, .. } => Ok((lease, changed)),
        ref other => Err(unexpected(other)),
    }
}

fn unexpected(outcome: &Outcome) -> Ended {
    Failure::other(format!("the daemon did something else: {outcome:?}")).into()
}

impl Lease {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        match self.command {
            Command::Grant { ttl, id } => {
                let (lease, changed) = grant(session, id, ttl).await?;
                let words = format!("{lease:x} · lives for {}", humantime::format_duration(ttl));
                print(session, (lease, &words), &changed)?;
            }
            Command::Keepalive { id, once } => keep(session, id, once).await?,
            Command::Revoke { id } => {
                let changed = session.changes().await?.execute(Operation::RevokeLease { lease: id }).await?;
                let Outcome::LeaseRevoked { keys, .. } = changed.outcome else {
                    return Err(unexpected(&changed.outcome));
                };
                let plural = if keys == 1 { "" } else { "s" };
                print(session, (id, &format!("{id:x} ended · deleted {keys} key{plural}")), &changed)?;
            }
            Command::Ls { id } => list(session, id).await?,
        }
        Ok(Code::Ok)
    }
}

/// Keeps a lease three times in each of its lives.
async fn keep(session: &mut Session, lease: u64, once: bool) -> Result<(), Ended> {
    let no_signals = |error| Failure::other("can't wait for signals").cause(error);
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let changes = session.changes().await?;
    let mut is_first = true;
    loop {
        let kept = tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            kept = changes.execute(Operation::KeepLease { lease }) => kept,
        };
        let changed = match kept {
            Ok(changed) => changed,
            Err(error @ Error::Failed(Refused::Refused(Refusal::NoSuchLease { .. }))) => {
                return Err(error.into());
            }
            // It may live still: whoever keeps it goes on trying.
            Err(error) if !once && !is_first => {
                session.say(&format!("not kept: {}", printable(error.to_string().as_bytes())));
                tokio::select! {
                    _ = interrupt.recv() => return Ok(()),
                    () = sleep(Duration::from_millis(500)) => continue,
                }
            }
            Err(error) => return Err(error.into()),
        };
        let Outcome::LeaseKept { ttl_ms, .. } = changed.outcome else {
            return Err(unexpected(&changed.outcome));
        };
        let ttl = Duration::from_millis(ttl_ms);
        if std::mem::take(&mut is_first) || session.options.verbose {
            let words = format!("{lease:x} kept · lives for {}", humantime::format_duration(ttl));
            print(session, (lease, &words), &changed)?;
        }
        if once {
            return Ok(());
        }
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            () = sleep(ttl / 3) => {}
        }
    }
}

fn print(session: &Session, (lease, words): (u64, &str), changed: &Changed) -> Result<(), Ended> {
    #[derive(Serialize)]
    struct Body {
        lease: String,
        #[serde(skip_serializing_if = "Option::is_none")]
        ttl_ms: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        deleted: Option<u64>,
        revision: u64,
        index: u64,
        term: u64,
    }
    let Changed { index, term, .. } = *changed;
    let (ttl_ms, deleted) = match changed.outcome {
        Outcome::LeaseGranted { ttl_ms, .. } | Outcome::LeaseKept { ttl_ms, .. } => (Some(ttl_ms), None),
        Outcome::LeaseRevoked { keys, .. } => (None, Some(keys)),
        _ => (None, None),
    };
    match session.options.output() {
        Output::Table => render::line(words),
        Output::Value => render::line(&format!("{lease:x}")),
        Output::Json => render::json(&Body {
            lease: format!("{lease:x}"),
            ttl_ms,
            deleted,
            revision: changed.revision(),
            index,
            term,
        }),
    }
}

async fn list(session: &mut Session, id: Option<u64>) -> Result<(), Ended> {
    #[derive(Serialize)]
    struct Body<'a> {
        leases: Vec<Row<'a>>,
        revision: u64,
        index: u64,
    }
    #[derive(Serialize)]
    struct Row<'a> {
        lease: String,
        ttl_ms: u64,
        remaining_ms: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        keys: Option<Vec<Key<'a>>>,
        #[serde(skip_serializing_if = "std::ops::Not::not")]
        more: bool,
    }
    #[derive(Serialize)]
    struct Key<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        key_base64: Option<String>,
    }
    let (leases, at) = session.client().await?.leases(id, Consistency::Linearizable).await?;
    if let (Some(lease), true) = (id, leases.is_empty()) {
        return Err(Error::Failed(Refused::Refused(Refusal::NoSuchLease { lease })).into());
    }
    let key = |key| {
        let (key, key_base64) = text_or_base64(key);
        Key { key, key_base64 }
    };
    let row = |it: &'_ LeaseStatus| {
        let (ttl, left) = (Duration::from_millis(it.ttl_ms), Duration::from_millis(it.remaining_ms));
        vec![
            format!("{:x}", it.id),
            humantime::format_duration(ttl).to_string(),
            humantime::format_duration(left).to_string(),
        ]
    };
    match session.options.output() {
        Output::Json => render::json(&Body {
            leases: leases
                .iter()
                .map(|it| Row {
                    lease: format!("{:x}", it.id),
                    ttl_ms: it.ttl_ms,
                    remaining_ms: it.remaining_ms,
                    keys: id.map(|_| it.keys.iter().map(|it| key(it)).collect()),
                    more: it.more,
                })
                .collect(),
            revision: at.revision,
            index: at.index,
        }),
        Output::Value => leases.iter().try_for_each(|it| render::line(&format!("{:x}", it.id))),
        Output::Table if leases.is_empty() => Ok(()),
        Output::Table => {
            render::line(&render::table(
                &["LEASE", "LIVES", "LEFT"],
                &[1, 2],
                leases.iter().map(row).collect(),
            ))?;
            let keys = leases.iter().flat_map(|it| &it.keys);
            keys.into_iter().try_for_each(|key| render::line(&format!("  {}", printable(key))))
        }
    }
}
