//! `init`, `token`, `join`: a cluster comes about.
//!
//! The daemon does the work, and goes on without us: these commands ask, and then watch until the cluster is formed. Progress
//! goes to stderr, what came of it to stdout; with `-o json` each step is an object on a line of its own.

pub(crate) mod explain;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bftd_client::{
    Client, Error, Failure as Refused, Health, Status,
    forming::{FormFailure, FormRequest, Forming, Init as Wanted, Phase, Place, Token as Made, span},
    genesis::{self, Protocol, fingerprint_of},
};
use clap::{Args, Subcommand};
use serde_json::json;
use tokio::time::sleep;

use crate::{
    args::Output,
    failure::{Code, Ended, Failure},
    render::{self, printable},
    session::Session,
};

/// How often we look whether something has happened.
const LOOK: Duration = Duration::from_millis(200);
/// The daemon dials others before it answers; so long it may take at least.
const DIALLING: Duration = Duration::from_secs(30);
/// How long a formed cluster may take to say that it works.
const SETTLE: Duration = Duration::from_secs(15);
/// How long the token of `init` is valid.
const FIRST_TOKEN: Duration = Duration::from_secs(3600);

/// Form a new cluster: this host gathers its members
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl init --name prod --expect 4 --advertise 10.0.0.1:7000\n  bftctl init --name prod --expect 4 \
                  --advertise 10.0.0.1:7000 --no-wait\n  bftctl init --genesis genesis.toml   # members agreed on before: see bftctl genesis\n  \
                  bftctl init --forget host3            # it never will be there\n\nIt prints a token and the command for the other hosts, and waits until \
                  all are there; Ctrl-C ends only the waiting. Repeat the same command to watch again. Members are numbered by their names. It takes root, or the group bftd-admin.\n\n\
                  Exit codes: 0 formed · 1 other · 2 usage · 9 denied · 10 daemon unreachable · 11 others are missing \
                  (only with --timeout)"
)]
pub(crate) struct Init {
    /// The cluster's name
    #[arg(long, value_name = "NAME", required_unless_present_any = ["genesis", "forget", "abandon"])]
    name: Option<String>,
    /// How many members it has, this host included: 4 for one faulty member, 7 for two
    #[arg(long, value_name = "N", required_unless_present_any = ["genesis", "forget", "abandon"], value_parser = clap::value_parser!(u8).range(1..))]
    expect: Option<u8>,
    /// What it runs
    #[arg(long, default_value_t)]
    protocol: Protocol,
    #[command(flatten)]
    place: PlaceFlags,
    /// Although so few members tolerate no fault
    #[arg(long)]
    without_tolerance: bool,
    /// Begin with a genesis that all operators have agreed on, instead
    #[arg(long, value_name = "FILE", conflicts_with_all = ["name", "expect", "protocol", "without_tolerance", "advertise", "member_name", "forget", "abandon"])]
    genesis: Option<PathBuf>,
    /// Take a member that was gathered out again, and revoke the token that it came with
    #[arg(long, value_name = "MEMBER", conflicts_with_all = ["name", "expect", "protocol", "without_tolerance", "advertise", "member_name", "abandon", "no_wait"])]
    forget: Option<String>,
    /// Gather no more: this host belongs to no cluster then
    #[arg(long, conflicts_with_all = ["name", "expect", "protocol", "without_tolerance", "advertise", "member_name", "no_wait"])]
    abandon: bool,
    /// Don't wait for the other members
    #[arg(long)]
    no_wait: bool,
}

/// Become a member of the cluster that another host gathers
#[derive(Args, Debug)]
#[command(
    after_help = "Examples:\n  bftctl join bftd1... --advertise 10.0.0.2:7000\n  bftctl join - --advertise 10.0.0.2:7000 < token\n  bftctl join --abandon\n\nThe token comes \
                  from `bftctl init` or `bftctl token create` on the host that gathers. It waits until the cluster is formed; Ctrl-C \
                  ends only the waiting, and the same command watches again. Then compare the fingerprint with the other operators. It takes root, or \
                  the group bftd-admin.\n\nExit codes: 0 formed · 1 other · 2 usage · 8 somebody else answers at the inviter's address · 9 denied, by this \
                  host or by the inviter · 10 daemon or inviter unreachable · 11 others are missing (only with --timeout)"
)]
pub(crate) struct Join {
    /// The token, or - to read it from stdin
    #[arg(required_unless_present = "abandon")]
    token: Option<String>,
    #[command(flatten)]
    place: PlaceFlags,
    /// Join no more: this host belongs to no cluster then
    #[arg(long, conflicts_with = "token")]
    abandon: bool,
    /// Don't wait for the other members
    #[arg(long)]
    no_wait: bool,
}

