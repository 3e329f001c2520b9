//! How a daemon without a cluster comes to be a member of one.
//!
//! ```text
//! init ─▶ gathers ◀── QUIC, its key pinned by the token ── joins ◀─ join TOKEN
//!           │ all are there: genesis, durable here first, then told to all
//!           ▼                                                  ▼
//!         member                                             member
//! ```
//!
//! - One daemon *gathers* (`gather`): it was told so by `bftctl init`, makes tokens, and takes in who shows one. The others
//!   *join* (`join`). Keys never leave their host: each proves its own in the TLS handshake.
//! - What a daemon was told to do is durable before it is answered (`plan`), so it goes on after a crash by itself, and
//!   the same command asked again changes nothing.
//! - The genesis is durable at the inviter before anybody hears it, and is a function of the plan. From then on it is the only truth: a
//!   daemon that has one, in `genesis.toml`, starts as a member. A joiner that crashed before it heard asks
//!   again, and members tell it (`transport`).
//! - A joiner trusts the holder of the key that its token pins to choose the members, and nothing else: the genesis must have the
//!   joiner's own key, name and address. Operators compare the cluster's fingerprint to see that all got the same one.
//! - Nothing that strangers send is kept: see `endpoint` for the bounds.

mod address;
mod endpoint;
pub(crate) mod files;
mod front;
mod gather;
mod join;
mod operator;
mod plan;
mod stored;
mod token;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bftd_client::forming::FormFailure;
use bftd_core::{
    crypto::PublicKey,
    membership::{Genesis, Membership},
};
use bytes::Bytes;
use quinn::{Connection, Endpoint};
use tokio::{
    sync::{Mutex, watch},
    task::AbortHandle,
    time::{sleep, timeout},
};

pub use self::{
    files::FileError,
    front::Front,
    operator::of_member,
    stored::{GENESIS_FILE, stored_genesis, tidy},
    token::{Secret, TokenId},
};
use self::{
    join::Joiner,
    plan::{Joining, Plan},
    token::Invitation,
    wire::{Gathered, Reply},
};
use crate::{config::NodeConfig, identity::Identity, peers::now_ms, transport::notice::Notice};

/// For how long the inviter waits for the others to have the genesis before it starts as a member.
const LINGER: Duration = Duration::from_secs(3);
/// How long to wait before something that failed here is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// How many refusals are remembered, to be shown.
const REFUSALS: usize = 4;

/// A daemon without a cluster.
pub struct Forming {
    shared: Arc<Shared>,
}

/// What its tasks share.
struct Shared {
    directory: PathBuf,
    config: NodeConfig,
    identity: Arc<Identity>,
    state: Mutex<State>,
    /// Operators' commands come one at a time. Locked before `state`.
    operator: Mutex<()>,
    /// Rises when there is something new to tell.
    revision: watch::Sender<u64>,
    notice: Notice,
}

#[derive(Default)]
struct State {
    plan: Option<Plan>,
    socket: Option<Socket>,
    /// The newest connection of each member that was gathered.
    here: BTreeMap<PublicKey, Connection>,
    /// Bounded by [`REFUSALS`].
    refused: VecDeque<(Instant, SocketAddr, FormFailure)>,
    /// While joining: what the inviter said last.
    gathered: Option<Gathered>,
    /// While joining: why it does not go on.
    trouble: Option<FormFailure>,
    genesis: Option<Genesis>,
    /// Which members have said that they have the genesis.
    stored: BTreeSet<PublicKey>,
    /// While joining: whether the inviter was told that the genesis is here.
    has_told: bool,
}

