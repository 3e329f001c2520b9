//! A running member: opens what is on disk, catches up with its own log, and wires the parts together.
//!
//! ```text
//! bftctl ─▶ admin ─▶ service ─▶ driver ══▶ core::Replica
//! peers ─▶ transport ─▶ Inbound (decode, verify) ─▶ driver ─▶ log, executor, transport
//! ```

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bftd_core::{
    crypto::Ed25519,
    durable::{Durable, Unsound},
    ids::{Index, MemberId},
    limits::Timing,
    membership::{Genesis, InvalidMembership, Membership},
    replica::{Halt, Replica, Setup},
    verify::Verifier,
};
use bftd_faults::Liar;
use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time,
};

use crate::{
    admin::{AdminError, AdminServer},
    config::Config,
    control::Control,
    doctor::Surroundings,
    driver::{Clock, Driver, DriverError, EVENTS, Event, Internal, Parts},
    execute::Executor,
    faults::Faults,
    forming::{self, FileError, Forming, Front, GENESIS_FILE, files},
    identity::{Identity, IdentityError},
    logging,
    outlet::Outlet,
    peers::{Frame, Peers, Progress, TELL_EVERY, now_ms},
    reads::Reads,
    service::NodeService,
    serving::Lacking,
    state::{StateError, StateStore},
    store::{Cluster, DataDir, LogReader, LogStore, LogWriter, StoreError},
    supervision::Pulse,
    ticking::Ticking,
    transport::{Deliver, Lane, Transport, TransportConfig, TransportError},
    watch::Watches,
};

