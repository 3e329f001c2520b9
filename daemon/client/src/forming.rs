//! How daemons without a cluster come to have one: what operators ask of their daemon, and what they are told.

use std::net::SocketAddr;

use bftd_core::{crypto::PublicKey, protocol::Protocol};
use serde::{Deserialize, Serialize};

/// What an operator asks. All but [`FormRequest::Progress`] takes an administrator of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FormRequest {
    /// How far it is.
    Progress,
    /// This daemon shall gather the members of a new cluster.
    Init(Init),
    /// This daemon shall join the members that another one gathers.
    Join {
        /// The token that the other one's operator has made.
        token: String,
        /// How the others shall see this daemon.
        place: Place,
    },
    /// This daemon, which gathers, shall invite others.
    CreateToken {
        /// For how long, in seconds.
        for_s: u64,
        /// For how many hosts.
        uses: u16,
    },
    /// This daemon shall be a member by a genesis that operators have agreed on without it.
    TakeGenesis {
        /// The file's text.
        text: String,
    },
    /// A member that was gathered shall be none, by its name. The token that it came with is of no more use to anybody.
    Forget {
        /// Its name.
        name: String,
    },
    /// This daemon shall give up what it does.
    Abandon {
        /// What that is: who gathers is not to lose all that because somebody takes it for a joiner.
        phase: Phase,
    },
}

/// How the other members shall see a daemon.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// `HOST:PORT`, UDP; by default what the configuration says.
    pub advertise: Option<String>,
    /// Its name; by default the host's.
    pub name: Option<String>,
}

/// The cluster that shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// Its name.
    pub name: String,
    /// How many members it shall have, this daemon included.
    pub expect: u8,
    /// What it runs.
    pub protocol: Protocol,
    /// Even if it tolerates no fault.
    pub without_tolerance: bool,
    /// How the others shall see this daemon.
    pub place: Place,
}

/// How far a daemon is on its way into a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forming {
    /// What it does.
    pub phase: Phase,
    /// Its public key.
    pub key: PublicKey,
    /// The cluster's name; empty while it has none.
    pub cluster: String,
    /// The cluster's id in hexadecimal, once it is formed.
    pub id: Option<String>,
    /// What the cluster shall run.
    pub protocol: Protocol,
    /// How many members it shall have; 0 where that is not known.
    pub expect: u64,
    /// Who gathers the members, where another daemon does.
    pub inviter: Option<SocketAddr>,
    /// The members that are known, in the order in which they came; once formed in the order of their ids.
    pub members: Vec<Founder>,
    /// The last ones that wanted to join and may not.
    pub refused: Vec<RefusedJoin>,
    /// Why it does not go on, where something is in its way. It is tried again.
    pub trouble: Option<FormFailure>,
}

/// What a daemon without a cluster does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Waits to be told.
    Idle,
    /// Gathers the members of a new cluster.
    Gathering,
    /// Waits for the others that another daemon gathers.
    Joining,
    /// The cluster is formed.
    Formed,
}

/// A member of a cluster that is being formed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Founder {
    /// Its name.
    pub name: String,
    /// Its key.
    pub key: PublicKey,
    /// Where its peers reach it.
    pub address: SocketAddr,
    /// Whether it is connected to the daemon that gathers. Known to that one alone; elsewhere true.
    pub is_here: bool,
}

/// Somebody who wanted to join and may not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedJoin {
    /// Where the request came from.
    pub from: SocketAddr,
    /// How long ago, in seconds.
    pub ago_s: u64,
    /// Why.
    pub why: FormFailure,
}

/// A token, fresh from the daemon. It is a secret: who has it may become a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The token itself.
    pub token: String,
    /// The cluster's name.
    pub cluster: String,
    /// Where a daemon with the token asks.
    pub address: SocketAddr,
    /// How many hosts may use it.
    pub uses: u16,
    /// Until when, in seconds since the Unix epoch.
    pub expires_s: u64,
}