/// An open socket, and the tasks that use it.
struct Socket {
    endpoint: Endpoint,
    listen: SocketAddr,
    tasks: Vec<AbortHandle>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Forming {
    /// Takes up what was begun before, if anything was.
    ///
    /// # Errors
    /// What was begun can't be read, or was begun with another key.
    pub fn start(
        config: &NodeConfig,
        directory: PathBuf,
        identity: Arc<Identity>,
    ) -> Result<Arc<Self>, FileError> {
        let plan = Plan::load(&directory)?;
        if let Some(Plan::Gathering(plan)) = &plan
            && plan.members.first().is_none_or(|first| first.key != identity.public_key())
        {
            let reason = "another key than this host's gathers there; restore identity.key, or remove this file to begin anew";
            return Err(FileError::malformed(&directory, plan::PLAN_FILE, &reason));
        }
        let shared = Arc::new(Shared {
            directory,
            config: config.clone(),
            identity,
            state: Mutex::new(State { plan: plan.clone(), ..State::default() }),
            operator: Mutex::default(),
            revision: watch::Sender::new(1),
            notice: Notice::default(),
        });
        match plan {
            Some(_) => {
                tracing::info!("going on to form a cluster");
                tokio::spawn(Arc::clone(&shared).take_up());
            }
            None => tracing::info!(
                key = %shared.identity.public_key(),
                "this daemon belongs to no cluster yet: bftctl init, bftctl join"
            ),
        }
        Ok(Arc::new(Self { shared }))
    }

    /// Waits until there is a genesis, and the others have it, too, or are late. Then the port is free.
    pub async fn finish(&self) -> Genesis {
        let mut revisions = self.shared.revision.subscribe();
        let genesis = loop {
            if let Some(genesis) = self.shared.state.lock().await.genesis.clone() {
                break genesis;
            }
            // The sender lives as long as this.
            let _ = revisions.changed().await;
        };
        let settled = async {
            while !self.shared.state.lock().await.is_settled(&genesis) {
                let _ = revisions.changed().await;
            }
        };
        // Who is late asks again, and is told by the member that this daemon will be.
        let _ = timeout(LINGER, settled).await;
        self.shared.close().await;
        genesis
    }
}

impl State {
    /// Whether nothing of the plan is left to be begun.
    fn is_under_way(&self) -> bool {
        let has_all = match &self.plan {
            Some(Plan::Gathering(plan)) => plan.is_complete(),
            Some(Plan::Joining(_)) | None => false,
        };
        self.genesis.is_some() || (self.socket.is_some() && !has_all)
    }

    /// Whether nobody waits any more for this daemon to go on.
    fn is_settled(&self, genesis: &Genesis) -> bool {
        match &self.plan {
            Some(Plan::Gathering(plan)) => {
                let is_me = |key: &PublicKey| plan.members.first().is_some_and(|first| first.key == *key);
                genesis.members.iter().all(|member| is_me(&member.key) || self.stored.contains(&member.key))
            }
            Some(Plan::Joining(_)) => self.has_told,
            None => true,
        }
    }
}

impl Shared {
    /// Opens the socket and goes on with what was begun, however long that takes, and whatever operators change meanwhile.
    async fn take_up(self: Arc<Self>) {
        loop {
            {
                let _operator = self.operator.lock().await;
                let mut state = self.state.lock().await;
                let Some(plan) = state.plan.clone().filter(|_| !state.is_under_way()) else { return };
                match self.resume(&mut state, &plan) {
                    Ok(()) => return,
                    Err(failure) => state.trouble = Some(failure),
                }
            }
            sleep(AGAIN).await;
        }
    }

    fn resume(self: &Arc<Self>, state: &mut State, plan: &Plan) -> Result<(), FormFailure> {
        match plan {
            Plan::Gathering(gathering) => {
                let own = gathering.members.first().map(|first| first.address);
                if state.socket.is_none() {
                    self.open(state, own.ok_or(FormFailure::NotGathering)?)?;
                }
                self.form_if_complete(state).map_err(|error| FormFailure::Impossible(error.to_string()))?;
                self.changed();
            }
            Plan::Joining(joining) => {
                let invitation = Invitation::of_token(&joining.token).map_err(FormFailure::NoToken)?;
                let endpoint = self.open(state, joining.address)?;
                self.join_on(state, self.joiner(endpoint, joining, invitation), None);
            }
        }
        state.trouble = None;
        Ok(())
    }

    /// Opens the socket, and serves whoever dials.
    fn open(self: &Arc<Self>, state: &mut State, advertised: SocketAddr) -> Result<Endpoint, FormFailure> {
        let listen = self.config.listen.unwrap_or(advertised);
        state.socket = None;
        let endpoint = endpoint::bind(&self.identity, listen)?;
        let serving = tokio::spawn(gather::serve(Arc::clone(self), endpoint.clone())).abort_handle();
        state.socket = Some(Socket { endpoint: endpoint.clone(), listen, tasks: vec![serving] });
        Ok(endpoint)
    }

    fn joiner(&self, endpoint: Endpoint, joining: &Joining, invitation: Invitation) -> Joiner {
        Joiner {
            endpoint,
            identity: Arc::clone(&self.identity),
            invitation,
            name: joining.name.clone(),
            address: joining.address,
        }
    }

    /// Goes on to join in the background.
    fn join_on(self: &Arc<Self>, state: &mut State, joiner: Joiner, connection: Option<Connection>) {
        let task = tokio::spawn(join::keep_joining(Arc::clone(self), joiner, connection)).abort_handle();
        if let Some(socket) = &mut state.socket {
            socket.tasks.push(task);
        }
    }

    /// Closes the socket.
    async fn close(&self) {
        let socket = self.state.lock().await.socket.take();
        if let Some(mut socket) = socket {
            let tasks = std::mem::take(&mut socket.tasks);
            let (endpoint, listen) = (socket.endpoint.clone(), socket.listen);
            // The port is free when nobody holds the endpoint any more.
            drop(socket);
            endpoint::close(endpoint, listen, tasks).await;
        }
    }

