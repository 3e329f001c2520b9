//! The side that gathers: takes connections, hears questions, tells who is there.
//!
//! A claim is checked, then the inviter dials the joiner where it says that it is, and only then it is among the members: an
//! address that others can't reach would show only once the cluster is formed, and can't be changed any more.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bftd_client::forming::FormFailure;
use bftd_core::{crypto::PublicKey, membership::Genesis};
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::timeout,
};

use super::{
    Shared, State, endpoint,
    endpoint::{STRANGER_DEADLINE, STRANGERS},
    now_ms,
    plan::{Claim, Plan},
    wire::{self, Ask, Candidate, Gathered, MAX_ASK, Reply},
};
use crate::transport::listen::key_of;

/// A member that has nothing new to hear is answered after this time all the same.
const SILENCE: Duration = Duration::from_millis(900);
/// How long a member's connection may be without a question.
const MEMBER_DEADLINE: Duration = Duration::from_secs(10);
/// How long the inviter tries to reach a joiner.
const DIAL_BACK: Duration = Duration::from_secs(3);

/// Serves whoever dials until the endpoint is closed.
pub(super) async fn serve(shared: Arc<Shared>, endpoint: Endpoint) {
    let strangers = Arc::new(Semaphore::new(STRANGERS));
    let mut connections = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            Some(_) = connections.join_next() => continue,
        };
        let Some(incoming) = incoming else { return };
        let under_load = strangers.available_permits() < STRANGERS / 2;
        match Arc::clone(&strangers).try_acquire_owned() {
            Ok(_) if under_load && !incoming.remote_address_validated() => {
                // Can't fail: only an address that is validated already can't be asked again.
                let _ = incoming.retry();
            }
            Ok(permit) => {
                connections.spawn(converse(Arc::clone(&shared), endpoint.clone(), incoming, permit));
            }
            Err(_) => {
                let from = incoming.remote_address();
                incoming.refuse();
                shared.notice.give(|left_out| {
                    tracing::warn!(%from, left_out, "refused a daemon that wants to join: too many are being served");
                });
            }
        }
    }
}

/// One connection, from its first packet to its end.
async fn converse(shared: Arc<Shared>, endpoint: Endpoint, incoming: Incoming, permit: OwnedSemaphorePermit) {
    let from = incoming.remote_address();
    let accepted = async { incoming.accept()?.await };
    let Ok(Ok(connection)) = timeout(STRANGER_DEADLINE, accepted).await else { return };
    let Some(key) = key_of(&connection) else { return };
    // Given back once the dialler is a member: of those there are few, each with one connection.
    let mut permit = Some(permit);
    loop {
        let deadline = if permit.is_some() { STRANGER_DEADLINE } else { MEMBER_DEADLINE };
        let question = async {
            let (send, mut receive) = connection.accept_bi().await.ok()?;
            Some((send, take(&mut receive).await?))
        };
        let Ok(Some((mut send, ask))) = timeout(deadline, question).await else { break };
        let reply = shared.answer(&endpoint, &connection, key, from, ask, permit.is_some()).await;
        let is_refused = matches!(reply, Reply::Refused(_));
        let told = async {
            tell(&mut send, &reply).await?;
            // Until it has arrived, closing the connection would take it back.
            if is_refused { send.stopped().await.ok().map(|_| ()) } else { Some(()) }
        };
        if timeout(STRANGER_DEADLINE, told).await.is_err() || is_refused {
            break;
        }
        permit = None;
    }
    connection.close(VarInt::from_u32(0), b"done");
    shared.gone(key, &connection).await;
}

async fn take(stream: &mut RecvStream) -> Option<Ask> {
    wire::receive(stream, MAX_ASK).await.ok()
}

async fn tell(stream: &mut SendStream, reply: &Reply) -> Option<()> {
    wire::send(stream, reply).await.ok()
}

impl State {
    /// A member's connection. There is one a member: what it had before is closed.
    fn note_here(&mut self, key: PublicKey, connection: &Connection) {
        let before = self.here.insert(key, connection.clone());
        if let Some(before) = before.filter(|before| before.stable_id() != connection.stable_id()) {
            before.close(VarInt::from_u32(0), b"replaced");
        }
    }
}

/// Of a cluster that is formed the members are let in, and nobody else.
fn admit_formed(genesis: &Genesis, key: PublicKey) -> Result<(), FormFailure> {
    let is_member = genesis.members.iter().any(|member| member.key == key);
    is_member.then_some(()).ok_or(FormFailure::Full { expect: genesis.members.len() as u64 })
}

