//! What operators ask of a daemon that has no cluster yet, and what they are shown.

use std::{net::UdpSocket, sync::Arc};

use tokio::sync::MutexGuard;

use bftd_client::{
    forming::{FormFailure, FormRequest, Forming as Shown, Founder, Init, Phase, Place, RefusedJoin, Token},
    genesis::{is_name, parse},
    protocol::{ClusterStatus, DiskUse, Failure, Health, Request, Response, Status},
};
use bftd_core::{
    crypto::PublicKey,
    membership::{Genesis, Member},
    protocol::Protocol,
};
use quinn::VarInt;

use super::{
    Forming, Shared, State, address, check_genesis,
    join::Answer,
    now_ms,
    plan::{Gathering, Joining, Plan},
    token::Invitation,
    wire::Candidate,
};
use crate::doctor;

/// How long a token may be valid at most, in seconds: a month.
const LONGEST_TOKEN: u64 = 31 * 86_400;

impl Forming {
    /// Answers one call of a client, who may.
    pub(super) async fn handle(&self, request: Request) -> Response {
        match request {
            Request::Form(FormRequest::CreateToken { for_s, uses }) => {
                self.create_token(for_s, uses).await.map_or_else(fail, Response::Token)
            }
            Request::Form(form) => {
                // In a task of its own: what has begun is brought to an end, be the client there or not.
                let changed = tokio::spawn(Arc::clone(&self.shared).change(form));
                match changed.await.unwrap_or_else(|died| std::panic::resume_unwind(died.into_panic())) {
                    Ok(()) => Response::Forming(Box::new(self.shown().await)),
                    Err(failure) => fail(failure),
                }
            }
            Request::Status => Response::Status(Box::new(self.status().await)),
            Request::Examine => {
                let shared = &self.shared;
                let socket = shared.state.lock().await.socket.as_ref().map(|socket| socket.listen);
                Response::Examined(doctor::examine_unformed(&shared.directory, socket).await)
            }
            _ => Response::Failed(Failure::Uninitialised),
        }
    }

    async fn create_token(&self, for_s: u64, uses: u16) -> Result<Token, FormFailure> {
        let shared = &self.shared;
        let _operator = shared.operator.lock().await;
        let mut state = shared.state.lock().await;
        if let Some(genesis) = &state.genesis {
            return Err(formed_here(genesis));
        }
        let Some(Plan::Gathering(plan)) = &state.plan else { return Err(FormFailure::NotGathering) };
        if for_s == 0 || for_s > LONGEST_TOKEN || uses == 0 {
            let why =
                format!("a token is for at least one host, and for up to {} days", LONGEST_TOKEN / 86_400);
            return Err(FormFailure::Impossible(why));
        }
        let mut plan = plan.clone();
        let (invitation, expires_ms) = plan.invite(for_s, uses, now_ms())?;
        shared.keep(&mut state, Plan::Gathering(plan)).map_err(impossible)?;
        Ok(Token {
            token: invitation.to_token(),
            cluster: invitation.cluster,
            address: invitation.address,
            uses,
            expires_s: expires_ms / 1000,
        })
    }

    async fn status(&self) -> Status {
        let shown = self.shown().await;
        let cluster = ClusterStatus {
            name: shown.cluster.clone(),
            id: shown.id.clone().unwrap_or_default(),
            protocol: shown.protocol,
            next_protocol: shown.protocol,
            state: Health::Uninitialised,
            n: shown.expect,
            f: 0,
            tolerates: 0,
            epoch: 0,
            term: 0,
            leader: 0,
            committed: 0,
            executed: 0,
            state_digest: String::new(),
            revision: 0,
            compacted: 0,
            used: 0,
            quota: 0,
        };
        Status { cluster, me: 0, members: Vec::new(), hints: hints(&shown), disk: DiskUse::default() }
    }

    async fn shown(&self) -> Shown {
        let shared = &self.shared;
        shared.state.lock().await.shown(shared.identity.public_key())
    }
}

impl Shared {
    async fn change(self: Arc<Self>, request: FormRequest) -> Result<(), FormFailure> {
        if request == FormRequest::Progress {
            return Ok(());
        }
        let _operator = self.operator.lock().await;
        if let Some(genesis) = &self.state.lock().await.genesis {
            return repeated(&request, genesis, self.identity.public_key());
        }
        match request {
            FormRequest::Init(init) => self.init(init).await,
            FormRequest::Join { token, place } => self.join(&token, &place).await,
            FormRequest::TakeGenesis { text } => self.take_text(&text).await,
            FormRequest::Forget { name } => self.forget(name).await,
            FormRequest::Abandon { phase } => self.abandon(phase).await,
            FormRequest::Progress | FormRequest::CreateToken { .. } => Ok(()),
        }
    }