    /// Makes a plan durable, and then follows it.
    fn keep(&self, state: &mut State, plan: Plan) -> Result<(), FileError> {
        plan.store(&self.directory)?;
        state.plan = Some(plan);
        Ok(())
    }

    /// Once all members are there: makes the genesis, and sees to it that the others get it.
    fn form_if_complete(&self, state: &mut State) -> Result<(), FormError> {
        // There is one, whatever the plan says by now.
        if state.genesis.is_some() {
            return Ok(());
        }
        let Some(Plan::Gathering(plan)) = &state.plan else { return Ok(()) };
        let Some(genesis) = plan.genesis() else { return Ok(()) };
        check_genesis(&genesis)?;
        stored::store(&self.directory, &genesis)?;
        tracing::info!(cluster = genesis.name, "all members are there: the cluster is formed");
        state.genesis = Some(genesis);
        self.changed();
        Ok(())
    }

    /// The genesis that the inviter of a plan, or without a plan the operator, has given: durable from here on.
    async fn take_genesis(&self, plan: Option<Plan>, genesis: Genesis) -> Result<(), FormFailure> {
        let mut state = self.state.lock().await;
        if state.plan != plan {
            return Err(FormFailure::Engaged("was told something else meanwhile".to_owned()));
        }
        stored::store(&self.directory, &genesis)
            .map_err(|error| FormFailure::Impossible(error.to_string()))?;
        tracing::info!(cluster = genesis.name, "the cluster is formed");
        state.genesis = Some(genesis);
        state.trouble = None;
        self.changed();
        Ok(())
    }

    /// The inviter was told that the genesis is here.
    async fn note_told(&self) {
        self.state.lock().await.has_told = true;
        self.changed();
    }

    fn changed(&self) {
        self.revision.send_modify(|revision| *revision += 1);
    }

    async fn note_trouble(&self, trouble: FormFailure) {
        let mut state = self.state.lock().await;
        if state.trouble.as_ref() != Some(&trouble) {
            // The inviter may choose the words.
            self.notice.give(|left_out| tracing::warn!(left_out, "can't join yet: {trouble}"));
        }
        state.trouble = Some(trouble);
    }

    async fn note_gathered(&self, gathered: Gathered) {
        let mut state = self.state.lock().await;
        state.trouble = None;
        state.gathered = Some(gathered);
    }

    async fn note_refusal(&self, from: SocketAddr, why: &FormFailure) {
        self.notice
            .give(|left_out| tracing::warn!(%from, left_out, "refused a daemon that wants to join: {why}"));
        let mut state = self.state.lock().await;
        state.refused.truncate(REFUSALS - 1);
        state.refused.push_front((Instant::now(), from, why.clone()));
    }

    /// A connection has ended.
    async fn gone(&self, key: PublicKey, connection: &Connection) {
        let mut state = self.state.lock().await;
        if state.here.get(&key).is_some_and(|newest| newest.stable_id() == connection.stable_id()) {
            state.here.remove(&key);
        }
    }

    fn listen_of(&self, state: &State) -> SocketAddr {
        let unknown = SocketAddr::from(([0, 0, 0, 0], 0));
        state.socket.as_ref().map_or(unknown, |socket| socket.listen)
    }
}

/// Why no genesis came of a plan.
#[derive(Debug, thiserror::Error)]
enum FormError {
    #[error(transparent)]
    Unfit(#[from] FormFailure),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Whether a daemon of this version can be a member by a genesis.
fn check_genesis(genesis: &Genesis) -> Result<(), FormFailure> {
    let bad = |why: String| Err(FormFailure::BadGenesis(why));
    if let Err(why) = genesis.membership() {
        return bad(why.to_string());
    }
    let nowhere = |address: &SocketAddr| address.port() == 0 || address.ip().is_unspecified();
    if let Some(member) = genesis.members.iter().find(|member| nowhere(&member.address)) {
        return bad(format!("nobody reaches the member `{}` at {}", member.name, member.address));
    }
    let mut names = BTreeSet::new();
    if let Some(member) = genesis.members.iter().find(|member| !names.insert(&member.name)) {
        return bad(format!("two members are called `{}`", member.name));
    }
    let mut places = BTreeSet::new();
    let is_twice = |address: &SocketAddr| !places.insert(*address);
    if let Some(address) = genesis.members.iter().map(|member| member.address).find(is_twice) {
        return bad(format!("two members have the address {address}"));
    }
    Ok(())
}

/// What a member tells those of its members that have not heard of it yet.
pub fn welcome(genesis: &Genesis, members: &Membership) -> Bytes {
    debug_assert_eq!(genesis.cluster_id(), members.cluster());
    let reply = Reply::Formed(genesis.clone());
    postcard::to_stdvec(&reply).expect("encoding into a growing buffer succeeds").into()
}

#[cfg(test)]
mod tests;