impl Shared {
    /// Answers one question of the holder of a key.
    async fn answer(
        &self,
        endpoint: &Endpoint,
        connection: &Connection,
        key: PublicKey,
        from: SocketAddr,
        ask: Ask,
        is_new: bool,
    ) -> Reply {
        let Ask::Join { token, secret, name, address, clock_ms, seen } = ask else {
            return self.note_stored(key).await;
        };
        let candidate = Candidate { name, key, address };
        let claim = Claim { candidate: &candidate, token, secret: &secret, clock_ms };
        let mut revisions = self.revision.subscribe();
        let admitted = self.admit(endpoint, connection, &claim, is_new).await;
        if let Err(why) = admitted {
            self.note_refusal(from, &why).await;
            return Reply::Refused(why);
        }
        // Held back until there is something new: so a joiner hears of it at once, and asks seldom.
        if !is_new {
            let _ = timeout(SILENCE, revisions.wait_for(|revision| *revision != seen)).await;
        }
        let state = self.state.lock().await;
        if let Some(genesis) = &state.genesis {
            return Reply::Formed(genesis.clone());
        }
        match &state.plan {
            Some(Plan::Gathering(plan)) => Reply::Gathered(Gathered {
                revision: *self.revision.borrow(),
                cluster: plan.name.clone(),
                protocol: plan.protocol,
                expect: plan.expect,
                members: plan.members.clone(),
            }),
            _ => Reply::Refused(FormFailure::InviterNotGathering(self.listen_of(&state))),
        }
    }

    /// Takes in whoever has made a good claim, can be reached, and is not in yet.
    async fn admit(
        &self,
        endpoint: &Endpoint,
        connection: &Connection,
        claim: &Claim<'_>,
        is_new: bool,
    ) -> Result<(), FormFailure> {
        // By the inviter's clock when it heard the joiner's.
        let heard_ms = now_ms();
        let is_as_known = {
            let mut state = self.state.lock().await;
            if let Some(genesis) = &state.genesis {
                return admit_formed(genesis, claim.candidate.key);
            }
            let address = self.listen_of(&state);
            let Some(Plan::Gathering(plan)) = &state.plan else {
                return Err(FormFailure::InviterNotGathering(address));
            };
            plan.check(claim, heard_ms)?;
            let is_as_known = plan.members.contains(claim.candidate);
            if is_as_known {
                if is_new {
                    state.note_here(claim.candidate.key, connection);
                }
                // It may have been impossible when the last member came.
                self.form_if_complete(&mut state)
                    .map_err(|error| FormFailure::Impossible(error.to_string()))?;
            }
            is_as_known
        };
        if is_as_known {
            if is_new {
                self.changed();
            }
            return Ok(());
        }
        let Candidate { key, address, .. } = *claim.candidate;
        reach(endpoint, &self.identity, address, key).await?;

        let mut state = self.state.lock().await;
        // Others may have come while this one was dialled.
        if let Some(genesis) = &state.genesis {
            return admit_formed(genesis, key);
        }
        let Some(Plan::Gathering(plan)) = &state.plan else {
            return Err(FormFailure::InviterNotGathering(self.listen_of(&state)));
        };
        plan.check(claim, heard_ms)?;
        let mut plan = plan.clone();
        plan.record(claim);
        let count = plan.members.len();
        let expect = plan.expect;
        self.keep(&mut state, Plan::Gathering(plan))
            .map_err(|error| FormFailure::Impossible(error.to_string()))?;
        state.note_here(key, connection);
        tracing::info!(name = claim.candidate.name, %address, %key, "a member has joined: {count} of {expect}");
        self.form_if_complete(&mut state).map_err(|error| FormFailure::Impossible(error.to_string()))?;
        drop(state);
        self.changed();
        Ok(())
    }

    /// Somebody has the genesis.
    async fn note_stored(&self, key: PublicKey) -> Reply {
        let mut state = self.state.lock().await;
        let is_member =
            state.genesis.as_ref().is_some_and(|it| it.members.iter().any(|member| member.key == key));
        if !is_member {
            return Reply::Refused(FormFailure::InviterNotGathering(self.listen_of(&state)));
        }
        state.stored.insert(key);
        drop(state);
        self.changed();
        Reply::Noted
    }
}

/// Whether the holder of the key answers at the address.
async fn reach(
    from: &Endpoint,
    identity: &crate::identity::Identity,
    address: SocketAddr,
    key: PublicKey,
) -> Result<(), FormFailure> {
    match endpoint::dial(from, identity, address, key, DIAL_BACK).await {
        Ok(connection) => {
            connection.close(VarInt::from_u32(0), b"reached");
            Ok(())
        }
        Err(FormFailure::WrongKey { found, .. }) => Err(FormFailure::NotReached {
            address,
            why: format!("another daemon answers there, with the key {found}"),
        }),
        Err(FormFailure::BadAddress(why)) => Err(FormFailure::NotReached { address, why }),
        Err(_) => {
            let why = format!("no answer within {} s", DIAL_BACK.as_secs());
            Err(FormFailure::NotReached { address, why })
        }
    }
}