    /// The state, unless others have made the cluster meanwhile.
    async fn unformed(&self) -> Result<MutexGuard<'_, State>, FormFailure> {
        let state = self.state.lock().await;
        if let Some(genesis) = &state.genesis { Err(formed_here(genesis)) } else { Ok(state) }
    }

    async fn init(self: &Arc<Self>, init: Init) -> Result<(), FormFailure> {
        check_shape(&init)?;
        let (name, address) = address::resolve(&init.place, &self.config).await?;
        let mut state = self.unformed().await?;
        if let Some(plan) = &state.plan {
            let is_same = matches!(plan, Plan::Gathering(plan)
                if plan.name == init.name && plan.expect == init.expect && plan.protocol == init.protocol
                    && plan.members.first().is_some_and(|first| first.name == name && first.address == address));
            return if is_same { Ok(()) } else { Err(engaged(plan)) };
        }
        // The port first: what can't work is not begun.
        self.open(&mut state, address)?;
        let first = Candidate { name, key: self.identity.public_key(), address };
        let plan = Gathering {
            name: init.name,
            protocol: init.protocol,
            expect: init.expect,
            created_ms: now_ms(),
            members: vec![first],
            tokens: Vec::new(),
        };
        let begun = self.keep(&mut state, Plan::Gathering(plan)).map_err(impossible);
        let begun = begun.and_then(|()| self.form_if_complete(&mut state).map_err(impossible));
        if begun.is_err() {
            // The command can be repeated.
            state.plan = None;
            let forgotten = Plan::forget(&self.directory).map_err(impossible);
            drop(state);
            self.close().await;
            forgotten?;
        }
        begun
    }

    async fn join(self: &Arc<Self>, token: &str, place: &Place) -> Result<(), FormFailure> {
        let invitation = Invitation::of_token(token).map_err(FormFailure::NoToken)?;
        if invitation.inviter == self.identity.public_key() {
            return Err(FormFailure::NoToken(
                "it is this daemon's own: use it on the other hosts".to_owned(),
            ));
        }
        let (name, address) = address::resolve(place, &self.config).await?;
        let joining = Joining { token: invitation.to_token(), name, address };
        let mut state = self.unformed().await?;
        match &state.plan {
            Some(Plan::Joining(plan)) if *plan == joining && state.trouble.is_none() => return Ok(()),
            Some(plan @ Plan::Gathering(_)) => return Err(engaged(plan)),
            _ => {}
        }
        let before = state.plan.take();
        drop(state);
        // Whatever it did before ends: this command has the last word, and its first answer is the operator's.
        self.close().await;
        let result = self.join_first(&joining, invitation).await;
        if result.is_err() {
            self.close().await;
            let mut state = self.state.lock().await;
            if let Some(before) = before {
                // It was let in before, and that stands.
                let resumed = self.resume(&mut state, &before);
                state.plan = Some(before);
                if let Err(failure) = resumed {
                    state.trouble = Some(failure);
                    tokio::spawn(Arc::clone(self).take_up());
                }
            }
        }
        result
    }

    /// The first question decides whether it is worth going on.
    async fn join_first(
        self: &Arc<Self>,
        joining: &Joining,
        invitation: Invitation,
    ) -> Result<(), FormFailure> {
        let endpoint = {
            let mut state = self.state.lock().await;
            (state.gathered, state.trouble) = (None, None);
            self.open(&mut state, joining.address)?
        };
        let joiner = self.joiner(endpoint, joining, invitation);
        let connection = joiner.connect().await?;
        let answer = joiner.ask(&connection, 0).await?;
        let mut state = self.state.lock().await;
        self.keep(&mut state, Plan::Joining(joining.clone())).map_err(impossible)?;
        if let Answer::Gathered(gathered) = answer {
            state.gathered = Some(gathered);
        }
        // Where the cluster is formed, it is told so again.
        self.join_on(&mut state, joiner, Some(connection).filter(|it| it.close_reason().is_none()));
        drop(state);
        self.changed();
        Ok(())
    }

    async fn take_text(&self, text: &str) -> Result<(), FormFailure> {
        let genesis = parse(text).map_err(|why| FormFailure::BadGenesis(why.trim_end().to_owned()))?;
        check_genesis(&genesis)?;
        let key = self.identity.public_key();
        let Some(me) = genesis.members.iter().find(|member| member.key == key) else {
            return Err(FormFailure::BadGenesis(format!("no member has this host's key {key}")));
        };
        if let Some(plan) = &self.state.lock().await.plan {
            return Err(engaged(plan));
        }
        // A member that can't listen there would end at each start, and nobody could tell it anything any more.
        let address = self.config.listen.unwrap_or(me.address);
        UdpSocket::bind(address)
            .map_err(|error| FormFailure::CantListen { address, why: error.to_string() })?;
        self.take_genesis(None, genesis).await
    }

    async fn forget(&self, name: String) -> Result<(), FormFailure> {
        let mut state = self.unformed().await?;
        let Some(Plan::Gathering(plan)) = &state.plan else { return Err(FormFailure::NotGathering) };
        let mut plan = plan.clone();
        let Some(key) = plan.remove(&name) else { return Err(FormFailure::NoSuchMember(name)) };
        self.keep(&mut state, Plan::Gathering(plan)).map_err(impossible)?;
        if let Some(connection) = state.here.remove(&key) {
            connection.close(VarInt::from_u32(0), b"taken out");
        }
        drop(state);
        self.changed();
        Ok(())
    }

    async fn abandon(&self, phase: Phase) -> Result<(), FormFailure> {
        {
            let mut state = self.unformed().await?;
            if let Some(plan) = state.plan.as_ref().filter(|plan| plan.phase() != phase) {
                return Err(engaged(plan));
            }
            Plan::forget(&self.directory).map_err(impossible)?;
            state.plan = None;
            (state.gathered, state.trouble) = (None, None);
            state.here.clear();
            state.refused.clear();
        }
        self.close().await;
        Ok(())
    }
}

