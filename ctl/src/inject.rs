//! `inject`: members that misbehave because an operator wants to see what happens.

use std::{collections::BTreeMap, time::Duration};

use bftd_client::{Client, Error, Failure as Refused, FaultChange, MemberStatus, Status};
use clap::{Args, Subcommand};
use rand::seq::SliceRandom;
use serde::Serialize;

use crate::{
    failure::{Code, Ended, Failure},
    render::{self, printable},
    session::Session,
};

/// Make members misbehave, to see that the others go on.
#[derive(Args, Debug)]
#[command(
    after_help = "Example:\n  bftctl inject fault --node 2 malicious --for 60s\n  bftctl inject link --node 1 --to 3\n  bftctl \
                  inject clear\n\nA member misbehaves only where its own bftd.toml says `enabled = true` under [faults]; \
                  `bftctl dev up` says so. Who asks is root, the daemon's own user, or in the group bftd-admin. Faults end with the daemon. \
                  Where it says so, any member of the cluster may make the daemon misbehave: not where data matters."
)]
pub(crate) struct Inject {
    #[command(subcommand)]
    command: InjectCommand,
}

#[derive(Debug, Subcommand)]
enum InjectCommand {
    Fault(InjectFault),
    Link(InjectLink),
    /// List the faults that are active, by member
    #[command(after_help = "Example:\n  bftctl inject ls")]
    Ls,
    /// End the faults of all members, or of --node N
    #[command(after_help = "Example:\n  bftctl inject clear --node 2")]
    Clear,
}

/// Make a member (--node N), or some drawn by lot, misbehave
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl inject fault --node 2 malicious\n  bftctl inject fault --node 1 delay=200ms --for 30s\n  \
                  bftctl inject fault --random 1 equivocate\n\nKinds: offline crash malicious equivocate bad-signature \
                  corrupt-vote wrong-state silent slow replay delay=200ms drop=30%, and more that an unknown kind's error \
                  lists. `malicious` votes for falsified digests and, when it leads, shows different members different blocks."
)]
struct InjectFault {
    /// What it does
    kind: String,
    #[command(flatten)]
    extent: Extent,
    /// So many members, drawn by lot, instead of --node N
    #[arg(long, value_name = "K")]
    random: Option<usize>,
}

/// Cut the link between a member (--node N) and another
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  bftctl inject link --node 1 --to 3 --for 10s")]
struct InjectLink {
    /// The other end
    #[arg(long, value_name = "M")]
    to: u8,
    #[command(flatten)]
    extent: Extent,
}

#[derive(Args, Debug)]
struct Extent {
    /// End by itself after this time, as in 60s
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    lasting: Option<Duration>,
    /// Even if more members misbehave at once than the cluster tolerates
    #[arg(long)]
    beyond_f: bool,
}

impl Inject {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        // --node names the member that shall misbehave; any daemon passes that on.
        let target = session.options.node.take();
        let result = self.command.run(session, target).await;
        session.options.node = target;
        result
    }
}

impl InjectCommand {
    async fn run(self, session: &mut Session, target: Option<u8>) -> Result<Code, Ended> {
        let client = any_client(session, target).await?;
        match self {
            Self::Ls => list(session, &client.status().await?),
            Self::Clear => clear(session, &client, target).await,
            Self::Fault(InjectFault { kind, extent, random }) => {
                let targets = match (target, random) {
                    (Some(node), None) => vec![node],
                    (None, Some(count)) => draw(&client.status().await?, count, extent.beyond_f)?,
                    _ => {
                        return Err(Failure::usage("which member shall misbehave?")
                            .next("name it with --node N, or let --random K draw some")
                            .into());
                    }
                };
                start(session, &client, &targets, &kind, &extent).await
            }
            Self::Link(InjectLink { to, extent }) => {
                let node = target.ok_or_else(|| {
                    Failure::usage("between which members?").next("name one end with --node N")
                })?;
                start(session, &client, &[node], &format!("link={to}"), &extent).await
            }
        }
    }
}

/// The usual daemon, or where that is away the one that is spoken of.
async fn any_client(session: &mut Session, target: Option<u8>) -> Result<Client, Ended> {
    match session.client().await {
        Err(failure) if failure.code == Code::Unreachable && target.is_some() => {
            session.options.node = target;
            let client = session.client().await;
            session.options.node = None;
            Ok(client.map_err(|_| failure)?)
        }
        client => Ok(client?),
    }
}

/// Members drawn by lot, of those that are there and have no fault.
fn draw(status: &Status, count: usize, beyond_f: bool) -> Result<Vec<u8>, Failure> {
    let (faulty, sound): (Vec<_>, Vec<_>) =
        status.members.iter().partition(|member| is_down(status, member) || !member.faults.is_empty());
    let mut ids: Vec<_> = sound.into_iter().map(|member| member.id).collect();
    if count == 0 || count > ids.len() {
        let there = ids.len();
        return Err(Failure::usage(format!(
            "--random {count}: {there} members are there and have no fault yet"
        )));
    }
    // Each daemon that is asked sees to it, too. But then the first ones would have been injected.
    let (faulty, f) = ((faulty.len() + count) as u64, status.cluster.f);
    if faulty > f && !beyond_f {
        return Err(Error::Failed(Refused::BeyondF { faulty, f }).into());
    }
    ids.shuffle(&mut rand::rng());
    ids.truncate(count);
    ids.sort_unstable();
    Ok(ids)
}

