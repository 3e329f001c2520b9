//! The side that joins: asks the daemon that gathers until the cluster is formed, and takes the genesis only with its own key, name
//! and address, the token's cluster name and the inviter's key in it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bftd_client::forming::FormFailure;
use bftd_core::membership::Genesis;
use quinn::{Connection, Endpoint};
use tokio::time::{sleep, timeout};

use super::{
    Shared,
    endpoint::{self, DIAL_DEADLINE},
    now_ms,
    plan::{Joining, Plan},
    token::Invitation,
    wire::{self, Ask, Gathered, MAX_REPLY, Reply},
};
use crate::identity::Identity;

/// How long an answer may take: the inviter tries to reach us, and holds an answer back until there is something new.
const ANSWER_DEADLINE: Duration = Duration::from_secs(8);
/// The least time between two questions.
const BREATH: Duration = Duration::from_millis(50);
/// The longest words of an inviter that are shown, in characters.
const LONGEST: usize = 200;
/// How long to wait before the inviter is dialled again.
const AGAIN: Duration = Duration::from_secs(1);

/// A daemon that wants to join.
pub(super) struct Joiner {
    pub endpoint: Endpoint,
    pub identity: Arc<Identity>,
    pub invitation: Invitation,
    pub name: String,
    pub address: SocketAddr,
}

/// What the inviter says.
pub(super) enum Answer {
    Gathered(Gathered),
    Formed(Genesis),
}

impl Joiner {
    /// What it was told to do.
    fn plan(&self) -> Plan {
        let (name, address) = (self.name.clone(), self.address);
        Plan::Joining(Joining { token: self.invitation.to_token(), name, address })
    }

    /// Dials the inviter.
    pub async fn connect(&self) -> Result<Connection, FormFailure> {
        let Invitation { inviter, address, .. } = self.invitation;
        endpoint::dial(&self.endpoint, &self.identity, address, inviter, DIAL_DEADLINE).await
    }

    /// Asks once.
    pub async fn ask(&self, connection: &Connection, seen: u64) -> Result<Answer, FormFailure> {
        let Invitation { id, secret, .. } = self.invitation;
        let (name, address) = (self.name.clone(), self.address);
        let ask = Ask::Join { token: id, secret, name, address, clock_ms: now_ms(), seen };
        let reply = async {
            tokio::select! {
                // Only a daemon whose cluster is formed speaks unasked.
                stream = connection.accept_uni() => match stream {
                    Ok(mut stream) => wire::receive(&mut stream, MAX_REPLY).await,
                    Err(error) => Err(error.to_string()),
                },
                reply = question(connection, &ask) => reply,
            }
        };
        let inviter = self.invitation.address;
        match timeout(ANSWER_DEADLINE, reply).await {
            Ok(Ok(Reply::Gathered(gathered))) => Ok(Answer::Gathered(gathered)),
            Ok(Ok(Reply::Formed(genesis))) => self.check(&genesis).map(|()| Answer::Formed(genesis)),
            Ok(Ok(Reply::Refused(why))) => Err(self.credible(why)),
            Ok(Ok(Reply::Noted)) => Err(self.misbehaves("it answers another question")),
            Ok(Err(why)) => Err(match connection.close_reason() {
                Some(error) => endpoint::explain(&error, inviter),
                None => self.misbehaves(&why),
            }),
            Err(_) => {
                Err(FormFailure::InviterUnreachable { address: inviter, seconds: ANSWER_DEADLINE.as_secs() })
            }
        }
    }

    /// Tells the inviter that the genesis is stored, which it need not hear.
    pub async fn tell_stored(&self, connection: &Connection) {
        let _ = timeout(AGAIN, question(connection, &Ask::Stored)).await;
    }

    /// Whether a genesis is the one that this daemon wanted to be in.
    fn check(&self, genesis: &Genesis) -> Result<(), FormFailure> {
        let key = self.identity.public_key();
        let Some(me) = genesis.members.iter().find(|member| member.key == key) else {
            return Err(self.misbehaves("its genesis is without this host's key"));
        };
        if me.name != self.name || me.address != self.address {
            let (name, address) = (&me.name, me.address);
            return Err(FormFailure::BadGenesis(format!(
                "the cluster was formed with this host as `{name}` at {address}: join as that"
            )));
        }
        if genesis.name != self.invitation.cluster {
            return Err(self.misbehaves("its genesis is of a cluster with another name than the token's"));
        }
        if !genesis.members.iter().any(|member| member.key == self.invitation.inviter) {
            return Err(self.misbehaves("its genesis is without its own key"));
        }
        super::check_genesis(genesis)
    }

    /// A refusal in words that no correct inviter uses is none.
    fn credible(&self, why: FormFailure) -> FormFailure {
        match why {
            FormFailure::UnknownToken
            | FormFailure::TokenExpired { .. }
            | FormFailure::TokenUsedUp { .. }
            | FormFailure::ClockOff { .. }
            | FormFailure::NameTaken { .. }
            | FormFailure::AddressTaken { .. }
            | FormFailure::NotReached { .. }
            | FormFailure::BadName { .. }
            | FormFailure::Full { .. }
            | FormFailure::Impossible(_)
                if why.to_string().chars().count() <= LONGEST =>
            {
                why
            }
            // It may not know by which address we know it.
            FormFailure::InviterNotGathering(_) => FormFailure::InviterNotGathering(self.invitation.address),
            _ => self.misbehaves("it refuses for a reason that makes no sense"),
        }
    }

    fn misbehaves(&self, what: &str) -> FormFailure {
        FormFailure::InviterMisbehaves { address: self.invitation.address, what: what.to_owned() }
    }
}

pub(super) async fn question(connection: &Connection, ask: &Ask) -> Result<Reply, String> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| error.to_string())?;
    wire::send(&mut send, ask).await?;
    wire::receive(&mut receive, MAX_REPLY).await
}

/// Goes on until the cluster is formed, whatever comes between. Begins with the connection that there is, if there is one.
pub(super) async fn keep_joining(shared: Arc<Shared>, joiner: Joiner, mut connection: Option<Connection>) {
    loop {
        let trouble = match connection.take() {
            Some(connection) => stay(&shared, &joiner, &connection).await,
            None => match joiner.connect().await {
                Ok(connection) => stay(&shared, &joiner, &connection).await,
                Err(failure) => Some(failure),
            },
        };
        let Some(trouble) = trouble else { return };
        shared.note_trouble(trouble).await;
        sleep(AGAIN).await;
    }
}

/// Asks on one connection; what ended it, or nothing when the genesis is here.
async fn stay(shared: &Shared, joiner: &Joiner, connection: &Connection) -> Option<FormFailure> {
    let mut seen = 0;
    loop {
        match joiner.ask(connection, seen).await {
            Ok(Answer::Gathered(gathered)) => {
                seen = gathered.revision;
                shared.note_gathered(gathered).await;
                // An inviter that holds nothing back is not to keep this daemon busy.
                sleep(BREATH).await;
            }
            Ok(Answer::Formed(genesis)) => {
                let taken = shared.take_genesis(Some(joiner.plan()), genesis).await;
                return match taken {
                    Ok(()) => {
                        joiner.tell_stored(connection).await;
                        shared.note_told().await;
                        None
                    }
                    Err(failure) => Some(failure),
                };
            }
            Err(failure) => return Some(failure),
        }
    }
}