/// How the others shall see this host
#[derive(Args, Debug)]
struct PlaceFlags {
    /// Where the other members reach this host (UDP) [default: `advertise` in bftd.toml]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// This host's name in the cluster [default: the host's name]
    #[arg(long, value_name = "NAME")]
    member_name: Option<String>,
}

impl From<PlaceFlags> for Place {
    fn from(flags: PlaceFlags) -> Self {
        Self { advertise: flags.advertise, name: flags.member_name }
    }
}

/// Invite hosts into the cluster that this host gathers
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  bftctl token create --expires 1h --uses 3")]
pub(crate) struct Token {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token; who has it may become a member until it expires
    #[command(
        after_help = "Examples:\n  bftctl token create\n  bftctl token create --expires 10m --uses 1 -o value\n\nA token is a secret. It pins this \
                      host's key: whoever else answers at this host's address is found out."
    )]
    Create {
        /// For how long it is valid
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
        expires: Duration,
        /// For how many hosts [default: as many as are missing]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        uses: Option<u16>,
    },
}

impl Init {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let client = client(session).await?;
        if self.abandon {
            return abandon(session, &client, Phase::Gathering).await;
        }
        if let Some(name) = self.forget {
            let now = form(&client, FormRequest::Forget { name: name.clone() }).await?;
            let count = now.members.len();
            session.say(&format!(
                "{name} is no member, and its token is of no more use; {count} of {} are there\nnext: bftctl token create, for those who are \
                 missing",
                now.expect
            ));
            return Ok(Code::Ok);
        }
        if let Some(path) = self.genesis {
            let genesis = genesis::read(&path).map_err(|error| {
                Failure::usage(error.to_string().trim_end()).next("bftctl genesis new --help")
            })?;
            let text = genesis::to_text(&genesis);
            let begun = form(&client, FormRequest::TakeGenesis { text }).await?;
            return if self.no_wait {
                announce(session, &begun, None)
            } else {
                finish(session, &client, &begun).await
            };
        }
        let (Some(name), Some(expect)) = (self.name, self.expect) else {
            return Err(Failure::usage("which cluster shall be formed?").next("bftctl init --help").into());
        };
        let wanted = Wanted {
            name,
            expect,
            protocol: self.protocol,
            without_tolerance: self.without_tolerance,
            place: self.place.into(),
        };
        let before = form(&client, FormRequest::Progress).await?;
        let begun = form(&client, FormRequest::Init(wanted)).await?;
        // Somebody who repeats the command has a token already, or makes one with `token create`; a script wants to read one.
        let wants_token = before.phase == Phase::Idle || session.options.output() != Output::Table;
        let token = match u16::try_from(missing(&begun)) {
            Ok(uses) if uses > 0 && wants_token => first_token(&client, uses).await?,
            _ => None,
        };
        announce(session, &begun, token.as_ref())?;
        if self.no_wait { Ok(Code::Ok) } else { watch(session, &client, begun).await }
    }
}

impl Join {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let client = client(session).await?;
        if self.abandon {
            return abandon(session, &client, Phase::Joining).await;
        }
        let token = match self.token.as_deref() {
            Some("-") => {
                let mut line = String::new();
                let read = std::io::stdin().read_line(&mut line);
                read.map_err(|error| Failure::other("can't read stdin").cause(error))?;
                line
            }
            Some(token) => token.to_owned(),
            None => return Err(Failure::usage("which token?").next("bftctl join --help").into()),
        };
        let begun = form(&client, FormRequest::Join { token, place: self.place.into() }).await?;
        announce(session, &begun, None)?;
        if self.no_wait { Ok(Code::Ok) } else { watch(session, &client, begun).await }
    }
}