/// Whether a member is not heard of. One that the asked daemon's own faults keep away from it is; and one that has faults is
/// heard of, or they would not be known.
fn is_down(status: &Status, member: &MemberStatus) -> bool {
    let own = status.members.iter().find(|other| other.id == status.me);
    let link = format!("link={}", member.id);
    let cuts = |fault: &String| fault == "offline" || fault == "silent" || *fault == link;
    let is_cut = own.is_some_and(|own| own.faults.iter().any(cuts));
    !member.reachable && member.faults.is_empty() && !is_cut
}

async fn start(
    session: &Session,
    client: &Client,
    targets: &[u8],
    fault: &str,
    extent: &Extent,
) -> Result<Code, Ended> {
    #[derive(Serialize)]
    struct Injected<'a> {
        nodes: &'a [u8],
        fault: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        for_ms: Option<u64>,
    }
    let for_ms = extent.lasting.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    for (done, node) in targets.iter().enumerate() {
        let change = FaultChange::Start { fault: fault.to_owned(), for_ms };
        if let Err(error) = client.inject(*node, change, extent.beyond_f).await {
            return Err(partly(error.into(), *node, targets, done).into());
        }
    }
    if session.options.is_json() {
        render::json(&Injected { nodes: targets, fault, for_ms })?;
    } else {
        session.say(&injected(targets, fault, extent));
    }
    Ok(Code::Ok)
}

/// A failure at one of several members, with what was done before it.
fn partly(mut failure: Failure, node: u8, targets: &[u8], done: usize) -> Failure {
    if targets.len() < 2 {
        return failure;
    }
    let before = targets.get(..done).unwrap_or_default();
    let so_far = if before.is_empty() {
        "at no other member was it injected".to_owned()
    } else {
        format!("it is injected at {}, which bftctl inject clear ends", nodes(before))
    };
    failure.message = format!("node {node}: {}; {so_far}", failure.message);
    failure.detail("injected", before)
}

/// What was done, for people.
fn injected(targets: &[u8], fault: &str, extent: &Extent) -> String {
    let (nodes, fault) = (nodes(targets), printable(fault.as_bytes()));
    if fault == "crash" {
        let restart: Vec<_> = targets.iter().map(|node| format!("`bftctl dev restart {node}`")).collect();
        return format!(
            "{nodes}: crash; the daemon has ended. Start it again with `systemctl start bftd` on its host, or a \
             development cluster's with {}",
            restart.join(", ")
        );
    }
    let lasting = extent.lasting.map_or_else(
        || "until `bftctl inject clear`".to_owned(),
        |time| format!("for {}", humantime::format_duration(time)),
    );
    format!("{nodes}: {fault} {lasting}")
}

fn nodes(ids: &[u8]) -> String {
    ids.iter().map(|id| format!("node {id}")).collect::<Vec<_>>().join(", ")
}

/// Ends the faults of all that have any, or of one. Who is down has none, and is not waited for.
async fn clear(session: &Session, client: &Client, target: Option<u8>) -> Result<Code, Ended> {
    #[derive(Serialize)]
    struct Cleared {
        cleared: Vec<u8>,
        down: Vec<u8>,
    }
    let status = client.status().await?;
    let members = status.members.iter().filter(|member| target.is_none_or(|node| node == member.id));
    let (mut cleared, mut down, mut failed) = (Vec::new(), Vec::new(), None);
    for member in members {
        if is_down(&status, member) {
            down.push(member.id);
        } else if target.is_some() || !member.faults.is_empty() {
            match client.inject(member.id, FaultChange::Clear, false).await {
                Ok(()) => cleared.push(member.id),
                Err(Error::Failed(Refused::MemberDown(_))) => down.push(member.id),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
    }
    if let (Some(node), None, true) = (target, &failed, cleared.is_empty() && down.is_empty()) {
        return Err(Failure::usage(format!("the cluster has no member {node}")).into());
    }
    let mut words = Vec::new();
    if !cleared.is_empty() {
        words.push(format!("{}: no faults", nodes(&cleared)));
    } else if failed.is_none() && down.is_empty() {
        words.push("no member has a fault".to_owned());
    }
    if !down.is_empty() {
        words.push(format!("{}: not heard of; faults end with the daemon", nodes(&down)));
    }
    if session.options.is_json() {
        render::json(&Cleared { cleared, down })?;
    } else {
        words.iter().for_each(|line| session.say(line));
    }
    failed.map_or(Ok(Code::Ok), |error| Err(Failure::from(error).into()))
}

fn list(session: &Session, status: &Status) -> Result<Code, Ended> {
    #[derive(Serialize)]
    struct List<'a> {
        faults: BTreeMap<u8, &'a [String]>,
    }
    let faulty = status.members.iter().filter(|member| !member.faults.is_empty());
    if session.options.is_json() {
        let faults = faulty.map(|member| (member.id, member.faults.as_slice())).collect();
        render::json(&List { faults })?;
        return Ok(Code::Ok);
    }
    let row = |name: &str, fault: &str| {
        vec![printable(name.as_bytes()).into_owned(), printable(fault.as_bytes()).into_owned()]
    };
    let rows: Vec<_> =
        faulty.flat_map(|member| member.faults.iter().map(|fault| row(&member.name, fault))).collect();
    if rows.is_empty() {
        session.say("no member has a fault");
    } else {
        render::line(&render::table(&["MEMBER", "FAULT"], &[], rows))?;
    }
    Ok(Code::Ok)
}