/// How many blocks are executed at once while catching up with the own log.
const REPLAYED_AT_ONCE: usize = 8;
/// In the data directory of a member that must not go on: why. Whoever starts it, systemd for example, does not know.
const HALTED_FILE: &str = "halted.txt";
/// How long a daemon whose replica has halted stays, so that what it has to say leaves a busy host.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why a daemon can't start or go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The genesis file can't be used.
    #[error("{0}")]
    Genesis(#[from] bftd_client::genesis::GenesisError),
    /// The genesis names members that can't form a cluster.
    #[error("in the genesis {}: {source}", path.display())]
    Members {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: InvalidMembership,
    },
    /// The configuration names another genesis than the one that the daemon was given.
    #[error(
        "the configuration names the genesis {} of cluster `{configured_name}`, but this daemon was formed with {} of cluster \
         `{stored_name}`, and they differ: take `genesis` out of [node] to go on with the latter, or use another data directory",
        configured.display(), stored.display()
    )]
    TwoGeneses {
        /// The configured file.
        configured: PathBuf,
        /// Its cluster.
        configured_name: String,
        /// The file in the data directory.
        stored: PathBuf,
        /// Its cluster.
        stored_name: String,
    },
    /// The data directory belongs to a cluster, and nothing says who its members are.
    #[error(
        "the data directory {} belongs to the cluster {cluster}, but its genesis is missing: name it with `genesis` in [node], or \
         copy it to {}; any other member has it", directory.display(), directory.join(GENESIS_FILE).display()
    )]
    GenesisLost {
        /// The data directory.
        directory: PathBuf,
        /// Its cluster.
        cluster: String,
    },
    /// A file of a daemon without a cluster can't be used.
    #[error("{0}")]
    Forming(#[from] FileError),
    /// This member has seen that more than f members are faulty.
    #[error(
        "this member has stopped, as {} says: {}. What this cluster decides can't be relied on any more: stop all members, and \
         find out with their operators who lied, by their logs. To start this one all the same, remove that file",
        file.display(), reason.trim_end()
    )]
    Halted {
        /// The file that says so.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// The key in the data directory is no member's.
    #[error(
        "the key {key} in {} is not among the members of cluster `{cluster}`; \
         put it into the genesis, or use the data directory of a member", directory.display()
    )]
    NotAMember {
        /// The public key.
        key: bftd_core::crypto::PublicKey,
        /// The data directory.
        directory: PathBuf,
        /// The cluster.
        cluster: String,
    },
    /// The state is ahead of the log, which can't be.
    #[error(
        "the state in {} is at block {executed}, but the log only reaches block {committed}: the files do not \
         belong together; restore both from one backup, or delete state.redb to have it computed again", directory.display()
    )]
    StateAhead {
        /// The data directory.
        directory: PathBuf,
        /// The last executed index.
        executed: Index,
        /// The last committed one.
        committed: Index,
    },
    /// The log holds what this member can't have written.
    #[error(
        "the log in {} was changed by somebody, or is another member's: {source}; nothing was sent. Find out who did it. \
         A member whose log can't be trusted must not take part with the same key: let the others replace it",
        directory.display()
    )]
    Unsound {
        /// The data directory.
        directory: PathBuf,
        /// What is wrong.
        source: Unsound,
    },
    /// The identity can't be read or made.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// The log can't be opened or read.
    #[error("{0}")]
    Log(#[from] StoreError),
    /// The state can't be opened or replayed.
    #[error("{0}")]
    State(#[from] StateError),
    /// Peers can't be reached from here.
    #[error("{0}")]
    Transport(#[from] TransportError),
    /// The admin socket can't be opened.
    #[error("{0}")]
    Admin(#[from] AdminError),
    /// A thread can't be started.
    #[error("can't start a thread: {0}")]
    Thread(std::io::Error),
    /// It ran, and then could not go on.
    #[error("{0}")]
    Driver(#[from] DriverError),
}

impl NodeError {
    /// Whether the operator's files are at fault, so that starting again is of no use before they are changed.
    pub fn is_configuration(&self) -> bool {
        let is_in_files = matches!(
            self,
            Self::Genesis(_)
                | Self::Members { .. }
                | Self::NotAMember { .. }
                | Self::TwoGeneses { .. }
                | Self::GenesisLost { .. }
                | Self::Halted { .. }
                | Self::Forming(FileError::Malformed { .. })
                | Self::Unsound { .. }
                | Self::Admin(AdminError::PathTooLong { .. })
        );
        is_in_files || matches!(self, Self::Identity(error) if error.is_configuration())
    }
}

/// Runs a daemon until `stop` is set or something breaks: at first without a cluster, if it has none, then as a member.
/// Its driver, once there is one, beats `pulse`.
///
/// # Errors
/// See [`NodeError`].
pub async fn run(
    config: &Config,
    pulse: Arc<Pulse>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), NodeError> {
    let configured = read_genesis(config)?;
    let directory = DataDir::open(&config.node.data_dir)?;
    if let Some(reason) = files::read(directory.path(), HALTED_FILE)? {
        return Err(NodeError::Halted { file: directory.path().join(HALTED_FILE), reason });
    }
    let identity = Arc::new(Identity::load_or_create(directory.path())?);
    let known = genesis_here(config, &directory, configured)?;
    let front = Arc::new(Front::default());
    // Clients are served until the driver has done what they wait for.
    let drained = watch::Sender::new(false);
    let admin = AdminServer::bind(&config.admin.socket)?;
    let (genesis, members, admin) = match known {
        Some((genesis, members)) => (genesis, members, Admin::Bound(admin)),
        None => {
            let forming = Forming::start(&config.node, directory.path().to_owned(), Arc::clone(&identity))?;
            front.form(Arc::clone(&forming));
            let admin = tokio::spawn(admin.serve(Arc::clone(&front), drained.subscribe()));
            let genesis = tokio::select! {
                genesis = forming.finish() => genesis,
                _ = stop.wait_for(|stop| *stop) => {
                    drained.send_replace(true);
                    let _ = admin.await;
                    return Ok(());
                }
            };
            let members = Arc::new(membership(&genesis, &directory.path().join(GENESIS_FILE))?);
            (genesis, members, Admin::Serving(admin))
        }
    };
    run_member(config, Founded { directory, identity, genesis, members }, &front, admin, drained, pulse, stop)
        .await
}

/// Who this member is, and of which cluster.
struct Founded {
    directory: DataDir,
    identity: Arc<Identity>,
    genesis: Genesis,
    members: Arc<Membership>,
}

/// The admin socket, which is served once there is something to say.
enum Admin {
    Bound(AdminServer),
    Serving(JoinHandle<()>),
}

/// Runs a member until `stop` is set or something breaks.
async fn run_member(
    config: &Config,
    founded: Founded,
    front: &Arc<Front>,
    admin: Admin,
    drained: watch::Sender<bool>,
    pulse: Arc<Pulse>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), NodeError> {
    let Founded { directory, identity, genesis, members } = founded;
    let key = identity.public_key();
    let member = members.by_key(&key).ok_or_else(|| NodeError::NotAMember {
        key,
        directory: directory.path().to_owned(),
        cluster: genesis.name.clone(),
    })?;
    let me = member.id;
    let listen = config.node.listen.unwrap_or(member.address);

    let cluster = Cluster { name: genesis.name.clone(), id: members.cluster() };
    let log = LogStore::open(&directory, &cluster)?;
    let mut durable = log.load()?;
    let verifier = Verifier::new(Arc::clone(&members), Arc::new(Ed25519)).with_own(me, identity.signer());
    durable
        .check(me, &verifier)
        .map_err(|source| NodeError::Unsound { directory: directory.path().to_owned(), source })?;
    durable.evidence.retain(|digest, proof| {
        let checked = proof.check(&members, &Ed25519);
        if let Err(why) = checked {
            tracing::warn!(%digest, %why, "a proof of misbehaviour on disk proves nothing, and is passed over");
        }
        checked.is_ok()
    });
    let log_reader = log.reader();
    let state = open_state(&directory, &members, &durable, &log_reader)?;
    let state_reader = state.reader();
    let states = state.recent_digests();

    let timing = Timing::default();
    let clock = Clock::start();
    let setup = Setup {
        me,
        members: Arc::clone(&members),
        signer: identity.signer(),
        timing,
        protocol: state.protocol(),
        one_round: true,
    };
    let replica = Replica::start(setup, durable, states, clock.now());
    let (status_sender, status) = watch::channel(replica.status());
    let (evidence_sender, evidence) = watch::channel(replica.evidence().cloned().collect());
    let (events, event_receiver) = mpsc::channel(EVENTS);
    let (internal, internal_receiver) = mpsc::unbounded_channel();
    let peers = Arc::new(Peers::new(me, &members));
    let verifier = Arc::new(verifier);
    let liar = Liar {
        me,
        members: Arc::clone(&members),
        signer: identity.signer(),
        verifier: Arc::clone(&verifier),
        timing,
    };
    let faults = Arc::new(Faults::new(liar, config.faults.enabled));
    let control = Arc::new(Control::new(me, Arc::clone(&faults)));

    let reporter = internal.clone();
    let report = Box::new(move |durable| {
        // The driver has gone only when the daemon stops.
        let _ = reporter.send(Internal::Durable(durable));
    });
    let log = LogWriter::start(log, report).map_err(NodeError::Thread)?;
    let watches = Watches::start(state_reader.clone()).map_err(NodeError::Thread)?;
    let executor =
        Executor::start(me, state, watches.clone(), internal.clone()).map_err(NodeError::Thread)?;
    let executed_ms = executor.executed_ms();
    let ticking = Ticking {
        me,
        members: Arc::clone(&members),
        status: status.clone(),
        lease_end_ms: executor.lease_end_ms(),
        peers: Arc::clone(&peers),
        events: events.clone(),
    };
    let ticking = tokio::spawn(ticking.run());
    let inbound = Arc::new(Inbound {
        verifier,
        peers: Arc::clone(&peers),
        control: Arc::clone(&control),
        events: events.clone(),
    });
    let welcome = forming::welcome(&genesis, &members);
    let transport_config = TransportConfig { me, members: Arc::clone(&members), welcome, listen };
    let transport = Arc::new(Transport::start(transport_config, &identity, inbound).await?);
    control.connect(Arc::clone(&transport));
    let outlet = Arc::new(Outlet::new(me, &members, Arc::clone(&transport), Arc::clone(&faults)));
    let lacking = Arc::new(Lacking::default());
    let serving = tokio::spawn(Arc::clone(&lacking).serve(log_reader, Arc::clone(&outlet), internal));
    tracing::info!(
        message_id = logging::STARTED,
        cluster = genesis.name,
        node = me.0,
        %listen,
        socket = %config.admin.socket.display(),
        "started"
    );

    let telling = Telling {
        transport: Arc::clone(&transport),
        others: members.ids().filter(|id| *id != me).collect(),
        status: status.clone(),
        peers: Arc::clone(&peers),
        faults: Arc::clone(&faults),
    };
    let telling = tokio::spawn(telling.run());
    let service = NodeService {
        me,
        genesis,
        members: Arc::clone(&members),
        peers: Arc::clone(&peers),
        faults: Arc::clone(&faults),
        control,
        status,
        evidence,
        events,
        reads: Reads::new(state_reader.clone()),
        watches: watches.clone(),
        closing: drained.subscribe(),
        directory: directory.path().to_owned(),
        state: state_reader,
        executed_ms,
    };
    let around = Surroundings { directory: directory.path().to_owned(), transport: Arc::clone(&transport) };
    front.serve_member(service, around);
    let admin = match admin {
        Admin::Bound(admin) => tokio::spawn(admin.serve(Arc::clone(front), drained.subscribe())),
        Admin::Serving(admin) => admin,
    };
    let parts = Parts {
        me,
        members: Arc::clone(&members),
        replica,
        clock,
        timing,
        log,
        executor,
        outlet,
        lacking,
        status: status_sender,
        peers,
        evidence: evidence_sender,
        pulse,
    };
    let driver = tokio::spawn(Driver::new(parts).run(event_receiver, internal_receiver, stop.clone()));
    let result = driver.await.map_err(|_| DriverError::ThreadEnded)?;
    if let Err(DriverError::Halted(halt)) = &result {
        if matches!(halt, Halt::ConflictingCertificates { .. })
            && let Err(error) = files::replace(directory.path(), HALTED_FILE, format!("{halt}\n").as_bytes())
        {
            tracing::error!(%error, "it can't be kept that this member must not go on");
        }
        time::sleep(LAST_WORDS).await;
    }
    ticking.abort();
    telling.abort();
    serving.abort();
    if result.is_ok() {
        // The driver also ends on its own when nobody can send it anything any more.
        let _ = stop.wait_for(|stop| *stop).await;
        drained.send_replace(true);
        let _ = admin.await;
    } else {
        admin.abort();
    }
    watches.close();
    transport.shutdown().await;
    drop(directory);
    Ok(result?)
}

/// The genesis that a configuration names, and its members, if it names one.
///
/// # Errors
/// The file can't be read, or names no possible cluster.
pub fn read_genesis(config: &Config) -> Result<Option<(Genesis, Arc<Membership>)>, NodeError> {
    let Some(path) = &config.node.genesis else { return Ok(None) };
    let genesis = bftd_client::genesis::read(path)?;
    let members = Arc::new(membership(&genesis, path)?);
    Ok(Some((genesis, members)))
}

/// The genesis to start with: what the configuration names, or what the data directory was given.
fn genesis_here(
    config: &Config,
    directory: &DataDir,
    configured: Option<(Genesis, Arc<Membership>)>,
) -> Result<Option<(Genesis, Arc<Membership>)>, NodeError> {
    let path = directory.path().join(GENESIS_FILE);
    match (configured, forming::stored_genesis(directory.path())?) {
        (Some((configured, _)), Some(stored)) if configured.cluster_id() != stored.cluster_id() => {
            Err(NodeError::TwoGeneses {
                configured: config.node.genesis.clone().unwrap_or_default(),
                configured_name: configured.name,
                stored: path,
                stored_name: stored.name,
            })
        }
        (Some(known), _) => {
            forming::tidy(directory.path())?;
            Ok(Some(known))
        }
        (None, Some(stored)) => {
            forming::tidy(directory.path())?;
            let members = Arc::new(membership(&stored, &path)?);
            Ok(Some((stored, members)))
        }
        (None, None) => match directory.cluster()? {
            Some(cluster) => {
                let directory = directory.path().to_owned();
                Err(NodeError::GenesisLost { directory, cluster: cluster.to_string() })
            }
            None => Ok(None),
        },
    }
}

fn membership(genesis: &Genesis, path: &Path) -> Result<Membership, NodeError> {
    genesis.membership().map_err(|source| NodeError::Members { path: path.to_owned(), source })
}

/// Opens the state, and executes what the log has and it has not.
fn open_state(
    directory: &DataDir,
    members: &Membership,
    durable: &Durable,
    log: &LogReader,
) -> Result<StateStore, NodeError> {
    let mut state = StateStore::open(directory.path(), members.cluster(), members.root())?;
    let committed = durable.committed.as_ref().map_or(members.root(), |c| c.certificate.block()).index;
    let executed = state.head().executed.index;
    if executed > committed {
        return Err(NodeError::StateAhead { directory: directory.path().to_owned(), executed, committed });
    }
    if executed < committed {
        tracing::info!(from = executed.0, to = committed.0, "executing the log again");
    }
    let mut blocks = log.blocks(executed.next(), committed);
    loop {
        let next: Vec<_> = blocks.by_ref().take(REPLAYED_AT_ONCE).collect::<Result<_, _>>()?;
        if next.is_empty() {
            return Ok(state);
        }
        state.execute(&next)?;
    }
}

/// Takes frames from the transport: decodes and verifies them beside the driver, and counts who sends what.
struct Inbound {
    verifier: Arc<Verifier>,
    peers: Arc<Peers>,
    control: Arc<Control>,
    events: mpsc::Sender<Event>,
}

impl Deliver for Inbound {
    async fn deliver(&self, from: MemberId, _lane: Lane, frame: Bytes) {
        let verified = match Frame::decode(&frame) {
            Ok(Frame::Progress(progress)) => {
                self.peers.hear(from, progress);
                return;
            }
            Ok(Frame::Ask(number, change)) => {
                self.control.on_ask(from, number, &change);
                return;
            }
            Ok(Frame::Answer(number, result)) => {
                self.control.on_answer(from, number, result);
                return;
            }
            Ok(Frame::Message(message)) => {
                let name = message.name();
                self.verifier.verify(*message).map_err(|why| format!("{name}: {why}"))
            }
            Err(malformed) => Err(malformed.to_string()),
        };
        match verified {
            Ok(message) => {
                self.peers.count(from, true);
                // Waiting here slows the peer down. The driver has gone only when the daemon stops.
                let _ = self.events.send(Event::Message(from, message)).await;
            }
            Err(why) => {
                let corrupt = self.peers.count(from, false);
                // A peer must not fill the log: the 1st, 2nd, 4th, 8th … is told.
                if corrupt.is_power_of_two() {
                    tracing::warn!(
                        message_id = logging::CORRUPT,
                        peer = from.0,
                        corrupt,
                        why,
                        "dropped a corrupt message"
                    );
                }
            }
        }
    }
}

/// Tells the other members how far this one is, for their `status`.
struct Telling {
    transport: Arc<Transport>,
    others: Vec<MemberId>,
    status: watch::Receiver<bftd_core::replica::Status>,
    peers: Arc<Peers>,
    faults: Arc<Faults>,
}

impl Telling {
    async fn run(self) {
        let mut every = time::interval(TELL_EVERY);
        loop {
            every.tick().await;
            let progress = {
                let status = self.status.borrow();
                Progress {
                    term: status.term.0,
                    prepared: status.prepared.0,
                    committed: status.committed.index.0,
                    executed: status.executed.index.0,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                    faults: self.faults.names(),
                    clock_ms: now_ms(),
                }
            };
            let frame = Frame::of_progress(&progress);
            for other in &self.others {
                self.peers.cut(*other, self.faults.is_cut(*other));
                self.transport.send(*other, Lane::Votes, frame.clone());
            }
        }
    }
}
