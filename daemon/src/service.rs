//! What the admin socket offers: this daemon's clients, served in the name of the whole cluster.

mod view;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bftd_client::{
    forming::FormRequest,
    protocol::{
        Accusation, At, ClusterStatus, Consistency, Failure, FaultChange, MemberStatus, NodeTally, Phase,
        Request, Response, Status, Trace,
    },
};
use bftd_core::{
    crypto::PublicKey,
    evidence::Evidence,
    ids::MemberId,
    kv::{Answer, Head, Operation, Query, Refusal, Watched},
    membership::{Genesis, Member, Membership},
    replica,
};
use bftd_faults::Fault;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    admin::{ADMIN_GROUP, PeerCredentials, Service},
    control::Control,
    driver::{Event, Executed, Refused},
    faults::Faults,
    forming,
    peers::{Peers, now_ms},
    reads::{Reads, is_short},
    state::{Answers, StateError, StateReader},
    store,
    trace::Asked,
    watch::Watches,
};
use view::View;

/// How long a watch waits for a change, at most.
const LONGEST_WATCH: Duration = Duration::from_secs(10);

/// Answers the requests of this daemon's clients.
pub struct NodeService {
    /// This member.
    pub me: MemberId,
    /// The cluster's genesis.
    pub genesis: Genesis,
    /// Its members.
    pub members: Arc<Membership>,
    /// What is known of them.
    pub peers: Arc<Peers>,
    /// The faults injected here.
    pub faults: Arc<Faults>,
    /// The way to other members' daemons.
    pub control: Arc<Control>,
    /// The replica, as the driver shows it.
    pub status: watch::Receiver<replica::Status>,
    /// The proofs of misbehaviour, as the driver shows them.
    pub evidence: watch::Receiver<Vec<Evidence>>,
    /// The driver.
    pub events: mpsc::Sender<Event>,
    /// The data directory.
    pub directory: PathBuf,
    /// The state.
    pub state: StateReader,
    /// Reads of it that may take long.
    pub reads: Reads,
    /// Who waits for changes of it.
    pub watches: Watches,
    /// Set when clients are no longer waited for.
    pub closing: watch::Receiver<bool>,
    /// The time of the last executed block, in milliseconds since the Unix epoch.
    pub executed_ms: Arc<AtomicU64>,
}

impl Service for NodeService {
    async fn handle(&self, peer: PeerCredentials, request: Request) -> Response {
        let result = match request {
            Request::Execute(operation) => self.execute(peer, &operation).await,
            Request::Traced(operation) => self.execute_traced(peer, &operation).await,
            Request::Query { query, consistency } => self.query(peer, query, consistency).await,
            Request::Watch { watched, wait_ms } => self.watch(peer, watched, wait_ms).await,
            Request::Status => Ok(Response::Status(Box::new(self.status()))),
            Request::Evidence => Ok(Response::Evidence(self.accusations())),
            Request::Inject { node, change, beyond_f } => {
                self.inject(peer, MemberId(node), &change, beyond_f).await
            }
            Request::Form(form) => self.form(&form),
            Request::Examine => {
                Err(Failure::Internal("the daemon's surroundings are not known here".to_owned()))
            }
        };
        result.unwrap_or_else(Response::Failed)
    }
}

impl NodeService {
    async fn execute(&self, peer: PeerCredentials, operation: &Operation) -> Result<Response, Failure> {
        self.check_allowed(peer, operation).await?;
        let Executed { outcome, index, term } = self.change(operation, None).await?;
        Ok(Response::Executed { outcome, index: index.0, term: term.0 })
    }

    async fn execute_traced(
        &self,
        peer: PeerCredentials,
        operation: &Operation,
    ) -> Result<Response, Failure> {
        self.check_allowed(peer, operation).await?;
        let (since, before) = (Instant::now(), self.tallies());
        let (answer, phases) = oneshot::channel();
        let asked = Box::new(Asked { since, answer });
        let Executed { outcome, index, term } = self.change(operation, Some(asked)).await?;
        let trace = phases.await.ok().map(|phases| Box::new(self.trace(phases, &before)));
        Ok(Response::Traced { outcome, index: index.0, term: term.0, trace })
    }