impl State {
    fn shown(&self, key: PublicKey) -> Shown {
        if let Some(genesis) = &self.genesis {
            return formed(genesis, key);
        }
        let mut shown = Shown {
            phase: Phase::Idle,
            key,
            cluster: String::new(),
            id: None,
            protocol: Protocol::default(),
            expect: 0,
            inviter: None,
            members: Vec::new(),
            refused: self.refused(),
            trouble: self.trouble.clone(),
        };
        let founder = |member: &Candidate, is_here| Founder {
            name: member.name.clone(),
            key: member.key,
            address: member.address,
            is_here,
        };
        match &self.plan {
            None => {}
            Some(Plan::Gathering(plan)) => {
                shown.phase = Phase::Gathering;
                shown.cluster.clone_from(&plan.name);
                (shown.protocol, shown.expect) = (plan.protocol, plan.expect.into());
                let is_here = |member: &Candidate| {
                    let connection = self.here.get(&member.key);
                    member.key == key || connection.is_some_and(|it| it.close_reason().is_none())
                };
                shown.members = plan.members.iter().map(|member| founder(member, is_here(member))).collect();
            }
            Some(Plan::Joining(plan)) => {
                shown.phase = Phase::Joining;
                if let Ok(invitation) = Invitation::of_token(&plan.token) {
                    shown.cluster = invitation.cluster;
                    shown.inviter = Some(invitation.address);
                }
                if let Some(gathered) = &self.gathered {
                    (shown.protocol, shown.expect) = (gathered.protocol, gathered.expect.into());
                    shown.members = gathered.members.iter().map(|member| founder(member, true)).collect();
                }
            }
        }
        shown
    }

    fn refused(&self) -> Vec<RefusedJoin> {
        let shown = self.refused.iter().map(|(at, from, why)| RefusedJoin {
            from: *from,
            ago_s: at.elapsed().as_secs(),
            why: why.clone(),
        });
        shown.collect()
    }
}

/// Whether the cluster that shall be can be.
fn check_shape(init: &Init) -> Result<(), FormFailure> {
    if !is_name(&init.name) {
        return Err(FormFailure::BadName { name: init.name.clone(), of: "cluster's".to_owned() });
    }
    if init.expect == 0 {
        return Err(FormFailure::Impossible("a cluster has at least one member".to_owned()));
    }
    let faults = init.protocol.row().faults;
    let n = usize::from(init.expect);
    if faults.tolerated(n) == 0 && !init.without_tolerance {
        let first = |f| (1..=255_u64).find(|n| faults.tolerated(*n as usize) >= f).unwrap_or(255);
        return Err(FormFailure::TooFew {
            expect: n as u64,
            protocol: init.protocol,
            least: first(1),
            more: first(2),
        });
    }
    Ok(())
}

fn engaged(plan: &Plan) -> FormFailure {
    FormFailure::Engaged(match plan {
        Plan::Gathering(plan) => {
            let place = plan
                .members
                .first()
                .map_or_else(String::new, |it| format!(" as {} at {}", it.name, it.address));
            format!("gathers {} members for `{}` ({}) already{place}", plan.expect, plan.name, plan.protocol)
        }
        Plan::Joining(plan) => {
            format!("joins another one's cluster already, as {} at {}", plan.name, plan.address)
        }
    })
}