/// Why a cluster is not formed, or not with this host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum FormFailure {
    /// This daemon has a cluster.
    #[error("this daemon belongs to the cluster `{cluster}` already")]
    FormedHere {
        /// Its name.
        cluster: String,
        /// Its id in hexadecimal.
        id: String,
    },
    /// This daemon does something else already.
    #[error("this daemon {0}")]
    Engaged(String),
    /// This daemon gathers no members.
    #[error("this daemon gathers no members")]
    NotGathering,
    /// The daemon that was asked to let us join gathers no members.
    #[error("the daemon at {0} gathers no members")]
    InviterNotGathering(SocketAddr),
    /// It is no token.
    #[error("this is no token: {0}")]
    NoToken(String),
    /// The token is none of the inviter's.
    #[error("the inviter does not know this token")]
    UnknownToken,
    /// The token's time is over.
    #[error("this token expired {} ago", span(*ago_s))]
    TokenExpired {
        /// For how long, in seconds.
        ago_s: u64,
    },
    /// As many hosts as may have used the token.
    #[error("this token was for {uses} host{}, and was used by as many", if *uses == 1 { "" } else { "s" })]
    TokenUsedUp {
        /// How many.
        uses: u16,
    },
    /// Nobody answers there.
    #[error("no answer from the inviter at {address} (UDP) within {seconds} s")]
    InviterUnreachable {
        /// The address.
        address: SocketAddr,
        /// How long was waited.
        seconds: u64,
    },
    /// Somebody else answers there.
    #[error("at {address} answers somebody with the key {found}, not the inviter, whose key is {expected}")]
    WrongKey {
        /// The address.
        address: SocketAddr,
        /// The key that the token pins.
        expected: PublicKey,
        /// The key of who answers.
        found: PublicKey,
    },
    /// What answers there does not let daemons join, or not those of this version.
    #[error("the daemon at {0} is of another version: it does not form clusters as this one does")]
    OtherVersion(SocketAddr),
    /// The cluster is formed, and this host is not a member.
    #[error("the cluster at {0} was formed without this host")]
    FormedWithout(SocketAddr),
    /// The clocks differ too much.
    #[error("{}", clocks(*ahead_ms))]
    ClockOff {
        /// By how much the joiner's clock is ahead of the inviter's, in milliseconds.
        ahead_ms: i64,
    },
    /// Another member has this name.
    #[error("another member is called `{name}` already (its key is {key})")]
    NameTaken {
        /// The name.
        name: String,
        /// The other's key.
        key: PublicKey,
    },
    /// Another member has this address.
    #[error("the member `{name}` has the address {address} already")]
    AddressTaken {
        /// The address.
        address: SocketAddr,
        /// The other's name.
        name: String,
    },
    /// The inviter does not reach the joiner where it says that it is.
    #[error("the inviter can't reach this host at {address} (UDP): {why}")]
    NotReached {
        /// The address.
        address: SocketAddr,
        /// Why not.
        why: String,
    },
    /// All members are there already.
    #[error("all {expect} members of the cluster are there already, and this host is not among them")]
    Full {
        /// How many.
        expect: u64,
    },
    /// The inviter has no place for one more connection at this moment, or ends the one that there was.
    #[error(
        "the inviter at {0} has closed the connection: it is busy with others, was started again, or gathers no more"
    )]
    InviterBusy(SocketAddr),
    /// An address that can't be used.
    #[error("{0}")]
    BadAddress(String),
    /// A name that can't be used.
    #[error("`{name}` can't be a {of} name: 1 to 64 letters, digits, dots, hyphens and underscores")]
    BadName {
        /// The name.
        name: String,
        /// Whose.
        of: String,
    },
    /// So few members tolerate no fault.
    #[error(
        "{expect} members tolerate no fault: {protocol} takes {least} for one faulty member, {more} for two"
    )]
    TooFew {
        /// How many were wished.
        expect: u64,
        /// What they would run.
        protocol: Protocol,
        /// How many it takes for one fault.
        least: u64,
        /// For two.
        more: u64,
    },
    /// No cluster can be like that.
    #[error("{0}")]
    Impossible(String),
    /// The address can't be listened on.
    #[error("can't listen on {address} (UDP): {why}")]
    CantListen {
        /// The address.
        address: SocketAddr,
        /// Why.
        why: String,
    },
    /// No member that was gathered has this name.
    #[error("no member that was gathered is called `{0}`")]
    NoSuchMember(String),
    /// The genesis can't be this daemon's.
    #[error("the genesis can't be used here: {0}")]
    BadGenesis(String),
    /// As many tokens as are kept are valid.
    #[error("{0} tokens are valid already")]
    TooManyTokens(u64),
    /// The inviter does not do what a correct daemon does.
    #[error("the inviter at {address} misbehaves: {what}")]
    InviterMisbehaves {
        /// Its address.
        address: SocketAddr,
        /// What it did.
        what: String,
    },
}

/// A time for people, in its two largest units.
pub fn span(seconds: u64) -> String {
    let parts = [
        (seconds / 86_400, "d"),
        (seconds / 3600 % 24, "h"),
        (seconds / 60 % 60, "min"),
        (seconds % 60, "s"),
    ];
    let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
    let shown = parts.iter().skip(first).take(2).filter(|(count, _)| *count > 0);
    let words: Vec<_> = shown.map(|(count, unit)| format!("{count} {unit}")).collect();
    if words.is_empty() { "0 s".to_owned() } else { words.join(" ") }
}

fn clocks(ahead_ms: i64) -> String {
    let ms = ahead_ms.unsigned_abs();
    let by = if ms < 60_000 { format!("{}.{} s", ms / 1000, ms % 1000 / 100) } else { span(ms / 1000) };
    let word = if ahead_ms > 0 { "ahead of" } else { "behind" };
    format!("this host's clock is {by} {word} the inviter's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_two_units() {
        for (seconds, text) in [
            (0, "0 s"),
            (59, "59 s"),
            (61, "1 min 1 s"),
            (3600, "1 h"),
            (90_061, "1 d 1 h"),
            (86_400 * 400, "400 d"),
        ] {
            assert_eq!(span(seconds), text);
        }
        let said = |ahead_ms| FormFailure::ClockOff { ahead_ms }.to_string();
        assert_eq!(said(2_340), "this host's clock is 2.3 s ahead of the inviter's");
        assert_eq!(said(-7_200_000), "this host's clock is 2 h behind the inviter's");
    }
}