impl Token {
    pub(crate) async fn run(self, session: &mut Session) -> Result<Code, Ended> {
        let TokenCommand::Create { expires, uses } = self.command;
        let client = client(session).await?;
        let uses = match uses {
            Some(uses) => uses,
            None => {
                let now = form(&client, FormRequest::Progress).await?;
                u16::try_from(missing(&now)).unwrap_or(u16::MAX).max(1)
            }
        };
        let made = client.create_token(expires.as_secs().max(1), uses).await?;
        match session.options.output() {
            Output::Json => render::json(&token_json(&made))?,
            _ => {
                render::line(&made.token)?;
                session.say(&format!("{}\n{}", validity(&made), invitation(&made)));
            }
        }
        Ok(Code::Ok)
    }
}

/// A token for those who are missing, if anybody is by now.
async fn first_token(client: &Client, uses: u16) -> Result<Option<Made>, Ended> {
    match client.create_token(FIRST_TOKEN.as_secs(), uses).await {
        Ok(token) => Ok(Some(token)),
        Err(Error::Failed(Refused::Forming(FormFailure::FormedHere { .. }))) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn client(session: &mut Session) -> Result<Client, Ended> {
    let deadline = session.options.timeout().max(DIALLING);
    Ok(session.client().await?.with_deadline(deadline))
}

async fn form(client: &Client, request: FormRequest) -> Result<Forming, Ended> {
    client.form(request).await.map_err(|error| match error {
        Error::OutcomeUnknown(why) => {
            Failure::new(Code::OutcomeUnknown, "the daemon gave no answer; it may be doing it")
                .cause(why)
                .next("bftctl status shows what it does; the same command again does no harm")
                .into()
        }
        error => error.into(),
    })
}

async fn abandon(session: &Session, client: &Client, phase: Phase) -> Result<Code, Ended> {
    form(client, FormRequest::Abandon { phase }).await?;
    session.say("this daemon belongs to no cluster, and is on its way into none");
    if phase == Phase::Joining {
        session
            .say("where the members are gathered it may count as one still: bftctl init --forget NAME there");
    }
    Ok(Code::Ok)
}

fn missing(now: &Forming) -> u64 {
    now.expect.saturating_sub(now.members.len() as u64)
}

/// What begins.
fn announce(session: &Session, begun: &Forming, token: Option<&Made>) -> Result<Code, Ended> {
    if session.options.is_json() {
        let token = token.map(token_json);
        render::json(
            &json!({ "event": "begun", "phase": begun.phase, "cluster": begun.cluster, "expect": begun.expect,
                              "key": begun.key, "token": token }),
        )?;
        return Ok(Code::Ok);
    }
    let cluster = printable(begun.cluster.as_bytes());
    match begun.phase {
        Phase::Gathering => {
            session.say(&format!("gathering {} members for the cluster `{cluster}`", begun.expect));
            if token.is_none() && missing(begun) > 0 {
                session.say("another token for the other hosts: bftctl token create");
            }
        }
        Phase::Joining => {
            session.say(&format!("joining the cluster `{cluster}`; {} more to come", missing(begun)))
        }
        Phase::Idle | Phase::Formed => {}
    }
    if let Some(token) = token {
        if session.options.output() == Output::Value {
            render::line(&token.token)?;
        } else {
            session.say(&format!("{}\n{}", invitation(token), validity(token)));
        }
    }
    Ok(Code::Ok)
}

fn invitation(token: &Made) -> String {
    format!(
        "on each of the other hosts, with its own address:\n\n  bftctl join {} --advertise HOST:PORT\n",
        token.token
    )
}

fn validity(token: &Made) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let plural = if token.uses == 1 { "" } else { "s" };
    format!(
        "the token is a secret, valid for {} and {} host{plural}; they must reach {} (UDP)",
        span(token.expires_s.saturating_sub(now)),
        token.uses,
        token.address
    )
}

fn token_json(token: &Made) -> serde_json::Value {
    json!({ "token": token.token, "cluster": token.cluster, "address": token.address, "uses": token.uses,
            "expires": token.expires_s })
}

/// Tells who comes, until the cluster is formed. With --timeout it ends then.
async fn watch(session: &mut Session, client: &Client, mut now: Forming) -> Result<Code, Ended> {
    let began = Instant::now();
    let mut seen = BTreeSet::new();
    let mut trouble = None;
    loop {
        for member in &now.members {
            if !seen.insert((member.key, member.address)) {
                continue;
            }
            let (count, expect) = (seen.len(), now.expect);
            if session.options.is_json() {
                render::json(
                    &json!({ "event": "member", "name": member.name, "key": member.key, "address": member.address,
                                      "count": count, "expect": expect }),
                )?;
            } else {
                let own = if member.key == now.key { " (this host)" } else { "" };
                let (name, key) = (printable(member.name.as_bytes()), member.key.to_string());
                let key = key.get(..16).unwrap_or(&key);
                session.say(&format!("  {count}/{expect} {name}{own} at {}, key {key}…", member.address));
            }
        }
        if now.phase == Phase::Formed {
            return finish(session, client, &now).await;
        }
        if now.phase == Phase::Idle {
            return Err(Failure::other(
                "it was abandoned: this daemon is on its way into no cluster any more",
            )
            .next("bftctl status")
            .into());
        }
        if now.trouble != trouble {
            trouble.clone_from(&now.trouble);
            if let Some(trouble) = &trouble {
                let failure = Failure::from(Error::Failed(Refused::Forming(trouble.clone())));
                let next = failure.next.map_or_else(String::new, |next| format!("\n  next: {next}"));
                session.say(&format!("  {}; it is tried again{next}", failure.message));
            }
        }
        if session.options.timeout.is_some_and(|limit| began.elapsed() >= limit) {
            let there = now.members.len();
            let text = format!(
                "{there} of {} members are there; the daemon goes on without this command",
                now.expect
            );
            return Err(Failure::new(Code::Uninitialised, text)
                .next("bftctl status, or the same command again")
                .into());
        }
        sleep(LOOK).await;
        now = form(client, FormRequest::Progress).await?;
    }
}

/// The cluster is formed: waits until this daemon is a member, and says what to do last.
async fn finish(session: &mut Session, client: &Client, formed: &Forming) -> Result<Code, Ended> {
    let status = settle(client).await?;
    let fingerprint = formed.id.as_deref().and_then(fingerprint_of).unwrap_or_default();
    let cluster = &status.cluster;
    match session.options.output() {
        Output::Json => {
            render::json(&json!({ "event": "formed", "cluster": { "name": cluster.name, "id": cluster.id,
            "fingerprint": fingerprint, "n": cluster.n, "f": cluster.f, "state": cluster.state.word() }, "self": status.me }))?
        }
        Output::Value => render::line(&fingerprint)?,
        Output::Table => {
            let (n, f) = (cluster.n, cluster.f);
            let members = if n == 1 { "" } else { "s" };
            render::line(&format!(
                "the cluster `{}` is formed: {n} member{members}, of which {f} may be faulty; this host is member {}\nfingerprint: {fingerprint}",
                printable(cluster.name.as_bytes()),
                status.me
            ))?;
            if n > 1 {
                session.say("next: compare the fingerprint with the other operators (bftctl status shows it); then bftctl put greeting hello");
            }
        }
    }
    Ok(Code::Ok)
}

/// Waits until the daemon is a member that reaches a quorum, but not for ever: others may be late.
async fn settle(client: &Client) -> Result<Status, Ended> {
    let began = Instant::now();
    loop {
        let status = client.status().await?;
        let is_member = status.cluster.state != Health::Uninitialised;
        let works = matches!(status.cluster.state, Health::Healthy | Health::Degraded);
        if works || (is_member && began.elapsed() > SETTLE) {
            return Ok(status);
        }
        if began.elapsed() > 2 * SETTLE {
            return Err(Failure::other(
                "the cluster is formed, but this daemon does not start as its member",
            )
            .next("journalctl -u bftd")
            .into());
        }
        sleep(LOOK).await;
    }
}