/// What an operator is told who asks for something when the cluster is formed. That it is so is no error for whoever
/// asked for just that cluster: the command may have been interrupted.
fn repeated(request: &FormRequest, genesis: &Genesis, key: PublicKey) -> Result<(), FormFailure> {
    let me = || genesis.members.iter().find(|member| member.key == key);
    let suits = |place: &Place, me: &Member| {
        place.name.as_ref().is_none_or(|name| *name == me.name)
            && place
                .advertise
                .as_ref()
                .is_none_or(|it| it.parse().is_ok_and(|it: std::net::SocketAddr| it == me.address))
    };
    let is_so = match request {
        FormRequest::Progress => true,
        FormRequest::Init(init) => {
            init.name == genesis.name
                && usize::from(init.expect) == genesis.members.len()
                && me().is_some_and(|me| suits(&init.place, me))
        }
        FormRequest::Join { token, place } => Invitation::of_token(token).is_ok_and(|invitation| {
            invitation.cluster == genesis.name
                && invitation.inviter != key
                && genesis.members.iter().any(|member| member.key == invitation.inviter)
                && me().is_some_and(|me| suits(place, me))
        }),
        FormRequest::TakeGenesis { text } => parse(text).is_ok_and(|given| given == *genesis),
        FormRequest::CreateToken { .. } | FormRequest::Forget { .. } | FormRequest::Abandon { .. } => false,
    };
    if is_so { Ok(()) } else { Err(formed_here(genesis)) }
}

/// What a member answers to whoever would form a cluster.
///
/// # Errors
/// It has one.
pub fn of_member(request: &FormRequest, genesis: &Genesis, key: PublicKey) -> Result<Shown, FormFailure> {
    repeated(request, genesis, key).map(|()| formed(genesis, key))
}

fn formed(genesis: &Genesis, key: PublicKey) -> Shown {
    let founder = |member: &Member| Founder {
        name: member.name.clone(),
        key: member.key,
        address: member.address,
        is_here: true,
    };
    Shown {
        phase: Phase::Formed,
        key,
        cluster: genesis.name.clone(),
        id: Some(genesis.cluster_id().to_string()),
        protocol: genesis.protocol,
        expect: genesis.members.len() as u64,
        inviter: None,
        members: genesis.members.iter().map(founder).collect(),
        refused: Vec::new(),
        trouble: None,
    }
}

fn formed_here(genesis: &Genesis) -> FormFailure {
    FormFailure::FormedHere { cluster: genesis.name.clone(), id: genesis.cluster_id().to_string() }
}

/// What an operator could do.
fn hints(shown: &Shown) -> Vec<String> {
    let missing = shown.expect.saturating_sub(shown.members.len() as u64);
    let mut hints = match shown.phase {
        Phase::Idle => vec![
            "on the first host of a new cluster: bftctl init --name NAME --expect 4 --advertise HOST:PORT"
                .to_owned(),
            "on a host that was invited: bftctl join TOKEN --advertise HOST:PORT".to_owned(),
        ],
        Phase::Gathering => vec![format!(
            "{missing} more to come, on each: bftctl join TOKEN --advertise HOST:PORT; a token: bftctl token create"
        )],
        Phase::Joining if shown.trouble.is_some() => {
            vec![
                "it is tried again; bftctl join TOKEN with another token, or bftctl join --abandon"
                    .to_owned(),
                "if the inviter is lost for good and other hosts are members already: take genesis.toml from the data directory \
                 of one of them; here bftctl join --abandon, and bftctl init --genesis FILE"
                    .to_owned(),
            ]
        }
        Phase::Joining => vec![format!("{missing} more to come; nothing is to be done on this host")],
        Phase::Formed => {
            vec!["the cluster is formed, and this daemon starts; ask again in a moment".to_owned()]
        }
    };
    let gone: Vec<_> = shown.members.iter().filter(|it| !it.is_here).map(|it| it.name.as_str()).collect();
    if !gone.is_empty() {
        hints.push(format!(
            "not connected now: {}; it comes back by itself when its bftd runs, and if it never will: bftctl init --forget NAME",
            gone.join(", ")
        ));
    }
    hints
}

fn impossible(error: impl ToString) -> FormFailure {
    FormFailure::Impossible(error.to_string())
}

fn fail(failure: FormFailure) -> Response {
    Response::Failed(Failure::Forming(failure))
}
