//! Two honest replicas with one key, each of which knows nothing of the other: the Twins method (Bano et al., arXiv
//! 2004.10617).
//!
//! The members of one side talk to the one, those of the other side to the other, some perhaps to both; sides change as
//! time passes. Whatever a member could do by signing twice what an honest one would sign once, twins do.
//!
//! Defence: quorums.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
};

use bftd_core::{
    block::Block,
    certificate::Certificate,
    durable::{Durable, Record},
    ids::{Index, MemberId, Now},
    kv::{MemoryTables, Operation, StateMachine},
    limits::FETCH_BLOCKS,
    message::{Blocks, Message},
    replica::{Input, Output, Replica, Setup, To},
};

use crate::{Adversary, Liar, Parcel, chance::Chance};

/// Who talks to whom: the first one is the replica that the adversary wraps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sides {
    /// Members that talk to the first.
    pub first: BTreeSet<MemberId>,
    /// Members that talk to its twin.
    pub second: BTreeSet<MemberId>,
}

/// See the module's header.
pub struct Twin {
    liar: Liar,
    /// None where sides are chosen from outside.
    chance: Option<Chance>,
    sides: Arc<Mutex<Sides>>,
    second: Option<Second>,
    now: Now,
    /// How many requests the twin's clients have made.
    requests: u64,
}

/// The second replica, with a disk that syncs at once and a state of its own.
struct Second {
    replica: Replica,
    durable: Durable,
    log: Vec<Arc<Block>>,
    newest: Option<Arc<Certificate>>,
    tables: MemoryTables,
    machine: StateMachine,
    halted: bool,
}

/// How many requests the twin's own clients make: each run of the other replica has its own of the same number.
const REQUESTS: u64 = 3;

impl Twin {
    pub(crate) fn new(liar: Liar, chance: Chance) -> Self {
        let sides = Arc::default();
        let mut twin =
            Self { liar, chance: Some(chance), sides, second: None, now: Now::default(), requests: 0 };
        twin.choose_sides();
        twin
    }

    /// A twin whose sides the caller chooses, whenever it likes.
    pub fn steered(liar: Liar, sides: Arc<Mutex<Sides>>) -> Self {
        Self { liar, chance: None, sides, second: None, now: Now::default(), requests: REQUESTS }
    }

    fn sides(&self) -> Sides {
        self.sides.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn choose_sides(&mut self) {
        let Some(chance) = &mut self.chance else { return };
        let mut sides = Sides::default();
        for id in self.liar.others() {
            let choice = chance.below(7);
            if choice < 4 {
                sides.first.insert(id);
            }
            if choice >= 3 {
                sides.second.insert(id);
            }
        }
        *self.sides.lock().unwrap_or_else(PoisonError::into_inner) = sides;
    }

    /// Steps the second replica, and carries out what follows.
    fn step(&mut self, input: Input) -> Vec<Parcel> {
        let second = self.second.get_or_insert_with(|| Second::start(&self.liar, self.now));
        let parcels = second.step(&self.liar, self.now, input);
        let sides = self.sides();
        parcels.into_iter().filter(|parcel| sides.second.contains(&parcel.to)).collect()
    }
}

impl Adversary for Twin {
    fn outgoing(&mut self, to: MemberId, message: &Message) -> Vec<Parcel> {
        if self.sides().first.contains(&to) { vec![Parcel::now(to, message.clone())] } else { Vec::new() }
    }

    fn hears(&mut self, from: MemberId, _message: &Message) -> bool {
        self.sides().first.contains(&from)
    }

    fn incoming(&mut self, from: MemberId, message: &Message) -> Vec<Parcel> {
        if !self.sides().second.contains(&from) {
            return Vec::new();
        }
        match self.liar.verifier.verify(message.clone()) {
            Ok(message) => self.step(Input::Message(from, message)),
            Err(_) => Vec::new(),
        }
    }

    fn tick(&mut self, now: Now) -> Vec<Parcel> {
        self.now = now;
        if self.chance.as_mut().is_some_and(|chance| chance.one_in(25)) {
            self.choose_sides();
        }
        let mut parcels = self.step(Input::Tick);
        let may_submit = self.second.as_ref().is_some_and(|second| second.replica.may_submit());
        let wants = self.chance.as_mut().is_some_and(|chance| chance.one_in(20));
        if may_submit && wants && self.requests < REQUESTS {
            self.requests += 1;
            let value = format!("twin{}", self.requests).into();
            let put = Operation::put("key0".into(), value);
            parcels.extend(self.step(Input::Submit(vec![put.encode()])));
        }
        parcels
    }
}

impl Second {
    fn start(liar: &Liar, now: Now) -> Self {
        let Liar { me, members, signer, timing, .. } = liar.clone();
        let mut tables = MemoryTables::default();
        let machine = StateMachine::open(&mut tables, members.root()).expect("memory does not fail");
        let states = machine.recent_digests();
        let setup = Setup { me, members, signer, timing, protocol: None, one_round: true };
        Self {
            replica: Replica::start(setup, Durable::default(), states, now),
            durable: Durable::default(),
            log: Vec::new(),
            newest: None,
            tables,
            machine,
            halted: false,
        }
    }

    fn step(&mut self, liar: &Liar, now: Now, input: Input) -> Vec<Parcel> {
        let mut parcels = Vec::new();
        let mut inputs = VecDeque::from([input]);
        while let Some(input) = inputs.pop_front() {
            if self.halted {
                break;
            }
            self.replica.step(now, input);
            for output in self.replica.take_outputs() {
                match output {
                    Output::Persist(record) => self.persist(&record),
                    Output::Send { to: To::Others, message, .. } => parcels.extend(liar.to_others(&message)),
                    Output::Send { to: To::Member(to), message, .. } if to == liar.me => {
                        inputs.push_back(Input::Message(to, message));
                    }
                    Output::Send { to: To::Member(to), message, .. } => {
                        parcels.push(Parcel::now(to, Message::clone(&message)));
                    }
                    Output::Execute(block) => inputs.push_back(self.execute(&block)),
                    Output::ServeCommitted { to, after } => {
                        parcels.extend(self.committed_after(after).map(|it| Parcel::now(to, it)));
                    }
                    Output::Halt(_) => self.halted = true,
                    Output::Numbered { .. } | Output::Readable(_) | Output::Report(_) => {}
                }
            }
        }
        parcels
    }

    fn persist(&mut self, record: &Record) {
        self.log.extend(self.durable.apply(record));
        if let Record::Committed(committed) = record {
            self.newest = Some(Arc::clone(&committed.certificate));
        }
    }

    fn execute(&mut self, block: &Arc<Block>) -> Input {
        let blocks = std::slice::from_ref(block);
        let outcomes = self.machine.execute(&mut self.tables, blocks).expect("blocks come in order");
        let state = outcomes.first().map(|outcome| outcome.head.state);
        Input::Executed(block.reference(), state.expect("one block, one outcome"))
    }

    fn committed_after(&self, after: Index) -> Option<Message> {
        let start = usize::try_from(after.0).ok()?;
        let blocks: Vec<_> = self.log.get(start..)?.iter().take(FETCH_BLOCKS).cloned().collect();
        let last = blocks.last()?.digest();
        let certificate = self.newest.clone().filter(|newest| newest.block().digest == last);
        Some(Message::Blocks(Blocks { blocks, certificate }))
    }
}
