//! `inject`: members that misbehave because an operator wants to see what happens.

use std::{collections::BTreeMap, time::Duration};

use bftd_client::{Client, FaultChange, Status};
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
                  `bftctl dev up` says so. Faults end with the daemon."
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
                    (None, Some(count)) => draw(&client.status().await?, count)?,
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

/// Members drawn by lot, of those that have no fault.
fn draw(status: &Status, count: usize) -> Result<Vec<u8>, Failure> {
    let sound = status.members.iter().filter(|member| member.faults.is_empty());
    let mut ids: Vec<_> = sound.map(|member| member.id).collect();
    if count == 0 || count > ids.len() {
        return Err(Failure::usage(format!("--random {count}: {} members have no fault yet", ids.len())));
    }
    ids.shuffle(&mut rand::rng());
    ids.truncate(count);
    ids.sort_unstable();
    Ok(ids)
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
    for node in targets {
        let change = FaultChange::Start { fault: fault.to_owned(), for_ms };
        client.inject(*node, change, extent.beyond_f).await?;
    }
    if session.options.is_json() {
        render::json(&Injected { nodes: targets, fault, for_ms })?;
    } else {
        let nodes: Vec<_> = targets.iter().map(|node| format!("node {node}")).collect();
        let lasting = extent.lasting.map_or_else(
            || "until `bftctl inject clear`".to_owned(),
            |time| format!("for {}", humantime::format_duration(time)),
        );
        session.say(&format!("{}: {} {lasting}", nodes.join(", "), printable(fault.as_bytes())));
    }
    Ok(Code::Ok)
}

async fn clear(session: &Session, client: &Client, target: Option<u8>) -> Result<Code, Ended> {
    #[derive(Serialize)]
    struct Cleared {
        cleared: Vec<u8>,
    }
    let status = client.status().await?;
    let members = status.members.iter();
    let mut cleared = Vec::new();
    let mut failed = None;
    for member in members.filter(|member| target.map_or(!member.faults.is_empty(), |node| node == member.id))
    {
        match client.inject(member.id, FaultChange::Clear, false).await {
            Ok(()) => cleared.push(member.id),
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    if let (Some(node), None, true) = (target, &failed, cleared.is_empty()) {
        return Err(Failure::usage(format!("the cluster has no member {node}")).into());
    }
    if session.options.is_json() {
        render::json(&Cleared { cleared })?;
    } else if failed.is_none() || !cleared.is_empty() {
        let nodes: Vec<_> = cleared.iter().map(|node| format!("node {node}")).collect();
        let what = if nodes.is_empty() {
            "no member has a fault".to_owned()
        } else {
            nodes.join(", ") + ": no faults"
        };
        session.say(&what);
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