    /// Refuses what this client may not ask for, or this cluster can't do. What is in a session anybody may ask for: no protocol is
    /// set in one.
    async fn check_allowed(&self, peer: PeerCredentials, operation: &Operation) -> Result<(), Failure> {
        let what = match operation {
            Operation::SetProtocol { .. } => "protocol",
            Operation::SetQuota { .. } => "quota",
            _ => return Ok(()),
        };
        if !peer.is_admin().await {
            return Err(Failure::Denied(format!(
                "the {what} is set by root, by the daemon's own user, and by members of the group {ADMIN_GROUP}"
            )));
        }
        match operation {
            Operation::SetProtocol { protocol } if !self.members.protocol().may_become(*protocol) => {
                Err(Failure::Refused(Refusal::Protocol))
            }
            _ => Ok(()),
        }
    }

    async fn change(&self, operation: &Operation, trace: Option<Box<Asked>>) -> Result<Executed, Failure> {
        operation.check().map_err(Failure::Refused)?;
        self.require_quorum()?;
        let (client, done) = oneshot::channel();
        self.tell_driver(Event::Change(operation.encode(), client, trace))?;
        match done.await {
            Ok(Ok(executed)) => Ok(executed),
            Ok(Err(Refused::Full)) => Err(Failure::Busy),
            Ok(Err(Refused::Closing)) => Err(Failure::Closing),
            Err(_) => Err(Failure::Stopping),
        }
    }

    /// The phases of an agreement, with the messages that have come since `before`.
    fn trace(&self, phases: Vec<Phase>, before: &[NodeTally]) -> Trace {
        let mut nodes = self.tallies();
        for (node, before) in nodes.iter_mut().zip(before) {
            // One counted as correct before may have turned out to be a lie since.
            node.correct = node.correct.saturating_sub(before.correct);
            node.corrupt = node.corrupt.saturating_sub(before.corrupt);
        }
        Trace { me: self.me.0, total_us: phases.last().map_or(0, |last| last.at_us), phases, nodes }
    }

    /// How many messages of each member have come so far.
    fn tallies(&self) -> Vec<NodeTally> {
        let tally = |member: &Member| {
            let (correct, corrupt) = self.peers.counts(member.id);
            NodeTally { id: member.id.0, name: member.name.clone(), correct, corrupt }
        };
        self.members.members().iter().map(tally).collect()
    }

    async fn query(
        &self,
        peer: PeerCredentials,
        query: Query,
        consistency: Consistency,
    ) -> Result<Response, Failure> {
        if consistency == Consistency::Linearizable {
            self.require_quorum()?;
            let (client, readable) = oneshot::channel();
            self.tell_driver(Event::Read(client))?;
            readable.await.map_err(|_| Failure::Busy)?;
        }
        let found = if is_short(&query) {
            self.state.query_many(&[query]).map_err(internal)?
        } else {
            self.reads.query(peer.connection, query).await?
        };
        let at = self.at(&found.head);
        let mut answer = only(found)?;
        if let Answer::Leases(leases) = &mut answer {
            // They had that much left when the last block was executed. When that was is not known before this run's first one.
            let age_ms = if at.time_ms == 0 { 0 } else { at.age_ms };
            leases.iter_mut().for_each(|it| it.remaining_ms = it.remaining_ms.saturating_sub(age_ms));
        }
        Ok(Response::Answered { answer, at })
    }

    /// Waits for changes of keys. What is watched is local state: a start that reflects all acknowledged changes takes a linearizable
    /// read before it, for the revision.
    async fn watch(
        &self,
        peer: PeerCredentials,
        watched: Watched,
        wait_ms: u64,
    ) -> Result<Response, Failure> {
        watched.keys.check().map_err(Failure::Refused)?;
        let until = Instant::now() + Duration::from_millis(wait_ms).min(LONGEST_WATCH);
        let read =
            |watched| async move { only(self.reads.query(peer.connection, Query::Events(watched)).await?) };
        let mut closing = self.closing.clone();
        let answer = tokio::select! {
            biased;
            answer = self.watches.next(watched, until.into(), read) => answer?,
            _ = closing.wait_for(|closing| *closing) => return Err(Failure::Closing),
        };
        Ok(Response::Answered { answer, at: self.at(&self.head()?) })
    }

    fn head(&self) -> Result<Head, Failure> {
        self.state.head().map_err(internal)
    }

    fn at(&self, head: &Head) -> At {
        let time_ms = self.executed_ms.load(Ordering::Relaxed);
        At {
            revision: head.revision,
            index: head.executed.index.0,
            age_ms: now_ms().saturating_sub(time_ms),
            time_ms,
        }
    }

    fn tell_driver(&self, event: Event) -> Result<(), Failure> {
        self.events.try_send(event).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Failure::Busy,
            mpsc::error::TrySendError::Closed(_) => Failure::Closing,
        })
    }

    /// Refuses at once what can't succeed, before anything is sent.
    fn require_quorum(&self) -> Result<(), Failure> {
        let (reachable, needed) = (self.peers.reachable(), self.members.quorum());
        if reachable >= needed {
            return Ok(());
        }
        Err(Failure::NoQuorum {
            reachable: reachable as u64,
            n: self.members.n() as u64,
            needed: needed as u64,
        })
    }

    fn status(&self) -> Status {
        let own = self.status.borrow().clone();
        let members: Vec<_> =
            self.members.members().iter().map(|member| self.member_status(member, &own)).collect();
        let agree =
            self.members.ids().all(|id| id == self.me || self.peers.progress(id).1.term == own.term.0);
        let is_proved = |member: &&MemberStatus| self.peers.is_proof_fresh(MemberId(member.id));
        let view = View {
            quorum: self.members.quorum(),
            is_settled: agree && own.open && own.committed.index.0 > 0,
            down: members.iter().filter(|it| !self.peers.is_heard(MemberId(it.id))).map(|it| it.id).collect(),
            proved: members.iter().filter(is_proved).map(|it| it.id).collect(),
            members: &members,
        };
        let (state, tolerates, mut hints) = (view.health(), view.tolerates(), view.hints());
        let store = self.state.head().ok();
        hints.extend(store.as_ref().and_then(|head| view::hint_of_space(head.used, head.quota)));
        let of_store = |number: fn(&Head) -> u64| store.as_ref().map_or(0, number);
        let cluster = ClusterStatus {
            name: self.genesis.name.clone(),
            id: self.members.cluster().to_string(),
            protocol: own.protocol,
            state,
            n: self.members.n() as u64,
            f: self.members.f() as u64,
            tolerates,
            epoch: self.members.epoch().0,
            term: own.term.0,
            leader: own.leader.0,
            committed: own.committed.index.0,
            executed: own.executed.index.0,
            state_digest: own.executed.state.to_string(),
            next_protocol: own.next_protocol,
            revision: of_store(|head| head.revision),
            compacted: of_store(|head| head.compacted),
            used: of_store(|head| head.used),
            quota: of_store(|head| head.quota),
        };
        Status { cluster, me: self.me.0, members, hints, disk: store::disk_use(&self.directory) }
    }

    /// A member is asked as if it had no cluster.
    fn form(&self, request: &FormRequest) -> Result<Response, Failure> {
        let key = self.members.get(self.me).map_or(PublicKey([0; 32]), |me| me.key);
        let shown = forming::of_member(request, &self.genesis, key)?;
        Ok(Response::Forming(Box::new(shown)))
    }

    async fn inject(
        &self,
        peer: PeerCredentials,
        node: MemberId,
        change: &FaultChange,
        beyond_f: bool,
    ) -> Result<Response, Failure> {
        if !peer.is_admin().await {
            return Err(Failure::Denied(format!(
                "faults are injected by root, by the daemon's own user, and by members of the group {ADMIN_GROUP}"
            )));
        }
        if self.members.get(node).is_none() {
            return Err(Failure::NoSuchMember(node.0));
        }
        if !self.peers.is_heard(node) {
            return Err(Failure::MemberDown(node.0));
        }
        let faults = match change {
            FaultChange::Start { fault, .. } => {
                self.check_bound(node, fault, beyond_f)?;
                self.control.change(node, change).await?
            }
            // It may have ended a moment ago, and its faults with it: that need not be waited for.
            FaultChange::Clear => tokio::select! {
                biased;
                changed = self.control.change(node, change) => changed?,
                () = self.peers.gone(node) => return Err(Failure::MemberDown(node.0)),
            },
        };
        self.peers.hear_faults(node, faults);
        Ok(Response::Injected)
    }

    /// Whether one more faulty member is within what the cluster tolerates. Who is down is faulty; and where the protocol withstands
    /// crashes alone a liar is beyond all bounds.
    fn check_bound(&self, node: MemberId, fault: &str, beyond_f: bool) -> Result<(), Failure> {
        let protocol = self.members.protocol();
        let withstands_lies = protocol.row().faults == bftd_core::membership::Faults::Byzantine;
        if !withstands_lies && !beyond_f && fault.parse().is_ok_and(Fault::is_lie) {
            return Err(Failure::CrashesOnly { protocol: protocol.to_string(), fault: fault.to_owned() });
        }
        let is_faulty =
            |id: &MemberId| *id == node || !self.peers.is_heard(*id) || !self.faults_of(*id).is_empty();
        let (faulty, f) = (self.members.ids().filter(is_faulty).count(), self.members.f());
        if faulty > f && !beyond_f {
            return Err(Failure::BeyondF { faulty: faulty as u64, f: f as u64 });
        }
        Ok(())
    }

    fn faults_of(&self, id: MemberId) -> Vec<String> {
        if id == self.me { self.faults.names() } else { self.peers.progress(id).1.faults }
    }

    fn accusations(&self) -> Vec<Accusation> {
        let held = self.evidence.borrow();
        held.iter().filter_map(|evidence| Accusation::of(evidence.clone(), &self.members)).collect()
    }

    fn member_status(&self, member: &Member, own: &replica::Status) -> MemberStatus {
        let (reachable, heard) = self.peers.progress(member.id);
        let (correct, corrupt) = self.peers.counts(member.id);
        let is_me = member.id == self.me;
        let against = |proof: &&Evidence| proof.offence(&self.members).accused == member.id;
        let evidence = self.evidence.borrow().iter().filter(against).count() as u64;
        let of = |mine: u64, heard: u64| if is_me { mine } else { heard };
        MemberStatus {
            id: member.id.0,
            name: member.name.clone(),
            leads: member.id == own.leader,
            reachable: is_me || reachable,
            prepared: of(own.prepared.0, heard.prepared),
            committed: of(own.committed.index.0, heard.committed),
            executed: of(own.executed.index.0, heard.executed),
            correct,
            corrupt,
            evidence,
            faults: self.faults_of(member.id),
            version: if is_me { env!("CARGO_PKG_VERSION").to_owned() } else { heard.version },
        }
    }
}

fn internal(error: StateError) -> Failure {
    Failure::Internal(error.to_string())
}

/// The answer to a single query.
fn only(found: Answers) -> Result<Answer, Failure> {
    let answer = found.answers.into_iter().next();
    answer.ok_or_else(|| Failure::Internal("the state gave no answer".to_owned()))
}

#[cfg(test)]
mod tests;
